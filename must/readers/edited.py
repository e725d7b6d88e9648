"""Boxes from a COCO json written by `must.export.labels`, keyed by record id."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.core.labels import checked_boxes, half
from must.core.types import Label, UserError
from must.readers.coco import score_of
from must.readers.files import id_of, read_json

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
        if not isinstance(entry, dict) or _hashable(entry.get("image_id")) not in rows:
            raise UserError(f"{path}: annotation {_id(entry)!r}: image_id is not in images")
        where = f"{path}: image {images[entry['image_id']][0]!r}, annotation {entry.get('id')!r}"
        if _hashable(entry.get("category_id")) not in number:
            raise UserError(f"{where}: category id {entry.get('category_id')!r} is not in categories")
        rows[entry["image_id"]].append(entry)
    return {id: _boxes(rows[key], entry, number, f"{path}: image {id!r}") for key, (id, entry) in images.items()}


def _id(entry: Any) -> Any:
    return entry.get("id") if isinstance(entry, dict) else None


def _hashable(value: Any) -> Any:
    """The value if it can be a dictionary key, else None."""
    return value if isinstance(value, int | str) else None


def _class_ids(categories: Sequence[Any], names: Sequence[str], path: Path) -> dict[Any, int]:
    """{category id: class id}."""
    number, out = {name: i for i, name in enumerate(names)}, {}
    for entry in categories:
        name = entry.get("name") if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or _hashable(name) not in number:
            raise UserError(f"{path}: category {name!r} is not one of the {len(number)} classes")
        if not isinstance(_id(entry), int | str) or entry["id"] in out:
            raise UserError(f"{path}: category {name!r}: id {_id(entry)!r} is missing or duplicate")
        out[entry["id"]] = number[entry["name"]]
    return out


def _images(entries: Sequence[Any], path: Path) -> dict[Any, tuple[str, dict[str, Any]]]:
    """{image id: (example id, entry)}."""
    out: dict[Any, tuple[str, dict[str, Any]]] = {}
    seen: set[str] = set()
    for entry in entries:
        if not isinstance(_id(entry), int | str) or not isinstance(entry.get("file_name"), str):
            raise UserError(f"{path}: image {_id(entry)!r}: id or file_name is missing or invalid")
        id = str(entry.get(MUST_ID) or id_of(os.path.splitext(entry["file_name"])[0]))
        if id in seen or entry["id"] in out:
            raise UserError(f"{path}: image {id!r} (id {entry['id']!r}) is listed twice")
        seen.add(id)
        out[entry["id"]] = (id, entry)
    return out


def _boxes(rows: Sequence[Mapping[str, Any]], image: Mapping[str, Any], number: Mapping[Any, int], where: str) -> Boxes:
    corners, scores = [], []
    for row in rows:
        at = f"{where}, annotation {row.get('id')!r}"
        try:
            x, y, width, height = (float(value) for value in row["bbox"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{at}: bbox {row.get('bbox')!r} is not four numbers") from None
        corners.append((x, y, x + width, y + height))
        scores.append(score_of(row, at))
    try:
        size = tuple(float(image.get(side) or np.nan) for side in ("height", "width"))
        unknown = [number[category] for category in image.get(UNKNOWN, ())]
    except (TypeError, ValueError, KeyError):
        raise UserError(f"{where}: invalid height, width or {UNKNOWN}") from None
    limit = np.where(np.isnan(size), np.inf, size)
    boxes = checked_boxes(np.array(corners), limit, lambda i: f"{where}, annotation {rows[i].get('id')!r}")
    label = {
        "boxes": boxes.astype(np.float32),
        "classes": np.array([number[row["category_id"]] for row in rows], np.uint16),
        "scores": half(np.array(scores)),
        "crowd": np.array([bool(row.get("iscrowd", 0)) for row in rows], bool),
    }
    if UNKNOWN in image:
        label["unknown"] = np.array(sorted(set(unknown)), np.uint16)
    return Boxes(label, size)
