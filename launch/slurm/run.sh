#!/usr/bin/env bash
# Submits one command of `must` to Slurm, one process on every node, from the environment and the folder it is called in:
#
#   launch/slurm/run.sh --nodes=2 --time=24:00:00 [--name=must] [--grace=120] [--label-array=N] [--dry-run] \
#     [any other option of sbatch, such as --gpus-per-node=8] -- --config=configs/must.py:paper --workdir=/shared/runs/must
#
# What follows `--` goes to `python -m must.main`; --workdir lies where every node can write. --grace seconds before the
# time limit, and when the job is preempted, every process gets SIGTERM, saves at a step that all agree on, and the job
# queues again. --label-array=N labels in N parts, each a job of one node that starts when there is room for it; then
# the same command without it goes on. --dry-run prints the command.
set -euo pipefail

die() {
  echo "$0: $1" >&2
  exit 2
}

name=must grace=120 nodes='' parts='' dry_run=false options=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --nodes=*) nodes=${1#*=} ;;
    --label-array=*) parts=${1#*=} ;;
    --dry-run) dry_run=true ;;
    --) shift && break ;;
    --*=* | --exclusive) options+=("$1") ;;
    *) die "unknown option $1 (options of sbatch are written --option=value, the flags of must.main follow a --)" ;;
  esac
  shift
done
[[ $# -gt 0 ]] || die "the flags of must.main are required after --"
if [[ -n $parts ]]; then
  [[ $parts =~ ^[1-9][0-9]*$ ]] || die "--label-array=$parts: expected the number of parts"
  [[ -z $nodes ]] || die "--label-array has one node a part: leave --nodes out"
  options+=(--array="0-$((parts - 1))")
fi

command=(sbatch --job-name="$name" --nodes="${nodes:-1}" --ntasks-per-node=1 --signal=TERM@"$grace" --requeue
  --open-mode=append --output="%x-%j.log" "${options[@]}" "$(cd "$(dirname "$0")" && pwd)/job.sh" "$@")
printf '%q ' "${command[@]}"
echo
if ! $dry_run; then "${command[@]}"; fi
