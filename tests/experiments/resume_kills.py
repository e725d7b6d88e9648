"""Training whose rows come from worker processes is killed at random moments and ends as an undisturbed run does.

    python -m tests.experiments.resume_kills --kills=10 --data_workers=2

One run gets SIGKILL again and again, each time after a random while of training; its worker processes are left to
themselves. Whatever the kill hits, also a save, the newest checkpoint that is left must be that of an undisturbed run,
which reads without workers, at the same step, to the bit. At the end every checkpoint and every logged value must be.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from must.core.types import UserError
from must.train.checkpoint import Checkpoints

ROOT, RUN = Path(__file__).parents[2], Path("teachers", "depth")
# The undisturbed run keeps every checkpoint, to compare with.
PROGRAM = (
    "import sys; from absl import app; from must import main; from must.experiment import training;"
    "training._KEPT = None; app.run(main.main, flags_parser=main._parse)"
)


def started(workdir: Path, steps: int, workers: int, *, keep_all: bool = False) -> subprocess.Popen:
    """A run, or the rest of it."""
    command = [sys.executable, *(("-c", PROGRAM) if keep_all else ("-m", "must.main"))]
    command += ["--config=tests/support/tiny_config.py:depth", f"--workdir={workdir}", "--stage=teachers"]
    settings = {"steps": steps, "checkpoint_every": 5, "data_workers": workers}
    command += ["--config.workers=1", *(f"--config.teacher.{key}={value}" for key, value in settings.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def lines(workdir: Path) -> list[dict]:
    """The log, without what a clock measured."""
    path = workdir / RUN / "metrics.jsonl"
    text = path.read_text().splitlines(keepends=True) if path.exists() else []
    made = [json.loads(line) for line in text if line.endswith("\n")]
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in made]


def hashes(workdir: Path) -> dict[int, str]:
    """{step: SHA-256 of its state} of all checkpoints; that of an older one is "" whose removal a kill cut short."""
    found, made = Checkpoints(str(workdir / RUN / "checkpoints"), keep=None), {}
    for step in found.steps():
        try:
            made[step] = found.facts(step)["sha256"]
        except UserError:
            if not any(made.values()):
                raise
            made[step] = ""
    return made


def finished(process: subprocess.Popen) -> None:
    if process.wait():
        raise RuntimeError(f"the run ended with code {process.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"kills": 10, "data_workers": 2, "steps": 400, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rng, good, inside, left = random.Random(options.seed), 0, 0, set[str]()
    with tempfile.TemporaryDirectory() as top:
        whole, killed = Path(top, "whole"), Path(top, "killed")
        begun = time.monotonic()
        process = started(whole, options.steps, 0, keep_all=True)
        while not lines(whole):
            time.sleep(0.01)
        start = time.monotonic()
        finished(process)
        share = (time.monotonic() - start) / (options.kills + 1)
        want = hashes(whole)
        print(f"undisturbed: {len(want)} checkpoints in {time.monotonic() - begun:.0f} s", flush=True)
        for number in range(1, options.kills + 1):
            before = len(lines(killed))
            process = started(killed, options.steps, options.data_workers)
            while len(lines(killed)) <= before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, share))
            if process.poll() is not None:
                raise RuntimeError("the run ended before it was killed: more --steps are needed")
            process.kill()
            process.wait()
            at, kept = lines(killed)[-1]["step"], hashes(killed)
            there = {path.name for path in (killed / RUN / "checkpoints").iterdir() if not path.name.isdigit()}
            half, left = not there <= left, left | there  # what earlier kills left stays there
            same = all(want[step] == value for step, value in kept.items() if value)
            good, inside = good + same, inside + half
            newest = max(kept, default=0)
            print(
                f"kill {number}: at step {at}, newest checkpoint {newest}: {'equal' if same else 'OTHER'}", flush=True
            )
        finished(started(killed, options.steps, options.data_workers))
        kept = hashes(killed)
        equal = max(kept) == options.steps and all(want[step] == value for step, value in kept.items() if value)
        equal = equal and lines(killed) == lines(whole)
    print(
        f"{good} of {options.kills} kills, {inside} of them inside a save; the end is {'equal' if equal else 'OTHER'}"
    )
    sys.exit(0 if equal and good == options.kills else 1)


if __name__ == "__main__":
    main()
