"""From an arm's labels to hints: the frozen teachers of their directories and what the objective takes from them."""

import os
from collections.abc import Mapping

import jax
import numpy as np

from must.core.types import Model, Policy, PyTree, Source, UserError
from must.data.combine import Subset
from must.data.pipeline import eval_batches
from must.objectives import adaptors, distill
from must.objectives.distill import Hint
from must.recipes import stages
from must.recipes.arms import Arm
from must.recipes.believing import BELIEVED, read
from must.recipes.built import Built
from must.recipes.training import Online
from must.tasks.base import Task

# label: (task's name, task, levels of the student, of the teacher, options) -> Hint; a teacher has its task's name.
_MAKERS = {
    "hard": lambda name, task, mine, theirs, **options: distill.hard(name, task, name, **options),
    "soft": lambda name, task, mine, theirs, **options: distill.soft(name, task, name, **options),
    "mimic": lambda name, task, mine, theirs, **options: distill.mimic(
        name, name, distill.shared_levels(mine, theirs), **options
    ),
    "pdf": lambda name, task, mine, theirs, **options: distill.pdf(
        name, task, name, distill.shared_levels(mine, theirs), **options
    ),
    "defeat": lambda name, task, mine, theirs, **options: distill.defeat(
        name, task, name, distill.shared_levels(mine, theirs), **options
    ),
    "adaptor": lambda name, task, mine, theirs, **options: adaptors.adaptor(name, name, mine, theirs, **options),
}


def teachers_of(built: Built, run: str, arm: Arm, directory: str, pictures: Source) -> tuple[Online, dict[str, Policy]]:
    """The frozen teachers of an arm with what it takes from them, and which of their labels are believed.

    Args:
      built: the seed's objects.
      run: name of the arm.
      arm: its data.
      directory: of the teachers.
      pictures: that the arm learns from; fixed standardizations are measured on them.
    """
    models, variables, believed = {}, {}, {}
    for task in arm.tasks:
        at = os.path.join(directory, f"{arm.split}-{task}")
        models[task] = built.model((task,), "teacher")
        variables[task], _ = stages.load_weights(at, models[task], built.inputs)
        believed |= read(os.path.join(at, BELIEVED), built)
    return Online(
        models, variables, hints_of(built, run, arm, models, variables, pictures), arm.control == "shuffled"
    ), believed


def hints_of(
    built: Built,
    run: str,
    arm: Arm,
    models: Mapping[str, Model],
    variables: Mapping[str, PyTree] | None = None,
    pictures: Source | None = None,
) -> list[Hint]:
    """What an arm takes from its teachers, one hint per task and kind of label.

    Raises:
      UserError: a hint that the two networks or the task cannot have.
    """
    try:
        student = distill.feature_widths(built.model(arm.tasks, run), built.size)
        teachers = {name: distill.feature_widths(models[name], built.size) for name in arm.tasks}
    except ValueError as error:
        raise UserError(f"{run}: {error}") from None
    found = []
    for name in arm.tasks:
        for kind in arm.labels:
            options = dict(built.config["hints"].get(kind, {}))
            if kind == "adaptor" and options.pop("standard", "running") == "phi_s" and variables is not None:
                options["standards"] = _standards(built, models[name], variables[name], pictures)
            try:
                hint = _MAKERS[kind](name, built.tasks[name], student, teachers[name], **options)
            except (TypeError, ValueError) as error:
                raise UserError(f"{run}: {kind} for {name}: {error}") from None
            # With a batch per task every row of a task's own batch has its truth: nothing is missing there.
            alone = arm.where == distill.MISSING and built.settings(run)["batches"] == "per_task"
            found.append(hint._replace(where=arm.where, skip=name if alone else ""))
    return found


def check(built: Built, run: str, arm: Arm) -> None:
    """Refuses hints that the networks or the tasks of an arm cannot have, from shapes alone."""
    models = {name: built.model((name,), "teacher") for name in arm.tasks}
    for name in arm.tasks:
        task = built.tasks[name]
        for kind, verb in (("pdf", "disagreement"), ("defeat", "foreground")):
            if kind in arm.labels and getattr(type(task), verb) is getattr(Task, verb):
                raise UserError(f"{run}: {kind} does not work for {name}, which has no {verb}")
    if (standard := built.config["hints"].get("adaptor", {}).get("standard", "running")) not in ("running", "phi_s"):
        raise UserError(f"hints.adaptor.standard {standard!r}: neither 'running' nor 'phi_s'")
    hints_of(built, run, arm, models)


def _standards(built: Built, model: Model, variables: PyTree, source: Source, most: int = 128):
    """PHI-S of every level, from what the teacher says of some of the pictures, drawn over all of them."""
    part = Subset(source, count=min(most, len(source)), seed=built.seed)
    ask = jax.jit(lambda v, x: model.apply(v, x, train=False, key=None, with_features=True)[2].pyramid)
    levels: dict[int, list[np.ndarray]] = {}
    for batch in eval_batches(part, built.plain._replace(tasks={}), batch_size=32):
        rows = batch.ids >= 0
        for stride, level in ask(variables, batch.inputs["image"]).items():
            levels.setdefault(stride, []).append(np.asarray(level)[rows].reshape(-1, level.shape[-1]))
    return {stride: adaptors.phi_s(*adaptors.moments(np.concatenate(parts))) for stride, parts in levels.items()}
