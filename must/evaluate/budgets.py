"""One comparison at several budgets of labels, as numbers and as the table a person reads; nothing here knows a task."""

from collections.abc import Mapping
from typing import Any

from must.evaluate import text
from must.evaluate.compare import summary, tested


def along_budgets(recipe: str, parts: Mapping[int, Mapping[str, Any]], *, reference: str) -> dict[str, Any]:
    """The results of one comparison at several budgets of labels, as one.

    Args:
      recipe: name.
      parts: {budget: what `must.evaluate.compare.results` returned}, the same tasks and columns in all of them.
      reference: the column that every other is compared with.

    Returns:
      {"recipe", "seeds", "budgets", "reference", "tasks", "seconds", "by_budget"}; "by_budget" holds the parts;
      "tasks"[task] has "metric", "unit", "higher_is_better", "columns" {column: {budget: summary}} and "gains" {column:
      {budget: summary with "p", of a paired t test}}, paired by seed and better positive. Budgets are text there, as
      JSON wants its keys.
    """
    first = next(iter(parts.values()))
    tasks = {}
    for task, entry in first["tasks"].items():
        scores = {c: {str(b): part["tasks"][task]["scores"][c] for b, part in parts.items()} for c in entry["columns"]}
        sign = 1 if entry["higher_is_better"] else -1
        gains = {
            column: {
                budget: tested([sign * (x - y) for x, y in zip(values, scores[reference][budget], strict=True)])
                for budget, values in by_budget.items()
            }
            for column, by_budget in scores.items()
            if column != reference
        }
        tasks[task] = {key: entry[key] for key in ("metric", "unit", "higher_is_better")}
        tasks[task]["columns"] = {c: {b: summary(v) for b, v in by_budget.items()} for c, by_budget in scores.items()}
        tasks[task]["gains"] = gains
    stages = dict.fromkeys(stage for part in parts.values() for stage in part["seconds"])
    return {
        "recipe": recipe,
        "seeds": first["seeds"],
        "budgets": list(parts),
        "reference": reference,
        "tasks": tasks,
        "seconds": {stage: sum(part["seconds"].get(stage, 0.0) for part in parts.values()) for stage in stages},
        "by_budget": {str(budget): dict(part) for budget, part in parts.items()},
    }


def budget_table(results: Mapping[str, Any]) -> str:
    """The results at several budgets as text: scores by budget, then gains over the reference."""
    many, reference = len(results["seeds"]) > 1, results["reference"]
    lines = [
        f"{results['recipe']}, {text.spread(results['seeds'])}",
        "* best of its column but for oracles; p of a paired t test",
        "",
    ]
    heads = {str(b): f"{b:,} labels" for b in results["budgets"]}
    for task, entry in results["tasks"].items():
        places = text.decimals(
            {"columns": {str(i): s for i, by in enumerate(entry["columns"].values()) for s in by.values()}}
        )
        able = {c: by for c, by in entry["columns"].items() if not c.startswith("oracle")}
        best = {b: (max if entry["higher_is_better"] else min)(able, key=lambda c: able[c][b]["mean"]) for b in heads}
        rows = {
            c: {b: ("*" if best[b] == c else "") + text.figures(s, places) for b, s in by.items()}
            for c, by in entry["columns"].items()
        }
        gains = {
            c: {b: text.figures(s, places, signed=True) + text.p_text(s) for b, s in by.items()}
            for c, by in entry["gains"].items()
        }
        lines += text.blocks(f"{task}, {entry['metric']}{text.unit(entry)} {text.arrow(entry)}", heads, [rows], 100)
        lines += [
            "",
            *text.blocks(f"gain over {reference}" + (", paired by seed" if many else ""), heads, [gains], 100),
            "",
        ]
    return "\n".join(line.rstrip() for line in lines)
