"""The one train step of every recipe: forward, gradient, update, average. Pure; `must.core.devices` runs it anywhere."""

import jax
import jax.numpy as jnp
import optax

from must.core.ratio import all_devices
from must.core.types import Balance, Batch, Objective, PyTree, TrainState


def train_step(
    state: TrainState,
    batch: Batch,
    frozen: PyTree = None,
    *,
    objective: Objective,
    balance: Balance,
    tx: optax.GradientTransformation,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step on L = sum_t scale_t * balance_t * num_t / max(1, den_t), all sums over all devices.

    Local numerators stand over summed, constant denominators, so that the sum of the devices' gradients is the
    gradient of the global loss; a mean of device means would not be.

    Args:
      state: replicated.
      batch: this device's rows.
      frozen: variables of teachers, read only.
      objective: what is minimised.
      balance: weights of the terms from their values.
      tx: optimiser.
      ema_decay: of the averaged parameters, ramped up as min(decay, (1 + step) / (10 + step)); 0 copies.
      axis_name: device axis of pmap or shard_map.

    Returns:
      The next state and scalars: "loss", "gradient_norm", one "loss/<term>" and "weight/<term>" each.
    """
    key = jax.random.fold_in(state.key, state.step)

    def total(params):
        ratios, model_state, objective_state = objective.terms(
            params, state.model_state, state.aux_state["objective"], frozen, batch, key, axis_name
        )
        den = {name: all_devices(jax.lax.stop_gradient(r.den), axis_name) for name, r in ratios.items()}
        local = {name: ratios[name].num / jnp.maximum(den[name], 1.0) for name in ratios}
        losses = all_devices(jax.lax.stop_gradient(local), axis_name)
        present = {name: den[name] > 0 for name in den}
        weights, balance_state = balance.update(losses, present, state.aux_state["balance"])
        weights = {name: objective.scales.get(name, 1.0) * weights[name] for name in weights}
        loss = sum(jax.lax.stop_gradient(weights[name]) * local[name] for name in local)
        return loss, (model_state, {"objective": objective_state, "balance": balance_state}, losses, weights)

    (loss, (model_state, aux_state, losses, weights)), grads = jax.value_and_grad(total, has_aux=True)(state.params)
    loss, grads = all_devices((loss, grads), axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema_params = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), state.ema_params, params)
    logs = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
    logs |= {f"loss/{name}": value for name, value in losses.items()}
    logs |= {f"weight/{name}": value for name, value in weights.items()}
    return TrainState(state.step + 1, params, model_state, opt_state, aux_state, ema_params, state.key), logs
