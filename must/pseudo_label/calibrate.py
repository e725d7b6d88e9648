"""From raw scores to probabilities of being right: what a teacher claims where the truth is known, and curves fitted to
it.

Which probabilities are then used is decided in `must.pseudo_label.policy`.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from must.core.types import Label, Policy
from must.tasks.base import Task
from must.tasks.label_states import tempered, tempered_label

KNOTS = 33
_DIGITS = 4  # of curves and temperatures, so that a file holds exactly what thresholds were chosen with


class Judged(NamedTuple):
    """What labels claim, held against the truth, over many examples.

    Attributes:
      score: float32 [N], raw.
      correct: bool [N].
      ids: int [N], classes; 0 for a task without classes.
      items: float [C], true items of each class; scaled like the claims where these are a sample.
      classes: names, () for a task without classes.
      examples: int [N], the example that a claim is of; those of one are no independent evidence. None: each of its
        own.
    """

    score: np.ndarray
    correct: np.ndarray
    ids: np.ndarray
    items: np.ndarray
    classes: tuple[str, ...] = ()
    examples: np.ndarray | None = None


def gather(
    task: Task,
    pairs: Iterable[tuple[Label, Label]],
    *,
    max_count: int = 2_000_000,
    seed: int = 0,
    temperature: float = 1.0,
) -> Judged | None:
    """The claims of labels with known truth, or None when the task has no scores.

    Args:
      task: whose labels these are.
      pairs: (prediction, truth) of single examples in network form; read once.
      max_count: claims that are kept, drawn evenly from all.
      seed: of that draw.
      temperature: that distributions over classes are divided by first.
    """
    rng, parts, kept, total = np.random.default_rng(seed), [], 0, 0
    names = tuple(getattr(task, "classes", ()))
    items = np.zeros(max(1, len(names)))
    for index, (predicted, truth) in enumerate(pairs):
        judged = task.judge(tempered_label(Policy(temperature=temperature), predicted), truth)
        if judged is None:
            return None
        score, correct, ids = judged
        items += np.asarray(task.items(truth))
        # Every claim draws a number; those with the smallest stay, so that all have the same chance.
        parts.append((rng.random(len(score)), np.asarray(score, np.float32), correct, ids, np.full(len(score), index)))
        kept, total = kept + len(score), total + len(score)
        if kept > 2 * max_count:
            parts = [_smallest(parts, max_count)]
            kept = max_count
    if not parts:
        return Judged(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, int), items, names, np.zeros(0, int))
    _, score, correct, ids, examples = _smallest(parts, max_count)
    return Judged(score, correct, ids, items * (len(score) / max(1, total)), names, examples)


def _smallest(parts: list[tuple[np.ndarray, ...]], max_count: int) -> tuple[np.ndarray, ...]:
    columns = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    if len(columns[0]) <= max_count:
        return columns
    chosen = np.sort(np.argpartition(columns[0], max_count)[:max_count])
    return tuple(column[chosen] for column in columns)


def fit_temperature(probs: np.ndarray, truth: np.ndarray) -> float:
    """T that divides the logits of distributions [n, C] so that the true classes [n] are likeliest (Guo et al. 2017).

    A number in 0.05..20; 1 without any examples.
    """
    if not len(truth):
        return 1.0
    logits, rows = np.log(np.maximum(np.asarray(probs, np.float64), 1e-12)), np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(-1)
        return float(np.mean(top + np.log(np.exp(scaled - top[:, None]).sum(-1)) - scaled[rows, truth]))

    from scipy.optimize import minimize_scalar  # here: SciPy takes a third of what starting a process takes

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return round(float(np.exp(found.x)), _DIGITS)


def fit_isotonic(claims: Judged, *, knots: int = KNOTS, min_count: int = 100) -> np.ndarray:
    """How often claims are right, by score, as a curve that does not fall (isotonic regression, Barlow et al. 1972).

    Each level of the regression stands at the mean score of its claims, linear between (centered isotonic regression,
    Oron and Flournoy 2017): a step would make its edge a cut that looks better than it is. A score of 0 is never right.
    No claim is surer than one more, wrong, among as many would allow (Laplace's rule of succession).

    Args:
      claims: to fit.
      knots: K.
      min_count: a class with fewer claims takes the curve of all classes together.

    Returns:
      float32 [C, K], [K] for a task without classes; `Policy.curve`.
    """
    return _per_class(claims, min_count, lambda score, correct: _isotonic(score, correct, knots))


def fit_scaling(claims: Judged, *, knots: int = KNOTS, min_count: int = 100) -> np.ndarray:
    """Temperature scaling of scores that are no distribution: sigmoid(logit(score) / T) as a curve; see
    `fit_isotonic`."""
    return _per_class(claims, min_count, lambda score, correct: _scaled(score, correct, knots))


def _per_class(claims: Judged, min_count: int, fit) -> np.ndarray:
    pooled = fit(claims.score, claims.correct)
    if not claims.classes:
        return pooled
    curves = np.tile(pooled, (len(claims.classes), 1))
    for c in np.flatnonzero(np.bincount(claims.ids, minlength=len(curves)) >= max(1, min_count)):
        mine = claims.ids == c
        curves[c] = fit(claims.score[mine], claims.correct[mine])
    return curves


def _isotonic(score: np.ndarray, correct: np.ndarray, knots: int) -> np.ndarray:
    from scipy.optimize import isotonic_regression

    grid = np.linspace(0.0, 1.0, knots)
    if not len(score):
        return grid.astype(np.float32)
    values, where = np.unique(np.asarray(score, np.float64), return_inverse=True)
    count = np.bincount(where)
    found = isotonic_regression(np.bincount(where, correct) / count, weights=count)
    starts = found.blocks[:-1]
    center = np.add.reduceat(values * count, starts) / np.add.reduceat(count, starts)
    edge = 1.0 / (len(score) + 2)
    level = np.clip(found.x[starts], edge, 1.0 - edge)
    return np.interp(grid, np.append(0.0, center), np.append(0.0, level)).round(_DIGITS).astype(np.float32)


def _scaled(score: np.ndarray, correct: np.ndarray, knots: int) -> np.ndarray:
    both = lambda p: np.stack([1.0 - p, p], -1)  # noqa: E731
    temperature = fit_temperature(both(np.asarray(score, np.float64)), np.asarray(correct, int))
    return tempered(Policy(temperature=temperature), both(np.linspace(0.0, 1.0, knots)))[:, 1].round(_DIGITS)
