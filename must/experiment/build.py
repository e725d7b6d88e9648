"""Objects from settings: data sets, tasks, networks, encoders, balances. Each function makes one kind of thing."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from must.core.arguments import converted
from must.core.types import Balance, Label, Model, Policy, Source, UserError
from must.data import geometry, sources
from must.data.classes import aligned
from must.data.clips import ClipEncoder, Window
from must.data.combine import Cached, labels_of
from must.data.merge import Concat, Overlay
from must.data.mix import CLEAN, CutMix, Cutout, shuffled_labels
from must.data.pipeline import Change, Encoder
from must.experiment.sections import changed, make, merged, plain, without_none
from must.experiment.settings import (
    BACKBONES,
    BALANCES,
    NECKS,
    VIEWS,
    Image,
    LabelPolicy,
    Must,
    Network,
    Run,
    SingleStudent,
    Student,
    Supervised,
)
from must.models import multi_head
from must.tasks import base
from must.tasks.base import Task

Tasks = Mapping[str, Task]
Sources = Mapping[str, Source]


def fill(section: Any, **values: Any) -> Any:
    """A copy of a section in which "{name}" is replaced by a value; a string that is nothing else takes the value's
    type.

    Args:
      section: nested mappings, lists and scalars.
      **values: for instance seed=3, root="data".

    Raises:
      UserError: a value that is used is empty.
    """
    if isinstance(section, Mapping):
        return {key: fill(value, **values) for key, value in section.items()}
    if isinstance(section, list | tuple):
        return [fill(value, **values) for value in section]
    if isinstance(section, str):
        for name, value in values.items():
            if value == "" and f"{{{name}}}" in section:
                raise UserError(f"--config.{name}=VALUE is required by {section!r}")
            if section == f"{{{name}}}":
                return value
            section = section.replace(f"{{{name}}}", str(value))
    return section


def source(section: Mapping[str, Any]) -> Source:
    """The data set of {"kind", arguments}; equal sections give the same object, with its decoded pictures."""
    return _source(_frozen(without_none(section)))


@functools.lru_cache(maxsize=64)
def _source(section: Any) -> Source:
    arguments = converted(_thawed(section), Mapping[str, Any], "section of a data set")
    if "kind" not in arguments:
        raise UserError(f"section of a data set: needs a 'kind', has {', '.join(arguments) or 'nothing'}")
    return Cached(sources.source(**arguments))


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return (
            "mapping",
            tuple((key, _frozen(item)) for key, item in sorted(value.items(), key=lambda item: str(item[0]))),
        )
    if isinstance(value, list | tuple):
        return ("list", tuple(map(_frozen, value)))
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, tuple):
        kind, content = value
        return (
            {key: _thawed(item) for key, item in content} if kind == "mapping" else [_thawed(item) for item in content]
        )
    return value


def split(settings: Supervised, task: str, name: str) -> Source:
    """A split of the set that teaches and evaluates a task, its classes counted as those of its training split."""
    return set_split(settings, settings.train_sets[task], name)


def set_split(settings: Supervised, chosen: str, name: str) -> Source:
    """A split of a set by the set's name, its classes counted as those of its training split."""
    spaces = {
        task: section["classes"]
        for task, section in settings.tasks.items()
        if settings.train_sets.get(task) == chosen and isinstance(section.get("classes"), list | tuple)
    }
    try:
        return joined(settings.sets[chosen][name], settings.sets[chosen]["train"], spaces)
    except UserError as error:
        if str(error).startswith("config."):
            raise
        raise UserError(f"config.sets.{chosen}.{name}: {error}") from None


def joined(section: Mapping[str, Any], first: Mapping[str, Any], spaces: Mapping[str, Sequence[str]] = {}) -> Source:
    """A split of a set; its classes are joined by name with those of the set's first split, then with label spaces.

    Classes of the first split that this one lacks are absent from its pictures; what the label spaces have beside them
    is unknown.

    Raises:
      UserError: a class that the first split or the label space lacks.
    """
    return _joined(*(_frozen(without_none(one)) for one in (section, first, spaces)))


@functools.lru_cache(maxsize=64)
def _joined(section: Any, first: Any, spaces: Any) -> Source:
    reference = _source(first)
    part = aligned(_source(section), reference.classes, of=reference.name, exhaustive=True)
    return aligned(part, _thawed(spaces), of="the task")


def splits(settings: Supervised, name: str, tasks: Iterable[str] | None = None) -> dict[str, Source]:
    """{task: that split of its set}."""
    return {task: split(settings, task, name) for task in tasks or settings.tasks}


def annotated_sets(settings: Supervised) -> list[Source]:
    """The annotated training sets, each once."""
    names = dict.fromkeys(settings.train_sets[task] for task in settings.tasks)
    return [set_split(settings, name, "train") for name in names]


def pool(settings: Must) -> list[Source]:
    """The sets of images without labels; there may be none."""
    return [source(section) for section in settings.pool.values()]


def all_images(settings: Must) -> Source:
    """The annotated training images and the pool, which the teachers label."""
    return Concat([*annotated_sets(settings), *pool(settings)])


def oracle_truth(settings: Must) -> dict[str, Source]:
    """{task: true labels of the pool}."""
    return {
        task: aligned(source(section), split(settings, task, "train").classes if task in settings.train_sets else {})
        for task, section in settings.oracle_truth.items()
    }


def by_source(splits: Sources) -> list[tuple[Source, list[str]]]:
    """Every source once, with the tasks that it serves."""
    served: dict[int, tuple[Source, list[str]]] = {}
    for task, part in splits.items():
        served.setdefault(id(part), (part, []))[1].append(task)
    return list(served.values())


def together(splits: Sources) -> Source:
    """All of them as one source: every picture once, with the labels of each."""
    first, *others = (part for part, _ in by_source(splits))
    return Overlay(first, others) if others else first


def tasks(sections: Mapping[str, Any], annotated: Sources) -> dict[str, Task]:
    """Tasks by name; one whose labels hold class ids takes the class names of its annotated set."""
    made = {}
    for name, section in sections.items():
        arguments = converted(without_none(section), Mapping[str, Any], f"config.tasks.{name}")
        if "kind" not in arguments:
            raise UserError(f"config.tasks.{name}: needs a 'kind', such as 'depth'")
        kind = converted(arguments["kind"], str, f"config.tasks.{name}.kind")
        if name in annotated and base.knows(kind) and set(base.class_of(kind).fitted) - set(arguments):
            arguments = {**defaults(kind, annotated[name], name), **arguments}
        classes = annotated[name].classes.get(name) if name in annotated else None
        if classes and "classes" not in arguments:
            arguments["classes"] = tuple(classes)
        made[name] = base.build(**arguments)
    return made


@functools.lru_cache(maxsize=64)
def defaults(kind: str, annotated: Source, name: str) -> dict[str, Any]:
    """Hyper-parameters of a task that fit up to 512 labels, spread over a training split."""
    if not base.knows(kind):
        return {}  # `base.build` refuses it

    def labels() -> Iterator[Label]:
        for index in np.linspace(0, len(annotated) - 1, min(512, len(annotated))).round().astype(int):
            with contextlib.suppress(UserError):  # rejected, or refused with its name, when it is read to be learned
                if label := labels_of(annotated, int(index)).get(name):
                    yield label

    try:
        return base.class_of(kind).defaults(labels())
    except (KeyError, TypeError, ValueError):  # labels of another kind of task, refused by `checks`
        return {}


def tasks_of(settings: Supervised, run: Run | None = None) -> dict[str, Task]:
    """The tasks of a configuration, or as a run learns them, with its changes to their hyper-parameters."""
    changes = run.tasks if run else {}
    for name in changes:
        if name not in settings.tasks:
            raise UserError(f"config.tasks: no task {name!r}, which a run changes")
    return tasks(merged(settings.tasks, changes), splits(settings, "train"))


def network(settings: Network, tasks: Tasks, changes: Mapping[str, Any] | None = None) -> Model:
    """Backbone, neck and the tasks' heads; equal arguments give the same object, so that its programs are reused."""
    return _network(changed(settings, changes or {}, "config.model"), tuple(tasks.items()))


@functools.lru_cache(maxsize=64)
def _network(settings: Network, tasks: tuple[tuple[str, Task], ...]) -> Model:
    backbone = make(BACKBONES, settings.backbone, "config.model.backbone")
    neck = make(NECKS, settings.neck, "config.model.neck")
    heads = {name: task.head() for name, task in tasks}
    options = {"precision": settings.precision, "remat": settings.remat}
    return multi_head.multi_head(backbone, neck, heads, settings.stats(), **options)


def encoder(
    image: Image,
    tasks: Tasks,
    run: Run | None = None,
    frames: Mapping[str, int] | None = None,
    clips: int = 1,
) -> Encoder | ClipEncoder:
    """How an example becomes a row of a batch.

    Args:
      image: the frame.
      tasks: whose labels a row carries.
      run: crops, flips and views of training; without it the whole picture, as it is.
      frames: {view: T} of videos.
      clips: of videos, how many make a row.
    """
    draw, view = None, None
    if run is not None:
        moves = run.geometry
        drawn = {"zoom": moves.zoom, "shift": moves.shift, "flip": moves.flip, "reverse": moves.reverse}
        draw = functools.partial(geometry.draw, keep_aspect=image.keep_aspect, **drawn)
        view = make(VIEWS, run.view, "view")
    if image.video:
        window = Window(span=image.clip.span, jitter=image.clip.jitter, random=run is not None)
        return ClipEncoder(tasks, image.size, frames or {"image": 8}, window, draw, view, image.keep_aspect, clips)
    if run is not None and not (run.cutmix.probability or run.cutout.probability):  # which cut at pixels
        tasks = {name: task.for_loss() for name, task in tasks.items()}
    clean = {CLEAN: None} if isinstance(run, Student) and run.mean_teacher.kind != "none" else {}
    return Encoder(tasks, image.size, draw, {"image": view, **clean}, image.keep_aspect)


def view_in_step(image: Image, run: Run) -> Callable[..., Any] | None:
    """The view of a run that is drawn inside the step; None where the host draws it."""
    on_device = run.view_on == "device" or (run.view_on == "auto" and jax.default_backend() != "cpu")
    if not on_device or not run.view_in_step or image.video:
        return None
    return make(VIEWS, run.view, "view").in_step


def row_changes(run: Run, tasks: Tasks) -> list[Change]:
    """What is done to whole training rows: labels of others, CutMix and cutout.

    Raises:
      UserError: a task whose labels cannot be cut.
    """
    made: list[Change] = [shuffled_labels] if isinstance(run, Student) and run.shuffled_labels else []
    for key, section, kind in (("cutmix", run.cutmix, CutMix), ("cutout", run.cutout, Cutout)):
        if not section.probability:
            continue
        for name, task in tasks.items():
            if not task.whole and type(task).paste is Task.paste:
                raise UserError(f"{key}: does not work for {name}, whose labels cannot be cut and pasted")
        made.append(kind(tasks, **vars(section)))
    return made


def balance(run: Run) -> Balance:
    """How the tasks' losses are weighted."""
    made = make(BALANCES, run.balance, "balance")
    return made._replace(gram=made.gram or run.watch_gradients)


def fixed_policy(section: LabelPolicy) -> Policy:
    """The label policy whose thresholds stand in the configuration."""
    return Policy(section.positive, section.negative)


def teacher(settings: SingleStudent, task: str) -> Run:
    """How the teacher of a task trains."""
    return changed(settings.teacher, settings.teachers.get(task, {}), f"config.teachers.{task}")


def is_own_baseline(settings: Must, task: str) -> bool:
    """Whether the teacher of a task trains exactly as its scratch baseline would."""
    return plain(settings.scratch) == plain(teacher(settings, task))


def student(settings: Must, name: str) -> Student:
    """The settings of the student or of an arm, which changes some of them."""
    return changed(settings.student, settings.arms.get(name, {}), f"config.arms.{name}")


def students(settings: Must) -> tuple[str, ...]:
    """Names of the student and of its arms."""
    return ("student", *settings.arms)


def policies(settings: SingleStudent, run: Student | None = None) -> dict[str, LabelPolicy]:
    """{task: label policy}, with a run's changes; what nothing decides is as usual for the kind of task."""
    changes, found = run.policies if run else {}, {}
    for task, section in settings.tasks.items():
        policy = changed(settings.policies.get(task, LabelPolicy()), changes.get(task, {}), f"config.policies.{task}")
        found[task] = policy.resolved(base.class_of(section["kind"]).label_policy)
    return found


def tasks_with(names: Sequence[str], settings: SingleStudent, path: str) -> tuple[str, ...]:
    """The tasks that a section names, all of them by default.

    Raises:
      UserError: a task that does not exist.
    """
    for name in names:
        if name not in settings.tasks:
            raise UserError(f"{path}.tasks: no task {name!r}; tasks: {', '.join(settings.tasks)}")
    return tuple(names) or tuple(settings.tasks)


def arguments_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """{name: default} of the optional arguments of the data set or task that a section names; {} for anything else."""
    kind = section["kind"]
    try:
        constructor = base.class_of(kind) if base.knows(kind) else sources.class_of(kind)
    except UserError:
        return {}  # refused, with a better message, when it is made
    known = inspect.signature(constructor).parameters.values()
    return {one.name: one.default for one in known if one.default is not one.empty}
