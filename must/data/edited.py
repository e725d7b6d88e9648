"""Boxes that a person has corrected in a COCO json, in place of those of the records."""

import hashlib
import os
from pathlib import Path

import numpy as np

from must.core.types import Example, Label, Source, UserError
from must.data.combine import Routed, hash_of, labels_of
from must.readers.edited import read_boxes
from must.readers.files import read_bytes


class EditedCoco(Routed):
    """Records whose boxes are those of a COCO json, for `Overlay(records, [edited])`.

    The examples are the images that the json lists: one that was deleted from it keeps the boxes of the records, one
    without annotations has no boxes. Boxes without a score are a person's and have score 1. An image is found by its
    "must_id", or by its file name where a tool has dropped that; its unknown classes ("unknown_category_ids") come from
    the records where the json has none.

    Args:
      path: the json file.
      records: that the boxes came from; gives pictures and label space.
      task: key of the labels.
      name: of the source; by default the records'.

    Raises:
      UserError: no COCO json, an image that the records do not hold or one twice, a category outside the label space, a
        box that is reversed or outside its image, a score outside 0..1; a picture of another size when it is read.
    """

    def __init__(self, path: str | os.PathLike, records: Source, *, task: str = "detection", name: str = ""):
        self._path, self._records, self._task = Path(path), records, task
        if task not in records.classes:
            raise UserError(f"{path}: {records.name} has no classes of task {task!r}")
        self._boxes = read_boxes(self._path, records.classes[task])
        place = {id: i for i, id in enumerate(records.ids)}
        for id in self._boxes:
            if id not in place:
                raise UserError(f"{path}: image {id!r} is not in {records.name}")
        self.name, self.ids, self.classes = name or records.name, list(self._boxes), {task: records.classes[task]}
        self._indices = [place[id] for id in self.ids]
        digest = hashlib.sha256(read_bytes(self._path)).hexdigest()
        self.fingerprint = hash_of("edited", records.fingerprint, task, digest)

    def __getitem__(self, index: int) -> Example:
        example = self._records[self._indices[index]]
        size, stated = example.image.shape[:2], self._boxes[example.id].size
        if not np.isnan(stated).any() and stated != size:
            sizes = f"is {size[1]}x{size[0]} px, the json says {stated[1]:g}x{stated[0]:g}"
            raise UserError(f"{self._path}: image {example.id!r}: {sizes}")
        return Example(example.id, example.image, self.labels(index))

    def labels(self, index: int) -> dict[str, Label]:
        label = self._boxes[self.ids[index]].label
        if "unknown" not in label:
            said = labels_of(self._records, self._indices[index]).get(self._task, {})
            label = {**label, "unknown": said.get("unknown", np.zeros(0, np.uint16))}
        return {self._task: dict(label)}

    def _route(self, index: int) -> tuple[Source, int]:
        return self._records, self._indices[index]
