"""Running the jobs of a recipe: each is one directory's worth of work, done once, resumable, needs first.

On a CPU two training processes with a core each do more work than one process on both, so jobs that do not need one
another run side by side, and a job that runs alone has all cores. Elsewhere they run one after another here.
"""

import ctypes
import json
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from must.core import buckets, devices, files, memory, notices, peers, stopping
from must.core.types import UserError
from must.experiment.progress import Display
from must.experiment.speed import timed

_PATIENCE = 20.0  # seconds that an interrupted job has to save and end; platforms mostly grant 30


_NUMBERS = ("seconds", "images_per_second")  # of the facts of jobs


class Job(NamedTuple):
    """One resumable piece of a recipe.

    Attributes:
      name: unique; also its directory below the workdir.
      stage: to which it belongs.
      run: module-level function (*arguments, directory=, report=) -> facts for done.json in JSON types;
        report(done, total, note) reports its progress.
      arguments: picklable.
      needs: names of the jobs that have to be done before.
      alone: runs by itself on all cores, and in one process of a distributed run (measurements, pages).
      shared: of one work with its siblings: once one of them is done, none has anything left to do, and one that is
        stopped or hangs is ended.
      settings: what may change between runs of a workdir, in JSON types; a job that was done with other settings is
        done again.
    """

    name: str
    stage: str
    run: Callable[..., dict | None]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    alone: bool = False
    shared: bool = False
    settings: Any = None


def is_done(workdir: str, name: str) -> bool:
    """Whether a job has finished in this workdir."""
    return os.path.exists(_done_file(workdir, name))


def facts(workdir: str, name: str) -> dict:
    """What a finished job returned, with its "seconds".

    Raises:
      UserError: the job has not finished, or its file is damaged.
    """
    path = _done_file(workdir, name)
    if not os.path.exists(path):
        raise UserError(f"{path}: does not exist; run the stage of {name} first")
    try:
        found = files.read_sealed(path)
    except UserError as error:
        raise UserError(f"{error}; remove it and run the command again") from None
    if any(isinstance(found.get(key, 0), str | list | dict | type(None)) for key in _NUMBERS):
        raise UserError(f"{path}: damaged; remove it and run the command again")
    return found


def owner(workdir: str, directory: str) -> str:
    """The finished job that wrote a directory below the workdir: of that name, or of the nearest one above.

    Raises:
      UserError: there is none.
    """
    name = directory
    while name and not is_done(workdir, name):
        name = os.path.dirname(name)
    if not name:
        raise UserError(f"{os.path.join(workdir, directory)}: no finished job; run its stage first")
    return name


def run_jobs(workdir: str, jobs: Sequence[Job], *, workers: int = 1, stages: Mapping[str, str] = {}) -> None:
    """Runs what is not done yet; a job starts when all that it needs is done.

    Args:
      workdir: jobs write below it.
      jobs: in the order of preference.
      workers: processes side by side on shares of the CPU cores; 1 runs everything in this process.
      stages: {job: stage} of the jobs that may be needed, for the message.

    Raises:
      UserError: a job's own, or a need that is neither done nor among the jobs.
    """
    waiting = [job for job in jobs if not _up_to_date(workdir, job)]
    known = {job.name for job in jobs}
    for job in waiting:
        for need in job.needs:
            if need not in known and not is_done(workdir, need):
                how = f"--stage={stages[need]}" if need in stages else "its stage"
                raise UserError(f"{job.name} needs {need}, which is not done: run {how} first")
            if need not in known:
                facts(workdir, need)
    with Display(len(waiting), quiet=not devices.is_writer()) as display:
        if workers == 1:
            for job in _in_order(waiting):
                _run(workdir, job, lambda *progress, name=job.name: display.update(name, *progress))
                display.finish(job.name, facts(workdir, job.name)["seconds"])
        else:
            _SideBySide(workdir, waiting, workers, display).run()


def _up_to_date(workdir: str, job: Job) -> bool:
    if not is_done(workdir, job.name):
        return False
    found = facts(workdir, job.name)  # which names a damaged file, whoever needs it
    return job.settings is None or found.get("settings") == json.loads(json.dumps(job.settings))


def _run(workdir: str, job: Job, report: Callable[..., None]) -> None:
    directory = os.path.join(workdir, job.name)
    peers.at(job.name)
    result: dict = {}
    try:
        os.makedirs(directory, exist_ok=True)
        with timed() as clock:
            if not job.alone or devices.is_writer():
                result = job.run(*job.arguments, directory=directory, report=report) or {}
        if devices.is_writer():
            more = {} if job.settings is None else {"settings": job.settings}
            done = {**result, **clock.facts(), **more}
            files.write_json(_done_file(workdir, job.name), files.sealed(done))
    except UserError:
        raise
    except Exception as error:  # Orbax and ArrayRecord have types of their own for a full disk
        if files.out_of_space(error):
            place = getattr(error, "filename", None) or directory
            raise UserError(f"{place}: no space left; make room, then the same command resumes") from error
        if isinstance(error, OSError):  # a folder that cannot be written
            place = f"{error.filename or directory}: {error.strerror or error}"
            raise UserError(f"{place}; the same command resumes") from error
        raise
    buckets.wait_for_all(job.name)


def _in_order(jobs: Sequence[Job]) -> Iterator[Job]:
    """The jobs, needs first."""
    waiting = list(jobs)
    while waiting:
        names = {job.name for job in waiting}
        job = next(job for job in waiting if not names.intersection(job.needs))
        waiting.remove(job)
        yield job


class _SideBySide:
    """Jobs in processes of their own, each on its share of the cores and on the shares that nobody uses."""

    def __init__(self, workdir: str, jobs: Sequence[Job], workers: int, display: Display):
        self._workdir, self._workers, self._display = workdir, workers, display
        self._waiting = list(jobs)
        self._running: dict[str, tuple[Job, Any, int]] = {}  # name: (job, process, slot)
        self._context = multiprocessing.get_context("spawn")  # a forked JAX deadlocks
        self._messages = self._context.SimpleQueue()
        self._errors: dict[str, tuple[str, str]] = {}
        self._over: dict[str, float] = {}  # shared works that are done, and since when
        can_pin = hasattr(os, "sched_getaffinity")
        self._cores = sorted(os.sched_getaffinity(0)) if can_pin else list(range(os.cpu_count() or 1))
        self._given: dict[str, list[int]] = {}
        self._memory = memory.divide(workers + 1)

    def run(self) -> None:
        try:
            while self._waiting or self._running:
                self._start()
                self._share_cores()
                self._drain()
                self._collect()
        finally:
            for _, process, _ in self._running.values():
                process.terminate()
            for _, process, _ in self._running.values():
                process.join(_PATIENCE)
                if process.is_alive():  # inside native code, where a signal waits
                    process.kill()
                    process.join()

    def _start(self) -> None:
        blocked = {job.name for job in self._waiting} | set(self._running)
        for job in [job for job in self._waiting if not blocked.intersection(job.needs)]:
            lonely = any(running.alone for running, *_ in self._running.values())
            if len(self._running) == self._workers or lonely or (job.alone and self._running):
                return
            used = {slot for *_, slot in self._running.values()}
            slot = next(k for k in range(self._workers) if k not in used)
            share = self._cores if job.alone else self._cores[slot :: self._workers] or self._cores
            process = self._context.Process(
                target=_child, args=(self._workdir, job, share, self._memory, self._messages), daemon=True
            )
            process.start()
            self._waiting.remove(job)
            self._running[job.name] = (job, process, slot)
            self._given[job.name] = list(share)

    def _share_cores(self) -> None:
        """Whoever runs has its own share, and an equal part of the shares that are free."""
        slots = {slot for *_, slot in self._running.values()}
        free = [core for k in range(self._workers) if k not in slots for core in self._cores[k :: self._workers]]
        for place, (name, (job, process, slot)) in enumerate(self._running.items()):
            own = self._cores if job.alone else self._cores[slot :: self._workers] or self._cores
            share = sorted({*own, *free[place :: len(self._running)]})
            if share != self._given[name]:
                devices.move_to_cores(process.pid, share)
                self._given[name] = share

    def _collect(self) -> None:
        for name, (job, process, _) in list(self._running.items()):
            process.join(0.05)
            if job.shared and process.exitcode is None and self._is_over(job):
                notices.notice(f"{name}: others have done its work and it does not end; it is ended")
                process.kill()  # a stopped process takes no other signal
                process.join()
                files.write_json(_done_file(self._workdir, name), files.sealed({"seconds": 0.0, "ended": True}))
            elif process.exitcode is None:
                continue
            self._drain()
            del self._running[name]
            if process.exitcode != 0 and not is_done(self._workdir, name):
                raise _failure(name, process.exitcode, self._errors.get(name))
            if job.shared:
                self._over.setdefault(os.path.dirname(name), time.monotonic())
            self._display.finish(name, facts(self._workdir, name)["seconds"])

    def _is_over(self, job: Job) -> bool:
        """Whether a sibling has been done for so long that this one would have ended if it could."""
        return time.monotonic() - self._over.get(os.path.dirname(job.name), math.inf) > _PATIENCE

    def _drain(self) -> None:
        while not self._messages.empty():
            kind, name, content = self._messages.get()
            if kind == "error":
                self._errors[name] = content
            elif kind == "notice":
                notices.notice(content)
            else:
                self._display.update(name, *content)


def _failure(name: str, code: int, error: tuple[str, str] | None) -> Exception:
    if error and error[0] == "user":
        return UserError(error[1])
    reason = error[1] if error else f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return RuntimeError(f"{name}: {reason}")


def _child(workdir: str, job: Job, cores: list[int], pictures: int, messages) -> None:
    _die_with_parent()
    stopping.install()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which puts its jobs away
    notices.forward(lambda text: messages.put(("notice", job.name, text)))
    memory.restrict(pictures)
    devices.start_pinned(cores)
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
    except KeyboardInterrupt:
        sys.exit(143)
    except Exception:
        messages.put(("error", job.name, ("crash", traceback.format_exc())))
        sys.exit(1)


def _die_with_parent() -> None:
    """A killed parent takes its jobs along, or a restarted run would meet them in its own directories (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if not multiprocessing.parent_process().is_alive():  # it was killed while this process started
        sys.exit(1)


def _done_file(workdir: str, name: str) -> str:
    return os.path.join(workdir, name, "done.json")
