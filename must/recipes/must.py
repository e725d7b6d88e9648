"""MuST, multi-task self-training (Ghiasi et al. 2021): teachers -> label -> student -> baselines -> compare -> report.

Columns of the comparison:
    teacher     one network per task, on that task's annotated set
    student     one network for all tasks, on all images: ground truth where there is some, else a pseudo label
    supervised  one network for all tasks, on the union of the annotated sets, the student's steps
    scratch     one network per task, on that task's annotated set, the student's steps
    arms        students with other settings, by name
"""

import os
from collections.abc import Mapping
from functools import partial

from must.evaluate.results import DELTA_M, Column, Contrast
from must.experiment import build, checks, labeling, plan, show, students
from must.experiment.compare import Answer, Answers, Comparison, closing_jobs, picture_grid, predictor_of, read_curves
from must.experiment.jobs import Job, facts
from must.experiment.labeling import label_job, policy_job, student_job
from must.experiment.run import Member, Members, Recipe
from must.experiment.settings import Must
from must.report.page import Section, curves_section, label_states_section, pictures_section

STAGES = ("teachers", "label", *show.STAGES, "student", "baselines", "compare", "report")
_WORDS = {
    "teacher": "one network per task, on its annotated set",
    "student": "one network for all tasks, on all images",
    "supervised": "one network for all tasks, no pseudo labels",
    "scratch": "one network per task, the student's steps",
}


def jobs(members: Members, workers: int) -> list[Job]:
    """All jobs, in the order of preference."""
    work = work_jobs(members, workers)
    return work + closing_jobs(work, members, comparison(members), sections)


def work_jobs(members: Members, workers: int) -> list[Job]:
    """The jobs before the comparison; `workers` processes may label side by side."""
    work = [job for member in members for job in _member_jobs(member, workers)]
    for member in members:  # the longest part, so it comes last
        for task, where in _scratch(member.settings).items():
            if (name := member.prefix + where) not in {job.name for job in work}:
                arguments = (member.settings, member.seed, task, member.settings.scratch)
                work.append(Job(name, "baselines", students.train_single, arguments))
    return work


def _member_jobs(member: Member, workers: int) -> list[Job]:
    settings, seed, at = member.settings, member.seed, member.prefix
    work = []
    for task in settings.tasks:
        name = f"{at}teachers/{task}"
        if task in settings.external_teachers:
            work.append(Job(name, "teachers", students.measure_external, (settings, seed, task)))
        else:
            work.append(
                Job(name, "teachers", students.train_single, (settings, seed, task, build.teacher(settings, task)))
            )
    teachers = tuple(job.name for job in work)
    for by in _labelers(settings):
        needs, stage = ((f"{at}{student_job(by)}",), "student") if by else (teachers, "label")
        parts = tuple(f"{at}{label_job(by)}/{k}" for k in range(workers))
        for k, part in enumerate(parts):
            work.append(Job(part, stage, labeling.label, (settings, seed, k, workers, by), needs, shared=True))
        policy = f"{at}{policy_job(by)}"
        work.append(Job(policy, stage, labeling.choose_policies, (settings, seed, by), parts))
        if not by:
            work += show.show_jobs(settings, seed, at, (policy,), shown_labels)
        for arm in build.students(settings):
            if build.student(settings, arm).labels_from == by:
                name = f"{at}{student_job(arm)}"
                work.append(Job(name, "student", students.train_student, (settings, seed, arm), (policy,)))
    if "supervised" in settings.baselines:
        needs = teachers if settings.supervised.loss_scale_rule == "gradient" else ()
        work.append(Job(f"{at}baselines/supervised", "baselines", students.train_supervised, (settings, seed), needs))
    return work


def shown_labels(settings: Must) -> show.Labels:
    """What the pages about pseudo labels show."""
    tasks = build.tasks_of(settings)
    truth = build.splits(settings, settings.eval_splits[0])
    encoder = build.encoder(settings.image, tasks)
    evaluation = partial(labeling.label_evaluation, settings)
    names = () if settings.label.copy_images else (labeling.POOL, labeling.EVALUATION)
    images = {name: labeling.images_of(settings, name) for name in names}
    return show.Labels(settings.title, tasks, encoder, truth, build.oracle_truth(settings), evaluation, "", images)


def check(members: Members) -> None:
    """Everything about a configuration that can be wrong and shows without training."""
    for member in {tuple(member.axes.items()): member for member in members}.values():
        settings = member.settings
        checks.check_students(settings)
        checks.check_sets(settings, build.all_images(settings), build.pool(settings))
        runs = [build.student(settings, name) for name in build.students(settings)]
        if any(run.weights.kind != "none" or run.slam.enabled for run in runs):
            checks.check_validation(settings)


def comparison(members: Members) -> Comparison:
    """The student against every other column, and every column against the teachers."""
    columns = columns_of(members[0].settings)
    names = [one.column.name for one in columns]
    contrasts = [
        Contrast(f"student vs {name}", [("student", name)], ("tasks", DELTA_M)) for name in names if name != "student"
    ]
    for name in names:
        if name not in ("student", "teacher"):
            contrasts.append(Contrast(f"{name} vs teacher", [(name, "teacher")], ("tasks", DELTA_M)))
            lead = Contrast(f"student ahead of {name}, in Δm over teacher", [("student", name)], (DELTA_M,), "teacher")
            contrasts.append(lead)
    return Comparison(columns, contrasts, intervals_over_images=True, notes=notes)


def columns_of(settings: Must) -> list[Answers]:
    """The columns of one member with the jobs that answer them."""
    tasks = list(settings.tasks)
    columns = [_column("teacher", {task: f"teachers/{task}" for task in tasks})]
    columns += [_column(arm, dict.fromkeys(tasks, student_job(arm))) for arm in build.students(settings)]
    if "supervised" in settings.baselines:
        columns.append(_column("supervised", dict.fromkeys(tasks, "baselines/supervised")))
    if own := _scratch(settings):
        columns.append(_column("scratch", own))
    return columns


def _column(name: str, jobs: Mapping[str, str]) -> Answers:
    return Answers(Column(name, description=_WORDS.get(name, "")), {task: Answer(job) for task, job in jobs.items()})


def notes(members: Members, workdir: str) -> list[str]:
    """What a reader of the comparison has to know about its columns."""
    same = [task for task, job in _scratch(members[0].settings).items() if job.startswith("teachers/")]
    if not same:
        return []
    of = "" if len(same) == len(members[0].settings.tasks) else f" of {', '.join(same)}"
    return [f"The column scratch shows the teachers' own runs{of}, which have as many steps as the student."]


def sections(members: Members, workdir: str) -> list[Section]:
    """Curves, pictures and label states of the first seed."""
    member = members[0]
    settings, top = member.settings, os.path.join(workdir, member.prefix)
    tasks, columns = build.tasks_of(settings), {one.column.name: one.by_task for one in columns_of(settings)}
    directories = dict.fromkeys(answer.job for by_task in columns.values() for answer in by_task.values())
    grids = {}
    for task in tasks:
        drawn = {
            name: predictor_of(os.path.join(top, columns[name][task].job))[0]
            for name in ("teacher", "student", "supervised")
            if name in columns and not (name == "teacher" and task in settings.external_teachers)
        }
        grids[task] = picture_grid(settings, tasks, task, drawn)
    return [
        curves_section({where: read_curves(os.path.join(top, where)) for where in directories}),
        pictures_section(grids),
        label_states_section(facts(workdir, f"{member.prefix}{policy_job()}").get("classes", {})),
    ]


def _labelers(settings: Must) -> tuple[str, ...]:
    """Whose labels students learn: "", the teachers, and students that teach in a further round, each after its own."""
    taught = {arm: build.student(settings, arm).labels_from for arm in settings.arms}
    order: list[str] = [""]
    while more := [by for by in dict.fromkeys(taught.values()) if by not in order and taught.get(by, "") in order]:
        order += more
    return tuple(order)


def _scratch(settings: Must) -> dict[str, str]:
    """{task: job} of the single-task baseline; with the teachers' own settings it is the teachers' own runs."""
    if "scratch" not in settings.baselines:
        return {}
    same = {task: build.is_own_baseline(settings, task) for task in settings.tasks}
    return {task: f"teachers/{task}" if same[task] else f"baselines/scratch-{task}" for task in settings.tasks}


def dry_run(members: Members) -> None:
    """Prints what a run means: data, networks, hours, label bytes."""
    plan.describe_data(members, build.all_images, "to label")
    plan.describe_runs(members, students.runs_of(members[0].settings))
    plan.describe_labels(members)


def finished(members: Members) -> dict[str, str]:
    """The student of the first seed."""
    return {"student": f"{members[0].prefix}{student_job('student')}"}


RECIPE = Recipe("must", Must, STAGES, jobs, check, dry_run, students=finished)
