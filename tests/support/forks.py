"""Commands in forks of a process that has imported what they need, to be watched, limited and killed."""

import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any

from tests.support.commands import MODULES


def prepare() -> None:
    """Imports what commands need, before the forks: nothing that starts a device."""
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()  # a collection in a fork would copy every page


def start(arguments: list[str], error: int, before: Callable[[], None] = lambda: None) -> int:
    """The process id of a fork that runs a command; `before` runs in it first, its errors go to a descriptor."""
    from absl import app

    from must import main

    if child := os.fork():
        return child
    os.dup2(error, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["must.main", *arguments]
    code = 1
    try:  # nothing of this fork may go on in what called it
        before()
        app.run(main.main, sys.argv, flags_parser=main._parse)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def begin(call: Callable[[], Any]) -> tuple[int, IO[str]]:
    """(process id, where it will be told) of a fork that makes a call; see `outcome`."""
    gather, send = os.pipe()
    if (child := os.fork()) == 0:
        os.close(gather)
        try:
            told = {"result": call()}
        except BaseException as error:
            told = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        with os.fdopen(send, "w") as pipe:
            json.dump(told, pipe)
        os._exit(0)
    os.close(send)
    return child, os.fdopen(gather)


def outcome(told: IO[str]) -> Any:
    """What the call returned, in JSON types.

    Raises:
      RuntimeError: the call failed; says why.
    """
    with told:
        found = json.loads(told.read() or '{"error": "it died"}')
    if "error" in found:
        raise RuntimeError(found["error"])
    return found["result"]


def result(call: Callable[[], Any]) -> Any:
    """What a call returns, from a fork to its end: whoever has started JAX or a store's client forks no more."""
    child, told = begin(call)
    try:
        return outcome(told)
    finally:
        os.waitpid(child, 0)
