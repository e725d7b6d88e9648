"""A directory of records as a source, such as pseudo labels.

features.json, dataset_info.json            metadata that TFDS needs to read it
<name>-<split>.array_record-00000-of-00016  the records, see `must.readers.record_format`
ids.txt                                     one id per record, in order
provenance.json                             labeler of each task; count, bytes and SHA-256 of every file
added/<name>/1.0.0                          tasks added later: a directory like this one, without the pictures
"""

import bisect
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from must.core import mirror, shard_cache
from must.core.arguments import path_of
from must.core.files import file_hash, read_bytes, read_sealed
from must.core.labels import broken_contract
from must.core.notices import notice
from must.core.types import ArraySpec, Example, Label, Source, UserError
from must.readers.fields import understood
from must.readers.frames import FrameVideo
from must.readers.pictures import read_picture, untagged
from must.readers.record_format import decode_record
from must.readers.tfrecords import TfRecordFile

COMMITTED, PROVENANCE, IDS = "dataset_info.json", "provenance.json", "ids.txt"
_ADDED = "added"


class Records:
    """The examples of one directory, including the tasks added to it later.

    Records that are missing from an addition have no label of its tasks; incomplete additions are ignored.

    Attributes:
      name, ids, classes: see `Source`.
      fingerprint: of the files that are read, including those of additions.
      provenance: the content of provenance.json; "tasks" includes the tasks of the additions, and "added" is
        {name: content of the addition's provenance.json}.
      specs: {task: {field: ArraySpec}} of the tasks that are read.

    Shards that lie in a bucket alone come when their first record is read, and are compared with their SHA-256 then.
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
          directory: contains dataset_info.json.
          split: the split it must contain.
          tasks: to read; all by default.
          images: source of the pictures, by id, if the records contain none.
          verify: compare the SHA-256 of every file; otherwise only counts and sizes.

        Raises:
          UserError: not a complete directory of records, wrong split, unknown task, damaged file, or an addition to
            different records or of a task that already exists.
        """
        self._directory = path_of(directory, "directory")
        with understood(os.path.join(self._directory, PROVENANCE)):
            self._read_facts(split, tasks, verify)
        self._images = images
        self._places = {id: i for i, id in enumerate(images.ids)} if images is not None else {}

    def _read_facts(self, split: str, tasks: Sequence[str] | None, verify: bool) -> None:
        self.provenance = read_provenance(self._directory)
        if self.provenance["split"] != split:
            raise UserError(f"{self._directory}: contains split {self.provenance['split']!r}, not {split!r}")
        own, added = self.provenance["tasks"], read_additions(self._directory)
        stored = _united(self._directory, own, added)
        self.provenance |= {"tasks": stored, "added": added}
        selected = tuple(stored if tasks is None else tasks)
        for task in selected:
            if task not in stored:
                raise UserError(f"{self._directory}: has no labels of {task!r}, only of {', '.join(stored)}")
        self.specs = {task: _specs(stored[task]["fields"]) for task in selected}
        self.classes = {task: tuple(stored[task]["classes"]) for task in selected if stored[task]["classes"]}
        self.name = self.provenance["name"]
        self._own = {task: self.specs[task] for task in selected if task in own}
        self._shards = self.provenance["shards"]
        self._starts = np.cumsum([0] + [shard["count"] for shard in self._shards]).tolist()
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        for file in [*self._shards, self.provenance["ids"]]:
            _check_file(self._directory, file, verify)
        self.ids = tuple(read_bytes(os.path.join(self._directory, IDS)).decode().split("\n")[:-1])
        hashes = [shard["sha256"] for shard in self._shards]
        self._added: list[tuple[Records, np.ndarray]] = []  # with the index in it of each record, -1 if missing
        for name, facts in added.items():
            path = addition_directory(self._directory, name)
            if facts["source"]["fingerprint"] != _hash([shard["sha256"] for shard in self._shards]):
                raise UserError(f"{path}: was added to different records; delete it and add the task again")
            if theirs := [task for task in selected if task in facts["tasks"]]:
                addition = Records(path, split=split, tasks=theirs, verify=verify)
                places = {id: i for i, id in enumerate(addition.ids)}
                self._added.append((addition, np.array([places.get(id, -1) for id in self.ids], np.int64)))
                hashes.append(addition.fingerprint)
        self.fingerprint = _hash(hashes + sorted(self._own))
        # Decided by what is the same on every machine and at every start, since the order of training follows from it.
        stated = shard_cache.stated_bound()
        size = sum(shard["bytes"] for shard in self._shards)
        stored = mirror.in_bucket(self._directory)
        self._by_shard = stored and stated is not None and size > stated
        if stored and stated is None and size > shard_cache.bound():
            notice(f"{self._directory}: larger than this disk; to train shard by shard, set {shard_cache.BOUND}")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Example:
        id, data, labels = self._read(index, self._own)
        labels |= self._added_labels(index)
        if isinstance(data, list):
            return Example(id, FrameVideo(data, f"{self._directory}: {id}"), labels)
        if data is not None:
            return Example(id, read_picture(data, f"{self._directory}: {id}"), labels)
        if id not in self._places:
            raise UserError(f"{self._directory}: record {id} has no picture, and neither does the source of images")
        return Example(id, self._images[self._places[id]].image, labels)

    def labels(self, index: int) -> dict[str, Label]:
        """The labels alone; the picture is not decoded."""
        return self._read(index, self._own)[2] | self._added_labels(index)

    def encoded(self, index: int) -> bytes | None:
        """The stored picture, PNG or JPEG; None without one and for videos, see `FrameVideo.encoded`."""
        data = self._read(index, {})[1]
        return untagged(data) if isinstance(data, bytes) else None

    def shard(self, index: int) -> tuple[str, int] | None:
        """The shard of a record of a bucket, where all shards together exceed $MUST_CACHE_GIB; None elsewhere."""
        return (self._directory, bisect.bisect_right(self._starts, index) - 1) if self._by_shard else None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _added_labels(self, index: int) -> dict[str, Label]:
        labels = {}
        for addition, places in self._added:
            if places[index] >= 0:
                labels |= addition.labels(int(places[index]))
        return labels

    def _read(
        self, index: int, specs: dict[str, dict[str, ArraySpec]]
    ) -> tuple[str, bytes | list[bytes] | None, dict[str, Label]]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._starts, index) - 1
        path = self._path(shard)
        try:
            (record,) = self._reader(shard).read([index - self._starts[shard]])
            found = decode_record(record, specs)
            for task, label in found[2].items():
                if problem := broken_contract(label, len(self.classes.get(task, ()))):
                    raise ValueError(f"{task}.{problem}")
            return found
        except UserError:
            raise
        except Exception as error:  # the reader, the parser and zlib each raise their own types
            raise UserError(f"{path}: record {self.ids[index]} is damaged ({error})") from None

    def _path(self, shard: int) -> str:
        return os.path.join(self._directory, self._shards[shard]["file"])

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if (reader := self._readers.get(shard)) is not None:
                return reader
        path = self._path(shard)
        with mirror.at_hand(path, self._shards[shard]["sha256"]) as here:
            reader = _open(here)
        with self._lock:
            if here != path:
                # Those opened first are closed: a file that is removed from the cache takes room until then.
                for other in list(self._readers)[: 1 - shard_cache.AT_A_TIME]:
                    del self._readers[other]
            return self._readers.setdefault(shard, reader)


def read_provenance(directory: str) -> dict[str, Any]:
    """The content of provenance.json; UserError if the directory has no complete records."""
    if not os.path.exists(os.path.join(directory, COMMITTED)):
        raise UserError(f"{directory}: no complete records here ({COMMITTED} is missing)")
    return read_sealed(os.path.join(directory, PROVENANCE))


def addition_directory(directory: str, name: str) -> str:
    """Directory of an addition to a directory of records."""
    return os.path.join(directory, _ADDED, name, "1.0.0")


def read_additions(directory: str) -> dict[str, dict[str, Any]]:
    """{name: content of provenance.json} of all complete additions to a directory of records."""
    paths = {name: addition_directory(directory, name) for name in addition_names(directory)}
    return {name: read_provenance(at) for name, at in paths.items() if os.path.exists(os.path.join(at, COMMITTED))}


def addition_names(directory: str) -> list[str]:
    """Names of all additions to a directory of records, complete or not."""
    top = os.path.join(directory, _ADDED)
    return sorted(os.listdir(top)) if os.path.isdir(top) else []


def record_count(path: str) -> int:
    """Number of records in a shard; UserError if it is damaged."""
    try:
        return _open(path).num_records()
    except Exception as error:  # the reader raises its own types
        raise UserError(f"{path}: damaged ({error})") from None


def stored_records(path: str) -> Iterator[bytes]:
    """The records of a shard in order, each a serialized tf.train.Example."""
    reader = _open(path)
    for index in range(reader.num_records()):
        yield reader.read([index])[0]


def _check_file(directory: str, entry: dict[str, Any], verify: bool) -> None:
    """Raises UserError unless the file is as written; a truncated ArrayRecord silently opens with 0 records."""
    path = os.path.join(directory, entry["file"])
    if os.path.basename(path) != entry["file"]:
        raise UserError(f"{os.path.join(directory, PROVENANCE)}: file {entry['file']!r} is not one of this folder")
    if (size := mirror.size_away(path)) is not None:
        if size != entry["bytes"]:
            raise UserError(f"{path}: has {size} bytes in the bucket, expected {entry['bytes']}")
        return
    if not os.path.isfile(path):
        raise UserError(f"{path}: " + ("not a regular file" if os.path.exists(path) else "missing"))
    size = os.path.getsize(path)
    if size != entry["bytes"]:
        raise UserError(f"{path}: has {size} bytes, expected {entry['bytes']}")
    if verify and file_hash(path) != entry["sha256"]:
        raise UserError(f"{path}: damaged, its SHA-256 differs from {PROVENANCE}")
    if entry["file"] != IDS and (count := record_count(path)) != entry["count"]:
        raise UserError(f"{path}: has {count} records, expected {entry['count']}")


def _open(path: str) -> Any:
    if ".tfrecord-" in os.path.basename(path):
        return TfRecordFile(path)
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, "readahead_buffer_size:0")


def _united(directory: str, own: dict[str, Any], added: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Provenance of the tasks of a directory and its additions; UserError for a task that exists twice."""
    tasks = dict(own)
    for name, facts in added.items():
        if twice := set(tasks) & set(facts["tasks"]):
            raise UserError(
                f"{addition_directory(directory, name)}: adds {min(twice)!r}, which already exists; delete one of them"
            )
        tasks |= facts["tasks"]
    return tasks


def _specs(fields: dict[str, Any]) -> dict[str, ArraySpec]:
    return {name: ArraySpec(**{**spec, "shape": tuple(spec["shape"])}) for name, spec in fields.items()}


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
