"""The label pass: records on disk that any number of workers can write, be killed at, and finish with the same bytes.

A shard is written to a temporary file, flushed to disk, hashed, renamed to its place and then recorded as done; the
last act of the last worker is dataset_info.json, without which nobody reads the directory. Until then what the workers
know of each other stands in `unfinished/` beside the shards. No time, host or path enters any file that stays.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from must.core import buckets, files, mirror
from must.core.arguments import path_of
from must.core.notices import notice
from must.core.types import Source, Teacher, UserError
from must.data.rejects import Reject, bound, refuse_beyond
from must.pseudo_label.infer import Labeller
from must.pseudo_label.plan import Plan, code_version, first_difference, identity, make_plan
from must.pseudo_label.shards import ShardFile, move, write_json, write_metadata, write_text
from must.readers.record_format import features_of
from must.readers.records import (
    COMMITTED,
    IDS,
    PROVENANCE,
    Records,
    addition_directory,
    addition_names,
    read_additions,
    read_provenance,
)

_WORK, _CLAIM, _REJECTS = "unfinished", "identity.json", "rejects.jsonl"
_POLL = 0.1  # seconds between looks at the shards that other workers hold


class Summary(NamedTuple):
    """What a directory of records holds.

    Attributes:
      directory: where.
      records: number of records.
      rejects: number of images that could not be read or labeled.
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
    keep_aspect: bool = True,
    provenance: dict[str, Any] | None = None,
    worker: tuple[int, int] = (0, 1),
    max_rejects: float = 0.001,
    patience: float = 600.0,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Labels every image of a source with every teacher, and returns when the directory is complete.

    Each image is decoded once for all teachers. A call on a complete directory returns at once; one on an incomplete
    directory does what is missing. The bytes depend on the arguments up to `provenance` and on the arithmetic of the
    device, not on the workers.

    Args:
      directory: of the dataset, "<...>/<name>/<version>".
      name: of the dataset, lower case.
      source: images; may offer `encoded(index) -> bytes`, JPEG or PNG that is copied instead of encoded anew.
      teachers: each task by one of them.
      split: of the dataset.
      shards: number of files; fewer where there are fewer batches.
      batch_size: images of one forward pass; all batches have this size.
      copy_images: store the pictures; otherwise records refer to them by id.
      keep_aspect: pad the images to the teachers' input size instead of stretching them.
      provenance: further facts that the labels depend on, for provenance.json.
      worker: (index, count); starts with the shards index, index + count, ..., then takes what others left.
      max_rejects: fraction of the images that may be left out, since they cannot be read or a teacher predicts NaN
        for them, rounded down: not one of fewer than 1,000 by default.
      patience: seconds without a batch after which the shards of a worker that is stopped or hangs are taken over.
      progress: called with (done, total) images, as far as this worker knows.

    Raises:
      UserError: the directory belongs to other teachers, another source or another plan; too many images cannot be
        read or labeled (rejects.jsonl lists them); or a teacher's labels cannot be right.
    """
    looks = {"copy_images": copy_images, "keep_aspect": keep_aspect}
    named = {"split": split, "shards": shards, "batch_size": batch_size, "provenance": provenance}
    named |= {"max_rejects": max_rejects, "patience": patience, "progress": progress}
    job, expected = begin(directory, name, source, teachers, looks, **named)
    if job.claim(expected):
        bucket = buckets.current() if worker[1] > 1 else None
        order = _order(job.plan.shards, worker, alone=bucket is not None)
        with Labeller(source, teachers, job.plan.batch_size, **looks) as labeller:
            while not job.complete():
                try:
                    job.label(labeller, order)
                    if bucket is not None:
                        bucket.push()
                        bucket.pull(ahead=True)
                    if not job.missing() and (bucket is None or worker[0] == 0):
                        job.commit(expected, lambda: features_of(labeller.specs, images=copy_images))
                    if not job.complete():
                        time.sleep(_POLL)  # others write the rest; what they leave when they die is ours
                except FileNotFoundError:
                    if not job.complete():  # then the one who completed it has cleared the work folder away
                        raise
    shutil.rmtree(job.work, ignore_errors=True)
    facts = read_provenance(job.directory)
    counts, sizes = ([shard[key] for shard in facts["shards"]] for key in ("count", "bytes"))
    return Summary(job.directory, sum(counts), facts["rejects"]["count"], sum(sizes))


def begin(
    directory: str | os.PathLike,
    name: str,
    source: Source,
    teachers: Sequence[Teacher],
    looks: dict[str, bool],
    *,
    split: str,
    shards: int,
    batch_size: int,
    provenance: dict[str, Any] | None,
    max_rejects: float,
    patience: float,
    progress: Callable[[int, int], None] | None,
) -> tuple["Job", dict[str, Any]]:
    """(a worker's view of the directory, the identity to claim it by); arguments as of `label_images`."""
    plan = make_plan(name, split, source, shards=shards, batch_size=batch_size)
    expected = identity(plan, source, teachers, provenance or {}, **looks)
    directory = os.path.abspath(path_of(directory, "directory"))
    most = bound(plan.count, max_rejects)
    return Job(directory, plan, most, patience, progress or (lambda done, total: None)), expected


def _order(shards: int, worker: tuple[int, int], alone: bool) -> list[int]:
    """A worker's shards, then those of others; `alone`, in a bucket, where nobody sees who writes one, only its own."""
    own = range(worker[0], shards, worker[1])
    return [*own] if alone else [*own, *(shard for shard in range(shards) if shard not in own)]


def read_claim(directory: str) -> dict[str, Any] | None:
    """The identity of the label pass that an unfinished directory belongs to; None when it belongs to none."""
    return _read(os.path.join(directory, _WORK, _CLAIM))


def _read(path: str) -> dict[str, Any] | None:
    """The content of a file of ours that another worker may write or clear away at any moment, None where it is not."""
    try:
        return files.read_sealed(path)
    except files.MissingFile:  # asking whether it is there, before or after, would be another moment
        return None


class Job:
    """One worker's view of a directory that is being written.

    Args:
      directory: of the dataset.
      plan: shards and batches.
      bound: number of images that may be left out.
      patience, progress: see `label_images`.
    """

    def __init__(self, directory: str, plan: Plan, bound: int, patience: float, progress: Callable[[int, int], None]):
        self.work = os.path.join(directory, _WORK)
        self.directory, self.plan, self._bound, self._progress = directory, plan, bound, progress
        self._patience = patience
        self._held: dict[str, str] = {}  # what we hold: its lock, whose time tells others that we go on
        self._seen: dict[str, tuple[int, float]] = {}  # locks of others: their time, and when we first saw it
        self._done: dict[int, int] = {}  # images of each shard that is known to be done

    def complete(self) -> bool:
        """Nothing is left to do, for anyone."""
        return os.path.exists(os.path.join(self.directory, COMMITTED))

    def claim(self, expected: dict[str, Any]) -> bool:
        """Makes the directory ours, or joins those whose it is; False when it is complete."""
        if not self.complete():
            with contextlib.suppress(FileNotFoundError):  # another worker has just finished
                try:
                    os.makedirs(self.work, exist_ok=True)
                except (FileExistsError, NotADirectoryError, PermissionError) as error:
                    raise UserError(f"{self.directory}: cannot hold records: {error.strerror}") from None
                write_json(os.path.join(self.work, _CLAIM), expected, self.work, keep=True)
                if there := read_claim(self.directory):
                    self._compare(there, expected)
                    return True
        facts = read_provenance(self.directory)
        self._compare({key: facts[key] for key in expected if key in facts}, expected)
        return False

    def _compare(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        if difference := first_difference(there, here):
            raise UserError(f"{self.directory}: belongs to another label pass, {difference}")

    def missing(self) -> list[int]:
        """Shards that nobody has finished."""
        return [shard for shard in range(self.plan.shards) if not os.path.exists(self._path(shard, "done.json"))]

    def label(self, labeller: Labeller, order: Sequence[int]) -> None:
        """Writes the shards that are neither done nor being written by another worker."""
        with contextlib.ExitStack() as stack:
            held: dict[int, contextlib.ExitStack] = {}

            def batches() -> Iterator[tuple[tuple[int, bool], range]]:
                """Runs ahead of the writing, so that the device does not wait at the end of a shard."""
                for shard in order:
                    held[shard] = stack.enter_context(contextlib.ExitStack())
                    ours = self._open(shard) and held[shard].enter_context(self._hold(f"{shard:05d}"))
                    if ours and self._open(shard):
                        parts = self.plan.batches(shard)
                        yield from (((shard, part is parts[-1]), part) for part in parts)
                    else:
                        held.pop(shard).close()

            file = None
            for (shard, last), rows in labeller.run(batches()):
                # Let go of with its lock: a writer keeps a megabyte or two for as long as anyone holds it.
                file = file or held[shard].enter_context(ShardFile(self.work, shard))
                file.add(rows)
                self._go_on()
                if file.rejects:
                    self._check_rejects(shard, file.rejects)
                if last:
                    self._finish(shard, file)
                    held.pop(shard).close()
                self._progress(sum(self._done.values()) + (0 if last else len(file.ids)), self.plan.count)
                file = None if last else file

    def label_one(self, labeller: Labeller, shard: int) -> None:
        """Writes a shard, or waits until whoever is writing it has; returns at once when it is done."""
        try:
            while self._open(shard):
                self.label(labeller, [shard])
                if self._open(shard):
                    time.sleep(_POLL)
        except FileNotFoundError:
            if not self.complete():  # then the one who completed it has cleared the work folder away
                raise

    @contextlib.contextmanager
    def _hold(self, name: str) -> Iterator[bool]:
        """Whether we hold what `name` stands for: nobody does, or whoever does has not gone on for too long."""
        with contextlib.ExitStack() as locks:
            for turn in itertools.count():
                path = os.path.join(self.work, f"{name}.lock{turn or ''}")
                if locks.enter_context(files.lock(path)):
                    break
                if not self._stuck(path):
                    yield False
                    return
                notice(
                    f"{self.directory}: the worker that holds {name} has not gone on for {self._patience:g} seconds "
                    "(patience); its work is done here"
                )
            self._held[name] = path
            self._go_on()
            try:
                yield True
            finally:
                del self._held[name]

    def _stuck(self, path: str) -> bool:
        """Whether the time of another's lock is what it was too long ago, by our own clock."""
        at, now = os.stat(path).st_mtime_ns, time.monotonic()
        if self._seen.get(path, (-1, now))[0] != at:
            self._seen[path] = (at, now)
        return now - self._seen[path][1] > self._patience

    def _go_on(self) -> None:
        """Shows the others that we do."""
        for path in self._held.values():
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)

    def _open(self, shard: int) -> bool:
        return not (os.path.exists(self._path(shard, "done.json")) or self.complete())

    def _finish(self, shard: int, file: ShardFile) -> None:
        facts = {"file": self.plan.file(shard), **file.close()}
        if self._open(shard):  # where there are no locks another worker may have been faster
            move(file.path, os.path.join(self.directory, facts["file"]))
            write_json(self._path(shard, "done.json"), files.sealed(facts), self.work)
        for other in set(range(self.plan.shards)) - set(self._done):
            if found := self._record(other):
                self._done[other] = found["count"] + len(found["rejects"])

    def _record(self, shard: int) -> dict[str, Any] | None:
        """The done record of a shard."""
        try:
            return _read(path := self._path(shard, "done.json"))
        except UserError as error:
            notice(f"{error}; its images are labeled again")
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
            return None

    def _check_rejects(self, shard: int, rejects: list[dict[str, str]]) -> None:
        """Raises UserError, and leaves the list behind, when more images than allowed cannot be labeled."""
        others = [self._record(other) for other in range(self.plan.shards) if other != shard]
        known = [reject for found in others if found for reject in found["rejects"]] + rejects
        if len(known) > self._bound:
            path, listed = os.path.join(self.directory, _REJECTS), [Reject(**reject) for reject in known]
            write_text(path, _lines(known), self.work)
            refuse_beyond(path, listed, self.plan.count, self._bound, option="max_rejects")

    def commit(self, expected: dict[str, Any], features: Callable[[], Any]) -> None:
        """Checks every shard against its done record, then writes the metadata; a damaged shard is missing again."""
        with self._hold("commit") as held:
            records = [self._record(shard) for shard in range(self.plan.shards)]
            if not held or self.complete() or not all(records):
                return
            for shard, facts in enumerate(records):
                with mirror.at_hand(os.path.join(self.directory, facts["file"]), facts["sha256"]) as path:
                    whole = os.path.exists(path) and files.file_hash(path) == facts["sha256"]
                if not whole:
                    os.remove(self._path(shard, "done.json"))
                    return
            rejects = [reject for facts in records for reject in facts["rejects"]]
            ids = "".join(f"{id}\n" for facts in records for id in facts["ids"])
            shards = [{key: facts[key] for key in ("file", "count", "bytes", "sha256")} for facts in records]
            write_text(os.path.join(self.directory, IDS), ids, self.work)
            write_text(os.path.join(self.directory, _REJECTS), _lines(rejects), self.work)
            hashed = {"file": IDS, "bytes": len(ids.encode()), "sha256": hashlib.sha256(ids.encode()).hexdigest()}
            facts = {
                **expected,
                "code": code_version(),
                "rejects": {"file": _REJECTS, "count": len(rejects)},
                "ids": hashed,
                "shards": shards,
            }
            write_json(os.path.join(self.directory, PROVENANCE), files.sealed(facts), self.work)
            write_metadata(self.directory, self.work, self.plan, features(), shards)

    def _path(self, shard: int, kind: str) -> str:
        return os.path.join(self.work, f"{shard:05d}.{kind}")


def _lines(rejects: list[dict[str, str]]) -> str:
    return "".join(json.dumps(reject) + "\n" for reject in rejects)


def add_labels(
    directory: str | os.PathLike,
    teachers: Sequence[Teacher],
    *,
    batch_size: int = 64,
    shards: int = 16,
    name: str | None = None,
    images: Source | None = None,
    keep_aspect: bool = True,
    provenance: dict[str, Any] | None = None,
    worker: tuple[int, int] = (0, 1),
    max_rejects: float = 0.001,
    patience: float = 600.0,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Labels the images of finished records with further teachers; the new labels appear in `Records` when all are
    there.

    It resumes, shares work and survives being killed as `label_images` does; a call on a finished
    addition returns at once.

    Args:
      directory: of the records, complete.
      teachers: of tasks that the records do not have.
      name: of the addition; by default made of the names of its tasks.
      images: where the pictures are, by id, when the records hold none.
      batch_size, shards, keep_aspect, provenance, worker, max_rejects, patience, progress: see `label_images`.

    Returns:
      Summary of the addition, which lies in "<directory>/added/<name>/1.0.0".

    Raises:
      UserError: a task that the records have already or that an unfinished addition is about; else as `label_images`.
    """
    directory = os.path.abspath(path_of(directory, "directory"))
    tasks = [task for teacher in teachers for task in teacher.tasks]
    name = name or re.sub(r"\W", "_", "_".join(tasks)).lower()
    for where, there in _labeled(directory, name):
        if twice := set(tasks) & set(there):
            raise UserError(f"{where}: labels {min(twice)!r} already")
    split = read_provenance(directory)["split"]
    source = Records(directory, split=split, tasks=(), images=images, verify=False)  # readers find damage themselves
    return label_images(
        addition_directory(directory, name),
        name,
        source,
        teachers,
        split=split,
        shards=shards,
        batch_size=batch_size,
        copy_images=False,
        keep_aspect=keep_aspect,
        provenance=provenance,
        worker=worker,
        max_rejects=max_rejects,
        patience=patience,
        progress=progress,
    )


def _labeled(directory: str, name: str) -> Iterator[tuple[str, Iterable[str]]]:
    """(directory, tasks) of the records and of all their additions, complete or not, but the one called `name`."""
    yield directory, read_provenance(directory)["tasks"]
    for other in addition_names(directory):
        path = addition_directory(directory, other)
        if other != name and (there := read_claim(path) or read_additions(directory).get(other)):
            yield path, there["tasks"]
