"""Checks across sections of a configuration and its data, before anything is spent; every refusal is one line."""

import contextlib
import importlib.util
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from must.core.types import Source, UserError
from must.data.combine import labels_of
from must.data.disjoint import check_disjoint, check_files
from must.data.merge import Concat
from must.experiment import build, initial, labeling, sections
from must.experiment.loss_scales import loss_scales
from must.experiment.settings import LabelPolicy, Must, Run, SingleStudent, Student, Supervised
from must.experiment.training import mean_teacher
from must.tasks.base import LabelsImages, Task
from must.train.optimizer import check_factors


def labels_images(task: Task) -> bool:
    """Whether a task predicts one class per image, with probabilities."""
    return isinstance(task, LabelsImages)


def check_sets(settings: SingleStudent, images: Source, oracle_pool: list[Source] | None = None) -> None:
    """Refuses sets that must share nothing and do, and validation sets that cannot tell anything.

    Args:
      settings: of the recipe.
      images: everything that some network learns from.
      oracle_pool: images without labels, of which `settings.oracle_truth` holds the truth.

    Raises:
      UserError: naming the example that two sets share, or the set.
    """
    for name in settings.tasks:
        _check_taught(settings, name)
    for split in dict.fromkeys(("validation", *settings.eval_splits)):
        for source, names in build.by_source(build.splits(settings, split)):
            check_disjoint({"training": images, split: source})
            check_files(images, {split: source})
            if not len(source):
                raise UserError(f"{source.name}: the {split} set of {names[0]} is empty")
    if oracle_pool is not None:
        ids = {id for part in oracle_pool for id in part.ids}
        for name, truth in build.oracle_truth(settings).items():
            _check_oracle(settings, name, truth, ids)


def _check_taught(settings: SingleStudent, name: str) -> None:
    """The set that teaches a task has labels of it, as a look at some of its examples tells."""
    source, seen = build.split(settings, name, "train"), {}
    for index in np.linspace(0, len(source) - 1, min(32, len(source))).round().astype(int):
        with contextlib.suppress(UserError):  # told by name when all examples are read
            seen |= labels_of(source, int(index))
        if name in seen:
            break
    if seen and name not in seen:
        raise UserError(
            f"config.train_sets.{name}={settings.train_sets[name]!r}: has no labels of {name!r}, only of "
            f"{', '.join(map(repr, sorted(seen)))}; use another set, or rename its labels (task={name!r})"
        )
    shared = {"scores", "unknown"}  # by labels of several kinds; those of multi_label have nothing else
    own, theirs = set(build.tasks_of(settings)[name].label_spec()) - shared, set(seen.get(name, ())) - shared
    if name in seen and not (own & theirs if own else not theirs):
        fields = ", ".join(sorted(seen[name]))
        raise UserError(f"config.tasks.{name}: {source.name} has labels of another kind of task, with {fields}")


def _check_oracle(settings: Must, name: str, truth: Source, ids: set[str]) -> None:
    """The truth of the pool is of the pool: other ids would bring other images to the students that learn it."""
    if name not in settings.tasks:
        raise UserError(f"config.oracle_truth.{name}: no such task; tasks: {', '.join(settings.tasks)}")
    for id in truth.ids:
        if id not in ids:
            raise UserError(f"config.oracle_truth.{name}: {id} is not in the pool; give both sets the same name")


def check_validation(settings: SingleStudent) -> None:
    """With weights from the validation split, its pictures differ from all annotated ones, and it has several classes.

    A teacher is nearly always right on its training images, and all weights would be 1.

    Raises:
      UserError: naming the example or the set.
    """
    tasks, annotated = build.tasks_of(settings), Concat(build.annotated_sets(settings))
    for validation, _ in build.by_source(build.splits(settings, "validation")):
        check_disjoint({"teachers' annotated": annotated, "validation": validation}, by_content=True)
    for name, task in tasks.items():
        validation = build.split(settings, name, "validation")
        if labels_images(task):
            labels = [labels_of(validation, i).get(name) for i in range(len(validation))]
            classes = {int(label["ids"][0]) for label in labels if label is not None}
            if len(classes) < 2:
                only = f"one class only, {task.classes[classes.pop()]!r}" if classes else "no label"
                raise UserError(f"{validation.name}: the validation set of {name} has {only}")


def check_students(settings: Must) -> None:
    """Refuses arms that are not arms, students that cannot be made, pools that are too small, uneven baselines.

    Raises:
      UserError: naming the key.
    """
    sections = set(vars(settings))
    for arm in settings.arms:
        if arm in sections or not arm.isidentifier():
            raise UserError(
                f"config.arms.{arm}: the name of an arm has letters, digits and _ only, and is not that of a section"
            )
    _check_rounds(settings)
    available = sum(map(len, build.pool(settings)))
    runs: dict[str, Student] = {}
    for name in build.students(settings):
        path = "config.student" if name == "student" else f"config.arms.{name}"
        run = build.student(settings, name)
        if twin := next((other for other in runs if runs[other] == run), None):
            raise UserError(f"{path}: trains exactly as {twin} does; change something or leave it out")
        runs[name] = run
        check_run(settings, run, path)
        _check_correction(settings, run, path)
        policies = build.policies(settings, run)
        if any(section.sets or section.familiar for section in policies.values()):
            check_policy_sets(settings, policies)
        if run.pool_images > available:
            raise UserError(f"{path}.pool_images={run.pool_images}: the pool has {available} images")
    check_teachers(settings)
    for name in settings.baselines:
        for names in [(task,) for task in settings.tasks] if name == "scratch" else [()]:
            check_run(settings, getattr(settings, name), f"config.{name}", names)
        seen = [run.steps * run.batch_size for run in (getattr(settings, name), settings.student)]
        if seen[0] != seen[1]:
            raise UserError(
                f"config.{name}: sees {seen[0]:,} images, the student {seen[1]:,}; give both the same steps"
            )


def check_policy_sets(settings: Must, policies: Mapping[str, LabelPolicy]) -> set[str]:
    """The names of all sets that are labeled.

    Raises:
      UserError: a policy that names another one, or that asks for familiar sets where nothing tells which are.
    """
    names = {id.partition("/")[0] for id in build.all_images(settings).ids}
    for task, section in policies.items():
        path = f"config.policies.{task}"
        if foreign := next((name for name in section.sets if name not in names), None):
            raise UserError(f"{path}.sets: no images of {foreign!r}; there are {', '.join(sorted(names))}")
        if section.familiar and not labeling.uses_validation(settings):
            raise UserError(f"{path}.familiar: needs from_validation=True in some policy")
    return names


def check_teachers(settings: SingleStudent) -> None:
    """Refuses teachers that cannot train.

    Raises:
      UserError: naming the key.
    """
    for task in settings.tasks:
        path = f"config.teachers.{task}" if task in settings.teachers else "config.teacher"
        check_run(settings, build.teacher(settings, task), path, (task,))


def check_run(settings: Supervised, run: Run, path: str, names: Sequence[str] = ()) -> None:
    """A run's tasks, network with its weights, views, rows and mean teacher can be made.

    Args:
      settings: of the recipe.
      run: to check.
      path: of the run.
      names: tasks of the network; all by default.

    Raises:
      UserError: beginning with the path.
    """
    build.tasks_of(settings)  # a mistake in a set or task is not the run's
    try:
        tasks = build.tasks_of(settings, run)
        network = sections.changed(settings.model, run.model, "config.model")
        model = build.network(network, {name: tasks[name] for name in names or tasks})
        inputs = build.encoder(settings.image, tasks, run).blank_inputs()["image"]
        initial.check(model, network, inputs, run.init, {name: tasks[name] for name in names or tasks})
        if run.optimizer.factors:
            check_factors(jax.eval_shape(model.init, jax.random.key(0), inputs)["params"], run.optimizer.factors)
        build.row_changes(run, tasks)
        build.balance(run)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for frame in (settings.image.size, *run.frames):
        for task in tasks.values():
            task.check_frame(tuple(frame))
    for name in run.loss_scales:
        if name not in settings.tasks:
            raise UserError(f"{path}.loss_scales.{name}: no such task; tasks: {', '.join(settings.tasks)}")
    if isinstance(settings, Supervised):
        try:
            loss_scales(settings, run, tasks)
        except UserError as error:
            raise UserError(f"{path}.{error}") from None
    if isinstance(run, Student) and run.mean_teacher.kind != "none":
        if settings.image.video:
            raise UserError(f"{path}.mean_teacher: works on pictures, not on videos")
        average = mean_teacher(settings, run)
        for name in average.tasks:
            average.hint(name, tasks[name])


def _check_rounds(settings: Must) -> None:
    """Students that learn from students, in the end from one that learned from the teachers."""
    source = {name: build.student(settings, name).labels_from for name in build.students(settings)}
    for name, by in source.items():
        path, seen = "config.student" if name == "student" else f"config.arms.{name}", [name]
        while by:
            if by not in source or name == "student":
                who = (
                    "the student learns from the teachers"
                    if name == "student"
                    else "arms learn from 'student' or an arm"
                )
                raise UserError(f"{path}.labels_from={by!r}: {who}")
            if by in seen:
                raise UserError(f"{path}.labels_from: {' <- '.join([*seen, by])} goes in a circle")
            seen.append(by)
            by = source[by]


def _check_correction(settings: Must, run: Student, path: str) -> None:
    """Weights and SLaM that cannot work."""
    tasks, weights, slam = build.tasks_of(settings), run.weights, run.slam
    if slam.enabled:
        for name in build.tasks_with(slam.tasks, settings, f"{path}.slam"):
            if not labels_images(tasks[name]):
                raise UserError(f"{path}.slam: works on classification, not on {name!r}; name its tasks in slam.tasks")
        if importlib.util.find_spec("sklearn") is None:
            raise UserError(f"{path}.slam: needs scikit-learn; pip install 'must[weights]'")
    if weights.kind != "none":
        learned = build.tasks_of(settings, run)
        names = build.tasks_with(weights.tasks, settings, f"{path}.weights")
        for name in names:
            needs_classes = weights.confident or weights.kind in ("plug_in", "confidence")
            if needs_classes and not labels_images(tasks[name]):
                what = "confident" if weights.confident else f"kind={weights.kind!r}"
                raise UserError(f"{path}.weights.{what}: works on classification, not on {name!r}; name its tasks")
            if weights.kind == "plug_in" and not (learned[name].hard and not learned[name].label_smoothing):
                raise UserError(
                    f"{path}.weights.kind='plug_in': needs hard labels, tasks.{name}.hard=True, no smoothing"
                )
            count = len(build.split(settings, name, "validation"))
            if weights.neighbors > count:
                raise UserError(
                    f"{path}.weights.neighbors={weights.neighbors}: the validation set of {name} has {count}"
                )
        if weights.kind == "oracle" and not set(names) <= set(settings.oracle_truth):
            raise UserError(f"{path}.weights.kind='oracle': config.oracle_truth lacks the truth of some of its tasks")
    if run.oracle_labels and not settings.oracle_truth:
        raise UserError(f"{path}.oracle_labels=True: config.oracle_truth is empty")
