"""Which labels are believed, decided when records are read and chosen on a validation split; see `Policy`."""

from collections.abc import Iterable

import numpy as np

from must.core.types import Policy


def hard(threshold: float = 0.5) -> Policy:
    """Two states: at or above the threshold true, below absent (pixels: ignored); MuST's 0.5."""
    return Policy(np.float32(threshold), np.float32(threshold))


def three_state(
    judged: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    classes: int,
    *,
    precision: float = 0.7,
    doubt: float = 0.2,
    least: int = 10,
    fallback: Policy = Policy(0.5, 0.2),
) -> Policy:
    """Thresholds per class from held-out truth.

    `positive` is the lowest score from which on the claims of a class are true at least as often as `precision`;
    `negative` is the score below which a claim is true less often than `doubt` (claims sorted by score, running means
    over a window of `least`), so that what lies between is ignored and a weak teacher's misses need not become
    background.

    Args:
      judged: one (score, correct, class id) triple of arrays per validation example, from `Task.judge`.
      classes: number of classes C.
      precision: wanted of what is taken as true.
      doubt: share of true claims up to which a claim is taken as absent.
      least: claims that a class needs for thresholds of its own.
      fallback: for classes with fewer claims.

    Returns:
      Policy with [C] thresholds, negative <= positive.
    """
    triples = [tuple(np.concatenate(part) for part in zip(*judged))] if judged else []
    positive = np.full(classes, fallback.positive, np.float32)
    negative = np.full(classes, fallback.negative, np.float32)
    for score, correct, ids in triples:
        for c in range(classes):
            mine = ids == c
            if mine.sum() < least:
                continue
            order = np.argsort(-score[mine], kind="stable")
            s, true = score[mine][order], correct[mine][order].astype(np.float64)
            above = np.cumsum(true) / np.arange(1, len(true) + 1)
            good = np.flatnonzero(above >= precision)
            positive[c] = s[good[-1]] if len(good) else s[0]
            local = np.convolve(true, np.ones(least) / least, "valid")  # share of true claims around each score
            hopeful = np.flatnonzero(local >= doubt)
            negative[c] = s[min(hopeful[-1] + least - 1, len(s) - 1)] if len(hopeful) else s[0]
    return Policy(positive, np.minimum(negative, positive))
