"""Transfer: networks that start from one another's weights and learn downstream tasks, end to end, as a probe or not
at all (nearest neighbors)."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from must.core import devices
from must.core.types import Array, Policy, PyTree, Source, UserError
from must.data.combine import Subset, labels_of
from must.data.merge import Concat
from must.data.pipeline import TwoViews, eval_batches
from must.experiment import build, initial, jobs, measure, networks, sections
from must.experiment.checks import labels_images
from must.experiment.selection import Validation
from must.experiment.settings import Init, Network, Run, Supervised
from must.experiment.training import Training, start, train, train_tasks
from must.objectives.simclr import simclr

FINETUNE, PROBE, KNN = "finetune", "probe", "knn"
SELF_SUPERVISED = "self_supervised"  # job, and directory of its network
_ROWS = 64  # pictures whose features are computed at once


@dataclass(frozen=True)
class Start:
    """Weights that networks start from, compared with others.

    Attributes:
      init: the weights; none: random numbers.
      tasks: {task: weights}, in place of `init.weights` for these tasks, such as the teacher of each.
      self_supervised: the network that the section `self_supervised` trains, in place of `init`.
      control: it is expected to lose.
      description: a few words for tables.
    """

    init: Init = Init()
    tasks: Mapping[str, str] = field(default_factory=dict)
    self_supervised: bool = False
    control: bool = False
    description: str = ""

    def __post_init__(self):
        if self.self_supervised and (self.init.weights or self.tasks):
            raise ValueError("self_supervised: has weights of its own; leave out init.weights and tasks")


@dataclass(frozen=True)
class Nearest:
    """Classification by the nearest neighbors of frozen features (Wu et al. 2018, section 3.4).

    Attributes:
      neighbors: k, of the annotated training images.
      temperature: a neighbor of cosine s counts exp(s / temperature).
    """

    neighbors: int = 20
    temperature: float = 0.07

    def __post_init__(self):
        if self.neighbors < 1 or self.temperature <= 0:
            raise ValueError(f"neighbors={self.neighbors}, temperature={self.temperature}: must be positive")


@dataclass(frozen=True)
class SimClr:
    """The loss of self-supervised pretraining, see `must.objectives.simclr`.

    Attributes:
      temperature: of the softmax.
      width: of the projection.
    """

    temperature: float = 0.1
    width: int = 128


@dataclass(frozen=True)
class Transfer(Supervised):
    """What weights are worth on downstream tasks.

    Attributes:
      upstream: replaces "{upstream}" in paths, a workdir with networks to start from.
      starts: {name: weights to start from}.
      subject: the start that is compared with every other one.
      protocols: of "finetune" (everything learns), "probe" (neck and head on a frozen backbone) and "knn" (nearest
        neighbors; classification only).
      labels: shares of the annotated training images that are used, each in columns of its own.
      learning_rates: of which the validation split chooses one per network; empty: that of the optimizer.
      finetune: how networks train end to end.
      probe: how neck and heads train; its `model` has to freeze the backbone.
      knn: nearest neighbors.
      self_supervised: how a network is pretrained by SimCLR, where a start asks for it.
      simclr: its loss.
      pool: {name: {"kind", arguments}}, images that self-supervised pretraining reads beside the annotated ones.
    """

    upstream: str = ""
    starts: Mapping[str, Start] = field(default_factory=dict)
    subject: str = ""
    protocols: tuple[Literal["finetune", "probe", "knn"], ...] = (FINETUNE,)
    labels: tuple[float, ...] = (1.0,)
    learning_rates: tuple[float, ...] = ()
    finetune: Run = Run()
    probe: Run = Run()
    knn: Nearest = Nearest()
    self_supervised: Run = Run()
    simclr: SimClr = SimClr()
    pool: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if not self.starts or not self.protocols:
            raise ValueError(f"{'protocols' if self.starts else 'starts'}: at least one")
        if self.subject not in self.starts:
            raise ValueError(f"subject={self.subject!r}: not one of the starts {', '.join(self.starts)}")
        for name, one in self.starts.items():
            for task in one.tasks:
                if task not in self.tasks:
                    raise ValueError(f"starts.{name}.tasks.{task}: no such task; tasks: {', '.join(self.tasks)}")
        if not self.labels or not all(0 < share <= 1 for share in self.labels):
            raise ValueError(f"labels={self.labels}: shares above 0, 1 at most")
        if not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates={self.learning_rates}: must be positive")


def pretrains(settings: Transfer) -> bool:
    """Whether a start asks for self-supervised pretraining."""
    return any(one.self_supervised for one in settings.starts.values())


def images(settings: Transfer) -> Source:
    """The annotated training images and the pool."""
    return Concat([*build.annotated_sets(settings), *(build.source(section) for section in settings.pool.values())])


def annotated(settings: Transfer, task: str, share: float, seed: int) -> Source:
    """The share of a task's annotated training images that are used; larger shares contain smaller ones."""
    source = build.split(settings, task, "train")
    return source if share == 1 else Subset(source, fraction=share, seed=seed)


def init_of(settings: Transfer, name: str, task: str, pretrained: str) -> Init:
    """The weights that a start gives the network of a task.

    Args:
      settings: of the recipe.
      name: of the start.
      task: downstream.
      pretrained: directory of the self-supervised network.
    """
    one = settings.starts[name]
    if one.self_supervised:  # its network has neither neck nor heads
        return Init(pretrained, ("neck", "heads_", *one.init.partial))
    return dataclasses.replace(one.init, weights=one.tasks.get(task, one.init.weights))


def run_of(settings: Transfer, protocol: str, rate: float | None) -> Run:
    """How a network of a protocol trains, at one of the learning rates."""
    run: Run = getattr(settings, protocol)
    change = {} if rate is None else {"optimizer": {"learning_rate": rate}}
    return sections.changed(run, change, f"config.{protocol}")


def check(settings: Transfer) -> None:
    """Refuses starts and protocols that cannot work.

    Raises:
      UserError: naming the key.
    """
    for name in settings.starts:
        for task in settings.tasks:
            init = init_of(settings, name, task, "")
            if settings.starts[name].self_supervised or not init.weights:
                continue
            model, network, inputs = _network(settings, settings.finetune, task)
            try:
                initial.check(model, network, inputs, init, {task: build.tasks_of(settings)[task]})
            except UserError as error:
                raise UserError(f"config.starts.{name}: {error}") from None
    if PROBE in settings.protocols:
        model, _, inputs = _network(settings, settings.probe, next(iter(settings.tasks)))
        if "backbone" in jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]:
            raise UserError(
                "config.probe.model.backbone.frozen: a probe does not train the backbone; freeze all of its stages"
            )
    if KNN in settings.protocols and not any(map(labels_images, build.tasks_of(settings).values())):
        raise UserError("config.protocols: 'knn' needs a task that classifies images")
    if pretrains(settings) and settings.self_supervised.frames:
        raise UserError("config.self_supervised.frames: pretraining has pictures of one size")


def _network(settings: Transfer, run: Run, task: str) -> tuple[Any, Network, Array]:
    """The network of a task with its settings and blank inputs."""
    network = sections.changed(settings.model, run.model, "config.model")
    tasks = {task: build.tasks_of(settings, run)[task]}
    return build.network(network, tasks), network, build.encoder(settings.image, tasks).blank_inputs()["image"]


def pretrain(settings: Transfer, seed: int, *, directory: str, report) -> dict:
    """The job: a backbone that learns from pictures alone, by SimCLR."""
    run = settings.self_supervised
    network = sections.changed(settings.model, run.model, "config.model")
    network = dataclasses.replace(network, neck=sections.Part("none"))
    model, encoder = build.network(network, {}), TwoViews(build.encoder(settings.image, {}, run))
    inputs = encoder.blank_inputs()["image"]
    variables = start(model, network, encoder, seed, run.init)
    shapes = jax.eval_shape(functools.partial(_features, model), variables, inputs)
    training = Training(
        run=run,
        model=model,
        tasks={},
        objective=simclr(model, shapes.shape[-1], **vars(settings.simclr)),
        balance=build.balance(run),
        source=images(settings),
        encoder=encoder,
        validation=Validation(build.encoder(settings.image, {}), {}),
        variables=variables,
    )
    if devices.is_writer():
        networks.describe(directory, network, {}, settings.image, run=run)
    return train(directory, training, seed=seed, report=report)


def train_one(
    settings: Transfer,
    seed: int,
    share: float,
    protocol: str,
    name: str,
    task: str,
    rate: float | None,
    pretrained: str,
    *,
    directory: str,
    report,
) -> dict:
    """The job: one downstream network, at one learning rate; `pretrained` is relative to the directory."""
    init = init_of(settings, name, task, os.path.normpath(os.path.join(directory, pretrained)))
    run = dataclasses.replace(run_of(settings, protocol, rate), init=init)
    source, policies = annotated(settings, task, share, seed), {task: Policy()}
    facts = train_tasks(settings, seed, (task,), run, source, policies, directory=directory, report=report)
    return facts | {"learning_rate": run.optimizer.learning_rate, "images": len(source)}


def choose(settings: Transfer, task: str, candidates: Sequence[str], *, directory: str, report) -> dict:
    """The job: the facts of the network whose learning rate is best on the validation split.

    Args:
      settings: of the recipe.
      task: downstream.
      candidates: jobs of the networks, below the directory's own.
      directory: of the job.
      report: progress.
    """
    metric = build.tasks_of(settings)[task].metrics[0]
    sign = 1 if metric.higher_is_better else -1
    found = {name: jobs.facts(directory, name) for name in candidates}
    best = max(candidates, key=lambda name: sign * found[name]["validation"][task])
    kept = {key: value for key, value in found[best].items() if key != "spent"}  # which is its own job's
    return {**kept, "network": best}


def nearest(
    settings: Transfer, seed: int, share: float, name: str, task: str, pretrained: str, *, directory: str, report
) -> dict:
    """The job: nearest neighbors of the features that a network starts with."""
    init = init_of(settings, name, task, os.path.normpath(os.path.join(directory, pretrained)))
    task_of = {task: build.tasks_of(settings)[task]}
    network = sections.changed(settings.model, settings.finetune.model, "config.model")
    model, encoder = build.network(network, task_of), build.encoder(settings.image, task_of)
    variables = start(model, network, encoder, seed, init)
    known = annotated(settings, task, share, seed)
    bank, classes = _bank(model, variables, known, task, settings)
    vote = neighbors(bank, classes, len(task_of[task].classes), settings.knn)
    features = jax.jit(functools.partial(_features, model))

    def predict(inputs: Mapping[str, Array]) -> dict[str, Any]:
        return {task: task_of[task].predict(jnp.log(vote(features(variables, inputs["image"]))))}

    facts: dict[str, Any] = {"images": len(known)}
    for number, split in enumerate(settings.eval_splits):
        report(number, len(settings.eval_splits), split)
        rows = measure.measure_predictions(predict, task_of, encoder, build.splits(settings, split, (task,)))
        facts[split] = measure.keep_rows(directory, split, task_of, rows)
    return facts


def neighbors(bank: Array, classes: Array, count: int, knn: Nearest) -> Callable[[Array], Array]:
    """features [B, C] -> class probabilities [B, K], by the weighted votes of the nearest rows of the bank.

    Args:
      bank: features [N, C].
      classes: int [N].
      count: K.
      knn: how many neighbors vote, and how.
    """
    unit = bank / np.maximum(np.linalg.norm(bank, axis=-1, keepdims=True), 1e-12)
    k = min(knn.neighbors, len(unit))

    @jax.jit
    def vote(features: Array) -> Array:
        cosine = features @ unit.T / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
        near, place = jax.lax.top_k(cosine, k)
        weights = jax.nn.softmax(near / knn.temperature)
        votes = (jax.nn.one_hot(jnp.asarray(classes)[place], count) * weights[..., None]).sum(1)
        return jnp.maximum(votes, 1e-6) / jnp.maximum(votes, 1e-6).sum(-1, keepdims=True)

    return vote


def _bank(model, variables: PyTree, source: Source, task: str, settings: Transfer) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, C] and classes [N] of the annotated examples."""
    features, found = jax.jit(functools.partial(_features, model)), []
    for batch in eval_batches(source, build.encoder(settings.image, {}), batch_size=_ROWS):
        found.append(np.asarray(features(variables, batch.inputs["image"]))[batch.ids >= 0])
    labels = [labels_of(source, index).get(task) for index in range(len(source))]
    kept = [index for index, label in enumerate(labels) if label is not None]
    return np.concatenate(found)[kept], np.array([int(np.ravel(labels[i]["ids"])[0]) for i in kept])


def _features(model, variables: PyTree, inputs: Array) -> Array:
    return model.apply(variables, inputs, train=False, key=None, with_features=True)[2].pooled
