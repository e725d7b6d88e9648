"""A directory of records as a source: pseudo labels written by `must.pseudo_label.write`, clips by
`must.pseudo_label.clips`, or any labels in that layout.

    features.json, dataset_info.json            what TFDS needs to read it
    <name>-<split>.array_record-00000-of-00016  the records, `must.readers.record_format`
    ids.txt                                     one id per record, in order
    provenance.json                             who labeled what, and count, bytes and SHA-256 of every file
    added/<name>/1.0.0                          tasks that came later: a directory like this one, without the pictures
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
from must.readers.files import decode_picture
from must.readers.frames import FrameVideo
from must.readers.record_format import decode_record

COMMITTED, PROVENANCE, IDS = "dataset_info.json", "provenance.json", "ids.txt"
_ADDED = "added"


class Records:
    """The examples of one directory, with the labels of the tasks that were added to it later.

    An addition may lack records, which then have no label of its tasks; one that is not complete is not seen.

    Attributes:
      name, ids, classes: see `Source`.
      fingerprint: of the files that are read, those of additions too.
      provenance: the content of provenance.json; "tasks" also has the tasks of the additions, and "added" is
        {name: content of the addition's own provenance.json}.
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
          UserError: not a complete directory of records, another split, an unknown task, a damaged file, an addition to
            other records than these or of a task that is there already.
        """
        self._directory = os.fspath(directory)
        self.provenance = read_provenance(self._directory)
        if (stored_as := self.provenance.get("file_format", "array_record")) != "array_record":
            raise UserError(
                f"{self._directory}: holds {stored_as} files for tf.data, only array_record is read by index"
            )
        if self.provenance["split"] != split:
            raise UserError(f"{self._directory}: holds split {self.provenance['split']!r}, not {split!r}")
        own, added = self.provenance["tasks"], read_additions(self._directory)
        stored = _united(self._directory, own, added)
        self.provenance |= {"tasks": stored, "added": added}
        wanted = tuple(stored if tasks is None else tasks)
        for task in wanted:
            if task not in stored:
                raise UserError(f"{self._directory}: holds no labels of {task!r}, only of {', '.join(stored)}")
        self.specs = {task: _specs(stored[task]["fields"]) for task in wanted}
        self.classes = {task: tuple(stored[task]["classes"]) for task in wanted if stored[task]["classes"]}
        self.name = self.provenance["name"]
        self._own = {task: self.specs[task] for task in wanted if task in own}
        self._shards = self.provenance["shards"]
        self._starts = np.cumsum([0] + [shard["count"] for shard in self._shards]).tolist()
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        for file in [*self._shards, self.provenance["ids"]]:
            _check_file(self._directory, file, verify)
        with open(os.path.join(self._directory, IDS), encoding="utf-8") as lines:
            self.ids = tuple(lines.read().split("\n")[:-1])
        hashes = [shard["sha256"] for shard in self._shards]
        self._added: list[tuple[Records, np.ndarray]] = []  # and the place there of each of our records, -1 without one
        for name, facts in added.items():
            path = addition_directory(self._directory, name)
            if facts["source"]["fingerprint"] != _hash([shard["sha256"] for shard in self._shards]):
                raise UserError(f"{path}: was added to other records than these; it can be deleted")
            if theirs := [task for task in wanted if task in facts["tasks"]]:
                addition = Records(path, split=split, tasks=theirs, verify=verify)
                places = {id: i for i, id in enumerate(addition.ids)}
                self._added.append((addition, np.array([places.get(id, -1) for id in self.ids], np.int64)))
                hashes.append(addition.fingerprint)
        self.fingerprint = _hash(hashes + sorted(self._own))
        self._images = images
        self._places = {id: i for i, id in enumerate(images.ids)} if images is not None else {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Example:
        id, data, labels = self._read(index, self._own)
        labels |= self._added_labels(index)
        if isinstance(data, list):
            return Example(id, FrameVideo(data, f"{self._directory}: {id}"), labels)
        if data is not None:
            return Example(id, decode_picture(data, f"{self._directory}: {id}"), labels)
        if id not in self._places:
            raise UserError(f"{self._directory}: record {id} holds no picture and the source of images has none")
        return Example(id, self._images[self._places[id]].image, labels)

    def labels(self, index: int) -> dict[str, Label]:
        """The labels alone, without decoding the picture."""
        return self._read(index, self._own)[2] | self._added_labels(index)

    def encoded(self, index: int) -> bytes | None:
        """The picture as it is stored, PNG or JPEG, or None; a video's frames are encoded one by one, see `FrameVideo`."""
        data = self._read(index, {})[1]
        return None if isinstance(data, list) else data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _added_labels(self, index: int) -> dict[str, Label]:
        found = {}
        for addition, places in self._added:
            if places[index] >= 0:
                found |= addition.labels(int(places[index]))
        return found

    def _read(
        self, index: int, specs: dict[str, dict[str, ArraySpec]]
    ) -> tuple[str, bytes | list[bytes] | None, dict[str, Label]]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._starts, index) - 1
        path = os.path.join(self._directory, self._shards[shard]["file"])
        try:
            (record,) = self._reader(shard, path).read([index - self._starts[shard]])
            return decode_record(record, specs)
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


def addition_directory(directory: str, name: str) -> str:
    """Where the labels lie that were added to a directory of records under a name."""
    return os.path.join(directory, _ADDED, name, "1.0.0")


def read_additions(directory: str) -> dict[str, dict[str, Any]]:
    """{name: content of provenance.json} of the complete additions to a directory of records, by name."""
    paths = {name: addition_directory(directory, name) for name in addition_names(directory)}
    return {name: read_provenance(at) for name, at in paths.items() if os.path.exists(os.path.join(at, COMMITTED))}


def addition_names(directory: str) -> list[str]:
    """Of all additions to a directory of records, complete or not."""
    top = os.path.join(directory, _ADDED)
    return sorted(os.listdir(top)) if os.path.isdir(top) else []


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
    """The records of a shard in order, each a serialized tf.train.Example."""
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


def _united(directory: str, own: dict[str, Any], added: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What provenance says of the tasks of a directory and of its additions."""
    tasks = dict(own)
    for name, facts in added.items():
        if twice := set(tasks) & set(facts["tasks"]):
            raise UserError(f"{addition_directory(directory, name)}: labels {min(twice)!r}, which is there already")
        tasks |= facts["tasks"]
    return tasks


def _specs(fields: dict[str, Any]) -> dict[str, ArraySpec]:
    return {name: ArraySpec(**{**spec, "shape": tuple(spec["shape"])}) for name, spec in fields.items()}


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
