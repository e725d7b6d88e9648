"""What a training step costs, and where the time of a run goes."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax

from must.core import devices
from must.core.types import Batch, PyTree, UserError
from must.experiment.settings import Run
from must.train.loop import Progress

_MOST = 1 << 20  # rows of a batch that `largest_batch` tries


PARTS = ("init", "compile", "data_wait", "step", "save", "evaluate", "lost")
_TRAINS = ("data_wait", "step", "save", "evaluate")  # the parts in which steps are made


class Clock:
    """Where the wall time of a job goes, over all of its starts: every moment belongs to one part.

    Attributes:
      spent: {part: seconds}. "init" ends with the first batch, "compile" with the first step of a start. "data_wait":
        no batch was there and the device had nothing to do. "save" and "evaluate": how long they held up the steps, or
        followed them. "lost": what earlier starts did after the checkpoint that went on, as far as they logged it.
      trains: whether the job does.
    """

    def __init__(self) -> None:
        self.spent, self.trains = dict.fromkeys(PARTS, 0.0), False
        self._mark = time.perf_counter()

    def to(self, part: str, waited: float = 0.0) -> None:
        """Gives the time since the last call to a part, but for seconds of waiting for data."""
        now = time.perf_counter()
        self.spent[part] += now - self._mark - waited
        self.spent["data_wait"] += waited
        self._mark = now

    def resume(self, spent: Mapping[str, float], logged: float) -> None:
        """Goes on from what a checkpoint says was spent; its run was logged until `logged` seconds had passed."""
        for part, seconds in spent.items():
            self.spent[part] += seconds
        self.spent["lost"] += max(0.0, logged - sum(spent.values()))

    def facts(self) -> dict[str, Any]:
        """Of a job that is over: {"seconds"}, and "spent" if it trains."""
        self.to("evaluate")
        spent = {part: round(seconds, 3) for part, seconds in self.spent.items()}
        return {"seconds": round(sum(spent.values()), 2)} | ({"spent": spent} if self.trains else {})


_CLOCK: ContextVar[Clock | None] = ContextVar("clock of the job", default=None)


@contextlib.contextmanager
def timed() -> Iterator[Clock]:
    """The clock of the job in this block, which `Speed` goes on with."""
    token = _CLOCK.set(clock := Clock())
    try:
        yield clock
    finally:
        _CLOCK.reset(token)


class Speed:
    """A step that counts its operations, and that finds out before it runs whether it fits into memory.

    Args:
      step: of `must.core.devices.parallelize`.
      run: how the network trains.
      spent: that the checkpoint holds which is gone on from, see `Clock`.
      logged: seconds until the last line of the log.
      groups: batches of a step.
      precision: of most operations.

    Attributes:
      clock: of the job.
    """

    def __init__(
        self,
        step: Callable,
        run: Run,
        spent: Mapping[str, float] = {},
        logged: float = 0.0,
        *,
        groups: int = 1,
        precision: str = "float32",
    ):
        self._step, self._run, self._groups = step, run, groups
        self._precision, self._operations = precision, -1.0
        self.clock = _CLOCK.get() or Clock()
        self.clock.trains = True
        self._first = self._last = (0, dict.fromkeys(PARTS, 0.0) | dict(spent))
        self.clock.resume(spent, logged)
        self._steps, self._waited, self._logs = -1, 0.0, None  # the first step compiles

    def __call__(self, state: PyTree, batch: Batch | dict[str, Batch], frozen: PyTree) -> tuple[PyTree, dict]:
        if self._operations >= 0:
            made = self._step(state, batch, frozen)
        else:
            self.clock.to("init")
            lowered = self._step.lower(state, batch, frozen)  # type: ignore[attr-defined]
            # XLA counts the body of a loop once.
            self._operations = float((lowered.cost_analysis() or {}).get("flops", 0.0)) * self._run.accumulate
            if limit := devices.memory_limit(self._run.memory):
                self._check_memory(lowered, limit, state, batch, frozen)
            devices.matmul_rate(self._precision)
            made = jax.block_until_ready(self._step(state, batch, frozen))
            self.clock.to("compile")
        self._logs = made[1]
        return made

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
        """Counts the time of the block, in which nothing trains, as spent on "save" or "evaluate"."""
        jax.block_until_ready(self._logs)  # the step that is under way is not part of it
        self.clock.to("step" if self._steps >= 0 else "init")
        try:
            yield
        finally:
            self.clock.to(on)

    def see(self, progress: Progress) -> None:
        """After every step, before anything else."""
        self.clock.to("step", progress.data_seconds - self._waited)
        self._waited, self._steps = progress.data_seconds, self._steps + 1

    def line(self) -> dict[str, float]:
        """{"speed/<name>": value} since the last call.

        seconds of the run until now; of those since the last call the share of every part of `Clock`; and once there
        are steps after the first one: images_per_second; gigaflops a second of a device, and mfu, over what it reaches
        in a plain matrix product.
        """
        found, self._last = self._since(self._last), (max(0, self._steps), dict(self.clock.spent))
        return {f"speed/{name}": value for name, value in found.items()}

    def facts(self) -> dict[str, float]:
        """The rates of this start, see `line`; {} without a second step."""
        found = self._since(self._first)
        return {
            name: float(f"{found[name]:.4g}") for name in ("images_per_second", "gigaflops", "mfu") if name in found
        }

    def _since(self, start: tuple[int, dict[str, float]]) -> dict[str, float]:
        spent = {part: seconds - start[1][part] for part, seconds in self.clock.spent.items()}
        whole, steps, seconds = sum(spent.values()), self._steps - start[0], sum(spent[part] for part in _TRAINS)
        shares = {part: value / whole for part, value in spent.items() if whole > 0 and (value or part in _TRAINS)}
        found = {"seconds": sum(self.clock.spent.values()), **shares}
        if steps <= 0 or seconds <= 0:
            return found
        rate = self._operations * steps / seconds
        images = self._groups * self._run.batch_size * steps / seconds
        mfu = rate / devices.matmul_rate(self._precision)
        return {**found, "images_per_second": images, "gigaflops": rate / 1e9, "mfu": mfu}


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
