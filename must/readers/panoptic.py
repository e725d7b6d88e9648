"""COCO panoptic: PNGs whose color is the id of a segment, and the class of each segment in a json."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from must.core import labels
from must.core.files import read_bytes
from must.core.notices import notice
from must.core.types import Label, UserError
from must.readers import fields
from must.readers.coco_head import keys_of, read_head, values
from must.readers.files import FileSource, first_repeated, folder, locate, read_classes, source_name
from must.readers.names import existing
from must.readers.pictures import DISPLAYED, open_picture


class CocoPanoptic(FileSource):
    """Segmentation: the classes of COCO's panoptic segments, things and stuff; pixels of no segment are unlabeled.

    Args:
      root: dataset root.
      images: folder of the pictures below root; "{split}" is replaced here, in `annotations` and in `masks`.
      annotations: the json file below root, "annotations/panoptic_{split}.json" in the original release.
      masks: folder of the PNGs; by default that of the json's name, as in the original release.
      split: name of the split.
      classes: label space, names or a file of names (`read_classes`); must include every category of a segment. By
        default the json's categories, in ascending order of their ids.
      task: key of the labels.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.

    Raises:
      UserError: invalid json, a missing picture or PNG, an unknown image or category; on reading, a segment without a
        class.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str,
        annotations: str,
        masks: str = "",
        split: str = "",
        classes: str | Sequence[str] | None = None,
        task: str = "segmentation",
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        self._json, self._task = locate(root, annotations, split), task
        head = read_head(self._json)
        names = head.categories
        space = tuple(names.values()) if classes is None else tuple(read_classes(classes, root).values())
        if len(space) > labels.IGNORE:
            raise UserError(f"{self._json}: {len(space)} classes, but an 8-bit mask allows at most 255")
        if (repeated := first_repeated(space)) is not None:
            raise UserError(f"{self._json}: duplicate category {repeated!r}")
        number = {name_: i for i, name_ in enumerate(space)}
        self._number = {id: number.get(name_) for id, name_ in names.items()}
        names_of = [file for file, _ in head.images.values()]
        files = dict(zip(head.images, zip(names_of, keys_of(names_of), strict=True), strict=True))
        path, maps = locate(root, images, split), locate(root, masks or os.path.splitext(annotations)[0], split)
        pictures: dict[str, Path] = {}
        self._maps, self._segments = [], []
        for entry in head.annotations:
            self._read(entry, files, folder(path), folder(maps), pictures, names)
        if not pictures:
            raise UserError(f"{self._json}: no annotations")
        if len(files) > len(pictures):
            missing = len(files) - len(pictures)
            notice(f"{self._json}: {missing:,} of {len(files):,} images have no annotation and are left out")
        super().__init__(
            source_name(name, root, split),
            pictures,
            classes={task: space},
            settings=(task, "panoptic"),
            label_files=[self._json, *self._maps],
            orientation=orientation,
            within=(root, path, maps, self._json),
        )

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        file = self._maps[index]
        stored = segment_ids(read_bytes(file), str(file))
        labels.same_size(stored, size, str(file))
        return {self._task: labels.segmentation(painted(stored, self._segments[index], str(file)))}

    def _read(
        self, entry: Any, files: Mapping[Any, tuple[str, str]], path: Path, maps: Path, pictures: dict, names: Mapping
    ) -> None:
        """One annotation: a picture, its PNG, and {segment id: class id}."""
        image, file, segments = values(entry, ("image_id", "file_name", "segments_info"), f"{self._json}: annotation")
        where = f"{self._json}: annotation of image {fields.shown(image)}"
        if (image := fields.key(image, f"{where}: image_id")) not in files:
            raise UserError(f"{where}: image_id is not in images")
        name, key = files[image]
        picture = existing(path, name)
        file = fields.text(file, f"{where}: file_name")
        map_ = existing(maps, file)
        if picture is None or map_ is None:
            missing = path / name if picture is None else maps / file
            raise UserError(f"{self._json}: {missing} does not exist")
        if not isinstance(segments, list):
            raise UserError(f"{where}: segments_info {fields.shown(segments)} is not a list")
        classes = {}
        for segment in segments:
            id, category = values(segment, ("id", "category_id"), f"{where}: segment")
            category = fields.key(category, f"{where}: segment {id}: category_id")
            if self._number.get(category) is None:
                named = repr(names[category]) if category in names else category
                raise UserError(f"{where}: category {named} is not one of the {len(self._number)} classes")
            classes[fields.key(id, f"{where}: segment: id")] = self._number[category]
        if key in pictures:
            raise UserError(f"{self._json}: image {name!r} has two annotations, so ids would repeat")
        pictures[key] = path / picture
        self._maps.append(maps / map_)
        self._segments.append(classes)


def segment_ids(data: bytes, where: str) -> np.ndarray:
    """int64 [H, W] of an encoded picture whose colors are ids: red + 256 green + 65,536 blue."""
    picture = open_picture(data, where)
    if picture.mode not in ("RGB", "RGBA"):
        raise UserError(f"{where}: panoptic ids need an 8-bit RGB PNG, not mode {picture.mode}")
    return np.asarray(picture)[..., :3].astype(np.int64) @ np.array([1, 256, 65536])


def painted(stored: np.ndarray, classes: Mapping[int, int], where: str) -> np.ndarray:
    """Class ids, uint8 [H, W], from segment ids [H, W]; 0 is no segment and becomes 255."""
    ids, inverse = np.unique(stored, return_inverse=True)
    for id in ids.tolist():
        if id and id not in classes:
            raise UserError(f"{where}: segment {id} has no class")
    table = np.array([classes[id] if id else labels.IGNORE for id in ids.tolist()], np.int64)
    if table.min(initial=0) < 0 or table.max(initial=0) > labels.IGNORE:
        raise UserError(f"{where}: a segment's class id is not in 0..{labels.IGNORE - 1}")
    table = table.astype(np.uint8)
    return table[inverse].reshape(stored.shape)
