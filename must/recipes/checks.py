"""What can be wrong with a configuration and shows before anything is spent; every refusal is one line."""

import importlib.util
from typing import TYPE_CHECKING

from must.core.types import Source, UserError
from must.data.combine import Concat, labels_of
from must.data.disjoint import check_disjoint
from must.recipes.measuring import by_source
from must.recipes.setup import build_view
from must.tasks.classification import Classification

if TYPE_CHECKING:
    from must.recipes.built import Built

_KINDS = ("ratio_of_means", "plug_in", "oracle", "confidence")


def check_sets(built: "Built") -> None:
    """Refuses sets that must have nothing in common and have, and validation sets that can tell nothing.

    With weights from the validation split, its pictures are compared with all labeled ones too: a teacher is nearly
    always right on what it was trained on, and the weights would all be 1.

    Raises:
      UserError: naming the example that two sets hold, or the set.
    """
    learned = built.everything()
    for split in dict.fromkeys(("validation", *built.config["measured_on"])):
        for source, names in by_source(built.splits(split)):
            check_disjoint({"training": learned, split: source})
            if not len(source):
                raise UserError(f"{source.name}: the {split} set of {names[0]} is empty")
    for name, truth in built.hidden().items():
        _check_hidden(built, name, truth)
    if not built.weighs():
        return
    labeled = Concat(built.labeled())
    for validation, _ in by_source(built.splits("validation")):
        check_disjoint({"teachers' labeled": labeled, "validation": validation}, by_content=True)
    for name in built.names:
        validation = built.split(name, "validation")
        if isinstance(built.tasks[name], Classification):
            found = [labels_of(validation, i).get(name) for i in range(len(validation))]
            classes = {int(label["ids"][0]) for label in found if label is not None}
            if len(classes) < 2:
                only = f"one class only, {built.tasks[name].classes[classes.pop()]!r}" if classes else "no label"
                raise UserError(f"{validation.name}: the validation set of {name} holds {only}")


def _check_hidden(built: "Built", name: str, truth: Source) -> None:
    """The truth of the pool is of the pool: other ids would bring other images to the students that are told it."""
    there = {id for part in built.pool() for id in part.ids}
    if name not in built.names:
        raise UserError(f"hidden.{name}: no such task")
    for id in truth.ids:
        if id not in there:
            raise UserError(f"hidden.{name}: {id} is not in the pool; give both sets the same name")


def check_runs(built: "Built") -> None:
    """Refuses arms that are not arms, sections of the wrong run, pools that are too small, baselines of other lengths.

    Raises:
      UserError: naming the key.
    """
    config = built.config
    for arm, changes in config["arms"].items():
        if arm in config or not arm.isidentifier():
            raise UserError(f"arms.{arm}: a name of letters, digits and _ that no section of the configuration has")
        for key in changes:
            if key not in built.settings("student"):
                raise UserError(f"arms.{arm}.{key}: not a key of student: {', '.join(built.settings('student'))}")
    for run in ("teacher", "supervised", "scratch"):
        for key in (
            "weights",
            "weights_file",
            "slam",
            "policies",
            "oracle_labels",
            "labels_from",
            "mean_teacher",
            "drop_top",
        ):
            if config.get(run, {}).get(key):
                raise UserError(f"{run}.{key}: only students believe pseudo labels")
        if run in config:
            _check_rows(built, run)
    _check_rounds(built)
    for task in config.get("external", {}):
        if task not in built.names:
            raise UserError(f"external.{task}: no such task")
    there = sum(map(len, built.pool()))
    for run in built.students():
        built.tasks_of(run)
        _check_rows(built, run)
        _check_correction(built, run)
        if built.settings(run)["pool_images"] > there:
            raise UserError(f"{run}.pool_images {built.settings(run)['pool_images']}: the pool has {there} images")
    seen = lambda run: config[run]["steps"] * config[run]["batch_size"]  # noqa: E731
    for run in config["baselines"]:
        if run not in config:
            raise UserError(f"baselines: no {run!r}, only 'supervised' and 'scratch'")
        if seen(run) != seen("student"):
            raise UserError(
                f"{run} sees {seen(run):,} images, the student {seen('student'):,}: give both the same steps"
            )


def _check_rounds(built: "Built") -> None:
    """Students that learn from students, in the end from one that learned from the teachers."""
    from_whom = {run: built.settings(run)["labels_from"] for run in built.students()}
    for run, by in from_whom.items():
        seen = [run]
        while by:
            if by not in from_whom or run == "student":
                raise UserError(
                    f"{run}.labels_from {by!r}: arms learn from 'student' or another arm, the student from teachers"
                )
            if by in seen:
                raise UserError(f"{run}.labels_from: {' <- '.join([*seen, by])} goes in a circle")
            seen.append(by)
            by = from_whom[by]


def _check_rows(built: "Built", run: str) -> None:
    """Strong views and mixed rows that cannot be made."""
    settings = built.settings(run)
    try:
        build_view(settings.get("view", {}))
    except UserError as error:
        raise UserError(f"{run}.{error}") from None
    built.changes(built.names, run)
    if not 0 <= settings["drop_top"] < 1 or settings["drop_after"] < 0:
        raise UserError(
            f"{run}.drop_top {settings['drop_top']}, drop_after {settings['drop_after']}: a share and steps"
        )
    if (teacher := built.mean_teacher(run)) is not None:
        if "clip" in built.config["image"]:
            raise UserError(f"{run}.mean_teacher: works on pictures, not on videos")
        for name in teacher.tasks:
            if name not in built.names:
                raise UserError(f"{run}.mean_teacher.tasks: no task {name!r}")
            try:
                teacher.hint(name, built.tasks_of(run)[name])
            except ValueError as error:
                raise UserError(f"{run}.mean_teacher: {error}") from None
    if settings["cutmix"] and settings["batch_size"] < 2:
        raise UserError(f"{run}.cutmix: needs a batch_size of two at least")
    if settings["cutmix"] and (settings["weights"] or settings["slam"]):
        raise UserError(
            f"{run}.cutmix: 'weights' and 'slam' are numbers of one picture, mixed rows show two: choose one"
        )


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
            if not classes and (slam or weights.confident or weights.kind in ("plug_in", "confidence")):
                what = f"weights.kind {weights.kind!r}" if weights else "slam"
                raise UserError(f"{run}.{what}: works on classification, not on {name!r}: name its tasks")
            learned = built.tasks_of(run)[name]
            if weights and weights.kind == "plug_in" and not (learned.hard and not learned.label_smoothing):
                raise UserError(
                    f"{run}.weights.kind 'plug_in': needs hard labels: tasks.{name}.hard, no label_smoothing"
                )
            there = len(built.split(name, "validation"))
            if weights and weights.neighbors > there:
                raise UserError(
                    f"{run}.weights.neighbors {weights.neighbors}: the validation set of {name} has {there} examples"
                )
    if slam and not (0 <= slam.floor < 1 and 0 < slam.wanted < 1):
        raise UserError(f"{run}.slam: floor {slam.floor} and wanted {slam.wanted} have to lie between 0 and 1")
    if slam and importlib.util.find_spec("sklearn") is None:
        raise UserError(f"{run}.slam: needs scikit-learn: pip install 'must[weights]'")
    if weights and weights.kind == "oracle" and not set(weights.tasks) <= set(built.config.get("hidden", {})):
        raise UserError(f"{run}.weights.kind 'oracle': config.hidden lacks the truth of some of its tasks")
    if built.settings(run)["oracle_labels"] and not built.config.get("hidden"):
        raise UserError(f"{run}.oracle_labels: config.hidden has no truth")
