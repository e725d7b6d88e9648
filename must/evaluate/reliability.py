"""Whether probabilities are what they say, counted in cells so that any number of claims takes the same memory."""

from typing import Any, NamedTuple

import numpy as np

from must.core.proportions import wilson

CELLS = 1000  # of the scores 0..1
BINS = 15  # of a diagram and of the calibration error, with equal numbers of claims
_WAITING = 1_000_000  # claims that are held before they are counted
_POINTS = 60  # of a curve of precision and recall, at most about this far apart along either


class Counted(NamedTuple):
    """Claims by cell of their score, float64 [C, CELLS + 1] each.

    Attributes:
      count: claims.
      right: of them, those that are so.
      score: sum of the scores.
      square: sum of (score - right)^2.
    """

    count: np.ndarray
    right: np.ndarray
    score: np.ndarray
    square: np.ndarray


class Cells:
    """Gathers claims of `classes` classes."""

    def __init__(self, classes: int):
        self._counted = Counted(*(np.zeros((classes, CELLS + 1)) for _ in Counted._fields))
        self._waiting: list[tuple[np.ndarray, ...]] = []
        self._number = 0

    def add(self, score: np.ndarray, correct: np.ndarray, ids: np.ndarray) -> None:
        """Claims, [N] each."""
        self._waiting.append((np.asarray(score, np.float64), correct, ids))
        self._number += len(score)
        if self._number > _WAITING:
            self.counted()

    def counted(self) -> Counted:
        """All that were added so far."""
        if self._waiting:
            score, correct, ids = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
            self._waiting, self._number = [], 0
            at = ids * (CELLS + 1) + np.floor(np.clip(score, 0.0, 1.0) * CELLS + 1e-6).astype(np.int64)
            for array, weight in zip(self._counted, (None, correct, score, (score - correct) ** 2), strict=True):
                array += np.bincount(at, weight, minlength=array.size).reshape(array.shape)
        return self._counted


def reliability(cells: Counted, spread: float = 1.0) -> dict[str, Any]:
    """How far probabilities are from what they say.

    Args:
      cells: of one class, or summed over classes, [CELLS + 1] each.
      spread: design effect of the claims, which widens the intervals.

    Returns:
      {"ece": mean |share of right - mean score| over bins of equal numbers of claims (Naeini et al. 2015), "brier": mean
      (score - right)^2, "bins": [[mean score, share of right, low, high, claims]]}; ece and brier are None without claims.
    """
    total = cells.count.sum()
    if not total:
        return {"ece": None, "brier": None, "bins": []}
    middle = cells.count.cumsum() - cells.count / 2
    which = np.minimum((middle / total * BINS).astype(int), BINS - 1)
    count, right, score = (np.bincount(which, part, minlength=BINS) for part in cells[:3])
    low, high = wilson(right / spread, count / spread)
    used = np.flatnonzero(count)
    some = np.maximum(count, 1)
    bins = np.stack([score / some, right / some, low, high, count], 1)[used].round(4).tolist()
    ece = sum(abs(right[b] - score[b]) for b in used) / total
    return {"ece": float(ece), "brier": float(cells.square.sum() / total), "bins": bins}


def trade_off(cells: Counted, items: float) -> list[list[float]]:
    """[threshold, precision, recall] of one class, by falling threshold; [] without claims or true items."""
    count, right = cells.count[::-1].cumsum(), cells.right[::-1].cumsum()
    steps = np.flatnonzero(cells.count[::-1])
    if not items or not len(steps):
        return []
    points = np.stack([(CELLS - steps) / CELLS, right[steps] / count[steps], np.minimum(1.0, right[steps] / items)], 1)
    kept = [points[0]]
    for point in points[1:]:
        if np.abs(point - kept[-1])[1:].max() >= 1 / _POINTS or point is points[-1]:
            kept.append(point)
    return np.round(kept, 4).tolist()
