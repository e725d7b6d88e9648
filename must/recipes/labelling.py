"""The jobs in which teachers label: who, which images, into which records."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from must.core.types import Source, Teacher
from must.data.merge import Overlay
from must.pseudo_label import teacher as teachers
from must.pseudo_label.write import label_images
from must.recipes import stages
from must.recipes.built import Built
from must.recipes.measuring import by_source

Config = Mapping[str, Any]
POOL, HELD_OUT, MEASURED = "pool", "held_out", "measured"


def label(config: Config, seed: int, index: int, count: int, by: str = "", *, directory: str, report) -> dict:
    """The labelling pass, or one worker's part of it: every teacher, or the student `by`, on every image.

    Three directories of records: what the student learns from; the validation splits, where the truth tells which labels
    can be believed; and, for the report on their quality, the first measured split.
    """
    built = Built(config, seed)
    top = seed_directory(directory, os.path.join(label_job(by), str(index)))
    if jax.process_count() > 1:
        index, count = jax.process_index(), jax.process_count()
    section = dict(built.config["label"])
    mirror = section.pop("mirror")
    found = [load_student(built, top, by, mirror=mirror)] if by else list(load_teachers(built, top, mirror).values())
    for name, source in to_label(built, by).items():
        label_images(
            records_directory(top, name, by),
            records_name(name, by),
            source,
            found,
            worker=(index, count),
            provenance={"mirror": mirror},
            keep_aspect=built.plain.keep_aspect,
            progress=report,
            **section,
        )
    return {}


def to_label(built: Built, by: str = "") -> dict[str, Source]:
    """{name of the records: images}."""
    wanted = {POOL: built.everything()}
    if built.weighs() or built.judges():
        wanted[HELD_OUT] = _together(built.splits("validation"))
    if built.config.get("quality") and not by:
        wanted[MEASURED] = _together(built.splits(built.config["measured_on"][0]))
    return wanted


def load_teacher(built: Built, directory: str, name: str, *, mirror: bool = False) -> Teacher:
    """The teacher of a task, trained by this run or given by the configuration."""
    if name in built.given():
        return built.given()[name]
    return teacher_of_run(built, directory, name, (name,), "teacher", mirror)


def load_teachers(built: Built, directory: str, mirror: bool) -> dict[str, Teacher]:
    """The teachers of a seed by task."""
    at = os.path.join(directory, "teachers")
    return {name: load_teacher(built, os.path.join(at, name), name, mirror=mirror) for name in built.names}


def load_student(built: Built, directory: str, run: str, *, mirror: bool = False) -> Teacher:
    """A student of a seed as the teacher of all tasks."""
    return teacher_of_run(built, os.path.join(directory, student_job(run)), run, built.names, run, mirror)


def teacher_of_run(built: Built, directory: str, name: str, tasks: Sequence[str], run: str, mirror: bool) -> Teacher:
    """A network that a run of this kind trained in a directory, as a teacher of its tasks."""
    tasks = tuple(tasks)
    model = built.model(tasks, run)
    variables, _ = stages.load_weights(directory, model, built.inputs)
    return teachers.from_model(
        name,
        model,
        jax.device_put(variables),
        {task: built.tasks[task] for task in tasks},
        size=built.size,
        fingerprint=stages.weights_fingerprint(variables),
        mirror=mirror,
    )


def _together(splits: Mapping[str, Source]) -> Source:
    first, *others = (split for split, _ in by_source(splits))
    return Overlay(first, others) if others else first


def label_job(by: str = "") -> str:
    """Name of the jobs in which the teachers, or the student `by`, label; each has a number below it."""
    return os.path.join("label_by", by) if by else "label"


def policy_job(by: str = "") -> str:
    """Name of the job that chooses which of these labels are believed."""
    return os.path.join("policy_by", by) if by else "policy"


def student_job(run: str) -> str:
    """Name of the job that trains the student or an arm of it."""
    return "student" if run == "student" else os.path.join("arms", run)


def records_name(name: str, by: str = "") -> str:
    """Of the records that the teachers, or the student `by`, wrote."""
    return f"{name}_by_{by}" if by else name


def records_directory(directory: str, name: str = POOL, by: str = "") -> str:
    """Where a seed's records lie."""
    return os.path.join(directory, "pseudo_labels", records_name(name, by), "1.0.0")


def seed_directory(directory: str, job: str) -> str:
    """The seed's directory, from that of one of its jobs and the job's name below it."""
    return directory[: -len(job)].rstrip(os.sep)
