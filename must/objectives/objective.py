"""What a run minimizes: parts over one shared forward pass, each a pair of pure functions (init, terms)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from must.core.devices import global_row_index
from must.core.ratio import Ratio, merge, weighted_sum
from must.core.types import Array, Batch, Features, Model, Objective, PerExample, Policy, PyTree
from must.data.mix import CLEAN


class Answer(NamedTuple):
    """The predictions of a network for a batch.

    Attributes:
      outputs: {task: outputs}.
      features: as the heads read them; None when no part needs them.
    """

    outputs: Mapping[str, Any]
    features: Features | None


class Forward(NamedTuple):
    """One forward pass of the student, as the parts see it.

    Attributes:
      student: its predictions.
      batch: that it read.
      group: name of the batch, "" when a step has one.
      params: {name: parameters} of the parts.
      frozen: variables of the teachers.
      policies: {task: label policy}, thresholds [C] or [].
      view: input that the student read.
      step: of the run, int32 [].
      key: of this batch.
      axis_name: device axis.
    """

    student: Answer
    batch: Batch
    group: str
    params: Mapping[str, PyTree]
    frozen: PyTree
    policies: Mapping[str, Policy]
    view: str
    step: Array
    key: Array
    axis_name: str | None


class Part(NamedTuple):
    """One source of supervision.

    Attributes:
      scales: {"<task>/<term>": factor beside the task's scale} of its terms.
      terms: (state, `Forward`) -> ((name, PerExample, weights [B]) each, state).
      init: (key) -> ({name: parameters}, {name: state}).
      begin: (state, variables of the student, step) -> state, once per step, before its batches.
      features: (group) -> whether `terms` reads the features of that batch.
      policies: {task: label policy} that it defines for all parts.
    """

    scales: Mapping[str, float]
    terms: Callable[[PyTree, Forward], tuple[Iterable[tuple[str, PerExample, Array]], PyTree]]
    init: Callable[[Array], tuple[dict[str, PyTree], dict[str, PyTree]]] = lambda key: ({}, {})
    begin: Callable[[PyTree, PyTree, Array], PyTree] = lambda state, variables, step: state
    features: Callable[[str], bool] = lambda group: False
    policies: Mapping[str, Policy] = {}


def objective(
    model: Model,
    parts: Sequence[Part],
    *,
    scales: Mapping[str, float],
    normalize: str = "items",
    view: str = "image",
) -> Objective:
    """Sum over tasks of scale_t * sum_i w_it * l_t(head_t(x_i), y_it) / Z_t (Ghiasi et al. 2021, section 3).

    A step may take one batch or {group: batch}, then one forward pass per group in the order of their names: batch
    statistics see the groups one after the other, never their union, while sums and counts of a task are those of all
    groups together, so that without batch statistics groups and one mixed batch give the same gradient.

    Args:
      model: outputs {task: ...}; its `apply` takes with_features when a part reads features.
      parts: from `must.objectives.{labels,hints,mean_teacher}`; terms of one name share their denominator.
      scales: {task: factor} of all of the task's terms.
      normalize: "items" divides by the number of labeled items (pixels, boxes, ...) over all rows that have the label;
        "batch" takes each example's mean and divides by the batch size, absent rows included, as the derivation of
        MuST's learning-rate rule needs.
      view: which input the student reads.

    Raises:
      ValueError: parts that do not fit together.
    """
    by_term = _scales_of_terms(parts, scales)

    def terms(params, model_state, aux_state, frozen, batch: Batch | Mapping[str, Batch], key, axis_name):
        groups = {"": batch} if isinstance(batch, Batch) else dict(sorted(batch.items()))
        step, policies = aux_state["step"], aux_state["policies"]
        states = [
            part.begin(state, {"params": params["model"], **model_state}, step)
            for part, state in zip(parts, aux_state["parts"], strict=True)
        ]
        ratios: dict[str, Ratio] = {}
        for number, (group, rows) in enumerate(groups.items()):
            own_key = random.fold_in(key, number) if len(groups) > 1 else key
            options: dict[str, Any] = {} if rows.present is None else {"present": rows.present}
            if any(part.features(group) for part in parts):
                options["with_features"] = True
            outputs, model_state, *features = model.apply(
                {"params": params["model"], **model_state},
                rows.inputs[view],
                train=True,
                key=own_key,
                axis_name=axis_name,
                **options,
            )
            student = Answer(outputs, *features) if features else Answer(outputs, None)
            forward = Forward(
                student, rows, group, params.get("objective", {}), frozen, policies, view, step, own_key, axis_name
            )
            for index, part in enumerate(parts):
                named, states[index] = part.terms(states[index], forward)
                for name, per_example, weights in named:
                    ratio = _reduce(per_example, weights, normalize, rows.present)
                    ratios[name] = merge(ratios[name], ratio) if name in ratios else ratio
        return ratios, model_state, {**aux_state, "step": step + 1, "parts": tuple(states)}

    def init(key):
        made = [part.init(key) for part in parts]
        params = {name: value for own, _ in made for name, value in own.items()}
        policies = {task: policy for part in parts for task, policy in part.policies.items()}
        return params, {"policies": policies, "step": jnp.int32(0), "parts": tuple(state for _, state in made)}

    return Objective(init=init, names=tuple(by_term), terms=terms, scales=by_term, shared=without_heads)


def _scales_of_terms(parts: Sequence[Part], scales: Mapping[str, float]) -> dict[str, float]:
    """{"<task>/<term>": the task's scale times the part's factor}."""
    by_term: dict[str, float] = {}
    for part in parts:
        own = {name: scales[name.partition("/")[0]] * factor for name, factor in part.scales.items()}
        if clash := [name for name, scale in own.items() if by_term.get(name, scale) != scale]:
            raise ValueError(f"term {clash[0]}: two parts give it different scales")
        by_term |= own
    return by_term


def with_view(made: Objective, view: Callable[[Array, Array], Array]) -> Objective:
    """The same objective of batches whose input "image" is changed inside the step; as it came it is the input "clean".

    Args:
      made: from `objective`.
      view: (images [B, H, W, 3], a key per row [B]) -> images. Keys follow the step and the global row index, so that
        any number of devices draws alike.
    """

    def terms(params, model_state, aux_state, frozen, batch: Batch | Mapping[str, Batch], key, axis_name):
        def seen(rows: Batch, key: Array) -> Batch:
            image = rows.inputs["image"]
            keys = jax.vmap(lambda row: random.fold_in(key, row))(global_row_index(len(image), axis_name))
            return rows._replace(inputs={**rows.inputs, CLEAN: image, "image": view(image, keys)})

        own, key = random.split(key)
        groups = {"": batch} if isinstance(batch, Batch) else dict(sorted(batch.items()))
        groups = {name: seen(rows, random.fold_in(own, at)) for at, (name, rows) in enumerate(groups.items())}
        batch = groups[""] if isinstance(batch, Batch) else groups
        return made.terms(params, model_state, aux_state, frozen, batch, key, axis_name)

    return made._replace(terms=terms)


def without_heads(params: PyTree) -> PyTree:
    """The model's parameters that all tasks share: without the heads of `must.models.multi_head`, else all of them."""
    model = params["model"]
    if not isinstance(model, Mapping):
        return model
    return {name: part for name, part in model.items() if not name.startswith("heads_")}


def _reduce(term: PerExample, weights, normalize: str, present: Array | None) -> Ratio:
    if normalize == "items":
        return weighted_sum(term, weights)
    mean = PerExample(term.value / jnp.maximum(term.norm, 1.0), jnp.ones_like(term.norm))
    rows = jnp.float32(weights.shape[0]) if present is None else present.sum(dtype=jnp.float32)
    return Ratio(weighted_sum(mean, weights).num, rows)
