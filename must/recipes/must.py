"""MuST, multi-task self-training (Ghiasi et al. 2021): teachers -> label -> student -> baselines -> compare -> report.

Each function below `plan` is one job: it builds what it needs from the configuration, does its work in its directory
and can be killed and run again. Columns of the comparison:
    teacher     one network per task, on that task's labelled set
    student     one network for all tasks, on all images, ground truth where there is some, else a pseudo label
    supervised  one network for all tasks, on the union of the labelled sets, the student's steps
    scratch     one network per task, on that task's labelled set, the student's steps
    arms        students with other settings, by name
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from must.core import devices
from must.core.types import Policy, Source, Teacher, UserError
from must.data.combine import Concat, Overlay, Repeated, Subset, Weighted
from must.data.records import Records
from must.evaluate.evaluate import summarize
from must.objectives.supervised import learning_rate_rule, supervised
from must.pseudo_label import policy as policies
from must.pseudo_label import teacher as teachers
from must.pseudo_label.write import label_images
from must.recipes import setup, stages
from must.recipes.setup import Built
from must.recipes.jobs import Job
from must.recipes.comparison import compare, report

STAGES = ("teachers", "label", "student", "baselines", "compare", "report")
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
            jobs.append(Job(f"{at}teachers/{task}", "teachers", train_single, (config, seed, task, "teacher")))
        parts = [f"{at}label/{k}" for k in range(workers)]
        for k, part in enumerate(parts):
            jobs.append(Job(part, "label", label, (config, seed, k, workers), tuple(mine)))
        jobs.append(Job(f"{at}policy", "label", choose_policies, (config, seed), tuple(mine)))
        for arm, where in students(config, seed).items():
            jobs.append(Job(where, "student", train_student, (config, seed, arm), (*parts, f"{at}policy")))
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


def prefix(config: Config, seed: int) -> str:
    """Where a seed's directories stand in the workdir: at its top when there is one seed."""
    return "" if len(config["seeds"]) == 1 else f"seed-{seed}/"


def students(config: Config, seed: int) -> dict[str, str]:
    """{column: directory below the workdir} of the student and of the arms, students with other settings."""
    at = prefix(config, seed)
    return {"student": f"{at}student", **{arm: f"{at}arms/{arm}" for arm in config["arms"]}}


def columns(config: Config, seed: int) -> dict[str, dict[str, str]]:
    """{column: {task: directory below the workdir of the network that answers it}}."""
    at, tasks = prefix(config, seed), list(config["tasks"])
    found = {"teacher": {t: f"{at}teachers/{t}" for t in tasks}}
    found |= {column: dict.fromkeys(tasks, where) for column, where in students(config, seed).items()}
    if "supervised" in config["baselines"]:
        found["supervised"] = {t: f"{at}baselines/supervised" for t in tasks}
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


def train_single(config: Config, seed: int, task: str, section: str, *, directory: str, report) -> dict:
    """A teacher, or with the student's schedule the scratch baseline: one task on its labelled set."""
    built = Built(config, seed)
    return _train(built, (task,), built.split(task, "train"), section, {task: Policy()}, directory, report)


def train_supervised(config: Config, seed: int, *, directory: str, report) -> dict:
    """The supervised multi-task baseline: all teachers' labels, no pseudo labels, the student's steps."""
    built = Built(config, seed)
    believed = {name: Policy() for name in built.names}
    return _train(built, built.names, Concat(built.labelled()), "supervised", believed, directory, report)


def train_student(config: Config, seed: int, arm: str, *, directory: str, report) -> dict:
    """The student, or an arm of it: ground truth where an image has it, else a pseudo label, drawn uniformly.

    With `repeat_labelled` above 1 the annotated images, few among many, are met that many times as often, and their
    ground truth counts `truth_weight` times a pseudo label; with `pool_images` only so many images of the pool are met,
    together about as often as the whole pool would be.
    """
    built = Built(config, seed)
    settings, top = built.settings(arm), _top(directory, "student" if arm == "student" else os.path.join("arms", arm))
    believed = _read_policies(top)
    records = Records(os.path.join(top, *_RECORDS), tasks=list(built.names))
    labelled = built.labelled()
    times = {id: settings["repeat_labelled"] for part in labelled for id in part.ids}
    if settings["pool_images"]:
        pool = Concat(built.pool())
        part = set(Subset(pool, count=settings["pool_images"]).ids)
        times |= {id: len(pool) // len(part) if id in part else 0 for id in pool.ids}
    truth = {name: dict.fromkeys(built.split(name, "train").ids, settings["truth_weight"]) for name in built.names}
    source = Repeated(Weighted(setup.Cached(Overlay(records, labelled)), truth), times)
    facts = _train(built, built.names, source, arm, believed, directory, report)
    return facts | {"images": len(set(source.ids))}


_RECORDS = ("pseudo_labels", "pool", "1.0.0")


def label(config: Config, seed: int, index: int, count: int, *, directory: str, report) -> dict:
    """The labelling pass, or one worker's part of it: every teacher on every image."""
    built = Built(config, seed)
    top = _top(directory, os.path.join("label", str(index)))
    if jax.process_count() > 1:
        index, count = jax.process_index(), jax.process_count()
    section = dict(built.config["label"])
    mirror = section.pop("mirror")
    found = load_teachers(built, os.path.join(top, "teachers"), mirror)
    label_images(
        os.path.join(top, *_RECORDS),
        "pool",
        built.everything(),
        list(found.values()),
        worker=(index, count),
        provenance={"mirror": mirror},
        keep_aspect=built.plain.keep_aspect,
        progress=report,
        **section,
    )
    return {}


def choose_policies(config: Config, seed: int, *, directory: str, report) -> dict:
    """Which labels are believed: as configured, or thresholds per class from the teachers on the validation split."""
    built = Built(config, seed)
    found = load_teachers(built, os.path.join(_top(directory, "policy"), "teachers"), built.config["label"]["mirror"])
    chosen = {}
    for name in built.names:
        section = dict(built.config["policies"][name])
        if section.pop("from_validation", False):
            chosen[name] = policies.three_state(
                _judged(built, found[name], name), len(built.tasks[name].classes), **section
            )
        else:
            chosen[name] = setup.build_policy(section)
    if not devices.is_writer():
        return {}
    with open(os.path.join(directory, "policy.json"), "w") as file:
        json.dump({name: [np.asarray(t).tolist() for t in pair] for name, pair in chosen.items()}, file, indent=1)
    return {}


def load_teachers(built: Built, directory: str, mirror: bool) -> dict[str, Teacher]:
    """The trained teachers by task."""
    found = {}
    for name in built.names:
        model = built.model((name,))
        variables, _ = stages.load_weights(os.path.join(directory, name), model, built.size)
        found[name] = teachers.from_model(
            name,
            model,
            jax.device_put(variables),
            {name: built.tasks[name]},
            size=built.size,
            fingerprint=stages.weights_fingerprint(variables),
            mirror=mirror,
        )
    return found


def kept_labels(built: Built, directory: str, most: int = 512) -> dict[str, dict[str, tuple[int, int, int]]]:
    """What the policies make of the records: {task: {class: (positive, ignored, negative)}}, over the first `most`.

    Args:
      built: the seed's objects.
      directory: of the seed.
      most: records that are counted.
    """
    believed = _read_policies(directory)
    records = Records(os.path.join(directory, *_RECORDS), tasks=list(built.names), verify=False)
    counts = {}
    for name in built.names:
        task, plain = built.tasks[name], built.plain._replace(tasks={name: built.tasks[name]})
        tally = None
        for i in range(min(most, len(records))):
            label = plain(records[i], i, np.random.default_rng(0)).labels[name]
            claims = task.judge(label, label)  # judged against itself, a label says what it claims
            if claims is None:
                break
            score, _, ids = claims
            if tally is None:
                tally = np.zeros((len(task.classes), 3), int)
            positive, negative = (np.broadcast_to(t, len(task.classes))[ids] for t in believed[name])
            state = np.where(score >= positive, 0, np.where(score >= negative, 1, 2))
            np.add.at(tally, (ids, state), 1)
        if tally is not None:
            counts[name] = {c: tuple(int(v) for v in row) for c, row in zip(task.classes, tally, strict=True)}
    return counts


def _read_policies(directory: str) -> dict[str, Policy]:
    with open(os.path.join(directory, "policy", "policy.json")) as file:
        return {name: Policy(*(np.float32(t) for t in pair)) for name, pair in json.load(file).items()}


def _judged(built: Built, teacher: Teacher, name: str):
    """What the teacher claims on the validation split, and whether it is so."""
    task, triples = built.tasks[name], []
    encoder = built.plain._replace(tasks={name: task})
    for batch in stages.eval_batches(built.split(name, "validation"), encoder, batch_size=64):
        said = jax.device_get(teacher.predict(batch.inputs["image"])[name])
        for row in np.flatnonzero(batch.weights[name]):
            pick = lambda tree: {field: np.asarray(value)[row] for field, value in tree.items()}  # noqa: E731
            triples.append(task.judge(pick(said), pick(batch.labels[name])))
    if any(triple is None for triple in triples):
        raise UserError(f"policies.{name}: its predictions carry no scores to choose thresholds from")
    return triples


def _train(built: Built, names, source: Source, section: str, believed, directory: str, report) -> dict:
    """Trains on `source` by the named section, then scores the selected weights on the test splits."""
    tasks = {name: built.tasks[name] for name in names}
    settings = built.settings(section)
    model = built.model(names)
    objective = supervised(
        model, tasks, scales=_scales(built, section), policies=believed, normalize=settings["normalize"]
    )
    facts = stages.train(
        directory,
        seed=built.seed,
        model=model,
        tasks=tasks,
        objective=objective,
        balance=setup.build_balance(settings["balance"]),
        source=source,
        encoder=setup.build_encoder(built.config["image"], tasks, settings),
        schedule=built.schedule(section),
        validation=(built.plain, built.splits("validation", names)),
        report=report,
    )
    variables, _ = stages.load_weights(directory, model, built.size)
    for split in built.config["measured_on"]:
        rows = stages.measure(variables, model, tasks, built.plain, built.splits(split, names))
        if devices.is_writer():
            stages.save_rows(os.path.join(directory, f"rows-{split}.npz"), rows)
        facts[split] = summarize(tasks, rows)
    return facts


def _scales(built: Built, section: str) -> dict[str, float]:
    """Factor of each task's loss: given numbers, or MuST's rule from the teachers' batch sizes and learning rates."""
    scales = built.settings(section)["scales"]
    if scales != "learning_rate_rule":
        return {name: scales.get(name, 1.0) for name in built.names}
    mine, theirs = (built.settings(run) for run in (section, "teacher"))
    teacher = (theirs["batch_size"], theirs["optimizer"]["learning_rate"])
    student = (mine["batch_size"], mine["optimizer"]["learning_rate"])
    return learning_rate_rule(student, {name: teacher for name in built.names})


def _top(directory: str, name: str) -> str:
    """The seed's directory, from that of one of its jobs."""
    return directory[: -len(name)].rstrip(os.sep)
