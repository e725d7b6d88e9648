"""Paired differences between arms of a MulTaS workdir with intervals over test images, for runs of one seed.

python -m tests.experiments.over_images WORKDIR SUBJECT REFERENCE [SUBJECT REFERENCE ...]
"""

import json
import os
import sys

from must.evaluate.evaluate import bootstrap_interval
from must.experiment import build, measure
from must.experiment.run import members
from must.recipes.table import recipe_of


def differences(workdir: str, pairs: list[tuple[str, str]]) -> list[str]:
    """One line per pair and task that both arms have."""
    with open(os.path.join(workdir, "config.json")) as file:
        config = json.load(file)
    member = members(recipe_of(config), config)[0]
    tasks, split, lines = build.tasks_of(member.settings), member.settings.eval_splits[0], []
    for pair in pairs:
        rows = [
            measure.load_rows(os.path.join(workdir, member.prefix, "grid", arm, f"rows-{split}.npz")) for arm in pair
        ]
        for name in (n for n in tasks if n in rows[0] and n in rows[1]):
            task, (mine, theirs) = tasks[name], (part[name] for part in rows)
            metric = task.metrics[0].name
            gain = task.summarize(dict(mine))[metric] - task.summarize(dict(theirs))[metric]
            low, high = bootstrap_interval(task, mine, versus=theirs, resamples=300)
            lines.append(f"{name}, {metric}: {pair[0]} - {pair[1]} {gain:+.4f} [{low:+.4f}, {high:+.4f}]")
    return lines


if __name__ == "__main__":
    arms = sys.argv[2:]
    print("\n".join(differences(sys.argv[1], list(zip(arms[::2], arms[1::2], strict=True)))))
