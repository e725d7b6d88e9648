"""What a student takes from a frozen teacher that answers the same pictures in the same step: labels and feature hints.

A hint is a pair of pure functions like an objective, for one task and one teacher; `must.objectives.supervised` runs the
teachers and adds the hints to the task's loss. Terms are per example and everything of the teacher is a constant. Hints
that compare features own 1x1 adaptors, parameters of the student that no export holds. `must.objectives.adaptors` has
the hints for teachers whose features look nothing like the student's.

Sources: Le and Pham 2023 (MulTaS) for the selection; Zhang et al. 2021 (PDF-Distil); Guo et al. 2021 (DeFeat); Li et al.
2017 (mimic).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from must.core.types import Array, Features, Model, PerExample, Policy, PyTree
from must.tasks.base import Task

_UNIT = 1e-4  # disagreement that counts as one item: no denominator falls below one item, and few are as small
ALL, MISSING, ANNOTATED = "all", "missing", "annotated"  # rows that a hint acts on, by the task's own ground truth


class Answer(NamedTuple):
    """What a network says of a batch.

    Attributes:
      outputs: {task: outputs}.
      features: as the heads read them.
    """

    outputs: Mapping[str, Any]
    features: Features


class Context(NamedTuple):
    """What a hint may read besides the answers.

    Attributes:
      present: which rows it acts on, bool [B].
      policy: of its task.
      axis_name: device axis.
    """

    present: Array
    policy: Policy
    axis_name: str | None


class Hint(NamedTuple):
    """One thing that a student takes from one teacher.

    Attributes:
      name: unique in an objective; where its parameters and its state stand.
      task: whose loss its terms belong to.
      teacher: that it reads.
      terms: names; one that the task's own loss has too shares that term's denominator.
      init: (key) -> (params, state).
      apply: (params, state, student Answer, teacher Answer, Context) -> ({term: PerExample}, state).
      scale: factor of its terms beside the task's; terms of the task's own keep theirs.
      where: "all" rows, those where the task's ground truth is "missing", or the "annotated" ones.
      droppable: takes part in teacher dropping.
      skip: group of a step in which it has nothing to do, so that its teacher is not asked there.
    """

    name: str
    task: str
    teacher: str
    terms: tuple[str, ...]
    init: Callable[[Array], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[dict[str, PerExample], PyTree]]
    scale: float = 1.0
    where: str = ALL
    droppable: bool = False
    skip: str = ""


def hard(name: str, task: Task, teacher: str) -> Hint:
    """The teacher's prediction by the label policy, as a record would give it: the task's own terms (MuST)."""

    def apply(params, state, student, said, context):
        label = jax.lax.stop_gradient(task.predict(said.outputs[name]))
        return task.loss(student.outputs[name], task.target(label, context.policy)), state

    return _plain("hard", name, teacher, task.terms, apply)


def soft(name: str, task: Task, teacher: str, scale: float = 1.0) -> Hint:
    """All that the teacher says, nothing cut off: `Task.imitate`."""

    def apply(params, state, student, said, context):
        return task.imitate(student.outputs[name], said.outputs[name]), state

    return _plain("soft", name, teacher, tuple(f"soft_{term}" for term in task.terms), apply, scale)


def mimic(name: str, teacher: str, widths: Mapping[int, tuple[int, int]], scale: float = 1.0) -> Hint:
    """mean (A F_s - F_t)^2 over all levels, places and channels, with a 1x1 adaptor A per level (Li et al. 2017).

    Args:
      name: of the task.
      teacher: of that name.
      widths: {stride: (channels of the student, channels of the teacher)}, see `shared_levels`.
      scale: MulTaS's code takes 5.
    """

    def apply(params, state, student, said, context):
        value, count = 0.0, 0
        for error in _errors(params, student, said).values():
            value, count = value + error.sum((1, 2, 3)), count + error[0].size
        return {"mimic": PerExample(value, jnp.full(len(value), count, jnp.float32))}, state

    return _adapted("mimic", name, teacher, widths, ("mimic",), apply, scale)


def pdf(
    name: str,
    task: Task,
    teacher: str,
    widths: Mapping[int, tuple[int, int]],
    scale: float = 1.0,
    feature_scale: float = 5.0,
) -> Hint:
    """Features and answers weighed by where the two disagree (PDF-Distil, Zhang et al. 2021).

        sum omega (A F_s - F_t)^2,  omega ~ sqrt(sum_c D_c), sum omega = 1 over batch, places and channels

    plus the terms of `Task.disagreement`. The sum of the weights is the term's denominator, over all rows, groups and
    devices; where student and teacher agree everywhere the term is 0, not 0 / 0.

    Args:
      name, teacher, widths: see `mimic`.
      task: of that name.
      scale: of all terms.
      feature_scale: of the feature term beside the others.
    """

    def apply(params, state, student, said, context):
        shapes = _shapes(student, widths)
        where, terms = task.disagreement(student.outputs[name], said.outputs[name], shapes)
        errors = _errors(params, student, said)
        value, weight = 0.0, 0.0
        for stride, level in where.items():
            value += (level[..., None] * errors[stride]).sum((1, 2, 3)) / _UNIT
            weight += level.sum((1, 2)) * errors[stride].shape[-1] / _UNIT
        feature = PerExample(feature_scale * value, weight)
        return {"pdf_feature": feature, **terms}, state

    return _adapted("pdf", name, teacher, widths, ("pdf_feature", *task.pdf_terms), apply, scale)


def defeat(name: str, task: Task, teacher: str, widths: Mapping[int, tuple[int, int]], scale: float = 1.0) -> Hint:
    """Foreground and background imitated apart, each with its own mean (DeFeat, Guo et al. 2021).

    The foreground is what lies in a box that the teacher is believed in, never in a box of the ground truth, which the
    published code reads and an image without annotation has not.

    Args:
      name, teacher, widths, scale: see `mimic`.
      task: of that name.
    """

    def apply(params, state, student, said, context):
        label = jax.lax.stop_gradient(task.predict(said.outputs[name]))
        inside = task.foreground(task.target(label, context.policy), _shapes(student, widths))
        parts = {"defeat_foreground": [0.0, 0.0], "defeat_background": [0.0, 0.0]}
        for stride, error in _errors(params, student, said).items():
            for term, mask in (("defeat_foreground", inside[stride]), ("defeat_background", ~inside[stride])):
                parts[term][0] += 0.5 * (error.mean(-1) * mask).sum((1, 2))
                parts[term][1] += mask.sum((1, 2)).astype(jnp.float32)
        return {term: PerExample(value, norm) for term, (value, norm) in parts.items()}, state

    return _adapted("defeat", name, teacher, widths, ("defeat_foreground", "defeat_background"), apply, scale)


@functools.lru_cache(maxsize=64)  # the arms of a grid share a few networks
def feature_widths(model: Model, size: tuple[int, int]) -> dict[int, tuple[int, int, int]]:
    """{stride: (height, width, channels)} of a network's features at a frame of `size` pixels, from shapes alone."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    run = lambda v, x: model.apply(v, x, train=False, with_features=True)[2].pyramid  # noqa: E731
    return {stride: level.shape[1:] for stride, level in jax.eval_shape(run, variables, images).items()}


def shared_levels(student: Mapping[int, tuple], teacher: Mapping[int, tuple]) -> dict[int, tuple[int, int]]:
    """{stride: (channels of the student, channels of the teacher)} of the levels that both have, see `feature_widths`.

    Raises:
      ValueError: there is none.
    """
    found = {stride: (shape[-1], teacher[stride][-1]) for stride, shape in student.items() if stride in teacher}
    if not found:
        raise ValueError(f"no level in common: strides {sorted(student)} and {sorted(teacher)}")
    return found


def _plain(kind: str, name: str, teacher: str, terms, apply, scale: float = 1.0) -> Hint:
    return Hint(f"{name}_{kind}_{teacher}", name, teacher, tuple(terms), lambda key: ({}, {}), apply, scale)


def _adapted(kind: str, name: str, teacher: str, widths, terms, apply, scale: float) -> Hint:
    """A hint with one 1x1 adaptor per level."""
    make = jax.nn.initializers.lecun_normal()

    def init(key):
        return {
            f"level{stride}": {"kernel": make(jax.random.fold_in(key, stride), shape), "bias": jnp.zeros(shape[1])}
            for stride, shape in widths.items()
        }, {}

    return Hint(f"{name}_{kind}_{teacher}", name, teacher, terms, init, apply, scale)


def _errors(params, student: Answer, said: Answer) -> dict[int, Array]:
    """(A F_s - F_t)^2 per level, [B, h, w, C_t]."""
    errors = {}
    for level, adaptor in params.items():
        stride = int(level.removeprefix("level"))
        adapted = student.features.pyramid[stride] @ adaptor["kernel"] + adaptor["bias"]
        errors[stride] = (adapted - jax.lax.stop_gradient(said.features.pyramid[stride])) ** 2
    return errors


def _shapes(student: Answer, strides) -> dict[int, tuple[int, int]]:
    return {stride: student.features.pyramid[stride].shape[1:3] for stride in strides}
