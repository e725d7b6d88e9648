"""MuST, multi-task self-training (Ghiasi et al. 2021): teachers -> label -> student -> baselines -> compare -> report.

Each job builds what it needs from the configuration, does its work in its directory and can be killed and run again.
Columns of the comparison:
    teacher     one network per task, on that task's labeled set
    student     one network for all tasks, on all images, ground truth where there is some, else a pseudo label
    supervised  one network for all tasks, on the union of the labeled sets, the student's steps
    scratch     one network per task, on that task's labeled set, the student's steps
    arms        students with other settings, by name
"""

from collections.abc import Mapping
from typing import Any

from must.recipes import showing
from must.recipes.believing import choose_policies, kept_labels
from must.recipes.built import Built
from must.recipes.checks import check_sets
from must.recipes.comparison import compare, report
from must.recipes.jobs import Job
from must.recipes.labeling import label, label_job, policy_job, student_job
from must.recipes.training import measure_given, train_single, train_student, train_supervised

__all__ = ["Built", "kept_labels"]  # what `must.recipes.comparison` asks of a recipe besides the functions below

STAGES = ("teachers", "label", *showing.STAGES, "student", "baselines", "compare", "report")
Config = Mapping[str, Any]


def plan(config: Config, workers: int) -> list[Job]:
    """All jobs of a configuration, in the order in which they are preferred.

    Args:
      config: plain dict, see `configs/quickstart.py`.
      workers: processes that may label side by side.
    """
    jobs = []
    for seed in config["seeds"]:
        at = prefix(config, seed)
        mine = [f"{at}teachers/{task}" for task in config["tasks"]]
        for task in config["tasks"]:
            where = f"{at}teachers/{task}"
            if task in config.get("external", {}):
                jobs.append(Job(where, "teachers", measure_given, (config, seed, task)))
            else:
                jobs.append(Job(where, "teachers", train_single, (config, seed, task, "teacher")))
        for by in labellers(config):
            needs, stage = ((f"{at}{student_job(by)}",), "student") if by else (tuple(mine), "label")
            parts = tuple(f"{at}{label_job(by)}/{k}" for k in range(workers))
            for k, part in enumerate(parts):
                jobs.append(Job(part, stage, label, (config, seed, k, workers, by), needs))
            jobs.append(Job(f"{at}{policy_job(by)}", stage, choose_policies, (config, seed, by), parts))
            jobs += [] if by else showing.jobs_of(config, seed, at, (*parts, f"{at}{policy_job()}"))
            for arm, changes in {"student": config["student"], **config["arms"]}.items():
                if changes.get("labels_from", "") == by:
                    where, needs = f"{at}{student_job(arm)}", (*parts, f"{at}{policy_job(by)}")
                    jobs.append(Job(where, "student", train_student, (config, seed, arm), needs))
        if "supervised" in config["baselines"]:
            jobs.append(Job(f"{at}baselines/supervised", "baselines", train_supervised, (config, seed)))
    for seed in config["seeds"]:  # the longest part, so it comes last
        for task, where in scratch(config, seed).items():
            if where not in {job.name for job in jobs}:
                jobs.append(Job(where, "baselines", train_single, (config, seed, task, "scratch")))
    trained = tuple(job.name for job in jobs if job.stage in ("teachers", "student", "baselines"))
    jobs.append(Job("compare", "compare", compare, (config,), trained, alone=True))
    jobs.append(Job("report", "report", report, (config,), ("compare",), alone=True))
    return jobs


def check(config: Config) -> None:
    """Everything about a configuration that can be wrong and shows without training."""
    showing.check(config)
    check_sets(Built(config, config["seeds"][0]))


def single(config: Config) -> Config:
    """The run that a plan is made for: there is one."""
    return config


def prefix(config: Config, seed: int) -> str:
    """Where a seed's directories stand in the workdir: at its top when there is one seed."""
    return "" if len(config["seeds"]) == 1 else f"seed-{seed}/"


def students(config: Config, seed: int) -> dict[str, str]:
    """{column: directory below the workdir} of the student and of the arms, students with other settings."""
    return {arm: f"{prefix(config, seed)}{student_job(arm)}" for arm in ("student", *config["arms"])}


def labellers(config: Config) -> tuple[str, ...]:
    """Whose labels students learn from: "", the teachers, and students that teach in a next round, each after its own."""
    taught = {arm: changes.get("labels_from", "") for arm, changes in config["arms"].items()}
    order = [""]
    while following := [by for by in dict.fromkeys(taught.values()) if by not in order and taught.get(by, "") in order]:
        order += following
    return tuple(order)


def columns(config: Config, seed: int) -> dict[str, dict[str, str]]:
    """{column: {task: directory below the workdir of the network that answers it}}."""
    at, tasks = prefix(config, seed), list(config["tasks"])
    found = {"teacher": {t: f"{at}teachers/{t}" for t in tasks}}
    found |= {column: dict.fromkeys(tasks, where) for column, where in students(config, seed).items()}
    if "supervised" in config["baselines"]:
        found["supervised"] = dict.fromkeys(tasks, f"{at}baselines/supervised")
    if own := scratch(config, seed):
        found["scratch"] = own
    return found


def scratch(config: Config, seed: int) -> dict[str, str]:
    """{task: directory} of the step-matched baseline; with the teachers' own settings it is the teachers' own runs."""
    if "scratch" not in config["baselines"]:
        return {}
    if config["scratch"] == config["teacher"]:
        return {task: f"{prefix(config, seed)}teachers/{task}" for task in config["tasks"]}
    return {task: f"{prefix(config, seed)}baselines/scratch-{task}" for task in config["tasks"]}


def notes(config: Config) -> list[str]:
    """What a reader of the comparison has to know about its columns."""
    same = "scratch" in config["baselines"] and config["scratch"] == config["teacher"]
    return ["The column scratch shows the teachers' own runs, which had as many steps as the student."] if same else []


def runs(built: Built) -> list[tuple[str, tuple[str, ...]]]:
    """The kinds of training runs of a seed: (section of the configuration, tasks of the network)."""
    found = [("teacher", (name,)) for name in built.names]
    found += [(arm, built.names) for arm in ("student", *built.config["arms"])]
    found += [("supervised", built.names)] if "supervised" in built.config["baselines"] else []
    own = "scratch" in built.config["baselines"] and built.config["scratch"] != built.config["teacher"]
    return found + ([("scratch", (name,)) for name in built.names] if own else [])
