"""The page about the quality of pseudo labels, from `must.evaluate.quality` of every task."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from must.report import charts
from must.report.page import STATES, Section, html_table, save_page
from must.report.pictures import data_uri
from must.report.table import Cell, Grid, Row

_SHOWN = 24  # classes that are drawn and listed openly
_CLAIM = (
    "A claim is what a label asserts about one box, one class of an image, or one pixel. Its calibrated score makes it "
    "positive, ignored or negative. Precision is the share of right claims among the positive ones, recall the share "
    "of true items that they cover, both in the frame that networks see; the comparison scores in that of the original "
    "image. Intervals are 95% and account for the correlation of claims of one example."
)


def write_quality(
    path: str | os.PathLike,
    results: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    *,
    facts: Mapping[str, Mapping[str, Any] | None] | None = None,
    title: str = "Quality of the pseudo labels",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page.

    Args:
      path: of the file, replaced as a whole.
      results: {task: what `must.evaluate.quality.quality` returned}.
      pictures: {task: {id: uint8 [H, W, 3]}} of the worst and the most uncertain examples, where available.
      facts: {task: what came with a fitted policy, with "classes" {name: {"wanted": target precision, "why": text}}}.
      title: of the page.
      settings: anything that JSON can hold, by heading.
    """
    known: dict[str, Mapping[str, Any]] = {name: (facts or {}).get(name) or {} for name in results}
    scored = {name: result for name, result in results.items() if result["total"]}
    counts = [result["examples"] for result in results.values()] or [0]
    many = f"{max(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    scope = f"{len(results)} task{'s' * (len(results) != 1)}, measured against the truth of {many} examples"
    body = [Section("All tasks", html_table(_overview(scored)), _CLAIM)] if scored else []
    for name, result in results.items():
        body.append(Section(name, _task(name, result, known[name], (pictures or {}).get(name, {}))))
    sentences = [sentence(name, result, known[name]) for name, result in results.items()]
    save_page(path, title, body, scope=scope, summary=sentences, settings=settings)


def sentence(name: str, result: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """How good a task's labels are under their policy, and what the policy leaves out."""
    total, head = result["total"], f"{name}: "
    if not total:
        metric = next(iter(result["metrics"]["units"]))
        value = _figure((result["metrics"]["labels"] or {}).get(metric))
        return f"{head}labels have no scores, so all of them are positive; {metric} {value}."
    if not total["claims"]:
        return f"{head}nothing is predicted; {total['items']:,} true items."
    if total["precision"] is None:
        first = "no claim is certain enough to be positive"
    else:
        low, high = total["precision_ci95"]
        first = f"precision {_percent(total['precision'])} [{100 * low:.1f}, {100 * high:.1f}]{_verdict(total, facts)}"
        first += f", recall {_percent(total['recall'])}"
    positive, ignored, negative = (_share(total[key], total["claims"]) for key in STATES)
    second = f"{positive} of the claims are positive, {ignored} ignored{_aside(total['wrong_ignored'], 'wrong')}, "
    second += f"{negative} negative{_aside(total['right_negative'], 'right')}"
    raw, after = (total[key]["ece"] for key in ("raw", "policy"))
    third = "" if raw is None else f" Calibration error {100 * raw:.1f} → {100 * after:.1f} points."
    never = [c for c, entry in result["classes"].items() if entry["threshold"] is None]
    names = ", ".join(never[:6]) + (f" and {len(never) - 6} more" if len(never) > 6 else "")
    fourth = f" Never positive: {names}." if never and total["precision"] is not None else ""
    return f"{head}{first}. {second}.{third}{fourth}"


def _verdict(total: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    targets = {fact["wanted"] for fact in facts.get("classes", {}).values() if "wanted" in fact}
    if len(targets) != 1:
        return ""
    (target,), (low, high) = targets, total["precision_ci95"]
    verdict = "missed" if high < target else "exceeded" if low > target else "within the interval"
    return f" (target {_percent(target, 0)}, {verdict})"


def _overview(scored: Mapping[str, Mapping[str, Any]]) -> Grid:
    rows = []
    for name, result in scored.items():
        total, metrics = result["total"], result["metrics"]
        metric = next(iter(metrics["units"]))
        shares = " · ".join(f"{100 * total[key] / max(1, total['claims']):.1f}" for key in STATES)
        cells = [_figure((metrics[key] or {}).get(metric)) for key in ("labels", "positive")]
        cells += [_precision(total), _number(total["recall"]), shares, _ece(total)]
        rows.append(Row(f"{name}, {_metric(metrics, metric)}", [Cell(text) for text in cells]))
    heads = ["all labels", "positive only", "precision (%)", "recall (%)", "positive · ignored · negative (%)", "ECE"]
    note = "ECE: expected calibration error, raw → calibrated."
    return Grid("", [("", head) for head in heads], [("", rows)], [note])


def _metric(metrics: Mapping[str, Any], name: str) -> str:
    unit = f" ({metrics['units'][name]})" if metrics["units"][name] else ""
    return f"{name}{unit} {'↑' if metrics['higher'][name] else '↓'}"


def _task(name: str, result: Mapping[str, Any], facts: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> str:
    metrics, classes, known = result["metrics"], result["classes"], facts.get("classes", {})
    columns = {"all labels": metrics["labels"], "positive only": metrics["positive"]}
    columns = {head: values for head, values in columns.items() if values}
    measured = [
        Row(_metric(metrics, metric), [Cell(_figure(values.get(metric))) for values in columns.values()])
        for metric in metrics["units"]
    ]
    parts = [html_table(Grid("", [("", head) for head in columns], [("", measured)]))]
    if total := result["total"]:
        rank = {label: place for place, label in enumerate(result["worst_classes"])}
        order = sorted(classes, key=lambda label: rank.get(label, len(rank)))
        shown, rest = order[:_SHOWN], order[_SHOWN:]
        parts += [f"<h3>Calibration</h3>{_diagrams(total)}", "<h3>Precision against recall</h3>"]
        capped = f" The {_SHOWN} classes with the lowest recall." if rest else ""
        parts += [f"<p>The ring is the threshold in use, the dashed line the target precision.{capped}</p>"]
        panels = [_trade_off(label, classes[label], known.get(label, {})) for label in shown]
        parts += [f'<div class="scroll">{charts.trade_offs(panels, f"{name}: precision against recall")}</div>']
        if len(classes) > 1:
            rows = [(label, [classes[label][key] for key in STATES]) for label in shown]
            parts += ["<h3>Classes, lowest recall first</h3>", charts.shares(rows, STATES, title="Claims by state")]
        parts += [_classes(shown, classes, known)]
        if rest:
            listed = _classes(rest, classes, known)
            parts += [f"<details><summary>The other {len(rest)} classes</summary>{listed}</details>"]
    worst = "Mean squared gap between probability and truth; a missed item counts 1."
    parts += [_examples("Worst examples", worst, result["worst_examples"], pictures, "{:.2f}")]
    share = [(key, 100 * value) for key, value in result["uncertain_examples"]]
    unsure = "Share of the claims that are ignored; known without any truth."
    parts += [_examples("Most uncertain examples", unsure, share, pictures, "{:.0f}%")]
    return "".join(parts)


def _diagrams(total: Mapping[str, Any]) -> str:
    panels = []
    for key, title in (("raw", "Raw scores"), ("policy", "Calibrated scores")):
        part = total[key]
        known = part["ece"] is not None
        words = f"calibration error {100 * part['ece']:.1f} points, Brier {part['brier']:.3f}" if known else ""
        panels.append((title, words, part["bins"]))
    return charts.reliability(panels, "reliability of raw and of calibrated scores")


def _trade_off(name: str, entry: Mapping[str, Any], fact: Mapping[str, Any]) -> tuple:
    chosen = None if entry["precision"] is None or entry["recall"] is None else (entry["precision"], entry["recall"])
    words = "never positive" if chosen is None else f"{_percent(chosen[0], 0)} / {_percent(chosen[1], 0)}"
    title = "all claims" if name == "all" else name if len(name) <= 24 else f"{name[:23]}…"
    return title, words, entry["trade_off"], chosen, fact.get("wanted")


def _classes(order: Sequence[str], classes: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    rows = []
    for name in order:
        entry, fact = classes[name], known.get(name, {})
        threshold = "none" if entry["threshold"] is None else f"{entry['threshold']:.3f}"
        cells = [f"{entry['items']:,}", f"{entry['claims']:,}", threshold, _precision(entry, fact.get("wanted"))]
        cells += [_number(entry[key]) for key in ("recall", "wrong_ignored", "right_negative")]
        why = f": {fact['why']}" if fact.get("why") else ""
        rows.append(Row(name + why, [Cell(text) for text in (*cells, _ece(entry))]))
    heads = ["items", "claims", "threshold", "precision (%)", "recall (%)"]
    heads += ["wrong of ignored (%)", "right of negative (%)", "ECE"]
    missed = any("!" in row.cells[3].text for row in rows if row.cells[3])
    notes = ["! The interval of the precision lies below its target."] if missed else []
    return html_table(Grid("", [("", head) for head in heads], [("", rows)], notes))


def _examples(
    title: str, what: str, examples: Sequence[Sequence[Any]], pictures: Mapping[str, np.ndarray], form: str
) -> str:
    if not examples:
        return ""
    figures = [
        f'<figure><img src="{data_uri(np.asarray(pictures[key], np.uint8))}" alt="{escape(key, quote=True)}">'
        f"<figcaption>{form.format(value)} · {escape(key)}</figcaption></figure>"
        for key, value in examples
        if key in pictures
    ]
    others = [
        f"<li><span>{escape(key)}</span><span>{form.format(value)}</span></li>"
        for key, value in examples
        if key not in pictures
    ]
    shots = f'<div class="shots">{"".join(figures)}</div>' if figures else ""
    listed = f'<ul class="ids">{"".join(others)}</ul>' if others else ""
    return f'<h3>{title}</h3><p class="soft">{what}</p>{shots}{listed}'


def _percent(value: float | None, places: int = 1) -> str:
    return "unknown" if value is None else f"{100 * value:.{places}f}%"


def _share(part: int, whole: int) -> str:
    return _percent(part / whole if whole else None, 0)


def _aside(value: float | None, what: str) -> str:
    return "" if value is None else f" ({_percent(value, 0)} of them {what})"


def _precision(entry: Mapping[str, Any], target: float | None = None) -> str:
    if entry["precision"] is None:
        return "–"
    low, high = entry["precision_ci95"]
    mark = "! " if target is not None and high < target else ""
    return f"{mark}{100 * entry['precision']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _number(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _ece(entry: Mapping[str, Any]) -> str:
    before, after = entry["raw"]["ece"], entry["policy"]["ece"]
    return "–" if before is None else f"{before:.3f} → {after:.3f}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:#.4g}"
