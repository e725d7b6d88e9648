"""One budget of memory for decoded pictures, over all caches of all processes of a run.

It is a quarter of what is free when it is first asked for, 1 GiB at most; the environment variable MUST_CACHE_MIB sets
it. A process that starts others gives each of them an equal part and keeps one (`divide`).
"""

import math
import os
import threading
from pathlib import Path

from must.core.types import UserError

_MOST = 1 << 30
_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_lock = threading.RLock()  # a cache may be collected while its thread holds it
_state: dict[str, int] = {"used": 0}


def budget() -> int:
    """Bytes for the decoded pictures of this process."""
    with _lock:
        if "budget" not in _state:
            given = number_of("MUST_CACHE_MIB", -1)
            _state["budget"] = min(_MOST, available() // 4) if given < 0 else given << 20
        return _state["budget"]


def divide(parts: int) -> int:
    """Divides the budget into equal parts, of which this process keeps one; returns it, for `restrict` elsewhere."""
    return restrict(budget() // parts)


def restrict(size: int) -> int:
    """Sets the budget of this process, bytes; what is cached beyond it stays, and nothing is added."""
    with _lock:
        _state["budget"] = size
    return size


def number_of(variable: str, default: int) -> int:
    """The whole number in an environment variable; UserError if it is none."""
    given = os.environ.get(variable) or str(default)
    try:
        return int(given)
    except ValueError:
        raise UserError(f"{variable}={given}: expected a whole number") from None


def available() -> int:
    """Bytes of memory that are free, of the machine and of the container that this process is in."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024  # with what the system keeps of files
    except (OSError, KeyError, ValueError):
        pass
    for limit, used in _CGROUPS:
        try:
            most, taken = (Path("/sys/fs/cgroup", name).read_text().strip() for name in (limit, used))
            free = min(free, max(int(most) - int(taken), 0))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return free


class Share:
    """What one cache has taken of the budget; it is given back when the cache is gone.

    Args:
      limit: bytes that it never exceeds.
    """

    def __init__(self, limit: float = math.inf):
        self._limit, self._taken = limit, 0

    def free(self) -> float:
        """Bytes that could be taken."""
        return min(self._limit - self._taken, budget() - _state["used"])

    def take(self, size: int) -> bool:
        """Takes bytes unless they are more than is free."""
        budget()
        with _lock:
            fits = size <= min(self._limit - self._taken, _state["budget"] - _state["used"])
            if fits:
                self._taken += size
                _state["used"] += size
            return fits

    def __del__(self) -> None:
        with _lock:
            _state["used"] -= self._taken
