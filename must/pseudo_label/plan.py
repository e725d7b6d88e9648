"""What a label pass will do, fixed before it starts: which images go into which shard and batch.

Everything that the bytes of the records depend on is in `identity`; how many workers there are is not. What a pass costs
`must.pseudo_label.estimate` measures.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from must.core.types import Source, Teacher, UserError
from must.readers.record_format import check_specs

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
      UserError: a task that two teachers label or that records cannot hold, or settings that JSON cannot.
    """
    tasks: dict[str, Any] = {}
    for teacher in teachers:
        for key, task in teacher.tasks.items():
            if key in tasks:
                raise UserError(f"task {key}: labeled by {tasks[key]['teacher']} and by {teacher.name}")
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


def first_difference(there: Any, here: Any, key: str = "") -> str:
    """The first key in which two identities differ and both values, or "" """
    if isinstance(there, dict) and isinstance(here, dict):
        for name in list(here) + [name for name in there if name not in here]:
            path = f"{key}.{name}" if key else name
            if name not in there or name not in here:
                return f"{path} is {'not' if name not in there else 'only'} there"
            if found := first_difference(there[name], here[name], path):
                return found
        return ""
    return "" if there == here else f"{key} is {json.dumps(there)} there, {json.dumps(here)} here"


def _batches(plan: Plan) -> int:
    return -(-plan.count // plan.batch_size)


def code_version() -> str:
    """Of this package, "" where it runs uninstalled."""
    try:
        return importlib.metadata.version("must")
    except importlib.metadata.PackageNotFoundError:
        return ""
