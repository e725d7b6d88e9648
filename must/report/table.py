"""The tables of a comparison, laid out once from `results.json` (schema "must.results/2") and written as plain text.

`must.report.page` writes the same grids as HTML. How a figure is rounded and signed is decided here.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

DELTA_M, MEAN = "delta_m", "mean"  # contrasts over all tasks
GUESS = "guess"
_COSTS = {
    "networks": ("networks", 1, "{:,.0f}"),
    "parameters": ("million parameters", 1e-6, "{:,.2f}"),
    "milliseconds": ("ms per example", 1, "{:,.2f}"),
    "images_per_second": ("examples per s", 1, "{:,.0f}"),
}
# Of the time of training, and the use of the device.
SHARES = {
    "init": "start",
    "compile": "compilation",
    "data_wait": "data wait",
    "step": "steps",
    "save": "saves",
    "evaluate": "evaluation",
    "lost": "lost",
    "mfu": "MFU",
}


class Cell(NamedTuple):
    """One figure: its text, and what a chart needs of it.

    Attributes:
      text: as tables write it.
      mean: None where it is undefined.
      ci95: (low, high), or None.
      best: of its table column.
    """

    text: str
    mean: float | None = None
    ci95: Sequence[float] | None = None
    best: bool = False


class Row(NamedTuple):
    """A row of a grid; `kind` is "", "control", "pair" (one of those pooled in the row above) or "sum"."""

    label: str
    cells: list[Cell | None]
    kind: str = ""
    hint: str = ""


class Grid(NamedTuple):
    """A table.

    Attributes:
      title: of the table.
      heads: two lines per table column; the first is shared by neighbors with the same text.
      groups: (heading or "", rows), ruled off from one another.
      notes: lines below it.
    """

    title: str
    heads: list[tuple[str, str]]
    groups: list[tuple[str, list[Row]]]
    notes: Sequence[str] = ()


def table(results: Mapping[str, Any], width: int = 100) -> str:
    """A comparison as plain text: scores on every split, contrasts, costs, notes.

    Args:
      results: what `results.json` holds.
      width: of the lines, characters; columns that do not fit follow in a further block.
    """
    lines = [f"{results.get('title') or results['recipe']}: {spread(results)}"]
    lines.append("* best of its column; ↑ higher, ↓ lower is better")
    for grid in grids(results):
        lines += ["", *_text(grid, width)]
    if results["notes"]:
        lines += ["", *(line for note in results["notes"] for line in textwrap.wrap(note, width))]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def show(text: str) -> None:
    """Prints a table; on a terminal the best figures are bold and rules are dim."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    styled = Text(text)
    styled.highlight_regex(r"(?<= )\*[^ ]+( ±[^ ]+)?", "bold")
    styled.highlight_regex(r"─+", "dim")
    console.print(styled)


def grids(results: Mapping[str, Any]) -> list[Grid]:
    """All tables of a comparison, those without content left out."""
    found = []
    for split in splits(results):
        found += [score_grid(results, split), contrast_grid(results, split), guess_grid(results, split)]
    return [grid for grid in (*found, cost_grid(results), time_grid(results)) if grid.groups]


def splits(results: Mapping[str, Any]) -> list[str]:
    """The evaluation splits, the headline one first."""
    scored = dict.fromkeys(split for column in results["columns"].values() for split in column["scores"])
    return list(results.get("splits") or scored)


def spread(results: Mapping[str, Any]) -> str:
    """What stands behind a ± sign, or why there is none."""
    count = len(results["seeds"])
    if count == 2:
        return "mean over 2 seeds (and each of them); ± of differences is half of their 95% t interval"
    if count > 1:
        return f"mean over {count} seeds ± half of its 95% t interval"
    known = any(bootstrapped(results, split) for split in splits(results))
    return "one seed; intervals of differences over its test images" if known else "one seed, so no intervals"


def bootstrapped(results: Mapping[str, Any], split: str) -> bool:
    """Whether contrasts on a split have intervals over the images of one seed."""
    mine = [c for c in results["contrasts"] if c["split"] == split and c["reference"] != GUESS]
    return any(c["interval_over"] == "images" for c in mine)


def metric(entry: Mapping[str, Any]) -> str:
    """A task's headline metric with its unit and the better direction."""
    unit = f" ({entry['unit']})" if entry["unit"] else ""
    return f"{entry['metric']}{unit} {'↑' if entry['higher_is_better'] else '↓'}"


def figure(
    mean: float | None, ci95: Sequence[float] | None, places: int, *, signed: bool = False, ends: bool = False
) -> str:
    """A mean with half of its interval, or with its `ends`, between which the mean need not be in the middle."""
    if mean is None:
        return "undefined"
    text = f"{mean:{'+' if signed else ''}.{places}f}"
    if ci95 and ends:
        return f"{text} [{ci95[0]:.{places}f}, {ci95[1]:.{places}f}]"
    return f"{text} ±{(ci95[1] - ci95[0]) / 2:.{places}f}" if ci95 else text


def summary(values: Sequence[float | None]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean and 95% t interval of one number per seed; None for what is undefined."""
    if not values or any(value is None for value in values):
        return None, None
    array = np.asarray(values, np.float64)
    mean, count = float(array.mean()), array.size
    if count < 2:
        return mean, None
    from scipy.special import stdtrit

    half = float(stdtrit(count - 1, 0.975) * array.std(ddof=1) / math.sqrt(count))
    return mean, (mean - half, mean + half)


def places(results: Mapping[str, Any], split: str, task: str) -> int:
    """Decimals of a task: four significant digits of its largest mean score, between 1 and 4."""
    means = [summary(values)[0] for column in results["columns"] if (values := scores(results, column, split, task))]
    largest = max((abs(mean) for mean in means if mean is not None), default=1.0) or 1.0
    return min(4, max(1, 3 - math.floor(math.log10(largest))))


def scores(results: Mapping[str, Any], column: str, split: str, task: str) -> list[float | None] | None:
    """A column's scores per seed; task "mean" is the mean over all tasks of a column that has them all."""
    by_task = results["columns"][column]["scores"].get(split, {})
    if task != MEAN:
        return by_task.get(task)
    if set(by_task) != set(results["tasks"]):
        return None
    return [None if None in values else sum(values) / len(values) for values in zip(*by_task.values(), strict=True)]


def tasks_of(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{task: its metric}, with the mean over tasks as a last one where there is such a mean."""
    tasks = dict(results["tasks"])
    if results.get("mean_task") and len(tasks) > 1:
        tasks[MEAN] = next(iter(tasks.values()))
    return tasks


def task_label(results: Mapping[str, Any], task: str) -> str:
    """The name of a task, of the mean over tasks, or of Δm."""
    if task == DELTA_M:
        return "Δm"
    return (results.get("mean_task") or {}).get("label", "mean") if task == MEAN else task


def across_of(results: Mapping[str, Any]) -> dict[str, dict[Any, str]]:
    """{axis: {value: label}} of the settings that stand beside the tasks."""
    return {name: _labels(axis) for name, axis in results["axes"].items() if axis["across"]}


def setting(results: Mapping[str, Any], column: str, axis: str) -> Any:
    """The value of a column on an axis, hashable; None where it has none."""
    return _key(results["columns"][column]["settings"].get(axis))


def score_grid(results: Mapping[str, Any], split: str) -> Grid:
    """Scores on a split: columns of the comparison as rows, grouped by settings; tasks and settings across them."""
    across, tasks = across_of(results), tasks_of(results)
    where = {name: tuple(setting(results, name, axis) for axis in across) for name in results["columns"]}
    scored = {name: column for name, column in results["columns"].items() if split in column["scores"]}
    by_heading = heading_axes(results)
    groups: dict[str, dict[tuple, dict[tuple, str]]] = {}
    for name, column in scored.items():
        named = (_labels(results["axes"][axis]).get(setting(results, name, axis), "") for axis in by_heading)
        below = {axis: _key(value) for axis, value in column["settings"].items() if axis not in across}
        key = (column["label"], column["control"], *(sorted(below.items(), key=str) or [name]))
        groups.setdefault(" · ".join(filter(None, named)), {}).setdefault(key, {})[where[name]] = name
    positions = list(dict.fromkeys(where[name] for name in scored))
    order = [list(labels) for labels in across.values()]

    def rank(at: tuple[Any, ...]) -> list[int]:
        return [axis.index(v) if v in axis else -1 for axis, v in zip(order, at, strict=True)]

    heads: list[tuple[str, str]] = []
    cells_of: list[tuple[str, tuple[Any, ...]]] = []
    for task, entry in tasks.items():
        for at in sorted(positions, key=rank):
            if any(where[name] == at and scores(results, name, split, task) for name in scored):
                words = ", ".join(filter(None, (axis.get(v, "") for axis, v in zip(across.values(), at, strict=True))))
                label = task_label(results, task)
                heads.append((f"{label}, {metric(entry)}", words) if across else (label, metric(entry)))
                cells_of.append((task, at))
    best = {(task, at): _best(results, split, task, [n for n in scored if where[n] == at]) for task, at in cells_of}
    digits = {task: places(results, split, task) for task in tasks}
    body = []
    for heading, rows in groups.items():
        made = []
        for key, by_place in rows.items():
            cells: list[Cell | None] = []
            for task, at in cells_of:
                values = scores(results, by_place[at], split, task) if at in by_place else None
                mean, ci95 = summary(values) if values else (None, None)
                text = figure(mean, ci95, digits[task])
                if values and len(values) == 2 and mean is not None:  # a t interval over two seeds says nothing
                    text = f"{mean:.{digits[task]}f} ({', '.join(f'{value:.{digits[task]}f}' for value in values)})"
                cell = Cell(text, mean, ci95, by_place.get(at) in best[task, at])
                cells.append(cell if values else None)
            first = next(iter(by_place.values()))
            hint = results["columns"][first]["description"]
            made.append(Row(key[0], cells, "control" if key[1] else "", hint))
        body.append((heading, made))
    described = {column["label"]: column["description"] for column in scored.values() if column["description"]}
    notes = [f"{label}: {words}" for label, words in described.items()]
    return Grid(f"Scores on {split}" if len(splits(results)) > 1 else "Scores", heads, body, notes)


def heading_axes(results: Mapping[str, Any]) -> list[str]:
    """Settings that group rows: those below each other whose words the labels of the columns do not hold already."""
    full = [column for column in results["columns"].values() if set(column["settings"]) >= set(results["axes"])]
    found = []
    for name, axis in results["axes"].items():
        labels = _labels(axis)
        words = [(labels.get(_key(column["settings"][name]), ""), column["label"]) for column in full]
        if not axis["across"] and len({own for own, _ in words}) > 1 and not any(own in label for own, label in words):
            found.append(name)
    return found


def contrast_grid(results: Mapping[str, Any], split: str) -> Grid:
    """Contrasts with their intervals: one row each, the pairs that are pooled below it; tasks as columns."""
    mine = [c for c in results["contrasts"] if c["split"] == split and c["reference"] != GUESS]
    if not mine:
        return Grid("", [], [])
    measured = list(dict.fromkeys(c["task"] for c in mine))
    order = [task for task in (*results["tasks"], MEAN, DELTA_M) if task in measured]
    places_of = {(c["name"], id(c)): _contrast_at(results, c) for c in mine}
    positions = list(dict.fromkeys(at for _, at in places_of.values()))
    heads, keys = [], []
    for task in order:
        for at in positions:
            if any(c["task"] == task and places_of[c["name"], id(c)][1] == at for c in mine):
                unit = next(c["unit"] for c in mine if c["task"] == task)
                heads.append((task_label(results, task) + (f" ({unit})" if unit else ""), at))
                keys.append((task, at))
    rows: dict[str, Row] = {}
    expected = any(c["expected"] for c in mine)
    for c in mine:
        name, at = places_of[c["name"], id(c)]
        digits = 2 if c["task"] == DELTA_M else places(results, split, c["task"])
        below = [(f"{name}\n{i}", f"  {p['name'] or p['subject']}", p) for i, p in enumerate(c["pairs"])]
        for key, label, one in [(name, name, c), *below]:
            row = rows.setdefault(key, Row(label, [None] * (len(keys) + expected), "pair" if one is not c else ""))
            ends = one["interval_over"] == "images"  # those of a bootstrap are not symmetric
            text = figure(one["mean"], one["ci95"], digits, signed=True, ends=ends) + p_text(one["p"])
            row.cells[keys.index((c["task"], at))] = Cell(text, one["mean"], one["ci95"])
        if expected and c["expected"]:
            verdict = {True: "yes", False: "NO", None: "undecided"}[c["holds"]]
            verdict += ", on this seed" if c["holds"] is not None and c["interval_over"] == "images" else ""
            rows[name].cells[-1] = Cell(f"{c['expected']} 0: {verdict}")
    if expected:
        heads.append(("expected", ""))
    ordered = [row for key, row in rows.items() if "\n" not in key]
    listed = [one for row in ordered for one in (row, *(r for k, r in rows.items() if k.startswith(f"{row.label}\n")))]
    if len(results["seeds"]) > 1:
        paired = "Paired by seed; p of a t test, not corrected for the number of tests."
    else:
        paired = "In brackets the 95% interval over the test images of one seed: another seed may differ by more."
        paired = paired if bootstrapped(results, split) else ""
    title = f"Differences on {split}" if len(splits(results)) > 1 else "Differences"
    return Grid(
        title, heads, [("", listed)], [note for note in ("Positive is better, whatever the metric.", paired) if note]
    )


def guess_grid(results: Mapping[str, Any], split: str) -> Grid:
    """Gains over a constant guess with intervals over the images of one seed."""
    mine = [c for c in results["contrasts"] if c["split"] == split and c["reference"] == GUESS]
    order = [task for task in results["tasks"] if any(c["task"] == task for c in mine)]
    rows: dict[str, Row] = {}
    for c in mine:
        label = results["columns"].get(c["subject"], {}).get("label", c["subject"])
        digits = max(1, places(results, split, c["task"]) - 1)
        cell = Cell(figure(c["mean"], c["ci95"], digits, signed=True, ends=True), c["mean"], c["ci95"])
        rows.setdefault(c["subject"], Row(label, [None] * len(order))).cells[order.index(c["task"])] = cell
    heads = [(task, metric(results["tasks"][task])) for task in order]
    note = f"Seed {results['seeds'][0]}; in brackets the 95% interval over images."
    return Grid("Gain over a constant guess", heads, [("", list(rows.values()))] if rows else [], [note])


def cost_grid(results: Mapping[str, Any]) -> Grid:
    """What it takes to have all tasks of an example answered, per column."""
    costs = results.get("costs") or {}
    used = [key for key in _COSTS if any(cost.get(key) is not None for cost in costs.values())]
    rows = []
    for name, cost in costs.items():
        texts = [(cost.get(key), _COSTS[key]) for key in used]
        cells = [Cell(form.format(v * scale), v) if v is not None else None for v, (_, scale, form) in texts]
        rows.append(Row(results["columns"].get(name, {}).get("label", name), cells))
    return Grid("Cost of all tasks", [("", _COSTS[key][0]) for key in used], [("", rows)] if rows else [])


def time_grid(results: Mapping[str, Any]) -> Grid:
    """Time and throughput of every stage, and where the time of training goes."""
    rates, rows = results.get("images_per_second") or {}, []
    known = results.get("shares") or {}
    shares = {key: known[key] for key in SHARES if any(known.get(key, {}).values())}
    for stage, spent in (results.get("seconds") or {}).items():
        rate = rates.get(stage)
        more = [Cell(f"{found[stage]:.1%}") if stage in found else None for found in shares.values()]
        rows.append(Row(stage, [Cell(f"{spent:,.1f}"), Cell(f"{rate:,.0f}") if rate else None, *more]))
    heads = ["seconds", "examples per s", *(SHARES[key] for key in shares)]
    notes = {
        "step": "Shares of the time of training, which add up to all of it; that of the steps is the goodput.",
        "lost": "Lost: done again after an interruption.",
        "mfu": "MFU: operations of training steps over what the device reaches in a plain matrix product.",
    }
    told = [note for key, note in notes.items() if key in shares]
    return Grid("Time", [("", head) for head in heads], [("", rows)] if rows else [], told)


def p_text(p: float | None) -> str:
    """The p of a test, in brackets."""
    return "" if p is None else f" (p {p:.3f})" if p >= 0.001 else " (p < .001)"


def _contrast_at(results: Mapping[str, Any], contrast: Mapping[str, Any]) -> tuple[str, str]:
    """(row, second line of the head): contrasts within one value across stand beside each other."""
    subject = contrast["subject"]
    if isinstance(subject, str) and subject in results["columns"]:
        for axis, labels in across_of(results).items():
            words = labels.get(setting(results, subject, axis), "")
            if words and contrast["name"].endswith(f", {words}"):
                return contrast["name"].removesuffix(f", {words}"), words
    return contrast["name"], ""


def _best(results: Mapping[str, Any], split: str, task: str, names: Sequence[str]) -> set[str]:
    """The best column of some, or several equal ones; controls, oracles and the constant guess do not compete."""
    means = {}
    for name in names:
        values, column = scores(results, name, split, task), results["columns"][name]
        if values and not (column["control"] or name.startswith("oracle") or name == GUESS):
            means[name] = summary(values)[0]
    able = {name: mean for name, mean in means.items() if mean is not None}
    choose = max if tasks_of(results)[task]["higher_is_better"] else min
    return {name for name, mean in able.items() if mean == choose(able.values())}


def _labels(axis: Mapping[str, Any]) -> dict[Any, str]:
    return {_key(value): words for value, words in axis["values"]}


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text(grid: Grid, width: int) -> list[str]:
    """A grid as lines; a block of columns after the other where they do not fit beside each other."""
    rows = [row for _, group in grid.groups for row in group]
    words = {id(row): row.label + (" (control)" if row.kind == "control" else "") for row in rows}
    left = max(len(grid.title), *(len(text) for text in words.values()))
    texts = [[_shown(row.cells[i]) for row in rows] for i in range(len(grid.heads))]
    sizes = [2 + max(map(len, (*head, *texts[i]))) for i, head in enumerate(grid.heads)]
    shared = [i > 0 and head[0] == grid.heads[i - 1][0] for i, head in enumerate(grid.heads)]
    # A first line that several columns share needs its width only once.
    several = [repeats or shared[i + 1 : i + 2] == [True] for i, repeats in enumerate(shared)]
    sizes = [2 + max(map(len, (grid.heads[i][1], *texts[i]))) if several[i] else size for i, size in enumerate(sizes)]
    blocks: list[list[int]] = [[]]
    for i, size in enumerate(sizes):
        if blocks[-1] and left + sum(sizes[j] for j in blocks[-1]) + size > width:
            blocks.append([])
        blocks[-1].append(i)
    lines: list[str] = []
    for block in blocks:
        lines += [""] if lines else []
        first = ""
        for i in block:
            if not (shared[i] and i != block[0]):
                end = left + sum(sizes[j] for j in block if j < i)
                name = f"  {grid.heads[i][0]}" if several[i] else grid.heads[i][0].rjust(sizes[i])
                first = first.ljust(end) + name
        lines.append(grid.title + first[len(grid.title) :])
        if any(grid.heads[i][1] for i in block):
            lines.append(" " * left + "".join(grid.heads[i][1].rjust(sizes[i]) for i in block))
        for heading, group in grid.groups:
            filled = [row for row in group if any(row.cells[i] for i in block)]
            lines += ["─" * (left + sum(sizes[i] for i in block))] if filled else []
            lines += [heading] if heading and filled else []
            for row in filled:
                lines.append(words[id(row)].ljust(left) + "".join(_shown(row.cells[i]).rjust(sizes[i]) for i in block))
    return [*lines, *(line for note in grid.notes for line in textwrap.wrap(note, width, subsequent_indent="  "))]


def _shown(cell: Cell | None) -> str:
    return "–" if cell is None else f"*{cell.text}" if cell.best else cell.text
