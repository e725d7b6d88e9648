"""Names of files for the ids of examples, and back: folders as in the id, nothing that a file system takes another way.

    scenes/000012      scenes/000012
    pool/a:b.jpg       pool/a%3Ab.jpg
    pool/../secret     pool/%2E./secret

Letters, digits and some signs stay, everything else is percent-encoded UTF-8. What would be hidden (a leading dot), empty
or a folder of a picture's name is encoded too, and a part of more than 200 characters is broken over several folders, all
but the last of which end in "%". Different ids have different names; a file system that takes capitals for small letters
may still see two of them as one.
"""

import os
from urllib.parse import quote, unquote

from must.readers.files import PICTURES

_SAFE = " ()+=@"  # beside letters, digits and _.-~
_EMPTY, _DOT = "%-", "%2E"
_LONGEST = 200  # characters of one folder or file name, which may have 255 with its extension


def file_of(id: str) -> str:
    """The path of an example's files, relative and without extension."""
    *folders, last = id.split("/")
    return "/".join([*(_encoded(part, folder=True) for part in folders), _encoded(last, folder=False)])


def id_of(file: str) -> str:
    """Inverse of `file_of`."""
    parts, held = [], ""
    for part in file.split("/"):
        if part.endswith("%"):
            held += part[:-1]
        else:
            parts.append("" if part == _EMPTY else unquote(held + part))
            held = ""
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
