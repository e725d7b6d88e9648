"""Prints how many examples per second `scenes` makes on one core: python tests/benchmarks/scenes_rate.py [size ...]."""

import os
import sys
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

from must.data.scenes import DOMAINS, Scenes  # noqa: E402

WINDOW = 100


def rates(source: Scenes) -> tuple[float, float]:
    """Examples per second of processor time, (median, best) over windows; the best is nearest to an idle machine."""
    for i in range(20):
        source[i]
    found = []
    for start in range(0, len(source), WINDOW):
        begin = time.process_time()
        for i in range(start, start + WINDOW):
            source[i]
        found.append(WINDOW / (time.process_time() - begin))
    return sorted(found)[len(found) // 2], max(found)


def main() -> None:
    print(f"{'domain':<10}{'size':>6}{'median/s':>10}{'best/s':>8}")
    for size in [int(argument) for argument in sys.argv[1:]] or [64]:
        for domain in DOMAINS:
            median, best = rates(Scenes(10 * WINDOW, size=size, domain=domain))
            print(f"{domain:<10}{size:>6}{median:>10.0f}{best:>8.0f}")


if __name__ == "__main__":
    main()
