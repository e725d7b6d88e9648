"""A placeholder for a data set that is not on disk, so that dry runs can plan without it."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from must.core import labels as forms
from must.core.types import Example, Label, UserError


class Declared:
    """One split with correct shapes, counts and label spaces; each example is gray with one plausible annotation.

    Args:
      name: of the source.
      count: number of examples.
      size: (height, width) of a typical picture, pixels.
      labels: {task name: {"form": "classification", "detection", "segmentation", "depth" or "normals", "classes":
        number of classes, "names": names of the first classes, if a configuration refers to them}}.
      frames: of a typical video; 0 for pictures.

    Raises:
      UserError: unknown form of label.
    """

    def __init__(
        self, name: str, *, count: int, size: tuple[int, int], labels: Mapping[str, Mapping[str, Any]], frames: int = 0
    ):
        for task, label in labels.items():
            if label["form"] not in _EXAMPLES:
                raise UserError(f"declared {name}: {task} is {label['form']!r}, not one of {', '.join(_EXAMPLES)}")
        self.name, self._size = name, tuple(size)
        self._shape = (*((frames,) if frames else ()), *self._size, 3)
        self._forms = {task: label["form"] for task, label in labels.items()}
        self.ids = [f"{name}/{i:08d}" for i in range(count)]
        self.classes = {task: _names(label) for task, label in labels.items() if "classes" in label}
        content = (name, count, self._shape, sorted(self._forms.items()), sorted(self.classes.items()))
        self.fingerprint = hashlib.sha256(repr(content).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        gray = np.broadcast_to(np.uint8(128), self._shape)  # a view, since even one second of video takes megabytes
        return Example(self.ids[index], gray, self.labels(index))

    def labels(self, index: int) -> dict[str, Label]:
        """The labels alone."""
        return {task: dict(label) for task, label in self._labels.items()}

    @functools.cached_property
    def _labels(self) -> dict[str, Label]:
        return {task: _EXAMPLES[form](*self._size) for task, form in self._forms.items()}


def _names(label: Mapping[str, Any]) -> tuple[str, ...]:
    names = tuple(label.get("names", ()))
    return names + tuple(f"class {i}" for i in range(len(names), label["classes"]))


def _boxes(height: int, width: int) -> Label:
    return forms.detection(np.array([[0, 0, width / 2, height / 2]]), np.zeros(1, np.int64), np.zeros(1, bool))


_EXAMPLES = {
    "classification": lambda height, width: forms.classification(0),
    "detection": _boxes,
    "segmentation": lambda height, width: forms.segmentation(np.zeros((height, width), np.uint8)),
    "depth": lambda height, width: forms.depth(np.full((height, width), 2000, np.uint16), 0.001),
    "normals": lambda height, width: forms.normals(np.broadcast_to([0.0, 0.0, -1.0], (height, width, 3))),
}
