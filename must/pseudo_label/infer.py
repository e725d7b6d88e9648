"""Images through all teachers to encoded records, keeping the device busy: what is written where `write` knows.

While the device labels one batch, threads decode and resize the next ones and encode the records of the one before.
"""

import collections
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from must.core.types import Example, Geometry, Label, Source, Teacher, UserError
from must.data.geometry import transform_image, whole_image
from must.data.record_format import encode_png, encode_record, is_plain, mismatch

_ROUNDING = 1e-3  # by which a sum of probabilities may exceed 1
Key = TypeVar("Key")


class Row(NamedTuple):
    """One image after the pass.

    Attributes:
      id: of the example.
      record: serialised, or None when the image could not be read.
      reason: why not.
    """

    id: str
    record: bytes | None
    reason: str = ""


class _Batch(NamedTuple):
    """Decoded images, and each teacher's view of them.

    Attributes:
      indices: of the source.
      shapes: (height, width) of each original, or the message of the error that reading it raised.
      images: encoded pictures.
      inputs: {(height, width): uint8 [batch_size, height, width, 3]}; rows without an image are 0.
    """

    indices: range
    shapes: list[tuple[int, int] | str]
    images: list[bytes | None]
    inputs: dict[tuple[int, int], np.ndarray]


class Labeller:
    """Runs batches of a source through teachers; a context manager, since it owns threads."""

    def __init__(
        self, source: Source, teachers: Sequence[Teacher], batch_size: int, *, copy_images: bool, threads: int = 0
    ):
        self._source, self._teachers, self._batch_size = source, teachers, batch_size
        self._specs = {key: task.label_spec() for teacher in teachers for key, task in teacher.tasks.items()}
        self._sizes = {tuple(teacher.size) for teacher in teachers}
        self._copy_images = copy_images
        self._pool = ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1))

    def __enter__(self) -> "Labeller":
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, batches: Iterable[tuple[Key, range]]) -> Iterator[tuple[Key, list[Row]]]:
        """(key, indices) -> (key, rows), in order.

        Raises:
          UserError: a teacher's labels cannot be right; names teacher, field and record.
        """
        decoding: collections.deque[tuple[Key, list[Future]]] = collections.deque()
        labelling: collections.deque[tuple[Key, _Batch, list[dict[str, Label]]]] = collections.deque()
        encoding: collections.deque[tuple[Key, list[Future]]] = collections.deque()
        source = iter(batches)
        exhausted = False
        while True:
            while not exhausted and len(decoding) < 2:
                batch = next(source, None)
                if batch is None:
                    exhausted = True
                else:
                    decoding.append((batch[0], batch[1], [self._pool.submit(self._decode, i) for i in batch[1]]))
            if decoding:
                key, indices, futures = decoding.popleft()
                batch = self._stack(indices, [future.result() for future in futures])
                # Dispatched before the previous batch is fetched, so that the device goes from one to the next.
                labelling.append((key, batch, [self._dispatch(teacher, batch) for teacher in self._teachers]))
            if labelling and (len(labelling) > 1 or not decoding):
                key, batch, said = labelling.popleft()
                said = [self._fetch(*pair, batch) for pair in zip(self._teachers, said)]
                encoding.append((key, [self._pool.submit(self._encode, batch, said, i) for i in range(len(batch.indices))]))
            if encoding and (len(encoding) > 1 or not labelling):
                key, futures = encoding.popleft()
                yield key, [future.result() for future in futures]
            if exhausted and not (decoding or labelling or encoding):
                return

    def _decode(self, index: int) -> tuple[Example | str, bytes | None, dict[tuple[int, int], np.ndarray]]:
        """The example or why it cannot be read, its encoded picture, and the picture in every teacher's size."""
        try:
            example = self._source[index]
        except UserError as error:
            return str(error), None, {}
        image, data = example.image, None
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"{example.id}: image is {image.dtype} {image.shape}, not uint8 [H, W, 3]")
        if self._copy_images:
            stored = self._source.encoded(index) if hasattr(self._source, "encoded") else None
            plain = stored is not None and is_plain(stored, image.shape[:2])
            data = stored if plain else encode_png(image)
        views = {size: transform_image(image, whole_image(image.shape[:2], size)) for size in self._sizes}
        return example, data, views

    def _stack(self, indices: range, decoded: list) -> _Batch:
        inputs = {size: np.zeros((self._batch_size, *size, 3), np.uint8) for size in self._sizes}
        for row, (_, _, views) in enumerate(decoded):
            for size, view in views.items():
                inputs[size][row] = view
        shapes = [found if isinstance(found, str) else found.image.shape[:2] for found, _, _ in decoded]
        return _Batch(indices, shapes, [data for _, data, _ in decoded], inputs)

    def _dispatch(self, teacher: Teacher, batch: _Batch) -> dict[str, Label]:
        said = teacher.predict(batch.inputs[tuple(teacher.size)])
        for key in teacher.tasks:
            if key not in said:
                raise UserError(f"teacher {teacher.name}: says nothing about {key}, only {', '.join(said) or 'nothing'}")
            for field in said[key].values():
                if hasattr(field, "copy_to_host_async"):
                    field.copy_to_host_async()
        return said

    def _fetch(self, teacher: Teacher, said: dict[str, Label], batch: _Batch) -> dict[str, Label]:
        """The labels on the host, checked."""
        good = np.array([not isinstance(shape, str) for shape in batch.shapes])
        fetched = {}
        for key, task in teacher.tasks.items():
            fetched[key] = {name: np.asarray(field) for name, field in said[key].items()}
            problem = _problem(fetched[key], task, tuple(teacher.size), self._batch_size, good)
            if problem:
                row, field, what = problem
                raise UserError(f"teacher {teacher.name}: {key}.{field} {what}, record {self._source.ids[batch.indices[row]]}")
        return fetched

    def _encode(self, batch: _Batch, said: list[dict[str, Label]], row: int) -> Row:
        id, shape = self._source.ids[batch.indices[row]], batch.shapes[row]
        if isinstance(shape, str):
            return Row(id, None, shape)
        labels = {}
        for teacher, fetched in zip(self._teachers, said):
            geometry = whole_image(shape, tuple(teacher.size))
            for key, task in teacher.tasks.items():
                label = {name: field[row] for name, field in fetched[key].items()}
                labels[key] = _restored(teacher, key, task, label, geometry, id)
        return Row(id, encode_record(id, batch.images[row], labels, self._specs))


def _restored(teacher: Teacher, key: str, task: Any, label: Label, geometry: Geometry, id: str) -> Label:
    """Record form, checked against the task's specification."""
    try:
        restored = task.restore(label, geometry)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"teacher {teacher.name}: {key} cannot be stored ({error!r}), record {id}") from None
    spec = task.label_spec()
    for field in spec:
        what = mismatch(restored[field], spec[field]) if field in restored else "is missing"
        what = what or _outside(field, np.asarray(restored[field]), task)
        if what:
            raise UserError(f"teacher {teacher.name}: {key}.{field} {what}, record {id}")
    return restored


def _problem(
    said: Mapping[str, np.ndarray], task: Any, size: tuple[int, int], batch_size: int, good: np.ndarray
) -> tuple[int, str, str] | None:
    """(row, field, what is wrong) of the first thing that cannot be right in a batch of labels in network form."""
    first = int(np.argmax(good))
    for name, spec in task.network_spec(size).items():
        if name not in said:
            return first, name, "is missing"
        field, kind = said[name], np.dtype(spec.dtype).kind
        if field.ndim != len(spec.shape) + 1 or field.shape[0] != batch_size:
            return first, name, f"has shape {field.shape}, not {(batch_size, *spec.shape)}"
        if field.dtype.kind.replace("u", "i") != kind.replace("u", "i"):
            return first, name, f"is {field.dtype}, not {np.dtype(spec.dtype)}"
        if field.shape[-1:] != tuple(spec.shape[-1:]) and name == "probs":
            return first, name, f"has shape {field.shape}, not {(batch_size, *spec.shape)}"
    counted = said["valid"] if "valid" in said else None  # empty slots may hold anything
    for name, field in said.items():
        rows = field[: len(good)]
        flat = rows.reshape(len(good), -1)
        if field.dtype.kind == "f":
            bad = ~np.isfinite(rows)
            if counted is not None and bad.shape[: counted.ndim] == counted[: len(good)].shape:
                bad &= counted[: len(good)].reshape(*counted[: len(good)].shape, *[1] * (bad.ndim - counted.ndim))
            bad = bad.reshape(len(good), -1).any(-1) & good
            if bad.any():
                return int(np.argmax(bad)), name, "is not finite"
        if name == "probs" and field.dtype.kind == "f":
            bad = ((rows < 0) | (rows > 1 + _ROUNDING)).reshape(len(good), -1).any(-1)
            bad = (bad | (rows.sum(-1).reshape(len(good), -1) > 1 + _ROUNDING).any(-1)) & good
            if bad.any():
                row = int(np.argmax(bad))
                return row, name, f"is no probability distribution (sum {flat[row].sum():.4g})"
    return None


def _outside(field: str, array: np.ndarray, task: Any) -> str:
    """What is wrong with class ids or scores of a label in record form, or ""."""
    classes = getattr(task, "classes", None)
    if classes and field in ("ids", "classes", "unknown") and array.size:
        wrong = (array >= len(classes)) & (array != getattr(task, "ignore", -1))
        if wrong.any():
            return f"holds class id {array[wrong].flat[0]} with {len(classes)} classes"
    if field in ("scores", "probs") and array.dtype.kind == "f" and ((array < 0) | (array > 1 + _ROUNDING)).any():
        return "is outside 0..1"
    return ""
