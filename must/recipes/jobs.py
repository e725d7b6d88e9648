"""Running the parts of a recipe: a job is one directory's worth of work, done once, resumable, in order of need.

On CPU two training processes pinned to one core each do more work than one process on both, so jobs that do not need
one another run side by side; elsewhere they run one after another in this process.
"""

import collections
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from must.core import devices
from must.core.types import UserError


class Job(NamedTuple):
    """One resumable piece of a recipe.

    Attributes:
      name: unique; also its directory below the workdir.
      stage: which stage it belongs to.
      run: module-level function (*arguments, directory=..., report=...) -> facts for done.json, all JSON;
        report(done, total, note) tells how far it is.
      arguments: picklable.
      needs: names of jobs that have to be done before.
      alone: runs by itself on all cores, and in one process of a distributed run (measurements, pages).
      settings: what may change between runs of a workdir, as JSON has it; a job that was done with others is done again.
    """

    name: str
    stage: str
    run: Callable[..., dict | None]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    alone: bool = False
    settings: Any = None


def is_done(workdir: str, name: str) -> bool:
    """Whether a job has finished in this workdir."""
    return os.path.exists(_done_file(workdir, name))


def facts(workdir: str, name: str) -> dict:
    """What a finished job said, with its "seconds"."""
    with open(_done_file(workdir, name)) as file:
        return json.load(file)


def run_jobs(workdir: str, jobs: Sequence[Job], *, workers: int = 1) -> None:
    """Runs what is not done yet; a job starts when all that it needs is done.

    Args:
      workdir: jobs write below it.
      jobs: in the order in which they are preferred.
      workers: processes side by side, each pinned to its share of the CPU cores; 1 runs everything in this process.

    Raises:
      UserError: a job's own, or a need that is neither done nor among the jobs.
    """
    waiting = [job for job in jobs if not _up_to_date(workdir, job)]
    known = {job.name for job in jobs}
    for job in waiting:
        for need in job.needs:
            if need not in known and not is_done(workdir, need):
                raise UserError(f"{job.name} needs {need}, which is not done: run its stage first")
    display = Display(len(waiting))
    try:
        if workers == 1:
            for job in _in_order(workdir, waiting):
                _run(workdir, job, lambda *progress, name=job.name: display.update(name, *progress))
                display.finish(job.name, facts(workdir, job.name)["seconds"])
        else:
            _run_side_by_side(workdir, waiting, workers, display)
    finally:
        display.close()


def _up_to_date(workdir: str, job: Job) -> bool:
    if not is_done(workdir, job.name):
        return False
    return job.settings is None or facts(workdir, job.name).get("settings") == json.loads(json.dumps(job.settings))


def _run(workdir: str, job: Job, report: Callable[..., None]) -> None:
    directory = os.path.join(workdir, job.name)
    os.makedirs(directory, exist_ok=True)
    start = time.time()
    if not job.alone or devices.is_writer():
        said = job.run(*job.arguments, directory=directory, report=report) or {}
    if devices.is_writer():
        partial = _done_file(workdir, job.name) + ".partial"
        with open(partial, "w") as file:
            more = {} if job.settings is None else {"settings": job.settings}
            json.dump({**said, "seconds": round(time.time() - start, 2), **more}, file, indent=1)
        os.replace(partial, _done_file(workdir, job.name))
    devices.wait_for_all(job.name)


def _in_order(workdir: str, jobs: Sequence[Job]):
    """The jobs so that needs come first."""
    waiting = list(jobs)
    while waiting:
        job = next(j for j in waiting if not any(n == w.name for n in j.needs for w in waiting))
        waiting.remove(job)
        yield job


def _run_side_by_side(workdir: str, jobs: Sequence[Job], workers: int, display: "Display") -> None:
    context = multiprocessing.get_context("spawn")  # a forked JAX deadlocks
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    shares = [cores[k::workers] or cores for k in range(workers)]
    messages = context.SimpleQueue()
    waiting, running = list(jobs), {}
    try:
        while waiting or running:
            blocked = {job.name for job in waiting} | set(running)
            ready = [job for job in waiting if not blocked.intersection(job.needs)]
            lonely = any(job.alone for job, *_ in running.values())
            for job in ready:
                if len(running) == workers or lonely or (job.alone and running):
                    break
                free = next(k for k in range(workers) if k not in {slot for _, _, slot in running.values()})
                mine = cores if job.alone else shares[free]
                process = context.Process(target=_child, args=(workdir, job, mine, messages), daemon=True)
                process.start()
                waiting.remove(job)
                running[job.name] = (job, process, free)
                lonely = job.alone
            _drain(messages, display)
            for name, (job, process, _) in list(running.items()):
                process.join(0.05)
                if process.exitcode is None:
                    continue
                _drain(messages, display)
                del running[name]
                if process.exitcode != 0:
                    raise _failure(name, process.exitcode, display.errors.get(name))
                display.finish(name, facts(workdir, name)["seconds"])
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()


def _failure(name: str, code: int, error: tuple[str, str] | None) -> Exception:
    if error and error[0] == "user":
        return UserError(error[1])
    reason = error[1] if error else f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return RuntimeError(f"{name}: {reason}")


def _child(workdir: str, job: Job, cores: list[int], messages) -> None:
    _die_with_parent()
    devices.pin_threads(cores)
    last = [0.0]

    def report(done: int, total: int, note: str = "") -> None:
        if time.time() - last[0] > 0.5 or done == total:
            last[0] = time.time()
            messages.put(("progress", job.name, (done, total, note)))

    try:
        _run(workdir, job, report)
    except UserError as error:
        messages.put(("error", job.name, ("user", str(error))))
        sys.exit(2)
    except Exception:
        messages.put(("error", job.name, ("crash", traceback.format_exc())))
        sys.exit(1)


def _die_with_parent() -> None:
    """A killed parent takes its jobs along, or a restarted run would meet them in its own directories (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if not multiprocessing.parent_process().is_alive():  # it was killed while this process started
        sys.exit(1)


def _drain(messages, display: "Display") -> None:
    while not messages.empty():
        kind, name, content = messages.get()
        if kind == "error":
            display.errors[name] = content
        else:
            display.update(name, *content)


def _done_file(workdir: str, name: str) -> str:
    return os.path.join(workdir, name, "done.json")


class Display:
    """What a person sees of running jobs: one live line on a terminal, now and then a plain line elsewhere."""

    def __init__(self, jobs: int):
        self.errors: dict[str, tuple[str, str]] = {}
        self._jobs, self._finished = jobs, 0
        self._live = sys.stderr.isatty()
        self._seen: dict[str, collections.deque] = {}
        self._text: dict[str, str] = {}
        self._printed: dict[str, float] = {}
        self._quiet = not devices.is_writer()

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Progress of one job: rate and remaining time from its last reports."""
        seen = self._seen.setdefault(name, collections.deque(maxlen=20))
        if seen and done < seen[-1][1]:  # the job has begun with its next part
            seen.clear()
        seen.append((time.time(), done))
        (t0, d0), (t1, d1) = seen[0], seen[-1]
        rate = (d1 - d0) / (t1 - t0) if t1 > t0 else 0.0
        eta = f", {_clock((total - done) / rate)} left" if rate > 0 and done < total else ""
        self._text[name] = (
            f"{name} {done}/{total}" + (f" {rate:.1f}/s{eta}" if rate else "") + (f" {note}" if note else "")
        )
        if self._live:
            self._draw()
        elif time.time() - self._printed.get(name, 0) > 15:
            self._printed[name] = time.time()
            self._print(self._text[name])

    def finish(self, name: str, seconds: float) -> None:
        """A job is done."""
        self._finished += 1
        self._text.pop(name, None)
        self._print(f"done [{self._finished}/{self._jobs}] {name} in {_clock(seconds)}")

    def close(self) -> None:
        """Leaves the terminal on a fresh line."""
        if self._live and self._text and not self._quiet:
            print(file=sys.stderr)

    def _print(self, line: str) -> None:
        if not self._quiet:
            print(("\r\033[K" if self._live else "") + line, file=sys.stderr, flush=True)

    def _draw(self) -> None:
        if not self._quiet:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print("\r\033[K" + "  |  ".join(self._text.values())[: width - 1], end="", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(round(seconds)), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
