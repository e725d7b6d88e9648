"""The dry run: what a configuration would do, before anything is spent. Data, shapes, parameters, memory, hours."""

import functools
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from must.core import devices
from must.core.types import Batch, Objective, Policy, Source, Teacher, UserError
from must.data.classes import as_table
from must.data.geometry import whole_image
from must.data.pipeline import epoch_steps
from must.experiment import build
from must.experiment.external import external_teachers
from must.experiment.labeling import EVALUATION, POOL, label_pass
from must.experiment.loss_scales import loss_scales
from must.experiment.settings import LabelPolicy, Must, Run, SingleStudent, Student, Supervised
from must.experiment.speed import largest_batch
from must.experiment.training import objective
from must.pseudo_label.plan import describe, estimate, make_plan
from must.pseudo_label.teacher import from_model
from must.tasks.base import Task
from must.tasks.tiles import tiled
from must.train import state as states
from must.train.optimizer import optimizer
from must.train.step import train_step

Network = tuple[Callable, dict[str, np.ndarray], Objective]  # (key -> variables, inputs of one row, what it minimizes)


def with_declared(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A configuration in which every set that cannot be opened is replaced by its declaration, where it has one.

    Returns:
      (configuration, {set: why it could not be opened}).
    """
    config, reasons = dict(config), {}
    for group in ("sets", "pool", "oracle_truth"):
        if not config.get(group):
            continue
        config[group] = dict(config[group])
        for name, features in ((config.get("declared") or {}).get(group) or {}).items():
            section = config[group][name]
            splits = section if group == "sets" else {"": section}
            try:
                axes = {axis: values[-1] for axis, values in {"budget": config.get("budgets")}.items() if values}
                for split in build.fill(splits, seed=0, root=config.get("root") or "", **axes).values():
                    build.source(split)
            except UserError as error:
                reasons[name if group == "sets" else f"{group}.{name}"] = str(error).partition(";")[0]
                counts, features = features["count"], {k: v for k, v in features.items() if k != "count"}
                stand_ins = {
                    split: {
                        "kind": "declared",
                        "name": "-".join(filter(None, [group, name, split])),
                        **features,
                        "count": counts[split] if split else counts,
                    }
                    for split in splits
                }
                config[group][name] = stand_ins if group == "sets" else stand_ins[""]
    return config, reasons


def describe_data(members, images: Callable[[Any], Source], purpose: str) -> None:
    """Prints the sets with their sizes, the tasks with their classes, and the shapes of one row.

    Raises:
      UserError: a path, a class map or a shape that does not work.
    """
    member, seeds = members[0], sorted({member.seed for member in members})
    settings = member.settings
    print(f"{settings.title}: recipe {settings.recipe}, seeds {seeds}, frame {settings.image.size}")
    print("\ndata")
    for name, splits in settings.sets.items():
        counts = {split: len(build.source(section)) for split, section in splits.items()}
        print(f"  {name:16} " + ", ".join(f"{split} {count:,}" for split, count in counts.items()))
    for name, section in getattr(settings, "pool", {}).items():
        print(f"  {name:16} pool {len(build.source(section)):,}")
    every = images(settings)
    print(f"  {purpose:16} {len(every):,} images")
    tasks = build.tasks_of(settings)
    for name, task in tasks.items():
        classes = tuple(getattr(task, "classes", ()))
        shown = f"{len(classes)} classes: {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
        print(f"  {name:16} " + (shown if classes else "no classes") + f"; annotated in {settings.train_sets[name]}")
        fitted = build.defaults(settings.tasks[name].get("kind", name), build.split(settings, name, "train"), name)
        if fitted := {key: value for key, value in fitted.items() if key not in settings.tasks[name]}:
            print(f"  {'':16} from the data: " + ", ".join(f"{key} {value}" for key, value in fitted.items()))
    for name, section in getattr(settings, "oracle_truth", {}).items():
        print(f"  {name:16} true labels of {len(build.source(section)):,} images, for pages alone: {section['kind']}")
    for source in build.annotated_sets(settings):
        if getattr(source, "class_map", None):
            print(as_table(source.class_map))
    print("\none row of a batch")
    for name, task in tasks.items():
        fields = task.network_spec(settings.image.size).items()
        print(f"  {name:16} " + ", ".join(f"{field} {spec.dtype}{list(spec.shape)}" for field, spec in fields))
    _check_first(settings, tasks, every)


def describe_runs(
    members,
    runs: Sequence[tuple[str, Run, tuple[str, ...]]],
    network: Callable[..., Network] | None = None,
    batches: Callable[[Run, Sequence[str]], int] = lambda run, names: len(names) if run.batches == "per_task" else 1,
) -> None:
    """Prints parameters, steps, memory and hours of the kinds of training runs of a seed.

    Hours are floating-point operations of the step over what this machine reaches in a plain matrix product: a lower
    bound of the right order.

    Args:
      members: of the recipe.
      runs: (name, how it trains, tasks of its network).
      network: (settings, run, tasks) -> what the run trains; by default backbone, neck and the tasks' heads.
      batches: (run, tasks) -> batches of a step.
    """
    settings = members[-1].settings
    axes = {axis: len({m.axes[axis] for m in members}) for axis in members[0].axes}
    of = "".join(f" for each of {count} {axis}s, here the last" for axis, count in axes.items())
    rate = devices.matmul_rate("float32")
    print(f"\nruns{of} (hours: a lower bound, at the {rate / 1e12:.2f} TFLOP/s of a matrix product here)")
    width = max(28, *(len(name) + 1 + len(names[0] if len(names) == 1 else "all tasks") for name, _, names in runs))
    known: dict[str, tuple[int, int, float, str]] = {}
    total = 0.0
    for name, run, names in runs:
        steps = run.steps
        if run.epochs:
            steps = run.epochs * epoch_steps(
                {"all": len(build.together(build.splits(settings, "train")))}, run.batch_size
            )
        kind = (run.model, run.batch_size, run.memory, run.accumulate, run.optimizer, getattr(run, "joint", None))
        alike = repr((names, *kind))
        if alike not in known:  # students differ in their labels, which cost nothing
            known[alike] = _cost(settings, run, names, network or _plain_network)
        parameters, memory, flops, fits = known[alike]
        groups = batches(run, names)
        hours = steps * flops * groups / rate / 3600
        total += hours
        print(
            f"  {name + ' ' + (names[0] if len(names) == 1 else 'all tasks'):{width}} "
            f"{parameters / 1e6:7.2f} M parameters, "
            f"{steps:,} steps of {run.batch_size * groups:,}, {memory / 2**30:6.2f} GiB state, "
            f"{hours:9.3f} h{fits}",
            flush=True,  # tracing the next step takes a while
        )
        for line in _implied(settings, run, names):
            print(f"      {line}")
    every = f"; {len(members)} of them {total * len(members):.3f} h" if len(members) > 1 else ""
    print(f"  in all {total:.3f} h a seed{every}")


def _implied(settings: Any, run: Run, names: Sequence[str]) -> Iterator[str]:
    """What a run of several tasks does although nobody may have asked for it."""
    if len(names) < 2 or not isinstance(settings, Supervised):
        return
    scales = loss_scales(settings, run, build.tasks_of(settings, run))
    if run.loss_scale_rule == "gradient":
        named = ", ".join(f"{name} {scale:g}" for name, scale in run.loss_scales.items())
        yield "losses by the norms of the teachers' gradients" + f", but {named}" * bool(named)
    elif large := [f"{name} {scale:g}" for name, scale in scales.items() if scale != 1]:
        yield f"losses times {', '.join(large)}"
    if not (isinstance(settings, Must) and isinstance(run, Student) and run.pseudo_labels):
        return
    if settings.pool and run.pool_share:
        yield f"{run.pool_share:.0%} of the images from the pool, of each set in proportion to what its teacher draws"
    yield f"pseudo labels: {', '.join(_which(name, one) for name, one in build.policies(settings, run).items())}"


def _which(name: str, policy: LabelPolicy) -> str:
    """Which labels of a task count, in words."""
    if policy.from_validation:
        of = policy.target_precision
        return f"{name} at a precision of {of:g}" if isinstance(of, float) else f"{name} at a precision by class"
    return f"{name} from a score of {policy.positive:g}" if policy.positive else f"all of {name}"


def describe_labels(members) -> None:
    """Prints what the label pass costs: measured on one batch, or bytes alone when data is declared only."""
    settings = members[-1].settings
    declared = _declared(settings)
    passes = {name: len(source) for name, source in label_pass(settings).images.items()}
    if settings.quality.enabled:
        passes[EVALUATION] = len(build.together(build.splits(settings, settings.eval_splits[0])))
    print("\nimages to label: " + ", ".join(f"{name} {count:,}" for name, count in passes.items()), end="")
    print(f"; {sum(passes.values()):,} in all, by {len(settings.tasks)} teachers")
    if not declared:
        print("\n" + label_plan(settings, build.all_images(settings), fresh_teachers(settings)))
        return
    tasks, total = build.tasks_of(settings), 0
    sizes = {}
    for name in tasks:
        sizes[name] = _label_bytes(settings, tasks[name], name, packed=settings.train_sets[name] not in declared)
        total += sizes[name]
    images = len(build.all_images(settings))
    print("\nlabels: " + ", ".join(f"{name} {size / 1024:.1f} kB" for name, size in sizes.items()))
    print(
        f"  {total / 1024:.1f} kB a record without the image, {total * images / 2**30:.2f} GiB in all, "
        f"{settings.label.shards} shards, labels of declared sets uncompressed"
    )


def label_plan(settings: Any, images: Source, teachers: Sequence[Teacher], workers: int = 1) -> str:
    """What the label pass of all images costs, measured on one batch of them."""
    section = settings.label
    plan = make_plan(POOL, "train", images, shards=section.shards, batch_size=section.batch_size)
    aspect = settings.image.keep_aspect
    teachers = [tiled(teacher, section.tiles, section.overlap) for teacher in teachers]
    measured = estimate(plan, images, teachers, workers=workers, copy_images=section.copy_images, keep_aspect=aspect)
    return describe(measured, plan, directory=os.getcwd())


def fresh_teachers(settings: Must) -> list[Teacher]:
    """Untrained teachers, which are as fast as trained ones and have labels of about the same size."""
    tasks = build.tasks_of(settings)
    external = external_teachers(settings, tasks, hflip_tta=settings.label.hflip_tta)
    made = list(external.values())
    inputs = build.encoder(settings.image, tasks).blank_inputs()["image"]
    for name in tasks:
        if name in external:
            continue
        mine = {name: tasks[name]}
        model = build.network(settings.model, mine, build.teacher(settings, name).model)
        variables = jax.jit(model.init)(jax.random.key(0), inputs)
        options = {"size": settings.image.size, "fingerprint": "untrained", "hflip_tta": settings.label.hflip_tta}
        made.append(from_model(name, model, variables, mine, **options))
    return made


def _declared(settings: SingleStudent) -> set[str]:
    """Sets that are stand-ins."""
    return {name for name, splits in settings.sets.items() if splits["train"].get("kind") == "declared"}


def _check_first(settings: SingleStudent, tasks: Mapping[str, Task], images: Source) -> None:
    """One example of every set goes through geometry and labels, so that a wrong label space shows now."""
    for split in ("train", "validation", *settings.eval_splits):
        for name, task in tasks.items():
            part = build.split(settings, name, split)
            if not len(part):
                raise UserError(f"{part.name}: empty split")
            build.encoder(settings.image, {name: task})(part[0], 0, np.random.default_rng(0))
    images[len(images) - 1]


def _plain_network(settings: SingleStudent, run: Run, names: Sequence[str]) -> Network:
    every = build.tasks_of(settings)
    tasks = {name: every[name] for name in names}
    model = build.network(settings.model, tasks, run.model)
    inputs = build.encoder(settings.image, tasks).blank_inputs()
    policies = {name: Policy() for name in tasks}
    return lambda key: model.init(key, inputs["image"]), inputs, objective(settings, Run(), model, tasks, policies)


def _cost(settings, run: Run, names: Sequence[str], network) -> tuple[int, int, float, str]:
    """(parameters, bytes of the state, floating-point operations of a step, what of it fits), from shapes alone."""
    variables, inputs, minimized = network(settings, run, names)
    balance, tx = build.balance(run), optimizer(**run.optimizer.arguments(run.steps))

    def fresh(key):
        return states.create(key, variables(key), minimized, balance, tx)

    state = jax.eval_shape(fresh, jax.random.key(0))
    rows = min(run.batch_size, 8)  # operations grow linearly with the rows, compile-time memory too
    every = build.tasks_of(settings)
    tasks = {name: every[name] for name in names}
    row = _shapes(tasks, settings.image.size, inputs, rows)
    step = functools.partial(train_step, objective=minimized, balance=balance, tx=tx)
    program = jax.jit(step, donate_argnums=0)
    analysis = program.lower(state, row).cost_analysis() or {}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    memory = sum(leaf.size * jnp.dtype(jnp.float32).itemsize for leaf in jax.tree.leaves(state._replace(key=None)))

    @functools.cache
    def size_of(rows: int) -> int:
        return devices.program_bytes(program.lower(state, _shapes(tasks, settings.image.size, inputs, rows)))

    fits = ""
    if limit := devices.memory_limit(run.memory):
        own = -(-run.batch_size // (run.accumulate * len(jax.devices())))
        least = f"largest power of two that fits {limit / 2**30:.2f} GiB: {largest_batch(size_of, limit, own)}"
        fits = f"; a step of {own} rows of a device takes {size_of(own) / 2**30:.2f} GiB, {least}"
    return parameters, memory, float(analysis.get("flops", 0.0)) * run.batch_size / rows, fits


def _shapes(tasks: Mapping[str, Task], size: tuple[int, int], inputs, rows: int) -> Batch:
    """A batch of shapes; `inputs` {view: [1, ...]}."""
    of = jax.ShapeDtypeStruct
    labels = {
        name: {field: of((rows, *spec.shape), spec.dtype) for field, spec in task.network_spec(size).items()}
        for name, task in tasks.items()
    }
    weights = {name: of((rows,), np.float32) for name in tasks}
    views = {view: of((rows, *array.shape[1:]), array.dtype) for view, array in inputs.items()}
    return Batch(views, labels, weights, of((rows,), np.int32), {})


def _label_bytes(settings: SingleStudent, task: Task, name: str, *, packed: bool) -> int:
    """Size of a prediction like the first annotation of the task, compressed when `packed`."""
    example = build.split(settings, name, "train")[0]
    size, aspect = settings.image.size, settings.image.keep_aspect
    geometry = whole_image(example.image.shape[-3:-1], size, keep_aspect=aspect)
    fields = task.restore(task.transform(example.labels[name], geometry), geometry)
    raw = [np.ascontiguousarray(value).tobytes() for value in fields.values()]
    return sum(len(zlib.compress(field) if packed else field) for field in raw)
