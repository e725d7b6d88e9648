"""How a comparison is written for a terminal: rows of figures under headings, signs, decimals.

Text only; what is compared, and how, is decided elsewhere in this room.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def spread(seeds: Sequence[int]) -> str:
    """What stands behind a ± sign, or why there is none."""
    return (
        f"mean over {len(seeds)} seeds ± half of its 95 % interval (t)" if len(seeds) > 1 else "one seed: no interval"
    )


def blocks(title: str, columns: dict[str, str], groups: list[dict[str, dict[str, str]]], width: int) -> list[str]:
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


def unit(entry: Mapping[str, Any]) -> str:
    """The unit of a task's metric in brackets, if it has one."""
    return f" ({entry['unit']})" if entry["unit"] else ""


def arrow(entry: Mapping[str, Any]) -> str:
    """Which direction is better."""
    return "↑" if entry["higher_is_better"] else "↓"


def decimals(entry: Mapping[str, Any]) -> int:
    """Four significant digits of the task's largest score, between 1 and 4 decimals, the same for the whole row."""
    largest = max((abs(s["mean"]) for s in entry["columns"].values() if s["mean"] is not None), default=1) or 1
    return min(4, max(1, 3 - math.floor(math.log10(largest))))


def score(entry: Mapping[str, Any], column: str) -> str:
    """A column's mean and half of its interval, starred where it is the best of its task."""
    means = {c: s["mean"] for c, s in entry["columns"].items() if s["mean"] is not None}
    if column not in means:
        return "undefined"
    best = (max if entry["higher_is_better"] else min)(means.values())
    return ("*" if means[column] == best else "") + figures(entry["columns"][column], decimals(entry))


def figures(summary: Mapping[str, Any], places: int, *, signed: bool = False) -> str:
    """Mean and half of its interval with as many decimals as there are places."""
    if summary["mean"] is None:
        return "undefined"
    text = f"{summary['mean']:{'+' if signed else ''}.{places}f}"
    return f"{text} ±{summary['ci95'][1] - summary['mean']:.{places}f}" if summary["ci95"] else text


def p_text(summary: Mapping[str, Any]) -> str:
    """The p of a test in brackets, if there is one."""
    p = summary["p"]
    return "" if p is None else f" (p {p:.3f})" if p >= 0.001 else " (p < .001)"
