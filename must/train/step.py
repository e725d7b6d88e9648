"""The one train step of every recipe: forward, gradient, update, average. Pure; `must.core.devices` runs it
anywhere."""

import functools

import jax
import jax.numpy as jnp
import optax

from must.core.ema import ema_update
from must.core.types import Balance, Batch, Objective, PyTree, TrainState
from must.train.gradients import accumulated, balanced_gradient, denominators, task_losses

BATCH_STATS = "batch_stats"  # the collection of running statistics


def train_step(
    state: TrainState,
    batch: Batch | dict[str, Batch],
    frozen: PyTree = None,
    *,
    objective: Objective,
    balance: Balance,
    tx: optax.GradientTransformation,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on sum_t w_t L_t, L_t = sum over the task's terms of scale * num / max(1, den), over all
    devices.

    Local numerators stand over summed, constant denominators, so that the sum of the devices' gradients is the
    gradient of the global loss; a mean of device means would not be.

    A step whose loss or update is not finite changes nothing but the step count; devices agree on it, since both are
    sums over all of them.

    Args:
      state: replicated.
      batch: this device's rows; only the objective reads them.
      frozen: variables of teachers, read only.
      objective: what is minimized; a task whose terms it does not return, or that counted nothing, is not present.
      balance: weights w_t of the tasks from their losses or gradients.
      tx: optimizer.
      accumulate: equal parts of a device's rows that go through the network one after the other. Denominators are those
        of all rows, so that without batch statistics the gradient is that of the batch as a whole; statistics are of
        each part, and the running ones follow their mean. Only for a balance whose weights do not depend on losses.
      ema_decay: of the averaged parameters and batch statistics, ramped up as min(decay, (1 + step) / (10 + step)); 0
        copies.
      axis_name: device axis of pmap or shard_map.

    Returns:
      The next state and scalars: "loss" (of the weighted tasks), "gradient_norm" (as the optimizer sees it),
      "skipped" (1 if the step changed nothing), "loss/<term>" without factors, and what `balanced_gradient` logs:
      "weight/<task>", and norms and cosines of the tasks' gradients when the balance reads them.
    """
    key = jax.random.fold_in(state.key, state.step)

    def sums(params, rows, key):
        aux_state = state.aux_state["objective"]
        return objective.terms(params, state.model_state, aux_state, frozen, rows, key, axis_name)

    def gradient(rows, key, dens=None):
        def losses(params):
            ratios, *states = sums(params, rows, key)
            local, seen = task_losses(objective, ratios, dens or denominators(ratios, axis_name), axis_name)
            return local, (seen, states)

        return balanced_gradient(losses, state.params, objective, balance, state.aux_state["balance"], axis_name)

    if accumulate == 1:
        grads, (seen, (model_state, objective_state), balance_state), weighed = gradient(batch, key)
    else:
        grads, (seen, (model_state, objective_state), balance_state), weighed = _in_parts(
            sums, gradient, state, batch, key, accumulate, balance, axis_name
        )
    loss = sum(weighed[f"weight/{task}"] * seen.losses[task] for task in seen.losses)
    aux_state = {"objective": objective_state, "balance": balance_state}
    next_state, good = _updated(state, loss, grads, model_state, aux_state, tx, ema_decay)
    logs = {"loss": loss, "gradient_norm": optax.tree.norm(grads), "skipped": 1.0 - good}
    logs |= {f"loss/{name}": value for name, value in seen.terms.items()} | weighed
    return next_state, logs


def _in_parts(sums, gradient, state: TrainState, batch: PyTree, key: jax.Array, count: int, balance, axis_name):
    """What `gradient(batch, key)` returns, from parts of the batch one after the other over the denominators of all its
    rows."""
    parts = functools.partial(accumulated, batch=batch, parts=count, key=key)
    dens = parts(lambda rows, key: denominators(sums(state.params, rows, key)[0], axis_name))

    def part(rows, key):
        grads, (seen, (model_state, _), _), _ = gradient(rows, key, dens)
        return grads, seen, {name: model_state[name] for name in state.model_state if name == BATCH_STATS}

    grads, seen, statistics = parts(part)
    seen = seen._replace(present={task: count > 0 for task, count in seen.present.items()})
    model_state = state.model_state | jax.tree.map(lambda leaf: leaf / count, statistics)
    objective_state = sums(state.params, batch, key)[2]  # of which the network is no part
    weights, balance_state = balance.update(seen.losses, seen.present, None, state.aux_state["balance"])
    weighed = {f"weight/{task}": weight for task, weight in weights.items()}
    return grads, (seen, (model_state, objective_state), balance_state), weighed


def _updated(state: TrainState, loss, grads: PyTree, model_state: PyTree, aux_state: PyTree, tx, ema_decay: float):
    """The state after the optimizer and the average, and True; the old one, a step on, and False where the loss or the
    update is not finite."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = ema_update(state.ema, {"params": params, "model_state": model_state}, ema_decay, state.step)
    good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates))
    new, old = (params, model_state, opt_state, aux_state, ema), state[1:-1]
    kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)
    return TrainState(state.step + 1, *kept, state.key), good
