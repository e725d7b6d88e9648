"""Files of example weights by task and record id, for `must.data.combine.Weighted`."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from must.core import files
from must.core.types import UserError
from must.readers.files import first_repeated, read_rows, read_text

_COLUMNS = ["id", "task", "weight"]


def read_weights(path: str | os.PathLike) -> dict[str, dict[str, float]]:
    """{task: {record id: weight}} from a csv with the columns id, task, weight, or a json {task: {id: weight}}.

    Raises:
      UserError: wrong columns, a weight that is not a number >= 0, a repeated id.
    """
    path = Path(path)
    rows = _json_rows(path) if path.suffix == ".json" else _csv_rows(path)
    weights: dict[str, dict[str, float]] = {}
    for where, id, task, weight in rows:
        try:
            number = float(weight)
        except (TypeError, ValueError):
            raise UserError(f"{where}: weight {weight!r} is not a number") from None
        if not 0 <= number < float("inf"):
            raise UserError(f"{where}: weight {weight} is not a finite number >= 0")
        if id in weights.setdefault(task, {}):
            raise UserError(f"{where}: {id!r} already has a weight for {task}")
        weights[task][id] = number
    return weights


def write_weights(path: str | os.PathLike, weights: Mapping[str, Mapping[str, float]]) -> None:
    """Writes a csv, or a json if the path ends in .json; `read_weights` restores it exactly."""
    text = io.StringIO()
    if Path(path).suffix == ".json":
        plain = {task: {id: float(weight) for id, weight in by_id.items()} for task, by_id in weights.items()}
        json.dump(plain, text, indent=1, ensure_ascii=False)
    else:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_COLUMNS)
        for task, by_id in weights.items():
            table.writerows((id, task, float(weight)) for id, weight in by_id.items())
    files.write_text(path, text.getvalue())


def _csv_rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(file and line, id, task, weight) of every row."""
    (first, columns), *rows = read_rows(path, exact=True).items()
    if sorted(columns) != _COLUMNS:
        raise UserError(f"{path}:{first}: columns {', '.join(columns)}, expected {', '.join(_COLUMNS)}")
    for line, cells in rows:
        if len(cells) != len(columns):
            raise UserError(f"{path}:{line}: expected {len(columns)} columns, {', '.join(columns)}")
        row = dict(zip(columns, cells, strict=True))
        yield f"{path}:{line}", row["id"], row["task"], row["weight"]


def _json_rows(path: Path) -> Iterator[tuple[str, str, str, Any]]:
    """(file, task and id; id, task, weight) of every entry."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if (twice := first_repeated(key for key, _ in pairs)) is not None:
            raise UserError(f"{path}: duplicate key {twice!r}")
        return dict(pairs)

    try:
        content = json.loads(read_text(path), object_pairs_hook=unique)
    except ValueError as error:
        raise UserError(f"{path}: invalid json: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(by_id, dict) for by_id in content.values()):
        raise UserError(f"{path}: expected {{task: {{id: weight}}}}")
    for task, by_id in content.items():
        for id, weight in by_id.items():
            yield f"{path}: {task}: {id}", id, task, weight
