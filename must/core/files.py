"""Whole files, read and written; no other module opens a path for writing.

Files are written beside their destination under a temporary name, flushed to disk and renamed, so that readers see the
old or the new content, never a part of it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from must.core import memory
from must.core.types import UserError


class MissingFile(UserError):
    """A file is not there, which is normal while other processes are working."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w", *, work: str | None = None, **options: Any) -> Iterator[IO]:
    """Opens a file that replaces `path` when the block ends without an exception.

    Args:
      path: destination; its directory is created if missing.
      mode: of `open`, for writing.
      work: directory for the temporary file, on the same file system; by default the destination's. A killed process
        leaves its temporary file behind.
      **options: of `open`; text is UTF-8 by default.

    Raises:
      OSError: the file cannot be written; the destination keeps its old content.
    """
    path = os.path.realpath(path)  # a link stays one, and what it leads to is replaced
    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    handle, temporary = tempfile.mkstemp(prefix=f".{name[:40]}.", suffix=".partial", dir=work or directory)
    try:
        # mkstemp creates files that only their owner can read.
        os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode) if os.path.exists(path) else 0o666 & ~_umask())
        with os.fdopen(handle, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None and error.errno in _NO_SPACE:  # of `write`
            raise OSError(error.errno, error.strerror, path) from None
        raise


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file of bytes."""
    with replacing(path, "wb") as file:
        file.write(content)


def write_text(path: str | os.PathLike, content: str, *, work: str | None = None) -> None:
    """Writes a whole text file, UTF-8 without newline translation; `work` as in `replacing`."""
    with replacing(path, newline="", work=work) as file:
        file.write(content)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a whole JSON file, indented by one space."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """The content of a file that this package wrote.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError, MemoryError):
        raise UserError(f"{path}: damaged, it is not JSON") from None


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content in JSON types with a hash of itself, for files whose edited digits would silently change results."""
    content = json.loads(json.dumps({key: value for key, value in content.items() if key != _SEAL}))
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, _SEAL: digest}


def read_sealed(path: str | os.PathLike) -> dict[str, Any]:
    """The content that `sealed` made; that of earlier versions has no hash.

    Raises:
      UserError: it is missing, damaged or changed.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged, it is no JSON object")
    if content.get(_SEAL, found := sealed(content)[_SEAL]) != found:
        raise UserError(f"{path}: changed or damaged, its content does not match its hash")
    return content


def read_bytes(path: str | os.PathLike, most: int = -1) -> bytes:
    """The file's content, or its first `most` bytes.

    Raises:
      MissingFile: it is not there.
      UserError: it cannot be read, is a pipe or device, or larger than the free memory.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: " + ("Is a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"))
        if most < 0 and found.st_size > _LARGE and found.st_size > memory.available():
            raise MemoryError
        with open(path, "rb") as file:
            return file.read(most)
    except MemoryError:
        raise UserError(f"{path}: {found.st_size:,} bytes, too large for the memory of this machine") from None
    except FileNotFoundError as error:
        raise MissingFile(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def write_plain(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file in place, for the many small files of a directory that another file marks as complete."""
    with open(path, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def whole_directory(path: str | os.PathLike, *, replace: bool = False) -> Iterator[str]:
    """Yields the name of a new directory, which becomes `path` when the block ends without an exception.

    Args:
      path: destination, missing or empty; of one writer at a time. A temporary directory left by a killed process is
        removed first.
      replace: replace a destination that is not empty. A kill leaves the old or the new content; an old one that was
        moved aside comes back at the next call.

    Raises:
      OSError: the destination is not empty; the temporary directory is removed.
    """
    path = os.fspath(path).rstrip(os.sep)
    temporary, aside = f"{path}.partial", f"{path}.replaced"
    if os.path.isdir(aside) and not os.path.exists(path):
        os.replace(aside, path)
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    try:
        yield temporary
        if replace and os.path.isdir(path):
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
        os.replace(temporary, path)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_once(path: str | os.PathLike, content: str, work: str | os.PathLike) -> None:
    """Writes a whole text file unless it exists; safe if several processes do so at once.

    Args:
      path: destination.
      content: of the file.
      work: directory for the temporary file, on the same file system.
    """
    temporary = os.path.join(work, f"{os.path.basename(path)}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with lock(f"{path}.lock", wait=True):
                if not os.path.exists(path):
                    os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def lock(path: str, *, wait: bool = False) -> Iterator[bool]:
    """Whether we hold the lock; the system drops it when the process dies.

    Where the file system has no locks everyone holds it: workers then may do a shard twice, with the same bytes. Nobody
    holds one whose folder is gone.
    """
    try:
        file = open(path, "a")  # noqa: SIM115 - closed below, where the lock ends; its time stays
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_space(directory: str | os.PathLike, size: int) -> None:
    """Raises OSError unless a directory's file system has room for two copies of `size` bytes, and a little more.

    Orbax writes arrays twice before it commits them, and its threads print a traceback each when the disk is full.
    """
    if shutil.disk_usage(directory).free < 2 * size + (1 << 18):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(directory))


def out_of_space(error: BaseException) -> bool:
    """Whether a full disk, a quota or a limit on the size of files is behind an exception, also one of native code."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in _NO_SPACE or any(os.strerror(code) in str(cause) for code in _NO_SPACE):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


_SEAL = "seal"
_LARGE = 1 << 28  # bytes; below, nobody asks what is free
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of file systems without hard links: FAT, exFAT, many network and FUSE mounts.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


def create_empty(path: str | os.PathLike) -> None:
    """Creates an empty file.

    Raises:
      OSError: the file exists, or its directory does not.
    """
    open(path, "xb").close()


def append_text(path: str | os.PathLike, content: str) -> None:
    """Appends to a text file, for logs; a killed writer may leave a partial last line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(content)
