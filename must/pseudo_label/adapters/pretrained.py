"""What teachers from pretrained networks of other libraries share: class maps, and labels in the classes of a task.

Such a teacher has one task. It sees pictures in their own size, one of more than 2,048 pixels a side made smaller; the
library's own preprocessing and post-processing do the rest, and all scores are kept. A configuration names it as any
other function, `{"make": "must:hf_detector", "model": "PekingU/rtdetr_r18vd", "class_map": {"person": "person"}}`.

A class map says which labels or prompts of the network are which classes: {label: class}, or a file of such lines
(`must.data.classes`). Several labels may be one class. Labels that are not listed are dropped: their boxes are left
out, their pixels have no label; a line says how many these are. Classes without a label are unknown. Without a class
map labels are classes of the same name, and every class needs one.

The licenses of code, weights and training data differ, and some exclude commercial use: read each model's card.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must.core.notices import notice
from must.core.types import Teacher, UserError
from must.data.classes import IGNORE, ClassMap, load_class_map, make_class_map
from must.pseudo_label.adapters.modules import on_host
from must.pseudo_label.teacher import from_function
from must.tasks.base import Task

ClassNames = Mapping[str, str] | str | os.PathLike | None
_LARGEST_MAP = 1 << 21  # pixels; larger maps of all labels take gigabytes, and records hold 1 / stride of them


def only_task(name: str, tasks: Mapping[str, Task]) -> tuple[str, Task]:
    if len(tasks) != 1:
        raise UserError(f"teacher {name}: labels one task, not {', '.join(tasks) or 'none'}: make one teacher of each")
    return next(iter(tasks.items()))


def class_map_of(name: str, key: str, task: Task, given: ClassNames, labels: Sequence[str]) -> ClassMap:
    """Which of the labels are which classes; says what is dropped."""
    where = f"teacher {name}: class_map of {key}"
    if not labels:
        raise UserError(f"teacher {name}: the names of its labels are not known: give categories")
    if given is None or isinstance(given, Mapping):
        given = given if given is not None else {one: one for one in task.classes}
        made = make_class_map({"*": "unknown", **given}, labels, task.classes, where=where)
    else:
        made = load_class_map(given, labels, task.classes)
    if len(made.unlisted) == len(task.classes):
        raise UserError(f"{where}: no label is one of the classes {', '.join(task.classes)}")
    lost = [label for label, goal in zip(labels, made.table, strict=True) if goal < 0]
    if lost:
        shown = ", ".join(map(repr, lost[:5])) + (", ..." if len(lost) > 5 else "")
        notice(
            f"teacher {name}: {len(lost)} of its {len(labels)} labels are no class of {key} and are dropped: {shown}"
        )
    return made


def box_teacher(
    name: str,
    key: str,
    task: Task,
    classes: ClassMap,
    forward: Callable[[np.ndarray], Iterator[Any]],
    batch_size: int,
    facts: tuple,
) -> Teacher:
    """A teacher of what `forward` finds in pictures of one size, with the network's own ids of labels."""
    table, told = np.array(classes.table), []
    if (table == IGNORE).any():
        raise UserError(f"teacher {name}: class_map: 'ignore' is for pixels; boxes of no class are 'unknown'")

    def predict(images: np.ndarray) -> dict[str, Any]:
        rows, dropped = [], 0
        for found in in_parts(images, batch_size, forward):
            found = {field: on_host(value) for field, value in found.items()}
            goal = table[found["labels"]]
            row = {field: value[goal >= 0] for field, value in found.items()}
            rows.append({**row, "labels": goal[goal >= 0], "unknown": np.array(classes.unlisted, np.int64)})
            dropped += int((goal < 0).sum())
        if dropped and not told:
            told.append(True)
            notice(f"teacher {name}: first {dropped} boxes in a batch are of dropped labels")
        return {key: rows}

    return from_function(name, predict, {key: task}, size=None, fingerprint=hash_of(*facts))


def pixel_teacher(
    name: str,
    key: str,
    task: Task,
    classes: ClassMap,
    forward: Callable[[np.ndarray], Iterator[Any]],
    batch_size: int,
    facts: tuple,
) -> Teacher:
    """A teacher of the (class ids, confidences) that `forward` finds in pictures of one size."""
    known = ~np.isin(np.arange(len(task.classes)), classes.unlisted)

    def predict(images: np.ndarray) -> dict[str, Any]:
        ids, scores = (np.stack(maps) for maps in zip(*in_parts(images, batch_size, forward), strict=True))
        label = task.from_external((ids, scores), images.shape[1:3])
        return {key: label if known.all() else {**label, "known": np.tile(known, (len(images), 1))}}

    return from_function(name, predict, {key: task}, size=None, fingerprint=hash_of(*facts))


def pixels(probs: Any, classes: ClassMap, ignore: int) -> tuple[np.ndarray, np.ndarray]:
    """Class ids and probabilities [h, w] from those of all labels, a tensor [labels, h, w].

    Labels of one class count together; where a label of no class is the most probable a pixel has no label.
    """
    import torch

    table = torch.tensor(classes.table, device=probs.device)
    goals = [goal for goal in range(len(classes.target)) if goal not in classes.unlisted]
    best, place = torch.stack([probs[table == goal].sum(0) for goal in goals]).max(0)
    ids = torch.tensor(goals, device=probs.device)[place]
    if (table < 0).any():
        ids = torch.where(probs[table < 0].amax(0) > best, ignore, ids)
    return on_host(ids), on_host(best.clamp(0, 1))


def bounded(size: tuple[int, int]) -> tuple[int, int]:
    """A size, halved until maps of all labels fit the memory."""
    height, width = size
    while height * width > _LARGEST_MAP:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def in_parts(images: np.ndarray, count: int, forward: Callable[[np.ndarray], Iterator[Any]]) -> Iterator[Any]:
    for first in range(0, len(images), count):
        yield from forward(images[first : first + count])


def hash_of(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
