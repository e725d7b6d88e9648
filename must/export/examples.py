"""What all writers of labels share: which examples are labeled, what files are called, what a folder says of itself."""

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import Label, Source, UserError
from must.data.combine import encoded_of, labels_of
from must.readers.file_names import file_of
from must.readers.label_files import ABOUT
from must.readers.record_format import encode_png
from must.tasks.base import Task

_EXTENSIONS = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif"}


def labeled(source: Source, name: str, task: Task, fields: Sequence[str]) -> Iterator[tuple[int, Label]]:
    """Index and label of every example that has a label of the task.

    Raises:
      UserError: none has one, the source's classes are not the task's, or a label has a field that is none of `fields`.
    """
    classes = tuple(getattr(task, "classes", ()))
    if name in source.classes and tuple(source.classes[name]) != classes:
        raise UserError(f"{source.name}: classes of {name} are not those of the task")
    none = True
    for index, id in enumerate(source.ids):
        label = labels_of(source, index).get(name)
        if label is None:
            continue
        if extra := set(label) - set(fields):
            raise UserError(f"{id}: {name}.{min(extra)} has no place in these files")
        none = False
        yield index, label
    if none:
        raise UserError(f"{source.name}: holds no labels of {name!r}")


def class_names(ids: Any, names: Sequence[str], where: str) -> list[str]:
    """The names of class ids; UserError for an id outside the label space, whose message starts with `where`."""
    numbers = np.asarray(ids).reshape(-1).tolist()
    if wrong := [number for number in numbers if not 0 <= number < len(names)]:
        raise UserError(f"{where}: class id {wrong[0]} with {len(names)} classes")
    return [names[number] for number in numbers]


def picture_file(source: Source, index: int) -> str:
    """The picture's path below the folder of pictures."""
    data = encoded_of(source, index)
    return file_of(source.ids[index]) + (_extension(data) or ".png")


def picture_bytes(source: Source, index: int) -> bytes:
    """The picture's file: as the source has it, or a PNG of it.

    Raises:
      UserError: it is a video.
    """
    data = encoded_of(source, index)
    if _extension(data):
        return data
    image = source[index].image
    if len(image.shape) != 3:
        raise UserError(f"{source.ids[index]}: is a video, only pictures are written")
    return encode_png(np.ascontiguousarray(image))


def picture_size(source: Source, index: int) -> tuple[int, int]:
    """(height, width) in pixels, from the header where there is one; of a video its frames'."""
    from PIL import Image

    data = encoded_of(source, index)
    if not _extension(data):
        return tuple(int(side) for side in source[index].image.shape[-3:-1])
    width, height = Image.open(io.BytesIO(data)).size
    return height, width


def write_new(directory: str, file: str, data: bytes) -> None:
    """A file below the directory, with its folders; UserError when an example before it has taken the place."""
    path = os.path.join(directory, file)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(path, "xb") as new:
            new.write(data)
    except FileExistsError:
        raise UserError(f"{path}: two examples want this file: ids are equal, or but for capitals") from None


def write_about(directory: str, about: Mapping[str, Any]) -> None:
    """<directory>/about.json, one line per key."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in about.items())
    with open(os.path.join(directory, ABOUT), "w", encoding="utf-8") as file:
        file.write(f"{{\n{lines}\n}}\n")


def _extension(data: bytes | None) -> str | None:
    """Of encoded bytes, None when there are none or other readers may not know them."""
    from PIL import Image, UnidentifiedImageError

    try:
        return None if data is None else _EXTENSIONS.get(Image.open(io.BytesIO(data)).format)
    except (UnidentifiedImageError, OSError):
        return None
