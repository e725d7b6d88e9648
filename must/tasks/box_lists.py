"""Boxes as detectors of other projects list them, examined; host NumPy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from must.core.types import Label, LabelError
from must.tasks.states import uncertain

_OVERHANG = 1.0  # pixels by which a box may leave its image
_ROUNDING = 1e-4  # by which a score may exceed 1


def checked(found: Mapping[str, Any], size: tuple[int, int], count: int) -> Label:
    """One image's boxes with computing types.

    Args:
      found: "boxes" [n, 4], x0 y0 x1 y1 in pixels; "scores" and "labels" [n]; "unknown" class ids, if any.
      size: (height, width) of the image, pixels.
      count: classes.

    Returns:
      boxes float32 [n, 4], clipped to the image; scores float32 [n]; classes and unknown int64; in the order they came in.

    Raises:
      LabelError: a field that is missing or of a wrong shape or kind; a box that is not finite, reversed or outside the
        image by more than a pixel; a score outside 0..1; an id outside the label space.
    """
    if not isinstance(found, Mapping):
        raise LabelError(f"boxes is {type(found).__name__}, not a dict of boxes, scores, labels")
    for name in ("boxes", "scores", "labels"):
        if name not in found:
            raise LabelError(f"{name} is missing")
    boxes, scores, labels = (np.asarray(found[name]) for name in ("boxes", "scores", "labels"))
    unknown = np.asarray(found.get("unknown", ()))
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4).astype(np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu":
        raise LabelError(f"boxes is {boxes.dtype} {boxes.shape}, not numbers [n, 4]")
    for name, array, kinds in (("scores", scores, "f"), ("labels", labels, "iu")):
        if array.shape != (len(boxes),) or (array.size and array.dtype.kind not in kinds):
            wanted = "floats" if kinds == "f" else "integers"
            raise LabelError(f"{name} is {array.dtype} {array.shape}, not {wanted} ({len(boxes)},)")
    boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    limit = np.array([size[1], size[0]] * 2, np.float32)
    for wrong, what in (
        (~np.isfinite(boxes).all(-1), "not finite"),
        ((boxes[:, 2:] < boxes[:, :2]).any(-1), "reversed"),
        ((boxes < -_OVERHANG).any(-1) | (boxes > limit + _OVERHANG).any(-1), f"outside {size[1]} x {size[0]} pixels"),
    ):
        if wrong.any():
            raise LabelError(f"boxes holds {boxes[wrong][0].tolist()}, which is {what}")
    wrong = ~((scores >= 0) & (scores <= 1 + _ROUNDING))
    if wrong.any():
        raise LabelError(f"scores holds {scores[wrong][0]:.4g}, which is outside 0..1")
    for name, ids in (("labels", labels), ("unknown", unknown)):
        wrong = (ids < 0) | (ids >= count)
        if wrong.any():
            raise LabelError(f"{name} holds class id {ids[wrong][0]} with {count} classes")
    return {
        "boxes": np.clip(boxes, 0.0, limit),
        "scores": uncertain(scores),
        "classes": labels.astype(np.int64),
        "unknown": unknown.astype(np.int64),
    }
