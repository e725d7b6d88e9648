"""Many command lines in one process: modules are imported once, then every command runs in a fork of it."""

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a command ended: exit status, and the non-blank lines of its standard error."""

    code: int
    lines: list[str]


def run_each(commands: list[list[str]], cwd: Path = ROOT) -> list[Ended]:
    """Runs `python -m must.main` with each list of arguments, one after the other."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(commands, file)
        file.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, __file__, file.name]
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=True
        )
    return [Ended(code, [line for line in text.splitlines() if line.strip()]) for code, text in json.loads(done.stdout)]


def _fork(arguments: list[str]) -> tuple[int, str]:
    from absl import app

    from must import main

    with tempfile.TemporaryFile("w+") as said:
        if (child := os.fork()) == 0:
            os.dup2(said.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = ["must.main", *arguments]
            try:
                app.run(main.main, sys.argv, flags_parser=main._parse)
            except SystemExit as ended:  # without the interpreter's own end, which touches every page of the fork
                sys.stderr.flush()
                os._exit(ended.code or 0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return code, said.read()


if __name__ == "__main__":
    for module in (
        "experiment.run",
        "recipes.table",
        *(f"recipes.{name}" for name in ("must", "multas", "jedi", "label")),
    ):
        importlib.import_module(f"must.{module}")
    gc.freeze()
    print(json.dumps([_fork(arguments) for arguments in json.load(open(sys.argv[1], encoding="utf-8"))]))
