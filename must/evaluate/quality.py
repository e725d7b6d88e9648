"""How good labels are, held against the truth: what a policy takes and leaves, and how far its scores can be trusted.

Examples are read one after the other and forgotten; only the rows of the task's own metrics stay.
"""

import heapq
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from must.core.proportions import spread_of, wilson
from must.core.types import Label, Policy
from must.evaluate.evaluate import joined
from must.tasks.base import Task
from must.tasks.label_states import calibrated, is_distribution, states, tempered_label

_EVERY = "all"  # the one class of a task without classes
_STATES = ("positive", "ignored", "negative")


def quality(
    task: Task, pairs: Iterable[tuple[Label, Label, str]], policy: Policy, *, worst: int = 24
) -> dict[str, Any]:
    """What is right about labels and what the policy makes of it, as anything that JSON can hold.

    Args:
      task: whose labels these are.
      pairs: (prediction, truth, id) of single examples in network form; read once.
      policy: which labels are used.
      worst: examples that are named in each list.

    Returns:
      examples: how many.
      classes: {name: entry}, one "all" for a task without classes; {} for a task without scores. An entry has items
        (true ones), claims, positive, ignored, negative: numbers; a claim is a box, a pixel or a class of an image,
        threshold: calibrated score from which on claims are positive, None where nothing is, precision, precision_ci95:
        of the positives, Wilson's interval with as many independent claims as their spread over examples allows;
        recall: right positives of the items; coverage: claims that are not negative, wrong_ignored: share of wrong
        claims among the ignored; right_negative: of right ones among the negative, raw, policy: `reliability` of raw
        and of calibrated scores, without bins; trade_off: see there.
      total: an entry over all classes, with bins and without trade_off and threshold; None for a task without scores.
      metrics: {"labels": {metric: value} of all labels, "positive": of what is positive alone, None where that is no
        question, "units": {metric: unit}, "higher": {metric: whether higher is better}}.
      worst_classes: names of those that have items, by rising recall.
      worst_examples: [[id, mean (probability - right)^2 over claims and missed items]], largest first.
      uncertain_examples: [[id, share of claims that are ignored]], largest first; needs no truth.
    """
    names, policy = tuple(getattr(task, "classes", ())) or (_EVERY,), policy.checked(type(task).__name__.lower())
    tally, rows, believed = _Tally(len(names)), _Rows(task), _Rows(task)
    wrong, unsure, number, scored = [], [], 0, True
    for number, (predicted, truth, key) in enumerate(pairs, 1):  # noqa: B007
        rows.add(predicted, truth)
        if (part := _positive(task, predicted, truth, policy)) is not None:
            believed.add(*part)
        if scored := (judged := task.judge(tempered_label(policy, predicted), truth)) is not None:
            score, correct, ids = (np.asarray(part) for part in judged)
            raw = np.asarray(predicted["probs"])[ids] if is_distribution(predicted) else score
            error, ignored = tally.add(raw, score, correct, ids, np.asarray(task.items(truth)), policy)
            wrong.append((error, key))
            unsure.append((ignored, key))
    classes, total = tally.entries(names, policy) if scored and number else ({}, None)
    found = [name for name, entry in classes.items() if entry["recall"] is not None]
    return {
        "examples": number,
        "classes": classes,
        "total": total,
        "metrics": {
            "labels": rows.summary(),
            "positive": believed.summary(),
            "units": {metric.name: metric.unit for metric in task.metrics},
            "higher": {metric.name: metric.higher_is_better for metric in task.metrics},
        },
        "worst_classes": sorted(found, key=lambda name: classes[name]["recall"]),
        "worst_examples": _largest(wrong, worst),
        "uncertain_examples": _largest(unsure, worst),
    }


def _positive(task: Task, predicted: Label, truth: Label, policy: Policy) -> tuple[Label, Label] | None:
    """A label and its truth where the label is positive, by its fields; None where nothing is or no such part is
    known."""
    fields = set(predicted)
    if is_distribution(predicted):
        score, best = np.asarray(tempered_label(policy, predicted)["probs"]), int(np.argmax(predicted["probs"]))
        return (predicted, truth) if states(policy, score[[best]], np.array([best])).positive[0] else None
    if {"boxes", "scores", "valid"} <= fields:
        kept = states(policy, np.asarray(predicted["scores"]), np.asarray(predicted["classes"])).positive
        return {**predicted, "valid": np.asarray(predicted["valid"]) & kept}, truth
    if fields - {"known"} == {"scores"}:
        scores = np.asarray(predicted["scores"])
        kept = states(policy, scores, np.arange(len(scores))).positive
        return predicted, {**truth, "known": np.broadcast_to(truth.get("known", True), kept.shape) & kept}
    if fields == {"ids", "probs", "known"}:
        ids, probs = (np.asarray(predicted[name])[..., 0] for name in ("ids", "probs"))
        kept = states(
            policy, probs.astype(np.float32) / 255.0, np.minimum(ids, predicted["known"].shape[-1] - 1)
        ).positive
        return predicted, {**truth, "ids": np.where(kept[..., None], truth["ids"], np.uint8(task.ignore))}
    for name in {"depth", "normals"} & fields:
        kept = states(policy, np.asarray(predicted["scores"]).astype(np.float32) / 255.0).positive
        values = np.asarray(truth[name])
        return predicted, {
            **truth,
            name: np.where(kept.reshape(kept.shape + (1,) * (values.ndim - kept.ndim)), values, 0),
        }
    return None


class _Tally:
    """Counts over examples of what the claims of every class come to."""

    def __init__(self, classes: int):
        self._count = {key: np.zeros(classes) for key in ("items", *_STATES)}
        self._right = {key: np.zeros(classes) for key in _STATES}
        self._products = np.zeros(
            (3, classes + 1)
        )  # of each example's right and all positives; the last of all classes
        self._of_claims = np.zeros(3)  # the same of claims
        self._raw, self._calibrated = Cells(classes), Cells(classes)

    def add(self, raw, score, correct, ids, items, policy: Policy) -> tuple[float, float]:
        """One example: its mean squared error, and the share of ignored claims."""
        value, state = calibrated(policy, score, ids), states(policy, score, ids)
        ignored, classes = ~state.positive & ~state.negative, len(self._count["items"])
        for key, where in (("negative", state.negative), ("ignored", ignored), ("positive", state.positive)):
            count, right = (np.bincount(ids[which], minlength=classes) for which in (where, where & correct))
            self._count[key] += count
            self._right[key] += right
        self._products += _products(np.append(right, right.sum()), np.append(count, count.sum()))  # of the positives
        self._count["items"] += items
        self._of_claims += _products(correct.sum(), len(correct))
        self._raw.add(raw, correct, ids)
        self._calibrated.add(value, correct, ids)
        missed = max(0.0, float(items.sum()) - float(correct.sum()))
        error = (float(((value - correct) ** 2).sum()) + missed) / max(1.0, len(ids) + missed)
        return error, float(ignored.mean()) if len(ids) else 0.0

    def entries(self, names: tuple[str, ...], policy: Policy) -> tuple[dict[str, Any], dict[str, Any]]:
        """{class: entry}, and the entry of all."""
        raw, predicted = self._raw.counted(), self._calibrated.counted()
        bound, classes = np.broadcast_to(np.asarray(policy.positive, np.float64), len(names)), {}
        for c, name in enumerate(names):
            entry = self._entry(lambda array: float(array[c]), self._products[:, c])  # noqa: B023
            entry["threshold"] = float(bound[c]) if bound[c] <= 1 else None
            for key, cells in (("raw", raw), ("policy", predicted)):
                entry[key] = {
                    k: v for k, v in reliability(Counted(*(part[c] for part in cells))).items() if k != "bins"
                }
            entry["trade_off"] = trade_off(Counted(*(part[c] for part in predicted)), entry["items"])
            classes[name] = entry
        total = self._entry(lambda array: float(array.sum()), self._products[:, -1])
        right, count = (float(part.sum()) for part in (predicted.right, predicted.count))
        spread = spread_of(*self._of_claims, right, count)
        for key, cells in (("raw", raw), ("policy", predicted)):
            total[key] = reliability(Counted(*(part.sum(0) for part in cells)), spread)
        return classes, total

    def _entry(self, of, products: np.ndarray) -> dict[str, Any]:
        count, right = ({key: of(array) for key, array in part.items()} for part in (self._count, self._right))
        claims = sum(count[key] for key in right)
        share = lambda some, all_: some / all_ if all_ else None  # noqa: E731
        spread = spread_of(*products, right["positive"], count["positive"])
        interval = wilson(right["positive"] / spread, count["positive"] / spread)
        return {
            "items": int(count["items"]),
            "claims": int(claims),
            **{key: int(count[key]) for key in right},
            "precision": share(right["positive"], count["positive"]),
            "precision_ci95": [float(end) for end in interval] if count["positive"] else None,
            "recall": share(right["positive"], count["items"]),
            "coverage": share(count["positive"] + count["ignored"], claims),
            "wrong_ignored": share(count["ignored"] - right["ignored"], count["ignored"]),
            "right_negative": share(right["negative"], count["negative"]),
        }


def _products(right, count) -> np.ndarray:
    right, count = np.asarray(right, np.float64), np.asarray(count, np.float64)
    return np.stack([right * right, right * count, count * count])


class _Rows:
    """Rows of the task's metrics."""

    def __init__(self, task: Task):
        self._task = task
        self._rows: list[dict[str, np.ndarray]] = []

    def add(self, predicted: Label, truth: Label) -> None:
        """One example."""
        pair = ({name: np.asarray(field)[None] for name, field in label.items()} for label in (predicted, truth))
        self._rows.append({name: np.asarray(value) for name, value in self._task.measure(*pair).items()})

    def summary(self) -> dict[str, float | None] | None:
        """{metric: value, None where it is undefined}, or None without any example."""
        if not self._rows:
            return None
        scores = self._task.summarize(joined(self._rows))
        return {name: float(v) if np.isfinite(v) else None for name, v in scores.items()}


def _largest(found: list[tuple[float, str]], most: int) -> list[list[Any]]:
    """[[id, value]] of the largest values above 0; of equal ones the first."""
    return [[key, value] for value, key in heapq.nlargest(most, found, key=lambda entry: entry[0]) if value > 0]


CELLS = 1000  # of the scores 0..1
BINS = 15  # of a diagram and of the calibration error, with equal numbers of claims
_WAITING = 1_000_000  # claims that are held before they are counted
_POINTS = 60  # of a curve of precision and recall, at most about this far apart along either


class Counted(NamedTuple):
    """Claims by cell of their score, float64 [C, CELLS + 1] each.

    Attributes:
      count: claims.
      right: of them, those that are so.
      score: sum of the scores.
      square: sum of (score - right)^2.
    """

    count: np.ndarray
    right: np.ndarray
    score: np.ndarray
    square: np.ndarray


class Cells:
    """Gathers claims of `classes` classes."""

    def __init__(self, classes: int):
        self._counted = Counted(*(np.zeros((classes, CELLS + 1)) for _ in Counted._fields))
        self._waiting: list[tuple[np.ndarray, ...]] = []
        self._number = 0

    def add(self, score: np.ndarray, correct: np.ndarray, ids: np.ndarray) -> None:
        """Claims, [N] each."""
        self._waiting.append((np.asarray(score, np.float64), correct, ids))
        self._number += len(score)
        if self._number > _WAITING:
            self.counted()

    def counted(self) -> Counted:
        """All that were added so far."""
        if self._waiting:
            score, correct, ids = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
            self._waiting, self._number = [], 0
            at = ids * (CELLS + 1) + np.floor(np.clip(score, 0.0, 1.0) * CELLS + 1e-6).astype(np.int64)
            for array, weight in zip(self._counted, (None, correct, score, (score - correct) ** 2), strict=True):
                array += np.bincount(at, weight, minlength=array.size).reshape(array.shape)
        return self._counted


def reliability(cells: Counted, spread: float = 1.0) -> dict[str, Any]:
    """How far probabilities are from what they say.

    Args:
      cells: of one class, or summed over classes, [CELLS + 1] each.
      spread: design effect of the claims, which widens the intervals.

    Returns:
      {"ece": mean |share of right - mean score| over bins of equal numbers of claims (Naeini et al. 2015), "brier":
      mean (score - right)^2, "bins": [[mean score, share of right, low, high, claims]]}; ece and brier are None without
      claims.
    """
    total = cells.count.sum()
    if not total:
        return {"ece": None, "brier": None, "bins": []}
    middle = cells.count.cumsum() - cells.count / 2
    which = np.minimum((middle / total * BINS).astype(int), BINS - 1)
    count, right, score = (np.bincount(which, part, minlength=BINS) for part in cells[:3])
    low, high = wilson(right / spread, count / spread)
    used = np.flatnonzero(count)
    some = np.maximum(count, 1)
    bins = np.stack([score / some, right / some, low, high, count], 1)[used].round(4).tolist()
    ece = sum(abs(right[b] - score[b]) for b in used) / total
    return {"ece": float(ece), "brier": float(cells.square.sum() / total), "bins": bins}


def trade_off(cells: Counted, items: float) -> list[list[float]]:
    """[threshold, precision, recall] of one class, by falling threshold; [] without claims or true items."""
    count, right = cells.count[::-1].cumsum(), cells.right[::-1].cumsum()
    steps = np.flatnonzero(cells.count[::-1])
    if not items or not len(steps):
        return []
    points = np.stack([(CELLS - steps) / CELLS, right[steps] / count[steps], np.minimum(1.0, right[steps] / items)], 1)
    kept = [points[0]]
    for point in points[1:]:
        if np.abs(point - kept[-1])[1:].max() >= 1 / _POINTS or point is points[-1]:
            kept.append(point)
    return np.round(kept, 4).tolist()
