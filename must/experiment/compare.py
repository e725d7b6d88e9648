"""The last jobs of a recipe: all columns side by side in results.json and results.txt, and the page that shows them."""

import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import jax
import numpy as np

from must.core import files
from must.core.types import Label, Metric, UserError
from must.data.geometry import whole_image
from must.data.pipeline import eval_batches
from must.data.splits import Listed
from must.evaluate import results as comparison
from must.evaluate.evaluate import constant_guess, repeated, resampled
from must.evaluate.over_images import Draws, over_images
from must.evaluate.results import SCHEMA, Axis, Column, Contrast, Score
from must.experiment import build, jobs, measure, networks
from must.experiment.external import external_teachers
from must.experiment.jobs import Job
from must.experiment.speed import PARTS
from must.pseudo_label.teacher import in_frame
from must.readers.fields import understood
from must.report.pictures import cut
from must.report.table import show, table
from must.tasks.base import Task

GUESS = Column(comparison.GUESS, {}, "constant guess", "the best constant prediction for every image")
_ROWS = 32  # pictures on which a network is timed and drawn: one compiled program for both
_GUESS_LABELS, _RESAMPLES = 1024, 200


class Answer(NamedTuple):
    """Where the scores of a column for one task are.

    Attributes:
      job: below the member's directory.
      task: in the job's facts, when it has another name there.
      network: directory of the network below the member's; the job's by default.
    """

    job: str
    task: str = ""
    network: str = ""


class Answers(NamedTuple):
    """A column with its answers.

    Attributes:
      column: name, settings, words.
      by_task: {task: Answer}.
      axes: {axis: value} of the members that it is about.
      timed: measure what it costs to run.
    """

    column: Column
    by_task: Mapping[str, Answer]
    axes: Mapping[str, Any] = {}
    timed: bool = True


class Comparison(NamedTuple):
    """What a recipe compares.

    Attributes:
      columns: with their answers.
      contrasts: of the columns.
      axes: settings that distinguish the columns.
      mean_label: name of the mean over tasks that share a metric.
      intervals_over_images: bootstrap over the first seed's images: gains over the constant guess and, where there is
        one seed alone, contrasts.
      costs: (members, workdir) -> {column: costs}; by default the time of the networks of every timed column.
      notes: (members, workdir) -> sentences.
    """

    columns: Sequence[Answers]
    contrasts: Sequence[Contrast]
    axes: Sequence[Axis] = ()
    mean_label: str = ""
    intervals_over_images: bool = False
    costs: Callable[..., dict] | None = None
    notes: Callable[..., list[str]] | None = None


def closing_jobs(
    work: Sequence[Job], members: Sequence[Any], compared: Comparison, sections: Callable[..., list]
) -> list[Job]:
    """The jobs that compare and report what the other jobs of a recipe did.

    Args:
      work: all other jobs.
      members: of the recipe.
      compared: what is compared.
      sections: (members, workdir) -> sections of the page besides the tables.
    """
    prefixes = {member.prefix for member in members}
    used = {prefix + answer.job for prefix in prefixes for one in compared.columns for answer in one.by_task.values()}
    needs = tuple(job.name for job in work if job.name in used)
    stages = [(job.stage, job.name) for job in work]
    return [
        Job("compare", "compare", compare, (members, compared, stages), needs, alone=True),
        Job("report", "report", report, (members, sections), ("compare",), alone=True),
    ]


def compare(members, compared: Comparison, stages: Sequence[tuple[str, str]], *, directory: str, report) -> dict:
    """The job: collects the scores of all columns and seeds, measures costs, writes results.json and results.txt."""
    workdir, first = os.path.dirname(directory), members[0].settings
    tasks = build.tasks_of(first)
    metrics = {name: task.metrics[0] for name, task in tasks.items()}
    scores = [score for member in members for score in _scores(member, compared, metrics, workdir, first.eval_splits)]
    guesses = _guesses(members, tasks)
    scores += [
        Score(GUESS.name, task, first.eval_splits[0], member.seed, value)
        for member, guess in guesses
        for task, value in guess.score.items()
    ]
    costs = compared.costs(members, workdir) if compared.costs else _costs(members, compared, tasks, workdir)
    results = comparison.compare(
        first.recipe,
        metrics,
        scores,
        [GUESS, *(one.column for one in compared.columns)],
        compared.contrasts,
        title=first.title,
        axes=compared.axes,
        mean_label=compared.mean_label,
        costs=costs,
        seconds=_by_stage(stages, workdir, "seconds", sum),
        images_per_second=_by_stage(stages, workdir, "images_per_second", fmean),
        notes=compared.notes(members, workdir) if compared.notes else (),
    )
    if compared.intervals_over_images:
        draws = _draws(members[0], compared, tasks, guesses[0][1], workdir)
        results = over_images(results, metrics, compared.contrasts, draws)
    results["shares"] = {
        part: _by_stage(stages, workdir, "spent", functools.partial(_share, part), digits=4) for part in PARTS
    }
    results["shares"]["mfu"] = _by_stage(stages, workdir, "mfu", fmean, digits=4)
    write_results(workdir, results)
    return {}


def write_results(workdir: str, results: Mapping[str, Any]) -> None:
    """Writes results.json and results.txt, each whole or not at all."""
    files.write_json(os.path.join(workdir, "results.json"), results)
    files.write_text(os.path.join(workdir, "results.txt"), table(results))


def read_results(workdir: str) -> dict[str, Any]:
    """What a finished comparison wrote.

    Raises:
      UserError: no results, or results of an older version.
    """
    path = os.path.join(workdir, "results.json")
    try:
        with open(path, encoding="utf-8") as file:
            results = dict(json.load(file))
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; run --stage=compare in {workdir} first") from None
    except (ValueError, TypeError):
        raise UserError(f"{path}: damaged; run --stage=compare in {workdir} again") from None
    if results.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: schema {results.get('schema')!r} is from another version; run --stage=compare again with this one"
        )
    return results


def report(members, sections: Callable[..., list], *, directory: str, report) -> dict:
    """The job: draws the page from results.json and from what the other jobs left."""
    from must.report.page import write_page

    workdir = os.path.dirname(directory)
    path = os.path.join(workdir, "report.html")
    write_page(
        path,
        title=members[0].settings.title,
        results=read_results(workdir),
        sections=sections(members, workdir),
        settings=run_settings(workdir),
    )
    return {"page": path}


def compare_workdirs(workdirs: Sequence[str], target: str) -> None:
    """Puts the results of several finished workdirs into one table and page.

    Workdirs whose configurations differ only in their seeds are further seeds of one experiment. Others become
    values of a further axis, named after the key in which they differ.

    Raises:
      UserError: fewer than two workdirs, no results in one, or results that do not fit together.
    """
    from must.report.page import write_page

    if len(workdirs) < 2:
        raise UserError("--workdirs=A,B: needs at least two workdirs")
    parts = {os.path.normpath(workdir): read_results(workdir) for workdir in workdirs}
    if len(parts) < len(workdirs):
        raise UserError("--workdirs: a workdir is listed twice")
    names, axis = _distinguish(list(parts))
    parts = dict(zip(names, parts.values(), strict=True))
    first = next(iter(parts.values()))
    scores, columns, axes = comparison.pool(parts, by=axis)
    metrics = {
        name: Metric(entry["metric"], entry["unit"], entry["higher_is_better"])
        for name, entry in first["tasks"].items()
    }
    contrasts = comparison.contrasts_of(first)
    if axis:
        contrasts = [at for name in names for contrast in contrasts for at in [_at(contrast, axis, name)]]
        contrasts += _between(first, names, axis)
        known = {column.name for column in columns}  # a workdir may have arms that another lacks
        contrasts = [contrast for contrast in contrasts if comparison.columns_of(contrast) <= known]
    results = comparison.compare(
        first["recipe"],
        metrics,
        scores,
        columns,
        contrasts,
        title=first["title"],
        axes=axes,
        mean_label=(first["mean_task"] or {}).get("label", ""),
        seconds=first["seconds"] if not axis else None,
        notes=[f"From {len(names)} workdirs: {', '.join(names)}."],
    )
    if axis and len(results["seeds"]) == 1:
        _keep_intervals(results, parts, axis)
    os.makedirs(target, exist_ok=True)
    write_results(target, results)
    settings = {name: run_settings(workdir) for name, workdir in zip(names, workdirs, strict=True)}
    write_page(
        os.path.join(target, "report.html"), title=first["title"], results=results, sections=[], settings=settings
    )


def _distinguish(workdirs: Sequence[str]) -> tuple[list[str], str]:
    """(names of the workdirs, axis that distinguishes them; "" when they differ in their seeds only)."""
    configs = [run_settings(workdir)["config"] for workdir in workdirs]
    for workdir, config in zip(workdirs, configs, strict=True):
        if not config:
            raise UserError(f"{os.path.join(workdir, 'config.json')}: does not exist; it tells what was compared there")
    flat = [
        dict(_leaves({k: v for k, v in config.items() if k not in ("seeds", "title", "workers")})) for config in configs
    ]
    keys = [
        key
        for key in dict.fromkeys(key for one in flat for key in one)
        if len({repr(one.get(key)) for one in flat}) > 1
    ]
    seeds = [set(config.get("seeds", (0,))) for config in configs]
    shared = any(a & b for i, a in enumerate(seeds) for b in seeds[i + 1 :])
    if not keys and not shared:
        return list(workdirs), ""
    values = [str(one.get(keys[0])) for one in flat] if len(keys) == 1 else []
    if values and len(set(values)) == len(values):
        return values, keys[0]
    names = [os.path.basename(workdir) for workdir in workdirs]
    return names if len(set(names)) == len(names) else list(workdirs), "workdir"


def _leaves(value: Any, path: str = ""):
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _at(contrast: Contrast, axis: str, name: str) -> Contrast:
    """A contrast within one of several workdirs."""

    def of(column):
        return (
            {task: f"{one}@{name}" for task, one in column.items()}
            if isinstance(column, Mapping)
            else f"{column}@{name}"
        )

    pairs = [(of(a), of(b)) for a, b in contrast.pairs]
    return contrast._replace(name=_within(contrast.name, axis, name), pairs=pairs, labels={})


def _keep_intervals(results: dict[str, Any], parts: Mapping[str, Any], axis: str) -> None:
    """Contrasts within one of several workdirs of one seed keep its intervals over images."""
    known = {
        (_within(one["name"], axis, name), one["task"], one["split"]): one
        for name, part in parts.items()
        for one in part["contrasts"]
        if one["interval_over"] == "images" and one["reference"] != GUESS.name
    }
    for one in results["contrasts"]:
        if found := known.get((one["name"], one["task"], one["split"])):
            one |= {key: found[key] for key in ("ci95", "interval_over", "holds")}


def _within(contrast: str, axis: str, name: str) -> str:
    return f"{contrast}, {axis} {name}"


def _between(first: Mapping[str, Any], names: Sequence[str], axis: str) -> list[Contrast]:
    """Every column of a later workdir against the same one of the first."""
    columns = [column for column in first["columns"] if column != GUESS.name]
    return [
        Contrast(
            f"{column}: {axis} {name} vs {names[0]}",
            [(f"{column}@{name}", f"{column}@{names[0]}")],
            ("tasks", "delta_m"),
        )
        for name in names[1:]
        for column in columns
    ]


def print_results(workdir: str) -> None:
    """The table on the terminal, and where the page is."""
    path = os.path.join(workdir, "results.txt")
    if os.path.exists(path):
        read_results(workdir)  # a damaged one is not passed over, although its table is whole
        with open(path, encoding="utf-8") as file:
            show("\n" + file.read())
    page = os.path.join(workdir, "report.html")
    if os.path.exists(page):
        print(f"report: {page}")


def run_settings(workdir: str) -> dict[str, Any]:
    """{"manifest", "config"} of a workdir; {} for each that is missing."""
    content = {}
    for name in ("manifest", "config"):
        path = os.path.join(workdir, f"{name}.json")
        content[name] = {}
        if os.path.exists(path):
            with understood(path), open(path, encoding="utf-8") as file:
                content[name] = dict(json.load(file))
    return content


def read_curves(directory: str) -> dict[str, dict[str, list]]:
    """Series of metrics.jsonl by name, {"step": [...], "value": [...]} each; nothing for an external teacher."""
    series: dict[str, dict[str, list]] = {}
    for values in measure.read_log(directory):
        step = values.pop("step")
        for name, value in values.items():
            entry = series.setdefault(name, {"step": [], "value": []})
            entry["step"].append(step)
            entry["value"].append(value)
    return series


def picture_grid(
    settings: Any, tasks: Mapping[str, Task], task_name: str, predictors: Mapping[str, Callable], examples: int = 6
) -> dict[str, Any]:
    """Rows of pictures: input, truth and a prediction per column, on examples spread over the headline split.

    Args:
      settings: sets and splits.
      tasks: of the configuration.
      task_name: that is drawn.
      predictors: {column: images -> {task: label in network form}}.
      examples: rows.
    """
    task = tasks[task_name]
    encoder = build.encoder(settings.image, {task_name: task})
    split = build.split(settings, task_name, settings.eval_splits[0])
    spread = np.unique(np.linspace(0, len(split) - 1, _ROWS).round().astype(int))  # folders come sorted by class
    chosen = Listed(split, ids=[split.ids[i] for i in spread])
    batch = next(iter(eval_batches(chosen, encoder, batch_size=_ROWS)))
    labels: dict[str, Label] = {"truth": batch.labels[task_name]}
    for column, predict in predictors.items():
        labels[column] = jax.device_get(predict(batch.inputs["image"])[task_name])
    rows = []
    for i in np.unique(np.linspace(0, len(spread) - 1, examples).round().astype(int)):
        image = batch.inputs["image"][i]
        truth, *predicted = ({field: np.asarray(v)[i] for field, v in label.items()} for label in labels.values())
        picks = [truth, *(task.on_scale_of(pick, truth) for pick in predicted)]
        shown = whole_image(chosen[int(i)].image.shape[-3:-1], image.shape[:2], keep_aspect=settings.image.keep_aspect)
        rows.append([cut(picture, image, shown) for picture in (image, *(task.draw(image, pick) for pick in picks))])
    return {"columns": ["input", *labels], "rows": rows}


def predictor_of(directory: str) -> tuple[Callable, int]:
    """(images -> {task: label} of the network in a directory, its number of parameters)."""
    trained = networks.load(directory)
    predict = measure.predictor(trained.model, trained.tasks)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.variables["params"]))
    return functools.partial(predict, trained.variables), parameters


def median_time(call: Callable[[], Any]) -> float:
    """Seconds until all outputs are ready, after a first call."""
    jax.block_until_ready(call())
    times = []
    for _ in range(9):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def cost(networks_run: int, parameters: float, seconds: float, examples: int) -> dict[str, float]:
    """What it takes to have all tasks of an example answered, from the time for several; without parameters, if NaN."""
    rate = {"milliseconds": 1000 * seconds / examples, "images_per_second": examples / seconds}
    counted = {} if math.isnan(parameters) else {"parameters": parameters}
    return {"networks": networks_run, **counted, **rate}


def _scores(member, compared: Comparison, metrics, workdir: str, splits: Sequence[str]) -> list[Score]:
    found = []
    for one in compared.columns:
        if dict(one.axes) != member.axes:
            continue
        for task, answer in one.by_task.items():
            facts = jobs.facts(workdir, member.prefix + answer.job)
            for split in splits:
                with understood(os.path.join(workdir, member.prefix + answer.job, "done.json")):
                    value = float(facts[split][answer.task or task][metrics[task].name])
                found.append(Score(one.column.name, task, split, member.seed, value))
    return found


class _Guess(NamedTuple):
    score: dict[str, float]
    rows: dict[str, Any]


def _guesses(members, tasks: Mapping[str, Task]) -> list[tuple[Any, _Guess]]:
    """The constant guess of the first member of each seed: scores and rows on the headline split."""
    first: dict[int, Any] = {}
    for member in members:
        first.setdefault(member.seed, member)
    return [(member, _guess(member.settings, tasks)) for member in first.values()]


def _guess(settings, tasks: Mapping[str, Task]) -> _Guess:
    score, rows = {}, {}
    for name, task in tasks.items():
        encoder = build.encoder(settings.image, {name: task}, frames={"image": 1})
        train = build.split(settings, name, "train")
        # Spread over the whole set: folders come sorted by class.
        chosen = np.unique(np.linspace(0, len(train) - 1, _GUESS_LABELS).round().astype(int))
        labels = [encoder(train[int(i)], int(i), np.random.default_rng(int(i))).labels[name] for i in chosen]
        constant = {name: constant_guess(task, labels)}
        splits = build.splits(settings, settings.eval_splits[0], (name,))
        predict = functools.partial(repeated, constant)
        rows[name] = measure.measure_predictions(predict, {name: task}, encoder, splits)[name]
        score[name] = task.summarize(dict(rows[name]))[task.metrics[0].name]
    return _Guess(score, rows)


def _draws(member, compared: Comparison, tasks, guess: _Guess, workdir: str) -> Draws:
    """The scores of the guess and of every column of a member on resamples of the headline split's images."""
    split, draws = member.settings.eval_splits[0], {}

    def resample(column: str, name: str, rows: Mapping[str, Any]) -> None:
        counts = [len(next(iter(found.values()))) for found in (rows, guess.rows[name])]
        if counts[0] != counts[1]:  # the same draws would not be the same images
            raise UserError(
                f"{column}: scores of {name} are of {counts[0]:,} images of {split}, which has {counts[1]:,}"
            )
        draws.setdefault(column, {})[name] = resampled(tasks[name], rows, resamples=_RESAMPLES)

    for name in tasks:
        resample(GUESS.name, name, guess.rows[name])
    for one in compared.columns:
        if dict(one.axes) != member.axes:
            continue
        for name, answer in one.by_task.items():
            path = os.path.join(workdir, member.prefix + answer.job, f"rows-{split}.npz")
            resample(one.column.name, name, measure.load_rows(path)[answer.task or name])
    return draws


def _costs(members, compared: Comparison, tasks, workdir: str) -> dict[str, dict[str, float]]:
    """Per timed column of the first seed: networks, parameters, time per image to have every task answered."""
    member, costs = members[0], {}
    images = np.zeros((_ROWS, *member.settings.image.size, 3), np.uint8)
    external = _external_predictors(member.settings, tasks)
    for one in compared.columns:
        if not one.timed or dict(one.axes) != member.axes:
            continue
        parameters: float = 0
        seconds = 0.0
        directories = dict.fromkeys(answer.network or answer.job for answer in one.by_task.values())
        for where in directories:
            if where in external:
                predict, count = external[where], math.nan  # which nobody knows
            else:
                predict, count = predictor_of(os.path.join(workdir, member.prefix + where))
            parameters += count
            seconds += median_time(functools.partial(predict, images))
        costs[one.column.name] = cost(len(directories), parameters, seconds, len(images))
    return costs


def _external_predictors(settings, tasks) -> dict[str, Callable]:
    """{job of an external teacher: images -> {task: label}}."""
    teachers = external_teachers(settings, tasks)
    return {f"teachers/{name}": in_frame(teacher, settings.image.size).predict for name, teacher in teachers.items()}


def _by_stage(
    stages: Sequence[tuple[str, str]], workdir: str, key: str, combine: Callable, digits: int = 1
) -> dict[str, float]:
    """A fact of all finished jobs, combined by stage; work side by side adds up."""
    values: dict[str, list[Any]] = {}
    for stage, job in stages:
        if jobs.is_done(workdir, job) and key in (facts := jobs.facts(workdir, job)):
            values.setdefault(stage, []).append(facts[key])
    return {stage: round(float(combine(found)), digits) for stage, found in values.items()}


def _share(part: str, spent: Sequence[Mapping[str, float]]) -> float:
    """Of the time of several jobs."""
    return sum(one[part] for one in spent) / max(1e-9, sum(sum(one.values()) for one in spent))
