"""A grid of arms whose settings are data: contrasts of one setting at a time, gains over teachers, the table of them all.

Numbers in, numbers or text out; nothing here knows a task, a model or a file. What a setting is called and which arms
belong together is in `must.evaluate.arms`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from must.core.types import Metric
from must.evaluate import arms as settings_of
from must.evaluate import compare, text


def grid_results(
    recipe: str,
    seeds: Sequence[int],
    metrics: Mapping[str, Metric],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    arms: Mapping[str, Mapping[str, Any] | None],
    contrasts: Sequence[Mapping[str, Any]],
    teachers: Mapping[str, Mapping[str, str]],
    *,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    seconds: Mapping[str, float] | None = None,
    images_per_second: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Everything that a grid says, as `results.json` holds it: JSON types only, an undefined number is None.

    Args:
      recipe: name.
      seeds: one run each; every list of scores is in this order.
      metrics: {task: headline Metric}.
      scores: {task: {column: [one value per seed]}}; a column may lack a task.
      arms: {column: its settings by axis, or None for one that is no arm, as a teacher}; all have the same axes.
      contrasts: what is compared, each of
        {"axis", "subject", "reference", "within": {axis: value or list of values}}: all pairs of arms that differ in
        this axis only; "within" may be left out;
        {"name", "subject": arm, "reference": column}: one pair, whatever its settings;
        {"name", "subject": arm, "reference": {task: column}}: mean relative gain over one column per task.
        The first kind may have a "name" too.
      teachers: {arm: {task: column of its teacher}}.
      costs: {column: what it takes to have its tasks answered}, as `must.evaluate.compare.results` has it.
      seconds: {stage: wall time}.
      images_per_second: {stage: throughput}.

    Returns:
      {"recipe", "seeds", "arms", "layout", "tasks", "over_teacher", "contrasts", "delta_m", "costs", "seconds",
      "images_per_second"}; a tested summary is {"mean", "ci95": [low, high] or None for one seed, "per_seed", "p" of a
      paired t test or None}, better positive, in the unit of the metric;
      "layout" is that of `must.evaluate.arms.layout`;
      "tasks"[task] has "metric", "unit", "higher_is_better", "scores" {column: [per seed]} and "columns" {column: summary};
      "over_teacher"[arm][task] is a tested summary with "teacher", its column;
      "contrasts" is a list, one entry per contrast and task: {"name", "axis" or None, "subject", "reference", "task",
      "pairs", "pooled"}; a pair is a tested summary with "subject", "reference", "common" {axis: shared setting} and
      "words", pooled the tested summary of the mean over pairs, seed by seed, None without pairs;
      "delta_m" is a list of tested summaries in % with "name", "subject", "reference" and "tasks" {task: tested summary}.

    Raises:
      ValueError: a list of scores whose length is not the number of seeds; a column without an entry in arms, or named
        elsewhere without scores; equal arms, arms with different axes; two contrasts of one name.
    """
    base = compare.results(
        recipe,
        seeds,
        metrics,
        scores,
        costs=costs,
        seconds=seconds,
        images_per_second=images_per_second,
        subject="",
        reference="",
    )
    known = settings_of.ordered({name: arm for name, arm in arms.items() if arm is not None})
    settings_of.check(known)
    _refuse_unknown("scores", {c for columns in scores.values() for c in columns}, arms)
    _refuse_unknown("teachers", teachers, known)
    _refuse_unknown("teachers", {column for own in teachers.values() for column in own.values()}, arms)

    def tested(task: str, a: str, b: str, relative: bool = False) -> dict[str, Any] | None:
        if a not in scores.get(task, {}) or b not in scores[task]:
            return None
        up = metrics[task].higher_is_better
        gain = (lambda x, y: compare.relative_gain(x, y, up)) if relative else (lambda x, y: x - y if up else y - x)
        return compare.tested([gain(float(x), float(y)) for x, y in zip(scores[task][a], scores[task][b], strict=True)])

    asked = [{**contrast, "name": _name(contrast)} for contrast in contrasts]
    names = [contrast["name"] for contrast in asked]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two contrasts are called {doubled[0]!r}")
    found, delta = [], []
    for contrast in asked:
        if "axis" not in contrast:
            ends = contrast["reference"]
            _refuse_unknown(contrast["name"], {contrast["subject"]}, known)
            _refuse_unknown(contrast["name"], ends.values() if isinstance(ends, Mapping) else {ends}, arms)
        if isinstance(contrast["reference"], Mapping):
            delta.append(_delta_m(contrast, metrics, scores, tested))
        else:
            found += _contrast(contrast, known, tuple(scores), tested)
    over = {
        arm: {task: {"teacher": column, **gain} for task, column in own.items() if (gain := tested(task, arm, column))}
        for arm, own in teachers.items()
    }
    return {
        "recipe": recipe,
        "seeds": base["seeds"],
        "arms": {name: known.get(name) for name in arms},
        "layout": settings_of.layout(known, teachers),
        "tasks": {t: {k: v for k, v in entry.items() if k != "gains"} for t, entry in base["tasks"].items()},
        "over_teacher": {arm: gains for arm, gains in over.items() if gains},
        "contrasts": found,
        "delta_m": delta,
        **{key: base[key] for key in ("costs", "seconds", "images_per_second")},
    }


def _refuse_unknown(what: str, columns, among: Mapping[str, Any]) -> None:
    for column in columns:
        if column not in among:
            raise ValueError(f"{what}: {column!r} is not in the grid")


def _name(contrast: Mapping[str, Any]) -> str:
    if "name" in contrast:
        return contrast["name"]
    axis, within = contrast["axis"], contrast.get("within", {})
    ends = [settings_of.word(axis, contrast[end]) for end in ("subject", "reference")]
    filters = [", ".join(settings_of.words_of(k, v)) for k, v in within.items()]
    return f"{axis}: {ends[0]} against {ends[1]}" + "".join(f", {f}" for f in filters)


def _contrast(
    contrast: Mapping[str, Any], known: Mapping[str, Any], tasks: Sequence[str], tested
) -> list[dict[str, Any]]:
    """One entry per task."""
    axis, subject, reference = contrast.get("axis"), contrast["subject"], contrast["reference"]
    if axis:
        ends = list(settings_of.pairs(known, axis, subject, reference, contrast.get("within", {})))
    else:
        ends = [(subject, reference)]
    common = {(a, b): settings_of.common(known[a], known.get(b) or {}) for a, b in ends}
    differ = settings_of.varying(list(common.values())) if axis else []
    described = settings_of.described(known)
    entries = []
    for task in tasks:
        pairs = []
        for a, b in ends:
            if gain := tested(task, a, b):
                words = " · ".join(word for key, word in described[a].items() if key in differ and word)
                words = words or f"{a} against {b}"
                pairs.append({"subject": a, "reference": b, "common": common[a, b], "words": words, **gain})
        undefined = float("nan")
        rounds = zip(*(pair["per_seed"] for pair in pairs), strict=True)
        means = [undefined if None in values else sum(values) / len(values) for values in rounds]
        entries.append(
            {
                "name": contrast["name"],
                "axis": axis,
                "subject": subject,
                "reference": reference,
                "task": task,
                "pairs": pairs,
                "pooled": compare.tested(means) if pairs else None,
            }
        )
    return entries


def _delta_m(contrast: Mapping[str, Any], metrics: Mapping[str, Metric], scores: Mapping, tested) -> dict[str, Any]:
    subject, reference = contrast["subject"], dict(contrast["reference"])
    tasks = {task: tested(task, subject, column, relative=True) for task, column in reference.items()}
    if missing := [task for task, gain in tasks.items() if gain is None]:
        raise ValueError(
            f"{contrast['name']}: no scores of {missing[0]} for both {subject!r} and {reference[missing[0]]!r}"
        )
    direction = {task: metrics[task].higher_is_better for task in tasks}
    per_seed = [
        compare.delta_m(
            {t: scores[t][subject][i] for t in tasks}, {t: scores[t][reference[t]][i] for t in tasks}, direction
        )
        for i in range(len(next(iter(tasks.values()))["per_seed"]))
    ]
    return {
        "name": contrast["name"],
        "subject": subject,
        "reference": reference,
        **compare.tested(per_seed),
        "tasks": tasks,
    }


def grid_table(results: Mapping[str, Any], width: int = 110) -> str:
    """The grid as text: scores by setting, contrasts, then every arm by its name; lines of at most `width` characters."""
    layout = results["layout"]
    lines = [f"{results['recipe']}, {text.spread(results['seeds'])}"]
    said = [f"in all arms: {layout['constant']}"] if layout["constant"] else []
    lines += [line for words in (*said, *layout["notes"]) for line in textwrap.wrap(words, width)]
    for task, entry in results["tasks"].items():
        lines += ["", *_scores(layout, task, entry, width)]
    paired = "paired by seed, better is positive" if len(results["seeds"]) > 1 else "better is positive"
    if results["contrasts"]:
        words = f"Contrasts: {paired}; p of t tests, not corrected for their number"
        lines += ["", *textwrap.wrap(words, width)]
        for name in dict.fromkeys(entry["name"] for entry in results["contrasts"]):
            lines += ["", *_contrast_lines(results, [e for e in results["contrasts"] if e["name"] == name], width)]
    if results["delta_m"]:
        lines += ["", *textwrap.wrap(f"Δm, mean relative gain of one arm over a column per task: {paired}", width)]
        for entry in results["delta_m"]:
            words = f"{entry['name']}: {entry['subject']} against {', '.join(entry['reference'].values())}"
            parts = ", ".join(f"{task} {text.figures(gain, 1, signed=True)}" for task, gain in entry["tasks"].items())
            lines += _dotted(words, f"{text.figures(entry, 1, signed=True)} %{text.p_text(entry)}", width)
            lines += textwrap.wrap(parts, width, initial_indent="    ", subsequent_indent="    ")
    lines += ["", *_by_name(results, width)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _scores(layout: Mapping[str, Any], task: str, entry: Mapping[str, Any], width: int) -> list[str]:
    """Rows under the settings of images; a row that has no score of the task is left out."""
    places = max(1, text.decimals(entry) - 1)
    figures = {column: text.figures(summary, places) for column, summary in entry["columns"].items()}
    shown = [
        (group, [row for row in group["rows"] if any(arm in figures for arm in row["arms"].values())])
        for group in layout["groups"]
    ]
    names = [["  " + (" · ".join(filter(None, row["words"])) or "student") for row in rows] for _, rows in shown]
    left = max((len(name) for group in names for name in group), default=0)
    groups = []
    for (group, rows), labels in zip(shown, names, strict=True):
        if not rows:
            continue
        own = [f"{column}: {figures[column]}" for column in group["teachers"].get(task, []) if column in figures]
        # A heading is no wider than the rows below it, or it would push the columns away.
        heads = [line for part in (group["words"], *own) for line in textwrap.wrap(part, max(36, left))]
        named = {head: dict.fromkeys(layout["columns"], "") for head in heads}
        for name, row in zip(labels, rows, strict=True):
            named[name] = {c: figures[a] for c, a in row["arms"].items() if a in figures}
        groups.append(named)
    if not groups:
        return []
    used = {column for rows in groups for row in rows.values() for column, figure in row.items() if figure}
    columns = {column: words for column, words in layout["columns"].items() if column in used}
    return text.blocks(f"{task}, {entry['metric']}{text.unit(entry)} {text.arrow(entry)}", columns, groups, width)


def _contrast_lines(results: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    lines = textwrap.wrap(entries[0]["name"], width)
    for entry in entries:
        about = results["tasks"][entry["task"]]
        figures = lambda s: text.figures(s, text.decimals(about), signed=True) + text.p_text(s)  # noqa: B023, E731
        pairs, head = entry["pairs"], f"{entry['task']}, {about['metric']}{text.unit(about)}"
        if len(pairs) > 1:
            above = sum(pair["mean"] is not None and pair["mean"] > 0 for pair in pairs)
            lines += _dotted(f"  {head}: mean of {len(pairs)} pairs, {above} above 0", figures(entry["pooled"]), width)
            for pair in pairs:
                lines += _dotted(f"    {pair['words']}", figures(pair), width)
        elif pairs:
            lines += _dotted(f"  {head}: {pairs[0]['words']}", figures(pairs[0]), width)
    return lines if any(entry["pairs"] for entry in entries) else [*lines, "  no such pair of arms"]


def _dotted(words: str, figures: str, width: int) -> list[str]:
    """Words at the left, figures at the right; words that leave no room for them are wrapped."""
    indent = " " * (len(words) - len(words.lstrip()))
    wrapped = textwrap.TextWrapper(width - 4 - len(figures), initial_indent=indent, subsequent_indent=f"{indent}  ")
    wrapped.break_on_hyphens = False
    *above, last = wrapped.wrap(words.lstrip())
    return [*above, f"{last} {'·' * (width - 2 - len(last) - len(figures))} {figures}"]


def _by_name(results: Mapping[str, Any], width: int) -> list[str]:
    tasks, over = results["tasks"], results["over_teacher"]
    columns, rows = (
        {},
        {name: {} for name in sorted(results["arms"], key=lambda name: results["arms"][name] is not None)},
    )
    for task, entry in tasks.items():
        columns |= {task: task, f"{task} gain": "over its teacher"}
        for name in rows:
            if name in entry["columns"]:
                rows[name][task] = text.figures(entry["columns"][name], text.decimals(entry))
            if gain := over.get(name, {}).get(task):
                rows[name][f"{task} gain"] = text.figures(gain, text.decimals(entry), signed=True)
    return text.blocks("every arm by its name", columns, [rows], width)
