"""Attributes of a picture from the cells of a table."""

import re
from collections.abc import Sequence

from must.core import labels
from must.core.types import Label, UserError

_MISSING = ("", "?", "nan", "na", "n/a")


def attributes_of(cells: Sequence[str], names: Sequence[str], where: str, minus: str = "") -> Label:
    """One cell per attribute -> multi-label in record form; `minus` says what -1 is, "absent" or "unknown".

    Raises:
      UserError: a cell that is neither a score in 0..1 nor one of those for an unknown attribute.
    """
    scores, unknown = [], []
    for number, (cell, name) in enumerate(zip(cells, names, strict=True)):
        cell, score = cell.strip().lower(), 0.0
        if re.fullmatch(r"-1(\.0*)?", cell) and minus:
            cell = "0" if minus == "absent" else ""
        if cell in _MISSING:
            unknown.append(number)
        else:
            try:
                score = float(cell)
            except ValueError:
                score = -1.0
            if not 0 <= score <= 1:
                hint = "; minus='absent' or minus='unknown' says what -1 is" if score == -1 else ""
                raise UserError(f"{where}: {name}: {cells[number]!r} is no score from 0 to 1, nor empty{hint}")
        scores.append(score)
    return labels.multi_label(scores, unknown)
