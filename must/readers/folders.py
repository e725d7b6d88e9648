"""Folders of pictures: one folder per class, pictures with a csv of classes, and unlabeled photos."""

import csv
import os
from collections.abc import Sequence

from must.core import labels
from must.core.types import Label, UserError
from must.readers.files import (
    PICTURES,
    FileSource,
    find_pictures,
    folder,
    locate,
    read_classes,
    read_lines,
    source_name,
)


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
    ):
        path = folder(locate(root, images, split))
        pictures = find_pictures(path)
        for key, file in pictures.items():
            if "/" not in key:
                raise UserError(f"{file}: outside the class folders of {path}")
        populated = {key.split("/")[0] for key in pictures}
        if classes is None:
            names = labels.in_order(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
            for empty in sorted(set(names) - populated):
                raise UserError(f"{path / empty}: class folder without pictures")
        else:
            names = tuple(read_classes(classes, root).values())
            for extra in sorted(populated - set(names)):
                raise UserError(f"{path / extra}: folder is not one of the {len(names)} classes")
        if ids:
            pictures = find_pictures(path, ids=locate(root, ids, split))
        super().__init__(source_name(name, root, split), pictures, classes={task: names}, settings=task)
        number = {label: i for i, label in enumerate(names)}
        self._task = task
        self._class_ids = [number[key.split("/")[0]] for key in pictures]

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        return {self._task: labels.classification(self._class_ids[index])}


class ImageCsv(FileSource):
    """Classification: a folder of pictures and a csv with a header and one line "<picture>,<class>" per picture.

    Args:
      root: dataset root.
      table: csv file below root; only the first two columns are read.
      images: folder below root that picture paths are relative to; "{split}" is replaced here and in `table`.
      split: name of the split.
      classes: names or a file of names (`read_classes`) in order of their ids; by default those of the table, sorted.
      task: key of the labels.
      name: of the source; by default "<root>-<split>".

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
    ):
        path, file = folder(locate(root, images, split)), locate(root, table, split)
        available, rows = find_pictures(path), {}
        for number, row in enumerate(csv.reader(read_lines(file)[1:]), 2):
            if len(row) < 2 or not row[0] or not row[1]:
                raise UserError(f"{file}: line {number}: expected a picture and its class")
            stem, extension = os.path.splitext(row[0])
            key = stem if extension.lower() in PICTURES else row[0]
            if key not in available:
                raise UserError(f"{file}: line {number}: {row[0]} is not in {path}")
            if key in rows:
                raise UserError(f"{file}: line {number}: {row[0]} is listed twice")
            rows[key] = row[1]
        names = labels.in_order(rows.values()) if classes is None else tuple(read_classes(classes, root).values())
        number_of = {label: i for i, label in enumerate(names)}
        for key, label in rows.items():
            if label not in number_of:
                raise UserError(f"{file}: {key}: {label!r} is not one of the {len(names)} classes")
        pictures = {key: available[key] for key in rows}
        super().__init__(
            source_name(name, root, split), pictures, classes={task: names}, settings=task, label_files=[file]
        )
        self._task = task
        self._class_ids = [number_of[label] for label in rows.values()]

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        return {self._task: labels.classification(self._class_ids[index])}


class Photos(FileSource):
    """Pictures without labels, collected recursively, in the order of their paths or of a list.

    Args:
      root: dataset root.
      images: folder below root; "{split}" is replaced.
      split: name of the split.
      ids: optional list file below root, one picture per line, relative to `images`.
      name: of the source; by default "<root>-<split>".
    """

    def __init__(self, root: str, *, images: str = "", split: str = "", ids: str = "", name: str = ""):
        pictures = find_pictures(locate(root, images, split), ids=locate(root, ids, split) if ids else None)
        super().__init__(source_name(name, root, split), pictures)
