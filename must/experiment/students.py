"""Jobs in which teachers, baselines and students of pseudo labels train."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from must.core import devices, files
from must.core.types import Policy, PyTree, Source, UserError
from must.data.combine import Cached, Repeated, Subset
from must.data.edited import EditedCoco
from must.data.merge import Concat, Overlay
from must.data.weights import read_weights
from must.experiment import acceptance, build, checks, jobs, labeling, measure, networks, weighting
from must.experiment.external import external_teachers
from must.experiment.loss_scales import with_gradient_scales
from must.experiment.settings import Must, Run, Student
from must.experiment.training import NO_WEIGHTING, train_tasks
from must.objectives.labels import PSEUDO


def train_single(settings: Must, seed: int, task: str, run: Run, *, directory: str, report) -> dict:
    """The job of a teacher or a scratch baseline: one task on its annotated set."""
    source = build.split(settings, task, "train")
    return train_tasks(settings, seed, (task,), run, source, {task: Policy()}, directory=directory, report=report)


def measure_external(settings: Must, seed: int, task: str, *, directory: str, report) -> dict:
    """The job of an external teacher: its scores, at its own input size."""
    tasks = {task: build.tasks_of(settings)[task]}
    teacher = external_teachers(settings, tasks)[task]
    encoder, facts = build.encoder(settings.image, tasks)._replace(size=tuple(teacher.size)), {}
    for split in settings.eval_splits:
        splits = build.splits(settings, split, (task,))
        rows = measure.measure_predictions(lambda inputs: teacher.predict(inputs["image"]), tasks, encoder, splits)
        facts[split] = measure.keep_rows(directory, split, tasks, rows)
    return facts


def train_supervised(settings: Must, seed: int, *, directory: str, report) -> dict:
    """The job of the supervised baseline: all tasks, all annotations, no pseudo labels, the student's steps."""
    tasks, source = tuple(settings.tasks), supervised_source(settings)
    policies, top = {name: Policy() for name in tasks}, labeling.seed_directory(directory, "baselines/supervised")
    run = with_gradient_scales(settings, settings.supervised, top)
    return train_tasks(settings, seed, tasks, run, source, policies, directory=directory, report=report)


def train_student(settings: Must, seed: int, arm: str, *, directory: str, report) -> dict:
    """The job of the student or an arm: ground truth where an image has it, else a pseudo label."""
    top, names = labeling.seed_directory(directory, labeling.student_job(arm)), list(settings.tasks)
    run = with_gradient_scales(settings, build.student(settings, arm), top)
    policies = labeling.policies_of(settings, top, arm)
    records = labeling.records_of(settings, top, names, by=run.labels_from, verify=True)
    source = student_source(settings, run, records)
    scheme, to_show = NO_WEIGHTING, None
    if run.weights.kind != "none" or run.slam.enabled:
        held_out = labeling.records_of(settings, top, names, labeling.HELD_OUT, run.labels_from, verify=True)
        evidence = weighting.Evidence(settings, run, arm, policies, source, records, held_out)
        scheme, seen = weighting.weighting_of(evidence)
        to_show = functools.partial(weighting.weights_to_show, evidence, scheme, seen)
    given = given_weights(settings, run, source.ids, records, familiar_sets(settings, top, run))
    fixed = {name: {**given[name], **scheme.fixed.get(name, {})} for name in names}
    scheme = scheme._replace(fixed={name: factors for name, factors in fixed.items() if factors})
    if run.mean_teacher.kind != "none" or run.small_loss.drop:
        marks = _pseudo(settings, run, source.ids)
        extras = {name: {**scheme.extras.get(name, {}), **marks[name]} for name in names}
        scheme = scheme._replace(extras=extras)
    facts = train_tasks(
        settings, seed, tuple(names), run, source, policies, directory=directory, report=report, weighting=scheme
    )
    if to_show:
        _keep_weights(directory, to_show)
    return facts | {"images": len(set(source.ids))}


def _keep_weights(directory: str, to_show: Callable[[PyTree], Mapping[str, np.ndarray]]) -> None:
    """Writes weights.npz, what the page shows of the weights of the trained student."""
    seen = to_show(networks.load(directory).variables)
    if devices.is_writer():
        with files.replacing(os.path.join(directory, "weights.npz"), "wb") as file:
            np.savez_compressed(file, **seen)


def supervised_source(settings: Must) -> Source:
    """What the supervised baseline draws from: the annotated sets, in the proportions in which the student does."""
    source = Concat(build.annotated_sets(settings))
    return Repeated(Cached(source), _as_teachers(settings, 0.0)) if settings.student.pool_share else source


def student_source(settings: Must, run: Student, records: Source) -> Source:
    """What a student draws from: ground truth before pseudo labels, as often as its settings ask."""
    annotated = build.annotated_sets(settings)
    if not run.pseudo_labels:
        return Concat(annotated)
    counted = {id: run.repeat_labeled for part in annotated for id in part.ids}
    times = _as_teachers(settings, run.pool_share) if run.pool_share else counted
    if run.pool_images:
        pool = Concat(build.pool(settings))
        part = set(Subset(pool, count=run.pool_images).ids)
        times |= {id: len(pool) // len(part) if id in part else 0 for id in pool.ids}
    edits = [EditedCoco(path, records, task=task) for task, path in run.edited.items()]
    records = Overlay(records, edits) if edits else records
    truth = [*annotated, *build.oracle_truth(settings).values()] if run.oracle_labels else annotated
    return Repeated(Cached(Overlay(records, truth)), times)


def _as_teachers(settings: Must, pool_share: float) -> dict[str, int]:
    """How often each image appears: of every annotated set in proportion to the images that its teacher draws, of the
    pool its share; rounded to a quarter of what the rarest image has, or to all of it where there are many."""
    sets = {name: build.set_split(settings, name, "train") for name in settings.train_sets.values()}
    drawn: dict[str, list[int]] = {name: [] for name in sets}
    for task, name in settings.train_sets.items():
        if task in settings.tasks and task not in settings.external_teachers:
            run = build.teacher(settings, task)
            drawn[name].append(run.steps * run.batch_size or run.epochs * len(sets[name]))
    trained = [max(counts) for counts in drawn.values() if counts]
    usual = sum(trained) / len(trained) if trained else 1.0  # of a set whose teachers are external
    images = {name: max(counts, default=usual) for name, counts in drawn.items()}
    pool = [id for source in build.pool(settings) for id in source.ids]
    share = pool_share if pool else 0.0
    each = {id: share / len(pool) for id in pool}
    for name, part in sets.items():
        for id in part.ids:
            each[id] = each.get(id, 0.0) + (1 - share) * images[name] / sum(images.values()) / len(part)
    rarest = min(value for value in each.values() if value)
    unit = rarest / 4 if len(each) < 65536 else rarest
    return {id: round(value / unit) for id, value in each.items()}


def familiar_sets(settings: Must, top: str, run: Student) -> dict[str, set[str]]:
    """{task: sets on whose pictures its pseudo labels are used}, of the tasks that do not use them on all.

    Raises:
      UserError: a set that does not exist, or labels without the scores that tell which sets are familiar.
    """
    policies = build.policies(settings, run)
    if not any(section.sets or section.familiar for section in policies.values()):
        return {}
    names = checks.check_policy_sets(settings, policies)
    chosen: dict[str, set[str]] = {}
    for task, section in policies.items():
        kept = set(section.sets) or names
        if section.familiar:
            seen = jobs.facts(top, labeling.policy_job(run.labels_from)).get("sets", {}).get(task, {})
            if acceptance.OWN not in seen:
                raise UserError(f"config.policies.{task}.familiar: its labels have no scores")
            least = section.familiar * seen[acceptance.OWN]["confidence"]
            kept = {name for name in kept if name not in seen or seen[name]["confidence"] >= least}
        if kept < names:
            chosen[task] = kept
    return chosen


def given_weights(
    settings: Must, run: Student, ids: Sequence[str], records: Source, familiar: Mapping[str, set[str]] = {}
) -> dict[str, dict[str, np.ndarray]]:
    """Factors of the training examples' weights that the settings give: {task: {"file", "truth", "set": float32 [N]}}.

    "set" is 0 for pseudo labels on pictures of sets that the task's policy leaves out.

    Raises:
      UserError: the file of weights names an image that is neither drawn nor in the records, or a task that is not
        trained.
    """
    factors: dict[str, dict[str, np.ndarray]] = {name: {} for name in settings.tasks}
    if run.weights_file:
        known = {*ids, *records.ids}
        for name, by_id in read_weights(run.weights_file).items():
            if name not in factors:
                raise UserError(
                    f"{run.weights_file}: has weights for {name}, but the trained tasks are {', '.join(factors)}"
                )
            if foreign := next((id for id in by_id if id not in known), None):
                raise UserError(f"{run.weights_file}: {foreign!r}, which has a weight for {name}, is not an example")
            factors[name]["file"] = np.array([by_id.get(id, 1.0) for id in ids], np.float32)
    if run.truth_weight != 1 and run.pseudo_labels:
        for name in factors:
            true = set(build.split(settings, name, "train").ids)
            factors[name]["truth"] = np.array([run.truth_weight if id in true else 1.0 for id in ids], np.float32)
    for name, sets in familiar.items():
        true = set(build.split(settings, name, "train").ids)
        used = [id in true or id.partition("/")[0] in sets for id in ids]
        factors[name]["set"] = np.array(used, np.float32)
    return factors


def _pseudo(settings: Must, run: Student, ids: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Extras of the training examples: whether the label of a task is a pseudo label."""
    oracle = build.oracle_truth(settings) if run.oracle_labels else {}
    marks = {}
    for name in settings.tasks:
        true = {*build.split(settings, name, "train").ids, *(oracle[name].ids if name in oracle else ())}
        marks[name] = {PSEUDO: np.array([id not in true for id in ids], np.float32)}
    return marks


def runs_of(settings: Must) -> list[tuple[str, Run, tuple[str, ...]]]:
    """The kinds of training runs of a seed: (name, how it trains, tasks of its network)."""
    every = tuple(settings.tasks)
    trained = [name for name in every if name not in settings.external_teachers]
    runs = [("teacher", build.teacher(settings, name), (name,)) for name in trained]
    runs += [(arm, build.student(settings, arm), every) for arm in build.students(settings)]
    runs += [("supervised", settings.supervised, every)] if "supervised" in settings.baselines else []
    own = [name for name in every if not build.is_own_baseline(settings, name)]
    return runs + ([("scratch", settings.scratch, (name,)) for name in own] if "scratch" in settings.baselines else [])
