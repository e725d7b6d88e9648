"""Configuration sections -> objects, each with `Thing(**section)`; the recipes read no key that is not turned into one here."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from must.core.types import Balance, Model, Policy, Source, UserError
from must.data import geometry
from must.data.augment import Photometric
from must.data.combine import Cached, Concat, labels_of
from must.data.disjoint import check_disjoint
from must.data.pipeline import Encoder
from must.data.sources import source
from must.models import fpn, multi_head, resnet
from must.objectives import balance as balances
from must.pseudo_label import policy
from must.recipes import stages
from must.tasks import base
from must.tasks.base import Task
from must.tasks.classification import Classification


def fill(section: Any, **values: Any) -> Any:
    """A copy of a section in which "{name}" stands for a value: the whole string takes the value's type.

    Args:
      section: nested dicts, lists and scalars.
      values: for instance seed=3, root="data".

    Raises:
      UserError: a value that is asked for is empty.
    """
    if isinstance(section, Mapping):
        return {key: fill(value, **values) for key, value in section.items()}
    if isinstance(section, (list, tuple)):
        return [fill(value, **values) for value in section]
    if isinstance(section, str):
        for name, value in values.items():
            if value == "" and f"{{{name}}}" in section:
                raise UserError(f"--config.{name}= is required by {section!r}")
            if section == f"{{{name}}}":
                return value
            section = section.replace(f"{{{name}}}", str(value))
    return section


@functools.lru_cache(maxsize=64)
def _source(text: str) -> Source:
    return Cached(source(**json.loads(text)))


def build_source(section: Mapping[str, Any]) -> Source:
    """One source from {"kind": ..., arguments}; the same section gives the same object, decoded images included."""
    return _source(json.dumps(section, sort_keys=True))


def build_tasks(sections: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Source]) -> dict[str, Task]:
    """Tasks by name; one whose labels hold class ids takes the class names of its labelled source."""
    tasks = {}
    for name, section in sections.items():
        section = dict(section)
        names = sources[name].classes.get(name)
        if names and "classes" not in section:
            section["classes"] = tuple(names)
        tasks[name] = base.build(**{key: tuple(v) if isinstance(v, list) else v for key, v in section.items()})
    return tasks


def build_model(section: Mapping[str, Any], tasks: Mapping[str, Task]) -> Model:
    """Backbone, neck and the tasks' heads."""
    backbone, neck = dict(section["backbone"]), dict(section["neck"])
    kinds = {"resnet": resnet.ResNet}
    kind = backbone.pop("kind")
    if kind not in kinds:
        raise UserError(f"model.backbone.kind {kind!r}: not one of {sorted(kinds)}")
    neck["strides"] = tuple(neck["strides"])
    try:
        parts = kinds[kind](**backbone), fpn.FPN(**neck)
    except TypeError as error:
        raise UserError(f"model: {error}") from None
    return multi_head.multi_head(*parts, {name: task.head() for name, task in tasks.items()})


def build_encoder(image: Mapping[str, Any], tasks: Mapping[str, Task], training: Mapping[str, Any] | None = None) -> Encoder:
    """What a model sees: the whole image, or with `training` = {"geometry", "view"} a drawn one."""
    size, keep_aspect = tuple(image["size"]), image["keep_aspect"]
    if training is None:
        return Encoder(tasks, size, keep_aspect=keep_aspect)
    drawn = {key: tuple(v) if isinstance(v, (list, tuple)) else v for key, v in training["geometry"].items()}
    view = Photometric(**training["view"]) if training["view"] else None
    return Encoder(tasks, size, functools.partial(geometry.draw, keep_aspect=keep_aspect, **drawn), {"image": view})


def build_balance(section: Mapping[str, Any]) -> Balance:
    """Weights of the terms: {"kind": "fixed"} or {"kind": "uncertainty", "learning_rate": ...}."""
    section = dict(section)
    kinds = {"fixed": balances.fixed, "uncertainty": balances.uncertainty}
    kind = section.pop("kind")
    if kind not in kinds:
        raise UserError(f"balance.kind {kind!r}: not one of {sorted(kinds)}")
    return kinds[kind](**section)


def build_policy(section: Mapping[str, Any]) -> Policy:
    """{"positive": p, "negative": n}, or {"threshold": p} for MuST's two states."""
    return policy.hard(**section) if "threshold" in section else Policy(**section)


# What a run's section may say besides how it trains.
_OPTIONS: dict[str, Any] = {
    "model": {},  # changes to config.model
    "tasks": {},  # {task: changes to its section of config.tasks}, in what the run learns; scores stay what they are
    "policies": {},  # {task: section} in the place of config.policies, students only
    "weights": {},  # of pseudo labels, students only: `must.recipes.weighing.weigher`
    "slam": {},  # correction of the student's predictions, students only: the same
    "oracle_labels": False,  # the truth of config.hidden in the place of pseudo labels, students only
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
        labelled = {name: self.split(name, "train") for name in self.names}
        self.tasks: dict[str, Task] = build_tasks(self.config["tasks"], labelled)
        self.size = tuple(self.config["image"]["size"])
        self.plain = build_encoder(self.config["image"], self.tasks)
        self._models: dict[tuple, Model] = {}
        self._tasks: dict[str, dict[str, Task]] = {}
        _check_runs(self)

    def split(self, task: str, split: str) -> Source:
        """The split of the set that teaches or measures a task."""
        return build_source(self.config["sets"][self.config["labelled"][task]][split])

    def splits(self, split: str, names=None) -> dict[str, Source]:
        """That split for every task."""
        return {name: self.split(name, split) for name in names or self.names}

    def labelled(self) -> list[Source]:
        """The labelled training sets, each once."""
        sets = dict.fromkeys(self.config["labelled"][name] for name in self.names)
        return [build_source(self.config["sets"][name]["train"]) for name in sets]

    def everything(self) -> Source:
        """What the teachers label: the labelled images and the pool."""
        return Concat([*self.labelled(), *self.pool()])

    def pool(self) -> list[Source]:
        """The sets of images without labels; there may be none."""
        return [build_source(section) for section in self.config["pool"].values()]

    def hidden(self) -> dict[str, Source]:
        """{task: truth of the pool that no student may see}, for oracles of experiments and for measuring."""
        return {name: build_source(section) for name, section in self.config.get("hidden", {}).items()}

    def model(self, names, run: str = "student"):
        """A network with the heads of these tasks; asked again, the same one, whose programs are compiled already."""
        section = _merged(self.config["model"], self.settings(run)["model"])
        key = (json.dumps(section, sort_keys=True), tuple(names))
        if key not in self._models:
            self._models[key] = build_model(section, {name: self.tasks[name] for name in names})
        return self._models[key]

    def tasks_of(self, run: str) -> dict[str, Task]:
        """The tasks as a run learns them: with its own changes to their hyper-parameters."""
        if (changes := json.dumps(self.settings(run)["tasks"])) not in self._tasks:
            for name in json.loads(changes):
                if name not in self.names:
                    raise UserError(f"{run}.tasks: no task {name!r}")
            sections = _merged(self.config["tasks"], json.loads(changes))
            self._tasks[changes] = build_tasks(sections, self.splits("train"))
        return self._tasks[changes]

    def weighs(self) -> bool:
        """Whether some student's pseudo labels get weights from the validation split."""
        return any(self.settings(run)["weights"] or self.settings(run)["slam"] for run in self.students())

    def students(self) -> tuple[str, ...]:
        """The student and its arms."""
        return ("student", *self.config["arms"])

    def settings(self, run: str) -> dict[str, Any]:
        """How a kind of run trains: its section of the configuration; an arm's is the student's with its own changes."""
        changes = self.config["arms"].get(run)
        own = self.config[run] if changes is None else _merged(self.config["student"], changes)
        return {**_OPTIONS, **own}

    def schedule(self, run: str) -> stages.Schedule:
        """Steps, batches, optimiser."""
        fields = stages.Schedule._fields
        return stages.Schedule(**{key: value for key, value in self.settings(run).items() if key in fields})


def _merged(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section with changes, nested ones included."""
    nested = {k: _merged(section[k], v) for k, v in changes.items() if isinstance(v, Mapping) and section.get(k)}
    return {**section, **changes, **nested}


def check_sets(built: Built) -> None:
    """Refuses sets that must have nothing in common and have, and validation sets that can tell nothing.

    With weights from the validation split, pictures are compared too: a teacher is nearly always right on what it was
    trained on, and the weights would all be 1.

    Raises:
      UserError: naming the example that two sets hold, or the set.
    """
    learned = built.everything()
    for split in dict.fromkeys(("validation", *built.config["measured_on"])):
        for name, source in built.splits(split).items():
            check_disjoint({"training": learned, split: source})
            if not len(source):
                raise UserError(f"{source.name}: the {split} set of {name} is empty")
    if not built.weighs():
        return
    for name in built.names:
        train, validation = built.split(name, "train"), built.split(name, "validation")
        check_disjoint({"teacher's labelled": train, "validation": validation}, by_content=True)
        if isinstance(built.tasks[name], Classification):
            classes = {int(labels_of(validation, i)[name]["ids"][0]) for i in range(len(validation))}
            if len(classes) == 1:
                only = built.tasks[name].classes[classes.pop()]
                raise UserError(f"{validation.name}: the validation set of {name} holds one class only, {only!r}")


def _check_runs(built: Built) -> None:
    """Arms that are not arms, pools that are too small, and baselines that would train longer or shorter."""
    config = built.config
    for arm, changes in config["arms"].items():
        if arm in config or not arm.isidentifier():
            raise UserError(f"arms.{arm}: a name of letters, digits and _ that no section of the configuration has")
        for key in changes:
            if key not in built.settings("student"):
                raise UserError(f"arms.{arm}.{key}: not a key of student: {', '.join(built.settings('student'))}")
    there = sum(map(len, built.pool()))
    for run in built.students():
        built.tasks_of(run)
        if built.settings(run)["pool_images"] > there:
            raise UserError(f"{run}.pool_images {built.settings(run)['pool_images']}: the pool has {there} images")
    seen = lambda run: config[run]["steps"] * config[run]["batch_size"]  # noqa: E731
    for run in config["baselines"]:
        if run not in config:
            raise UserError(f"baselines: no {run!r}, only 'supervised' and 'scratch'")
        if seen(run) != seen("student"):
            raise UserError(f"{run} sees {seen(run):,} images, the student {seen('student'):,}: give both the same steps")
