"""What a step costs: the log accounts for the time, a batch that does not fit is refused before a step runs."""

import contextlib
import io
import re

import pytest

from must.core import devices
from must.core.types import UserError
from must.experiment import plan, speed
from must.experiment.measure import read_log
from must.experiment.run import members
from must.recipes.table import recipe_of
from tests.support.configs import config_of, run


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


@pytest.fixture(scope="module")
def config():
    every = {"steps": 6, "batch_size": 32, "log_every": 2, "evaluate_every": 4, "checkpoint_every": 2}
    every = {f"teacher__{key}": value for key, value in every.items()}
    return config_of("tests/support/tiny_config.py", "classification", workers=1, **every)


def _teacher(config, **changes):
    return config | {"teacher": config["teacher"] | changes}


def test_the_log_accounts_for_the_time_of_a_run(config, tmp_path):
    run(config, tmp_path, "teachers")
    lines = [line for line in read_log(str(tmp_path / "teachers" / "classification")) if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    shares = ("data_wait", "step", "save", "validation")
    for line in lines:
        assert sum(line[f"speed/{name}"] for name in shares) == pytest.approx(1, abs=0.02)
        rate = line["speed/teraflops"] * 1e12 / devices.matmul_rate("float32")
        assert line["speed/images_per_second"] > 0 and line["speed/mfu"] == pytest.approx(rate, rel=0.1, abs=2e-6)
    assert [line["speed/validation"] > 0 for line in lines] == [False, True, True]
    assert [line["speed/save"] > 0 for line in lines] == [False, True, True]


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(config, tmp_path):
    steps = []
    with pytest.raises(UserError) as refused, pytest.MonkeyPatch.context() as patched:
        patched.setattr(speed.Speed, "facts", lambda self, progress: steps.append(progress.step))
        run(_teacher(config, memory=0.004), tmp_path / "a", "teachers")
    found = re.search(
        r"batch_size=32: a step takes (\d\.\d+) GiB of a device, which has 0.00; (\d+) is the largest power of two",
        str(refused.value),
    )
    assert found and not steps and 1 <= int(found[2]) < 32, refused.value
    run(_teacher(config, memory=0.004, batch_size=int(found[2])), tmp_path / "b", "teachers")
    with pytest.raises(UserError, match="nor does a batch of 1 fit"):
        run(_teacher(config, memory=1e-6), tmp_path / "c", "teachers")


def test_the_dry_run_says_what_fits(config):
    told = io.StringIO()
    made = members(recipe_of(config), _teacher(config, memory=0.004))
    with contextlib.redirect_stdout(told):
        plan.describe_runs(made, [("teacher", made[0].settings.teacher, ("classification",))])
    says = r"a step of 32 rows of a device takes .* GiB, largest power of two that fits 0.00 GiB: (\d+)"
    found = re.search(says, told.getvalue())
    assert found and 1 <= int(found[1]) < 32, told.getvalue()
