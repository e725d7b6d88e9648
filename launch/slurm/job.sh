#!/usr/bin/env bash
# What `run.sh` submits: its arguments are the flags of `must.main`.
set -uo pipefail

more=()
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  more=(--stage=label --part="$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
elif [[ ${SLURM_JOB_NUM_NODES:-1} -gt 1 ]]; then
  more=(--coordinator=auto)
fi
# Slurm signals the processes, and with a preemption this shell too, which waits for them. They end a little apart: nobody is killed while process 0 saves.
trap : TERM
srun --kill-on-bad-exit=0 --wait=120 "${PYTHON:-python}" -m must.main "$@" ${more[@]+"${more[@]}"}
status=$?
if [[ $status == 143 ]]; then  # terminated and saved
  echo "requeued; the next start resumes" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
