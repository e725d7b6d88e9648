"""Names of files: as text, as others spell them, and the files of examples by id."""

import contextlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from must.core.types import one_line

PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")


def readable(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 as Latin-1, control characters as %XX; others as they are."""
    try:
        name.encode()
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("latin-1")
    return one_line(name, "%{:02X}")


def class_name(name: str) -> str:
    """A class name in Unicode's composed form, since file systems and editors differ in it."""
    return unicodedata.normalize("NFC", readable(name))


def spellings(name: str) -> Iterator[str]:
    """A file name from a list or table as the file system may have it: slashes, normal forms, encodings, case."""
    for text in dict.fromkeys((name, name.strip(), name.replace("\\", "/").strip().removeprefix("./"))):
        forms = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
        for encoding in ("latin-1", "cp1252"):  # of the bytes of a name that is no UTF-8
            with contextlib.suppress(UnicodeEncodeError):
                forms.append(os.fsdecode(text.encode(encoding)))
        for form in dict.fromkeys(forms):
            yield form
            stem, extension = os.path.splitext(form)
            yield from (stem + extension.lower(), stem + extension.upper())


def existing(path: Path, name: str) -> str | None:
    """The name, relative to a folder, as it is spelled there; None if nothing has it."""
    return next((one for one in spellings(name) if os.path.exists(os.path.join(path, one))), None)


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
