"""Feature hints from teachers of any architecture: adaptor heads, standardized targets, teacher dropping.

Teachers differ in the scale and the shape of their features by orders of magnitude; unless targets are standardized the
loudest one is all that a student hears. Two ways: PHI-S (Ranzinger et al. 2024), a fixed rotation and one factor from the
teacher's covariance, and running means and variances per channel (UNIC, Sariyildiz et al. 2024).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from must.core.types import Array, PerExample
from must.objectives.distill import Hint
from must.tasks.dense import to_shape

_EPS = 1e-6


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

    mean (head(F_s) - standardize(F_t))^2; a level of the teacher is read from the student's level of the nearest stride,
    repeated or averaged to the teacher's size, so any size and any number of channels can be a target.

    Args:
      name: task that the term belongs to.
      teacher: of that name.
      student_levels, teacher_levels: {stride: (height, width, channels)}, see `must.objectives.distill.feature_widths`.
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

    def apply(params, state, student, said, context):
        value, count, after = 0.0, 0, {}
        for stride, source in sources.items():
            level = f"level{stride}"
            target = jax.lax.stop_gradient(said.features.pyramid[stride].astype(jnp.float32))
            target, after[level] = _standardized(target, state[level], context, momentum)
            layer = params[level]
            x = to_shape(student.features.pyramid[source], target.shape[1:3])
            x = jax.nn.gelu(x @ layer["first"] + layer["first_bias"]) @ layer["second"] + layer["second_bias"]
            value, count = value + ((x - target) ** 2).sum((1, 2, 3)), count + target[0].size
        return {"adaptor": PerExample(value, jnp.full(len(value), count, jnp.float32))}, after

    return Hint(f"{name}_adaptor_{teacher}", name, teacher, ("adaptor",), init, apply, scale, droppable=True)


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
