#!/usr/bin/env bash
# Runs one command in two processes on this machine, joined over loopback, each on a core of its own:
#
#   launch/local/two_process.sh --config=configs/quickstart.py --workdir=runs/quickstart --stage=student
#
# All arguments go to `python -m must.main`. When one process fails the other is ended, and its exit code is returned.
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: $0 --config=FILE --workdir=DIR [any flag of must.main]" >&2
  exit 2
fi

python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
if command -v taskset >/dev/null; then
  read -r -a cores < <("$python" -c 'import os; print(*sorted(os.sched_getaffinity(0)))')
else
  cores=()
fi

processes=()
end_all() {
  trap '' INT TERM
  kill -TERM "${processes[@]}" 2>/dev/null || true
  # A process inside a collective may be past listening.
  (sleep 10 && kill -KILL "${processes[@]}" 2>/dev/null) &
  local reaper=$!
  wait "${processes[@]}" 2>/dev/null || true
  kill "$reaper" 2>/dev/null || true
}
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for k in 0 1; do
  pin=()
  if [[ ${#cores[@]} -gt 0 ]]; then pin=(taskset -c "${cores[k % ${#cores[@]}]}"); fi
  "${pin[@]}" "$python" -m must.main "$@" --coordinator="127.0.0.1:$port" --processes=2 --process_id="$k" &
  processes+=($!)
done

for _ in 0 1; do
  wait -n || exit $?
done
