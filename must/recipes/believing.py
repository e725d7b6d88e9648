"""The jobs that decide which labels are believed: thresholds and calibration from held-out truth, without any teacher."""

import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from must.core import devices
from must.core.types import Label, Policy, Source, Teacher, UserError
from must.data.merge import BY_TEACHER, Paired
from must.data.pipeline import Encoder, eval_batches
from must.pseudo_label import policy as policies
from must.pseudo_label.calibrate import gather
from must.pseudo_label.policy_file import read_policies, save_policies
from must.readers.records import Records
from must.recipes import setup
from must.recipes.built import HELD_OUT, Built
from must.recipes.comparison import recipe_of
from must.recipes.labeling import policy_job, records_directory, seed_directory
from must.tasks.base import Task
from must.tasks.states import states

Config = Mapping[str, Any]
Pairs = Iterator[tuple[Label, Label]]
BELIEVED = "policy.json"  # of config.policies; a run with policies of its own has "policy-<run>.json"


def choose_policies(config: Config, seed: int, by: str = "", *, directory: str, report) -> dict:
    """Which labels of the teachers, or of the student `by`, are believed by each run that learns from them."""
    built = recipe_of(config).Built(config, seed)
    top = seed_directory(directory, policy_job(by))
    chosen: dict[str, Any] = {}
    for run in (None, *built.students()):
        settings = built.settings(run) if run else {"labels_from": by, "policies": {}}
        if settings["labels_from"] != by or (run and not settings["policies"]):
            continue
        sections = built.policies(run)
        found = {}
        for name in built.names:
            key = (name, repr(sections[name]))
            if key not in chosen:
                chosen[key] = _policy(built, top, name, sections[name], by)
            found[name] = chosen[key]
        _save(os.path.join(directory, file_of(run)), found, built.tasks)
    return {}


def check_policy(name: str, section: Mapping[str, Any]) -> None:
    """Refuses a section that no policy can be made from, before any label is there."""
    section = dict(section)
    if not section.pop("from_validation", False):
        setup.build_policy(section)
        return
    known = {key for made in (policies.fit, policies.choose) for key in inspect.signature(made).parameters}
    for key in section:
        if key not in known - {"task", "pairs", "claims", "wanted", "curve", "temperature", "seed"}:
            raise UserError(
                f"policies.{name}.{key}: not one of calibration, precision, doubt, least, confidence, fallback, most"
            )


def policies_of(built: Built, directory: str, run: str) -> dict[str, Policy]:
    """What a run of the seed in `directory` believes."""
    settings = built.settings(run)
    file = file_of(run if settings["policies"] else None)
    return read(os.path.join(directory, policy_job(settings["labels_from"]), file), built)


def read(path: str, built: Built) -> dict[str, Policy]:
    """The policies in a file, of the classes that the tasks have."""
    return read_policies(path, {name: task.classes for name, task in built.tasks.items() if hasattr(task, "classes")})


def file_of(run: str | None) -> str:
    """The file of a run's policies in the directory of their job; None: of the configuration's."""
    return f"policy-{run}.json" if run else BELIEVED


def save_live(directory: str, built: Built, teacher: Teacher, name: str) -> None:
    """The policy of a teacher whose answers are in no records: it is asked on the validation split."""
    section = built.config["policies"][name]
    pairs = lambda: _asked(built, teacher, name)  # noqa: E731
    _save(os.path.join(directory, BELIEVED), {name: _fitted(built.tasks[name], name, section, pairs)}, built.tasks)


def _policy(built: Built, top: str, name: str, section: Mapping[str, Any], by: str) -> tuple[Policy, dict]:
    def pairs() -> Pairs:
        records = Records(records_directory(top, HELD_OUT, by), tasks=[name], verify=False)
        for said, truth, _ in recorded(records, built.truth(HELD_OUT)[name], name, built.plain, built.tasks[name]):
            yield said, truth

    return _fitted(built.tasks[name], name, section, pairs)


def _fitted(task: Task, name: str, section: Mapping[str, Any], pairs) -> tuple[Policy, dict]:
    """As configured, or fitted to what the labels say where the truth is known."""
    section = dict(section)
    if not section.pop("from_validation", False):
        return setup.build_policy(section), {}
    found = policies.fit(task, pairs(), **section)
    if found is None:
        raise UserError(f"policies.{name}: its labels carry no scores to choose thresholds from")
    return found


def recorded(
    records: Source, truth: Source, name: str, encoder: Encoder, task: Task
) -> Iterator[tuple[Label, Label, str]]:
    """(what the records say, the truth, id) of every example that is annotated for the task, in network form."""
    both = Paired(truth, records)
    rows = encoder._replace(tasks={name: task, name + BY_TEACHER: task})
    for index, id in enumerate(both.ids):
        row = rows(both[index], index, np.random.default_rng(index))
        if row.weights[name] and row.weights[name + BY_TEACHER]:
            yield row.labels[name + BY_TEACHER], row.labels[name], id


def _asked(built: Built, teacher: Teacher, name: str) -> Pairs:
    encoder = built.plain._replace(tasks={name: built.tasks[name]})
    for batch in eval_batches(built.split(name, "validation"), encoder, batch_size=64):
        said = jax.device_get(teacher.predict(batch.inputs["image"])[name])
        for row in np.flatnonzero(batch.weights[name]):
            pick = lambda tree: {field: np.asarray(value)[row] for field, value in tree.items()}  # noqa: B023, E731
            yield pick(said), pick(batch.labels[name])


def _save(path: str, found: Mapping[str, tuple[Policy, dict]], tasks: Mapping[str, Task]) -> None:
    if devices.is_writer():
        save_policies(path, {name: (policy, facts, tasks[name]) for name, (policy, facts) in found.items()})


def kept_labels(built: Built, directory: str, most: int = 512) -> dict[str, dict[str, tuple[int, int, int]]]:
    """What the policies make of the records: {task: {class: (positive, ignored, negative)}}, over the first `most`.

    Args:
      built: the seed's objects.
      directory: of the seed.
      most: records that are counted.
    """
    believed = read(os.path.join(directory, policy_job(), BELIEVED), built)
    records = Records(records_directory(directory), tasks=list(built.names), verify=False)
    counts = {}
    for name, policy in believed.items():
        encoder = built.plain._replace(tasks={name: built.tasks[name]})
        rows = (encoder(records[i], i, np.random.default_rng(0)) for i in range(min(most, len(records))))
        labels = (row.labels[name] for row in rows if row.weights[name])
        # Judged against itself, a label says what it claims.
        claims = gather(built.tasks[name], ((label, label) for label in labels), temperature=float(policy.temperature))
        if claims is None or not len(claims.score):
            continue
        found = states(policy, claims.score, claims.ids if claims.classes else None)
        state = np.where(found.positive, 0, np.where(found.negative, 2, 1))
        names = claims.classes or (policies.EVERY,)
        tally = np.zeros((len(names), 3), int)
        np.add.at(tally, (claims.ids, state), 1)
        counts[name] = {c: tuple(int(v) for v in row) for c, row in zip(names, tally, strict=True)}
    return counts
