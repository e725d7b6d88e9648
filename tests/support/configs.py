"""Configurations as plain mappings, and what recipes make of them, for tests of experiment and recipes."""

import functools
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from must.experiment.run import Recipe, members
from must.experiment.run import run as run_recipe
from must.experiment.sections import without_none
from must.recipes.table import complete, recipe_of

ROOT = Path(__file__).parents[2]
__all__ = ["changed", "check", "complete", "config_of", "load", "log_of", "run", "settings_of"]


def load(path: str):
    """A configuration file as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(path: str, *variant: str, **changes: Any) -> dict[str, Any]:
    """A configuration as `config.json` holds it; changes by path with "__" for the dot."""
    return changed(json.loads(_text(path, *variant)), **changes)


@functools.cache
def _text(path: str, *variant: str) -> str:
    """In JSON; completing a configuration takes a second."""
    return json.dumps(without_none(load(path).get_config(*variant).to_dict()))


def changed(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy of a configuration with other values, by path with "__" for the dot."""
    config = json.loads(json.dumps(config))
    for key, value in changes.items():
        *path, last = key.split("__")
        section = config
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return config


def log_of(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's log without what a clock measured."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]


def settings_of(config: Mapping[str, Any], number: int = 0) -> Any:
    """The settings of one member of a configuration's recipe."""
    return members(recipe_of(config), config)[number].settings


def check(config: Mapping[str, Any]) -> None:
    """Everything that a recipe refuses before it runs."""
    recipe: Recipe = recipe_of(config)
    recipe.check(members(recipe, config))


def run(config: Mapping[str, Any], workdir, stage: str = "all", **options: Any) -> None:
    """Runs a recipe."""
    run_recipe(recipe_of(config), config, str(workdir), stage=stage, **options)
