"""Whether two processes that share no disk, their workdir in a bucket, give the table of one process in a folder.

    python -m tests.experiments.two_in_a_bucket --workdir=runs/bucket
    python -m tests.experiments.two_in_a_bucket --workdir=runs/bucket --config=configs/quickstart.py:sanity --store=gs

Starts a server of the store on loopback (S3, or with --store=gs Google's), gives each process a local copy of its own,
and compares the scores of all columns; says how many shards each machine has. Needs the extras [test], and for gs
gcsfs and gcp-storage-emulator.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support import stores

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Runs both and prints the comparison; exit code 1 when they differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--config", default="tests/support/tiny_config.py")
    parser.add_argument("--store", choices=stores.KINDS, default="s3")
    parser.add_argument("--port", type=int, default=29871)
    arguments = parser.parse_args()
    top = Path(arguments.workdir).absolute()
    command = [sys.executable, "-m", "must.main", f"--config={arguments.config}"]
    took, began = [], time.monotonic()
    subprocess.run([*command, f"--workdir={top / 'one'}"], check=True)
    took.append(time.monotonic() - began)
    with stores.serving(arguments.store) as store:
        url, began = f"{store.url}/run", time.monotonic()
        joined = [*command, f"--workdir={url}", f"--coordinator=localhost:{arguments.port}", "--processes=2"]
        running = []
        for k in (0, 1):
            environment = {**os.environ, "MUST_SCRATCH": str(top / f"machine-{k}")}
            running.append(subprocess.Popen([*joined, f"--process_id={k}"], env=environment))
        if codes := [code for process in running if (code := process.wait())]:
            sys.exit(f"the processes ended with {codes}")
        took.append(time.monotonic() - began)
        import fsspec

        two = json.loads(fsspec.filesystem(arguments.store).cat_file(f"{url}/results.json"))["columns"]
    one = json.loads((top / "one" / "results.json").read_text())["columns"]
    shards = [len(list((top / f"machine-{k}").rglob("*.array_record-*"))) for k in (0, 1)]
    same, apart = compared(one, two)
    print(f"{same} scores, largest difference {apart:.2g}; each machine has {shards} shards of records in the end")
    print("{:.0f} s by one process, {:.0f} s by two".format(*took))
    sys.exit(int(apart > 1e-4))


def compared(one, two) -> tuple[int, float]:
    """Number of figures in two nested results, and the largest difference; ends the process where they are unlike."""
    if isinstance(one, dict):
        if set(one) != set(two):
            sys.exit(f"keys differ: {sorted(set(one) ^ set(two))}")
        parts = [compared(one[key], two[key]) for key in one if key not in ("seconds", "settings", "curves")]
    elif isinstance(one, list):
        if len(one) != len(two):
            sys.exit(f"{len(one)} and {len(two)} entries")
        parts = [compared(a, b) for a, b in zip(one, two, strict=True)]
    elif isinstance(one, float) and isinstance(two, float):
        return 1, abs(one - two) / max(1.0, abs(one))
    else:
        return 0, 0.0
    return sum(n for n, _ in parts), max((d for _, d in parts), default=0.0)


if __name__ == "__main__":
    main()
