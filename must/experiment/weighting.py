"""Weights of pseudo labels, and SLaM's corrections, from a validation set that the teacher has not seen.

On the validation split the student has a loss on the truth and one on the teacher's label; together they give the
weight of the pseudo labels nearby (`must.pseudo_label.weigh`), task by task, each in the loss that the run trains on.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from must.core import devices
from must.core.notices import notice
from must.core.types import Policy, PyTree, Source, UserError
from must.data.combine import Cached, Repeated, labels_of
from must.data.merge import BY_TEACHER, Paired
from must.data.pipeline import eval_batches
from must.evaluate.evaluate import gather, present
from must.experiment import build
from must.experiment.checks import labels_images
from must.experiment.settings import Must, Slam, Student, Weights
from must.experiment.training import NO_WEIGHTING, Weighting
from must.objectives.labels import loss_step
from must.pseudo_label import weigh

_LEAST = 1e-6  # a weight of 0 would mean that the label is absent
_ALIVE = 0.05  # how far SLaM's accuracy stays above the value at which its gradient dies


class Evidence:
    """The teachers' labels of a run's training images and of the validation split, and the truth where it is known.

    Args:
      settings: of the recipe.
      run: the student's.
      name: of the run, for messages.
      policies: {task: which labels count}.
      source: the training examples, as they are drawn.
      pool: records of pseudo labels, these examples among them.
      held_out: records of pseudo labels of the validation splits.
    """

    def __init__(
        self,
        settings: Must,
        run: Student,
        name: str,
        policies: Mapping[str, Policy],
        source: Source,
        pool: Source,
        held_out: Source,
    ):
        self.settings, self.run, self.name, self.policies = settings, run, name, policies
        self.all_tasks, self.tasks = build.tasks_of(settings), build.tasks_of(settings, run)
        self.model = build.network(settings.model, self.all_tasks, run.model)
        self.plain = build.encoder(settings.image, self.all_tasks)
        self.ids = list(source.ids)
        drawn = set(self.ids)
        self.pool = Cached(Repeated(pool, {id: int(id in drawn) for id in pool.ids}))
        self.oracles = {
            name: Cached(Paired(Repeated(truth, {id: int(id in drawn) for id in truth.ids}), self.pool))
            for name, truth in build.oracle_truth(settings).items()
        }
        self._known_probs: dict[tuple[int, str], np.ndarray] = {}
        splits = build.by_source(build.splits(settings, "validation"))
        self.held_out = [(Cached(Paired(split, held_out)), names) for split, names in splits]
        self.annotated = {name: set(build.split(settings, name, "train").ids) for name in settings.tasks}

    def table(self, name: str, by_id: Mapping[str, Any], otherwise: Any, dtype=np.float32) -> np.ndarray:
        """One number per training example; `otherwise` where it is annotated or nothing is evidence."""
        true = self.annotated[name]
        return np.array([otherwise if id in true else by_id.get(id, otherwise) for id in self.ids], dtype)

    def paired(self, name: str) -> Source:
        """The validation split of a task with the teacher's labels beside the truth."""
        return next(source for source, names in self.held_out if name in names)

    def probs(self, name: str, source: Source, supervision: str = "") -> np.ndarray:
        """Class probabilities of a classification task's labels, [n, C]."""
        key = (id(source), supervision or name)
        if key not in self._known_probs:
            rows = []
            for i, example in enumerate(source.ids):
                label = labels_of(source, i).get(supervision or name)
                if label is None:
                    raise UserError(f"{self.name}: {example} of {source.name} has no label of {supervision or name}")
                rows.append(self.tasks[name].transform(label, None)["probs"])
            self._known_probs[key] = np.stack(rows)
        return self._known_probs[key]


def weighting_of(evidence: Evidence) -> tuple[Weighting, dict[str, np.ndarray]]:
    """How a run's examples are weighted or corrected, and a dict that every estimate fills for the report.

    Raises:
      UserError: (when weights are estimated) more neighbors than examples, a student whose loss is not finite.
    """
    weights, slam = evidence.run.weights, evidence.run.slam
    path, seen = f"config.{evidence.name}", {}
    if slam.enabled:
        slam = dataclasses.replace(slam, tasks=build.tasks_with(slam.tasks, evidence.settings, f"{path}.slam"))
        extras = {name: _slam(evidence, name, slam, seen) for name in slam.tasks}
        return Weighting(extras=extras), seen
    if weights.kind == "none":
        return NO_WEIGHTING, seen
    weights = dataclasses.replace(weights, tasks=build.tasks_with(weights.tasks, evidence.settings, f"{path}.weights"))
    if weights.kind == "confidence":
        fixed = {name: {"confidence": _confidence(evidence, name, seen)} for name in weights.tasks}
        return Weighting(fixed=fixed), seen
    return Weighting(weights.every, functools.partial(_estimated, evidence, weights, seen)), seen


def _estimated(evidence: Evidence, weights: Weights, seen: dict, variables: PyTree) -> dict[str, dict[str, np.ndarray]]:
    """{task: {factor: weights [N]}} of the current student, "estimated" and, when enabled, "confidence".

    Estimated from the validation split; an oracle's from the truth of the pool.
    """
    held_rows, tables, names, oracle = {}, {}, weights.tasks, weights.kind == "oracle"
    known = [(evidence.oracles[name], [name]) for name in names] if oracle else evidence.held_out
    for source, served in known:
        served = [name for name in served if name in names]
        held_rows |= _rows(evidence, served, source, variables, beside=True) if served else {}
    pool_rows = _rows(evidence, names, evidence.pool, variables)
    for name in names:
        true, teacher = _aligned(held_rows[name], held_rows[name + BY_TEACHER])
        pool = pool_rows[name]
        for what, rows in (("the truth", true), ("the teacher's label", teacher), ("the teacher's label", pool)):
            _check_finite(evidence, name, what, rows)
        held = weigh.HeldOut(_covariates(teacher), true["value"], teacher["value"], true["norm"], teacher["norm"])
        source = evidence.oracles[name] if oracle else evidence.paired(name)
        classes = labels_images(evidence.tasks[name])
        correct = _correct(evidence, name, source)[true["id"]] if classes and weights.bounded else None
        try:
            if weights.kind == "plug_in":
                flat = held._replace(true_loss=true["value"][:, 0], teacher_loss=teacher["value"][:, 0])
                right = _correct(evidence, name, source)[true["id"]]
                estimate = weigh.plug_in(flat, right, neighbors=weights.neighbors or None)
            else:
                estimate = weigh.ratio_of_means(held, neighbors=weights.neighbors or None, correct=correct)
        except UserError as error:
            raise UserError(f"{evidence.name}, {name}: {error}") from None
        factors = {"estimated": np.maximum(estimate(_covariates(pool)), _LEAST)}
        if weights.confident:
            confidence = np.maximum(weigh.confidence(evidence.probs(name, evidence.pool)), _LEAST)
            factors["confidence"] = confidence[pool["id"]]
        tables[name] = {
            key: evidence.table(name, _by_id(evidence.pool, pool, values), 1.0) for key, values in factors.items()
        }
        _note(evidence, seen, name, pool, np.prod(list(factors.values()), 0))
        seen[f"{name}|held_out"] = _covariates(teacher)
    return tables


def weights_to_show(evidence: Evidence, scheme: Weighting, seen: dict, variables: PyTree) -> dict[str, np.ndarray]:
    """What a report draws of a trained student's weights: {"<task>|<what>": array}, see `must.report.weights_section`.

    Where the truth of examples of the pool is known, "true_weights" is what it gives the same student there, else NaN.
    """
    scheme.estimate(variables)  # fills `seen`
    weights, known = evidence.run.weights, {}
    if weights.kind not in ("ratio_of_means", "plug_in"):
        return seen
    for name in build.tasks_with(weights.tasks, evidence.settings, ""):
        if not len(truth := evidence.oracles.get(name, ())):
            continue
        nearest = min(weights.neighbors, len(truth))
        oracle, found = dataclasses.replace(weights, kind="oracle", tasks=(name,), neighbors=nearest), {}
        try:
            _estimated(evidence, oracle, found, variables)
        except UserError as error:  # a finished student is worth more than a figure
            notice(f"{evidence.name}, {name}: the report lacks weights from the truth: {error}")
            continue
        told = np.isin(np.array(evidence.pool.ids)[found[f"{name}|places"]], truth.ids)
        known[f"{name}|true_weights"] = np.where(told, found[f"{name}|weights"], np.nan)
    return seen | known


def _slam(evidence: Evidence, name: str, slam: Slam, seen: dict) -> dict[str, np.ndarray]:
    """Extras of one task: accuracy a(x) and number of candidates k(x); 1 and 1 for ground truth."""
    paired, classes = evidence.paired(name), len(evidence.tasks[name].classes)
    truth = evidence.probs(name, paired).argmax(-1)
    probs = evidence.probs(name, paired, name + BY_TEACHER)
    margins, pool = weigh.margin(probs), weigh.margin(evidence.probs(name, evidence.pool))
    rank = np.argmax(np.argsort(-probs, axis=-1, kind="stable") == truth[:, None], -1)
    count = weigh.candidates(margins, rank, target_precision=slam.target_precision, max_count=classes)(pool)
    found = weigh.isotonic_accuracy(margins, rank == 0, floor=0.0)(pool)
    dead = 1.0 / count if slam.normalize else 0.5  # where no gradient is left; below it the student would turn away
    accuracy = np.maximum(found, np.maximum(slam.floor, dead + _ALIVE)).astype(np.float32)
    by_accuracy, by_count = (dict(zip(evidence.pool.ids, values, strict=True)) for values in (accuracy, count))
    seen |= {f"{name}|margin": pool, f"{name}|accuracy": found, f"{name}|candidates": count}
    seen[f"{name}|floored"] = np.mean(accuracy > found)
    if name in evidence.oracles:
        right = dict(zip(evidence.oracles[name].ids, _correct(evidence, name, evidence.oracles[name]), strict=True))
        seen[f"{name}|correct"] = np.array([right.get(id, np.nan) for id in evidence.pool.ids], np.float32)
    return {
        "accuracy": evidence.table(name, by_accuracy, 1.0),
        "candidates": evidence.table(name, by_count, 1, np.int32),
    }


def _confidence(evidence: Evidence, name: str, seen: dict) -> np.ndarray:
    values = np.maximum(weigh.confidence(evidence.probs(name, evidence.pool)), _LEAST)
    seen[f"{name}|weights"] = values
    return evidence.table(name, dict(zip(evidence.pool.ids, values, strict=True)), 1.0)


def _rows(evidence: Evidence, names, source: Source, variables: PyTree, *, beside: bool = False):
    """What the student loses on the labels of a source; `beside` with the teacher's next to the truth."""
    names = tuple(names)
    tasks = {name: evidence.tasks[name] for name in names}
    if beside:
        tasks |= {name + BY_TEACHER: evidence.tasks[name] for name in names}
    encoder = evidence.plain._replace(tasks=tasks)
    policies = tuple((name, tuple(map(_hashable, evidence.policies[name]))) for name in names)
    step = _compiled(evidence.model, tuple((name, evidence.tasks[name]) for name in names), policies)
    batches = eval_batches(source, encoder, batch_size=64)
    return gather(functools.partial(step, variables), batches, present)


@functools.lru_cache(maxsize=32)
def _compiled(model, tasks, believed):
    policies = {
        name: Policy(*(np.frombuffer(data, np.float32).reshape(shape) for shape, data in fields))
        for name, fields in believed
    }
    step = functools.partial(loss_step, model=model, tasks=dict(tasks), policies=policies)
    return devices.parallelize(step, out_axes=0, devices=jax.local_devices())


def _hashable(bound) -> Any:
    array = np.asarray(bound, np.float32)
    return array.shape, array.tobytes()


def _aligned(true, teacher):
    """The rows of examples that both have."""
    both = np.intersect1d(true["id"], teacher["id"])
    return tuple({key: value[np.isin(rows["id"], both)] for key, value in rows.items()} for rows in (true, teacher))


def _covariates(rows) -> np.ndarray:
    """[n, D]: how sure the teacher and the student are; of labels without scores, how far the two are apart."""
    found = np.concatenate([rows["label"], rows["prediction"]], -1)
    apart = (rows["value"] / np.maximum(rows["norm"], 1.0)).sum(-1, keepdims=True)
    return found if found.shape[-1] else np.log(apart + _LEAST)


def _check_finite(evidence: Evidence, name: str, what: str, rows) -> None:
    bad = np.flatnonzero(~np.isfinite(rows["value"]).all(-1))
    if len(bad):
        raise UserError(f"{evidence.name}, {name}: the student's loss on {what} of {len(bad)} examples is not finite")


def _by_id(source: Source, rows, values) -> dict[str, float]:
    return {source.ids[int(i)]: value for i, value in zip(rows["id"], values, strict=True)}


def _note(evidence: Evidence, seen: dict, name: str, rows, weights) -> None:
    """What a report draws: the pseudo labels, not the images whose truth is learned from."""
    pseudo = np.array([evidence.pool.ids[int(i)] not in evidence.annotated[name] for i in rows["id"]], bool)
    seen |= {f"{name}|covariates": _covariates(rows)[pseudo], f"{name}|weights": weights[pseudo]}
    seen[f"{name}|places"] = rows["id"][pseudo]


def _correct(evidence: Evidence, name: str, paired: Source) -> np.ndarray:
    """Whether the teacher's class is the true one, bool [n]."""
    return evidence.probs(name, paired).argmax(-1) == evidence.probs(name, paired, name + BY_TEACHER).argmax(-1)
