"""Factors of the tasks' losses, from the settings, by kind of task, or from how the teachers trained."""

from collections.abc import Mapping
from dataclasses import replace

from must.core.notices import notice
from must.core.types import UserError
from must.experiment import measure
from must.experiment.external import directory_of, trained_with
from must.experiment.settings import Must, Run, SingleStudent, Supervised
from must.objectives.labels import learning_rate_rule
from must.tasks.base import Task


def stated_scales(run: Run, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Factor of the loss of each task of a network without regard to teachers: from the settings, by kind, or 1."""
    by_kind = run.loss_scale_rule in ("kind", "gradient") and len(tasks) > 1
    return {name: run.loss_scales.get(name, task.loss_scale if by_kind else 1.0) for name, task in tasks.items()}


def loss_scales(settings: Supervised, run: Run, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Factor of the loss of each task of a network: `stated_scales`, or MuST's from batch sizes and learning rates.

    Raises:
      UserError: a recipe without such teachers, or an external teacher without batch size and learning rate, whose
        factor is not set either.
    """
    needed = {"learning_rate": SingleStudent, "gradient": Must}.get(run.loss_scale_rule)
    if needed and not isinstance(settings, needed):
        raise UserError(
            f"loss_scale_rule={run.loss_scale_rule!r}: needs one teacher for each task, which this recipe does not have"
        )
    if run.loss_scale_rule != "learning_rate":
        return stated_scales(run, tasks)
    rates = {name: trained_with(settings, name) for name in settings.tasks}
    for name in settings.tasks:
        if rates[name] is None and name not in run.loss_scales:
            raise UserError(
                f"loss_scales.{name}: required by loss_scale_rule='learning_rate', since the external teacher of "
                f"{name} does not tell its batch size and learning rate"
            )
    known = {name: rate for name, rate in rates.items() if rate is not None}
    return dict(run.loss_scales) | learning_rate_rule((run.batch_size, run.optimizer.learning_rate), known)


def with_gradient_scales(settings: Must, run: Run, top: str) -> Run:
    """The run with the factors of loss_scale_rule="gradient", once the teachers have trained; others as they are.

        lambda_t = mean_s(g_s) / g_t,  g_t the mean norm of the gradients with which teacher t trained

    A student's shared layers then follow no task more than another. Factors that the settings name stay, and where a
    teacher does not tell its gradients all others go by kind.

    Args:
      settings: of the recipe.
      run: of a network of all tasks.
      top: directory of the seed.
    """
    if run.loss_scale_rule != "gradient" or len(settings.tasks) < 2:
        return run
    norms = {name: gradient_norm(directory_of(settings, name, top)) for name in settings.tasks}
    if unknown := [name for name, norm in norms.items() if not norm]:
        notice(f"loss_scale_rule='gradient': the teacher of {unknown[0]} does not tell its gradients; losses by kind")
        return run
    mean = sum(norms.values()) / len(norms)
    return replace(run, loss_scales={name: mean / norm for name, norm in norms.items()} | dict(run.loss_scales))


def gradient_norm(directory: str) -> float:
    """Mean norm of the gradients with which the network in a directory trained, as logged; 0 if it does not say."""
    lines = measure.read_log(directory) if directory else []
    norms = {line["step"]: line["gradient_norm"] for line in lines if "gradient_norm" in line}
    return sum(norms.values()) / len(norms) if norms else 0.0
