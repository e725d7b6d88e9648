"""Every stage of a recipe on two processes: the networks, scores and pages of one process."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.support.commands import run_command, run_two_processes


# The others are a matter of minutes: row R16 of tests/promises.py has all of them.
@pytest.mark.parametrize("recipe", ["must"])
def test_two_processes_end_in_the_table_of_one(recipe, tmp_path):
    compared, apart = two_and_one(recipe, tmp_path)
    assert compared > 30 and apart < 1e-4


def two_and_one(recipe: str, top: Path) -> tuple[int, float]:
    """Runs all stages of a recipe with one and with two processes.

    Returns:
      How many arrays and scores were compared, and the largest relative difference; infinite where there is something
      that the other has not.
    """
    config = f"--config=tests/support/shrunk_config.py:{recipe}"
    ended = [run_command([config, f"--workdir={top / 'one'}"])]
    ended += run_two_processes([config, f"--workdir={top / 'two'}"])
    assert not any(one.code for one in ended), [one.lines[-3:] for one in ended]
    assert (top / "two" / "report.html").stat().st_size > 10_000
    one, two = ({**_networks(top / name), **_scores(top / name)} for name in ("one", "two"))
    if set(one) != set(two):
        return 0, float("inf")
    size = {name: max(1e-2, float(np.abs(value).max(initial=0))) for name, value in one.items()}
    return len(one), max(float(np.abs(two[name] - one[name]).max(initial=0)) / size[name] for name in one)


def _networks(workdir: Path) -> dict[str, np.ndarray]:
    """{path: array} of the weights of all networks."""
    found = {}
    for state in workdir.rglob("weights/*/state"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(ocp.PyTreeCheckpointer().restore(state)):
            found[f"{state.relative_to(workdir)}{jax.tree_util.keystr(path)}"] = np.float64(leaf)
    return found


def _scores(workdir: Path) -> dict[str, np.ndarray]:
    """{path: figure} of a finished comparison."""
    columns = json.loads((workdir / "results.json").read_text())["columns"]
    leaves = jax.tree_util.tree_leaves_with_path({name: column["scores"] for name, column in columns.items()})
    return {jax.tree_util.keystr(path): np.float64(leaf) for path, leaf in leaves}


def test_processes_that_were_started_differently_exit_before_starting(tmp_path):
    config = "--config=tests/support/shrunk_config.py:must"
    mine = [[config, f"--workdir={tmp_path / 'w'}", f"--config.student.steps={steps}"] for steps in (2, 3)]
    ended = run_two_processes(mine[0], second=mine[1])
    says = "started differently: config.student.steps is 2 in process 0, 3 in process 1"
    assert [one.code for one in ended] == [2, 2], ended
    assert all(any(says in line for line in one.lines) for one in ended), ended
    assert not (tmp_path / "w").exists()
