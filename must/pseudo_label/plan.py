"""What a label pass will do, fixed before it starts: which images go into which shard and batch.

Everything that the bytes of the records depend on is in `identity`; how many workers there are is not. What a pass
costs `must.pseudo_label.plan` measures.
"""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from must.core.arguments import converted
from must.core.types import Source, Teacher, UserError
from must.pseudo_label.infer import Labeller
from must.readers.record_format import ID, IMAGE, check_specs, field_sizes

FORMAT = 2  # of the layout; raised when older code could no longer read it


class Plan(NamedTuple):
    """The division of a source into shards and batches.

    Attributes:
      name: of the dataset.
      split: of the dataset.
      count: images N.
      shards: number of files; fewer where there are fewer batches.
      batch_size: images of one forward pass.
    """

    name: str
    split: str
    count: int
    shards: int
    batch_size: int

    def file(self, shard: int) -> str:
        """File name that TFDS expects of a shard."""
        return f"{self.name}-{self.split}.array_record-{shard:05d}-of-{self.shards:05d}"

    def images(self, shard: int) -> range:
        """Indices into the source: whole batches, so that no more than the last one of all is filled up."""
        start, stop = (_batches(self) * k // self.shards * self.batch_size for k in (shard, shard + 1))
        return range(start, min(stop, self.count))

    def batches(self, shard: int) -> list[range]:
        """Indices into the source; the very last batch may be short."""
        images = self.images(shard)
        return [images[at : at + self.batch_size] for at in range(0, len(images), self.batch_size)]


def make_plan(name: str, split: str, source: Source, *, shards: int, batch_size: int) -> Plan:
    """Contiguous shards of as equal a number of batches as can be, never more than there are batches.

    Raises:
      UserError: an empty source, ids that are not unique or span lines, or a name that TFDS cannot parse.
    """
    if not name.isidentifier() or name != name.lower() or not split.isidentifier():
        raise UserError(f"records {name!r}, split {split!r}: names are lower-case letters, digits and _")
    for key, value in {"shards": shards, "batch_size": batch_size}.items():
        converted(value, int, f"records {name}: {key}")
    if shards < 1 or batch_size < 1:
        raise UserError(f"records {name}: shards {shards} and batch_size {batch_size} must be positive")
    ids = list(source.ids)
    if not ids:
        raise UserError(f"{source.name}: no images to label")
    seen: set[str] = set()
    for id in ids:
        if id in seen or "\n" in id:
            raise UserError(f"{source.name}: id {id!r} " + ("occurs twice" if id in seen else "spans lines"))
        seen.add(id)
    plan = Plan(name, split, len(ids), shards, batch_size)
    return plan._replace(shards=min(shards, _batches(plan)))


def identity(
    plan: Plan,
    source: Source,
    teachers: Sequence[Teacher],
    settings: dict[str, Any],
    *,
    copy_images: bool,
    keep_aspect: bool,
) -> dict[str, Any]:
    """All that the bytes of the records depend on, ready for JSON; a directory belongs to one identity.

    Raises:
      UserError: no teachers, a task that two teachers label or that records cannot hold, or settings that JSON cannot.
    """
    tasks: dict[str, Any] = {}
    if not teachers:
        raise UserError(f"records {plan.name}: no teachers, so there would be no labels")
    for teacher in teachers:
        if not isinstance(teacher, Teacher):
            raise UserError(f"teachers: {teacher!r} is no Teacher, such as must.from_function makes")
        for key, task in teacher.tasks.items():
            if key in tasks:
                raise UserError(
                    f"task {key}: labeled by {tasks[key]['teacher']} and by {teacher.name}; must.fuse joins them"
                )
            spec = task.label_spec()
            check_specs({key: spec})
            tasks[key] = {
                "teacher": teacher.name,
                "fingerprint": teacher.fingerprint,
                "input_size": teacher.size,
                "kind": f"{type(task).__module__}:{type(task).__qualname__}",
                "hyper_parameters": dataclasses.asdict(task) if dataclasses.is_dataclass(task) else {},
                "classes": getattr(task, "classes", ()),
                "fields": {name: field._asdict() for name, field in spec.items()},
            }
    found = {
        "format": FORMAT,
        "name": plan.name,
        "split": plan.split,
        "source": {"name": source.name, "fingerprint": source.fingerprint, "count": plan.count},
        "plan": {"shards": plan.shards, "batch_size": plan.batch_size},
        "images": {"stored": copy_images, "keep_aspect": keep_aspect},
        "tasks": tasks,
        "settings": settings,
    }
    try:
        return json.loads(json.dumps(found))
    except (TypeError, ValueError) as error:
        raise UserError(f"records {plan.name}: {error}") from None


def first_difference(there: Any, here: Any, key: str = "", names: tuple[str, str] = ("there", "here")) -> str:
    """The first key in which two identities differ and both values, or ""; `names` are words for where each is."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in list(here) + [name for name in there if name not in here]:
            path = f"{key}.{name}" if key else name
            if name not in there or name not in here:
                return f"{path} is {'not' if name not in there else 'only'} {names[0]}"
            if found := first_difference(there[name], here[name], path, names):
                return found
        return ""
    return "" if there == here else f"{key} is {json.dumps(there)} {names[0]}, {json.dumps(here)} {names[1]}"


def _batches(plan: Plan) -> int:
    return -(-plan.count // plan.batch_size)


def code_version() -> str:
    """Of this package, "" where it runs uninstalled."""
    try:
        return importlib.metadata.version("must")
    except importlib.metadata.PackageNotFoundError:
        return ""


_BLOCK, _FRAME = 1 << 16, 96  # of an ArrayRecord file: it grows by blocks; what it adds to a record, bytes
_STEADY = 1.0  # seconds by the clock that are enough; a batch that takes less is run more often
_SPARE = 1.05  # of the disk space, since the batch is a sample


class Estimate(NamedTuple):
    """What a label pass costs.

    Attributes:
      rate: images per second of one worker with the devices of this one; of a single batch whose decoding and encoding
        do not overlap with other batches' labeling, where that takes more than a second, so a lower bound.
      workers: that share the shards.
      hours: until the last of them is done.
      fields: {"image", "id" or "<task>/<field>": bytes of a record, mean over the batch}.
      bytes: of all shards on disk.
      reasons: why images of the batch cannot be read.
    """

    rate: float
    workers: int
    hours: float
    fields: dict[str, float]
    bytes: int
    reasons: tuple[str, ...]


def estimate(
    plan: Plan,
    source: Source,
    teachers: Sequence[Teacher],
    *,
    workers: int = 1,
    copy_images: bool = True,
    keep_aspect: bool = True,
) -> Estimate:
    """Labels one batch, images from all over the source, first to compile and then by the clock; writes nothing.

    Raises:
      UserError: as `label_images`, or when no image of the batch can be read.
    """
    size = min(plan.batch_size, plan.count)
    batch = range(0, plan.count, plan.count // size)[:size]
    with Labeller(source, teachers, plan.batch_size, copy_images=copy_images, keep_aspect=keep_aspect) as labeller:
        seconds, times = 0.0, 0
        while seconds < _STEADY and times < 16:
            times = 4 * times or 1
            for _ in range(1 if times > 1 else 2):  # the very first run compiles
                start = time.perf_counter()
                found = list(labeller.run((k, batch) for k in range(times)))
                seconds = time.perf_counter() - start
    rows = found[0][1]
    sizes = [field_sizes(row.record) for row in rows if row.record is not None]
    if not sizes:
        raise UserError(f"{source.name}: no image of the batch can be read: {rows[0].reason}")
    fields = {name: sum(one.get(name, 0) for one in sizes) / len(sizes) for name in _order(sizes[0], labeller)}
    busiest = -(-plan.shards // workers) * max(len(plan.batches(shard)) for shard in range(plan.shards))
    return Estimate(
        rate=times * size / seconds,
        workers=workers,
        hours=busiest * seconds / times / 3600,
        fields=fields,
        bytes=sum(_on_disk(len(images), sum(fields.values())) for images in map(plan.images, range(plan.shards))),
        reasons=tuple(row.reason for row in rows if row.reason),
    )


def describe(estimate: Estimate, plan: Plan, *, directory: str | os.PathLike | None = None) -> str:
    """A table for people: speed, time, bytes of every field, shards, and what prevents starting.

    Args:
      estimate: of the pass.
      plan: of the pass.
      directory: where the records will lie; whether they fit there is looked at.
    """
    fields, total = estimate.fields, sum(estimate.fields.values())
    largest = max(len(plan.images(shard)) for shard in range(plan.shards))
    sharing = f"{estimate.workers} workers" if estimate.workers > 1 else "one worker"
    each = _size(_on_disk(largest, total))
    lines = [
        f"label pass {plan.name}, {plan.split}: {plan.count:,} images in batches of {plan.batch_size}",
        f"  speed    {_rate(estimate.rate)} images/s by one worker, measured on a batch",
        f"  time     {_duration(3600 * estimate.hours)} with {sharing}",
        f"  size     {_size(estimate.bytes)} in {plan.shards} shards of {largest:,} images, {each} each",
        "",
        f"  {'bytes of a record':32}{'mean':>10}{'share':>9}{'in all':>11}",
    ]
    for name, size in [*fields.items(), ("record", total)]:
        shown = "id and keys" if name == ID else name.replace("/", ".")
        lines.append(f"  {shown:32}{size:>10,.0f}{size / total:>9.1%}{_size(size * plan.count):>11}")
    if IMAGE not in fields:
        lines.append("  pictures stay where they are and are found by id")
    return "\n".join(lines + [f"  WARNING  {what}" for what in _warnings(estimate, plan, directory)])


def _warnings(estimate: Estimate, plan: Plan, directory: str | os.PathLike | None) -> list[str]:
    found = []
    if directory is not None:
        at = os.path.abspath(os.fspath(directory))
        while not os.path.exists(at):
            at = os.path.dirname(at)
        free = shutil.disk_usage(at).free
        if free < _SPARE * estimate.bytes:
            found.append(f"{at}: {_size(free)} free, the records need about {_size(estimate.bytes)}")
    if estimate.workers > plan.shards:
        found.append(f"{estimate.workers} workers and {plan.shards} shards: the others will have nothing to do")
    if estimate.reasons:
        share = f"{len(estimate.reasons)} of the {min(plan.batch_size, plan.count)} images of the batch"
        found.append(f"{share} cannot be read: {estimate.reasons[0]}")
    return found


def _order(sizes: dict[str, int], labeller: Labeller) -> list[str]:
    """The picture, the fields task by task, the rest."""
    labels = [f"{task}/{field}" for task, specs in labeller.specs.items() for field in specs]
    return [name for name in (IMAGE, *labels, ID) if name in sizes]


def _on_disk(records: int, size: float) -> int:
    """Bytes of an ArrayRecord file of `records` records of `size` bytes, to a block."""
    return (2 + int(records * (size + _FRAME)) // _BLOCK) * _BLOCK


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} seconds" if seconds < 10 else f"{seconds:.0f} seconds"


def _size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"
