"""What every recipe's run begins with: the workdir's owner, the stages asked for, the manifest."""

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from must.core import devices
from must.core.types import UserError
from must.pseudo_label.plan import first_difference
from must.pseudo_label.shards import lock
from must.recipes.comparison import print_results
from must.recipes.jobs import run_jobs

LATER = ("transfer", "predict", "export")


def run(recipe, config: Mapping[str, Any], workdir: str, *, stage: str = "all") -> None:
    """Runs one stage or all of a recipe in a workdir, resuming what is there.

    Args:
      recipe: module with `STAGES`, `check(config)` and `plan(config, workers)`.
      config: plain dict.
      workdir: absolute path.
      stage: "all" or one of the recipe's.

    Raises:
      UserError: no such stage, or the workdir belongs to another configuration.
    """
    check_stage(recipe, config["recipe"], stage)
    workers = _workers(config)
    config = json.loads(json.dumps(config))  # tuples become lists, as they come back from config.json
    recipe.check(config)  # what is wrong with the configuration shows before it owns a workdir
    with contextlib.ExitStack() as held:
        if devices.is_writer():
            _claim(workdir, config, getattr(recipe, "CHANGEABLE", ()))
            if not held.enter_context(lock(os.path.join(workdir, "lock"))):
                raise UserError(f"{workdir}: another run is at work here")
        jobs = [job for job in recipe.plan(config, workers) if stage in ("all", job.stage)]
        run_jobs(workdir, jobs, workers=workers)
    if devices.is_writer() and stage in ("all", "compare", "report"):
        print_results(workdir)


def check_stage(recipe, name: str, stage: str) -> None:
    """UserError for a stage that the recipe does not have."""
    if stage in LATER and stage not in recipe.STAGES:
        raise UserError(f"--stage={stage}: not built yet")
    if stage != "all" and stage not in recipe.STAGES:
        raise UserError(f"--stage={stage}: not a stage of {name}: all, {', '.join(recipe.STAGES)}")


def _workers(config: Mapping[str, Any]) -> int:
    if jax.distributed.is_initialized() or jax.default_backend() != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config["workers"] or min(2, cores)


def _claim(workdir: str, config: Mapping[str, Any], changeable: Sequence[str]) -> None:
    """Writes config.json and manifest.json, or compares with what is there, but for what a recipe lets change."""
    path = os.path.join(workdir, "config.json")
    if os.path.exists(path):
        with open(path) as file:
            there = json.load(file)
        fixed = ({key: value for key, value in found.items() if key not in changeable} for found in (there, config))
        difference = first_difference(*fixed, "config")
        if difference:
            raise UserError(f"{workdir}: belongs to another configuration: {difference}; take another --workdir")
        if there != config:
            _write(path, config)
        return
    try:
        os.makedirs(workdir, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}") from None
    manifest = {
        "versions": {name: _version(name) for name in ("must", "jax", "jaxlib", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "git": _git_sha(),
        "devices": [device.device_kind for device in jax.local_devices()],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    for name, content in (("manifest.json", manifest), ("config.json", config)):
        _write(os.path.join(workdir, name), content)


def _write(path: str, content: Mapping[str, Any]) -> None:
    with open(path + ".partial", "w") as file:
        json.dump(content, file, indent=1)
    os.replace(path + ".partial", path)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None


def _git_sha() -> str | None:
    command = ["git", "-C", os.path.dirname(__file__), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
