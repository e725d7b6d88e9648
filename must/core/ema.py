"""Exponential moving averages of parameters and batch statistics."""

import jax
import jax.numpy as jnp

from must.core.types import Array, PyTree


def ema_update(average: PyTree, value: PyTree, decay: float, step: Array | None = None) -> PyTree:
    """Updates an exponential moving average, without gradient.

    Args:
      average: tree of arrays.
      value: tree of the same structure; leaves that are not floating-point, such as counters, are copied.
      decay: weight of the old average; 0 copies `value`.
      step: int32 []; ramps the decay up as min(decay, (1 + step) / (10 + step)). None: no ramp.
    """
    if not decay:
        return jax.lax.stop_gradient(value)
    rate = decay if step is None else jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def update(old, new):
        return old + (1.0 - rate) * (new - old) if jnp.issubdtype(old.dtype, jnp.floating) else new

    return jax.lax.stop_gradient(jax.tree.map(update, average, value))
