"""What a label pass costs, measured on one batch before anything is spent: time, and disk space by field."""

import os
import shutil
import time
from collections.abc import Sequence
from typing import NamedTuple

from must.core.types import Source, Teacher, UserError
from must.pseudo_label.infer import Labeller
from must.pseudo_label.plan import Plan
from must.readers.record_format import ID, IMAGE, field_sizes

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
    """A table for people: speed, time, bytes of every field, shards, and what stands against starting.

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
