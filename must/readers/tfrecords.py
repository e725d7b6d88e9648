"""TFRecord files, the usual form of prepared TFDS data sets, read at random places without TensorFlow."""

import functools
import mmap
import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from must.core.files import read_bytes
from must.core.types import UserError


class TfRecordFile:
    """The records of one file, by position.

    Args:
      path: of the file; it is scanned once for the beginnings of its records.

    Raises:
      UserError: truncated or compressed.
    """

    def __init__(self, path: str):
        self._path = str(path)
        self._spans = _spans(self._path)

    def num_records(self) -> int:
        return len(self._spans)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        with open(self._path, "rb") as file:
            return [self._one(file, *self._spans[index]) for index in indices]

    def _one(self, file: Any, start: int, length: int) -> bytes:
        file.seek(start)
        return file.read(length)


class TfRecordRows:
    """The decoded rows of a split, like TFDS's own data source for files with random access.

    Args:
      info: tfds.core.DatasetInfo.
      spans: [(name of the split, positions in it)].
      decoders: of features.
    """

    def __init__(self, info: Any, spans: Sequence[tuple[str, range]], decoders: Any):
        self._features, self._decoders, self._open = info.features, decoders, functools.cache(TfRecordFile)
        self._places: list[tuple[str, int]] = []
        for name, wanted in spans:
            split = info.splits[name]
            starts = np.cumsum([0, *split.shard_lengths])
            for path, start, stop in zip(split.filepaths, starts[:-1], starts[1:], strict=True):
                mine = range(max(wanted.start, start), min(wanted.stop, stop))
                self._places += [(str(path), int(i - start)) for i in mine]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        path, place = self._places[index]
        return self._features.deserialize_example_np(self._open(path).read([place])[0], decoders=self._decoders)


def _spans(path: str) -> np.ndarray:
    """(start, length) of the records, int64 [N, 2]: each is framed by its length, two checksums and nothing else."""
    try:
        if not os.path.isfile(path):
            read_bytes(path)  # which says why not
        with open(path, "rb") as file:
            if not file.read(1):
                return np.zeros((0, 2), np.int64)
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    found, at, end = [], 0, len(content)
    if content[:2] == b"\x1f\x8b":
        raise UserError(f"{path}: compressed TFRecord files cannot be read; unpack it with gunzip")
    while at < end:
        length = struct.unpack("<Q", content[at : at + 8])[0] if at + 8 <= end else end
        if at + length + 16 > end:
            raise UserError(f"{path}: truncated after {len(found):,} records")
        found.append((at + 12, length))
        at += length + 16
    return np.array(found, np.int64)
