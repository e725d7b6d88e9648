"""The stages that recipes are made of, as functions on built objects and directories; none reads a configuration.

A training directory holds
    checkpoints/   full state and data position, for resuming
    weights/       the selected averaged weights with what they scored on the validation split, for using
    metrics.jsonl  one line per logged or validated step, and the same as TensorBoard events
"""

import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from must.core import devices
from must.core.types import Balance, Model, Objective, PyTree, Source, TrainState, UserError
from must.data.pipeline import Encoder, Grouped, Joined, train_batches
from must.evaluate.compare import delta_m
from must.evaluate.evaluate import summarize
from must.recipes.measuring import Splits, measure
from must.tasks.base import Task
from must.train import state as states
from must.train.checkpoint import Checkpoints, fingerprint
from must.train.loop import Progress, fit
from must.train.optimizer import optimizer
from must.train.step import train_step

Report = Callable[..., None]


class Schedule(NamedTuple):
    """How long and how a model trains.

    Attributes:
      steps: optimiser steps.
      batch_size: over all devices and processes.
      optimizer: arguments of `must.train.optimizer.optimizer` besides steps.
      ema_decay: of the averaged weights, which are what is evaluated and used.
      select: "best" keeps the weights that were best on the validation split, "last" the final ones.
      evaluate_every: steps between validations; 0 validates at the end only.
      checkpoint_every: steps between resumable checkpoints.
      log_every: steps between logged losses.
      frames: multi-scale input: sizes (height, width) in pixels of which every batch draws one.
      frames_until: share of the steps after which every batch has the plain size.
    """

    steps: int
    batch_size: int
    optimizer: Mapping[str, Any]
    ema_decay: float = 0.0
    select: str = "last"
    evaluate_every: int = 0
    checkpoint_every: int = 500
    log_every: int = 50
    frames: Sequence[tuple[int, int]] = ()
    frames_until: float = 0.8


class Weigher(NamedTuple):
    """Weights of training examples that follow the student.

    Attributes:
      every: steps between refreshes, the first one before the first step; 0 keeps what was there then.
      weights: variables of the current student -> {supervision: float32 [N]}, N examples of the training source.
      extras: {supervision: {name: array [N, ...]}}, what the objective reads besides; fixed.
    """

    every: int
    weights: Callable[[PyTree], dict[str, np.ndarray]]
    extras: Mapping[str, Mapping[str, np.ndarray]] = {}


NO_WEIGHTS = Weigher(0, lambda variables: {})


def train(
    directory: str,
    *,
    seed: int,
    model: Model,
    tasks: Mapping[str, Task],
    objective: Objective,
    balance: Balance,
    source: Source | Mapping[str, Source],
    encoder: Encoder,
    schedule: Schedule,
    validation: tuple[Encoder, Splits],
    variables: PyTree | None = None,
    frozen: PyTree = None,
    weigher: Weigher = NO_WEIGHTS,
    report: Report = lambda *args: None,
) -> dict:
    """Trains one model, or takes up where an interrupted run stopped.

    Args:
      directory: of this run.
      seed: of initialisation, order, geometry and every draw inside the step.
      model: to train.
      tasks: it answers.
      objective: what it minimises.
      balance: weights of the tasks.
      source: of training examples; or {group: source}, then every step takes a batch of each.
      encoder: of training rows.
      schedule: steps, batches, optimiser, selection.
      validation: how examples are shown, and the split that measures each task.
      variables: to start from; freshly initialised by default.
      frozen: variables of the teachers that the objective asks.
      weigher: of the examples; by default every weight stays as the source has it.
      report: progress.

    Returns:
      Facts: selected step, validation scores, parameters, images per second, share of time spent waiting for data.

    Raises:
      UserError: the loss stopped being finite.
    """
    tx = optimizer(steps=schedule.steps, **schedule.optimizer)
    key = jax.random.key(seed)
    if variables is None:
        variables = model.init(jax.random.fold_in(key, 1), np.zeros((1, *encoder.size, 3), np.uint8))
    state = states.create(jax.random.fold_in(key, 2), variables, objective, balance, tx)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    batches = Joined(_batches(source, encoder, schedule, seed), weigher.weights(variables), weigher.extras)
    checkpoints = Checkpoints(os.path.join(directory, "checkpoints"))
    state = _resume(checkpoints, devices.replicate(state), batches)
    bound = functools.partial(train_step, objective=objective, balance=balance, tx=tx, ema_decay=schedule.ema_decay)
    step = devices.parallelize(bound, donate=(0,))

    log = _Log(directory, int(state.step))
    selection = _Selection(directory, schedule, tasks, model, validation)
    facts: dict[str, Any] = {}

    def hook(progress: Progress) -> None:
        at, last = progress.step, progress.step == progress.steps
        if at % schedule.log_every == 0 or last:
            logs = {name: float(value) for name, value in progress.logs.items()}
            if not math.isfinite(logs["loss"]):
                bad = [name for name, value in logs.items() if not math.isfinite(value)]
                raise UserError(f"{directory}: step {at}: not finite: {', '.join(bad)}; lower the learning rate or clip_norm")
            log.write(at, logs)
            report(at, progress.steps, f"loss {logs['loss']:.3f}")
        if last or (schedule.evaluate_every and at % schedule.evaluate_every == 0):
            log.write(at, selection.look(progress.state, last))
        if weigher.every and at % weigher.every == 0 and not last:
            batches.weights = weigher.weights(_local(states.model_variables(progress.state, ema=False)))
            log.write(at, {f"mean_weight/{name}": float(table.mean()) for name, table in batches.weights.items()})
        if last or at % schedule.checkpoint_every == 0:
            checkpoints.save(at, _saved(progress.state, batches), position={"grain": batches.get_state()})
        if last:
            groups = len(source) if isinstance(source, Mapping) else 1
            images = groups * schedule.batch_size * (at - start - 1)  # the clock starts when the first step is over
            facts["images_per_second"] = round(images / progress.seconds, 1)
            facts["data_wait"] = round(progress.data_seconds / progress.seconds, 4)

    start = int(state.step)
    try:
        frozen = None if frozen is None else devices.replicate(frozen)
        fit(state, step, batches, steps=schedule.steps, frozen=frozen, hooks=(hook,))
    finally:
        log.close()
        checkpoints.close()
    return facts | selection.close() | {"parameters": parameters}


def _batches(source: Source | Mapping[str, Source], encoder: Encoder, schedule: Schedule, seed: int):
    """Training batches of a source, or of several drawn side by side."""
    options = {
        "batch_size": schedule.batch_size,
        "process": (jax.process_index(), jax.process_count()),
        "sizes": schedule.frames,
        "sizes_until": int(schedule.frames_until * schedule.steps),
    }
    if not isinstance(source, Mapping):
        return train_batches(source, encoder, seed=seed, **options)
    return Grouped({
        group: train_batches(part, encoder, seed=seed + 7919 * number, **options)
        for number, (group, part) in enumerate(sorted(source.items()))
    })


def load_weights(directory: str, model: Model, size: tuple[int, int]) -> tuple[PyTree, dict]:
    """(variables, facts) that a training run selected.

    Raises:
      UserError: none there, of another model, or damaged.
    """
    like = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size, 3), np.uint8))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), like)
    weights = Checkpoints(os.path.join(directory, "weights"))
    variables, _, facts = weights.restore(like)
    weights.close()
    return variables, facts


def _saved(state: TrainState, batches: Joined) -> PyTree:
    """What a checkpoint holds; weights are those of the last refresh, which a later student could not tell again."""
    return {"train": state, "weights": batches.weights}


def _resume(checkpoints: Checkpoints, state: TrainState, batches: Joined) -> TrainState:
    if checkpoints.latest() is None:
        return state
    saved, position, _ = checkpoints.restore(_saved(state, batches))
    batches.set_state(position["grain"])
    batches.weights = {name: np.asarray(table) for name, table in saved["weights"].items()}
    return saved["train"]


def _local(variables: PyTree) -> PyTree:
    """This process's copy of replicated arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), variables)


class _Log:
    """metrics.jsonl and TensorBoard events; lines after the step that a run resumes from are taken back."""

    def __init__(self, directory: str, step: int):
        self._path = os.path.join(directory, "metrics.jsonl")
        self._board = None
        if not devices.is_writer():
            return
        os.makedirs(directory, exist_ok=True)
        kept = []
        if os.path.exists(self._path):
            with open(self._path) as file:
                lines = [line for line in file if line.endswith("\n")]  # a killed writer leaves half a line
            kept = [line for line in lines if json.loads(line)["step"] <= step]
        with open(self._path, "w") as file:
            file.writelines(kept)
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(directory, purge_step=step + 1 if step else None, flush_secs=30)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is None:
            return
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


class _Selection:
    """Validates averaged weights and keeps the selected ones.

    Several tasks have metrics of several units: a candidate replaces the kept weights when its delta_m against them is
    above 0, so that no unit outweighs another.
    """

    def __init__(self, directory: str, schedule: Schedule, tasks, model: Model, validation: tuple[Encoder, Splits]):
        if schedule.select not in ("best", "last"):
            raise UserError(f"select {schedule.select!r}: not one of 'best', 'last'")
        self._schedule, self._tasks, self._model = schedule, dict(tasks), model
        self._encoder, self._splits = validation
        self._weights = Checkpoints(os.path.join(directory, "weights"))
        self._best = self._weights.facts() if self._weights.latest() is not None else None

    def look(self, state: TrainState, last: bool) -> dict[str, float]:
        """Scores of the averaged weights, as log lines."""
        variables = states.model_variables(state)
        step = int(state.step)
        scores = summarize(self._tasks, measure(_local(variables), self._model, self._tasks, self._encoder, self._splits))
        headline = {name: scores[name][self._tasks[name].metrics[0].name] for name in scores}
        candidate = {"step": step, "validation": headline, "batch_size": self._schedule.batch_size}
        candidate["learning_rate"] = self._schedule.optimizer["learning_rate"]
        keep = last if self._schedule.select == "last" else self._better(headline)
        # A resumed run comes by steps that were judged before it was killed.
        if keep and step > (self._weights.latest() or -1):
            self._weights.save(step, variables, facts=candidate)
            self._best = candidate
        return {f"validation/{t}/{m}": value for t, metrics in scores.items() for m, value in metrics.items()}

    def close(self) -> dict:
        self._weights.close()
        return {"selected_step": self._best["step"], "validation": self._best["validation"]}

    def _better(self, headline: dict[str, float]) -> bool:
        if self._best is None:
            return True
        # A first AP of 0 has no relative gain: a floor stands in for it.
        floor = {name: max(value, 1e-3) for name, value in self._best["validation"].items()}
        direction = {name: self._tasks[name].metrics[0].higher_is_better for name in headline}
        return delta_m(headline, floor, direction) > 0


def weights_fingerprint(variables: PyTree) -> str:
    """Identity of a teacher: the hash of its arrays."""
    return fingerprint(variables)
