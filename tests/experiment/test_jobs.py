"""Jobs: in the order of their needs, once, side by side on shares of the cores; failures say which and why."""

import json
import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from must.core import notices
from must.core.types import UserError
from must.experiment import jobs
from must.experiment.jobs import Job, facts, run_jobs
from must.experiment.measure import load_rows, read_log, save_rows


def note(what, *, directory, report):
    """A job that records the cores it may use, at its start and half a second later."""
    first = sorted(os.sched_getaffinity(0))
    report(1, 2)
    time.sleep(what if isinstance(what, float) else 0)
    return {"what": what, "cores": first, "later": sorted(os.sched_getaffinity(0)), "at": time.time()}


def wrong(*, directory, report):
    raise UserError("the key is wrong")


def clips(*, directory, report):
    notices.notice("my set: boxes are clipped")
    return {}


def broken(*, directory, report):
    raise RuntimeError("a mistake of ours")


def full(*, directory, report):
    raise OSError(28, "No space left on device", os.path.join(directory, "weights"))


def test_needs_come_first_and_what_is_done_stays_done(tmp_path):
    jobs = [Job("b", "s", note, ("b",), ("a",)), Job("a", "s", note, ("a",))]
    run_jobs(str(tmp_path), jobs)
    a, b = (facts(str(tmp_path), name) for name in "ab")
    assert a["at"] < b["at"] and a["what"] == "a"
    run_jobs(str(tmp_path), jobs)
    assert facts(str(tmp_path), "a") == a
    changed = [jobs[1]._replace(settings={"x": 1}), jobs[0]]
    run_jobs(str(tmp_path), changed)  # other settings: done again, once
    again = facts(str(tmp_path), "a")
    assert again["at"] > a["at"] and facts(str(tmp_path), "b") == b
    run_jobs(str(tmp_path), changed)
    assert facts(str(tmp_path), "a") == again


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_whoever_runs_alone_has_all_cores(tmp_path):
    """The long job starts on a core of its own and gets the other when the short one ends."""
    cores = sorted(os.sched_getaffinity(0))
    run_jobs(str(tmp_path), [Job("long", "s", note, (6.0,)), Job("short", "s", note, (0.5,))], workers=2)
    long, short = (facts(str(tmp_path), name) for name in ("long", "short"))
    assert long["later"] == cores
    assert set(short["cores"]) < set(cores) or short["cores"] == cores  # alone when it started first


def number(*, directory, report):
    return {"score": 12.5}


def stopped(*, directory, report):
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (wrong, UserError, "the key is wrong"),
        (full, UserError, "weights: no space left; make room, then the same command resumes"),
        (broken, RuntimeError, "a mistake of ours"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_failures(tmp_path, run, error, message, workers):
    with pytest.raises(error, match=message):
        run_jobs(str(tmp_path), [Job("x", "s", run, ())], workers=workers)
    assert not (tmp_path / "x" / "done.json").exists()


def test_facts_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(UserError, match="y needs x, which is not done"):
        run_jobs(str(tmp_path), [Job("y", "s", note, ("y",), ("x",))])
    with pytest.raises(UserError, match=r"x/done.json: does not exist"):
        facts(str(tmp_path), "x")
    path = Path(tmp_path / "x" / "done.json")
    path.parent.mkdir()
    path.write_text(json.dumps({"seconds": 1})[:-3])
    with pytest.raises(UserError, match=r"x/done.json: damaged"):
        facts(str(tmp_path), "x")


def test_notices_of_job_processes_reach_the_terminal_once(tmp_path):
    told = []
    with warnings.catch_warnings():
        notices.forward(told.append)
        run_jobs(str(tmp_path), [Job(name, "s", clips, ()) for name in "ab"], workers=2)
    assert told == ["my set: boxes are clipped"]


@pytest.mark.parametrize("content", ["[]", "[1]", "{", '{"seconds": "x"}', '{"seconds": null}'])
def test_facts_that_somebody_has_damaged_are_one_line(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "done.json").write_text(content)
    with pytest.raises(UserError, match=r"a/done\.json: damaged.*; remove it"):
        facts(str(tmp_path), "a")


def test_an_edited_digit_of_facts_is_found(tmp_path):
    run_jobs(str(tmp_path), [Job("a", "s", number, ())])
    path = tmp_path / "a" / "done.json"
    assert facts(str(tmp_path), "a")["score"] == 12.5
    path.write_text(path.read_text().replace("12.5", "13.5"))
    with pytest.raises(UserError, match=r"a/done\.json: changed or damaged, its content does not match its hash"):
        facts(str(tmp_path), "a")


def test_a_job_that_hangs_ends_once_its_siblings_have_done_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_PATIENCE", 0.2)
    parts = [Job(f"label/{k}", "s", stopped if k else number, (), shared=True) for k in range(2)]
    with pytest.warns(notices.Notice, match="label/1: others have done its work"):
        run_jobs(str(tmp_path), [*parts, Job("next", "s", number, (), ("label/0", "label/1"))], workers=2)
    assert facts(str(tmp_path), "next")["score"] == 12.5


@pytest.mark.parametrize("line", ["[1]", "{", '{"step": "x"}', "{}", "\x00"])
def test_a_damaged_log_is_one_line_and_half_a_line_is_passed_over(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2.0}\n{"ste')
    assert read_log(str(tmp_path)) == [{"step": 1, "a": 2.0}]
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(UserError, match="metrics.jsonl: damaged or changed"):
        read_log(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_damaged_rows_are_one_line(tmp_path, keep):
    path = tmp_path / "rows-test.npz"
    save_rows(path, {"depth": {"a": np.arange(1000.0)}})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="rows-test.npz: damaged or changed"):
        load_rows(path)
