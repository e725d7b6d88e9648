"""Weighted distillation with unlabeled examples: a teacher with few labels, a pool, and students that trust it more or less.

python -m must.main --config=configs/weighted_distillation.py --workdir=runs/weighted
python -m must.main --config=configs/weighted_distillation.py:sanity --workdir=runs/weighted-sanity
python -m must.main --config=configs/weighted_distillation.py:folders --config.root=DATA --workdir=runs/weighted-folders
python -m must.main --config=configs/weighted_distillation.py:cifar100 --config.root=TFDS_DIR --dry_run
"""

from ml_collections import ConfigDict

# Changes to the student, which believes every soft label.
ARMS = {
    "hard": {"tasks": {"classification": {"hard": True}}},
    "temperature": {"tasks": {"classification": {"softening": 2.0}}},
    "threshold": {"policies": {"classification": {"positive": 0.8, "negative": 0.8}}},
    "confidence": {"weights": {"kind": "confidence"}},
    "smoothing": {"tasks": {"classification": {"hard": True, "label_smoothing": 0.1}}},
    "taylor": {"tasks": {"classification": {"hard": True, "taylor": 4}}},
    "weighted": {"weights": {"kind": "ratio_of_means", "every": 64, "neighbors": 64}},
    "weighted_hard": {
        "tasks": {"classification": {"hard": True}},
        "weights": {"kind": "ratio_of_means", "every": 64, "neighbors": 64},
    },
    "weighted_confident": {"weights": {"kind": "ratio_of_means", "every": 64, "neighbors": 64, "confident": True}},
    "slam": {"slam": {"floor": 0.2, "wanted": 0.8, "normalize": True}},
    "oracle_weights": {"weights": {"kind": "oracle", "every": 64, "neighbors": 64}},
    "oracle_labels": {"oracle_labels": True},
}


def get_config(variant: str = "scenes") -> ConfigDict:
    """Variants.

    scenes    procedural scenes, three budgets of labels, five seeds, all arms; an hour on 2 CPU cores, README for results
    sanity    every stage with a few steps, a minute
    folders   photos of clothes in class folders, a pool whose truth is hidden; an hour
    cifar100  the sizes of the papers, for accelerators
    """
    variants = {"scenes": scenes, "sanity": scenes, "folders": folders, "cifar100": cifar100}
    if variant not in variants:
        raise ValueError(f"no variant {variant!r} of weighted_distillation: {', '.join(variants)}")
    config = variants[variant]()
    if variant == "sanity":
        config.seeds, config.budgets = (0,), (32, 64)
        config.pool.pool.count = config.hidden.classification.count = 128
        config.sets.scenes.validation.count = config.sets.scenes.test.count = 64
        config.arms = {name: ARMS[name] for name in ("weighted", "slam", "oracle_labels")}
        config.arms.weighted.weights.update(neighbors=8, every=8)
        for section in (config.teacher, config.student):
            section.steps = 20
    return config


def scenes() -> ConfigDict:
    """Which object is the largest: 4,096 scenes without labels, 512 to estimate weights from."""
    config = ConfigDict()
    config.recipe = "weighted_distillation"
    config.title = "Weighted distillation on procedural scenes"
    config.seeds = (10, 11, 12, 13, 14)
    config.budgets = (64, 128, 256)  # labels that the teacher learns from
    config.root = ""
    config.workers = 0
    config.image = {"size": (32, 32), "keep_aspect": True}
    config.tasks = {"classification": {"kind": "classification", "top_k": 8}}
    held_out = {"kind": "scenes", "seed": "{seed}", "labels": ("classification",)}
    config.sets = {
        "scenes": {
            "train": {**held_out, "name": "labeled", "count": "{budget}"},
            "validation": {**held_out, "split": "validation", "count": 512},
            "tune": {**held_out, "split": "validation", "start": 10_000, "count": 2048},
            "test": {**held_out, "split": "test", "count": 1536},
        }
    }
    config.labeled = {"classification": "scenes"}
    pool = {"kind": "scenes", "seed": "{seed}", "split": "pool", "count": 4096}
    config.pool = {"pool": {**pool, "labels": ()}}
    # The truth of the pool: for oracles and for measuring; no other student learns from it.
    config.hidden = {"classification": {**pool, "labels": ("classification",)}}
    config.measured_on = ("test",)
    config.model = {
        "backbone": {"kind": "resnet", "depth": 10, "width": 16, "stem": "imagenet", "stages": 3},
        "neck": {"channels": 16, "strides": (8, 16)},
    }
    training = {
        "batch_size": 64,
        "optimizer": {"name": "adamw", "learning_rate": 4e-3, "warmup": 30, "weight_decay": 0.05, "clip_norm": 5.0},
        "ema_decay": 0.99,
        "select": "last",
        "evaluate_every": 0,
        "geometry": {"zoom": (1.0, 1.0), "shift": 0.1, "flip": True},
        "view": {},
        "balance": {"kind": "fixed"},
        "normalize": "items",
        "scales": {},
    }
    config.teacher = {**training, "steps": 400, "model": {"backbone": {"width": 24}}}
    # As in the papers the student sees the pool alone; with repeat_labeled 1 the labeled images too.
    config.student = {**training, "steps": 300, "repeat_labeled": 0, "truth_weight": 1.0, "pool_images": 0}
    config.arms = ARMS
    config.supervised = config.scratch = {**training, "steps": 300}
    config.label = {"shards": 8, "batch_size": 64, "mirror": False}
    config.policies = {"classification": {"positive": 0.0, "negative": 0.0}}
    config.baselines = ()
    return config


def folders() -> ConfigDict:
    """Ten kinds of clothes: at most 900 photos with labels, 900 without, 341 to estimate weights from, 372 to test on."""
    config = scenes()
    config.title = "Weighted distillation on photos of clothes"
    config.budgets = (225, 450, 900)
    photos = {"kind": "image_folder", "root": "{root}/clothing", "classes": "classes.txt"}
    train = {"kind": "subset", "source": {**photos, "split": "train"}, "count": "{budget}", "seed": "{seed}"}
    config.sets = {
        "clothing": {"train": train, "validation": {**photos, "split": "val"}, "test": {**photos, "split": "test"}}
    }
    config.labeled = {"classification": "clothing"}
    pool = {"root": "{root}/clothing", "images": "unlabeled", "name": "clothing-pool"}
    config.pool = {"pool": {"kind": "photos", **pool}}
    truth = {"kind": "image_csv", **pool, "table": "unlabeled_truth.csv", "classes": "classes.txt"}
    config.hidden = {"classification": truth}
    config.student.steps = config.supervised.steps = config.scratch.steps = 600
    for arm in config.arms.values():
        if "weights" in arm and "every" in arm.weights:
            arm.weights.every = 28  # an epoch
    for section in (config.teacher, config.student, config.supervised, config.scratch):
        section.batch_size = 32
        section.geometry = {"zoom": (0.8, 1.25), "shift": 0.05, "flip": True}
        section.view = {"strength": 0.5, "color": 0.3, "blur": 0.0}
    return config


def cifar100() -> ConfigDict:
    """CIFAR-100 by its TFDS name, with budgets and a validation set as in the papers."""
    config = scenes()
    config.title = "Weighted distillation on CIFAR-100"
    config.budgets = (7500, 10000, 12500, 15000, 17500, 20000)
    tfds = {"kind": "tfds", "data_dir": "{root}", "dataset": "cifar100", "labels": {"classification": "label"}}
    config.sets = {
        "cifar100": {
            "train": {**tfds, "split": "train[:{budget}]"},
            "validation": {**tfds, "split": "train[49500:]"},
            "test": {**tfds, "split": "test"},
        }
    }
    config.labeled = {"classification": "cifar100"}
    pool = {**tfds, "split": "train[20000:49500]"}
    config.pool = {"pool": {**pool, "labels": {}}}
    config.hidden = {"classification": pool}
    config.tasks.classification.top_k = 100
    features = {"size": (32, 32), "labels": {"classification": {"form": "classification", "classes": 100}}}
    counts = {"train": "{budget}", "validation": 500, "test": 10_000}
    config.declared = {
        "sets": {"cifar100": {"count": counts, **features}},
        "pool": {"pool": {"count": 29_500, **features, "labels": {}}},
        "hidden": {"classification": {"count": 29_500, **features}},
    }
    config.model.backbone = {"kind": "resnet", "depth": 18, "width": 32, "stem": "small", "stages": 4}
    for section in (config.teacher, config.student, config.supervised, config.scratch):
        section.batch_size, section.steps, section.geometry.shift = 128, 46_000, 0.125  # 200 epochs of the pool
        section.optimizer = {"name": "sgd", "learning_rate": 0.1, "warmup": 500, "weight_decay": 5e-4, "clip_norm": 0.0}
    config.teacher.model = {"backbone": {"width": 64}}
    for arm in config.arms.values():
        if "weights" in arm and "every" in arm.weights:
            arm.weights.every = 230  # an epoch
    return config
