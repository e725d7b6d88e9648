"""The page of a comparison: one self-contained file, no scripts, nothing fetched. Any page is `save_page` of sections.

Figures come from `results.json` by way of `must.report.table`, and from arrays that the caller gathered.
"""

import functools
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.core import files
from must.report import charts, table
from must.report.charts import COLORS, Dot, Line
from must.report.pictures import animation_uri, contact_sheet, data_uri, strip
from must.report.table import DELTA_M, MEAN, Grid, Row

STATES = ("positive", "ignored", "negative")
_MAX_CLASSES = 40  # in a chart of label states
_TOP = 3  # classes per prediction
_FEW = 4  # curves with intervals that one panel holds


class Section(NamedTuple):
    """A part of a page: heading, HTML, and a paragraph of plain text between them."""

    title: str
    html: str
    text: str = ""


def write_page(
    path: str | os.PathLike,
    *,
    title: str,
    results: Mapping[str, Any],
    sections: Sequence[Section],
    settings: Mapping[str, Any],
) -> None:
    """Writes the page of a comparison.

    Args:
      path: of the file, replaced as a whole.
      title: of the page.
      results: what `results.json` holds, schema "must.results/2".
      sections: what the recipe adds to tables and charts; those without content are left out.
      settings: anything that JSON can hold, by heading; folded away at the end.
    """
    body: list[Section] = []
    for split in table.splits(results):
        body += [
            _scores(results, split),
            _along(results, split),
            _differences(results, split),
            _over_guess(results, split),
        ]
    grids = [grid for grid in (table.cost_grid(results), table.time_grid(results)) if grid.groups]
    costs = "".join(f"<div><h3>{escape(grid.title)}</h3>{html_table(grid)}</div>" for grid in grids)
    body += [*sections, Section("Costs and time", f'<div class="pairs">{costs}</div>' if costs else "")]
    scope = f"Recipe {results['recipe']} · {_count(results['tasks'], 'task')} · {table.spread(results)}"
    shown = {**settings, "seeds": results["seeds"]}
    save_page(path, title, body, scope=scope, summary=summary(results), settings=shown)


def save_page(
    path: str | os.PathLike,
    title: str,
    sections: Iterable[Section],
    *,
    scope: str = "",
    summary: Sequence[Any] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes one self-contained file, replaced as a whole.

    Args:
      path: of the file.
      title: of the page.
      sections: in order; those without HTML are left out.
      scope: line below the title.
      summary: sentences at the top, plain text or markup.
      settings: anything that JSON can hold, by heading.
    """
    texts = {
        str(name): value if isinstance(value, str) else json.dumps(value, indent=2, default=str)
        for name, value in (settings or {}).items()
    }
    parts = [section for section in sections if section.html]
    page = _templates()["page"].render(
        title=title, scope=scope, summary=summary, sections=parts, settings=texts, colors=charts.STYLE
    )
    files.write_text(path, page)


def html_table(grid: Grid) -> str:
    """A grid as an HTML table; cells are shaded by their gain over the group's row without settings across."""
    return str(_templates()["macros"].module.table(grid))


@functools.cache
def _templates() -> dict[str, Any]:
    """The two parts of page.html: macros, and the page itself."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.globals.update(spans=_spans, shades_of=_shades)
    macros, start, rest = Path(__file__).with_name("page.html").read_text(encoding="utf-8").partition("<!DOCTYPE html>")
    return {"macros": environment.from_string(macros), "page": environment.from_string(start + rest)}


def _spans(grid: Grid) -> list[tuple[str, int]]:
    """The first lines of the heads and how many columns share each."""
    return [(text, len(list(same))) for text, same in itertools.groupby(head[0] for head in grid.heads)]


def _shades(grid: Grid, heading: str, row: Row) -> list[str]:
    """Backgrounds of a row: blue above the group's own teacher, orange below, by how far; none without such a row."""
    gains, limits = _gains(grid)
    return [
        _tint(gains[heading, id(row), i] / limits[i]) if (heading, id(row), i) in gains else ""
        for i in range(len(row.cells))
    ]


def _tint(share: float) -> str:
    strength = round(55 * min(1.0, abs(share)))
    return f"color-mix(in srgb, var(--{'good' if share >= 0 else 'bad'}) {strength}%, transparent)"


def _gains(grid: Grid) -> tuple[dict[tuple[str, int, int], float], list[float]]:
    """{(heading, row, column): gain over the baseline of its group and task}, and the largest gain of each task."""
    gains, limits = {}, [0.0] * len(grid.heads)
    for heading, rows in grid.groups:
        for i, (first, second) in enumerate(grid.heads):
            bases = [j for j, head in enumerate(grid.heads) if head == (first, "") and second]
            baseline = [row.cells[j] for j in bases for row in rows if row.cells[j]]
            if not heading or len(baseline) != 1 or baseline[0].mean is None:
                continue
            for row in rows:
                if row.cells[i] and row.cells[i].mean is not None:
                    sign = -1 if first.endswith("↓") else 1
                    gain = gains[heading, id(row), i] = sign * (row.cells[i].mean - baseline[0].mean)
                    for j, head in enumerate(grid.heads):
                        if head[0] == first and row.kind != "control":
                            limits[j] = max(limits[j], abs(gain))
    return gains, [limit or 1.0 for limit in limits]


def summary(results: Mapping[str, Any]) -> list[str]:
    """One sentence per contrast over all tasks (or per contrast, where there are few), and the notes of the results."""
    sentences, many = [], len(results["seeds"]) > 1
    split = (table.splits(results) or [""])[0]
    mine = [c for c in results["contrasts"] if c["split"] == split and c["reference"] != table.GUESS]
    names = dict.fromkeys(c["name"] for c in mine)
    overall = [name for name in names if any(c["name"] == name and c["task"] in (DELTA_M, MEAN) for c in mine)]
    for name in overall or (names if len(names) <= 12 else ()):
        entries = [c for c in mine if c["name"] == name]
        parts = [_verdict(results, split, c) for c in entries if c["task"] in (DELTA_M, MEAN) or not overall]
        single = [c for c in entries if c["task"] in results["tasks"]]
        if overall and single:
            better = sum(c["mean"] is not None and c["mean"] > 0 for c in single)
            parts.append(f"better on {better} of {_count(single, 'task')}")
            if any(c["ci95"] for c in single):
                parts.append(f"on {sum(bool(c['ci95']) and c['ci95'][0] > 0 for c in single)} with an interval above 0")
        sentences.append(f"{name[:1].upper()}{name[1:]}: {'; '.join(parts)}.")
    if sentences and not many:
        sentences.append(
            "Intervals are over the test images of one seed: another seed may differ by more."
            if table.bootstrapped(results, split)
            else "One seed gives no interval: small differences may be chance."
        )
    return [*sentences, *results["notes"]]


def _verdict(results: Mapping[str, Any], split: str, contrast: Mapping[str, Any]) -> str:
    digits = 1 if contrast["task"] == DELTA_M else table.places(results, split, contrast["task"])
    label = table.task_label(results, contrast["task"])
    if contrast["mean"] is None:
        return f"{label} undefined"
    unit = "%" if contrast["unit"] == "%" else f" {contrast['unit']}".rstrip()
    words = f"{label} {contrast['mean']:+.{digits}f}{unit}"
    if contrast["ci95"]:
        low, high = contrast["ci95"]
        words += f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    if contrast["pairs"]:
        above = sum(pair["mean"] is not None and pair["mean"] > 0 for pair in contrast["pairs"])
        words += f", above 0 in {above} of {len(contrast['pairs'])} pairs"
    if contrast["expected"]:
        verdict = {True: "as expected", False: f"expected {contrast['expected']} 0", None: "undecided"}
        words += f", {verdict[contrast['holds']]}"
    return words


def _count(things: Any, word: str) -> str:
    return f"{len(things)} {word}{'s' if len(things) != 1 else ''}"


def _scores(results: Mapping[str, Any], split: str) -> Section:
    """The table of scores, a chart of them where columns differ in no setting across, and every seed."""
    grid, many = table.score_grid(results, split), len(results["seeds"]) > 1
    notes = ["Bold is the best of its column; controls, oracles and the constant guess do not compete."]
    notes += ["± is half of the 95% t interval over seeds."] if many else []
    notes += ["A shade is the gain over the group's teacher: blue better, orange worse."] if _gains(grid)[0] else []
    html = html_table(grid)
    guess = results["columns"].get(table.GUESS, {}).get("label")
    rows = [row for _, group in grid.groups for row in group if row.label != guess]  # far away from all others
    if not table.across_of(results) and many:
        panels = []
        for i, (task, entry) in enumerate(table.tasks_of(results).items()):
            runs = {c["label"]: table.scores(results, n, split, task) for n, c in results["columns"].items()}
            cells = [row.cells[i] for row in rows]
            dots = [
                Dot(c.mean, c.ci95, runs.get(r.label) or ()) if c else None for r, c in zip(rows, cells, strict=True)
            ]
            panels.append((f"{table.task_label(results, task)}\n{table.metric(entry)}", dots))
        colors = [COLORS[0] if row.kind == "control" else COLORS[1] for row in rows]
        words = f"scores on {split} with 95% intervals; small marks are seeds"
        drawn = charts.estimates(panels, [row.label for row in rows], colors=colors, words=words)
        html += f'<div class="scroll">{drawn}</div>'
    return Section(grid.title, html + _per_seed(results, split), " ".join(notes))


def _per_seed(results: Mapping[str, Any], split: str) -> str:
    if len(results["seeds"]) < 2:
        return ""
    rows = []
    for name, column in results["columns"].items():
        for task, values in column["scores"].get(split, {}).items():
            digits = table.places(results, split, task)
            rows.append(Row(f"{name}, {task}", [table.Cell(table.figure(v, None, digits), v) for v in values]))
    grid = Grid("", [("", f"seed {seed}") for seed in results["seeds"]], [("", rows)])
    return f"<details><summary>Every seed</summary>{html_table(grid)}</details>"


def _along(results: Mapping[str, Any], split: str) -> Section:
    """Scores along a numeric setting: every row of the table against the reference that most contrasts share."""
    across = table.across_of(results)
    numeric = [axis for axis, labels in across.items() if all(isinstance(value, (int, float)) for value in labels)]
    if len(across) != 1 or not numeric or len(across[numeric[0]]) < 2:
        return Section("", "")
    axis, panels, y = results["axes"][numeric[0]], [], []
    reference = _reference(results)
    tasks = table.tasks_of(results)
    for task, entry in tasks.items():
        rows: dict[str, dict[float, tuple]] = {}
        for name, column in results["columns"].items():
            values, at = table.scores(results, name, split, task), table.setting(results, name, numeric[0])
            if values and at is not None and table.summary(values)[0] is not None:
                rows.setdefault(column["label"], {})[at] = table.summary(values)
        curves = {label: _trend(label, points) for label, points in rows.items()}
        before = len(panels)
        if len(curves) <= _FEW:
            colored = zip(curves.values(), COLORS, strict=False)
            panels.append((task, [curve._replace(color=color) for curve, color in colored]))
        else:
            gray = [curves[reference]._replace(color=COLORS[0])] if reference in curves else []
            of_task = f"{task}: " if len(tasks) > 1 else ""
            panels += [(of_task + label, [*gray, curve]) for label, curve in curves.items() if label != reference]
        y += [table.metric(entry)] * (len(panels) - before)
    drawn = charts.lines(
        panels, x=axis["label"], y=y, ticks=sorted(across[numeric[0]]), words=f"scores by {axis['label']}"
    )
    title = f"Scores by {axis['label']}" + (f" on {split}" if len(table.splits(results)) > 1 else "")
    return Section(title, drawn, "Bands are 95% intervals over seeds." if len(results["seeds"]) > 1 else "")


def _trend(label: str, points: Mapping[float, tuple]) -> Line:
    at = sorted(points)
    return Line(label, at, [points[x][0] for x in at], intervals=[points[x][1] for x in at])


def _reference(results: Mapping[str, Any]) -> str:
    """The label of the column that most contrasts refer to."""
    names = [c["reference"] for c in results["contrasts"] if isinstance(c["reference"], str)]
    labels = [results["columns"][name]["label"] for name in names if name in results["columns"]]
    return max(dict.fromkeys(labels), key=labels.count) if labels else ""


def _differences(results: Mapping[str, Any], split: str) -> Section:
    """A forest plot of the contrasts, one panel per task, controls by themselves; then the figures with every pair."""
    grid = table.contrast_grid(results, split)
    if not grid.groups:
        return Section("", "")
    rows = [row for row in grid.groups[0][1] if row.kind != "pair"]
    shown = [i for i, head in enumerate(grid.heads) if head[0] != "expected"]
    controls = {name for name, column in results["columns"].items() if column["control"] or name.startswith("oracle")}
    apart = {c["name"] for c in results["contrasts"] if {str(c["subject"]), str(c["reference"])} & controls}
    html = ""
    # Controls and oracles lie far away and would squeeze the other rows together.
    for group in ([r for r in rows if not _is_apart(r, apart)], [r for r in rows if _is_apart(r, apart)]):
        panels = []
        for i in shown:
            title = " ".join(filter(None, (grid.heads[i][0], f"\n{grid.heads[i][1]}" if grid.heads[i][1] else "")))
            panels.append((title, [Dot(c.mean, c.ci95) if c else None for c in (row.cells[i] for row in group)]))
        panels = [panel for panel in panels if any(panel[1])]
        if group and panels:
            drawn = charts.estimates(panels, [row.label for row in group], zero=True, words=f"differences on {split}")
            html += f'<div class="scroll">{drawn}</div>'
    text = "Right of the line is better, whatever the metric."
    text += (
        " Blue and orange intervals do not contain 0." if any(c and c.ci95 for row in rows for c in row.cells) else ""
    )
    return Section(grid.title, f"{html}<details open><summary>In figures</summary>{html_table(grid)}</details>", text)


def _is_apart(row: Row, names: set[str]) -> bool:
    return any(name == row.label or name.startswith(f"{row.label}, ") for name in names)


def _over_guess(results: Mapping[str, Any], split: str) -> Section:
    grid = table.guess_grid(results, split)
    return Section(grid.title, html_table(grid) if grid.groups else "")


def curves_section(
    curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    *,
    levels: Mapping[str, tuple[float, str]] | None = None,
    selected: Mapping[str, float] | None = None,
) -> Section:
    """Validation curves per task and metric, then the training loss of every run.

    Args:
      curves: {run: {series: {"step": [...], "value": [...]}}}; "loss" and "validation/<task>/<metric>" are drawn.
      levels: {task: (score, words)} of a horizontal line in a task's panel.
      selected: {run: step whose weights were kept}, drawn as a ring.
    """
    panels: dict[str, list[Line]] = {}
    names = {run: _run_label(run) for run in curves}
    order = list(dict.fromkeys(label for label, _ in names.values()))
    for run, series in curves.items():
        label, dashed = names[run]
        color = COLORS[(1 + order.index(label)) % len(COLORS)]
        for name, points in series.items():
            kind, _, what = name.partition("/")
            if kind == "validation" and what.count("/") == 1 and len(points["step"]):
                task, _, measure = what.partition("/")
                teacher = task.endswith("-teacher")
                line = Line(label, points["step"], points["value"], color, dashed or teacher, (selected or {}).get(run))
                panels.setdefault(f"{task.removesuffix('-teacher')}: {measure}", []).append(line)
    # The headline metric of a task comes first in its metrics.
    first: dict[str, str] = {}
    for title in panels:
        first.setdefault(title.partition(":")[0], title)
    heads = [(title, _distinct(panels[title])) for title in first.values()]
    lines_at = [(levels or {}).get(task) for task in first]
    html = charts.lines(heads, x="step", levels=lines_at, words="validation curves") if heads else ""
    losses = {run: series["loss"] for run, series in curves.items() if len(series.get("loss", {}).get("step", ()))}
    if losses:
        drawn = [(run, [Line("", points["step"], points["value"], COLORS[0])]) for run, points in losses.items()]
        losses_chart = charts.lines(drawn, x="step", words="training losses")
        html += f"<details><summary>Training loss of every run</summary>{losses_chart}</details>"
    dashes = " Dashed lines are teachers." if any(line.dashed for _, group in heads for line in group) else ""
    rings = " A ring marks the step whose weights were kept." if selected else ""
    flat = "".join(f" The horizontal line is {words}." for words in {words for _, words in (levels or {}).values()})
    return Section("Learning curves", html, f"On the validation split, first seed.{dashes}{rings}{flat}")


def _run_label(run: str) -> tuple[str, bool]:
    """A run's name without its directory and task: "teachers/depth" -> "teacher"."""
    first, _, rest = run.strip("/").partition("/")
    if first == "teachers":
        return "teacher", False
    name = (rest or first).rpartition("/")[2]
    return name.split("-")[0] if name.startswith("scratch-") else name, False


def _distinct(group: Sequence[Line]) -> list[Line]:
    """Curves with their names once each; a dashed one beside its full one goes without."""
    named: set[str] = set()
    return [line._replace(name="" if line.name in named or named.add(line.name) else line.name) for line in group]


def label_states_section(counts: Mapping[str, Mapping[str, Sequence[int]]]) -> Section:
    """What the label policy makes of the pseudo labels: {task: {class: (positive, ignored, negative)}}."""
    drawn = []
    for task, classes in counts.items():
        rows = sorted(
            ((str(name), [int(n) for n in states]) for name, states in classes.items()), key=lambda r: -sum(r[1])
        )
        left_out = f", the {_MAX_CLASSES} most frequent of {len(rows)} classes" if len(rows) > _MAX_CLASSES else ""
        if rows:
            drawn.append(f"<div>{charts.shares(rows[:_MAX_CLASSES], STATES, title=task + left_out)}</div>")
    html = f'<div class="pairs">{"".join(drawn)}</div>' if drawn else ""
    return Section(
        "Label states",
        html,
        "Pseudo labels by state under the label policy; figures are the positive share. Where a "
        "picture has one class, every class that its teacher stored counts, and only the likeliest can be positive.",
    )


def pictures_section(grids: Mapping[str, Mapping[str, Any]]) -> Section:
    """Contact sheets: {task: {"columns": [names], "rows": [[uint8 [H, W, 3] per column]]}}."""
    figures = []
    for task, grid in grids.items():
        rows = [[np.asarray(picture, np.uint8) for picture in row] for row in grid["rows"]]
        if rows:
            alt = escape(f"{task}: {', '.join(grid['columns'])}", quote=True)
            image = f'<img src="{data_uri(contact_sheet(rows, grid["columns"]))}" alt="{alt}">'
            figures.append(f'<details open><summary class="name">{escape(task)}</summary>{image}</details>')
    return Section("Pictures", "".join(figures))


def weights_section(found: Mapping[str, Mapping[str, np.ndarray]], run: str = "") -> Section:
    """How pseudo labels were weighted or corrected.

    Args:
      found: {arm: {"<task>|<what>": array}}; what is "weights", "true_weights" (NaN where nothing is known),
        "places" (of these examples in the pool), "covariates", "held_out", or "accuracy", "correct", "candidates",
        "floored".
      run: whose weights these are.
    """
    blocks = []
    for arm, arrays in found.items():
        for task in dict.fromkeys(key.partition("|")[0] for key in arrays):
            own = {key.partition("|")[2]: value for key, value in arrays.items() if key.startswith(f"{task}|")}
            title = f"{arm}, {task}"
            if "weights" in own:
                blocks.append(charts.weights(own["weights"], own.get("covariates"), own.get("held_out"), title=title))
            if np.isfinite(own.get("true_weights", np.nan)).any():
                blocks.append(_against_truth(own["weights"], own["true_weights"]))
            if "accuracy" in own and "correct" in own:
                blocks.append(_accuracy(own, title))
    text = (
        "Of the finished students. Rings are validation examples; a cell is the more solid the more examples it holds."
    )
    return Section(f"Example weights: {run}" if run else "Example weights", "".join(blocks), text)


def _against_truth(weights: np.ndarray, true: np.ndarray) -> str:
    """How estimated weights compare with those from the truth of the same examples."""
    weights, true = (each[np.isfinite(true)] for each in (weights, true))
    low, high = np.quantile(true, (0.05, 0.95))
    varies = min(np.ptp(weights), np.ptp(true)) > 0
    told = f"; correlation {np.corrcoef(weights, true)[0, 1]:.2f}" if varies else ""
    return (
        f"<p>Weights from the true labels of these examples: mean {true.mean():.2f}, 5% to 95% {low:.2f} to "
        f"{high:.2f}; mean of the estimated ones {weights.mean():.2f}{told}.</p>"
    )


def _accuracy(own: Mapping[str, np.ndarray], title: str) -> str:
    """Estimated against true accuracy of the teacher, and how many candidates the examples have."""
    from must.core.proportions import wilson

    known = np.isfinite(own["correct"])
    claimed, correct = own["accuracy"][known], own["correct"][known]
    parts = np.array_split(np.argsort(claimed, kind="stable"), max(1, min(10, len(claimed))))
    bins = [(claimed[p].mean(), correct[p].mean(), *wilson(correct[p].sum(), len(p))) for p in parts if len(p)]
    gap = sum(len(p) * abs(b[0] - b[1]) for p, b in zip(parts, bins, strict=False)) / max(1, len(claimed))
    words = f"mean gap {100 * gap:.1f} points over {len(claimed):,} examples"
    drawn = charts.reliability([(f"{title}: accuracy of the teacher", words, bins)], title)
    counts = np.bincount(np.asarray(own.get("candidates", ()), int))
    rows = [Row(str(k), [table.Cell(f"{count:,}")]) for k, count in enumerate(counts) if count]
    listed = html_table(Grid("", [("", "examples")], [("", rows)], ["Rows are numbers of candidate classes."]))
    floor = f"<p>The floor acts on {100 * float(own.get('floored', 0)):.0f}% of the examples.</p>"
    return f'<div class="pairs"><div>{drawn}</div><div>{floor}{listed}</div></div>'


def confusion_section(rates: Mapping[str, Mapping[str, np.ndarray]], classes: Mapping[str, Sequence[str]]) -> Section:
    """What each student's head predicts for the examples of each set.

    Args:
      rates: {set: {head: [classes of the set, classes of the head]}}; rows sum to 1.
      classes: {set: names of its classes}.
    """

    def fits(name: str, head: str, rate: np.ndarray) -> bool:
        return np.shape(rate) == (len(classes[name]), len(classes[head]))

    able = {name: {h: np.asarray(r) for h, r in by.items() if fits(name, h, r)} for name, by in rates.items()}
    html = charts.matrices(able, {name: classes[name] for name in able}, classes, "predictions by class")
    text = (
        "Rows are test examples by their true class, columns the predicted classes, in % of a row. A set's own head is "
        "framed; the other maps show which classes of two sets look alike to the students."
    )
    return Section("Predictions of every head for every set", f'<div class="scroll">{html}</div>' if html else "", text)


def clips_section(clips: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
    """Test examples with the most probable classes of each network.

    Args:
      clips: {set: [{"video": uint8 [T, H, W, 3], "truth": class or None, "classes": names, "predictions": {network:
        probabilities [C]}}]}.
    """
    parts = []
    for name, examples in clips.items():
        cards = "".join(_clip(name, clip) for clip in examples if len(clip["video"]))
        parts += [f'<h3>{escape(name)}</h3><div class="clips">{cards}</div>'] if cards else []
    return Section("Examples", "".join(parts), "Test examples and the most probable classes; bold is the true class.")


def _clip(name: str, clip: Mapping[str, Any]) -> str:
    video, truth, classes = np.asarray(clip["video"], np.uint8), clip.get("truth"), clip["classes"]
    alt = escape(f"{name}: {truth or 'an example'}, {len(video)} frames", quote=True)
    lists = []
    for network, probs in clip["predictions"].items():
        probs = np.asarray(probs, np.float64)
        if probs.shape != (len(classes),) or not np.isfinite(probs).all():
            continue
        best = np.argsort(-probs, kind="stable")[:_TOP]
        mark = "" if truth is None else " ✓" if classes[best[0]] == truth else " ✗"
        rows = "".join(_probability(classes[i], float(probs[i]), classes[i] == truth) for i in best)
        lists.append(f"<div><b>{escape(network)}</b>{mark}<ul>{rows}</ul></div>")
    head = f"<p><b>{escape(str(truth))}</b></p>" if truth else '<p class="soft">no truth</p>'
    fps = float(np.clip(len(video) / 2.5, 4, 8))
    return (
        f'<article class="clip"><div class="film"><img class="moving" src="{animation_uri(video, fps)}" alt="{alt}">'
        f'<div>{head}<img src="{data_uri(strip(video), quality=85)}" alt="{alt}"></div></div>'
        f'<div class="guesses">{"".join(lists)}</div></article>'
    )


def _probability(label: str, share: float, true: bool) -> str:
    words = f"<b>{escape(label)}</b>" if true else escape(label)
    return f"<li><span>{words}</span><span>{100 * share:.0f}%</span></li><meter value='{share:.3f}'></meter>"
