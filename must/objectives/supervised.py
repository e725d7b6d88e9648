"""MuST's objective: every task's loss on the labels that a batch has, ground truth or pseudo."""

from collections.abc import Mapping

import jax.numpy as jnp

from must.core.ratio import Ratio, merge, weighted_sum
from must.core.types import Batch, Model, Objective, PerExample, Policy
from must.tasks.base import Task


def supervised(
    model: Model,
    tasks: Mapping[str, Task],
    *,
    scales: Mapping[str, float],
    policies: Mapping[str, Policy],
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
            for term, per_example in tasks[name].loss(outputs[name], target).items():
                ratio = _reduce(per_example, batch.weights[supervision], normalize)
                full = f"{name}/{term}"
                ratios[full] = merge(ratios[full], ratio) if full in ratios else ratio
        return ratios, model_state, aux_state

    by_term = {name: scales[name.partition("/")[0]] for name in names}
    def init(key):
        # Thresholds are data: one compiled step serves every choice of them.
        return {}, {"policies": {name: _per_class(policies[name], task) for name, task in tasks.items()}}

    return Objective(init=init, names=names, terms=terms, scales=by_term)


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
