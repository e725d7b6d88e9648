"""Two processes of a run on loopback: whatever happens to one, the other ends with a line that names it."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from must.core import peers
from tests.support.configs import ROOT

PROGRAM = """
import sys, time
import numpy as np
from jax.experimental import multihost_utils
from must.core import devices, peers
index, port, there = sys.argv[1:]
peers.SILENCE, peers._EVERY = 3.0, 0.2
devices.initialize_distributed(f"127.0.0.1:{port}", 2, int(index))
peers.watch(f"127.0.0.1:{port}")
for step in range(10**6):
    peers.at(f"student, step {step}")
    multihost_utils.process_allgather(np.ones(3))
    if step == 12:  # both have told where they are three times
        open(f"{there}/{index}", "w").close()
    time.sleep(0.05)
peers.leave()
"""


def _pair(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    return [
        subprocess.Popen([*command, str(i), str(port), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]


@pytest.mark.parametrize(("victim", "sent"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_lost_process_is_named_by_the_other(tmp_path, victim, sent):
    pair = _pair(tmp_path)
    end = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end and all(one.poll() is None for one in pair):
        time.sleep(0.02)
    pair[victim].send_signal(sent)
    begun = time.monotonic()
    try:
        text = pair[1 - victim].communicate(timeout=60)[1]
    finally:
        pair[victim].kill()
        pair[victim].communicate()
    lines = [line for line in text.splitlines() if line.startswith("must: ")]
    happened = "has been silent for 3 s" if sent == signal.SIGSTOP else "is lost"
    where = "127.0.0.1" if victim == 0 else socket.gethostname()
    assert pair[1 - victim].returncode == peers.LOST and len(lines) == 1, text[-3000:]
    assert lines[0].startswith(f"must: process {victim} on {where} {happened}, last at student, step ")
    assert lines[0].endswith("; the same command resumes") and time.monotonic() - begun < 30
