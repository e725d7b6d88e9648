"""Checks of a teacher's predictions before anything is written; each returns the field and what is wrong.

A field is judged by its name, which means the same in every task: "probs" are probabilities (a distribution where there
  is
one for each of the task's classes; 255ths where they are uint8), "scores" lie in 0..1, "ids" and "classes" are class
ids, "boxes" are x0 y0 x1 y1 in pixels of the teacher's input, "known" has an entry per class, and "valid" marks which
slots are filled. Empty slots may hold anything.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must.core.labels import broken_contract
from must.core.types import ArraySpec, Label, LabelError
from must.readers.record_format import mismatch

_ROUNDING = 1e-3  # by which a sum of probabilities may miss 1
_SCORE_ROUNDING = 1e-4  # by which a score may exceed 1, so that float16 still rounds it to 1
_LENGTH = 0.02  # by which the length of a normal may miss 1 or 0
_OVERHANG = 1.0  # pixels by which a box may leave the frame


def check_said(tasks: Iterable[str], predicted: Any) -> None:
    """LabelError unless there is a prediction for every task."""
    if not isinstance(predicted, Mapping):
        raise LabelError(f"says {type(predicted).__name__}, not {{task: label}}")
    for key in tasks:
        if key not in predicted:
            raise LabelError(f"says nothing of {key}, only of {', '.join(map(str, predicted)) or 'nothing'}")


def check_batch(
    label: Mapping[str, np.ndarray], task: Any, size: tuple[int, int], batch_size: int, rows: Sequence[int]
) -> tuple[int, str] | None:
    """A batch of labels in network form: fields, shapes, kinds, and values that cannot be right.

    Args:
      label: fields [batch_size, ...].
      task: that it is a label of. The number of slots may differ from its `network_spec`, as a prediction holds more
        boxes than a label does.
      size: (height, width) of the teacher's input, pixels.
      batch_size: expected leading axis.
      rows: that hold an image; others may hold anything.

    Returns:
      (row, "<field> <what is wrong>") of the first problem, or None.
    """
    if not rows:
        return None
    spec = {
        name: want
        for name, want in task.network_spec(size).items()
        if name in label or name not in getattr(task, "optional", ())
    }
    if what := _form(label, spec, batch_size):
        return rows[0], what
    # A whole batch is looked at, not copied.
    whole = rows[-1] == len(rows) - 1
    label = {name: field[: len(rows)] if whole else field[rows] for name, field in label.items()}
    problem = next(_problems(label, task, size), None)
    return problem and (rows[problem[0]], problem[1])


def inside(label: Label, size: tuple[int, int], bounds: str) -> tuple[Label, int]:
    """A batch of boxes in network form, clipped to the teacher's input; those without area in it are left out.

    Args:
      label: other labels pass as they are.
      size: (height, width) of the input, pixels.
      bounds: "clip", or "refuse" boxes that leave it by more than a pixel.

    Returns:
      The label, and how many boxes left the input by more than a pixel or had no area.

    Raises:
      LabelError: one that is to be refused.
    """
    if not {"boxes", "valid"} <= set(label):
        return label, 0
    boxes, valid = np.asarray(label["boxes"]), np.asarray(label["valid"])
    limit = np.array([size[1], size[0]] * 2, boxes.dtype)
    beyond = valid & ((boxes < -_OVERHANG) | (boxes > limit + _OVERHANG)).any(-1)
    if beyond.any() and bounds == "refuse":
        row, slot = _first(beyond)
        what = f"which is outside {size[1]} x {size[0]} pixels; bounds='clip' clips such boxes"
        raise LabelError(f"boxes holds {boxes[row, slot].tolist()}, {what}", row)
    reversed_ = (boxes[..., 2:] < boxes[..., :2]).any(-1)  # which `check_batch` refuses
    if (empty := valid & (boxes[..., 2:] == boxes[..., :2]).any(-1) & ~reversed_).any() and bounds == "refuse":
        row, slot = _first(empty)
        raise LabelError(f"boxes holds {boxes[row, slot].tolist()}, which has no area; bounds='clip' drops it", row)
    clipped = np.clip(boxes, 0, limit)
    lost = valid & ~reversed_ & ~(clipped[..., 2:] > clipped[..., :2]).all(-1)
    return {**label, "boxes": clipped, "valid": valid & ~lost}, int((beyond | empty).sum())


def not_finite(label: Mapping[str, np.ndarray], rows: Sequence[int]) -> dict[int, str]:
    """{row: "<field> is not finite"} of those `rows` of a batch for which a teacher predicts NaN or infinity."""
    found: dict[int, str] = {}
    for name, field in label.items():
        if field.ndim and field.dtype.kind == "f" and len(field) > max(rows):
            wrong = _filled(~np.isfinite(field), label.get("valid")).reshape(len(field), -1).any(-1)
            found |= {row: f"{name} is not finite" for row in rows if wrong[row]}
    return found


def check_record(label: Label, spec: Mapping[str, ArraySpec], task: Any) -> str:
    """One label in record form: exact shapes and types, then what `must.core.labels.broken_contract` finds.

    Returns:
      "<field> <what is wrong>" of the first problem, or "".
    """
    for name, want in spec.items():
        what = mismatch(label[name], want) if name in label else "is missing"
        if what:
            return f"{name} {what}"
    stored = {name: label[name] for name, want in spec.items() if want.dtype != "str"}
    return broken_contract(stored, len(getattr(task, "classes", ())), getattr(task, "ignore", None))


def _form(label: Mapping[str, np.ndarray], spec: Mapping[str, Any], batch_size: int) -> str:
    """Fields, shapes and kinds."""
    for name in spec:
        if name not in label:
            return f"{name} is missing"
    slots = tuple(spec["valid"].shape) if "valid" in spec else ()
    for name, want in spec.items():
        field, kind, shape = label[name], np.dtype(want.dtype).kind, tuple(want.shape)
        if slots and shape[:1] == slots and name != "known":
            shape = (*label["valid"].shape[1:2], *shape[1:])
        if field.shape != (batch_size, *shape):
            return f"{name} has shape {field.shape}, not {(batch_size, *shape)}"
        if field.dtype.kind != kind and {field.dtype.kind, kind} != {"i", "u"}:
            return f"{name} is {field.dtype}, not {np.dtype(want.dtype)}"
    return ""


def _problems(label: Mapping[str, np.ndarray], task: Any, size: tuple[int, int]) -> Iterator[tuple[int, str]]:
    """(row, "<field> <what is wrong>"), the values that are not finite first."""
    classes, slots = len(getattr(task, "classes", ())), label.get("valid")

    def filled(wrong: np.ndarray) -> np.ndarray:
        return _filled(wrong, slots)

    for name, field in label.items():
        # A finite sum has finite terms, and costs a fifth of asking each.
        doubtful = field.dtype.kind == "f" and not np.isfinite(field.sum())
        if doubtful and (wrong := filled(~np.isfinite(field))).any():
            yield _first(wrong)[0], f"{name} is not finite"
    for name, field in label.items():
        if name == "probs":
            if (wrong := _unnormalized(field, classes)).any():
                at = _first(wrong)
                least, most = field[at].min(), field[at].sum(dtype=np.float64)
                yield at[0], f"{name} are no probabilities: least {least:.4g}, sum {most:.4g}"
        elif name == "scores" and field.dtype.kind == "f":
            if (wrong := filled((field < 0) | (field > 1 + _SCORE_ROUNDING))).any():
                at = _first(wrong)
                yield at[0], f"{name} holds {field[at]:.4g}, which is outside 0..1"
            elif slots is not None and (wrong := _rising(field, slots)).any():
                yield _first(wrong)[0], f"{name} do not fall"
        elif name in ("ids", "classes") and field.dtype.kind in "iu" and classes:
            if (wrong := filled(_foreign(field, classes, getattr(task, "ignore", None)))).any():
                at = _first(wrong)
                yield at[0], f"{name} holds class id {field[at]} with {classes} classes"
        elif name == "boxes":
            yield from _wrong_boxes(name, field, size, filled)
        elif name == "normals" and field.dtype.kind == "f" and field.ndim == 4:
            length = np.linalg.norm(field, axis=-1)
            if (wrong := (length > _LENGTH) & (np.abs(length - 1) > _LENGTH)).any():
                at = _first(wrong)
                yield at[0], f"{name} holds a vector of length {length[at]:.3g}, not 1 or 0{_share(wrong)}"
        elif name == "depth" and field.dtype.kind == "f" and (wrong := field < 0).any():
            yield _first(wrong)[0], f"{name} holds {field[_first(wrong)]:.4g} m, which is below 0{_share(wrong)}"


def _share(wrong: np.ndarray) -> str:
    rows = int(wrong.reshape(len(wrong), -1).any(-1).sum())
    return f", in {rows} of {len(wrong)} pictures"


def _filled(wrong: np.ndarray, slots: np.ndarray | None) -> np.ndarray:
    """Without what stands in empty slots."""
    if slots is None or wrong.shape[: slots.ndim] != slots.shape:
        return wrong
    return wrong & slots.reshape(*slots.shape, *[1] * (wrong.ndim - slots.ndim))


def _unnormalized(probs: np.ndarray, classes: int) -> np.ndarray:
    """Which rows of [..., K] are no probabilities."""
    if probs.dtype.kind != "f":  # each of the K codes is rounded
        if probs.shape[-1] == 1:
            return np.zeros(1, bool)
        # Slices are ten times as fast as a sum over few.
        total = sum((probs[..., place].astype(np.uint16) for place in range(probs.shape[-1])), np.uint16(0))
        return total > 255 + probs.shape[-1] // 2
    total = probs.sum(-1, dtype=np.float64)
    wrong = (probs < 0).any(-1) | (total > 1 + _ROUNDING)
    return wrong | (total < 1 - _ROUNDING) if probs.shape[-1] == classes else wrong


def _foreign(ids: np.ndarray, classes: int, ignore: int | None) -> np.ndarray:
    wrong = ids >= classes
    if ids.dtype.kind == "i":
        wrong |= ids < 0
    return wrong if ignore is None else wrong & (ids != ignore)


def _rising(scores: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Which of [n, M] are above one before them."""
    lowest = np.minimum.accumulate(np.where(slots, scores, np.inf), -1)
    return slots[:, 1:] & (scores[:, 1:] > lowest[:, :-1])


def _wrong_boxes(name: str, boxes: np.ndarray, size: tuple[int, int], filled: Any) -> Iterator[tuple[int, str]]:
    limit = np.array([size[1], size[0]] * 2) + _OVERHANG
    reversed_ = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    outside = ((boxes < -_OVERHANG) | (boxes > limit)).any(-1)
    for wrong, what in ((reversed_, "reversed"), (outside, f"outside {size[1]} x {size[0]} pixels")):
        if (wrong := filled(wrong)).any():
            at = _first(wrong)
            yield at[0], f"{name} holds {boxes[at].tolist()}, which is {what}"


def _first(wrong: np.ndarray) -> tuple[int, ...]:
    """Where the first one is."""
    return tuple(int(axis[0]) for axis in np.nonzero(wrong))
