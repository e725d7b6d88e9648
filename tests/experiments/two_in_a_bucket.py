"""Whether two processes that share no disk, their workdir in a bucket, give the table of one process in a folder.

    python tests/experiments/two_in_a_bucket.py --workdir=runs/bucket
    python tests/experiments/two_in_a_bucket.py --workdir=runs/bucket --config=configs/quickstart.py:sanity

Starts a server of the S3 protocol on loopback, gives each process a local copy of its own, and compares the scores of
all columns; says which shards each process labeled. Needs the extras [test].
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from moto.server import ThreadedMotoServer

URL = "s3://must-tests/run"


def main() -> None:
    """Runs both and prints the comparison; exit code 1 when they differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--config", default="tests/support/tiny_config.py")
    parser.add_argument("--port", type=int, default=29871)
    arguments = parser.parse_args()
    top = Path(arguments.workdir).absolute()
    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:{1}".format(*server.get_host_and_port())
    import fsspec

    store = fsspec.filesystem("s3")
    store.mkdir("must-tests")
    command = [sys.executable, "-m", "must.main", f"--config={arguments.config}"]
    subprocess.run([*command, f"--workdir={top / 'one'}"], check=True)
    joined = [*command, f"--workdir={URL}", f"--coordinator=localhost:{arguments.port}", "--processes=2"]
    running = []
    for k in (0, 1):
        environment = {**os.environ, "MUST_SCRATCH": str(top / f"machine-{k}")}
        running.append(subprocess.Popen([*joined, f"--process_id={k}"], env=environment))
    if codes := [code for process in running if (code := process.wait())]:
        sys.exit(f"the processes ended with {codes}")
    one = json.loads((top / "one" / "results.json").read_text())["columns"]
    two = json.loads(store.cat_file(f"{URL}/results.json"))["columns"]
    shards = [len(list((top / f"machine-{k}").rglob("*.array_record-*"))) for k in (0, 1)]
    same, apart = compared(one, two)
    print(f"{same} scores, largest difference {apart:.2g}; each machine has {shards} shards of records in the end")
    server.stop()
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
