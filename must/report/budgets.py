"""The page about students at several budgets of labels: scores, gains, and what the weights of pseudo labels were."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from must.report import charts, clouds, reliability, tables
from must.report.html import save_page, settings_section


def write_page(
    path: str,
    *,
    title: str,
    results: Mapping[str, Any],
    weights: Mapping[str, Mapping[str, np.ndarray]],
    shown: str,
    corrected: Sequence[str],
    settings: Mapping[str, Any],
) -> None:
    """Writes the page; a section without material is left out.

    Args:
      path: of the file, replaced as a whole.
      title: of the page.
      results: as `must.evaluate.budgets.along_budgets` makes it.
      weights: {arm: {"<task>|<what>": array}}; what is "covariates", "weights", "held_out", or "accuracy", "correct".
      shown: which run the weights are of.
      corrected: arms that weigh or correct their labels; the others are baselines.
      settings: anything that JSON can hold, by heading.
    """
    body = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(_scope(results))}</p>']
    for task, entry in results["tasks"].items():
        body += [_words(results, task, entry), _curves(results, task, entry, corrected), _gains(results, task, entry)]
        body += [_scores(results, task, entry), _weights(task, weights, shown)]
    body += [settings_section({**settings, "seeds": results["seeds"]})]
    save_page(path, title, body)


def _scope(results: Mapping[str, Any]) -> str:
    count = len(results["seeds"])
    budgets = ", ".join(f"{b:,}" for b in results["budgets"])
    return (
        f"{budgets} labels · {count} seeds, means with 95 % t intervals"
        if count > 1
        else f"{budgets} labels · one seed"
    )


def _words(results: Mapping[str, Any], task: str, entry: Mapping[str, Any]) -> str:
    """What the gains say, one sentence per budget."""
    sentences = []
    for budget in map(str, results["budgets"]):
        able = {c: by[budget] for c, by in entry["gains"].items() if not c.startswith("oracle") and c != "teacher"}
        if not able:
            continue
        best = max(able, key=lambda c: able[c]["mean"])
        sure = [c for c, gain in able.items() if gain["ci95"] and gain["ci95"][0] > 0]
        if able[best]["mean"] <= 0:
            sentences.append(f"{int(budget):,} labels: no arm without hidden truth is ahead of {results['reference']}.")
            continue
        sentence = f"{int(budget):,} labels: the best arm without hidden truth is {best}, "
        sentence += f"{tables.figures(able[best], 1, signed=True)} against {results['reference']}"
        sentence += f"; above it by their intervals: {', '.join(sure) or 'none'}."
        sentences.append(sentence)
    return f'<ul class="lead">{"".join(f"<li>{escape(s)}</li>" for s in sentences)}</ul>'


def _curves(results: Mapping[str, Any], task: str, entry: Mapping[str, Any], corrected: Sequence[str]) -> str:
    """Score against budget: the corrected arms and the baselines, each beside teacher and reference."""
    columns = list(entry["columns"])
    always = [c for c in ("teacher", results["reference"]) if c in columns]
    # Students of the truth are far above all others and would flatten them; the table has them.
    groups = {
        "weighted and corrected": [c for c in columns if c in corrected and c not in always],
        "baselines": [c for c in columns if c not in corrected and c not in always and c != "oracle_labels"],
    }
    panels = []
    for name, group in groups.items():
        if not group:
            continue
        found = [
            charts.Trend(i, [(int(b), s["mean"], s["ci95"]) for b, s in entry["columns"][c].items()])
            for i, c in enumerate([*always, *group])
        ]
        drawing = charts.trends(found, title=name, axis=tables.metric(entry), x_axis="labels of the teacher", width=520)
        panels.append(f"<div>{drawing}{charts.legend([*always, *group])}</div>")
    return f'<h2>{escape(task)} by label budget</h2><div class="pairs">{"".join(panels)}</div>'


def _gains(results: Mapping[str, Any], task: str, entry: Mapping[str, Any]) -> str:
    budgets = [str(b) for b in results["budgets"]]
    rows = [
        (column, [charts.Dot(i, by[b]["mean"], by[b]["ci95"], _figures(by[b])) for i, b in enumerate(budgets)])
        for column, by in entry["gains"].items()
        if column != "oracle_labels"
    ]
    axis = f"gain over {results['reference']}, {tables.metric(entry)} (right is better), paired by seed; p of a paired t test"
    legend = charts.legend([f"{int(b):,} labels" for b in budgets])
    return f'<h2>Gain over {escape(results["reference"])}</h2>{legend}<div class="scroll">{charts.dots(rows, axis=axis)}</div>'


def _figures(gain: Mapping[str, Any]) -> str:
    return tables.figures(gain, 2, signed=True) + tables.p_text(gain)


def _scores(results: Mapping[str, Any], task: str, entry: Mapping[str, Any]) -> str:
    budgets = [str(b) for b in results["budgets"]]
    places = tables.decimals(
        {"columns": {str(i): s for i, by in enumerate(entry["columns"].values()) for s in by.values()}}
    )
    rows = [
        [escape(c), *(tables.cell(tables.figures(by[b], places)) for b in budgets)]
        for c, by in entry["columns"].items()
    ]
    arrow = "↑" if entry["higher_is_better"] else "↓"
    table = tables.table(["column", *(f"{int(b):,} labels" for b in budgets)], rows)
    return f"<h2>Scores: {escape(tables.metric(entry))} {arrow}</h2>{table}"


def _weights(task: str, weights: Mapping[str, Mapping[str, np.ndarray]], shown: str) -> str:
    """Histograms, maps over the covariates, and estimated against true accuracy."""
    blocks = []
    for arm, found in weights.items():
        get = lambda what: found.get(f"{task}|{what}")  # noqa: B023, E731
        if get("weights") is not None:
            parts = [clouds.histogram(get("weights"), title=f"{arm}: weights")]
            if get("covariates") is not None and get("covariates").shape[-1] == 2:
                axes = ("certainty of the teacher", "certainty of the student")
                held = get("held_out")
                rings = held if held is not None else np.zeros((0, 2))
                parts.append(
                    clouds.cloud(get("covariates"), get("weights"), rings, title=f"{arm}: where they lie", axes=axes)
                )
            blocks.append(f'<div class="pairs">{"".join(f"<div>{part}</div>" for part in parts)}</div>')
        if get("accuracy") is not None and get("correct") is not None:
            known = np.isfinite(get("correct"))
            title = f"{arm}: probability that the teacher is right"
            drawing = reliability.reliability(get("accuracy")[known], get("correct")[known], title=title)
            floor = f"<p>The floor acts on {100 * float(get('floored')):.0f} % of the examples.</p>"
            counts = np.bincount(get("candidates"))
            lines = "".join(f"<tr><td>{k}</td><td>{count:,}</td></tr>" for k, count in enumerate(counts) if count)
            table = (
                f"<table><thead><tr><th>candidates k</th><th>examples</th></tr></thead><tbody>{lines}</tbody></table>"
            )
            blocks.append(f'<div class="pairs"><div>{drawing}</div><div>{floor}{table}</div></div>')
    if not blocks:
        return ""
    text = "Of the finished students. Rings are validation examples; squares are the more solid the more examples they hold."
    return f"<h2>What was believed: {escape(shown)}</h2><p>{text}</p>{clouds.weight_legend()}{''.join(blocks)}"
