"""The numbers of all images of a gallery, by column, as text that a page holds: about thirty bytes an image.

They are JSON, deflated, in base64: nothing in them can be taken for markup, whatever ids and names hold.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from must.core.types import Metric
from must.report.doubt import worst_first
from must.tasks.base import Task

_FINE, _COARSE = 65535, 255  # steps of a doubt over all tasks, which orders, and of one task's


class Facts(NamedTuple):
    """What is known of one image without its pictures.

    Attributes:
      labeled: the tasks whose label can be shown.
      doubts: {task: `doubt.doubt`} of the tasks that say how sure they are.
      shares: {task: `doubt.shares`}.
      classes: {task: `doubt.classes_said`}.
      scores: {task: its headline metric of this image alone} where there is a truth.
      readable: the picture can be shown.
    """

    labeled: tuple[str, ...]
    doubts: dict[str, float]
    shares: dict[str, np.ndarray]
    classes: dict[str, list[int]]
    scores: dict[str, float]
    readable: bool


class Columns:
    """Columns that grow image by image.

    Args:
      tasks: {task: Task}.
      classes: {task: names of its classes}.
      metrics: {task: headline metric} of the tasks with a truth.
    """

    def __init__(self, tasks: Mapping[str, Task], classes: Mapping[str, Sequence[str]], metrics: Mapping[str, Metric]):
        self._names, self._classes, self._metrics = tuple(tasks), classes, metrics
        self._doubt: list[int] = []
        self._unreadable: list[int] = []
        self._doubts: dict[str, list[int]] = {name: [] for name in tasks}
        self._counts: dict[str, list[int]] = {name: [] for name in tasks}
        self._said: dict[str, list[int]] = {name: [] for name in tasks}
        self._scores: dict[str, list[float]] = {name: [] for name in metrics}
        self._shares = {name: np.zeros(3) for name in tasks}

    def __len__(self) -> int:
        return len(self._doubt)

    def add(self, facts: Facts) -> None:
        """The next image. Its doubt is the mean over the tasks that have one."""
        if not facts.readable:
            self._unreadable.append(len(self))
        doubts = list(facts.doubts.values())
        self._doubt.append(round(_FINE * sum(doubts) / len(doubts)) if doubts else 0)
        for name in self._names:
            without = 0 if name in facts.labeled else -1
            self._doubts[name].append(round(_COARSE * facts.doubts[name]) if name in facts.doubts else without)
            said = facts.classes.get(name, [])
            self._counts[name].append(len(said))
            self._said[name] += said
            self._shares[name] += facts.shares.get(name, 0.0)
        for name, scores in self._scores.items():
            scores.append(facts.scores.get(name, np.nan))

    def most_doubtful_first(self) -> np.ndarray:
        """Indices of the images by falling doubt, equal ones in their order; the page sorts the same numbers alike."""
        return np.argsort(-np.array(self._doubt), kind="stable")

    def text(self, ids: Sequence[str], **more: Any) -> str:
        """All columns and what else the page must know, base64 of deflated JSON."""
        content = {"ids": list(ids), "doubt": self._doubt, "unreadable": self._unreadable, **more}
        content["tasks"] = [self._task(name) for name in self._names]
        if self._metrics:
            values = np.array(list(self._scores.values())).T
            better = np.array([metric.higher_is_better for metric in self._metrics.values()])
            content["error"] = np.round(1000 * worst_first(values, better)).astype(int).tolist()
        packed = zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)
        return base64.b64encode(packed).decode()

    def _task(self, name: str) -> dict[str, Any]:
        column: dict[str, Any] = {"name": name, "classes": list(self._classes.get(name, ()))}
        column |= {"doubt": self._doubts[name], "counts": self._counts[name], "said": self._said[name]}
        labeled = sum(doubt >= 0 for doubt in self._doubts[name])
        column["shares"] = (self._shares[name] / max(1, labeled)).round(4).tolist()
        if name in self._metrics:
            metric = self._metrics[name]
            column["metric"] = {"name": metric.name, "unit": metric.unit, "higher": metric.higher_is_better}
            column["scores"] = [float(f"{score:.3g}") if np.isfinite(score) else None for score in self._scores[name]]
        return column
