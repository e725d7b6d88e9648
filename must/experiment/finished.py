"""What a finished workdir may be asked for at any time: its students as files, their predictions, their scores.

Nothing trains and nothing of the run changes. The options of a request are a section of its own, `--options`.
"""

import ast
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from must.core import files
from must.core.arguments import check_names
from must.core.types import Metric, Source, UserError
from must.data.classes import Remapped, aligned, make_class_map
from must.data.combine import Aliased, labels_of
from must.evaluate.evaluate import summarize
from must.evaluate.results import Column, Score, compare
from must.experiment import build, measure, networks, sections
from must.experiment.export import export_students, interval_scores
from must.experiment.predicting import Options as PredictOptions
from must.experiment.predicting import check_images, predict, spread
from must.experiment.progress import Display
from must.experiment.run import FINISHED, Member, Members, Recipe, members_of, read_config, same_configuration
from must.readers.names import file_of
from must.report.table import show, table
from must.tasks.base import Task


class Request(NamedTuple):
    """What the command line asks for.

    Attributes:
      images: of "predict": a folder, a picture or a video.
      output: folder of the predictions.
      options: a section as JSON or as a Python literal, or the name of a JSON file.
    """

    images: str = ""
    output: str = ""
    options: str = ""


@dataclass(frozen=True)
class Export:
    """Options of `--stage=export`.

    Attributes:
      networks: directories below the workdir; by default the recipe's students.
      license: of the weights, for the model card.
      data_licenses: {set: license}.
      limits: what the model is not made for.
      contact: whom to ask.
    """

    networks: tuple[str, ...] = ()
    license: str = ""
    data_licenses: Mapping[str, str] = field(default_factory=dict)
    limits: str = ""
    contact: str = ""


@dataclass(frozen=True)
class Evaluate:
    """Options of `--stage=evaluate`.

    Attributes:
      name: of the result; by default that of the set and the split.
      networks: directories below the workdir; by default the recipe's students.
      set: {"kind", arguments} of any data set; by default each task's own.
      split: of the tasks' own sets, where `set` is not given.
      tasks: that are evaluated; by default all that are labeled.
      labels: {task: name of its labels in the set}, where they differ.
      classes: {class of the set: class of the task, "ignore" or "unknown"}; "*" stands for all others, which keep
        their names without it.
      batch_size: images of one forward pass.
    """

    name: str = ""
    networks: tuple[str, ...] = ()
    set: Mapping[str, Any] = field(default_factory=dict)
    split: str = ""
    tasks: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 64

    def __post_init__(self):
        if bool(self.set) == bool(self.split):
            raise ValueError("set: give either `set`, any data set, or `split`, of the tasks' own sets")


OPTIONS: dict[str, type] = {"export": Export, "predict": PredictOptions, "evaluate": Evaluate}


def answer(recipe: Recipe, workdir: str, stage: str, request: Request, config: Any = None) -> None:
    """Does what is asked of a finished workdir.

    Args:
      recipe: of the workdir.
      workdir: absolute path.
      stage: one of `FINISHED`.
      request: of the command line.
      config: a configuration that was given beside the workdir, or None.

    Raises:
      UserError: a workdir that is not finished or is of another configuration, or options that cannot be right.
    """
    assert stage in FINISHED and recipe.students is not None
    if jax.process_count() > 1:
        raise UserError(f"--stage={stage}: runs in one process")
    options = sections.parse(OPTIONS[stage], read_options(request.options), "--options")
    if stage == "predict":
        check_images(request.images)
    elif request.images or request.output:
        raise UserError(f"--images, --output: only for --stage=predict, not for --stage={stage}")
    known = read_config(workdir)
    if config is not None:
        same_configuration(recipe, workdir, known, config)
    mine = members_of(recipe, workdir, known)
    students = {name: name for name in options.networks} or students_of(recipe, mine)
    if stage == "export":
        _export(mine, students, workdir, options)
    elif stage == "predict":
        predict({name: os.path.join(workdir, at) for name, at in students.items()}, workdir, request, options)
    else:
        _evaluate(mine, students, workdir, options)


def students_of(recipe: Recipe, mine: Members) -> dict[str, str]:
    """{name: directory of its network below the workdir}, what a recipe is for.

    Raises:
      UserError: it trains no student, or networks of which none is it.
    """
    if recipe.students is None:
        raise UserError(f"the recipe {recipe.name!r} trains no student")
    if not (students := recipe.students(mine)):
        where = "--options=\"{'networks': ['...']}\", directories below the workdir"
        raise UserError(f"the recipe {recipe.name!r} has many networks and no student of its own; name some: {where}")
    return students


def read_options(text: str) -> Mapping[str, Any]:
    """`--options`: a file's JSON, or JSON or a Python literal itself.

    Raises:
      UserError: it is none of these.
    """
    if not text:
        return {}
    content, where = text, "--options"
    if not text.lstrip().startswith("{"):
        where = f"--options={text}"
        try:
            content = files.read_bytes(text).decode()
        except (UserError, ValueError) as error:
            raise UserError(f"--options={error}; expected {{...}} or a JSON file") from None
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            if isinstance(found := read(content), dict):
                return found
    raise UserError(f"{where}: neither JSON nor a Python literal of a mapping, such as {{'tiles': (2, 2)}}")


def _member(mine: Members, directory: str) -> Member:
    """Whose network it is."""
    fitting = [one for one in mine if directory.startswith(one.prefix)]
    if not fitting:
        raise UserError(f"{directory}: expected one of {', '.join(one.prefix for one in mine)} before it")
    return max(fitting, key=lambda one: len(one.prefix))


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[..., None]]:
    """report(done, total, note), shown on the terminal."""
    start = time.time()
    with Display(1) as display:
        yield lambda *progress: display.update(name, *progress)
        display.finish(name, time.time() - start)


def _export(mine: Members, students: Mapping[str, str], workdir: str, options: Export) -> None:
    directory = os.path.join(workdir, "export")
    terms = {name: value for name, value in vars(options).items() if value and name != "networks"}
    with contextlib.ExitStack() as held, _progress("export") as report:
        if not held.enter_context(files.lock(os.path.join(workdir, "lock"))):
            raise UserError(f"{workdir}: another run is using this workdir")
        for name, at in students.items():
            export_students(_member(mine, at), {name: at}, directory=directory, report=report, terms=terms)
    for name in students:
        print(f"exported: {os.path.join(directory, name)}")


def _evaluate(mine: Members, students: Mapping[str, str], workdir: str, options: Evaluate) -> None:
    """Scores of the students on the asked examples, as a table and as <workdir>/evaluate/<name>.json."""
    metrics: dict[str, Metric] = {}
    scores: list[Score] = []
    columns: dict[str, Column] = {}
    details: dict[str, Any] = {}
    with _progress("evaluate") as report:
        for number, (name, at) in enumerate(students.items()):
            report(number, len(students), name)
            member, trained = _member(mine, at), networks.load(os.path.join(workdir, at))
            splits = _splits(member.settings, trained.tasks, options)
            tasks = {task: trained.tasks[task] for task in splits if options.networks or task not in metrics}
            variables = jax.device_put(trained.variables)
            model, encoder = trained.model, trained.encoder()
            rows = measure.measure(variables, model, tasks, encoder, splits, batch_size=options.batch_size)
            found = summarize(tasks, rows)
            column = name.replace(os.sep, " ") if options.networks else "student"
            columns[column] = Column(column)
            for task, one in tasks.items():
                metrics[task] = one.metrics[0]
                value = found[task][one.metrics[0].name]
                scores.append(Score(column, task, options.split or "set", member.seed, value))
                count = len(next(iter(rows[task].values())))
                entry = interval_scores(one, found[task], rows[task]) | {"examples": count}
                details.setdefault(column, {})[task] = entry
    if not metrics:
        raise UserError("--options: the set has no labels of a task that the students predict")
    name = file_of(options.name or options.split or build.source(options.set).name)
    title = f"{mine[0].settings.title}: {name}"
    results = compare(mine[0].settings.recipe, metrics, scores, list(columns.values()), [], title=title)
    path = os.path.join(workdir, "evaluate", f"{name}.json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.write_json(path, {**results, "evaluate": sections.plain(options), "metrics": details})
    show("\n" + table(results))
    print(f"results: {path}", file=sys.stdout)


def _splits(settings: Any, tasks: Mapping[str, Task], options: Evaluate) -> dict[str, Source]:
    """{task: the examples that evaluate it}.

    Raises:
      UserError: a split, task or class that does not exist.
    """
    check_names("--options.tasks", (*options.tasks, *options.labels), settings.tasks)
    asked = [task for task in tasks if task in options.tasks or not options.tasks]
    if options.split:
        for task in asked:
            known = settings.sets[settings.train_sets[task]]
            if options.split not in known:
                raise sections.one_of(
                    f"--options.split (config.sets.{settings.train_sets[task]})", options.split, known
                )
        return build.splits(settings, options.split, asked) if asked else {}
    source = build.source(options.set)
    found = {*source.classes, *(name for index in spread(len(source), 32) for name in labels_of(source, index))}
    splits = {}
    for task in asked:
        label = options.labels.get(task, task)
        if label in found:
            part = source if label == task else Aliased(source, {task: label})
            splits[task] = _counted_as(part, task, tasks[task], options.classes)
        elif options.tasks:
            raise sections.one_of(f"--options.labels.{task}", label, found)
    return splits


def _counted_as(source: Source, name: str, task: Task, classes: Mapping[str, str]) -> Source:
    """The source with its classes counted as those of the task: joined by name, or as the options map them."""
    target = tuple(getattr(task, "classes", ()))
    own = source.classes.get(name, target)
    if not target or tuple(own) == target:
        return source
    if not classes:
        return aligned(source, {name: target}, of="the student")
    lines = {one: classes.get(one, one if one in target else classes.get("*", one)) for one in own}
    unused = {one: to for one, to in classes.items() if one not in (*own, "*")}
    class_map = make_class_map({**lines, **unused}, own, target, where="--options.classes")
    return Remapped(source, name, class_map)
