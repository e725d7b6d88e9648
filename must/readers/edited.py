"""Boxes from a COCO json written by `must.export.labels`, keyed by record id."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.core.labels import checked_boxes, half
from must.core.notices import notice
from must.core.types import Label, UserError
from must.readers import fields
from must.readers.coco import SIDES, score_of
from must.readers.files import read_json
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


def read_boxes(path: Path, names: Sequence[str]) -> dict[str, Boxes]:
    """{id: boxes} of all images in a COCO json, in its order.

    Args:
      path: the json file.
      names: of the classes, matched to the names of the categories.

    Raises:
      UserError: see `EditedCoco`.
    """
    content = read_json(path)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path}: not a COCO json: {part!r} is not a list")
    number = _class_ids(content["categories"], names, path)
    images = _images(content["images"], path)
    rows: dict[Any, list[dict[str, Any]]] = {key: [] for key in images}
    for entry in content["annotations"]:
        where = f"{path}: annotation {fields.shown(_get(entry, 'id'))}"
        owner = fields.key(_get(entry, "image_id"), f"{where}: image_id")
        if owner not in rows:
            raise UserError(f"{where}: image_id {fields.shown(owner)} is not in images")
        where = f"{path}: image {images[owner][0]!r}, annotation {fields.shown(entry.get('id'))}"
        category = fields.key(_get(entry, "category_id"), f"{where}: category id")
        if category not in number:
            raise UserError(f"{where}: category id {fields.shown(category)} is not in categories")
        rows[owner].append({**entry, "class": number[category], "bbox": fields.box(_get(entry, "bbox"), where)})
    sizes = {key: _size(entry, f"{path}: image {id!r}") for key, (id, entry) in images.items()}
    stored = np.array([row["bbox"] for mine in rows.values() for row in mine], np.float64).reshape(-1, 4)
    areas = [row.get("area") for mine in rows.values() for row in mine]
    areas = np.array([area if isinstance(area, float | int) and area < 1e15 else np.nan for area in areas], np.float64)
    owners = [sizes[key] for key, mine in rows.items() for _ in mine]
    fields.check_layout(stored, areas, np.array(owners, np.float64).reshape(-1, 2), str(path))
    out, clipped = {}, 0
    for key, (id, entry) in images.items():
        out[id], more = _boxes(rows[key], sizes[key], f"{path}: image {id!r}")
        clipped += more
        if UNKNOWN in entry:
            out[id].label["unknown"] = _unknown(entry, number, f"{path}: image {id!r}")
    if clipped:
        notice(f"{path}: {clipped:,} of {len(stored):,} boxes reach beyond their pictures and are clipped")
    return out


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _class_ids(categories: Sequence[Any], names: Sequence[str], path: Path) -> dict[Any, int]:
    """{category id: class id}."""
    number, out = {name: i for i, name in enumerate(names)}, {}
    for entry in categories:
        name = fields.text(_get(entry, "name"), f"{path}: category name")
        if name not in number:
            raise UserError(f"{path}: category {name!r} is not one of the {len(number)} classes")
        id = fields.key(_get(entry, "id"), f"{path}: category {name!r}: id")
        if id in out:
            raise UserError(f"{path}: category {name!r}: duplicate id {id!r}")
        out[id] = number[name]
    return out


def _images(entries: Sequence[Any], path: Path) -> dict[Any, tuple[str, dict[str, Any]]]:
    """{image id: (example id, entry)}."""
    out: dict[Any, tuple[str, dict[str, Any]]] = {}
    seen: set[str] = set()
    for entry in entries:
        where = f"{path}: image {fields.shown(_get(entry, 'id'))}:"
        key, file = (
            fields.key(_get(entry, "id"), f"{where} id"),
            fields.text(_get(entry, "file_name"), f"{where} file_name"),
        )
        id = str(entry.get(MUST_ID) or id_of(os.path.splitext(file)[0]))
        if id in seen or key in out:
            raise UserError(f"{path}: image {id!r} (id {key!r}) is listed twice")
        seen.add(id)
        out[key] = (id, entry)
    return out


def _size(image: Mapping[str, Any], where: str) -> tuple[float, float]:
    """(height, width), NaN where missing."""
    return tuple(fields.number(image[side], f"{where}: {side}") if image.get(side) else np.nan for side in SIDES)


def _unknown(image: Mapping[str, Any], number: Mapping[Any, int], where: str) -> np.ndarray:
    try:
        return np.array(sorted({number[fields.key(category, where)] for category in image[UNKNOWN]}), np.uint16)
    except (TypeError, KeyError):
        raise UserError(f"{where}: invalid {UNKNOWN} {fields.shown(image[UNKNOWN])}") from None


def _boxes(rows: Sequence[Mapping[str, Any]], size: tuple[float, float], where: str) -> tuple[Boxes, int]:
    """The boxes of an image, and how many of them are clipped."""
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
    return Boxes(label, size), checked.clipped
