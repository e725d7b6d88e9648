"""Teachers that a configuration names instead of training them: made by any function, or trained by another run."""

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from must.core.arguments import converted
from must.core.types import Teacher, UserError
from must.data.classes import ClassMap, renumbered
from must.data.combine import hash_of
from must.experiment import build, networks
from must.experiment.sections import without_none
from must.experiment.settings import SingleStudent
from must.pseudo_label.fusion import fuse
from must.tasks.base import Task


def external_teachers(settings: SingleStudent, tasks: Mapping[str, Task]) -> dict[str, Teacher]:
    """{task: its external teacher}, of these tasks that have one."""
    return {
        name: external_teacher(name, settings.external_teachers[name], {name: task}, settings.image.size)
        for name, task in tasks.items()
        if name in settings.external_teachers
    }


def trained_with(settings: SingleStudent, task: str) -> tuple[int, float] | None:
    """(batch size, peak learning rate) of a task's teacher; None if an external one does not tell them."""
    if task not in settings.external_teachers:
        run = build.teacher(settings, task)
        return run.batch_size, run.optimizer.learning_rate
    directory = without_none(settings.external_teachers[task]).get("run")
    return networks.trained_with(directory) if isinstance(directory, str) else None


def external_teacher(
    name: str, section: Mapping[str, Any], tasks: Mapping[str, Task], size: tuple[int, int]
) -> Teacher:
    """One teacher from its section.

    {"make": "package.module:function", ...} calls function(name, tasks, size=(height, width), ...) -> Teacher,
    without size where it has none, such as must:hf_detector;
    {"run": directory} takes the network that another run trained there, such as "runs/quickstart/teachers/depth";
    {"fuse": [section, section, ...]} asks several and fuses their predictions (`must.fuse`).

    Args:
      name: for provenance and messages.
      section: one of these with further arguments of the function, or "hflip_tta" for the network.
      tasks: that it has to label.
      size: of the run's frame, (height, width); a function may choose another one for its teacher.

    Raises:
      UserError: no such function or network, one that is no teacher of these tasks, or one with other classes.
    """
    section = without_none(section)
    kinds = {"make", "run", "fuse"} & set(section)
    if len(kinds) != 1:
        raise UserError(
            f"teacher {name}: give one of 'make', a function's import path, 'run', a directory, and 'fuse', sections"
        )
    kind = kinds.pop()
    where = section.pop(kind)
    if kind != "fuse":
        where = converted(where, str, f"teacher {name}: {kind}")
    if kind == "fuse":
        if not isinstance(where, list | tuple) or section:
            raise UserError(f"teacher {name}: 'fuse' is a list of sections, without other keys")
        parts = [external_teacher(f"{name}-{n}", part, tasks, size) for n, part in enumerate(where, 1)]
        teacher = fuse(name, parts)
    elif kind == "make":
        teacher = _made(name, where, tasks, size, section)
    else:
        section["hflip_tta"] = section.pop("mirror", section.get("hflip_tta", False))  # older configurations say mirror
        try:
            teacher = networks.as_teacher(os.path.abspath(where), name, tasks=tuple(tasks), **section)
        except (UserError, TypeError) as error:
            raise UserError(f"teacher {name}: {error}") from None
    if not isinstance(teacher, Teacher):
        raise UserError(f"teacher {name}: {where} returns {type(teacher).__name__}, not a Teacher")
    for key, task in tasks.items():
        if key not in teacher.tasks:
            raise UserError(f"teacher {name}: {where} labels {', '.join(teacher.tasks)}, not {key}")
        ours, theirs = (tuple(getattr(one, "classes", ())) for one in (task, teacher.tasks[key]))
        if ours != theirs:
            teacher = _counted_as(teacher, key, task)
    return teacher._replace(name=name)


def _counted_as(teacher: Teacher, key: str, task: Task) -> Teacher:
    """The teacher with its classes counted as those of the task; classes are joined by name."""
    ours, theirs = tuple(getattr(task, "classes", ())), tuple(getattr(teacher.tasks[key], "classes", ()))
    for one in theirs:
        if one not in ours:
            raise UserError(f"teacher {teacher.name}: its class {one!r} of {key} is not one of the task's {len(ours)}")
    if not theirs:
        raise UserError(f"teacher {teacher.name}: has no classes of {key}, the task has {len(ours)}")
    class_map = ClassMap(theirs, ours, tuple(ours.index(one) for one in theirs))

    def predict(images):
        labels = teacher.predict(images)
        return {**labels, key: renumbered(labels[key], class_map)}

    fingerprint = hash_of(teacher.fingerprint, key, *ours)
    return teacher._replace(tasks={**teacher.tasks, key: task}, predict=predict, fingerprint=fingerprint)


def _made(name: str, path: str, tasks: Mapping[str, Task], size: tuple[int, int], arguments: dict[str, Any]) -> Any:
    module, _, function = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"teacher {name}: {path!r}: {error}") from None
    try:
        known = inspect.signature(make).parameters.values()
        sized = any(one.name == "size" or one.kind is one.VAR_KEYWORD for one in known)
        return make(name, tasks, **({"size": size} if sized else {}), **arguments)
    except (TypeError, OSError, ImportError) as error:
        raise UserError(f"teacher {name}: {path}: {error}") from None
