"""Factors of the tasks' losses, from the settings, by kind of task, or by MuST's rule from how networks train."""

from collections.abc import Mapping

from must.core.types import UserError
from must.experiment.external import trained_with
from must.experiment.settings import Run, SingleStudent, Supervised
from must.objectives.labels import learning_rate_rule
from must.tasks.base import Task


def stated_scales(run: Run, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Factor of the loss of each task of a network without regard to teachers: from the settings, by kind, or 1."""
    by_kind = run.loss_scale_rule == "kind" and len(tasks) > 1
    return {name: run.loss_scales.get(name, task.loss_scale if by_kind else 1.0) for name, task in tasks.items()}


def loss_scales(settings: Supervised, run: Run, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Factor of the loss of each task of a network: `stated_scales`, or MuST's from batch sizes and learning rates.

    Raises:
      UserError: an external teacher without batch size and learning rate, whose factor is not set either.
    """
    if run.loss_scale_rule != "learning_rate":
        return stated_scales(run, tasks)
    if not isinstance(settings, SingleStudent):
        raise UserError("loss_scale_rule='learning_rate': needs teachers, which this recipe does not have")
    rates = {name: trained_with(settings, name) for name in settings.tasks}
    for name in settings.tasks:
        if rates[name] is None and name not in run.loss_scales:
            raise UserError(
                f"loss_scales.{name}: required by loss_scale_rule='learning_rate', since the external teacher of "
                f"{name} does not tell its batch size and learning rate"
            )
    known = {name: rate for name, rate in rates.items() if rate is not None}
    return dict(run.loss_scales) | learning_rate_rule((run.batch_size, run.optimizer.learning_rate), known)
