"""What is known of boxes when a rectangle of another picture is pasted into theirs."""

import numpy as np

from must.core.types import Label

_FAR = 1e5  # pixels; beyond every frame
_FIELDS = ("boxes", "classes", "scores", "crowd")


def paste(
    label: Label | None,
    other: Label | None,
    window: tuple[int, int, int, int],
    *,
    min_visible: float,
    min_size: float,
) -> Label:
    """The boxes around a rectangle and those inside it, as one label in network form with as much room.

    A box of the picture around is cut where the rectangle covers one of its sides from end to end, and keeps its shape
    where less of it is covered; a box of the other picture is cut at the rectangle. One of which little is left becomes
    a crowd, which is ignored, one of which nothing is left is gone. Where nothing is known of a part, a crowd covers it.
    Known are the classes that both sources know. If there are more boxes than room, one crowd stands over the last ones.

    Args:
      label: boxes [M, 4], classes, scores, valid, crowd [M], known [C]; None where nothing is known around.
      other: the same of the picture that the rectangle was taken from.
      window: (y0, x0, y1, x1), pixels.
      min_visible: share of a box's area below which it is ignored.
      min_size: shorter side below which it is ignored, pixels.
    """
    y0, x0, y1, x1 = (float(side) for side in window)
    around = [[0, 0, _FAR, y0], [0, y1, _FAR, _FAR], [0, y0, x0, y1], [x1, y0, _FAR, y1]]
    parts = [
        _unknown(np.array(around))
        if label is None
        else _seen(label, *_outside(label["boxes"], (x0, y0, x1, y1)), min_visible, min_size),
        _unknown(np.array([[x0, y0, x1, y1]]))
        if other is None
        else _seen(other, *_inside(other["boxes"], (x0, y0, x1, y1)), min_visible, min_size),
    ]
    found = {name: np.concatenate([part[name] for part in parts]) for name in _FIELDS}
    order = np.lexsort((-found["scores"], found["crowd"]))
    like = other if label is None else label
    room, count = len(like["valid"]), len(order)
    out = {name: np.zeros_like(like[name]) for name in _FIELDS}
    kept = order if count <= room else order[: room - 1]
    for name in _FIELDS:
        out[name][: len(kept)] = found[name][kept]
    if count > room:
        rest = found["boxes"][order[room - 1 :]]
        out["boxes"][-1] = [*rest[:, :2].min(0), *rest[:, 2:].max(0)]
        out["scores"][-1], out["crowd"][-1] = 1.0, True
    known = np.logical_and.reduce([part["known"] for part in (label, other) if part is not None])
    return {**out, "valid": np.arange(room) < count, "known": known}


def _outside(boxes: np.ndarray, window: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] without what a rectangle (x0, y0, x1, y1) covers from side to side, and the share of each that is seen."""
    low, high = np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])
    seen = 1.0 - np.prod(np.maximum(high - low, 0.0), -1) / np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], -1), 1e-9)
    out = boxes.copy()
    for axis in range(2):
        across = (low[:, 1 - axis] <= boxes[:, 1 - axis]) & (high[:, 1 - axis] >= boxes[:, 3 - axis])
        across &= (seen > 0) & (seen < 1)
        first = across & (low[:, axis] <= boxes[:, axis])  # the side at the smaller coordinate is covered
        last = across & (high[:, axis] >= boxes[:, 2 + axis])
        out[first, axis], out[last, 2 + axis] = window[2 + axis], window[axis]
    return out, seen


def _inside(boxes: np.ndarray, window: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes cut at a rectangle, and the share of each that lies in it."""
    out = np.concatenate([np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])], -1)
    size = np.prod(np.maximum(out[:, 2:] - out[:, :2], 0.0), -1)
    return out, size / np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], -1), 1e-9)


def _seen(label: Label, boxes: np.ndarray, seen: np.ndarray, min_visible: float, min_size: float) -> Label:
    """Those boxes of a label of which something is left."""
    keep = np.asarray(label["valid"]) & (seen > 1e-6)
    crowd = label["crowd"] | (seen < min_visible) | ((boxes[:, 2:] - boxes[:, :2]).min(-1) < min_size)
    found = {**label, "boxes": boxes, "crowd": crowd}
    return {name: found[name][keep] for name in _FIELDS}


def _unknown(boxes: np.ndarray) -> Label:
    """Crowds over places of which nothing is known."""
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(-1)]
    count = len(boxes)
    return {
        "boxes": boxes,
        "classes": np.zeros(count, np.int32),
        "scores": np.ones(count),
        "crowd": np.ones(count, bool),
    }
