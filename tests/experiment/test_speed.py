"""What a step costs: the log accounts for the time, a batch that does not fit is refused before a step runs."""

import contextlib
import functools
import io
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core import devices
from must.core.types import Batch, UserError
from must.experiment import plan, speed
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


def _batches(rows):
    while True:
        yield Batch({"image": np.ones((rows, 512), np.float32)}, {}, {}, np.arange(rows), {})


def _fit(run, hook=lambda progress: None, steps=6):
    made = speed.Speed(devices.parallelize(_step, donate=(0,)), run, 1)
    state, hooks = _State(jnp.ones((512, 512)), jnp.int32(0)), (functools.partial(hook, made),)
    fit(state, made, _batches(run.batch_size), steps=steps, hooks=hooks)


def test_the_log_accounts_for_the_time_of_a_run():
    lines = []

    def hook(made, progress):
        with made.spent("validation" if progress.step == 4 else "save"):
            time.sleep(0.02)
        if progress.step % 2 == 0:
            lines.append(made.line(progress))
        if progress.step == 6:
            facts = made.facts(progress)
            facts |= facts.pop("shares")
            lines.append({f"speed/{name}": value for name, value in facts.items()})

    _fit(Run(batch_size=32), hook)
    for line in lines:
        assert sum(line[f"speed/{name}"] for name in ("data_wait", "step", "save", "validation")) == pytest.approx(
            1, abs=1e-3
        )
        flop = 2 * 32 * 512 * 512  # of the product
        assert line["speed/gigaflops"] * 1e9 * 32 / line["speed/images_per_second"] == pytest.approx(flop, rel=0.5)
        assert line["speed/mfu"] == pytest.approx(
            line["speed/gigaflops"] * 1e9 / devices.matmul_rate("float32"), rel=1e-2
        )
    assert [line["speed/validation"] > 0 for line in lines] == [False, True, False, True]


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
