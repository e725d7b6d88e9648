"""Training runs: from settings and data to selected weights, their scores, and what a killed run needs to resume.

A training directory holds
    network.json   which network it is
    checkpoints/   full state and data position, for resuming
    weights/       the selected averaged weights with their validation scores
    metrics.jsonl  a line per logged or validated step, also as TensorBoard events
    rows-<split>.npz  what every example of a split contributes to the scores
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from must.core import buckets, devices, peers, stopping
from must.core.notices import notice
from must.core.types import Balance, Model, Objective, Policy, PyTree, Source, TrainState, UserError
from must.data.ahead import Placed, workers_for
from must.data.pipeline import Change, Encoder, Grouped, Joined, epoch_steps, train_batches
from must.experiment import build, initial, measure, networks, sections
from must.experiment.loss_scales import loss_scales
from must.experiment.run_log import Log, Skipped
from must.experiment.sections import Part
from must.experiment.selection import Selection, Validation, local
from must.experiment.settings import Init, Network, Run, SingleStudent, Student, Supervised
from must.experiment.speed import Speed
from must.objectives import mean_teacher as mean_teachers
from must.objectives import objective as objectives
from must.objectives.distill import Hint
from must.objectives.hints import hints
from must.objectives.labels import labels
from must.objectives.mean_teacher import MeanTeacher
from must.objectives.slam import slam
from must.pseudo_label.plan import first_difference
from must.tasks.base import Task
from must.train import state as states
from must.train.checkpoint import Checkpoints
from must.train.loop import Progress, fit
from must.train.optimizer import optimizer
from must.train.step import train_step

_KEPT = 2  # checkpoints of a run: where the newest is damaged, the one before goes on

Report = Callable[..., None]
Batches = Source | Mapping[str, Source]


class Weighting(NamedTuple):
    """Weights of training examples: a product of named factors, some of which follow the student.

    Attributes:
      every: steps between refreshes, the first one before the first step; 0 keeps the first ones.
      estimate: variables of the current student -> {supervision: {factor: float32 [N]}}, N examples of the training
        source; see `must.data.pipeline.example_weights`.
      fixed: {supervision: {factor: float32 [N]}} besides these.
      extras: {supervision: {name: array [N, ...]}}, what the objective reads besides; fixed.
    """

    every: int = 0
    estimate: Callable[[PyTree], dict[str, dict[str, np.ndarray]]] = lambda variables: {}
    fixed: Mapping[str, Mapping[str, np.ndarray]] = {}
    extras: Mapping[str, Mapping[str, np.ndarray]] = {}

    def factors(self, variables: PyTree) -> dict[str, dict[str, np.ndarray]]:
        """All factors at this moment, {supervision: {factor: float32 [N]}}."""
        estimated = self.estimate(variables)
        names = dict.fromkeys([*self.fixed, *estimated])
        return {name: {**self.fixed.get(name, {}), **estimated.get(name, {})} for name in names}


NO_WEIGHTING = Weighting()


class Training(NamedTuple):
    """Everything that a training run is made of.

    Attributes:
      run: steps, batches, optimizer, selection.
      model: to train.
      tasks: that it answers, as they are evaluated.
      objective: what it minimizes.
      balance: weights of the tasks.
      source: of training examples; or {group: source}, and every step takes a batch of each.
      encoder: of training rows.
      validation: which of its weights are kept.
      variables: to start from, see `start`.
      frozen: variables of the teachers inside the objective.
      weighting: of the examples.
      changes: of training rows.
      stop: step after which the run ends, under the learning rates of the whole schedule; 0: the last one.
      precision: of most operations of the model.
    """

    run: Run
    model: Model
    tasks: Mapping[str, Task]
    objective: Objective
    balance: Balance
    source: Batches
    encoder: Encoder
    validation: Validation
    variables: PyTree
    frozen: PyTree = None
    weighting: Weighting = NO_WEIGHTING
    changes: Sequence[Change] = ()
    stop: int = 0
    precision: str = "float32"


def train(directory: str, training: Training, *, seed: int, report: Report = lambda *args: None) -> dict:
    """Trains one network, or resumes where an interrupted run stopped.

    Args:
      directory: of this run.
      training: what is trained, on what.
      seed: of initialization, order, geometry and every draw inside the step.
      report: progress.

    Returns:
      Facts: steps made, selected step, validation scores, parameters, and those of `Speed.facts`.

    Raises:
      UserError: too many steps are not finite, see `Skipped`, or nothing is learned.
      KeyboardInterrupt: a signal asked to stop; the state of the last step is saved.
    """
    run, key = training.run, jax.random.key(seed)
    tx = optimizer(**run.optimizer.arguments(run.steps))
    variables = training.variables
    state = states.create(jax.random.fold_in(key, 2), variables, training.objective, training.balance, tx)
    batches = Joined(_batches(training, seed), training.weighting.factors(variables))
    checkpoints = Checkpoints(os.path.join(directory, "checkpoints"), keep=_KEPT, ahead=True)
    owner = _owner(training, seed)
    state = devices.replicate(_resume(checkpoints, state, batches, owner))
    options = {"balance": training.balance, "tx": tx, "ema_decay": run.ema_decay, "accumulate": run.accumulate}
    bound = functools.partial(train_step, objective=training.objective, **options)
    spent = checkpoints.facts().get("spent", {}) if int(state.step) else {}
    logged = max((line.get("speed/seconds", 0.0) for line in measure.read_log(directory)), default=0.0)
    log = Log(directory, int(state.step))
    if batches.weights and not int(state.step):
        log.write(0, _means(batches.weights))
    selection = Selection(directory, training.tasks, training.model, training.validation, run)
    options = {"groups": len(training.source) if isinstance(training.source, Mapping) else 1}
    step = devices.parallelize(bound, donate=(0,))
    speed = Speed(step, run, spent, logged, precision=training.precision, **options)
    hook = _Hook(directory, training, log, selection, batches, checkpoints, speed, report, int(state.step), owner)
    # A run that had ended was killed before it could say so.
    steps = hook.start if selection.exhausted(hook.start) else training.stop or run.steps
    try:
        frozen = None if training.frozen is None else devices.replicate(training.frozen)
        with stopping.listening():
            state = fit(state, speed, batches, steps=steps, frozen=frozen, hooks=(hook,))
    finally:
        batches.close()
        log.close()
        with speed.spent("save"):
            checkpoints.close()
    buckets.wait_for_all("a network is trained")  # before another process reads what process 0 wrote
    if silent := _never_learned(directory):
        raise UserError(
            f"{directory}: {', '.join(silent)}: nothing was learned, the loss is 0 at every logged step; its labels "
            "lie outside what the task learns (unit, max_depth, ignore) or none of them is accepted (policies)"
        )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return speed.facts() | hook.facts | selection.close() | {"parameters": parameters, "steps": int(state.step)}


class _Hook:
    """What happens between steps: logs, validation, fresh weights of examples, checkpoints."""

    def __init__(
        self, directory, training: Training, log, selection, batches, checkpoints, speed, report, start, owner
    ):
        self._directory, self._training, self._log, self._selection = directory, training, log, selection
        self._batches, self._checkpoints, self._speed, self._report = batches, checkpoints, speed, report
        self.start, self.facts, self._validation, self._owner = start, {}, "", owner
        self._skipped = Skipped(directory, training.source)

    def __call__(self, progress: Progress) -> bool:
        run, weighting = self._training.run, self._training.weighting
        at, last = progress.step, progress.step == progress.steps
        self._speed.see(progress)
        self._checkpoints.check()
        peers.at(f"{self._directory}, step {at}")
        logs_now = at % run.log_every == 0
        looks = last or (run.evaluate_every and at % run.evaluate_every == 0)
        self._skipped.see(progress, wait=bool(logs_now or looks))
        if logs_now or looks:
            logs = {name: float(value) for name, value in progress.logs.items() if name != "skipped"}
            logs = {name: value for name, value in logs.items() if math.isfinite(value)} | self._skipped.log()
        if looks:
            with self._speed.spent("evaluate"):
                scores = self._selection.look(progress.state, last)
            self._log.write(at, scores)
            headlines = {f"validation/{name}/{task.metrics[0].name}" for name, task in self._training.tasks.items()}
            shown = [f"{name.split('/', 1)[1]} {value:.4g}" for name, value in scores.items() if name in headlines]
            self._validation = f", validation at {at}: {', '.join(shown)}"
            last = last or self._selection.exhausted(at)
        if logs_now or last:
            self._log.write(at, logs | self._speed.line())
            self._report(at, progress.steps, f"loss {logs.get('loss', math.nan):.3f}{self._validation}")
        if weighting.every and at % weighting.every == 0 and not last:
            self._batches.weights = weighting.factors(local(states.model_variables(progress.state, ema=False)))
            self._log.write(at, _means(self._batches.weights))
        stops = not last and stopping.asked(at)
        if last or stops or at % run.checkpoint_every == 0:
            position = {"grain": self._batches.get_state()}
            saved = _saved(progress.state, self._batches)
            with self._speed.spent("save"):
                facts = {"run": self._owner, "spent": dict(self._speed.clock.spent)}
                self._checkpoints.save(at, saved, position=position, facts=facts)
        if stops:
            stopping.stop()
        if last:
            self.facts = self._skipped.log()
        return last


def _never_learned(directory: str, least: int = 5) -> list[str]:
    """Tasks whose terms are all exactly 0 on every line of the log, of at least so many lines."""
    terms: dict[str, list[bool]] = {}
    for line in measure.read_log(directory):
        for task in {name.split("/")[1] for name in line if name.startswith("loss/")}:
            zero = all(value == 0 for name, value in line.items() if name.startswith(f"loss/{task}/"))
            terms.setdefault(task, []).append(zero)
    return [task for task, zeros in terms.items() if len(zeros) >= least and all(zeros)]


def _means(weights: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The mean of every factor of the examples' weights, for the log."""
    return {
        f"weight/{name}/{factor}": float(table.mean())
        for name, factors in weights.items()
        for factor, table in factors.items()
    }


def start(model: Model, network: Network, encoder: Encoder, seed: int, init: Init) -> PyTree:
    """The variables that a run of this seed starts from."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    tasks = getattr(encoder, "tasks", {})
    return initial.start(model, network, encoder.blank_inputs()["image"], key, init, tasks)


def _batches(training: Training, seed: int):
    """Training batches of a source, or of several drawn side by side."""
    run, encoder = training.run, training.encoder
    options = {
        "batch_size": run.batch_size,
        "process": (jax.process_index(), jax.process_count()),
        "sizes": run.frames,
        "sizes_until": int(run.frames_until * run.steps),
        "extras": training.weighting.extras,
        "changes": training.changes,
    }
    parts = training.source if isinstance(training.source, Mapping) else {"": training.source}
    if run.data_workers < 0:
        options["workers"] = workers_for(*parts.values(), encoder=encoder, batch_size=run.batch_size)
    else:
        options["workers"] = run.data_workers
    made = {
        group: train_batches(part, encoder, seed=seed + 7919 * number, **options)
        for number, (group, part) in enumerate(sorted(parts.items()))
    }
    batches = Grouped(made) if isinstance(training.source, Mapping) else made[""]
    return Placed(batches, place) if (place := devices.placing()) else batches


def _saved(state: TrainState, batches: Joined) -> PyTree:
    """What a checkpoint holds; the weights of examples too, which a later student could not estimate again."""
    return {"train": state, "weights": batches.weights}


def _owner(training: Training, seed: int) -> dict[str, Any]:
    """What tells a run from others whose checkpoints have the same shapes."""
    parts = training.source if isinstance(training.source, Mapping) else {"": training.source}
    ids = hashlib.sha256("\n".join(id for _, part in sorted(parts.items()) for id in part.ids).encode()).hexdigest()
    return json.loads(json.dumps({"seed": seed, "ids": ids, "run": sections.plain(training.run)}, default=str))


def _resume(checkpoints: Checkpoints, state: TrainState, batches: Joined, owner: Mapping[str, Any] = {}) -> TrainState:
    """The newest checkpoint that is whole; damaged ones after it make room for those that follow.

    Raises:
      UserError: none is whole, or they are those of another run.
    """
    if checkpoints.latest() is None:
        return state
    like, damaged = _saved(state, batches), {}
    for step in checkpoints.steps():
        try:
            saved, position, facts = checkpoints.restore(like, step)
            break
        except UserError as error:
            damaged[step] = error
    else:
        first = next(iter(damaged.values()))
        raise UserError(f"{first}; nor is an older one whole: remove {checkpoints.directory} to start again")
    for at, error in damaged.items():
        notice(f"{error}; goes on from step {step}")
        checkpoints.delete(at)
    if difference := first_difference(facts.get("run", owner), dict(owner)):
        raise UserError(f"{checkpoints.directory}: belongs to another run: {difference}; remove it to start again")
    batches.set_state(position["grain"])
    batches.weights = jax.tree.map(np.asarray, saved["weights"])
    return saved["train"]


class Online(NamedTuple):
    """Frozen teachers that answer in the step.

    Attributes:
      models: {name: network}.
      variables: {name: its weights}.
      hints: what the student learns from them.
      shuffled: every row gets the answers to another one; a control.
    """

    models: Mapping[str, Model]
    variables: Mapping[str, PyTree]
    hints: Sequence[Hint]
    shuffled: bool = False


NO_TEACHERS = Online({}, {}, ())


def train_tasks(
    settings: Supervised,
    seed: int,
    tasks: Sequence[str],
    run: Run,
    source: Batches,
    policies: Mapping[str, Policy],
    *,
    directory: str,
    report: Report,
    weighting: Weighting = NO_WEIGHTING,
    online: Online = NO_TEACHERS,
) -> dict:
    """Trains a network of some tasks on a source, then scores the selected weights on the evaluation splits.

    Args:
      settings: of the recipe.
      seed: of the run.
      tasks: of the network.
      run: how it trains.
      source: of training examples; or {group: source}, and every step takes a batch of each.
      policies: {task: which labels count}.
      directory: of the run.
      report: progress.
      weighting: of the examples.
      online: teachers that answer in the step.
    """
    every = build.tasks_of(settings)
    evaluated = {name: every[name] for name in tasks}
    every = build.tasks_of(settings, run)
    learned = {name: every[name] for name in tasks}
    network = sections.changed(settings.model, run.model, "config.model")
    model = build.network(network, evaluated)
    view = build.view_in_step(settings.image, run)
    encoder = build.encoder(settings.image, learned, replace(run, view=Part("none"), view_on="host") if view else run)
    variables = start(model, network, encoder, seed, run.init)
    plain = build.encoder(settings.image, build.tasks_of(settings))
    made = objective(settings, run, model, learned, policies, variables, online)
    training = Training(
        run=_with_steps(run, source),
        model=model,
        tasks=evaluated,
        objective=objectives.with_view(made, view) if view else made,
        balance=build.balance(run),
        source=source,
        encoder=encoder,
        validation=Validation(plain, build.splits(settings, "validation", tasks)),
        variables=variables,
        frozen=online.variables or None,
        weighting=weighting,
        changes=build.row_changes(run, learned),
        precision=network.precision,
    )
    if devices.is_writer():
        networks.describe(directory, network, evaluated, settings.image, run=run)
    facts = train(directory, training, seed=seed, report=report)
    variables, _ = networks.load_weights(directory, model, plain.blank_inputs()["image"])
    return facts | measure.score(directory, variables, model, evaluated, plain, settings)


def objective(
    settings: Supervised,
    run: Run,
    model: Model,
    tasks: Mapping[str, Task],
    policies: Mapping[str, Policy],
    variables: PyTree | None = None,
    online: Online = NO_TEACHERS,
) -> Objective:
    """What a run minimizes; without `variables` and teachers, enough to know its cost."""
    options, average = {}, None
    if isinstance(run, Student):
        options = {"small_loss": run.small_loss.drop, "small_loss_after": run.small_loss.after}
        if run.slam.enabled:
            corrected = build.tasks_with(run.slam.tasks, settings, "config.student.slam")
            options["corrections"] = dict.fromkeys(corrected, functools.partial(slam, normalize=run.slam.normalize))
        if run.mean_teacher.kind != "none" and variables is not None:
            average = mean_teacher(settings, run)
    if run.accumulate > 1 and (online.hints or options.get("small_loss")):
        raise UserError("accumulate: not with teachers in the step or small_loss, which need whole batches")
    parts = [labels(tasks, policies, **options)]
    if online.hints:
        parts.append(hints(online.models, online.hints, dropping=run.teacher_dropping, shuffled=online.shuffled))
    if average is not None:
        parts.append(mean_teachers.mean_teacher(model, tasks, average, initial=variables, shuffled=online.shuffled))
    scales = loss_scales(settings, run, tasks)
    return objectives.objective(model, parts, scales=scales, normalize=run.normalize)


def mean_teacher(settings: SingleStudent, run: Student) -> MeanTeacher:
    """How a run learns from its own average, the tasks spelled out."""
    tasks = build.tasks_with(run.mean_teacher.tasks, settings, "config.student.mean_teacher")
    return MeanTeacher(**{**vars(run.mean_teacher), "tasks": tasks})


def _with_steps(run: Run, source: Batches) -> Run:
    """The run with its epochs turned into steps; an epoch is as long as the largest set."""
    if not run.epochs:
        return run
    parts = source if isinstance(source, Mapping) else {"": source}
    counts = {group: len(part) for group, part in parts.items()}
    return sections.changed(run, {"steps": run.epochs * epoch_steps(counts, run.batch_size)}, "config")
