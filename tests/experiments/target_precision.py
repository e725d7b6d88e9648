"""Whether a target precision is reached: thresholds from the held-out records of a run, measured on its test records.

    python -m must.main --config=configs/quickstart.py:policies --workdir=runs/policies
    python -m tests.experiments.target_precision --workdir=runs/policies --precision=0.9

No teacher runs. One line per task and seed: precision and recall of positive labels on the test split, then both for
a fixed raw score of 0.5. Wilson's 95% interval accounts for the correlation of claims of one image.
"""

import argparse
import json
import os

import numpy as np

from must.evaluate.quality import quality
from must.experiment import build
from must.experiment.labeling import EVALUATION, HELD_OUT, recorded, records_directory
from must.experiment.run import members
from must.pseudo_label import policy as policies
from must.readers.records import Records
from must.recipes.table import recipe_of


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--precision", type=float, default=0.9)
    options = parser.parse_args()
    with open(os.path.join(options.workdir, "config.json")) as file:
        config = json.load(file)
    print(f"{'task':16}{'seed':>5}  {'precision':>9}  {'95%':15}{'recall':>7}   fixed 0.5: precision, recall")
    reached: dict[str, list[float]] = {}
    for member in members(recipe_of(config), config):
        settings, top, seed = member.settings, os.path.join(options.workdir, member.prefix), member.seed
        tasks = build.tasks_of(settings)
        encoder = build.encoder(settings.image, tasks)
        splits = {HELD_OUT: "validation", EVALUATION: settings.eval_splits[0]}
        truth = {which: build.splits(settings, split) for which, split in splits.items()}
        for name, task in tasks.items():
            rows = {}
            for which, sources in truth.items():
                records = Records(records_directory(top, which), tasks=[name], verify=False)
                rows[which] = list(recorded(records, sources[name], name, encoder, task))
            policy, _ = policies.fit(
                task, ((label, true) for label, true, _ in rows[HELD_OUT]), precision=options.precision
            )
            fitted, fixed = (quality(task, rows[EVALUATION], tried)["total"] for tried in (policy, policies.hard(0.5)))
            if fitted["precision"] is None:
                print(f"{name:16}{seed:>5}  no threshold reaches {options.precision:g}")
                continue
            low, high = fitted["precision_ci95"]
            reached.setdefault(name, []).append(fitted["precision"])
            print(
                f"{name:16}{seed:>5}  {fitted['precision']:9.3f}  [{low:.3f}, {high:.3f}] {fitted['recall']:6.3f}"
                f"   {fixed['precision']:.3f}, {fixed['recall']:.3f}",
                flush=True,
            )
    for name, values in reached.items():
        print(f"{name:16} mean over seeds {np.mean(values):.3f}")


if __name__ == "__main__":
    main()
