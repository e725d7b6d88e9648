"""The last two jobs of a recipe that runs at several label budgets: the budgets side by side, and the page about them."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from must.evaluate.budgets import along_budgets, budget_table
from must.recipes import must
from must.report.budgets import write_page

Config = Mapping[str, Any]
REFERENCE = "student"  # the arm that believes every label; the others are its changes


def directory(budget: int) -> str:
    """Where a budget's run stands in the workdir."""
    return f"labels-{budget}"


def compare(config: Config, *, directory: str, report) -> dict:
    """Lays the results of every budget side by side: results.json, results.txt."""
    workdir = os.path.dirname(directory)
    parts = {budget: _read(os.path.join(workdir, _at(budget), "results.json")) for budget in config["budgets"]}
    results = along_budgets(config["recipe"], parts, reference=REFERENCE)
    with open(os.path.join(workdir, "results.json"), "w") as file:
        json.dump(results, file, indent=1)
    with open(os.path.join(workdir, "results.txt"), "w") as file:
        file.write(budget_table(results))
    return {}


def report(config: Config, *, directory: str, report) -> dict:
    """Draws the page from results.json and from what the weighers of the smallest budget's first seed left."""
    workdir, budget = os.path.dirname(directory), min(config["budgets"])
    found = {}
    for arm, where in must.students(config, config["seeds"][0]).items():
        path = os.path.join(workdir, _at(budget), where, "weights.npz")
        if os.path.exists(path):
            with np.load(path) as file:
                found[arm] = {key: file[key] for key in file.files}
    write_page(
        os.path.join(workdir, "report.html"),
        title=config["title"],
        results=_read(os.path.join(workdir, "results.json")),
        weights=found,
        shown=f"{budget} labels, seed {config['seeds'][0]}",
        corrected=[arm for arm, changes in config["arms"].items() if "weights" in changes or "slam" in changes],
        settings={name: _read(os.path.join(workdir, f"{name}.json")) for name in ("manifest", "config")},
    )
    return {}


_at = directory


def _read(path: str) -> Any:
    with open(path) as file:
        return json.load(file)
