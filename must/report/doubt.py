"""What a label says in numbers that a page can hold: how doubtful it is, and its claims by class and state.

A claim is a class, a box or a pixel, see `Task.claims`; its state is taken as true, ignored, or taken as absent.
"""

import numpy as np

from must.tasks.states import Claims

TAKEN, IGNORED, ABSENT = range(3)
_SHARE = 0.99  # of a doubt that ignored claims make; the rest only orders what would be equal
_MANY = 256  # claims from which they are pixels and told as shares
_LEAST = 0.005  # of all claims, that a class needs to be listed
_LISTED = 8  # scores per class and state


def doubt(claims: Claims) -> float:
    """How far from settled a label is, 0..1: the share of its claims that are ignored, 0 where nothing is said.

    One hundredth of it, which decides between equals, is the mean of 1 - calibrated score over what is not taken as absent.
    """
    if not len(claims.ids):
        return 0.0
    ignored, open_ = ~claims.positive & ~claims.negative, ~claims.negative
    unsure = 1.0 - np.clip(np.nan_to_num(claims.scores[open_]), 0.0, 1.0)
    return float(_SHARE * ignored.mean() + (1.0 - _SHARE) * (unsure.mean() if len(unsure) else 0.0))


def shares(claims: Claims) -> np.ndarray:
    """Shares of the claims that are taken, ignored, absent: float [3], 0 where nothing is said."""
    return np.bincount(_states(claims), minlength=3) / max(1, len(claims.ids))


def classes_said(claims: Claims) -> list[int]:
    """2 * class + 0 for every class of which something is taken, + 1 for one of which something is ignored, rising.

    Of pixels, classes with less than half a percent of them are left out.
    """
    state = _states(claims)
    keys, counts = np.unique(
        2 * claims.ids.astype(np.int64)[state < ABSENT] + state[state < ABSENT], return_counts=True
    )
    return keys[counts >= max(1, int(_LEAST * len(state)))].tolist()


def rows(claims: Claims) -> list[list]:
    """The claims by class and state for a list beside a picture, the most sure first; numbers in thousandths.

    Returns:
      [class, state, [scores, falling, the first ones], count] of each, or of pixels [class, state, share, mean score].
    """
    state, scores = _states(claims), np.clip(np.nan_to_num(claims.scores), 0.0, 1.0)
    found = []
    for key in np.unique(3 * claims.ids.astype(np.int64) + state):
        mine = np.sort(scores[(claims.ids == key // 3) & (state == key % 3)])[::-1]
        if len(state) <= _MANY:
            found.append([int(key) // 3, int(key) % 3, _thousandths(mine[:_LISTED]), len(mine)])
        elif len(mine) >= _LEAST * len(state):
            found.append([int(key) // 3, int(key) % 3, *_thousandths(np.array([len(mine) / len(state), mine.mean()]))])
    return sorted(found, key=lambda row: (row[1], -(row[2][0] if isinstance(row[2], list) else row[2]), row[0]))


def worst_first(values: np.ndarray, higher_is_better: np.ndarray) -> np.ndarray:
    """How bad each image is among all, 0..1: the mean over tasks of the share of images with a better score.

    Args:
      values: [images, tasks], each task's headline metric of the image alone; NaN where there is none.
      higher_is_better: bool [tasks].

    Returns:
      float [images]; 0 for an image without any score.
    """
    worse = np.full(values.shape, np.nan)
    for t, higher in enumerate(higher_is_better):
        there = np.isfinite(values[:, t])
        bad = -values[there, t] if higher else values[there, t]
        worse[there, t] = np.searchsorted(np.sort(bad), bad, "left") / max(1, len(bad))
    counted = np.isfinite(worse).sum(1)
    return np.nansum(worse, 1) / np.maximum(counted, 1)


def _states(claims: Claims) -> np.ndarray:
    return np.where(claims.positive, TAKEN, np.where(claims.negative, ABSENT, IGNORED))


def _thousandths(values: np.ndarray) -> list[int]:
    return np.round(1000 * values).astype(int).tolist()
