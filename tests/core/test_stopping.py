"""A signal while a network trains: the step it comes in is the last, nothing is lost, the same command resumes."""

import json
import os
import signal
import threading
import time

import pytest

from must.core import stopping
from must.train.checkpoint import Checkpoints
from tests.support.configs import config_of, run

STEPS = 300


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


@pytest.mark.parametrize("number, says", [(signal.SIGTERM, "terminated"), (signal.SIGINT, "^$")])
def test_training_saves_at_its_next_step_and_resumes_to_the_bit(tmp_path, handlers, number, says):
    config = config_of(
        "tests/support/tiny_config.py",
        "depth",
        workers=1,
        teacher__steps=STEPS,
        teacher__checkpoint_every=10 * STEPS,
        teacher__log_every=1,
    )
    log = "teachers/depth/metrics.jsonl"
    watcher = _send_when(tmp_path / "broken" / log, 20, number)
    with pytest.raises(KeyboardInterrupt, match=says):
        run(config, tmp_path / "broken", "teachers")
    watcher.join()
    lines = (tmp_path / "broken" / log).read_text().splitlines()
    at = Checkpoints(str(tmp_path / "broken" / "teachers" / "depth" / "checkpoints")).latest()
    assert 20 <= at < STEPS and json.loads(lines[-1])["step"] == at
    run(config, tmp_path / "broken", "teachers")
    run(config, tmp_path / "whole", "teachers")
    assert (tmp_path / "broken" / log).read_text() == (tmp_path / "whole" / log).read_text()
    hashes = [
        Checkpoints(str(tmp_path / name / "teachers" / "depth" / "checkpoints")).facts()["sha256"]
        for name in ("broken", "whole")
    ]
    assert hashes[0] == hashes[1]


def test_a_second_signal_ends_at_once(handlers):
    with stopping.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked(1)
        with pytest.raises(KeyboardInterrupt, match="terminated"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert not stopping.asked(1)
    with pytest.raises(KeyboardInterrupt):  # nothing trains
        os.kill(os.getpid(), signal.SIGINT)
