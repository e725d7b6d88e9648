"""The job that exports students: each as files that are read back and scored again."""

import functools
import os
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from must.core.types import Model, UserError
from must.data.pipeline import Encoder
from must.evaluate.evaluate import summarize
from must.experiment import build, jobs, measure, networks
from must.export.exported import Exported, load_exported
from must.export.write import export_model, preprocessing
from must.models.multi_head import over_clips
from must.tasks.base import Task
from must.tasks.classification import Classification

Scores = Mapping[str, float]

_CLOSE = 1e-4  # scores may differ by so much, relative to 1 at least: other devices and threads round differently ...
_TIES = 1  # ... and so many examples may have changed sides


def export_students(member, students: Mapping[str, str], *, directory: str, report) -> dict:
    """The job: the networks of a member's students as `<directory>/<name>`.

    Args:
      member: of the recipe.
      students: {name: directory of its network below the workdir}; the facts of the job that trained it are two
        directories above.
      directory: of the job.
      report: progress.

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
        known = jobs.facts(workdir, os.path.dirname(os.path.dirname(where)))
        encoder = trained.encoder()
        about = export_model(
            target,
            trained.model,
            trained.variables,
            tasks=trained.tasks,
            inputs=encoder.blank_inputs(),
            settings=preprocessing(encoder),
        )
        found[name] = {
            "parameters": about["parameters"],
            "bytes": sum(file["bytes"] for file in about["files"].values()),
            "largest_difference": about["verified"]["largest_difference"],
        }
        exported, clips = load_exported(target), settings.test_clips
        if clips > 1:
            encoder = encoder._replace(clips=clips)
        for split in settings.eval_splits:
            rows = measure_exported(exported, trained.tasks, encoder, build.splits(settings, split, trained.tasks))
            scores = summarize(trained.tasks, rows)
            for task_name, task in trained.tasks.items():
                count = len(build.split(settings, task_name, split))
                check_scores(f"{target}, {split}", task, scores[task_name], known[split][task_name], count)
            found[name][split] = scores
    return found


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
