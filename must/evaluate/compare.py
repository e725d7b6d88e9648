"""Columns of scores against one another: relative gains, paired intervals over seeds, the table a person reads.

Numbers in, numbers or text out; nothing here knows a task, a model or a file. A column is one way to get the tasks
done ("teacher", "student", "scratch", ...), a score belongs to one task, one column and one seed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import Metric


def delta_m(scores: Mapping[str, float], baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]) -> float:
    """Mean over tasks of the relative gain over the baseline, %; better is positive (Maninis et al. 2019).

        100 / T * sum_t s_t (M_t - M_bt) / |M_bt|,  s_t = +1 where higher is better, else -1

    Args:
      scores: {task: value}.
      baseline: the same tasks.
      higher_is_better: {task: direction}.

    Returns:
      %; NaN where a baseline is 0 or a score is NaN, since no relative gain exists then.

    Raises:
      ValueError: no tasks, or other tasks on one side.
    """
    if not scores or set(scores) != set(baseline):
        raise ValueError(f"delta_m needs the same tasks on both sides, not {sorted(scores)} and {sorted(baseline)}")
    return sum(relative_gain(scores[task], baseline[task], higher_is_better[task]) for task in scores) / len(scores)


def relative_gain(score: float, baseline: float, higher_is_better: bool) -> float:
    """Gain of one score over its baseline, %; better is positive, NaN where the baseline is 0."""
    if baseline == 0:
        return math.nan
    return 100 * (score - baseline) / abs(baseline) * (1 if higher_is_better else -1)


def paired_t_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and t interval of paired differences, one per seed: mean -+ t_{n-1} s / sqrt(n).

    Returns:
      (mean, low, high); low and high are NaN for fewer than two differences.
    """
    from scipy.stats import t

    values = np.asarray(differences, np.float64)
    count = values.size
    mean = float(values.mean()) if count else math.nan
    if count < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf((1 + confidence) / 2, count - 1) * values.std(ddof=1) / math.sqrt(count))
    return mean, mean - half, mean + half


def results(
    recipe: str,
    seeds: Sequence[int],
    metrics: Mapping[str, Metric],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    seconds: Mapping[str, float] | None = None,
    images_per_second: Mapping[str, float] | None = None,
    subject: str = "student",
    reference: str = "teacher",
) -> dict[str, Any]:
    """Everything that a comparison says, as `results.json` holds it: JSON types only, an undefined number is None.

    Args:
      recipe: name.
      seeds: one run each; every list of scores is in this order.
      metrics: {task: headline Metric}.
      scores: {task: {column: [one value per seed]}}; a column may lack a task.
      costs: {column: {"networks", "parameters", "milliseconds" per image, "images_per_second"}}, any of them: what it
        takes to have all tasks answered.
      seconds: {stage: wall time}.
      images_per_second: {stage: throughput}.
      subject: the column that is compared with every other.
      reference: the column that every other is compared with.

    Returns:
      {"recipe", "seeds", "subject", "reference", "tasks", "delta_m", "delta_m_lead", "costs", "seconds",
      "images_per_second"};
      "tasks"[task] has "metric", "unit", "higher_is_better", "scores" {column: [per seed]}, "columns" {column:
      summary} and "gains" {"a_vs_b": {"mean", "ci95", "per_seed", "percent": summary}}, paired and better positive;
      "delta_m"["a_vs_b"] is a summary in % with "tasks", those that both columns have;
      "delta_m_lead"[c] is a summary of delta_m(subject vs reference) - delta_m(c vs reference). A summary is {"mean", "ci95":
      [low, high] or None for one seed, "per_seed"}.

    Raises:
      ValueError: a list of scores whose length is not the number of seeds.
    """
    for task, columns in scores.items():
        for column, values in columns.items():
            if len(values) != len(seeds):
                raise ValueError(f"{task}: column {column!r} has {len(values)} scores for {len(seeds)} seeds")
    columns = list(dict.fromkeys(column for task in scores for column in scores[task]))
    first = [c for c in (reference, subject) if c in columns]
    columns = first + [c for c in columns if c not in first]
    pairs = [(subject, other) for other in columns if other != subject and subject in columns]
    pairs += [(c, reference) for c in columns if c not in (subject, reference) and reference in columns]
    tasks = {task: _task_entry(metrics[task], scores[task], columns, pairs) for task in scores}
    delta = {(a, b): entry for a, b in pairs if (entry := _delta_entry(metrics, scores, a, b))}
    return {
        "recipe": recipe,
        "seeds": [int(seed) for seed in seeds],
        "subject": subject,
        "reference": reference,
        "tasks": tasks,
        "delta_m": {f"{a}_vs_{b}": entry for (a, b), entry in delta.items()},
        "delta_m_lead": {
            c: _lead(delta[subject, reference], delta[c, reference])
            for c in columns
            if c not in (subject, reference) and {(subject, reference), (c, reference)} <= set(delta)
        },
        "costs": {c: {k: _plain(v) for k, v in (costs or {})[c].items()} for c in columns if c in (costs or {})},
        "seconds": {stage: _plain(value) for stage, value in (seconds or {}).items()},
        "images_per_second": {stage: _plain(value) for stage, value in (images_per_second or {}).items()},
    }


def _task_entry(metric: Metric, scores: Mapping, columns: list[str], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    own = {column: [float(v) for v in scores[column]] for column in columns if column in scores}
    sign = 1 if metric.higher_is_better else -1
    gains = {}
    for a, b in pairs:
        if a in own and b in own:
            both = list(zip(own[a], own[b], strict=True))
            gains[f"{a}_vs_{b}"] = {
                **summary([sign * (x - y) for x, y in both]),
                "percent": summary([relative_gain(x, y, metric.higher_is_better) for x, y in both]),
            }
    return {
        "metric": metric.name,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "scores": {column: [_plain(v) for v in values] for column, values in own.items()},
        "columns": {column: summary(values) for column, values in own.items()},
        "gains": gains,
    }


def _delta_entry(metrics: Mapping[str, Metric], scores: Mapping, a: str, b: str) -> dict[str, Any] | None:
    shared = [task for task in scores if a in scores[task] and b in scores[task]]
    if not shared:
        return None
    direction = {task: metrics[task].higher_is_better for task in shared}
    per_seed = [
        delta_m({t: scores[t][a][i] for t in shared}, {t: scores[t][b][i] for t in shared}, direction)
        for i in range(len(scores[shared[0]][a]))
    ]
    return {**summary(per_seed), "tasks": shared}


def _lead(ahead: Mapping[str, Any], behind: Mapping[str, Any]) -> dict[str, Any]:
    """How far one column's gain over the reference is above another's, seed by seed."""
    pairs = zip(ahead["per_seed"], behind["per_seed"], strict=True)
    return summary([math.nan if None in pair else pair[0] - pair[1] for pair in pairs])


def summary(values: Sequence[float]) -> dict[str, Any]:
    """{"mean", "ci95": [low, high], "per_seed"} of one number per seed; what is undefined is None."""
    mean, low, high = paired_t_interval(values)
    interval = None if math.isnan(low) else [low, high]
    return {"mean": _plain(mean), "ci95": interval, "per_seed": [_plain(v) for v in values]}


def _plain(value: float) -> float | int | None:
    """A number that JSON knows."""
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else None


def table(results: Mapping[str, Any], *, width: int = 100) -> str:
    """The comparison as text: scores, costs, then paired gains and Δm; lines of at most `width` characters.

    Columns that do not fit beside each other follow in a further block.
    """
    tasks, seeds, subject = results["tasks"], results["seeds"], results["subject"]
    columns = list(dict.fromkeys(c for entry in tasks.values() for c in entry["columns"]))
    longest = max(map(len, tasks), default=0)
    labels = {t: f"{t.ljust(longest)}  {e['metric']}{_unit(e)}" for t, e in tasks.items()}
    many = len(seeds) > 1
    spread = f"mean over {len(seeds)} seeds ± half of its 95 % interval (t)" if many else "one seed: no interval"
    lines = [f"{results['recipe']}, {spread}", "* best of its row; ↑ higher, ↓ lower is better", ""]
    blocks = [
        {f"{labels[t]} {_arrow(e)}": {c: _score(e, c) for c in e["columns"]} for t, e in tasks.items()},
        _cost_rows(results["costs"]),
    ]
    lines += _blocks("", {c: c for c in columns}, blocks, width)
    others = {c: f"vs {c}" for c in columns if f"{subject}_vs_{c}" in results["delta_m"]}
    if others:
        pair = {c: f"{subject}_vs_{c}" for c in others}
        gains = {
            labels[t]: {c: _gain(e["gains"][pair[c]], _decimals(e)) for c in others if pair[c] in e["gains"]}
            for t, e in tasks.items()
        }
        mean_gains = {"Δm (%), mean relative gain": {c: _gain(results["delta_m"][pair[c]], 2) for c in others}}
        if results["delta_m_lead"]:
            lead = {c: _gain(results["delta_m_lead"][c], 2) for c in others if c in results["delta_m_lead"]}
            mean_gains[f"Δm vs {results['reference']}, lead (%)"] = lead
        title = f"gain of {subject}" + (", paired by seed" if many else "") + "; + is better"
        lines += ["", *_blocks(title, others, [gains, mean_gains], width)]
    lines += ["", *results["notes"]] if results.get("notes") else []
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _blocks(title: str, columns: dict[str, str], groups: list[dict[str, dict[str, str]]], width: int) -> list[str]:
    """Groups of rows {name: {column: text}} under the headings {column: heading}, ruled off from one another."""
    groups = [rows for rows in groups if rows]
    left = max(map(len, [title, *(name for rows in groups for name in rows)]))
    every_row = [row for rows in groups for row in rows.values()]
    cell = {c: 2 + max(map(len, [columns[c], *(row.get(c, "–") for row in every_row)])) for c in columns}
    blocks: list[list[str]] = [[]]
    for column in columns:
        if blocks[-1] and left + sum(cell[c] for c in blocks[-1]) + cell[column] > width:
            blocks.append([])
        blocks[-1].append(column)
    lines = []
    for shown in blocks:
        rule = "─" * (left + sum(cell[c] for c in shown))
        lines += [""] if lines else []
        lines += [title.ljust(left) + "".join(columns[c].rjust(cell[c]) for c in shown)]
        for rows in groups:
            lines += [rule]
            for name, row in rows.items():
                lines += [name.ljust(left) + "".join(row.get(c, "–").rjust(cell[c]) for c in shown)]
    return lines


def _cost_rows(costs: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, str]]:
    forms = {
        "networks": ("networks to run", 1, "{:,.0f}"),
        "parameters": ("parameters (million)", 1e-6, "{:,.2f}"),
        "milliseconds": ("time per image (ms)", 1, "{:,.2f}"),
        "images_per_second": ("images per second", 1, "{:,.0f}"),
    }
    rows = {
        name: {c: form.format(cost[key] * scale) for c, cost in costs.items() if cost.get(key) is not None}
        for key, (name, scale, form) in forms.items()
    }
    return {name: row for name, row in rows.items() if row}


def _unit(entry: Mapping[str, Any]) -> str:
    return f" ({entry['unit']})" if entry["unit"] else ""


def _arrow(entry: Mapping[str, Any]) -> str:
    return "↑" if entry["higher_is_better"] else "↓"


def _decimals(entry: Mapping[str, Any]) -> int:
    """Four significant digits of the task's largest score, between 1 and 4 decimals, the same for the whole row."""
    largest = max((abs(s["mean"]) for s in entry["columns"].values() if s["mean"] is not None), default=1) or 1
    return min(4, max(1, 3 - math.floor(math.log10(largest))))


def _score(entry: Mapping[str, Any], column: str) -> str:
    means = {c: s["mean"] for c, s in entry["columns"].items() if s["mean"] is not None}
    if column not in means:
        return "undefined"
    best = (max if entry["higher_is_better"] else min)(means.values())
    text = f"{'*' if means[column] == best else ''}{means[column]:.{_decimals(entry)}f}"
    interval = entry["columns"][column]["ci95"]
    return f"{text} ±{interval[1] - means[column]:.{_decimals(entry)}f}" if interval else text


def _gain(gain: Mapping[str, Any], decimals: int) -> str:
    if gain["mean"] is None:
        return "undefined"
    text = f"{gain['mean']:+.{decimals}f}"
    return f"{text} ±{gain['ci95'][1] - gain['mean']:.{decimals}f}" if gain["ci95"] else text


def along_budgets(recipe: str, parts: Mapping[int, Mapping[str, Any]], *, reference: str) -> dict[str, Any]:
    """The results of one comparison at several budgets of labels, as one.

    Args:
      recipe: name.
      parts: {budget: what `results` returned}, the same tasks and columns in all of them.
      reference: the column that every other is compared with.

    Returns:
      {"recipe", "seeds", "budgets", "reference", "tasks", "seconds", "by_budget"}; "by_budget" holds the parts; "tasks"[task] has "metric", "unit",
      "higher_is_better", "columns" {column: {budget: summary}} and "gains" {column: {budget: summary with "p", of a
      paired t test}}, paired by seed and better positive. Budgets are text there, as JSON wants its keys.
    """
    first = next(iter(parts.values()))
    tasks = {}
    for task, entry in first["tasks"].items():
        scores = {c: {str(b): part["tasks"][task]["scores"][c] for b, part in parts.items()} for c in entry["columns"]}
        sign = 1 if entry["higher_is_better"] else -1
        gains = {
            column: {
                budget: _tested([sign * (x - y) for x, y in zip(values, scores[reference][budget], strict=True)])
                for budget, values in by_budget.items()
            }
            for column, by_budget in scores.items()
            if column != reference
        }
        tasks[task] = {key: entry[key] for key in ("metric", "unit", "higher_is_better")}
        tasks[task]["columns"] = {c: {b: summary(v) for b, v in by_budget.items()} for c, by_budget in scores.items()}
        tasks[task]["gains"] = gains
    stages = dict.fromkeys(stage for part in parts.values() for stage in part["seconds"])
    return {
        "recipe": recipe,
        "seeds": first["seeds"],
        "budgets": list(parts),
        "reference": reference,
        "tasks": tasks,
        "seconds": {stage: sum(part["seconds"].get(stage, 0.0) for part in parts.values()) for stage in stages},
        "by_budget": {str(budget): dict(part) for budget, part in parts.items()},
    }


def _tested(differences: Sequence[float]) -> dict[str, Any]:
    """A summary with "p", the two-sided paired t test's; None for fewer than two seeds."""
    from scipy.stats import ttest_1samp

    p = float(ttest_1samp(differences, 0.0).pvalue) if len(differences) > 1 else math.nan
    return {**summary(differences), "p": _plain(p)}


def budget_table(results: Mapping[str, Any]) -> str:
    """The same as text: scores by budget, then gains over the reference."""
    many, reference = len(results["seeds"]) > 1, results["reference"]
    spread = f"mean over {len(results['seeds'])} seeds ± half of its 95 % interval (t)" if many else "one seed: no interval"
    lines = [f"{results['recipe']}, {spread}", "* best of its column but for oracles; p of a paired t test", ""]
    heads = {str(b): f"{b:,} labels" for b in results["budgets"]}
    for task, entry in results["tasks"].items():
        places = _decimals({"columns": {str(i): s for i, by in enumerate(entry["columns"].values()) for s in by.values()}})
        able = {c: by for c, by in entry["columns"].items() if not c.startswith("oracle")}
        best = {b: (max if entry["higher_is_better"] else min)(able, key=lambda c: able[c][b]["mean"]) for b in heads}  # noqa: B023
        rows = {
            c: {b: ("*" if best[b] == c else "") + _gain(s, places).lstrip("+") for b, s in by.items()}
            for c, by in entry["columns"].items()
        }
        gains = {c: {b: _gain(s, places) + _p_text(s) for b, s in by.items()} for c, by in entry["gains"].items()}
        lines += _blocks(f"{task}, {entry['metric']}{_unit(entry)} {_arrow(entry)}", heads, [rows], 100)
        lines += ["", *_blocks(f"gain over {reference}" + (", paired by seed" if many else ""), heads, [gains], 100), ""]
    return "\n".join(line.rstrip() for line in lines)


def _p_text(gain: Mapping[str, Any]) -> str:
    return "" if gain["p"] is None else f" (p {gain['p']:.3f})" if gain["p"] >= 0.001 else " (p < .001)"
