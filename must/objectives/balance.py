"""Weights of the loss terms from their values, as pure (init, update) pairs; see `must.core.types.Balance`."""

import jax.numpy as jnp

from must.core.types import Balance


def fixed() -> Balance:
    """The plain sum: every weight is 1 and only `Objective.scales` decide; the strong baseline (Kurin et al. 2022)."""
    return Balance(init=lambda names: {}, update=lambda losses, present, state: ({n: jnp.float32(1) for n in losses}, state))


def uncertainty(learning_rate: float = 0.01) -> Balance:
    """Homoscedastic uncertainty weighting: minimises sum_t exp(-s_t) L_t + s_t / 2 over s_t too (Kendall et al. 2018).

    Args:
      learning_rate: of the plain gradient descent on s_t = log sigma_t^2.
    """

    def update(losses, present, state):
        weights = {name: jnp.exp(-state[name]) for name in losses}
        slope = {name: 0.5 - weights[name] * losses[name] for name in losses}
        moved = {name: state[name] - learning_rate * jnp.where(present[name], slope[name], 0.0) for name in losses}
        return weights, moved

    return Balance(init=lambda names: {name: jnp.float32(0) for name in names}, update=update)
