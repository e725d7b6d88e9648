"""COCO's average precision from the hits and misses of all images."""

from collections.abc import Mapping

import numpy as np

_RECALLS = np.linspace(0.0, 1.0, 101)  # where the precision is read


def of_classes(rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Average precision and largest recall, means over the classes that have a true box; None where none has.

    Args:
      rows: of N images with M predictions: "scores" and "classes" [N, M]; "hit" and "miss" bool [N, M, T] at T thresholds
        of IoU, neither for what is ignored; "positives" [N, C], true boxes.

    Returns:
      float [T] each, 0..1.
    """
    positives = rows["positives"].sum(0)
    precision, recall = [], []
    for c in np.flatnonzero(positives):
        mine = (rows["classes"] == c) & (rows["hit"] | rows["miss"]).any(-1)
        order = np.argsort(-rows["scores"][mine], kind="stable")
        hits = np.cumsum(rows["hit"][mine][order], 0)  # [n, T]
        misses = np.cumsum(rows["miss"][mine][order], 0)
        precision.append(_interpolated(hits, misses, positives[c]))
        recall.append(hits[-1] / positives[c] if len(hits) else np.zeros(rows["hit"].shape[-1]))
    return (np.mean(precision, 0), np.mean(recall, 0)) if precision else None


def _interpolated(hits: np.ndarray, misses: np.ndarray, positives: int) -> np.ndarray:
    """Precision at the 101 recalls, averaged: cumulated hits and misses [n, T] by falling score -> [T]."""
    out = np.zeros(hits.shape[1])
    envelope = np.maximum.accumulate((hits / np.maximum(hits + misses, np.spacing(1)))[::-1], 0)[::-1]
    for t in range(hits.shape[1]):
        at = np.searchsorted(hits[:, t] / positives, _RECALLS, side="left")
        out[t] = envelope[at[at < len(hits)], t].sum() / len(_RECALLS)
    return out
