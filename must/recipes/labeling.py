"""The jobs in which teachers label: who, which images, into which records."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from must.core.types import Teacher
from must.pseudo_label import teacher as teachers
from must.pseudo_label.add import add_labels
from must.pseudo_label.write import label_images
from must.recipes import stages
from must.recipes.built import POOL, Built
from must.recipes.comparison import recipe_of

Config = Mapping[str, Any]


def label(config: Config, seed: int, index: int, count: int, by: str = "", *, directory: str, report) -> dict:
    """The labeling pass, or one worker's part of it: every teacher, or the student `by`, on every image.

    Up to three directories of records: what the student learns from; examples whose truth tells which labels can be
    believed; and others whose truth tells how good the labels are. With `onto` the first is another run's, which the
    labels are added to.
    """
    built = recipe_of(config).Built(config, seed)
    top = seed_directory(directory, os.path.join(label_job(by), str(index)))
    if jax.process_count() > 1:
        index, count = jax.process_index(), jax.process_count()
    section = dict(built.config["label"])
    mirror = section.pop("mirror", False)
    found = [load_student(built, top, by, mirror=mirror)] if by else teachers_of(built, top, mirror)
    options = {"worker": (index, count), "provenance": {"mirror": mirror}, "keep_aspect": built.plain.keep_aspect}
    options |= {"progress": report, **section}
    for name, source in built.to_label(by).items():
        label_images(records_directory(top, name, by), records_name(name, by), source, found, **options)
    if built.config.get("onto"):
        options.pop("copy_images", None)
        add_labels(built.config["onto"], found, **options)
    return {}


def teachers_of(built: Built, directory: str, mirror: bool) -> list[Teacher]:
    """The teachers of a seed, trained by the run or given by the configuration."""
    at = os.path.join(directory, "teachers")
    trained = [load_teacher(built, os.path.join(at, name), name, mirror=mirror) for name in built.trained()]
    return trained + list(built.given().values())


def load_teacher(built: Built, directory: str, name: str, *, mirror: bool = False) -> Teacher:
    """The trained teacher of a task."""
    return teacher_of_run(built, directory, name, (name,), "teacher", mirror)


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
