"""Weighted distillation with unlabeled examples (Iliopoulos et al. 2022) and SLaM (Kontonis et al. 2023).

For every budget of labels: a teacher on the annotated set, its labels on the pool, a student that learns all of them
and, as arms, students that weight or correct them. Weights come from a validation split that no teacher has seen. The
jobs are those of `must.recipes.must`; budgets stand side by side in the comparison.
"""

import dataclasses
import os

import numpy as np

from must.core.types import UserError
from must.evaluate.results import Axis, Column, Contrast
from must.experiment import build, plan, students
from must.experiment.compare import Answers, Comparison, closing_jobs
from must.experiment.jobs import Job
from must.experiment.labeling import student_job
from must.experiment.run import Members, Recipe
from must.experiment.settings import Must, Weights
from must.readers.fields import understood
from must.recipes import must
from must.report.page import Section, weights_section


def jobs(members: Members, workers: int) -> list[Job]:
    """All jobs, in the order of preference."""
    work = must.work_jobs(members, workers)
    return work + closing_jobs(work, members, comparison(members), sections)


def check(members: Members) -> None:
    """Everything about a configuration that can be wrong and shows without training."""
    if not members:
        raise UserError("config.budgets=(): at least one number of labels")
    must.check(members)


def comparison(members: Members) -> Comparison:
    """Every column at every budget, its gain over the student of all labels, and over itself without weights."""
    settings = members[0].settings
    plain = unweighted(settings)
    budgets = list(dict.fromkeys(member.axes["budget"] for member in members))
    columns, contrasts = [], []
    for one in must.columns_of(settings):
        name = one.column.name
        for budget in budgets:
            column = Column(at(name, budget), {"arm": name, "budget": budget}, name, one.column.description)
            columns.append(Answers(column, one.by_task, {"budget": budget}))
        references = [] if name == "student" else ["student", *plain.get(name, ())]
        contrasts += [
            Contrast(f"{name} vs {reference}, {budget:,} labels", [(at(name, budget), at(reference, budget))])
            for reference in references
            for budget in budgets
        ]
    axes = [
        Axis("arm", "arm", {one.column.name: one.column.name for one in must.columns_of(settings)}),
        Axis("budget", "labels", {budget: f"{budget:,} labels" for budget in budgets}, across=True),
    ]
    return Comparison(columns, contrasts, axes)


def unweighted(settings: Must) -> dict[str, list[str]]:
    """{arm with weights: the arms that differ from it by the weights alone}, but for the student."""
    runs = {arm: build.student(settings, arm) for arm in build.students(settings) if arm != "student"}
    bare = {arm: dataclasses.replace(run, weights=Weights()) for arm, run in runs.items() if run.weights != Weights()}
    return {arm: [name for name, run in runs.items() if run == plain] for arm, plain in bare.items()}


def at(column: str, budget: int) -> str:
    """Name of a column at a budget."""
    return f"{column}@{budget}"


def sections(members: Members, workdir: str) -> list[Section]:
    """The weights of the smallest budget's first seed."""
    member = min(members, key=lambda member: member.axes["budget"])
    settings, found = member.settings, {}
    for arm in build.students(settings):
        path = os.path.join(workdir, member.prefix, student_job(arm), "weights.npz")
        if os.path.exists(path):
            with understood(path), np.load(path) as file:
                found[arm] = {key: file[key] for key in file.files}
    if not found:
        return []
    return [weights_section(found, f"{member.axes['budget']} labels, seed {member.seed}")]


def dry_run(members: Members) -> None:
    """Prints what a run means: data, networks, hours, label bytes."""
    plan.describe_data(members[-1:], build.all_images, "to label")
    plan.describe_runs(members, students.runs_of(members[-1].settings))
    plan.describe_labels(members)


def finished(members: Members) -> dict[str, str]:
    """The student of the largest budget's first seed."""
    return must.finished([max(members, key=lambda member: member.axes["budget"])])


RECIPE = Recipe(
    "weighted_distillation",
    Must,
    must.STAGES,
    jobs,
    check,
    dry_run,
    students=finished,
    axes=lambda config: {"budget": ("labels-", tuple(config.get("budgets") or ()))},
)
