"""A folder of static files that shows every record in a browser: what teachers said, and what of it will be believed.

`index.html` opens by a double click and fetches nothing from the net; it holds the numbers of all images and loads the
pictures, `must.report.sprites`, as they come into sight. What the browser does is in `gallery*.js`.
"""

import collections
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from pathlib import Path

import jax
import numpy as np

from must.core.types import Label, Metric, Policy, Source, UserError
from must.data.combine import labels_of
from must.data.geometry import whole_image
from must.report import charts, doubt, sprites
from must.report.columns import Columns, Facts
from must.tasks.base import Task

_IDENTITY = "gallery.json"
_FRAME = (192, 192)  # in which labels are compared with the truth: one compiled program for images of all sizes
_AT_ONCE = 32  # images that a thread takes up
_PARTS = ("gallery.css", "gallery_data.js", "gallery_large.js", "gallery.js")
_VERSION = 1  # raise it when the same arguments make other pictures


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

    Images are read twice: for their numbers, which put the most doubtful first, and to be drawn in that order, so that
    those seen together share files. The same arguments give the same bytes. Files gather in `<directory>.partial`, where
    a second call goes on after a killed one; a gallery of the same content is left as it is, one of other content
    replaced. Memory holds the numbers of all images, some hundred bytes each, and the pictures of a few dozen.

    Args:
      directory: of the gallery.
      source: images with labels; what cannot be read becomes a tile that says so.
      tasks: {task: Task} of the labels that are shown.
      policies: {task: Policy}.
      title: of the page.
      truth: {task: source of true labels under the same ids}, of any of the tasks and images.
      per_page: images on one page.
      threads: that draw; one per core by default, 16 at most.
      progress: called with (done, total) steps, two per image.

    Raises:
      UserError: a task without policy, nothing to show, or a directory that holds something else.
    """
    directory = os.path.abspath(os.fspath(directory))
    for name in tasks:
        if name not in policies:
            raise UserError(f"gallery: no policy of task {name!r}")
    if not len(source):
        raise UserError(f"gallery: {source.name} has no images")
    index, unfinished = os.path.join(directory, "index.html"), f"{directory}.partial"
    identity = _identity(source, tasks, policies, truth or {}, title, per_page)
    if _content(directory) == identity:
        return index
    if os.path.isdir(directory) and os.listdir(directory) and _content(directory) is None:
        raise UserError(f"{directory}: is not empty and holds no gallery")
    if _content(unfinished) != identity:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.makedirs(unfinished)
        Path(unfinished, _IDENTITY).write_text(json.dumps({"content": identity}), encoding="utf-8")

    answers, report = _Answers(truth or {}, tasks), progress or (lambda done, total: None)
    columns = Columns(tasks, {name: getattr(task, "classes", ()) for name, task in tasks.items()}, answers.metrics)
    bound = {"source": source, "tasks": tasks, "policies": policies, "answers": answers}
    threads = threads or min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        spread = partial(_spread, pool, 2 * threads)
        for found in spread(partial(_look, **bound), _parts(range(len(source)), _AT_ONCE)):
            for facts in found:
                columns.add(facts)
            report(len(columns), 2 * len(source))
        parts = list(_parts(columns.most_doubtful_first(), sprites.PER_SHEET))
        drawn = len(source)
        for count in spread(partial(_draw, directory=unfinished, **bound), enumerate(parts)):
            report(drawn := drawn + count, 2 * len(source))

    sheets = [sprites.sheets_of(unfinished, chunk, 1 + len(tasks)) for chunk in range(len(parts))]
    places = {"cell": sprites.CELL, "across": sprites.ACROSS, "per": sprites.PER_SHEET, "chunks": sprites.CHUNKS}
    page = {"title": title, "perPage": per_page, "sheets": sheets, **places}
    Path(unfinished, "index.html").write_text(_page(title, columns.text(source.ids, **page)), encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    os.rename(unfinished, directory)
    return index


class _Answers:
    """True labels by id, and how well labels agree with them.

    Args:
      truth: {task: source}; one source may be that of several tasks and is read once.
      tasks: {task: Task}.
    """

    def __init__(self, truth: Mapping[str, Source], tasks: Mapping[str, Task]):
        known = {name: held for name, held in truth.items() if name in tasks}
        names = {id(held): [name for name in known if known[name] is held] for held in known.values()}
        self._held = [(known[group[0]], group) for group in names.values()]
        self._rows = [{key: row for row, key in enumerate(held.ids)} for held, _ in self._held]
        self._tasks = tasks
        self._measure = {name: jax.jit(tasks[name].measure) for name in known}
        self.metrics: dict[str, Metric] = {name: tasks[name].metrics[0] for name in known}

    def stored(self, key: str) -> dict[str, Label]:
        """{task: true label of an image in record form}, as far as it is known."""
        found = {}
        for (held, group), rows in zip(self._held, self._rows, strict=True):
            try:
                labels = labels_of(held, rows[key]) if key in rows else {}
            except UserError:  # a damaged truth is none
                continue
            found |= {name: labels[name] for name in group if name in labels}
        return found

    def scores(self, shown: sprites.Shown, true: Mapping[str, Label]) -> dict[str, float]:
        """{task: headline metric of one image}."""
        tasks = {name: self._tasks[name] for name in true if name in shown.labels}
        geometry, found = whole_image(shown.size, _FRAME), {}
        said, _ = sprites.transformed(shown.stored, tasks, geometry)
        known, _ = sprites.transformed(true, tasks, geometry)
        for name in known:
            batch = jax.tree.map(lambda field: np.asarray(field)[None], (said[name], known[name]))
            rows = {field: np.asarray(row) for field, row in self._measure[name](*batch).items()}
            found[name] = float(tasks[name].summarize(rows)[self.metrics[name].name])
        return found


def _look(indices: Iterable[int], *, source, tasks, policies, answers: _Answers) -> list[Facts]:
    found = []
    for index in indices:
        shown = sprites.read(source, index, tasks, policies)
        true = answers.stored(source.ids[index]) if shown.picture is not None else {}
        doubts, shares, classes = (
            {name: of(claims) for name, claims in shown.claims.items()}
            for of in (doubt.doubt, doubt.shares, doubt.classes_said)
        )
        scores = answers.scores(shown, true) if true else {}
        found.append(Facts(tuple(shown.labels), doubts, shares, classes, scores, shown.picture is not None))
    return found


def _draw(part: tuple[int, Sequence[int]], *, directory: str, source, tasks, policies, answers: _Answers) -> int:
    """Writes a chunk unless that was done before, and returns the number of its images."""
    chunk, indices = part
    if not sprites.is_whole(directory, chunk):
        records = [sprites.read(source, int(index), tasks, policies) for index in indices]
        truths = []
        for index, shown in zip(indices, records, strict=True):
            true = answers.stored(source.ids[index]) if shown.picture is not None else {}
            truths.append(sprites.transformed(true, tasks, sprites.frame(shown.size))[0] if true else {})
        sprites.write_chunk(directory, chunk, records, tasks, policies, truths)
    return len(indices)


def _parts(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _spread(pool: ThreadPoolExecutor, most: int, work: Callable, parts: Iterable) -> Iterator:
    """The results in order, with at most so many parts under way, so that memory does not grow with their number."""
    waiting: collections.deque = collections.deque()
    for part in parts:
        waiting.append(pool.submit(work, part))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _content(directory: str) -> str | None:
    """What a gallery shows, as a hash; None where there is none."""
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
    """`gallery.html` with style, script and data in their places."""
    here = Path(__file__).parent
    style, *scripts = ((here / name).read_text(encoding="utf-8") for name in _PARTS)
    script = "\n".join(scripts)
    parts = {"title": escape(title), "style": charts.STYLE + style, "script": script, "data": data}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (here / "gallery.html").read_text(encoding="utf-8"))
