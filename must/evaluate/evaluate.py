"""Scores of a model over a labeled split: rows per image on the device, summary and intervals on the host.

A split is evaluated in three moves: `eval_step` turns a batch into rows, `evaluate` gathers the rows of all batches,
`summarize` makes them numbers. Rows keep one entry per image, so that images can be resampled afterwards.
How two columns of numbers compare is in `must.evaluate.statistics`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from must.core.types import Array, Batch, Label, Model, PyTree, UserError
from must.tasks.base import Task

Rows = dict[str, np.ndarray]


def eval_step(
    variables: PyTree,
    batch: Batch,
    *,
    model: Model,
    tasks: Mapping[str, Task],
    view: str | None = "image",
    axis_name: str | None = None,
) -> dict[str, dict[str, Array]]:
    """Rows of one batch for every task that the model answers and the batch annotates; pure, traceable.

    Args:
      variables: of the model.
      batch: labels and weights under task names.
      model: applied in inference mode.
      tasks: {task name: Task}.
      view: which inputs the model sees, uint8 [B, H, W, 3] or [B, T, H, W, 3]; None hands it all, {view: inputs}.
      axis_name: unused, rows do not meet; the argument lets `must.core.devices.parallelize` run it.

    Returns:
      {task name: rows [B, ...] of `Task.measure`, and "weight" [B]}.
    """
    inputs = batch.inputs if view is None else batch.inputs[view]
    outputs, _ = model.apply(variables, inputs, train=False, key=None, axis_name=axis_name)
    return _rows({name: task.predict(outputs[name]) for name, task in tasks.items() if name in outputs}, batch, tasks)


def labels_step(
    variables: PyTree,
    batch: Batch,
    *,
    predict: Callable[[PyTree, Mapping[str, Array]], dict[str, Label]],
    tasks: Mapping[str, Task],
    axis_name: str | None = None,
) -> dict[str, dict[str, Array]]:
    """`eval_step` of a predictor of labels, for instance an exported network: (variables, {view: inputs}) -> {task:
    label}."""
    del axis_name
    return _rows(
        {name: label for name, label in predict(variables, batch.inputs).items() if name in tasks}, batch, tasks
    )


def constant_step(
    guesses: Mapping[str, Label], batch: Batch, *, tasks: Mapping[str, Task], axis_name: str | None = None
) -> dict[str, dict[str, Array]]:
    """`eval_step` of a predictor with one constant prediction for every image: `guesses` (without B) stand for the
    variables."""
    del axis_name

    def spread(guess: Label, weights: Array) -> Label:
        return {field: jnp.broadcast_to(value, (len(weights), *jnp.shape(value))) for field, value in guess.items()}

    annotated = {name: guess for name, guess in guesses.items() if name in tasks and name in batch.labels}
    return _rows({name: spread(guess, batch.weights[name]) for name, guess in annotated.items()}, batch, tasks)


def _rows(predictions: dict[str, Label], batch: Batch, tasks: Mapping[str, Task]) -> dict[str, dict[str, Array]]:
    return {
        name: {**tasks[name].measure(prediction, batch.labels[name]), "weight": batch.weights[name]}
        for name, prediction in predictions.items()
        if name in batch.labels
    }


def evaluate(
    step: Callable[[PyTree, Batch], dict[str, dict[str, Array]]], variables: PyTree, batches: Iterable[Batch]
) -> dict[str, Rows]:
    """Rows of all batches, on the host; rows with weight 0 (padding, not annotated) are dropped.

    Args:
      step: `eval_step` or `constant_step` with everything but variables and batch bound, compiled or not.
      variables: handed to the step.
      batches: of any sizes; they are read once.

    Returns:
      {task name: rows [N, ...]}, N the annotated examples in the order of the batches; "weight" is not kept, since
      every example counts once.
    """
    gathered: dict[str, list[Rows]] = {}

    def collect(rows: dict[str, dict[str, Array]]) -> None:
        for name, fields in jax.device_get(rows).items():
            present = np.asarray(fields["weight"]) != 0
            kept = {field: np.asarray(value)[present] for field, value in fields.items() if field != "weight"}
            gathered.setdefault(name, []).append(kept)

    waiting = None
    for batch in batches:
        rows = step(variables, batch)  # dispatched only: the device works on it while the rows before are fetched
        if waiting is not None:
            collect(waiting)
        waiting = rows
    if waiting is not None:
        collect(waiting)
    return {
        name: {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
        for name, parts in gathered.items()
    }


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
    name = metric or task.metrics[0].name
    count = _count(rows)
    if not count:
        raise ValueError("a bootstrap needs at least one row")
    if versus is not None and _count(versus) != count:
        raise ValueError(f"a paired bootstrap needs the same examples on both sides, not {count} and {_count(versus)}")
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for draw in range(resamples):
        chosen = rng.integers(0, count, count)
        values[draw] = task.summarize(_take(rows, chosen))[name]
        if versus is not None:
            values[draw] -= task.summarize(_take(versus, chosen))[name]
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])  # NaN: a resample without, say, any object
    return float(low), float(high)


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


def _best_of(task: Task, labels: Sequence[Label], candidates: int) -> Label:
    headline = task.metrics[0]
    truth = {field: np.stack([label[field] for label in labels]) for field in labels[0]}
    tried = [labels[i] for i in np.linspace(0, len(labels) - 1, min(candidates, len(labels))).astype(int)]

    def score(guess: Label) -> float:
        repeated = {field: np.broadcast_to(value, (len(labels), *np.shape(value))) for field, value in guess.items()}
        value = task.summarize(jax.device_get(task.measure(repeated, truth)))[headline.name]
        value = value if headline.higher_is_better else -value
        return value if np.isfinite(value) else -np.inf

    return max(tried, key=score)


def _count(rows: Rows) -> int:
    return len(next(iter(rows.values()))) if rows else 0


def _take(rows: Rows, chosen: np.ndarray) -> Rows:
    return {field: value[chosen] for field, value in rows.items()}
