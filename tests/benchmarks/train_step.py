"""Training steps of whole networks with five heads, against the same networks in torch where it is installed.

    python tests/benchmarks/train_step.py [--quick] [--json FILE] [--names resnet18,...] [--threads 2]

Forward and backward pass of the mean squares of all outputs less 1, without which gradients shrink to denormal numbers,
and an SGD update, on both sides; arms of a network take turns. FLOP are those that XLA counts; MFU is over the matrix
product that was measured in the same run. --heads compares the step of all heads with those of networks of one head
each, in place of torch.
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import measure

from must.core.devices import compiler_options, set_xla_flags
from must.models.fpn import FPN
from must.models.multi_head import multi_head
from must.models.resnet import ResNet
from must.models.vit import ViT
from must.tasks import base

RATE = 1e-3


class Net(NamedTuple):
    """A network of the table.

    Attributes:
      size: of the frame, pixels.
      batch: rows.
      depth: of the ResNet, with FPN and five heads; 0: a ViT with a class head.
      vit: size of the ViT.
      width: of the ResNet.
      channels: of FPN and heads.
    """

    size: int
    batch: int
    depth: int = 0
    vit: str = ""
    width: int = 64
    channels: int = 128


NETS = {
    "quickstart": Net(64, 32, depth=10, width=24, channels=32),
    "resnet18": Net(224, 8, depth=18),
    "resnet50": Net(224, 4, depth=50),
    "vit_tiny": Net(224, 8, vit="tiny"),
    "resnet50_512": Net(512, 16, depth=50, channels=256),
    "vit_base": Net(224, 64, vit="base"),
}
TINY = {"resnet10": Net(64, 2, depth=10, width=8, channels=8), "vit_tiny": Net(32, 2, vit="tiny")}
STRIDES, CLASSES = (4, 8, 16), {"classification": 1000, "detection": 80, "segmentation": 150}


def tasks(net: Net) -> dict[str, base.Task]:
    """The tasks whose heads the network has."""
    names = {name: tuple(f"c{i}" for i in range(count)) for name, count in CLASSES.items()}
    made = {"classification": base.build("classification", classes=names["classification"])}
    if not net.depth:
        return made
    head = {"width": net.channels, "depth": 2}
    made["detection"] = base.build("detection", classes=names["detection"], strides=STRIDES, **head)
    made["segmentation"] = base.build("segmentation", classes=names["segmentation"], **head)
    return made | {name: base.build(name, **head) for name in ("depth", "normals")}


def model(net: Net, precision: str, answered: dict[str, base.Task] | None = None):
    """The network as `must` builds it, with the heads of its own tasks or of others."""
    heads = {name: task.head() for name, task in (answered or tasks(net)).items()}
    backbone = ResNet(net.depth, width=net.width) if net.depth else ViT(net.vit, grid=net.size // 16)
    neck = FPN(net.channels, STRIDES) if net.depth else None
    return multi_head(backbone, neck, heads, precision=precision)


def ours(
    results: measure.Results, name: str, net: Net, precision: str, answered: dict[str, base.Task] | None = None
) -> tuple[Callable[[], Any], float]:
    """(a step, its FLOP); adds a row with the first step's seconds and the memory that it takes."""
    made = model(net, precision, answered)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (net.batch, net.size, net.size, 3)).astype(np.uint8))
    variables = made.init(jax.random.key(0), images[:1])

    def step(params, state, images):
        def loss(params):
            outputs, moved = made.apply({"params": params, **state}, images, train=True, key=jax.random.key(0))
            outputs = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
            return sum(jnp.mean((leaf - 1) ** 2) for leaf in outputs), moved

        grads, state = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda leaf, grad: leaf - RATE * grad, params, grads), state

    held = [variables["params"], {key: value for key, value in variables.items() if key != "params"}]
    start = time.perf_counter()
    options = compiler_options(jax.devices()[0])
    program = jax.jit(step, donate_argnums=(0, 1), compiler_options=options).lower(*held, images).compile()
    compiled = time.perf_counter() - start
    memory, flop = program.memory_analysis(), (program.cost_analysis() or {}).get("flops", 0.0)
    size = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20 if memory else float("nan")
    results.add(f"{name}, {precision}, program", compile_seconds=compiled, mib=size, gflop=flop / 1e9)

    def work():
        held[0], held[1] = program(*held, images)
        return held[0]

    return work, flop


def theirs(net: Net, precision: str, compile_: bool) -> Callable[[], Any]:
    """The same step in torch, channels last."""
    import torch
    import torch_twins

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if net.depth:
        made = torch_twins.FiveHeads(net.depth, net.width, net.channels, CLASSES)
    else:
        made = torch_twins.Vit(net.vit, net.size, CLASSES["classification"])
    made = made.to(device, memory_format=torch.channels_last).train()
    images = torch.rand(net.batch, 3, net.size, net.size, device=device).to(memory_format=torch.channels_last)
    tx = torch.optim.SGD(made.parameters(), RATE)
    run = torch.compile(made) if compile_ else made

    def work():
        tx.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            outputs = run(images)
        sum(((one.float() - 1) ** 2).mean() for one in outputs).backward()
        tx.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return work


def compare(results: measure.Results, name: str, net: Net, peaks: dict[str, float], rounds: int) -> None:
    """One network: both precisions of ours, and torch's eager and compiled steps where there are any."""
    on_cpu = jax.default_backend() == "cpu"
    for precision in ("float32",) if on_cpu else ("float32", "bfloat16"):
        work, flop = ours(results, name, net, precision)
        arms = {"ours": work}
        if importlib.util.find_spec("torch"):
            for kind in ("torch eager",) if on_cpu else ("torch eager", "torch compiled"):
                arms[kind] = theirs(net, precision, kind == "torch compiled")
        else:
            results.add(f"{name}, {precision}, torch", skipped="not installed")
        spent = measure.alternating(arms, rounds)
        for arm, seconds in spent.items():
            extra = {"mfu": flop / seconds / peaks[precision]} if arm == "ours" else {}
            ratio = seconds / spent["ours"]
            results.add(f"{name}, {precision}, {arm}", images_per_second=net.batch / seconds, of_ours=ratio, **extra)


def heads(results: measure.Results, name: str, net: Net, rounds: int) -> None:
    """All heads of a network against each alone on its backbone: five for the price of how many."""
    every, arms = tasks(net), {}
    for arm, answered in {**{task: {task: one} for task, one in every.items()}, "all": every}.items():
        arms[arm] = ours(results, f"{name}, {arm}", net, "float32", answered)[0]
    spent = measure.alternating(arms, rounds)
    for arm, seconds in spent.items():
        results.add(f"{name}, {arm}", milliseconds=seconds * 1e3, images_per_second=net.batch / seconds)
    alone = [seconds for arm, seconds in spent.items() if arm != "all"]
    results.add(f"{name}, all heads", of_the_heaviest=spent["all"] / max(alone), of_their_sum=spent["all"] / sum(alone))


def main() -> None:
    chosen = measure.options(__doc__, names="", threads=0, heads=False)
    set_xla_flags()
    if chosen.threads and importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(chosen.threads)
    results = measure.Results(chosen.json)
    peaks = measure.limits(results, 512 if chosen.quick else 2048)
    nets = TINY if chosen.quick else {name: NETS[name] for name in (chosen.names or "quickstart,resnet18").split(",")}
    rounds = 2 if chosen.quick else 9
    for name, net in nets.items():
        heads(results, name, net, rounds) if chosen.heads else compare(results, name, net, peaks, rounds)


if __name__ == "__main__":
    main()
