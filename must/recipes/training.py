"""The jobs in which networks learn: teachers, baselines, students."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from must.core import devices
from must.core.types import Model, Policy, PyTree, Source, UserError
from must.data.combine import Cached, Concat, Repeated, Subset, Weighted
from must.data.merge import Overlay
from must.data.pipeline import epoch_steps
from must.data.weights import read_weights
from must.evaluate.evaluate import summarize
from must.objectives.distill import Hint
from must.objectives.dropping import PSEUDO
from must.objectives.slam import slam
from must.objectives.supervised import learning_rate_rule, supervised
from must.pseudo_label.teacher import in_frame
from must.readers.edited import EditedCoco
from must.readers.records import Records
from must.recipes import measuring, setup, stages, weighing
from must.recipes.believing import policies_of
from must.recipes.built import HELD_OUT, Built
from must.recipes.labeling import records_directory, seed_directory, student_job
from must.recipes.selection import Judge

Config = Mapping[str, Any]


def train_single(config: Config, seed: int, task: str, section: str, *, directory: str, report) -> dict:
    """A teacher, or with the student's schedule the scratch baseline: one task on its labeled set."""
    built = Built(config, seed)
    return train_run(built, (task,), built.split(task, "train"), section, {task: Policy()}, directory, report)


def measure_given(config: Config, seed: int, task: str, *, directory: str, report) -> dict:
    """The scores of a teacher that the configuration names, in the frame in which all columns are compared."""
    built = Built(config, seed)
    tasks, teacher = {task: built.tasks[task]}, in_frame(built.given()[task], built.size)
    facts = {}
    for split in built.config["measured_on"]:
        rows = measuring.measure_teacher(teacher, tasks, built.plain, built.splits(split, (task,)))
        if devices.is_writer():
            measuring.save_rows(os.path.join(directory, f"rows-{split}.npz"), rows)
        facts[split] = summarize(tasks, rows)
    return facts


def train_supervised(config: Config, seed: int, *, directory: str, report) -> dict:
    """The supervised multi-task baseline: all teachers' labels, no pseudo labels, the student's steps."""
    built = Built(config, seed)
    believed = {name: Policy() for name in built.names}
    return train_run(built, built.names, Concat(built.labeled()), "supervised", believed, directory, report)


def train_student(config: Config, seed: int, arm: str, *, directory: str, report) -> dict:
    """The student, or an arm of it: ground truth where an image has it, else a pseudo label, drawn uniformly.

    With `repeat_labeled` above 1 the annotated images, few among many, are met that many times as often, and their
    ground truth counts `truth_weight` times a pseudo label; with `pool_images` only so many images of the pool are met,
    together about as often as the whole pool would be.
    """
    built = Built(config, seed)
    settings = built.settings(arm)
    top, by = seed_directory(directory, student_job(arm)), settings["labels_from"]
    believed = policies_of(built, top, arm)
    records = Records(records_directory(top, by=by), tasks=list(built.names))
    source = _student_source(built, settings, records)
    weigher, seen = stages.NO_WEIGHTS, {}
    weighs = bool(built.weights(arm) or built.slam(arm))
    if weighs:
        held_out = Records(records_directory(top, HELD_OUT, by), tasks=list(built.names))
        said = weighing.Said(built, arm, believed, source, records, held_out)
        weigher, seen = weighing.weigher(said)
    if settings["mean_teacher"] or settings["drop_top"]:
        extras = _pseudo(built, settings, source.ids)
        weigher = weigher._replace(
            extras={name: {**weigher.extras.get(name, {}), **extras[name]} for name in built.names}
        )
    facts = train_run(built, built.names, source, arm, believed, directory, report, weigher)
    if weighs:
        weigher.weights(stages.load_weights(directory, built.model(built.names, arm), built.inputs)[0])  # fills `seen`
        if devices.is_writer():
            np.savez_compressed(os.path.join(directory, "weights.npz"), **seen)
    return facts | {"images": len(set(source.ids))}


def _student_source(built: Built, settings: Mapping[str, Any], records: Source) -> Source:
    """What a student draws from: ground truth before pseudo labels, as often and as heavy as its settings say."""
    labeled = built.labeled()
    times = {id: settings["repeat_labeled"] for part in labeled for id in part.ids}
    if settings["pool_images"]:
        pool = Concat(built.pool())
        part = set(Subset(pool, count=settings["pool_images"]).ids)
        times |= {id: len(pool) // len(part) if id in part else 0 for id in pool.ids}
    edits = [EditedCoco(path, records, task=task) for task, path in settings["edited"].items()]
    records = Overlay(records, edits) if edits else records
    given = read_weights(settings["weights_file"]) if settings["weights_file"] else {}
    truth_weights = {
        name: dict.fromkeys(built.split(name, "train").ids, settings["truth_weight"]) for name in built.names
    }
    weights = {name: {**given.get(name, {}), **truth_weights[name]} for name in built.names}
    if not settings["pseudo_labels"]:
        return Concat(labeled)
    truth = [*labeled, *built.hidden().values()] if settings["oracle_labels"] else labeled
    return Repeated(Weighted(Cached(Overlay(records, truth)), weights), times)


def _pseudo(built: Built, settings: Mapping[str, Any], ids: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Extras of the training examples: whether what a task's label says is a pseudo label."""
    hidden = built.hidden() if settings["oracle_labels"] else {}
    found = {}
    for name in built.names:
        true = {*built.split(name, "train").ids, *(hidden[name].ids if name in hidden else ())}
        found[name] = {PSEUDO: np.array([id not in true for id in ids], np.float32)}
    return found


class Online(NamedTuple):
    """Frozen teachers that answer in the step.

    Attributes:
      models: {name: network}.
      variables: {name: its weights}.
      hints: what is taken from them.
      shuffled: every row is given the answers to another one.
    """

    models: Mapping[str, Model]
    variables: Mapping[str, PyTree]
    hints: Sequence[Hint]
    shuffled: bool = False


ALONE = Online({}, {}, ())


def train_run(
    built: Built,
    names: Sequence[str],
    source: Source | Mapping[str, Source],
    run: str,
    believed: Mapping[str, Policy],
    directory: str,
    report,
    weigher: stages.Weigher = stages.NO_WEIGHTS,
    online: Online = ALONE,
) -> dict:
    """Trains on `source` by the named section, then scores the selected weights on the measured splits.

    Args:
      built: the seed's objects.
      names: tasks of the network.
      source: of training examples; or {group: source}, then every step takes a batch of each.
      run: section of the configuration, or arm.
      believed: which labels count, per task.
      directory: of the run.
      report: progress.
      weigher: of the examples.
      online: teachers that answer in the step.
    """
    settings, model = built.settings(run), built.model(names, run)
    measured = {name: built.tasks[name] for name in names}
    learned = {name: built.tasks_of(run)[name] for name in names}
    found = built.slam(run)
    if settings["drop_top"] and not weigher.extras:
        raise UserError(f"{run}.drop_top: this recipe's students learn from no pseudo labels that could be dropped")
    encoder, teacher = built.encoder(names, run), built.mean_teacher(run)
    # The average starts from the weights that the run starts from.
    variables = stages.fresh(model, encoder, built.seed) if teacher is not None else None
    corrections = dict.fromkeys(found.tasks, functools.partial(slam, normalize=found.normalize)) if found else {}
    objective = supervised(
        model,
        learned,
        scales=_scales(built, run),
        policies={name: believed[name] for name in names},
        corrections=corrections,
        normalize=settings["normalize"],
        teachers=online.models,
        hints=online.hints,
        teacher_dropping=settings["teacher_dropping"],
        shuffled=online.shuffled,
        mean_teacher=teacher,
        initial=None if variables is None else variables["params"],
        drop_top=settings["drop_top"],
        drop_after=settings["drop_after"],
    )
    facts = stages.train(
        directory,
        seed=built.seed,
        model=model,
        tasks=measured,
        objective=objective,
        balance=setup.build_balance(settings["balance"]),
        source=source,
        encoder=encoder,
        schedule=_schedule(built, run, source),
        judge=Judge(built.shown(names), built.splits("validation", names)),
        weigher=weigher,
        changes=built.changes(names, run),
        variables=variables,
        frozen=online.variables or None,
        report=report,
    )
    variables, _ = stages.load_weights(directory, model, built.shown(names).blank_inputs()["image"])
    model, encoder = built.judged(names, run)
    for split in built.config["measured_on"]:
        rows = measuring.measure(variables, model, measured, encoder, built.splits(split, names))
        if devices.is_writer():
            measuring.save_rows(os.path.join(directory, f"rows-{split}.npz"), rows)
        facts[split] = summarize(measured, rows)
    return facts


def _schedule(built: Built, run: str, source: Source | Mapping[str, Source]) -> stages.Schedule:
    """The run's schedule, epochs turned into steps: an epoch is as long as the largest set."""
    schedule, epochs = built.schedule(run), built.settings(run)["epochs"]
    if not epochs:
        return schedule
    parts = source if isinstance(source, Mapping) else {"": source}
    counts = {group: len(part) for group, part in parts.items()}
    return schedule._replace(steps=epochs * epoch_steps(counts, schedule.batch_size))


def _scales(built: Built, run: str) -> dict[str, float]:
    """Factor of each task's loss: given numbers, or MuST's rule from the teachers' batch sizes and learning rates."""
    scales = built.settings(run)["scales"]
    if scales != "learning_rate_rule":
        return {name: scales.get(name, 1.0) for name in built.names}
    mine, theirs = (built.settings(run) for run in (run, "teacher"))
    teacher = (theirs["batch_size"], theirs["optimizer"]["learning_rate"])
    student = (mine["batch_size"], mine["optimizer"]["learning_rate"])
    return learning_rate_rule(student, dict.fromkeys(built.names, teacher))
