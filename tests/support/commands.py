"""Command lines in forks of one process that has imported everything: each starts in a tenth of a second, not three.

A fork is a process of its own, made before JAX has any device, that runs what `python -m must.main` runs, from the
parsing of flags on. It does not end as an interpreter does; tests of signals, kills and full disks start real commands.
"""

import contextlib
import functools
import gc
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).parents[2]
SECONDS = 600  # for one command, on a machine that is busy
MODULES = (
    "must.main",
    "must.recipes.start",
    "must.recipes.table",
    "must.report.page",
    "must.train.checkpoint",
    "tests.support.configs",
    # What a run imports on its way, a second in all.
    "jinja2",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "orbax.checkpoint",
    "scipy.special",
    "tensorflow_datasets",
)


class Ended(NamedTuple):
    """How a command ended: exit status, the non-blank lines of its standard error, and its standard output."""

    code: int
    lines: list[str]
    out: str


def run_command(arguments: Sequence[str], cwd: Path | str = ROOT) -> Ended:
    """Runs `python -m must.main` with these arguments."""
    return _asked([list(arguments)], cwd)[0]


def run_two_processes(
    arguments: Sequence[str], cwd: Path | str = ROOT, second: Sequence[str] | None = None
) -> list[Ended]:
    """The same, joined to another process that runs it too, or with arguments of its own: process 0 and process 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = [f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    both = [arguments, arguments if second is None else second]
    return _asked([[*one, *joined, f"--process_id={k}"] for k, one in enumerate(both)], cwd)


def run_code(code: str, cwd: Path | str) -> Ended:
    """Runs `python -c CODE`."""
    return _asked([code], cwd)[0]


def finish() -> None:
    """Ends the process that the commands are forks of; another starts when it is asked for."""
    _server().communicate()
    _server.cache_clear()


def _asked(commands: list[str] | list[list[str]], cwd: Path | str) -> list[Ended]:
    server = _server()
    server.stdin.write(json.dumps([commands, str(cwd)]) + "\n")
    server.stdin.flush()
    found = json.loads(server.stdout.readline())
    return [Ended(code, [line for line in error.splitlines() if line.strip()], out) for code, out, error in found]


@functools.cache
def _server() -> subprocess.Popen:
    """It ends with the tests, when its standard input does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment, text=True, **pipes)


def _forks(commands: list[str] | list[list[str]], cwd: str) -> list[tuple[int, str, str]]:
    """The commands side by side: exit status, standard output and error of each."""
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)] for _ in commands]
        children = [_fork(what, cwd, *streams) for what, streams in zip(commands, files, strict=True)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        for stream in itertools.chain(*files):
            stream.seek(0)
        return [(code, out.read(), error.read()) for code, (out, error) in zip(codes, files, strict=True)]


def _fork(what: str | list[str], cwd: str, out: IO[str], error: IO[str]) -> int:
    """The process id of a fork that runs a command."""
    if child := os.fork():
        return child
    signal.alarm(SECONDS)
    os.chdir(cwd)
    sys.path[0] = cwd
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(error.fileno(), 2)
    code = 0
    try:
        _run(what)
    except SystemExit as ended:  # the interpreter's own end would copy every page that the fork shares
        code = ended.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(what: str | list[str]) -> None:
    if isinstance(what, str):
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        return
    from absl import app

    from must import main

    sys.argv = ["must.main", *what]
    app.run(main.main, sys.argv, flags_parser=main._parse)


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(_forks(*json.loads(line))), flush=True)
