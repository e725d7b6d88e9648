"""The depthwise 7x7 convolution of ConvNeXt on this machine: sum of shifted slices against XLA's grouped convolution.

python tests/benchmarks/depthwise.py
"""

import time

import jax
import numpy as np

from must.core.devices import set_xla_flags

set_xla_flags()

from must.models.convnext import _grouped, depthwise  # noqa: E402


def milliseconds(function, *arguments) -> float:
    """The fastest of five calls of a compiled function."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    for shape in ((4, 32, 32, 96), (4, 8, 8, 384)):
        x, kernel = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in (shape, (7, 7, 1, shape[-1])))
        for name, function in (("slices", depthwise), ("grouped", _grouped)):
            loss = jax.jit(jax.grad(lambda x, k, f=function: (f(x, k) ** 2).sum(), (0, 1)))
            forward, both = milliseconds(jax.jit(function), x, kernel), milliseconds(loss, x, kernel)
            print(f"{shape}: {name:8} forward {forward:8.1f} ms, with gradient {both:8.1f} ms", flush=True)


if __name__ == "__main__":
    main()
