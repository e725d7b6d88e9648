"""Weighted distillation: a teacher with few labels, an unlabeled pool, students that trust it more or less.

    python -m must.main --config=configs/weighted_distillation.py --workdir=runs/weighted

Variants, --config=configs/weighted_distillation.py:VARIANT; times on two CPU cores:

    scenes    procedural scenes, three budgets of labels, five seeds, all arms; an hour; the default
    sanity    every stage with a few steps; a minute
    folders   photos of clothes in class folders, a pool whose truth is set aside; needs --config.root=DATA; an hour
    cifar10   three budgets, three seeds, all arms, small networks; needs --config.root=TFDS_DIR; an hour of a core for
              each budget and seed
    cifar100  the sizes of the papers, for accelerators; needs --config.root=TFDS_DIR
"""

from ml_collections import ConfigDict

from must.recipes.table import complete

HARD = {"tasks": {"classification": {"hard": True}}}
RATIO = {"kind": "ratio_of_means", "every": 64, "neighbors": 64}
# Changes to the student, which learns every soft label.
ARMS = {
    "hard": HARD,
    "temperature": {"tasks": {"classification": {"softening": 2.0}}},
    "threshold": {"policies": {"classification": {"positive": 0.8, "negative": 0.8}}},
    "confidence": {"weights": {"kind": "confidence"}},
    "smoothing": {"tasks": {"classification": {"hard": True, "label_smoothing": 0.1}}},
    "taylor": {"tasks": {"classification": {"hard": True, "taylor": 4}}},
    "weighted": {"weights": RATIO},
    "weighted_hard": {**HARD, "weights": RATIO},
    "weighted_confident": {"weights": {**RATIO, "confident": True}},
    "slam": {"slam": {"enabled": True, "floor": 0.2, "target_precision": 0.8}},
    "oracle_weights": {"weights": {**RATIO, "kind": "oracle"}},
    "oracle_labels": {"oracle_labels": True},
}


def get_config(variant: str = "scenes") -> ConfigDict:
    """The configuration of a variant."""
    variants = {"scenes": scenes, "sanity": sanity, "folders": folders, "cifar10": cifar10, "cifar100": cifar100}
    if variant not in variants:
        raise ValueError(f"no variant {variant!r} of weighted_distillation: {', '.join(variants)}")
    return complete(variants[variant]())


def scenes() -> ConfigDict:
    """The largest object of a scene: 4,096 scenes without labels, 512 to estimate weights from."""
    config = ConfigDict()
    config.recipe, config.title = "weighted_distillation", "Weighted distillation on procedural scenes"
    config.seeds = (10, 11, 12, 13, 14)
    config.budgets = (64, 128, 256)  # labels that the teacher learns from
    config.image = {"size": (32, 32)}
    config.tasks = {"classification": {"kind": "classification", "top_k": 8}}
    held_out = {"kind": "scenes", "seed": "{seed}", "labels": ("classification",)}
    config.sets = {
        "scenes": {
            "train": {**held_out, "name": "labelled", "count": "{budget}"},
            "validation": {**held_out, "split": "validation", "count": 512},
            "tune": {**held_out, "split": "validation", "start": 10_000, "count": 2048},
            "test": {**held_out, "split": "test", "count": 1536},
        }
    }
    config.train_sets = {"classification": "scenes"}
    pool = {"kind": "scenes", "seed": "{seed}", "split": "pool", "count": 4096}
    config.pool = {"pool": {**pool, "labels": ()}}
    # The truth of the pool: for oracles and for measuring; no other student learns from it.
    config.oracle_truth = {"classification": {**pool, "labels": ("classification",)}}
    config.model = {
        "backbone": {"kind": "resnet", "depth": 10, "width": 16, "stem": "imagenet", "stages": 3},
        "neck": {"kind": "fpn", "channels": 16, "strides": (8, 16)},
    }
    training = {
        "batch_size": 64,
        "optimizer": {"name": "adamw", "learning_rate": 4e-3, "warmup": 30, "weight_decay": 0.05, "clip_norm": 5.0},
        "ema_decay": 0.99,
        "geometry": {"zoom": (1.0, 1.0), "shift": 0.1},
    }
    config.teacher = {**training, "steps": 400, "model": {"backbone": {"width": 24}}}
    # As in the papers the student sees the pool alone; with repeat_labeled=1 the annotated images too.
    config.student = {**training, "steps": 300, "repeat_labeled": 0}
    config.supervised = config.scratch = {**training, "steps": 300}
    config.arms = ARMS
    config.label = {"shards": 8}
    config.policies = {"classification": {"positive": 0.0, "negative": 0.0}}
    return config


def sanity() -> ConfigDict:
    """One seed, two budgets, three arms, a few steps."""
    config = scenes()
    config.seeds, config.budgets = (0,), (32, 64)
    config.pool.pool.count = config.oracle_truth.classification.count = 128
    config.sets.scenes.validation.count = config.sets.scenes.test.count = 64
    config.arms = {name: ARMS[name] for name in ("weighted", "slam", "oracle_labels")}
    config.arms.weighted.weights.update(neighbors=8, every=8)
    config.teacher.steps = config.student.steps = 20
    return config


def folders() -> ConfigDict:
    """Ten kinds of clothes: at most 900 photos with labels, 900 without, 341 to estimate weights from, 372 to test
    on."""
    config = scenes()
    config.title, config.budgets = "Weighted distillation on photos of clothes", (225, 450, 900)
    photos = {"kind": "image_folder", "root": "{root}/clothing", "classes": "classes.txt"}
    train = {"kind": "subset", "source": {**photos, "split": "train"}, "count": "{budget}", "seed": "{seed}"}
    config.sets = {
        "clothing": {"train": train, "validation": {**photos, "split": "val"}, "test": {**photos, "split": "test"}}
    }
    config.train_sets = {"classification": "clothing"}
    pool = {"root": "{root}/clothing", "images": "unlabeled", "name": "clothing-pool"}
    config.pool = {"pool": {"kind": "photos", **pool}}
    truth = {"kind": "image_csv", **pool, "table": "unlabeled_truth.csv", "classes": "classes.txt"}
    config.oracle_truth = {"classification": truth}
    config.student.steps = config.supervised.steps = config.scratch.steps = 600
    refresh(config, every=28)
    for run in (config.teacher, config.student, config.supervised, config.scratch):
        run.batch_size = 32
        run.geometry = {"zoom": (0.8, 1.25), "shift": 0.05}
        run.view = {"kind": "photometric", "strength": 0.5, "color": 0.3, "blur": 0.0}
    return config


def cifar10() -> ConfigDict:
    """CIFAR-10 by its TFDS name: 5 to 25% of the labels, 2,000 pictures to estimate weights from, a pool of 35,500.

    The teacher is twice as wide as the students, which see the pool five times.
    """
    config = scenes()
    config.title, config.seeds, config.budgets = "Weighted distillation on CIFAR-10", (0, 1, 2), (2500, 7500, 12500)
    tfds(config, "cifar10", labels="train[:{budget}]", validation="train[12500:14500]", pool="train[14500:]")
    config.tasks.classification.top_k = 10
    declare(config, "cifar10", classes=10, validation=2000, pool=35_500)
    config.model.backbone = {"kind": "resnet", "depth": 10, "width": 16, "stem": "small", "stages": 3}
    refresh(config, every=555)
    for run in (config.teacher, config.student, config.supervised, config.scratch):
        run.geometry.shift, run.steps = 0.125, 2775
    config.teacher.steps = 2000
    config.teacher.model = {"backbone": {"width": 32}}
    del config.arms.temperature, config.arms.threshold, config.arms.smoothing
    config.arms.oracle_weights_hard = {**HARD, "weights": {**RATIO, "kind": "oracle", "every": 555}}
    return config


def cifar100() -> ConfigDict:
    """CIFAR-100 by its TFDS name, with budgets and a validation set as in the papers."""
    config = scenes()
    config.title = "Weighted distillation on CIFAR-100"
    config.budgets = (7500, 10000, 12500, 15000, 17500, 20000)
    tfds(config, "cifar100", labels="train[:{budget}]", validation="train[49500:]", pool="train[20000:49500]")
    config.tasks.classification.top_k = 100
    declare(config, "cifar100", classes=100, validation=500, pool=29_500)
    config.model.backbone = {"kind": "resnet", "depth": 18, "width": 32, "stem": "small", "stages": 4}
    refresh(config, every=230)
    for run in (config.teacher, config.student, config.supervised, config.scratch):
        run.batch_size, run.steps, run.geometry.shift = 128, 46_000, 0.125  # 200 epochs of the pool
        run.optimizer = {"name": "sgd", "learning_rate": 0.1, "warmup": 500, "weight_decay": 5e-4, "clip_norm": 0.0}
    config.teacher.model = {"backbone": {"width": 64}}
    return config


def tfds(config: ConfigDict, name: str, *, labels: str, validation: str, pool: str) -> None:
    """One set by its TFDS name: what the teacher learns from, what weights are estimated from, and the pool."""
    section = {"kind": "tfds", "data_dir": "{root}", "dataset": name, "labels": {"classification": "label"}}
    splits = {"train": labels, "validation": validation, "test": "test"}
    config.sets = {name: {use: {**section, "split": split} for use, split in splits.items()}}
    config.train_sets = {"classification": name}
    config.pool = {"pool": {**section, "split": pool, "labels": {}}}
    config.oracle_truth = {"classification": {**section, "split": pool}}


def declare(config: ConfigDict, name: str, *, classes: int, validation: int, pool: int) -> None:
    """What a dry run has to know of a set that is not on this machine."""
    features = {"size": (32, 32), "labels": {"classification": {"form": "classification", "classes": classes}}}
    counts = {"train": "{budget}", "validation": validation, "test": 10_000}
    config.declared = {
        "sets": {name: {"count": counts, **features}},
        "pool": {"pool": {"count": pool, **features, "labels": {}}},
        "oracle_truth": {"classification": {"count": pool, **features}},
    }


def refresh(config: ConfigDict, every: int) -> None:
    """Estimated weights are renewed every epoch."""
    for arm in config.arms.values():
        if "every" in arm.get("weights", {}):
            arm.weights.every = every
