"""From an arm's kinds of labels to hints: its frozen teachers and what the objective takes from them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from must.core.types import Model, Policy, PyTree, Source, UserError
from must.data.combine import Subset
from must.data.pipeline import eval_batches
from must.experiment import build, labeling, networks
from must.experiment.grid import Arm
from must.experiment.settings import Following, SingleStudent
from must.experiment.training import Online
from must.objectives import distill
from must.objectives.distill import Hint
from must.tasks.base import Task

# kind: (task's name, task, levels of the student, of the teacher, options) -> Hint; a teacher has its task's name.
_MAKERS = {
    "hard": lambda name, task, own, theirs, **options: distill.hard(name, task, name, **options),
    "soft": lambda name, task, own, theirs, **options: distill.soft(name, task, name, **options),
    "mimic": lambda name, task, own, theirs, **options: distill.mimic(
        name, name, distill.shared_levels(own, theirs), **options
    ),
    "pdf": lambda name, task, own, theirs, **options: distill.pdf(
        name, task, name, distill.shared_levels(own, theirs), **options
    ),
    "defeat": lambda name, task, own, theirs, **options: distill.defeat(
        name, task, name, distill.shared_levels(own, theirs), **options
    ),
    "adaptor": lambda name, task, own, theirs, **options: distill.adaptor(name, name, own, theirs, **options),
}


def teachers_of(
    settings: SingleStudent, seed: int, run: Following, arm: Arm, directory: str, pictures: Source
) -> tuple[Online, dict[str, Policy]]:
    """The frozen teachers of an arm with what it takes from them, and which of their labels count.

    Args:
      settings: of the recipe.
      seed: of the draw of pictures below.
      run: how the arm trains.
      arm: its axes.
      directory: of the teachers.
      pictures: that the arm learns from; fixed standardizations are measured on them.
    """
    models, variables, policies = {}, {}, {}
    tasks = build.tasks_of(settings)
    for task in arm.tasks:
        at = os.path.join(directory, f"{arm.split}-{task}")
        trained = networks.load(at)
        models[task], variables[task] = trained.model, trained.variables
        policies |= labeling.read(os.path.join(at, labeling.POLICIES), tasks)
    made = hints_of(settings, run, arm, models, variables, pictures, seed)
    return Online(models, variables, made, arm.control == "shuffled"), policies


def hints_of(
    settings: Any,
    run: Following,
    arm: Arm,
    models: Mapping[str, Model],
    variables: Mapping[str, PyTree] | None = None,
    pictures: Source | None = None,
    seed: int = 0,
) -> list[Hint]:
    """What an arm takes from its teachers, one hint per task and kind of label.

    Raises:
      UserError: a hint that the two networks or the task cannot have.
    """
    size, tasks = settings.image.size, build.tasks_of(settings)
    name_of_arm = arm.name(tuple(settings.tasks))
    try:
        own = distill.feature_widths(student_model(settings, run, arm.tasks), size)
        theirs = {name: distill.feature_widths(models[name], size) for name in arm.tasks}
    except ValueError as error:
        raise UserError(f"{name_of_arm}: {error}") from None
    made = []
    for name in arm.tasks:
        for kind in arm.labels:
            options = dict(settings.hints.get(kind, {}))
            if kind == "adaptor" and options.pop("standard", "running") == "phi_s" and variables is not None:
                options["standards"] = _standards(settings, models[name], variables[name], pictures, seed)
            try:
                hint = _MAKERS[kind](name, tasks[name], own, theirs[name], **options)
            except (TypeError, ValueError) as error:
                raise UserError(f"{name_of_arm}: {kind} for {name}: {error}") from None
            # With a batch per task every row of a task's own batch has its truth: nothing is missing there.
            alone = arm.where == distill.MISSING and run.batches == "per_task"
            made.append(hint._replace(where=arm.where, skip=name if alone else ""))
    return made


def check(settings: Any, run: Following, arm: Arm) -> None:
    """Refuses hints that the networks or the tasks of an arm cannot have, from shapes alone."""
    tasks = build.tasks_of(settings)
    models = {}
    for name in arm.tasks:
        models[name] = build.network(settings.model, {name: tasks[name]}, build.teacher(settings, name).model)
    for name in arm.tasks:
        for kind, verb in (("pdf", "disagreement"), ("defeat", "foreground")):
            if kind in arm.labels and getattr(type(tasks[name]), verb) is getattr(Task, verb):
                raise UserError(f"{arm.name(tuple(tasks))}: {kind} does not work for {name}, which has no {verb}")
    standard = settings.hints.get("adaptor", {}).get("standard", "running")
    if standard not in ("running", "phi_s"):
        raise UserError(f"config.hints.adaptor.standard={standard!r}: 'running' or 'phi_s'")
    hints_of(settings, run, arm, models)


def student_model(settings: SingleStudent, run: Following, names: Sequence[str]) -> Model:
    """The network of an arm."""
    tasks = build.tasks_of(settings)
    return build.network(settings.model, {name: tasks[name] for name in names}, run.model)


def _standards(settings: SingleStudent, model: Model, variables: PyTree, source: Source, seed: int, most: int = 128):
    """PHI-S of every level, from the teacher's features of some of the pictures, drawn over all of them."""
    part = Subset(source, count=min(most, len(source)), seed=seed)
    ask = jax.jit(lambda v, x: model.apply(v, x, train=False, key=None, with_features=True)[2].pyramid)
    levels: dict[int, list[np.ndarray]] = {}
    for batch in eval_batches(part, build.encoder(settings.image, {}), batch_size=32):
        rows = batch.ids >= 0
        for stride, level in ask(variables, batch.inputs["image"]).items():
            levels.setdefault(stride, []).append(np.asarray(level)[rows].reshape(-1, level.shape[-1]))
    return {stride: distill.phi_s(*distill.moments(np.concatenate(parts))) for stride, parts in levels.items()}
