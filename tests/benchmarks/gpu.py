"""What one card does, in at most nine minutes: limits, input, steps against torch, and training fed from JPEGs.

    python tests/benchmarks/gpu.py --json FILE [--quick] [--minutes 8.5]

No network and no files: JPEGs are made on the spot. Rows are written as they come; what does not fit into the time is
left out by name. On CPU, and with --quick, sizes are tiny.
"""

import functools
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[2]))

import input as feed
import measure
import train_step as steps

from must.core import devices
from must.core.types import Policy
from must.data.ahead import Placed, workers_for
from must.data.augment import Photometric
from must.data.pipeline import Encoder, train_batches
from must.objectives import balance
from must.objectives.labels import labels
from must.objectives.objective import objective, with_view
from must.train import state as states
from must.train.loop import Progress, fit
from must.train.optimizer import optimizer
from must.train.step import train_step


def fed(results: measure.Results, name: str, net: steps.Net, precision: str, count: int, tiny: bool) -> None:
    """`must.train.fit` itself, from JPEGs of 512 px: images a second, and the share of the time without data."""
    every = feed.tasks(net.channels) if net.depth else {"classification": feed.tasks()["classification"]}
    if tiny:  # most of whose time is compiling
        every = {task: one for task, one in every.items() if task in ("classification", "depth")}
    model = steps.model(net, precision, every)
    encoder = Encoder(feed.at_outputs(every), (net.size, net.size), feed.DRAW)
    source = feed.Jpegs(100_000)
    workers = workers_for(source, encoder=encoder, batch_size=net.batch)
    batches = train_batches(source, encoder, batch_size=net.batch, seed=0, workers=workers)
    if place := devices.placing():
        batches = Placed(batches, place)
    parts = [labels(every, {task: Policy() for task in every})]
    made = with_view(objective(model, parts, scales=dict.fromkeys(every, 1.0)), Photometric().in_step)
    fixed, tx = balance.fixed(), optimizer(steps=count, learning_rate=1e-4)
    variables = model.init(jax.random.key(0), encoder.blank_inputs()["image"])
    state = devices.replicate(states.create(jax.random.key(0), variables, made, fixed, tx))
    step = functools.partial(train_step, objective=made, balance=fixed, tx=tx, ema_decay=0.99)
    last: list[Progress] = []

    def look(progress: Progress) -> bool:
        last[:] = [progress]
        if progress.step % 10 == 0:
            jax.block_until_ready(progress.logs)
        return results.seconds_left < 10

    try:
        fit(state, devices.parallelize(step, donate=(0,)), batches, steps=count, hooks=(look,))
        jax.block_until_ready(last[0].logs)
    finally:
        batches.close()
    seconds, loss = last[0].seconds, float(last[0].logs["loss"])
    rate = net.batch * (last[0].step - 1) / max(seconds, 1e-9)
    facts = {"images_per_second": rate, "data_wait": last[0].data_seconds / max(seconds, 1e-9), "loss": loss}
    results.add(f"{name}, {precision}, fed from JPEGs", workers=workers, steps=last[0].step, **facts)


def main() -> None:
    chosen = measure.options(__doc__, minutes=8.5)
    devices.set_xla_flags()
    results = measure.Results(chosen.json, chosen.minutes)
    tiny = chosen.quick or jax.default_backend() == "cpu"
    peaks = measure.limits(results, 256 if tiny else 8192)
    nets = steps.TINY if tiny else {name: steps.NETS[name] for name in ("resnet50_512", "vit_base")}
    source, rounds = feed.Jpegs(8), 1 if tiny else 9
    parts = [(f"input, {size} px", 10, feed.rates, (results, source, size, rounds)) for size in (224, 512)]
    for name, net in nets.items():
        parts.append((f"{name}, fed", 90, fed, (results, name, net, "bfloat16", 3 if tiny else 200, tiny)))
        parts.append((f"{name}, steps", 120, steps.compare, (results, name, net, peaks, rounds)))
    for name, least, part, arguments in parts:
        if results.seconds_left < least:
            results.add(name, skipped=f"{results.seconds_left:.0f} seconds left")
            continue
        try:
            part(*arguments)
        except Exception as error:  # such as too little memory; the other rows are worth having
            results.add(name, failed=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")


if __name__ == "__main__":
    main()
