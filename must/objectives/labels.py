"""The labels of a batch as supervision: a task's own loss on ground truth and pseudo labels alike."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from must.core.types import Array, Batch, Label, Model, PerExample, Policy, PyTree
from must.objectives.objective import Forward, Part
from must.tasks.base import Task

# (outputs, label in network form, target, the supervision's extras) -> {term: PerExample}, as `Task.loss`
Correction = Callable[[Any, Label, Any, dict[str, Array]], dict[str, PerExample]]

PSEUDO = "pseudo"  # in `Batch.extras[supervision]`: other than 0 where the label is a teacher's, [B]


def labels(
    tasks: Mapping[str, Task],
    policies: Mapping[str, Policy],
    *,
    corrections: Mapping[str, Correction] = {},
    small_loss: float = 0.0,
    small_loss_after: int = 0,
) -> Part:
    """Every task's loss on the labels that a batch has.

    Args:
      tasks: by name; the supervision of a task is its name, or "<task>@<source>" for one source of several, all of
        which share one denominator.
      policies: {task: which labels are accepted}; the hints of these tasks use the same.
      corrections: {task: loss in place of the task's own}, which reads `Batch.extras`, see `must.objectives.slam`.
      small_loss: share of the pseudo labels, those with the largest losses of a task in a batch, that a step leaves
        out; needs `Batch.extras[supervision]["pseudo"]`. With groups, each group leaves out its own.
      small_loss_after: steps before any is left out.

    Raises:
      ValueError: `small_loss` or `small_loss_after` is out of range.
    """
    if not 0 <= small_loss < 1 or small_loss_after < 0:
        raise ValueError(f"small_loss {small_loss} or small_loss_after {small_loss_after} is out of range")

    def terms(state, forward: Forward):
        share = jnp.where(forward.step >= small_loss_after, small_loss, 0.0) if small_loss else None
        return list(_labeled(forward, tasks, corrections, share)), state

    # Thresholds are data: one compiled step serves every choice of them.
    bounds = {name: _per_class(policies[name].checked(name), task) for name, task in tasks.items()}
    names = [f"{name}/{term}" for name, task in tasks.items() for term in task.terms]
    return Part(dict.fromkeys(names, 1.0), terms, policies=bounds)


def _labeled(forward: Forward, tasks, corrections, share: Array | None):
    batch, outputs = forward.batch, forward.student.outputs
    for supervision, label in batch.labels.items():
        name = supervision.partition("@")[0]
        target = tasks[name].target(label, forward.policies[name])
        if name in corrections:
            losses = corrections[name](outputs[name], label, target, batch.extras[supervision])
        else:
            losses = tasks[name].loss(outputs[name], target)
        weights = batch.weights[supervision]
        if share is not None:
            if PSEUDO not in batch.extras.get(supervision, {}):
                raise ValueError(f"small_loss: the batch does not tell which labels of {supervision} are pseudo labels")
            pseudo = batch.extras[supervision][PSEUDO]
            weights = weights * small_losses(losses, weights, pseudo, share, forward.axis_name)
        for term, per_example in losses.items():
            yield f"{name}/{term}", per_example, weights


def small_losses(
    terms: Mapping[str, PerExample], weights: Array, pseudo: Array, share: float, axis_name: str | None
) -> Array:
    """False for the `share` of the pseudo labels of the global batch, rounded, with the largest losses; bool [B].

    Small-loss selection (Han et al. 2018) in the form of loss truncation (Kang and Hashimoto 2020), within a step. An
    example's loss is the sum of its terms' means over their items; labels that are absent or entirely ignored do not
    count. Of equal losses the later row is dropped first, so that any number of devices chooses the same rows.

    Args:
      terms: of one supervision.
      weights: 0 where the label is absent, [B].
      pseudo: other than 0 where the label is a teacher's, [B]; ground truth always stays.
      share: 0..1.
      axis_name: device axis.
    """
    loss = sum(jax.lax.stop_gradient(term.value) / jnp.maximum(term.norm, 1.0) for term in terms.values())
    counted = (
        (weights != 0)
        & (pseudo != 0)
        & sum((term.norm > 0) | (term.value != 0) for term in terms.values()).astype(bool)
    )
    loss, place = jnp.where(counted, loss, -jnp.inf), jnp.arange(len(loss))
    others, first = loss, 0
    if axis_name is not None:
        others = jax.lax.all_gather(loss, axis_name, tiled=True)
        first = jax.lax.axis_index(axis_name) * len(loss)
    before = (others > loss[:, None]) | (
        (others == loss[:, None]) & (jnp.arange(len(others)) > (first + place)[:, None])
    )
    dropped = jnp.floor(share * (others > -jnp.inf).sum() + 0.5)
    return ~counted | (before.sum(-1) >= dropped)


def loss_step(
    variables: PyTree,
    batch: Batch,
    *,
    model: Model,
    tasks: Mapping[str, Task],
    policies: Mapping[str, Policy],
    view: str = "image",
    axis_name: str | None = None,
) -> dict[str, dict[str, Array]]:
    """The losses of the model, in inference mode, on every label of a batch; pure and traceable.

    Returns:
      {supervision: {"value", "norm": [B, T], the sums and the items of the task's T terms; "label", "prediction":
      [B, D], `Task.certainty` of both; "id": [B]; "weight": [B]}}.
    """
    outputs, _ = model.apply(variables, batch.inputs[view], train=False, key=None, axis_name=axis_name)
    rows = {}
    for supervision, label in batch.labels.items():
        name = supervision.partition("@")[0]
        task = tasks[name]
        terms = task.loss(outputs[name], task.target(label, policies[name])).values()
        rows[supervision] = {
            "value": jnp.stack([term.value for term in terms], -1),
            "norm": jnp.stack([term.norm for term in terms], -1),
            "label": task.certainty(label),
            "prediction": task.certainty(task.predict(outputs[name])),
            "id": batch.ids,
            "weight": batch.weights[supervision],
        }
    return rows


def learning_rate_rule(student: tuple[int, float], teachers: Mapping[str, tuple[int, float]]) -> dict[str, float]:
    """MuST's loss weights lambda_t = (b_s lr_t) / (b_t lr_s): each task keeps its teacher's learning rate per example.

    Args:
      student: (batch size, peak learning rate).
      teachers: the same per task.
    """
    batch_size, learning_rate = student
    return {task: batch_size * lr / (b * learning_rate) for task, (b, lr) in teachers.items()}


def _per_class(policy: Policy, task: Task) -> Policy:
    """The policy as arrays in one form, thresholds [C] for a task that has classes, else []."""
    shape = (len(task.classes),) if getattr(task, "classes", ()) else ()
    bounds = (jnp.broadcast_to(jnp.asarray(bound, jnp.float32), shape) for bound in policy[:2])
    # A copy: the step donates the state's memory, the caller keeps its own.
    return Policy(*(jnp.array(value, jnp.float32, copy=True) for value in (*bounds, *policy[2:])))
