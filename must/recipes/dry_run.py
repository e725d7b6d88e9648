"""What a configuration would do, before anything is spent: data, shapes, parameters, memory, label bytes, hours."""

import functools
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from must.core.types import Batch, Teacher, UserError
from must.data.classes import as_table
from must.data.geometry import whole_image
from must.data.pipeline import epoch_steps
from must.pseudo_label.estimate import describe, estimate
from must.pseudo_label.plan import make_plan
from must.pseudo_label.teacher import from_model
from must.recipes import setup
from must.recipes.built import POOL
from must.train import state as states
from must.train.optimizer import optimizer
from must.train.step import train_step


def dry_run(recipe, config: Mapping[str, Any]) -> None:
    """Resolves a configuration and prints what running it means; writes nothing and compiles nothing large.

    Hours are floating-point operations of the step over what this machine reaches in a plain matrix product, so they
    are a lower bound of the right order.

    Raises:
      UserError: a path, a class map or a shape that does not work.
    """
    seed = config["seeds"][0]
    if hasattr(recipe, "dry_run"):
        return recipe.dry_run(config)
    whole, (config, declared) = config, _with_declared(recipe.single(config))
    if not declared:  # stand-ins all show the same picture
        recipe.check(whole)
    built = recipe.Built(config, seed)
    print(f"{config['title']}: recipe {config['recipe']}, seeds {list(config['seeds'])}, frame {built.size}")
    print("\ndata")
    for name, reason in declared.items():
        print(f"  {name:16} planned from its declared features: {reason}")
    for name, section in built.config["sets"].items():
        counts = {split: len(setup.build_source(spec)) for split, spec in section.items()}
        print(f"  {name:16} " + ", ".join(f"{split} {count:,}" for split, count in counts.items()))
    everything = built.everything()
    labels = "label" in recipe.STAGES
    print(f"  {'to label' if labels else 'to learn from':16} {len(everything):,} images")
    for name, task in built.tasks.items():
        classes = getattr(task, "classes", None)
        print(
            f"  {name:16} "
            + (
                f"{len(classes)} classes: {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
                if classes
                else "no classes"
            )
        )
    for source in built.labeled():
        if getattr(source, "class_map", None):
            print(as_table(source.class_map))
    print("\none row of a batch")
    for name, task in built.tasks.items():
        fields = {k: (v.shape, str(v.dtype)) for k, v in task.network_spec(built.size).items()}
        print(f"  {name:16} " + ", ".join(f"{k} {dtype}{list(shape)}" for k, (shape, dtype) in fields.items()))
    _check_first(built, everything)
    rate = _matmul_rate()
    budgets = f" for each of {len(whole['budgets'])} label budgets, here the largest" if "budgets" in whole else ""
    print(f"\nruns{budgets} (hours at {rate / 1e12:.2f} TFLOP/s, a plain matrix product here)")
    known: dict[str, tuple[int, int, float]] = {}
    runs = recipe.runs(built)
    width = max(28, *(len(section) + 1 + len(names[0] if len(names) == 1 else "all tasks") for section, names in runs))
    for section, names in runs:
        settings = built.settings(section)
        steps, size = settings["steps"], settings["batch_size"]
        if settings["epochs"]:  # of the largest part of the images, here of all
            steps = settings["epochs"] * epoch_steps({"all": len(everything)}, size)
        alike = repr(
            (
                names,
                settings["model"],
                size,
                settings["optimizer"],
                [settings.get(key) for key in ("frozen", "ema_teacher")],
            )
        )  # students differ in what they believe
        if alike not in known:
            known[alike] = _cost(built, names, section)
        parameters, memory, flops = known[alike]
        groups = built.groups(section, names)
        flops *= groups
        print(
            f"  {section + ' ' + (names[0] if len(names) == 1 else 'all tasks'):{width}} {parameters / 1e6:7.2f} M parameters, "
            f"{steps:,} steps of {size * groups:,}, {memory / 2**30:6.2f} GiB state, {steps * flops / rate / 3600:9.3f} h",
            flush=True,  # tracing the next step takes a while
        )
    if not labels:
        if "teachers" in recipe.STAGES:
            print("  teachers that answer in the step come on top: a forward pass each")
        return
    if not declared:
        print("\n" + label_plan(built, fresh_teachers(built)))
        return
    sizes = {
        name: _label_bytes(built, name, packed=built.config["labeled"][name] not in declared) for name in built.names
    }
    total = sum(sizes.values())
    print("\nlabels: " + ", ".join(f"{name} {size / 1024:.1f} kB" for name, size in sizes.items()))
    print(
        f"  {total / 1024:.1f} kB a record without the image, {total * len(everything) / 2**30:.2f} GiB in all, "
        f"{built.config['label']['shards']} shards, labels of declared sets uncompressed"
    )


def label_plan(built, teachers: Sequence[Teacher], workers: int = 1) -> str:
    """What the label pass of all images costs, measured on one batch of them; see `must.pseudo_label.estimate`."""
    section, source = built.config["label"], built.everything()
    plan = make_plan(POOL, "train", source, shards=section["shards"], batch_size=section["batch_size"])
    copied = section.get("copy_images", True)
    found = estimate(plan, source, teachers, workers=workers, copy_images=copied, keep_aspect=built.plain.keep_aspect)
    return describe(found, plan, directory=os.getcwd())


def fresh_teachers(built) -> list[Teacher]:
    """Teachers as the run would train them, before they learned anything: as fast, and with labels of about that size."""
    found = list(built.given().values())
    for name in built.trained():
        model, tasks = built.model((name,), "teacher"), {name: built.tasks[name]}
        variables = jax.jit(model.init)(jax.random.key(0), built.inputs)
        mirror = built.config["label"]["mirror"]
        found.append(from_model(name, model, variables, tasks, size=built.size, fingerprint="untrained", mirror=mirror))
    return found


def _with_declared(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration with every set that cannot be opened replaced by its declaration, where it has one.

    Returns:
      (configuration, {set: why it could not be opened}).
    """
    config, reasons = dict(config), {}
    for group in ("sets", "pool", "hidden"):
        config[group] = dict(config.get(group, {}))
        for name, features in config.get("declared", {}).get(group, {}).items():
            section = config[group][name]
            splits = section if group == "sets" else {"": section}
            try:
                for split in setup.fill(splits, seed=0, root=config["root"]).values():
                    setup.build_source(split)
            except UserError as error:
                reasons[name if group == "sets" else f"{group}.{name}"] = str(error).partition(";")[0]
                counts, features = features["count"], {k: v for k, v in features.items() if k != "count"}
                made = {
                    split: {
                        "kind": "declared",
                        "name": "-".join(filter(None, [group, name, split])),
                        **features,
                        "count": counts[split] if split else counts,
                    }
                    for split in splits
                }
                config[group][name] = made if group == "sets" else made[""]
    return config, reasons


def _check_first(built, source) -> None:
    """One example of every set goes through geometry and labels, so that a wrong label space shows now."""
    for split in ("train", "validation", "test"):
        for name in built.names:
            part = built.split(name, split)
            if not len(part):
                raise UserError(f"{part.name}: empty split")
            built.plain._replace(tasks={name: built.tasks[name]})(part[0], 0, np.random.default_rng(0))
    source[len(source) - 1]


def _cost(built, names, section: str) -> tuple[int, int, float]:
    """(parameters, bytes of the state, floating-point operations of a step), from shapes alone."""
    settings = built.settings(section)
    variables, inputs, objective = built.planned(names, section)
    balance, tx = setup.build_balance(settings["balance"]), optimizer(steps=settings["steps"], **settings["optimizer"])
    schedule = built.schedule(section)

    def fresh(key):
        return states.create(key, variables(key), objective, balance, tx)

    state = jax.eval_shape(fresh, jax.random.key(0))
    rows = min(schedule.batch_size, 8)  # operations grow linearly with the rows, compile-time memory too
    row = _shapes({name: built.tasks[name] for name in names}, built.size, inputs, rows)
    step = functools.partial(train_step, objective=objective, balance=balance, tx=tx)
    analysis = jax.jit(step).lower(state, row).cost_analysis() or {}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    memory = sum(leaf.size * jnp.dtype(jnp.float32).itemsize for leaf in jax.tree.leaves(state._replace(key=None)))
    return parameters, memory, float(analysis.get("flops", 0.0)) * schedule.batch_size / rows


def _shapes(tasks, size: tuple[int, int], inputs, rows: int) -> Batch:
    """A batch of shapes; `inputs` {view: [1, ...]}."""
    of = jax.ShapeDtypeStruct
    labels = {
        name: {field: of((rows, *spec.shape), spec.dtype) for field, spec in task.network_spec(size).items()}
        for name, task in tasks.items()
    }
    weights = {name: of((rows,), np.float32) for name in tasks}
    views = {view: of((rows, *array.shape[1:]), array.dtype) for view, array in inputs.items()}
    return Batch(views, labels, weights, of((rows,), np.int32), {})


def _label_bytes(built, name: str, *, packed: bool) -> int:
    """Size of a prediction that says what the first annotation of the task says, compressed when `packed`."""
    task, example = built.tasks[name], built.split(name, "train")[0]
    geometry = whole_image(example.image.shape[-3:-1], built.size, keep_aspect=built.plain.keep_aspect)
    fields = task.restore(task.transform(example.labels[name], geometry), geometry)
    raw = [np.ascontiguousarray(value).tobytes() for value in fields.values()]
    return sum(len(zlib.compress(field) if packed else field) for field in raw)


def _matmul_rate(side: int = 1024) -> float:
    """Floating-point operations per second of a square float32 product on the first device."""
    product = jax.jit(lambda a: a @ a)
    matrix = jnp.ones((side, side))
    jax.block_until_ready(product(matrix))
    start = time.perf_counter()
    for _ in range(5):
        matrix_out = product(matrix)
    jax.block_until_ready(matrix_out)
    return 5 * 2 * side**3 / (time.perf_counter() - start)
