"""The page that a person opens after a run: one self-contained file, no scripts, nothing fetched.

Everything is taken from `results.json` as `must.evaluate.compare.results` makes it and from arrays and numbers that the
caller gathered; nothing is computed here but positions and words.
"""

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from must.report import charts, tables
from must.report.pictures import contact_sheet, data_uri

_STATES = ("taken as true", "ignored", "taken as absent")
_MOST_CLASSES = 40
_STYLE = """
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.5 system-ui,sans-serif; }
main { max-width:1152px; margin:0 auto; padding:32px 24px 64px; }
h1 { font-size:28px; line-height:1.2; margin:0 0 4px; } h2 { font-size:20px; margin:48px 0 6px; }
h3 { font-size:16px; margin:28px 0 4px; } p { max-width:80ch; margin:6px 0 12px; }
ul { padding-left:20px; } .lead { font-size:16px; } .lead li { margin:4px 0; }
.soft, .legend { color:var(--soft); } .legend { margin:2px 0 10px; }
.legend .key { margin-right:18px; white-space:nowrap; } .legend svg { vertical-align:-2px; }
.panels { display:grid; grid-template-columns:repeat(auto-fill,minmax(300px,1fr)); gap:24px 28px; align-items:start; }
.pairs { display:flex; flex-wrap:wrap; gap:8px 72px; align-items:flex-start; }
.pairs > * { max-width:100%; } .scroll { overflow-x:auto; } .scroll > svg { min-width:640px; }
table { border-collapse:collapse; margin:8px 0; font-variant-numeric:tabular-nums; }
th, td { padding:5px 0 5px 28px; text-align:right; border-bottom:1px solid var(--rule); white-space:nowrap; }
th:first-child, td:first-child { padding-left:0; } .word { text-align:left; }
th { font-weight:600; } td .pm { color:var(--soft); font-weight:400; } .best { font-weight:700; }
tr.sum td { border-top:1.5px solid var(--soft); font-weight:600; }
img { max-width:100%; height:auto; border-radius:4px; display:block; }
details { margin:8px 0; } summary { cursor:pointer; color:var(--soft); }
summary.name { color:var(--ink); font-weight:600; }
pre { background:var(--panel); padding:14px; overflow-x:auto; font-size:12.5px; line-height:1.4; border-radius:4px; }
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
      results: `results.json`; an entry "other_splits" {name: results} gives further tables, an entry "against_guess"
        {task: {"guess": score, "gains": {column: {"mean", "ci95"}}}} one of its own, an entry "notes" sentences below the first ones.
      curves: {run: {series: {"step": [...], "value": [...]}}}; the series "loss" and "validation/<task>/<headline>" are
        shown. A run has the color of the column whose name occurs in its own.
      grids: {task: {"columns": [names], "rows": [[uint8 [H, W, 3] per column]]}}.
      kept: {task: {class: (positive, ignored, negative)}}, counts of pseudo labels under the policy.
      settings: anything that JSON can hold, by heading: command, versions, configuration.
    """
    columns = _columns(results)
    others = results.get("other_splits", {}).items()
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_scope(results))}</p>',
        _words(results, kind="lead"),
        _comparison(results, columns),
        *(f"<h2>On {escape(name)}</h2>{_words(other)}{_comparison(other, columns, 'h3')}" for name, other in others),
        _against_guess(results, columns),
        _costs(results, columns),
        _learning(results, columns, curves or {}),
        _kept(kept or {}),
        pictures_section(grids or {}),
        settings_section({**(settings or {}), "seeds": results["seeds"]}),
    ]
    save_page(path, title, body)


def save_page(path: str, title: str, body: Sequence[str], *, style: str = "") -> None:
    """One self-contained file from HTML sections and the style that only they need, replaced as a whole."""
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<style>{charts.STYLE}{_STYLE}{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        file.write(page)
    os.replace(f"{path}.partial", path)


def in_words(results: Mapping[str, Any]) -> list[str]:
    """What the numbers say, one sentence per comparison and one on cost."""
    subject, reference, many = results["subject"], results["reference"], len(results["seeds"]) > 1
    sentences = []
    for other in _opponents(results):
        pair = f"{subject}_vs_{other}"
        entry = results["delta_m"][pair]
        gains = [results["tasks"][task]["gains"][pair] for task in entry["tasks"]]
        better = sum(gain["mean"] is not None and gain["mean"] > 0 for gain in gains)
        if entry["mean"] is None:
            sentence = f"{subject} against {other}: Δm is undefined, since a score there is 0"
        else:
            interval = f" (95 % interval {entry['ci95'][0]:+.1f} to {entry['ci95'][1]:+.1f})" if entry["ci95"] else ""
            sentence = f"{subject} against {other}: Δm {entry['mean']:+.1f} %{interval}"
        sentence += f"; better on {better} of {len(gains)} tasks"
        if many:
            sure = sum(bool(gain["ci95"]) and gain["ci95"][0] > 0 for gain in gains)
            sentence += f", on {sure} with an interval above 0"
        sentences.append(sentence[:1].upper() + sentence[1:] + ".")
    mine, theirs = (results["costs"].get(column, {}) for column in (subject, reference))
    if all(cost.get(key) for cost in (mine, theirs) for key in ("networks", "parameters", "milliseconds")):
        costs = f"{subject} {_cost_words(mine)}; {reference} {_cost_words(theirs)}"
        sentences.append(f"All tasks of one image: {costs}.")
    if sentences and not many:
        sentences.append("One seed gives no interval: small differences may be chance.")
    return [*(sentences or ["There is one column only, so nothing is compared."]), *results.get("notes", [])]


def _words(results: Mapping[str, Any], kind: str = "") -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{escape(sentence)}</li>" for sentence in in_words(results))}</ul>'


def _cost_words(cost: Mapping[str, float]) -> str:
    networks = f"{cost['networks']:.0f} network{'s' if cost['networks'] != 1 else ''}"
    return f"{networks}, {cost['parameters'] / 1e6:,.2f} million parameters, {cost['milliseconds']:.2f} ms"


def _scope(results: Mapping[str, Any]) -> str:
    tasks, seeds = len(results["tasks"]), len(results["seeds"])
    runs = f"{seeds} seeds, means with 95 % t intervals" if seeds > 1 else "one seed"
    return f"Recipe {results['recipe']} · {tasks} task{'s' if tasks != 1 else ''} · {runs}"


def _columns(results: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(column for entry in results["tasks"].values() for column in entry["columns"]))


def _opponents(results: Mapping[str, Any]) -> list[str]:
    return [c for c in _columns(results) if f"{results['subject']}_vs_{c}" in results["delta_m"]]


def _comparison(results: Mapping[str, Any], columns: Sequence[str], heading: str = "h2") -> str:
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
        names = [c if c in others else f"{c} (the line at 0)" if c == reference else "" for c in columns]
        axis = f"relative gain over {reference}, % (right is better)"
        parts += [f"<{heading}>Gain over {escape(reference)}</{heading}>", charts.legend(names)]
        parts += [f'<div class="scroll">{charts.dots(rows, axis=axis, last_apart=True)}</div>']
    parts += [f"<{heading}>Scores</{heading}>{tables.scores(tasks, columns)}"]
    if opponents := _opponents(results):
        title = f"What the {escape(results['subject'])} gains"
        parts += [f"<{heading}>{title}</{heading}>{tables.gains(results, opponents)}"]
    return "".join(parts)


def _dot(series: int, summary: Mapping[str, Any]) -> charts.Dot:
    return charts.Dot(series, summary["mean"], summary["ci95"], tables.figures(summary, 1, signed=True))


def _against_guess(results: Mapping[str, Any], columns: Sequence[str]) -> str:
    found = results.get("against_guess")
    return f"<h2>Against a blind guess</h2>{tables.against_guess(found, results['tasks'], columns)}" if found else ""


def _costs(results: Mapping[str, Any], columns: Sequence[str]) -> str:
    running = tables.costs({column: results["costs"][column] for column in columns if column in results["costs"]})
    spent = tables.seconds(results["seconds"], results["images_per_second"])
    parts = [f"<div><h2>What answering all tasks costs</h2>{running}</div>"] if running else []
    parts += [f"<div><h2>Where the time went</h2>{spent}</div>"] if spent else []
    return f'<div class="pairs">{"".join(parts)}</div>' if parts else ""


def _learning(results: Mapping[str, Any], columns: Sequence[str], curves: Curves) -> str:
    """Headline on the validation split per task, all runs together; then the training loss of every run."""

    def series(run: str) -> int:
        parts = run.split("/")
        found = [i for i, column in enumerate(columns) if column in parts]
        found += [i for i, column in enumerate(columns) if any(part.startswith(column) for part in parts)]
        return found[0] if found else len(columns)

    def line(run: str, name: str) -> charts.Line:
        return charts.Line(series(run), curves[run][name]["step"], curves[run][name]["value"])

    panels = []
    for task, entry in results["tasks"].items():
        name = f"validation/{task}/{entry['metric']}"
        direction = "higher" if entry["higher_is_better"] else "lower"
        found = [line(run, name) for run in curves if name in curves[run]]
        panels.append(charts.lines(found, title=task, axis=f"{tables.metric(entry)}, {direction} is better"))
    losses = [
        charts.lines([line(run, "loss")], title=run, axis="loss")
        for run in sorted(curves, key=series)
        if "loss" in curves[run]
    ]
    parts = []
    if any(panels):
        parts += ["<h2>Learning curves</h2><p>Headline metric on the validation split.</p>", charts.legend(columns)]
        parts += [f'<div class="panels">{"".join(panels)}</div>']
    if any(losses):
        summary = "<summary>Training loss of every run</summary>"
        parts += [f'<details>{summary}<div class="panels">{"".join(losses)}</div></details>']
    return "".join(parts)


def _kept(kept: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    panels = []
    for task, classes in kept.items():
        rows = [(str(name), [int(count) for count in counts]) for name, counts in classes.items()]
        rows.sort(key=lambda row: -sum(row[1]))
        left_out = f", the {_MOST_CLASSES} most frequent of {len(rows)} classes" if len(rows) > _MOST_CLASSES else ""
        if rows:
            panels.append(charts.shares(rows[:_MOST_CLASSES], _STATES, title=task + left_out))
    if not panels:
        return ""
    text = "Pseudo labels by what the policy makes of their scores; in figures, how many of all are taken as true."
    head = f"<h2>Which labels were believed</h2><p>{text}</p>{charts.share_legend(_STATES)}"
    return f'{head}<div class="pairs">{"".join(panels)}</div>'


def pictures_section(grids: Mapping[str, Mapping[str, Any]]) -> str:
    """One contact sheet per task, {task: {"columns": [names], "rows": [[uint8 [H, W, 3] per column]]}}; empty without any."""
    figures = []
    for task, grid in grids.items():
        rows = [[np.asarray(picture, np.uint8) for picture in row] for row in grid["rows"]]
        if rows:
            alt = escape(f"{task}: {', '.join(grid['columns'])}", quote=True)
            image = f'<img src="{data_uri(contact_sheet(rows, grid["columns"]))}" alt="{alt}">'
            figures.append(f'<details open><summary class="name">{escape(task)}</summary>{image}</details>')
    return f"<h2>Pictures</h2>{''.join(figures)}" if figures else ""


def settings_section(settings: Mapping[str, Any]) -> str:
    """Anything that JSON can hold, by heading, folded away."""
    blocks = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str)
        blocks.append(f"<details><summary>{escape(str(name))}</summary><pre>{escape(text)}</pre></details>")
    return f"<h2>How this was made</h2>{''.join(blocks)}"
