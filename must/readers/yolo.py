"""YOLO txt: beside the folder of pictures one of text files, a line "<class> <x> <y> <width> <height>" per box."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from must.core import labels
from must.core.notices import notice
from must.core.types import Label, UserError
from must.readers import fields
from must.readers.files import FileSource, find_pictures, folder, locate, read_classes, read_text, source_name
from must.readers.pictures import DISPLAYED

_DEEPEST = 32  # nesting of a data.yaml


class Yolo(FileSource):
    """Detection from YOLO txt: center and sides in fractions of the picture; a line with more numbers is a polygon.

    Keypoints after a box, as a data.yaml with "kpt_shape" or their visibility tells, are passed over.
    A picture without a file has no objects, as in YOLO; `partial` leaves it without a label instead.

    Args:
      root: dataset root.
      images: folder of the pictures below root; "{split}" is replaced here, in `labels` and in `ids`.
      labels: folder of the text files; by default `images` with its last "images" replaced by "labels".
      split: name of the split.
      ids: optional list file below root, one picture per line, relative to `images`.
      classes: names in order of their ids, {id: name}, or a file below root: text or json (`read_classes`), or a
        data.yaml with "names".
      partial: pictures without a text file have no label.
      bounds: what becomes of boxes that reach beyond their pictures, "clip" or "refuse".
      drop_empty: drop boxes without area in their picture instead of raising an error.
      task: key of the labels.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.

    Raises:
      UserError: no text file for any picture, a line that is no box, a class id without a name.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str = "images/{split}",
        labels: str = "",
        split: str = "",
        ids: str = "",
        classes: str | Sequence[str] | Mapping[Any, str] = "data.yaml",
        partial: bool = False,
        bounds: str = "clip",
        drop_empty: bool = False,
        task: str = "detection",
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        pictures = find_pictures(locate(root, images, split), ids=locate(root, ids, split) if ids else None, root=root)
        path = folder(locate(root, labels or "labels".join(images.rsplit("images", 1)), split))
        names = _names(classes, root)
        self._rules = {"bounds": bounds, "empty": "drop" if drop_empty else "refuse"}
        self._task, self._partial = task, partial
        self._number = {id: i for i, id in enumerate(names)}
        files = [path / f"{key}.txt" for key in pictures]
        self._files = [file if file.is_file() else None for file in files]
        if not any(self._files):
            raise UserError(f"{path}: no text file for any of the {len(files)} pictures, for example {files[0].name}")
        points = _keypoints(classes, root)
        self._rows = [None if file is None else _read(file, self._number, points) for file in self._files]
        _check_layout(path, [rows for rows in self._rows if rows is not None], len(names))
        super().__init__(
            source_name(name, root, split),
            pictures,
            classes={task: tuple(names.values())},
            settings=(task, partial, bounds, drop_empty, [file is not None for file in self._files]),
            label_files=[file for file in self._files if file is not None],
            orientation=orientation,
            within=(root, locate(root, images, split), path),
        )

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        rows = self._rows[index]
        if rows is None:
            if self._partial:
                return {}
            rows = np.zeros((0, 5))
        checked = labels.checked_boxes(
            rows[:, 1:] * (size[::-1] * 2), size, lambda i: f"{self._files[index]}: box {i + 1}", **self._rules
        )
        if len(rows):
            checked.tell(str(self._files[index].parent), counted=False)
        classes = rows[checked.kept, 0].astype(np.int64)
        return {self._task: labels.detection(checked.boxes, classes, np.zeros(len(classes), bool))}


def _names(classes: str | Sequence[str] | Mapping[Any, str], root: str) -> dict[int, str]:
    """Class names by id."""
    content = _yaml(classes, root)
    if content is None:
        return read_classes(classes, root)
    if not isinstance(content.get("names"), list | dict):
        raise UserError(f"{locate(root, classes)}: has no list of 'names'")
    try:
        return read_classes(content["names"])
    except UserError as error:
        raise UserError(f"{locate(root, classes)}: {error}") from None


def _keypoints(classes: str | Sequence[str] | Mapping[Any, str], root: str) -> int | None:
    """Numbers of the keypoints that follow a box; None where no data.yaml tells."""
    shape = (_yaml(classes, root) or {}).get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(one, int) for one in shape):
        raise UserError(f"{locate(root, classes)}: kpt_shape {fields.shown(shape)} is not [points, 2 or 3]")
    return shape[0] * shape[1]


def _yaml(classes: str | Sequence[str] | Mapping[Any, str], root: str) -> dict[str, Any] | None:
    """The content of a data.yaml; None for names in another form."""
    if not isinstance(classes, str) or not classes.endswith((".yaml", ".yml")):
        return None
    import yaml

    path = locate(root, classes)
    try:
        depth, text = 0, read_text(path)
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ValueError(f"more than {_DEEPEST} lists in one another")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: invalid yaml: {str(error).splitlines()[0]}") from None
    return content if isinstance(content, dict) else {}


def _read(file: Path, number: Mapping[int, int], points: int | None) -> np.ndarray:
    """Class and corners in fractions, float64 [N, 5], of one text file; `points` as `_keypoints` has it."""
    rows = []
    for line, text in enumerate(read_text(file).splitlines(), 1):
        where = f"{file}: line {line}"
        cells = text.split()
        if not cells:
            continue
        values = [fields.number(cell, f"{where}:") for cell in cells]
        if values[0] not in number:
            hint = "; do ids count from 1?" if values[0] == len(number) else ""
            raise UserError(f"{where}: class {cells[0]} is not one of the {len(number)} ids with names{hint}")
        if len(values) == 5 or (_visible(values, where) if points is None else len(values) == 5 + points):
            x, y, width, height = values[1:5]
            corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        elif len(values) >= 7 and len(values) % 2:
            outline = np.array(values[1:]).reshape(-1, 2)
            corners = [*outline.min(0), *outline.max(0)]
        else:
            raise UserError(
                f"{where}: {len(values)} numbers, expected a class and x, y, width, height or a polygon; for keypoints "
                "after the box give kpt_shape in data.yaml"
            )
        rows.append([number[values[0]], *corners])
    return np.array(rows, np.float64).reshape(-1, 5)


def _visible(values: Sequence[float], where: str) -> bool:
    """Whether a box is followed by keypoints, x, y and a visibility of 0, 1 or 2 each; UserError if nothing tells."""
    if len(values) < 6 or len(values) % 3 != 2 or not set(values[7::3]) <= {0, 1, 2}:
        return False
    if len(values) % 2 and 2 not in values[7::3]:
        raise UserError(
            f"{where}: {len(values)} numbers, a polygon or a box with keypoints; kpt_shape: [0, 0] in data.yaml says "
            f"the former, kpt_shape: [{len(values) // 3 - 1}, 3] the latter"
        )
    return True


def _check_layout(path: Path, files: Sequence[np.ndarray], count: int) -> None:
    """Refuses boxes in pixels, and class ids that count from 1."""
    rows = np.concatenate(files) if files else np.zeros((0, 5))
    if not len(rows):
        return
    if (rows[:, 1:] > 2).any():
        raise UserError(
            f"{path}: boxes in pixels; YOLO's are fractions of the picture: divide them by width and height"
        )
    if count > 1 and rows[:, 0].min() == 1 and rows[:, 0].max() == count - 1:
        notice(f"{path}: no box of class 0; if ids count from 1, name them with classes={{1: ..., 2: ...}}")
