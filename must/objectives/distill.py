"""Kinds of hints: what a student learns from a frozen teacher that sees the same images in the same step.

A hint is a pair of pure functions for one task and one teacher; `must.objectives.hints` runs the teachers and adds the
hints to the task's loss. Terms are per example and everything of the teacher is a constant. Hints that compare features
own 1x1 adaptors, parameters of the student that no export holds. Teachers differ in the scale and the shape of their
features by orders of magnitude, and unless targets are standardized the loudest one dominates: `adaptor` standardizes
by PHI-S (Ranzinger et al. 2024) or by running means and variances per channel (UNIC, Sariyildiz et al. 2024).

Sources: Le and Pham 2023 (MulTaS) for the selection; Zhang et al. 2021 (PDF-Distil); Guo et al. 2021 (DeFeat); Li et
al. 2017 (mimic).
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from must.core.types import Array, Model, PerExample, Policy, PyTree
from must.objectives.objective import Answer
from must.tasks.base import Task
from must.tasks.dense import to_shape

_EPS = 1e-6
_UNIT = 1e-4  # disagreement that counts as one item: no denominator falls below one item, and few are as small
ALL, MISSING, ANNOTATED = "all", "missing", "annotated"  # rows that a hint acts on, by the task's own ground truth


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
      skip: group of a step in which it has no examples, so that its teacher does not run.
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

    def apply(params, state, student, teacher_answer, context):
        label = jax.lax.stop_gradient(task.predict(teacher_answer.outputs[name]))
        return task.loss(student.outputs[name], task.target(label, context.policy)), state

    return _plain("hard", name, teacher, task.terms, apply)


def soft(name: str, task: Task, teacher: str, scale: float = 1.0) -> Hint:
    """The full predictions of the teacher, without thresholds: `Task.distill_loss`."""

    def apply(params, state, student, teacher_answer, context):
        return task.distill_loss(student.outputs[name], teacher_answer.outputs[name]), state

    return _plain("soft", name, teacher, tuple(f"soft_{term}" for term in task.terms), apply, scale)


def mimic(name: str, teacher: str, widths: Mapping[int, tuple[int, int]], scale: float = 1.0) -> Hint:
    """mean (A F_s - F_t)^2 over all levels, places and channels, with a 1x1 adaptor A per level (Li et al. 2017).

    Args:
      name: of the task.
      teacher: of that name.
      widths: {stride: (channels of the student, channels of the teacher)}, see `shared_levels`.
      scale: MulTaS's code takes 5.
    """

    def apply(params, state, student, teacher_answer, context):
        value, count = 0.0, 0
        for error in _errors(params, student, teacher_answer).values():
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

    def apply(params, state, student, teacher_answer, context):
        shapes = _shapes(student, widths)
        where, terms = task.disagreement(student.outputs[name], teacher_answer.outputs[name], shapes)
        errors = _errors(params, student, teacher_answer)
        value, weight = 0.0, 0.0
        for stride, level in where.items():
            value += (level[..., None] * errors[stride]).sum((1, 2, 3)) / _UNIT
            weight += level.sum((1, 2)) * errors[stride].shape[-1] / _UNIT
        feature = PerExample(feature_scale * value, weight)
        return {"pdf_feature": feature, **terms}, state

    return _adapted("pdf", name, teacher, widths, ("pdf_feature", *task.pdf_terms), apply, scale)


def defeat(name: str, task: Task, teacher: str, widths: Mapping[int, tuple[int, int]], scale: float = 1.0) -> Hint:
    """Foreground and background distilled apart, each with its own mean (DeFeat, Guo et al. 2021).

    The foreground is what lies in a box of the teacher that the label policy accepts. The published code takes those
    of the ground truth, which an image without annotation does not have.

    Args:
      name, teacher, widths, scale: see `mimic`.
      task: of that name.
    """

    def apply(params, state, student, teacher_answer, context):
        label = jax.lax.stop_gradient(task.predict(teacher_answer.outputs[name]))
        inside = task.foreground(task.target(label, context.policy), _shapes(student, widths))
        parts = {"defeat_foreground": [0.0, 0.0], "defeat_background": [0.0, 0.0]}
        for stride, error in _errors(params, student, teacher_answer).items():
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


def _errors(params, student: Answer, teacher_answer: Answer) -> dict[int, Array]:
    """(A F_s - F_t)^2 per level, [B, h, w, C_t]."""
    errors = {}
    for level, adaptor in params.items():
        stride = int(level.removeprefix("level"))
        adapted = student.features.pyramid[stride] @ adaptor["kernel"] + adaptor["bias"]
        errors[stride] = (adapted - jax.lax.stop_gradient(teacher_answer.features.pyramid[stride])) ** 2
    return errors


def _shapes(student: Answer, strides) -> dict[int, tuple[int, int]]:
    return {stride: student.features.pyramid[stride].shape[1:3] for stride in strides}


class Standard(NamedTuple):
    """y = (x - mean) @ matrix, targets of unit variance.

    Attributes:
      mean: [C].
      matrix: [C, C].
    """

    mean: Array
    matrix: Array


def phi_s(mean: np.ndarray, covariance: np.ndarray) -> Standard:
    """PCA-Hadamard isotropic standardization: y = H U^T (x - mean) / phi, phi^2 the mean eigenvalue.

    U rotates to the principal axes and H spreads every one of them evenly over all channels, so that each channel has
    variance 1 with a single factor 1 / phi: an error weighs the same in every direction of the original space, which
    dividing channel by channel would not give (Ranzinger et al. 2024, section 3).

    Args:
      mean: [C].
      covariance: [C, C].
    """
    values, axes = np.linalg.eigh(np.asarray(covariance, np.float64))
    values = np.maximum(values, 0.0)
    size = len(values)
    spread = _hadamard(size) if size & (size - 1) == 0 else _even_rotation(values)
    matrix = (spread @ axes.T).T / np.sqrt(max(values.mean(), _EPS))
    return Standard(np.asarray(mean, np.float32), matrix.astype(np.float32))


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [C] and covariance [C, C] of feature vectors [..., C]."""
    rows = np.asarray(features, np.float64).reshape(-1, features.shape[-1])
    return rows.mean(0), np.cov(rows, rowvar=False, bias=True).reshape(rows.shape[1], -1)


def adaptor(
    name: str,
    teacher: str,
    student_levels: Mapping[int, tuple],
    teacher_levels: Mapping[int, tuple],
    *,
    standards: Mapping[int, Standard] | None = None,
    hidden: int = 0,
    momentum: float = 0.99,
    scale: float = 1.0,
) -> Hint:
    """A head per level of the teacher, two 1x1 layers, that predicts the teacher's standardized features.

    mean (head(F_s) - standardize(F_t))^2; a level of the teacher is read from the student's level of nearest stride,
    repeated or averaged to the teacher's size, so any size and any number of channels can be a target.

    Args:
      name: task that the term belongs to.
      teacher: of that name.
      student_levels, teacher_levels: {stride: (height, width, channels)}, see `feature_widths`.
      standards: {stride: fixed standardization}, from `phi_s`; None follows mean and variance of every channel while
        training (UNIC), kept in the objective's state.
      hidden: width of the first layer; 0 takes the student's.
      momentum: of the running statistics.
      scale: of the term.
    """
    sources = {t: min(student_levels, key=lambda s: (abs(np.log2(s / t)), s)) for t in teacher_levels}
    make = jax.nn.initializers.lecun_normal()

    def init(key):
        params, state = {}, {}
        for stride, source in sources.items():
            narrow, wide = student_levels[source][-1], teacher_levels[stride][-1]
            middle = hidden or narrow
            first, second = jax.random.split(jax.random.fold_in(key, stride))
            params[f"level{stride}"] = {
                "first": make(first, (narrow, middle)),
                "first_bias": jnp.zeros(middle),
                "second": make(second, (middle, wide)),
                "second_bias": jnp.zeros(wide),
            }
            if standards is None:
                state[f"level{stride}"] = {"mean": jnp.zeros(wide), "square": jnp.ones(wide), "seen": jnp.zeros(())}
            else:
                state[f"level{stride}"] = {k: jnp.array(v) for k, v in standards[stride]._asdict().items()}
        return params, state

    def apply(params, state, student, teacher_answer, context):
        value, count, after = 0.0, 0, {}
        for stride, source in sources.items():
            level = f"level{stride}"
            target = jax.lax.stop_gradient(teacher_answer.features.pyramid[stride].astype(jnp.float32))
            target, after[level] = _standardized(target, state[level], context, momentum)
            layer = params[level]
            x = to_shape(student.features.pyramid[source], target.shape[1:3])
            x = jax.nn.gelu(x @ layer["first"] + layer["first_bias"]) @ layer["second"] + layer["second_bias"]
            value, count = value + ((x - target) ** 2).sum((1, 2, 3)), count + target[0].size
        return {"adaptor": PerExample(value, jnp.full(len(value), count, jnp.float32))}, after

    return Hint(f"{name}_adaptor_{teacher}", name, teacher, ("adaptor",), init, apply, scale, droppable=True)


def _standardized(x: Array, state: dict[str, Array], context, momentum: float) -> tuple[Array, dict[str, Array]]:
    if "matrix" in state:
        return (x - state["mean"]) @ state["matrix"], state
    rows = context.present.astype(jnp.float32)
    weight = rows[:, None, None, None]
    sums = ((weight * x).sum((0, 1, 2)), (weight * x * x).sum((0, 1, 2)), rows.sum() * x.shape[1] * x.shape[2])
    if context.axis_name is not None:
        sums = jax.lax.psum(sums, context.axis_name)
    count = jnp.maximum(sums[2], 1.0)
    # The first batch is taken whole; a batch without rows leaves the statistics as they are.
    rate = jnp.where(sums[2] > 0, jnp.where(state["seen"] > 0, 1.0 - momentum, 1.0), 0.0)
    mean = state["mean"] + rate * (sums[0] / count - state["mean"])
    square = state["square"] + rate * (sums[1] / count - state["square"])
    spread = jnp.sqrt(jnp.maximum(square - mean * mean, _EPS))
    after = {"mean": mean, "square": square, "seen": jnp.minimum(state["seen"] + rate, 1.0)}
    return (x - mean) / spread, after


def _hadamard(size: int) -> np.ndarray:
    """Sylvester's orthogonal matrix of entries +-1 / sqrt(size), for powers of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def _even_rotation(values: np.ndarray) -> np.ndarray:
    """An orthogonal Q with every diagonal entry of Q diag(values) Q^T the mean, where no Hadamard matrix is at hand.

    One plane rotation after the other brings one entry to the mean (Schur and Horn: there always is one).
    """
    matrix, rotation, mean = np.diag(values.astype(np.float64)), np.eye(len(values)), values.mean()
    for _ in range(len(values) - 1):
        diagonal = np.diag(matrix)
        low, high = int(diagonal.argmin()), int(diagonal.argmax())
        a, b, c = diagonal[low], diagonal[high], matrix[low, high]
        if b - a < 1e-12 * max(abs(mean), _EPS):
            break
        # (a cos^2 + 2 c cos sin + b sin^2) = mean for tan = t: (b - mean) t^2 + 2 c t + (a - mean) = 0, b > mean > a
        t = (-c + np.sqrt(max(c * c - (b - mean) * (a - mean), 0.0))) / (b - mean)
        cos = 1.0 / np.sqrt(1.0 + t * t)
        plane = np.eye(len(values))
        plane[low, low], plane[low, high], plane[high, low], plane[high, high] = cos, t * cos, -t * cos, cos
        matrix, rotation = plane @ matrix @ plane.T, plane @ rotation
    return rotation
