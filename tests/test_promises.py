"""The trials of the promises themselves: the quick ones hold, and what is not built is never green."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


# Those that hang on no clock and take a second. R14 is held by tests/test_imports.py and core/test_stopping.py, R15 by
# readers/test_hostile.py; the others are tried by the script alone, and most of them by tests of their own.
ROWS = ("R4", "R5", "R6", "R7", "R9")


def test_the_quick_trials_hold(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "tests/promises.py", "--quick", f"--only={','.join(ROWS)}", f"--json={file}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["row"]: row for row in json.loads(file.read_text())}
    assert set(rows) == set(ROWS) and all(row["held"] for row in rows.values()), done.stdout
    assert not any(row["met"] and row["missing"] for row in rows.values())
    assert rows["R4"]["missing"] and not rows["R4"]["met"]
