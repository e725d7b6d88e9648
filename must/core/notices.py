"""What a run changes or passes over on its way, told once: neither silent nor an error."""

import sys
import warnings
from collections.abc import Callable

from must.core.types import one_line


class Notice(UserWarning):
    """The category of every notice: `warnings.simplefilter("error", must.Notice)` makes them errors."""


def notice(text: str) -> None:
    """Tells once per process that something was changed or left out, such as boxes clipped on reading.

    Args:
      text: one line that names the set or file, what was seen and done, and how many times.
    """
    warnings.warn_explicit(one_line(text), Notice, "must", 1, registry=_told)


def plain_lines() -> None:
    """Prints notices on stderr as "must: note: ...", without Python's file and line."""
    forward(lambda text: print(f"must: note: {text}", file=sys.stderr))


def forward(send: Callable[[str], object]) -> None:
    """Hands notices, each text once, to `send` instead of showing them: a job process sends them to its parent."""
    previous, sent = warnings.showwarning, set()

    def show(message, category, *rest, **more):
        if not issubclass(category, Notice):
            previous(message, category, *rest, **more)
        elif str(message) not in sent:  # Python forgets what it has shown whenever somebody changes a filter
            sent.add(str(message))
            send(str(message))

    warnings.showwarning = show


_told: dict = {}
