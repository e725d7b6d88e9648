#!/usr/bin/env python3
"""Runs one command of `must` as a managed job of SkyPilot, which finds machines in any cloud and replaces lost ones.

    launch/sky/run.py --name=must-1 --accelerators=A100:8 --nodes=2 --bucket=BUCKET \\
      [--extras=cuda] [--spot] [--dry-run] -- --config=configs/must.py:paper --workdir=/runs/must

What follows `--` goes to `python -m must.main`, from a copy of this checkout. The bucket is mounted at /runs on every
node; it has no locks, so a workdir there is of one run at a time. --dry-run prints the command and the task.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PORT = 8476


def task(options: argparse.Namespace, flags: list[str]) -> dict:
    """The task as SkyPilot reads it; JSON is YAML."""
    run = shlex.join(["python", "-m", "must.main", *flags])
    if options.nodes > 1:
        run += f' --coordinator="$(head -n1 <<<"$SKYPILOT_NODE_IPS"):{PORT}"'
        run += ' --processes="$SKYPILOT_NUM_NODES" --process_id="$SKYPILOT_NODE_RANK"'
    return {
        "name": options.name,
        "workdir": str(REPOSITORY),
        "num_nodes": options.nodes,
        "resources": {"accelerators": options.accelerators, "use_spot": options.spot},
        "file_mounts": {"/runs": {"name": options.bucket, "mode": "MOUNT"}},
        "setup": f"pip install -e '.[{options.extras}]'",
        "run": run,
    }


def main() -> None:
    arguments = sys.argv[1:]
    at = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("name", "accelerators", "bucket"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--extras", default="cuda")
    for name in ("spot", "dry-run"):
        parser.add_argument(f"--{name}", action="store_true")
    options, flags = parser.parse_args(arguments[:at]), arguments[at + 1 :]
    if not flags:
        parser.error("the flags of must.main are required after --")
    content = json.dumps(task(options, flags), indent=2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "task.yaml")
        file.write_text(content, encoding="utf-8")
        command = ["sky", "jobs", "launch", "--yes", f"--name={options.name}"]
        print(shlex.join([*command, "task.yaml"]), content, sep="\n", flush=True)
        if not options.dry_run:
            sys.exit(subprocess.run([*command, str(file)], check=False).returncode)


if __name__ == "__main__":
    main()
