"""Label jobs: which teachers label which images, into which records, and which of their labels count.

Records of a seed: the pool, which students learn from; held-out images, whose truth chooses thresholds and weights; and
evaluation images, whose truth measures the quality of the labels. Labels may come from the teachers or, in a further
round, from a student.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from must.core import devices
from must.core.types import Label, Policy, Source, Teacher, UserError
from must.data.merge import BY_TEACHER, Paired
from must.data.pipeline import Encoder, eval_batches
from must.evaluate.evaluate import Everything
from must.experiment import acceptance, build, networks
from must.experiment.external import external_teachers
from must.experiment.settings import LabelPolicy, Must, SingleStudent
from must.pseudo_label import policy as policies
from must.pseudo_label.beam import label_with_beam
from must.pseudo_label.policy import read_policies, save_policies
from must.pseudo_label.write import add_labels, label_images
from must.readers.records import Records
from must.tasks.base import Task
from must.tasks.tiles import tiled

POOL, HELD_OUT, EVALUATION = "pool", "held_out", "measured"
POLICIES = "policy.json"  # of the configuration; a run with policies of its own has "policy-<run>.json"
Pairs = Iterator[tuple[Label, Label]]


class LabelPass(NamedTuple):
    """One pass of the teachers of a seed, or of a student, over images.

    Attributes:
      images: {name of the records: source}.
      tasks: {task: Task} in the frame in which labels are compared.
      encoder: of that frame.
      options: of `must.label_images`.
      hflip_tta: average predictions for a picture and its mirror image.
      by: student whose predictions are the labels; "" for the teachers.
      onto: records of an earlier pass that the labels are added to.
      tiles: ((rows, columns), overlap) in which teachers see a picture.
    """

    images: Mapping[str, Source]
    tasks: Mapping[str, Task]
    encoder: Encoder
    options: Mapping[str, Any]
    hflip_tta: bool = False
    by: str = ""
    onto: str = ""
    tiles: tuple[tuple[int, int], float] = ((1, 1), 0.0)


MakePass = Callable[[], tuple[LabelPass, Sequence[Teacher]]]


def label(settings: Must, seed: int, index: int, count: int, by: str = "", *, directory: str, report) -> dict:
    """The job: one worker's part of the label pass, every teacher or the student `by` on every image."""
    top = seed_directory(directory, os.path.join(label_job(by), str(index)))
    run_pass(partial(_pass, settings, top, by), top, (index, count), report)
    return {}


def _pass(settings: Must, top: str, by: str) -> tuple[LabelPass, list[Teacher]]:
    one = label_pass(settings, by)
    return one, teachers_of(settings, top, one)


def label_evaluation(settings: Must, top: str, report) -> None:
    """Labels the evaluation images of a seed, whose truth measures the quality of the labels."""
    one = label_pass(settings)._replace(images={EVALUATION: images_of(settings, EVALUATION)})
    run_pass(lambda: (one, teachers_of(settings, top, one)), top, (0, 1), report)


def images_of(settings: Must, name: str) -> Source:
    """The images that records are of."""
    if name == POOL:
        return build.all_images(settings)
    return build.together(build.splits(settings, "validation" if name == HELD_OUT else settings.eval_splits[0]))


def records_of(
    settings: Must, top: str, tasks: Sequence[str], name: str = POOL, by: str = "", *, verify: bool = False
) -> Records:
    """Records in a seed's directory; those that hold no pictures take them from the images that were labeled."""
    images = None if settings.label.copy_images else images_of(settings, name)
    return Records(records_directory(top, name, by), tasks=tasks, images=images, verify=verify)


def label_pass(settings: Must, by: str = "") -> LabelPass:
    """What is labeled in a seed of MuST for its students to learn from, and to choose policies by."""
    tasks = build.tasks_of(settings)
    names = (POOL, HELD_OUT) if uses_validation(settings) else (POOL,)
    images, section = {name: images_of(settings, name) for name in names}, settings.label
    names_of = ("shards", "batch_size", "copy_images", "max_rejects", "patience")
    options = {name: getattr(section, name) for name in names_of}
    tiles = (section.tiles, section.overlap)
    return LabelPass(images, tasks, build.encoder(settings.image, tasks), options, section.hflip_tta, by, tiles=tiles)


_PIPELINE: ContextVar[Sequence[str] | None] = ContextVar("options of Apache Beam", default=None)


@contextlib.contextmanager
def pipeline(options: Sequence[str] | None) -> Iterator[None]:
    """In this block Apache Beam labels, by these options; None: this process."""
    token = _PIPELINE.set(options)
    try:
        yield
    finally:
        _PIPELINE.reset(token)


def run_pass(make: MakePass, top: str, worker: tuple[int, int], report) -> None:
    """Writes the records of a pass below a seed's directory.

    Args:
      make: () -> (the pass, its teachers); picklable for Apache Beam, whose workers make them for themselves.
      top: the seed's directory.
      worker: (index, count), this one of as many.
      report: progress.

    Raises:
      UserError: as `must.label_images`, or records that get further labels by Beam.
    """
    one, teachers = make()
    if jax.process_count() > 1:
        worker = jax.process_index(), jax.process_count()
    options = {"keep_aspect": one.encoder.keep_aspect, "provenance": {"mirror": one.hflip_tta}, **one.options}
    if (beam := _PIPELINE.get()) is not None:
        if one.onto:
            raise UserError(f"--beam: not for finished records that get further labels, {one.onto}")
        for name in one.images:
            where = records_directory(top, name, one.by), records_name(name, one.by)
            label_with_beam(*where, partial(_images_and_teachers, make, name), pipeline=beam, **options)
        return
    options |= {"worker": worker, "progress": report}
    teachers = [tiled(teacher, *one.tiles) for teacher in teachers]
    for name, source in one.images.items():
        label_images(records_directory(top, name, one.by), records_name(name, one.by), source, teachers, **options)
    if one.onto:
        options.pop("copy_images", None)
        add_labels(one.onto, teachers, **options)


def _images_and_teachers(make: MakePass, name: str) -> tuple[Source, list[Teacher]]:
    one, teachers = make()
    return one.images[name], [tiled(teacher, *one.tiles) for teacher in teachers]


def teachers_of(settings: Must, top: str, one: LabelPass) -> list[Teacher]:
    """The teachers of a seed, trained or external; or one of its students as the teacher of all tasks."""
    if one.by:
        at = os.path.join(top, student_job(one.by))
        return [networks.as_teacher(at, one.by, hflip_tta=one.hflip_tta)]
    external = external_teachers(settings, one.tasks, hflip_tta=one.hflip_tta)
    trained = [
        networks.as_teacher(os.path.join(top, "teachers", name), name, hflip_tta=one.hflip_tta)
        for name in settings.tasks
        if name not in external
    ]
    return trained + list(external.values())


def uses_validation(settings: Must) -> bool:
    """Whether weights, corrections or thresholds of some student come from the validation split."""
    for name in build.students(settings):
        run = build.student(settings, name)
        if run.weights.kind != "none" or run.slam.enabled:
            return True
        if any(section.from_validation for section in build.policies(settings, run).values()):
            return True
    return False


def choose_policies(settings: Must, seed: int, by: str = "", *, directory: str, report) -> dict:
    """The job: which labels of the teachers, or of the student `by`, count for each run that learns from them."""
    top = seed_directory(directory, policy_job(by))
    tasks = build.tasks_of(settings)
    plain, truth = build.encoder(settings.image, tasks), build.splits(settings, "validation")
    chosen: dict[Any, tuple[Policy, dict]] = {}

    def choose(sections: Mapping[str, LabelPolicy]) -> dict[str, tuple[Policy, dict]]:
        for name in tasks:
            key = (name, repr(sections[name]))
            if key not in chosen:
                pairs = recorded_pairs(top, by, truth[name], name, plain, tasks[name])
                chosen[key] = fitted(tasks[name], name, sections[name], pairs)
        return {name: chosen[name, repr(sections[name])] for name in tasks}

    save(os.path.join(directory, POLICIES), choose(build.policies(settings)), tasks)
    for arm in build.students(settings):
        run = build.student(settings, arm)
        if run.labels_from == by and run.policies:
            save(os.path.join(directory, policy_file(arm)), choose(build.policies(settings, run)), tasks)
    held_out = records_of(settings, top, list(tasks), HELD_OUT, by) if uses_validation(settings) else None
    policies = {name: policy for name, (policy, _) in choose(build.policies(settings)).items()}
    pool = records_of(settings, top, list(tasks), by=by)
    return acceptance.measure(tasks, policies, plain, pool, truth, held_out)


def fitted(task: Task, name: str, section: LabelPolicy, pairs: Iterator[tuple[Label, Label]]) -> tuple[Policy, dict]:
    """A task's policy as configured, or fitted to predictions whose truth is known.

    Raises:
      UserError: the labels have no scores to choose thresholds from.
    """
    if not section.from_validation:
        return build.fixed_policy(section), {}
    fit = policies.fit(
        task,
        pairs,
        calibration=section.calibration,
        target_precision=section.target_precision,
        negative_below=section.negative_below,
        min_count=section.min_count,
        max_count=section.max_count,
        confidence=section.confidence,
    )
    if fit is None:
        raise UserError(f"config.policies.{name}.from_validation: its labels carry no scores to choose thresholds from")
    return fit


def recorded_pairs(top: str, by: str, truth: Source, name: str, encoder: Encoder, task: Task) -> Pairs:
    """(prediction, truth) of every held-out example, from the records of a pass."""
    records = Records(records_directory(top, HELD_OUT, by), tasks=[name], verify=False)
    for prediction, true, _ in recorded(records, truth, name, encoder, task):
        yield prediction, true


def recorded(
    records: Source, truth: Source, name: str, encoder: Encoder, task: Task
) -> Iterator[tuple[Label, Label, str]]:
    """(recorded prediction, truth, id) of every example that is annotated for the task, in the network's frame and
    with all boxes."""
    both = Paired(truth, records)
    rows = encoder._replace(tasks=dict.fromkeys((name, name + BY_TEACHER), Everything(task)))
    for index, id in enumerate(both.ids):
        row = rows(both[index], index, np.random.default_rng(index))
        if row.weights[name] and row.weights[name + BY_TEACHER]:
            yield row.labels[name + BY_TEACHER], row.labels[name], id


def save_live(directory: str, settings: SingleStudent, teacher: Teacher, name: str) -> None:
    """The policy of a teacher without records, from its predictions on the validation split."""
    tasks = build.tasks_of(settings)
    encoder = build.encoder(settings.image, {name: tasks[name]})

    def pairs() -> Pairs:
        for batch in eval_batches(build.split(settings, name, "validation"), encoder, batch_size=64):
            predictions = jax.device_get(teacher.predict(batch.inputs["image"])[name])
            for row in np.flatnonzero(batch.weights[name]):
                yield tuple(
                    {k: np.asarray(v)[row] for k, v in one.items()} for one in (predictions, batch.labels[name])
                )

    save(
        os.path.join(directory, POLICIES),
        {name: fitted(tasks[name], name, build.policies(settings)[name], pairs())},
        tasks,
    )


def policies_of(settings: Must, top: str, arm: str) -> dict[str, Policy]:
    """{task: which labels count for a student of the seed in a directory}."""
    run = build.student(settings, arm)
    name = policy_file(arm) if run.policies else POLICIES
    return read(os.path.join(top, policy_job(run.labels_from), name), build.tasks_of(settings))


def read(path: str, tasks: Mapping[str, Task]) -> dict[str, Policy]:
    """The policies in a file, with one threshold per class of the tasks."""
    return read_policies(path, {name: task.classes for name, task in tasks.items() if getattr(task, "classes", ())})


def save(path: str, chosen: Mapping[str, tuple[Policy, dict]], tasks: Mapping[str, Task]) -> None:
    """Writes policies with the facts behind them."""
    if devices.is_writer():
        save_policies(path, {name: (policy, facts, tasks[name]) for name, (policy, facts) in chosen.items()})


def label_job(by: str = "") -> str:
    """Name of the jobs in which the teachers, or the student `by`, label; each has a number below it."""
    return os.path.join("label_by", by) if by else "label"


def policy_job(by: str = "") -> str:
    """Name of the job that chooses which of these labels count."""
    return os.path.join("policy_by", by) if by else "policy"


def policy_file(arm: str) -> str:
    """The file of a student's own policies."""
    return f"policy-{arm}.json"


def student_job(arm: str) -> str:
    """Name of the job that trains the student or an arm."""
    return "student" if arm == "student" else os.path.join("arms", arm)


def records_name(name: str, by: str = "") -> str:
    """Of the records that the teachers, or the student `by`, wrote."""
    return f"{name}_by_{by}" if by else name


def records_directory(directory: str, name: str = POOL, by: str = "") -> str:
    """Where a seed's records lie."""
    return os.path.join(directory, "pseudo_labels", records_name(name, by), "1.0.0")


def seed_directory(directory: str, job: str) -> str:
    """The directory of a seed, from that of one of its jobs and the job's name."""
    return directory[: -len(job)].rstrip(os.sep)
