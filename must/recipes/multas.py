"""MulTaS, weak teachers, unseen images, partial annotation (Le and Pham 2023): teachers -> grid -> compare -> report.

Every split says which images the teacher of a task may learn from; a grid of students, each described by data
(`must.recipes.arms`), then learns from images that the teachers saw or did not see, from annotations or from what the
frozen teachers say of the same augmented picture in the same step.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

from must.core import devices
from must.core.types import Policy, Source, UserError
from must.data import splits
from must.data.combine import labels_of
from must.data.merge import Overlay
from must.data.splits import Annotated, Listed
from must.recipes import arms, believing, built, checks, grid, hints, labeling, setup, stages, training
from must.recipes.arms import Arm, Lists
from must.recipes.jobs import Job

STAGES = ("teachers", "grid", "compare", "report")
Config = Mapping[str, Any]


class Built(built.Built):
    """The objects of one seed, see `must.recipes.built.Built`; arms are the grid's students."""

    def __init__(self, config: Config, seed: int):
        super().__init__({**config, "arms": {}, "baselines": (), "pool": {}}, seed)
        self.arms: dict[str, Arm] = arms.expand(self.config["grid"], self.names, tuple(self.config["splits"]))

    def settings(self, run: str) -> dict[str, Any]:
        arm = getattr(self, "arms", {}).get(run)
        if arm is None:
            return super().settings(run)
        return {**super().settings("student"), **built.merged(self.config["student"], arm.student)}

    def everything(self) -> Source:
        """The training images with all annotations that there are."""
        first, *others = self.labeled()
        return Overlay(first, others) if others else first

    @functools.cached_property
    def annotated(self) -> dict[str, list[str]]:
        """{task: ids of the training images that have its annotation}."""
        everything = self.everything()
        found: dict[str, list[str]] = {task: [] for task in self.names}
        for i, id in enumerate(everything.ids):
            for task in labels_of(everything, i):
                if task in found:
                    found[task].append(id)
        return found


def plan(config: Config, workers: int) -> list[Job]:
    """All jobs of a configuration.

    Args:
      config: plain dict, see `configs/multas.py`.
      workers: unused, the grid has jobs enough to share.
    """
    found = arms.expand(config["grid"], tuple(config["tasks"]), tuple(config["splits"]))
    jobs = []
    for seed in config["seeds"]:
        at = prefix(config, seed)
        jobs.append(Job(f"{at}splits", "teachers", make_splits, (config, seed)))
        for split, task in teachers(found):
            jobs.append(
                Job(
                    f"{at}teachers/{split}-{task}",
                    "teachers",
                    train_teacher,
                    (config, seed, split, task),
                    (f"{at}splits",),
                )
            )
        for name, arm in found.items():
            needs = tuple(f"{at}teachers/{arm.split}-{task}" for task in arm.tasks)
            jobs.append(Job(f"{at}grid/{name}", "grid", train_arm, (config, seed, name), needs))
    trained = tuple(job.name for job in jobs if job.stage in ("teachers", "grid") and not job.name.endswith("splits"))
    jobs.append(Job("compare", "compare", grid.compare, (config,), trained, alone=True))
    jobs.append(Job("report", "report", grid.report, (config,), ("compare",), alone=True))
    return jobs


def teachers(found: Mapping[str, Arm]) -> list[tuple[str, str]]:
    """(split, task) of every teacher that some arm has or is compared with."""
    return list(dict.fromkeys((arm.split, task) for arm in found.values() for task in arm.tasks))


def check(config: Config) -> None:
    """Everything about a configuration that can be wrong and shows without training."""
    built = Built(config, config["seeds"][0])
    checks.check_sets(built)
    _check_settings(built)
    for name, arm in built.arms.items():
        if arm.labels:
            hints.check(built, name, arm)
    for split in built.config["splits"]:
        lists = _deal(built, split)
        for arm in built.arms.values():
            if arm.split == split:
                lists.images(arm, built.seed)
    grid.check(built)


def _check_settings(built: Built) -> None:
    """What the sections of the teachers and of every arm cannot mean."""
    known = set(built.settings("student")) | set(stages.Schedule._fields)
    for run, changes in {
        "teacher": {},
        "student": {},
        **{name: arm.student for name, arm in built.arms.items()},
    }.items():
        settings = built.settings(run)
        for key in changes:
            if key not in known:
                raise UserError(f"{run}: student.{key}: not a key of student: {', '.join(sorted(known))}")
        setup.build_balance(settings["balance"])
        if settings["batches"] not in ("mixed", "per_task"):
            raise UserError(f"{run}.batches {settings['batches']!r}: 'mixed' or 'per_task'")
        if not 0 <= settings["teacher_dropping"] < 1:
            raise UserError(f"{run}.teacher_dropping {settings['teacher_dropping']}: a probability below 1")
        if settings["epochs"] < 0:
            raise UserError(f"{run}.epochs {settings['epochs']}: 0, then steps count, or more")
        for frame in settings.get("frames", ()):
            if not isinstance(frame, (list, tuple)) or len(frame) != 2:
                raise UserError(f"{run}.frames: {frame!r} is not a (height, width)")
            for task in built.tasks.values():
                task.network_spec(tuple(frame))
    for kind in built.config["hints"]:
        if kind not in arms.LABELS:
            raise UserError(f"hints.{kind}: not one of {', '.join(arms.LABELS)}")
    for name in built.names:
        if name not in built.config["policies"]:
            raise UserError(f"policies: say which labels of {name} are believed")
        if not any(name in arm.tasks for arm in built.arms.values()):
            raise UserError(f"tasks.{name}: no arm of the grid learns it: leave it out")


def single(config: Config) -> Config:
    """The run that a plan is made for: there is one."""
    return config


def prefix(config: Config, seed: int) -> str:
    """Where a seed's directories stand in the workdir: at its top when there is one seed."""
    return "" if len(config["seeds"]) == 1 else f"seed-{seed}/"


def runs(built: Built) -> list[tuple[str, tuple[str, ...]]]:
    """The kinds of training runs of a seed: (section of the configuration, tasks of the network)."""
    found = [("teacher", (task,)) for _, task in teachers(built.arms)]
    return found + [(name, arm.tasks) for name, arm in built.arms.items()]


def make_splits(config: Config, seed: int, *, directory: str, report) -> dict:
    """Writes the list files: <split>/<task>.txt, what the teacher of a task learns from, and <split>/all.txt."""
    built = Built(config, seed)
    counts = {}
    for split in built.config["splits"]:
        lists = _deal(built, split)
        for name, ids in {**lists.labeled, "all": lists.everything}.items():
            if devices.is_writer():
                splits.write_list(os.path.join(directory, split, f"{name}.txt"), ids)
            counts[f"{split}/{name}"] = len(ids)
    return {"images": counts}


def train_teacher(config: Config, seed: int, split: str, task: str, *, directory: str, report) -> dict:
    """One task on the images that a split gives it, then which of its labels are believed."""
    built = Built(config, seed)
    top = labeling.seed_directory(directory, os.path.join("teachers", f"{split}-{task}"))
    ids = read_lists(built, top, split).labeled[task]
    source = Annotated(Listed(built.everything(), ids=ids), {task: ids})
    facts = training.train_run(built, (task,), source, "teacher", {task: Policy()}, directory, report)
    teacher = labeling.load_teacher(built, directory, task)
    believing.save_live(directory, built, teacher, task)
    return facts | {"images": len(ids)}


def train_arm(config: Config, seed: int, name: str, *, directory: str, report) -> dict:
    """One student of the grid."""
    built = Built(config, seed)
    arm = built.arms[name]
    top = labeling.seed_directory(directory, os.path.join("grid", name))
    lists = read_lists(built, top, arm.split)
    parts = arm_sources(built, name, lists)
    believed, asked = {task: Policy() for task in arm.tasks}, training.ALONE
    pictures = Listed(built.everything(), ids=lists.images(arm, built.seed))
    if arm.labels:
        asked, believed = hints.teachers_of(built, name, arm, os.path.join(top, "teachers"), pictures)
    facts = training.train_run(built, arm.tasks, parts, name, believed, directory, report, online=asked)
    return facts | {"images": len(pictures)}


def arm_sources(built: Built, name: str, lists: Lists) -> Source | dict[str, Source]:
    """What an arm draws from: one source, or one per task and one of images without annotation.

    An annotation that the arm may not read is not in it.
    """
    arm = built.arms[name]
    ids, shown = lists.images(arm, built.seed), lists.shown(arm)
    everything = Annotated(built.everything(), shown)
    if built.settings(name)["batches"] == "mixed" or len(arm.tasks) == 1 or not shown:
        return Listed(everything, ids=ids)
    there, groups, left = set(ids), {}, set(ids)
    for task in arm.tasks:
        mine = there.intersection(shown[task])
        groups[task] = Listed(everything, ids=[id for id in ids if id in mine]) if mine else None
        left -= mine
    if left and arm.labels:
        groups["unannotated"] = Listed(everything, ids=[id for id in ids if id in left])
    return {group: source for group, source in groups.items() if source is not None}


def read_lists(built: Built, directory: str, split: str) -> Lists:
    """The list files of a seed's directory."""
    where = os.path.join(directory, "splits", split)
    read = lambda name: splits.read_list(os.path.join(where, f"{name}.txt"))  # noqa: E731
    return Lists({task: read(task) for task in built.names}, read("all"))


def _deal(built: Built, split: str) -> Lists:
    """Draws a split, or reads the list files that the configuration names.

    Raises:
      UserError: an unknown way, ids that are not there, or tasks without images.
    """
    section, everything = built.config["splits"][split], built.everything()
    if not isinstance(section, Mapping):
        raise UserError(f"splits.{split}: {section!r}, give one of share, exclusive, files")
    section = dict(section)
    ids, files = list(everything.ids), section.pop("files", None)
    if files is not None:
        if not isinstance(files, Mapping) or not set(section) <= {"exclusive"}:
            raise UserError(f"splits.{split}: files is {{task: list file}}, beside it only exclusive")
        return _read_user_lists(built, split, everything, dict(files), section.pop("exclusive", False))
    if len(section) != 1 or not set(section) <= {"share", "exclusive"}:
        raise UserError(f"splits.{split}: give one of share (fraction or number), exclusive, files")
    annotated = built.annotated
    if "share" in section:
        try:
            chosen = set(splits.part(ids, section["share"], built.seed)[0])
        except UserError as error:
            raise UserError(f"splits.{split}: {error}") from None
        labeled = {task: [id for id in its if id in chosen] for task, its in annotated.items()}
    elif section["exclusive"] is not True:
        raise UserError(f"splits.{split}.exclusive: {section['exclusive']!r}, only True means something")
    else:
        labeled = splits.exclusive(annotated, built.seed)
    for task, its in labeled.items():
        if not its:
            raise UserError(f"splits.{split}: no annotated image for {task}")
    return Lists(labeled, ids)


def _read_user_lists(built: Built, split: str, everything: Source, files: dict[str, str], exclusive: bool) -> Lists:
    """Lists made elsewhere: a file per task, and "unseen" where that is not simply all the rest."""
    for task in built.names:
        if task not in files:
            raise UserError(f"splits.{split}.files: no list for {task}")
    for name in files:
        if name not in (*built.names, "unseen"):
            raise UserError(f"splits.{split}.files.{name}: neither a task nor 'unseen'")
    lists = {name: splits.read_list(path) for name, path in files.items()}
    labeled, seen = {task: lists[task] for task in built.names}, {id for task in built.names for id in lists[task]}
    if exclusive:
        splits.check_no_overlap({files[task]: ids for task, ids in labeled.items()})
    unseen = lists.get("unseen", [id for id in everything.ids if id not in seen])
    splits.check_no_overlap({"of the teachers": seen, files.get("unseen", "of the rest"): unseen})
    Listed(everything, ids=[*seen, *unseen])  # refuses ids that are not there
    for task, there in built.annotated.items():
        if bare := next((id for id in labeled[task] if id not in set(there)), None):
            raise UserError(f"{files[task]}: {bare} has no annotation of {task}")
    wanted = seen.union(unseen)
    return Lists(labeled, [id for id in everything.ids if id in wanted])
