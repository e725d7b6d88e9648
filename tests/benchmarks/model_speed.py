"""Time of a training step of the quickstart's network, part by part, on one core.

    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-individual_convolution taskset -c 1 \\
        python tests/benchmarks/model_speed.py --batch=32 --size=64

Processor time, not wall time: medians over interleaved rounds, so that other load falls on every row alike.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from must.models.fpn import FPN
from must.models.heads import ClassHead, DenseHead, DetectionHead
from must.models.multi_head import multi_head, parameter_count
from must.models.resnet import ResNet
from must.tasks.detection import PointHead

HEADS = {
    "classification": lambda o: ClassHead(12),
    "detection": lambda o: PointHead(
        DetectionHead(4, width=o.channels, depth=o.detection_depth, norm=o.detection_norm), tuple(o.detection_strides)
    ),
    "segmentation": lambda o: _dense(o, 7),
    "depth": lambda o: _dense(o, 1),
    "normals": lambda o: _dense(o, 3),
}


def _dense(options, channels):
    return DenseHead(channels, 4, options.dense_width, options.dense_depth, shuffle=2, norm=options.dense_norm)


def _step(model):
    """Forward and backward of the sum of squares of every output, and nothing else."""

    def loss(params, state, inputs):
        outputs, state = model.apply({"params": params, **state}, inputs, train=True)
        return sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(outputs)), state

    return jax.jit(jax.grad(loss, has_aux=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "batch": 32,
        "size": 64,
        "depth": 10,
        "width": 24,
        "stages": 3,
        "channels": 32,
        "detection_depth": 2,
        "dense_width": 32,
        "dense_depth": 1,
        "rounds": 15,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {
        "stem": "imagenet",
        "norm": "batch",
        "dense_norm": "batch",
        "detection_norm": "group",
    }.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--detection_strides", type=int, nargs="+", default=(8, 16))
    options = parser.parse_args()

    inputs = jnp.zeros((options.batch, options.size, options.size, 3), jnp.uint8)
    arms = {}
    for name, tasks in {**{task: (task,) for task in HEADS}, "all five": tuple(HEADS)}.items():
        backbone = ResNet(options.depth, options.width, options.norm, options.stem, options.stages)
        neck = None if name == "classification" else FPN(options.channels, (4, 8, 16))
        model = multi_head(backbone, neck, {task: HEADS[task](options) for task in tasks})
        begin = time.process_time()
        variables = model.init(jax.random.key(0), inputs)
        state = {"batch_stats": variables["batch_stats"]} if "batch_stats" in variables else {}
        arguments, step = (variables["params"], state, inputs), _step(model)
        jax.block_until_ready(step(*arguments))
        arms[name] = (step, arguments, time.process_time() - begin, [])
    for _ in range(options.rounds):
        for step, arguments, _, times in arms.values():
            begin = time.process_time()
            jax.block_until_ready(step(*arguments))
            times.append(time.process_time() - begin)
    print(f"{'heads':16}{'parameters':>12}{'CPU ms':>12}{'fastest':>10}{'images/s':>10}{'start, s':>10}")
    for name, (_, arguments, start, times) in arms.items():
        median = statistics.median(times)
        print(
            f"{name:16}{parameter_count(arguments[0]):12,}{median * 1e3:12.1f}{min(times) * 1e3:10.1f}"
            f"{options.batch / median:10.0f}{start:10.1f}"
        )


if __name__ == "__main__":
    main()
