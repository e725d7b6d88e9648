"""Whether two teachers fused beat the better of both: per task on scenes, three seeds.

    python -m tests.experiments.fusion --workdir=runs/fusion             # trains two sets of teachers, about 25 minutes
    python -m tests.experiments.fusion --workdir=runs/tiny --tiny        # whether it runs

The teachers of the quickstart, and their twins, which saw other images of the same kind. Columns are headline metrics
on the test split; the gain is over the better of both on that very split, turned so that more is better, and its
interval is paired, over the images of each seed and by t over the seeds.
"""

import argparse
import os
import subprocess
import sys

from must.evaluate.evaluate import bootstrap_interval
from must.evaluate.statistics import paired_t_interval
from must.experiment import build, measure, networks
from must.experiment.compare import run_settings
from must.experiment.run import members
from must.pseudo_label.fusion import fuse
from must.recipes.table import recipe_of

TWINS = ("one", "other")
TASKS = ("classification", "detection", "segmentation", "depth", "normals")
RESAMPLES = 200


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", default="(0,1,2)")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    for twin in TWINS:
        variant = "sanity" if options.tiny else ""
        command = [sys.executable, "-m", "must.main", f"--config=configs/quickstart.py:{variant}", "--stage=teachers"]
        command += [f"--workdir={os.path.join(options.workdir, twin)}", f"--config.seeds={options.seeds}"]
        if twin != TWINS[0]:
            command += [f"--config.sets.{task}.train.start={1_000_000 + 10_000 * i}" for i, task in enumerate(TASKS)]
        subprocess.run(command, check=True)
    config = run_settings(os.path.join(options.workdir, TWINS[0]))["config"]
    print(f"{'task':16}{'seed':>5}{'one':>9}{'other':>9}{'fused':>9}{'gain':>9}  95% over images")
    gains: dict[str, list[float]] = {}
    for member in members(recipe_of(config), config):
        for name, task in build.tasks_of(member.settings).items():
            scores, rows = _scored(options.workdir, member, name, task)
            sign = 1 if task.metrics[0].higher_is_better else -1
            better = max(TWINS, key=lambda twin: sign * scores[twin])
            gain = sign * (scores["fused"] - scores[better])
            ends = bootstrap_interval(task, rows["fused"], versus=rows[better], resamples=RESAMPLES)
            low, high = sorted(sign * end for end in ends)
            gains.setdefault(name, []).append(gain)
            shown = "".join(f"{scores[key]:9.4f}" for key in (*TWINS, "fused"))
            print(f"{name:16}{member.seed:5}{shown}{gain:9.4f}  {low:.4f} to {high:.4f}", flush=True)
    for name, values in gains.items():
        mean, low, high = paired_t_interval(values)
        print(f"{name:16} mean gain over the better {mean:.4f}, {low:.4f} to {high:.4f} over {len(values)} seeds")


def _scored(workdir: str, member, name: str, task) -> tuple[dict[str, float], dict[str, measure.Rows]]:
    """Headline scores and rows of both teachers of a task and of their fusion."""
    settings = member.settings
    encoder, splits = (
        build.encoder(settings.image, {name: task}),
        build.splits(settings, settings.eval_splits[0], (name,)),
    )
    teachers = {
        twin: networks.as_teacher(os.path.join(workdir, twin, member.prefix, "teachers", name), twin, tasks=(name,))
        for twin in TWINS
    }
    scores, rows = {}, {}
    for key, teacher in {**teachers, "fused": fuse("fused", list(teachers.values()))}.items():
        predict = lambda inputs, teacher=teacher: teacher.predict(inputs["image"])  # noqa: E731
        rows[key] = measure.measure_predictions(predict, {name: task}, encoder, splits)[name]
        scores[key] = task.summarize(dict(rows[key]))[task.metrics[0].name]
    return scores, rows


if __name__ == "__main__":
    main()
