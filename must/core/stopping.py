"""Stopping on request: after SIGTERM or Ctrl-C training saves at its next step; a second signal, or one that comes
while nothing trains, ends the process at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax

_REASONS = {signal.SIGTERM: "terminated"}
_state: dict[str, Any] = {"listening": 0, "reason": ""}


def install() -> None:
    """Handles SIGTERM and SIGINT in this process, from its main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _handle)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Meanwhile a first signal only asks: `asked` has to be called between steps.

    In a distributed run JAX takes SIGTERM, see `asked`, and Ctrl-C ends this process at once.

    Raises:
      KeyboardInterrupt: at the end, if a signal came after the last call of `asked`.
    """
    alone = int(jax.process_count() == 1)
    _state["listening"] += alone
    try:
        yield
    finally:
        _state["listening"] -= alone
    if _state["reason"]:
        stop()


def asked(step: int) -> bool:
    """Whether to stop after this step; the processes of a distributed run agree on one step."""
    if jax.process_count() > 1:  # JAX takes SIGTERM, of whichever process, and finds a step that none has passed
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
    return bool(_state["reason"])


def stop() -> None:
    """Ends this process as the signal would have.

    Raises:
      KeyboardInterrupt: always, with the name of the signal; that of Ctrl-C is empty.
    """
    reason, _state["reason"] = _state["reason"] or _REASONS[signal.SIGTERM], ""
    raise KeyboardInterrupt("" if reason == "interrupted" else reason)


def _handle(number: int, frame: FrameType | None) -> None:
    reason = _REASONS.get(signal.Signals(number), "interrupted")
    if _state["listening"] and not _state["reason"]:
        _state["reason"] = reason
    elif frame is not None and frame.f_code.co_name == "_xla_gc_callback":  # where an exception would be ignored
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
    else:
        _state["reason"] = reason
        stop()
