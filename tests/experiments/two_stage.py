"""Whether two stages find more than one at equal steps: the teacher's network of the quickstart, scenes, per seed.

    python -m tests.experiments.two_stage --workdir=runs/two_stage --steps=500 --seeds="(0,1,2)"
    python -m tests.experiments.two_stage --workdir=runs/tiny --steps=4 --seeds="(0,)" --count=16    # whether it runs

Both read the same pyramid at the same strides and see the same pictures; AP and AP50 are on the test split; behind
each seed stand the gain of AP50 and a paired interval of the gain of AP over its images, below all the mean gain of
AP50 with an interval by t over the seeds. It is also the configuration of both:
`--config=tests/experiments/two_stage.py:two_stage`.
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
from must.recipes.table import complete, recipe_of
from tests.support.configs import load

KINDS = {
    "detection": {"kind": "detection", "strides": (8, 16), "width": 32, "depth": 2, "max_boxes": 12},
    "two_stage": {
        "kind": "two_stage",
        "strides": (8, 16),
        "width": 32,
        "hidden": 128,
        "candidates": 100,
        "proposals": 48,
        "anchor_scale": 2.0,
        "scale": 2.0,
        "max_boxes": 12,
    },
}


def get_config(variant: str = "detection"):
    """The quickstart with boxes alone, found by the variant."""
    config = load("configs/quickstart.py").base()
    for section in (config.tasks, config.sets, config.train_sets, config.policies):
        for name in [name for name in section if name != "detection"]:
            del section[name]
    for run in (config.student, config.supervised):
        run.loss_scales = {}
    config.sets.detection.train.count = 512
    config.teacher.evaluate_every, config.teacher.select = 0, "last"
    config.tasks.detection = KINDS[variant]
    return complete(config)


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", default="(0,1,2)")
    parser.add_argument("--count", type=int, default=512, help="images of the validation and the test split")
    options = parser.parse_args()
    for kind in KINDS:
        command = [sys.executable, "-m", "must.main", f"--config={__file__}:{kind}", "--stage=teachers"]
        command += [f"--workdir={os.path.join(options.workdir, kind)}", f"--config.seeds={options.seeds}"]
        command += [f"--config.teacher.steps={options.steps}"]
        command += [f"--config.sets.detection.{split}.count={options.count}" for split in ("validation", "test")]
        subprocess.run(command, check=True)
    configs = {kind: run_settings(os.path.join(options.workdir, kind))["config"] for kind in KINDS}
    both = zip(*(members(recipe_of(config), config) for config in configs.values()), strict=True)
    gains = []
    print(f"{'seed':>4}" + "".join(f"{f'{kind} {metric}':>16}" for kind in KINDS for metric in ("AP", "AP50")))
    for pair in both:
        scores, rows = {}, {}
        for kind, member in zip(KINDS, pair, strict=True):
            settings = member.settings
            tasks = build.tasks_of(settings)
            path = os.path.join(options.workdir, kind, member.prefix, "teachers", "detection")
            teacher = networks.as_teacher(path, kind, tasks=("detection",))
            encoder, splits = build.encoder(settings.image, tasks), build.splits(settings, "test", tuple(tasks))
            predict = lambda inputs, teacher=teacher: teacher.predict(inputs["image"])  # noqa: E731
            rows[kind] = measure.measure_predictions(predict, tasks, encoder, splits)["detection"]
            scores[kind] = tasks["detection"].summarize(dict(rows[kind]))
        task = tasks["detection"]
        low, high = bootstrap_interval(task, rows["two_stage"], versus=rows["detection"], resamples=200)
        gains.append(scores["two_stage"]["AP50"] - scores["detection"]["AP50"])
        numbers = "".join(f"{scores[kind][metric]:16.4f}" for kind in KINDS for metric in ("AP", "AP50"))
        print(
            f"{pair[0].seed:4}{numbers}   AP50 {gains[-1]:+.4f}, AP {low:+.4f} to {high:+.4f} over images", flush=True
        )
    if len(gains) > 1:
        mean, low, high = paired_t_interval(gains)
        print(f"mean gain of AP50 {mean:+.4f}, {low:+.4f} to {high:+.4f} over {len(gains)} seeds")


if __name__ == "__main__":
    main()
