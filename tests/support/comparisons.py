"""Comparisons with made-up scores, as recipes of each kind would write them."""

import numpy as np

from must.core.types import Metric
from must.evaluate.over_images import over_images
from must.evaluate.results import Axis, Column, Contrast, Score, compare

METRICS = {
    "classification": Metric("top1", "%", True),
    "depth": Metric("abs_rel", "", False),
    "normals": Metric("mean_angle", "deg", False),
}
LEVELS = {"classification": 70.0, "depth": 0.14, "normals": 21.0}
COSTS = {
    "teacher": {"networks": 5, "parameters": 14_210_000, "milliseconds": 9.13, "images_per_second": 109.5},
    "student": {"networks": 1, "parameters": 3_470_000, "milliseconds": 2.31, "images_per_second": 432.0},
}


def scores_of(columns, metrics=METRICS, seeds=3, splits=("test",), spread=0.02):
    """One score per column, task, split and seed."""
    rng = np.random.default_rng(0)
    return [
        Score(column, task, split, seed, LEVELS.get(task, 50.0) * (1 + spread * rng.normal()))
        for split in splits
        for column in columns
        for task in metrics
        for seed in range(seeds)
    ]


def students(seeds=3, splits=("test",), resampled=True):
    """Teacher, students and a control on three tasks."""
    names = ("guess", "teacher", "student", "supervised", "shuffled")
    columns = [Column(name, description=f"what {name} is", control=name == "shuffled") for name in names]
    contrasts = [
        Contrast(f"student vs {other}", [("student", other)], ("tasks", "delta_m"), expected="above")
        for other in ("teacher", "shuffled")
    ]
    scores = scores_of(names, seeds=seeds, splits=splits)
    rng = np.random.default_rng(1)
    first = {(one.column, one.task): one.value for one in scores if one.seed == 0 and one.split == splits[0]}
    draws = {
        name: {task: first[name, task] + LEVELS[task] * rng.normal(0, 0.01, 99) for task in METRICS} for name in names
    }
    results = compare(
        "must",
        METRICS,
        scores,
        columns,
        contrasts,
        title="MuST <on> toys",
        costs=COSTS,
        seconds={"label": 12.5},
        images_per_second={"label": 311.0},
        notes=["A note <here>."],
    )
    return over_images(results, METRICS, contrasts, draws) if resampled else results


def budgets(seeds=3, arms=("student", "weighted", "slam", "oracle_labels", "plug_in", "confidence")):
    """Arms of one task at three label budgets."""
    values = {32: "32 labels", 64: "64 labels", 1024: "1,024 labels"}
    columns = [Column(f"{arm}@{b}", {"arm": arm, "budget": b}, arm) for arm in arms for b in values]
    contrasts = [
        Contrast(f"{arm} vs student, {words}", [(f"{arm}@{b}", f"student@{b}")])
        for arm in arms[1:]
        for b, words in values.items()
    ]
    axes = [Axis("arm", "arm", {arm: arm for arm in arms}), Axis("budget", "labels", values, across=True)]
    metrics = {"classification": METRICS["classification"]}
    names = [column.name for column in columns]
    return compare("weighted_distillation", metrics, scores_of(names, metrics, seeds), columns, contrasts, axes=axes)


def grid(seeds=3):
    """Arms by teacher split, images and labels, beside the teachers of both splits."""
    metrics = {"detection": Metric("AP", "", True), "segmentation": Metric("mIoU", "", True)}
    words = {"half": "half of the labels", "quarter": "a quarter of the labels"}
    columns = [Column(f"teacher-{split}", {"split": split}, f"teacher on {words[split]}") for split in words]
    for split in words:
        for images in ("seen", "unseen"):
            for labels in (("soft",), ("soft", "pdf")):
                name = f"{split}-{images}-{'+'.join(labels)}"
                columns.append(Column(name, {"split": split, "images": images, "labels": labels}, " + ".join(labels)))
    pairs = [(f"{s}-unseen-{w}", f"{s}-seen-{w}") for s in words for w in ("soft", "soft+pdf")]
    labels = {(subject, reference): f"pair {subject}" for subject, reference in pairs}
    axes = [
        Axis("split", "split", words),
        Axis("images", "images", {"seen": "seen", "unseen": "unseen"}, across=True),
        Axis("labels", "labels", {("soft",): "soft", ("soft", "pdf"): "soft + pdf"}),
    ]
    scores = scores_of([column.name for column in columns], metrics, seeds)
    return compare("multas", metrics, scores, columns, [Contrast("unseen vs seen", pairs, labels=labels)], axes=axes)


def sets(seeds=3):
    """Experts, students and teachers of two data sets with one metric and its mean."""
    metrics = {"camera": METRICS["classification"], "motion": METRICS["classification"]}
    names = ("expert", "student", "teacher")
    contrasts = [Contrast("student vs expert", [("student", "expert")], ("tasks", "mean"))]
    columns = [Column(name) for name in names]
    scores = scores_of(names, metrics, seeds)
    return compare("jedi", metrics, scores, columns, contrasts, mean_label="mean over sets")
