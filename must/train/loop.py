"""The loop: takes batches, makes steps, calls hooks. It knows no task, no loss and no model."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax

from must.core.types import Batch, PyTree, TrainState


class Progress(NamedTuple):
    """What a hook sees after a step.

    Attributes:
      step: steps made so far.
      steps: length of the run.
      state: after the step.
      logs: scalars of the step, still on the device.
      batch: that the step read.
      seconds: since the first step of this call of `fit`, which compiles, was over; validation included.
      data_seconds: of these, when no batch was there and the device had finished its last step: at most so long idle.
    """

    step: int
    steps: int
    state: TrainState
    logs: dict[str, jax.Array]
    batch: Batch | dict[str, Batch]
    seconds: float
    data_seconds: float


def fit(
    state: TrainState,
    step: Callable[[TrainState, Batch, PyTree], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[Batch],
    *,
    steps: int,
    frozen: PyTree = None,
    hooks: Iterable[Callable[[Progress], bool | None]] = (),
) -> TrainState:
    """Trains from `state.step` to `steps`, or until a hook returns True.

    Args:
      state: fresh or restored; it is donated.
      step: from `must.core.devices.parallelize`.
      batches: positioned where `state` stopped.
      steps: of the whole run.
      frozen: teachers' variables.
      hooks: called in order after every step; they decide themselves when to act.
    """
    first, start, waited, logs = int(state.step), time.perf_counter(), 0.0, {}
    for i in range(first, steps):
        before = time.perf_counter()
        batch = next(batches)
        # Steps are dispatched ahead of the device: waiting while it still computes costs nothing.
        if all(value.is_ready() for value in logs.values()):
            waited += time.perf_counter() - before
        state, logs = step(state, batch, frozen)
        if i == first:
            jax.block_until_ready(logs)
            start, waited = time.perf_counter(), 0.0
        progress = Progress(i + 1, steps, state, logs, batch, time.perf_counter() - start, waited)
        if any(hook(progress) for hook in hooks):  # a list: every hook sees every step
            break
    return state
