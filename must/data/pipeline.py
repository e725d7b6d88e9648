"""From a source to batches: shuffling, geometry, views, stacking; deterministic given index and seed.

Training batches come from Grain, whose iterator state is saved in checkpoints. All processes know the same global
order, see `must.data.order`, and each reads its own rows of every batch.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from must.core.types import Batch, Example, Geometry, Source, UserError
from must.data import geometry as geometries
from must.data.ahead import Placed, Rows
from must.data.order import shuffled
from must.readers.pictures import undecoded

OTHER = "other"  # input: the second view of `TwoViews`

View = Callable[[np.ndarray, np.random.Generator], np.ndarray]
# (row, rng, another) -> row; another(rng) is a random other row of the same global batch, before any change
Change = Callable[[Batch, np.random.Generator, Callable[[np.random.Generator], Batch]], Batch]


class Encoder(NamedTuple):
    """Encodes an example as one row of a batch.

    Attributes:
      tasks: {name: object with `encode` and `blank`}, the labels of a row.
      size: (height, width) of the network's frame.
      draw: (rng, source_size, size) -> Geometry; None for the whole image.
      views: {name: photometric change or None}.
      keep_aspect: of the whole image, if `draw` is None.
    """

    tasks: Mapping[str, Any]
    size: tuple[int, int]
    draw: Callable[..., Geometry] | None = None
    views: Mapping[str, View | None] = {"image": None}
    keep_aspect: bool = True

    def blank_inputs(self) -> dict[str, np.ndarray]:
        """Zero inputs for initializing a network, {view: [1, H, W, 3]}."""
        return {name: np.zeros((1, *self.size, 3), np.uint8) for name in self.views}

    def __call__(self, example: Example, index: int, rng: np.random.Generator) -> Batch:
        """The row of `example`, arrays without the leading axis B; UserError for a video or an invalid label."""
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


class TwoViews(NamedTuple):
    """Encodes an example as two independent draws of one encoder, side by side in a row.

    Attributes:
      encoder: drawn twice; the second picture is the input `OTHER`.
    """

    encoder: Encoder

    def blank_inputs(self) -> dict[str, np.ndarray]:
        """As `Encoder.blank_inputs`."""
        blank = self.encoder.blank_inputs()["image"]
        return {"image": blank, OTHER: blank}

    def __call__(self, example: Example, index: int, rng: np.random.Generator) -> Batch:
        first, second = (self.encoder(example, index, rng) for _ in range(2))
        return first._replace(inputs={"image": first.inputs["image"], OTHER: second.inputs["image"]})


def labels_and_weights(tasks: Mapping[str, Any], example: Example, geometry: Geometry) -> tuple[dict, dict]:
    """{task: Label in network form} and {task: float32 []} of a row; absent tasks are blank and have weight 0.

    Raises:
      UserError: an invalid label.
    """
    labels, weights = {}, {}
    for name, task in tasks.items():
        label = example.labels.get(name)
        try:
            labels[name] = task.blank(geometry.size) if label is None else task.encode(label, geometry)
        except KeyError as error:
            raise UserError(f"record {example.id}, {name}: the label lacks its field {error}") from None
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
    workers: int = 0,
    sizes: Sequence[tuple[int, int]] = (),
    sizes_until: int = 0,
    extras: Mapping[str, Mapping[str, np.ndarray]] = {},
    changes: Sequence[Change] = (),
) -> Rows:
    """Endless shuffled batches; `get_state` and `set_state` read and restore the position.

    Args:
      source: shuffled anew every epoch, see `must.data.order`.
      encoder: of examples to rows.
      batch_size: over all processes.
      seed: of order and geometry.
      process: (index, count); the count must divide batch_size.
      threads: for prefetching, without workers.
      workers: processes that make batches in turn; the batches are the same for any number of them.
      sizes: multi-scale input: every batch draws one of these frames; `encoder.size` if empty.
      sizes_until: first batch that uses `encoder.size` again.
      extras: {supervision: {name: array [N, ...]}}, for `Batch.extras`, indexed like the source.
      changes: applied to every row in sequence, see `must.data.mix`.

    Raises:
      UserError: an empty source or an indivisible batch size.
    """
    count = process[1]
    if not len(source):
        raise UserError(f"{source.name}: no examples to train on")
    if batch_size % count:
        raise UserError(f"batch_size {batch_size} is not divisible by {count} processes")

    order = shuffled(source, seed, count, batch_size)
    sizes = [tuple(size) for size in sizes]
    batches = _Batches(order, source, encoder, seed, process, batch_size, sizes, sizes_until, extras, tuple(changes))
    return Rows(batches, threads, workers)


def example_weights(weights: np.ndarray, factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Example weights [B]: the source's `weights` [B], 0 for absent labels, times named factors {name: [B]}."""
    for factor in factors.values():
        weights = factor * weights
    return weights


class Joined:
    """Training batches with per-example weights joined by `Batch.ids`.

    Batches are prefetched while the weights change during training, so weights are joined when a batch is taken; this
    keeps resumed runs identical to uninterrupted ones. Without weights, grouped batches pass through as well.

    Attributes:
      weights: {supervision: {factor: float32 [N]}}, factors of the batches' weights by name, indexed like the source.
    """

    def __init__(self, batches: "Rows | Grouped | Placed", weights: Mapping[str, Mapping[str, np.ndarray]]):
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
        """Restores a position."""
        self._batches.set_state(state)

    def close(self) -> None:
        """Ends what makes batches ahead."""
        self._batches.close()


class Grouped:
    """Batches of several groups in parallel: {group: Batch} per step.

    Each group has its own epochs: smaller sets restart while the largest is in its first epoch, see `epoch_steps`.

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
        """Restores a position."""
        for name, batches in self._groups.items():
            batches.set_state(state[name])

    def close(self) -> None:
        """Ends what makes batches ahead."""
        for batches in self._groups.values():
            batches.close()


def epoch_steps(counts: Mapping[str, int], batch_size: int) -> int:
    """Steps of one epoch, in which the largest group is seen once (MulTaS); `counts` are examples per group."""
    return max(1, max(count // batch_size for count in counts.values()))


def eval_batches(
    source: Source, encoder: Encoder, *, batch_size: int, process: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is padded with rows of weight 0 and id -1.

    With several processes, each reads every count-th batch.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
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
    """The rows of one process in every global batch; a row's seed depends on its position in the global stream.

    Grain handles only indices and whole batches, since a Grain stage per row costs more than encoding a small row.
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
            # Independent of the seed: all processes and groups of a step use one frame, so few programs are compiled.
            drawn = np.random.default_rng((batch, len(self._sizes))).integers(len(self._sizes))
            encoder = encoder._replace(size=self._sizes[drawn])
        # Rows are encoded once even if pasted into others; a process encodes the rows of other processes that it needs.
        row_at = functools.cache(functools.partial(self._row, encoder))
        return stack([self._changed(row_at, place) for place in range(start, start + rows)])

    def _row(self, encoder: Encoder, place: int) -> Batch:
        index = int(self._parent[place])
        with undecoded():
            example = self._source[index]
        row = encoder(example, index, np.random.default_rng((self._seed, place)))
        extras = {name: {key: table[index] for key, table in fields.items()} for name, fields in self._extras.items()}
        return row._replace(extras={**row.extras, **extras})

    def _changed(self, row_at: Callable[[int], Batch], place: int) -> Batch:
        """The row at a position after all changes, which are also seeded by the position."""
        row = row_at(place)
        if not self._changes:
            return row
        first, number = place - place % self._batch_size, place % self._batch_size

        def another(rng: np.random.Generator) -> Batch:
            return row_at(first + (number + int(rng.integers(1, self._batch_size))) % self._batch_size)

        rng = np.random.default_rng((self._seed, place, 1))
        for change in self._changes:
            row = change(row, rng, another)
        return row
