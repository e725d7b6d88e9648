"""Which weights of a run are kept: the best on the validation split, or the last."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from must.core.types import Metric, Model, PyTree, TrainState
from must.data.pipeline import Encoder
from must.evaluate.evaluate import summarize
from must.evaluate.statistics import delta_m
from must.experiment.measure import Splits, measure
from must.experiment.settings import Run
from must.tasks.base import Task
from must.train import state as states
from must.train.checkpoint import Checkpoints


class Validation(NamedTuple):
    """How the weights of a run are scored while it trains.

    Attributes:
      encoder: of whole pictures.
      splits: {task: its validation split}.
      view: of the encoder that the model sees; None: all of them.
      tasks: that decide which weights are kept; all by default.
      parts: {task: variables -> variables of a part of the network}, each kept by itself where its own task was best,
        in students/<task>/weights.
      whole: variables -> what is kept of them in weights/; the variables themselves by default.
    """

    encoder: Encoder
    splits: Splits
    view: str | None = "image"
    tasks: Sequence[str] = ()
    parts: Mapping[str, Callable[[PyTree], PyTree]] = {}
    whole: Callable[[PyTree], PyTree] = lambda variables: variables


class Selection:
    """Scores averaged weights and keeps the selected ones, of the network and of its parts."""

    def __init__(self, directory: str, tasks: Mapping[str, Task], model: Model, validation: Validation, run: Run):
        self._run, self._tasks, self._model, self._validation = run, dict(tasks), model, validation
        metrics = {name: task.metrics[0] for name, task in self._tasks.items()}
        deciding = {name: metrics[name] for name in validation.tasks or tasks}
        self._kept = _Kept(os.path.join(directory, "weights"), deciding, run)
        self._parts = {
            name: _Kept(os.path.join(directory, "students", name, "weights"), {name: metrics[name]}, run)
            for name in validation.parts
        }

    def look(self, state: TrainState, last: bool) -> dict[str, float]:
        """Scores the averaged weights and returns the scores as log lines."""
        variables, step, validation = states.model_variables(state), int(state.step), self._validation
        rows = measure(
            local(variables), self._model, self._tasks, validation.encoder, validation.splits, view=validation.view
        )
        scores = summarize(self._tasks, rows)
        headline = {name: scores[name][self._tasks[name].metrics[0].name] for name in scores}
        self._kept.offer(step, validation.whole(variables), headline, last)
        for name, kept in self._parts.items():
            kept.offer(step, validation.parts[name](variables), headline, last)
        return {f"validation/{t}/{m}": value for t, metrics in scores.items() for m, value in metrics.items()}

    def exhausted(self, step: int) -> bool:
        """Whether the score has not improved for as long as the run waits."""
        best, patience, every = self._kept.best, self._run.patience, self._run.evaluate_every
        return bool(patience and every and best) and step - best["step"] >= patience * every

    def close(self) -> dict:
        """Lets go of the directories; the facts of what was kept."""
        for kept in (self._kept, *self._parts.values()):
            kept.close()
        best = self._kept.best
        facts = {"selected_step": best["step"], "validation": best["validation"]}
        if self._parts:
            facts["selected_steps"] = {name: kept.best["step"] for name, kept in self._parts.items()}
        return facts


class _Kept:
    """The weights that were best by some tasks, or the last ones, with their scores.

    Tasks that share a metric are compared by its mean. With several units a candidate replaces the kept weights when
    its delta_m over them is above 0, so that no unit outweighs another.
    """

    def __init__(self, directory: str, metrics: Mapping[str, Metric], run: Run):
        self._metrics, self._run = metrics, run
        self._weights = Checkpoints(directory)
        self.best = self._weights.facts() if self._weights.latest() is not None else None

    def offer(self, step: int, variables: PyTree, headline: Mapping[str, float], last: bool) -> None:
        """Keeps these weights if they are selected."""
        candidate = {"step": step, "validation": {name: headline[name] for name in self._metrics}}
        candidate["batch_size"] = self._run.batch_size
        candidate["learning_rate"] = self._run.optimizer.learning_rate
        keep = last if self._run.select == "last" else self._better(candidate["validation"])
        # A resumed run passes steps that were scored before it was killed.
        if keep and step > (self._weights.latest() or -1):
            self._weights.save(step, variables, facts=candidate)
            self.best = candidate

    def close(self) -> None:
        self._weights.close()

    def _better(self, headline: dict[str, float]) -> bool:
        if self.best is None:
            return True
        kept = self.best["validation"]
        if len(set(self._metrics.values())) == 1:
            sign = 1 if next(iter(self._metrics.values())).higher_is_better else -1
            return sign * (sum(headline.values()) - sum(kept.values())) > 0
        # A first AP of 0 has no relative gain: a floor replaces it.
        floor = {name: max(value, 1e-3) for name, value in kept.items()}
        return delta_m(headline, floor, {name: metric.higher_is_better for name, metric in self._metrics.items()}) > 0


def local(variables: PyTree) -> PyTree:
    """This process's copy of replicated arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), variables)
