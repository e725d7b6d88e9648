"""Folders of pictures: one folder per class, pictures with a csv of classes or attributes, and unlabeled photos."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from must.core import labels
from must.core.notices import notice
from must.core.types import Label, UserError
from must.readers.attributes import attributes_of
from must.readers.files import FileSource, find_pictures, folder, key_in, locate, read_classes, read_rows, source_name
from must.readers.names import PICTURES, class_name
from must.readers.pictures import DISPLAYED

_CLASS_COLUMNS = ("class", "classes", "class_name", "label", "labels", "category", "target")


class ImageFolder(FileSource):
    """Classification: <root>/<images>/<class>/**/<picture>.

    Args:
      root: dataset root.
      images: folder below root that contains the class folders; "{split}" is replaced.
      split: name of the split.
      ids: optional list file below root, one "<class>/<picture>" per line.
      classes: names or a file of names (`read_classes`) in order of their ids; by default the sorted folder names ("2"
        before "10").
        Classes without a folder are allowed.
      task: key of the labels.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.

    Raises:
      UserError: a picture outside the class folders, a folder that is not a class, an empty class folder.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str = "{split}",
        split: str = "",
        ids: str = "",
        classes: str | Sequence[str] | None = None,
        task: str = "classification",
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        path = folder(locate(root, images, split))
        pictures = find_pictures(path, root=root)
        for key, file in pictures.items():
            if "/" not in key:
                raise UserError(f"{file}: outside the class folders of {path}")
        populated = {class_name(key.split("/")[0]) for key in pictures}
        if classes is None:
            names = labels.in_order(
                class_name(p.name) for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")
            )
            for empty in sorted(set(names) - populated):
                raise UserError(f"{path / empty}: class folder without pictures")
        else:
            names = tuple(read_classes(classes, root).values())
            for extra in sorted(populated - set(names)):
                raise UserError(f"{path / extra}: folder is not one of the {len(names)} classes")
        if ids:
            pictures = find_pictures(path, ids=locate(root, ids, split), root=root)
        name = source_name(name, root, split)
        super().__init__(name, pictures, classes={task: names}, settings=task, orientation=orientation)
        number = {label: i for i, label in enumerate(names)}
        self._task = task
        self._class_ids = [number[class_name(key.split("/")[0])] for key in pictures]

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        return {self._task: labels.classification(self._class_ids[index])}


class ImageCsv(FileSource):
    """Classification: a folder of pictures and a table with one row for each: its name and its class.

    A first row that names no picture is a heading. The class is in the column that is called "class", "label" or
    "category", else in the one after the picture's; or several columns of 0 and 1 are named after the classes.

    Args:
      root: dataset root.
      table: file below root, cells separated by comma, semicolon, tab, "|" or space.
      images: folder below root that picture paths are relative to; "{split}" is replaced here and in `table`.
      split: name of the split.
      classes: names or a file of names (`read_classes`) in order of their ids; by default those of the table, sorted.
      task: key of the labels.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.

    Raises:
      UserError: a line without a class, a missing or repeated picture, a class that is not in `classes`.
    """

    def __init__(
        self,
        root: str,
        table: str,
        *,
        images: str = "",
        split: str = "",
        classes: str | Sequence[str] | None = None,
        task: str = "classification",
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        path, file = folder(locate(root, images, split)), locate(root, table, split)
        available = find_pictures(path, root=root)
        rows, known = _read_table(file, available, path)
        names = labels.in_order(known) if classes is None else tuple(read_classes(classes, root).values())
        number_of = {label: i for i, label in enumerate(names)}
        for key, label in rows.items():
            if label not in number_of:
                raise UserError(f"{file}: {key}: {label!r} is not one of the {len(names)} classes")
        pictures = {key: available[key] for key in rows}
        super().__init__(
            source_name(name, root, split),
            pictures,
            classes={task: names},
            settings=task,
            label_files=[file],
            orientation=orientation,
        )
        self._task = task
        self._class_ids = [number_of[label] for label in rows.values()]

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        return {self._task: labels.classification(self._class_ids[index])}


def _read_table(file: Path, available: Mapping[str, Path], path: Path) -> tuple[dict[str, str], set[str]]:
    """({key: class}, all classes) of a table, see `ImageCsv`; `path` is the folder of the `available` pictures."""
    table = read_rows(file)
    first, heading = next(iter(table.items()))
    if any(_names_picture(cell, available, path) for cell in heading):
        heading = []
    else:
        del table[first]
    probe = next(iter(table.values()), heading)
    at = next((column for column, cell in enumerate(probe) if _names_picture(cell, available, path)), 0)
    others = [column for column in range(len(probe)) if column != at]
    named = [column for column in others if column < len(heading) and heading[column].lower() in _CLASS_COLUMNS]
    hot = heading and not named and len(others) > 1 and all(_is_binary(row, others) for row in table.values())
    if hot:
        notice(
            f"{file}: the columns {', '.join(heading[column] for column in others)} are read as classes, 1 or 0 each"
        )
    of = (named or [column for column in others if column > at] or others or [1])[0]
    if len(others) > 1 and not named and not hot:
        called = f"column {heading[of]!r}" if of < len(heading) else f"column {of + 1}"
        notice(f"{file}: {called} of {len(probe)} is read as the class; call the one that holds the class 'class'")
    rows: dict[str, str] = {}
    for number, row in table.items():
        where = f"{file}: line {number}"
        if len(row) <= max(at, of) or not row[at] or not row[of]:
            raise UserError(f"{where}: expected a picture and its class")
        key = key_in(available, row[at], path)
        if key is None:
            raise UserError(f"{where}: {row[at]} is not in {path}")
        if key in rows:
            raise UserError(f"{where}: {row[at]} is listed twice")
        ones = [heading[column] for column in others if float(row[column])] if hot else [row[of]]
        if len(ones) != 1:
            raise UserError(
                f"{where}: {len(ones)} of the {len(others)} columns with 0 and 1 are 1, but a picture has one class; "
                "kind 'attribute_csv' reads several, for the task multi_label; if these columns are not classes, "
                "rename the one that holds the class to 'class'"
            )
        rows[key] = class_name(ones[0])
    if not rows:
        raise UserError(f"{file}: names no pictures")
    return rows, {class_name(heading[column]) for column in others} if hot else set(rows.values())


def _names_picture(cell: str, available: Mapping[str, Path], path: Path) -> bool:
    """Whether a cell is a picture, so that its row is no heading; also one that is missing."""
    return os.path.splitext(cell)[1].lower() in PICTURES or key_in(available, cell, path) is not None


def _is_binary(row: Sequence[str], columns: Sequence[int]) -> bool:
    return all(column < len(row) and re.fullmatch(r"[01](\.0*)?", row[column]) for column in columns)


class AttributeCsv(FileSource):
    """Multi-label: a folder of pictures and a table with one row for each: its name, then a column per attribute.

    The first row names the attributes. A cell is 1 (present), 0 (absent), a score between, or empty, "?" or "nan"
    (unknown); -1 needs `minus`. Columns that a picture's name or a list of `classes` does not take are left out.

    Args:
      root: dataset root.
      table: file below root, cells separated by comma, semicolon, tab, "|" or space.
      images: folder below root that picture paths are relative to; "{split}" is replaced here and in `table`.
      split: name of the split.
      classes: attributes, names or a file of names (`read_classes`) in order of their ids; by default the columns.
        One without a column is unknown in every picture.
      minus: what -1 says: "absent" (as in CelebA) or "unknown" (as in CheXpert); by default it is refused.
      task: key of the labels.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.

    Raises:
      UserError: a table without heading, a cell that is no score, a missing or repeated picture.
    """

    def __init__(
        self,
        root: str,
        table: str,
        *,
        images: str = "",
        split: str = "",
        classes: str | Sequence[str] | None = None,
        minus: str = "",
        task: str = "multi_label",
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        path, file = folder(locate(root, images, split)), locate(root, table, split)
        if minus not in ("", "absent", "unknown"):
            raise UserError(f"{file}: minus={minus!r}: expected 'absent' or 'unknown'")
        available = find_pictures(path, root=root)
        (_, heading), *rows = read_rows(file).items()
        if len(heading) < 2 or any(_names_picture(cell, available, path) for cell in heading):
            raise UserError(f"{file}: line 1: expected a heading with the names of the attributes")
        probe = rows[0][1] if rows else heading
        at = next((column for column, cell in enumerate(probe) if _names_picture(cell, available, path)), 0)
        columns = {class_name(cell): column for column, cell in enumerate(heading) if column != at}
        names = tuple(columns) if classes is None else tuple(read_classes(classes, root).values())
        if len(columns) < len(heading) - 1 or not set(columns) & set(names):
            raise UserError(f"{file}: line 1: a column occurs twice, or none of the {len(names)} attributes has one")
        found: dict[str, Label] = {}
        for number, row in rows:
            where = f"{file}: line {number}"
            if len(row) > len(heading) or len(row) <= at:
                raise UserError(f"{where}: {len(row)} cells under {len(heading)} columns")
            key = key_in(available, row[at], path)
            if key is None or key in found:
                raise UserError(f"{where}: {row[at]} is " + (f"not in {path}" if key is None else "listed twice"))
            cells = [row[columns[one]] if columns.get(one, len(row)) < len(row) else "" for one in names]
            found[key] = attributes_of(cells, names, where, minus)
        if not found:
            raise UserError(f"{file}: names no pictures")
        super().__init__(
            source_name(name, root, split),
            {key: available[key] for key in found},
            classes={task: names},
            settings=(task, minus),
            label_files=[file],
            orientation=orientation,
        )
        self._task, self._labels = task, list(found.values())

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        return {self._task: dict(self._labels[index])}


class Photos(FileSource):
    """Pictures without labels, collected recursively, in the order of their paths or of a list.

    Args:
      root: dataset root.
      images: folder below root; "{split}" is replaced.
      split: name of the split.
      ids: optional list file below root, one picture per line, relative to `images`.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str = "",
        split: str = "",
        ids: str = "",
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        path = locate(root, images, split)
        pictures = find_pictures(path, ids=locate(root, ids, split) if ids else None, root=root)
        super().__init__(source_name(name, root, split), pictures, orientation=orientation)
