"""Fields of other people's json and xml: numbers, flags, ids and boxes, read as meant or refused in one line."""

import contextlib
import math
import reprlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from must.core.types import UserError

_OF_ZIP = (zipfile.BadZipFile, zlib.error, EOFError)
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 4, 20, 20, 60, 60
_FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


def number(value: Any, where: str) -> float:
    """A finite number, also as text; UserError for anything else."""
    try:
        if not isinstance(value, bool) and math.isfinite(out := float(value)):
            return out
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{where} {shown(value)} is not a number")


def flag(value: Any, where: str) -> bool:
    """True or False, also as number or text (1, 1.0, "yes"), None and "" being False; UserError for anything else."""
    known = _FLAGS.get(str(value).strip().lower().removesuffix(".0")) if isinstance(value, int | float | str) else None
    if value is None or known is not None:
        return bool(known)
    raise UserError(f"{where} {shown(value)} is neither 0 nor 1")


def key(value: Any, where: str) -> int | str:
    """An id: a whole number, "12" being 12, or any other text; UserError for anything else."""
    if isinstance(value, str) and value:
        return (
            int(value)
            if len(value) < 19 and value.isascii() and value.isdigit() and value == f"{int(value)}"
            else value
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise UserError(f"{where} {shown(value)} is neither a whole number nor text")
    return int(value)


def text(value: Any, where: str) -> str:
    """Text that is not empty, also a whole number as text; UserError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise UserError(f"{where} {shown(value)} is not text")
    return str(value)


def box(value: Any, where: str) -> list[float]:
    """Four finite numbers; UserError for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise UserError(f"{where}: bbox {shown(value)} is not four numbers")
    if all(type(v) is float or (type(v) is int and -1e9 < v < 1e9) for v in value):
        return value  # the common case; `checked_boxes` finds what is not finite
    try:
        return [number(v, "") for v in value]
    except UserError:
        raise UserError(f"{where}: bbox {shown(value)} is not four numbers") from None


@contextlib.contextmanager
def understood(path: Any) -> Iterator[None]:
    """Turns what Python raises on a file of ours that somebody has changed into one line that names the file."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError, OSError, *_OF_ZIP) as error:
        lacks = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:100]
        raise UserError(f"{path}: damaged or changed: {lacks}") from None


def shown(value: Any) -> str:
    """A value in a message, cut to a length that a line can hold."""
    try:
        out = _SHORT.repr(value)  # not all of it: lists of a YAML may hold one another a billion times
    except ValueError:  # an integer of more digits than Python prints
        return "(a number of thousands of digits)"
    return out if len(out) <= 60 else f"{out[:57]}..."


def check_layout(
    stored: np.ndarray, areas: np.ndarray, sizes: np.ndarray, where: str, corners: Any = None, relative: Any = None
) -> None:
    """Refuses boxes that are not x, y, width, height in pixels but something else that is common.

    Args:
      stored: [N, 4] as in the file.
      areas: [N], NaN where the file has none.
      sizes: (height, width) of the images, [N, 2], NaN where the file has none.
      where: prefix of messages.
      corners, relative: what the user says about them, None for nothing.
    """
    if not len(stored):
        return
    if relative is None and is_fraction(stored):
        raise UserError(
            f"{where}: all bbox values lie in 0..1, as fractions of the picture would; relative=True reads them "
            "as such, relative=False as pixels"
        )
    if corners is not None or relative:
        return
    sides = stored[:, 2:] - stored[:, :2]
    ordered = (sides > 0).all(-1)
    claims = [
        np.isclose(areas, product, rtol=0.01, atol=1) for product in (stored[:, 2] * stored[:, 3], sides.prod(-1))
    ]
    by_area = claims[1] & ~claims[0] & ordered
    limit = np.where(np.isnan(sizes), np.inf, sizes)[:, ::-1]
    beyond = (stored[:, :2] + stored[:, 2:] > limit + 1).any(-1)
    inside = ordered & (stored[:, :2] >= 0).all(-1) & (stored[:, 2:] <= limit + 1).all(-1)
    if 2 * by_area.sum() > (claims[0] | claims[1]).sum() or (beyond.any() and inside.all() and not claims[0].any()):
        i = int(np.argmax(by_area if by_area.any() else beyond))
        why = f"the area {areas[i]:g} is that of such corners" if by_area[i] else "else it leaves its picture"
        raise UserError(
            f"{where}: bbox {stored[i].tolist()} seems to hold the corners x0, y0, x1, y1, not x, y, width, height: "
            f"{why}; corners=True reads them as corners, corners=False as width and height"
        )


def is_fraction(boxes: np.ndarray) -> bool:
    """Whether all numbers lie in 0..1 and some are no whole ones, so that they cannot be meant as pixels."""
    return len(boxes) > 0 and bool((boxes >= 0).all() and (boxes <= 1.001).all() and (boxes % 1).any())
