"""Making a fresh `TrainState`."""

import jax
import jax.numpy as jnp
import optax

from must.core.types import Array, Balance, Objective, PyTree, TrainState
from must.train.gradients import tasks_of


def create(
    key: Array, variables: PyTree, objective: Objective, balance: Balance, tx: optax.GradientTransformation
) -> TrainState:
    """A state at step 0.

    Args:
      key: PRNG key; the run's randomness and the objective's own parameters come from it.
      variables: of the model, from `Model.init` or a checkpoint: {"params": ..., other collections}.
      objective: its parameters stand beside the model's under "objective" when it has any.
      balance: weights of the tasks.
      tx: optimizer.
    """
    init_key, run_key = jax.random.split(key)
    extra, objective_state = objective.init(init_key)
    variables = jax.tree.map(jnp.copy, variables)  # a step may be given this state's memory; the caller's stays
    params = {"model": variables["params"]} | ({"objective": extra} if extra else {})
    model_state = {name: value for name, value in variables.items() if name != "params"}
    aux_state = {"objective": objective_state, "balance": balance.init(tasks_of(objective.names))}
    aux_state = jax.tree.map(jnp.copy, aux_state)  # a donated buffer may not stand twice in a state
    ema = jax.tree.map(jnp.copy, {"params": params, "model_state": model_state})
    return TrainState(jnp.int32(0), params, model_state, tx.init(params), aux_state, ema, run_key)


def model_variables(state: TrainState, *, ema: bool = True) -> PyTree:
    """The variables that `Model.apply` reads: averaged parameters and batch statistics by default, else the raw
    ones."""
    if ema:
        return {"params": state.ema["params"]["model"], **state.ema["model_state"]}
    return {"params": state.params["model"], **state.model_state}
