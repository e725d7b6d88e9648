"""The last two jobs of a recipe: the numbers side by side (results.json), and the pages that show them (report.html).

A recipe says which directory answers which task in which column; the rest is the same for all recipes.
"""

import functools
import importlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from must.core.types import Label
from must.data.pipeline import eval_batches
from must.evaluate import compare as columns_of
from must.evaluate.evaluate import bootstrap_interval, constant_guess, constant_step, evaluate
from must.pseudo_label.teacher import in_frame
from must.recipes import jobs, measuring, stages

Config = Mapping[str, Any]


def compare(config: Config, *, directory: str, report) -> dict:
    """Collects the scores of all columns and seeds, measures what each column costs to run, writes results.json."""
    recipe, workdir = recipe_of(config), os.path.dirname(directory)
    built = recipe.Built(config, config["seeds"][0])
    metrics = {name: task.metrics[0] for name, task in built.tasks.items()}
    by_split = {}
    for split in config["measured_on"]:
        scores: dict[str, dict[str, list[float]]] = {name: {} for name in built.names}
        for seed in config["seeds"]:
            for column, directories in recipe.columns(config, seed).items():
                for task, where in directories.items():
                    value = jobs.facts(workdir, where)[split][task][metrics[task].name]
                    scores[task].setdefault(column, []).append(value)
        by_split[split] = scores
    first, *shifted = config["measured_on"]
    results = columns_of.results(
        config["recipe"],
        config["seeds"],
        metrics,
        by_split[first],
        costs=_costs(recipe, config, built, workdir),
        seconds=seconds_by_stage(recipe, config, workdir),
        images_per_second=rates_by_stage(recipe, config, workdir),
    )
    for split in shifted:
        results.setdefault("other_splits", {})[split] = columns_of.results(
            config["recipe"], config["seeds"], metrics, by_split[split]
        )
    results["notes"] = recipe.notes(config)
    results["against_guess"] = _against_guess(recipe, config, built, workdir)
    with open(os.path.join(workdir, "results.json"), "w") as file:
        json.dump(results, file, indent=1)
    text = columns_of.table(results) + "\n\n" + _guess_table(results["against_guess"])
    for split in shifted:
        text += f"\n\nOn {split}:\n" + columns_of.table(results["other_splits"][split])
    with open(os.path.join(workdir, "results.txt"), "w") as file:
        file.write(text + "\n")
    return {}


def report(config: Config, *, directory: str, report) -> dict:
    """Draws the pages from what the other jobs left."""
    from must.report.html import write_report

    recipe, workdir = recipe_of(config), os.path.dirname(directory)
    seed = config["seeds"][0]
    built = recipe.Built(config, seed)
    with open(os.path.join(workdir, "results.json")) as file:
        results = json.load(file)
    columns = recipe.columns(config, seed)
    shown = {name: columns[name] for name in ("teacher", "student") if name in columns}
    path = os.path.join(workdir, "report.html")
    write_report(
        path,
        title=config["title"],
        results=results,
        curves={where: read_curves(os.path.join(workdir, where)) for where in dict.fromkeys(_flat(columns))},
        grids={task: picture_grid(built, workdir, task, shown) for task in built.names},
        kept=recipe.kept_labels(built, os.path.join(workdir, recipe.prefix(config, seed))),
        settings=settings_of(workdir),
    )
    return {}


def _against_guess(recipe, config: Config, built, workdir: str, resamples: int = 200) -> dict[str, Any]:
    """What every column of the first seed adds to a blind guess, bootstrapped over the test images.

    Returns:
      {task: {"guess": score, "gains": {column: {"mean", "ci95"}}}}, better positive.
    """
    split = config["measured_on"][0]
    found = {}
    for name, task in built.tasks.items():
        encoder, metric = built.plain._replace(tasks={name: task}), task.metrics[0]
        train = built.split(name, "train")
        # Spread over the whole set: folders come sorted by class.
        shown = np.unique(np.linspace(0, len(train) - 1, 1024).round().astype(int))
        labels = [encoder(train[int(i)], int(i), np.random.default_rng(int(i))).labels[name] for i in shown]
        step = jax.jit(functools.partial(constant_step, tasks={name: task}))
        batches = eval_batches(built.split(name, split), encoder, batch_size=64)
        blind = evaluate(step, {name: constant_guess(task, labels)}, batches)[name]
        sign, floor = (1 if metric.higher_is_better else -1), task.summarize(dict(blind))[metric.name]
        gains = {}
        for column, directories in recipe.columns(config, config["seeds"][0]).items():
            rows = measuring.load_rows(os.path.join(workdir, directories[name], f"rows-{split}.npz"))[name]
            ends = bootstrap_interval(task, rows, versus=blind, resamples=resamples)
            mean = sign * (task.summarize(dict(rows))[metric.name] - floor)
            gains[column] = {"mean": mean, "ci95": sorted(sign * end for end in ends)}
        found[name] = {"guess": floor, "gains": gains}
    return found


def _guess_table(found: Mapping[str, Any]) -> str:
    """The same as text."""
    lines = ["gain over a blind guess; 95 % interval over test images"]
    for name, entry in found.items():
        cells = (f"{c} {g['mean']:+.3g} [{g['ci95'][0]:+.3g}, {g['ci95'][1]:+.3g}]" for c, g in entry["gains"].items())
        lines.append(f"  {name:16} guess {entry['guess']:.3g};  " + ",  ".join(cells))
    return "\n".join(lines)


def print_results(workdir: str) -> None:
    """The table on the terminal, and where the pages are."""
    path = os.path.join(workdir, "results.txt")
    if os.path.exists(path):
        with open(path) as file:
            print("\n" + file.read())
    page = os.path.join(workdir, "report.html")
    if os.path.exists(page):
        print(f"report: {page}")


def recipe_of(config: Config):
    """The module of the recipe that a configuration names."""
    return importlib.import_module(f"must.recipes.{config['recipe']}")


def _flat(columns: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [where for directories in columns.values() for where in directories.values()]


def _costs(recipe, config: Config, built, workdir: str) -> dict[str, dict[str, float]]:
    """Per column: networks, parameters, time per image to have every task answered on this machine."""
    found = {}
    images = np.zeros((_ROWS, *built.size, 3), np.uint8)
    for column, directories in recipe.columns(config, config["seeds"][0]).items():
        networks = list(dict.fromkeys(directories.values()))
        parameters, seconds = 0, 0.0
        for where in networks:
            predict, variables = _network(built, workdir, where, directories, column)
            parameters += sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
            seconds += median_time(lambda: predict(variables, images))  # noqa: B023
        found[column] = {
            "networks": len(networks),
            "parameters": parameters,
            "milliseconds": 1000 * seconds / len(images),
            "images_per_second": len(images) / seconds,
        }
    return found


_ROWS = 32  # pictures that a network is timed and drawn on: one compiled program for both


def _network(built, workdir: str, where: str, directories: Mapping[str, str], column: str):
    """(predictor of all tasks that this directory's network answers in a column, its variables)."""
    names = tuple(task for task, other in directories.items() if other == where)
    if column == "teacher" and names[0] in (given := built.given()):
        teacher = in_frame(given[names[0]], built.size)
        return lambda variables, images: teacher.predict(np.asarray(images)), {"params": {}}
    model = built.model(names, column)
    variables, _ = stages.load_weights(os.path.join(workdir, where), model, built.inputs)
    return measuring.predictor(model, {name: built.tasks[name] for name in names}), variables


def median_time(call) -> float:
    """Seconds until all outputs are ready, after a first call."""
    jax.block_until_ready(call())
    times = []
    for _ in range(9):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _finished(recipe, config: Config, workdir: str):
    for job in recipe.plan(config, 64):  # as many parts as a stage may have been cut into
        if jobs.is_done(workdir, job.name):
            yield job, jobs.facts(workdir, job.name)


def seconds_by_stage(recipe, config: Config, workdir: str) -> dict[str, float]:
    """Work per stage, seconds; jobs that ran side by side add up."""
    total: dict[str, float] = {}
    for job, facts in _finished(recipe, config, workdir):
        total[job.stage] = round(total.get(job.stage, 0.0) + facts["seconds"], 1)
    return total


def rates_by_stage(recipe, config: Config, workdir: str) -> dict[str, float]:
    """Training throughput per stage, mean over its runs."""
    rates: dict[str, list[float]] = {}
    for job, facts in _finished(recipe, config, workdir):
        if "images_per_second" in facts:
            rates.setdefault(job.stage, []).append(facts["images_per_second"])
    return {stage: round(float(np.mean(values)), 1) for stage, values in rates.items()}


def read_curves(directory: str) -> dict[str, list]:
    """Series of metrics.jsonl by name, each as {"step": [...], "value": [...]}."""
    series: dict[str, dict[str, list]] = {}
    path = os.path.join(directory, "metrics.jsonl")
    if not os.path.exists(path):  # a teacher that was given learned nothing here
        return series
    with open(path) as file:
        for line in file:
            values = json.loads(line)
            step = values.pop("step")
            for name, value in values.items():
                entry = series.setdefault(name, {"step": [], "value": []})
                entry["step"].append(step)
                entry["value"].append(value)
    return series


def picture_grid(built, workdir: str, task_name: str, shown: Mapping[str, Mapping[str, str]], examples: int = 6):
    """Rows of pictures: input, truth, one per shown column; on the first test images."""
    task = built.tasks[task_name]
    encoder = built.plain._replace(tasks={task_name: task})
    batch = next(iter(eval_batches(built.split(task_name, first_split(built)), encoder, batch_size=_ROWS)))
    answers: dict[str, Label] = {"truth": batch.labels[task_name]}
    for column, directories in shown.items():
        predict, variables = _network(built, workdir, directories[task_name], directories, column)
        answers[column] = jax.device_get(predict(variables, batch.inputs["image"])[task_name])
    rows = []
    for i in np.flatnonzero(batch.ids >= 0)[:examples]:
        picks = [{field: np.asarray(value)[i] for field, value in label.items()} for label in answers.values()]
        rows.append([batch.inputs["image"][i], *(task.draw(batch.inputs["image"][i], pick) for pick in picks)])
    return {"columns": ["input", *answers], "rows": rows}


def first_split(built) -> str:
    """The split that the first table is about."""
    return built.config["measured_on"][0]


def settings_of(workdir: str) -> dict:
    found = {}
    for name in ("manifest", "config"):
        with open(os.path.join(workdir, f"{name}.json")) as file:
            found[name] = json.load(file)
    return found
