"""The page about joint experts: what training together gives, how it was learned, and what the heads say about clips.

Everything is taken from the results as `must.evaluate.joint.results` makes them and from arrays and numbers that the
caller gathered; nothing is computed here but positions and words.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from must.report import bars, charts, matrices, tables
from must.report.html import Curves, save_page, settings_section
from must.report.pictures import animation_uri, data_uri, strip

_MEAN = "mean over sets"
_ANSWERS = 3  # most probable classes
_STYLE = """
th, td { padding-left:14px; font-size:14px; } th { white-space:normal; vertical-align:bottom; }
tr.sum td:not(.word) { font-weight:400; } .legend { max-width:none; }
.clips { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,500px),1fr)); gap:16px; }
.clip { background:var(--panel); border-radius:6px; padding:14px; min-width:0; }
.film { display:grid; grid-template-columns:112px 1fr; gap:12px; align-items:start; margin-bottom:12px; }
.film p { margin:0 0 8px; overflow-wrap:anywhere; } .film img { width:100%; border-radius:3px; }
.says { display:grid; grid-template-columns:repeat(auto-fit,minmax(128px,1fr)); gap:12px 18px; }
@media (prefers-reduced-motion:reduce) { .moving { visibility:hidden; } }
"""


def write_joint_report(
    path: str,
    *,
    title: str,
    results: Mapping[str, Any],
    curves: Curves,
    confusions: Mapping[str, Mapping[str, np.ndarray]],
    clips: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: Mapping[str, Any],
    selected: Mapping[str, float] | None = None,
    experts: Mapping[str, float] | None = None,
) -> None:
    """Writes the page; a section, panel, map or clip without material is left out.

    Args:
      path: of the file, replaced as a whole.
      title: of the page.
      results: as `must.evaluate.joint.results` makes them; an entry "notes" holds further sentences.
      curves: {arm: {series: {"step": [...], "value": [...]}}} of one seed; the series "validation/<set>/<metric>" of the
        students and "validation/<set>-teacher/<metric>" of the teachers are shown.
      confusions: {set: {head: [classes of the set, classes of the head]}}, as `must.evaluate.joint.confusion` makes them.
      clips: {set: [{"video": uint8 [T, H, W, 3], "truth": class name or None, "answers": {network: probabilities [C]}}]}.
      settings: anything that JSON can hold, by heading.
      selected: {arm: step whose weights were kept}.
      experts: {set: the expert's score on the validation split}; without it the curves have its score in the results.
    """
    series = _series(results)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_scope(results))}</p>',
        _words(results),
        _scores(results, series),
        _differences(results),
        _learning(results, series, curves, selected or {}, experts),
        _confusions(results, confusions),
        _clips(results, clips),
        _costs(results),
        settings_section({**settings, "seeds": results["seeds"]}),
    ]
    save_page(path, title, body, style=_STYLE)


def _series(results: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """{column: (series, light)}: one color per arm, light for its teachers; gray for the experts."""
    found = {"expert": (0, False)}
    for index, arm in enumerate(results["arms"].values()):
        found |= {column: (1 + index, column == "teacher" or column.endswith("-teacher")) for column in arm}
    own = {column for entry in results["tasks"].values() for column in entry["columns"]}
    return {column: look for column, look in found.items() if column in own}


def _scope(results: Mapping[str, Any]) -> str:
    sets, seeds = len(results["tasks"]), len(results["seeds"])
    runs = f"{seeds} seeds, means with 95 % t intervals" if seeds > 1 else "one seed"
    return f"Joint experts (JEDI) · {sets} data set{'s' if sets != 1 else ''} · {runs}"


def _unit(results: Mapping[str, Any]) -> str:
    unit = results["over_sets"]["unit"]
    return "points" if unit == "%" else unit


def _words(results: Mapping[str, Any]) -> str:
    """What every difference says, one sentence each."""
    lines = []
    for entry in results["over_sets"]["differences"]:
        said = "undefined"
        if entry["mean"] is not None:
            above = sum(found["mean"] is not None and found["mean"] > 0 for found in entry["by_set"].values())
            interval = f" [{entry['ci95'][0]:+.1f}, {entry['ci95'][1]:+.1f}]" if entry["ci95"] else ""
            said = f"{entry['mean']:+.1f}{interval} {_unit(results)}{tables.p_text(entry)}"
            said += f"; above 0 in {above} of {len(entry['sets'])} sets" if len(entry["sets"]) > 1 else ""
        if entry["as_expected"] is not None:
            said += "; as expected" if entry["as_expected"] else f"; expected {entry['expected']} 0"
        lines.append(f"<b>{escape(entry['name'][:1].upper() + entry['name'][1:])}.</b> {escape(said)}.")
    lines += [escape(note) for note in results.get("notes", [])]
    if lines and len(results["seeds"]) == 1:
        lines.append("One seed gives no interval: small differences may be chance.")
    return f'<ul class="lead">{"".join(f"<li>{line}</li>" for line in lines)}</ul>' if lines else ""


def _scores(results: Mapping[str, Any], series: Mapping[str, tuple[int, bool]]) -> str:
    """Bars per set and of their mean, what the columns are, then the figures."""
    over, rows = results["over_sets"], dict(results["tasks"])
    if len(rows) > 1:
        rows[_MEAN] = over
    groups = [
        (name, [_bar(name, column, entry, series[column]) for column in series if column in entry["columns"]])
        for name, entry in rows.items()
    ]
    many = len(results["seeds"]) > 1
    chart = bars.bars(
        groups,
        axis=f"{tables.metric(over)} on the test split",
        most=100 if over["unit"] == "%" else None,
        last_apart=len(results["tasks"]) > 1,
    )
    said = [
        f"<li><b>{escape(column)}</b>: {escape(words)}{' (control, must lose)' * (column in results['controls'])}</li>"
        for column in series
        if (words := results["words"].get(column))
    ]
    runs = " Points are single seeds, lines 95 % intervals." if many else ""
    keys = bars.legend([(*look, column) for column, look in series.items()])
    note = f"<p>Full bars are students, light ones teachers; the dashed line is the expert's score.{runs}</p>"
    table = tables.scores(rows, list(series), kind="set", sums=int(_MEAN in rows))
    return f'<h2>Scores</h2>{note}{keys}<div class="scroll">{chart}</div><ul class="soft">{"".join(said)}</ul>{table}'


def _bar(name: str, column: str, entry: Mapping[str, Any], look: tuple[int, bool]) -> bars.Bar:
    summary = entry["columns"][column]
    hint = f"{name}, {column}: {tables.figures(summary, tables.decimals(entry))}"
    return bars.Bar(*look, summary["mean"], summary["ci95"], summary["per_seed"], hint)


def _differences(results: Mapping[str, Any]) -> str:
    """One dot per difference, controls by themselves, and the sets folded away."""
    found = results["over_sets"]["differences"]
    if not found:
        return ""
    axis = f"difference in {results['over_sets']['metric']}, {_unit(results)}, mean over sets (right is better)"
    # Controls lie far away and would squeeze the others together.
    controls = [d for d in found if {d["subject"], d["reference"]} & set(results["controls"])]
    parts = []
    for some in ([d for d in found if d not in controls], controls):
        rows = [(d["name"], [_dot(0 if d in controls else 1, d)]) for d in some]
        parts += [f'<div class="scroll">{charts.dots(rows, axis=axis, width=1000)}</div>'] if rows else []
    paired = "paired by seed, " if len(results["seeds"]) > 1 else ""
    head = f"<h2>Differences</h2><p>Mean over sets, {paired}better positive. No p is corrected for the number of tests.</p>"
    sets = list(results["tasks"])
    if len(sets) > 1:
        rows = []
        for d in found:
            dots = [_dot(1 + sets.index(name), summary) for name, summary in d["by_set"].items()]
            rows.append((d["name"], [*dots, _dot(0, d)]))
        chart = charts.dots(rows, axis=axis.replace(", mean over sets", ""), width=1000)
        legend = charts.legend([_MEAN, *sets])
        parts += [f'<details><summary>Set by set</summary>{legend}<div class="scroll">{chart}</div></details>']
    return head + "".join(parts)


def _dot(series: int, summary: Mapping[str, Any]) -> charts.Dot:
    words = tables.figures(summary, 1, signed=True) + tables.p_text(summary)
    return charts.Dot(series, summary["mean"], summary["ci95"], words)


def _learning(
    results, series, curves: Curves, selected: Mapping[str, float], experts: Mapping[str, float] | None
) -> str:
    """One panel per set with the students and teachers of all arms, the expert as a level."""
    panels, shown = [], set()
    for name, entry in results["tasks"].items():
        found = []
        for arm, columns in results["arms"].items():
            for column in columns:
                number, light = series.get(column, (0, False))
                curve = curves.get(arm, {}).get(f"validation/{name}{'-teacher' if light else ''}/{entry['metric']}")
                if curve and len(curve.get("step", [])) == len(curve.get("value", [0])):
                    found.append(charts.Line(number, curve["step"], curve["value"], light, selected.get(arm)))
                    shown.add(column)
        mean = entry["columns"].get("expert", {}).get("mean")
        level = mean if experts is None else experts.get(name)
        panels.append(charts.lines(found, title=name, axis=tables.metric(entry), level=level, width=350, height=230))
    if not any(panels):
        return ""
    split = "test" if experts is None else "validation"
    ring = " A ring marks the step whose weights were kept." if any(arm in selected for arm in results["arms"]) else ""
    text = f"Validation split, one seed; dashed are teachers, the gray level is the expert on the {split} split.{ring}"
    keys = bars.legend([(*look, c) for c, look in series.items() if c in shown or c == "expert"], lines=True)
    return f'<h2>Learning curves</h2><p>{text}</p>{keys}<div class="panels">{"".join(panels)}</div>'


def _confusions(results: Mapping[str, Any], confusions: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    maps = matrices.heat_maps(confusions, results["classes"])
    if not maps:
        return ""
    text = (
        "Rows are examples by their class in their own set, columns what a student's head says about them. The sets' own "
        "heads are framed; the other maps show which classes of two sets look alike to the students. Hover a cell for "
        "its figures; a dotted row has no examples."
    )
    return (
        f'<h2>What every head says about every set</h2><p>{text}</p>{matrices.scale()}<div class="scroll">{maps}</div>'
    )


def _clips(results: Mapping[str, Any], clips: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    parts = []
    for name, found in clips.items():
        cards = "".join(_clip(name, clip, results["classes"].get(name, [])) for clip in found)
        parts += [f'<h3>{escape(name)}</h3><div class="clips">{cards}</div>'] if cards else []
    text = "Test examples, of clips some frames, and the most probable classes; blue is the true class."
    return f"<h2>Examples</h2><p>{text}</p>{''.join(parts)}" if parts else ""


def _clip(name: str, clip: Mapping[str, Any], classes: Sequence[str]) -> str:
    video, truth = np.asarray(clip["video"], np.uint8), clip.get("truth")
    if not len(video):
        return ""
    fps = float(np.clip(len(video) / 2.5, 4, 8))
    alt = escape(f"{name}: {truth or 'a clip'}, {len(video)} frames", quote=True)
    says = []
    for network, probs in clip["answers"].items():
        probs = np.asarray(probs, np.float64)
        if probs.shape == (len(classes),) and np.isfinite(probs).all():
            best = np.argsort(-probs, kind="stable")[:_ANSWERS]
            says.append(
                f"<div>{bars.answer(network, [(classes[i], float(probs[i])) for i in best], truth=truth)}</div>"
            )
    said = f"<p><b>{escape(truth)}</b></p>" if truth else '<p class="soft">no truth</p>'
    return (
        f'<article class="clip"><div class="film"><img class="moving" src="{animation_uri(video, fps)}" alt="{alt}">'
        f'<div>{said}<img src="{data_uri(strip(video), quality=85)}" alt="{alt}"></div></div>'
        f'<div class="says">{"".join(says)}</div></article>'
    )


def _costs(results: Mapping[str, Any]) -> str:
    running = tables.costs(results["costs"], of="example")
    spent = tables.seconds(results["seconds"], results["images_per_second"], of="example")
    parts = [f"<div><h2>What answering costs</h2>{running}</div>"] if running else []
    parts += [f"<div><h2>Where the time went</h2>{spent}</div>"] if spent else []
    return f'<div class="pairs">{"".join(parts)}</div>' if parts else ""
