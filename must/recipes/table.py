"""All recipes by name, and configurations completed with the keys of theirs."""

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from must.core import memory
from must.core.types import UserError
from must.experiment import build, networks, plan, sections
from must.experiment.finished import students_of
from must.experiment.run import Recipe, members, members_of, read_config
from must.export.exported import ABOUT as EXPORT
from must.export.predict import Predictor
from must.recipes import jedi, label, multas, must, transfer, weighted_distillation

RECIPES = {one.RECIPE.name: one.RECIPE for one in (must, multas, jedi, weighted_distillation, label, transfer)}


def recipe_of(config: Mapping[str, Any]) -> Recipe:
    """The recipe that a configuration names.

    Raises:
      UserError: none, or an unknown one.
    """
    name = config.get("recipe")
    if not isinstance(name, str) or name not in RECIPES:
        raise sections.one_of("config.recipe", name, RECIPES)
    return RECIPES[name]


def complete(config: Mapping[str, Any]) -> ConfigDict:
    """The configuration with every key of its recipe, so that the command line can set each of them.

    Raises:
      ValueError: an unknown recipe.
    """
    try:
        return sections.complete(recipe_of(config).settings, config, build.arguments_of)
    except UserError as error:
        raise ValueError(str(error)) from None


def load(directory: str | os.PathLike) -> Predictor:
    """A trained network, or the students of a finished workdir, to predict with: `must.load("runs/x").predict(images)`.

    Args:
      directory: a workdir, or the directory of one network below it, such as "runs/x/teachers/depth".

    Raises:
      UserError: neither of the two, or training has not finished.
    """
    path = os.path.abspath(os.fspath(directory))
    if os.path.exists(os.path.join(path, networks.ABOUT)):
        return networks.predictor({os.path.basename(path): path})
    if os.path.exists(os.path.join(path, EXPORT)):
        raise UserError(f"{directory}: is an exported network; use must.load_exported")
    config = read_config(path)
    recipe = recipe_of(config)
    students = students_of(recipe, members_of(recipe, path, config))
    return networks.predictor({name: os.path.join(path, at) for name, at in students.items()})


def dry_run(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Resolves a configuration and prints what running it means; writes nothing and compiles nothing large.

    Raises:
      UserError: a key, a path, a class map or a shape that does not work.
    """
    config, declared = plan.with_declared(config)
    for name, reason in declared.items():
        print(f"{name}: planned from its declared features, since {reason}")
    mine = members(recipe, config)
    if not declared:  # stand-ins all show the same picture
        recipe.check(mine)
    recipe.plan(mine)
    print(f"decoded pictures: up to {memory.budget() / 2**30:.2f} GiB in memory over all processes (MUST_CACHE_MIB)")
