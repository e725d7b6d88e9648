"""What every recipe's run has in common: its members, the workdir and its owner, the stages, the manifest."""

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from must.core import buckets, devices, files, peers, shard_cache
from must.core.types import UserError
from must.experiment import acceptance, build, initial, labeling, sections
from must.experiment.compare import compare_workdirs, print_results
from must.experiment.jobs import Job, is_done, run_jobs
from must.experiment.reading import FILE, without_broken
from must.experiment.settings import Experiment
from must.experiment.show import STAGES
from must.pseudo_label.plan import first_difference

# Keys that change nothing that is trained or labeled: a finished workdir may be asked for them at any time.
FINISHED = ("export", "predict", "evaluate")  # what a finished workdir is asked for, `must.experiment.finished`
DISPLAY = ("title", "workers", "max_rejects", "quality", "gallery", "files")


class Member(NamedTuple):
    """One repetition of a recipe: one seed, at one value of every other axis.

    Attributes:
      prefix: its directory below the workdir, "" or ending in "/".
      seed: of everything random.
      axes: {axis: value} besides the seed, such as {"budget": 64}.
      settings: with "{root}", "{seed}" and the axes filled in.
    """

    prefix: str
    seed: int
    axes: dict[str, Any]
    settings: Any


Members = Sequence[Member]


class Recipe(NamedTuple):
    """A recipe as a value.

    Attributes:
      name: in `config.recipe`.
      settings: dataclass of its configuration.
      stages: in order; the argument of --stage.
      jobs: (members, workers) -> all jobs.
      check: (members) -> None, refuses what cannot work before anything is spent.
      plan: (members) -> lines of the dry run about its runs and labels.
      axes: (configuration as a plain mapping) -> {axis: (directory prefix, values)} besides the seed.
      changeable: sections that may differ between runs of one workdir.
      roots: keys of the configuration whose values replace "{key}" in paths.
      students: (members) -> {name: directory of its network below the workdir}, what the recipe is for; each task is
        predicted by one of them. None for a recipe that trains none.
    """

    name: str
    settings: type[Experiment]
    stages: tuple[str, ...]
    jobs: Callable[[Members, int], list[Job]]
    check: Callable[[Members], None]
    plan: Callable[[Members], None]
    axes: Callable[[Mapping[str, Any]], Mapping[str, tuple[str, Sequence[Any]]]] = lambda config: {}
    changeable: tuple[str, ...] = DISPLAY
    roots: tuple[str, ...] = ("root",)
    students: Callable[[Members], dict[str, str]] | None = None


def members(recipe: Recipe, config: Mapping[str, Any]) -> list[Member]:
    """The repetitions that a configuration describes, parsed.

    Args:
      recipe: whose settings they are.
      config: plain mapping.

    Raises:
      UserError: a key or value that the settings refuse.
    """
    seeds, axes = _seeds(config), recipe.axes(config)
    roots = {key: buckets.fetched(config.get(key) or "") for key in recipe.roots}
    result = []
    for *point, seed in itertools.product(*(values for _, values in axes.values()), seeds):
        values = dict(zip(axes, point, strict=True))
        parts = [f"{prefix}{value}/" for (prefix, _), value in zip(axes.values(), point, strict=True)]
        parts += [f"seed-{seed}/"] if len(seeds) > 1 else []
        filled = build.fill(config, seed=seed, **roots, **values)
        result.append(Member("".join(parts), seed, values, sections.parse(recipe.settings, filled)))
    return result


def _seeds(config: Mapping[str, Any]) -> Sequence[int]:
    """The seeds, which have to be known before the rest can be parsed: it may contain "{seed}"."""
    seeds = config.get("seeds") or (0,)
    if isinstance(seeds, str) or not isinstance(seeds, list | tuple) or not all(type(seed) is int for seed in seeds):
        raise UserError(f"config.seeds={seeds!r}: expected a list of whole numbers, such as (0,)")
    return seeds


def run(
    recipe: Recipe,
    config: Mapping[str, Any],
    workdir: str,
    *,
    stage: str = "all",
    workdirs: Sequence[str] = (),
    part: tuple[int, int] | None = None,
    beam: Sequence[str] | None = None,
) -> None:
    """Runs one stage or all of a recipe in a workdir, resuming what exists.

    Args:
      recipe: to run.
      config: plain mapping.
      workdir: absolute path.
      stage: "all", "check", which only reads the annotated sets, or one of the recipe's.
      workdirs: with the stage "compare", finished workdirs whose results are compared in `workdir`; nothing is run.
      part: (index, count) of the stage "label", whose parts share a workdir: one of as many commands, on any machines.
      beam: options of the Apache Beam pipeline by which the stage "label" labels.

    Raises:
      UserError: an unknown stage, a configuration that cannot work, or a workdir of another configuration.
    """
    check_stage(recipe, stage)
    if workdirs:
        if stage != "compare":
            raise UserError(f"--workdirs: only --stage=compare takes finished workdirs, not --stage={stage}")
        compare_workdirs(workdirs, workdir)
        print_results(workdir)
        return
    config = _asked(config, stage)
    mine = members(recipe, config)
    recipe.check(mine)  # what is wrong with the configuration shows before it owns a workdir
    _compare_processes(recipe, config, stage)
    workers = part[1] if part else 1 if beam is not None else _workers(mine[0].settings.workers)
    with contextlib.ExitStack() as held:
        held.enter_context(labeling.pipeline(beam))
        if devices.is_writer():
            _make_directory(workdir)
            if part is None and not held.enter_context(files.lock(os.path.join(workdir, "lock"))):
                raise UserError(f"{workdir}: another run is using this workdir")
            with files.lock(os.path.join(workdir, "claim.lock"), wait=True):
                _claim(recipe, workdir, config)
                initial.claim(workdir, [one.settings for one in mine])
        jobs = _jobs(recipe, mine, workers, stage)
        if stage == "check" or not all(is_done(workdir, job.name) for job in jobs):
            mine = [one._replace(settings=without_broken(one.settings, workdir)) for one in mine]
            jobs = _jobs(recipe, mine, workers, stage)
        if stage == "check":
            print(f"all examples of the annotated sets can be read, but those in {os.path.join(workdir, FILE)}")
            return
        if part:
            jobs = [job for job in jobs if re.search(rf"(^|/)label/{part[0]}$", job.name)]
            workers = 1
        if not jobs:
            raise UserError(f"--stage={stage}: there is nothing to do with this configuration")
        stages = {job.name: job.stage for job in _jobs(recipe, mine, workers, "all")}
        run_jobs(workdir, jobs, workers=workers, stages=stages)
    if devices.is_writer() and not part:
        policy_jobs = [job.name for job in jobs if job.name.rpartition("/")[2] == "policy"]
        if labels := acceptance.text(workdir, policy_jobs):
            print(labels)
        if stage in ("all", "compare", "report"):
            print_results(workdir)


def _asked(config: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """The configuration with the pages or files of a stage enabled when that stage is asked for by name."""
    if stage not in STAGES or stage not in config:
        return config
    return {**config, stage: {**(config[stage] or {}), "enabled": True}}


def check_stage(recipe: Recipe, stage: str) -> None:
    """UserError for a stage that the recipe does not have."""
    if stage in FINISHED and recipe.students is None:
        raise UserError(f"--stage={stage}: the recipe {recipe.name!r} trains no student")
    if stage not in (known := ("all", "check", *recipe.stages, *(FINISHED if recipe.students else ()))):
        raise sections.one_of("--stage", stage, known)


def _jobs(recipe: Recipe, mine: Members, workers: int, stage: str) -> list[Job]:
    return [job for job in recipe.jobs(mine, workers) if stage in ("all", job.stage)]


def _workers(asked: int) -> int:
    if jax.distributed.is_initialized() or jax.default_backend() != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asked or min(2, cores)


def _make_directory(workdir: str) -> None:
    try:
        os.makedirs(workdir, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}") from None


def _claim(recipe: Recipe, workdir: str, config: Mapping[str, Any]) -> None:
    """Writes config.json and manifest.json, or compares with the configuration that the workdir has, key by key."""
    path = os.path.join(workdir, "config.json")
    here = sections.without_none(config)
    if os.path.exists(path):
        known = read_config(workdir)
        same_configuration(recipe, workdir, known, config)
        files.write_json(path, here)
        return
    manifest = {
        "versions": {name: _version(name) for name in ("must", "jax", "jaxlib", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "git": _git_sha(),
        "devices": [device.device_kind for device in jax.local_devices()],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    files.write_json(os.path.join(workdir, "manifest.json"), manifest)
    files.write_json(path, here)


def read_config(workdir: str) -> dict[str, Any]:
    """The configuration of a workdir.

    Raises:
      UserError: no workdir of a run, or one whose configuration is damaged.
    """
    path = os.path.join(workdir, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; {workdir} is no workdir of a run") from None
    except (ValueError, TypeError):
        raise UserError(f"{path}: damaged; restore it, or use another --workdir") from None


def members_of(recipe: Recipe, workdir: str, known: Mapping[str, Any]) -> Members:
    """The members of the run that made a workdir.

    Raises:
      UserError: a configuration that this version does not know.
    """
    try:
        return members(recipe, known)
    except UserError as error:
        path = os.path.join(workdir, "config.json")
        raise UserError(f"{path}: is from another version of must, or was edited: {error}") from None


def same_configuration(recipe: Recipe, workdir: str, known: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """UserError unless a configuration is that of the workdir, but for what may change."""
    if known.get("recipe") != recipe.name:
        raise UserError(f"{workdir}: belongs to the recipe {known.get('recipe')!r}; use another --workdir")
    members_of(recipe, workdir, known)
    if difference := first_difference(*(_fixed(recipe, one) for one in (known, config)), "config"):
        raise UserError(f"{workdir}: belongs to another configuration: {difference}; use another --workdir")


def _compare_processes(recipe: Recipe, config: Mapping[str, Any], stage: str) -> None:
    """UserError, in all processes of a run, unless they agree on what decides what is computed; folders may differ."""
    stated = {key: value for key, value in config.items() if key not in recipe.roots}
    here = {"--stage": stage, "config": json.loads(json.dumps(stated, default=str))}
    here |= {f"${shard_cache.BOUND}": os.environ.get(shard_cache.BOUND, "")}
    here |= {name: _version(name) for name in ("must", "jax", "jaxlib", "flax", "optax")}
    first, *others = peers.gathered(here)
    for index, other in enumerate(others, 1):
        if difference := first_difference(first, other, names=("in process 0", f"in process {index}")):
            peers.leave()
            if devices.is_writer():
                time.sleep(1)  # it coordinates the others, which end with it whatever they are about to say
            raise UserError(f"the processes of this run were started differently: {difference}")


def _fixed(recipe: Recipe, config: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs of a workdir must share: every key with its value, of the first member."""
    every = sections.plain(members(recipe, config)[0].settings)
    return {key: value for key, value in every.items() if key not in recipe.changeable}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None


def _git_sha() -> str | None:
    command = ["git", "-C", os.path.dirname(__file__), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
