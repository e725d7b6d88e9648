"""What a run writes down: steps that are not finite, when they end it and which records they name; events."""

import json
import struct
import types

import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import Batch, UserError
from must.experiment.run_log import Skipped
from must.readers.tfrecords import TfRecordFile
from must.train.loop import Progress
from tests.support.commands import ROOT, run_code

SOURCE = types.SimpleNamespace(ids=[f"set/{i}" for i in range(100)])


def _see(skipped, flags, steps=1000, wait=True):
    """Steps with these flags, 1 for one that was skipped; each reads two records and a row of padding."""
    for step, flag in enumerate(flags, 1):
        batch = Batch({}, {}, {}, np.array([2 * step, 2 * step + 1, -1]))
        skipped.see(Progress(step, steps, None, {"skipped": jnp.float32(flag)}, batch, 0.0, 0.0), wait=wait)


def test_ten_in_a_row_end_the_run_and_name_their_records(tmp_path):
    skipped = Skipped(str(tmp_path), SOURCE)
    flags = [1] * 9 + [0] + [1] * 10
    with pytest.raises(UserError, match=r"steps 11 to 20: loss or gradient not finite; .*not_finite\.json"):
        _see(skipped, [*flags, 0, 0])
    named = json.loads((tmp_path / "not_finite.json").read_text())
    assert named == {str(step): [f"set/{2 * step}", f"set/{2 * step + 1}"] for step in range(11, 21)}


@pytest.mark.parametrize("wait", [True, False])
def test_fewer_are_counted(tmp_path, wait):
    skipped = Skipped(str(tmp_path), SOURCE)
    _see(skipped, ([1] * 9 + [0]) * 3, wait=wait)
    _see(skipped, [0])
    assert skipped.log() == {"skipped": 27} and not (tmp_path / "not_finite.json").exists()


@pytest.mark.parametrize(("flags", "ends"), [([1, 0, 1, 1], True), ([1, 0, 1, 0], False), ([0, 0, 0, 0], False)])
def test_a_run_that_mostly_skipped_has_not_learned(tmp_path, flags, ends):
    skipped = Skipped(str(tmp_path), SOURCE)
    if ends:
        with pytest.raises(UserError, match="3 of 4 steps: loss or gradient not finite"):
            _see(skipped, flags, steps=4)
    else:
        _see(skipped, flags, steps=4)
        assert skipped.log() == ({"skipped": sum(flags)} if any(flags) else {})


LOG = """
import sys
from must.experiment.run_log import Log

log = Log({directory!r}, 0)
log.write(3, {{"loss": 0.5}})
log.close()
assert "torch" not in sys.modules
import torch
"""


def test_events_are_written_without_importing_torch(tmp_path):
    pytest.importorskip("torch")
    ended = run_code(LOG.format(directory=str(tmp_path)), ROOT)
    assert ended.code == 0, ended.lines
    (events,) = tmp_path.glob("events*")
    version, line = (file := TfRecordFile(str(events))).read(range(file.num_records()))
    assert b"brain.Event:2" in version and b"loss" in line and struct.pack("<f", 0.5) in line
