"""Joint experts (JEDI): the networks of one seed, what they minimize, and the jobs in which they learn.

Every set of examples has a task of its own name. Its expert is trained alone; the joint stage trains all experts
together with teachers that read the features of all of them.
"""

import functools
import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from must.core import devices
from must.core.types import Model, Objective, Policy, PyTree, Source, UserError
from must.data.clips import ClipEncoder
from must.data.combine import Aliased
from must.data.disjoint import Overlap, look_alikes, overlaps
from must.data.embedded import EmbeddedEncoder, embed
from must.data.merge import Concat
from must.data.pipeline import Encoder, eval_batches
from must.data.splits import Listed
from must.experiment import build, initial, jobs, measure, networks, sections
from must.experiment.labeling import seed_directory
from must.experiment.loss_scales import stated_scales
from must.experiment.sections import changes, each_changes
from must.experiment.selection import Validation
from must.experiment.settings import Experiment, Init, Network, Run
from must.experiment.training import Training, start, train
from must.models import experts as joint_experts
from must.models.experts import TEACHER, Expert, Experts, expert_variables, experts, from_experts
from must.models.multi_head import over_clips
from must.objectives.joint import joint
from must.objectives.labels import labels
from must.objectives.objective import objective
from must.tasks.base import Task

ARM, OVERLAPS = "jedi", "overlaps"  # the joint stage itself, beside its arms; the job that searches for overlaps


@dataclass(frozen=True)
class ExpertSettings:
    """The network of one set.

    Attributes:
      frames: of a clip; 0 for still images.
      model: changes to the network of the configuration.
      init: weights that it starts from, in place of those of `expert.init`.
    """

    frames: int = 0
    model: Mapping[str, Any] = changes("model")
    init: Init = field(default_factory=Init)


@dataclass(frozen=True)
class Joint(Run):
    """How the joint stage trains.

    Attributes:
      distill: weight a_U of distillation from the teachers.
      student: weight a_S of the students' own loss.
      teacher: weight a_T of the teachers' own loss.
      temperature: tau of distillation.
      teacher_gradient: which backbones the teachers' own loss reaches: "all", the "own" set's, or "none".
      threshold: a prediction teaches where the teacher's largest probability is at least this.
      own_set: distill on the annotated examples too.
      ema_teacher: decay of the average that teaches; 0: the current weights do.
      shuffled: every example gets the prediction for another one; a control.
      sampling: "equal", a batch of every set and of the pool in a step; "proportional", one batch of all together.
      frozen: backbones keep their weights, and linear layers learn on features that are computed once.
      random_teachers: teachers start from random numbers, not as their experts.
      vectorize: apply experts that are alike at once.
    """

    distill: float = 1.0
    student: float = 1.0
    teacher: float = 1.0
    temperature: float = 1.0
    teacher_gradient: Literal["all", "own", "none"] = "all"
    threshold: float = 0.0
    own_set: bool = False
    ema_teacher: float = 0.0
    shuffled: bool = False
    sampling: Literal["equal", "proportional"] = "equal"
    frozen: bool = False
    random_teachers: bool = False
    vectorize: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: must be positive")
        for name in ("threshold", "ema_teacher"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0 and below 1")


@dataclass(frozen=True)
class JointSettings(Experiment):
    """Joint experts.

    Attributes:
      sets: {set: {split: {"kind", arguments}}}; a set has the name of its task.
      pool: {name: {"kind", arguments}}, examples without labels.
      eval_splits: splits that are scored; the first one is the headline.
      declared: stand-ins for planning with absent data.
      test_clips: clips of a video whose logits are averaged when it is scored.
      overlaps: what happens to examples that train and also evaluate: "refuse", "drop" or "ignore".
      overlaps_by: how they are found: "content", equal pictures and frames, or "looks", rescaled and recompressed
        copies too.
      model: backbone and neck of every expert.
      experts: {set: its network}.
      expert: how experts train.
      joint: how the joint stage trains.
      arms: {name: changes to `joint`}; every arm makes as many steps as the joint stage.
      words: {column: what it is}.
      controls: columns that are expected to lose.
      pairs: (subject, reference) of the contrasts.
      expected: (better, worse) pairs, stated before the run.
    """

    sets: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    pool: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    eval_splits: tuple[str, ...] = ("test",)
    declared: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    test_clips: int = 1
    overlaps: Literal["refuse", "drop", "ignore"] = "refuse"
    overlaps_by: Literal["content", "looks"] = "content"
    model: Network = Network()
    experts: Mapping[str, ExpertSettings] = field(default_factory=dict)
    expert: Run = Run()
    joint: Joint = Joint()
    arms: Mapping[str, Mapping[str, Any]] = each_changes("joint")
    words: Mapping[str, str] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    expected: tuple[tuple[str, str], ...] = ()

    @property
    def train_sets(self) -> dict[str, str]:
        """{task: its set}."""
        return {name: name for name in self.tasks}

    def __post_init__(self):
        super().__post_init__()
        for name in self.tasks:
            for section in ("sets", "experts"):
                if name not in getattr(self, section):
                    raise ValueError(f"{section}: no {name!r}, which config.tasks has")
            for split in ("train", "validation", *self.eval_splits):
                if split not in self.sets[name]:
                    raise ValueError(f"sets.{name}: no split {split!r}")
            if self.experts[name].frames < (1 if self.image.video else 0):
                raise ValueError(f"experts.{name}.frames={self.experts[name].frames}: must be at least 1")
        for section in ("sets", "experts"):
            for name in getattr(self, section):
                if name not in self.tasks:
                    raise ValueError(f"{section}.{name}: config.tasks has no such task")
        if self.test_clips < 1 or (self.test_clips > 1 and not self.image.video):
            raise ValueError(f"test_clips={self.test_clips}: at least 1, and 1 for still images")
        for name, arm in self.arms.items():
            if arm.get("steps") is not None:
                raise ValueError(f"arms.{name}.steps: every arm makes as many steps as the joint stage")


class Seed(NamedTuple):
    """The settings of one seed without the examples that overlap with what evaluates.

    Attributes:
      settings: of the recipe.
      seed: of everything random.
      dropped: ids that neither train nor select.
    """

    settings: JointSettings
    seed: int
    dropped: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """The sets."""
        return tuple(self.settings.tasks)

    @property
    def tasks(self) -> dict[str, Task]:
        """{set: task}."""
        return build.tasks_of(self.settings)

    def split(self, name: str, split: str) -> Source:
        """A split of a set."""
        source = build.split(self.settings, name, split)
        return self._kept(source) if split in ("train", "validation") else source

    def splits(self, split: str, names: Iterable[str] | None = None) -> dict[str, Source]:
        """{set: that split}."""
        return {name: self.split(name, split) for name in names or self.names}

    def pool(self) -> list[Source]:
        """The examples without labels."""
        return [self._kept(build.source(section)) for section in self.settings.pool.values()]

    def _kept(self, source: Source) -> Source:
        ids = [id for id in source.ids if id not in self.dropped] if self.dropped else source.ids
        return source if len(ids) == len(source) else Listed(source, ids=ids)


def run_of(settings: JointSettings, arm: str) -> Joint:
    """How an arm of the joint stage trains."""
    return sections.changed(settings.joint, settings.arms.get(arm, {}), f"config.arms.{arm}")


def expert_network(settings: JointSettings, name: str) -> Network:
    """Backbone and neck of one expert."""
    return sections.changed(settings.model, settings.experts[name].model, f"config.experts.{name}.model")


def expert_init(settings: JointSettings, name: str) -> Init:
    """The weights that one expert starts from."""
    own = settings.experts[name].init
    return own if own.weights else settings.expert.init


def check_weights(settings: JointSettings) -> None:
    """Refuses weights that an expert cannot start from, and those of a joint stage, which starts from its experts."""
    for name in settings.experts:
        inputs = expert_encoder(settings, name).blank_inputs()["image"]
        network, init = expert_network(settings, name), expert_init(settings, name)
        task = {name: build.tasks_of(settings)[name]}
        initial.check(expert_model(settings, name), network, inputs, init, task)
    for arm in (ARM, *settings.arms):
        if run_of(settings, arm).init.weights:
            where = "joint" if arm == ARM else f"arms.{arm}"
            raise UserError(f"config.{where}.init: the joint stage starts from its experts; set config.expert.init")


def expert_model(settings: JointSettings, name: str) -> Model:
    """The network of one expert with its head."""
    return build.network(expert_network(settings, name), {name: build.tasks_of(settings)[name]})


def joined(settings: JointSettings, run: Joint | None = None) -> Experts:
    """All experts with their teachers, as a run of the joint stage learns them."""
    tasks = build.tasks_of(settings, run)
    parts = tuple((name, expert_model(settings, name), task, _view(settings, name)) for name, task in tasks.items())
    return _joined(parts, bool(run and run.vectorize))


@functools.lru_cache(maxsize=16)
def _joined(parts: tuple[tuple[str, Model, Task, str], ...], vectorize: bool) -> Experts:
    own = {name: Expert(model, len(task.classes), view, task.dropout) for name, model, task, view in parts}
    try:
        return experts(own, vectorize=vectorize)
    except ValueError as error:
        raise UserError(f"config.joint.vectorize: {error}") from None


def expert_encoder(settings: JointSettings, name: str, run: Run | None = None, clips: int = 1) -> Encoder | ClipEncoder:
    """How an example becomes a row for one expert."""
    task = build.tasks_of(settings, run)[name]
    return build.encoder(settings.image, {name: task}, run, expert_frames(settings, name), clips)


def expert_frames(settings: JointSettings, name: str) -> dict[str, int]:
    """{view: frames} of one expert's clips; {} of still images."""
    return {"image": settings.experts[name].frames} if settings.image.video else {}


def joint_encoder(
    settings: JointSettings, run: Run | None = None, tasks: Iterable[str] | None = None
) -> Encoder | ClipEncoder:
    """How an example becomes a row for all experts: experts with clips of one length share a view."""
    every = build.tasks_of(settings, run)
    frames = None
    if settings.image.video:
        frames = {_view(settings, name): settings.experts[name].frames for name in every}
    return build.encoder(settings.image, {name: every[name] for name in tasks or every}, run, frames)


def _view(settings: JointSettings, name: str) -> str:
    return f"{settings.experts[name].frames} frames" if settings.image.video else "image"


def both_tasks(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """The tasks of the joint network: of every set its student's and its teacher's."""
    return dict(tasks) | {TEACHER.format(name): task for name, task in tasks.items()}


def both_splits(one: Seed, split: str) -> dict[str, Source]:
    """{task: what evaluates it}."""
    sources: dict[str, Source] = {}
    for name in one.names:
        source = Aliased(one.split(name, split), {TEACHER.format(name): name})
        sources |= {name: source, TEACHER.format(name): source}
    return sources


def all_examples(settings: JointSettings) -> Source:
    """Everything that trains something."""
    one = Seed(settings, 0)
    return Concat([*one.splits("train").values(), *one.pool()])


def joint_objective(settings: JointSettings, run: Joint, initial: PyTree, parts: Experts | None = None) -> Objective:
    """What a run of the joint stage minimizes; an average of teachers starts from the parameters `initial`."""
    names = inspect.signature(joint).parameters
    options = {name: value for name, value in vars(run).items() if name in names and name != "tasks"}
    tasks = build.tasks_of(settings, run)
    options["ema_decay"] = run.ema_teacher
    return joint(parts or joined(settings, run), tasks, **options, initial=initial)


def joint_batches(one: Seed, run: Joint) -> Source | dict[str, Source]:
    """What a run draws from: {set or "pool": source}, or all in one."""
    parts = one.splits("train")
    if pool := one.pool():
        parts["pool"] = Concat(pool)
    return parts if run.sampling == "equal" else Concat(list(parts.values()))


def find_overlaps(settings: JointSettings, seed: int, *, directory: str, report) -> dict:
    """The job: examples that train or select and also evaluate, by content (trap J9), and the ids that may not train.

    Raises:
      UserError: some exist, and `overlaps` refuses them.
    """
    found = leaks(Seed(settings, seed))
    if found and settings.overlaps == "refuse":
        first, more = found[0], f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError(
            f"{first.other_id} ({first.other_use}) shows what {first.id} ({first.use}) shows, {_frames(first)}{more}; "
            "--config.overlaps=drop leaves them out, ignore keeps them"
        )
    for one in found:
        print(f"overlap: {one.other_id} ({one.other_use}) shows {one.id} ({one.use}), {_frames(one)}: left out")
    return {"dropped": sorted({one.other_id for one in found}), "overlaps": [list(one) for one in found]}


def leaks(one: Seed) -> list[Overlap]:
    """Overlaps of what evaluates, selects and trains, over all sets and the pool; the one to leave out comes second."""
    splits = one.settings.eval_splits
    evaluates = {f"{name} {split}": one.split(name, split) for name in one.names for split in splits}
    selects = {f"{name} validation": one.split(name, "validation") for name in one.names}
    trains = {f"{name} train": one.split(name, "train") for name in one.names}
    trains |= {f"pool {source.name}": source for source in one.pool()}
    rank = {**dict.fromkeys(evaluates, 0), **dict.fromkeys(selects, 1), **dict.fromkeys(trains, 2)}
    # Two sets that train may share examples, and so may two that evaluate.
    search = look_alikes if one.settings.overlaps_by == "looks" else overlaps
    return [o for o in search({**evaluates, **selects, **trains}) if rank[o.use] < rank[o.other_use]]


def _frames(overlap: Overlap) -> str:
    return f"{overlap.shared} frame{'s' if overlap.shared > 1 else ''}"


def seed_of(settings: JointSettings, seed: int, top: str) -> Seed:
    """A seed without the examples that its search for overlaps lists."""
    if settings.overlaps == "ignore":
        return Seed(settings, seed)
    return Seed(settings, seed, frozenset(jobs.facts(top, OVERLAPS)["dropped"]))


def train_expert(settings: JointSettings, seed: int, name: str, *, directory: str, report) -> dict:
    """The job: the network of one set, on its labels alone."""
    one = seed_of(settings, seed, seed_directory(directory, f"experts/{name}"))
    run, task = settings.expert, {name: one.tasks[name]}
    learned = {name: build.tasks_of(settings, run)[name]}
    model, encoder = expert_model(settings, name), expert_encoder(settings, name, run)
    training = Training(
        run=run,
        model=model,
        tasks=task,
        objective=objective(
            model, [labels(learned, {name: Policy()})], scales=stated_scales(run, learned), normalize=run.normalize
        ),
        balance=build.balance(run),
        source=one.split(name, "train"),
        encoder=encoder,
        validation=Validation(expert_encoder(settings, name), one.splits("validation", (name,))),
        variables=start(model, expert_network(settings, name), encoder, seed, expert_init(settings, name)),
        changes=build.row_changes(run, learned),
        precision=expert_network(settings, name).precision,
    )
    _describe(directory, settings, name, run)
    facts = train(directory, training, seed=seed, report=report)
    rows = functools.partial(_rows_of_student, one, directory, name)
    return facts | {split: measure.keep_rows(directory, split, task, rows(split)) for split in settings.eval_splits}


def train_joint(settings: JointSettings, seed: int, arm: str, *, directory: str, report) -> dict:
    """The job: all experts with their teachers; an arm differs in some settings and makes as many steps."""
    top = seed_directory(directory, os.path.join("joint", arm))
    one, run, stop = seed_of(settings, seed, top), run_of(settings, arm), 0
    if arm != ARM:
        run = sections.changed(run, {"patience": 0}, "config.joint")
        stop = jobs.facts(top, os.path.join("joint", ARM))["steps"]
    trained = {name: networks.load(os.path.join(top, "experts", name)).variables for name in one.names}
    random = jax.random.fold_in(jax.random.key(seed), 3) if run.random_teachers else None
    variables = from_experts(trained, random)
    for name in one.names:
        _describe(os.path.join(directory, "students", name), settings, name, run)
    make = _head_training if run.frozen else _full_training
    facts = train(directory, make(one, run, variables)._replace(stop=stop), seed=seed, report=report)
    return facts | _score_joint(one, directory)


def _describe(directory: str, settings: JointSettings, name: str, run: Run) -> None:
    if devices.is_writer():
        task, frames = {name: build.tasks_of(settings)[name]}, expert_frames(settings, name)
        networks.describe(directory, expert_network(settings, name), task, settings.image, frames, run)


def load_joint(settings: JointSettings, directory: str) -> PyTree:
    """Variables of students and teachers where their students were best together."""
    return networks.load_weights(directory, joined(settings).model, joint_encoder(settings).blank_inputs())[0]


def _full_training(one: Seed, run: Joint, variables: PyTree) -> Training:
    """End to end."""
    settings = one.settings
    validation = Validation(
        joint_encoder(settings),
        both_splits(one, "validation"),
        view=None,
        tasks=one.names,
        parts={name: functools.partial(expert_variables, name=name) for name in one.names},
    )
    return Training(
        run=run,
        model=joined(settings, run).model,
        tasks=both_tasks(one.tasks),
        objective=joint_objective(settings, run, variables["params"]),
        balance=build.balance(run),
        source=joint_batches(one, run),
        encoder=joint_encoder(settings, run),
        validation=validation,
        variables=variables,
    )


def _head_training(one: Seed, run: Joint, variables: PyTree) -> Training:
    """The staged, frozen twin: backbones are applied once to every example, without augmentation, then the linear
    layers of students and teachers learn on the features."""
    settings, learned = one.settings, build.tasks_of(one.settings, run)
    whole = joined(settings)
    widths = {name: joint_experts.student_head(variables["params"], name)["kernel"].shape[0] for name in one.names}
    heads = joint_experts.experts(
        {
            name: joint_experts.cached(name, widths[name], len(task.classes), task.dropout)
            for name, task in learned.items()
        }
    )
    compute = functools.partial(jax.jit(whole.features), variables)

    def embedded(source: Source) -> Source:
        encoder = joint_encoder(settings)._replace(tasks={})
        return embed(source, compute, eval_batches(source, encoder, batch_size=32))

    source = joint_batches(one, run)
    source = {k: embedded(part) for k, part in source.items()} if isinstance(source, Mapping) else embedded(source)
    splits = {}
    for split, names in build.by_source(both_splits(one, "validation")):
        splits |= dict.fromkeys(names, embedded(split))

    def whole_network(learned_heads: PyTree) -> PyTree:
        """The backbones under linear layers that were learned without them."""
        params = dict(variables["params"]["experts"])
        for name in one.names:
            params[name] = {**params[name], **learned_heads["params"]["experts"][name]}
        return {**variables, "params": {"experts": params, "teachers": learned_heads["params"]["teachers"]}}

    own = {n: {"params": {f"heads_{n}": variables["params"]["experts"][n][f"heads_{n}"]}} for n in one.names}
    start = from_experts(own)
    start["params"]["teachers"] = variables["params"]["teachers"]
    validation = Validation(
        EmbeddedEncoder(both_tasks(one.tasks), widths),
        splits,
        view=None,
        tasks=one.names,
        parts={name: lambda found, name=name: expert_variables(whole_network(found), name) for name in one.names},
        whole=whole_network,
    )
    return Training(
        run=run,
        model=heads.model,
        tasks=both_tasks(one.tasks),
        objective=joint_objective(settings, run, start["params"], heads),
        balance=build.balance(run),
        source=source,
        encoder=EmbeddedEncoder(learned, widths),
        validation=validation,
        variables=start,
    )


def _score_joint(one: Seed, directory: str) -> dict:
    """Every student by itself where it was best, teachers where the students were best together: {split: scores}."""
    settings, facts = one.settings, {}
    variables = jax.device_put(load_joint(settings, directory))
    every = both_tasks(one.tasks)
    taught = {name: task for name, task in every.items() if name not in one.names}
    model = joined(settings).model
    for split in settings.eval_splits:
        rows = {}
        for name in one.names:
            rows |= _rows_of_student(one, os.path.join(directory, "students", name), name, split)
        clips = settings.test_clips
        several, encoder = _over_clips(model) if clips > 1 else model, joint_encoder(settings)
        encoder = encoder._replace(clips=clips) if clips > 1 else encoder
        rows |= measure.measure(variables, several, taught, encoder, both_splits(one, split), view=None)
        facts[split] = measure.keep_rows(directory, split, every, rows)
    return facts


def _rows_of_student(one: Seed, directory: str, name: str, split: str) -> dict:
    model, encoder = student_as_scored(one.settings, name)
    variables = jax.device_put(networks.load(directory).variables)
    return measure.measure(variables, model, {name: one.tasks[name]}, encoder, one.splits(split, (name,)))


def student_as_scored(settings: JointSettings, name: str) -> tuple[Model, Encoder | ClipEncoder]:
    """The network of one set and its encoder as they are scored: over several clips of a video."""
    clips, model = settings.test_clips, expert_model(settings, name)
    return _over_clips(model) if clips > 1 else model, expert_encoder(settings, name, clips=clips)


# Asked again, the same object, whose programs are compiled already.
_over_clips = functools.lru_cache(maxsize=16)(over_clips)


def planned(settings: JointSettings, run: Run, names) -> tuple:
    """(key -> variables, inputs of one row, what it minimizes) of a run, for its cost; see `must.experiment.plan`."""
    if isinstance(run, Joint):
        inputs, parts = joint_encoder(settings).blank_inputs(), joined(settings, run)
        shapes = jax.eval_shape(parts.init, jax.random.key(0), inputs)["params"]
        initial = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        return lambda key: parts.init(key, inputs), inputs, joint_objective(settings, run, initial)
    (name,) = names
    model, inputs = expert_model(settings, name), expert_encoder(settings, name).blank_inputs()
    tasks = {name: build.tasks_of(settings)[name]}
    minimized = objective(model, [labels(tasks, {name: Policy()})], scales={name: 1.0})
    return lambda key: model.init(key, inputs["image"]), inputs, minimized


def batches_of_step(settings: JointSettings, run: Run, names) -> int:
    """How many batches a step of a run takes."""
    return len(names) + bool(settings.pool) if isinstance(run, Joint) and run.sampling == "equal" else 1
