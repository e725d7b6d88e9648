"""What a run changes or passes over on its way, told once: neither silent nor an error."""

import sys
import warnings

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
    previous = warnings.showwarning

    def show(message, category, *rest, **more):
        if issubclass(category, Notice):
            print(f"must: note: {message}", file=sys.stderr)
        else:
            previous(message, category, *rest, **more)

    warnings.showwarning = show


def silence() -> None:
    """Drops notices: of a job process, whose parent has read the same sets."""
    warnings.simplefilter("ignore", Notice)


_told: dict = {}
