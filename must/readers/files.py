"""Shared by all readers of image files: finding files, reading lists, decoding pictures, the base class `FileSource`.

EXIF orientation is not applied, since labels are in the coordinates of the stored pixels.
"""

import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from must.core.types import Example, Label, UserError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_WHOLE_FILE = 1 << 17  # larger files enter the fingerprint only by their ends


class FileSource:
    """Picture files in a fixed order; subclasses provide labels in `labels_for`.

    Args:
      name: first part of every id.
      pictures: {key: file}, in order; the key is the second part of the id.
      classes: {task name: class names}.
      settings: everything else that affects the labels; part of the fingerprint.
      label_files: files that contain the labels; part of the fingerprint.
    """

    def __init__(
        self,
        name: str,
        pictures: Mapping[str, Path],
        *,
        classes: Mapping[str, Sequence[str]] | None = None,
        settings: Any = None,
        label_files: Sequence[Path] = (),
    ):
        if not name or "/" in name:
            raise UserError(f"source name {name!r}: must be non-empty, without '/'")
        self.name = name
        self.ids = [f"{name}/{key}" for key in pictures]
        self.classes = {task: tuple(names) for task, names in (classes or {}).items()}
        self._pictures = list(pictures.values())
        self._label_files = list(label_files)
        self._settings = settings

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        image = decode_picture(self.encoded(index), str(self._pictures[index]))
        return Example(self.ids[index], image, self.labels_for(index, image.shape[:2]))

    def encoded(self, index: int) -> bytes:
        """The picture's file, byte for byte."""
        return read_bytes(self._pictures[index])

    def labels(self, index: int) -> dict[str, Label]:
        """The labels alone; the picture is not decoded."""
        return self.labels_for(index, self.size(index))

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the picture in pixels, from its header."""
        return picture_size(self.encoded(index), str(self._pictures[index]))

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        """Labels in record form of one picture of (height, width) `size`."""
        return {}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of ids, classes, settings and files, see `fingerprint_of`."""
        description = repr((self.ids, self.classes, self._settings))
        return fingerprint_of(description, itertools.chain(self._pictures, self._label_files))


def fingerprint_of(description: str, files: Iterable[Path]) -> str:
    """Hash of a description and of files' sizes and contents (of large files, only the first and last 64 KiB)."""
    digest = hashlib.sha256(description.encode())
    for path in files:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with open(path, "rb") as file:
            if size <= _WHOLE_FILE:
                digest.update(file.read())
            else:
                digest.update(file.read(_WHOLE_FILE // 2))
                file.seek(-_WHOLE_FILE // 2, os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()


def source_name(name: str, root: str, split: str) -> str:
    """`name`, or "<root folder>-<split>" if empty."""
    return name or "-".join(part for part in (Path(root).resolve().name, split.replace("/", "-")) if part)


def locate(root: str, path: str, split: str = "") -> Path:
    """`path` below `root` (or absolute), with "{split}" replaced."""
    return Path(root).expanduser() / path.replace("{split}", split)


def folder(path: Path) -> Path:
    """The path itself; UserError if it is not a folder."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    return path


def read_bytes(path: Path) -> bytes:
    """The file's content; UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def read_json(path: Path) -> Any:
    """The parsed file; UserError names file and line."""
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise UserError(f"{path}: invalid json: {error}") from None


def read_lines(path: Path) -> list[str]:
    """Non-blank lines, stripped; UserError if there are none."""
    try:
        lines = [line.strip() for line in read_bytes(path).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from None
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"{path}: empty file")
    return lines


def read_classes(classes: str | Sequence[str] | Mapping[Any, str], root: str = "") -> dict[int, str]:
    """Class names by id, ascending.

    Args:
      classes: names in order of their ids, {id: name}, or a file below `root`: text with one name per line, json with a
        list or {id: name}, or "file.json:key" for one entry of a json object.
      root: folder of the file.
    """
    where = "classes"
    if isinstance(classes, str):
        file, _, key = classes.partition(".json:")
        path = locate(root, file + ".json" if key else classes)
        where = str(path)
        classes = read_json(path) if path.suffix == ".json" else read_lines(path)
        if key:
            if not isinstance(classes, dict) or key not in classes:
                raise UserError(f"{path}: has no key {key!r}")
            classes = classes[key]
    try:
        items = classes.items() if hasattr(classes, "items") else enumerate(classes)
        names = {int(number): str(name) for number, name in items}
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: expected class names or {{id: name}}: {error}") from None
    repeated = first_repeated(names.values())
    if not names or repeated is not None:
        raise UserError(f"{where}: " + (f"class {repeated!r} is listed twice" if names else "no classes"))
    return dict(sorted(names.items()))


def first_repeated(items: Any) -> Any:
    """The first repeated item, or None."""
    seen = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def find_pictures(path: Path, suffix: str = "", ids: Path | None = None) -> dict[str, Path]:
    """Pictures below a folder, {relative path without `suffix` and extension: file}.

    Args:
      path: searched recursively; hidden files and folders are skipped.
      suffix: selects pictures whose name without extension ends in it; not part of the key.
      ids: list file of keys, one per line, with or without extension; selects and orders the result.

    Raises:
      UserError: no pictures, duplicate keys, a list that names a missing picture or a picture twice.
    """
    pictures: dict[str, Path] = {}
    for directory, folders, names in os.walk(folder(path), followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            stem, extension = os.path.splitext(name)
            if name.startswith(".") or extension.lower() not in PICTURES or not stem.endswith(suffix):
                continue
            key = Path(directory, stem[: len(stem) - len(suffix)]).relative_to(path).as_posix()
            if key in pictures:
                raise UserError(f"{Path(directory, name)}: same name as {pictures[key].name}, so ids would repeat")
            pictures[key] = Path(directory, name)
    if not pictures:
        raise UserError(f"{path}: no pictures" + (f" whose names end in {suffix!r}" if suffix else ""))
    return dict(sorted(pictures.items())) if ids is None else select(pictures, ids, path)


def select(pictures: Mapping[str, Any], ids: Path, where: Path) -> dict[str, Any]:
    """The pictures that the list file `ids` names, in its order; `where` names their folder in error messages."""
    chosen: dict[str, Any] = {}
    for line in read_lines(ids):
        stem, extension = os.path.splitext(line)
        key = stem if extension.lower() in PICTURES else line
        if key not in pictures:
            raise UserError(f"{ids}: lists {line!r}, which is not in {where}")
        if key in chosen:
            raise UserError(f"{ids}: lists {line!r} twice")
        chosen[key] = pictures[key]
    return chosen


def decode_picture(data: bytes, where: str) -> np.ndarray:
    """Decodes a picture to RGB, uint8 [H, W, 3]; converts gray, palette, CMYK and 16-bit pictures and drops alpha.

    Raises:
      UserError: not a picture, truncated or corrupt; the message starts with `where`.
    """
    import simplejpeg

    try:
        if simplejpeg.is_jpeg(data) and simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "RGB", "Gray"):
            return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        raise UserError(f"{where}: broken picture: {error}") from None
    picture = open_picture(data, where)
    if picture.mode.startswith("I;16"):
        gray = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, -1)
    if picture.mode in ("I", "F"):
        raise UserError(f"{where}: pictures need 8 or 16 bits per channel, not mode {picture.mode}")
    return np.array(picture.convert("RGB"))


def open_picture(data: bytes, where: str) -> Any:
    """Loads an encoded picture as a `PIL.Image`; UserError if it is broken."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except Exception as error:  # Pillow's plugins raise a dozen types, from SyntaxError to struct.error
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else f"broken picture: {error}"
        raise UserError(f"{where}: {reason}") from None
    return picture


def picture_size(data: bytes, where: str) -> tuple[int, int]:
    """(height, width) of an encoded picture, from its header; UserError if it is not a picture."""
    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(data)).size
    except Exception as error:  # as in `open_picture`
        raise UserError(f"{where}: not a picture: {error}") from None
    return height, width


_SAFE = " ()+=@"  # in addition to letters, digits and _.-~
_EMPTY, _DOT = "%-", "%2E"
_LONGEST = 200  # characters of one path component; file systems allow 255, including the extension


def file_of(id: str) -> str:
    """Relative path, without extension, of the files of an example."""
    *folders, last = id.split("/")
    return "/".join([*(_encoded(part, folder=True) for part in folders), _encoded(last, folder=False)])


def id_of(file: str) -> str:
    """Inverse of `file_of`."""
    parts, prefix = [], ""
    for part in file.split("/"):
        if part.endswith("%"):
            prefix += part[:-1]
        else:
            parts.append("" if part == _EMPTY else unquote(prefix + part))
            prefix = ""
    return "/".join(parts)


def _encoded(part: str, *, folder: bool) -> str:
    text = quote(part, safe=_SAFE)
    if not text:
        return _EMPTY
    if text.startswith("."):
        text = _DOT + text[1:]
    stem, extension = os.path.splitext(text)
    if folder and extension.lower() in PICTURES:
        text = stem + _DOT + extension[1:]
    if len(text) <= _LONGEST:
        return text
    text = text.replace(".", _DOT)
    return "%/".join(text[at : at + _LONGEST] for at in range(0, len(text), _LONGEST))
