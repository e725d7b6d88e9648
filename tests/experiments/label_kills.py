"""A label pass that is killed repeatedly ends in the bytes of an undisturbed one, with every id exactly once.

    python -m tests.experiments.label_kills --kills=10 --workers=1,2,4

Worker processes label small pictures of varying size with every kind of field. At random times during the pass, one or
all workers get SIGKILL and are started again. After the last kill the pass runs to completion. Reports per number of
workers: kills and killed processes, shards done at the first and the last kill, whether the trees are equal byte by
byte, ids lost and duplicated.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from must.readers.records import Records
from tests.support.toy_labels import ToySource, label_toy

REPOSITORY = Path(__file__).parents[2]
SETTINGS = {"shards": 16, "batch_size": 4}
PROGRAM = (
    "import sys; from tests.support.toy_labels import ToySource, label_toy, toy_teacher;"
    "directory, worker, workers, count, seconds = sys.argv[1:];"
    "label_toy(directory, source=ToySource(int(count)), teacher=toy_teacher(seconds=float(seconds)),"
    f" worker=(int(worker), int(workers)), **{SETTINGS})"
)


class Outcome(NamedTuple):
    """One pass: how often it was killed, where it stood, and what came of it."""

    workers: int
    kills: int
    processes: int
    first: int
    last: int
    equal: bool
    lost: int
    doubled: int
    seconds: float


def tree(directory: Path) -> dict[str, bytes]:
    """{file: content} below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def start(directory: Path, worker: int, workers: int, options: argparse.Namespace) -> subprocess.Popen:
    """One worker."""
    command = [sys.executable, "-c", PROGRAM, *map(str, (directory, worker, workers, options.images, options.seconds))]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)


def done(directory: Path) -> int:
    """Shards that are done."""
    return len(list((directory / "unfinished").glob("*.done.json")))


def killed_pass(directory: Path, workers: int, want: dict[str, bytes], options: argparse.Namespace) -> Outcome:
    """Kills at moments of the shards' progress, since a start-up takes longer than a shard; then waits for the end."""
    rng, began = random.Random(options.seed * 100 + workers), time.monotonic()
    crew = [start(directory, worker, workers, options) for worker in range(workers)]
    marks = sorted(rng.randrange(SETTINGS["shards"]) for _ in range(options.kills))
    kills, processes, stood = 0, 0, []
    for mark in marks:
        while done(directory) < mark and not (directory / "dataset_info.json").exists():
            time.sleep(0.001)
            fail_if_broken(crew)
        time.sleep(rng.uniform(0, 1.5 * options.seconds * options.images / SETTINGS["shards"] / SETTINGS["batch_size"]))
        living = [worker for worker in range(workers) if crew[worker].poll() is None]
        victims = living if rng.random() < 0.5 else [rng.choice(living)] if living else []
        stood.append(done(directory))
        for worker in victims:
            crew[worker].send_signal(signal.SIGKILL)
            crew[worker].communicate()
            crew[worker] = start(directory, worker, workers, options)
        kills, processes = kills + bool(victims), processes + len(victims)
        deadline = time.monotonic() + 60  # a new worker must have begun before it can be killed in its work
        while victims and time.monotonic() < deadline and not list((directory / "unfinished").glob("*.tmp")):
            time.sleep(0.001)
    for process in crew:
        error = process.communicate()[1].decode()
        if process.returncode:
            raise RuntimeError(error)
    ids, all_ids = list(Records(directory).ids), ToySource(options.images).ids
    equal = tree(directory) == want
    lost, doubled = len(set(all_ids) - set(ids)), len(ids) - len(set(ids))
    return Outcome(workers, kills, processes, stood[0], stood[-1], equal, lost, doubled, time.monotonic() - began)


def fail_if_broken(crew: list[subprocess.Popen]) -> None:
    """A worker that ended by itself with an error is no kill."""
    for process in crew:
        if process.poll() not in (None, 0, -signal.SIGKILL):
            raise RuntimeError(process.stderr.read().decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--seconds", type=float, default=0.03, help="that the teacher takes for a batch")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("workers  kills  processes  shards done at the kills  equal trees  lost ids  doubled ids  seconds")
    for workers in map(int, options.workers.split(",")):
        with tempfile.TemporaryDirectory() as top:
            label_toy(Path(top, "alone", "1.0.0"), source=ToySource(options.images), **SETTINGS)
            want = tree(Path(top, "alone", "1.0.0"))
            found = killed_pass(Path(top, "killed", "1.0.0"), workers, want, options)
        shards = f"{found.first} to {found.last} of {SETTINGS['shards']}"
        print(
            f"{found.workers:>7}{found.kills:>7}{found.processes:>11}{shards:>26}{'yes' if found.equal else 'NO':>13}"
            f"{found.lost:>10}{found.doubled:>13}{found.seconds:>9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
