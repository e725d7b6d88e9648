"""The figures of a comparison as HTML tables; how a number is written is decided here, for charts and sentences too."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def figures(summary: Mapping[str, Any], decimals: int, *, signed: bool = False) -> str:
    """Mean and half of its interval as text."""
    if summary["mean"] is None:
        return "undefined"
    text = f"{summary['mean']:{'+' if signed else ''}.{decimals}f}"
    return f"{text} ±{summary['ci95'][1] - summary['mean']:.{decimals}f}" if summary["ci95"] else text


def p_text(summary: Mapping[str, Any]) -> str:
    """The p of a test behind its figures, if there is one."""
    p = summary.get("p")
    return "" if p is None else f", p {p:.3f}" if p >= 0.001 else ", p < .001"


def decimals(entry: Mapping[str, Any]) -> int:
    """Four significant digits of a task's largest score, between 1 and 4 decimals, the same in all columns."""
    largest = max((abs(s["mean"]) for s in entry["columns"].values() if s["mean"] is not None), default=1) or 1
    return min(4, max(1, 3 - math.floor(math.log10(largest))))


def metric(entry: Mapping[str, Any]) -> str:
    """A task's headline metric with its unit."""
    return f"{entry['metric']} ({entry['unit']})" if entry["unit"] else entry["metric"]


def scores(tasks: Mapping[str, Any], columns: Sequence[str], *, kind: str = "task", sums: int = 0) -> str:
    """One row per task, one cell per column, the best in bold; every seed by itself folded away below.

    Args:
      tasks: {task: entry of the results}.
      columns: in their order.
      kind: what a row is called.
      sums: how many of the last rows are sums of those above.
    """
    rows = []
    for task, entry in tasks.items():
        means = {c: s["mean"] for c, s in entry["columns"].items() if s["mean"] is not None}
        best = (max if entry["higher_is_better"] else min)(means.values(), default=None)
        cells = [escape(task), f"{escape(metric(entry))} {'↑' if entry['higher_is_better'] else '↓'}"]
        for column in columns:
            summary = entry["columns"].get(column)
            text = cell(figures(summary, decimals(entry))) if summary else "–"
            is_best = best is not None and means.get(column) == best
            cells.append(f'<span class="best">{text}</span>' if is_best else text)
        rows.append(cells)
    many = any(summary["ci95"] for entry in tasks.values() for summary in entry["columns"].values())
    note = "Bold is the best of its row; ↑ higher, ↓ lower is better"
    note += "; ± is half of the 95 % interval." if many else "."
    made = table([kind, "metric", *columns], rows, left=2, sums=sums)
    return f'{made}<p class="soft">{note}</p>{per_seed(tasks, columns, kind=kind) if many else ""}'


def per_seed(tasks: Mapping[str, Any], columns: Sequence[str], *, kind: str = "task") -> str:
    """The scores of all runs by themselves, folded away."""
    rows = [
        [escape(task), escape(c), *("–" if v is None else f"{v:.{decimals(entry)}f}" for v in entry["scores"][c])]
        for task, entry in tasks.items()
        for c in columns
        if c in entry["scores"]
    ]
    heads = [kind, "column", *(f"run {i + 1}" for i in range(max(map(len, rows)) - 2))]
    return f"<details><summary>Every seed by itself</summary>{table(heads, rows, left=2)}</details>"


def gains(results: Mapping[str, Any], others: Sequence[str]) -> str:
    """What the subject gains over each of the other columns, per task and as Δm."""
    subject, tasks = results["subject"], results["tasks"]
    rows = []
    for task, entry in tasks.items():
        found = [entry["gains"].get(f"{subject}_vs_{c}") for c in others]
        cells = [cell(figures(gain, decimals(entry), signed=True)) if gain else "–" for gain in found]
        rows.append([escape(task), escape(metric(entry)), *cells])
    mean = [cell(figures(results["delta_m"][f"{subject}_vs_{c}"], 2, signed=True)) for c in others]
    rows.append(["Δm", "mean relative gain (%)", *mean])
    if lead := results.get("delta_m_lead"):
        cells = [cell(figures(lead[c], 2, signed=True)) if c in lead else "–" for c in others]
        rows.append(["lead", f"Δm vs {escape(results['reference'])} above theirs (%)", *cells])
    made = table(["task", "metric", *(f"vs {c}" for c in others)], rows, left=2, sums=len(rows) - len(tasks))
    how = "Paired by seed; a" if len(results["seeds"]) > 1 else "A"
    return f'{made}<p class="soft">{how} positive gain is better, whatever the metric\'s direction.</p>'


def against_guess(found: Mapping[str, Any], tasks: Mapping[str, Any], columns: Sequence[str]) -> str:
    """What every column adds to a prediction that is the same for every image, with intervals over images."""
    rows = []
    for task, entry in found.items():
        places = max(1, decimals(tasks[task]) - 1)  # intervals over images are wide, and so are these cells
        cells = []
        for gain in (entry["gains"].get(column) for column in columns):
            low, high = gain["ci95"] if gain else (0.0, 0.0)
            interval = f'<span class="pm"> [{low:.{places}f}, {high:.{places}f}]</span>'
            cells.append(f"{gain['mean']:+.{places}f}{interval}" if gain else "–")
        rows.append([escape(task), escape(metric(tasks[task])), f"{entry['guess']:.{places}f}", *cells])
    note = "Gain of one seed over the guess, positive is better; in brackets its 95 % interval over test images."
    made = table(["task", "metric", "guess", *columns], rows, left=2)
    return f'{made}<p class="soft">{note}</p>'


def costs(costs: Mapping[str, Mapping[str, float]], *, of: str = "image") -> str:
    """What it takes to have all tasks of one image, or clip, answered, per column; empty when nothing was measured."""
    forms = {
        "networks": ("networks to run", 1, "{:,.0f}"),
        "parameters": ("parameters (million)", 1e-6, "{:,.2f}"),
        "milliseconds": (f"time per {of} (ms)", 1, "{:,.2f}"),
        "images_per_second": (f"{of}s per second", 1, "{:,.0f}"),
    }
    rows = []
    for key, (name, scale, form) in forms.items():
        values = [cost.get(key) for cost in costs.values()]
        if any(value is not None for value in values):
            rows.append([name, *("–" if value is None else form.format(value * scale) for value in values)])
    return table(["", *costs], rows) if rows else ""


def seconds(spent: Mapping[str, float], rates: Mapping[str, float], *, of: str = "image") -> str:
    """Time and throughput per stage; empty when nothing was measured."""
    rows = [
        [escape(stage), f"{value:,.1f}", f"{rates[stage]:,.0f}" if rates.get(stage) else "–"]
        for stage, value in spent.items()
    ]
    return table(["stage", "seconds", f"{of}s per second"], rows) if rows else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, sums: int = 0) -> str:
    """Heads are text, cells are HTML; the first `left` columns are words and stand at the left, the last rows are sums."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=word' if i < left else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))

    body = [f"<tr{' class=sum' if i >= len(rows) - sums else ''}>{line('td', row)}</tr>" for i, row in enumerate(rows)]
    head = line("th", [escape(name) for name in heads])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def cell(text: str) -> str:
    """A figure as HTML, the half of its interval in gray."""
    value, plus_minus, half = text.partition(" ±")
    return f'{value}<span class="pm"> ±{half}</span>' if plus_minus else value
