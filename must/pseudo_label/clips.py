"""Clips as records: any source of videos in the layout of the label pass, with its own labels and without a teacher."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from must.core import files
from must.core.types import Source, UserError
from must.data.combine import labels_of
from must.pseudo_label.infer import Row
from must.pseudo_label.plan import FORMAT, Plan, code_version, first_difference, make_plan
from must.pseudo_label.shards import ShardFile, move, write_json, write_metadata, write_text
from must.readers.record_format import check_specs, encode_png, encode_record, features_of, is_plain, mismatch
from must.readers.records import COMMITTED, IDS, PROVENANCE, read_provenance
from must.tasks.base import Task

_AT_ONCE = 32  # decoded frames that are in memory together


def write_clips(
    directory: str | os.PathLike,
    name: str,
    source: Source,
    tasks: Mapping[str, Task],
    *,
    split: str = "train",
    shards: int = 16,
    quality: int | None = None,
) -> int:
    """Writes every clip of a source as one record, which `must.readers.records.Records` and TFDS read.

    Frames that the source holds as RGB JPEG or PNG are copied byte for byte. A directory that is complete already is
    left as it is; one that is not is begun anew.

    Args:
      directory: of the dataset.
      name: of the dataset; lower-case letters, digits and _.
      source: of videos.
      tasks: {task: Task} whose labels are written; empty for a pool. Every clip needs a label of each.
      split: of the dataset.
      shards: files.
      quality: JPEG quality, 1 to 100, of frames that the source does not hold as pictures; None: PNG, without loss.

    Returns:
      The number of records.

    Raises:
      UserError: a clip that is no video or lacks a label, or a complete directory of something else.
    """
    directory = os.path.abspath(os.fspath(directory))
    plan = make_plan(name, split, source, shards=shards, batch_size=1)
    expected = _identity(plan, source, tasks, quality)
    if os.path.exists(os.path.join(directory, COMMITTED)):
        there = read_provenance(directory)
        if difference := first_difference({key: there.get(key) for key in expected}, expected):
            raise UserError(f"{directory}: holds other records, {difference}")
        return plan.count
    specs = {key: task.label_spec() for key, task in tasks.items()}
    work = os.path.join(directory, "unfinished")
    os.makedirs(work, exist_ok=True)
    done = []
    for shard in range(plan.shards):
        with ShardFile(work, shard) as file:
            for batch in plan.batches(shard):
                file.add([Row(source.ids[index], _record(source, index, specs, quality)) for index in batch])
            done.append({"file": plan.file(shard), **file.close()})
            move(file.path, os.path.join(directory, plan.file(shard)))
    ids = "".join(f"{id}\n" for facts in done for id in facts["ids"])
    shard_facts = [{key: facts[key] for key in ("file", "count", "bytes", "sha256")} for facts in done]
    write_text(os.path.join(directory, IDS), ids, work)
    hashed = {"file": IDS, "bytes": len(ids.encode()), "sha256": hashlib.sha256(ids.encode()).hexdigest()}
    provenance = {**expected, "code": code_version(), "ids": hashed, "shards": shard_facts}
    write_json(os.path.join(directory, PROVENANCE), files.sealed(provenance), work)
    write_metadata(directory, work, plan, features_of(specs, videos=True), shard_facts)
    shutil.rmtree(work, ignore_errors=True)
    return plan.count


def _identity(plan: Plan, source: Source, tasks: Mapping[str, Task], quality: int | None) -> dict[str, Any]:
    """What the bytes of the records depend on, as JSON has it."""
    described = {}
    for key, task in tasks.items():
        spec = task.label_spec()
        check_specs({key: spec})
        described[key] = {
            "kind": f"{type(task).__module__}:{type(task).__qualname__}",
            "classes": list(source.classes.get(key, getattr(task, "classes", ()))),
            "fields": {name: {**field._asdict(), "shape": list(field.shape)} for name, field in spec.items()},
        }
    return {
        "format": FORMAT,
        "name": plan.name,
        "split": plan.split,
        "source": {"name": source.name, "fingerprint": source.fingerprint, "count": plan.count},
        "plan": {"shards": plan.shards},
        "videos": {"quality": quality},
        "tasks": described,
    }


def _record(source: Source, index: int, specs: Mapping[str, Any], quality: int | None) -> bytes:
    id, known = source.ids[index], labels_of(source, index)
    for task, spec in specs.items():
        if task not in known:
            raise UserError(f"{id}: has no label of {task}; write clips without labels separately")
        for field, its_spec in spec.items():
            if problem := mismatch(known[task][field], its_spec):
                raise UserError(f"{id}: {task}.{field} {problem}")
    video = source[index].image
    if len(video.shape) != 4:
        raise UserError(f"{id}: is a picture {tuple(video.shape)}, not a video")
    return encode_record(id, _frames(video, quality), known, specs)


def _frames(video: Any, quality: int | None) -> list[bytes]:
    """The encoded frames of a video, those of the source where it has pictures that every reader sees alike."""
    count, size = video.shape[0], tuple(video.shape[1:3])
    stored = getattr(video, "encoded", None)
    frames = [None if stored is None else stored(index) for index in range(count)]
    frames = [frame if frame is not None and is_plain(frame, size) else None for frame in frames]
    missing = np.flatnonzero([frame is None for frame in frames])
    for part in np.split(missing, range(_AT_ONCE, len(missing), _AT_ONCE)):
        for index, picture in zip(part.tolist(), video[part], strict=True):
            frames[index] = _encoded(picture, quality)
    return frames


def _encoded(picture: np.ndarray, quality: int | None) -> bytes:
    if quality is None:
        return encode_png(picture)
    import simplejpeg

    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=quality)
