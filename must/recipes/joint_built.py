"""The objects of one seed of a JEDI configuration: sets, experts' networks, the joint network and what it minimizes."""

import functools
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from must.core.types import Model, Objective, PyTree, Source, UserError
from must.data.combine import Aliased, Concat
from must.data.pipeline import Encoder
from must.data.splits import Listed
from must.models.experts import TEACHER, Expert, Experts, experts
from must.models.multi_clip import over_clips
from must.objectives.joint import joint
from must.recipes import built, setup
from must.tasks.base import Task

# Of the joint stage; see `must.objectives.joint.joint` for those without a comment.
JOINT: dict[str, Any] = {
    "distill": 1.0,
    "student": 1.0,
    "teacher": 1.0,
    "temperature": 1.0,
    "teacher_gradient": "all",
    "threshold": 0.0,
    "own_set": False,
    "ema_teacher": 0.0,  # decay of the average that answers; 0: the current weights do
    "shuffled": False,
    "sampling": "equal",  # a batch of every set and of the pool in a step; or "proportional": one batch of all together
    "frozen": False,  # backbones stay what they are: the linear layers learn on features that are computed once
    "random_teachers": False,  # teachers start from random numbers, not as their experts
    "vectorize": False,  # apply experts that are alike at once, see `must.models.experts.experts`
}


class JointBuilt(built.Built):
    """The objects of one seed, see `configs/jedi.py`; a task is a set, and has its name.

    Args:
      config: plain dict.
      seed: one of its seeds.
      dropped: ids that neither train nor select, since they overlap with what measures (`must.recipes.overlapping`).
    """

    def __init__(self, config: Mapping[str, Any], seed: int, dropped: Iterable[str] = ()):
        self._dropped = frozenset(dropped)
        for name in config["tasks"]:
            for section in ("sets", "experts"):
                if name not in config[section]:
                    raise UserError(f"{section}: no {name!r}, which config.tasks has")
        for section in ("sets", "experts"):
            for name in config[section]:
                if name not in config["tasks"]:
                    raise UserError(f"tasks: no {name!r}, which config.{section} has")
        labeled = {name: name for name in config["tasks"]}
        super().__init__({**config, "labeled": labeled, "student": config["joint"], "baselines": ()}, seed)
        self.video = "clip" in self.config["image"]

    def split(self, task: str, split: str) -> Source:
        source = super().split(task, split)
        return self._kept(source) if split in ("train", "validation") else source

    def pool(self) -> list[Source]:
        return [self._kept(source) for source in super().pool()]

    def _kept(self, source: Source) -> Source:
        """A source without what is dropped; the same object while nothing of it is."""
        ids = [id for id in source.ids if id not in self._dropped] if self._dropped else source.ids
        return source if len(ids) == len(source) else Listed(source, ids=ids)

    def settings(self, run: str) -> dict[str, Any]:
        own = super().settings("student" if run == "joint" else run)
        return own if run == "expert" else {**JOINT, **own}

    def model(self, names: Sequence[str], run: str = "expert") -> Model:
        """The network of one expert; of the joint stage, all students and teachers in one."""
        if run != "expert":
            return self.joined(run).model
        (name,) = names
        section = built.merged(self.config["model"], self.config["experts"][name].get("model", {}))
        return _network(json.dumps(section, sort_keys=True), name, self.tasks[name])

    def joined(self, run: str = "joint") -> Experts:
        """All experts with their teachers, as a run of the joint stage learns them."""
        tasks = self.tasks_of(run)
        parts = tuple((name, self.model((name,)), tasks[name], self._view(name)) for name in self.names)
        return _joined(parts, self.settings(run)["vectorize"])

    def encoder(self, names: Sequence[str], run: str) -> Encoder:
        return self._encoder(names, run, self.settings(run))

    def shown(self, names: Sequence[str], run: str = "expert", clips: int = 1) -> Encoder:
        """One expert's examples; of the joint stage, in all views."""
        return self._encoder(names, run, None, clips)

    def judged(self, names: Sequence[str], run: str) -> tuple[Model, Encoder]:
        clips = self.config["test_clips"]
        model = self.model(names, run)
        return _over_clips(model) if clips > 1 else model, self.shown(names, run, clips)

    def objective(self, run: str, initial: PyTree, parts: Experts | None = None) -> Objective:
        """What an arm of the joint stage minimizes; `initial` parameters are where an average of teachers starts."""
        settings = self.settings(run)
        options = {key: settings[key] for key in JOINT if key in inspect.signature(joint).parameters}
        tasks = {name: self.tasks_of(run)[name] for name in self.names}
        return joint(parts or self.joined(run), tasks, **options, ema_decay=settings["ema_teacher"], initial=initial)

    def planned(self, names, run: str):
        if run == "expert":
            return super().planned(names, run)
        inputs, parts = self.shown(names, run).blank_inputs(), self.joined(run)
        shapes = jax.eval_shape(parts.init, jax.random.key(0), inputs)["params"]
        initial = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        return lambda key: parts.init(key, inputs), inputs, self.objective(run, initial)

    def groups(self, run: str, names) -> int:
        equal = run != "expert" and self.settings(run)["sampling"] == "equal"
        return len(names) + bool(self.pool()) if equal else 1

    def batches(self, run: str) -> Source | dict[str, Source]:
        """What an arm draws from: {set or "pool": source}, or all in one."""
        parts = self.splits("train")
        if self.pool():
            parts["pool"] = Concat(self.pool())
        return parts if self.settings(run)["sampling"] == "equal" else Concat(list(parts.values()))

    def both(self) -> dict[str, Task]:
        """The tasks of the joint network: of every set its student's and its teacher's."""
        return self.tasks | {TEACHER.format(name): task for name, task in self.tasks.items()}

    def both_splits(self, split: str) -> dict[str, Source]:
        """What measures them."""
        found: dict[str, Source] = {}
        for name in self.names:
            source = Aliased(self.split(name, split), {TEACHER.format(name): name})
            found |= {name: source, TEACHER.format(name): source}
        return found

    def everything(self) -> Source:
        """All clips that train something."""
        return Concat([*self.splits("train").values(), *self.pool()])

    def _encoder(self, names, run: str, training, clips: int = 1) -> Encoder:
        tasks = {name: self.tasks_of(run)[name] for name in names}
        frames = None
        if self.video:
            length = {name: self.config["experts"][name]["frames"] for name in self.names}
            alone = run == "expert"
            frames = {"image" if alone else self._view(name): length[name] for name in (names if alone else self.names)}
        return setup.build_encoder(self.config["image"], tasks, training, frames, clips)

    def _view(self, name: str) -> str:
        """The input of an expert in the joint stage: experts with clips of one length share one."""
        return f"{self.config['experts'][name]['frames']} frames" if self.video else "image"


# Asked again, the same objects, whose programs are compiled already.
_over_clips = functools.lru_cache(maxsize=16)(over_clips)


@functools.lru_cache(maxsize=64)
def _network(section: str, name: str, task: Task) -> Model:
    return setup.build_model(json.loads(section), {name: task})


@functools.lru_cache(maxsize=16)
def _joined(parts: tuple[tuple[str, Model, Task, str], ...], vectorize: bool) -> Experts:
    own = {name: Expert(model, len(task.classes), view, task.dropout) for name, model, task, view in parts}
    try:
        return experts(own, vectorize=vectorize)
    except ValueError as error:
        raise UserError(f"vectorize: {error}") from None
