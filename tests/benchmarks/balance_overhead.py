"""Cost of every balance: a training step of the quickstart's student on five tasks over the step with the plain sum.

    python tests/benchmarks/balance_overhead.py --batch 16 32 --rounds 9

Whole steps, optimizer included, on random labels. Every step of a method is paired with a step of the plain sum, so
that other load affects both; ratios are medians over the rounds.
"""

import argparse
import dataclasses
import functools
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from must.core.devices import set_xla_flags
from must.core.types import Batch, Policy
from must.experiment import build
from must.experiment.loss_scales import stated_scales
from must.experiment.run import members
from must.experiment.sections import Part
from must.experiment.settings import BALANCES, Must
from must.objectives.labels import labels
from must.objectives.objective import objective as make_objective
from must.recipes.table import recipe_of
from must.train import state as states
from must.train.optimizer import optimizer
from must.train.step import train_step

CLASSES = {"classification": 12, "detection": 4, "segmentation": 7}
GRADIENTS = ("gradnorm", "pcgrad", "cagrad", "nash_mtl", "upgrad")


def _settings() -> Must:
    """The settings of the quickstart."""
    path = Path(__file__).parents[2] / "configs" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config().to_dict()
    return members(recipe_of(config), config)[0].settings


def _label(field: str, shape, dtype, rng) -> np.ndarray:
    """Noise that is a possible value of the field."""
    if np.dtype(dtype) == np.bool_:
        return np.full(shape, field != "crowd")
    if field == "boxes":
        corner = rng.uniform(0, 30, (*shape[:-1], 2))
        return np.concatenate([corner, corner + rng.uniform(8, 30, corner.shape)], -1).astype(dtype)
    top = {"float32": 1, "int32": 4, "uint8": 255 if field == "probs" else 7}[np.dtype(dtype).name]
    return rng.uniform(0, top, shape).astype(dtype)


def _batch(tasks, rows: int, size: tuple[int, int]) -> Batch:
    """Noise in the network form of every task; half of the rows of each are labeled."""
    rng = np.random.default_rng(0)
    labels = {
        name: {
            field: _label(field, (rows, *spec.shape), spec.dtype, rng)
            for field, spec in task.network_spec(size).items()
        }
        for name, task in tasks.items()
    }
    weights = {name: (np.arange(rows) % 2 == i % 2).astype(np.float32) for i, name in enumerate(tasks)}
    images = rng.integers(0, 256, (rows, *size, 3)).astype(np.uint8)
    return Batch({"image": images}, labels, weights, np.arange(rows))


def _arm(kind: str, model, variables, tasks, settings: Must):
    """[state, compiled step] of one method."""
    student = dataclasses.replace(settings.student, balance=Part(kind))
    policies, scales = dict.fromkeys(tasks, Policy(0.0, 0.0)), stated_scales(student, tasks)
    objective = make_objective(model, [labels(tasks, policies)], scales=scales)
    tx, balance = optimizer(steps=600, **vars(student.optimizer)), build.balance(student)
    step = functools.partial(train_step, objective=objective, balance=balance, tx=tx, ema_decay=student.ema_decay)
    return [states.create(jax.random.key(0), variables, objective, balance, tx), jax.jit(step, donate_argnums=0)]


def _timed(arm, batch) -> float:
    begin = time.perf_counter()
    arm[0], logs = arm[1](arm[0], batch, None)
    jax.block_until_ready((arm[0], logs))
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=(16, 32))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--kinds", nargs="+", default=[kind for kind in BALANCES if kind != "fixed"])
    options = parser.parse_args()
    set_xla_flags()

    settings = _settings()
    size = settings.image.size
    named = {name: {name: tuple(map(str, range(count)))} for name, count in CLASSES.items()}
    sources = {name: argparse.Namespace(classes=named.get(name, {})) for name in settings.tasks}
    tasks = build.tasks(settings.tasks, sources)
    model = build.network(settings.model, tasks)
    variables = model.init(jax.random.key(0), np.zeros((1, *size, 3), np.uint8))
    print(f"{'balance':14}{'batch':>6}{'plain, ms':>11}{'ms':>9}{'ratio':>8}{'goal':>7}{'compile, s':>12}", flush=True)
    for rows in options.batch:
        batch = jax.device_put(_batch(tasks, rows, size))
        plain = _arm("fixed", model, variables, tasks, settings)
        _timed(plain, batch)
        for kind in options.kinds:
            arm = _arm(kind, model, variables, tasks, settings)
            start = _timed(arm, batch)
            pairs = [(_timed(plain, batch), _timed(arm, batch)) for _ in range(options.rounds)]
            ratio = statistics.median(b / a for a, b in pairs)
            first, second = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
            goal = 1 + 0.5 * len(tasks) if kind in GRADIENTS else 1.1
            print(f"{kind:14}{rows:6}{first:11.1f}{second:9.1f}{ratio:8.2f}{goal:7.1f}{start:12.1f}", flush=True)


if __name__ == "__main__":
    main()
