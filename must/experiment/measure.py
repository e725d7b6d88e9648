"""Networks on annotated splits: rows of every task, predictions, and where the rows are kept."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from must.core import devices, files
from must.core.types import Array, Label, Model, PyTree, Source, Teacher
from must.data.pipeline import Encoder, eval_batches
from must.evaluate.evaluate import Rows, eval_step, evaluate, labels_step, summarize
from must.experiment import build
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
        step = _compiled_eval(model, tuple(mine.items()), view)
        rows |= evaluate(step, variables, eval_batches(source, encoder._replace(tasks=mine), batch_size=batch_size))
    return rows


def measure_predictions(
    variables: PyTree,
    predict: Callable[[PyTree, Mapping[str, Array]], dict[str, Label]],
    tasks: Mapping[str, Task],
    encoder: Encoder,
    splits: Splits,
    *,
    batch_size: int = 64,
) -> dict[str, Rows]:
    """`measure` of a function (variables, {view: inputs}) -> {task: label}, on one device: an exported network."""
    rows = {}
    for source, names in build.by_source({name: splits[name] for name in tasks if name in splits}):
        mine = {name: tasks[name] for name in names}
        step = jax.jit(functools.partial(labels_step, predict=predict, tasks=mine))
        rows |= evaluate(step, variables, eval_batches(source, encoder._replace(tasks=mine), batch_size=batch_size))
    return rows


def measure_teacher(teacher: Teacher, tasks: Mapping[str, Task], encoder: Encoder, splits: Splits) -> dict[str, Rows]:
    """`measure` of any teacher whose input has the encoder's size, wherever it runs."""
    rows = {}
    for source, names in build.by_source(splits):
        mine = {name: tasks[name] for name in names}
        compared = jax.jit(functools.partial(labels_step, predict=lambda predictions, inputs: predictions, tasks=mine))
        step = functools.partial(_teacher_step, teacher=teacher, compared=compared)
        rows |= evaluate(step, None, eval_batches(source, encoder._replace(tasks=mine), batch_size=64))
    return rows


def _teacher_step(variables, batch, *, teacher: Teacher, compared):
    return compared(teacher.predict(batch.inputs["image"]), batch)


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
    return _compiled_predict(model, tuple(tasks.items()))


@functools.lru_cache(maxsize=32)
def _compiled_predict(model: Model, tasks: tuple[tuple[str, Task], ...]):
    def predict(variables, images):
        outputs, _ = model.apply(variables, images, train=False, key=None)
        return {name: task.predict(outputs[name]) for name, task in tasks}

    return jax.jit(predict)


@functools.lru_cache(maxsize=32)
def _compiled_eval(model: Model, tasks: tuple[tuple[str, Task], ...], view: str | None):
    return devices.parallelize(functools.partial(eval_step, model=model, tasks=dict(tasks), view=view), out_axes=0)


def save_rows(path: str, rows: Mapping[str, Rows]) -> None:
    """Rows per image of an evaluation, for intervals later."""
    arrays = {f"{task}|{field}": value for task, fields in rows.items() for field, value in fields.items()}
    with files.replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_rows(path: str) -> dict[str, Rows]:
    """What `save_rows` wrote."""
    rows: dict[str, Rows] = {}
    with np.load(path) as file:
        for key in file.files:
            task, field = key.split("|")
            rows.setdefault(task, {})[field] = file[key]
    return rows
