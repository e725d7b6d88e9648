"""From a source to batches: shuffling, geometry, views, stacking; deterministic given index and seed.

Training batches come from Grain, whose iterator state is saved in checkpoints. All processes draw the same global
order, and each reads its own rows of every batch.
"""

import functools
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from must.core import memory
from must.core.types import Batch, Example, Geometry, Source, UserError
from must.data import geometry as geometries
from must.readers.pictures import undecoded

_AHEAD = 2  # batches that each worker makes ahead
_WORTH = 0.002  # seconds of a row from which on workers pay
_LARGE = 1 << 16  # bytes of an array that is sent to the device ahead
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
) -> "Rows":
    """Endless shuffled batches; `get_state` and `set_state` read and restore the position.

    Args:
      source: shuffled anew every epoch.
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

    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    sizes = [tuple(size) for size in sizes]
    batches = _Batches(order, source, encoder, seed, process, batch_size, sizes, sizes_until, extras, tuple(changes))
    return Rows(batches, threads, workers)


class Rows:
    """Batches of a source in their order, made ahead by threads or by worker processes.

    Attributes:
      position: number of batches that have been taken.
    """

    def __init__(self, batches: "_Batches", threads: int, workers: int):
        self._batches, self._threads, self._workers = batches, threads, workers
        self.position, self._ahead = 0, None

    def __iter__(self) -> "Rows":
        return self

    def __next__(self) -> Batch:
        if self._ahead is None:
            self._ahead = self._started()
        try:
            batch = next(self._ahead)
        except UserError as error:  # to which Grain adds lines of its own
            raise UserError(str(error).partition("\n")[0]) from None
        except RuntimeError as error:
            if self._workers and "terminated unexpectedly" in str(error):
                code = str(error).partition("exit code ")[2].partition(".")[0]
                raise UserError(f"one of {self._workers} workers that read the data ended with code {code}") from None
            raise
        self.position += 1
        return batch

    def _started(self) -> grain.DatasetIterator:
        rest = self._batches[self.position :]
        if not self._workers:
            return iter(rest.to_iter_dataset(grain.ReadOptions(self._threads, 4 * self._threads)))
        if not flags.FLAGS.is_parsed():  # Grain has flags of its own, which a library's user does not parse
            flags.FLAGS.mark_as_parsed()
        rows = rest.to_iter_dataset(grain.ReadOptions(0, 0))
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_AHEAD)
        start = functools.partial(_start_worker, os.getpid(), memory.budget() // (self._workers + 1))
        return iter(rows.mp_prefetch(options, worker_init_fn=start))

    def get_state(self) -> dict:
        """The position."""
        return {"next_index": self.position}

    def set_state(self, state: dict) -> None:
        """Restores a position."""
        self.close()
        self.position = state["next_index"]

    def close(self) -> None:
        """Ends the workers."""
        if self._workers and self._ahead is not None:
            self._ahead.close()
        self._ahead = None


def _start_worker(parent: int, pictures: int, index: int, count: int) -> None:
    """What a worker process does first: it leaves devices and Ctrl-C to the process that started it, and ends with it,
    also when that is killed."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    memory.restrict(pictures)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def workers_for(source: Source, encoder: Encoder, batch_size: int, *, cores: int, streams: int = 1) -> int:
    """How many worker processes feed training from a source: none where a thread of this process does it.

    Workers are worth their start and the copies of batches where a row takes longer than 2 ms, as decoding pictures
    does; the fourth core and further ones serve.

    Args:
      source: of which a few rows are made on trial.
      encoder: of its rows.
      batch_size: rows of a batch.
      cores: of the machine that reading may use.
      streams: batches that are read side by side.
    """
    wanted = min(16, cores - 2) // streams
    if wanted < 1 or not len(source) or multiprocessing.current_process().daemon:  # daemons have no children
        return 0
    spent = []
    for index in range(min(4, len(source))):
        start = time.process_time()
        with undecoded():
            row = encoder(source[index], index, np.random.default_rng(index))
        spent.append(time.process_time() - start)
    if min(spent) < _WORTH:
        return 0
    size = sum(leaf.nbytes for leaf in _leaves(row)) * batch_size
    return max(0, min(wanted, int(_shared_memory() // (size * (_AHEAD + 2) * streams))))


def _shared_memory() -> float:
    """Free bytes for batches on their way from workers; a batch that does not fit would kill the worker."""
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else math.inf


def _leaves(row: Batch) -> list[np.ndarray]:
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(row)]


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


class Placed:
    """Batches whose large arrays are on their way to the device one step before they are taken.

    Args:
      batches: iterator with get_state and set_state.
      place: array on the host -> array on the device, without waiting.
    """

    def __init__(self, batches: Any, place: Callable[[np.ndarray], Any]):
        self._batches, self._place, self._next = batches, place, None

    def __iter__(self) -> "Placed":
        return self

    def __next__(self) -> Any:
        batch, _ = self._next or self._taken()
        self._next = self._taken()
        return batch

    def _taken(self) -> tuple[Any, dict]:
        import jax

        before, batch = self._batches.get_state(), next(self._batches)
        return jax.tree.map(lambda leaf: self._place(leaf) if leaf.nbytes > _LARGE else leaf, batch), before

    def get_state(self) -> dict:
        """Position of the batch that is taken next."""
        return self._next[1] if self._next else self._batches.get_state()

    def set_state(self, state: dict) -> None:
        """Restores a position."""
        self._next = None
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
