"""The page about a grid of arms: what the contrasts say, every score beside its teacher's, what several tasks at once cost.

Everything is taken from the results as `must.evaluate.grid.grid_results` makes them; nothing is computed here but positions
and words.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from must.report import charts, tables
from must.report.html import pictures_section, save_page, settings_section

_STRENGTH = 0.6  # of the colors behind figures
_CELL = (112, 26)  # pixels
_HEAD = 30  # pixels of a row that names teachers


def write_page(
    path: str,
    *,
    title: str,
    results: Mapping[str, Any],
    pictures: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> None:
    """Writes the page; a section without material is left out.

    Args:
      path: of the file, replaced as a whole.
      title: of the page.
      results: as `must.evaluate.grid.grid_results` makes them.
      pictures: {task: {"columns": [names], "rows": [[uint8 [H, W, 3] per column]]}}.
      settings: anything that JSON can hold, by heading.
    """
    body = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(_scope(results))}</p>', _words(results)]
    if notes := results["layout"]["notes"]:
        body += [f'<p class="soft">{"<br>".join(map(escape, notes))}</p>']
    for task, entry in results["tasks"].items():
        body += [_map(results, task, entry), _contrasts(results, task, entry)]
    body += [_several_tasks(results), _scores(results), _costs(results), pictures_section(pictures)]
    body += [settings_section({**settings, "seeds": results["seeds"]})]
    save_page(path, title, body)


def _scope(results: Mapping[str, Any]) -> str:
    students = sum(arm is not None for arm in results["arms"].values())
    count, constant = len(results["seeds"]), results["layout"]["constant"]
    runs = f"{count} seeds, means with 95 % t intervals" if count > 1 else "one seed"
    return f"Recipe {results['recipe']} · {students} arms · {runs}" + (
        f" · in all arms: {constant}" if constant else ""
    )


def _words(results: Mapping[str, Any]) -> str:
    """What every contrast says, one sentence per task."""
    lines = []
    for name in dict.fromkeys(entry["name"] for entry in results["contrasts"]):
        found = [entry for entry in results["contrasts"] if entry["name"] == name and entry["pairs"]]
        said = "; ".join(_sentence(entry, results["tasks"][entry["task"]]) for entry in found) or "no such pair of arms"
        lines.append(f"<b>{escape(_capital(name))}.</b> {escape(_capital(said))}.")
    for entry in results["delta_m"]:
        said = f"Δm {_verdict(entry, 1, '%')} over one column per task"
        lines.append(f"<b>{escape(_capital(entry['name']))}.</b> {escape(said)}.")
    return f'<ul class="lead">{"".join(f"<li>{line}</li>" for line in lines)}</ul>' if lines else ""


def _sentence(entry: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    pairs, unit = entry["pairs"], tables.metric(about)
    verdict = _verdict(entry["pooled"], tables.decimals(about), unit)
    if len(pairs) == 1:
        return f"{entry['task']}: {verdict}"
    above = sum(_above(pair) for pair in pairs)
    return f"{entry['task']}: above 0 in {above} of {len(pairs)} pairs, mean {verdict}"


def _verdict(summary: Mapping[str, Any], places: int, unit: str) -> str:
    if summary["mean"] is None:
        return "undefined"
    interval = f" [{summary['ci95'][0]:+.{places}f}, {summary['ci95'][1]:+.{places}f}]" if summary["ci95"] else ""
    return f"{summary['mean']:+.{places}f}{interval} {unit}"


def _above(summary: Mapping[str, Any]) -> bool:
    return summary["mean"] is not None and summary["mean"] > 0


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _map(results: Mapping[str, Any], task: str, entry: Mapping[str, Any]) -> str:
    """Scores in their cells, colored by what they are above or below the arm's own teacher."""
    layout, has = results["layout"], entry["columns"]
    gains = {arm: own[task] for arm, own in results["over_teacher"].items() if task in own}
    groups = [
        (group, [row for row in group["rows"] if any(arm in has for arm in row["arms"].values())])
        for group in layout["groups"]
    ]
    groups = [(group, rows) for group, rows in groups if rows]
    if not groups:
        return ""
    limit = _limit([rows for _, rows in groups], gains)
    used = {column for _, rows in groups for row in rows for column, arm in row["arms"].items() if arm in has}
    columns = {column: words for column, words in layout["columns"].items() if column in used}
    drawing = _grid(columns, groups, entry, gains, limit, task)
    arrow = "↑" if entry["higher_is_better"] else "↓"
    clipped = any(abs(gain["mean"] or 0) > limit for gain in gains.values())
    many = len(results["seeds"]) > 1
    note = "Mean ± half of the 95 % interval; bold where the interval of the gain does not hold 0. " if many else ""
    note += "A dashed frame marks a control; hatched cells have no arm."
    return (
        f"<h2>{escape(_capital(task))}: {escape(tables.metric(entry))} {arrow}</h2>"
        f"{_scale(limit, clipped, tables.metric(entry))}"
        f'<div class="scroll">{drawing}</div><p class="soft">{note}</p>'
    )


def _limit(groups: Sequence[Sequence[Mapping[str, Any]]], gains: Mapping[str, Mapping[str, Any]]) -> float:
    """The gain with the full color: the largest of an arm that is no control, since those may lie far away."""
    rows = [row for rows in groups for row in rows]
    plain = [gains[arm]["mean"] for row in rows if not row["control"] for arm in row["arms"].values() if arm in gains]
    return max((abs(mean) for mean in plain if mean is not None), default=0.0) or 1.0


def _grid(columns: Mapping[str, str], groups, entry: Mapping[str, Any], gains, limit: float, task: str) -> str:
    rows = [row for _, group in groups for row in group]
    starts, left = [], 16.0
    for words in zip(*(row["words"] for row in rows), strict=True):
        starts.append(left)
        left += 6.6 * max(map(len, words)) + 14 if any(words) else 0
    heads = [_heading(group, task, entry) for group, _ in groups]
    left = max(left, 90.0)
    width = max(left + len(columns) * (_CELL[0] + 4), *(6.6 * len(head) for head in heads))
    parts = [
        charts.text(left + (i + 0.5) * (_CELL[0] + 4), 14, words, "strong", "middle")
        for i, words in enumerate(columns.values())
    ]
    y = 22.0
    for head, (_, shown) in zip(heads, groups, strict=True):
        parts += [f'<path class="rule" d="M0 {y:.1f}H{width:.0f}"/>', charts.text(0, y + 20, head, "strong")]
        y += _HEAD
        for row in shown:
            parts += [charts.text(x, y + 17, word) for x, word in zip(starts, row["words"], strict=True) if word]
            for i, column in enumerate(columns):
                corner = (left + i * (_CELL[0] + 4) + 2, y)
                arm = row["arms"].get(column)
                if arm in entry["columns"]:
                    parts.append(_cell(corner, arm, entry, gains.get(arm), limit, bool(row["control"])))
                else:
                    parts.append(_hatched(corner))
            y += _CELL[1] + 3
        y += 8
    return charts.svg(width, y, "".join(parts), f"{task}: {tables.metric(entry)} of every arm")


def _heading(group: Mapping[str, Any], task: str, entry: Mapping[str, Any]) -> str:
    """Whose students stand below, with the teachers' scores."""
    places = max(1, tables.decimals(entry) - 1)
    own = [c for c in group["teachers"].get(task, []) if c in entry["columns"]]
    scores = ", ".join(f"{c} {tables.figures(entry['columns'][c], places)}" for c in own)
    return f"{_capital(group['words'])}: {scores}" if scores else _capital(group["words"])


def _cell(corner: tuple[float, float], arm: str, entry: Mapping[str, Any], gain, limit: float, control: bool) -> str:
    (x, y), (width, height) = corner, _CELL
    places = tables.decimals(entry)
    known = gain is not None and gain["mean"] is not None
    color = charts.diverging(gain["mean"] / limit, strength=_STRENGTH, neutral="panel") if known else "var(--page)"
    sure = known and gain["ci95"] and (gain["ci95"][0] > 0 or gain["ci95"][1] < 0)
    over = f": {tables.figures(gain, places, signed=True)} over {gain['teacher']}{tables.p_text(gain)}" if gain else ""
    frame = ' stroke="var(--ink)" stroke-width="1.2" stroke-dasharray="4 3"' if control else ' stroke="var(--rule)"'
    words = tables.figures(entry["columns"][arm], max(1, places - 1))
    return (
        f"<g><title>{escape(arm + over)}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="{height}" rx="2" style="fill:{color}"{frame}/>'
        f"{charts.text(x + width / 2, y + 17, words, 'num strong' if sure else 'num', 'middle')}</g>"
    )


def _hatched(corner: tuple[float, float]) -> str:
    (x, y), (width, height) = corner, _CELL
    lines = "".join(f"M{x + i:.1f} {y + height:.1f}l{height} {-height}" for i in range(0, width - height + 1, 12))
    return f'<path class="rule" opacity="0.6" d="{lines}"/>'


def _scale(limit: float, clipped: bool, unit: str) -> str:
    """The colors of the cells and what they stand for."""
    steps, size = 24, 10
    width = steps * size
    parts = []
    for i in range(steps):
        color = charts.diverging(2 * (i + 0.5) / steps - 1, strength=_STRENGTH, neutral="panel")
        parts.append(f'<rect x="{60 + i * size}" y="4" width="{size + 0.5}" height="12" style="fill:{color}"/>')
    places = charts.scale(-limit, limit, 60, 60 + width)
    for t in charts.ticks(-limit, limit, 4):
        words = charts.tick_text(t) if t <= 0 else f"+{charts.tick_text(t)}"
        parts += [
            f'<path class="axis" d="M{places(t):.1f} 16v4"/>',
            charts.text(places(t), 32, words, "soft num", "middle"),
        ]
    parts += [charts.text(54, 14, "worse", "soft", "end"), charts.text(66 + width, 14, "better", "soft")]
    over = f"gain over the arm's own teacher, {unit}" + (
        "; what lies outside has the color of the end" if clipped else ""
    )
    parts.append(charts.text(126 + width, 14, over, "soft"))
    return charts.svg(140 + width + 6.6 * len(over), 36, "".join(parts), over)


def _contrasts(results: Mapping[str, Any], task: str, entry: Mapping[str, Any]) -> str:
    """The mean of every contrast as a dot, then its pairs folded away."""
    found = [contrast for contrast in results["contrasts"] if contrast["task"] == task and contrast["pairs"]]
    if not found:
        return ""
    many = "a dot is the mean over all such pairs" + (", paired by seed" if len(results["seeds"]) > 1 else "")
    text = (
        f"Arms that differ in one setting only, or the two that are named; {many}. No p is corrected for their number."
    )
    # Controls lie far away and would squeeze the others together.
    controls = [contrast for contrast in found if contrast["axis"] == "control"]
    charts_of = [_overview(some, entry) for some in ([c for c in found if c not in controls], controls) if some]
    folded = [_pairs(contrast, entry) for contrast in found if len(contrast["pairs"]) > 1]
    return f"<h3>What one setting changes: {escape(task)}</h3><p>{text}</p>{''.join(charts_of + folded)}"


def _overview(contrasts: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]) -> str:
    rows = []
    for contrast in contrasts:
        count = f", {sum(map(_above, contrast['pairs']))} of {len(contrast['pairs'])} above 0"
        rows.append((contrast["name"], [_dot(1, contrast["pooled"], tables.decimals(entry), count)]))
    return f'<div class="scroll">{charts.dots(rows, axis=_difference(entry), width=1080)}</div>'


def _pairs(contrast: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Every pair of a contrast and their mean, folded away."""
    places = tables.decimals(entry)
    rows = [(pair["words"], [_dot(1, pair, places)]) for pair in contrast["pairs"]]
    rows.append(("mean of the pairs", [_dot(0, contrast["pooled"], places)]))
    chart = charts.dots(rows, axis=_difference(entry), last_apart=True)
    arms = "; ".join(f"{pair['subject']} against {pair['reference']}" for pair in contrast["pairs"])
    summary = f"<summary>{escape(contrast['name'])}: {len(contrast['pairs'])} pairs</summary>"
    return f'<details>{summary}<div class="scroll">{chart}</div><p class="soft">{escape(arms)}</p></details>'


def _difference(entry: Mapping[str, Any]) -> str:
    return f"difference in {tables.metric(entry)} (right is better)"


def _dot(series: int, summary: Mapping[str, Any], places: int, more: str = "") -> charts.Dot:
    words = tables.figures(summary, places, signed=True) + tables.p_text(summary) + more
    return charts.Dot(series, summary["mean"], summary["ci95"], words)


def _several_tasks(results: Mapping[str, Any]) -> str:
    """Arms of several tasks against one column per task, relative gains."""
    found, tasks = results["delta_m"], list(results["tasks"])
    if not found:
        return ""
    rows, cells = [], []
    for entry in found:
        dots = [_dot(1 + tasks.index(task), gain, 1) for task, gain in entry["tasks"].items()]
        rows.append((entry["name"], [*dots, _dot(0, entry, 1)]))
        against = [entry["reference"].get(task, "–") for task in tasks]
        cells.append([escape(words) for words in (entry["name"], entry["subject"], *against)])
    legend = charts.legend(["Δm, their mean", *tasks])
    chart = f'<div class="scroll">{charts.dots(rows, axis="relative gain, % (right is better)", width=1000)}</div>'
    table = tables.table(["", "arm", *(f"against, {task}" for task in tasks)], cells, left=2 + len(tasks))
    return f"<h2>Several tasks in one network</h2>{legend}{chart}{table}"


def _scores(results: Mapping[str, Any]) -> str:
    """Every column by its name: scores and gains over the own teacher, then every seed by itself."""
    tasks, layout = results["tasks"], results["layout"]
    heads, rows = ["column"], []
    for task, entry in tasks.items():
        heads += [f"{task}, {tables.metric(entry)} {'↑' if entry['higher_is_better'] else '↓'}", "over its teacher"]
    words = {
        arm: " · ".join(filter(None, [*row["words"], layout["columns"][column]]))
        for group in layout["groups"]
        for row in group["rows"]
        for column, arm in row["arms"].items()
    }
    names = sorted(results["arms"], key=lambda name: results["arms"][name] is not None)
    for name in names:
        cells = [f'<span title="{escape(words.get(name, name))}">{escape(name)}</span>']
        for task, entry in tasks.items():
            summary, gain = entry["columns"].get(name), results["over_teacher"].get(name, {}).get(task)
            places = tables.decimals(entry)
            cells.append(tables.cell(tables.figures(summary, places)) if summary else "–")
            cells.append(tables.cell(tables.figures(gain, places, signed=True)) if gain else "–")
        rows.append(cells)
    shown = [name for name in names if any(name in entry["columns"] for entry in tasks.values())]
    seeds = tables.per_seed(tasks, shown) if len(results["seeds"]) > 1 else ""
    return f"<h2>All scores</h2>{tables.table(heads, rows)}{seeds}"


def _costs(results: Mapping[str, Any]) -> str:
    running, spent = tables.costs(results["costs"]), tables.seconds(results["seconds"], results["images_per_second"])
    parts = [f"<h2>What answering costs</h2>{running}"] if running else []
    return "".join(parts + ([f"<h2>Where the time went</h2>{spent}"] if spent else []))
