"""Whether a target precision is reached: thresholds from the held-out records of a run, measured on its test records.

    python -m must.main --config=configs/quickstart.py:believing --workdir=runs/policies
    python tests/experiments/target_precision.py --workdir=runs/policies --precision=0.9

No teacher runs. One line per task and seed: the precision of what is taken as true on the test split with Wilson's 95 %
interval, claims of one image counting as one as far as they go together, and the recall that it costs; in brackets the
raw score 0.5.
"""

import argparse
import json
import os

import numpy as np
from must.recipes.believing import recorded
from must.recipes.built import HELD_OUT, MEASURED
from must.recipes.labeling import records_directory

from must.evaluate.quality import quality
from must.pseudo_label import policy as policies
from must.readers.records import Records
from must.recipes import must as recipe


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--precision", type=float, default=0.9)
    options = parser.parse_args()
    with open(os.path.join(options.workdir, "config.json")) as file:
        config = json.load(file)
    print(f"{'task':16}{'seed':>5}  {'precision':>9}  {'95 %':15}{'recall':>7}   fixed 0.5: precision, recall")
    reached: dict[str, list[float]] = {}
    for seed in config["seeds"]:
        built, top = recipe.Built(config, seed), os.path.join(options.workdir, recipe.prefix(config, seed))
        for name, task in built.tasks.items():
            rows = {
                which: list(
                    recorded(
                        Records(records_directory(top, which), tasks=[name], verify=False),
                        built.truth(which)[name],
                        name,
                        built.plain,
                        task,
                    )
                )
                for which in (HELD_OUT, MEASURED)
            }
            policy, _ = policies.fit(
                task, ((said, true) for said, true, _ in rows[HELD_OUT]), precision=options.precision
            )
            found, fixed = (quality(task, rows[MEASURED], tried)["total"] for tried in (policy, policies.hard(0.5)))
            if found["precision"] is None:
                print(f"{name:16}{seed:>5}  no threshold reaches {options.precision:g}")
                continue
            low, high = found["precision_ci95"]
            reached.setdefault(name, []).append(found["precision"])
            print(
                f"{name:16}{seed:>5}  {found['precision']:9.3f}  [{low:.3f}, {high:.3f}] {found['recall']:6.3f}"
                f"   {fixed['precision']:.3f}, {fixed['recall']:.3f}",
                flush=True,
            )
    for name, values in reached.items():
        print(f"{name:16} mean over seeds {np.mean(values):.3f}")


if __name__ == "__main__":
    main()
