"""COCO json: boxes, and instance masks (polygons or RLE) painted into a class map."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from must.core import labels
from must.core.notices import notice
from must.core.types import Label, UserError
from must.readers import fields
from must.readers.coco_head import Head, keys_of, read_head, size_of, values
from must.readers.files import FileSource, folder, locate, read_classes, select, source_name
from must.readers.names import existing
from must.readers.pictures import DISPLAYED

DETECTION, SEGMENTATION, INSTANCES = "detection", "segmentation", "instances"
_FARTHEST = 1e6  # pixels; polygons are drawn point by point, so a point far outside would take all memory


class CocoJson(FileSource):
    """Detection and/or segmentation from one COCO json; an image without annotations has no objects.

    Category ids become contiguous in ascending order. A `score` defaults to 1. Classes listed in an image's
    `unknown_category_ids` are unknown in that image. Segmentation paints the instances from largest to smallest; where
    classes are unknown, pixels outside all instances are unlabeled.

    Args:
      root: dataset root.
      images: image folder below root; "{split}" is replaced here and in `annotations` and `ids`.
      annotations: the json file below root.
      split: name of the split.
      ids: optional list file below root: one file name of the json per line, with or without extension.
      tasks: "detection", "segmentation", "instances" (boxes with masks) or several; or a dict that maps them to the
        keys of their labels.
      classes: label space, names or a file of names (`read_classes`); must include every category that an annotation
        uses. By default, the json's categories.
      annotated: names of the exhaustively annotated classes; all others are unknown. By default, the json's categories.
      background: segmentation's class 0, for pixels outside all instances; "" leaves them unlabeled (255).
      bounds: what becomes of boxes that reach beyond their pictures, "clip" or "refuse".
      drop_empty: drop boxes without area in their picture, and segments without pixels, instead of raising an error.
      corners: bbox is x0, y0, x1, y1; False: x, y, width, height as in COCO. By default the latter, and an error if
        areas and pictures say otherwise.
      relative: bbox is in fractions of the picture; False: in pixels. By default the latter, and an error if all
        numbers lie in 0..1.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.

    Raises:
      UserError: invalid json, missing picture, unknown category or image id, box wholly outside its image, ...
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
        bounds: str = "clip",
        drop_empty: bool = False,
        corners: bool | None = None,
        relative: bool | None = None,
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        self._json = locate(root, annotations, split)
        self._tasks = task_keys(tasks, (DETECTION, SEGMENTATION, INSTANCES))
        head = read_head(self._json)
        pictures = self._read_images(head, locate(root, images, split), locate(root, ids, split) if ids else None)
        names = None if classes is None else tuple(read_classes(classes, root).values())
        self._background, self._relative = background, bool(relative)
        self._rules = {"bounds": bounds, "empty": "drop" if drop_empty else "refuse"}
        self._read_categories(head, names, annotated)
        self._read_annotations(head, len(pictures))
        if {DETECTION, INSTANCES} & set(self._tasks):
            self._place_boxes(corners, relative)
        spaces = dict.fromkeys((DETECTION, INSTANCES), self._names)
        spaces |= {SEGMENTATION: (background, *self._names) if background else self._names}
        if SEGMENTATION in self._tasks and len(spaces[SEGMENTATION]) > labels.IGNORE:
            raise UserError(f"{self._json}: {len(spaces[SEGMENTATION])} classes, but an 8-bit mask allows at most 255")
        super().__init__(
            source_name(name, root, split),
            pictures,
            classes={key: spaces[kind] for kind, key in self._tasks.items()},
            settings=(self._tasks, self._unknown, background, drop_empty, bounds, corners, relative),
            label_files=[self._json],
            orientation=orientation,
            within=(root, locate(root, images, split), self._json),
        )

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        where, declared = f"{self._json}: image {self._file_names[index]!r}", self._sizes[index]
        if not np.isnan(declared).any() and tuple(declared.astype(int)) != tuple(size):
            raise UserError(
                f"{where}: the picture is {size[1]}x{size[0]} px, but the json gives {declared[1]:g}x{declared[0]:g}"
            )
        rows = self._rows[self._starts[index] : self._starts[index + 1]]
        out = {}
        if boxed := {DETECTION, INSTANCES} & set(self._tasks):
            boxes = self._boxes[rows] * (size[::-1] * 2 if self._relative else 1)
            checked = labels.checked_boxes(
                boxes, size, lambda i: f"{where}, annotation {self._annotation_ids[rows[i]]}", **self._rules
            )
            if np.isnan(declared).any():
                checked.tell(str(self._json), counted=False)
            mine = rows[checked.kept]
            label = labels.detection(checked.boxes, self._classes[mine], self._crowd[mine], self._unknown_of[index])
            for kind in boxed:
                out[self._tasks[kind]] = {**label, "scores": self._scores[mine]}
            if INSTANCES in boxed:
                own = out[self._tasks[INSTANCES]]
                masks = [self._mask(row, size) for row in mine]
                own |= labels.with_masks({}, [np.zeros(size, bool) if mask is None else mask for mask in masks])
        if SEGMENTATION in self._tasks:
            unknown = self._unknown_of[index]
            if unknown and self._background:  # a pixel outside all instances may show an unknown class
                unknown = (0, *(i + 1 for i in unknown))
            out[self._tasks[SEGMENTATION]] = labels.segmentation(self._paint(rows, size, bool(unknown)), unknown)
        return out

    def _read_images(self, head: Head, path: Path, ids: Path | None) -> dict[str, Path]:
        """Returns pictures by key; sets the images' ids, file names and sizes ([N, 2], NaN where missing)."""
        folder(path)
        files = [existing(path, file) or file for file, _ in head.images.values()]
        entries = {}
        for key, file, (id, (_, image)) in zip(keys_of(files), files, head.images.items(), strict=True):
            if key in entries:
                raise UserError(f"{self._json}: image {file!r} is listed twice, so ids would repeat")
            at = f"{self._json}: image {fields.shown(id)}"
            listed = image.get("unknown_category_ids", ())
            if not isinstance(listed, list | tuple):
                raise UserError(f"{at}: unknown_category_ids {fields.shown(listed)} is not a list")
            listed = [fields.key(category, f"{at}: unknown_category_ids") for category in listed]
            entries[key] = (id, file, size_of(image, at), listed)
        if not entries:
            raise UserError(f"{self._json}: no images")
        entries = select(entries, ids, self._json) if ids else entries
        self._image_ids, self._file_names, sizes, self._listed_unknown = map(list, zip(*entries.values(), strict=True))
        self._sizes = np.array(sizes, np.float64)
        pictures = {key: path / file for key, (_, file, *_) in entries.items()}
        for file in pictures.values():
            if not os.path.isfile(file):  # False for a name that no file system takes
                raise UserError(f"{self._json}: image {file} does not exist")
        return pictures

    def _read_categories(self, head: Head, names: tuple[str, ...] | None, annotated: Sequence[str] | None) -> None:
        """Sets the label space, the map from category ids to class ids, and the ids of unannotated classes."""
        categories = head.categories
        known = set(categories)
        used = {_hashable(one.get("category_id")) for one in head.annotations if isinstance(one, dict)}
        unused = [name for id, name in categories.items() if id not in used and str(id) not in used]
        if names is not None:  # categories that no annotation uses may be left out
            categories = {id: name for id, name in categories.items() if name in names or name not in unused}
        elif unused and len(unused) < len(categories):
            some = ", ".join(map(repr, unused[:5])) + (" ..." if len(unused) > 5 else "")
            notice(
                f"{self._json}: no annotation uses {len(unused)} of {len(categories)} categories ({some}); "
                "classes=[...] without them leaves them out"
            )
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
            if set(listed) - known:
                named = f"unknown_category_ids {listed!r}"
                raise UserError(f"{self._json}: image {file!r}: {named} are not all in categories")
            mine = {self._number[category] for category in listed if category in self._number}
            self._unknown_of.append(tuple(sorted({*self._unknown, *mine})))

    def _read_annotations(self, head: Head, count: int) -> None:
        """Sets flat arrays over the annotations; image i owns `_rows[_starts[i]:_starts[i + 1]]`."""
        position = {image_id: i for i, image_id in enumerate(self._image_ids)}
        boxed, painted = ({kind, INSTANCES} & set(self._tasks) for kind in (DETECTION, SEGMENTATION))
        required = ("id", "image_id", "category_id") + (("bbox",) if boxed else ())
        owners, boxes, areas, classes, scores, crowd, numbers, shapes = [], [], [], [], [], [], [], []
        for annotation in head.annotations:
            values(annotation, required, f"{self._json}: annotation")
            where = f"{self._json}: annotation {fields.shown(annotation['id'])}"
            image_id, category = (fields.key(annotation[k], f"{where}: {k}") for k in ("image_id", "category_id"))
            if image_id not in head.images:
                raise UserError(f"{where}: image id {fields.shown(image_id)} is not in images")
            if category not in self._number:
                raise UserError(f"{where}: category id {fields.shown(category)} is not in categories")
            if image_id not in position:
                continue  # `ids` excludes this image
            if boxed:
                boxes.append(fields.box(annotation["bbox"], where))
                area = annotation.get("area")
                areas.append(area if isinstance(area, float | int) and -1e15 < area < 1e15 else np.nan)
            if painted:
                shapes.append(checked_shape(annotation.get("segmentation"), where))
                if shapes[-1] is None and self._rules["empty"] != "drop":
                    raise UserError(f"{where}: no segmentation of three points or more; drop_empty=True leaves it out")
            owners.append(position[image_id])
            classes.append(self._number[category])
            scores.append(score_of(annotation, where))
            crowd.append(fields.flag(annotation.get("iscrowd"), f"{where}: iscrowd"))
            numbers.append(annotation["id"])
        self._owners, self._areas = np.array(owners, np.int64), np.array(areas, np.float64)
        self._boxes, self._classes = np.array(boxes, np.float64).reshape(-1, 4), np.array(classes, np.int64)
        self._crowd, self._annotation_ids, self._shapes = np.array(crowd, bool), numbers, shapes
        self._scores = labels.half(np.array(scores))
        self._rows = np.argsort(self._owners, kind="stable")
        self._starts = np.searchsorted(self._owners[self._rows], np.arange(count + 1))

    def _place_boxes(self, corners: bool | None, relative: bool | None) -> None:
        """Turns the boxes into corners and checks them where the json gives their images' sizes."""
        sizes = self._sizes[self._owners]
        fields.check_layout(self._boxes, self._areas, sizes, str(self._json), corners, relative)
        if not corners:
            self._boxes[:, 2:] += self._boxes[:, :2]
        sizes = np.where(np.isnan(sizes), 1 if relative else np.inf, sizes)
        names = [self._file_names[owner] for owner in self._owners]
        checked = labels.checked_boxes(
            self._boxes * (sizes[:, [1, 0, 1, 0]] if relative else 1),
            sizes,
            lambda i: f"{self._json}: image {names[i]!r}, annotation {self._annotation_ids[i]}",
            **self._rules,
        )
        checked.tell(str(self._json))

    def _mask(self, row: int, size: tuple[int, int]) -> np.ndarray | None:
        """bool [H, W] of an annotation; None where it has no shape."""
        where = f"{self._json}: annotation {self._annotation_ids[row]}"
        return None if self._shapes[row] is None else decode_mask(self._shapes[row], size, where)

    def _paint(self, rows: np.ndarray, size: tuple[int, int], partly: bool) -> np.ndarray:
        """Class map, uint8 [H, W], of the instances `rows`; `partly` if there may be objects of unknown classes."""
        masks = []
        for row in rows:
            if (mask := self._mask(row, size)) is not None:
                masks.append((mask, self._classes[row]))
        first_class = 1 if self._background else 0
        out = np.full(size, 0 if self._background and not partly else labels.IGNORE, np.uint8)
        for mask, class_id in sorted(masks, key=lambda pair: -int(pair[0].sum())):
            out[mask] = class_id + first_class
        return out


def task_keys(
    tasks: Sequence[str] | Mapping[str, str], known: Sequence[str] = (DETECTION, SEGMENTATION)
) -> dict[str, str]:
    """Normalizes `tasks` to {one of the `known`: key of its labels}."""
    if not hasattr(tasks, "items"):
        tasks = {task: task for task in ([tasks] if isinstance(tasks, str) else tasks)}
    keys = dict(tasks.items())
    for kind in keys:
        if kind not in known:
            raise UserError(f"tasks: {kind!r} is neither {' nor '.join(map(repr, known))}")
    if not keys:
        raise UserError(f"tasks: empty, expected {' or '.join(map(repr, known))}")
    if len(set(keys.values())) < len(keys):
        raise UserError(f"tasks: two of {', '.join(keys)} have the same key")
    return keys


def score_of(annotation: Mapping[str, Any], where: str) -> float:
    """The annotation's score, 1 by default (human annotations have none); UserError outside 0..1."""
    if "score" not in annotation:
        return 1.0
    score = fields.number(annotation["score"], f"{where}: score")
    if not 0 <= score <= 1:
        raise UserError(f"{where}: score {score:g} is not in 0..1")
    return score


def checked_shape(shape: Any, where: str) -> dict[str, Any] | list[np.ndarray] | None:
    """A COCO `segmentation` in one form: RLE as it is, or polygons [x0, y0, x1, y1, ...]; None if it has no area.

    One polygon as a flat list, and points as pairs, are understood.

    Raises:
      UserError: anything else.
    """
    if shape is None or shape == []:
        return None
    if isinstance(shape, dict):
        return shape
    try:
        if not isinstance(shape, list):
            raise TypeError
        if not isinstance(shape[0], list) or all(len(one) == 2 and not isinstance(one[0], list) for one in shape):
            shape = [shape]  # one polygon, flat or of pairs
        polygons = [np.array(one, np.float64).reshape(-1) for one in shape]
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{where}: segmentation {fields.shown(shape)} is neither RLE nor a list of polygons [x0, y0, x1, y1, ...]"
        ) from None
    polygons = [one for one in polygons if one.size >= 6]
    for one in polygons:
        if one.size % 2 or not (np.abs(one) < _FARTHEST).all():
            raise UserError(
                f"{where}: segmentation: the {one.size} numbers of a polygon are not x, y pairs within a picture"
            )
    if polygons and fields.is_fraction(np.concatenate(polygons)):
        raise UserError(f"{where}: segmentation in fractions of the picture; multiply it by width and height")
    return polygons or None


def decode_mask(shape: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Decodes a COCO `segmentation` to a mask, bool [H, W].

    Args:
      shape: see `checked_shape`; RLE is {"size": [H, W], "counts": list or compressed text}.
      size: (height, width) of the image.
      where: prefix of error messages.

    Raises:
      UserError: not of the image's size, or not decodable.
    """
    from faster_coco_eval import mask_api_new_cpp as api

    height, width = size
    try:
        if isinstance(shape, dict):
            if list(shape["size"]) != [height, width]:
                own = fields.shown(shape["size"])
                raise UserError(f"{where}: mask size {own} differs from image size [{height}, {width}]")
            counts = shape["counts"]
            if isinstance(counts, str | bytes):
                counts = api.toUncompressedRLE([{"size": [height, width], "counts": counts}])[0]["counts"]
            counts = np.array(counts, np.float64)
            if not (counts >= 0).all() or (counts % 1).any() or counts.sum() != height * width:
                raise UserError(f"{where}: RLE covers {counts.sum():g} of {height * width} pixels")
            counts = counts.astype(np.int64)
            return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
        polygons = [np.asarray(polygon, np.float64).tolist() for polygon in shape]
        return api.decode([api.merge(api.frPyObjects(polygons, height, width), 0)])[..., 0].astype(bool)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(f"{where}: invalid segmentation: {error or type(error).__name__}") from None


def _hashable(value: Any) -> Any:
    """The value if it can be a dictionary key, else None."""
    return value if isinstance(value, int | float | str) else None
