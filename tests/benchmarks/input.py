"""Rows a second that feed a training run: five tasks on JPEGs of 512 px, by stage, and with worker processes.

    python tests/benchmarks/input.py [--quick] [--json FILE] [--workers 4]

Processor time on one core, arms in alternating windows. "before" decodes whole pictures, makes labels at the frame's
resolution and draws the view on the host; "now" is what a run on an accelerator does.
"""

import functools
import sys
import time
from pathlib import Path

import numpy as np
import simplejpeg

sys.path.insert(0, str(Path(__file__).parents[2]))

import measure

from must.core.types import Example
from must.data.augment import Photometric
from must.data.geometry import draw, transform_image
from must.data.pipeline import Encoder, labels_and_weights, train_batches
from must.readers.pictures import read_picture, undecoded
from must.scenes.still import CLASSES, Scenes
from must.tasks import base

DRAW = functools.partial(draw, zoom=(0.8, 1.25), shift=0.05)


class Jpegs:
    """Scenes as files in memory, with labels at full resolution."""

    classes, fingerprint, name = {}, "0", "jpegs"

    def __init__(self, count: int, size: int = 512, different: int = 8):
        scenes = Scenes(min(count, different), size=size)
        self.examples = [scenes[i] for i in range(len(scenes))]
        self.files = [simplejpeg.encode_jpeg(example.image, quality=90) for example in self.examples]
        self.ids = [f"jpegs/{i}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        at = index % len(self.files)
        return Example(self.ids[index], read_picture(self.files[at], self.ids[index]), self.examples[at].labels)


def tasks(width: int = 128) -> dict[str, base.Task]:
    """Five tasks as `must` configures them by default: dense heads at stride 4."""
    dense = {"width": width, "depth": 2}
    return {
        "classification": base.build("classification", classes=CLASSES["classification"]),
        "detection": base.build("detection", classes=CLASSES["detection"], strides=(4, 8, 16), width=width, depth=2),
        "segmentation": base.build("segmentation", classes=CLASSES["segmentation"], **dense),
        "depth": base.build("depth", **dense),
        "normals": base.build("normals", **dense),
    }


def at_outputs(made: dict[str, base.Task]) -> dict[str, object]:
    return {name: task.for_loss() for name, task in made.items()}


def rates(results: measure.Results, source: Jpegs, size: int, rounds: int) -> None:
    """Rows a second and core of both arms, then milliseconds a row of each stage."""
    made, frame, view = tasks(), (size, size), Photometric()
    encoders = {
        "before": Encoder(made, frame, DRAW, {"image": view}),
        "now, view on the host": Encoder(at_outputs(made), frame, DRAW, {"image": view}),
        "now": Encoder(at_outputs(made), frame, DRAW),
    }
    turn = iter(range(10**9))

    def row(name: str) -> None:
        for index in range(8):
            rng = np.random.default_rng(next(turn))
            if name == "before":
                encoders[name](source[index], index, rng)
            else:
                with undecoded():
                    example = source[index]
                encoders[name](example, index, rng)

    spent = measure.alternating({name: functools.partial(row, name) for name in encoders}, rounds, time.process_time)
    for name, seconds in spent.items():
        faster = spent["before"] / seconds
        results.add(f"512 -> {size} px, {name}", rows_per_second=8 / seconds, times_before=faster)
    drawn = [DRAW(np.random.default_rng(i), (512, 512), frame) for i in range(8)]
    with undecoded():
        lazy = [source[i] for i in range(8)]
    pictures = [transform_image(one.image, where) for one, where in zip(lazy, drawn, strict=True)]
    stages = {
        "decode and resize": lambda i: transform_image(lazy[i].image, drawn[i]),
        "view on the host": lambda i: view(pictures[i], np.random.default_rng(i)),
    }
    for name, task in at_outputs(made).items():
        stages[name] = lambda i, one={name: task}: labels_and_weights(one, lazy[i], drawn[i])
    each = {name: lambda stage=stage: [stage(i) for i in range(8)] and None for name, stage in stages.items()}
    spent = measure.alternating(each, rounds, time.process_time)
    results.add(f"512 -> {size} px, ms a row", **{name: seconds / 8 * 1e3 for name, seconds in spent.items()})


def scaling(results: measure.Results, size: int, workers: int, seconds: float, batch: int) -> None:
    """Rows a second of 0, 1, 2, 4, ... worker processes."""
    source, encoder = Jpegs(10_000), Encoder(at_outputs(tasks()), (size, size), DRAW)
    for count in [0] + [2**k for k in range(10) if 2**k <= workers]:
        batches = train_batches(source, encoder, batch_size=batch, seed=0, workers=count)
        next(batches)
        taken, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            next(batches)
            taken += batch
        rate = taken / (time.perf_counter() - start)
        batches.close()
        results.add(f"512 -> {size} px, {count} workers", rows_per_second=rate)


def main() -> None:
    chosen = measure.options(__doc__, workers=0)
    results = measure.Results(chosen.json)
    source, rounds = Jpegs(8), 3 if chosen.quick else 15
    for size in (224, 512):
        rates(results, source, size, rounds)
    scaling(results, 224, chosen.workers or (1 if chosen.quick else 2), 2.0 if chosen.quick else 10.0, 16)


if __name__ == "__main__":
    main()
