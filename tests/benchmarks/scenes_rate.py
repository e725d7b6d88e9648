"""Prints how many pictures `scenes` and clips `moving_scenes` make per second on one core.

Run: python tests/benchmarks/scenes_rate.py [size ...]; sizes are of pictures, clips have 8 frames of 48 pixels.
"""

import os
import sys
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

from must.core.types import Source  # noqa: E402
from must.scenes.moving import DOMAIN, MovingScenes  # noqa: E402
from must.scenes.still import DOMAINS, Scenes  # noqa: E402

WINDOW = 100


def rates(source: Source) -> tuple[float, float]:
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
    print(f"\n{'actions':<10}{'domain':<10}{'clips median/s':>16}{'best/s':>8}{'frames/s':>10}")
    for actions, domain in DOMAIN.items():
        median, best = rates(MovingScenes(5 * WINDOW, actions=actions))
        print(f"{actions:<10}{domain:<10}{median:>16.0f}{best:>8.0f}{8 * median:>10.0f}")


if __name__ == "__main__":
    main()
