"""The model card of an exported network: what it does, what it learned from, how well, and under which terms
(Mitchell et al. 2019). card.json is for programs, card.md the same for people."""

import os
from collections.abc import Mapping
from typing import Any

from must.core import files

CARD, PAGE = "card.json", "card.md"
_UNSTATED = "not stated; to be filled in before the model is passed on"


def write_card(directory: str, about: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes card.json and card.md below the directory of an exported network.

    Args:
      directory: of the network.
      about: contents of its export.json.
      facts: any of "name", "title", "recipe", "data" {set: {split: source}}, "teachers" {task: what it is}, "scores"
        {split: {task: {metric: {"value", "unit", "ci95"}}}}, "limits" and the terms, "license", "data_licenses"
        {set: text} and "contact".

    Returns:
      The contents of card.json.
    """
    data = dict(facts.get("data", {}))
    card = {
        "name": facts.get("name", os.path.basename(directory)),
        "title": facts.get("title", ""),
        "recipe": facts.get("recipe", ""),
        "tasks": {
            name: {"kind": one["kind"].rpartition(":")[2], "classes": one["classes"], "outputs": one["label"]}
            for name, one in about["tasks"].items()
        },
        "inputs": about["inputs"],
        "preprocessing": about["preprocessing"],
        "parameters": about["parameters"],
        "data": data,
        "teachers": dict(facts.get("teachers", {})),
        "scores": dict(facts.get("scores", {})),
        "limits": facts.get("limits", _UNSTATED),
        "license": facts.get("license") or _UNSTATED,
        "data_licenses": {name: dict(facts.get("data_licenses", {})).get(name) or _UNSTATED for name in data},
        "contact": facts.get("contact") or _UNSTATED,
        "versions": about["versions"],
    }
    files.write_json(os.path.join(directory, CARD), card)
    files.write_text(os.path.join(directory, PAGE), page(card))
    return card


def page(card: Mapping[str, Any]) -> str:
    """card.json as Markdown."""
    lines = [f"# {card['name']}", ""]
    origin = ", ".join(filter(None, [card["title"], card["recipe"] and f"recipe `{card['recipe']}`"]))
    lines += [f"{origin}; {card['parameters']:,} parameters.", "", "## Outputs", ""]
    for name, task in card["tasks"].items():
        lines += [f"### {name} ({task['kind']})", "", "| field | shape | type | meaning |", "|---|---|---|---|"]
        for field, form in task["outputs"].items():
            shape = " x ".join(map(str, ["B", *form["shape"]]))
            lines.append(f"| `{field}` | {shape} | {form['dtype']} | {form.get('meaning', '')} |")
        if task["classes"]:
            named = ", ".join(f"{number} {one}" for number, one in enumerate(task["classes"]))
            lines += ["", f"Classes: {named}."]
        lines.append("")
    lines += ["## Inputs", ""]
    for view, form in card["inputs"].items():
        lines.append(f"- `{view}`: {form['dtype']} {' x '.join(map(str, ['B', *form['shape']]))}")
    lines += [f"- {key}: {value}" for key, value in card["preprocessing"].items()]
    lines += ["", "## Scores", "", *_scores(card["scores"]), "", "## Data", ""]
    for name, splits in card["data"].items():
        lines.append(f"- {name}: " + "; ".join(f"{split}: {source}" for split, source in splits.items()))
    if card["teachers"]:
        lines += ["", "## Teachers", ""]
        lines += [f"- {task}: {what}" for task, what in card["teachers"].items()]
    lines += ["", "## Limits", "", card["limits"], "", "## Terms", "", f"- license of the weights: {card['license']}"]
    lines += [f"- license of the data {name}: {text}" for name, text in card["data_licenses"].items()]
    lines += [f"- contact: {card['contact']}"]
    return "\n".join(lines) + "\n"


def _scores(scores: Mapping[str, Any]) -> list[str]:
    if not scores:
        return ["None were measured."]
    lines = ["| split | task | metric | value | 95% interval |", "|---|---|---|---|---|"]
    for split, by_task in scores.items():
        for task, metrics in by_task.items():
            for metric, one in metrics.items():
                low_high = one.get("ci95")
                interval = f"{low_high[0]:.4g} to {low_high[1]:.4g}" if low_high else ""
                lines.append(f"| {split} | {task} | {metric} | {one['value']:.4g} {one['unit']} | {interval} |")
    return [*lines, "", "Intervals: bootstrap over the images of the split, of the headline metric."]
