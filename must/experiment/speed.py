"""What a training step costs, and where the time of a run goes."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from must.core import devices
from must.core.types import Batch, PyTree, UserError
from must.experiment.settings import Run
from must.train.loop import Progress

_MOST = 1 << 20  # rows of a batch that `largest_batch` tries


class Speed:
    """A step that counts its operations, and that finds out before it runs whether it fits into memory.

    Args:
      step: of `must.core.devices.parallelize`.
      run: how the network trains.
      first: number of the first step.
      groups: batches of a step.
      precision: of most operations.
    """

    def __init__(self, step: Callable, run: Run, first: int, *, groups: int = 1, precision: str = "float32"):
        self._step, self._run, self._groups = step, run, groups
        self._precision, self._operations, self._clock = precision, -1.0, 0.0
        self._spent = {"save": 0.0, "validation": 0.0}
        self._first = self._last = (first, 0.0, {"data_wait": 0.0, **self._spent})

    def __call__(self, state: PyTree, batch: Batch | dict[str, Batch], frozen: PyTree) -> tuple[PyTree, dict]:
        if self._operations < 0:
            lowered = self._step.lower(state, batch, frozen)  # type: ignore[attr-defined]
            # XLA counts the body of a loop once.
            self._operations = float((lowered.cost_analysis() or {}).get("flops", 0.0)) * self._run.accumulate
            if limit := devices.memory_limit(self._run.memory):
                self._check_memory(lowered, limit, state, batch, frozen)
            made = jax.block_until_ready(self._step(state, batch, frozen))
            self._clock = time.perf_counter()
            return made
        return self._step(state, batch, frozen)

    def _check_memory(self, lowered, limit: float, state, batch, frozen) -> None:
        needed = devices.program_bytes(lowered)
        if needed <= limit:
            return

        def size_of(rows: int) -> int:
            part = jax.tree.map(lambda leaf: leaf[: max(1, rows // jax.process_count())], batch)
            return devices.program_bytes(self._step.lower(state, part, frozen))  # type: ignore[attr-defined]

        least = self._run.accumulate * len(jax.devices())
        most = self._run.batch_size - 1
        fits = largest_batch(size_of, limit, most, least, most) if least <= most else 0
        raise UserError(
            f"batch_size={self._run.batch_size}: a step takes {needed / 2**30:.2f} GiB of a device, which has "
            f"{limit / 2**30:.2f}; "
            + (f"{fits} is the largest power of two that fits" if fits else f"nor does a batch of {least} fit")
            + "; or set accumulate, model.remat or model.precision"
        )

    @contextlib.contextmanager
    def spent(self, on: str) -> Iterator[None]:
        """Counts the time of the block as spent on "save" or "validation"."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[on] += time.perf_counter() - start

    def line(self, progress: Progress) -> dict[str, float]:
        """{"speed/<name>": value} of the steps since the last call; empty before a second step.

        images_per_second; the shares of time that went into waiting for data, saves and validation, the rest is of the
        steps; gigaflops a second of a device, and mfu, over what it reaches in a plain matrix product.
        """
        found = self._between(self._last, self._now(progress))
        self._last = self._now(progress)
        return {f"speed/{name}": value for name, value in found.items()}

    def facts(self, progress: Progress) -> dict[str, Any]:
        """The same of the whole run: {"images_per_second", "shares": {name: value}}."""
        found = self._between(self._first, self._now(progress))
        rounded = {name: float(f"{value:.4g}") for name, value in found.items()}
        return {"images_per_second": rounded.pop("images_per_second"), "shares": rounded} if rounded else {}

    def _now(self, progress: Progress) -> tuple[int, float, dict[str, float]]:
        return progress.step, time.perf_counter() - self._clock, {"data_wait": progress.data_seconds, **self._spent}

    def _between(self, start, end) -> dict[str, float]:
        steps, seconds = end[0] - start[0], end[1] - start[1]
        if steps <= 0 or seconds <= 0:
            return {}
        shares = {name: (value - start[2][name]) / seconds for name, value in end[2].items()}
        shares["step"] = max(0.0, 1 - sum(shares.values()))
        rate = self._operations * steps / seconds
        mfu = rate / devices.matmul_rate(self._precision)
        images = self._groups * self._run.batch_size * steps / seconds
        return {"images_per_second": images, **shares, "gigaflops": rate / 1e9, "mfu": mfu}


def largest_batch(size_of: Callable[[int], float], limit: float, start: int, least: int = 1, most: int = _MOST) -> int:
    """The largest power of two from `least` to `most` rows of which `size_of` is at most `limit`; 0 if there is none.

    Args:
      size_of: rows -> bytes of the compiled step; it grows.
      limit: bytes.
      start: rows near which the search begins, since each takes a compilation.
      least: rows.
      most: rows.
    """
    rows = 1 << max(least - 1, start // 2).bit_length()
    if size_of(rows) <= limit:
        while 2 * rows <= most and size_of(2 * rows) <= limit:
            rows *= 2
        return rows
    while rows // 2 >= least:
        rows //= 2
        if size_of(rows) <= limit:
            return rows
    return 0
