"""Averages of losses and metrics as numerator and denominator, which are summed before the division."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from must.core.types import Array, PerExample


class Ratio(NamedTuple):
    """A mean before division: scalars that can be summed over batches and devices.

    Attributes:
      num: [], weighted sum of values.
      den: [], number of items.
    """

    num: Array
    den: Array


def weighted_sum(term: PerExample, weights: Array) -> Ratio:
    """Reduces a term over the batch: num = sum w * value, den = sum [w != 0] * norm.

    Weight 0 removes an example, even a NaN, from both sums; any other weight scales only the numerator.

    Args:
      term: values and norms, [B].
      weights: [B].
    """
    present = weights != 0
    value = jnp.where(present, term.value, 0.0)
    return Ratio(jnp.sum(weights * value), jnp.sum(jnp.where(present, term.norm, 0.0)))


def divide(ratio: Ratio) -> Array:
    """The mean; 0 if nothing was counted. The denominator is at least 1 (one item)."""
    return ratio.num / jnp.maximum(ratio.den, 1.0)


def merge(*ratios: Ratio) -> Ratio:
    """The ratio over the union of all items."""
    return Ratio(sum(r.num for r in ratios), sum(r.den for r in ratios))


def all_devices(ratio: Ratio, axis_name: str | None) -> Ratio:
    """The ratio over all devices along `axis_name`; the ratio itself if that is None."""
    return ratio if axis_name is None else jax.lax.psum(ratio, axis_name)
