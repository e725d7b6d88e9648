"""What COCO's jsons share, of boxes, panoptic segments and edited labels: three lists, images and categories by id."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.core.types import UserError
from must.readers import fields
from must.readers.files import first_repeated, read_json

SIDES = ("height", "width")


class Head(NamedTuple):
    """The content of a json.

    Attributes:
      images: {id: (file name, entry)}, in the order of the json.
      annotations: entries as they are.
      categories: {id: name}, in ascending order of ids.
    """

    images: dict[Any, tuple[str, Mapping[str, Any]]]
    annotations: list[Any]
    categories: dict[Any, str]


def read_head(path: Path) -> Head:
    """Reads a json; UserError for a missing list, an entry without id or name, and what is listed twice."""
    content = read_json(path)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path}: not a COCO json: {part!r} is not a list")
    images: dict[Any, tuple[str, Mapping[str, Any]]] = {}
    for entry in content["images"]:
        id, file = values(entry, ("id", "file_name"), f"{path}: image")
        at = f"{path}: image {fields.shown(id)}:"
        if (id := fields.key(id, f"{at} id")) in images:
            raise UserError(f"{path}: duplicate image id {id!r}")
        images[id] = (fields.text(file, f"{at} file_name"), entry)
    categories: dict[Any, str] = {}
    for entry in content["categories"]:
        id, name = values(entry, ("id", "name"), f"{path}: category")
        at = f"{path}: category {fields.shown(id)}:"
        if (id := fields.key(id, f"{at} id")) in categories:
            raise UserError(f"{path}: duplicate category id {id!r}")
        categories[id] = fields.text(name, f"{at} name")
    if (repeated := first_repeated(categories.values())) is not None:
        raise UserError(f"{path}: duplicate category {repeated!r}")
    categories = dict(sorted(categories.items(), key=lambda item: (isinstance(item[0], str), item[0])))
    return Head(images, content["annotations"], categories)


def values(entry: Any, keys: Sequence[str], where: str) -> list[Any]:
    """The values of the keys; UserError for an entry that lacks one."""
    for key in keys:
        if not isinstance(entry, dict) or key not in entry:
            id = entry["id"] if isinstance(entry, dict) and "id" in entry else entry
            raise UserError(f"{where} {fields.shown(id)} has no {key!r}")
    return [entry[key] for key in keys]


def size_of(image: Mapping[str, Any], where: str) -> tuple[float, ...]:
    """(height, width), NaN where missing."""
    return tuple(fields.number(image[side], f"{where}: {side}") if image.get(side) else np.nan for side in SIDES)


def keys_of(files: Iterable[str]) -> list[str]:
    """The second parts of ids: names without extensions, but of pictures that differ in nothing else."""
    files = list(files)
    stems = Counter(os.path.splitext(file)[0] for file in set(files))
    return [file if stems[stem] > 1 else stem for file in files for stem in [os.path.splitext(file)[0]]]
