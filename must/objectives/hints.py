"""Hints of frozen teachers that predict in the step, on the images that the student sees."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from must.core.devices import global_row_index, roll_rows
from must.core.types import Array, Batch, Model, PyTree
from must.objectives.distill import ALL, ANNOTATED, Context, Hint
from must.objectives.labels import PSEUDO
from must.objectives.objective import Answer, Forward, Part


def hints(
    teachers: Mapping[str, Model],
    hints: Sequence[Hint],
    *,
    view: str = "",
    dropping: float = 0.0,
    shuffled: bool = False,
) -> Part:
    """The terms of some hints, under the label policies of a `must.objectives.labels` part of the same objective.

    Args:
      teachers: {name: model}, run in inference mode; their variables are the step's `frozen`.
      hints: from `must.objectives.distill`.
      view: which input the teachers see; the student's by default.
      dropping: probability that an example drops a droppable hint's teacher, except the one with the highest loss
        (UNIC, Sariyildiz et al. 2024).
      shuffled: every row gets the teachers' predictions for another one; a control that should lose.
    """

    def terms(state, forward: Forward):
        chosen = [hint for hint in hints if not forward.group or hint.skip != forward.group]
        if not chosen:
            return (), state
        predictions = predict(chosen, teachers, forward.frozen, view, shuffled, forward)
        return apply_hints(chosen, state, predictions, forward, dropping=dropping)

    def init(key):
        made = {hint.name: hint.init(jax.random.fold_in(key, i)) for i, hint in enumerate(hints)}
        params = {name: params for name, (params, _) in made.items() if params}
        return params, {name: state for name, (_, state) in made.items()}

    def features(group: str) -> bool:
        return any(not group or hint.skip != group for hint in hints)

    return Part(term_scales(hints), terms, init, features=features)


def term_scales(hints: Sequence[Hint]) -> dict[str, float]:
    """{"<task>/<term>": factor} of the terms of some hints.

    Raises:
      ValueError: two hints give one term different scales.
    """
    scales: dict[str, float] = {}
    for hint in hints:
        for name in (f"{hint.task}/{term}" for term in hint.terms):
            if scales.setdefault(name, hint.scale) != hint.scale:
                raise ValueError(f"hint {hint.name}: term {name} has different scales")
    return scales


def predict(
    hints: Sequence[Hint], teachers: Mapping[str, Model], frozen: PyTree, view: str, shuffled: bool, forward: Forward
) -> dict[str, Answer]:
    """The predictions of the teachers of some hints for a batch, {teacher: Answer}, constants.

    Args:
      hints: whose teachers run, each once.
      teachers: {name: model}.
      frozen: {name: variables}.
      view: which input they see; the student's by default.
      shuffled: every row gets the predictions for the one before it in the global batch.
      forward: of the student.
    """
    images, axis_name, answers = forward.batch.inputs[view or forward.view], forward.axis_name, {}
    for name in dict.fromkeys(hint.teacher for hint in hints):
        outputs, _, features = teachers[name].apply(frozen[name], images, train=False, key=None, with_features=True)
        answer = jax.lax.stop_gradient(Answer(outputs, features))
        answers[name] = jax.tree.map(lambda leaf: roll_rows(leaf, axis_name), answer) if shuffled else answer
    return answers


def apply_hints(
    hints: Sequence[Hint],
    states: Mapping[str, PyTree],
    predictions: Mapping[str, Answer],
    forward: Forward,
    *,
    dropping: float = 0.0,
):
    """(name, PerExample, rows [B]: 1 where it counts) of every term of some hints, and their next states.

    Args:
      hints: that act on this batch.
      states: {hint: its state}.
      predictions: {teacher: Answer}.
      forward: of the student.
      dropping: probability that a row drops a teacher.
    """
    results, after = {}, dict(states)
    for hint in hints:
        rows = rows_of(forward.batch, hint)
        context = Context(rows != 0, forward.policies[hint.task], forward.axis_name)
        terms, after[hint.name] = hint.apply(
            forward.params.get(hint.name, {}), states[hint.name], forward.student, predictions[hint.teacher], context
        )
        results[hint.name] = (terms, rows)
    if dropping and any(hint.droppable for hint in hints):
        results = _dropped(hints, results, forward.key, dropping, forward.axis_name)
    named = [
        (f"{hint.task}/{term}", per_example, results[hint.name][1])
        for hint in hints
        for term, per_example in results[hint.name][0].items()
    ]
    return named, after


def rows_of(batch: Batch, hint: Hint) -> Array:
    """1 for the rows that a hint acts on, [B]; padding is none of them, and a pseudo label no annotation."""
    real = (batch.ids >= 0).astype(jnp.float32)
    annotated = jnp.zeros_like(real)
    for name, weights in batch.weights.items():
        if name.partition("@")[0] == hint.task:
            pseudo = batch.extras.get(name, {}).get(PSEUDO, jnp.zeros_like(weights))
            annotated += ((weights != 0) & (pseudo == 0)).astype(jnp.float32)
    if hint.where == ALL:
        return real
    return real * ((annotated > 0) if hint.where == ANNOTATED else (annotated == 0))


def drop_teachers(losses: Mapping[str, Array], uniform: Array, rate: float) -> dict[str, Array]:
    """Which teachers an example keeps: always the one with the highest loss, every other with probability 1 - rate.

    Args:
      losses: {teacher: mean loss of each example [B]}.
      uniform: numbers in 0..1, [B, teachers], in the order of `losses`.
      rate: UNIC takes 0.5.

    Returns:
      {teacher: bool [B]}.
    """
    stacked = jax.lax.stop_gradient(jnp.stack(list(losses.values()), -1))
    highest = stacked == stacked.max(-1, keepdims=True)
    keep = highest | (uniform >= rate)
    return {name: keep[:, i] for i, name in enumerate(losses)}


def _dropped(hints, results, key, rate: float, axis_name):
    """The same with the rows that drop a teacher left out of its droppable hints."""
    losses: dict[str, Array] = {}
    for hint in hints:
        if hint.droppable:
            terms, rows = results[hint.name]
            mean = sum(term.value / jnp.maximum(term.norm, 1.0) for term in terms.values())
            losses[hint.teacher] = losses.get(hint.teacher, 0.0) + jnp.where(rows != 0, mean, 0.0)
    count = len(next(iter(losses.values())))
    draws = jax.random.fold_in(key, 1)

    def draw(row):
        return jax.random.uniform(jax.random.fold_in(draws, row), (len(losses),))

    keep = drop_teachers(losses, jax.vmap(draw)(global_row_index(count, axis_name)), rate)
    return {
        hint.name: (terms, rows * keep[hint.teacher] if hint.droppable else rows)
        for hint in hints
        for terms, rows in [results[hint.name]]
    }
