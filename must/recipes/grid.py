"""The last two jobs of a recipe that trains a grid of arms: results.json, the table, the page with the heat maps."""

import json
import os
import warnings
from collections.abc import Mapping
from typing import Any

from must.core.types import UserError
from must.evaluate.grid import grid_results, grid_table
from must.recipes import jobs, multas
from must.recipes.arms import Arm
from must.recipes.comparison import picture_grid, rates_by_stage, seconds_by_stage, settings_of

Config = Mapping[str, Any]


def compare(config: Config, *, directory: str, report) -> dict:
    """Collects the scores of all arms, teachers and seeds on the first measured split; writes results.json and .txt."""
    workdir = os.path.dirname(directory)
    built = multas.Built(config, config["seeds"][0])
    metrics = {name: task.metrics[0] for name, task in built.tasks.items()}
    split, *others = config["measured_on"]
    scores = _scores(config, built, workdir, split)
    results = grid_results(
        config["recipe"],
        config["seeds"],
        metrics,
        scores,
        _settings(built.arms),
        config["contrasts"],
        {name: dict.fromkeys(arm.tasks, f"teacher-{arm.split}") for name, arm in built.arms.items()},
        seconds=seconds_by_stage(multas, config, workdir),
        images_per_second=rates_by_stage(multas, config, workdir),
    )
    ways = {"best": "validation", "last": "last step"}
    results["selected_on"] = {run: ways[config[run]["select"]] for run in ("teacher", "student")}
    results["measured_on"] = split
    results["other_splits"] = {other: _scores(config, built, workdir, other) for other in others}
    with open(os.path.join(workdir, "results.json"), "w") as file:
        json.dump(results, file, indent=1)
    with open(os.path.join(workdir, "results.txt"), "w") as file:
        file.write(grid_table(results, width=126))
    return {}


def check(built: "multas.Built") -> None:
    """Refuses contrasts and pictures of arms that the grid does not have.

    Raises:
      UserError: naming them.
    """
    names = {task: [] for task in built.names}
    for column, arm in built.arms.items():
        for task in arm.tasks:
            names[task] += [column, f"teacher-{arm.split}"]
    numbers = [0.1, 0.3, 0.2]
    scores = {task: dict.fromkeys(columns, numbers) for task, columns in names.items()}
    metrics = {name: task.metrics[0] for name, task in built.tasks.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # equal scores have no t test
            grid_results("", [0, 1, 2], metrics, scores, _settings(built.arms), built.config["contrasts"], {})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"contrasts: {error}") from None
    for name in built.config["pictures"]:
        if name not in built.arms:
            raise UserError(f"pictures: {name!r} is no arm of the grid")


def report(config: Config, *, directory: str, report) -> dict:
    """Draws the page from results.json and, of the first seed, from what the networks say of the first test images."""
    from must.report.grid import write_page

    workdir, seed = os.path.dirname(directory), config["seeds"][0]
    built = multas.Built(config, seed)
    with open(os.path.join(workdir, "results.json")) as file:
        results = json.load(file)
    write_page(
        os.path.join(workdir, "report.html"),
        title=config["title"],
        results=results,
        pictures={task: _pictures(config, built, workdir, seed, task) for task in built.names},
        settings=settings_of(workdir),
    )
    return {}


def _scores(config: Config, built: "multas.Built", workdir: str, split: str) -> dict[str, dict[str, list[float]]]:
    """{task: {column: [per seed]}} of the headline metrics."""
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in built.names}
    for seed in config["seeds"]:
        at = multas.prefix(config, seed)
        where = [(f"teacher-{part}", f"{at}teachers/{part}-{task}", task) for part, task in multas.teachers(built.arms)]
        where += [(name, f"{at}grid/{name}", task) for name, arm in built.arms.items() for task in arm.tasks]
        for column, directory, task in where:
            found = jobs.facts(workdir, directory)[split][task][built.tasks[task].metrics[0].name]
            scores[task].setdefault(column, []).append(found)
    return scores


def _settings(arms: Mapping[str, Arm]) -> dict[str, dict[str, Any] | None]:
    """{column: its settings by axis}, None for teachers; changes to the student are an axis where some arm has them."""
    found: dict[str, dict[str, Any] | None] = {f"teacher-{split}": None for split, _ in multas.teachers(arms)}
    changed = any(arm.student for arm in arms.values())
    for name, arm in arms.items():
        changes = ", ".join(f"{key} {value}" for key, value in sorted(arm.student.items()))
        found[name] = {**arm.data(), **({"student": changes} if changed else {})}
    return found


def _pictures(config: Config, built: "multas.Built", workdir: str, seed: int, task: str) -> dict[str, Any]:
    """What the teacher and the arms that the configuration names, else the first two of the task, say of pictures."""
    at = multas.prefix(config, seed)
    able = [name for name, arm in built.arms.items() if task in arm.tasks]
    chosen = [name for name in config["pictures"] if name in able] or able[:2]
    part = built.arms[chosen[0]].split
    shown = {"teacher": {task: f"{at}teachers/{part}-{task}"}}
    shown |= {name: dict.fromkeys(built.arms[name].tasks, f"{at}grid/{name}") for name in chosen}
    found = picture_grid(built, workdir, task, shown)
    return {**found, "columns": [f"teacher-{part}" if name == "teacher" else name for name in found["columns"]]}
