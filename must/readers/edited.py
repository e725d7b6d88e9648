"""Boxes from a COCO json written by `must.export.labels`, keyed by record id."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.core.labels import CheckedBoxes, checked_boxes, half, with_masks
from must.core.types import Label, UserError
from must.readers import fields
from must.readers.coco import checked_shape, decode_mask, score_of
from must.readers.coco_head import Head, read_head, size_of
from must.readers.files import first_repeated
from must.readers.names import id_of

MUST_ID, UNKNOWN = "must_id", "unknown_category_ids"  # extensions to COCO's keys


class Boxes(NamedTuple):
    """The boxes of one image.

    Attributes:
      label: detection in record form; has "unknown" only if the json does.
      size: (height, width) in pixels; NaN if missing.
    """

    label: Label
    size: tuple[float, float]


def read_boxes(path: Path, names: Sequence[str], *, masks: bool = False) -> dict[str, Boxes]:
    """{id: boxes} of all images in a COCO json, in its order.

    Args:
      path: the json file.
      names: of the classes, matched to the names of the categories.
      masks: read the segmentations too.

    Raises:
      UserError: see `EditedCoco`.
    """
    head = read_head(path)
    number = {name: i for i, name in enumerate(names)}
    if foreign := next((name for name in head.categories.values() if name not in number), None):
        raise UserError(f"{path}: category {foreign!r} is not one of the {len(number)} classes")
    number = {id: number[name] for id, name in head.categories.items()}
    images = _images(head, path)
    rows: dict[Any, list[dict[str, Any]]] = {key: [] for key in images}
    for entry in head.annotations:
        where = f"{path}: annotation {fields.shown(_get(entry, 'id'))}"
        owner = fields.key(_get(entry, "image_id"), f"{where}: image_id")
        if owner not in rows:
            raise UserError(f"{where}: image_id {fields.shown(owner)} is not in images")
        where = f"{path}: image {images[owner][0]!r}, annotation {fields.shown(entry.get('id'))}"
        category = fields.key(_get(entry, "category_id"), f"{where}: category id")
        if category not in number:
            raise UserError(f"{where}: category id {fields.shown(category)} is not in categories")
        rows[owner].append({**entry, "class": number[category], "bbox": fields.box(_get(entry, "bbox"), where)})
    sizes = {key: size_of(entry, f"{path}: image {id!r}") for key, (id, entry) in images.items()}
    stored = np.array([row["bbox"] for mine in rows.values() for row in mine], np.float64).reshape(-1, 4)
    areas = [row.get("area") for mine in rows.values() for row in mine]
    areas = np.array([area if isinstance(area, float | int) and area < 1e15 else np.nan for area in areas], np.float64)
    owners = [sizes[key] for key, mine in rows.items() for _ in mine]
    fields.check_layout(stored, areas, np.array(owners, np.float64).reshape(-1, 2), str(path))
    out, checked = {}, []
    for key, (id, entry) in images.items():
        out[id], more = _boxes(rows[key], sizes[key], f"{path}: image {id!r}")
        if masks:
            at, (height, width) = f"{path}: image {id!r}", sizes[key]
            if np.isnan(height):
                raise UserError(f"{at}: masks need its height and width")
            shapes = [checked_shape(row.get("segmentation"), at) for row in rows[key]]
            size = (int(height), int(width))
            drawn = [np.zeros(size, bool) if one is None else decode_mask(one, size, at) for one in shapes]
            out[id] = out[id]._replace(label=with_masks(out[id].label, drawn))
        checked.append(more)
        if UNKNOWN in entry:
            out[id].label["unknown"] = _unknown(entry, number, f"{path}: image {id!r}")
    if checked:
        CheckedBoxes.together(checked).tell(str(path), way_out="")
    return out


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _images(head: Head, path: Path) -> dict[Any, tuple[str, Mapping[str, Any]]]:
    """{image id: (example id, entry)}."""
    out = {key: (str(e.get(MUST_ID) or id_of(os.path.splitext(file)[0])), e) for key, (file, e) in head.images.items()}
    if (twice := first_repeated(id for id, _ in out.values())) is not None:
        raise UserError(f"{path}: image {twice!r} is listed twice")
    return out


def _unknown(image: Mapping[str, Any], number: Mapping[Any, int], where: str) -> np.ndarray:
    try:
        return np.array(sorted({number[fields.key(category, where)] for category in image[UNKNOWN]}), np.uint16)
    except (TypeError, KeyError):
        raise UserError(f"{where}: invalid {UNKNOWN} {fields.shown(image[UNKNOWN])}") from None


def _boxes(rows: Sequence[Mapping[str, Any]], size: tuple[float, float], where: str) -> tuple[Boxes, CheckedBoxes]:
    """The boxes of an image, also as they were checked."""
    stored = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    stored[:, 2:] += stored[:, :2]
    at = [f"{where}, annotation {fields.shown(row.get('id'))}" for row in rows]
    limit = np.where(np.isnan(size), np.inf, size)
    checked = checked_boxes(stored, limit, at.__getitem__, empty="keep")
    label = {
        "boxes": checked.boxes.astype(np.float32),
        "classes": np.array([row["class"] for row in rows], np.uint16),
        "scores": half(np.array([score_of(row, at[i]) for i, row in enumerate(rows)])),
        "crowd": np.array([fields.flag(row.get("iscrowd"), f"{at[i]}: iscrowd") for i, row in enumerate(rows)], bool),
    }
    return Boxes(label, size), checked
