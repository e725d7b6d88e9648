"""The headline of a comparison in words, losses included."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any


def findings(results: Mapping[str, Any], guess: str) -> list[str]:
    """Sentences: the first contrast task by task, and which columns are no better than the constant guess.

    Args:
      results: as in `results.json`.
      guess: name of the column of the constant guess.
    """
    split = (results["splits"] or [""])[0]
    return [*_first_contrast(results, split), *_no_better(results, split, guess)]


def _first_contrast(results: Mapping[str, Any], split: str) -> list[str]:
    mine = [
        one
        for one in results["contrasts"]
        if one["split"] == split and one["task"] in results["tasks"] and one["subject"] is not None
    ]
    first = [one for one in mine if one["name"] == mine[0]["name"]]
    if len(first) < 2:
        return []
    told = [one for one in first if one["mean"] is not None]
    sides = {
        "ahead on": [_marked(one) for one in told if one["mean"] > 0],
        "behind on": [_marked(one) for one in told if one["mean"] < 0],
    }
    words = [f"{side} {', '.join(tasks)}" for side, tasks in sides.items() if tasks]
    words += ["* its interval contains 0"] if any("*" in word for word in words) else []
    return [f"{first[0]['name']}: {'; '.join(words) or 'equal on every task'}."]


def _marked(one: Mapping[str, Any]) -> str:
    open_ = one["ci95"] and one["ci95"][0] <= 0 <= one["ci95"][1]
    return one["task"] + ("*" if open_ else "")


def _no_better(results: Mapping[str, Any], split: str, guess: str) -> list[str]:
    lost: dict[str, list[str]] = {}
    columns = results["columns"]
    blind = columns[guess]["scores"].get(split, {}) if guess in columns else {}
    for name, column in columns.items():
        if name == guess or column["control"]:
            continue
        scores = column["scores"].get(split, {})
        tasks = [
            task
            for task, entry in results["tasks"].items()
            if task in scores and task in blind and not _better(scores[task], blind[task], entry["higher_is_better"])
        ]
        if tasks:
            lost.setdefault(", ".join(tasks), []).append(_called(results, column))
    lines = []
    for tasks, names in lost.items():
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        lines.append(f"No better than a constant guess on {tasks}: {', '.join(names[:6])}{more}.")
    return lines


def _called(results: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    """A column's label, with what tells it from those of the same label beside it, such as a budget of labels."""
    settings = column["settings"]
    words = [
        dict(map(tuple, axis["values"])).get(settings[name], "")
        for name, axis in results["axes"].items()
        if axis["across"] and name in settings
    ]
    words = list(filter(None, words))
    return f"{column['label']} ({', '.join(words)})" if words else column["label"]


def _better(own: Sequence[float | None], other: Sequence[float | None], higher: bool) -> bool:
    if any(value is None for value in (*own, *other)):  # a score that is not defined
        return False
    gain = fmean(own) - fmean(other)  # type: ignore[arg-type]
    return gain > 0 if higher else gain < 0
