"""Labeling alone: external teachers label images -> which labels count -> quality, gallery, files for other tools.

Nothing trains. Thresholds, pages and files may change in the same workdir: no teacher runs again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from must.core.arguments import converted
from must.core.types import Source, Teacher, UserError
from must.data.merge import Concat
from must.experiment import acceptance, build, labeling, plan, show
from must.experiment.external import external_teacher
from must.experiment.jobs import Job
from must.experiment.labeling import EVALUATION, HELD_OUT, POOL, LabelPass, Pairs, label_job, policy_job
from must.experiment.run import DISPLAY, Members, Recipe
from must.experiment.sections import by_task, plain
from must.experiment.settings import Experiment, Files, Gallery, Label, LabelPolicy, Quality
from must.readers.records import Records, read_additions, read_provenance
from must.tasks.base import Task

STAGES = ("label", *show.STAGES)
_SPLITS = {HELD_OUT: "validation", EVALUATION: "test"}


@dataclass(frozen=True)
class Settings(Experiment):
    """Labeling alone.

    Attributes:
      images: {name: {"kind", arguments}}, what is labeled.
      truth: {task: {"validation" | "test": {"kind", arguments}}}; "validation" chooses thresholds, "test" measures the
        quality of the labels.
      oracle_truth: {task: {"kind", arguments}}, the truth of the labeled images, for the gallery.
      teachers: {name: {"make": "package.module:function", ...} or {"run": directory}, with "tasks": those that it
        labels, by default the one of its own name}.
      label: the label pass.
      onto: directory of finished records that the labels are added to, in place of `images`.
      policies: {task: which of its labels count}; here those with a score from 0.5 where nothing decides it.
      quality: the page about the quality of the labels.
      gallery: the gallery of the labels.
      files: the labels as files.
    """

    images: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    truth: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    oracle_truth: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    teachers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    label: Label = Label()
    onto: str = ""
    policies: Mapping[str, LabelPolicy] = by_task(LabelPolicy)
    quality: Quality = Quality()
    gallery: Gallery = Gallery()
    files: Files = Files()

    def __post_init__(self):
        super().__post_init__()
        if len(self.seeds) > 1:
            raise ValueError("seeds: labeling draws nothing at random; set one")
        for section in ("truth", "oracle_truth", "policies"):
            for task in getattr(self, section):
                if task not in self.tasks:
                    raise ValueError(f"{section}.{task}: no such task; tasks: {', '.join(self.tasks)}")
        if bool(self.images) == bool(self.onto):
            raise ValueError("images: set either the images to label, or `onto`, finished records to add labels to")
        for task in self.tasks:
            if self.policy(task).from_validation and not self.truth.get(task, {}).get("validation"):
                raise ValueError(f"truth.{task}.validation: required to choose the thresholds of policies.{task} from")

    def policy(self, task: str) -> LabelPolicy:
        """Which labels of a task count, with every value set."""
        return self.policies.get(task, LabelPolicy()).resolved({"positive": 0.5, "negative": 0.5})


def jobs(members: Members, workers: int) -> list[Job]:
    """All jobs, in the order of preference; `workers` processes label side by side."""
    (member,) = members
    settings, seed, policies = member.settings, member.seed, plain(member.settings.policies)
    parts = tuple(f"{label_job()}/{k}" for k in range(workers))
    work = [Job(part, "label", label, (settings, k, workers), shared=True) for k, part in enumerate(parts)]
    work.append(Job(policy_job(), "label", choose_policies, (settings,), parts, settings=policies))
    return work + show.show_jobs(settings, seed, "", (policy_job(),), shown_labels, policies)


def label(settings: Settings, index: int, count: int, *, directory: str, report) -> dict:
    """The job: one worker's part of the label pass."""
    top = labeling.seed_directory(directory, f"{label_job()}/{index}")
    labeling.run_pass(partial(_pass, settings, images_to_label, settings.onto), top, (index, count), report)
    return {}


def label_evaluation(settings: Settings, top: str, report) -> None:
    """Labels the images whose truth measures the quality of the labels."""
    labeling.run_pass(partial(_pass, settings, _evaluation, ""), top, (0, 1), report)


def _evaluation(settings: Settings) -> dict[str, Source]:
    return {EVALUATION: build.together(_truth(settings, EVALUATION))}


def _pass(settings: Settings, images: Callable, onto: str) -> tuple[LabelPass, list[Teacher]]:
    """The pass over images(settings), and its teachers."""
    tasks, section = tasks_of(settings), settings.label
    names_of = ("shards", "batch_size", "copy_images", "max_rejects", "patience")
    options = {name: getattr(section, name) for name in names_of}
    encoder, tiles = build.encoder(settings.image, tasks), (section.tiles, section.overlap)
    one = LabelPass(images(settings), tasks, encoder, options, section.hflip_tta, "", onto, tiles)
    return one, list(teachers_of(settings, tasks).values())


def choose_policies(settings: Settings, *, directory: str, report) -> dict:
    """The job: which labels count."""
    top, tasks = labeling.seed_directory(directory, policy_job()), tasks_of(settings)
    encoder, chosen = build.encoder(settings.image, tasks), {}
    for name, task in tasks.items():
        truth = _truth(settings, HELD_OUT).get(name)
        pairs: Pairs = labeling.recorded_pairs(top, "", truth, name, encoder, task) if truth else iter(())
        chosen[name] = labeling.fitted(task, name, settings.policy(name), pairs)
    labeling.save(f"{directory}/{labeling.POLICIES}", chosen, tasks)
    policies = {name: policy for name, (policy, _) in chosen.items()}
    truths, images = _truth(settings, HELD_OUT), _pictures(settings)

    def records(name: str, at: str) -> Records:
        return Records(at, tasks=list(tasks), images=images.get(name), verify=False)

    pool = records(POOL, settings.onto or labeling.records_directory(top))
    held_out = records(HELD_OUT, labeling.records_directory(top, HELD_OUT)) if truths else None
    return acceptance.measure(tasks, policies, encoder, pool, truths, held_out)


def shown_labels(settings: Settings) -> show.Labels:
    """What the pages show."""
    tasks = tasks_of(settings)
    oracle = {name: build.source(section) for name, section in settings.oracle_truth.items()}
    encoder = build.encoder(settings.image, tasks)
    truth, evaluation = _truth(settings, EVALUATION), partial(label_evaluation, settings)
    return show.Labels(settings.title, tasks, encoder, truth, oracle, evaluation, settings.onto, _pictures(settings))


def _pictures(settings: Settings) -> dict[str, Source]:
    """{name of records that hold no pictures: the images that are labeled}."""
    if settings.label.copy_images:
        return {}
    truth = _truth(settings, EVALUATION)
    return images_to_label(settings) | ({EVALUATION: build.together(truth)} if truth else {})


def tasks_of(settings: Settings) -> dict[str, Task]:
    """The tasks, with the class names of their truth."""
    return build.tasks(settings.tasks, {**_truth(settings, EVALUATION), **_truth(settings, HELD_OUT)})


def images_to_label(settings: Settings) -> dict[str, Source]:
    """{name of the records: images}."""
    images = {} if settings.onto else {POOL: every_image(settings)}
    truth = _truth(settings, HELD_OUT)
    return images | ({HELD_OUT: build.together(truth)} if truth else {})


def every_image(settings: Settings) -> Source:
    """The images to label, or those of the records that get further labels."""
    if settings.onto:
        return Records(settings.onto, tasks=(), verify=False)
    return Concat([build.source(section) for section in settings.images.values()])


def teachers_of(settings: Settings, tasks: Mapping[str, Task]) -> dict[str, Teacher]:
    """{name: teacher}, each with its tasks.

    Raises:
      UserError: a task without a teacher or with two, or a teacher that cannot be made.
    """
    made, owner = {}, {}
    for name, section in settings.teachers.items():
        section = dict(section)
        mine = converted(section.pop("tasks", None) or (name,), tuple[str, ...], f"config.teachers.{name}.tasks")
        for task in mine:
            if task not in tasks:
                raise UserError(f"config.teachers.{name}: no task {task!r}; tasks: {', '.join(tasks)}")
            if task in owner:
                raise UserError(f"config.teachers.{name}: {owner[task]} already labels {task}")
            owner[task] = name
        own, mirrored = {task: tasks[task] for task in mine}, settings.label.hflip_tta
        made[name] = external_teacher(name, section, own, settings.image.size, hflip_tta=mirrored)
    if missing := [name for name in tasks if name not in owner]:
        raise UserError(f"config.teachers: no teacher labels {missing[0]!r}")
    return made


def check(members: Members) -> None:
    """Everything about a configuration that can be wrong and shows without labeling."""
    settings = members[0].settings
    if settings.onto:
        known, added = read_provenance(settings.onto), read_additions(settings.onto).values()
        own = set(known["tasks"]) - {task for facts in added for task in facts["tasks"]}
        if twice := set(settings.tasks) & own:
            raise UserError(f"{settings.onto}: has labels of {min(twice)!r} already")
    teachers_of(settings, tasks_of(settings))


def dry_run(members: Members) -> None:
    """Prints teachers, images, and the cost of the pass as measured on one batch."""
    settings = members[0].settings
    tasks = tasks_of(settings)
    teachers = teachers_of(settings, tasks)
    print(f"{settings.title}: labels in a frame of {settings.image.size}")
    print("\nteachers")
    for name, teacher in teachers.items():
        size = f"input {teacher.size[0]} x {teacher.size[1]}" if teacher.size else "pictures as they are"
        print(f"  {name:16} {', '.join(teacher.tasks)}; {size}, {teacher.fingerprint[:12]}")
    print("\nimages")
    for name, source in images_to_label(settings).items():
        print(f"  {name:16} {len(source):,}")
    print("\n" + plan.label_plan(settings, every_image(settings), list(teachers.values())))


def _truth(settings: Settings, kind: str) -> dict[str, Source]:
    """{task: its truth on the held-out images, or on the evaluation images}."""
    split = _SPLITS[kind]
    return {
        name: build.joined(splits[split], splits.get(_SPLITS[HELD_OUT]) or splits[split])
        for name, splits in settings.truth.items()
        if splits.get(split)
    }


RECIPE = Recipe("label", Settings, STAGES, jobs, check, dry_run, changeable=("policies", *DISPLAY))
