"""MulTaS, weak teachers, unseen images, partial annotation (Le and Pham 2023): teachers -> grid -> compare -> report.

A split fixes which images the teacher of a task may learn from. A grid of students, each described by its axes
(`must.experiment.grid`), then learns from images that the teachers saw or did not see, from annotations or from the
predictions of the frozen teachers for the same augmented picture in the same step.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from must.core import devices
from must.core.arguments import check_names
from must.core.types import Policy, UserError
from must.data import splits
from must.data.splits import Annotated, Listed
from must.evaluate.results import Column, Contrast
from must.experiment import build, checks, distillation, grid, labeling, networks, plan, sections
from must.experiment.compare import Answer, Answers, Comparison, closing_jobs, picture_grid, predictor_of
from must.experiment.grid import Arm
from must.experiment.jobs import Job
from must.experiment.run import Member, Members, Recipe
from must.experiment.settings import Following, SingleStudent
from must.experiment.training import NO_TEACHERS, train_tasks
from must.report.page import Section, pictures_section

STAGES = ("teachers", "grid", "compare", "report")


@dataclass(frozen=True)
class Split:
    """Which of the annotated images the teachers learn from; one of the three ways.

    Attributes:
      share: fraction of the images up to 1, or a number of images above 1.
      exclusive: every image is annotated for one task only.
      files: {task: list file of record ids}, and "unseen" where that is not all the rest.
    """

    share: float = 0.0
    exclusive: bool = False
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings(SingleStudent):
    """A grid of students of weak teachers.

    Attributes:
      splits: {name: which images the teachers learn from}.
      together: changes to `student` where a student learns several tasks.
      hints: {kind of label: its options}, see `must.objectives`.
      grid: blocks {axis: choices}, each the cross product of its axes.
      contrasts: comparisons of arms, see `must.experiment.grid.contrast_of`.
      pictures: arms whose predictions the page shows; by default the first two of every task.
    """

    splits: Mapping[str, Split] = field(default_factory=dict)
    together: Mapping[str, Any] = sections.changes("student")
    hints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grid: tuple[Mapping[str, Any], ...] = ()
    contrasts: tuple[Mapping[str, Any], ...] = ()
    pictures: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        for kind in self.hints:
            if kind not in grid.LABELS:
                raise ValueError(f"hints.{kind}: not one of {', '.join(grid.LABELS)}")


def arms_of(settings: Settings) -> dict[str, Arm]:
    """{name: arm} of the grid."""
    return grid.expand(settings.grid, tuple(settings.tasks), tuple(settings.splits))


def run_of(settings: Settings, arm: Arm) -> Following:
    """How an arm trains."""
    run = settings.student
    if len(arm.tasks) > 1:
        run = sections.changed(run, settings.together, "config.together")
    return sections.changed(run, arm.student, "config.grid.student")


def teachers_of(arms: Mapping[str, Arm]) -> list[tuple[str, str]]:
    """(split, task) of every teacher that some arm has or is compared with."""
    return list(dict.fromkeys((arm.split, task) for arm in arms.values() for task in arm.tasks))


def jobs(members: Members, workers: int) -> list[Job]:
    """All jobs, in the order of preference."""
    arms, work = arms_of(members[0].settings), []
    for member in members:
        at, common = member.prefix, (member.settings, member.seed)
        work.append(Job(f"{at}splits", "teachers", make_splits, common))
        for split, task in teachers_of(arms):
            name, needs = f"{at}teachers/{split}-{task}", (f"{at}splits",)
            work.append(Job(name, "teachers", train_teacher, (*common, split, task), needs))
        for name, arm in arms.items():
            needs = tuple(f"{at}teachers/{arm.split}-{task}" for task in arm.tasks)
            work.append(Job(f"{at}grid/{name}", "grid", train_arm, (*common, name), needs))
    return work + closing_jobs(work, members, comparison(members), page_sections)


def check(members: Members) -> None:
    """Everything about a configuration that can be wrong and shows without training."""
    settings, seed = members[0].settings, members[0].seed
    arms = arms_of(settings)
    checks.check_sets(settings, grid.everything(settings))
    for task in settings.tasks:
        if not any(task in arm.tasks for arm in arms.values()):
            raise UserError(f"config.tasks.{task}: no arm of the grid learns it; leave it out")
    checks.check_teachers(settings)
    for name, arm in arms.items():
        run = run_of(settings, arm)
        checks.check_run(settings, run, f"config.grid ({name}): student")
        if arm.labels:
            distillation.check(settings, run, arm)
    present = grid.annotated_ids(settings)
    lists = {name: grid.deal(settings, name, seed, present) for name in settings.splits}
    for arm in arms.values():
        lists[arm.split].images(arm, seed)
    check_names("config.pictures", settings.pictures, arms)
    known = {one.column.name for one in comparison(members).columns}
    for contrast in comparison(members).contrasts:
        for subject, reference in contrast.pairs:
            names = (subject, *(reference.values() if isinstance(reference, Mapping) else [reference]))
            check_names(f"config.contrasts ({contrast.name})", names, known)


def make_splits(settings: Settings, seed: int, *, directory: str, report) -> dict:
    """The job: list files <split>/<task>.txt, the images of each teacher, and <split>/all.txt."""
    counts, present = {}, grid.annotated_ids(settings)
    for split in settings.splits:
        lists = grid.deal(settings, split, seed, present)
        for name, ids in {**lists.annotated, "all": lists.everything}.items():
            if devices.is_writer():
                splits.write_list(os.path.join(directory, split, f"{name}.txt"), ids)
            counts[f"{split}/{name}"] = len(ids)
    return {"images": counts}


def train_teacher(settings: Settings, seed: int, split: str, task: str, *, directory: str, report) -> dict:
    """The job: one task on the images that a split gives it, then which of its labels count."""
    top = labeling.seed_directory(directory, os.path.join("teachers", f"{split}-{task}"))
    ids = grid.read_lists(top, split, tuple(settings.tasks)).annotated[task]
    source = Annotated(Listed(grid.everything(settings), ids=ids), {task: ids})
    run = build.teacher(settings, task)
    facts = train_tasks(settings, seed, (task,), run, source, {task: Policy()}, directory=directory, report=report)
    labeling.save_live(directory, settings, networks.as_teacher(directory, task), task)
    return facts | {"images": len(ids)}


def train_arm(settings: Settings, seed: int, name: str, *, directory: str, report) -> dict:
    """The job: one student of the grid."""
    arm = arms_of(settings)[name]
    run, top = run_of(settings, arm), labeling.seed_directory(directory, os.path.join("grid", name))
    lists = grid.read_lists(top, arm.split, tuple(settings.tasks))
    source = grid.arm_sources(settings, arm, lists, seed, run.batches)
    policies, online = {task: Policy() for task in arm.tasks}, NO_TEACHERS
    pictures = Listed(grid.everything(settings), ids=lists.images(arm, seed))
    if arm.labels:
        teachers = os.path.join(top, "teachers")
        online, policies = distillation.teachers_of(settings, seed, run, arm, teachers, pictures)
    facts = train_tasks(
        settings, seed, arm.tasks, run, source, policies, directory=directory, report=report, online=online
    )
    return facts | {"images": len(pictures)}


def comparison(members: Members) -> Comparison:
    """All arms and teachers by their axes, every arm against its teachers, and the contrasts of the configuration."""
    settings = members[0].settings
    arms = arms_of(settings)
    axes, columns = grid.axes_of(arms), []
    for split in dict.fromkeys(split for split, _ in teachers_of(arms)):
        own = {task: Answer(f"teachers/{split}-{task}") for part, task in teachers_of(arms) if part == split}
        words = f"teacher on {grid.word('split', split)}"
        columns.append(Answers(Column(f"teacher-{split}", {"split": split}, words), own, timed=False))
    for name, arm in arms.items():
        own = {task: Answer(f"grid/{name}") for task in arm.tasks}
        shown = {axis.name: arm.settings()[axis.name] for axis in axes}
        column = Column(name, shown, _label(arm, axes), control=bool(arm.control))
        columns.append(Answers(column, own, timed=False))
    contrasts = [grid.contrast_of(section, arms) for section in settings.contrasts]
    own = [(name, f"teacher-{arm.split}") for name, arm in arms.items()]
    contrasts.append(Contrast("over its own teacher", own, labels={pair: pair[0] for pair in own}))
    return Comparison(columns, contrasts, axes, notes=notes)


def _label(arm: Arm, axes) -> str:
    """The words of an arm that are not a heading or a column of the table."""
    words = [grid.word(axis.name, getattr(arm, axis.name, "")) for axis in axes if axis.name not in ("split", "images")]
    return " · ".join(word for word in words if word and word not in ("none", "everywhere")) or "student"


def notes(members: Members, workdir: str) -> list[str]:
    """What selected the weights, and what the words of the table mean."""
    settings = members[0].settings
    ways = {"best": "the validation split", "last": "the last step"}
    runs = {"teachers": settings.teacher, "students": settings.student}
    selected = "; ".join(f"{name} by {ways[run.select]}" for name, run in runs.items())
    return [f"Weights selected: {selected}.", *grid.notes_of(arms_of(settings))]


def page_sections(members: Members, workdir: str) -> list[Section]:
    """Predictions of the teacher and of some arms for the first test images."""
    return [pictures_section({task: _pictures(members[0], workdir, task) for task in members[0].settings.tasks})]


def _pictures(member: Member, workdir: str, task: str) -> dict[str, Any]:
    settings, arms = member.settings, arms_of(member.settings)
    able = [name for name, arm in arms.items() if task in arm.tasks]
    chosen = [name for name in settings.pictures if name in able] or able[:2]
    split, at = arms[chosen[0]].split, os.path.join(workdir, member.prefix)
    directories = {f"teacher-{split}": f"teachers/{split}-{task}", **{name: f"grid/{name}" for name in chosen}}
    predictors = {name: predictor_of(os.path.join(at, where))[0] for name, where in directories.items()}
    return picture_grid(settings, build.tasks_of(settings), task, predictors)


def dry_run(members: Members) -> None:
    """Prints what a run means: data, networks, hours."""
    settings = members[0].settings
    arms = arms_of(settings)
    plan.describe_data(members, grid.everything, "to learn from")
    runs = [("teacher", build.teacher(settings, task), (task,)) for _, task in teachers_of(arms)]
    runs += [(name, run_of(settings, arm), arm.tasks) for name, arm in arms.items()]
    plan.describe_runs(members, runs)
    print("  teachers answer in the step: add one forward pass each")


def finished(members: Members) -> dict[str, str]:
    """Of every task the first arm that learns it, of those whose pictures the page shows or else of those that are no
    controls."""
    arms, found = arms_of(members[0].settings), {}
    for task in members[0].settings.tasks:
        able = [name for name, arm in arms.items() if task in arm.tasks]
        shown = [name for name in members[0].settings.pictures if name in able]
        name = (shown + [name for name in able if not arms[name].control] + able)[0]
        if not any(task in arms[one].tasks for one in found):
            found[name] = f"{members[0].prefix}grid/{name}"
    return found


RECIPE = Recipe("multas", Settings, STAGES, jobs, check, dry_run, students=finished)
