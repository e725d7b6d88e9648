"""The page that a person opens after a run: one self-contained file, no scripts, nothing fetched.

Everything is taken from `results.json` as `must.evaluate.compare.results` makes it and from arrays and numbers that the
caller gathered; nothing is computed here but positions and words.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from must.report import charts
from must.report.pictures import contact_sheet, data_uri

_STATES = ("taken as true", "ignored", "taken as absent")
_MOST_CLASSES = 40
_STYLE = """
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.5 system-ui,sans-serif; }
main { max-width:1080px; margin:0 auto; padding:32px 24px 64px; }
h1 { font-size:28px; line-height:1.2; margin:0 0 4px; } h2 { font-size:19px; margin:44px 0 6px; } h3 { font-size:15px; }
p { max-width:76ch; margin:6px 0 12px; } .lead { font-size:17px; } .soft, .legend { color:var(--soft); }
.legend .key { margin-right:18px; white-space:nowrap; } .legend svg { vertical-align:-2px; }
.panels { display:grid; grid-template-columns:repeat(auto-fill,minmax(300px,1fr)); gap:24px 28px; align-items:start; }
.wide { display:grid; grid-template-columns:repeat(auto-fill,minmax(440px,1fr)); gap:24px 28px; align-items:start; }
.scroll { overflow-x:auto; } table { border-collapse:collapse; margin:8px 0; font-variant-numeric:tabular-nums; }
th, td { padding:5px 14px 5px 0; text-align:right; border-bottom:1px solid var(--rule); white-space:nowrap; }
th:first-child, td:first-child { text-align:left; } th { font-weight:600; } td .pm { color:var(--soft); }
tr.sum td { border-top:1.5px solid var(--soft); font-weight:600; } .best { font-weight:700; }
img { max-width:100%; height:auto; border-radius:4px; display:block; } figure { margin:0; }
figcaption { font-weight:600; margin:0 0 6px; }
details { margin:8px 0; } summary { cursor:pointer; color:var(--soft); }
pre { background:var(--panel); padding:14px; overflow-x:auto; font-size:12.5px; line-height:1.4; border-radius:4px; }
@media (max-width:520px) { .wide { grid-template-columns:1fr; } }
"""

Curves = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


def write_report(
    path: str,
    *,
    title: str,
    results: Mapping[str, Any],
    curves: Curves | None = None,
    grids: Mapping[str, Mapping[str, Any]] | None = None,
    kept: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes the report; a section without material is left out.

    Args:
      path: of the file, replaced as a whole.
      title: of the page.
      results: `results.json`; an entry "other_splits" {name: results} gives further tables.
      curves: {run: {series: {"step": [...], "value": [...]}}}; the series "loss" and "validation/<task>/<headline>" are
        shown. A run has the colour of the column whose name occurs in its own.
      grids: {task: {"columns": [names], "rows": [[uint8 [H, W, 3] per column]]}}.
      kept: {task: {class: (positive, ignored, negative)}} counts of pseudo labels under the policy.
      settings: anything that JSON can hold, by heading: command, versions, configuration.
    """
    columns = _columns(results)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_scope(results))}</p>',
        f'<p class="lead">{escape(in_words(results))}</p>',
        _comparison(results, columns),
        *(
            f"<h2>On {escape(name)}</h2><p>{escape(in_words(other))}</p>{_comparison(other, columns)}"
            for name, other in results.get("other_splits", {}).items()
        ),
        _costs(results, columns),
        _pictures(grids or {}),
        _learning(results, columns, curves or {}),
        _kept(kept or {}),
        _settings(results, settings or {}),
    ]
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{charts.STYLE}{_STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        file.write(page)
    os.replace(f"{path}.partial", path)


def in_words(results: Mapping[str, Any]) -> str:
    """What the numbers say, as a few sentences."""
    subject, reference, many = results["subject"], results["reference"], len(results["seeds"]) > 1
    sentences = []
    for other in [c for c in _columns(results) if f"{subject}_vs_{c}" in results["delta_m"]]:
        pair = f"{subject}_vs_{other}"
        entry = results["delta_m"][pair]
        gains = [results["tasks"][task]["gains"][pair] for task in entry["tasks"]]
        better = sum(gain["mean"] is not None and gain["mean"] > 0 for gain in gains)
        lead = f"Over {len(gains)} {'task' if len(gains) == 1 else 'tasks'}, one {subject} gains"
        sentence = f"{lead if other == reference else 'It gains'} {_signed(entry)} % on average relative to {other} (Δm"
        if entry["mean"] is None:
            sentence = f"Relative to {other} Δm is undefined, since a score there is 0 (the {subject}"
        sentence += f"{_interval_words(entry)}), and is better on {better} of {len(gains)}"
        if many:
            sure = sum(bool(gain["ci95"]) and gain["ci95"][0] > 0 for gain in gains)
            sentence += f", on {sure} of them by an interval above 0"
        sentences.append(sentence + ".")
    mine, theirs = (results["costs"].get(column, {}) for column in (subject, reference))
    if all(key in cost for cost in (mine, theirs) for key in ("networks", "parameters", "milliseconds")):
        sentences.append(
            f"For all tasks together the {subject} runs {_cost_words(mine)}; the {reference} column {_cost_words(theirs)}."
        )
    if sentences and not many:
        sentences.append("One seed gives no interval: small differences may be chance.")
    return " ".join(sentences) or "There is only one column, so nothing is compared."


def _cost_words(cost: Mapping[str, float]) -> str:
    networks = f"{cost['networks']} network{'s' if cost['networks'] != 1 else ''}"
    return f"{networks} with {cost['parameters'] / 1e6:,.2f} million parameters in {cost['milliseconds']:.2f} ms per image"


def _interval_words(entry: Mapping[str, Any]) -> str:
    return f", 95 % interval {entry['ci95'][0]:+.1f} to {entry['ci95'][1]:+.1f}" if entry["ci95"] else ""


def _signed(entry: Mapping[str, Any]) -> str:
    return "" if entry["mean"] is None else f"{entry['mean']:+.1f}"


def _scope(results: Mapping[str, Any]) -> str:
    seeds = results["seeds"]
    runs = f"{len(seeds)} seeds, means with 95 % t intervals over seeds" if len(seeds) > 1 else "one seed"
    return f"Recipe {results['recipe']} · {len(results['tasks'])} tasks · {runs} · the same held-out labels for every column"


def _columns(results: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(column for entry in results["tasks"].values() for column in entry["columns"]))


def _comparison(results: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Relative gains over the reference as a chart, then the scores and the paired gains in figures."""
    reference, tasks = results["reference"], results["tasks"]
    others = [c for c in columns if f"{c}_vs_{reference}" in results["delta_m"]]
    parts = []
    if others:
        rows = []
        for task, entry in tasks.items():
            gains = [(c, entry["gains"].get(f"{c}_vs_{reference}")) for c in others]
            rows.append((task, [_dot(columns.index(c), gain["percent"]) for c, gain in gains if gain]))
        rows = [row for row in rows if row[1]]
        rows.append(("Δm", [_dot(columns.index(c), results["delta_m"][f"{c}_vs_{reference}"]) for c in others]))
        axis = f"relative gain over {reference}, % (right is better)"
        shown = [c if c in others else f"{c} (the line at 0)" if c == reference else "" for c in columns]
        parts += [f"<h2>Gain over {escape(reference)}</h2>", charts.legend(shown), charts.dots(rows, axis=axis, last_apart=True)]
    parts += ["<h2>Scores</h2>", _scores(tasks, columns), _gains(results, columns)]
    return "".join(parts)


def _dot(series: int, entry: Mapping[str, Any]) -> charts.Dot:
    return charts.Dot(series, entry["mean"], entry["ci95"], _figures(entry, 1, signed=True))


def _figures(entry: Mapping[str, Any], decimals: int, *, signed: bool = False) -> str:
    if entry["mean"] is None:
        return "undefined"
    text = f"{entry['mean']:{'+' if signed else ''}.{decimals}f}"
    return f"{text} ±{entry['ci95'][1] - entry['mean']:.{decimals}f}" if entry["ci95"] else text


def _scores(tasks: Mapping[str, Any], columns: Sequence[str]) -> str:
    rows = []
    for task, entry in tasks.items():
        means = {c: s["mean"] for c, s in entry["columns"].items() if s["mean"] is not None}
        best = (max if entry["higher_is_better"] else min)(means.values(), default=None)
        cells = [escape(task), f"{escape(_metric(entry))} {'↑' if entry['higher_is_better'] else '↓'}"]
        for column in columns:
            summary = entry["columns"].get(column)
            text = _cell(_figures(summary, _decimals(entry))) if summary else "–"
            cells.append(f'<span class="best">{text}</span>' if summary and means.get(column) == best else text)
        rows.append(cells)
    note = '<p class="soft">Bold is the best of its row; ↑ higher, ↓ lower is better; ± is half of the 95 % interval.</p>'
    return _table(["task", "metric", *columns], rows) + note + _per_seed(tasks, columns)


def _per_seed(tasks: Mapping[str, Any], columns: Sequence[str]) -> str:
    rows = [
        [escape(task), column, *("–" if v is None else f"{v:.{_decimals(entry)}f}" for v in entry["scores"][column])]
        for task, entry in tasks.items()
        for column in columns
        if column in entry["scores"]
    ]
    most = max((len(row) for row in rows), default=2) - 2
    if most < 2:
        return ""
    heads = ["task", "column", *(f"run {i + 1}" for i in range(most))]
    return f"<details><summary>Every seed by itself</summary>{_table(heads, rows)}</details>"


def _gains(results: Mapping[str, Any], columns: Sequence[str]) -> str:
    subject, tasks = results["subject"], results["tasks"]
    others = [c for c in columns if f"{subject}_vs_{c}" in results["delta_m"]]
    if not others:
        return ""
    rows = []
    for task, entry in tasks.items():
        found = [entry["gains"].get(f"{subject}_vs_{c}") for c in others]
        figures = [_cell(_figures(g, _decimals(entry), signed=True)) if g else "–" for g in found]
        rows.append([escape(task), escape(_metric(entry)), *figures])
    mean = [_cell(_figures(results["delta_m"][f"{subject}_vs_{c}"], 2, signed=True)) for c in others]
    rows.append(["Δm", "mean relative gain (%)", *mean])
    how = "Paired by seed; a positive gain is better, whatever the metric's direction."
    heads = ["task", "metric", *(f"vs {c}" for c in others)]
    table = _table(heads, rows, last_is_sum=True)
    return f'<h2>What the {escape(subject)} gains</h2>{table}<p class="soft">{how}</p>'


def _costs(results: Mapping[str, Any], columns: Sequence[str]) -> str:
    costs = {column: results["costs"][column] for column in columns if column in results["costs"]}
    forms = {
        "networks": ("networks to run", 1, "{:,.0f}"),
        "parameters": ("parameters (million)", 1e-6, "{:,.2f}"),
        "milliseconds": ("time per image (ms)", 1, "{:,.2f}"),
        "images_per_second": ("images per second", 1, "{:,.0f}"),
    }
    rows = []
    for key, (name, scale, form) in forms.items():
        values = [cost.get(key) for cost in costs.values()]
        if any(value is not None for value in values):
            rows.append([name, *("–" if value is None else form.format(value * scale) for value in values)])
    parts = [f"<h2>What every task at once costs</h2>{_table(['', *costs], rows)}"] if rows else []
    rates = results["images_per_second"]
    stages = [
        [escape(stage), f"{seconds:,.1f}", f"{rates[stage]:,.0f}" if rates.get(stage) else "–"]
        for stage, seconds in results["seconds"].items()
    ]
    if stages:
        parts.append(f"<h2>Time spent</h2>{_table(['stage', 'seconds', 'images per second'], stages)}")
    return "".join(parts)


def _pictures(grids: Mapping[str, Mapping[str, Any]]) -> str:
    figures = []
    for task, grid in grids.items():
        if len(grid["rows"]):
            rows = [[np.asarray(picture, np.uint8) for picture in row] for row in grid["rows"]]
            source = data_uri(contact_sheet(rows, grid["columns"]))
            alt = f"{task}: {', '.join(grid['columns'])}"
            figures.append(
                f'<figure><figcaption>{escape(task)}</figcaption><img src="{source}" alt="{escape(alt)}"></figure>'
            )
    return f'<h2>Pictures</h2><div class="wide">{"".join(figures)}</div>' if figures else ""


def _learning(results: Mapping[str, Any], columns: Sequence[str], curves: Curves) -> str:
    """Headline on the validation split per task, all runs together; then the training loss of every run."""
    panels = []
    for task, entry in results["tasks"].items():
        key = f"validation/{task}/{entry['metric']}"
        found = [charts.Line(_series(run, columns), series[key]["step"], series[key]["value"]) for run, series in curves.items() if key in series]
        direction = "higher" if entry["higher_is_better"] else "lower"
        panels.append(charts.lines(found, title=task, axis=f"{_metric(entry)}, {direction} is better") if found else "")
    losses = [
        charts.lines([charts.Line(_series(run, columns), s["loss"]["step"], s["loss"]["value"])], title=run, axis="loss")
        for run, s in curves.items()
        if "loss" in s
    ]
    parts = []
    if any(panels):
        parts += ["<h2>Learning curves</h2><p>Headline metric on the validation split.</p>", charts.legend(columns)]
        parts += [f'<div class="panels">{"".join(panels)}</div>']
    if any(losses):
        parts += [f'<h2>Training loss</h2><div class="panels">{"".join(losses)}</div>']
    return "".join(parts)


def _series(run: str, columns: Sequence[str]) -> int:
    return next((i for i, column in enumerate(columns) if column in run), len(columns))


def _kept(kept: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    panels = []
    for task, classes in kept.items():
        rows = sorted(((str(name), [int(n) for n in counts]) for name, counts in classes.items()), key=lambda r: -sum(r[1]))
        left_out = f", the {_MOST_CLASSES} most frequent of {len(rows)} classes" if len(rows) > _MOST_CLASSES else ""
        if rows:
            panels.append(charts.shares(rows[:_MOST_CLASSES], _STATES, title=task + left_out, width=480))
    if not panels:
        return ""
    keys = "".join(
        f'<span class="key"><svg width="14" height="14"><rect y="2" width="12" height="12" fill="var(--{c})"/></svg> {s}</span>'
        for c, s in zip(("good", "unsure", "bad"), _STATES, strict=True)
    )
    text = "Pseudo labels by what the policy makes of them; figures: taken as true, of all."
    return f'<h2>Which labels were believed</h2><p>{text}</p><p class="legend">{keys}</p><div class="wide">{"".join(panels)}</div>'


def _settings(results: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    blocks = {**settings, "seeds": results["seeds"]}
    folded = "".join(
        f"<details><summary>{escape(str(name))}</summary><pre>"
        f"{escape(value if isinstance(value, str) else json.dumps(value, indent=2, default=str))}</pre></details>"
        for name, value in blocks.items()
    )
    return f"<h2>How this was made</h2>{folded}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, last_is_sum: bool = False) -> str:
    """Heads are text, cells are HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    lines = []
    for i, row in enumerate(rows):
        kind = ' class="sum"' if last_is_sum and i == len(rows) - 1 else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(figures: str) -> str:
    value, plus_minus, half = figures.partition(" ±")
    return f'{value}<span class="pm"> ±{half}</span>' if plus_minus else value


def _metric(entry: Mapping[str, Any]) -> str:
    return f"{entry['metric']} ({entry['unit']})" if entry["unit"] else entry["metric"]


def _decimals(entry: Mapping[str, Any]) -> int:
    largest = max((abs(s["mean"]) for s in entry["columns"].values() if s["mean"] is not None), default=1) or 1
    return min(4, max(1, 3 - math.floor(math.log10(largest))))
