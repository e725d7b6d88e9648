"""Shares of counts: Wilson's interval, and how far claims of the same example are from independent."""

import numpy as np

from must.core.types import Array


def wilson(right: Array, count: Array, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """The interval of a share that was seen as right / count (Wilson 1927), two-sided 95 % by default; 0..1 of
    nothing."""
    right, n = np.asarray(right, np.float64), np.asarray(count, np.float64)
    some = np.maximum(n, 1e-12)
    share = np.clip(right / some, 0.0, 1.0)
    half = z * np.sqrt(share * (1 - share) / some + (z / some) ** 2 / 4)
    middle, scale = share + z * z / (2 * some), 1 + z * z / some
    return np.where(n > 0, (middle - half) / scale, 0.0), np.where(n > 0, (middle + half) / scale, 1.0)


def design_effect(right: Array, count: Array) -> float:
    """How much more the share of right claims varies than it would if all claims were independent (Kish 1965), at least
    1.

    Args:
      right: [G], right claims of each example.
      count: [G], claims of each.
    """
    right, count = np.asarray(right, np.float64), np.asarray(count, np.float64)
    return spread_of((right * right).sum(), (right * count).sum(), (count * count).sum(), right.sum(), count.sum())


def spread_of(right_right: float, right_count: float, count_count: float, right: float, count: float) -> float:
    """`design_effect` from sums over the examples of the products and of the numbers themselves."""
    share = right / count if count else 0.0
    independent = share * (1 - share) * count
    seen = right_right - 2 * share * right_count + share * share * count_count
    return max(1.0, float(seen / independent)) if independent > 0 else 1.0
