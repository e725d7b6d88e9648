"""Networks on annotated splits: rows of every task, predictions, and where the rows are kept."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from must.core import devices, files
from must.core.types import Array, Batch, Label, Model, PyTree, Source
from must.data.pipeline import Encoder, eval_batches
from must.evaluate.evaluate import Rows, as_annotated, measure_batches, summarize
from must.experiment import build
from must.pseudo_label.teacher import label_step
from must.readers.fields import understood
from must.tasks.base import Task

Splits = Mapping[str, Source]  # task: the annotated split that evaluates it


def measure(
    variables: PyTree,
    model: Model,
    tasks: Mapping[str, Task],
    encoder: Encoder,
    splits: Splits,
    *,
    batch_size: int = 64,
    view: str | None = "image",
) -> dict[str, Rows]:
    """Rows of every task on the split that evaluates it; a split that serves several tasks is read once.

    The model sees one view of the encoder's, or with None {view: inputs}.
    """
    rows = {}
    for source, names in build.by_source({name: splits[name] for name in tasks if name in splits}):
        mine = {name: tasks[name] for name in names}
        step = _compiled(model, tuple(mine.items()))
        predict = lambda inputs: step(variables, inputs if view is None else inputs[view])  # noqa: B023, E731
        rows |= measure_batches(predict, _batches(source, encoder, mine, batch_size), mine)
    return rows


def measure_predictions(
    predict: Callable[[Mapping[str, Array]], Mapping[str, Label]],
    tasks: Mapping[str, Task],
    encoder: Encoder,
    splits: Splits,
    *,
    batch_size: int = 64,
) -> dict[str, Rows]:
    """`measure` of any predictor {view: inputs} -> {task: label}: an exported network, a teacher, a constant guess."""
    rows = {}
    for source, names in build.by_source({name: splits[name] for name in tasks if name in splits}):
        mine = {name: tasks[name] for name in names}
        rows |= measure_batches(predict, _batches(source, encoder, mine, batch_size), mine)
    return rows


def _batches(source: Source, encoder: Encoder, tasks: Mapping[str, Task], batch_size: int) -> Iterator[Batch]:
    return eval_batches(source, encoder._replace(tasks=as_annotated(tasks)), batch_size=batch_size)


def score(
    directory: str, variables: PyTree, model: Model, tasks: Mapping[str, Task], encoder: Encoder, settings
) -> dict:
    """Scores on all evaluation splits, {split: {task: {metric: value}}}; the rows stay in the directory.

    Args:
      directory: of the run.
      variables: selected weights.
      model: network.
      tasks: that it answers.
      encoder: whole pictures.
      settings: sets and evaluation splits.
    """
    return {
        split: keep_rows(
            directory, split, tasks, measure(variables, model, tasks, encoder, build.splits(settings, split, tasks))
        )
        for split in settings.eval_splits
    }


def keep_rows(directory: str, split: str, tasks: Mapping[str, Task], rows: Mapping[str, Rows]) -> dict[str, Any]:
    """Writes rows-<split>.npz and returns the scores."""
    if devices.is_writer():
        save_rows(os.path.join(directory, f"rows-{split}.npz"), rows)
    return summarize(tasks, rows)


def predictor(model: Model, tasks: Mapping[str, Task]) -> Callable[[PyTree, np.ndarray], dict]:
    """(variables, images uint8 [B, H, W, 3]) -> {task: label in network form}; compiled once per model and tasks."""
    return _jitted(model, tuple(tasks.items()))


@functools.lru_cache(maxsize=32)
def _jitted(model: Model, tasks: tuple[tuple[str, Task], ...]):
    return jax.jit(functools.partial(label_step, model=model, tasks=dict(tasks)))


@functools.lru_cache(maxsize=32)
def _compiled(model: Model, tasks: tuple[tuple[str, Task], ...]):
    # Processes do not wait for one another: each measures for itself, or process 0 alone.
    step = functools.partial(label_step, model=model, tasks=dict(tasks))
    return devices.parallelize(step, out_axes=0, devices=jax.local_devices())


def save_rows(path: str, rows: Mapping[str, Rows]) -> None:
    """Rows per image of an evaluation, for intervals later."""
    arrays = {f"{task}|{field}": value for task, fields in rows.items() for field, value in fields.items()}
    with files.replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_rows(path: str) -> dict[str, Rows]:
    """What `save_rows` wrote."""
    rows: dict[str, Rows] = {}
    with understood(path), np.load(path) as file:
        for key in file.files:
            task, field = key.split("|")
            rows.setdefault(task, {})[field] = file[key]
    return rows


def read_log(directory: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, [] without one, except the half line that a killed writer leaves."""
    path = os.path.join(directory, "metrics.jsonl")
    if not os.path.exists(path):
        return []
    with understood(path), open(path, encoding="utf-8") as file:
        lines = [dict(json.loads(line)) for line in file if line.endswith("\n")]
        return sorted(lines, key=lambda line: int(line["step"]))
