"""Whether students of two teachers fused beat students of one, for weak and strong teachers: a configuration.

    python -m must.main --config=configs/quickstart.py:strengths --workdir=runs/strengths
    python -m must.main --config=tests/experiments/fused_students.py:runs/strengths --workdir=runs/fused

The teachers of a seed are fused with those of the next one, which saw as many other scenes; boxes count from calibrated
thresholds on and every other label counts, as in arm `boxes` of the first run. Students of both are compared by
`python -m must.main --stage=compare --workdirs=runs/strengths,runs/fused --workdir=runs/both`.
"""

import os
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from configs import quickstart
from must.core.types import Teacher
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
