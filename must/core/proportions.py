"""Proportions: Wilson's interval and the design effect of clustered observations."""

import numpy as np

from must.core.types import Array


def wilson(right: Array, count: Array, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of right / count (1927), two-sided 95% by default; (0, 1) if count is 0."""
    right, n = np.asarray(right, np.float64), np.asarray(count, np.float64)
    some = np.maximum(n, 1e-12)
    share = np.clip(right / some, 0.0, 1.0)
    half = z * np.sqrt(share * (1 - share) / some + (z / some) ** 2 / 4)
    middle, scale = share + z * z / (2 * some), 1 + z * z / some
    return np.where(n > 0, (middle - half) / scale, 0.0), np.where(n > 0, (middle + half) / scale, 1.0)


def design_effect(right: Array, count: Array) -> float:
    """Variance of the proportion of correct claims relative to independent claims (Kish 1965), at least 1.

    Args:
      right: [G], correct claims per example.
      count: [G], claims per example.
    """
    right, count = np.asarray(right, np.float64), np.asarray(count, np.float64)
    return spread_of((right * right).sum(), (right * count).sum(), (count * count).sum(), right.sum(), count.sum())


def spread_of(right_right: float, right_count: float, count_count: float, right: float, count: float) -> float:
    """`design_effect` from sums over examples: of right^2, right * count, count^2, right and count."""
    share = right / count if count else 0.0
    independent = share * (1 - share) * count
    actual = right_right - 2 * share * right_count + share * share * count_count
    return max(1.0, float(actual / independent)) if independent > 0 else 1.0
