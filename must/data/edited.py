"""Manually corrected boxes from a COCO json, in place of those of the records."""

import hashlib
import os
from pathlib import Path

import numpy as np

from must.core.files import read_bytes
from must.core.types import Example, Label, Source, UserError
from must.data.combine import Routed, hash_of, labels_of
from must.readers.edited import read_boxes


class EditedCoco(Routed):
    """Records with the boxes of a COCO json, for `Overlay(records, [edited])`.

    The examples are the images in the json: in the overlay, deleted images keep the boxes of the records, and images
    without annotations have no boxes. Boxes without a score are ground truth, with score 1. Images are matched by
    "must_id", or by file name if an annotation tool dropped it. "unknown_category_ids" defaults to that of the records.

    Args:
      path: the json file.
      records: origin of the boxes; provides pictures and label space.
      task: key of the labels.
      name: of the source; by default the records'.

    Raises:
      UserError: not a COCO json, an unknown or repeated image, a category outside the label space, a box that is
        reversed or outside its image, a score outside 0..1; on reading, a picture of a different size.
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
        size, declared = example.image.shape[:2], self._boxes[example.id].size
        if not np.isnan(declared).any() and declared != size:
            sizes = f"the picture is {size[1]}x{size[0]} px, but the json gives {declared[1]:g}x{declared[0]:g}"
            raise UserError(f"{self._path}: image {example.id!r}: {sizes}")
        return Example(example.id, example.image, self.labels(index))

    def labels(self, index: int) -> dict[str, Label]:
        label = self._boxes[self.ids[index]].label
        if "unknown" not in label:
            original = labels_of(self._records, self._indices[index]).get(self._task, {})
            label = {**label, "unknown": original.get("unknown", np.zeros(0, np.uint16))}
        return {self._task: dict(label)}

    def _route(self, index: int) -> tuple[Source, int]:
        return self._records, self._indices[index]
