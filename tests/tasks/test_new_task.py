"""A task that `must` does not know goes from teacher to report by configuration alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


def test_two_foreign_tasks_go_all_the_way(tmp_path):
    command = [sys.executable, "-m", "must.main", "--config=tests/support/toy_config.py", f"--workdir={tmp_path}/run"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["tasks"]) == {"edges", "corners"}
    for task in results["tasks"].values():
        assert {"teacher", "student", "few", "supervised", "scratch"} == set(task["scores"])
        assert task["scores"]["scratch"] == task["scores"]["teacher"]  # equal settings are one run
        assert np.isfinite([value for values in task["scores"].values() for value in values]).all()
    images = [
        json.loads((tmp_path / "run" / where / "done.json").read_text())["images"] for where in ("student", "arms/few")
    ]
    assert images == [2 * 32 + 64, 2 * 32 + 16] and "few" in results["delta_m_lead"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The column scratch shows the teachers" in page and results["notes"][0] in result.stdout
    assert "edges" in page and "corners" in page

    from must.readers.records import Records

    (directory,) = (tmp_path / "run" / "pseudo_labels").glob("*/*")
    records = Records(str(directory))
    counts = {len(records[i].labels["corners"]["points"]) for i in range(len(records))}
    assert len(records) == 2 * 32 + 64 and len(counts) > 1  # labels of variable size, read back as written
    assert records[0].labels["edges"]["edges"].shape == (16, 16)
