"""Batches are made ahead of the step: by threads, by worker processes, and sent to the device."""

import functools
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from must.core import memory
from must.core.types import Batch, Source, UserError
from must.readers.pictures import undecoded

_AHEAD = 2  # batches that each worker makes ahead
_WORTH = 0.002  # seconds of a row from which on workers pay
_LARGE = 1 << 16  # bytes of an array that is sent to the device ahead


class Rows:
    """Batches of a source in their order, made ahead by threads or by worker processes.

    Attributes:
      position: number of batches that have been taken.
    """

    def __init__(self, batches: grain.MapDataset, threads: int, workers: int):
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
    jax.config.update("jax_platforms", "cpu")
    memory.restrict(pictures)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def workers_for(*sources: Source, encoder: Callable[..., Batch], batch_size: int, cores: int = 0) -> int:
    """How many worker processes feed training from each of these sources: none where a thread of this process does it.

    Workers are worth their start and the copies of batches where a row takes longer than 2 ms, as decoding pictures
    does, and where there are cores beside the two of this process.

    Args:
      *sources: read side by side; a few rows of the first are made on trial.
      encoder: of its rows.
      batch_size: rows of a batch.
      cores: to share; by default those of this process, and half of them where steps run on CPU.
    """
    source, streams = sources[0], len(sources)
    if not cores:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores //= 2 if jax.default_backend() == "cpu" else 1
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
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(row)) * batch_size
    return max(0, min(wanted, int(_shared_memory() // (size * (_AHEAD + 2) * streams))))


def _shared_memory() -> float:
    """Free bytes for batches on their way from workers; a batch that does not fit would kill the worker."""
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else math.inf


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
