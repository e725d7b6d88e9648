"""Columns of scores against one another: relative gains, paired intervals over seeds, the table a person reads.

Numbers in, numbers or text out; nothing here knows a task, a model or a file. A column is one way to get the tasks
done ("teacher", "student", "scratch", ...), a score belongs to one task, one column and one seed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import Metric
from must.evaluate import text


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
        "costs": {c: {k: plain(v) for k, v in (costs or {})[c].items()} for c in columns if c in (costs or {})},
        "seconds": {stage: plain(value) for stage, value in (seconds or {}).items()},
        "images_per_second": {stage: plain(value) for stage, value in (images_per_second or {}).items()},
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
        "scores": {column: [plain(v) for v in values] for column, values in own.items()},
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
    return {"mean": plain(mean), "ci95": interval, "per_seed": [plain(v) for v in values]}


def tested(differences: Sequence[float]) -> dict[str, Any]:
    """A summary of paired differences with "p", the two-sided t test's; None for fewer than two seeds."""
    from scipy.stats import ttest_1samp

    p = float(ttest_1samp(differences, 0.0).pvalue) if len(differences) > 1 else math.nan
    return {**summary(differences), "p": plain(p)}


def plain(value: float) -> float | int | None:
    """A number that JSON knows; None for one that is not finite."""
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
    labels = {t: f"{t.ljust(longest)}  {e['metric']}{text.unit(e)}" for t, e in tasks.items()}
    many = len(seeds) > 1
    lines = [f"{results['recipe']}, {text.spread(seeds)}", "* best of its row; ↑ higher, ↓ lower is better", ""]
    blocks = [
        {f"{labels[t]} {text.arrow(e)}": {c: text.score(e, c) for c in e["columns"]} for t, e in tasks.items()},
        _cost_rows(results["costs"]),
    ]
    lines += text.blocks("", {c: c for c in columns}, blocks, width)
    others = {c: f"vs {c}" for c in columns if f"{subject}_vs_{c}" in results["delta_m"]}
    if others:
        pair = {c: f"{subject}_vs_{c}" for c in others}
        gains = {
            labels[t]: {
                c: text.figures(e["gains"][pair[c]], text.decimals(e), signed=True)
                for c in others
                if pair[c] in e["gains"]
            }
            for t, e in tasks.items()
        }
        delta = {c: text.figures(results["delta_m"][pair[c]], 2, signed=True) for c in others}
        mean_gains = {"Δm (%), mean relative gain": delta}
        if results["delta_m_lead"]:
            lead = {
                c: text.figures(results["delta_m_lead"][c], 2, signed=True)
                for c in others
                if c in results["delta_m_lead"]
            }
            mean_gains[f"Δm vs {results['reference']}, lead (%)"] = lead
        title = f"gain of {subject}" + (", paired by seed" if many else "") + "; + is better"
        lines += ["", *text.blocks(title, others, [gains, mean_gains], width)]
    lines += ["", *results["notes"]] if results.get("notes") else []
    return "\n".join(line.rstrip() for line in lines) + "\n"


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
