"""What all benchmarks share: alternating windows, the limits of the machine, results that are written as they come."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "simplejpeg", "grain", "torch")


def options(doc: str, **more: Any) -> argparse.Namespace:
    """--quick, --json FILE, --minutes, and further options by their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, under a minute")
    parser.add_argument("--json", default="", help="file of the results, written after every row")
    for name, default in more.items():
        kind = {"action": "store_true"} if default is False else {"type": type(default), "default": default}
        parser.add_argument(f"--{name}", **kind)
    return parser.parse_args()


class Results:
    """Rows that are printed and written as they come, so that a run that is cut keeps what it has."""

    def __init__(self, path: str, minutes: float = float("inf")):
        self._path, self._rows = path, []
        self._end = time.monotonic() + 60 * minutes
        device = jax.devices()[0]
        versions = {}
        for name in PACKAGES:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._about = {"device": device.device_kind, "cores": cores, "python": platform.python_version(), **versions}
        print("machine:", ", ".join(f"{key} {value}" for key, value in self._about.items()), flush=True)

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def add(self, what: str, **values: Any) -> None:
        """One row; floats are shown with four digits."""
        self._rows.append({"what": what, **values})
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
        print(f"{what}: {', '.join(f'{key} {value}' for key, value in shown.items())}", flush=True)
        if self._path:
            Path(self._path).write_text(json.dumps({"machine": self._about, "rows": self._rows}, indent=1))


def alternating(
    arms: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] | None = None
) -> dict[str, float]:
    """Median seconds of each arm, which take turns, so that other load falls on all alike; one turn warms up.

    Of the wall; of the processor where this process has one core (`taskset -c 1`) and no accelerator.
    """
    alone = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
    clock = clock or (time.process_time if alone and jax.default_backend() == "cpu" else time.perf_counter)
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, work in arms.items():
            start = clock()
            jax.block_until_ready(work())
            if turn:
                spent[name].append(clock() - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def limits(results: Results, side: int) -> dict[str, float]:
    """What the machine does at most: products of `side` x `side` matrices, copies, decoded JPEGs; adds a row each."""
    found = {}
    for precision in ("float32", "bfloat16"):
        matrix = jnp.ones((side, side), precision)
        product = jax.jit(lambda a: a @ a)
        seconds = alternating({"": lambda matrix=matrix, product=product: product(matrix)}, 5)[""]
        found[precision] = 2 * side**3 / seconds
        results.add(f"matrix product, {precision}", tflops=found[precision] / 1e12, side=side)
    block = jnp.ones((64, 1024, 256), jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    seconds = alternating({"": lambda: copy(block)}, 5)[""]
    results.add("memory", gb_per_second=2 * block.nbytes / seconds / 1e9)
    rng = np.random.default_rng(0)
    data = simplejpeg.encode_jpeg(rng.integers(0, 255, (512, 512, 3)).astype(np.uint8) // 8 + 96, quality=90)
    seconds = alternating({"": lambda: simplejpeg.decode_jpeg(data)}, 5, time.process_time)[""]
    results.add("JPEG of 512 px", decoded_per_second_and_core=1 / seconds, bytes=len(data))
    return found
