"""Whether students of two teachers fused beat students of one, for weak and strong teachers: a configuration.

    python -m must.main --config=configs/quickstart.py:strengths --workdir=runs/strengths
    python -m must.main --config=tests/experiments/fused_students.py:runs/strengths --workdir=runs/fused
    python -m tests.experiments.fused_students runs/strengths runs/fused

The teachers of a seed are fused with those of the next one, which saw as many other scenes; boxes count from calibrated
thresholds on and every other label counts, as in arm `boxes` of the first run. The last command prints how much better
these students are than those of one teacher, in percent, paired by seed.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import quickstart
from must.core.types import Teacher
from must.evaluate.statistics import paired_t_interval
from must.experiment import networks
from must.pseudo_label.fusion import fuse
from must.recipes.table import complete
from must.tasks.base import Task


def get_config(workdir: str = "runs/strengths") -> ConfigDict:
    """The students of `configs/quickstart.py:strengths` for fused teachers.

    Args:
      workdir: finished teachers of that configuration.
    """
    config = quickstart.get_config("strengths")
    config.title = "Students of two teachers fused"
    pair = {"make": "tests.experiments.fused_students:pair", "workdir": workdir, "seeds": config.seeds}
    config.external_teachers = {key: {**pair, "budget": "{budget}", "seed": "{seed}"} for key in config.tasks}
    config.label.hflip_tta = False  # as its figures were measured
    config.policies, config.arms = config.arms.boxes.policies, {}
    return complete(config)


def pair(
    name: str, tasks: Mapping[str, Task], *, workdir: str, seeds: Sequence[int], budget: int | str, seed: int | str
) -> Teacher:
    """The teacher of a task, budget and seed, fused with that of the next of these seeds."""
    (task,), other = tasks, seeds[(seeds.index(int(seed)) + 1) % len(seeds)]
    found = [
        networks.as_teacher(os.path.join(workdir, f"labels-{budget}", f"seed-{one}", "teachers", task), f"{name}-{one}")
        for one in (seed, other)
    ]
    return fuse(name, found)


def main(single: str, fused: str) -> None:
    """Prints the gain of the students of fused teachers over two arms of single ones."""
    metrics = {"classification": "top1", "detection": "AP", "segmentation": "mIoU"}

    def scores(student: Path) -> np.ndarray:
        test = json.loads((student / "done.json").read_text())["test"]
        return np.array([test[task][metric] for task, metric in metrics.items()])

    print(f"{'':22}" + "".join(f"{name:>24}" for name in ("mean", *metrics)))
    finished = sorted(Path(fused).glob("labels-*/seed-*/student/done.json"))
    for budget in sorted({path.parents[2] for path in finished}, key=lambda path: int(path.name.partition("-")[2])):
        seeds = [path.parents[1].name for path in finished if path.parents[2] == budget]
        for arm in ("boxes", "hard"):
            pairs = [(budget / s / "student", Path(single) / budget.name / s / "arms" / arm) for s in seeds]
            gains = np.array([100 * (scores(ours) / scores(theirs) - 1) for ours, theirs in pairs])
            columns = (gains.mean(1), *gains.T)
            shown = ("{:+.1f} [{:+.1f}, {:+.1f}]".format(*paired_t_interval(list(column))) for column in columns)
            print(f"{budget.name:12}over {arm:5}" + "".join(f"{text:>24}" for text in shown))


if __name__ == "__main__":
    main(*sys.argv[1:])
