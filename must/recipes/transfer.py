"""Transfer: what weights are worth on other tasks (Ghiasi et al. 2021, section 4.2).

Networks start from a student, from its teachers, from self-supervised pretraining, from a file or from random numbers,
and learn each downstream task alone: end to end, as a probe on a frozen backbone, and by nearest neighbors. One column
per start, protocol and share of the labels; the subject is compared with every other start.
"""

import os
from functools import partial

from must.core.types import UserError
from must.evaluate.results import DELTA_M, Axis, Column, Contrast
from must.experiment import build, checks, plan
from must.experiment import transfer as suite
from must.experiment.compare import Answer, Answers, Comparison, closing_jobs, picture_grid, predictor_of, read_curves
from must.experiment.jobs import Job, facts
from must.experiment.run import Member, Members, Recipe
from must.experiment.transfer import FINETUNE, KNN, PROBE, SELF_SUPERVISED, Transfer
from must.report.page import Section, curves_section, pictures_section

STAGES = ("pretrain", FINETUNE, PROBE, KNN, "compare", "report")
WORDS = {FINETUNE: "fine-tuned", PROBE: "probe on a frozen backbone", KNN: "nearest neighbors"}


def jobs(members: Members, workers: int) -> list[Job]:
    """All jobs, in the order of preference."""
    work: dict[str, Job] = {}
    for member in members:
        for job in _member_jobs(member):
            work.setdefault(job.name, job)
    return [*work.values(), *closing_jobs(list(work.values()), members, comparison(members), page_sections)]


def _member_jobs(member: Member) -> list[Job]:
    settings, seed, share = member.settings, member.seed, _share(member)
    made = []
    if suite.pretrains(settings):
        made.append(Job(_pretrained(member), "pretrain", suite.pretrain, (settings, seed)))
    for protocol, start, task in _cells(settings):
        job = member.prefix + _job(protocol, start, task)
        own = (_pretrained(member),) if settings.starts[start].self_supervised else ()
        where = partial(os.path.relpath, _pretrained(member))
        if protocol == KNN:
            arguments = (settings, seed, share, start, task, where(job))
            made.append(Job(job, KNN, suite.nearest, arguments, own))
            continue
        rates = {f"rate-{rate:g}": rate for rate in settings.learning_rates}
        several = len(rates) > 1
        for name, rate in rates.items() if rates else [("", None)]:
            at = os.path.join(job, name) if several else job
            arguments = (settings, seed, share, protocol, start, task, rate, where(at))
            made.append(Job(at, protocol, suite.train_one, arguments, own))
        if several:
            needs = tuple(os.path.join(job, name) for name in rates)
            made.append(Job(job, protocol, suite.choose, (settings, task, tuple(rates)), needs))
    return made


def _cells(settings: Transfer) -> list[tuple[str, str, str]]:
    """(protocol, start, task) of all networks; nearest neighbors classify."""
    tasks = build.tasks_of(settings)
    return [
        (protocol, start, task)
        for protocol in settings.protocols
        for start in settings.starts
        for task in tasks
        if protocol != KNN or checks.labels_images(tasks[task])
    ]


def _job(protocol: str, start: str, task: str) -> str:
    return f"{protocol}/{start}/{task}"


def _share(member: Member) -> float:
    return float(member.axes.get("share", member.settings.labels[0]))


def _pretrained(member: Member) -> str:
    """The job of self-supervised pretraining, which all shares of the labels have in common."""
    seeds = [part for part in member.prefix.split("/") if part.startswith("seed-")]
    return "/".join([*seeds, SELF_SUPERVISED])


def check(members: Members) -> None:
    """Everything about a configuration that can be wrong and shows without training."""
    settings = members[0].settings
    for name in settings.starts:
        if not name.isidentifier():
            raise UserError(f"config.starts.{name}: the name of a start has letters, digits and _ only")
    checks.check_sets(settings, suite.images(settings))
    for protocol in settings.protocols:
        if protocol != KNN:
            for task in settings.tasks:
                checks.check_run(settings, getattr(settings, protocol), f"config.{protocol}", (task,))
            if getattr(settings, protocol).init.weights:
                raise UserError(f"config.{protocol}.init: weights to start from stand in config.starts")
    for member in members:
        suite.check(member.settings)


def comparison(members: Members) -> Comparison:
    """Every start under every protocol and share of the labels, and the subject against every other start."""
    settings = members[0].settings
    shares = list(dict.fromkeys(map(_share, members)))
    columns, contrasts, several = [], [], len(shares) > 1
    for protocol in settings.protocols:
        tasks = {task for own, _, task in _cells(settings) if own == protocol}
        for share in shares:
            for start, about in settings.starts.items():
                axes = {"protocol": protocol, "start": start, **({"labels": share} if several else {})}
                words = about.description or WORDS[protocol]
                column = Column(_name(protocol, start, share), axes, start, words, about.control)
                answers = {task: Answer(_job(protocol, start, task)) for task in settings.tasks if task in tasks}
                of = {"share": share} if several else {}
                columns.append(Answers(column, answers, of, timed=False))
                if start != settings.subject:
                    name = f"{settings.subject} vs {start}, {WORDS[protocol]}"
                    name += f", {share:.0%} of the labels" if several else ""
                    pair = (_name(protocol, settings.subject, share), _name(protocol, start, share))
                    contrasts.append(Contrast(name, [pair], ("tasks", DELTA_M), expected="above"))
    axes = [
        Axis("protocol", "protocol", {one: WORDS[one] for one in settings.protocols}),
        Axis("start", "start", {one: one for one in settings.starts}),
    ]
    if several:
        axes.append(Axis("labels", "labels", {share: f"{share:.0%} of the labels" for share in shares}, across=True))
    return Comparison(columns, contrasts, axes, costs=lambda members, workdir: {}, notes=notes)


def _name(protocol: str, start: str, share: float) -> str:
    return f"{start} {protocol} {share:.0%}"


def notes(members: Members, workdir: str) -> list[str]:
    """What was chosen on the validation split."""
    settings = members[0].settings
    lines = []
    if len(settings.labels) == 1:
        lines.append(f"Every network learns from {settings.labels[0]:.0%} of the labels.")
    if settings.learning_rates:
        chosen: dict[float, int] = {}
        for member in members:
            for protocol, start, task in _cells(settings):
                if protocol != KNN:
                    rate = facts(workdir, member.prefix + _job(protocol, start, task))["learning_rate"]
                    chosen[rate] = chosen.get(rate, 0) + 1
        counts = ", ".join(f"{rate:g} {count} times" for rate, count in sorted(chosen.items()))
        lines.append(f"Learning rates chosen on the validation split: {counts}.")
    if PROBE in settings.protocols:
        lines.append("A probe trains neck and head; on image classes that is one linear layer.")
    return lines


def page_sections(members: Members, workdir: str) -> list[Section]:
    """Curves and pictures of the first seed: the subject and the first other start."""
    member, settings = members[0], members[0].settings
    top, protocol = os.path.join(workdir, member.prefix), settings.protocols[0]
    if protocol == KNN:
        return []
    other = next((name for name in settings.starts if name != settings.subject), settings.subject)
    tasks, grids, curves = build.tasks_of(settings), {}, {}
    for task in tasks:
        drawn = {}
        for start in dict.fromkeys((settings.subject, other)):
            job = _job(protocol, start, task)
            found = facts(workdir, member.prefix + job)
            where = os.path.join(top, job, found.get("network", ""))
            curves[f"{protocol}/{task}/{start}"] = read_curves(where)
            drawn[start] = predictor_of(where)[0]
        grids[task] = picture_grid(settings, tasks, task, drawn)
    return [curves_section(curves), pictures_section(grids)]


def dry_run(members: Members) -> None:
    """Prints what a run means: data, networks, hours."""
    settings = members[0].settings
    plan.describe_data(members, suite.images, "to learn from")
    count = max(1, len(settings.learning_rates))
    runs = [
        (f"{protocol} {start}{f', one of {count} rates' if count > 1 else ''}", getattr(settings, protocol), (task,))
        for protocol, start, task in _cells(settings)
        if protocol != KNN
    ]
    plan.describe_runs(members, runs)


RECIPE = Recipe(
    "transfer",
    Transfer,
    STAGES,
    jobs,
    check,
    dry_run,
    students=lambda members: {},  # each start has a network per task and protocol: requests name those they mean
    roots=("root", "upstream"),
    axes=lambda config: {"share": ("labels-", tuple(config["labels"]))} if len(config.get("labels") or ()) > 1 else {},
)
