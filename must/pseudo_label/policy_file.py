"""policy.json: which labels are believed, as a small file that a person reads and edits; records are never touched.

    {"depth": {"calibration": "isotonic", "temperature": 1.0, ..., "classes": {
       "all": {"positive": 0.8123, "negative": 0.2, "precision": 0.9041, ...}}},
     "curves": {"depth": {"all": [0.0, ..., 0.97]}}}

One class per line; `positive` null means that nothing but the truth itself is taken. Only thresholds, temperature and
curves are read back, the rest says what they cost when they were chosen.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import Policy, UserError
from must.pseudo_label.policy import EVERY
from must.tasks.base import Task

_CURVES = "curves"
_DETAIL = ("precision", "recall", "coverage", "claims", "wanted", "why")


def save_policies(path: str, chosen: Mapping[str, tuple[Policy, Mapping[str, Any] | None, Task]]) -> None:
    """Writes {task name: (policy, facts of `must.pseudo_label.policy.fit` or None, task)}; the same bytes for the same."""
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
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        file.write("{\n" + ",\n".join(blocks) + "\n}\n")
    os.replace(f"{path}.partial", path)


def read_policies(path: str, classes: Mapping[str, Sequence[str]] | None = None) -> dict[str, Policy]:
    """What `save_policies` wrote, with what a person has changed since.

    Args:
      path: of the file.
      classes: {task: class names}; of the tasks that are in the file, they must be the file's own.

    Returns:
      {task name: Policy}, thresholds [C] and curve [C, K]; [] and [K] for a task with one line "all".

    Raises:
      UserError: no such file, no JSON, a class too many or too few, or a number that cannot be; names file, task and class.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        drawn = content.pop(_CURVES)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
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
    """What the file says of how its policies were chosen and what they cost: {task: {"classes": {name: facts}, ...}}."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    content.pop(_CURVES, None)
    return content


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
    if any(after < before for before, after in zip(numbers, numbers[1:], strict=False)):
        raise UserError(f"{at}: falls")
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
