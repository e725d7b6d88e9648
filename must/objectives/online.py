"""Frozen teachers in the step: asked about the pictures that the student sees, and what their hints give, row by row."""

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp

from must.core.devices import global_row_index
from must.core.types import Array, Batch, Model, PerExample, Policy, PyTree
from must.objectives.adaptors import drop_teachers
from must.objectives.distill import ALL, ANNOTATED, Answer, Context, Hint
from must.objectives.dropping import PSEUDO


def ask(
    hints: Sequence[Hint],
    teachers: Mapping[str, Model],
    frozen: PyTree,
    images: Array,
    shuffled: bool = False,
    axis_name: str | None = None,
) -> dict[str, Answer]:
    """What the teachers of some hints say of a batch, {teacher: Answer}, constants.

    Args:
      hints: whose teachers are asked, each once.
      teachers: {name: model}, run in inference mode.
      frozen: {name: variables}.
      images: uint8 [B, H, W, 3].
      shuffled: every row is given the answer to the one before it in the global batch.
      axis_name: device axis.
    """
    answers = {}
    for name in dict.fromkeys(hint.teacher for hint in hints):
        outputs, _, features = teachers[name].apply(frozen[name], images, train=False, key=None, with_features=True)
        answer = jax.lax.stop_gradient(Answer(outputs, features))
        answers[name] = jax.tree.map(lambda leaf: moved_on(leaf, axis_name), answer) if shuffled else answer
    return answers


def moved_on(rows: Array, axis_name: str | None) -> Array:
    """Every row one place on, the last of a device to the next device."""
    last = rows[-1:]
    if axis_name is not None:
        count = jax.lax.psum(1, axis_name)
        last = jax.lax.ppermute(last, axis_name, [(i, (i + 1) % count) for i in range(count)])
    return jnp.concatenate([last, rows[:-1]])


def take(
    hints: Sequence[Hint],
    params: Mapping[str, PyTree],
    states: Mapping[str, PyTree],
    student: Answer,
    said: Mapping[str, Answer],
    batch: Batch,
    policies: Mapping[str, Policy],
    *,
    key: Array,
    dropping: float,
    axis_name: str | None,
) -> tuple[Iterator[tuple[str, PerExample, Array]], dict[str, PyTree]]:
    """What the hints make of the answers.

    Args:
      hints: that act on this batch.
      params: {hint: its parameters}, of those that have some.
      states: {hint: its state}, of all hints.
      student: its answer.
      said: {teacher: Answer}.
      batch: whose rows the hints choose from.
      policies: per task.
      key: of teacher dropping.
      dropping: probability that a row drops a teacher.
      axis_name: device axis.

    Returns:
      ("<task>/<term>", PerExample, rows [B]: 1 where it counts) each; the next states.
    """
    found, after = {}, dict(states)
    for hint in hints:
        rows = rows_of(batch, hint)
        context = Context(rows != 0, policies[hint.task], axis_name)
        terms, after[hint.name] = hint.apply(
            params.get(hint.name, {}), states[hint.name], student, said[hint.teacher], context
        )
        found[hint.name] = (terms, rows)
    if dropping and any(hint.droppable for hint in hints):
        found = _dropped(hints, found, key, dropping, axis_name)
    named = (
        (f"{hint.task}/{term}", per_example, found[hint.name][1])
        for hint in hints
        for term, per_example in found[hint.name][0].items()
    )
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


def _dropped(hints, found, key, rate: float, axis_name):
    """The same with the rows that drop a teacher left out of its droppable hints."""
    losses: dict[str, Array] = {}
    for hint in hints:
        if hint.droppable:
            terms, rows = found[hint.name]
            mean = sum(term.value / jnp.maximum(term.norm, 1.0) for term in terms.values())
            losses[hint.teacher] = losses.get(hint.teacher, 0.0) + jnp.where(rows != 0, mean, 0.0)
    count = len(next(iter(losses.values())))
    draws = jax.random.fold_in(key, 1)
    draw = lambda row: jax.random.uniform(jax.random.fold_in(draws, row), (len(losses),))  # noqa: E731
    keep = drop_teachers(losses, jax.vmap(draw)(global_row_index(count, axis_name)), rate)
    return {
        hint.name: (terms, rows * keep[hint.teacher] if hint.droppable else rows)
        for hint in hints
        for terms, rows in [found[hint.name]]
    }
