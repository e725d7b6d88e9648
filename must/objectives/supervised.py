"""MuST's objective: every task's loss on the labels that a batch has, ground truth or pseudo."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from must.core.ratio import Ratio, merge, weighted_sum
from must.core.types import Array, Batch, Label, Model, Objective, PerExample, Policy, PyTree
from must.tasks.base import Task

# (outputs, label in network form, target, the supervision's extras) -> {term: PerExample}, as `Task.loss`
Correction = Callable[[Any, Label, Any, dict[str, Array]], dict[str, PerExample]]


def supervised(
    model: Model,
    tasks: Mapping[str, Task],
    *,
    scales: Mapping[str, float],
    policies: Mapping[str, Policy],
    corrections: Mapping[str, Correction] = {},
    normalize: str = "items",
    view: str = "image",
) -> Objective:
    """Sum over tasks of scale_t * sum_i w_it * l_t(head_t(x_i), y_it) / Z_t (Ghiasi et al. 2021, section 3).

    Args:
      model: outputs {task: ...}.
      tasks: by name; the supervision of a task is its name, or "<task>@<source>" for one source of several, all of
        which share one denominator.
      scales: factor per task; it multiplies all of the task's terms.
      policies: which labels are believed, per task.
      corrections: {task: loss that stands for the task's own} and reads `Batch.extras`, see `must.objectives.distill`.
      normalize: "items" divides by the number of labelled items (pixels, boxes, ...) over all rows that have the label;
        "batch" takes each example's mean and divides by the batch size, absent rows included, as the derivation of
        MuST's learning-rate rule needs.
      view: which input the model sees.
    """
    names = tuple(f"{task}/{term}" for task in tasks for term in tasks[task].terms)

    def terms(params, model_state, aux_state, frozen, batch: Batch, key, axis_name):
        variables = {"params": params["model"], **model_state}
        outputs, model_state = model.apply(variables, batch.inputs[view], train=True, key=key, axis_name=axis_name)
        ratios: dict[str, Ratio] = {}
        for supervision, label in batch.labels.items():
            name = supervision.partition("@")[0]
            target = tasks[name].target(label, aux_state["policies"][name])
            if name in corrections:
                found = corrections[name](outputs[name], label, target, batch.extras[supervision])
            else:
                found = tasks[name].loss(outputs[name], target)
            for term, per_example in found.items():
                ratio = _reduce(per_example, batch.weights[supervision], normalize)
                full = f"{name}/{term}"
                ratios[full] = merge(ratios[full], ratio) if full in ratios else ratio
        return ratios, model_state, aux_state

    by_term = {name: scales[name.partition("/")[0]] for name in names}

    def init(key):
        # Thresholds are data: one compiled step serves every choice of them.
        return {}, {"policies": {name: _per_class(policies[name], task) for name, task in tasks.items()}}

    return Objective(init=init, names=names, terms=terms, scales=by_term, shared=without_heads)


def without_heads(params: PyTree) -> PyTree:
    """The model's parameters that all tasks share: without the heads of `must.models.multi_head`, else all of them."""
    model = params["model"]
    return {name: model[name] for name in model if not name.startswith("heads_")} if isinstance(model, dict) else model


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
    """What the model, in inference mode, loses on every label of a batch; pure, traceable, nothing is learned.

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
    """The thresholds in one form, [C] for a task that has classes, else []."""
    shape = (len(task.classes),) if getattr(task, "classes", ()) else ()
    # A copy: the step is given the state's memory, the caller keeps its own.
    return Policy(*(jnp.array(jnp.broadcast_to(jnp.asarray(bound, jnp.float32), shape), copy=True) for bound in policy))


def _reduce(term: PerExample, weights, normalize: str) -> Ratio:
    if normalize == "items":
        return weighted_sum(term, weights)
    mean = PerExample(term.value / jnp.maximum(term.norm, 1.0), jnp.ones_like(term.norm))
    return Ratio(weighted_sum(mean, weights).num, jnp.float32(weights.shape[0]))
