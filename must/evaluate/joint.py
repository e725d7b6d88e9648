"""JEDI's numbers: experts, students and teachers of several data sets, by set and as means; who says what of whom.

Numbers in, numbers or text out; nothing here knows a network or a file. A set is a data set with classes of its own, so
a "task" of `must.evaluate.compare`; a column is one way to answer it: "expert" (trained alone), "student" and "teacher" (of
the joint stage), and for every further arm A of that stage "A" (its students) and "A-teacher".
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import Metric
from must.evaluate import compare, text

ARM = "jedi"  # the arm whose columns are "student" and "teacher"
MEAN = "mean over sets"


def columns_of(arm: str) -> tuple[str, str]:
    """The columns of an arm of the joint stage: (of its students, of its teachers)."""
    return ("student", "teacher") if arm == ARM else (arm, f"{arm}-teacher")


def results(
    seeds: Sequence[int],
    metrics: Mapping[str, Metric],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    pairs: Sequence[tuple[str, str]],
    words: Mapping[str, str],
    controls: Sequence[str],
    expected: Sequence[tuple[str, str]] = (),
    classes: Mapping[str, Sequence[str]] | None = None,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    seconds: Mapping[str, float] | None = None,
    images_per_second: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Everything that joint training says, as `results.json` holds it: JSON types only, an undefined number is None.

    Args:
      seeds: one run each; every list of scores is in this order.
      metrics: {set: headline Metric}, one name, unit and direction for all sets.
      scores: {set: {column: [one value per seed]}}; a column may lack a set.
      pairs: (subject, reference), columns whose difference over the sets is tested.
      words: {column: what it is, in a few words}; a column may be missing.
      controls: columns that must lose.
      expected: (better, worse), what was expected before the runs; each is one of the pairs, in either order.
      classes: {set: names of its classes by id}.
      costs: {column: what it takes to have all sets answered}, as `must.evaluate.compare.results` has it, of a clip.
      seconds: {stage: wall time}.
      images_per_second: {stage: clips per second}.

    Returns:
      What `must.evaluate.compare.results` returns for the recipe "jedi", the subject "student" and the reference "expert",
      with "words", "controls", "classes", "arms" {arm: [column of its students, of its teachers]}, those with scores, and
      "over_sets": {"metric", "unit", "higher_is_better", "scores" {column: [per seed]}, "columns" {column: summary of the
      mean over sets, per seed}, of the columns that every set has, and "differences"}, a list in the order of the pairs of
      {"name", "subject", "reference", "sets", "mean", "ci95", "per_seed", "p", "by_set", "expected", "as_expected"}:
      subject - reference in the unit of the metric, better positive, paired by seed, as the mean over those sets that have
      both, "by_set" each of them by itself; "expected" is "above", "below" or None, and "as_expected" whether the sign of
      the mean is that one, None where nothing was expected or the mean is undefined.

    Raises:
      ValueError: no sets; metrics that differ; another number of scores than of seeds; a pair or a control of unknown
        columns; a pair that no set has; something expected that is no pair.
    """
    base = compare.results(
        "jedi",
        seeds,
        metrics,
        scores,
        costs=costs,
        seconds=seconds,
        images_per_second=images_per_second,
        subject="student",
        reference="expert",
    )
    kinds = {metrics[name] for name in scores}
    if len(kinds) != 1:
        raise ValueError(f"a mean over sets needs one metric, not {sorted(kind.name for kind in kinds)}")
    metric = kinds.pop()
    columns = list(dict.fromkeys(c for entry in base["tasks"].values() for c in entry["columns"]))
    for column in (*controls, *(column for pair in (*pairs, *expected) for column in pair)):
        if column not in columns:
            raise ValueError(f"no set has scores of {column!r}; there are {columns}")
    for better, worse in expected:
        if (better, worse) not in pairs and (worse, better) not in pairs:
            raise ValueError(f"{better!r} is expected above {worse!r}, but they are not compared")
    complete = [c for c in columns if all(c in scores[name] for name in scores)]
    means = {c: _mean([scores[name][c] for name in scores]) for c in complete}
    arms = dict.fromkeys(c.removesuffix("-teacher") for c in columns if c not in ("expert", *columns_of(ARM)))
    return base | {
        "words": {c: words[c] for c in columns if c in words},
        "controls": list(controls),
        "classes": {name: list(map(str, names)) for name, names in (classes or {}).items()},
        "arms": {arm: own for arm in (ARM, *arms) if (own := [c for c in columns_of(arm) if c in columns])},
        "over_sets": {
            "metric": metric.name,
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
            "scores": {c: [compare.plain(v) for v in values] for c, values in means.items()},
            "columns": {c: compare.summary(values) for c, values in means.items()},
            "differences": [_difference(pair, metric, scores, expected) for pair in pairs],
        },
    }


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """Of one list of scores per set: the mean over sets, seed by seed."""
    return [sum(map(float, values)) / len(values) for values in zip(*rows, strict=True)]


def _difference(
    pair: tuple[str, str], metric: Metric, scores: Mapping, expected: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    subject, reference = pair
    sign = 1 if metric.higher_is_better else -1
    by_set = {
        name: [sign * (float(x) - float(y)) for x, y in zip(own[subject], own[reference], strict=True)]
        for name, own in scores.items()
        if subject in own and reference in own
    }
    if not by_set:
        raise ValueError(f"no set has both {subject!r} and {reference!r}")
    over = compare.tested(_mean(list(by_set.values())))
    side = {(subject, reference): "above", (reference, subject): "below"}
    wanted = next((side[tuple(ends)] for ends in expected if tuple(ends) in side), None)
    return {
        "name": f"{subject} against {reference}",
        "subject": subject,
        "reference": reference,
        "sets": list(by_set),
        **over,
        "by_set": {name: compare.tested(values) for name, values in by_set.items()},
        "expected": wanted,
        "as_expected": None if None in (wanted, over["mean"]) else over["mean"] * (1 if wanted == "above" else -1) > 0,
    }


def table(results: Mapping[str, Any], width: int = 100) -> str:
    """The results as text: scores by set and their means, what the columns are, then the differences.

    Columns that do not fit beside each other follow in a further block; lines of at most `width` characters, as far as
    the names allow it.
    """
    sets, over = results["tasks"], results["over_sets"]
    columns = list(dict.fromkeys(c for entry in sets.values() for c in entry["columns"]))
    rows = {name: {c: text.score(entry, c) for c in entry["columns"]} for name, entry in sets.items()}
    mean = {c: text.score(over, c) for c in over["columns"]}
    title = f"{over['metric']}{text.unit(over)} {text.arrow(over)}"
    lines = [f"{results['recipe']}, {text.spread(results['seeds'])}", "* best of its row", ""]
    groups = [rows, {MEAN: mean} if len(sets) > 1 else {}]
    lines += [*text.blocks(title, {c: c for c in columns}, groups, width), ""]
    longest = max(map(len, columns))
    for c in columns:
        said = [results["words"].get(c, ""), "control, must lose" if c in results["controls"] else ""]
        first = f"  {c.ljust(longest)}  "
        words = "; ".join(filter(None, said))
        lines += textwrap.wrap(words, width, initial_indent=first, subsequent_indent=" " * len(first))
    if over["differences"]:
        places = text.decimals(over)
        heads = {"": "mean"} | (
            {"as expected": "as expected"} if any(d["expected"] for d in over["differences"]) else {}
        )
        heads |= {f"set {name}": name for name in sets} if len(sets) > 1 else {}
        paired = ", paired by seed" if len(results["seeds"]) > 1 else ""
        found = {d["name"]: _figures(d, places) for d in over["differences"]}
        lines += ["", *text.blocks(f"difference{text.unit(over)}{paired}; + is better", heads, [found], width)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _figures(difference: Mapping[str, Any], places: int) -> dict[str, str]:
    verdict = {True: "yes", False: "NO", None: "–"}[difference["as_expected"]]
    own = {f"set {name}": text.figures(s, places, signed=True) for name, s in difference["by_set"].items()}
    return {"": text.figures(difference, places, signed=True) + text.p_text(difference), "as expected": verdict, **own}


def confusion(
    student_probs: np.ndarray, truth_ids: np.ndarray | None, classes_j: Sequence[str], classes_i: Sequence[str]
) -> np.ndarray:
    """How often head i says each of its classes about clips of set j, by their class in set j.

    Args:
      student_probs: [N, C_i], what head i says about N clips of set j; the largest is its answer. A row with a number that
        is not finite is left out.
      truth_ids: int [N], classes of the clips in set j, a negative one for a clip to leave out; None without truth.
      classes_j: the C_j classes of set j.
      classes_i: the C_i classes of head i.

    Returns:
      float64 [C_j, C_i] with rows that sum to 1, a row of zeros for a class without clips; without truth [1, C_i], over
      all clips.

    Raises:
      ValueError: shapes or ids that do not fit the classes.
    """
    probs = np.asarray(student_probs, np.float64)
    truth = np.zeros(len(probs), np.int64) if truth_ids is None else np.asarray(truth_ids, np.int64)
    count = 1 if truth_ids is None else len(classes_j)
    if probs.ndim != 2 or probs.shape[1] != len(classes_i) or truth.shape != probs.shape[:1]:
        raise ValueError(f"probabilities {probs.shape} and truth {truth.shape} of {len(classes_i)} classes")
    if truth.size and truth.max() >= count:
        raise ValueError(f"class {truth.max()} of {count} classes")
    told = np.isfinite(probs).all(1) & (truth >= 0)
    counts = np.zeros((count, len(classes_i)))
    np.add.at(counts, (truth[told], probs[told].argmax(1)), 1)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)
