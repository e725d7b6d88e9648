"""Teachers that a configuration names instead of training them: made by any function, or trained by another run."""

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from must.core.arguments import converted
from must.core.notices import notice
from must.core.types import Teacher, UserError
from must.data.classes import ClassMap, renumbered
from must.data.combine import hash_of
from must.experiment import build, networks
from must.experiment.sections import without_none
from must.experiment.settings import SingleStudent
from must.pseudo_label.fusion import fuse
from must.tasks.base import Task


def external_teachers(
    settings: SingleStudent, tasks: Mapping[str, Task], *, hflip_tta: bool = False
) -> dict[str, Teacher]:
    """{task: its external teacher}, of these tasks that have one; hflip_tta: see `external_teacher`."""
    sections, size = settings.external_teachers, settings.image.size
    return {
        name: external_teacher(name, sections[name], {name: task}, size, hflip_tta=hflip_tta)
        for name, task in tasks.items()
        if name in sections
    }


def trained_with(settings: SingleStudent, task: str) -> tuple[int, float] | None:
    """(batch size, peak learning rate) of a task's teacher; None if an external one does not tell them."""
    if task not in settings.external_teachers:
        run = build.teacher(settings, task)
        return run.batch_size, run.optimizer.learning_rate
    directory = directory_of(settings, task)
    return networks.trained_with(directory) if directory else None


def directory_of(settings: SingleStudent, task: str, top: str = "") -> str:
    """Where a task's teacher trained, in the seed's directory `top` or in another run; "" if it did not train here."""
    if task not in settings.external_teachers:
        return os.path.join(top, "teachers", task)
    directory = without_none(settings.external_teachers[task]).get("run")
    return directory if isinstance(directory, str) else ""


def external_teacher(
    name: str, section: Mapping[str, Any], tasks: Mapping[str, Task], size: tuple[int, int], *, hflip_tta: bool = False
) -> Teacher:
    """One teacher from its section.

    {"make": "package.module:function", ...} calls function(name, tasks, size=(height, width), hflip_tta=..., ...),
    without size and hflip_tta where it has none, such as must:hf_detector, and takes the Teacher that it returns;
    {"run": directory} takes the network that another run trained there, such as "runs/quickstart/teachers/depth";
    {"fuse": [section, section, ...]} asks several and fuses their predictions (`must.fuse`).

    Args:
      name: for provenance and messages.
      section: one of these with further arguments of the function, or "hflip_tta" for the network.
      tasks: that it has to label.
      size: of the run's frame, (height, width); a function may choose another one for its teacher.
      hflip_tta: average the predictions for a picture and its mirror image, where the section does not say.

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
        numbered = enumerate(where, 1)
        parts = [external_teacher(f"{name}-{n}", part, tasks, size, hflip_tta=hflip_tta) for n, part in numbered]
        teacher = fuse(name, parts)
    elif kind == "make":
        teacher = _made(name, where, tasks, {"size": size, "hflip_tta": hflip_tta}, section)
    else:
        usual = section.pop("mirror", hflip_tta)  # older configurations say mirror
        section.setdefault("hflip_tta", usual)
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


def _made(
    name: str, path: str, tasks: Mapping[str, Task], usual: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Any:
    """What the function of a section returns; `usual`, size and hflip_tta, go where the section leaves them out."""
    module, _, function = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"teacher {name}: {path!r}: {error}") from None
    try:
        known = inspect.signature(make).parameters
        open_ended = any(one.kind is one.VAR_KEYWORD for one in known.values())
        given = {key: value for key, value in usual.items() if key in known or (key == "size" and open_ended)}
        if usual["hflip_tta"] and "hflip_tta" not in {*known, *arguments}:
            notice(f"teacher {name}: {path} takes no hflip_tta, so its labels are not averaged over mirrored pictures")
        return make(name, tasks, **{**given, **arguments})
    except (TypeError, OSError, ImportError) as error:
        raise UserError(f"teacher {name}: {path}: {error}") from None
