"""Scores of a predictor over a labeled split: rows per image, summary and intervals.

Predictions are compared with the truth in the frame of the original image, over all that is annotated: the encoder
hands the labels on as they are (`as_annotated`), `Task.original` takes predictions back from the network's frame.
`measure_batches` gathers the rows of all batches, `summarize` makes them numbers. Rows keep one entry per image, so
that images can be resampled afterwards. How two columns of numbers compare is in `must.evaluate.statistics`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from must.core.types import Array, Batch, Geometry, Label, UserError
from must.data.geometry import own_frame
from must.evaluate.statistics import percentile_interval
from must.tasks.base import Task

Rows = dict[str, np.ndarray]
_TRUTH = "truth"


class AsAnnotated(NamedTuple):
    """Stands for a task in an encoder whose labels are compared in the frame of the original image.

    A label of a batch is then {"truth": objects [B]}, (label in the original's frame, geometry) each.
    """

    task: Task

    def encode(self, label: Label, geometry: Geometry) -> Label:
        return {_TRUTH: _boxed((self.task.transform(label, own_frame(geometry.source_size)), geometry))}

    def blank(self, size: tuple[int, int]) -> Label:
        del size
        return {_TRUTH: _boxed(None)}

    def admissible(self, label: Label, geometry: Geometry) -> Geometry:
        return self.task.admissible(label, geometry)


class Everything(NamedTuple):
    """Stands for a task in an encoder whose labels are compared in the network's frame: none of them is left out.

    `Task.encode` keeps what can be learned there, such as the `max_boxes` surest boxes.
    """

    task: Task

    def encode(self, label: Label, geometry: Geometry) -> Label:
        return self.task.transform(label, geometry)

    def blank(self, size: tuple[int, int]) -> Label:
        return self.task.blank(size)


def as_annotated(tasks: Mapping[str, Task]) -> dict[str, AsAnnotated]:
    """Tasks of an encoder for `measure_batches`, as in `eval_batches(source, encoder._replace(tasks=...), ...)`."""
    return {name: AsAnnotated(task) for name, task in tasks.items()}


def _boxed(value: Any) -> np.ndarray:
    """A value as an array without axes, which batches can stack."""
    box = np.empty((), object)
    box[()] = value
    return box


def measure_batches(
    predict: Callable[[Mapping[str, Array]], Mapping[str, Label]], batches: Iterable[Batch], tasks: Mapping[str, Task]
) -> dict[str, Rows]:
    """Rows of all batches, on the host; rows with weight 0 (padding, not annotated) are dropped.

    Args:
      predict: {view: inputs [B, ...]} -> {task: label in network form}, for instance `must.label_step` compiled.
      batches: whose labels are as `as_annotated` has them; they are read once.
      tasks: to evaluate; those that are not predicted or not annotated have no rows.

    Returns:
      {task name: rows [N, ...] of `Task.measure`}, N the annotated examples in the order of the batches; a weight other
      than 0 is no weight here, every example counts once.
    """

    def rows(predictions: Mapping[str, Label], batch: Batch) -> dict[str, list[Rows]]:
        return {
            name: _measured(task, predictions[name], batch.labels[name][_TRUTH], np.asarray(batch.weights[name]))
            for name, task in tasks.items()
            if name in predictions and name in batch.labels
        }

    return gather(lambda batch: predict(batch.inputs), batches, rows)


def gather(
    step: Callable[[Batch], Any], batches: Iterable[Batch], rows: Callable[[Any, Batch], dict[str, list[Rows]]]
) -> dict[str, Rows]:
    """Rows of all batches: what a step gives for each, brought to the host, in parts.

    Args:
      step: dispatched for a batch before the results of the batch before are fetched.
      batches: of any sizes; they are read once.
      rows: (results on the host, batch) -> {task: parts, rows [n, ...] each}.
    """
    gathered: dict[str, list[Rows]] = {}

    def collect(results: Any, batch: Batch) -> None:
        for name, parts in rows(jax.device_get(results), batch).items():
            gathered.setdefault(name, []).extend(parts)

    waiting = None
    for batch in batches:
        results = step(batch)  # dispatched only: the device works on it while the rows before are measured
        if waiting is not None:
            collect(*waiting)
        waiting = results, batch
    if waiting is not None:
        collect(*waiting)
    return {name: joined(parts) if parts else {} for name, parts in gathered.items()}


def present(rows: Mapping[str, Rows], batch: Batch) -> dict[str, list[Rows]]:
    """Rows [B, ...] with a "weight", for `gather`: those whose weight is not 0."""
    del batch
    found = {}
    for name, fields in rows.items():
        where = np.asarray(fields["weight"]) != 0
        found[name] = [{field: np.asarray(value)[where] for field, value in fields.items() if field != "weight"}]
    return found


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several parts as one, short ones filled up with zeros."""
    out = {}
    for field in parts[0]:
        values = [np.asarray(part[field]) for part in parts]
        shape = np.max([value.shape[1:] for value in values], 0, initial=0) if values[0].ndim > 1 else ()
        padded = [
            value
            if value.shape[1:] == tuple(shape)
            else np.pad(
                value, [(0, 0), *((0, int(most - has)) for has, most in zip(value.shape[1:], shape, strict=True))]
            )
            for value in values
        ]
        out[field] = np.concatenate(padded)
    return out


def _measured(task: Task, predicted: Label, truth: np.ndarray, weights: np.ndarray) -> list[Rows]:
    parts = []
    for row in np.flatnonzero(weights):
        true, geometry = truth[row]
        label = task.original({name: np.asarray(field)[row] for name, field in predicted.items()}, geometry)
        pair = ({name: np.asarray(field)[None] for name, field in one.items()} for one in (label, true))
        parts.append({name: np.asarray(value) for name, value in task.measure(*pair).items()})
    return parts


def summarize(tasks: Mapping[str, Task], rows: Mapping[str, Rows]) -> dict[str, dict[str, float]]:
    """Scores of every task that has rows: {task name: {metric name: value in its unit}}.

    Raises:
      UserError: a task was evaluated on examples of which none is annotated for it.
    """
    for name, fields in rows.items():
        if not _count(fields):
            raise UserError(f"task {name!r}: none of the evaluated examples is annotated for it")
    return {name: tasks[name].summarize(dict(fields)) for name, fields in rows.items()}


def bootstrap_interval(
    task: Task,
    rows: Rows,
    metric: str | None = None,
    *,
    versus: Rows | None = None,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap over images of one metric, or of its paired difference rows - versus (Efron 1979).

    Every resample runs `Task.summarize` once (twice when paired): a mean over images costs next to nothing, COCO AP
    about as much as one evaluation of the split, so 200 resamples are the sensible number there.

    Args:
      task: whose `summarize` is resampled.
      rows: [N, ...].
      metric: name; None is the headline.
      versus: rows of the other predictor on the same N examples in the same order.
      resamples: number of draws of N images with replacement.
      seed: of the draws.
      confidence: mass of the interval.

    Returns:
      (low, high) in the metric's unit, not turned by direction: a smaller error is a negative difference.

    Raises:
      ValueError: no rows, or `versus` has another number of them.
    """
    if versus is not None and _count(versus) != _count(rows):
        both = f"{_count(rows)} and {_count(versus)}"
        raise ValueError(f"a paired bootstrap needs the same examples on both sides, not {both}")
    values = resampled(task, rows, metric, resamples=resamples, seed=seed)
    if versus is not None:
        values = values - resampled(task, versus, metric, resamples=resamples, seed=seed)
    return percentile_interval(values, confidence)


def resampled(task: Task, rows: Rows, metric: str | None = None, *, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """One metric on draws of N images with replacement, float64 [resamples].

    Equal seeds draw equal images, so that the differences between two predictors on the same N examples are paired.

    Args:
      task: whose `summarize` is resampled.
      rows: [N, ...].
      metric: name; None is the headline.
      resamples: number of draws.
      seed: of the draws.

    Raises:
      ValueError: no rows.
    """
    name, count = metric or task.metrics[0].name, _count(rows)
    if not count:
        raise ValueError("a bootstrap needs at least one row")
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, count, count) for _ in range(resamples))
    return np.array([task.summarize(_take(rows, chosen))[name] for chosen in draws], np.float64)


def constant_guess(task: Task, labels: Sequence[Label], *, candidates: int = 32) -> Label:
    """The prediction that a blind predictor would repeat for every image; what any trained model has to beat.

    The task's own rule, or without one the training label that scores best when it is repeated for all of them.

    Args:
      task: whose labels these are.
      labels: training labels in network form, one per example (at least one).
      candidates: how many labels are tried, evenly spread, for a task without a rule.

    Returns:
      One label in network form, without B.
    """
    guess = task.constant_guess(labels)
    return _best_of(task, labels, candidates) if guess is None else guess


def repeated(guesses: Mapping[str, Label], inputs: Mapping[str, Array]) -> dict[str, Label]:
    """`guesses` (without B) as predictions for every image of {view: inputs [B, ...]}."""
    count = len(next(iter(inputs.values())))
    return {
        name: {field: np.broadcast_to(value, (count, *np.shape(value))) for field, value in guess.items()}
        for name, guess in guesses.items()
    }


def _best_of(task: Task, labels: Sequence[Label], candidates: int) -> Label:
    headline = task.metrics[0]
    truth = {field: np.stack([label[field] for label in labels]) for field in labels[0]}
    tried = [labels[i] for i in np.linspace(0, len(labels) - 1, min(candidates, len(labels))).astype(int)]

    def score(guess: Label) -> float:
        predicted = repeated({"": guess}, truth)[""]
        rows = {name: np.asarray(value) for name, value in task.measure(predicted, truth).items()}
        value = task.summarize(rows)[headline.name]
        value = value if headline.higher_is_better else -value
        return value if np.isfinite(value) else -np.inf

    return max(tried, key=score)


def _count(rows: Rows) -> int:
    return len(next(iter(rows.values()))) if rows else 0


def _take(rows: Rows, chosen: np.ndarray) -> Rows:
    return {field: value[chosen] for field, value in rows.items()}
