"""Students leave: each as files that are read back and scored again."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from must.core.types import Model, UserError
from must.data.pipeline import Encoder
from must.evaluate.evaluate import bootstrap_interval, summarize
from must.experiment import build, jobs, measure, networks, sections
from must.export.exported import Exported, load_exported
from must.export.write import export_model, preprocessing
from must.models.multi_head import over_clips
from must.tasks.base import Task
from must.tasks.classification import Classification

Scores = Mapping[str, float]

_CLOSE = 1e-4  # scores may differ by so much, relative to 1 at least: other devices and threads round differently ...
_RESAMPLES = 200
_TIES = 1  # ... and so many examples may have changed sides


def export_students(
    member, students: Mapping[str, str], *, directory: str, report, terms: Mapping[str, Any] = {}
) -> dict:
    """Exports the networks of a member's students as `<directory>/<name>`.

    Args:
      member: of the recipe.
      students: {name: directory of its network below the workdir}.
      directory: of all exports, below the workdir.
      report: progress.
      terms: what the model card states of licenses, limits and whom to ask.

    Returns:
      {name: parameters, bytes, largest difference, scores}.

    Raises:
      UserError: the files predict something else than the network, or score differently.
    """
    workdir, found = os.path.dirname(directory), {}
    settings = member.settings
    for number, (name, where) in enumerate(students.items()):
        report(number, len(students), name)
        trained, target = networks.load(os.path.join(workdir, where)), os.path.join(directory, name)
        job = jobs.owner(workdir, where)
        known, encoder = jobs.facts(workdir, job), trained.encoder()
        scores = _scores(os.path.join(workdir, job), trained.tasks, known, settings.eval_splits)
        about = export_model(
            target,
            trained.model,
            trained.variables,
            tasks=trained.tasks,
            inputs=encoder.blank_inputs(),
            settings=preprocessing(encoder),
            network=sections.plain(trained.network),
            card={"name": name, "title": settings.title, **_origin(settings, trained.tasks), "scores": scores, **terms},
        )
        found[name] = {
            "parameters": about["parameters"],
            "bytes": sum(file["bytes"] for file in about["files"].values()),
            "largest_difference": about["verified"]["largest_difference"],
        }
        exported, clips = load_exported(target), getattr(settings, "test_clips", 1)
        if clips > 1:
            encoder = encoder._replace(clips=clips)
        for split in settings.eval_splits:
            rows = measure_exported(exported, trained.tasks, encoder, build.splits(settings, split, trained.tasks))
            measured = summarize(trained.tasks, rows)
            for task_name, task in trained.tasks.items():
                count = len(build.split(settings, task_name, split))
                check_scores(f"{target}, {split}", task, measured[task_name], known[split][task_name], count)
            found[name][split] = measured
    return found


def _scores(job: str, tasks: Mapping[str, Task], known: Mapping[str, Any], splits: Sequence[str]) -> dict[str, Any]:
    """{split: {task: {metric: value, unit, interval of the headline}}} of what a job measured."""
    found: dict[str, Any] = {}
    for split in splits:
        path = os.path.join(job, f"rows-{split}.npz")
        rows = measure.load_rows(path) if os.path.exists(path) else {}
        for name, task in tasks.items():
            found.setdefault(split, {})[name] = interval_scores(task, known[split][name], rows.get(name))
    return found


def interval_scores(task: Task, scores: Scores, rows: measure.Rows | None) -> dict[str, Any]:
    """{metric: {"value", "unit"}}, of the headline with the interval over images, "ci95"."""
    found: dict[str, Any] = {m.name: {"value": scores[m.name], "unit": m.unit} for m in task.metrics}
    if rows is not None:
        low, high = bootstrap_interval(task, rows, resamples=_RESAMPLES)
        found[task.metrics[0].name]["ci95"] = [low, high] if low == low else None
    return found


def _origin(settings: Any, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """What the card tells of data and teachers."""

    def words(section: Mapping[str, Any]) -> str:
        return ", ".join(f"{key}={value}" for key, value in sections.without_none(section).items())

    sets = dict.fromkeys(settings.train_sets[name] for name in tasks)
    data = {name: {split: words(section) for split, section in settings.sets[name].items()} for name in sets}
    data |= {name: {"without labels": words(section)} for name, section in getattr(settings, "pool", {}).items()}
    external = getattr(settings, "external_teachers", {})
    return {
        "recipe": settings.recipe,
        "data": data,
        "teachers": {
            name: words(external[name]) if name in external else f"trained on {settings.train_sets[name]}, train"
            for name in tasks
        },
    }


def measure_exported(
    exported: Exported, tasks: Mapping[str, Task], encoder: Encoder, splits: measure.Splits
) -> dict[str, measure.Rows]:
    """Rows of an exported network, by the code that measures a live one; K clips are averaged outside."""
    clips = getattr(encoder, "clips", 1)
    apply = jax.jit(exported.apply if clips == 1 else mean_over_clips(exported.apply, tasks))
    return measure.measure_predictions(functools.partial(apply, exported.weights), tasks, encoder, splits)


def mean_over_clips(predict: Callable, tasks: Mapping[str, Classification]) -> Callable:
    """A predictor of classes for K clips of each example, inputs [B, K, T, H, W, 3].

    It does to probabilities what `over_clips` does to the live network's logits, which probabilities determine up to a
    constant.
    """

    def apply(variables, inputs, *, train):
        del train
        labels = predict(variables, inputs)
        return {name: task.temperature * jnp.log(labels[name]["probs"]) for name, task in tasks.items()}, {}

    several = over_clips(Model(None, apply))

    def mean(variables, inputs):
        outputs, _ = several.apply(variables, inputs, train=False)
        return {name: task.predict(outputs[name]) for name, task in tasks.items()}

    return mean


def check_scores(where: str, task: Task, measured: Scores, expected: Scores, examples: int) -> None:
    """UserError for scores that differ from the live network's by more than rounding and `_TIES` examples."""
    for metric in task.metrics:
        a, b = measured[metric.name], expected[metric.name]
        ties = 100 * _TIES / examples if metric.unit == "%" else 0.0
        if not abs(a - b) <= ties + _CLOSE * max(1.0, abs(b)):
            raise UserError(f"{where}: the exported network has {metric.name} {a:.6g}, in training it had {b:.6g}")
