"""The last job of JEDI: every student leaves the house alone, as files that have been read again and scored."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from must.core.types import Model, UserError
from must.data.pipeline import Encoder
from must.evaluate.evaluate import summarize
from must.evaluate.joint import ARM
from must.export.exported import Exported, load_exported
from must.export.preprocessing import preprocessing
from must.export.write import export_model
from must.models.multi_clip import over_clips
from must.recipes import jobs, measuring
from must.recipes.comparison import recipe_of
from must.recipes.joint_built import JointBuilt
from must.recipes.joint_stage import load_student
from must.tasks.base import Task
from must.tasks.classification import Classification

Config = Mapping[str, Any]
Scores = Mapping[str, float]

_CLOSE = (
    1e-4  # scores may differ by so much, relative to 1 at least: other devices and threads round in another way ...
)
_TIES = 1  # ... and so many examples may have changed sides


def export(config: Config, *, directory: str, report) -> dict:
    """The students of the first seed as `<directory>/<set>`: {set: parameters, bytes, largest difference, scores}.

    A student is its own backbone and its own linear layer; what the teachers learnt beside it stays behind.

    Raises:
      UserError: the files say something else than the network, or score otherwise than it did.
    """
    built = JointBuilt(config, config["seeds"][0])
    top = os.path.join(os.path.dirname(directory), recipe_of(config).prefix(config, built.seed))
    known = jobs.facts(top, f"joint/{ARM}")
    found = {}
    for number, name in enumerate(built.names):
        report(number, len(built.names), name)
        task, target = {name: built.tasks[name]}, os.path.join(directory, name)
        encoder = built.shown((name,))
        about = export_model(
            target,
            built.model((name,)),
            load_student(built, os.path.join(top, "joint", ARM, "students", name), name),
            tasks=task,
            inputs=encoder.blank_inputs(),
            settings=preprocessing(encoder),
        )
        found[name] = {
            "parameters": about["parameters"],
            "bytes": sum(file["bytes"] for file in about["files"].values()),
            "largest_difference": about["verified"]["largest_difference"],
        }
        exported, (_, encoder) = load_exported(target), built.judged((name,), "expert")
        for split in config["measured_on"]:
            rows = measure_exported(exported, task, encoder, built.splits(split, (name,)))
            scores = summarize(task, rows)[name]
            check_scores(
                f"{target}, {split}", built.tasks[name], scores, known[split][name], len(built.split(name, split))
            )
            found[name][split] = scores
    return found


def measure_exported(
    exported: Exported, tasks: Mapping[str, Task], encoder: Encoder, splits: measuring.Splits
) -> dict[str, measuring.Rows]:
    """Rows of an exported network, with the encoder and the code that measure a live one; K clips are averaged outside."""
    clips = getattr(encoder, "clips", 1)
    predict = exported.apply if clips == 1 else mean_over_clips(exported.apply, tasks)
    return measuring.measure_labels(exported.weights, predict, tasks, encoder, splits)


def mean_over_clips(predict: Callable, tasks: Mapping[str, Classification]) -> Callable:
    """A predictor of classes asked about K clips of each example, inputs [B, K, T, H, W, 3]: what `over_clips` makes of the
    live network, whose logits the probabilities tell up to a constant."""

    def apply(variables, inputs, *, train):
        del train
        labels = predict(variables, inputs)
        return {name: task.temperature * jnp.log(labels[name]["probs"]) for name, task in tasks.items()}, {}

    several = over_clips(Model(None, apply))

    def mean(variables, inputs):
        outputs, _ = several.apply(variables, inputs, train=False)
        return {name: task.predict(outputs[name]) for name, task in tasks.items()}

    return mean


def check_scores(where: str, task: Task, found: Scores, wanted: Scores, examples: int) -> None:
    """UserError for scores that are not those of the live network but for rounding, at most `_TIES` examples of a share."""
    for metric in task.metrics:
        a, b = found[metric.name], wanted[metric.name]
        ties = 100 * _TIES / examples if metric.unit == "%" else 0.0
        if not abs(a - b) <= ties + _CLOSE * max(1.0, abs(b)):
            raise UserError(f"{where}: the exported network has {metric.name} {a:.6g}, in training it had {b:.6g}")
