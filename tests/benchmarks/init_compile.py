"""Seconds of processor time to compile the initialization of a network under different random number generators.

    python tests/benchmarks/init_compile.py

The generator in `must.models.multi_head` against JAX's own, alternating, medians of three; nothing is cached.
"""

import os
import statistics
import sys
import time
from pathlib import Path

os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from must.models import multi_head
from must.models.fpn import FPN
from must.models.resnet import ResNet
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.segmentation import Segmentation

TASKS = {
    "classification": Classification(tuple("abc")),
    "segmentation": Segmentation(classes=tuple("abc"), shuffle=2, width=32, depth=1),
    "depth": Depth(shuffle=2, width=32, depth=1),
}
NETWORKS = {
    "ResNet-10 + FPN, 64 px": (ResNet(depth=10, width=24, stages=3), FPN(channels=32, strides=(4, 8, 16)), 64),
    "ResNet-50 + FPN, 128 px": (ResNet(depth=50), FPN(channels=256, strides=(8, 16, 32)), 128),
}
OWN = "must"


def seconds(backbone, neck, size: int, generator: str) -> float:
    """Processor time of one compilation."""
    jax.clear_caches()
    model = multi_head.multi_head(backbone, neck, {name: task.head() for name, task in TASKS.items()})
    images, own, wrap = np.zeros((1, size, size, 3), np.uint8), multi_head._HASH, jax.random.wrap_key_data
    if generator != OWN:
        words = 4 if "rbg" in generator else 2
        multi_head._HASH = generator
        jax.random.wrap_key_data = lambda data, impl: wrap(jnp.resize(data, (words,)), impl=impl)
    try:
        start = time.process_time()
        jax.jit(model.init).lower(jax.random.key(0), images).compile()
        return time.process_time() - start
    finally:
        multi_head._HASH, jax.random.wrap_key_data = own, wrap


def main() -> None:
    for name, (backbone, neck, size) in NETWORKS.items():
        generators = (OWN, "unsafe_rbg", "rbg", "threefry2x32")
        times = {generator: [] for generator in generators}
        for _ in range(3):
            for generator in generators:
                times[generator].append(seconds(backbone, neck, size, generator))
        print(name, {generator: round(statistics.median(values), 2) for generator, values in times.items()}, flush=True)


if __name__ == "__main__":
    main()
