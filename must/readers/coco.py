"""COCO json: boxes, and instance masks (polygons or RLE) painted into a class map."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from must.core import labels
from must.core.types import Label, UserError
from must.readers.files import FileSource, first_repeated, folder, locate, read_classes, read_json, select, source_name

DETECTION, SEGMENTATION = "detection", "segmentation"


class CocoJson(FileSource):
    """Detection and/or segmentation from one COCO json; an image without annotations has no objects.

    Category ids become contiguous in ascending order. A `score` defaults to 1. Classes listed in an image's
    `unknown_category_ids` are unknown in that image. Segmentation paints the instances from largest to smallest.

    Args:
      root: dataset root.
      images: image folder below root; "{split}" is replaced here and in `annotations` and `ids`.
      annotations: the json file below root.
      split: name of the split.
      ids: optional list file below root: one file name of the json per line, with or without extension.
      tasks: "detection", "segmentation" or both; or a dict that maps either to the key of its labels.
      classes: label space, names or a file of names (`read_classes`); must include every category of the json. By
        default, the json's categories.
      annotated: names of the exhaustively annotated classes; all others are unknown. By default, the json's categories.
      background: segmentation's class 0, for pixels outside all instances; "" leaves them unlabeled (255).
      drop_empty: drop boxes without area instead of raising an error.
      name: of the source; by default "<root>-<split>".

    Raises:
      UserError: invalid json, missing picture, unknown category or image id, box outside its image, ...
    """

    def __init__(
        self,
        root: str,
        *,
        images: str,
        annotations: str,
        split: str = "",
        ids: str = "",
        tasks: Sequence[str] | Mapping[str, str] = (DETECTION,),
        classes: str | Sequence[str] | None = None,
        annotated: Sequence[str] | None = None,
        background: str = "background",
        drop_empty: bool = False,
        name: str = "",
    ):
        self._json = locate(root, annotations, split)
        self._tasks = task_keys(tasks)
        content = read_json(self._json)
        pictures = self._read_images(content, locate(root, images, split), locate(root, ids, split) if ids else None)
        names = None if classes is None else tuple(read_classes(classes, root).values())
        self._read_categories(content, names, annotated)
        self._read_annotations(content, pictures, drop_empty)
        self._background = background
        spaces = {DETECTION: self._names, SEGMENTATION: (background, *self._names) if background else self._names}
        if SEGMENTATION in self._tasks and len(spaces[SEGMENTATION]) > labels.IGNORE:
            raise UserError(
                f"{self._json}: {len(spaces[SEGMENTATION])} classes, an but an 8-bit mask allows at most 255"
            )
        super().__init__(
            source_name(name, root, split),
            pictures,
            classes={key: spaces[kind] for kind, key in self._tasks.items()},
            settings=(self._tasks, self._unknown, background, drop_empty),
            label_files=[self._json],
        )

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        where, declared = f"{self._json}: image {self._file_names[index]!r}", self._sizes[index]
        if not np.isnan(declared).any() and tuple(declared.astype(int)) != tuple(size):
            raise UserError(
                f"{where}: the picture is {size[1]}x{size[0]} px, but the json gives {declared[1]:g}x{declared[0]:g}"
            )
        rows = self._rows[self._starts[index] : self._starts[index + 1]]
        out = {}
        if DETECTION in self._tasks:
            boxes = checked(self._boxes[rows], size, lambda i: f"{where}, annotation {self._annotation_ids[rows[i]]}")
            label = labels.detection(boxes, self._classes[rows], self._crowd[rows], self._unknown_of[index])
            out[self._tasks[DETECTION]] = {**label, "scores": self._scores[rows]}
        if SEGMENTATION in self._tasks:
            out[self._tasks[SEGMENTATION]] = labels.segmentation(self._paint(rows, size))
        return out

    def _read_images(self, content: Any, path: Path, ids: Path | None) -> dict[str, Path]:
        """Returns pictures by key; sets the images' ids, file names and sizes ([N, 2], NaN where missing)."""
        folder(path)
        for part in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(part), list):
                raise UserError(f"{self._json}: not a COCO json: {part!r} is not a list")
        entries = {}
        for image in content["images"]:
            self._require(image, ("id", "file_name"), "image")
            key = os.path.splitext(image["file_name"])[0]
            if key in entries:
                raise UserError(f"{self._json}: image {image['file_name']!r} is listed twice, so ids would repeat")
            entries[key] = image
        if not entries:
            raise UserError(f"{self._json}: no images")
        self._all_image_ids = {image["id"] for image in entries.values()}
        if len(self._all_image_ids) < len(entries):
            repeated = first_repeated(image["id"] for image in entries.values())
            raise UserError(f"{self._json}: duplicate image id {repeated!r}")
        entries = select(entries, ids, self._json) if ids else entries
        self._image_ids = [image["id"] for image in entries.values()]
        self._file_names = [image["file_name"] for image in entries.values()]
        sizes = [[image.get("height") or np.nan, image.get("width") or np.nan] for image in entries.values()]
        self._sizes = np.array(sizes, np.float64)
        self._listed_unknown = [image.get("unknown_category_ids", ()) for image in entries.values()]
        pictures = {key: path / image["file_name"] for key, image in entries.items()}
        for file in pictures.values():
            if not file.is_file():
                raise UserError(f"{self._json}: image {file} does not exist")
        return pictures

    def _read_categories(self, content: Any, names: tuple[str, ...] | None, annotated: Sequence[str] | None) -> None:
        """Sets the label space, the map from category ids to class ids, and the ids of unannotated classes."""
        categories: dict[int, str] = {}
        for category in content["categories"]:
            self._require(category, ("id", "name"), "category")
            if category["id"] in categories:
                raise UserError(f"{self._json}: duplicate category id {category['id']!r}")
            categories[category["id"]] = category["name"]
        repeated = first_repeated(categories.values())
        if repeated is not None:
            raise UserError(f"{self._json}: duplicate category {repeated!r}")
        categories = dict(sorted(categories.items()))
        self._names = tuple(categories.values()) if names is None else names
        number = {name: i for i, name in enumerate(self._names)}
        for name in categories.values():
            if name not in number:
                raise UserError(f"{self._json}: category {name!r} is not one of the {len(number)} classes")
        for name in annotated or ():
            if name not in number:
                raise UserError(f"{self._json}: annotated: {name!r} is not one of the {len(number)} classes")
        annotated_names = set(categories.values() if annotated is None else annotated)
        self._number = {category: number[name] for category, name in categories.items()}
        self._unknown = tuple(i for i, name in enumerate(self._names) if name not in annotated_names)
        self._unknown_of = []
        for file, listed in zip(self._file_names, self._listed_unknown, strict=True):
            if not isinstance(listed, list | tuple) or set(listed) - set(self._number):
                raise UserError(f"{self._json}: image {file!r}: unknown_category_ids {listed!r} not all in categories")
            self._unknown_of.append(tuple(sorted({*self._unknown, *(self._number[category] for category in listed)})))

    def _read_annotations(self, content: Any, pictures: Mapping[str, Path], drop_empty: bool) -> None:
        """Sets flat arrays over the annotations; image i owns `_rows[_starts[i]:_starts[i + 1]]`."""
        position = {image_id: i for i, image_id in enumerate(self._image_ids)}
        required = ("id", "image_id", "category_id") + (("bbox",) if DETECTION in self._tasks else ())
        owners, boxes, classes, scores, crowd, numbers, shapes = [], [], [], [], [], [], []
        for annotation in content["annotations"]:
            self._require(annotation, required, "annotation")
            where = f"{self._json}: annotation {annotation['id']}"
            if annotation["image_id"] not in self._all_image_ids:
                raise UserError(f"{where}: image id {annotation['image_id']!r} is not in images")
            if annotation["category_id"] not in self._number:
                raise UserError(f"{where}: category id {annotation['category_id']!r} is not in categories")
            if annotation["image_id"] not in position:
                continue  # `ids` excludes this image
            box = annotation.get("bbox") if DETECTION in self._tasks else (0, 0, 1, 1)
            try:
                x, y, width, height = (float(value) for value in box)
            except (TypeError, ValueError):
                raise UserError(f"{where}: bbox {box!r} is not four numbers") from None
            if drop_empty and (width == 0 or height == 0):
                continue
            owners.append(position[annotation["image_id"]])
            boxes.append((x, y, x + width, y + height))
            classes.append(self._number[annotation["category_id"]])
            scores.append(score_of(annotation, where))
            crowd.append(bool(annotation.get("iscrowd", 0)))
            numbers.append(annotation["id"])
            shapes.append(annotation.get("segmentation") if SEGMENTATION in self._tasks else None)
        owners = np.array(owners, np.int64)
        self._boxes, self._classes = np.array(boxes, np.float64).reshape(-1, 4), np.array(classes, np.int64)
        self._crowd, self._annotation_ids, self._shapes = np.array(crowd, bool), numbers, shapes
        self._scores = labels.half(np.array(scores))
        self._rows = np.argsort(owners, kind="stable")
        self._starts = np.searchsorted(owners[self._rows], np.arange(len(pictures) + 1))
        if DETECTION in self._tasks:
            sizes = np.where(np.isnan(self._sizes), np.inf, self._sizes)[owners]
            names = [self._file_names[owner] for owner in owners]
            checked(self._boxes, sizes, lambda i: f"{self._json}: image {names[i]!r}, annotation {numbers[i]}")

    def _require(self, entry: Any, keys: Sequence[str], what: str) -> None:
        """Raises UserError if the entry lacks one of the keys."""
        for key in keys:
            if not isinstance(entry, dict) or key not in entry:
                entry_id = f" {entry['id']}" if isinstance(entry, dict) and "id" in entry else ""
                raise UserError(f"{self._json}: {what}{entry_id} has no {key!r}")

    def _paint(self, rows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Class map, uint8 [H, W], of the instances `rows`."""
        masks = []
        for row in rows:
            where = f"{self._json}: annotation {self._annotation_ids[row]}"
            masks.append((decode_mask(self._shapes[row], size, where), self._classes[row]))
        first_class = 1 if self._background else 0
        out = np.full(size, 0 if self._background else labels.IGNORE, np.uint8)
        for mask, class_id in sorted(masks, key=lambda pair: -int(pair[0].sum())):
            out[mask] = class_id + first_class
        return out


def task_keys(tasks: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Normalizes `tasks` to {"detection" or "segmentation": key of its labels}."""
    if not hasattr(tasks, "items"):
        tasks = {task: task for task in ([tasks] if isinstance(tasks, str) else tasks)}
    keys = dict(tasks.items())
    for kind in keys:
        if kind not in (DETECTION, SEGMENTATION):
            raise UserError(f"tasks: {kind!r} is neither {DETECTION!r} nor {SEGMENTATION!r}")
    if not keys:
        raise UserError("tasks: empty, expected 'detection', 'segmentation' or both")
    return keys


def score_of(annotation: Mapping[str, Any], where: str) -> float:
    """The annotation's score, 1 by default (human annotations have none); UserError outside 0..1."""
    score = annotation.get("score", 1.0)
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise UserError(f"{where}: score {score!r} is not a number in 0..1")
    return float(score)


def checked(boxes: np.ndarray, sizes: Any, where: Any) -> np.ndarray:
    """`labels.checked_boxes` that also rejects boxes without area."""
    boxes = labels.checked_boxes(boxes, sizes, where)
    empty = (boxes[:, 2:] == boxes[:, :2]).any(-1)
    if empty.any():
        raise UserError(f"{where(int(np.argmax(empty)))}: box without area (drop_empty=True drops such boxes)")
    return boxes


def decode_mask(shape: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Decodes a COCO `segmentation` to a mask, bool [H, W].

    Args:
      shape: list of polygons [x0, y0, x1, y1, ...], or RLE {"size": [H, W], "counts": list or compressed text}.
      size: (height, width) of the image.
      where: prefix of error messages.

    Raises:
      UserError: missing, not of the image's size, or not decodable.
    """
    from faster_coco_eval import mask_api_new_cpp as api

    height, width = size
    try:
        if isinstance(shape, dict):
            if list(shape["size"]) != [height, width]:
                raise UserError(f"{where}: mask size {shape['size']} differs from image size [{height}, {width}]")
            counts = shape["counts"]
            if not isinstance(counts, list):
                counts = api.toUncompressedRLE([{"size": [height, width], "counts": counts}])[0]["counts"]
            counts = np.asarray(counts, np.int64)
            if counts.min(initial=0) < 0 or counts.sum() != height * width:
                raise UserError(f"{where}: RLE covers {counts.sum()} of {height * width} pixels")
            return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
        polygons = [[float(value) for value in polygon] for polygon in shape]
        if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            raise UserError(f"{where}: a polygon needs at least three points")
        return api.decode([api.merge(api.frPyObjects(polygons, height, width), 0)])[..., 0].astype(bool)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: invalid segmentation: {error or type(error).__name__}") from None
