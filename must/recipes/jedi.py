"""JEDI, joint experts over several data sets (Bicsi et al. 2023): experts -> joint -> compare -> report.

Every set has an expert, trained alone until its validation score stops rising. The experts are the first students of
the joint stage, in which a teacher per set reads the features of all of them. Arms are further joint stages from the
same experts with other settings and as many steps: without distillation, with shuffled predictions, with frozen
backbones.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from must.core.arguments import check_names
from must.core.types import UserError
from must.data.combine import labels_of
from must.data.disjoint import check_disjoint
from must.data.pipeline import eval_batches
from must.evaluate.results import MEAN, Column, Contrast
from must.evaluate.statistics import confusion
from must.experiment import build, checks, jobs, measure, networks, plan
from must.experiment import joint as stage
from must.experiment.compare import (
    Answer,
    Answers,
    Comparison,
    closing_jobs,
    cost,
    median_time,
    predictor_of,
    read_curves,
)
from must.experiment.jobs import Job
from must.experiment.joint import ARM, OVERLAPS, JointSettings, Seed
from must.experiment.run import Members, Recipe
from must.experiment.settings import Init
from must.models.experts import TEACHER
from must.report.page import Section, clips_section, confusion_section, curves_section

STAGES = ("experts", "joint", "compare", "report")
_ROWS = 16  # examples on which a network is timed
_repeated = functools.partial(np.repeat, repeats=_ROWS, axis=0)


def work(members: Members, workers: int) -> list[Job]:
    """All jobs, in the order of preference."""
    made = []
    for member in members:
        settings, common, at = member.settings, (member.settings, member.seed), member.prefix
        search = () if settings.overlaps == "ignore" else (f"{at}{OVERLAPS}",)
        made += [Job(job, "experts", stage.find_overlaps, common) for job in search]
        own = tuple(f"{at}experts/{name}" for name in settings.tasks)
        for job, name in zip(own, settings.tasks, strict=True):
            made.append(Job(job, "experts", stage.train_expert, (*common, name), search))
        first = f"{at}joint/{ARM}"
        made.append(Job(first, "joint", stage.train_joint, (*common, ARM), own))
        for arm in settings.arms:  # they make as many steps as the joint stage made
            made.append(Job(f"{at}joint/{arm}", "joint", stage.train_joint, (*common, arm), (*own, first)))
    return [*made, *closing_jobs(made, members, comparison(members), page_sections)]


def check(members: Members) -> None:
    """Everything about a configuration that can be wrong and shows without training."""
    settings = members[0].settings
    one = Seed(settings, members[0].seed)
    for name, task in one.tasks.items():
        if not checks.labels_images(task):
            raise UserError(f"config.tasks.{name}: joint experts predict classes, not {type(task).__name__.lower()}")
    checks.check_sets(settings, stage.all_examples(settings))
    for split in settings.eval_splits:
        for name in one.names:  # the weights that are best on one would be scored on the same examples
            if split != "validation":
                ends = {f"{name} {part}": one.split(name, part) for part in ("validation", split)}
                check_disjoint(ends)
    for source in one.pool():
        for name in set(labels_of(source, 0)) & set(one.names):
            raise UserError(
                f"config.pool: {source.name} has labels of {name!r}, which the joint stage would learn alone"
            )
    checks.check_run(settings, dataclasses.replace(settings.expert, init=Init()), "config.expert")
    stage.check_weights(settings)
    for arm in (ARM, *settings.arms):
        path = "config.joint" if arm == ARM else f"config.arms.{arm}"
        if arm in ("teacher", "student", "expert") or (arm == ARM and arm in settings.arms):
            raise UserError(f"{path}: the results already have a column of that name")
        run = stage.run_of(settings, arm)
        build.balance(run)
        stage.joined(settings, run)
    columns = {one.column.name for one in comparison(members).columns}
    named = [name for pair in (*settings.pairs, *settings.expected) for name in pair]
    check_names("config.pairs, expected and controls", (*named, *settings.controls), columns)
    for better, worse in settings.expected:
        if not {(better, worse), (worse, better)} & set(settings.pairs):
            raise UserError(f"config.expected: {better} and {worse} are not one of config.pairs")


def columns_of(arm: str) -> tuple[str, str]:
    """The columns of an arm of the joint stage: (its students, its teachers)."""
    return ("student", "teacher") if arm == ARM else (arm, f"{arm}-teacher")


def comparison(members: Members) -> Comparison:
    """Experts, students and teachers of every arm, by set and as means over the sets."""
    settings = members[0].settings
    answers = {"expert": {name: Answer(f"experts/{name}") for name in settings.tasks}}
    for arm in (ARM, *settings.arms):
        student, teacher = columns_of(arm)
        answers[student] = {name: Answer(f"joint/{arm}") for name in settings.tasks}
        answers[teacher] = {name: Answer(f"joint/{arm}", TEACHER.format(name)) for name in settings.tasks}
    columns = [
        Answers(Column(name, description=settings.words.get(name, ""), control=name in settings.controls), by_task)
        for name, by_task in answers.items()
    ]
    side = dict.fromkeys(settings.expected, "above") | {(b, a): "below" for a, b in settings.expected}
    contrasts = [
        Contrast(
            f"{a} vs {b}", [(a, b)], (MEAN, "tasks") if len(settings.tasks) > 1 else ("tasks",), "", side.get((a, b))
        )
        for a, b in settings.pairs
    ]
    label = "mean over sets" if len(settings.tasks) > 1 else ""
    alone = len({member.seed for member in members}) == 1  # classes are resampled in no time
    return Comparison(columns, contrasts, mean_label=label, intervals_over_images=alone, costs=costs, notes=notes)


def notes(members: Members, workdir: str) -> list[str]:
    """How many examples and steps stand behind the numbers."""
    settings, one = members[0].settings, Seed(members[0].settings, members[0].seed)
    splits = ("train", "validation", settings.eval_splits[0])
    counts = ", ".join(f"{name} {' / '.join(str(len(one.split(name, s))) for s in splits)}" for name in one.names)
    steps: dict[str, list[int]] = {"experts": [], "joint stage": []}
    for member in members:
        steps["experts"] += [jobs.facts(workdir, f"{member.prefix}experts/{name}")["steps"] for name in one.names]
        steps["joint stage"].append(jobs.facts(workdir, f"{member.prefix}joint/{ARM}")["steps"])
    made = ", ".join(f"{key} {min(n):,}" + (f" to {max(n):,}" if min(n) < max(n) else "") for key, n in steps.items())
    return [
        f"Annotated for training / validation / {splits[-1]}: {counts}; {sum(map(len, one.pool())):,} without labels.",
        f"Steps: {made}; every arm makes as many as the joint stage of its seed.",
    ]


def costs(members: Members, workdir: str) -> dict[str, dict[str, float]]:
    """Per column: networks, parameters, time per example to have all sets answered."""
    member = members[0]
    settings, top = member.settings, os.path.join(workdir, member.prefix)
    found = {}
    for column, where in (("expert", "experts/{}"), ("student", f"joint/{ARM}/students/{{}}")):
        parameters, seconds = 0, 0.0
        for name in settings.tasks:
            predict, count = predictor_of(os.path.join(top, where.format(name)))
            inputs = _repeated(stage.expert_encoder(settings, name).blank_inputs()["image"])
            parameters += count
            seconds += median_time(lambda predict=predict, inputs=inputs: predict(inputs))
        found[column] = cost(len(settings.tasks), parameters, seconds, _ROWS)
    variables, predict = _joint_predictor(settings, top)
    inputs = jax.tree.map(_repeated, stage.joint_encoder(settings).blank_inputs())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    seconds = median_time(lambda: predict(variables, inputs))
    return found | {"teacher": cost(len(settings.tasks), parameters, seconds, _ROWS)}


def _joint_predictor(settings: JointSettings, top: str):
    variables = jax.device_put(stage.load_joint(settings, os.path.join(top, "joint", ARM)))
    tasks = stage.both_tasks(build.tasks_of(settings))
    return variables, measure.predictor(stage.joined(settings).model, tasks)


def page_sections(members: Members, workdir: str) -> list[Section]:
    """Curves of the joint stage, who predicts what for which set, and test examples with predictions."""
    member = members[0]
    settings, top = member.settings, os.path.join(workdir, member.prefix)
    curves = {f"joint/{arm}": read_curves(os.path.join(top, "joint", arm)) for arm in (ARM, *settings.arms)}
    selected = {run: jobs.facts(top, run)["selected_step"] for run in curves}
    experts = {name: jobs.facts(top, f"experts/{name}")["validation"][name] for name in settings.tasks}
    levels = {name: (score, "expert") for name, score in experts.items()}
    classes = {name: task.classes for name, task in build.tasks_of(settings).items()}
    confusions = _confusions(settings, top, classes)
    learning = curves_section(curves, levels=levels, selected=selected)
    return [learning, confusion_section(confusions, classes), clips_section(_clips(settings, top))]


def _confusions(settings: JointSettings, top: str, classes: Mapping[str, tuple]) -> dict[str, dict[str, np.ndarray]]:
    """{set: {head: rates [C_set, C_head]}}: every student's predictions for the test examples of every set."""
    variables, predict = _joint_predictor(settings, top)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in settings.tasks:
        probs: dict[str, list[np.ndarray]] = {head: [] for head in settings.tasks}
        truth = []
        encoder = stage.joint_encoder(settings, tasks=(name,))
        for batch in eval_batches(build.split(settings, name, settings.eval_splits[0]), encoder, batch_size=32):
            real = batch.ids >= 0
            predictions = predict(variables, batch.inputs)
            for head, parts in probs.items():
                parts.append(np.asarray(predictions[head]["probs"])[real])
            truth.append(batch.labels[name]["probs"].argmax(-1)[real])
        ids = np.concatenate(truth)
        found[name] = {head: confusion(np.concatenate(parts), ids, len(classes[name])) for head, parts in probs.items()}
    return found


def _clips(settings: JointSettings, top: str, most: int = 4) -> dict[str, list[dict[str, Any]]]:
    """Test examples of every set, spread over it, with the predictions of expert, student and teacher."""
    variables, predict = _joint_predictor(settings, top)
    tasks, found = build.tasks_of(settings), {}
    for name, task in tasks.items():
        source = build.split(settings, name, settings.eval_splits[0])
        chosen = np.unique(np.linspace(0, len(source) - 1, most).round().astype(int))
        encoders = (stage.expert_encoder(settings, name), stage.joint_encoder(settings, tasks=(name,)))
        alone, together = (
            [encoder(source[int(i)], int(i), np.random.default_rng(0)) for i in chosen] for encoder in encoders
        )
        own = np.stack([row.inputs["image"] for row in alone])
        every = jax.tree.map(lambda *leaves: np.stack(leaves), *(row.inputs for row in together))
        predictions = {"teacher": predict(variables, every)[TEACHER.format(name)]}
        for column, where in (("expert", f"experts/{name}"), ("student", f"joint/{ARM}/students/{name}")):
            trained = networks.load(os.path.join(top, where))
            predictions[column] = measure.predictor(trained.model, {name: task})(trained.variables, own)[name]
        found[name] = [
            {
                "video": own[i] if settings.image.video else own[i][None],  # a picture is a clip of one frame
                "truth": task.classes[int(row.labels[name]["probs"].argmax())],
                "classes": task.classes,
                "predictions": {c: np.asarray(predictions[c]["probs"])[i] for c in ("expert", "student", "teacher")},
            }
            for i, row in enumerate(alone)
        ]
    return found


def dry_run(members: Members) -> None:
    """Prints what a run means: data, networks, hours."""
    settings = members[0].settings
    plan.describe_data(members, stage.all_examples, "to learn from")
    runs = [("expert", settings.expert, (name,)) for name in settings.tasks]
    runs += [(arm, stage.run_of(settings, arm), tuple(settings.tasks)) for arm in (ARM, *settings.arms)]
    plan.describe_runs(members, runs, stage.planned, functools.partial(stage.batches_of_step, settings))


def finished(members: Members) -> dict[str, str]:
    """The students of the first seed's joint stage."""
    at = f"{members[0].prefix}joint/{ARM}/students"
    return {name: f"{at}/{name}" for name in members[0].settings.tasks}


RECIPE = Recipe("jedi", JointSettings, STAGES, work, check, dry_run, students=finished)
