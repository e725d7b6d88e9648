"""How long weights take for 1,000,000 unlabeled examples from 50,000 validation examples, and the memory it needs.

    python tests/benchmarks/weigh_rate.py [unlabeled] [validation]

Every line runs in a process of its own, whose peak memory is printed with it.
"""

import resource
import subprocess
import sys
import time

import numpy as np

from must.pseudo_label import weigh

WORK = ("ratio of means", "plug-in", "isotonic accuracy", "candidates k(x)")


def measure(name: str, unlabeled: int, validation: int) -> float:
    """Seconds from arrays in memory to the weights of all unlabeled examples."""
    rng = np.random.default_rng(0)
    points, held = rng.random((unlabeled, 2), np.float32), rng.random((validation, 2), np.float32)
    correct = rng.random(validation) < held[:, 0]
    known = weigh.HeldOut(held, rng.random(validation) + 0.1, rng.random(validation) + 0.1)
    rank = np.where(correct, 0, rng.integers(1, 100, validation))
    start = time.perf_counter()
    if name == "ratio of means":
        weigh.ratio_of_means(known, correct=correct)(points)
    elif name == "plug-in":
        weigh.plug_in(known, correct)(points)
    elif name == "isotonic accuracy":
        weigh.isotonic_accuracy(held[:, 0], correct, floor=0.1)(points[:, 0])
    else:
        weigh.candidates(held[:, 0], rank, target_precision=0.9, max_count=100)(points[:, 0])
    return time.perf_counter() - start


def main() -> None:
    unlabeled, validation = (int(text) for text in (sys.argv[1:] + ["1000000", "50000"][len(sys.argv) - 1 :])[:2])
    if len(sys.argv) == 4:
        seconds = measure(sys.argv[3], unlabeled, validation)
        print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    print(f"{unlabeled:,} unlabeled, {validation:,} validation examples")
    for name in WORK:
        runs = []
        for _ in range(3):
            command = [sys.executable, __file__, str(unlabeled), str(validation), name]
            runs.append([float(text) for text in subprocess.check_output(command, text=True).split()])
        seconds, memory = np.median(runs, 0)
        print(f"  {name:20} {seconds:6.1f} s   {memory:4.1f} GiB peak", flush=True)


if __name__ == "__main__":
    main()
