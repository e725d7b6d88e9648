"""How long a checkpoint holds up training, and how long it takes: written at once, and written ahead.

python tests/benchmarks/save_stall.py [--mib 100] [--saves 5] [--json FILE]
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[2]))

import measure

from must.train.checkpoint import Checkpoints


def main() -> None:
    chosen = measure.options(__doc__, mib=100, saves=5)
    results = measure.Results(chosen.json)
    state = [jnp.full((1 << 18,), float(i)) for i in range(2 if chosen.quick else chosen.mib)]
    held: dict[bool, list[float]] = {False: [], True: []}
    whole: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as top:
        each = {ahead: Checkpoints(f"{top}/{ahead}", keep=2, ahead=ahead) for ahead in held}
        for step in range(1, chosen.saves + 1):
            for ahead, checkpoints in each.items():
                start = time.perf_counter()
                checkpoints.save(step, state)
                held[ahead].append(time.perf_counter() - start)
                checkpoints.check(wait=True)
                whole[ahead].append(time.perf_counter() - start)
        for checkpoints in each.values():
            checkpoints.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    for ahead, name in ((False, "at once"), (True, "ahead")):
        milliseconds = {"held_up_ms": median(held[ahead]) * 1e3, "whole_ms": median(whole[ahead]) * 1e3}
        results.add(f"checkpoint of {size:.0f} MiB, {name}", **milliseconds)


if __name__ == "__main__":
    main()
