"""From a source to batches: shuffling, geometry, views, stacking; index and seed decide everything.

Training batches come from Grain, whose position is saved beside the model. Each process draws the same global order
and reads its own rows of every batch.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from must.core.types import Batch, Example, Geometry, Source, UserError
from must.data import geometry as geometries

View = Callable[[np.ndarray, np.random.Generator], np.ndarray]
# (row, rng, another) -> row; another(rng) is the row, before any change, of another place of the same global batch
Change = Callable[[Batch, np.random.Generator, Callable[[np.random.Generator], Batch]], Batch]


class Encoder(NamedTuple):
    """One example -> one row of a batch.

    Attributes:
      tasks: {name: object with `transform` and `blank`}, the labels that a row carries.
      size: (height, width) of the network's frame.
      draw: (rng, source_size, size) -> Geometry; None shows the whole image.
      views: {name: photometric change}; None leaves the picture as it is.
      keep_aspect: of the whole image, when `draw` is None.
    """

    tasks: Mapping[str, Any]
    size: tuple[int, int]
    draw: Callable[..., Geometry] | None = None
    views: Mapping[str, View | None] = {"image": None}
    keep_aspect: bool = True

    def blank_inputs(self) -> dict[str, np.ndarray]:
        """The inputs of one row without a picture, {view: zeros [1, ...]}: what a network is initialized on."""
        return {name: np.zeros((1, *self.size, 3), np.uint8) for name in self.views}

    def __call__(self, example: Example, index: int, rng: np.random.Generator) -> Batch:
        """The row of `example`, arrays without the leading axis B.

        Raises:
          UserError: a label that cannot be right, or a video, naming the record.
        """
        if len(example.image.shape) != 3:
            shape = tuple(example.image.shape)
            raise UserError(f"record {example.id}: is a video {shape}, not a picture; ClipEncoder takes videos")
        source_size = example.image.shape[:2]
        if self.draw is None:
            geometry = geometries.whole_image(source_size, self.size, keep_aspect=self.keep_aspect)
        else:
            geometry = self.draw(rng, source_size, self.size)
        picture = geometries.transform_image(example.image, geometry)
        inputs = {name: picture if view is None else view(picture, rng) for name, view in self.views.items()}
        return Batch(inputs, *labels_and_weights(self.tasks, example, geometry), np.int64(index), {})


def labels_and_weights(tasks: Mapping[str, Any], example: Example, geometry: Geometry) -> tuple[dict, dict]:
    """{task: Label in network form} and {task: float32 []} of a row; a task that is absent is blank and has weight 0.

    Raises:
      UserError: a label that cannot be right, naming the record.
    """
    labels, weights = {}, {}
    for name, task in tasks.items():
        label = example.labels.get(name)
        try:
            labels[name] = task.blank(geometry.size) if label is None else task.transform(label, geometry)
        except ValueError as error:
            raise UserError(f"record {example.id}, {name}: {error}") from None
        weights[name] = np.float32(0 if label is None else example.weights.get(name, 1))
    return labels, weights


def stack(rows: list[Batch]) -> Batch:
    """Rows -> one batch, leading axis B."""
    import jax

    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def train_batches(
    source: Source,
    encoder: Encoder,
    *,
    batch_size: int,
    seed: int,
    process: tuple[int, int] = (0, 1),
    threads: int = 1,
    sizes: Sequence[tuple[int, int]] = (),
    sizes_until: int = 0,
    extras: Mapping[str, Mapping[str, np.ndarray]] = {},
    changes: Sequence[Change] = (),
) -> grain.DatasetIterator:
    """Endless shuffled batches; `get_state` and `set_state` give and take the position.

    Args:
      source: drawn uniformly, a new order every epoch.
      encoder: examples to rows.
      batch_size: over all processes.
      seed: of order and geometry.
      process: (index, count); batch_size must divide by the count.
      threads: that decode ahead.
      sizes: multi-scale input: frames of which every batch draws one; `encoder.size` when there are none.
      sizes_until: first batch that has `encoder.size` again.
      extras: {supervision: {name: array [N, ...]}}, for `Batch.extras`; N examples as the source numbers them.
      changes: of every row, one after the other, see `must.data.mix`.

    Raises:
      UserError: an empty source or a batch size that does not divide.
    """
    _index, count = process
    if not len(source):
        raise UserError(f"{source.name}: no examples to train on")
    if batch_size % count:
        raise UserError(f"batch_size {batch_size} does not divide by {count} processes")

    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    sizes = [tuple(size) for size in sizes]
    batches = _Batches(order, source, encoder, seed, process, batch_size, sizes, sizes_until, extras, tuple(changes))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    return iter(batches.to_iter_dataset(options))


def example_weights(weights: np.ndarray, factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The weights of examples, the product of what their source gives and of named factors; 0 stays absent.

    Args:
      weights: of the source, [B]: 0 where the label is absent, else the weight of the truth or of a file.
      factors: {name: [B]}, such as "estimated" and "confidence".
    """
    for factor in factors.values():
        weights = factor * weights
    return weights


class Joined:
    """Training batches with weights of each example joined to its rows by `Batch.ids`.

    Batches are made ahead of the step, these numbers change while it learns: they are joined when a batch is taken, so
    that a resumed run meets the same ones as an uninterrupted one. Without any, batches of several groups pass too.

    Attributes:
      weights: {supervision: {factor: float32 [N]}}, factors of the batches' weights by name; N examples as the source
        numbers them.
    """

    def __init__(self, batches: "grain.DatasetIterator | Grouped", weights: Mapping[str, Mapping[str, np.ndarray]]):
        self._batches, self.weights = batches, dict(weights)

    def __iter__(self) -> "Joined":
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        if not self.weights:
            return batch
        weights = {
            name: example_weights(batch.weights[name], {key: table[batch.ids] for key, table in factors.items()})
            for name, factors in self.weights.items()
        }
        return batch._replace(weights={**batch.weights, **weights})

    def get_state(self) -> dict:
        """Position of the batches."""
        return self._batches.get_state()

    def set_state(self, state: dict) -> None:
        """Goes to a position."""
        self._batches.set_state(state)


class Grouped:
    """Batches of several groups, drawn side by side: {group: Batch} of each step.

    Every group goes through its own set at its own pace: a smaller set starts again while the largest is in its first
    epoch, see `epoch_steps`.

    Args:
      groups: {name: iterator with get_state and set_state}.
    """

    def __init__(self, groups: Mapping[str, Any]):
        self._groups = dict(groups)

    def __iter__(self) -> "Grouped":
        return self

    def __next__(self) -> dict[str, Batch]:
        return {name: next(batches) for name, batches in self._groups.items()}

    def get_state(self) -> dict:
        """Position of every group."""
        return {name: batches.get_state() for name, batches in self._groups.items()}

    def set_state(self, state: dict) -> None:
        """Goes to a position."""
        for name, batches in self._groups.items():
            batches.set_state(state[name])


def epoch_steps(counts: Mapping[str, int], batch_size: int) -> int:
    """Steps of one epoch of groups with so many examples each: the largest set is seen once (MulTaS)."""
    return max(1, max(count // batch_size for count in counts.values()))


def eval_batches(
    source: Source, encoder: Encoder, *, batch_size: int, process: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is filled up with rows of weight 0 and id -1.

    With several processes each reads every count-th batch.
    """
    index, count = process
    for start in range(index * batch_size, len(source), count * batch_size):
        stop = min(start + batch_size, len(source))
        rows = [encoder(source[i], i, np.random.default_rng(i)) for i in range(start, stop)]
        if len(rows) < batch_size:
            last = rows[-1]
            padding = last._replace(weights={n: np.float32(0) for n in last.weights}, ids=np.int64(-1))
            rows += [padding] * (batch_size - len(rows))
        yield stack(rows)


class _Batches(grain.MapDataset):
    """The rows of one process out of every global batch; a row's randomness is that of its place in the global stream.

    Grain is asked for indices and whole batches only: a stage of its own for every row takes longer than a small row.
    """

    _MUTATES_ELEMENT_SPEC = False

    def __init__(
        self,
        order,
        source: Source,
        encoder: Encoder,
        seed: int,
        process: tuple[int, int],
        batch_size: int,
        sizes,
        sizes_until,
        extras,
        changes: tuple[Change, ...],
    ):
        super().__init__(order)
        self._source, self._encoder, self._seed = source, encoder, seed
        self._process, self._batch_size = process, batch_size
        self._sizes, self._sizes_until = sizes, sizes_until
        self._extras, self._changes = extras, changes

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size

    def __getitem__(self, batch):
        if isinstance(batch, slice):
            return self.slice(batch)
        index, count = self._process
        rows = self._batch_size // count
        start = batch * self._batch_size + index * rows
        encoder = self._encoder
        if self._sizes and batch < self._sizes_until:
            # Whatever the seed: all processes and all groups of a step have one frame, so few programs are compiled.
            drawn = np.random.default_rng((batch, len(self._sizes))).integers(len(self._sizes))
            encoder = encoder._replace(size=self._sizes[drawn])
        # A row that another one takes a part of is made once; a process makes those of other processes that it needs.
        made = functools.cache(functools.partial(self._row, encoder))
        return stack([self._changed(made, place) for place in range(start, start + rows)])

    def _row(self, encoder: Encoder, place: int) -> Batch:
        index = int(self._parent[place])
        row = encoder(self._source[index], index, np.random.default_rng((self._seed, place)))
        extras = {name: {key: table[index] for key, table in fields.items()} for name, fields in self._extras.items()}
        return row._replace(extras={**row.extras, **extras})

    def _changed(self, made: Callable[[int], Batch], place: int) -> Batch:
        """The row of a place after all changes, whose randomness is that of the place too."""
        row = made(place)
        if not self._changes:
            return row
        first, number = place - place % self._batch_size, place % self._batch_size

        def another(rng: np.random.Generator) -> Batch:
            return made(first + (number + int(rng.integers(1, self._batch_size))) % self._batch_size)

        rng = np.random.default_rng((self._seed, place, 1))
        for change in self._changes:
            row = change(row, rng, another)
        return row
