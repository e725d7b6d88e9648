"""A cache of files by their hash on this machine's disk, for what lies in a bucket and is too large to copy whole."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator

from must.core import files
from must.core.types import UserError

BOUND = "MUST_CACHE_GIB"
AT_A_TIME = 4  # shards that a process reads from by turns, which the cache should have room for
_SHARE = 0.8  # of the free disk, by default
_FOLDER = "shards"


def scratch() -> str:
    """Folder of this machine for copies of what lies in buckets: $MUST_SCRATCH, or one below ~/.cache."""
    return os.environ.get("MUST_SCRATCH") or os.path.expanduser("~/.cache/must/buckets")


def stated_bound() -> int | None:
    """Bytes of $MUST_CACHE_GIB, which is the same on every machine of a run; None without it.

    Raises:
      UserError: it is no positive number.
    """
    if not (text := os.environ.get(BOUND)):
        return None
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise UserError(f"{BOUND}={text}: expected GiB, more than 0")
    return int(gib * 2**30)


def bound() -> int:
    """Bytes that the cache may take: `stated_bound`, or four fifths of what the disk has for it."""
    if (stated := stated_bound()) is not None:
        return stated
    folder = os.path.join(scratch(), _FOLDER)
    os.makedirs(folder, exist_ok=True)
    return int(_SHARE * (shutil.disk_usage(folder).free + sum(size for _, size, _ in _held(folder))))


@contextlib.contextmanager
def held(sha256: str, name: str, size: int, fetch: Callable[[str], None]) -> Iterator[str]:
    """The path of a file of the cache, which nobody removes in this block; what was used longest ago makes room for it.

    Whoever opens the file here can read on after its removal. Files that are held come on top of the bound.

    Args:
      sha256: of the file.
      name: its last part, which the path ends with.
      size: in bytes.
      fetch: (path) writes the file there, unless it is in the cache.

    Raises:
      UserError: it is larger than the whole cache, or what was fetched has another hash.
    """
    folder = os.path.join(scratch(), _FOLDER)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{sha256}-{name}")
    with files.lock(f"{path}.lock", wait=True):
        if not _used(path):
            if size > (most := bound()):
                raise UserError(f"{name}: has {size} bytes, more than the cache of {most}; raise {BOUND}")
            with files.lock(os.path.join(folder, "lock"), wait=True):
                _make_room(folder, most - size)
            with tempfile.TemporaryDirectory(dir=folder, suffix=".partial") as at:
                fetch(partial := os.path.join(at, name))
                if (found := files.file_hash(partial)) != sha256:
                    raise UserError(f"{name}: damaged in the bucket, its SHA-256 is {found}, not {sha256}")
                os.replace(partial, path)
        yield path


def _used(path: str) -> bool:
    """Marks a file as used now; False if it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _make_room(folder: str, most: int) -> None:
    """Removes what was used longest ago, and is not held, until at most so many bytes are left."""
    there = _held(folder)
    left = sum(size for _, size, _ in there)
    for _, size, path in there:
        if left <= most:
            return
        with files.lock(f"{path}.lock") as free:
            if free:
                os.remove(path)
                left -= size


def _held(folder: str) -> list[tuple[int, int, str]]:
    """(last use in ns, bytes, path) of the files, what was used longest ago first."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file() and not entry.name.endswith("lock"):
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat()
                    found.append((facts.st_mtime_ns, facts.st_size, entry.path))
    return sorted(found)
