"""A grid of students as data: which images each one sees, which annotations it may read, what it takes from teachers.

MulTaS (Le and Pham 2023) measures what weak teachers are worth on images that they have not seen, and what they add
where every image is annotated for one task only. An arm is one student; its axes are what tables and contrasts refer
to.
"""

import itertools
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from must.core.arguments import check_names
from must.core.types import Source, UserError
from must.data import splits
from must.data.combine import labels_of
from must.data.merge import Overlay
from must.data.splits import Annotated, Listed
from must.evaluate.results import DELTA_M, Axis, Contrast
from must.experiment import build, sections
from must.experiment.settings import SingleStudent

LABELS = ("hard", "soft", "mimic", "pdf", "defeat", "adaptor")
CHOICES = {
    "images": ("seen", "unseen", "unseen_cut", "all"),
    "annotation": ("none", "own", "full"),
    "labels": LABELS,
    "where": ("all", "missing", "annotated"),
    "control": ("", "shuffled"),
}
_LISTS = ("tasks", "labels")  # axes whose values are lists
WORDS = {
    "split": {
        "half": "half of the labels",
        "quarter": "a quarter of the labels",
        "eighth": "an eighth of the labels",
        "exclusive": "exclusive images",
    },
    "images": {"seen": "seen", "unseen": "unseen", "unseen_cut": "unseen, cut", "all": "all images"},
    "annotation": {"none": "no truth", "own": "own truth", "full": "all truth"},
    "where": {"all": "everywhere", "missing": "where missing", "annotated": "where annotated"},
    "control": {"": "none"},
}
NOTES = {
    ("split", "exclusive"): "Exclusive: every image is annotated for one task only.",
    ("images", "unseen_cut"): "Unseen, cut: as many images that the teachers have not seen as they have seen.",
    ("images", "all"): "All images: those that the teachers have seen and others.",
    ("annotation", "own"): "Own truth: that of the teachers' own images.",
    ("annotation", "full"): "All truth: that of every image, an oracle.",
    ("where", "missing"): "Where missing: teachers answer only where there is no truth.",
}


class Arm(NamedTuple):
    """One student.

    Attributes:
      tasks: heads that it has.
      split: the annotated images of its teachers, one of `config.splits`.
      images: what it sees: those "seen" by its teachers, the "unseen" others, "unseen_cut" as many of these as there
        are seen ones, or "all".
      annotation: ground truth that it may read: "none"; "own", of each task on the images of that task's teacher;
        "full", an oracle where images are unseen.
      labels: what it takes from its teachers, any of `LABELS`.
      where: its teachers answer on "all" of its images, where its ground truth is "missing", or where it is
        "annotated".
      control: "", or "shuffled": its teachers answer for other pictures, which has to hurt.
      student: changes to the student's settings.
    """

    tasks: tuple[str, ...]
    split: str
    images: str = "all"
    annotation: str = "none"
    labels: tuple[str, ...] = ()
    where: str = "all"
    control: str = ""
    student: Mapping[str, Any] = {}

    def name(self, tasks: Sequence[str]) -> str:
        """Short, unique and readable: its directory below the grid; `tasks` are all that exist."""
        heads = "multi" if len(tasks) > 1 and set(self.tasks) == set(tasks) else "+".join(self.tasks)
        parts = [heads, self.split, self.images.replace("_", "")]
        parts += [] if self.annotation == "none" else [self.annotation]
        parts += ["+".join(self.labels)] if self.labels else []
        parts += [self.where] if self.where != "all" else []
        parts += [self.control] if self.control else []
        return "-".join(parts) + "".join(f"-{key}={value}" for key, value in sorted(self.student.items()))

    def settings(self) -> dict[str, Any]:
        """Its value on every axis."""
        changes = ", ".join(f"{key} {value}" for key, value in sorted(self.student.items()))
        return {**{axis: getattr(self, axis) for axis in Arm._fields if axis != "student"}, "student": changes}


def expand(grid: Sequence[Mapping[str, Any]], tasks: Sequence[str], known_splits: Sequence[str]) -> dict[str, Arm]:
    """{name: arm} of all blocks of a grid.

    Args:
      grid: blocks {axis: choices}, each the cross product of its axes; an axis that a block does not name has its
        default; "student" is one mapping of changes, not an axis.
      tasks: all that exist.
      known_splits: names of the annotated parts.

    Raises:
      UserError: no arm, an unknown axis or choice, or an arm without anything to learn.
    """
    arms: dict[str, Arm] = {}
    for number, block in enumerate(grid):
        axes, path = dict(block), f"config.grid[{number}]"
        student = axes.pop("student", {})
        for axis in axes:
            if axis not in Arm._fields:
                raise sections.unknown_key(f"{path}.{axis}", axis, Arm._fields)
        for axis in ("tasks", "split"):
            if axis not in axes:
                raise UserError(f"{path}.{axis}: required")
        for axis, choices in axes.items():
            inner = [choices, *choices] if axis in _LISTS and isinstance(choices, list | tuple) else [choices]
            if any(isinstance(value, str) or not isinstance(value, Sequence) for value in inner):
                what = "a list of lists" if axis in _LISTS else "a list"
                raise UserError(f"{path}.{axis}={choices!r}: expected {what} of choices")
        for choice in itertools.product(*axes.values()):
            fields = {k: tuple(v) if k in _LISTS else v for k, v in zip(axes, choice, strict=True)}
            arm = Arm(**fields, student=student)
            _check(arm, path, tasks, known_splits)
            # One arm, whatever the order in which its parts are named.
            ordered = tuple(task for task in tasks if task in arm.tasks)
            arm = arm._replace(tasks=ordered, labels=tuple(kind for kind in LABELS if kind in arm.labels))
            arms[arm.name(tasks)] = arm
    if not arms:
        raise UserError("config.grid: no arm")
    return arms


def _check(arm: Arm, path: str, tasks: Sequence[str], known_splits: Sequence[str]) -> None:
    for axis, known in {"tasks": tasks, "split": known_splits, **CHOICES}.items():
        value = getattr(arm, axis)
        check_names(f"{path}.{axis}", value if axis in _LISTS else (value,), known)
    if not arm.tasks:
        raise UserError(f"{path}.tasks: an arm needs at least one")
    if not arm.labels and arm.annotation == "none":
        raise UserError(f"{path}: neither labels nor annotation, so there is nothing to learn")
    if not arm.labels and (arm.control or arm.where != "all"):
        raise UserError(f"{path}: control and where are about labels, and this arm takes none")
    if not arm.labels and arm.annotation == "own" and arm.images.startswith("unseen"):
        raise UserError(
            f"{path}: its teachers' annotations are on seen images and it sees unseen ones: nothing to learn"
        )


def axes_of(arms: Mapping[str, Arm]) -> list[Axis]:
    """The axes on which the arms differ, with the words for their values; images stand side by side."""
    settings = [arm.settings() for arm in arms.values()]
    axes = []
    for axis in (*Arm._fields[1:2], "labels", "annotation", "where", "control", "tasks", "student", "images"):
        values = {_key(one[axis]): None for one in settings}
        if len(values) > 1:
            known = list(WORDS.get(axis, {}))
            order = sorted(
                values, key=lambda v: (known.index(v) if v in known else len(known), len(v), list(values).index(v))
            )
            axes.append(Axis(axis, axis, {value: word(axis, value) for value in order}, across=axis == "images"))
    return axes


def word(axis: str, value: Any) -> str:
    """A setting in words."""
    if isinstance(value, str):
        return WORDS.get(axis, {}).get(value, value)
    return " + ".join(value) or "nothing"


def notes_of(arms: Mapping[str, Arm]) -> list[str]:
    """What the words of a table mean, of those that occur."""
    present = {
        (axis, value) for arm in arms.values() for axis, value in arm.settings().items() if isinstance(value, str)
    }
    return [note for key, note in NOTES.items() if key in present]


def contrast_of(section: Mapping[str, Any], arms: Mapping[str, Arm]) -> Contrast:
    """A contrast from its section of the configuration.

    {"axis", "subject", "reference", "within": {axis: value or values}}: all pairs of arms that differ in this axis
    only. {"name", "subject": arm, "reference": column}: one pair. {"name", "subject": arm, "reference": {task:
    column}}: mean relative gain over one column per task.

    Raises:
      UserError: an unknown axis, or keys that do not fit together.
    """
    section = dict(section)
    try:
        axis, subject, reference = section.pop("axis", None), section.pop("subject"), section.pop("reference")
    except KeyError as error:
        raise UserError(f"config.contrasts: {section} has no {error.args[0]}") from None
    within, name = section.pop("within", {}), section.pop("name", "")
    if section or not (axis or name):
        raise UserError(
            f"config.contrasts: unknown key {next(iter(section))!r}" if section else "config.contrasts: name one"
        )
    if axis is None:
        if isinstance(reference, Mapping):
            return Contrast(name, [(subject, dict(reference))], ("tasks", DELTA_M))
        return Contrast(name, [(subject, reference)])
    pairs = list(_pairs(arms, axis, subject, reference, within))
    ends = [word(axis, _key(value)) or "none" for value in (subject, reference)]
    filters = "".join(f", {' or '.join(_words_of(key, value))}" for key, value in within.items())
    labels = {(a, b): _common(arms, axis, pairs, a) or f"{a} vs {b}" for a, b in pairs}
    return Contrast(name or f"{axis}: {ends[0]} vs {ends[1]}{filters}", pairs, labels=labels)


def _words_of(axis: str, allowed: Any) -> list[str]:
    lists = axis in _LISTS and all(isinstance(value, str) for value in allowed)
    values = [tuple(allowed)] if lists else [allowed] if isinstance(allowed, str) else allowed
    return [f"no {axis}" if value == "" else word(axis, _key(value)) for value in values]


def _pairs(arms: Mapping[str, Arm], axis: str, subject: Any, reference: Any, within) -> Iterator[tuple[str, str]]:
    for name in (axis, *within):
        if name not in Arm._fields:
            raise sections.unknown_key(f"config.contrasts.{name}", name, Arm._fields)
    every = {name: {key: _set(value) for key, value in arm.settings().items()} for name, arm in arms.items()}
    for a, first in every.items():
        if first[axis] != _set(subject) or not all(_matches(first[key], key, value) for key, value in within.items()):
            continue
        for b, second in every.items():
            alike = all(first[key] == second[key] for key in first if key != axis)
            if second[axis] == _set(reference) and alike:
                yield a, b


def _matches(value: Hashable, axis: str, allowed: Any) -> bool:
    """A value, several values of an axis of text, or one value of an axis of lists."""
    if isinstance(allowed, str):
        return value == _set(allowed)
    if axis in _LISTS and all(isinstance(one, str) for one in allowed):
        return value == _set(allowed)
    return value in [_set(one) for one in allowed]


def _common(arms: Mapping[str, Arm], axis: str, pairs: Sequence[tuple[str, str]], name: str) -> str:
    """What distinguishes a pair from the other pairs, in words."""
    differ = [
        key for key in Arm._fields[:-1] if key != axis and len({_set(getattr(arms[a], key)) for a, _ in pairs}) > 1
    ]
    return " · ".join(word(key, getattr(arms[name], key)) for key in differ)


def _set(value: Any) -> Hashable:
    return value if isinstance(value, str) else frozenset(value)


def _key(value: Any) -> Hashable:
    return value if isinstance(value, str) else tuple(value)


class Lists(NamedTuple):
    """Which images may teach what in one split.

    Attributes:
      annotated: {task: ids of the images that its teacher learns from}.
      everything: all ids, in the set's order.
    """

    annotated: Mapping[str, Sequence[str]]
    everything: Sequence[str]

    def images(self, arm: Arm, seed: int) -> list[str]:
        """Ids of what an arm sees.

        Raises:
          UserError: no image is unseen.
        """
        seen = {id for task in arm.tasks for id in self.annotated[task]}
        if arm.images == "all":
            return list(self.everything)
        if arm.images == "seen":
            return [id for id in self.everything if id in seen]
        unseen = [id for id in self.everything if id not in seen]
        if not unseen:
            raise UserError(f"split {arm.split}: the teachers of {', '.join(arm.tasks)} have seen every image")
        if arm.images == "unseen_cut" and len(seen) < len(unseen):
            unseen, _ = splits.part(unseen, len(seen), seed)
        return unseen

    def readable(self, arm: Arm) -> dict[str, list[str]]:
        """{task: ids whose annotation an arm may read}."""
        if arm.annotation == "none":
            return {}
        return {t: list(self.annotated[t] if arm.annotation == "own" else self.everything) for t in arm.tasks}


def everything(settings: SingleStudent) -> Source:
    """The training images with all their annotations."""
    first, *others = build.annotated_sets(settings)
    return Overlay(first, others) if others else first


def annotated_ids(settings: SingleStudent) -> dict[str, list[str]]:
    """{task: ids of the training images that have its annotation}."""
    source = everything(settings)
    ids: dict[str, list[str]] = {task: [] for task in settings.tasks}
    for i, id in enumerate(source.ids):
        for task in labels_of(source, i):
            if task in ids:
                ids[task].append(id)
    return ids


def deal(settings: Any, name: str, seed: int, present: Mapping[str, list[str]]) -> Lists:
    """Draws a split, or reads the list files that the configuration names.

    Args:
      settings: of the recipe.
      name: of the split.
      seed: of the draw.
      present: `annotated_ids` of the settings, for which every annotation is read: once for all splits.

    Raises:
      UserError: an unknown way, unknown ids, or a task without images.
    """
    path, section = f"config.splits.{name}", settings.splits[name]
    ids = list(everything(settings).ids)
    if section.files:
        if section.share:
            raise UserError(f"{path}: files and share are two ways to split; set one")
        return _read_files(settings, path, dict(section.files), section.exclusive, present)
    if bool(section.share) == section.exclusive:
        raise UserError(f"{path}: set one of share (a fraction or a number), exclusive and files")
    if section.exclusive:
        annotated = splits.exclusive(present, seed)
    else:
        share = int(section.share) if section.share > 1 else section.share
        try:
            chosen = set(splits.part(ids, share, seed)[0])
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        annotated = {task: [id for id in own if id in chosen] for task, own in present.items()}
    for task, own in annotated.items():
        if not own:
            raise UserError(f"{path}: no annotated image for {task}")
    return Lists(annotated, ids)


def _read_files(
    settings: SingleStudent, path: str, files: Mapping[str, str], exclusive: bool, present: Mapping[str, list[str]]
) -> Lists:
    """Lists made elsewhere: a file per task, and "unseen" where that is not simply all the rest."""
    tasks, source = tuple(settings.tasks), everything(settings)
    for task in tasks:
        if task not in files:
            raise UserError(f"{path}.files: no list for {task}")
    for name in files:
        if name not in (*tasks, "unseen"):
            raise UserError(f"{path}.files.{name}: neither a task nor 'unseen'")
    lists = {name: splits.read_list(file) for name, file in files.items()}
    annotated, seen = {task: lists[task] for task in tasks}, {id for task in tasks for id in lists[task]}
    if exclusive:
        splits.check_no_overlap({files[task]: ids for task, ids in annotated.items()})
    unseen = lists.get("unseen", [id for id in source.ids if id not in seen])
    splits.check_no_overlap({"of the teachers": seen, files.get("unseen", "of the rest"): unseen})
    Listed(source, ids=[*seen, *unseen])  # refuses unknown ids
    for task, own in present.items():
        has = set(own)
        if bare := next((id for id in annotated[task] if id not in has), None):
            raise UserError(f"{files[task]}: {bare} has no annotation of {task}")
    used = seen.union(unseen)
    return Lists(annotated, [id for id in source.ids if id in used])


def read_lists(directory: str, split: str, tasks: Sequence[str]) -> Lists:
    """The list files of a seed's directory."""
    at = os.path.join(directory, "splits", split)
    lists = {name: splits.read_list(os.path.join(at, f"{name}.txt")) for name in (*tasks, "all")}
    return Lists({task: lists[task] for task in tasks}, lists["all"])


def arm_sources(settings: SingleStudent, arm: Arm, lists: Lists, seed: int, batches: str) -> Source | dict[str, Source]:
    """What an arm draws from: one source, or one per task and one of images without annotation.

    An annotation that the arm may not read is not in it.
    """
    ids, readable = lists.images(arm, seed), lists.readable(arm)
    source = Annotated(everything(settings), readable)
    if batches == "mixed" or len(arm.tasks) == 1 or not readable:
        return Listed(source, ids=ids)
    visible, groups, left = set(ids), {}, set(ids)
    for task in arm.tasks:
        mine = visible.intersection(readable[task])
        if mine:
            groups[task] = Listed(source, ids=[id for id in ids if id in mine])
        left -= mine
    if left and arm.labels:
        groups["unannotated"] = Listed(source, ids=[id for id in ids if id in left])
    return groups
