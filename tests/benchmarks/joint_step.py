"""Cost of a joint step of three experts, and the time it waits for clips.

    taskset -c 1 python tests/benchmarks/joint_step.py --batch 8 --rounds 9

Whole steps of `configs/jedi.py`, optimizer included, on random clips; every ratio is the median over pairs of adjacent
steps, so that other load affects both. "three alone" are single steps of the three experts, each on the rows of all
groups; the loop over experts and vmap are compared with three experts of one clip length.
"""

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from must.core.devices import set_xla_flags
from must.core.types import Batch, Policy
from must.data.pipeline import Grouped, train_batches
from must.models.experts import Expert, experts
from must.objectives import balance
from must.objectives.joint import joint
from must.objectives.labels import labels
from must.objectives.objective import objective as make_objective
from must.readers.frames import FrameFolders
from must.recipes import jedi
from must.train import state as states
from must.train.loop import fit
from must.train.optimizer import optimizer
from must.train.step import train_step


def _built(**changes) -> jedi.Built:
    """The configuration's objects of one seed."""
    path = Path(__file__).parents[2] / "configs" / "jedi.py"
    spec = importlib.util.spec_from_file_location("jedi_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = json.loads(module.get_config().to_json())
    return jedi.Built({**config, **changes}, config["seeds"][0])


def _batch(built: jedi.Built, inputs, rows: int, owner: str | None, seed: int) -> Batch:
    """Noise; the rows are labeled for one set or for none."""
    rng = np.random.default_rng(seed)
    shown = {view: rng.integers(0, 256, (rows, *array.shape[1:])).astype(np.uint8) for view, array in inputs.items()}
    labels = {
        name: {"probs": np.eye(len(task.classes), dtype=np.float32)[rng.integers(0, len(task.classes), rows)]}
        for name, task in built.tasks.items()
    }
    weights = {name: np.full(rows, name == owner, np.float32) for name in built.names}
    return Batch(shown, labels, weights, np.arange(rows))


def _arm(built: jedi.Built, objective, variables):
    """[state, compiled step]."""
    settings = built.settings("joint")
    tx, weights = optimizer(steps=600, **settings["optimizer"]), balance.fixed()
    step = functools.partial(train_step, objective=objective, balance=weights, tx=tx, ema_decay=settings["ema_decay"])
    state = states.create(jax.random.key(0), jax.tree.map(np.copy, variables), objective, weights, tx)
    return [state, jax.jit(step, donate_argnums=0)]


def _timed(arms) -> float:
    """Seconds of one step of each (arm, batch)."""
    begin = time.perf_counter()
    for arm, batch in arms:
        arm[0], logs = arm[1](arm[0], batch, None)
        jax.block_until_ready((arm[0], logs))
    return time.perf_counter() - begin


def _compared(title: str, one, other, rounds: int, goal: str = "") -> None:
    """Prints a line: what `other` costs over `one`."""
    _timed(one), _timed(other)  # compiles
    pairs = [(_timed(one), _timed(other)) for _ in range(rounds)]
    first, second = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{title:44}{first:10.1f}{second:10.1f}{ratio:8.2f}{goal:>9}", flush=True)


def _joint_arm(built: jedi.Built, parts, variables, rows: int, inputs, **options):
    """[(arm, groups of batches)] of a joint step."""
    groups = {name: _batch(built, inputs, rows, name, i) for i, name in enumerate(built.names)}
    groups["pool"] = _batch(built, inputs, rows, None, 9)
    objective = joint(parts, built.tasks, initial=variables["params"], **options)
    return [(_arm(built, objective, variables), jax.device_put(groups))]


def steps(rows: int, rounds: int) -> None:
    """The joint step against single ones, and with an average of teachers."""
    built = _built()
    inputs, parts = built.shown(built.names, "joint").blank_inputs(), built.joined()
    variables = parts.init(jax.random.key(0), inputs)
    single = []
    for i, name in enumerate(built.names):
        model, shown = built.model((name,)), built.shown((name,)).blank_inputs()
        mine = {name: built.tasks[name]}
        objective = make_objective(model, [labels(mine, {name: Policy()})], scales={name: 1.0})
        batch = _batch(built, shown, rows * (len(built.names) + 1), name, i)
        batch = batch._replace(labels={name: batch.labels[name]}, weights={name: batch.weights[name]})
        single.append((_arm(built, objective, model.init(jax.random.key(i), shown["image"])), jax.device_put(batch)))
    whole = _joint_arm(built, parts, variables, rows, inputs)
    print(
        f"{f'{rows} clips of each of {len(built.names) + 1} groups':44}{'ms':>10}{'ms':>10}{'ratio':>8}{'goal':>9}",
        flush=True,
    )
    _compared("three alone -> joint", single, whole, rounds, "1.15")
    _compared(
        "joint -> with an average of teachers",
        whole,
        _joint_arm(built, parts, variables, rows, inputs, ema_decay=0.99),
        rounds,
    )


def vectorized(rows: int, rounds: int) -> None:
    """A loop over experts that are alike against vmap; compiling the latter takes minutes."""
    alike = _built(experts={name: {"frames": 6, "model": {}} for name in _built().names})
    section = {n: Expert(alike.model((n,)), len(alike.tasks[n].classes), "6 frames") for n in alike.names}
    inputs = alike.shown(alike.names, "joint").blank_inputs()
    loop, together = (experts(section, vectorize=vectorize) for vectorize in (False, True))
    variables = loop.init(jax.random.key(0), inputs)
    arms = [_joint_arm(alike, made, variables, rows, inputs) for made in (loop, together)]
    _compared("loop over experts -> vmap", *arms, rounds)


def waiting(rows: int, count: int) -> None:
    """How much of the time the real pipeline keeps the joint step waiting."""
    built = _built()
    with tempfile.TemporaryDirectory() as folder:
        procedural = built.batches("joint")
        for source in procedural.values():
            [source[i] for i in range(len(source))]  # rendered once
        folders = {name: _written(source, Path(folder) / name, 32) for name, source in procedural.items()}
        variables = built.joined().init(jax.random.key(0), built.shown(built.names, "joint").blank_inputs())
        for title, groups in (("procedural, in memory", procedural), ("frame folders, decoded live", folders)):
            arm = _arm(built, built.objective("joint", None), variables)
            encoder = built.encoder(built.names, "joint")
            batches = Grouped({g: train_batches(s, encoder, batch_size=rows, seed=0) for g, s in groups.items()})
            last = []
            fit(arm[0], arm[1], batches, steps=count, hooks=(last.append,))
            share = last[-1].data_seconds / last[-1].seconds
            print(
                f"{title:44}{1e3 * last[-1].seconds / (count - 1):10.1f} ms a step, {100 * share:.1f}% of it waiting",
                flush=True,
            )


def _written(source, root: Path, count: int) -> FrameFolders:
    """The first clips of a source as folders of JPEG frames with a list of their classes."""
    lines = []
    for i in range(min(count, len(source))):
        example = source[i]
        clip = root / f"clip-{i:04d}"
        clip.mkdir(parents=True)
        for number, frame in enumerate(np.asarray(example.image)):
            Image.fromarray(frame).save(clip / f"{number:04d}.jpg", quality=92)
        lines.append(" ".join([clip.name, *(str(int(label["ids"][0])) for label in example.labels.values())]))
    (root / "clips.txt").write_text("\n".join(lines))
    classes = next(iter(source.classes.values()), ())
    return FrameFolders(str(root), list="clips.txt", classes=list(classes), task=root.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="clips of every set and of the pool in a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="of the run that waits for data")
    parser.add_argument("--parts", nargs="+", default=("steps", "vectorized", "waiting"))
    options = parser.parse_args()
    set_xla_flags()
    if "steps" in options.parts:
        steps(options.batch, options.rounds)
    if "vectorized" in options.parts:
        vectorized(options.batch, options.rounds)
    if "waiting" in options.parts:
        waiting(options.batch, options.steps)


if __name__ == "__main__":
    main()
