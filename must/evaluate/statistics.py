"""Relative gains, paired differences and their intervals over seeds, confusion rates; numbers in, numbers out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def relative_gain(score: float, baseline: float, higher_is_better: bool) -> float:
    """Gain of a score over its baseline in %, positive where it is better; NaN where the baseline is 0."""
    if baseline == 0:
        return math.nan
    return 100 * (score - baseline) / abs(baseline) * (1 if higher_is_better else -1)


def delta_m(scores: Mapping[str, float], baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]) -> float:
    """Mean over tasks of the relative gain over a baseline, % (Maninis et al. 2019).

        100 / T * sum_t s_t (M_t - M_bt) / |M_bt|,  s_t = +1 where higher is better, else -1

    Args:
      scores: {task: value}.
      baseline: the same tasks.
      higher_is_better: {task: direction}.

    Returns:
      %; NaN where a baseline is 0 or a score is NaN, since no relative gain exists then.

    Raises:
      ValueError: no tasks, or different tasks on the two sides.
    """
    if not scores or set(scores) != set(baseline):
        raise ValueError(f"delta_m needs the same tasks on both sides, not {sorted(scores)} and {sorted(baseline)}")
    return sum(relative_gain(scores[task], baseline[task], higher_is_better[task]) for task in scores) / len(scores)


def paired_t_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and t interval of paired differences, one per seed: mean -+ t_{n-1} s / sqrt(n).

    Returns:
      (mean, low, high); low and high are NaN for fewer than two differences.
    """
    from scipy.special import stdtrit  # scipy.stats, which calls it, takes a second to import

    values = np.asarray(differences, np.float64)
    count = values.size
    mean = float(values.mean()) if count else math.nan
    if count < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(count - 1, (1 + confidence) / 2) * values.std(ddof=1) / math.sqrt(count))
    return mean, mean - half, mean + half


def percentile_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The middle of bootstrapped values that holds `confidence` of them; NaN, as of AP without objects, is left out.

    Returns:
      (low, high); NaN where more than one value in twenty is not defined, since the others are no fair sample.
    """
    values = np.asarray(values, np.float64)
    if not len(values) or np.isnan(values).mean() > 0.05:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """{"mean", "ci95": [low, high] or None, "per_seed"} of one number per seed, in JSON types."""
    mean, low, high = paired_t_interval(values)
    interval = None if math.isnan(low) else [low, high]
    return {"mean": plain(mean), "ci95": interval, "per_seed": [plain(value) for value in values]}


def tested(differences: Sequence[float]) -> dict[str, Any]:
    """`summary` of paired differences with "p", the two-sided p-value of a t test; None for fewer than two seeds."""
    from scipy.special import stdtr

    values, p = np.asarray(differences, np.float64), math.nan
    if len(set(differences)) > 1:  # equal differences have no t statistic
        t = values.mean() / (values.std(ddof=1) / math.sqrt(values.size))
        p = float(2 * stdtr(values.size - 1, -abs(t)))
    return {**summary(differences), "p": plain(p)}


def plain(value: float) -> float | int | None:
    """A number as JSON knows it; None for one that is not finite."""
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else None


def confusion(probs: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """How often each class of a head is predicted for each true class of a set.

    Args:
      probs: [N, C_head]; a row with a number that is not finite is left out.
      truth: int [N], classes of the set; negative for an example to leave out.
      classes: C_set.

    Returns:
      float64 [C_set, C_head] with rows that sum to 1, zeros for a class without examples.
    """
    used = np.isfinite(probs).all(1) & (truth >= 0)
    counts = np.zeros((classes, probs.shape[1]))
    np.add.at(counts, (truth[used], probs[used].argmax(1)), 1)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)
