"""What a step costs: the log accounts for the time, a batch that does not fit is refused before a step runs."""

import contextlib
import io
import itertools
import json
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core import devices
from must.core.types import Batch, UserError
from must.experiment import jobs, plan, speed
from must.experiment.run import members
from must.experiment.settings import Run
from must.recipes.table import recipe_of
from must.train.loop import fit
from tests.support.configs import config_of


class _State(NamedTuple):
    w: jax.Array
    step: jax.Array


def test_largest_batch_is_the_largest_power_of_two_that_fits():
    tried = []

    def size_of(rows):
        tried.append(rows)
        return 10 + 3 * rows

    for limit in range(8, 80, 3):
        for start in (1, 3, 16, 33):
            for least, most in ((1, 16), (3, 11)):
                fits = [rows for rows in (1, 2, 4, 8, 16) if least <= rows <= most and size_of(rows) <= limit]
                tried.clear()
                assert speed.largest_batch(size_of, limit, min(start, most), least, most) == max(fits, default=0)
                assert len(tried) == len(set(tried)) and max(tried) <= most


def _step(state, batch, frozen, *, axis_name=None):
    """Takes memory that grows with the rows."""
    hidden = jnp.tanh(batch.inputs["image"] @ state.w)
    return _State(state.w + jnp.mean(hidden), state.step + 1), {"loss": jnp.mean(hidden**2)}


def _batches(rows, first=1):
    for number in itertools.count(first):
        time.sleep(0.05 if number == 4 else 0)
        yield Batch({"image": np.ones((rows, 512), np.float32)}, {}, {}, np.arange(rows), {})


def _fit(run, hook=lambda progress: None, steps=6, made=None, first=0):
    made = made or speed.Speed(devices.parallelize(_step, donate=(0,)), run)
    state = _State(jnp.ones((512, 512)), jnp.int32(first))

    def both(progress):
        made.see(progress)
        return hook(made, progress)

    fit(state, made, _batches(run.batch_size, first + 1), steps=steps, hooks=(both,))


def _between_steps(made, progress):
    with made.spent("evaluate" if progress.step == 4 else "save"):
        time.sleep(0.02)


def test_the_log_accounts_for_the_time_of_a_run():
    lines, sums = [], []

    def hook(made, progress):
        _between_steps(made, progress)
        if progress.step % 2 == 0:
            lines.append(made.line())
            sums.append(sum(made.clock.spent.values()))
        if progress.step == 6:
            lines.append({f"speed/{name}": value for name, value in made.facts().items()})

    _fit(Run(batch_size=32), hook)
    *lines, facts = lines
    for line, seconds in zip(lines, sums, strict=True):
        shares = {name: line.get(f"speed/{name}", 0.0) for name in speed.PARTS}
        assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
        assert line["speed/seconds"] == pytest.approx(seconds)
        assert ("speed/compile" in line) == ("speed/init" in line) == (line is lines[0])
    for line in (*lines, facts):
        flop = 2 * 32 * 512 * 512  # of the product
        assert line["speed/gigaflops"] * 1e9 * 32 / line["speed/images_per_second"] == pytest.approx(flop, rel=0.5)
        assert line["speed/mfu"] == pytest.approx(
            line["speed/gigaflops"] * 1e9 / devices.matmul_rate("float32"), rel=1e-2
        )
    assert [line["speed/evaluate"] > 0 for line in lines] == [False, True, False]
    assert np.argmax([line["speed/data_wait"] for line in lines]) == 1  # the fourth batch came late


def _training(top, at, *, directory, report):
    """A job that sets up, saves at step 3 and, as long as nothing was saved, dies at step 5."""
    time.sleep(0.2)
    saved, log, made = top / "saved", top / "log", devices.parallelize(_step, donate=(0,))
    first = 3 if saved.exists() else 0
    known = json.loads(saved.read_text()) if first else {}
    logged = float(log.read_text()) if first else 0.0
    made = speed.Speed(made, Run(batch_size=32), known, logged)
    at.append(time.perf_counter())

    def hook(made, progress):
        _between_steps(made, progress)
        at.append(time.perf_counter())
        log.write_text(str(made.line()["speed/seconds"]))
        if progress.step == 3 and not first:
            saved.write_text(json.dumps(made.clock.spent))
        if progress.step == 5 and not first:
            raise KeyboardInterrupt
        at.pop()

    _fit(Run(batch_size=32), hook, 8, made, first)
    time.sleep(0.1)  # scores what it has trained
    at.append(time.perf_counter())
    return made.facts()


def test_the_parts_add_up_to_the_wall_time_of_all_starts(tmp_path):
    at = []
    job = jobs.Job("net", "train", _training, (tmp_path, at))
    began = [time.perf_counter()]
    with pytest.raises(KeyboardInterrupt):
        jobs.run_jobs(str(tmp_path), [job])
    began.append(time.perf_counter())
    jobs.run_jobs(str(tmp_path), [job])
    facts = jobs.facts(str(tmp_path), "net")
    wall, spent = at[1] - began[0] + at[3] - began[1], facts["spent"]
    assert list(spent) == list(speed.PARTS)
    assert sum(spent.values()) == pytest.approx(wall, rel=0.01, abs=0.02)
    assert facts["seconds"] == pytest.approx(sum(spent.values()), abs=0.01)
    assert spent["init"] > at[0] - began[0] + at[2] - began[1] > 0.4
    assert spent["evaluate"] >= 0.1 + 0.02 and spent["save"] >= 0.02 * 6
    assert 0.04 <= spent["lost"] < at[1] - at[0] and spent["compile"] > 0 and spent["step"] > 0
    jobs.run_jobs(str(tmp_path), [jobs.Job("other", "train", lambda **options: {}, ())])
    assert "spent" not in jobs.facts(str(tmp_path), "other")


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does():
    steps, gib = [], 0.0015
    with pytest.raises(UserError) as refused:
        _fit(Run(batch_size=300, memory=gib), lambda made, progress: steps.append(1))
    said = r"batch_size=300: a step takes 0.00 GiB of a device, which has 0.00; (\d+) is the largest power of two"
    fits = int(re.match(said, str(refused.value))[1])
    assert 1 <= fits < 256 and not steps
    _fit(Run(batch_size=fits, memory=gib), lambda made, progress: steps.append(1), steps=1)
    assert steps
    with pytest.raises(UserError, match="which has 0.00; nor does a batch of 1 fit"):
        _fit(Run(batch_size=fits, memory=1e-6))
    with pytest.raises(UserError):
        _fit(Run(batch_size=2 * fits, memory=gib))


def test_the_dry_run_says_what_fits(monkeypatch):
    """The compiled program's memory is replaced by its rows: compiling is what this costs."""
    config = config_of("tests/support/tiny_config.py", "classification")
    config["teacher"] |= {"memory": 20 / 2**30, "batch_size": 48, "accumulate": 2}
    made = members(recipe_of(config), config)
    rows = lambda lowered: max(leaf.shape[0] for leaf in jax.tree.leaves(lowered.in_avals) if leaf.dtype == np.uint8)  # noqa: E731
    monkeypatch.setattr(devices, "program_bytes", rows)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        plan.describe_runs(made, [("teacher", made[0].settings.teacher, ("classification",))])
    said = "a step of 24 rows of a device takes 0.00 GiB, largest power of two that fits 0.00 GiB: 16"
    assert said in told.getvalue(), told.getvalue()
