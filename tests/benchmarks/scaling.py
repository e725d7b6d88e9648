"""What grows with what: devices, picture size, tasks, classes, boxes, pool.

  python tests/benchmarks/scaling.py [--quick] [--json FILE] [--parts devices,size,tasks,classes,boxes,pool]

devices  the same global batch on 1 to 8 simulated CPU devices, which share the cores: the overhead of splitting it,
         and what devices exchange in a step by the compiled program, beside the bytes of the parameters
size, tasks, classes, boxes
         the real train step of the quickstart's network on a batch of JPEGs, arms in turn
pool     rows a second, seconds to the first batch, and memory, of sets of 1,000 to 1,000,000 pictures
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import input as feed
import measure
import train_step as steps

from must.core import devices
from must.core.types import Batch, Policy
from must.data.pipeline import Encoder, train_batches
from must.objectives import balance
from must.objectives.labels import labels
from must.objectives.objective import objective
from must.tasks import base
from must.train import state as states
from must.train.optimizer import optimizer
from must.train.step import train_step
from tests.support.collectives import collectives

QUICKSTART = steps.NETS["quickstart"]


def batch_of(made: Mapping[str, base.Task], size: int, rows: int, objects: int = 0) -> Batch:
    """A batch for the losses of these tasks; the boxes of every picture repeated until there are so many."""
    source = feed.Jpegs(rows, size=size)
    if objects:
        for at, example in enumerate(source.examples):
            boxes = example.labels["detection"]
            repeat = np.resize(np.arange(len(boxes["classes"])), objects)
            more = {
                name: value[repeat] if len(value) == len(boxes["classes"]) else value for name, value in boxes.items()
            }
            source.examples[at] = example._replace(labels={**example.labels, "detection": more})
    encoder = Encoder(feed.at_outputs(dict(made)), (size, size), feed.DRAW)
    batches = train_batches(source, encoder, batch_size=rows, seed=0)
    batch = next(batches)
    batches.close()
    return batch


def student(net: steps.Net, made: dict[str, base.Task], batch: Batch) -> tuple[Callable, Any]:
    """(the train step, a fresh state) of a student of these tasks."""
    model = steps.model(net, "float32", made)
    goal = objective(model, [labels(made, {task: Policy() for task in made})], scales=dict.fromkeys(made, 1.0))
    fixed, tx = balance.fixed(), optimizer(steps=1000, learning_rate=1e-4)
    variables = model.init(jax.random.key(0), batch.inputs["image"][:1])
    state = states.create(jax.random.key(0), variables, goal, fixed, tx)
    return functools.partial(train_step, objective=goal, balance=fixed, tx=tx, ema_decay=0.99), state


def stepper(net: steps.Net, made: dict[str, base.Task], batch: Batch, count: int = 1) -> Callable[[], Any]:
    """One step more of a student on so many devices."""
    chosen = jax.devices()[:count]
    step, state = student(net, made, batch)
    compiled, held = devices.parallelize(step, donate=(0,), devices=chosen), [devices.replicate(state, chosen)]

    def work():
        held[0], logs = compiled(held[0], batch, None)
        return logs

    return work


def grow(results: measure.Results, what: str, arms: dict[int, Callable[[], Any]], rows: int, rounds: int) -> None:
    """Milliseconds a picture of each arm, and how many times the first."""
    spent = measure.alternating(arms, rounds)
    first = next(iter(spent.values()))
    for value, seconds in spent.items():
        results.add(f"{what} {value}", ms_per_picture=seconds / rows * 1e3, times_the_first=seconds / first)


def of_devices(
    results: measure.Results,
    net: steps.Net,
    made: dict[str, base.Task],
    counts: tuple[int, ...],
    rows: int,
    rounds: int,
) -> None:
    """The overhead of splitting a batch, and the bytes that devices exchange."""
    batch = batch_of(made, net.size, rows)
    step, state = student(net, made, batch)
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    statistics = sum(leaf.nbytes for leaf in jax.tree.leaves(state.model_state))
    found = collectives(devices.parallelize(step, devices=jax.devices()[: counts[-1]]).lower(state, batch, None))
    for operation, sizes in found.items():
        results.add(
            f"{counts[-1]} devices, {operation}",
            arrays=len(sizes),
            bytes=sum(sizes),
            parameter_bytes=parameters,
            running_statistics_bytes=statistics,
            of_parameters=sum(sizes) / parameters,
        )
    spent = measure.alternating(
        {count: stepper(net, made, batch, count) for count in counts}, rounds, time.process_time
    )
    for count, seconds in spent.items():
        results.add(f"{count} devices", processor_seconds_a_step=seconds, of_one_device=seconds / spent[counts[0]])


def of_pools(results: measure.Results, counts: tuple[int, ...], seconds: float) -> None:
    """What a large set costs: order, ids, position."""
    made = {name: task for name, task in feed.tasks().items() if name == "classification"}
    for count in counts:
        start = time.perf_counter()
        source = feed.Jpegs(count, size=64)
        named = time.perf_counter() - start
        start = time.perf_counter()
        batches = train_batches(source, Encoder(feed.at_outputs(made), (64, 64)), batch_size=64, seed=0)
        next(batches)
        first, taken, start = time.perf_counter() - start, 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            next(batches)
            taken += 64
        rate = taken / (time.perf_counter() - start)
        batches.close()
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
        results.add(
            f"pool of {count:,}",
            rows_per_second=rate,
            first_batch_seconds=first,
            ids_seconds=named,
            resident_mib=resident,
        )


def main() -> None:
    chosen = measure.options(__doc__, parts="devices,size,tasks,classes,boxes,pool")  # --quick: devices and pool
    devices.set_xla_flags(simulated_devices=2 if chosen.quick else 8)
    results, quick = measure.Results(chosen.json), chosen.quick
    net = QUICKSTART._replace(depth=10, width=8, channels=8) if quick else QUICKSTART
    rounds, rows, every = 2 if quick else 7, 4 if quick else 8, feed.tasks(net.channels)
    parts = chosen.parts.split(",")

    def arm(made: dict[str, base.Task], size: int = net.size, objects: int = 0) -> Callable[[], Any]:
        return stepper(net, made, batch_of(made, size, rows, objects))

    if quick:  # most of whose time is compiling
        every = {name: task for name, task in every.items() if name == "classification"}
    if "devices" in parts:
        of_devices(results, net, every, (1, 2) if quick else (1, 2, 4, 8), 8 if quick else 32, rounds)
    if "size" in parts and not quick:
        grow(results, "pixels", {size: arm(every, size) for size in (64, 128, 256)}, rows, rounds)
    if "tasks" in parts and not quick:
        names = list(every)
        arms = {count: arm({name: every[name] for name in names[:count]}) for count in range(1, 6)}
        grow(results, "tasks", arms, rows, rounds)
    if "classes" in parts and not quick:
        dense = {"width": net.channels, "depth": 2}
        arms = {}
        for count in (12, 150, 1000):
            known = every["classification"].classes
            names = (*known, *(f"c{i}" for i in range(count - len(known))))
            made = {"classification": base.build("classification", classes=names)}
            arms[count] = arm(made | {"segmentation": base.build("segmentation", classes=names, **dense)})
        grow(results, "classes", arms, rows, rounds)
    if "boxes" in parts and not quick:
        arms = {}
        for count in (10, 100, 300):
            task = base.build(
                "detection", classes=every["detection"].classes, strides=steps.STRIDES, width=net.channels, depth=2,
                max_boxes=count,
            )  # fmt: skip
            arms[count] = arm({"detection": task}, objects=count)
        grow(results, "boxes", arms, rows, rounds)
    if "pool" in parts:
        of_pools(results, (1000, 10_000) if quick else (1000, 30_000, 1_000_000), 1.0 if quick else 5.0)


if __name__ == "__main__":
    main()
