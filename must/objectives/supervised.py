"""The objective of MuST and MulTaS: every task's loss on the labels that a batch has, and what teachers say of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from must.core.ema import ema_update
from must.core.ratio import Ratio, merge, weighted_sum
from must.core.types import Array, Batch, Label, Model, Objective, PerExample, Policy, PyTree
from must.data.mix import CLEAN
from must.objectives import online
from must.objectives.distill import Answer, Hint
from must.objectives.dropping import PSEUDO, small_losses
from must.objectives.mean_teacher import AVERAGE, MeanTeacher
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
    teachers: Mapping[str, Model] = {},
    hints: Sequence[Hint] = (),
    teacher_view: str = "",
    teacher_dropping: float = 0.0,
    shuffled: bool = False,
    mean_teacher: MeanTeacher | None = None,
    initial: PyTree = None,
    drop_top: float = 0.0,
    drop_after: int = 0,
) -> Objective:
    """Sum over tasks of scale_t * sum_i w_it * l_t(head_t(x_i), y_it) / Z_t (Ghiasi et al. 2021, section 3).

    A step may take one batch or {group: batch}, then one forward pass per group in the order of their names: batch
    statistics see the groups one after the other, never their union, while sums and counts of a task are those of all
    groups together, so that without batch statistics groups and one mixed batch give the same gradient.

    Args:
      model: outputs {task: ...}; with hints its `apply` takes with_features.
      tasks: by name; the supervision of a task is its name, or "<task>@<source>" for one source of several, all of
        which share one denominator.
      scales: factor per task; it multiplies all of the task's terms.
      policies: which labels are believed, per task.
      corrections: {task: loss that stands for the task's own} and reads `Batch.extras`, see `must.objectives.slam`.
      normalize: "items" divides by the number of labeled items (pixels, boxes, ...) over all rows that have the label;
        "batch" takes each example's mean and divides by the batch size, absent rows included, as the derivation of
        MuST's learning-rate rule needs.
      view: which input the model sees.
      teachers: {name: model} that answer the same pictures in inference mode; their variables are the step's `frozen`.
      hints: what is taken from them, see `must.objectives.distill`.
      teacher_view: which input the teachers see; the student's by default, with a mean teacher "clean".
      teacher_dropping: probability that an example drops a droppable hint's teacher, the one with the highest loss
        excepted (UNIC).
      shuffled: every row is given the teachers' answers to another one; a control that has to lose.
      mean_teacher: the student's average as one more teacher; rows whose `Batch.extras[supervision]["pseudo"]` is not 0
        have no ground truth.
      initial: variables of the model that the average starts from; needed with `mean_teacher`.
      drop_top: share of the pseudo labels, those with the largest losses of a task in a batch, that do not count in a step;
        needs `Batch.extras[supervision]["pseudo"]`, other than 0 where a label is one. Of groups each drops its own.
      drop_after: steps before any is dropped.

    Raises:
      ValueError: options that do not fit together.
    """
    if mean_teacher is not None:
        if initial is None:
            raise ValueError("a mean teacher needs variables to start from")
        teachers = {**teachers, AVERAGE: model}
        own_hints = [mean_teacher.hint(name, tasks[name]) for name in mean_teacher.tasks or tasks]
        hints, late = [*hints, *own_hints], {f"{hint.task}/{term}" for hint in own_hints for term in hint.terms}
        teacher_view = teacher_view or CLEAN
    if not 0 <= drop_top < 1 or drop_after < 0:
        raise ValueError(f"drop_top {drop_top} or drop_after {drop_after} is out of range")
    names = tuple(f"{task}/{term}" for task in tasks for term in tasks[task].terms)
    by_term = {name: scales[name.partition("/")[0]] for name in names}
    for hint in hints:
        own = {f"{hint.task}/{term}": scales[hint.task] * hint.scale for term in hint.terms}
        if any(by_term.get(name, scale) != scale for name, scale in own.items()):
            raise ValueError(f"hint {hint.name}: another scale of a term that is there already")
        by_term |= own

    def terms(params, model_state, aux_state, frozen, batch: Batch | Mapping[str, Batch], key, axis_name):
        groups = {"": batch} if isinstance(batch, Batch) else dict(sorted(batch.items()))
        ratios: dict[str, Ratio] = {}
        hint_states, step = aux_state["hints"], aux_state.get("step", 0)
        if mean_teacher is not None:
            current = {"params": params["model"], **model_state}
            average = ema_update(aux_state["average"], current, mean_teacher.decay, step)
            frozen = {**(frozen or {}), AVERAGE: average}
            aux_state = {**aux_state, "average": average}
        drop = jnp.where(step >= drop_after, drop_top, 0.0) if drop_top else None
        for number, (group, part) in enumerate(groups.items()):
            acting = [hint for hint in hints if not group or hint.skip != group]
            own_key = jax.random.fold_in(key, number) if len(groups) > 1 else key
            variables = {"params": params["model"], **model_state}
            options = {"with_features": True} if acting else {}
            outputs, model_state, *features = model.apply(
                variables, part.inputs[view], train=True, key=own_key, axis_name=axis_name, **options
            )
            found = [_labeled(outputs, part, tasks, aux_state["policies"], corrections, normalize, drop, axis_name)]
            if acting:
                said = online.ask(acting, teachers, frozen, part.inputs[teacher_view or view], shuffled, axis_name)
                taken, hint_states = online.take(
                    acting,
                    params.get("objective", {}),
                    hint_states,
                    Answer(outputs, *features),
                    said,
                    part,
                    aux_state["policies"],
                    key=own_key,
                    dropping=teacher_dropping,
                    axis_name=axis_name,
                )
                if mean_teacher is not None:
                    speaks = jnp.where(step >= mean_teacher.start, 1.0, 0.0)
                    taken = ((name, term, rows * speaks if name in late else rows) for name, term, rows in taken)
                found.append((name, _reduce(term, rows, normalize)) for name, term, rows in taken)
            for name, ratio in (item for terms_of in found for item in terms_of):
                ratios[name] = merge(ratios[name], ratio) if name in ratios else ratio
        counted = {"step": step + 1} if "step" in aux_state else {}
        return ratios, model_state, {**aux_state, **counted, "hints": hint_states}

    def init(key):
        made = {hint.name: hint.init(jax.random.fold_in(key, i)) for i, hint in enumerate(hints)}
        params = {name: params for name, (params, _) in made.items() if params}
        # Thresholds are data: one compiled step serves every choice of them.
        believed = {name: _per_class(policies[name], task) for name, task in tasks.items()}
        state = {"policies": believed, "hints": {name: state for name, (_, state) in made.items()}}
        state |= {"average": jax.tree.map(jnp.copy, initial)} if mean_teacher is not None else {}
        state |= {"step": jnp.int32(0)} if mean_teacher is not None or drop_top else {}
        return params, state

    return Objective(init=init, names=tuple(by_term), terms=terms, scales=by_term, shared=without_heads)


def without_heads(params: PyTree) -> PyTree:
    """The model's parameters that all tasks share: without the heads of `must.models.multi_head`, else all of them."""
    model = params["model"]
    if not isinstance(model, Mapping):
        return model
    return {name: part for name, part in model.items() if not name.startswith("heads_")}


def _labeled(
    outputs, batch: Batch, tasks, policies, corrections, normalize: str, drop: Array | None, axis_name: str | None
) -> Iterator[tuple[str, Ratio]]:
    """The losses on the labels that a batch holds, without the share `drop` of its pseudo labels."""
    for supervision, label in batch.labels.items():
        name = supervision.partition("@")[0]
        target = tasks[name].target(label, policies[name])
        if name in corrections:
            found = corrections[name](outputs[name], label, target, batch.extras[supervision])
        else:
            found = tasks[name].loss(outputs[name], target)
        weights = batch.weights[supervision]
        if drop is not None:
            if PSEUDO not in batch.extras.get(supervision, {}):
                raise ValueError(f"drop_top: the batch does not say which labels of {supervision} are pseudo labels")
            pseudo = batch.extras[supervision][PSEUDO]
            weights = weights * small_losses(found, weights, pseudo, drop, axis_name)
        for term, per_example in found.items():
            yield f"{name}/{term}", _reduce(per_example, weights, normalize)


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
    """The policy as arrays in one form, thresholds [C] for a task that has classes, else []."""
    shape = (len(task.classes),) if getattr(task, "classes", ()) else ()
    bounds = (jnp.broadcast_to(jnp.asarray(bound, jnp.float32), shape) for bound in policy[:2])
    # A copy: the step is given the state's memory, the caller keeps its own.
    return Policy(*(jnp.array(value, jnp.float32, copy=True) for value in (*bounds, *policy[2:])))


def _reduce(term: PerExample, weights, normalize: str) -> Ratio:
    if normalize == "items":
        return weighted_sum(term, weights)
    mean = PerExample(term.value / jnp.maximum(term.norm, 1.0), jnp.ones_like(term.norm))
    return Ratio(weighted_sum(mean, weights).num, jnp.float32(weights.shape[0]))
