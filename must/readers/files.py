"""Shared by all readers of image files: finding files, reading text and tables, the base class `FileSource`."""

import codecs
import csv
import functools
import hashlib
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from must.core.arguments import path_of
from must.core.files import read_bytes
from must.core.notices import notice
from must.core.types import Example, Label, UserError
from must.readers import fields
from must.readers.names import PICTURES, class_name, readable, spellings
from must.readers.pictures import (
    DISPLAYED,
    STORED,
    is_deep,
    orientation_of,
    picture_size,
    read_picture,
    significant_bits,
    untagged,
)
from must.readers.record_format import encode_png

_HEADER = 1 << 16  # bytes that hold a picture's size and orientation
_WHOLE_FILE = 1 << 17  # larger files enter the fingerprint only by their ends, but for text
_TEXT = (".json", ".csv", ".tsv", ".txt", ".xml")


class FileSource:
    """Picture files in a fixed order; subclasses provide labels in `labels_for`.

    16-bit pictures with fewer significant bits, as the largest value of a sample tells, are read with those.

    Args:
      name: first part of every id.
      pictures: {key: file}, in order; the key is the second part of the id, with control characters as %XX.
      classes: {task name: class names}.
      settings: everything else that affects the labels; part of the fingerprint.
      label_files: files that contain the labels; part of the fingerprint.
      orientation: of pictures with an orientation tag (EXIF), and of their labels: "displayed", as viewers and
        annotation tools show them, or "stored".
      within: folders and files that the user named; files outside of them are refused, see `check_inside`.
    """

    def __init__(
        self,
        name: str,
        pictures: Mapping[str, Path],
        *,
        classes: Mapping[str, Sequence[str]] | None = None,
        settings: Any = None,
        label_files: Sequence[Path] = (),
        orientation: str = DISPLAYED,
        within: Sequence[str | Path] = (),
    ):
        check_inside([*pictures.values(), *label_files], within)
        if not name or "/" in name:
            raise UserError(f"source name {name!r}: must not be empty or contain '/'")
        if orientation not in (DISPLAYED, STORED):
            raise UserError(f"{name}: orientation={orientation!r} is neither {DISPLAYED!r} nor {STORED!r}")
        self.name = name
        self.ids = [f"{name}/{readable(key)}" for key in pictures]
        self.classes = {task: tuple(names) for task, names in (classes or {}).items()}
        self._pictures = list(pictures.values())
        self._label_files = list(label_files)
        self._settings, self._orientation = settings, orientation

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        image = self._decoded(index, data := read_bytes(self._pictures[index]))
        labels = self._checked_labels(index, image.shape[:2])
        if labels and self._orientation == DISPLAYED:
            tag = orientation_of(data)
            if 2 <= tag <= 4 or (tag > 4 and image.shape[0] == image.shape[1]):  # no size tells
                notice(
                    f"{self.name}: some pictures have an EXIF orientation that keeps their size, and are read as "
                    f"displayed; set orientation={STORED!r} if the labels are of the pictures as stored"
                )
        return Example(self.ids[index], image, labels)

    def encoded(self, index: int) -> bytes:
        """The picture's file, byte for byte; a PNG of the picture if other readers would see it turned or darker."""
        data = read_bytes(self._pictures[index])
        turned, deep = orientation_of(data) != 1, is_deep(data)
        if turned and self._orientation == STORED and not deep:
            data = untagged(data)
            turned = orientation_of(data) != 1
        return encode_png(self._decoded(index, data)) if turned or (deep and self._bits < 16) else data

    def location(self, index: int) -> str:
        """The path of the picture."""
        return os.fspath(self._pictures[index])

    def labels(self, index: int) -> dict[str, Label]:
        """The labels alone; the picture is not decoded."""
        return self._checked_labels(index, self.size(index))

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the picture in pixels, from its header."""
        file = self._pictures[index]
        try:
            return picture_size(read_bytes(file, _HEADER), str(file), self._orientation)
        except UserError:  # a large profile or thumbnail comes first
            return picture_size(read_bytes(file), str(file), self._orientation)

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        """Labels in record form of one picture of (height, width) `size`."""
        return {}

    def _decoded(self, index: int, data: bytes) -> np.ndarray:
        bits = self._bits if is_deep(data) else 16
        return read_picture(data, str(self._pictures[index]), orientation=self._orientation, bits=bits)

    def _checked_labels(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        """`labels_for`, whose error tells when the picture is turned."""
        try:
            return self.labels_for(index, size)
        except UserError as error:
            tag = orientation_of(read_bytes(self._pictures[index]))
            if tag == 1:
                raise
            other = STORED if self._orientation == DISPLAYED else DISPLAYED
            raise UserError(
                f"{error}; its EXIF orientation is {tag} and it is read as {self._orientation}: set "
                f"orientation={other!r} if the labels are of the picture as {other}"
            ) from None

    @functools.cached_property
    def _bits(self) -> int:
        """Significant bits of the set's 16-bit pictures, from a sample; one number keeps brightness comparable."""
        return significant_bits(self.name, len(self), lambda index: read_bytes(self._pictures[index]))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of ids, classes, settings and files, see `fingerprint_of`."""
        description = repr((self.ids, self.classes, self._settings))
        turned = self._orientation == DISPLAYED
        return fingerprint_of(description, itertools.chain(self._pictures, self._label_files), turned=turned)


def fingerprint_of(description: str, files: Iterable[Path], *, turned: bool = False) -> str:
    """Hash of a description and of files' sizes and contents (of large pictures and videos, the first and last 64 KiB).

    Args:
      description: of everything else.
      files: a missing one and one that is no regular file count as empty.
      turned: pictures with an orientation tag count as other pictures.
    """
    digest = hashlib.sha256(description.encode())
    for path in files:
        if not path.is_file():
            digest.update(bytes(8))
            continue
        size = path.stat().st_size
        whole = size <= _WHOLE_FILE or path.suffix.lower() in _TEXT
        digest.update(size.to_bytes(8, "little"))
        with open(path, "rb") as file:
            head = file.read(size if whole else _WHOLE_FILE // 2)
            digest.update(head)
            if turned and (tag := orientation_of(head)) != 1:
                digest.update(bytes([tag]))
            if not whole:
                file.seek(-_WHOLE_FILE // 2, os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()


def source_name(name: str, root: str, split: str) -> str:
    """`name`, or "<root folder>-<split>" if empty."""
    return readable(name or "-".join(part for part in (Path(root).resolve().name, split.replace("/", "-")) if part))


def locate(root: str, path: str, split: str = "") -> Path:
    """`path` below `root` (or absolute), with "{split}" replaced."""
    return Path(path_of(root, "root")).expanduser() / path.replace("{split}", split)


def folder(path: Path) -> Path:
    """The path itself; UserError if it is not a folder."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    return path


def check_inside(paths: Iterable[str | Path], within: Iterable[str | Path]) -> None:
    """Refuses files that a link, an absolute name or ".." in others' files places outside of what the user named.

    Args:
      paths: files and folders, by the names that they were found under.
      within: folders and files that the user named; without any nothing is refused.

    Raises:
      UserError: one that is outside; the environment variable MUST_OUTSIDE=1 allows it.
    """
    tops = [os.path.realpath(top).rstrip(os.sep) for top in within]
    if not tops or os.environ.get("MUST_OUTSIDE", "0") != "0":
        return
    folders: dict[str, str] = {}
    for path in paths:
        parent, name = os.path.split(path)
        if parent not in folders:
            folders[parent] = os.path.realpath(parent)
        at = f"{folders[parent]}{os.sep}{name}"
        if name in ("", ".", "..") or os.path.islink(path):
            at = os.path.realpath(path)
        if not any(at == top or at.startswith(f"{top}{os.sep}") for top in tops):
            raise UserError(
                f"{path}: leads to {at}, outside of {tops[0]}; MUST_OUTSIDE=1 in the environment reads it all the same"
            )


def read_text(path: Path) -> str:
    """The file as text: UTF-8, UTF-16 or UTF-32; anything else as cp1252, with a notice."""
    data = read_bytes(path)
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((encoding for mark, encoding in marks.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 0 in data[:2]:  # ASCII in UTF-16
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or 0 in data:
            raise UserError(f"{path}: not text: {error}") from None
    notice(f"{path}: not UTF-8, read as cp1252 (Western Europe); save it as UTF-8 if that is wrong")
    return data.decode("cp1252", "replace")


def read_json(path: Path) -> Any:
    """The parsed file; UserError names file and line."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError, MemoryError) as error:  # also numbers of thousands of digits
        raise UserError(f"{path}: invalid json: {error or 'too large for the memory of this machine'}") from None


def read_lines(path: Path) -> list[str]:
    """Non-blank lines, stripped; UserError if there are none."""
    lines = [line.strip() for line in re.split("\r\n|\r|\n", read_text(path))]
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"{path}: empty file")
    return lines


def read_rows(path: Path, *, exact: bool = False) -> dict[int, list[str]]:
    """{line number: cells} of a table, separated by whatever splits its first rows: ",", ";", tab, "|" or space.

    Args:
      path: of the file.
      exact: a table of ours: its heading tells the separator, quotes are balanced and spaces around cells are kept.

    Raises:
      UserError: an empty file, or no table.
    """
    text = read_text(path)
    said = re.match("sep=(.)\r?\n", text)  # Excel's
    sample = [line for line in itertools.islice(io.StringIO(text), 1 if exact else 50) if line.strip()]
    if not sample:
        raise UserError(f"{path}: empty file")
    parted = [mark for mark in ",;\t|" if all(mark in line for line in sample)]
    parted.sort(key=lambda mark: len({line.count(mark) for line in sample}) > 1)
    separator = said[1] if said else (parted or [" " if all(" " in line.strip() for line in sample) else ","])[0]
    table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=not exact, strict=exact)
    rows: dict[int, list[str]] = {}
    try:
        for row in table:
            if any(cell.strip() for cell in row) and not (said and table.line_num == 1):
                rows[table.line_num] = row if exact else [cell.strip() for cell in row]
    except csv.Error as error:
        raise UserError(f"{path}:{table.line_num}: {error}") from None
    return rows


def read_classes(classes: str | Sequence[str] | Mapping[Any, str], root: str = "") -> dict[int, str]:
    """Class names by id, ascending.

    Args:
      classes: names in order of their ids, {id: name}, or a file below `root`: text with one name per line, json with a
        list, {id: name} or COCO's categories, or "file.json:key" for one entry of a json object.
      root: folder of the file.
    """
    where = "classes"
    if isinstance(classes, str):
        file, _, key = classes.partition(".json:")
        path = locate(root, file + ".json" if key else classes)
        where, classes = str(path), read_json(path) if path.suffix == ".json" else read_lines(path)
        if key and (not isinstance(classes, dict) or key not in classes):
            raise UserError(f"{path}: has no key {key!r}")
        classes = classes[key] if key else classes
    try:
        if isinstance(classes, list) and all(isinstance(one, dict) and {"id", "name"} <= set(one) for one in classes):
            classes = {one["id"]: one["name"] for one in classes}  # COCO's categories
        items = classes.items() if hasattr(classes, "items") else enumerate(classes)
        names = {int(number): class_name(fields.text(name, f"{where}: name {number}:")) for number, name in items}
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: expected class names or {{id: name}}: {error}") from None
    if not names or (repeated := first_repeated(names.values())) is not None:
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


def walk(path: Path, root: str | Path = "") -> Iterator[tuple[str, list[str]]]:
    """(folder, its files, sorted) below a folder, without hidden ones; each folder once, whatever links lead to it.

    Raises:
      UserError: a folder that cannot be read, or a link out of the folder and of `root`, see `check_inside`.
    """
    within = [path, *([root] if root else [])]
    waiting, links, seen, passed = [os.fspath(path)], [], set(), 0
    while waiting or links:
        linked = not waiting  # links come last, so that a folder is listed where it is
        directory = (links if linked else waiting).pop(0)
        try:
            at = os.stat(directory)
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{directory}: {error.strerror}") from None
        if (at.st_dev, at.st_ino) in seen:
            passed += 1
            continue
        seen.add((at.st_dev, at.st_ino))
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        check_inside((entry.path for entry in entries if entry.is_symlink()), within)
        inner = [entry for entry in entries if os.path.isdir(entry)]  # of links too, and False for one in a circle
        for entry in inner:
            (links if entry.is_symlink() else waiting).append(entry.path)
        yield directory, [entry.name for entry in entries if entry not in inner]
    if passed:
        notice(f"{path}: links to folders that have already been read are skipped: {passed}")


def find_pictures(path: Path, suffix: str = "", ids: Path | None = None, root: str | Path = "") -> dict[str, Path]:
    """Pictures below a folder, {relative path without `suffix` and extension: file}; other files are told of.

    Args:
      path: searched recursively; hidden files and folders are skipped, and links to folders that are read anyway.
      suffix: selects pictures whose name ends in it, without extension or, such as "_rgb.jpg", with it; not part of the
        key.
      ids: list file of keys, one per line, with or without extension; selects and orders the result.
      root: of the data set, where links may lead.

    Raises:
      UserError: no pictures, duplicate keys, a list that names a missing picture or a picture twice.
    """
    pictures: dict[str, Path] = {}
    passed: Counter[str] = Counter()
    with_extension = suffix.lower().endswith(PICTURES)
    for directory, names in walk(folder(path), root):
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() not in PICTURES:
                passed[extension.lower()] += 1
                continue
            kept = name if with_extension else stem
            if not kept.endswith(suffix):
                continue
            key = Path(directory, kept[: len(kept) - len(suffix)]).relative_to(path).as_posix()
            if key in pictures:
                raise UserError(
                    f"{Path(directory, name)}: same name as {pictures[key].name}, so ids would repeat; rename one of "
                    f"them or, where labels lie beside pictures, choose by image_suffix={pictures[key].suffix!r}"
                )
            pictures[key] = Path(directory, name)
    tell_passed_over(path, "pictures" + (f" whose names end in {suffix!r}" if suffix else ""), passed, pictures)
    return dict(sorted(pictures.items())) if ids is None else select(pictures, ids, path)


def tell_passed_over(path: Path, wanted: str, passed: Mapping[str, int], found: Any) -> None:
    """Tells which files below a folder, {extension: count}, are none of those that are wanted; UserError if all are."""
    others = ", ".join(f"{count} {extension or 'without extension'}" for extension, count in sorted(passed.items()))
    if not found:
        raise UserError(f"{path}: no {wanted}" + (f", only {others}" if others else ""))
    if others:
        notice(f"{path}: files that are not {wanted} are skipped: {others}")


def key_in(pictures: Mapping[str, Any], name: str, where: Path) -> str | None:
    """The key that a list or table means by a name, with or without extension, quotes and the folder `where`.

    Returns:
      None if there is none.
    """
    for spelling in spellings(name.strip("\"'") or name):
        for one in (spelling, spelling.removeprefix(f"{where}/"), spelling.removeprefix(f"{where.name}/")):
            stem, extension = os.path.splitext(one)
            for key in (stem if extension.lower() in PICTURES else one, one):
                if key in pictures:
                    return key
    return None


def select(pictures: Mapping[str, Any], ids: Path, where: Path) -> dict[str, Any]:
    """The pictures that the list file `ids` names, in its order; `where` names their folder in error messages."""
    chosen: dict[str, Any] = {}
    for line in read_lines(ids):
        key = key_in(pictures, line, where)
        if key is None:
            raise UserError(f"{ids}: lists {line!r}, which is not in {where}")
        if key in chosen:
            raise UserError(f"{ids}: lists {line!r} twice")
        chosen[key] = pictures[key]
    return chosen
