#!/usr/bin/env bash
# Borrows a Cloud TPU, runs one command of `must` on all its workers, brings the results home, gives the TPU back:
#
#   launch/tpu/run.sh --name=must-1 --project=P --zone=us-central2-b --accelerator-type=v4-32 \
#     --runtime-version=tpu-ubuntu2204-base [--ref=HEAD] [--spot] [--timeout-minutes=240] [--dry-run] \
#     -- --config=configs/must.py:paper --workdir=runs/must
#
# What follows `--` goes to `python -m must.main`; the code is that of the git ref in this checkout, pushed or not.
# A relative --workdir is copied back from worker 0 before the TPU goes, after a failed run too. The TPU is deleted
# however this script ends (success, failure, Ctrl-C); only `kill -9` prevents it. --dry-run prints every command.
set -euo pipefail

die() {
  echo "$0: $1" >&2
  exit 2
}

name='' project='' zone='' accelerator_type='' runtime_version='' ref=HEAD timeout_minutes=240 poll_seconds=30
dry_run=false spot=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --accelerator-type=*) accelerator_type=${1#*=} ;;
    --runtime-version=*) runtime_version=${1#*=} ;;
    --ref=*) ref=${1#*=} ;;
    --timeout-minutes=*) timeout_minutes=${1#*=} ;;
    --poll-seconds=*) poll_seconds=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --dry-run) dry_run=true ;;
    --) shift && break ;;
    *) die "unknown option $1 (the flags of must.main follow a --)" ;;
  esac
  shift
done
for option in name project zone accelerator_type runtime_version; do
  [[ -n ${!option} ]] || die "--${option//_/-}= is required"
done
[[ $# -gt 0 ]] || die "the flags of must.main are required after --"

where=(--zone="$zone" --project="$project" --quiet)
queued=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
repository=$(cd "$(dirname "$0")/../.." && pwd)
commit=$(git -C "$repository" rev-parse --verify --quiet "$ref^{commit}") || die "no commit $ref in $repository"
code=${TMPDIR:-/tmp}/$name
workdir=''
for argument in "$@"; do
  if [[ $argument == --workdir=* ]]; then workdir=${argument#*=}; fi
done

if $dry_run; then exec 3>&1; else exec 3>&2; fi

# Prints a command, and runs it unless this is a dry run. In the background, so that a signal is answered at once.
child=''
run() {
  printf '%q ' "$@" >&3
  echo >&3
  if $dry_run; then return 0; fi
  "$@" </dev/null &
  child=$!
  local status=0
  wait "$child" || status=$?
  child=''
  return "$status"
}

borrowed=false
# shellcheck disable=SC2329 # the trap calls it
give_back() {
  local status=$?
  trap '' INT TERM
  if [[ -n $child ]]; then
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  if ! $dry_run; then rm -rf "$code" "$code.tar.gz"; fi
  if $borrowed; then
    local attempt
    for attempt in 1 2 3; do
      if run "${queued[@]}" delete "$name" --force "${where[@]}"; then break; fi
      if [[ $attempt == 3 ]]; then
        echo "$0: $name COULD NOT BE DELETED and may go on costing money; run the command above by hand" >&2
        if [[ $status == 0 ]]; then status=1; fi
      else
        sleep "$poll_seconds"
      fi
    done
  fi
  exit "$status"
}
trap give_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A resource of this name that someone else made must not be deleted at the end.
taken=$(run "${queued[@]}" list --format='value(name.basename())' "${where[@]}")
if grep -qxF -- "$name" <<<"$taken"; then die "a queued resource named $name exists already"; fi

# A clone rather than an archive: the workers' manifest names the commit.
run git clone --quiet --no-checkout "$repository" "$code"
run git -C "$code" checkout --quiet --detach "$commit"
run tar -czf "$code.tar.gz" -C "$code" .

borrowed=true
run "${queued[@]}" create "$name" --node-id="$name" --accelerator-type="$accelerator_type" \
  --runtime-version="$runtime_version" "${spot[@]}" "${where[@]}"

deadline=$((SECONDS + timeout_minutes * 60))
while true; do
  # One failed question is no answer; the next one may get one.
  state=$(run "${queued[@]}" describe "$name" --format='value(state.state)' "${where[@]}") || state=UNKNOWN
  if $dry_run; then break; fi
  echo "$name is $state" >&2
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED)
      echo "$0: $name went to $state instead of ACTIVE" >&2
      exit 1
      ;;
  esac
  if ((SECONDS >= deadline)); then
    echo "$0: $name was still $state after $timeout_minutes minutes" >&2
    exit 1
  fi
  sleep "$poll_seconds"
done

on_all_workers() { run "${vm[@]}" ssh "$name" --worker=all --command="$1" "${where[@]}"; }

run "${vm[@]}" scp "$code.tar.gz" "$name:must.tar.gz" --worker=all "${where[@]}"
# uv brings a Python of its own: that of the TPU images is too old.
on_all_workers 'mkdir -p must && tar -xzf must.tar.gz -C must && cd must'\
' && curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --python 3.12 ~/must-env'\
' && ~/.local/bin/uv pip install --python ~/must-env/bin/python -e ".[tpu]"'

status=0
on_all_workers "cd must && ~/must-env/bin/python -m must.main$(printf ' %q' "$@") --coordinator=auto" || status=$?

if [[ -n $workdir && $workdir != /* && $workdir != *://* ]]; then
  if ! $dry_run; then mkdir -p "$(dirname "$workdir")"; fi
  run "${vm[@]}" scp "$name:must/$workdir" "$(dirname "$workdir")" --recurse --worker=0 "${where[@]}" \
    || { echo "$0: $workdir could not be copied back" >&2; if [[ $status == 0 ]]; then status=1; fi; }
fi
exit "$status"
