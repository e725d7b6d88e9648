"""A grid of students as data: what each one sees, what it may read of the annotations, what it takes from its teachers."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from must.core.types import UserError
from must.data import splits

IMAGES = ("seen", "unseen", "unseen_cut", "all")
ANNOTATION = ("none", "own", "full")
LABELS = ("hard", "soft", "mimic", "pdf", "defeat", "adaptor")
WHERE = ("all", "missing", "annotated")
CONTROLS = ("", "shuffled")


class Arm(NamedTuple):
    """One student.

    Attributes:
      tasks: heads that it has.
      split: the labeled images of its teachers, one of `config.splits`.
      images: what it sees: those "seen" by its teachers, the "unseen" others, "unseen_cut" as many of these as there
        are seen ones, or "all".
      annotation: ground truth that it may read: "none"; "own", of each task on the images of that task's teacher;
        "full", an oracle where images are unseen.
      labels: what it takes from its teachers, any of `LABELS`.
      where: its teachers speak on "all" of its images, where its own ground truth is "missing", or where there is some.
      control: "", or "shuffled": its teachers answer for other pictures, which has to hurt.
      student: changes to the student's section.
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
        """Short, unique and readable: its directory below the grid; `tasks` are all there are."""
        heads = "multi" if len(tasks) > 1 and set(self.tasks) == set(tasks) else "+".join(self.tasks)
        parts = [heads, self.split, self.images.replace("_", "")]
        parts += [] if self.annotation == "none" else [self.annotation]
        parts += ["+".join(self.labels)] if self.labels else []
        parts += [self.where] if self.where != "all" else []
        parts += [self.control] if self.control else []
        return "-".join(parts) + "".join(f"-{key}={value}" for key, value in sorted(self.student.items()))

    def data(self) -> dict[str, Any]:
        """What tables and pages show of it; JSON types."""
        found = self._asdict()
        del found["student"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def expand(grid: Sequence[Mapping[str, Any]], tasks: Sequence[str], known_splits: Sequence[str]) -> dict[str, Arm]:
    """{name: arm} of all blocks of a grid.

    Args:
      grid: blocks {axis: choices}, each the cross product of its axes; what a block does not name has its default;
        "student" is one mapping of changes, not an axis.
      tasks: all there are.
      known_splits: names of the labeled parts.

    Raises:
      UserError: no arm, an axis or a choice that is not there, or an arm that learns nothing.
    """
    found: dict[str, Arm] = {}
    for number, block in enumerate(grid):
        block = dict(block)
        student = block.pop("student", {})
        for axis in block:
            if axis not in Arm._fields:
                raise UserError(f"grid.{number}.{axis}: not one of {', '.join(Arm._fields)}")
        for axis in ("tasks", "split"):
            if axis not in block:
                raise UserError(f"grid.{number}: says no {axis}")
        for axis, choices in block.items():
            inner = [choices, *choices] if axis in ("tasks", "labels") and not isinstance(choices, str) else [choices]
            if any(isinstance(value, str) or not isinstance(value, Sequence) for value in inner):
                what = "a list of lists" if axis in ("tasks", "labels") else "a list"
                raise UserError(f"grid.{number}.{axis}: give {what} of choices, not {choices!r}")
        for choice in itertools.product(*block.values()):
            fields = {k: tuple(v) if k in ("tasks", "labels") else v for k, v in zip(block, choice, strict=True)}
            arm = Arm(**fields, student=student)
            _check(arm, f"grid.{number}", tasks, known_splits)
            # One arm, whatever the order in which its parts are named.
            arm = arm._replace(
                tasks=tuple(t for t in tasks if t in arm.tasks),
                labels=tuple(kind for kind in LABELS if kind in arm.labels),
            )
            found[arm.name(tasks)] = arm
    if not found:
        raise UserError("grid: no arm")
    return found


def _check(arm: Arm, where: str, tasks: Sequence[str], known_splits: Sequence[str]) -> None:
    for axis, chosen, known in (
        ("tasks", arm.tasks, tasks),
        ("split", (arm.split,), known_splits),
        ("images", (arm.images,), IMAGES),
        ("annotation", (arm.annotation,), ANNOTATION),
        ("labels", arm.labels, LABELS),
        ("where", (arm.where,), WHERE),
        ("control", (arm.control,), CONTROLS),
    ):
        for choice in chosen:
            if choice not in known:
                raise UserError(f"{where}.{axis}: {choice!r} is none of {', '.join(map(repr, known))}")
    if not arm.tasks:
        raise UserError(f"{where}.tasks: an arm needs one at least")
    if not arm.labels and arm.annotation == "none":
        raise UserError(f"{where}: neither labels nor annotation: there is nothing to learn")
    if not arm.labels and (arm.control or arm.where != "all"):
        raise UserError(f"{where}: control and where speak of labels, and there are none")
    if not arm.labels and arm.annotation == "own" and arm.images.startswith("unseen"):
        raise UserError(f"{where}: its teachers' annotations are on seen images, it sees unseen ones: nothing to learn")


class Lists(NamedTuple):
    """Who may learn from what in one split.

    Attributes:
      labeled: {task: ids of the images that its teacher learns from}.
      everything: all ids, in the set's order.
    """

    labeled: Mapping[str, Sequence[str]]
    everything: Sequence[str]

    def images(self, arm: Arm, seed: int) -> list[str]:
        """Ids of what an arm sees.

        Raises:
          UserError: there is no unseen image.
        """
        seen = {id for task in arm.tasks for id in self.labeled[task]}
        if arm.images == "all":
            return list(self.everything)
        if arm.images == "seen":
            return [id for id in self.everything if id in seen]
        unseen = [id for id in self.everything if id not in seen]
        if not unseen:
            raise UserError(f"split {arm.split}: no image is unseen by the teachers of {', '.join(arm.tasks)}")
        if arm.images == "unseen_cut" and len(seen) < len(unseen):
            unseen, _ = splits.part(unseen, len(seen), seed)
        return unseen

    def shown(self, arm: Arm) -> dict[str, list[str]]:
        """{task: ids whose annotation an arm may read}."""
        if arm.annotation == "none":
            return {}
        return {t: list(self.labeled[t] if arm.annotation == "own" else self.everything) for t in arm.tasks}
