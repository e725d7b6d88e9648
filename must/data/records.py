"""A directory of records as a source: pseudo labels written by `must.pseudo_label.write`, clips by
`must.pseudo_label.clips`, or any labels in that layout.

    features.json, dataset_info.json            what TFDS needs to read it
    <name>-<split>.array_record-00000-of-00016  the records, `must.data.record_format`
    ids.txt                                     one id per record, in order
    provenance.json                             who labelled what, and count, bytes and SHA-256 of every file
"""

import bisect
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from must.core.types import ArraySpec, Example, Label, Source, UserError
from must.data.files import decode_picture
from must.data.frames import FrameVideo
from must.data.record_format import decode_record

COMMITTED, PROVENANCE, IDS = "dataset_info.json", "provenance.json", "ids.txt"


class Records:
    """The examples of one directory.

    Attributes:
      name, ids, classes, fingerprint: see `Source`.
      provenance: the content of provenance.json.
      specs: {task: {field: ArraySpec}} of the tasks that are read.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        split: str = "train",
        tasks: Sequence[str] | None = None,
        images: Source | None = None,
        verify: bool = True,
    ):
        """Opens the directory.

        Args:
          directory: holds dataset_info.json.
          split: that it must hold.
          tasks: whose labels are read; all by default.
          images: where the pictures are, by id, when the records hold none.
          verify: compare the SHA-256 of every file; otherwise only counts and sizes.

        Raises:
          UserError: not a complete directory of records, another split, an unknown task, a damaged file.
        """
        self._directory = os.fspath(directory)
        self.provenance = read_provenance(self._directory)
        if (stored_as := self.provenance.get("file_format", "array_record")) != "array_record":
            raise UserError(f"{self._directory}: holds {stored_as} files for tf.data, only array_record is read by index")
        if self.provenance["split"] != split:
            raise UserError(f"{self._directory}: holds split {self.provenance['split']!r}, not {split!r}")
        stored = self.provenance["tasks"]
        for task in tasks or ():
            if task not in stored:
                raise UserError(f"{self._directory}: holds no labels of {task!r}, only of {', '.join(stored)}")
        self.specs = {task: _specs(stored[task]["fields"]) for task in (stored if tasks is None else tasks)}
        self.classes = {task: tuple(stored[task]["classes"]) for task in self.specs if stored[task]["classes"]}
        self.name = self.provenance["name"]
        self._shards = self.provenance["shards"]
        self._starts = np.cumsum([0] + [shard["count"] for shard in self._shards]).tolist()
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        for file in [*self._shards, self.provenance["ids"]]:
            _check_file(self._directory, file, verify)
        with open(os.path.join(self._directory, IDS), encoding="utf-8") as lines:
            self.ids = tuple(lines.read().split("\n")[:-1])
        self.fingerprint = _hash([shard["sha256"] for shard in self._shards] + sorted(self.specs))
        self._images = images
        self._places = {id: i for i, id in enumerate(images.ids)} if images is not None else {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Example:
        id, data, labels = self._read(index)
        if isinstance(data, list):
            return Example(id, FrameVideo(data, f"{self._directory}: {id}"), labels)
        if data is not None:
            return Example(id, decode_picture(data, f"{self._directory}: {id}"), labels)
        if id not in self._places:
            raise UserError(f"{self._directory}: record {id} holds no picture and the source of images has none")
        return Example(id, self._images[self._places[id]].image, labels)

    def labels(self, index: int) -> dict[str, Label]:
        """The labels alone, without decoding the picture."""
        return self._read(index)[2]

    def encoded(self, index: int) -> bytes | None:
        """The picture as it is stored, PNG or JPEG, or None; a video's frames are encoded one by one, see `FrameVideo`."""
        data = self._read(index)[1]
        return None if isinstance(data, list) else data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _read(self, index: int) -> tuple[str, bytes | list[bytes] | None, dict[str, Label]]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._starts, index) - 1
        path = os.path.join(self._directory, self._shards[shard]["file"])
        try:
            (record,) = self._reader(shard, path).read([index - self._starts[shard]])
            return decode_record(record, self.specs)
        except Exception as error:  # the reader, the parser and zlib each have their own
            raise UserError(f"{path}: record {self.ids[index]} is damaged ({error})") from None

    def _reader(self, shard: int, path: str) -> Any:
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = _open(path)
            return self._readers[shard]


def read_provenance(directory: str) -> dict[str, Any]:
    """The content of provenance.json of a complete directory.

    Raises:
      UserError: not complete, or not records.
    """
    if not os.path.exists(os.path.join(directory, COMMITTED)):
        raise UserError(f"{directory}: no complete records here ({COMMITTED} is missing)")
    path = os.path.join(directory, PROVENANCE)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def file_hash(path: str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_count(path: str) -> int:
    """Records that a reader finds in a shard; UserError when it finds it damaged."""
    try:
        return _open(path).num_records()
    except Exception as error:  # the reader has types of its own
        raise UserError(f"{path}: damaged ({error})") from None


def stored_records(path: str) -> Iterator[bytes]:
    """The records of a shard in order, each a serialised tf.train.Example."""
    reader = _open(path)
    for index in range(reader.num_records()):
        yield reader.read([index])[0]


def _check_file(directory: str, entry: dict[str, Any], verify: bool) -> None:
    """Raises UserError unless the file is as it was committed; half an ArrayRecord opens as 0 records, silently."""
    path = os.path.join(directory, entry["file"])
    if not os.path.exists(path):
        raise UserError(f"{path}: missing")
    size = os.path.getsize(path)
    if size != entry["bytes"]:
        raise UserError(f"{path}: {size} bytes, {entry['bytes']} were written")
    if verify and file_hash(path) != entry["sha256"]:
        raise UserError(f"{path}: damaged, its SHA-256 is not that of {PROVENANCE}")
    if entry["file"] != IDS and (count := record_count(path)) != entry["count"]:
        raise UserError(f"{path}: {count} records, {entry['count']} were written")


def _open(path: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, "readahead_buffer_size:0")


def _specs(fields: dict[str, Any]) -> dict[str, ArraySpec]:
    return {name: ArraySpec(**{**spec, "shape": tuple(spec["shape"])}) for name, spec in fields.items()}


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
