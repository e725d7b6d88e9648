"""Why weights help or do not: whether they are right, and whether the students gain where they are large.

    python -m must.main --config=configs/weighted_distillation.py:cifar10 --config.root=TFDS_DIR --workdir=runs/cifar10
    python -m tests.experiments.weights_and_gain runs/cifar10 [WORKDIR ...]

Nothing trains. For each arm with estimated weights, over the seeds of all workdirs: the correlation of its weights with
those that the truth of the pool gives the same student, also where only FEW validation images tell; and on test images,
whose weights are the mean of the 64 nearest examples of the pool, the correlation of weight and gain (1, 0 or -1: right
with weights and wrong without, the same, or the reverse), and accuracies in the fifth of the smallest and of the
largest weights.
"""

import os
import sys

import numpy as np
from scipy.spatial import cKDTree

from must.data.combine import Subset
from must.data.pipeline import eval_batches
from must.evaluate.statistics import summary
from must.experiment import build, labeling, measure, networks, students, weighting
from must.experiment.run import members, read_config
from must.pseudo_label import weigh
from must.recipes.table import recipe_of
from must.recipes.weighted_distillation import unweighted

NEIGHBORS, FEW = 64, 500


def probabilities(directory: str, source) -> np.ndarray:
    """Of each class, float32 [N, C], by a trained classifier for the N images of a source."""
    trained = networks.load(directory)
    (task,) = trained.tasks
    predict = networks.as_teacher(directory, "any").predict
    encoder = trained.encoder()._replace(tasks={})
    rows = [
        np.asarray(predict(batch.inputs["image"])[task]["probs"])
        for batch in eval_batches(source, encoder, batch_size=64)
    ]
    return np.concatenate(rows)[: len(source)]


def from_few(top: str, arm: str, settings) -> np.ndarray:
    """Weights [P] of the arm's P pseudo labels, as in its weights.npz but for the number of validation images: FEW."""
    run, names = build.student(settings, arm), list(settings.tasks)
    held_out = labeling.records_of(settings, top, names, labeling.HELD_OUT)
    records = labeling.records_of(settings, top, names)
    source, policies = students.student_source(settings, run, records), labeling.policies_of(settings, top, arm)
    evidence = weighting.Evidence(settings, run, arm, policies, source, records, held_out)
    evidence.held_out = [(Subset(pairs, count=FEW), tasks) for pairs, tasks in evidence.held_out]
    scheme, seen = weighting.weighting_of(evidence)
    scheme.estimate(networks.load(f"{top}/{labeling.student_job(arm)}").variables)
    return seen[f"{names[0]}|weights"]


def of_arm(top: str, arm: str, plain: str, teacher: np.ndarray, settings) -> dict[str, float]:
    """One seed's correlations, weights and, in percent of the test images, gains and accuracies.

    Args:
      top: directory of the seed and budget.
      arm: with estimated weights.
      plain: the arm over which its gain is counted.
      teacher: its probabilities for the test images, [N, C].
    """
    (task,), split = settings.tasks, settings.eval_splits[0]
    with np.load(f"{top}/{labeling.student_job(arm)}/weights.npz") as file:
        pool = {key.partition("|")[2]: file[key] for key in file.files}
    known, few = np.isfinite(pool["true_weights"]), from_few(top, arm, settings)
    places = {"arm": labeling.student_job(arm), "plain": labeling.student_job(plain), "teacher": f"teachers/{task}"}
    right = {name: measure.load_rows(f"{top}/{place}/rows-{split}.npz")[task]["top1"] for name, place in places.items()}
    source = build.split(settings, task, split)
    points = weigh.covariates(teacher, probabilities(f"{top}/{labeling.student_job(arm)}", source))
    scale = pool["covariates"].std(0)
    _, near = cKDTree(pool["covariates"] / scale).query(points / scale, NEIGHBORS)
    weights, gain = pool["weights"][near].mean(1), right["arm"] - right["plain"]
    fifths = np.array_split(np.argsort(weights, kind="stable"), 5)
    found = {
        "estimated, true": np.corrcoef(pool["weights"][known], pool["true_weights"][known])[0, 1],
        f"from {FEW}, true": np.corrcoef(few[known], pool["true_weights"][known])[0, 1],
        "mean weight": pool["weights"].mean(),
        "weight, gain": np.corrcoef(weights, gain)[0, 1],
        "gain": 100 * gain.mean(),
    }
    for which, part in (("low", fifths[0]), ("high", fifths[-1])):
        found |= {f"weight {which}": weights[part].mean(), f"gain {which}": 100 * gain[part].mean()}
        found |= {f"{name} {which}": 100 * right[name][part].mean() for name in ("teacher", "plain")}
    return found


def main(workdirs: list[str]) -> None:
    """Prints the means over seeds, with half of a 95% t interval from two seeds on."""
    found: dict[tuple[int, str, str], list[dict[str, float]]] = {}
    for workdir in workdirs:
        config = read_config(workdir)
        for member in members(recipe_of(config), config):
            settings, top = member.settings, os.path.join(workdir, member.prefix.rstrip("/"))
            (task,) = settings.tasks
            arms = [
                arm
                for arm in settings.arms
                if build.student(settings, arm).weights.kind in ("ratio_of_means", "plug_in")
            ]
            if arms:
                source = build.split(settings, task, settings.eval_splits[0])
                teacher = probabilities(f"{top}/teachers/{task}", source)
            for arm in arms:
                plain = (*unweighted(settings)[arm], "student")[0]
                row = of_arm(top, arm, plain, teacher, settings)
                found.setdefault((member.axes["budget"], arm, plain), []).append(row)
    for (budget, arm, plain), rows in found.items():
        print(f"{budget:,} labels, {arm} against {plain}, {len(rows)} seeds")
        for name in rows[0]:
            values = summary([row[name] for row in rows])
            half = "" if values["ci95"] is None else f" ± {(values['ci95'][1] - values['ci95'][0]) / 2:.3f}"
            print(f"  {name:18}{values['mean']:8.3f}{half}")


if __name__ == "__main__":
    main(sys.argv[1:])
