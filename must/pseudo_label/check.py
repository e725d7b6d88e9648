"""What a teacher says, examined before anything is written; each check answers with the field and what is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import ArraySpec, Label
from must.data.record_format import mismatch

_ROUNDING = 1e-3  # by which a sum of probabilities may exceed 1


def check_batch(
    label: Mapping[str, np.ndarray], spec: Mapping[str, Any], batch_size: int, rows: Sequence[int]
) -> tuple[int, str] | None:
    """A batch of labels in network form: fields, shapes, kinds, finite numbers, probabilities.

    Args:
      label: fields [batch_size, ...].
      spec: Task.network_spec; sizes may differ from it, as a prediction holds more boxes than a label does.
      batch_size: expected leading axis.
      rows: that hold an image.

    Returns:
      (row, "<field> <what is wrong>") of the first problem, or None.
    """
    if not rows:
        return None
    for name, want in spec.items():
        if name not in label:
            return rows[0], f"{name} is missing"
        field, kind = label[name], np.dtype(want.dtype).kind
        if field.ndim != len(want.shape) + 1 or field.shape[0] != batch_size:
            return rows[0], f"{name} has shape {field.shape}, not {(batch_size, *want.shape)}"
        if field.dtype.kind != kind and {field.dtype.kind, kind} != {"i", "u"}:
            return rows[0], f"{name} is {field.dtype}, not {np.dtype(want.dtype)}"
    slots = label.get("valid")  # empty ones may hold anything
    for name, field in label.items():
        if field.dtype.kind != "f":
            continue
        # A whole batch is looked at, not copied; a finite sum has finite terms, and costs a fifth of asking each.
        field = field[: len(rows)] if rows[-1] == len(rows) - 1 else field[rows]
        wrong = np.zeros(1, bool) if np.isfinite(field.sum()) else ~np.isfinite(field)
        if wrong.any() and slots is not None and field.shape[1 : slots.ndim] == slots.shape[1:]:
            wrong &= slots[rows].reshape(*slots[rows].shape, *[1] * (field.ndim - slots.ndim))
        if wrong.any():
            return rows[_first_row(wrong)], f"{name} is not finite"
        if name == "probs":
            total = field.sum(-1, dtype=np.float64)
            wrong = (field < 0).any(-1) | (total > 1 + _ROUNDING)
            if wrong.any():
                row = _first_row(wrong)
                least, most = field[row].min(), total[row].max()
                return rows[row], f"{name} are no probabilities: least {least:.4g}, sum {most:.4g}"
    return None


def check_record(label: Label, spec: Mapping[str, ArraySpec], task: Any) -> str:
    """One label in record form: exact shapes and types, class ids below `len(task.classes)`, scores in 0..1.

    Returns:
      "<field> <what is wrong>" of the first problem, or "".
    """
    count, ignore = len(getattr(task, "classes", ())), getattr(task, "ignore", None)
    for name, want in spec.items():
        what = mismatch(label[name], want) if name in label else "is missing"
        if what:
            return f"{name} {what}"
        if want.dtype == "str":
            continue
        value = np.asarray(label[name])
        if count and name in ("ids", "classes", "unknown") and value.size and value.max() >= count:
            beyond = value[(value >= count) & (value != ignore)] if ignore is not None else value[value >= count]
            if beyond.size:
                return f"{name} holds class id {beyond[0]} with {count} classes"
        if name in ("scores", "probs", "rest") and value.dtype.kind == "f" and value.size:
            if not (value.min() >= 0 and value.max() <= 1 + _ROUNDING):
                return f"{name} is outside 0..1"
    return ""


def _first_row(wrong: np.ndarray) -> int:
    return int(np.argmax(wrong.reshape(len(wrong), -1).any(-1)))
