"""Constructors and checks of ground truth in record form (`Task.label_spec`); its scores and probabilities are 1."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from must.core.types import Label, UserError

IGNORE = 255
# Only the truth is certain: the largest score of a teacher, as half precision has it, and as a code of 0..255.
SUREST, LARGEST = 1 - 2**-11, 254
UNITS = {"mm": 1e-3, "cm": 1e-2, "m": 1.0}


def classification(class_id: int, unknown: Sequence[int] = ()) -> Label:
    """One class with certainty, and the ids of the classes unknown to the source."""
    return {
        "ids": np.array([class_id], np.uint16),
        "probs": np.ones(1, np.float16),
        "rest": np.float16(0),
        "unknown": np.asarray(unknown, np.uint16).reshape(-1),
    }


def detection(boxes: np.ndarray, classes: np.ndarray, crowd: np.ndarray, unknown: Sequence[int] = ()) -> Label:
    """Boxes [N, 4], class ids [N], crowd [N], and the ids of the unannotated classes."""
    return {
        "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
        "classes": np.asarray(classes, np.uint16).reshape(-1),
        "scores": np.ones(len(classes), np.float16),
        "crowd": np.asarray(crowd, bool).reshape(-1),
        "unknown": np.asarray(unknown, np.uint16).reshape(-1),
    }


def segmentation(ids: np.ndarray, unknown: Sequence[int] = ()) -> Label:
    """Class ids uint8 [H, W], 255 = ignored, and the ids of the classes unknown to the source."""
    ids = np.ascontiguousarray(ids, np.uint8)[..., None]
    probs = np.where(ids == IGNORE, 0, 255).astype(np.uint8)
    return {"ids": ids, "probs": probs, "unknown": np.asarray(unknown, np.uint16).reshape(-1)}


def depth(codes: np.ndarray, meters_per_unit: float) -> Label:
    """uint16 [H, W], 0 = invalid; meters = codes * meters_per_unit."""
    codes = np.ascontiguousarray(codes, np.uint16)
    scale = np.float32(meters_per_unit)
    return {"depth": codes, "scale": scale, "offset": np.float32(0), "scores": np.full((1, 1), 255, np.uint8)}


def normals(vectors: np.ndarray) -> Label:
    """Unit vectors float [H, W, 3] in camera axes, zeros = invalid; rounded to 1/127."""
    return {"normals": np.round(vectors * 127).astype(np.int8), "scores": np.full((1, 1), 255, np.uint8)}


def half(scores: np.ndarray) -> np.ndarray:
    """Scores 0..1 as float16, which rounds .9998 to the truth's 1: here only 1 itself becomes 1."""
    scores = np.asarray(scores, np.float32)
    return np.where(scores >= 1, scores, np.minimum(scores, SUREST)).astype(np.float16)


def of_teacher(label: Label) -> Label:
    """A teacher's label in network form, host NumPy, without the certainty that is the truth's alone."""
    for name in {"scores", "probs"} & set(label):
        field = np.asarray(label[name])
        most = SUREST if field.dtype.kind == "f" else LARGEST
        if field.size and not field.max() <= most:
            label = {**label, name: np.minimum(field, field.dtype.type(most))}
    return label


def meters_per_unit(unit: str | float) -> float:
    """Meters per unit, given as "mm", "cm", "m" or a number."""
    factor = UNITS.get(unit) if isinstance(unit, str) else float(unit)
    if factor is None or not 0 < factor < np.inf:
        raise UserError(
            f"depth unit {unit!r}: expected one of {', '.join(UNITS)} or a positive number of meters per unit"
        )
    return factor


def class_table(names: Mapping[int, str], ignore: int | None, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The lookup table from stored mask ids to class ids.

    Args:
      names: {stored id: name}, ids in 0..255; an entry for `ignore` is dropped.
      ignore: stored id that becomes 255, or None.
      where: prefix of error messages.

    Returns:
      Class names in ascending order of their stored ids, and int16 [256]: class id, 255, or -1 for invalid ids.
    """
    kept = {number: name for number, name in names.items() if number != ignore}
    if not kept or min(kept) < 0 or max(kept) > 255 or len(kept) > IGNORE:
        raise UserError(f"{where}: an 8-bit mask needs 1 to 255 classes with ids in 0..255")
    table = np.full(256, -1, np.int16)
    table[list(kept)] = np.arange(len(kept))
    if ignore is not None:
        table[ignore] = IGNORE
    return tuple(kept.values()), table


def checked_mask(stored: np.ndarray, table: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """Stored ids uint8 [H, W] -> class ids uint8 [H, W]; UserError for a wrong size or an invalid id."""
    same_size(stored, size, where)
    ids = table[stored]
    if ids.min() < 0:
        wrong = np.unique(stored[ids < 0])
        count = int((table >= 0).sum())
        raise UserError(f"{where}: mask id {wrong[0]} is not one of the {count} ids of classes and ignore")
    return ids.astype(np.uint8)


def same_size(array: np.ndarray, size: tuple[int, int], where: str) -> None:
    """UserError unless the array has the image's height and width."""
    if array.shape[:2] != tuple(size):
        height, width = array.shape[:2]
        raise UserError(f"{where}: is {width}x{height} (width x height), but its image is {size[1]}x{size[0]}")


def checked_boxes(boxes: np.ndarray, sizes: np.ndarray, where: Callable[[int], str]) -> np.ndarray:
    """Clips boxes to their images.

    Args:
      boxes: [N, 4], x0 y0 x1 y1, pixels.
      sizes: (height, width), [2] or [N, 2].
      where: index of a box -> prefix of an error message about it.

    Returns:
      [N, 4], possibly with empty boxes.

    Raises:
      UserError: a box that is not finite, is reversed, or leaves its image by more than a pixel.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    sizes = np.broadcast_to(np.asarray(sizes, np.float64), (len(boxes), 2))
    limit = sizes[:, [1, 0, 1, 0]]
    reversed_ = ~(boxes[:, 2:] >= boxes[:, :2]).all(-1)  # NaN too
    outside = ((boxes < -1) | (boxes > limit + 1)).any(-1)
    for bad, what in ((reversed_, "is reversed in an image of"), (outside, "is outside its image of")):
        if bad.any():
            i = int(np.argmax(bad))
            corners = ", ".join(f"{v:g}" for v in boxes[i])
            width, height = limit[i, :2]
            raise UserError(f"{where(i)}: box ({corners}) {what} {width:g}x{height:g} px (width x height)")
    return np.clip(boxes, 0, limit)
