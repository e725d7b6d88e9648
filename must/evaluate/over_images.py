"""Intervals over the images of one seed, from scores on resamples of them (paired bootstrap, Efron 1979)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from must.core.types import Metric
from must.evaluate.findings import findings
from must.evaluate.results import GUESS, Contrast, columns_of, entries_of, holds
from must.evaluate.statistics import percentile_interval

# {column: {task: the headline metric on R resamples of the images}}, the same resamples for all columns; see
# `must.evaluate.evaluate.resampled`.
Draws = Mapping[str, Mapping[str, Sequence[float]]]


def over_images(
    results: Mapping[str, Any], metrics: Mapping[str, Metric], contrasts: Sequence[Contrast], draws: Draws
) -> dict[str, Any]:
    """The results with gains over the constant guess and, where there is one seed alone, intervals of contrasts.

    Args:
      results: as `must.evaluate.results.compare` returns them.
      metrics: {task: headline metric}.
      contrasts: that were compared.
      draws: of the first seed on the first split.
    """
    split, mean = results["splits"][0], (results["mean_task"] or {}).get("label", "")
    drawn = {column: {split: by_task} for column, by_task in draws.items()}
    entries = list(results["contrasts"])
    if len(results["seeds"]) == 1:
        known = [contrast for contrast in contrasts if columns_of(contrast) <= set(drawn)]
        entries = _with_intervals(entries, _entries(known, split, metrics, drawn, mean))
    gains = [Contrast(f"{name} vs {GUESS}", [(name, GUESS)]) for name in drawn if name != GUESS]
    first = {name: {split: _first(results["columns"][name]["scores"][split])} for name in drawn}
    own, over = (_entries(gains, split, metrics, table, "") for table in (first, drawn))
    made = {**results, "contrasts": [*entries, *_with_intervals(own, over)]}
    told = len(findings(results, GUESS))
    return made | {"notes": [*findings(made, GUESS), *results["notes"][told:]]}


def _entries(contrasts: Sequence[Contrast], split: str, metrics, table, mean: str) -> list[dict[str, Any]]:
    return [one for contrast in contrasts for one in entries_of(contrast, split, metrics, table, mean)]


def _first(scores: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    """Of the first seed, {task: [score]}."""
    return {task: [math.nan if values[0] is None else values[0]] for task, values in scores.items()}


def _with_intervals(entries: Sequence[dict[str, Any]], drawn: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of one seed with intervals over images, from the same entries of its resamples."""
    values = {(one["name"], one["task"], one["split"]): one for one in drawn}
    made = []
    for one in entries:
        resamples = values.get((one["name"], one["task"], one["split"]))
        if resamples:
            one = one | _interval(resamples)
            one["holds"] = holds(one["expected"], one["ci95"])
            one["pairs"] = [own | _interval(other) for own, other in zip(one["pairs"], resamples["pairs"], strict=True)]
        made.append(one)
    return made


def _interval(resamples: Mapping[str, Any]) -> dict[str, Any]:
    ends = percentile_interval([math.nan if value is None else value for value in resamples["per_seed"]])
    return {} if math.isnan(ends[0]) else {"ci95": list(ends), "interval_over": "images"}
