"""Clips per second of the video backbones on one core, and what the shift and 3-D convolutions cost.

    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-individual_convolution taskset -c 1 \\
        python tests/benchmarks/video_speed.py --batch=8 --frames=8 --size=48

Processor time, not wall time: medians over interleaved rounds, so that other load falls on every row alike.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from must.core.types import Features
from must.models.heads import ClassHead
from must.models.multi_head import multi_head, parameter_count
from must.models.resnet import ResNet
from must.models.temporal_shift import R2Plus1D, TemporalConv, TemporalShiftResNet, VideoTransformer


class FrameWise(ResNet):
    """The image network on every frame: the temporal shift without the shift."""

    def __call__(self, x, *, train):
        features = self.of_images(x.reshape(-1, *x.shape[2:]), train=train)
        return Features({}, features.pooled.reshape(*x.shape[:2], -1).mean(1))


def _networks(width):
    """Small networks of about one size; {name: backbone}."""
    small = {"depth": 10, "stem": "small", "stages": 3}
    return {
        "frame-wise ResNet": FrameWise(width=width, **small),
        "temporal shift": TemporalShiftResNet(width=width, **small),
        "R(2+1)D": R2Plus1D(width=width, **small),
        "video transformer": VideoTransformer(4 * width, 4, 2, heads=4, patch=8),
    }


def _functions(backbone, clips):
    """(parameters, forward, training step without an optimizer), both of no arguments."""
    model = multi_head(backbone, None, {"action": ClassHead(6)})
    variables = model.init(jax.random.key(0), clips)
    state = {name: value for name, value in variables.items() if name != "params"}
    forward = jax.jit(lambda params, clips: model.apply({"params": params, **state}, clips, train=False)[0])

    def loss(params, clips):
        outputs, new_state = model.apply({"params": params, **state}, clips, train=True)
        return jnp.mean(outputs["action"] ** 2), new_state

    step = jax.jit(jax.grad(loss, has_aux=True))
    params = variables["params"]
    return parameter_count(params), lambda: forward(params, clips), lambda: step(params, clips)


def _convolutions(batch, frames, size, width, stride):
    """{way: (forward, gradient)} of a temporal convolution from 9/4 `width` channels, as in the first stage."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, frames, size, size, 9 * width // 4)).astype(np.float32))
    kernel = jnp.asarray(rng.normal(size=(3, 1, x.shape[-1], width)).astype(np.float32))

    def as_2d(x, kernel):
        return TemporalConv(width, 3, stride).apply({"params": {"conv": {"kernel": kernel}}}, x)

    def shifted_products(x, kernel):
        steps = -(-x.shape[1] // stride)
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        return sum(padded[:, k : k + (steps - 1) * stride + 1 : stride] @ kernel[k, 0] for k in range(3))

    def as_3d(x, kernel):
        padding = ((1, 1), (0, 0), (0, 0))
        layout = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(x, kernel[:, None], (stride, 1, 1), padding, dimension_numbers=layout)

    def both(convolve):
        forward, gradient = jax.jit(convolve), jax.jit(jax.grad(lambda *a: (convolve(*a) ** 2).mean(), (0, 1)))
        return lambda: forward(x, kernel), lambda: gradient(x, kernel)

    return {"2-D": both(as_2d), "shifted products": both(shifted_products), "3-D": both(as_3d)}


def _rounds(functions, rounds):
    """{name: function} -> {name: seconds of processor time, one per round}; a round calls each once."""
    times = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.process_time()
            jax.block_until_ready(function())
            times[name].append(time.process_time() - begin)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 8, "frames": 8, "size": 48, "width": 16, "rounds": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()

    clips = jnp.zeros((options.batch, options.frames, options.size, options.size, 3), jnp.uint8)
    built = {name: _functions(backbone, clips) for name, backbone in _networks(options.width).items()}
    spent = _rounds({(name, i): built[name][i] for name in built for i in (1, 2)}, options.rounds)

    def of_first(name, i):  # of calls that follow each other, so that a slow minute of the machine cancels
        pairs = zip(spent[name, i], spent["frame-wise ResNet", i], strict=True)
        return statistics.median(ours / first for ours, first in pairs)

    speeds = f"{'forward ms':>12}{'clips/s':>9}{'step ms':>10}{'clips/s':>9}"
    print(f"{'network':20}{'parameters':>12}{speeds}{'of the first':>14}")
    for name, (count, *_) in built.items():
        forward, step = (statistics.median(spent[name, i]) for i in (1, 2))
        print(
            f"{name:20}{count:12,}{forward * 1e3:12.1f}{options.batch / forward:9.0f}{step * 1e3:10.1f}"
            f"{options.batch / step:9.0f}{of_first(name, 1):7.2f}{of_first(name, 2):7.2f}"
        )

    print(f"\n{'temporal convolution':24}{'stride':>8}{'forward ms':>12}{'gradient ms':>13}")
    for stride in (1, 2):
        ways = _convolutions(options.batch, options.frames, options.size // 2, options.width, stride)
        spent = _rounds({(name, i): ways[name][i] for name in ways for i in (0, 1)}, options.rounds)
        for name in ways:
            forward, gradient = (statistics.median(spent[name, i]) * 1e3 for i in (0, 1))
            print(f"{name:24}{stride:8}{forward:12.2f}{gradient:13.2f}")


if __name__ == "__main__":
    main()
