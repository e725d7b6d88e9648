"""Weighted distillation with unlabeled examples (Iliopoulos et al. 2022) and SLaM (Kontonis et al. 2023) on label budgets.

For every budget of labels a whole run of `must.recipes.must` below its own directory: a teacher on the labeled set, its
labels on the pool, a student that believes them all and, as arms, students that weigh or correct them. Weights come from
a validation split that no teacher has seen. Then the budgets are laid side by side.
"""

from collections.abc import Mapping
from typing import Any

from must.core.types import UserError
from must.recipes import budgets, must, setup
from must.recipes.built import Built
from must.recipes.jobs import Job

STAGES = must.STAGES
Config = Mapping[str, Any]


def plan(config: Config, workers: int) -> list[Job]:
    """All jobs of a configuration: those of every budget, then what compares the budgets.

    Args:
      config: plain dict, see `configs/weighted_distillation.py`.
      workers: processes that may label side by side.
    """
    jobs = []
    for budget in config["budgets"]:
        at = f"{budgets.directory(budget)}/"
        for job in must.plan(at_budget(config, budget), workers):
            if job.stage == "report":
                continue  # one page shows all budgets
            jobs.append(job._replace(name=at + job.name, needs=tuple(at + need for need in job.needs)))
    jobs.sort(key=lambda job: job.alone)  # what needs the machine for itself comes when nothing else is left
    inner = tuple(job.name for job in jobs if job.stage == "compare")
    jobs.append(Job("compare", "compare", budgets.compare, (config,), inner, alone=True))
    jobs.append(Job("report", "report", budgets.report, (config,), ("compare",), alone=True))
    return jobs


def at_budget(config: Config, budget: int) -> dict[str, Any]:
    """The configuration of one budget: a run of `must.recipes.must` in which "{budget}" has a value."""
    inner = setup.fill({key: value for key, value in config.items() if key != "budgets"}, budget=budget)
    return {**inner, "recipe": "must", "title": f"{config['title']}, {budget} labels"}


def check(config: Config) -> None:
    """Everything about a configuration that can be wrong and shows without training."""
    if not config["budgets"]:
        raise UserError("budgets: give at least one number of labels")
    for budget in config["budgets"]:
        must.check(at_budget(config, budget))


def single(config: Config) -> dict[str, Any]:
    """The run of the largest budget, which a plan is made for."""
    return at_budget(config, max(config["budgets"]))


runs = must.runs

__all__ = ["Built", "runs"]  # of a single run, for dry runs
