"""What a person sees of running jobs: live bars on a terminal, a plain line now and then elsewhere."""

import collections
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Display:
    """Progress of jobs with rate and remaining time; a context manager that leaves the terminal on a fresh line.

    Args:
      jobs: number of jobs.
      quiet: show nothing.
    """

    def __init__(self, jobs: int, *, quiet: bool = False):
        self._jobs, self._finished, self._quiet = jobs, 0, quiet
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[text]}", markup=False))
        self._bars = Progress(*columns, console=self._console, transient=True, disable=quiet or not sys.stderr.isatty())
        self._bar: dict[str, int] = {}
        self._seen: dict[str, collections.deque] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *_) -> None:
        self._bars.stop()

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Progress of one job."""
        seen = self._seen.setdefault(name, collections.deque(maxlen=20))
        if seen and done < seen[-1][1]:  # the job has begun with its next part
            seen.clear()
        seen.append((time.time(), done))
        (t0, d0), (t1, d1) = seen[0], seen[-1]
        rate = (d1 - d0) / (t1 - t0) if t1 > t0 else 0.0
        left = f", {clock((total - done) / rate)} left" if rate > 0 and done < total else ""
        text = f"{done}/{total}" + (f" {rate:.1f}/s{left}" if rate else "") + (f" {note}" if note else "")
        if not self._bars.disable:
            if name not in self._bar:
                self._bar[name] = self._bars.add_task(name, total=total, text="")
            self._bars.update(self._bar[name], completed=done, total=total, text=text)
        elif time.time() - self._printed.get(name, 0) > 15:
            self._printed[name] = time.time()
            self._print(f"{name} {text}")

    def finish(self, name: str, seconds: float) -> None:
        """A job is done."""
        self._finished += 1
        if name in self._bar:
            self._bars.remove_task(self._bar.pop(name))
        self._print(f"done [{self._finished}/{self._jobs}] {name} in {clock(seconds)}")

    def _print(self, line: str) -> None:
        if not self._quiet:
            self._console.print(line, markup=False)


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
