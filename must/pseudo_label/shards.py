"""Files that appear whole or not at all: shards, what TFDS reads about them, small JSON; and locks between workers."""

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from must.core import files
from must.core.types import UserError
from must.pseudo_label.infer import Row
from must.pseudo_label.plan import Plan
from must.readers.records import COMMITTED, record_count
from must.readers.tfds import write_tfds_info


class ShardFile:
    """One shard under a temporary name; a context manager that removes what was not moved to its place.

    Attributes:
      path: of the temporary file.
      ids: of the records written so far.
      rejects: [{"id", "reason"}] of the images that could not be read or labeled.
    """

    def __init__(self, folder: str, shard: int):
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path = os.path.join(folder, f"{shard:05d}.{secrets.token_hex(4)}.tmp")
        self.ids: list[str] = []
        self.rejects: list[dict[str, str]] = []
        files.create_empty(self.path)  # whose error tells whether the folder is gone; the writer's does not
        self._writer = ArrayRecordWriter(self.path, "group_size:1")  # one record per group: random access

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, *error: Any) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._writer.is_open():
                with self._there():
                    self._writer.close()
            os.remove(self.path)

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        """Turns the writer's error about a file that is gone into Python's: whoever finished has cleared it away."""
        try:
            yield
        except RuntimeError:
            if os.path.exists(self.path):
                raise
            raise FileNotFoundError(self.path) from None

    def add(self, rows: Sequence[Row]) -> None:
        """Appends the records."""
        for row in rows:
            if row.record is None:
                self.rejects.append({"id": row.id, "reason": row.reason})
            else:
                with self._there():
                    self._writer.write(row.record)
                self.ids.append(row.id)

    def close(self) -> dict[str, Any]:
        """Flushes to disk; the shard's entry in the done record."""
        with self._there():
            self._writer.close()
        _sync(self.path)
        if (count := record_count(self.path)) != len(self.ids):
            if not os.path.exists(self.path):  # a worker without locks, who has just finished, has cleared it away
                raise FileNotFoundError(self.path)
            raise UserError(f"{self.path}: {count} of {len(self.ids)} records arrived; is the disk full?")
        return {
            "count": len(self.ids),
            "bytes": os.path.getsize(self.path),
            "sha256": files.file_hash(self.path),
            "ids": self.ids,
            "rejects": self.rejects,
        }


def write_metadata(directory: str, work: str, plan: Plan, features: Any, shards: Sequence[dict[str, Any]]) -> None:
    """features.json and dataset_info.json, the latter last.

    Args:
      directory: of the dataset; its name is the version where it is one.
      work: folder for temporary files on the same file system.
      plan: names and split.
      features: tfds.features.FeaturesDict.
      shards: [{"count", "bytes"}] in order.
    """
    with tempfile.TemporaryDirectory(dir=work) as at:
        write_tfds_info(at, directory, plan.name, plan.split, features, shards)
        for file in sorted(os.listdir(at), key=lambda file: file == COMMITTED):
            _sync(os.path.join(at, file))
            move(os.path.join(at, file), os.path.join(directory, file))


def write_json(path: str, content: dict[str, Any], work: str, *, keep: bool = False) -> None:
    """See `write_text`; one line for each key at the top."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    write_text(path, f"{{\n{lines}\n}}\n", work, keep=keep)


def write_text(path: str, text: str, work: str, *, keep: bool = False) -> None:
    """A whole file, or none.

    Args:
      path: of the file.
      text: its content.
      work: folder for the temporary file, on the same file system.
      keep: a file that is there already stays, also when it comes at the same moment.
    """
    if keep:
        files.write_once(path, text, work)
    else:
        files.write_text(path, text, work=work)


def move(source: str, target: str) -> None:
    """Renames within a file system and flushes the folder."""
    os.replace(source, target)
    descriptor = os.open(os.path.dirname(target), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
