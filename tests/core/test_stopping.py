"""A signal while a network trains: the step it comes in is the last, nothing is lost, the same command resumes."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from must.core import stopping
from must.train.checkpoint import Checkpoints
from tests.support.configs import ROOT, config_of, log_of, run

STEPS = 80  # more than are made between the lines of the log that is waited for and the signal


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stopping.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _send_when(path, lines, number):
    """Sends this process a signal as soon as a file has so many lines."""

    def watch():
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if path.exists() and len(path.read_text().splitlines()) >= lines:
                os.kill(os.getpid(), number)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_training_saves_at_its_next_step_and_resumes_to_the_bit(tmp_path, handlers, monkeypatch):
    unpickled = []
    monkeypatch.setattr(pickle, "loads", lambda *args, loads=pickle.loads, **more: unpickled.append(1) or loads(*args))
    config = config_of(
        "tests/support/tiny_config.py",
        "depth",
        workers=1,
        teacher__steps=STEPS,
        teacher__checkpoint_every=10 * STEPS,
        teacher__log_every=1,
    )
    log = "teachers/depth/metrics.jsonl"
    watcher = _send_when(tmp_path / "broken" / log, 5, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="^$"):
        run(config, tmp_path / "broken", "teachers")
    watcher.join()
    lines = (tmp_path / "broken" / log).read_text().splitlines()
    at = Checkpoints(str(tmp_path / "broken" / "teachers" / "depth" / "checkpoints")).latest()
    assert 5 <= at < STEPS and json.loads(lines[-1])["step"] == at
    run(config, tmp_path / "broken", "teachers")
    run(config, tmp_path / "whole", "teachers")
    assert log_of((tmp_path / "broken" / log).parent) == log_of((tmp_path / "whole" / log).parent)
    hashes = [
        Checkpoints(str(tmp_path / name / "teachers" / "depth" / "checkpoints")).facts()["sha256"]
        for name in ("broken", "whole")
    ]
    assert hashes[0] == hashes[1] and not unpickled


def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "must.main", "--config=tests/support/tiny_config.py:depth", "--stage=teachers"]
    command += [f"--workdir={tmp_path}", f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    command += [f"--config.teacher.{key}" for key in ("steps=50000", "checkpoint_every=50000", "log_every=1")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pair = [
        subprocess.Popen([*command, f"--process_id={i}"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    path, end = tmp_path / "teachers" / "depth" / "metrics.jsonl", time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n") > 5) and time.monotonic() < end:
        time.sleep(0.05)
    pair[1].terminate()
    for process in pair:
        text = process.communicate(timeout=60)[1]
        assert process.returncode == 143 and "terminated; the same command resumes" in text, text[-2000:]
    at = Checkpoints(str(path.parent / "checkpoints")).latest()
    assert 5 < at == json.loads(path.read_text().splitlines()[-1])["step"]


def test_a_second_signal_ends_at_once(handlers):
    with stopping.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked(1)
        with pytest.raises(KeyboardInterrupt, match="terminated"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert not stopping.asked(1)
    with pytest.raises(KeyboardInterrupt, match="terminated"), stopping.listening():  # in the last step
        os.kill(os.getpid(), signal.SIGTERM)
    assert not stopping.asked(1)
    with pytest.raises(KeyboardInterrupt):  # nothing trains
        os.kill(os.getpid(), signal.SIGINT)
