"""The page that says which labels can be believed and what that costs, from `must.evaluate.quality` of every task."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from must.report import charts, tables
from must.report.html import save_page, settings_section
from must.report.pictures import data_uri
from must.report.reliability import diagram, trade_off

_MOST = 24  # classes that are drawn and stand in the open
_STATES = ("taken as true", "ignored", "taken as absent")
_STYLE = """
th, td { padding-left:14px; }
.small { display:grid; grid-template-columns:repeat(auto-fill,minmax(190px,1fr)); gap:18px 22px; margin:10px 0 20px; }
.shots { display:grid; grid-template-columns:repeat(auto-fill,minmax(150px,1fr)); gap:14px; margin:8px 0 20px; }
.shots figure { margin:0; font-size:12.5px; overflow-wrap:anywhere; }
.shots figcaption { color:var(--soft); line-height:1.35; margin-top:4px; }
.twins { display:grid; grid-template-columns:repeat(auto-fit,minmax(260px,340px)); gap:12px 56px; }
.ids { columns:300px 3; column-gap:28px; padding-left:0; list-style:none; font-size:13px; max-width:none; }
.ids li { display:flex; justify-content:space-between; gap:12px; font-variant-numeric:tabular-nums; }
.ids li span:first-child { overflow-wrap:anywhere; }
.why { display:block; font-size:12.5px; color:var(--soft); white-space:normal; }
.miss { color:var(--s5); font-weight:600; }
"""


def write_quality(
    path: str,
    results: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    *,
    facts: Mapping[str, Mapping[str, Any] | None] | None = None,
    title: str = "How good the pseudo labels are",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page.

    Args:
      path: of the file, replaced as a whole.
      results: {task: what `must.evaluate.quality.quality` returned}.
      pictures: {task: {id: uint8 [H, W, 3]}} of the worst and the most uncertain examples, as far as there are any.
      facts: {task: what came with a chosen policy, with "classes" {name: {"wanted": precision, "why": text}}}.
      title: of the page.
      settings: anything that JSON can hold, by heading.
    """
    facts = {name: (facts or {}).get(name) or {} for name in results}
    scored = {name: result for name, result in results.items() if result["total"]}
    counts = {result["examples"] for result in results.values()}
    most = max(counts, default=0)
    many = f"{most:,}" if len(counts) < 2 else f"{min(counts):,} to {most:,}"
    scope = f"{len(results)} task{'s' * (len(results) != 1)}, each held against the truth of {many} examples"
    note = (
        "A claim is what a label says of one box, of one class of an image, or of a pixel. By its calibrated score it is "
        "taken as true, ignored, or taken as absent. Precision is the share of right claims among those taken as true, "
        "recall the share of true items that they hold. Intervals are 95 % and know that claims of an example go together."
    )
    sentences = (in_words(name, result, facts[name]) for name, result in results.items())
    body = [
        f'<h1>{escape(title)}</h1><p class="soft">{scope}</p>',
        f'<ul class="lead">{"".join(f"<li>{sentence}</li>" for sentence in sentences)}</ul>',
        f'<p class="soft">{note}</p>',
        f"<h2>All tasks</h2>{_overview(scored, facts)}" if scored else "",
        *(_section(name, result, facts[name], (pictures or {}).get(name, {})) for name, result in results.items()),
        settings_section(settings) if settings else "",
    ]
    save_page(path, title, body, style=_STYLE)


def in_words(name: str, result: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What can be believed of a task's labels and what it costs, as HTML."""
    total, head = result["total"], f"<b>{escape(name)}</b>: "
    if not total:
        return f"{head}its labels say no scores, so all of them are believed; {_headline(result, 'labels')}."
    if total["precision"] is None:
        first = "nothing is sure enough to be taken as true"
    else:
        first = f"precision {_percent(total['precision'])} {_interval(total)}{_verdict(total, facts)}"
        first += f", recall {_percent(total['recall'])}"
    taken, left, absent = (_share(total[key], total["claims"]) for key in ("positive", "ignored", "negative"))
    second = f"{taken} of the claims are taken as true, {left} ignored{_aside(total['wrong_ignored'], 'wrong')}, "
    second += f"{absent} taken as absent{_aside(total['right_negative'], 'right')}"
    raw, after = (total[key]["ece"] for key in ("raw", "policy"))
    third = "" if raw is None else f" Calibration error {100 * raw:.1f} → {100 * after:.1f} points."
    nothing = [c for c, entry in result["classes"].items() if entry["threshold"] is None]
    names = ", ".join(map(escape, nothing[:6])) + (f" and {len(nothing) - 6} more" if len(nothing) > 6 else "")
    fourth = f" Nothing of {names} is ever taken." if nothing and total["precision"] is not None else ""
    return f"{head}{first}. {second}.{third}{fourth}"


def _verdict(total: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    wanted = {fact["wanted"] for fact in facts.get("classes", {}).values() if "wanted" in fact}
    if len(wanted) != 1:
        return ""
    (aim,), (low, high) = wanted, total["precision_ci95"]
    if high < aim:
        return f' (<span class="miss">wanted {_percent(aim, 0)}, missed</span>)'
    return f" (wanted {_percent(aim, 0)}, {'exceeded' if low > aim else 'within the interval'})"


def _overview(scored: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    heads = [
        "task",
        "metric",
        "all labels",
        "taken alone",
        "precision (%)",
        "recall (%)",
        "true · ignored · absent (%)",
    ]
    rows = []
    for name, result in scored.items():
        total, metrics = result["total"], result["metrics"]
        metric = next(iter(metrics["units"]))
        cells = [escape(name), _metric(metrics, metric)]
        cells += [_figure((metrics[key] or {}).get(metric)) for key in ("labels", "positive")]
        cells += [_precision(total, None), _number(total["recall"])]
        shares = [100 * total[key] / max(1, total["claims"]) for key in ("positive", "ignored", "negative")]
        rows.append([*cells, " · ".join(f"{share:.1f}" for share in shares), _arrow(total, "ece")])
    note = "Taken alone: the metric over what is taken as true; of boxes, with all others left out. "
    note += "ECE: expected calibration error, raw → calibrated."
    return f'{tables.table([*heads, "ECE"], rows, left=2)}<p class="soft">{note}</p>'


def _metric(metrics: Mapping[str, Any], name: str) -> str:
    unit = f" ({metrics['units'][name]})" if metrics["units"][name] else ""
    return f"{escape(name + unit)} {'↑' if metrics['higher'][name] else '↓'}"


def _section(name: str, result: Mapping[str, Any], facts: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> str:
    parts = [f"<h2>{escape(name)}</h2>", _metrics(result["metrics"])]
    classes, known = result["classes"], facts.get("classes", {})
    if total := result["total"]:
        rank = {label: place for place, label in enumerate(result["worst_classes"])}
        order = sorted(classes, key=lambda label: rank.get(label, len(rank)))
        parts += ["<h3>Are the probabilities right?</h3>", _diagrams(total)]
        first, rest = order[:_MOST], order[_MOST:]
        capped = f" The {_MOST} classes with the lowest recall." if rest else ""
        words = (
            "Precision over recall as the threshold falls; a ring at the one in use, a line at the wanted precision."
        )
        parts += [f"<h3>What precision costs</h3><p>{words}{capped}</p>"]
        parts += [f'<div class="small">{"".join(_trade_off(c, classes[c], known.get(c, {})) for c in first)}</div>']
        if len(classes) > 1:
            parts += [
                "<h3>Classes, the worst covered first</h3>",
                charts.share_legend(_STATES),
                _shares(first, classes),
            ]
        parts += [_classes(first, classes, known)]
        if rest:
            summary = f"<summary>The other {len(rest)} classes</summary>"
            parts += [f"<details>{summary}{_classes(rest, classes, known)}</details>"]
    worst = "mean squared gap between probability and truth; a missed item counts 1"
    parts += [_examples("Worst examples", worst, result["worst_examples"], pictures, "{:.2f}")]
    unsure = "share of the claims that are ignored; needs no truth"
    share = [(key, 100 * value) for key, value in result["uncertain_examples"]]
    parts += [_examples("Most uncertain examples", unsure, share, pictures, "{:.0f} %")]
    return "".join(parts)


def _metrics(metrics: Mapping[str, Any]) -> str:
    heads = ["metric", "all labels", *(["taken alone"] if metrics["positive"] else [])]
    rows = []
    columns = [metrics[key] for key in ("labels", "positive") if metrics[key]]
    for name in metrics["units"]:
        rows.append([_metric(metrics, name), *(_figure(column.get(name)) for column in columns)])
    return tables.table(heads, rows)


def _diagrams(total: Mapping[str, Any]) -> str:
    axes = ("probability that is said", "share that is right")
    drawn = []
    for key, title, series in (("raw", "Raw scores", 5), ("policy", "Calibrated scores", 1)):
        part, words = total[key], ""
        if part["ece"] is not None:
            words = f"calibration error {100 * part['ece']:.1f} points, Brier {part['brier']:.3f}"
        drawn.append(diagram(part["bins"], title=title, words=words, axes=axes, series=series))
    return f'<div class="twins">{"".join(f"<div>{part}</div>" for part in drawn)}</div>'


def _trade_off(name: str, entry: Mapping[str, Any], fact: Mapping[str, Any]) -> str:
    chosen = None if entry["precision"] is None or entry["recall"] is None else (entry["precision"], entry["recall"])
    words = "nothing taken" if chosen is None else f"{_percent(chosen[0], 0)} right, {_percent(chosen[1], 0)} found"
    title = "all claims" if name == "all" else name if len(name) <= 26 else name[:25] + "…"
    return f"<div>{trade_off(entry['trade_off'], chosen, title=title, words=words, wanted=fact.get('wanted'))}</div>"


def _shares(order: Sequence[str], classes: Mapping[str, Any]) -> str:
    rows = [(name, [classes[name][key] for key in ("positive", "ignored", "negative")]) for name in order]
    return f'<div class="scroll">{charts.shares(rows, _STATES, title="Claims by state", width=720)}</div>'


def _classes(order: Sequence[str], classes: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    heads = ["class", "items", "claims", "threshold", "precision, %", "recall, %"]
    heads += ["wrong of ignored, %", "right of absent, %", "ECE"]
    rows = []
    for name in order:
        entry, fact = classes[name], known.get(name, {})
        threshold = "none" if entry["threshold"] is None else f"{entry['threshold']:.3f}"
        why = f'<span class="why">{escape(fact["why"])}</span>' if fact.get("why") else ""
        row = [escape(name) + why, f"{entry['items']:,}", f"{entry['claims']:,}", threshold]
        row += [_precision(entry, fact.get("wanted"))]
        row += [_number(entry[key]) for key in ("recall", "wrong_ignored", "right_negative")]
        rows.append([*row, _arrow(entry, "ece")])
    return tables.table(heads, rows)


def _examples(
    title: str, what: str, found: Sequence[Sequence[Any]], pictures: Mapping[str, np.ndarray], form: str
) -> str:
    if not found:
        return ""
    shown = [(key, value) for key, value in found if key in pictures]
    figures = [
        f'<figure><img src="{data_uri(np.asarray(pictures[key], np.uint8))}" alt="{escape(key, quote=True)}">'
        f"<figcaption>{form.format(value)} · {escape(key)}</figcaption></figure>"
        for key, value in shown
    ]
    left = [(key, value) for key, value in found if key not in pictures]
    others = [f"<li><span>{escape(key)}</span><span>{form.format(value)}</span></li>" for key, value in left]
    gallery = f'<div class="shots">{"".join(figures)}</div>' if figures else ""
    listed = f'<ul class="ids">{"".join(others)}</ul>' if others else ""
    return f'<h3>{title}</h3><p class="soft">{what[:1].upper()}{what[1:]}.</p>{gallery}{listed}'


def _headline(result: Mapping[str, Any], key: str) -> str:
    metric = next(iter(result["metrics"]["units"]))
    return f"{escape(metric)} {_figure((result['metrics'][key] or {}).get(metric))}"


def _percent(value: float | None, places: int = 1) -> str:
    return "an unknown share" if value is None else f"{100 * value:.{places}f} %"


def _share(part: int, whole: int) -> str:
    return _percent(part / whole if whole else None, 0)


def _aside(value: float | None, what: str) -> str:
    return "" if value is None else f" ({_percent(value, 0)} of them {what})"


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = entry["precision_ci95"]
    return f'<span class="soft">[{100 * low:.1f}, {100 * high:.1f}]</span>'


def _precision(entry: Mapping[str, Any], wanted: float | None) -> str:
    if entry["precision"] is None:
        return "–"
    missed = wanted is not None and entry["precision_ci95"][1] < wanted
    value = f"{100 * entry['precision']:.1f}"
    return f'{f"<span class=miss>{value}</span>" if missed else value} <span class="pm">{_interval(entry)}</span>'


def _number(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _arrow(entry: Mapping[str, Any], key: str) -> str:
    before, after = entry["raw"][key], entry["policy"][key]
    return "–" if before is None else f"{before:.3f} → {after:.3f}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:#.4g}"
