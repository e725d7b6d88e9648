#!/usr/bin/env python3
"""Runs one command of `must` on Kubernetes: a JobSet that trains, or an Indexed Job that labels.

    launch/gke/run.py --name=must-1 --image=REGISTRY/must --nodes=4 --claim=runs \\
      --resource=google.com/tpu=4 --select=cloud.google.com/gke-tpu-topology=4x4 \\
      --select=cloud.google.com/gke-tpu-accelerator=tpu-v5-lite-podslice \\
      [--label-parts=N] [--restarts=10] [--namespace=default] [--dry-run] \\
      -- --config=configs/must.py:paper --workdir=/runs/must

What follows `--` goes to `python -m must.main`. The persistent volume claim, which every pod can write, is mounted at
/runs. A pod that is evicted gets SIGTERM, all save, and the JobSet starts again; with --label-parts the stage "label"
runs in so many pods, --nodes at a time, each tried again on its own. --dry-run prints what kubectl would be given.
"""

import argparse
import json
import re
import subprocess
import sys

PORT = 8476
GRACE = 120  # seconds between SIGTERM and SIGKILL
_INDEX = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}


def pod(options: argparse.Namespace, flags: list[str], more: list[str]) -> dict:
    """The template of every pod; Kubernetes replaces $(NAME) in arguments, and $$ stands for a dollar."""
    container = {
        "name": "must",
        "image": options.image,
        "command": ["python", "-m", "must.main", *(flag.replace("$(", "$$(") for flag in flags), *more],
        "env": [{"name": "INDEX", "valueFrom": _INDEX}],
        "ports": [{"containerPort": PORT}],
        "volumeMounts": [{"name": "runs", "mountPath": "/runs"}, {"name": "shared", "mountPath": "/dev/shm"}],
        "resources": {"limits": dict(options.resource)},
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    spec = {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": dict(options.select),
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": options.claim}},
            {"name": "shared", "emptyDir": {"medium": "Memory"}},  # batches on their way from data workers
        ],
    }
    return {"spec": spec}


def training(options: argparse.Namespace, flags: list[str]) -> dict:
    """A JobSet of one process a node; any that fails starts all again, and training resumes."""
    more = []
    if options.nodes > 1:
        where = f"{options.name}-workers-0-0.{options.name}:{PORT}"
        more = [f"--coordinator={where}", f"--processes={options.nodes}", "--process_id=$(INDEX)"]
    job = {"parallelism": options.nodes, "completions": options.nodes, "completionMode": "Indexed", "backoffLimit": 0}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": options.name, "namespace": options.namespace},
        "spec": {
            "failurePolicy": {"maxRestarts": options.restarts},
            "network": {"enableDNSHostnames": True},
            "replicatedJobs": [
                {"name": "workers", "replicas": 1, "template": {"spec": {**job, "template": pod(options, flags, more)}}}
            ],
        },
    }


def labeling(options: argparse.Namespace, flags: list[str]) -> dict:
    """An Indexed Job whose pods share a label pass."""
    count = options.label_parts
    template = pod(options, flags, ["--stage=label", f"--part=$(INDEX)/{count}"])
    job = {"completionMode": "Indexed", "parallelism": min(options.nodes, count), "completions": count}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": options.name, "namespace": options.namespace},
        "spec": {**job, "backoffLimitPerIndex": options.restarts, "template": template},
    }


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=VALUE")
    return name, value


def parsed(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(options, flags of must.main)."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("name", "image", "claim"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in {"nodes": 1, "label-parts": 0, "restarts": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--namespace", default="default")
    for name in ("resource", "select"):
        parser.add_argument(f"--{name}", type=pair, action="append", default=[])
    parser.add_argument("--dry-run", action="store_true")
    options, flags = parser.parse_args(arguments[:at]), arguments[at + 1 :]
    if not flags:
        parser.error("the flags of must.main are required after --")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", options.name):
        parser.error(f"--name={options.name}: expected lower-case letters, digits and -, 40 at most")
    return options, flags


def main() -> None:
    options, flags = parsed(sys.argv[1:])
    manifest = json.dumps((labeling if options.label_parts else training)(options, flags), indent=2)
    command = ["kubectl", "create", "-f", "-"]  # not apply: a name that is taken stays as it is
    print(" ".join(command) + f" <<'END'\n{manifest}\nEND", flush=True)
    if not options.dry_run:
        sys.exit(subprocess.run(command, input=manifest, text=True, check=False).returncode)


if __name__ == "__main__":
    main()
