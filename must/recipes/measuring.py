"""Networks on labeled splits: rows of every task, predictions, and where the rows are kept."""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from must.core import devices
from must.core.types import Array, Label, Model, PyTree, Source, Teacher
from must.data.merge import Overlay
from must.data.pipeline import Encoder, eval_batches
from must.evaluate.evaluate import Rows, eval_step, evaluate, labels_step
from must.tasks.base import Task

Splits = Mapping[str, Source]  # task name -> the labeled split that measures it


def by_source(splits: Splits) -> list[tuple[Source, list[str]]]:
    """Every source once, with the tasks that it serves."""
    found: dict[int, tuple[Source, list[str]]] = {}
    for name, source in splits.items():
        found.setdefault(id(source), (source, []))[1].append(name)
    return list(found.values())


def together(splits: Splits) -> Source:
    """All of them as one source: every picture once, with the labels of each."""
    first, *others = (split for split, _ in by_source(splits))
    return Overlay(first, others) if others else first


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
    """Rows of every task on the split that measures it; a split that serves several tasks is read once.

    The model is given one view of the encoder's, or with None {view: inputs}.
    """
    rows = {}
    for source, names in by_source({name: splits[name] for name in tasks if name in splits}):
        mine = {name: tasks[name] for name in names}
        step = _compiled_eval(model, tuple(mine.items()), view)
        rows |= evaluate(step, variables, eval_batches(source, encoder._replace(tasks=mine), batch_size=batch_size))
    return rows


def measure_labels(
    variables: PyTree,
    predict: Callable[[PyTree, Mapping[str, Array]], dict[str, Label]],
    tasks: Mapping[str, Task],
    encoder: Encoder,
    splits: Splits,
    *,
    batch_size: int = 64,
) -> dict[str, Rows]:
    """`measure` of what says labels, (variables, {view: inputs}) -> {task: label}, on one device: an exported network."""
    rows = {}
    for source, names in by_source({name: splits[name] for name in tasks if name in splits}):
        mine = {name: tasks[name] for name in names}
        step = jax.jit(functools.partial(labels_step, predict=predict, tasks=mine))
        rows |= evaluate(step, variables, eval_batches(source, encoder._replace(tasks=mine), batch_size=batch_size))
    return rows


def measure_teacher(teacher: Teacher, tasks: Mapping[str, Task], encoder: Encoder, splits: Splits) -> dict[str, Rows]:
    """`measure` of any teacher whose input has the encoder's size; it may run anywhere, its labels are compared here."""
    rows = {}
    for source, names in by_source(splits):
        mine = {name: tasks[name] for name in names}
        compared = jax.jit(functools.partial(labels_step, predict=lambda said, inputs: said, tasks=mine))
        step = lambda _, batch: compared(teacher.predict(batch.inputs["image"]), batch)  # noqa: B023, E731
        rows |= evaluate(step, None, eval_batches(source, encoder._replace(tasks=mine), batch_size=64))
    return rows


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
    np.savez_compressed(
        path, **{f"{task}|{field}": value for task, fields in rows.items() for field, value in fields.items()}
    )


def load_rows(path: str) -> dict[str, Rows]:
    """What `save_rows` wrote."""
    rows: dict[str, Rows] = {}
    with np.load(path) as file:
        for key in file.files:
            task, field = key.split("|")
            rows.setdefault(task, {})[field] = file[key]
    return rows
