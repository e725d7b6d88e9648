"""The objects of one seed of a configuration: sets, tasks, networks, and how each kind of run trains."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from must.core.types import Array, Model, Objective, Policy, PyTree, Source, Teacher, UserError
from must.data.combine import Concat
from must.data.pipeline import Change, Encoder
from must.objectives.mean_teacher import MeanTeacher
from must.objectives.supervised import supervised
from must.recipes import checks, stages
from must.recipes.given import build_teacher
from must.recipes.measuring import together
from must.recipes.setup import build_changes, build_encoder, build_model, build_source, build_tasks, fill
from must.tasks.base import Task

# The records of a seed: what is learned from; where held-out truth tells what to believe; where truth tells the quality.
POOL, HELD_OUT, MEASURED = "pool", "held_out", "measured"


class Weights(NamedTuple):
    """How much a student's pseudo labels count.

    Attributes:
      kind: "ratio_of_means" or "plug_in", estimated from the validation split; "oracle", the ratio of means with the
        hidden truth of the pool as validation set, for experiments; "confidence", from the teacher's uncertainty alone.
      every: steps between refreshes; 0 keeps the weights of the untrained student.
      neighbors: validation examples that an estimate is taken over; 0 is the square root of their number.
      confident: multiply by the teacher's confidence.
      bounded: hold the weight of a class label at 1 / p, p the accuracy of the teacher there.
      tasks: that get weights; all by default.
    """

    kind: str
    every: int = 0
    neighbors: int = 0
    confident: bool = False
    bounded: bool = True
    tasks: tuple[str, ...] = ()


class Slam(NamedTuple):
    """How a student's predictions are corrupted as its teacher's labels are, see `must.objectives.slam`.

    Attributes:
      floor: least accuracy that a teacher is granted; above its true one it misstates it, so reports say how often it
        acts. Where the gradient would die, at 1 / k or without `normalize` at 1 / 2, more is granted.
      wanted: probability with which k(x) of the teacher's best classes hold the truth.
      normalize: divide by k - 1.
      tasks: that are corrected; all by default.
    """

    floor: float
    wanted: float
    normalize: bool = True
    tasks: tuple[str, ...] = ()


# What a run's section may say besides how it trains.
_OPTIONS: dict[str, Any] = {
    "model": {},  # changes to config.model
    "tasks": {},  # {task: changes to its section of config.tasks}, in what the run learns; scores stay what they are
    "policies": {},  # {task: section} in the place of config.policies, students only
    "labels_from": "",  # an arm that learns what another student says instead of the teachers: a further round
    "edited": {},  # {task: COCO json} whose boxes a person has corrected, in the place of the teacher's
    "weights_file": "",  # weights of examples by record id, see `must.data.weights`
    "weights": {},  # of pseudo labels, students only: the fields of `Weights`
    "slam": {},  # correction of the student's predictions, students only: the fields of `Slam`
    "oracle_labels": False,  # the truth of config.hidden in the place of pseudo labels, students only
    "pseudo_labels": True,  # False: ground truth alone, so that every image lacks the other tasks' labels
    "repeat_labeled": 1,  # how often an annotated image is met for one of the pool
    "truth_weight": 1.0,  # what ground truth counts for a pseudo label's 1
    "pool_images": 0,  # of the pool that are met; 0: all
    "epochs": 0,  # of the largest set, in the place of steps
    "batches": "mixed",  # or "per_task": in every step one batch of the images annotated for each task
    "cutmix": {},  # {"probability": p}: rows with a part of another picture, see `must.data.mix`
    "cutout": {},  # {"probability": p, "largest": share}: rows with a hole
    "mean_teacher": {},  # learning from its own average, students only: the fields of `MeanTeacher`
    "drop_top": 0.0,  # share of its pseudo labels, those with the largest losses, that a batch does without, students only
    "drop_after": 0,  # steps before any is dropped
    "teacher_dropping": 0.0,  # probability of leaving a teacher out, see `must.objectives.adaptors`
}


class Built:
    """The objects of one seed of a recipe's configuration, see `configs/quickstart.py`.

    Raises:
      UserError: (when made or asked) a section that no object can be made from.
    """

    def __init__(self, config: Mapping[str, Any], seed: int):
        self.config = fill(config, seed=seed, root=config["root"])
        self.seed = seed
        self.names = tuple(self.config["tasks"])
        labeled = {name: self.split(name, "train") for name in self.names}
        self.tasks: dict[str, Task] = build_tasks(self.config["tasks"], labeled)
        self.size = tuple(self.config["image"]["size"])
        self.plain = build_encoder(self.config["image"], self.tasks)
        self.inputs = self.plain.blank_inputs()["image"]  # what a network is initialized on
        self._models: dict[tuple, Model] = {}
        self._tasks: dict[str, dict[str, Task]] = {}
        checks.check_runs(self)

    def split(self, task: str, split: str) -> Source:
        """The split of the set that teaches or measures a task."""
        return build_source(self.config["sets"][self.config["labeled"][task]][split])

    def splits(self, split: str, names=None) -> dict[str, Source]:
        """That split for every task."""
        return {name: self.split(name, split) for name in names or self.names}

    def labeled(self) -> list[Source]:
        """The labeled training sets, each once."""
        sets = dict.fromkeys(self.config["labeled"][name] for name in self.names)
        return [build_source(self.config["sets"][name]["train"]) for name in sets]

    def everything(self) -> Source:
        """What the teachers label: the labeled images and the pool."""
        return Concat([*self.labeled(), *self.pool()])

    def pool(self) -> list[Source]:
        """The sets of images without labels; there may be none."""
        return [build_source(section) for section in self.config["pool"].values()]

    def hidden(self) -> dict[str, Source]:
        """{task: truth of the pool that no student may see}, for oracles of experiments and for measuring."""
        return {name: build_source(section) for name, section in self.config.get("hidden", {}).items()}

    def model(self, names, run: str = "student"):
        """A network with the heads of these tasks; asked again, the same one, whose programs are compiled already."""
        section = merged(self.config["model"], self.settings(run)["model"])
        key = (json.dumps(section, sort_keys=True), tuple(names))
        if key not in self._models:
            self._models[key] = build_model(section, {name: self.tasks[name] for name in names})
        return self._models[key]

    def encoder(self, names, run: str) -> Encoder:
        """How examples are shown to a network that learns these tasks."""
        tasks = self.tasks_of(run)
        return build_encoder(self.config["image"], {name: tasks[name] for name in names}, self.settings(run))

    def changes(self, names, run: str) -> list[Change]:
        """What is done to a run's training rows.

        Raises:
          UserError: (here and when a run is checked) a task that cannot be cut.
        """
        try:
            return build_changes(self.settings(run), {name: self.tasks_of(run)[name] for name in names})
        except UserError as error:
            raise UserError(f"{run}.{error}") from None

    def shown(self, names) -> Encoder:
        """How examples are shown to a network that is validated."""
        return self.plain

    def judged(self, names, run: str) -> tuple[Model, Encoder]:
        """The network as it is measured in the end, and how examples are shown to it there."""
        return self.model(names, run), self.shown(names)

    def tasks_of(self, run: str) -> dict[str, Task]:
        """The tasks as a run learns them: with its own changes to their hyper-parameters."""
        if (changes := json.dumps(self.settings(run)["tasks"])) not in self._tasks:
            for name in json.loads(changes):
                if name not in self.names:
                    raise UserError(f"{run}.tasks: no task {name!r}")
            sections = merged(self.config["tasks"], json.loads(changes))
            self._tasks[changes] = build_tasks(sections, self.splits("train"))
        return self._tasks[changes]

    def planned(self, names, run: str) -> tuple[Callable[[Array], PyTree], dict[str, np.ndarray], Objective]:
        """What a run would train: key -> fresh variables, the inputs of one row, what it minimizes without any teacher."""
        model, inputs = self.model(names, run), self.shown(names).blank_inputs()
        scales, believed = dict.fromkeys(names, 1.0), dict.fromkeys(names, Policy())
        objective = supervised(model, {name: self.tasks[name] for name in names}, scales=scales, policies=believed)
        return lambda key: model.init(key, inputs["image"]), inputs, objective

    def groups(self, run: str, names) -> int:
        """How many batches a step of a run takes."""
        return len(names) if self.settings(run)["batches"] == "per_task" else 1

    def mean_teacher(self, run: str) -> MeanTeacher | None:
        """How a run learns from its own average, with the tasks spelled out."""
        return self._correction(run, "mean_teacher", MeanTeacher)

    def weights(self, run: str) -> Weights | None:
        """Its weights of pseudo labels, with the tasks spelled out."""
        return self._correction(run, "weights", Weights)

    def slam(self, run: str) -> Slam | None:
        """Its correction of predictions, with the tasks spelled out."""
        return self._correction(run, "slam", Slam)

    def _correction(self, run: str, key: str, form):
        section = self.settings(run)[key]
        try:
            found = form(**section) if section else None
        except TypeError as error:
            raise UserError(f"{run}.{key}: {str(error).partition(') ')[2] or error}") from None
        return found and found._replace(tasks=tuple(found.tasks) or self.names)

    def weighs(self) -> bool:
        """Whether some student's pseudo labels get weights from the validation split."""
        return any(self.weights(run) or self.slam(run) for run in self.students())

    def policies(self, run: str | None = None) -> dict[str, dict[str, Any]]:
        """Which labels a run believes, or one that says nothing of its own: {task: section}."""
        return {**self.config["policies"], **(self.settings(run)["policies"] if run else {})}

    def known_truth(self, which: str) -> tuple[str, ...]:
        """Tasks with truth of that kind: all."""
        return self.names

    def truth(self, which: str) -> dict[str, Source]:
        """{task: truth} that is held out for choosing, or measured on."""
        return self.splits("validation" if which == HELD_OUT else self.config["measured_on"][0])

    def to_label(self, by: str = "") -> dict[str, Source]:
        """{name of the records: images} that the teachers, or the student `by`, label."""
        wanted = {POOL: self.everything()}
        if self.weighs() or self.judges():
            wanted[HELD_OUT] = together(self.truth(HELD_OUT))
        if self.config.get("quality") and not by:
            wanted[MEASURED] = together(self.truth(MEASURED))
        return wanted

    def records(self, directory: str) -> str:
        """Where what the teachers of the seed in a directory said of all images lies."""
        return os.path.join(directory, "pseudo_labels", POOL, "1.0.0")

    def trained(self) -> tuple[str, ...]:
        """Tasks whose teachers this run trains."""
        return tuple(name for name in self.names if name not in self.config.get("external", {}))

    def given(self) -> dict[str, Teacher]:
        """{task: teacher} of the tasks whose teachers the configuration names."""
        sections = self.config.get("external", {})
        return {
            name: build_teacher(name, section, {name: self.tasks[name]}, self.size)
            for name, section in sections.items()
        }

    def judges(self) -> bool:
        """Whether some student's labels are believed by what the validation split says of them."""
        runs = self.students()
        return any(section.get("from_validation") for run in runs for section in self.policies(run).values())

    def students(self) -> tuple[str, ...]:
        """The student and its arms."""
        return ("student", *self.config["arms"])

    def settings(self, run: str) -> dict[str, Any]:
        """How a kind of run trains: its section of the configuration; an arm's is the student's with its own changes."""
        changes = self.config["arms"].get(run)
        own = self.config[run] if changes is None else merged(self.config["student"], changes)
        return {**_OPTIONS, **own}

    def schedule(self, run: str) -> stages.Schedule:
        """Steps, batches, optimizer."""
        fields = stages.Schedule._fields
        return stages.Schedule(**{key: value for key, value in self.settings(run).items() if key in fields})


def merged(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section with changes, nested ones included; an empty one takes the place of what was there."""
    nested = {k: merged(section[k], v) for k, v in changes.items() if v and isinstance(v, Mapping) and section.get(k)}
    return {**section, **changes, **nested}
