"""A student's "weights" and "slam" sections -> numbers per pseudo label, from a validation set that its teacher has not seen.

The truth of the validation split meets what the teacher says there (`Paired`); what the student loses on both gives the
weight of pseudo labels nearby (`must.pseudo_label.weigh`), task by task, each in the loss that the run itself trains on.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from must.core import devices
from must.core.types import Policy, PyTree, Source, UserError
from must.data.combine import Cached, Repeated, labels_of
from must.data.merge import BY_TEACHER, Paired
from must.data.pipeline import eval_batches
from must.evaluate.evaluate import evaluate
from must.objectives.supervised import loss_step
from must.pseudo_label import weigh
from must.recipes.built import Built, Slam, Weights
from must.recipes.measuring import by_source
from must.recipes.stages import NO_WEIGHTS, Weigher
from must.tasks.classification import Classification

_LEAST = 1e-6  # a weight of 0 would mean that the label is absent
_ALIVE = 0.05  # how far SLaM's accuracy stays above the value at which its gradient dies


class Said:
    """What teachers said of a run's training images and of the validation split, and where the truth is.

    Args:
      built: objects of the seed.
      run: the section of the configuration.
      policies: which labels the run believes.
      source: the training examples, as they are drawn.
      pool: records of pseudo labels, these examples among them.
      held_out: records of pseudo labels of the validation splits.
    """

    def __init__(
        self, built: Built, run: str, policies: Mapping[str, Policy], source: Source, pool: Source, held_out: Source
    ):
        self.built, self.run, self.policies = built, run, policies
        self.tasks = built.tasks_of(run)
        self.ids = list(source.ids)
        met = set(self.ids)
        self.pool = Cached(Repeated(pool, {id: int(id in met) for id in pool.ids}))
        self.oracles = {
            name: Cached(Paired(Repeated(truth, {id: int(id in met) for id in truth.ids}), self.pool))
            for name, truth in built.hidden().items()
        }
        self._known_probs: dict[tuple[int, str], np.ndarray] = {}
        splits = by_source(built.splits("validation"))
        self.held_out = [(Cached(Paired(split, held_out)), names) for split, names in splits]
        self.annotated = {name: set(built.split(name, "train").ids) for name in built.names}

    def table(self, name: str, by_id: Mapping[str, Any], otherwise: Any, dtype=np.float32) -> np.ndarray:
        """One number per training example; `otherwise` where it is annotated or nothing is said."""
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
                    raise UserError(f"{self.run}: {example} of {source.name} has no label of {supervision or name}")
                rows.append(self.tasks[name].transform(label, None)["probs"])
            self._known_probs[key] = np.stack(rows)
        return self._known_probs[key]


def weigher(said: Said) -> tuple[Weigher, dict[str, np.ndarray]]:
    """The weigher of a run by its `Weights` or `Slam`, and a dict that it fills with what a report draws of its last call.

    Raises:
      UserError: (when asked for weights) more neighbors than examples, a student whose loss is not finite.
    """
    weights, slam = said.built.weights(said.run), said.built.slam(said.run)
    seen: dict[str, np.ndarray] = {}
    if slam is not None:
        extras = {name: _slam(said, name, slam, seen) for name in slam.tasks}
        return Weigher(0, lambda variables: {}, extras), seen
    if weights is None:
        return NO_WEIGHTS, seen
    if weights.kind == "confidence":
        fixed = {name: _confidence(said, name, seen) for name in weights.tasks}
        return Weigher(0, lambda variables: fixed), seen
    return Weigher(weights.every, functools.partial(_estimated, said, weights, seen)), seen


def _estimated(said: Said, weights: Weights, seen: dict, variables: PyTree) -> dict[str, np.ndarray]:
    """{task: weights [N]} of the current student from the validation split, an oracle's from the truth of the pool."""
    held_rows, tables, names, oracle = {}, {}, weights.tasks, weights.kind == "oracle"
    known = [(said.oracles[name], [name]) for name in names] if oracle else said.held_out
    for source, served in known:
        served = [name for name in served if name in names]
        held_rows |= _rows(said, served, source, variables, beside=True) if served else {}
    pool_rows = _rows(said, names, said.pool, variables)
    for name in names:
        true, teacher = _aligned(held_rows[name], held_rows[name + BY_TEACHER])
        pool = pool_rows[name]
        for what, rows in (("the truth", true), ("the teacher's label", teacher), ("the teacher's label", pool)):
            _check_finite(said, name, what, rows)
        held = weigh.HeldOut(_covariates(teacher), true["value"], teacher["value"], true["norm"], teacher["norm"])
        source = said.oracles[name] if oracle else said.paired(name)
        classes = isinstance(said.tasks[name], Classification)
        correct = _correct(said, name, source)[true["id"]] if classes and weights.bounded else None
        try:
            if weights.kind == "plug_in":
                flat = held._replace(true_loss=true["value"][:, 0], teacher_loss=teacher["value"][:, 0])
                right = _correct(said, name, source)[true["id"]]
                estimate = weigh.plug_in(flat, right, neighbors=weights.neighbors or None)
            else:
                estimate = weigh.ratio_of_means(held, neighbors=weights.neighbors or None, correct=correct)
        except UserError as error:
            raise UserError(f"{said.run}, {name}: {error}") from None
        found = np.maximum(estimate(_covariates(pool)), _LEAST)
        if weights.confident:
            found = found * np.maximum(weigh.confidence(said.probs(name, said.pool)), _LEAST)[pool["id"]]
        tables[name] = said.table(name, _by_id(said.pool, pool, found), 1.0)
        _note(said, seen, name, pool, found)
        seen[f"{name}|held_out"] = _covariates(teacher)
    return tables


def _slam(said: Said, name: str, slam: Slam, seen: dict) -> dict[str, np.ndarray]:
    """Extras of one task: accuracy a(x) and number of candidates k(x); 1 and 1 for ground truth."""
    paired, classes = said.paired(name), len(said.tasks[name].classes)
    truth = said.probs(name, paired).argmax(-1)
    probs = said.probs(name, paired, name + BY_TEACHER)
    margins, pool = weigh.margin(probs), weigh.margin(said.probs(name, said.pool))
    rank = np.argmax(np.argsort(-probs, axis=-1, kind="stable") == truth[:, None], -1)
    count = weigh.candidates(margins, rank, wanted=slam.wanted, most=classes)(pool)
    found = weigh.isotonic_accuracy(margins, rank == 0, floor=0.0)(pool)
    dead = 1.0 / count if slam.normalize else 0.5  # where no gradient is left; below it the student would turn away
    accuracy = np.maximum(found, np.maximum(slam.floor, dead + _ALIVE)).astype(np.float32)
    by_accuracy, by_count = (dict(zip(said.pool.ids, values, strict=True)) for values in (accuracy, count))
    seen |= {f"{name}|margin": pool, f"{name}|accuracy": found, f"{name}|candidates": count}
    seen[f"{name}|floored"] = np.mean(accuracy > found)
    if name in said.oracles:
        right = dict(zip(said.oracles[name].ids, _correct(said, name, said.oracles[name]), strict=True))
        seen[f"{name}|correct"] = np.array([right.get(id, np.nan) for id in said.pool.ids], np.float32)
    return {"accuracy": said.table(name, by_accuracy, 1.0), "candidates": said.table(name, by_count, 1, np.int32)}


def _confidence(said: Said, name: str, seen: dict) -> np.ndarray:
    values = np.maximum(weigh.confidence(said.probs(name, said.pool)), _LEAST)
    seen[f"{name}|weights"] = values
    return said.table(name, dict(zip(said.pool.ids, values, strict=True)), 1.0)


def _rows(said: Said, names, source: Source, variables: PyTree, *, beside: bool = False):
    """What the student loses on the labels of a source; `beside` with the teacher's next to the truth."""
    names = tuple(names)
    tasks = {name: said.tasks[name] for name in names}
    if beside:
        tasks |= {name + BY_TEACHER: said.tasks[name] for name in names}
    encoder = said.built.plain._replace(tasks=tasks)
    model = said.built.model(said.built.names, said.run)
    believed = tuple((name, tuple(map(_hashable, said.policies[name]))) for name in names)
    step = _compiled(model, tuple((name, said.tasks[name]) for name in names), believed)
    return evaluate(step, variables, eval_batches(source, encoder, batch_size=64))


@functools.lru_cache(maxsize=32)
def _compiled(model, tasks, believed):
    policies = {
        name: Policy(*(np.frombuffer(data, np.float32).reshape(shape) for shape, data in fields))
        for name, fields in believed
    }
    return devices.parallelize(
        functools.partial(loss_step, model=model, tasks=dict(tasks), policies=policies), out_axes=0
    )


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


def _check_finite(said: Said, name: str, what: str, rows) -> None:
    bad = np.flatnonzero(~np.isfinite(rows["value"]).all(-1))
    if len(bad):
        raise UserError(f"{said.run}, {name}: the student's loss on {what} of {len(bad)} examples is not finite")


def _by_id(source: Source, rows, values) -> dict[str, float]:
    return {source.ids[int(i)]: value for i, value in zip(rows["id"], values, strict=True)}


def _note(said: Said, seen: dict, name: str, rows, weights) -> None:
    """What a report draws: the pseudo labels, not the images whose truth is learned from."""
    pseudo = np.array([said.pool.ids[int(i)] not in said.annotated[name] for i in rows["id"]], bool)
    seen |= {f"{name}|covariates": _covariates(rows)[pseudo], f"{name}|weights": weights[pseudo]}


def _correct(said: Said, name: str, paired: Source) -> np.ndarray:
    """Whether the teacher's class is the true one, bool [n]."""
    return said.probs(name, paired).argmax(-1) == said.probs(name, paired, name + BY_TEACHER).argmax(-1)
