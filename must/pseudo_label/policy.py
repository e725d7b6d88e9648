"""Which labels are used, chosen on held-out truth and applied when records are read; see `Policy`."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from must.core import files
from must.core.proportions import design_effect, wilson
from must.core.types import Label, Policy, UserError
from must.pseudo_label import calibrate
from must.pseudo_label.calibrate import Judged
from must.tasks.base import Task
from must.tasks.label_states import calibrated, is_distribution

EVERY = "all"  # the one class of a task without classes
_GRID = (np.arange(10_001) / 10_000).astype(np.float32)  # of thresholds: what a file with four digits can hold
_DRAWS, _ROUNDS = 100, 2  # of the bootstrap


def hard(threshold: float = 0.5) -> Policy:
    """Two states: at or above the threshold true, below absent (pixels: ignored); MuST's 0.5."""
    return Policy(np.float32(threshold), np.float32(threshold))


def fit(
    task: Task,
    pairs: Iterable[tuple[Label, Label]],
    *,
    calibration: str = "isotonic",
    max_count: int = 2_000_000,
    seed: int = 0,
    **thresholds: Any,
) -> tuple[Policy, dict[str, Any]] | None:
    """Calibration and thresholds of one task from labels with known truth, or None when its labels have no scores.

    Args:
      task: whose labels these are.
      pairs: (prediction, truth) of single held-out examples in network form; a prediction as a record would give it.
      calibration: "isotonic" (with a temperature first for distributions over classes), "temperature" or "none".
      max_count: claims that are kept.
      seed: of their draw and of the bootstrap.
      **thresholds: of `choose`.

    Raises:
      UserError: another calibration, or as `choose`.
    """
    if calibration not in ("isotonic", "temperature", "none"):
        raise UserError(f"calibration {calibration!r} is not one of isotonic, temperature, none")
    temperature, curve = 1.0, np.array([0.0, 1.0], np.float32)
    pairs = iter(pairs)
    first = list(itertools.islice(pairs, 1))
    pairs = itertools.chain(first, pairs)
    distributions = bool(first) and is_distribution(first[0][0])
    if distributions and calibration != "none":
        pairs = list(pairs)  # small, and read twice
        probs = np.stack([np.asarray(predicted["probs"]) for predicted, _ in pairs])
        true = np.array([np.asarray(truth["probs"]).argmax() for _, truth in pairs])
        temperature = calibrate.fit_temperature(probs, true)
    claims = calibrate.gather(task, pairs, max_count=max_count, seed=seed, temperature=temperature)
    if claims is None:
        return None
    if calibration == "isotonic":
        curve = calibrate.fit_isotonic(claims)
    elif calibration == "temperature" and not distributions:
        curve = calibrate.fit_scaling(claims)
    policy, facts = choose(claims, curve=curve, temperature=temperature, seed=seed, **thresholds)
    return policy, {"calibration": calibration, **facts}


def choose(
    claims: Judged,
    *,
    curve: np.ndarray = (0.0, 1.0),
    temperature: float = 1.0,
    target_precision: float | Mapping[str, float] = 0.9,
    negative_below: float = 0.2,
    min_count: int = 50,
    confidence: float = 0.0,
    fallback: Policy | None = None,
    seed: int = 0,
) -> tuple[Policy, dict[str, Any]]:
    """Thresholds per class for a target precision, with what they cost.

    `positive` is the lowest calibrated score from which on the claims of a class reach the target precision;
    infinite where there is none. The best of many cuts looks better than it is, so the target precision is raised by
    how much cuts that are chosen the same way on bootstrap draws of the examples lose outside of their draw (the
    optimism of Efron and Gong 1983).

    Args:
      claims: held against the truth, with scores as `temperature` leaves them.
      curve: [K] or [C, K], and
      temperature: of the policy.
      target_precision: of what is taken as true; or {class: precision}, where "*" covers all that are not named.
      negative_below: calibrated probability below which a claim is taken as absent.
      min_count: claims that a class needs for thresholds of its own.
      confidence: with which the precision is reached on top, one-sided: 0.9 requires it of Wilson's lower 90% bound,
        with as many independent claims as their spread over examples allows.
      fallback: thresholds of classes with fewer claims; None: those of all classes together.
      seed: of the bootstrap.

    Returns:
      The policy, thresholds [C] ([] for a task without classes), and {"wanted", "doubt", "confidence", "classes":
      {name: {"positive", "negative", "precision" expected of fresh claims, "recall" of the true items, "coverage"
      (share of claims that are positive or ignored), "claims", "wanted", "why" (of an odd threshold, else "")}}}.

    Raises:
      UserError: a precision of an unknown class or outside 0..1.
    """
    from scipy.special import ndtri

    names = claims.classes or (EVERY,)
    curve = np.asarray(curve, np.float32)
    wanted = _targets(target_precision, names)
    probability = calibrated(Policy(curve=curve), claims.score, claims.ids)
    examples = np.arange(len(probability)) if claims.examples is None else claims.examples
    columns = (probability, claims.correct, examples)
    z = ndtri(confidence) if confidence > 0.5 else 0.0
    total = np.bincount(claims.ids, minlength=len(names))
    given = None if fallback is None else [np.broadcast_to(bound, len(names)) for bound in fallback[:2]]
    bounds, facts, pooled = [], {}, {}
    for c, name in enumerate(names):
        mine, why, negative, optimism = np.flatnonzero(claims.ids == c), "", negative_below, 0.0
        if total[c] >= min_count:
            positive, optimism = _threshold(*(column[mine] for column in columns), wanted[c], z, (seed, c))
            why = "" if np.isfinite(positive) else f"no threshold reaches precision {wanted[c]:g}"
        elif given is not None:
            positive, negative = (float(bound[c]) for bound in given)
            why = f"{total[c]} claims: the given thresholds"
        else:
            if wanted[c] not in pooled:
                pooled[wanted[c]] = _threshold(*columns, wanted[c], z, (seed, c))
            positive, optimism = pooled[wanted[c]]
            why = f"{total[c]} claims: the threshold of all classes"
        bounds.append((positive, min(negative, positive)))
        facts[name] = _facts(probability[mine], claims.correct[mine], claims.items[c], *bounds[-1], optimism)
        facts[name] |= {"wanted": wanted[c], "why": why}
    positive, negative = np.array(bounds if claims.classes else bounds[0], np.float32).T
    policy = Policy(positive, negative, np.float32(temperature), curve)
    return policy, {"doubt": negative_below, "confidence": confidence, "classes": facts}


def _targets(precision: float | Mapping[str, float], names: tuple[str, ...]) -> list[float]:
    if not isinstance(precision, Mapping):
        precision = {"*": precision}
    if unknown := set(precision) - set(names) - {"*"}:
        raise UserError(f"precision: no class {sorted(unknown)[0]!r} among {', '.join(names)}")
    missing = [name for name in names if name not in precision and "*" not in precision]
    if missing:
        raise UserError(f"precision: none for class {missing[0]!r}; '*' covers all that are not named")
    values = [float(precision.get(name, precision.get("*"))) for name in names]
    if wrong := [value for value in values if not 0 <= value <= 1]:
        raise UserError(f"precision: {wrong[0]:g} is not within 0..1")
    return values


def _threshold(
    probability: np.ndarray, correct: np.ndarray, examples: np.ndarray, wanted: float, z: float, seed: tuple[int, int]
) -> tuple[float, float]:
    """The lowest threshold that keeps the target precision, infinite for none, and its optimism."""
    from scipy import sparse

    if not len(probability):
        return np.inf, 0.0
    cuts, where = np.unique(np.searchsorted(_GRID, probability, side="right") - 1, return_inverse=True)
    where = len(cuts) - 1 - where  # by falling threshold
    _, rows = np.unique(examples, return_inverse=True)
    shape = (rows.max() + 1, len(cuts))
    tally = [sparse.csr_array((hits.astype(np.float64), (rows, where)), shape=shape) for hits in (correct, ~correct)]
    right, wrong = (part.sum(0).cumsum() for part in tally)
    z = z * np.sqrt(design_effect(tally[0].sum(1), (tally[0] + tally[1]).sum(1)))
    seen = right / (right + wrong)
    drawn = np.random.default_rng(seed).poisson(1.0, (_DRAWS, shape[0])).astype(np.float64)
    again = [np.cumsum(drawn @ part, 1) for part in tally]
    optimism = 0.0
    for _ in range(_ROUNDS):
        last = _lowest(*again, wanted + optimism, z)
        taken = np.flatnonzero(last >= 0)
        at = last[taken]
        if len(taken):
            inside = again[0][taken, at] / (again[0][taken, at] + again[1][taken, at])
            optimism = max(0.0, float(np.mean(inside - seen[at])))
    (last,) = _lowest(right[None], wrong[None], wanted + optimism, z)
    return (float(_GRID[cuts[len(cuts) - 1 - last]]) if last >= 0 else np.inf), optimism


def _lowest(right: np.ndarray, wrong: np.ndarray, wanted: float, z: float) -> np.ndarray:
    """The last column, by falling threshold, where cumulated counts [B, U] have the target precision; -1 for none."""
    count = right + wrong
    good = (wilson(right, count, z)[0] >= wanted) & (count > 0)
    return np.where(good.any(-1), good.shape[-1] - 1 - good[:, ::-1].argmax(-1), -1)


def _facts(
    probability: np.ndarray, correct: np.ndarray, items: float, positive: float, negative: float, optimism: float
) -> dict[str, Any]:
    taken = probability >= np.float32(positive)
    right = int(correct[taken].sum())
    return {
        "positive": float(positive),
        "negative": float(negative),
        "precision": max(0.0, right / int(taken.sum()) - optimism) if taken.any() else None,
        "recall": min(1.0, right / float(items)) if items > 0 else None,
        "coverage": float(np.mean(taken | (probability >= np.float32(negative)))) if len(taken) else None,
        "claims": len(taken),
    }


_CURVES = "curves"
_DETAIL = ("precision", "recall", "coverage", "claims", "wanted", "why")


def save_policies(path: str, chosen: Mapping[str, tuple[Policy, Mapping[str, Any] | None, Task]]) -> None:
    """Writes {task name: (policy, facts of `must.pseudo_label.policy.fit` or None, task)}; the same bytes for the
    same."""
    blocks, curves = [], []
    for name, (policy, facts, task) in chosen.items():
        facts = facts or {}
        curve = np.asarray(policy.curve, np.float32)
        alone = not np.ndim(policy.positive) and not np.ndim(policy.negative) and curve.ndim == 1
        classes = (EVERY,) if alone else task.classes
        bounds = [np.broadcast_to(np.asarray(bound, np.float32), len(classes)) for bound in policy[:2]]
        lines = []
        for c, label in enumerate(classes):
            known = facts.get("classes", {}).get(label, {})
            entry = {"positive": _plain(bounds[0][c]) if bounds[0][c] <= 1 else None, "negative": _plain(bounds[1][c])}
            entry |= {key: _rounded(known[key]) for key in _DETAIL if known.get(key, "") != ""}
            lines.append(f"   {json.dumps(label)}: {json.dumps(entry)}")
        head = {"calibration": facts.get("calibration", "none"), "temperature": _plain(policy.temperature)}
        head |= {key: facts[key] for key in ("doubt", "confidence") if key in facts}
        body = ",\n".join(lines)
        blocks.append(f' {json.dumps(name)}: {{\n  {json.dumps(head)[1:-1]},\n  "classes": {{\n{body}\n  }}\n }}')
        rows = np.broadcast_to(curve, (len(classes), curve.shape[-1])).round(4)
        listed = ((label, [_plain(value) for value in row]) for label, row in zip(classes, rows, strict=True))
        drawn = [f"   {json.dumps(label)}: {json.dumps(row)}" for label, row in listed]
        curves.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(drawn) + "\n  }")
    blocks.append(f' "{_CURVES}": {{\n' + ",\n".join(curves) + "\n }")
    files.write_text(path, "{\n" + ",\n".join(blocks) + "\n}\n")


def read_policies(path: str, classes: Mapping[str, Sequence[str]] | None = None) -> dict[str, Policy]:
    """What `save_policies` wrote, with what a person has changed since.

    Args:
      path: of the file.
      classes: {task: class names}; of the tasks that are in the file, they must be the file's own.

    Returns:
      {task name: Policy}, thresholds [C] and curve [C, K]; [] and [K] for a task with one line "all".

    Raises:
      UserError: no such file, no JSON, a class too many or too few, or a number that cannot be; names file, task and
        class.
    """
    try:
        content = files.read_json(path)
        drawn = content.pop(_CURVES)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a file of policies: {error}") from None
    policies = {}
    for name, entry in content.items():
        at = f"{path}: {name}"
        curves = drawn.get(name, {}) if isinstance(drawn, dict) else {}
        lines = entry.get("classes") if isinstance(entry, dict) else None
        if not isinstance(lines, dict) or not isinstance(curves, dict) or not curves:
            raise UserError(f"{at}: no classes or no curves")
        names = list(curves)
        if classes is not None and name in classes and names != [EVERY]:
            _same(f"{at}: {_CURVES}", names, classes[name])
        _same(at, lines, names)
        bounds = [_bounds(f"{at}: class {label!r}", lines[label]) for label in names]
        curve = [_curve(f"{at}: curve of class {label!r}", curves[label], len(curves[names[0]])) for label in names]
        alone = names == [EVERY]
        positive, negative = np.array(bounds[0] if alone else bounds, np.float32).T
        temperature = _number(f"{at}: temperature", entry.get("temperature"), 1e-3, 1e3)
        curve = np.array(curve[0] if alone else curve, np.float32)
        policies[name] = Policy(positive, negative, np.float32(temperature), curve)
    return policies


def read_facts(path: str) -> dict[str, dict[str, Any]]:
    """What the file records about how its policies were chosen and what they cost: {task: {"classes": {name: facts},
    ...}}."""
    return {name: facts for name, facts in files.read_json(path).items() if name != _CURVES}


def _same(at: str, found: Sequence[str] | Mapping[str, Any], wanted: Sequence[str]) -> None:
    if unknown := [label for label in found if label not in wanted]:
        raise UserError(f"{at}: unknown class {unknown[0]!r}")
    if missing := [label for label in wanted if label not in found]:
        raise UserError(f"{at}: no class {missing[0]!r}")
    if not isinstance(found, Mapping) and list(found) != list(wanted):
        raise UserError(f"{at}: the classes are not in the order of the task, {', '.join(wanted)}")


def _bounds(at: str, line: Any) -> tuple[float, float]:
    if not isinstance(line, dict) or "positive" not in line or "negative" not in line:
        raise UserError(f"{at}: needs 'positive' and 'negative'")
    positive = np.inf if line["positive"] is None else _number(f"{at}: positive", line["positive"])
    negative = _number(f"{at}: negative", line["negative"])
    if negative > positive:
        raise UserError(f"{at}: negative {negative:g} is above positive {positive:g}")
    return positive, negative


def _curve(at: str, values: Any, knots: int) -> list[float]:
    if not isinstance(values, list) or len(values) != knots or knots < 2:
        raise UserError(f"{at}: not a list of {max(2, knots)} numbers")
    numbers = [_number(at, value) for value in values]
    if any(after < before for before, after in itertools.pairwise(numbers)):
        raise UserError(f"{at}: must not decrease")
    return numbers


def _number(at: str, value: Any, low: float = 0.0, high: float = 1.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UserError(f"{at} is {value!r}, not a number in {low:g}..{high:g}")
    return float(value)


def _plain(value: Any) -> float:
    """The shortest decimal that is the same float32."""
    return float(str(np.float32(value)))


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
