"""The jobs in which teachers label: the pass over all images, which labels are believed, what the records hold."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from must.core import devices
from must.core.types import Policy, Teacher, UserError
from must.data.merge import Overlay
from must.data.pipeline import eval_batches
from must.data.records import Records
from must.pseudo_label import policy as policies
from must.pseudo_label import teacher as teachers
from must.pseudo_label.write import label_images
from must.recipes import setup, stages
from must.recipes.built import Built
from must.recipes.measuring import by_source

Config = Mapping[str, Any]


def label(config: Config, seed: int, index: int, count: int, *, directory: str, report) -> dict:
    """The labelling pass, or one worker's part of it: every teacher on every image."""
    built = Built(config, seed)
    top = seed_directory(directory, os.path.join("label", str(index)))
    if jax.process_count() > 1:
        index, count = jax.process_index(), jax.process_count()
    section = dict(built.config["label"])
    mirror = section.pop("mirror")
    found = load_teachers(built, os.path.join(top, "teachers"), mirror)
    wanted = {"pool": built.everything()}
    if built.weighs():  # what teachers say where the truth is known tells how far they can be believed elsewhere
        first, *others = (split for split, _ in by_source(built.splits("validation")))
        wanted["held_out"] = Overlay(first, others) if others else first
    for name, source in wanted.items():
        label_images(
            records_directory(top, name),
            name,
            source,
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
    found = load_teachers(built, os.path.join(seed_directory(directory, "policy"), "teachers"), built.config["label"]["mirror"])
    chosen = {}
    for name in built.names:
        chosen[name] = policy_of(built, found[name], name)
    write_policies(directory, chosen)
    return {}


def policy_of(built: Built, teacher: Teacher, name: str) -> Policy:
    """Which labels of a teacher are believed: as configured, or thresholds per class from the validation split."""
    section = dict(built.config["policies"][name])
    if section.pop("from_validation", False):
        found = policies.fit(built.tasks[name], _pairs(built, teacher, name), **section)
        if found is None:
            raise UserError(f"policies.{name}: its predictions carry no scores to choose thresholds from")
        return found[0]
    return setup.build_policy(section)


def load_teacher(built: Built, directory: str, name: str, *, mirror: bool = False) -> Teacher:
    """The trained teacher of a task."""
    model = built.model((name,), "teacher")
    variables, _ = stages.load_weights(directory, model, built.inputs)
    return teachers.from_model(
        name,
        model,
        jax.device_put(variables),
        {name: built.tasks[name]},
        size=built.size,
        fingerprint=stages.weights_fingerprint(variables),
        mirror=mirror,
    )


def load_teachers(built: Built, directory: str, mirror: bool) -> dict[str, Teacher]:
    """The trained teachers by task."""
    return {name: load_teacher(built, os.path.join(directory, name), name, mirror=mirror) for name in built.names}


def kept_labels(built: Built, directory: str, most: int = 512) -> dict[str, dict[str, tuple[int, int, int]]]:
    """What the policies make of the records: {task: {class: (positive, ignored, negative)}}, over the first `most`.

    Args:
      built: the seed's objects.
      directory: of the seed.
      most: records that are counted.
    """
    believed = read_policies(os.path.join(directory, "policy"))
    records = Records(records_directory(directory), tasks=list(built.names), verify=False)
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


def records_directory(directory: str, name: str = "pool") -> str:
    """Where a seed's records lie: "pool", what the student learns from, or "held_out", the validation splits."""
    return os.path.join(directory, "pseudo_labels", name, "1.0.0")


def seed_directory(directory: str, job: str) -> str:
    """The seed's directory, from that of one of its jobs and the job's name below it."""
    return directory[: -len(job)].rstrip(os.sep)


def write_policies(directory: str, chosen: Mapping[str, Policy]) -> None:
    """Thresholds as a small readable file, policy.json."""
    if devices.is_writer():
        with open(os.path.join(directory, "policy.json"), "w") as file:
            json.dump({name: [np.asarray(t).tolist() for t in pair] for name, pair in chosen.items()}, file, indent=1)


def read_policies(directory: str) -> dict[str, Policy]:
    """What `write_policies` left in a directory."""
    with open(os.path.join(directory, "policy.json")) as file:
        return {name: Policy(*(np.float32(t) for t in pair)) for name, pair in json.load(file).items()}


def _pairs(built: Built, teacher: Teacher, name: str):
    """What the teacher says on the validation split, and what is so, one example at a time."""
    encoder = built.plain._replace(tasks={name: built.tasks[name]})
    for batch in eval_batches(built.split(name, "validation"), encoder, batch_size=64):
        said = jax.device_get(teacher.predict(batch.inputs["image"])[name])
        for row in np.flatnonzero(batch.weights[name]):
            pick = lambda tree: {field: np.asarray(value)[row] for field, value in tree.items()}  # noqa: B023, E731
            yield pick(said), pick(batch.labels[name])
