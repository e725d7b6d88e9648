#!/usr/bin/env python
"""What labeling and training at a large scale take, and what limits them: a simulation from parameters that you state.

    python launch/projection.py [--chips=1024,2048,4096] [--images=1e9] [--mfu_label=0.4 ...] [--svg=FILE]

Labeling: hosts take shards one after the other; reading, decoding, the teachers and writing overlap, so that the
slowest of them sets the pace; a host that fails loses its shard. Training: all chips step together; a chip that fails
costs everyone the steps since the last checkpoint, the time until the loss is noticed, and a restart.
"""

import argparse
import heapq
import math
from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Parameters; the defaults stand for a hypothetical pod, replace them by what you measured.

    Attributes:
      images: to label, and to train on.
      passes: of the student over them.
      label_flops: of all teachers' forward passes on an image.
      train_flops: of the student's step on an image, forward and backward.
      peak: FLOP/s of a chip.
      mfu_label: share of the peak that the teachers reach.
      mfu_train: share of the peak that the student's step reaches.
      chips_per_host: that share a host's cores and network.
      host_rows: images a second that a host decodes and resizes.
      image_bytes: of an image in the store.
      record_bytes: of a labeled image, picture included.
      host_bandwidth: bytes a second between a host and the store.
      store_bandwidth: bytes a second of the store in all.
      store_requests: requests a second of the store in all.
      shard_images: of a shard; an object is read or written by one request of `request_bytes` after the other.
      request_bytes: of one request.
      shard_seconds: what a shard costs beside its images: claim, manifest, commit.
      start_seconds: from a start or restart to the first image: machines, programs, weights.
      patience: seconds until somebody else takes the shard of a lost host, or the lost peer is noticed in training.
      faults: of a chip, an hour.
      batch: images of a step and chip.
      parameters: of the student.
      link: bytes a second of a chip in an all-reduce.
      save_every: seconds between checkpoints.
      save_seconds: for which a checkpoint holds up the steps.
      price: of a chip and hour.
    """

    images: float = 1e9
    passes: float = 1.0
    label_flops: float = 1.2e12
    train_flops: float = 0.9e12
    peak: float = 197e12
    mfu_label: float = 0.4
    mfu_train: float = 0.35
    chips_per_host: int = 4
    host_rows: float = 5000.0
    image_bytes: float = 80e3
    record_bytes: float = 127e3
    host_bandwidth: float = 2e9
    store_bandwidth: float = 100e9
    store_requests: float = 5000.0
    shard_images: int = 4096
    request_bytes: float = 16e6
    shard_seconds: float = 2.0
    start_seconds: float = 300.0
    patience: float = 60.0
    faults: float = 2e-5
    batch: int = 32
    parameters: float = 90e6
    link: float = 50e9
    save_every: float = 600.0
    save_seconds: float = 1.0
    price: float = 1.2

    def __post_init__(self):
        free = {"faults", "shard_seconds", "start_seconds", "patience", "save_seconds", "price"}
        for field in fields(self):
            if (value := getattr(self, field.name)) < 0 or (value == 0 and field.name not in free):
                raise ValueError(f"--{field.name}={value}: must be positive")


@dataclass(frozen=True)
class Stage:
    """What a stage takes on a number of chips.

    Attributes:
      hours: from start to end.
      parts: {part: share of all chip hours}: "device" computes, the rest waits or is lost; they sum to 1.
      seconds: {what one image or step needs: seconds of a host, or of a step}; the largest limits.
    """

    hours: float
    parts: dict[str, float]
    seconds: dict[str, float]

    @property
    def limit(self) -> str:
        """The slowest of what happens at the same time."""
        return max(self.seconds, key=lambda name: self.seconds[name])


def label(plan: Plan, chips: int, seed: int = 0) -> Stage:
    """The label pass, host by host and shard by shard."""
    hosts, rng = _hosts(plan, chips), np.random.default_rng(seed)
    seconds = {
        "device": plan.label_flops / (plan.chips_per_host * plan.peak * plan.mfu_label),
        **_input(plan, hosts, plan.image_bytes, plan.record_bytes),
    }
    whole, last = divmod(math.ceil(plan.images), plan.shard_images)
    shards = [plan.shard_images] * whole + [last] * (last > 0)
    rate = plan.faults * plan.chips_per_host / 3600
    _check_faults(rate, plan.shard_seconds + plan.shard_images * max(seconds.values()), "a shard", "shard_images")
    free = [(plan.start_seconds, host) for host in range(hosts)]
    later: list[tuple[float, int]] = []  # shards of lost hosts: (when others may take them, images)
    computed = lost = end = 0.0
    while shards or later:
        now, host = heapq.heappop(free)
        if later and (not shards or later[0][0] <= now):
            at, images = heapq.heappop(later)
            now = max(now, at)
        else:
            images = shards.pop()
        needs = plan.shard_seconds + images * max(seconds.values())
        fault = rng.exponential(1 / rate) if rate else math.inf
        if fault < needs:
            lost += fault
            heapq.heappush(later, (now + fault + plan.patience, images))
            heapq.heappush(free, (now + fault + plan.start_seconds, host))
        else:
            computed += images * seconds["device"]
            end = max(end, now + needs)
            heapq.heappush(free, (now + needs, host))
    busy = {"device": computed, "lost work": lost, "start": hosts * plan.start_seconds}
    shares = {name: value / (hosts * end) for name, value in busy.items()}
    return Stage(end / 3600, {**shares, "waiting": max(0.0, 1 - sum(shares.values()))}, seconds)


def train(plan: Plan, chips: int, seed: int = 0) -> Stage:
    """The student, step by step between faults."""
    hosts, rng = _hosts(plan, chips), np.random.default_rng(seed)
    of_host = plan.chips_per_host * plan.batch
    reads = _input(plan, hosts, plan.record_bytes, 0.0)
    seconds = {
        "device": plan.batch * plan.train_flops / (plan.peak * plan.mfu_train),
        **{name: of_host * value for name, value in reads.items()},
        "all-reduce": 2 * (chips - 1) / chips * 4 * plan.parameters / plan.link,
    }
    step = max(seconds.values())
    needed = math.ceil(plan.images * plan.passes / (plan.batch * chips)) * step
    rate, done, clock, lost, saving, starts = plan.faults * chips / 3600, 0.0, 0.0, 0.0, 0.0, 0
    _check_faults(rate, plan.save_every, "the time between two checkpoints", "save_every")
    while done < needed:
        starts += 1
        fault = rng.exponential(1 / rate) if rate else math.inf
        # A period is `save_every` seconds of steps and one save.
        period = plan.save_every + plan.save_seconds
        saves = math.floor(min(fault, (needed - done) / plan.save_every * period) / period)
        rest = needed - done - saves * plan.save_every
        clock += plan.start_seconds + saves * period
        saving += saves * plan.save_seconds
        done += saves * plan.save_every
        if fault - saves * period >= rest:
            clock, done = clock + rest, needed
        else:
            clock += fault - saves * period + plan.patience
            lost += fault - saves * period + plan.patience
    parts = {"device": needed * seconds["device"] / step, "lost work": lost, "start": starts * plan.start_seconds}
    parts = {name: value / clock for name, value in {**parts, "save": saving}.items()}
    return Stage(clock / 3600, {**parts, "waiting": max(0.0, 1 - sum(parts.values()))}, seconds)


def _hosts(plan: Plan, chips: int) -> int:
    if chips < 1 or chips % plan.chips_per_host:
        raise ValueError(f"--chips={chips}: a multiple of chips_per_host={plan.chips_per_host}")
    return chips // plan.chips_per_host


def _check_faults(rate: float, seconds: float, what: str, key: str) -> None:
    if rate * seconds > 8:  # one attempt in 3,000 succeeds
        raise ValueError(
            f"--faults: one every {1 / rate:.0f} s, so that {what}, {seconds:.0f} s, never passes; lower {key}"
        )


def _input(plan: Plan, hosts: int, read: float, written: float) -> dict[str, float]:
    """Seconds of a host for one image, while all hosts use the store."""
    requests = (read + written) / plan.request_bytes
    return {
        "decoding": 1 / plan.host_rows,
        "network of a host": (read + written) / plan.host_bandwidth,
        "bandwidth of the store": hosts * (read + written) / plan.store_bandwidth,
        "requests to the store": hosts * requests / plan.store_requests,
    }


def table(plan: Plan, chips: list[int], seeds: int = 5) -> list[tuple[str, int, list[Stage]]]:
    """(stage, chips, one simulation for each seed)."""
    stages = {"label": label, "train": train}
    return [(name, n, [run(plan, n, seed) for seed in range(seeds)]) for name, run in stages.items() for n in chips]


def draw(rows: list[tuple[str, int, list[Stage]]], path: str) -> None:
    """Hours against chips, and where the chips' time goes, as SVG or PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
    names = list(dict.fromkeys(name for name, _, _ in rows))
    for name, color in zip(names, ("#0072b2", "#d55e00"), strict=True):
        mine = [(n, [stage.hours for stage in stages]) for one, n, stages in rows if one == name]
        x, hours = [n for n, _ in mine], [np.mean(found) for _, found in mine]
        axes[0].plot(x, hours, "o-", color=color, markersize=4)
        axes[0].plot(x, [hours[0] * x[0] / n for n in x], ":", color=color, linewidth=1)
        axes[0].annotate(name, (x[-1], hours[-1]), xytext=(6, 0), textcoords="offset points", color=color, va="center")
    axes[0].set(xscale="log", yscale="log", xlabel="chips", title="hours (dotted: linear scaling)")
    axes[0].set_xticks(sorted({n for _, n, _ in rows}), [f"{n:,}" for n in sorted({n for _, n, _ in rows})])
    axes[0].minorticks_off()
    top = max(np.mean([stage.hours for stage in stages]) for _, _, stages in rows)
    ticks = [tick for tick in (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000) if top / 100 < tick < 2 * top]
    axes[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0].margins(x=0.12)
    parts = {"device": "#0072b2", "waiting": "#bbbbbb", "save": "#009e73", "start": "#e69f00", "lost work": "#d55e00"}
    start = np.zeros(len(rows))
    for part, color in parts.items():
        shares = [100 * np.mean([stage.parts.get(part, 0.0) for stage in stages]) for _, _, stages in rows]
        axes[1].barh(range(len(rows)), shares, left=start, color=color, label=part, height=0.7)
        start += shares
    axes[1].set_yticks(range(len(rows)), [f"{name}, {n:,}" for name, n, _ in rows])
    axes[1].invert_yaxis()
    axes[1].set(xlim=(0, 100), title="where the chips' time goes (%)")
    axes[1].legend(ncols=5, fontsize=7, loc="upper center", bbox_to_anchor=(0.45, -0.1), frameon=False, columnspacing=1)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    """Prints the table, and draws it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chips", default="1024,2048,4096")
    parser.add_argument("--svg", default="")
    for field in fields(Plan):
        parser.add_argument(f"--{field.name}", type=float, default=field.default)
    given = vars(parser.parse_args())
    path, chips = given.pop("svg"), given.pop("chips")
    try:
        plan = replace(Plan(), **{f.name: f.type(given[f.name]) for f in fields(Plan)})
        rows = table(plan, [int(n) for n in chips.split(",")])
    except ValueError as error:
        parser.error(str(error))
    print("stage   chips   hours            device   lost   price        limited by")
    for name, n, stages in rows:
        hours = [stage.hours for stage in stages]
        share, lost = (np.mean([stage.parts[part] for stage in stages]) for part in ("device", "lost work"))
        spread = f"{np.mean(hours):,.1f} ± {np.std(hours):.2f}"
        print(
            f"{name:7} {n:5,}   {spread:15} {share:6.0%} {lost:7.1%}   {np.mean(hours) * n * plan.price:<12,.0f} "
            f"{stages[0].limit}"
        )
    if path:
        draw(rows, path)


if __name__ == "__main__":
    main()
