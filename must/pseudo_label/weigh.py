"""Debiasing weights for pseudo-labeled examples, estimated on held-out truth (Iliopoulos et al., NeurIPS 2022).

A teacher is right on x with probability p(x); where it is wrong its label costs the student d(x) times what the truth
would. Weighted by w(x) = 1 / (p + d (1 - p)), the loss on the teacher's labels has the expectation of the loss on the
truth. p and d are unknown, so w is read off a small validation set near x: near in the margins of teacher and student.

The weights are constants to the step (no gradient flows into them), rows with ground truth keep w = 1, and a sum of
weighted losses is divided by the number of rows, never by the sum of the weights: that would put the bias back.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from must.core.types import UserError

Estimator = Callable[[np.ndarray], np.ndarray]  # covariates [N, D] -> weights float32 [N]

_EPSILON = 1e-6  # added to both means, so that a student without loss has the weight 1
_CHUNK = 1 << 14  # queries at a time: memory does not grow with their number


class HeldOut(NamedTuple):
    """What teacher and student say about validation examples, whose truth the teacher was not trained on.

    Attributes:
      covariates: [n, D], see `covariates`.
      true_loss: [n], the student's loss against the truth; [n, T] for T terms.
      teacher_loss: the same loss against the teacher's label.
      true_items: how many items (pixels, boxes) each true_loss is a sum over; 1 by default.
      teacher_items: the same for teacher_loss; 0 where no claim of a label is used.
    """

    covariates: np.ndarray
    true_loss: np.ndarray
    teacher_loss: np.ndarray
    true_items: np.ndarray | None = None
    teacher_items: np.ndarray | None = None


def margin(probs: np.ndarray) -> np.ndarray:
    """Largest minus second largest probability over the last axis: [..., C] -> [...]."""
    top = np.partition(np.asarray(probs, np.float32), -2, axis=-1)
    return top[..., -1] - top[..., -2]


def covariates(teacher_probs: np.ndarray, student_probs: np.ndarray) -> np.ndarray:
    """Where an example lies for the estimators: (teacher's margin, student's margin), float32 [N, 2]."""
    return np.stack([margin(teacher_probs), margin(student_probs)], -1)


def exact(accuracy: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """w = 1 / (p + d (1 - p)), where both are known: the oracle of experiments."""
    return 1.0 / (accuracy + distortion * (1.0 - accuracy))


def ratio_of_means(held_out: HeldOut, *, neighbors: int | None = None, correct: np.ndarray | None = None) -> Estimator:
    """w(x) = mean true_loss / mean teacher_loss over the k validation examples nearest to x.

    It needs no wrong label to be known, so soft labels and dense tasks have it too. The mean of the ratios would be
    biased upwards (Jensen). With hard labels that a teacher hits with probability p, w is at most 1 / p where mistakes
    come independently of the student. A student that copies its teacher's mistakes breaks that: next to nothing is left
    of its loss on them, and the ratio grows without limit.

    Args:
      held_out: losses of one task, all in one unit.
      correct: bool [n], whether the teacher's label is the truth; holds w at 1 / p of the same neighbors, which for
        soft labels is a guard and no theorem.
      neighbors: k; the rounded square root of n by default, n gives every example the one global ratio.

    Raises:
      UserError: no examples, more neighbors than examples, a value that is not finite.
    """
    near = _Neighbors(held_out, neighbors)
    sums = [_columns(held_out.true_loss), _columns(held_out.teacher_loss)]
    for loss, items in zip(list(sums), (held_out.true_items, held_out.teacher_items), strict=True):
        sums.append(np.ones_like(loss) if items is None else _columns(items))
    hits = np.zeros(len(sums[0])) if correct is None else correct
    columns, terms = np.concatenate([*sums, _columns(hits)], -1), sums[0].shape[-1]

    def estimate(points: np.ndarray) -> np.ndarray:
        means = near.means(columns, points)
        true, teacher, true_items, teacher_items = (means[:, i * terms : (i + 1) * terms] for i in range(4))
        # Sums first, division last, as in training; no fewer than one item in a neighborhood.
        true, teacher = (
            (loss / np.maximum(items, 1.0 / near.count)).sum(-1)
            for loss, items in ((true, true_items), (teacher, teacher_items))
        )
        bound = np.inf if correct is None else 1.0 / np.maximum(means[:, -1], 1.0 / near.count)
        return np.minimum((true + _EPSILON) / (teacher + _EPSILON), bound).astype(np.float32)

    return estimate


def plug_in(held_out: HeldOut, correct: np.ndarray, *, neighbors: int | None = None) -> Estimator:
    """w(x) = 1 / (p + d (1 - p)) with p and d from the k nearest validation examples; d = 1 where none is wrong.

    Args:
      held_out: see `ratio_of_means`.
      correct: bool [n], whether the teacher's label is the truth.
      neighbors: k.

    Raises:
      UserError: as `ratio_of_means`.
    """
    near = _Neighbors(held_out, neighbors)
    wrong = ~np.asarray(correct, bool)
    columns = np.stack([wrong, wrong * held_out.teacher_loss, wrong * held_out.true_loss], -1).astype(np.float64)

    def estimate(points: np.ndarray) -> np.ndarray:
        wrong_share, teacher, true = near.means(columns, points).T
        distortion = np.where(wrong_share > 0, (teacher + _EPSILON) / (true + _EPSILON), 1.0)
        return exact(1.0 - wrong_share, distortion).astype(np.float32)

    return estimate


def isotonic_accuracy(margins: np.ndarray, correct: np.ndarray, *, floor: float) -> Callable[[np.ndarray], np.ndarray]:
    """p(x), rising with the teacher's margin: isotonic regression of correctness, held above a floor.

    Args:
      margins: [n], the teacher's.
      correct: bool [n].
      floor: least value; above the teacher's true accuracy it misstates p.

    Returns:
      margins [N] -> float32 [N].

    Raises:
      UserError: no examples, a value that is not finite.
    """
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError:
        raise UserError("isotonic accuracy: needs scikit-learn: pip install 'must[weights]'") from None

    if not len(margins):
        raise UserError("isotonic accuracy: the validation set is empty")
    if not np.isfinite(margins).all():
        raise UserError("isotonic accuracy: a margin is not finite")
    fitted = IsotonicRegression(y_min=floor, y_max=1.0, out_of_bounds="clip")
    fitted.fit(np.asarray(margins, np.float64), np.asarray(correct, np.float64))
    return lambda points: fitted.predict(np.asarray(points, np.float64)).astype(np.float32)


def candidates(
    margins: np.ndarray, rank: np.ndarray, *, target_precision: float, max_count: int
) -> Callable[[np.ndarray], np.ndarray]:
    """k(x) of SLaM: the fewest of the teacher's best classes, two at least, that hold the truth with a target
    probability.

    With one class the student's prediction would stay as it is, whatever the teacher's accuracy.

    Args:
      margins: [n], the teacher's.
      rank: int [n], place of the truth in the order of `must.objectives.slam.top_candidates`, 0 is the first.
      target_precision: probability, from an isotonic regression of "the truth is among the first k" on the margin.
      max_count: largest k, which is taken where no smaller one is enough.

    Returns:
      margins [N] -> int32 [N], in 2..max_count.
    """
    among = [isotonic_accuracy(margins, rank < k, floor=0.0) for k in range(2, max_count)]

    def count(points: np.ndarray) -> np.ndarray:
        return sum(
            ((first(points) < target_precision).astype(np.int32) for first in among), np.full(len(points), 2, np.int32)
        )

    return count


def confidence(probs: np.ndarray) -> np.ndarray:
    """1 - H(probs) / log C: weights from a teacher's uncertainty alone, [..., C] -> [...] in 0..1."""
    probs = np.asarray(probs, np.float64)
    entropy = -np.sum(probs * np.log(np.maximum(probs, 1e-12)), -1)
    return (1.0 - entropy / np.log(probs.shape[-1])).astype(np.float32)


class _Neighbors:
    """Means over the k nearest validation examples, in covariates scaled to unit variance."""

    def __init__(self, held_out: HeldOut, neighbors: int | None):
        points = np.asarray(held_out.covariates, np.float64)
        count = len(points)
        if not count:
            raise UserError("weights: the validation set is empty")
        for name, values in held_out._asdict().items():
            if values is None:
                continue
            if len(values) != count:
                raise UserError(f"weights: {len(values)} values of {name} for {count} validation examples")
            if not np.isfinite(values).all():
                raise UserError(f"weights: {name} of validation example {_first_bad(values)} is not finite")
        self.count = max(1, round(count**0.5)) if neighbors is None else neighbors
        if not 1 <= self.count <= count:
            raise UserError(f"weights: {neighbors} neighbors, but there are {count} validation examples")
        self._mean, spread = points.mean(0), points.std(0)
        self._scale = 1.0 / np.where(spread > 0, spread, 1.0)
        self._points = (points - self._mean) * self._scale
        self._tree = None

    def means(self, values: np.ndarray, points: np.ndarray) -> np.ndarray:
        """[n, V], [N, D] -> [N, V]."""
        points = np.asarray(points, np.float64)
        if self.count == len(self._points):
            return np.broadcast_to(values.mean(0), (len(points), values.shape[1]))
        if self._tree is None:
            from scipy.spatial import cKDTree

            self._tree = cKDTree(self._points)
        out = np.empty((len(points), values.shape[1]))
        for start in range(0, len(points), _CHUNK):
            chunk = (points[start : start + _CHUNK] - self._mean) * self._scale
            _, near = self._tree.query(chunk, range(1, self.count + 1), workers=-1)
            for column, value in enumerate(values.T):
                out[start : start + _CHUNK, column] = value[near].mean(1)
        return out


def _columns(values: np.ndarray) -> np.ndarray:
    """[n] or [n, T] -> float64 [n, T]."""
    values = np.asarray(values, np.float64)
    return values.reshape(len(values), -1)


def _first_bad(values: np.ndarray) -> int:
    rows = np.isfinite(values).reshape(len(values), -1).all(1)
    return int(np.flatnonzero(~rows)[0])
