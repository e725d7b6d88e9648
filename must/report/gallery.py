"""A folder of static files that shows all labels and their states under the label policies in a browser.

`index.html` opens with a double click and fetches nothing from the network; it holds the numbers of all images and
loads the pictures (`must.report.sprites`) as they scroll into view. The browser's part is in `gallery*.js`.
"""

import base64
import collections
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from must.core import files
from must.core.types import Label, Metric, Policy, Source, UserError
from must.data.combine import labels_of
from must.data.geometry import whole_image
from must.report import charts, sprites
from must.tasks.base import Task
from must.tasks.label_states import Claims

_IDENTITY = "gallery.json"
_FRAME = (192, 192)  # in which labels are compared with the truth: one compiled program for images of all sizes
_AT_ONCE = 32  # images that a thread takes up
_PARTS = ("gallery.css", "gallery_data.js", "gallery_large.js", "gallery.js")
_VERSION = 3  # raise it when the same arguments make other files
_FINE, _COARSE = 65535, 255  # steps of the uncertainty over all tasks, which orders images, and of one task's
_SHARE = 0.99  # of an uncertainty, which ignored claims determine; the rest breaks ties


def write_gallery(
    directory: str | os.PathLike,
    source: Source,
    tasks: Mapping[str, Task],
    policies: Mapping[str, Policy],
    *,
    title: str,
    truth: Mapping[str, Source] | None = None,
    per_page: int = 48,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Writes the gallery of a labeled source and returns the path of its index.html.

    Images are read twice: for their numbers, by which the most uncertain come first, and to be drawn in that order, so
    that images on one page share files. The same arguments give the same bytes. Files are written to
    `<directory>.partial`, where a second call resumes a killed one; a gallery of the same content is left alone, one of
    other content is replaced. Memory holds a few hundred bytes per image and the pictures of a few dozen.

    Args:
      directory: of the gallery.
      source: images with labels; an unreadable one becomes a tile with the reason.
      tasks: {task: Task} of the labels that are drawn.
      policies: {task: Policy}.
      title: of the page.
      truth: {task: source of true labels with the same ids}, for any of the tasks and images.
      per_page: images on one page.
      threads: for drawing; by default one per core, at most 16.
      progress: called with (done, total) steps, two per image.

    Raises:
      UserError: a task without a policy, no images, or a directory with other content.
    """
    directory = os.path.abspath(os.fspath(directory))
    _check(source, tasks, policies)
    index, unfinished = os.path.join(directory, "index.html"), f"{directory}.partial"
    identity = _identity(source, tasks, policies, truth or {}, title, per_page)
    if _content(directory) == identity:
        return index
    if os.path.isdir(directory) and os.listdir(directory) and _content(directory) is None:
        raise UserError(f"{directory}: not empty and not a gallery; choose another directory or empty it")
    if _content(unfinished) != identity:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.makedirs(unfinished)
        files.write_text(os.path.join(unfinished, _IDENTITY), json.dumps({"content": identity}))

    truths, report = _Truth(truth or {}, tasks), progress or (lambda done, total: None)
    columns = Columns(tasks, {name: getattr(task, "classes", ()) for name, task in tasks.items()}, truths.metrics)
    bound = {"source": source, "tasks": tasks, "policies": policies, "truths": truths}
    threads = threads or min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        spread = partial(_spread, pool, 2 * threads)
        for found in spread(partial(_look, **bound), _parts(range(len(source)), _AT_ONCE)):
            for facts in found:
                columns.add(facts)
            report(len(columns), 2 * len(source))
        parts = list(_parts(columns.most_uncertain_first(), sprites.PER_SHEET))
        drawn = len(source)
        for count in spread(partial(_draw, directory=unfinished, **bound), enumerate(parts)):
            report(drawn := drawn + count, 2 * len(source))

    sheets = [sprites.sheets_of(unfinished, chunk, 1 + len(tasks)) for chunk in range(len(parts))]
    places = {"cell": sprites.CELL, "across": sprites.ACROSS, "per": sprites.PER_SHEET, "chunks": sprites.CHUNKS}
    page = {"title": title, "perPage": per_page, "sheets": sheets, **places}
    files.write_text(os.path.join(unfinished, "index.html"), _page(title, columns.text(source.ids, **page)))
    shutil.rmtree(directory, ignore_errors=True)
    os.rename(unfinished, directory)
    return index


def _check(source: Source, tasks: Mapping[str, Task], policies: Mapping[str, Policy]) -> None:
    for name in tasks:
        if name not in policies:
            raise UserError(f"gallery: task {name!r} has no policy")
        policies[name].checked(name)
    if not len(source):
        raise UserError(f"gallery: {source.name} has no images")


def uncertainty(claims: Claims) -> float:
    """How uncertain a label is, 0..1: the share of its claims that are ignored, 0 without claims.

    One percent of it, which breaks ties, is the mean of 1 - calibrated score over the claims that are not negative.
    """
    if not len(claims.ids):
        return 0.0
    ignored, open_ = ~claims.positive & ~claims.negative, ~claims.negative
    spread = 1.0 - np.clip(np.nan_to_num(claims.scores[open_]), 0.0, 1.0)
    return float(_SHARE * ignored.mean() + (1.0 - _SHARE) * (spread.mean() if len(spread) else 0.0))


def state_shares(claims: Claims) -> np.ndarray:
    """Shares of the claims that are positive, ignored, negative: float [3], 0 without claims."""
    return np.bincount(sprites.states_of(claims), minlength=3) / max(1, len(claims.ids))


def predicted_classes(claims: Claims) -> list[int]:
    """2 * class for every class with a positive claim, 2 * class + 1 for one with an ignored claim, rising.

    Classes with less than half a percent of the pixels are left out.
    """
    state = sprites.states_of(claims)
    keys, counts = np.unique(
        2 * claims.ids.astype(np.int64)[state < sprites.NEGATIVE] + state[state < sprites.NEGATIVE], return_counts=True
    )
    return keys[counts >= max(1, int(sprites.MIN_SHARE * len(state)))].tolist()


def badness(values: np.ndarray, higher_is_better: np.ndarray) -> np.ndarray:
    """How bad each image is among all, 0..1: the mean over tasks of the share of images with a better score.

    Args:
      values: [images, tasks], each task's headline metric of the image alone; NaN where scored is none.
      higher_is_better: bool [tasks].

    Returns:
      float [images]; 0 for an image without any score.
    """
    worse = np.full(values.shape, np.nan)
    for t, higher in enumerate(higher_is_better):
        scored = np.isfinite(values[:, t])
        bad = -values[scored, t] if higher else values[scored, t]
        worse[scored, t] = np.searchsorted(np.sort(bad), bad, "left") / max(1, len(bad))
    counted = np.isfinite(worse).sum(1)
    return np.nansum(worse, 1) / np.maximum(counted, 1)


class Facts(NamedTuple):
    """The numbers of one image.

    Attributes:
      labeled: tasks with a valid label.
      uncertain: {task: `uncertainty`} of the tasks with scores.
      shares: {task: `state_shares`}.
      classes: {task: `predicted_classes`}.
      scores: {task: headline metric of this image alone} where the truth is known.
      readable: whether the picture can be read.
    """

    labeled: tuple[str, ...]
    uncertain: dict[str, float]
    shares: dict[str, np.ndarray]
    classes: dict[str, list[int]]
    scores: dict[str, float]
    readable: bool


class Columns:
    """The numbers of all images by column, about thirty bytes per image.

    Args:
      tasks: {task: Task}.
      classes: {task: names of its classes}.
      metrics: {task: headline metric} of the tasks whose truth is known.
    """

    def __init__(self, tasks: Mapping[str, Task], classes: Mapping[str, Sequence[str]], metrics: Mapping[str, Metric]):
        self._names, self._classes, self._metrics = tuple(tasks), classes, metrics
        self._total: list[int] = []
        self._unreadable: list[int] = []
        self._uncertain: dict[str, list[int]] = {name: [] for name in tasks}
        self._counts: dict[str, list[int]] = {name: [] for name in tasks}
        self._predicted: dict[str, list[int]] = {name: [] for name in tasks}
        self._scores: dict[str, list[float]] = {name: [] for name in metrics}
        self._shares = {name: np.zeros(3) for name in tasks}

    def __len__(self) -> int:
        return len(self._total)

    def add(self, facts: Facts) -> None:
        """The next image; its uncertainty is the mean over the tasks with scores."""
        if not facts.readable:
            self._unreadable.append(len(self))
        values = list(facts.uncertain.values())
        self._total.append(round(_FINE * sum(values) / len(values)) if values else 0)
        for name in self._names:
            without = 0 if name in facts.labeled else -1
            self._uncertain[name].append(round(_COARSE * facts.uncertain[name]) if name in facts.uncertain else without)
            predicted = facts.classes.get(name, [])
            self._counts[name].append(len(predicted))
            self._predicted[name] += predicted
            self._shares[name] += facts.shares.get(name, 0.0)
        for name, scores in self._scores.items():
            scores.append(facts.scores.get(name, np.nan))

    def most_uncertain_first(self) -> np.ndarray:
        """Indices of the images by falling uncertainty, ties in their order; the page sorts the same way."""
        return np.argsort(-np.array(self._total), kind="stable")

    def text(self, ids: Sequence[str], **more: Any) -> str:
        """All columns and further entries for the page, as base64 of deflated JSON: no text in it can become markup."""
        content = {"ids": list(ids), "uncertainty": self._total, "unreadable": self._unreadable, **more}
        content["tasks"] = [self._task(name) for name in self._names]
        if self._metrics:
            values = np.array(list(self._scores.values())).T
            better = np.array([metric.higher_is_better for metric in self._metrics.values()])
            content["error"] = np.round(1000 * badness(values, better)).astype(int).tolist()
        packed = zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)
        return base64.b64encode(packed).decode()

    def _task(self, name: str) -> dict[str, Any]:
        column: dict[str, Any] = {"name": name, "classes": list(self._classes.get(name, ()))}
        column |= {
            "uncertainty": self._uncertain[name],
            "counts": self._counts[name],
            "predicted": self._predicted[name],
        }
        labeled = sum(value >= 0 for value in self._uncertain[name])
        column["shares"] = (self._shares[name] / max(1, labeled)).round(4).tolist()
        if name in self._metrics:
            metric = self._metrics[name]
            column["metric"] = {"name": metric.name, "unit": metric.unit, "higher": metric.higher_is_better}
            column["scores"] = [float(f"{score:.3g}") if np.isfinite(score) else None for score in self._scores[name]]
        return column


class _Truth:
    """True labels by id, and scores of other labels against them.

    Args:
      truth: {task: source}; a source that several tasks share is read once.
      tasks: {task: Task}.
    """

    def __init__(self, truth: Mapping[str, Source], tasks: Mapping[str, Task]):
        known = {name: held for name, held in truth.items() if name in tasks}
        names = {id(held): [name for name in known if known[name] is held] for held in known.values()}
        self._held = [(known[group[0]], group) for group in names.values()]
        self._rows = [{key: row for row, key in enumerate(held.ids)} for held, _ in self._held]
        self._tasks = tasks
        self.metrics: dict[str, Metric] = {name: tasks[name].metrics[0] for name in known}

    def stored(self, key: str) -> dict[str, Label]:
        """{task: true label of an image in record form} where it is known."""
        found = {}
        for (held, group), rows in zip(self._held, self._rows, strict=True):
            try:
                labels = labels_of(held, rows[key]) if key in rows else {}
            except UserError:  # a damaged truth counts as unknown
                continue
            found |= {name: labels[name] for name in group if name in labels}
        return found

    def scores(self, drawn: sprites.Drawn, true: Mapping[str, Label]) -> dict[str, float]:
        """{task: headline metric of one image}."""
        tasks = {name: self._tasks[name] for name in true if name in drawn.labels}
        geometry, found = whole_image(drawn.size, _FRAME), {}
        predicted, _ = sprites.transformed(drawn.stored, tasks, geometry)
        known, _ = sprites.transformed(true, tasks, geometry)
        for name in known:
            batch = jax.tree.map(lambda field: np.asarray(field)[None], (predicted[name], known[name]))
            rows = {field: np.asarray(row) for field, row in self._tasks[name].measure(*batch).items()}
            found[name] = float(tasks[name].summarize(rows)[self.metrics[name].name])
        return found


def _look(indices: Iterable[int], *, source, tasks, policies, truths: _Truth) -> list[Facts]:
    found = []
    for index in indices:
        drawn = sprites.read(source, index, tasks, policies)
        true = truths.stored(source.ids[index]) if drawn.picture is not None else {}
        uncertain, shares, classes = (
            {name: of(claims) for name, claims in drawn.claims.items()}
            for of in (uncertainty, state_shares, predicted_classes)
        )
        scores = truths.scores(drawn, true) if true else {}
        found.append(Facts(tuple(drawn.labels), uncertain, shares, classes, scores, drawn.picture is not None))
    return found


def _draw(part: tuple[int, Sequence[int]], *, directory: str, source, tasks, policies, truths: _Truth) -> int:
    """Writes a chunk that is not complete yet, and returns the number of its images."""
    chunk, indices = part
    if not sprites.is_whole(directory, chunk):
        records = [sprites.read(source, int(index), tasks, policies) for index in indices]
        known = []
        for index, drawn in zip(indices, records, strict=True):
            true = truths.stored(source.ids[index]) if drawn.picture is not None else {}
            known.append(sprites.transformed(true, tasks, sprites.frame(drawn.size))[0] if true else {})
        sprites.write_chunk(directory, chunk, records, tasks, policies, known)
    return len(indices)


def _parts(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _spread(pool: ThreadPoolExecutor, most: int, work: Callable, parts: Iterable) -> Iterator:
    """The results in order, with a bounded number of parts in flight to bound the memory."""
    waiting: collections.deque = collections.deque()
    for part in parts:
        waiting.append(pool.submit(work, part))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _content(directory: str) -> str | None:
    """Hash of the content of a gallery; None when there is no gallery."""
    try:
        return json.loads(Path(directory, _IDENTITY).read_text(encoding="utf-8"))["content"]
    except (OSError, ValueError, KeyError):
        return None


def _identity(source, tasks, policies, truth, title: str, per_page: int) -> str:
    bounds = {name: [np.asarray(field).tolist() for field in policies[name]] for name in tasks}
    truths = {name: truth[name].fingerprint for name in truth}
    parts = (
        _VERSION,
        source.name,
        source.fingerprint,
        len(source),
        list(tasks.items()),
        bounds,
        truths,
        title,
        per_page,
    )
    return hashlib.sha256((repr(parts) + _page("", "")).encode()).hexdigest()


def _page(title: str, data: str) -> str:
    """`gallery.html` with title, style, script and data filled in."""
    here = Path(__file__).parent
    style, *scripts = ((here / name).read_text(encoding="utf-8") for name in _PARTS)
    script = "\n".join(scripts)
    parts = {"title": escape(title), "style": charts.STYLE + style, "script": script, "data": data}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (here / "gallery.html").read_text(encoding="utf-8"))
