"""Images through all teachers to encoded records, keeping the device busy.

While the device labels one batch, threads decode and resize the next ones and encode the records of the one before.
Where records go `must.pseudo_label.write` knows.
"""

import collections
import contextlib
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from must.core.labels import of_teacher
from must.core.types import Geometry, Label, LabelError, NotFinite, Source, Teacher, UserError
from must.data.combine import encoded_of
from must.data.geometry import transform_image, whole_image
from must.pseudo_label.check import check_batch, check_record, check_said, not_finite
from must.readers.record_format import encode_png, encode_record, is_plain

Key = TypeVar("Key")
_LONGEST = 2048  # side of a picture that a teacher of any size sees, pixels; a few batches of them are held at a time
_AHEAD = 2  # batches that are decoded before the device needs them
_SMALL = 128 * 128  # pixels; on smaller images two threads take each other the interpreter: 2.4 ms each instead of 1.5


class Row(NamedTuple):
    """One image after the pass.

    Attributes:
      id: of the example.
      record: serialized, or None when the image could not be read or labeled.
      reason: why not.
    """

    id: str
    record: bytes | None
    reason: str = ""


class _Picture(NamedTuple):
    """One decoded image.

    Attributes:
      shape: (height, width) of the original, pixels.
      data: encoded, as the record stores it, or None.
      views: {(h, w) or None: uint8 [h, w, 3]}, the image in the input size of every teacher, None: in its own.
      reason: why it cannot be read, "" when it can.
    """

    shape: tuple[int, int] = (0, 0)
    data: bytes | None = None
    views: dict[tuple[int, int] | None, np.ndarray] = {}
    reason: str = ""


class _Part(NamedTuple):
    """Rows of a batch that a teacher sees together, and its labels of them.

    Attributes:
      rows: of the batch.
      size: (height, width) of the input, pixels.
      labels: {task: Label in network form, leading axis len(rows)}.
    """

    rows: Sequence[int]
    size: tuple[int, int]
    labels: Mapping[str, Label]


class Labeller:
    """Runs batches of a source through teachers; a context manager, since it owns threads.

    Args:
      source: images.
      teachers: all of them see every image.
      batch_size: rows of every forward pass; rows that fill up or cannot be read repeat an image.
      copy_images: put the encoded picture into the records.
      keep_aspect: pad the images to the teachers' input size instead of stretching them.
      threads: of the host; one per core by default, 16 at most.

    Attributes:
      specs: {task: Task.label_spec()} of all teachers.
    """

    def __init__(
        self,
        source: Source,
        teachers: Sequence[Teacher],
        batch_size: int,
        *,
        copy_images: bool = True,
        keep_aspect: bool = True,
        threads: int | None = None,
    ):
        self._source, self._teachers, self._batch_size = source, teachers, batch_size
        self.specs = {key: task.label_spec() for teacher in teachers for key, task in teacher.tasks.items()}
        self._sizes = {teacher.size and tuple(teacher.size) for teacher in teachers}
        self._copy_images, self._keep_aspect = copy_images, keep_aspect
        self._threads = threads or min(16, os.cpu_count() or 1)
        self._pool, self._single = ThreadPoolExecutor(self._threads), ThreadPoolExecutor(1)
        self._small = True  # until an image is seen

    def __enter__(self) -> "Labeller":
        return self

    def __exit__(self, *error: Any) -> None:
        for pool in (self._pool, self._single):
            pool.shutdown(wait=True, cancel_futures=True)

    def run(self, batches: Iterable[tuple[Key, range]]) -> Iterator[tuple[Key, list[Row]]]:
        """(key, indices into the source) -> (key, one row per index), in order.

        Raises:
          UserError: a teacher's labels cannot be right; names teacher, field and record.
        """
        batches = iter(batches)
        decoding, labeling, encoding = collections.deque(), collections.deque(), collections.deque()
        while True:
            while len(decoding) < _AHEAD and (batch := next(batches, None)):
                decoding.append((*batch, self._spread(self._decode, batch[1])))
            if decoding:
                key, indices, futures = decoding.popleft()
                pictures, ids = _gather(futures), [self._source.ids[index] for index in indices]
                labeling.append((key, ids, pictures, self._dispatch(ids, pictures)))  # which may reject pictures
            # The device has its next batch before the host takes up the one that is done.
            if labeling and (len(labeling) > 1 or not decoding):
                key, ids, pictures, predicted = labeling.popleft()
                encode = self._encoder(ids, pictures, self._fetch(predicted, ids, pictures))
                encoding.append((key, self._spread(encode, range(len(ids)))))
            if encoding and (len(encoding) > 1 or not labeling):
                key, futures = encoding.popleft()
                yield key, _gather(futures)
            if not (decoding or labeling or encoding):
                return

    def _spread(self, work: Callable[[int], Any], items: range) -> list[Future]:
        """The work in as many parts as threads can share."""
        pool, size = (self._single, len(items)) if self._small else (self._pool, -(-len(items) // self._threads))
        parts = [items[at : at + size] for at in range(0, len(items), size)]
        return [pool.submit(lambda part=part: [work(item) for item in part]) for part in parts]

    def _decode(self, index: int) -> _Picture:
        try:
            image = self._source[index].image
            stored = encoded_of(self._source, index) if self._copy_images else None
        except UserError as error:
            return _Picture(reason=str(error))
        if len(image.shape) != 3 or image.dtype != np.uint8 or image.shape[2] != 3:
            kind = getattr(image, "dtype", "a video")
            raise UserError(f"{self._source.ids[index]}: image is {kind} {image.shape}, not uint8 [H, W, 3]")
        shape = image.shape[:2]
        self._small = shape[0] * shape[1] < _SMALL
        if self._copy_images and not (stored and is_plain(stored, shape)):
            stored = encode_png(image)
        views = {size: transform_image(image, self._place(shape, size)) for size in self._sizes}
        return _Picture(shape, stored, views)

    def _place(self, shape: tuple[int, int], size: tuple[int, int] | None) -> Geometry:
        if size is not None:
            return whole_image(shape, size, keep_aspect=self._keep_aspect)
        smaller = min(1.0, _LONGEST / max(shape))
        return whole_image(shape, tuple(max(1, round(side * smaller)) for side in shape), keep_aspect=False)

    def _dispatch(self, ids: list[str], pictures: list[_Picture]) -> list[list[_Part]]:
        """The predictions of every teacher, not yet waited for; nothing where there is no picture.

        A picture for which a teacher predicts NaN before it has an answer is rejected, and the others are predicted
        again.
        """
        inputs = {size: self._inputs(size, pictures) for size in self._sizes} if _good(pictures) else {}
        predicted: list[list[_Part]] = []
        for teacher in self._teachers if inputs else ():
            predicted.append([])
            for rows, images in inputs[teacher.size and tuple(teacher.size)]:
                with _blame(teacher, [ids[row] for row in rows if row < len(ids)]):
                    try:
                        predicted[-1].append(_Part(rows, images.shape[1:3], _asked(teacher, images)))
                    except NotFinite as error:
                        row = None if error.row is None else rows[error.row]
                        if row not in _good(pictures):
                            raise
                        pictures[row] = _Picture(reason=f"teacher {teacher.name}: {error}")
                        return self._dispatch(ids, pictures)
        return predicted

    def _inputs(self, size: tuple[int, int] | None, pictures: list[_Picture]) -> list[tuple[Sequence[int], np.ndarray]]:
        """What the teachers of a size see together, (rows of the batch, uint8 [n, h, w, 3]): the whole batch, or with
        None the pictures of each size."""
        good = _good(pictures)
        if size is None:
            shapes = dict.fromkeys(pictures[row].views[None].shape for row in good)
            groups = [[row for row in good if pictures[row].views[None].shape == shape] for shape in shapes]
            return [(rows, np.stack([pictures[row].views[None] for row in rows])) for rows in groups]
        images = np.empty((self._batch_size, *size, 3), np.uint8)
        for row in range(self._batch_size):
            # A repeated picture costs what a black one does, and cannot be one that only fails a teacher.
            images[row] = pictures[row if row in good else good[0]].views[size]
        return [(range(self._batch_size), images)]

    def _fetch(self, predicted: list[list[_Part]], ids: list[str], pictures: list[_Picture]) -> list[list[_Part]]:
        """The labels on the host, checked; pictures for which a teacher predicts NaN are rejected."""
        fetched: list[list[_Part]] = []
        for teacher, parts in zip(self._teachers, predicted, strict=False):
            fetched.append([])
            for part in parts:
                with _blame(teacher, [ids[row] for row in part.rows if row < len(ids)]):
                    fetched[-1].append(part._replace(labels=self._checked(teacher, part, pictures)))
        return fetched

    def _checked(self, teacher: Teacher, part: _Part, pictures: list[_Picture]) -> dict[str, Label]:
        """The labels of a part on the host, where errors on the device surface; rejects pictures as `_fetch`."""

        def good() -> list[int]:
            return [at for at, row in enumerate(part.rows) if row < len(pictures) and not pictures[row].reason]

        checked = {}
        for key, task in teacher.tasks.items():
            label = {name: np.asarray(field) for name, field in part.labels[key].items()}
            while problem := check_batch(label, task, part.size, len(part.rows), good()):
                at, what = problem
                wrong = not_finite(label, good())
                if at not in wrong:
                    raise LabelError(f"{key}.{what}", at)
                for at, what in wrong.items():
                    pictures[part.rows[at]] = _Picture(reason=f"teacher {teacher.name}: {key}.{what}")
            checked[key] = of_teacher(label)
        return checked

    def _encoder(self, ids: list[str], pictures: list[_Picture], fetched: list[list[_Part]]) -> Callable[[int], Row]:
        def encode(row: int) -> Row:
            picture, labels = pictures[row], {}
            if picture.reason:
                return Row(ids[row], None, picture.reason)
            for teacher, parts in zip(self._teachers, fetched, strict=False):
                geometry = self._place(picture.shape, teacher.size and tuple(teacher.size))
                part = next(part for part in parts if row in part.rows)
                for key, task in teacher.tasks.items():
                    label = {name: field[part.rows.index(row)] for name, field in part.labels[key].items()}
                    try:
                        labels[key] = task.restore(label, geometry)
                    except (ValueError, KeyError, IndexError, TypeError) as error:
                        what = f"cannot be stored ({type(error).__name__}: {error})"
                        raise UserError(f"teacher {teacher.name}: {key} {what}, record {ids[row]}") from None
                    if what := check_record(labels[key], self.specs[key], task):
                        raise UserError(f"teacher {teacher.name}: {key}.{what}, record {ids[row]}")
            return Row(ids[row], encode_record(ids[row], picture.data, labels, self.specs))

        return encode


def _good(pictures: Sequence[_Picture]) -> list[int]:
    """Rows that hold a picture to be labeled."""
    return [row for row, picture in enumerate(pictures) if not picture.reason]


def _asked(teacher: Teacher, images: np.ndarray) -> Mapping[str, Label]:
    """A teacher's predictions for its tasks, on their way to the host."""
    labels = teacher.predict(images)
    check_said(teacher.tasks, labels)
    for key in teacher.tasks:
        if not isinstance(labels[key], Mapping):
            raise LabelError(f"says {type(labels[key]).__name__} of {key}, not {{field: array}}")
        for field in labels[key].values():
            if hasattr(field, "copy_to_host_async"):
                field.copy_to_host_async()
    return labels


@contextlib.contextmanager
def _blame(teacher: Teacher, ids: Sequence[str]) -> Iterator[None]:
    """Turns any error or invalid prediction of a teacher into one line that names it and the records."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        row = error.row if isinstance(error, LabelError) else None
        known = row is not None and row < len(ids)
        where = f"record {ids[row]}" if known else f"records {ids[0]}..{ids[-1]}"
        what = str(error) if isinstance(error, LabelError) else f"{type(error).__name__}: {error}"
        raise UserError(f"teacher {teacher.name}: {textwrap.shorten(what, 300)}, {where}") from error


def _gather(futures: Iterable[Future]) -> list:
    return [item for future in futures for item in future.result()]
