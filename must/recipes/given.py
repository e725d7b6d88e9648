"""Teachers that a configuration names instead of training them: any function that makes one, or a network of another run."""

import importlib
import json
import os
from collections.abc import Mapping
from typing import Any

from must.core.types import Teacher, UserError
from must.tasks.base import Task


def build_teacher(name: str, section: Mapping[str, Any], tasks: Mapping[str, Task], size: tuple[int, int]) -> Teacher:
    """One teacher from its section.

    {"make": "package.module:function", ...} calls function(name, tasks, size=(height, width), ...) -> Teacher;
    {"run": "DIR"} takes the network that another run trained in this directory, "runs/quickstart/teachers/depth".

    Args:
      name: for provenance and messages.
      section: one of these, with further arguments of the function, or "mirror" of the network.
      tasks: that it has to label.
      size: of the run's frame, (height, width); a function may take another one for its teacher.

    Raises:
      UserError: no such function or network, one that is no teacher of these tasks, or of other classes.
    """
    section = dict(section)
    kinds = {"make", "run"} & set(section)
    if len(kinds) != 1:
        raise UserError(f"teacher {name}: give either 'make', a function's import path, or 'run', a directory")
    kind = kinds.pop()
    where = section.pop(kind)
    teacher = _made(name, where, tasks, size, section) if kind == "make" else _from_run(name, where, tasks, **section)
    if not isinstance(teacher, Teacher):
        raise UserError(f"teacher {name}: {where} gives {type(teacher).__name__}, not a Teacher")
    for key, task in tasks.items():
        if key not in teacher.tasks:
            raise UserError(f"teacher {name}: {where} labels {', '.join(teacher.tasks)}, not {key}")
        ours, theirs = (tuple(getattr(t, "classes", ())) for t in (task, teacher.tasks[key]))
        if ours != theirs:
            first = next((pair for pair in zip(ours, theirs) if pair[0] != pair[1]), (len(ours), len(theirs)))
            raise UserError(f"teacher {name}: its classes of {key} are not the task's: {first[1]!r} for {first[0]!r}")
    return teacher._replace(name=name)


def _made(name: str, path: str, tasks: Mapping[str, Task], size: tuple[int, int], arguments: dict[str, Any]) -> Any:
    module, _, function = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"teacher {name}: {path!r}: {error}") from None
    try:
        return make(name, tasks, size=size, **arguments)
    except (TypeError, OSError, ImportError) as error:
        raise UserError(f"teacher {name}: {path}: {error}") from None


def _from_run(name: str, directory: str, tasks: Mapping[str, Task], mirror: bool = False) -> Teacher:
    directory = os.path.abspath(directory)
    workdir = directory
    while not os.path.exists(os.path.join(workdir, "config.json")):
        workdir, above = os.path.dirname(workdir), workdir
        if workdir == above:
            raise UserError(f"teacher {name}: {directory}: no run here, none of the folders above holds a config.json")
    from must.recipes.comparison import recipe_of  # a recipe may name teachers itself
    from must.recipes.labeling import teacher_of_run

    with open(os.path.join(workdir, "config.json")) as file:
        config = json.load(file)
    recipe = recipe_of(config)
    if not hasattr(recipe, "columns"):
        raise UserError(f"teacher {name}: {workdir}: a run of {config['recipe']} trains no network of this kind")
    for seed in config["seeds"]:
        for run, directories in recipe.columns(config, seed).items():
            names = [task for task, where in directories.items() if os.path.join(workdir, where) == directory]
            if names:
                return teacher_of_run(recipe.Built(config, seed), directory, name, names, run, mirror)
    known = sorted({w for seed in config["seeds"] for by in recipe.columns(config, seed).values() for w in by.values()})
    raise UserError(f"teacher {name}: {directory}: trained by none of its run, which has {', '.join(known)}")
