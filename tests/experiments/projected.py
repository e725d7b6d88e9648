"""Whether the projection of a label pass is right about a real one by two workers.

    python -m tests.experiments.projected --workdir=runs/projected

Five untrained teachers label two small pools of scenes; the start and the seconds of an image that explain both times
go into `launch/projection.py`, which tells how long a larger pool takes. Then two workers label it. Run it alone on a
machine with two cores or more.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SHARD = 64  # images
FLAGS = ("--config=configs/quickstart.py", "--config.teacher.steps=1", "--config.teacher.evaluate_every=0")


def main() -> None:
    """Measures, projects and compares; exit code 1 where they differ by more than 15%."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--pools", default="1024,3072,8192")
    arguments = parser.parse_args()
    top, (small, middle, large) = Path(arguments.workdir).absolute(), map(int, arguments.pools.split(","))
    spec = importlib.util.spec_from_file_location("projection", REPOSITORY / "launch" / "projection.py")
    projection = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(projection)
    run(top / "teachers", "--stage=teachers")
    once(top, small)  # compiles
    seconds = {count: once(top, count) for count in (small, middle)}
    each = (seconds[middle] - seconds[small]) / (middle - small)  # by two workers
    start = seconds[small] - each * small
    plan = projection.Plan(
        images=large, label_flops=2 * each, peak=1.0, mfu_label=1.0, chips_per_host=1, host_rows=1e9, faults=0.0,
        shard_images=SHARD, shard_seconds=0.0, start_seconds=start,
    )  # fmt: skip
    projected = projection.label(plan, 2).hours * 3600
    found = once(top, large)
    print(
        f"start {start:.1f} s, {1 / each:.0f} images/s by two workers; {large:,} images: projected {projected:.1f} s, "
        f"found {found:.1f} s, {found / projected - 1:+.1%}"
    )
    sys.exit(int(abs(found / projected - 1) > 0.15))


def run(workdir: Path, *flags: str) -> None:
    """One command of the quickstart in a workdir."""
    command = [sys.executable, "-m", "must.main", *FLAGS, f"--workdir={workdir}", "--config.workers=2", *flags]
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


def once(top: Path, count: int) -> float:
    """Seconds of a whole label stage of two workers on a pool of `count` images."""
    workdir = top / str(count)
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    shutil.copytree(top / "teachers" / "teachers", workdir / "teachers")
    start = time.perf_counter()
    run(workdir, "--stage=label", f"--config.pool.pool.count={count}", f"--config.label.shards={count // SHARD}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
