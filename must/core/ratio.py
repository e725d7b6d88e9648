"""The one averaging concept, for losses and metrics: sums travel, the division comes last."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from must.core.types import Array, PerExample


class Ratio(NamedTuple):
    """A mean that is not divided yet: scalars that add over batches and devices.

    Attributes:
      num: [], weighted sum of values.
      den: [], number of items that the sum averages over.
    """

    num: Array
    den: Array


def weighted_sum(term: PerExample, weights: Array) -> Ratio:
    """Reduces a term over the batch by the one weight rule: num = sum w * value, den = sum [w != 0] * norm.

    Weight 0 removes an example, denominator included, whatever its value (NaN too); any other weight only scales it.

    Args:
      term: values and norms, [B].
      weights: [B].
    """
    present = weights != 0
    value = jnp.where(present, term.value, 0.0)
    return Ratio(jnp.sum(weights * value), jnp.sum(jnp.where(present, term.norm, 0.0)))


def divide(ratio: Ratio) -> Array:
    """The mean; 0 where nothing was counted, and no denominator below 1 (one item)."""
    return ratio.num / jnp.maximum(ratio.den, 1.0)


def merge(*ratios: Ratio) -> Ratio:
    """The ratio over the union of what each one counted."""
    return Ratio(sum(r.num for r in ratios), sum(r.den for r in ratios))


def all_devices(ratio: Ratio, axis_name: str | None) -> Ratio:
    """The ratio over the union of all devices along `axis_name`; itself when there is none."""
    return ratio if axis_name is None else jax.lax.psum(ratio, axis_name)
