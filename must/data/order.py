"""The order in which a training run reads a source: shuffled anew every epoch, or a few shards at a time where a source
is larger than this machine's disk."""

import functools
import sys
import threading
from collections.abc import Hashable

import grain
import numpy as np

from must.core.shard_cache import AT_A_TIME
from must.core.types import Source
from must.data.combine import shard_of

_PROBES = 256


def shuffled(source: Source, seed: int, count: int, batch_size: int) -> grain.MapDataset:
    """Place in the stream of all processes -> index of the source, endless.

    Args:
      source: where its `shard_of` is None everywhere, all examples are shuffled, whatever the number of processes is.
        Otherwise the shards are shuffled and dealt out to the processes, each of which reads its own, a few at a
        time, in random order; as long as there are as many shards as processes.
      seed: of the order.
      count: of processes.
      batch_size: over all of them.
    """
    everything = grain.MapDataset.range(len(source))
    # What does not fit onto a disk is no small part of a source.
    some = np.linspace(0, len(source) - 1, min(len(source), _PROBES)).astype(int).tolist()
    if any(shard_of(source, index) is not None for index in some):
        shards: dict[Hashable, list[int]] = {}
        for index in range(len(source)):
            shards.setdefault(shard_of(source, index), []).append(index)
        if len(shards) >= count:
            return _ByShard(everything, [np.array(one) for one in shards.values()], seed, count, batch_size)
    return everything.seed(seed).shuffle().repeat()


class _ByShard(grain.MapDataset):
    """The endless streams of all processes, each of shards of its own."""

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, everything, shards: list[np.ndarray], seed: int, count: int, batch_size: int):
        super().__init__(everything)
        self._shards, self._seed, self._count, self._rows = shards, seed, count, batch_size // count
        self._starts = [[0] for _ in range(count)]  # of the epochs of each process's stream
        self._prepare()

    def _prepare(self) -> None:
        self._growing, self._epoch = threading.Lock(), functools.lru_cache(2 * self._count)(self._made)

    def __len__(self) -> int:
        return sys.maxsize  # as if repeated

    def __getitem__(self, place):
        if isinstance(place, slice):
            return self.slice(place)
        batch, row = divmod(place, self._rows * self._count)
        process, row = divmod(row, self._rows)
        at, starts = batch * self._rows + row, self._starts[process]
        with self._growing:  # several threads make batches
            while starts[-1] <= at:
                dealt = self._dealt(process, len(starts) - 1)
                starts.append(starts[-1] + sum(len(self._shards[one]) for one in dealt))
        epoch = int(np.searchsorted(starts, at, side="right")) - 1
        return int(self._epoch(process, epoch)[at - starts[epoch]])

    def _dealt(self, process: int, epoch: int) -> np.ndarray:
        """Numbers of the shards that a process reads in an epoch, in order."""
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._shards))[process :: self._count]

    def _made(self, process: int, epoch: int) -> np.ndarray:
        """Indices of the source in the order in which a process reads them in an epoch."""
        dealt, rng = self._dealt(process, epoch), np.random.default_rng((self._seed, epoch, process))
        windows = [dealt[start : start + AT_A_TIME] for start in range(0, len(dealt), AT_A_TIME)]
        return np.concatenate([rng.permutation(np.concatenate([self._shards[i] for i in one])) for one in windows])

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name not in ("_epoch", "_growing")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._prepare()
