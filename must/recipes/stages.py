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
from must.data.pipeline import Change, Encoder, Grouped, Joined, train_batches
from must.recipes.selection import Judge, Selection, local
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
      steps: optimizer steps.
      batch_size: over all devices and processes.
      optimizer: arguments of `must.train.optimizer.optimizer` besides steps.
      ema_decay: of the averaged weights, which are what is evaluated and used.
      select: "best" keeps the weights that were best on the validation split, "last" the final ones.
      evaluate_every: steps between validations; 0 validates at the end only.
      checkpoint_every: steps between resumable checkpoints.
      log_every: steps between logged losses.
      frames: multi-scale input: sizes (height, width) in pixels of which every batch draws one.
      frames_until: share of the steps after which every batch has the plain size.
      patience: the run ends when so many validations in a row were no better than the best one; 0: it never does.
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
    patience: int = 0


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
    judge: Judge,
    variables: PyTree | None = None,
    frozen: PyTree = None,
    weigher: Weigher = NO_WEIGHTS,
    changes: Sequence[Change] = (),
    stop: int = 0,
    report: Report = lambda *args: None,
) -> dict:
    """Trains one model, or takes up where an interrupted run stopped.

    Args:
      directory: of this run.
      seed: of initialization, order, geometry and every draw inside the step.
      model: to train.
      tasks: it answers.
      objective: what it minimizes.
      balance: weights of the tasks.
      source: of training examples; or {group: source}, then every step takes a batch of each.
      encoder: of training rows.
      schedule: steps, batches, optimizer, selection.
      judge: what chooses among the weights that the run comes by.
      variables: to start from; freshly initialized by default.
      frozen: variables of the teachers that the objective asks.
      weigher: of the examples; by default every weight stays as the source has it.
      changes: of training rows, see `must.data.mix`.
      stop: step after which the run ends, under the learning rates of the whole schedule; 0: the schedule's last.
      report: progress.

    Returns:
      Facts: steps made, selected step, validation scores, parameters, images per second, share of time spent waiting for
      data.

    Raises:
      UserError: the loss stopped being finite.
    """
    tx = optimizer(steps=schedule.steps, **schedule.optimizer)
    key = jax.random.key(seed)
    if variables is None:
        variables = fresh(model, encoder, seed)
    state = states.create(jax.random.fold_in(key, 2), variables, objective, balance, tx)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    batches = _batches(source, encoder, schedule, seed, extras=weigher.extras, changes=changes)
    batches = Joined(batches, weigher.weights(variables))
    checkpoints = Checkpoints(os.path.join(directory, "checkpoints"))
    state = _resume(checkpoints, devices.replicate(state), batches)
    bound = functools.partial(train_step, objective=objective, balance=balance, tx=tx, ema_decay=schedule.ema_decay)
    step = devices.parallelize(bound, donate=(0,))

    log = _Log(directory, int(state.step))
    selection = Selection(directory, tasks, model, judge, schedule)
    facts: dict[str, Any] = {}

    def hook(progress: Progress) -> bool:
        at, last = progress.step, progress.step == progress.steps
        logs_now = at % schedule.log_every == 0
        looks = last or (schedule.evaluate_every and at % schedule.evaluate_every == 0)
        if logs_now or looks:
            logs = {name: float(value) for name, value in progress.logs.items()}
            if not math.isfinite(logs["loss"]):  # before its weights are judged and kept
                bad = [name for name, value in logs.items() if not math.isfinite(value)]
                raise UserError(
                    f"{directory}: step {at}: not finite: {', '.join(bad)}; lower the learning rate or clip_norm"
                )
        if looks:
            log.write(at, selection.look(progress.state, last))
            last = last or selection.exhausted(at)
        if logs_now or last:
            log.write(at, logs)
            report(at, progress.steps, f"loss {logs['loss']:.3f}")
        if weigher.every and at % weigher.every == 0 and not last:
            batches.weights = weigher.weights(local(states.model_variables(progress.state, ema=False)))
            log.write(at, {f"mean_weight/{name}": float(table.mean()) for name, table in batches.weights.items()})
        if last or at % schedule.checkpoint_every == 0:
            checkpoints.save(at, _saved(progress.state, batches), position={"grain": batches.get_state()})
        if last:
            groups = len(source) if isinstance(source, Mapping) else 1
            images = groups * schedule.batch_size * (at - start - 1)  # the clock starts when the first step is over
            facts["images_per_second"] = round(images / progress.seconds, 1)
            facts["data_wait"] = round(progress.data_seconds / progress.seconds, 4)
        return last

    start = int(state.step)
    steps = (
        start if selection.exhausted(start) else stop or schedule.steps
    )  # one that had ended was killed before it said so
    try:
        frozen = None if frozen is None else devices.replicate(frozen)
        state = fit(state, step, batches, steps=steps, frozen=frozen, hooks=(hook,))
    finally:
        log.close()
        checkpoints.close()
    return facts | selection.close() | {"parameters": parameters, "steps": int(state.step)}


def fresh(model: Model, encoder: Encoder, seed: int) -> PyTree:
    """The variables that a run of this seed starts from."""
    return model.init(jax.random.fold_in(jax.random.key(seed), 1), encoder.blank_inputs()["image"])


def _batches(source: Source | Mapping[str, Source], encoder: Encoder, schedule: Schedule, seed: int, **made):
    """Training batches of a source, or of several drawn side by side."""
    options = {
        "batch_size": schedule.batch_size,
        "process": (jax.process_index(), jax.process_count()),
        "sizes": schedule.frames,
        "sizes_until": int(schedule.frames_until * schedule.steps),
        **made,
    }
    if not isinstance(source, Mapping):
        return train_batches(source, encoder, seed=seed, **options)
    return Grouped(
        {
            group: train_batches(part, encoder, seed=seed + 7919 * number, **options)
            for number, (group, part) in enumerate(sorted(source.items()))
        }
    )


def load_weights(directory: str, model: Model, inputs: PyTree) -> tuple[PyTree, dict]:
    """(variables, facts) that a training run selected; the model is initialized on `inputs`, of which shapes matter.

    Raises:
      UserError: none there, of another model, or damaged.
    """
    like = jax.eval_shape(model.init, jax.random.key(0), inputs)
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


def weights_fingerprint(variables: PyTree) -> str:
    """Identity of a teacher: the hash of its arrays."""
    return fingerprint(variables)
