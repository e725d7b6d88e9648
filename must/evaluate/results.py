"""The comparison of an experiment's columns: scores in, `results.json` out, in one schema for every recipe.

A column is one way to get the tasks done: a teacher, a student, an arm, at one label budget. Whatever distinguishes
columns (a budget, a split, an axis of a grid) is a setting. A contrast compares columns, paired by seed. Nothing here
knows a task, a model or a file.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from must.core.types import Metric, UserError
from must.evaluate.findings import findings
from must.evaluate.statistics import plain, relative_gain, tested

SCHEMA = "must.results/2"
GUESS = "guess"  # the column of the best constant prediction
DELTA_M, MEAN = "delta_m", "mean"  # contrasts over all tasks: the mean relative gain, the mean of one shared metric


class Column(NamedTuple):
    """One way to get the tasks done.

    Attributes:
      name: unique.
      settings: {axis: value}, what distinguishes it.
      label: how tables call it; the name by default.
      description: what it is, in a few words.
      control: it is expected to lose.
    """

    name: str
    settings: Mapping[str, Any] = {}
    label: str = ""
    description: str = ""
    control: bool = False


class Axis(NamedTuple):
    """A setting that distinguishes columns.

    Attributes:
      name: key in `Column.settings`.
      label: its name in tables.
      values: {value: label}, in order.
      across: its values stand beside each other in a table, not below each other.
    """

    name: str
    label: str
    values: Mapping[Any, str]
    across: bool = False


class Score(NamedTuple):
    """One figure: the headline metric of a column for a task on a split with a seed."""

    column: str
    task: str
    split: str
    seed: int
    value: float


class Contrast(NamedTuple):
    """A comparison of columns, subject minus reference, better positive.

    Attributes:
      name: unique.
      pairs: (subject, reference); several pairs are pooled into their mean, seed by seed. A reference may be
        {task: column}, one column per task.
      measures: of "tasks" (a difference per task, in its unit), DELTA_M (mean relative gain, %) and MEAN (of a metric
        that all tasks share).
      baseline: the column over which relative gains are taken; the reference by default.
      expected: "above" or "below", what was expected before the run.
      labels: {(subject, reference): words} for the single pairs.
    """

    name: str
    pairs: Sequence[tuple[str, Any]]
    measures: Sequence[str] = ("tasks",)
    baseline: str = ""
    expected: str | None = None
    labels: Mapping[Any, str] = {}


def compare(
    recipe: str,
    metrics: Mapping[str, Metric],
    scores: Iterable[Score],
    columns: Sequence[Column],
    contrasts: Sequence[Contrast],
    *,
    title: str = "",
    axes: Sequence[Axis] = (),
    mean_label: str = "",
    costs: Mapping[str, Mapping[str, float]] | None = None,
    seconds: Mapping[str, float] | None = None,
    images_per_second: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything that a comparison measures, in JSON types; a number that is not defined is None.

    Args:
      recipe: name.
      metrics: {task: headline metric}.
      scores: every column has one score per seed for each of its tasks; a column may lack tasks.
      columns: in the order of tables.
      contrasts: of the columns.
      title: of tables and pages.
      axes: settings that distinguish the columns.
      mean_label: name of the mean over tasks, for tasks that share a metric; empty: there is no such mean.
      costs: {column: {"networks", "parameters", "milliseconds" per image, "images_per_second"}}, any of them.
      seconds: {stage: wall time}.
      images_per_second: {stage: throughput}.
      notes: sentences that a reader needs.

    Returns:
      The dictionary that `results.json` holds; its keys are described in the documentation, "Results".

    Raises:
      ValueError: a score of an unknown column or task, a seed without a score, a mean over tasks of different metrics,
        a contrast of unknown columns, or two contrasts of one name.
    """
    _check(metrics, contrasts, mean_label)
    table, seeds = _table(metrics, scores, columns)
    splits = list(dict.fromkeys(split for by_split in table.values() for split in by_split))
    entries = [
        entry
        for split in splits
        for contrast in contrasts
        for entry in entries_of(contrast, split, metrics, table, mean_label)
    ]
    results = {
        "schema": SCHEMA,
        "recipe": recipe,
        "title": title,
        "seeds": seeds,
        "splits": splits,
        "tasks": {
            task: {"metric": metric.name, "unit": metric.unit, "higher_is_better": metric.higher_is_better}
            for task, metric in metrics.items()
        },
        "mean_task": {"label": mean_label} if mean_label else None,
        "columns": {one.name: _column(one, table[one.name]) for one in columns if one.name in table},
        "axes": {
            axis.name: {"label": axis.label, "values": [[*pair] for pair in axis.values.items()], "across": axis.across}
            for axis in axes
        },
        "contrasts": entries,
        "costs": {name: {key: plain(value) for key, value in cost.items()} for name, cost in (costs or {}).items()},
        "seconds": {stage: plain(value) for stage, value in (seconds or {}).items()},
        "images_per_second": {stage: plain(value) for stage, value in (images_per_second or {}).items()},
    }
    return results | {"notes": [*findings(results, GUESS), *notes]}


def _check(metrics: Mapping[str, Metric], contrasts: Sequence[Contrast], mean_label: str) -> None:
    if mean_label and len(set(metrics.values())) != 1:
        found = sorted({metric.name for metric in metrics.values()})
        raise ValueError(f"a mean over tasks needs one metric, not {found}")
    names = [contrast.name for contrast in contrasts]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two contrasts are called {repeated[0]!r}")


def _column(column: Column, by_split: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """A column's entry in `results.json`."""
    scores = {
        split: {task: [plain(value) for value in values] for task, values in by_task.items()}
        for split, by_task in by_split.items()
    }
    return {
        "label": column.label or column.name,
        "description": column.description,
        "control": column.control,
        "settings": dict(column.settings),
        "scores": scores,
    }


def entry(
    name: str, subject: Any, reference: Any, task: str, split: str, statistics: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """One contrast as `results.json` holds it, with the defaults of everything that is not given."""
    return {
        "name": name,
        "subject": subject,
        "reference": reference,
        "task": task,
        "split": split,
        "relative": task == DELTA_M,
        "unit": "%" if task == DELTA_M else "",
        "interval_over": "seeds" if statistics["ci95"] else None,
        "p": None,
        "pairs": [],
        "expected": None,
        "holds": None,
        **statistics,
        **more,
    }


def holds(expected: str | None, interval: Sequence[float] | None) -> bool | None:
    """Whether an expected sign was measured: None while the interval contains 0, or without an expectation or
    interval."""
    if expected is None or interval is None or interval[0] <= 0 <= interval[1]:
        return None
    return (interval[0] > 0) == (expected == "above")


def _table(metrics, scores: Iterable[Score], columns: Sequence[Column]):
    """{column: {split: {task: [per seed]}}} and the seeds."""
    scores = list(scores)
    seeds = sorted({score.seed for score in scores})
    known = {column.name for column in columns}
    cells: dict[tuple, dict[int, float]] = {}
    for score in scores:
        if score.column not in known or score.task not in metrics:
            raise ValueError(f"a score of an unknown column or task: {score}")
        cells.setdefault((score.column, score.split, score.task), {})[score.seed] = float(score.value)
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (column, split, task), by_seed in cells.items():
        if missing := [seed for seed in seeds if seed not in by_seed]:
            raise ValueError(f"{column}: no score of {task} on {split} for seed {missing[0]}")
        table.setdefault(column, {}).setdefault(split, {})[task] = [by_seed[seed] for seed in seeds]
    return table, seeds


def entries_of(contrast: Contrast, split: str, metrics, table, mean_label: str) -> list[dict[str, Any]]:
    """The entries of one contrast on one split: one per task, mean and Δm that it covers.

    Args:
      contrast: of columns of the table.
      split: of the scores.
      metrics: {task: headline metric}.
      table: {column: {split: {task: [per seed]}}}.
      mean_label: name of the mean over tasks; empty: there is no such mean.
    """
    for subject, reference in contrast.pairs:
        ends = reference.values() if isinstance(reference, Mapping) else [reference]
        for name in (subject, *ends, *filter(None, [contrast.baseline])):
            if name not in table:
                raise ValueError(f"{contrast.name}: no column {name!r}; columns: {', '.join(table)}")
    entries = []
    per_task: dict[str, list] = {}
    for task in metrics:
        singles = []
        for subject, reference in contrast.pairs:
            a, b = _of(table, subject, split, task), _of(table, reference, split, task)
            if a is not None and b is not None:
                sign = 1 if metrics[task].higher_is_better else -1
                singles.append((subject, reference, [sign * (x - y) for x, y in zip(a, b, strict=True)]))
        if singles:
            per_task[task] = singles
    if "tasks" in contrast.measures:
        entries += [_pooled(contrast, task, split, singles, metrics[task].unit) for task, singles in per_task.items()]
    if MEAN in contrast.measures and mean_label and per_task:
        over = []
        for pair in contrast.pairs:  # of the tasks that every pair has, so that all means are of the same
            rows = [
                v
                for singles in per_task.values()
                if len(singles) == len(contrast.pairs)
                for *p, v in singles
                if tuple(p) == tuple(pair)
            ]
            if rows:
                over.append((*pair, [_mean(values) for values in zip(*rows, strict=True)]))
        if over:
            entries.append(_pooled(contrast, MEAN, split, over, next(iter(metrics.values())).unit))
    if DELTA_M in contrast.measures and per_task:
        over = [
            (subject, reference, values)
            for subject, reference in contrast.pairs
            if (values := _relative(contrast, subject, reference, split, metrics, table)) is not None
        ]
        if over:
            entries.append(_pooled(contrast, DELTA_M, split, over, "%"))
    return entries


def _of(table, column: Any, split: str, task: str) -> list[float] | None:
    name = column.get(task) if isinstance(column, Mapping) else column
    return table[name].get(split, {}).get(task) if name else None


def _relative(contrast: Contrast, subject, reference, split, metrics, table) -> list[float] | None:
    """Mean relative gain over the tasks that all of them have, seed by seed, %."""
    gains = []
    for task, metric in metrics.items():
        a, b = _of(table, subject, split, task), _of(table, reference, split, task)
        base = _of(table, contrast.baseline or reference, split, task)
        if a is None or b is None or base is None:
            continue
        up = metric.higher_is_better
        gains.append([relative_gain(x, z, up) - relative_gain(y, z, up) for x, y, z in zip(a, b, base, strict=True)])
    return [_mean(values) for values in zip(*gains, strict=True)] if gains else None


def _pooled(contrast: Contrast, task: str, split: str, singles: list, unit: str) -> dict[str, Any]:
    """One entry of a contrast; several pairs as their mean, with the pairs below it."""
    described = [
        {
            **entry(
                contrast.labels.get((subject, str(reference)), ""), subject, reference, task, split, tested(values)
            ),
            "unit": unit,
        }
        for subject, reference, values in singles
    ]
    statistics = tested([_mean(values) for values in zip(*(single[2] for single in singles), strict=True)])
    subject, reference = singles[0][:2] if len(singles) == 1 else (None, None)
    more = {
        "unit": unit,
        "pairs": described if len(singles) > 1 else [],
        "expected": contrast.expected,
        "holds": holds(contrast.expected, statistics["ci95"]),
    }
    return entry(contrast.name, subject, reference, task, split, statistics, **more)


def columns_of(contrast: Contrast) -> set[str]:
    """The columns that a contrast needs."""
    sides = [side for pair in contrast.pairs for side in pair] + [contrast.baseline or ""]
    return {name for side in sides for name in (side.values() if isinstance(side, Mapping) else [side]) if name}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def pool(parts: Mapping[str, Mapping[str, Any]], *, by: str = "") -> tuple[list[Score], list[Column], list[Axis]]:
    """Scores and columns of several results as one: more seeds of the same columns, or a further axis.

    Args:
      parts: {name: results}, of one recipe with the same tasks.
      by: name of the axis whose values are the names of the parts; empty: the parts are further seeds.

    Raises:
      UserError: other schemas, recipes, tasks or splits; with `by` other seeds, without it other columns or a seed in
        two parts.
    """
    first_name, first = next(iter(parts.items()))
    scores, columns, owners = [], {}, {}
    for name, results in parts.items():
        for key in ("schema", "recipe", "tasks"):
            if results.get(key) != first.get(key):
                raise UserError(f"{name}: its {key} is not that of {first_name}; compare runs of one recipe and tasks")
        for key in ("seeds", "splits") if by else ("splits", "columns"):
            if list(results[key]) != list(first[key]):
                raise UserError(
                    f"{name}: its {key} {', '.join(map(str, results[key]))} are not those of {first_name}, "
                    f"{', '.join(map(str, first[key]))}; compare workdirs with equal {key}"
                )
        for seed in results["seeds"]:
            if not by and owners.setdefault(seed, name) != name:
                raise UserError(f"{name}: seed {seed} is in {owners[seed]} too, and the configurations are the same")
        for column, facts in results["columns"].items():
            label, settings = facts["label"], dict(facts["settings"])
            if by:
                column, label, settings = f"{column}@{name}", label, {**settings, by: name}
            columns.setdefault(column, Column(column, settings, label, facts["description"], facts["control"]))
            scores += [
                Score(column, task, split, seed, value if value is not None else math.nan)
                for split, by_task in facts["scores"].items()
                for task, values in by_task.items()
                for seed, value in zip(results["seeds"], values, strict=True)
            ]
    axes = [
        Axis(name, axis["label"], {_key(value): words for value, words in axis["values"]}, axis["across"])
        for name, axis in first["axes"].items()
    ]
    axes += [Axis(by, by, {name: name for name in parts}, True)] if by else []
    return scores, list(columns.values()), axes


def contrasts_of(results: Mapping[str, Any]) -> list[Contrast]:
    """The contrasts of a finished comparison, to be computed again on more scores."""
    gathered: dict[str, dict[str, Any]] = {}
    for item in results["contrasts"]:
        if item["reference"] == GUESS:
            continue
        singles = item["pairs"] or [item]
        contrast = gathered.setdefault(
            item["name"],
            {
                "pairs": [(single["subject"], single["reference"]) for single in singles],
                "measures": {},
                "expected": item["expected"],
                "labels": {(s["subject"], str(s["reference"])): s["name"] for s in item["pairs"]},
            },
        )
        contrast["measures"][item["task"] if item["task"] in (DELTA_M, MEAN) else "tasks"] = True
    return [Contrast(name, **{**fields, "measures": tuple(fields["measures"])}) for name, fields in gathered.items()]


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
