"""Records on disk: shards that any number of workers can write, be killed at, and finish with the same bytes.

A shard is written to a temporary file, flushed to disk, hashed, renamed to its place and then recorded as done; the
last act of the last worker is dataset_info.json, without which nobody reads the directory. Until then what the workers
know of each other stands in `unfinished/` beside the shards. No time, host or path enters any file that stays.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from must.core.types import Source, Teacher, UserError
from must.data.record_format import features_of
from must.data.records import COMMITTED, IDS, PROVENANCE, file_hash, read_provenance
from must.pseudo_label.infer import Labeller, Row
from must.pseudo_label.plan import Plan, first_difference, identity, make_plan

_WORK, _REJECTS = "unfinished", "rejects.jsonl"
_POLL = 0.1  # seconds between looks at the shards that other workers hold


class Summary(NamedTuple):
    """What a directory of records holds.

    Attributes:
      directory: where.
      records: number of records.
      rejects: images that could not be read.
      bytes: of all shards.
    """

    directory: str
    records: int
    rejects: int
    bytes: int


def label_images(
    directory: str | os.PathLike,
    name: str,
    source: Source,
    teachers: Sequence[Teacher],
    *,
    split: str = "train",
    shards: int = 16,
    batch_size: int = 64,
    copy_images: bool = True,
    worker: tuple[int, int] = (0, 1),
    provenance: dict[str, Any] | None = None,
    max_rejects: float = 0.001,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Labels every image of a source with every teacher and returns when the directory is complete.

    Each image is decoded once for all teachers. A call on a complete directory returns at once; one on an incomplete
    directory does what is missing. The bytes depend on the arguments up to `copy_images` and on `provenance`, and on
    the arithmetic of the device, not on the workers.

    Args:
      directory: of the dataset, "<...>/<name>/<version>".
      name: of the dataset, lower case.
      source: images; may offer `encoded(index) -> bytes`, JPEG or PNG that is copied instead of encoded anew.
      teachers: each task by one of them.
      split: of the dataset.
      shards: number of files.
      batch_size: images of one forward pass; all batches have this size.
      copy_images: store the pictures; otherwise records refer to them by id.
      worker: (index, count); starts with the shards index, index + count, ..., then takes what others left.
      provenance: further facts that the labels depend on, for provenance.json.
      max_rejects: fraction of the images that may be unreadable.
      progress: (done, total) images of this worker's knowledge.

    Raises:
      UserError: the directory belongs to other teachers, another source or another plan; too many images cannot be
        read (rejects.jsonl lists them); or a teacher's labels cannot be right.
    """
    directory = os.path.abspath(os.fspath(directory))
    plan = make_plan(name, split, source, shards=shards, batch_size=batch_size)
    wanted = identity(plan, source, teachers, provenance or {}, copy_images=copy_images)
    job = _Job(directory, plan, int(max_rejects * plan.count), progress)
    if job.claim(wanted):
        specs = {key: task.label_spec() for teacher in teachers for key, task in teacher.tasks.items()}
        order = sorted(range(plan.shards), key=lambda shard: ((shard - worker[0]) % worker[1] != 0, shard))
        with Labeller(source, teachers, plan.batch_size, copy_images=copy_images) as labeller:
            while not job.complete():
                job.label(labeller, order)
                if job.missing():
                    time.sleep(_POLL)  # the rest is being written by others; what they leave when killed is ours
                else:
                    job.commit(wanted, lambda: features_of(specs, images=copy_images))
    shutil.rmtree(job.work, ignore_errors=True)
    found = read_provenance(directory)
    size = sum(shard["bytes"] for shard in found["shards"])
    return Summary(directory, sum(shard["count"] for shard in found["shards"]), found["rejects"]["count"], size)


class _Job:
    """One worker's view of a directory that is being written."""

    def __init__(self, directory: str, plan: Plan, bound: int, progress: Callable[[int, int], None] | None):
        self.directory, self.plan, self.bound, self.progress = directory, plan, bound, progress
        self.work = os.path.join(directory, _WORK)

    def complete(self) -> bool:
        return os.path.exists(os.path.join(self.directory, COMMITTED))

    def claim(self, wanted: dict[str, Any]) -> bool:
        """Makes the directory ours, or joins those whose it is; False when it is complete."""
        if not self.complete():
            os.makedirs(self.work, exist_ok=True)
            path = os.path.join(self.work, "identity.json")
            if not os.path.exists(path):
                _write_json(path, wanted)  # two at once: the same, or the loser's first shard finds out
            with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
                self._compare(json.load(file), wanted)
                return True
        there = read_provenance(self.directory)
        self._compare({key: there.get(key) for key in wanted}, wanted)
        return False

    def _compare(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        if difference := first_difference(there, here):
            raise UserError(f"{self.directory}: belongs to another label pass, {difference}")

    def done(self, shard: int) -> dict[str, Any] | None:
        """What the done record of a shard says, or None."""
        try:
            with open(self._done_path(shard), encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return None

    def missing(self) -> list[int]:
        return [shard for shard in range(self.plan.shards) if not os.path.exists(self._done_path(shard))]

    def label(self, labeller: Labeller, order: Sequence[int]) -> None:
        """Writes the shards that are neither done nor being written by another worker."""
        with contextlib.ExitStack() as stack:
            held: dict[int, contextlib.ExitStack] = {}

            def batches() -> Iterator[tuple[tuple[int, bool], range]]:
                for shard in order:
                    lock = stack.enter_context(contextlib.ExitStack())
                    if self._undone(shard) and lock.enter_context(_lock(self._lock_path(shard))) and self._undone(shard):
                        held[shard] = lock
                        parts = self.plan.batches(shard)
                        yield from (((shard, part is parts[-1]), part) for part in parts)
                    else:
                        lock.close()

            shard_file = None
            for (shard, last), rows in labeller.run(batches()):
                shard_file = shard_file or stack.enter_context(_ShardFile(self.work, shard))
                shard_file.add(rows)
                if shard_file.rejects:
                    self._check_rejects(shard, shard_file.rejects)
                if last:
                    self._finish(shard, shard_file)
                    held.pop(shard).close()
                    shard_file = None

    def _undone(self, shard: int) -> bool:
        return not (os.path.exists(self._done_path(shard)) or self.complete())

    def _finish(self, shard: int, file: "_ShardFile") -> None:
        entry = file.close()
        if self.done(shard) is None and not self.complete():
            os.replace(file.path, os.path.join(self.directory, self.plan.file(shard)))
            _sync_directory(self.directory)
            _write_json(self._done_path(shard), {"file": self.plan.file(shard), **entry})
        if self.progress:
            known = [self.done(k) for k in range(self.plan.shards)]
            done = sum(len(entry["ids"]) + len(entry["rejects"]) for entry in known if entry)
            self.progress(done, self.plan.count)

    def _check_rejects(self, shard: int, rejects: list[dict[str, str]]) -> None:
        """Raises UserError, and leaves the list behind, when more images than allowed cannot be read."""
        entries = [self.done(k) for k in range(self.plan.shards) if k != shard]
        known = [reject for entry in entries if entry for reject in entry["rejects"]] + rejects
        if len(known) > self.bound:
            path = os.path.join(self.directory, _REJECTS)
            _write(path, "".join(json.dumps(reject) + "\n" for reject in known))
            last = known[-1]
            raise UserError(
                f"{path}: {len(known)} images cannot be read, max_rejects allows {self.bound}; {last['id']}: {last['reason']}"
            )

    def commit(self, wanted: dict[str, Any], features: Callable[[], Any]) -> None:
        """Checks every shard against its done record, then writes the metadata; dataset_info.json is the last act."""
        with _lock(os.path.join(self.work, "commit.lock"), wait=True):
            if self.complete():
                return
            entries = [self.done(shard) for shard in range(self.plan.shards)]
            for shard, entry in enumerate(entries):
                path = os.path.join(self.directory, self.plan.file(shard))
                if entry is None or not os.path.exists(path) or file_hash(path) != entry["sha256"]:
                    # Overwritten without a lock, or damaged since: label it again.
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(self._done_path(shard))
                    return
            rejects = [reject for entry in entries for reject in entry["rejects"]]
            ids = "".join(f"{id}\n" for entry in entries for id in entry["ids"])
            _write(os.path.join(self.directory, IDS), ids)
            _write(os.path.join(self.directory, _REJECTS), "".join(json.dumps(reject) + "\n" for reject in rejects))
            shards = [{key: entry[key] for key in ("file", "count", "bytes", "sha256")} for entry in entries]
            facts = {
                **wanted,
                "rejects": {"file": _REJECTS, "count": len(rejects)},
                "ids": {"file": IDS, "bytes": len(ids.encode()), "sha256": hashlib.sha256(ids.encode()).hexdigest()},
                "shards": shards,
            }
            _write_json(os.path.join(self.directory, PROVENANCE), facts)
            _write_tfds(self.directory, self.work, self.plan, features(), shards)

    def _done_path(self, shard: int) -> str:
        return os.path.join(self.work, f"{shard:05d}.done.json")

    def _lock_path(self, shard: int) -> str:
        return os.path.join(self.work, f"{shard:05d}.lock")


class _ShardFile:
    """The temporary file of one shard."""

    def __init__(self, work: str, shard: int):
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path = os.path.join(work, f"{shard:05d}.{secrets.token_hex(4)}.tmp")
        self.ids: list[str] = []
        self.rejects: list[dict[str, str]] = []
        self._writer = ArrayRecordWriter(self.path, "group_size:1")  # one record per group: random access

    def __enter__(self) -> "_ShardFile":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer.is_open():
            self._writer.close()
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path)

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.record is None:
                self.rejects.append({"id": row.id, "reason": row.reason})
            else:
                self._writer.write(row.record)
                self.ids.append(row.id)

    def close(self) -> dict[str, Any]:
        """On disk, with what the done record says of it."""
        self._writer.close()
        _sync(self.path)
        return {
            "count": len(self.ids),
            "bytes": os.path.getsize(self.path),
            "sha256": file_hash(self.path),
            "ids": self.ids,
            "rejects": self.rejects,
        }


def _write_tfds(directory: str, work: str, plan: Plan, features: Any, shards: Sequence[dict[str, Any]]) -> None:
    """features.json and dataset_info.json, the latter appearing whole and last."""
    import tensorflow_datasets as tfds

    version = os.path.basename(directory)
    if not tfds.core.Version.is_valid(version):
        version = "1.0.0"
    with tempfile.TemporaryDirectory(dir=work) as at:
        template = tfds.core.ShardedFileTemplate(
            data_dir=at, dataset_name=plan.name, split=plan.split, filetype_suffix="array_record"
        )
        split = tfds.core.SplitInfo(
            name=plan.split,
            shard_lengths=[shard["count"] for shard in shards],
            num_bytes=sum(shard["bytes"] for shard in shards),
            filename_template=template,
        )
        info = tfds.core.DatasetInfo(
            builder=tfds.core.dataset_info.DatasetIdentity(
                name=plan.name, version=tfds.core.Version(version), data_dir=at, module_name=""
            ),
            features=features,
        )
        info.set_file_format("array_record")
        info.set_splits(tfds.core.splits.SplitDict([split]))
        info.write_to_directory(at)
        for file in sorted(os.listdir(at), key=lambda file: file == COMMITTED):
            _sync(os.path.join(at, file))
            os.replace(os.path.join(at, file), os.path.join(directory, file))
            _sync_directory(directory)


@contextlib.contextmanager
def _lock(path: str, wait: bool = False) -> Iterator[bool]:
    """Whether we hold the lock; the system drops it when the process dies.

    Where the file system has no locks everyone holds it: workers then may do a shard twice, with the same bytes.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def _write_json(path: str, content: Any) -> None:
    _write(path, json.dumps(content, indent=1) + "\n")


def _write(path: str, text: str) -> None:
    """A whole file or none."""
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_directory(os.path.dirname(path))


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
