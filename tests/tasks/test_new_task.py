"""A task that `must` does not know goes from teacher to report by configuration alone."""

import json

import numpy as np

from must.evaluate.evaluate import bootstrap_interval
from must.experiment import build, measure
from must.readers.label_files import LabelFiles
from must.readers.records import Records
from tests.support.commands import run_command
from tests.support.configs import settings_of


def test_two_foreign_tasks_go_all_the_way(tmp_path):
    ended = run_command(["--config=tests/support/toy_config.py", f"--workdir={tmp_path}/run"])
    assert ended.code == 0, ended.lines
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    _check_intervals(tmp_path / "run", results)
    assert set(results["tasks"]) == {"edges", "corners"}
    assert set(results["columns"]) == {"guess", "teacher", "student", "few", "supervised", "scratch"}
    scores = {name: column["scores"]["test"] for name, column in results["columns"].items()}
    assert scores["scratch"] == scores["teacher"]  # equal settings are one run
    assert all(np.isfinite(by_task[task]).all() for by_task in scores.values() for task in ("edges", "corners"))
    done = [tmp_path / "run" / where / "done.json" for where in ("student", "arms/few")]
    assert [json.loads(path.read_text())["images"] for path in done] == [2 * 32 + 64, 2 * 32 + 16]
    assert "The column scratch shows the teachers" in results["notes"][-1]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "edges" in page and "corners" in page

    directory = tmp_path / "run" / "pseudo_labels" / "pool" / "1.0.0"
    records = Records(str(directory))
    counts = {len(records[i].labels["corners"]["points"]) for i in range(len(records))}
    assert len(records) == 2 * 32 + 64 and len(counts) > 1  # labels of variable size, read back as written
    assert records[0].labels["edges"]["edges"].shape == (16, 16)
    # What shows labels and what writes them for other tools needs no edit either.
    assert set(json.loads((tmp_path / "run" / "quality" / "quality.json").read_text())) == {"edges", "corners"}
    assert (tmp_path / "run" / "gallery" / "pages" / "index.html").exists()
    edges = LabelFiles(str(tmp_path / "run" / "files" / "labels"), images=records, tasks=["edges"])
    np.testing.assert_array_equal(edges[0].labels["edges"]["edges"], records[0].labels["edges"]["edges"])


def _check_intervals(workdir, results):
    """One seed: every difference has the interval of a paired bootstrap over the test images."""
    config = json.loads((workdir / "config.json").read_text())
    tasks = build.tasks_of(settings_of(config))
    found = {one["task"]: one for one in results["contrasts"] if one["name"] == "student vs teacher"}
    student = measure.load_rows(str(workdir / "student" / "rows-test.npz"))
    for name, task in tasks.items():
        teacher = measure.load_rows(str(workdir / "teachers" / name / "rows-test.npz"))[name]
        ends = np.array(bootstrap_interval(task, student[name], versus=teacher, resamples=200))
        sign = 1 if task.metrics[0].higher_is_better else -1
        assert found[name]["interval_over"] == "images"
        np.testing.assert_allclose(found[name]["ci95"], np.sort(sign * ends), rtol=1e-9)
    low, high = found["delta_m"]["ci95"]
    assert low <= found["delta_m"]["mean"] <= high
