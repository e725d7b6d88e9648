"""What can be wrong with a configuration and shows before anything is spent; every refusal is one line."""

from typing import TYPE_CHECKING

from must.core.types import UserError
from must.data.combine import labels_of
from must.data.disjoint import check_disjoint
from must.tasks.classification import Classification

if TYPE_CHECKING:
    from must.recipes.built import Built

_KINDS = ("ratio_of_means", "plug_in", "oracle", "confidence")


def check_sets(built: "Built") -> None:
    """Refuses sets that must have nothing in common and have, and validation sets that can tell nothing.

    With weights from the validation split, pictures are compared too: a teacher is nearly always right on what it was
    trained on, and the weights would all be 1.

    Raises:
      UserError: naming the example that two sets hold, or the set.
    """
    learned = built.everything()
    for split in dict.fromkeys(("validation", *built.config["measured_on"])):
        for name, source in built.splits(split).items():
            check_disjoint({"training": learned, split: source})
            if not len(source):
                raise UserError(f"{source.name}: the {split} set of {name} is empty")
    if not built.weighs():
        return
    for name in built.names:
        train, validation = built.split(name, "train"), built.split(name, "validation")
        check_disjoint({"teacher's labelled": train, "validation": validation}, by_content=True)
        if isinstance(built.tasks[name], Classification):
            classes = {int(labels_of(validation, i)[name]["ids"][0]) for i in range(len(validation))}
            if len(classes) == 1:
                only = built.tasks[name].classes[classes.pop()]
                raise UserError(f"{validation.name}: the validation set of {name} holds one class only, {only!r}")


def check_runs(built: "Built") -> None:
    """Arms that are not arms, pools that are too small, and baselines that would train longer or shorter."""
    config = built.config
    for arm, changes in config["arms"].items():
        if arm in config or not arm.isidentifier():
            raise UserError(f"arms.{arm}: a name of letters, digits and _ that no section of the configuration has")
        for key in changes:
            if key not in built.settings("student"):
                raise UserError(f"arms.{arm}.{key}: not a key of student: {', '.join(built.settings('student'))}")
    there = sum(map(len, built.pool()))
    for run in built.students():
        built.tasks_of(run)
        _check_correction(built, run)
        if built.settings(run)["pool_images"] > there:
            raise UserError(f"{run}.pool_images {built.settings(run)['pool_images']}: the pool has {there} images")
    seen = lambda run: config[run]["steps"] * config[run]["batch_size"]  # noqa: E731
    for run in config["baselines"]:
        if run not in config:
            raise UserError(f"baselines: no {run!r}, only 'supervised' and 'scratch'")
        if seen(run) != seen("student"):
            raise UserError(f"{run} sees {seen(run):,} images, the student {seen('student'):,}: give both the same steps")


def _check_correction(built: "Built", run: str) -> None:
    """Weights and SLaM that cannot be meant."""
    weights, slam = built.weights(run), built.slam(run)
    if weights and slam:
        raise UserError(f"{run}: 'weights' and 'slam' are two corrections of one thing: choose one")
    if weights and weights.kind not in _KINDS:
        raise UserError(f"{run}.weights.kind {weights.kind!r}: not one of {', '.join(_KINDS)}")
    for key, found in (("weights", weights), ("slam", slam)):
        for name in found.tasks if found else ():
            if name not in built.names:
                raise UserError(f"{run}.{key}.tasks: no task {name!r}")
            classes = isinstance(built.tasks[name], Classification)
            if not classes and (slam or weights.kind in ("plug_in", "confidence")):
                what = f"weights.kind {weights.kind!r}" if weights else "slam"
                raise UserError(f"{run}.{what}: works on classification, not on {name!r}: name its tasks")
            if slam and not slam.floor > (dead := 1 / len(built.tasks[name].classes) if slam.normalize else 0.5):
                raise UserError(f"{run}.slam.floor {slam.floor}: has to be above {dead:.3g}, where the gradient dies")
    if weights and weights.kind == "oracle" and not set(weights.tasks) <= set(built.config.get("hidden", {})):
        raise UserError(f"{run}.weights.kind 'oracle': config.hidden lacks the truth of some of its tasks")
    if built.settings(run)["oracle_labels"] and not built.config.get("hidden"):
        raise UserError(f"{run}.oracle_labels: config.hidden has no truth")
