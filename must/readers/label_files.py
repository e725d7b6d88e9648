"""Labels as files that other tools can edit, lossless in both directions; `must.export.labels` writes them.

    about.json                     source, number of examples, tasks
    examples.csv                   picture, id: one line per example, in order
    images/<file>.jpg|png|...      the pictures, if exported
    <task>/about.json              kind, classes, meaning and rounding of the numbers
    <task>/coco.json               detection: COCO boxes with scores; "must_id" is the record's id
    <task>/classes.csv             classification: file, class, score, rest, unknown, class_2, score_2, ...
    <task>/attributes.csv          multi-label: file, and the score of every attribute
    <task>/maps.csv                dense tasks: file, and the fields that are not maps
    <task>/<field>/<file>.png      a map at its stored resolution: 8-bit gray, 16-bit gray (depth), RGB (normals)
    <task>/<field>-2/<file>.png    the second value per pixel of a map with several values per pixel, and so on

<file> is the id as encoded by `must.readers.names.file_of`. Tables list only labeled examples. An empty cell means that
the label lacks the field, "none" an empty list.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from must.core.files import read_bytes
from must.core.labels import half
from must.core.types import Example, Label, Source, UserError
from must.readers.attributes import attributes_of
from must.readers.dense import read_mask
from must.readers.edited import read_boxes
from must.readers.fields import understood
from must.readers.files import check_inside, fingerprint_of, read_json, read_rows
from must.readers.names import id_of
from must.readers.pictures import decode_picture, open_picture, read_picture, untagged

ABOUT, EXAMPLES, IMAGES, COCO, CLASSES, ATTRIBUTES, MAPS = (
    "about.json",
    "examples.csv",
    "images",
    "coco.json",
    "classes.csv",
    "attributes.csv",
    "maps.csv",
)
_NONE = "none"  # in a cell: an empty list
# (maps, columns) by kind, for folders whose about.json does not list them.
_FIELDS = {
    "masks": (("ids", "probs"), ("unknown",)),
    "depth": (("depth", "scores"), ("scale", "offset")),
    "normals": (("normals", "scores"), ()),
}
_NUMBERS = {"inverse": lambda text: np.bool_(float(text))}  # others are float32


class LabelFiles:
    """The examples of a folder written by `must.export.labels.export_labels` and possibly edited since.

    Args:
      directory: of the files.
      images: source of the pictures, by id, if the folder has none.
      tasks: to read; all by default.
      name: of the source; by default that of the exported source.

    Raises:
      UserError: a missing or invalid file.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        images: Source | None = None,
        tasks: Sequence[str] | None = None,
        name: str = "",
    ):
        self._root = Path(directory)
        about = _object(self._root / ABOUT, ("source", "tasks"))
        if not isinstance(about["tasks"], list | dict):
            raise UserError(f"{self._root / ABOUT}: 'tasks' is not a list")
        for task in tasks or ():
            if task not in about["tasks"]:
                raise UserError(f"{directory}: has no labels of {task!r}, only of {', '.join(about['tasks'])}")
        rows = list(read_table(self._root / EXAMPLES, ("picture", "id")))
        self.name, self.ids = name or about["source"], [row["id"] for row in rows]
        self._pictures = [row["picture"] for row in rows]
        check_inside((self._root / IMAGES / picture for picture in self._pictures), (self._root,))
        self._images = images
        self._places = {id: i for i, id in enumerate(images.ids)} if images is not None else {}
        self.classes: dict[str, tuple[str, ...]] = {}
        self._tasks: dict[str, tuple[str, Mapping[str, Any]]] = {}  # {task: (kind, {id: table row or label})}
        self._fields: dict[str, tuple[Sequence[str], Sequence[str]]] = {}  # {task: (maps, columns)}
        self._stacked: dict[str, Sequence[str]] = {}  # {task: maps with a third axis}
        for task in about["tasks"] if tasks is None else tasks:
            with understood(self._root / str(task)):
                self._read_task(task)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        id = self.ids[index]
        data = self.encoded(index)
        if data is not None:
            image = read_picture(data, str(self._root / IMAGES / self._pictures[index]))
        elif id in self._places:
            image = self._images[self._places[id]].image
        else:
            raise UserError(f"{self._root / IMAGES}: no picture of {id}, and images= has none either")
        return Example(id, image, self.labels(index))

    def encoded(self, index: int) -> bytes | None:
        """The bytes of the picture's file, None if missing."""
        file = self._root / IMAGES / self._pictures[index]
        return untagged(read_bytes(file)) if os.path.isfile(file) else None

    def labels(self, index: int) -> dict[str, Label]:
        """The labels alone; the picture is not decoded."""
        id = self.ids[index]
        labels = {}
        for task, (_, table) in self._tasks.items():
            with understood(f"{self._root / task}: {id}"):
                if id in table:
                    labels[task] = self._label(task, table[id])
        return labels

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the files, see `fingerprint_of`."""
        files = [self._root / EXAMPLES]
        for task in self._tasks:
            files += [file for file in sorted((self._root / task).rglob("*")) if file.is_file()]
        return fingerprint_of(repr((self.name, self.ids, list(self._tasks))), files)

    def _read_task(self, task: str) -> None:
        path = self._root / task
        about = _object(path / ABOUT, ("kind", "classes"))
        kind, names = about["kind"], tuple(about["classes"])
        if names:
            self.classes[task] = names
        if kind == "coco":
            unknown = {"unknown": np.zeros(0, np.uint16)}
            boxes = read_boxes(path / COCO, names, masks=bool(about.get("masks")))
            table = {id: {**unknown, **one.label} for id, one in boxes.items()}
        elif kind == "classes":
            number = {name: i for i, name in enumerate(names)}
            table = {}
            for line, row in enumerate(read_table(path / CLASSES, ("file", "class", "score")), 2):
                table[_id(row)] = _distribution(row, number, f"{path / CLASSES}: line {line}")
        elif kind == "attributes":
            rows = enumerate(read_table(path / ATTRIBUTES, ("file", *names)), 2)
            cells = ((_id(row), [row[name] for name in names], line) for line, row in rows)
            table = {id: attributes_of(row, names, f"{path / ATTRIBUTES}: line {line}") for id, row, line in cells}
        elif "maps" in about or kind in _FIELDS:
            self._fields[task] = (about["maps"], about["columns"]) if "maps" in about else _FIELDS[kind]
            self._stacked[task] = about.get("stacked", ("ids", "probs"))
            table = {_id(row): row for row in read_table(path / MAPS, ("file",))}
        else:
            raise UserError(
                f"{path / ABOUT}: kind {kind!r} is not one of coco, classes, attributes, {', '.join(_FIELDS)}"
            )
        self._tasks[task] = (kind, table)

    def _label(self, task: str, row: Mapping[str, Any]) -> Label:
        """The label of one example from its row of the table."""
        if task not in self._fields:
            return dict(row)
        maps, columns = self._fields[task]
        label = {}
        for field in maps:
            values = _read_map(self._root / task, field, row["file"], field in self._stacked[task])
            if values is not None:
                label[field] = values
        for field in columns:
            if text := row.get(field, ""):
                where = f"{self._root / task / MAPS}: {row['file']}: {field}"
                if field == "unknown":
                    label[field] = _numbers(text, where)
                else:
                    label[field] = _number(text, _NUMBERS.get(field, np.float32), where)
        if maps[0] not in label:
            raise UserError(f"{self._root / task / maps[0] / row['file']}: missing, but {MAPS} lists it")
        return label


def list_cell(ids: Any) -> str:
    """A list of class ids as a cell, "" if the label has no such field."""
    return "" if ids is None else " ".join(str(int(id)) for id in ids) or _NONE


def folder_of(field: str, rank: int) -> str:
    """Folder of the `rank`-th value per pixel, from 0, of a field."""
    return field if rank == 0 else f"{field}-{rank + 1}"


def read_table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a table as {column: cell}; UserError unless it begins with these columns."""
    (_, heading), *rows = read_rows(path, exact=True).items()
    if heading[: len(columns)] != list(columns):
        raise UserError(f"{path}: does not begin with the columns {', '.join(columns)}")
    for line, row in rows:
        if len(row) < len(columns):
            raise UserError(f"{path}: line {line}: {len(row)} cells, expected at least {', '.join(columns)}")
        yield dict(zip(heading, row, strict=False))


def _object(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Reads a json object; UserError if it lacks one of the keys."""
    content = read_json(path)
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{path}: has no {key!r}")
    return content


def _id(row: Mapping[str, str]) -> str:
    return id_of(os.path.splitext(row["file"])[0])


def _read_map(folder: Path, field: str, file: str, stacked: bool) -> np.ndarray | None:
    """A map in record form, None if the file is missing."""
    check_inside([folder / field / file], [folder])
    if not os.path.isfile(folder / field / file):
        return None
    if field == "depth":
        picture = open_picture(read_bytes(folder / field / file), str(folder / field / file))
        if not picture.mode.startswith("I"):
            raise UserError(f"{folder / field / file}: depth needs a 16-bit gray PNG, not mode {picture.mode}")
        return np.asarray(picture).astype(np.uint16)
    if field == "normals":
        stored = decode_picture(read_bytes(folder / field / file), str(folder / field / file))
        return np.round((stored.astype(np.float32) / 255 * 2 - 1) * 127).astype(np.int8)
    if not stacked:
        return read_mask(folder / field / file)
    planes = []
    while (path := folder / folder_of(field, len(planes)) / file).is_file():
        planes.append(read_mask(path))
    if len({plane.shape for plane in planes}) > 1:
        raise UserError(f"{folder / field / file}: its companion maps differ in size")
    return np.stack(planes, -1)


def _distribution(row: Mapping[str, str], number: Mapping[str, int], where: str) -> Label:
    """The label in one row of classes.csv."""
    ids, probs, rank = [], [], 1
    suffix = ""
    while row.get(f"class{suffix}"):
        name = row[f"class{suffix}"]
        if name not in number:
            raise UserError(f"{where}: {name!r} is not one of the {len(number)} classes")
        ids.append(number[name])
        probs.append(_number(row.get(f"score{suffix}") or "1", np.float32, f"{where}: score{suffix}"))
        rank += 1
        suffix = f"_{rank}"
    label = {
        "ids": np.array(ids, np.uint16),
        "probs": half(np.array(probs)),
        "rest": _number(row.get("rest") or "0", np.float16, f"{where}: rest"),
    }
    if row.get("unknown"):
        label["unknown"] = _numbers(row["unknown"], f"{where}: unknown")
    return label


def _number(text: str, dtype: Callable[[str], Any], where: str) -> Any:
    try:
        if np.isfinite(value := dtype(text)):
            return value
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{where} {text!r} is not a number")


def _numbers(text: str, where: str) -> np.ndarray:
    try:
        return np.array([] if text == _NONE else text.split(), np.uint16)
    except (ValueError, OverflowError):
        raise UserError(f"{where} {text!r} is not a list of class ids") from None
