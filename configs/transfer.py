"""What weights are worth on other tasks: fine-tuned, as a probe on a frozen backbone, and by nearest neighbors.

    python -m must.main --config=configs/transfer.py:upstream --workdir=runs/upstream
    python -m must.main --config=configs/transfer.py:scenes --config.upstream=runs/upstream --workdir=runs/transfer

`upstream` trains, for three seeds, what the others start from: teachers, the student, the supervised network, and a
student whose labels are shuffled, which should be worth nothing. `scenes` has six tasks in another domain; `real` has
six on the sets of real pictures in --config.root=DATA; `paper` those of Ghiasi et al. 2021, for accelerators. `sanity`
runs every stage with a few steps. Whether a strong checkpoint gets better by MuST:

    python -m must.main --config=configs/transfer.py:checkpoint --stage=teachers --workdir=runs/checkpoint
    python -m must.main --config=configs/transfer.py:improved --config.root=runs/checkpoint --workdir=runs/improved
    python -m must.main --config=configs/transfer.py:kept --config.root=runs/checkpoint --workdir=runs/improved/kept
    python -m must.main --config=configs/transfer.py:checkpoints --config.root=runs/checkpoint
        --config.upstream=runs/improved --workdir=runs/checkpoints
"""

from ml_collections import ConfigDict

from configs import must, quickstart
from configs.multas import VOC
from must.recipes.table import complete

SEEDS = (0, 1, 2)
MATERIALS = ("matte", "patterned", "metallic")
SHAPES = ("sphere", "box", "cylinder", "cone")
PUBLISHED = ("random", "must", "single", "by_classification", "by_detection", "by_segmentation", "multi")


def get_config(variant: str = "scenes") -> ConfigDict:
    """The configuration of a variant."""
    variants = {"upstream": upstream, "scenes": scenes, "real": real, "paper": paper, "sanity": sanity}
    variants |= {"checkpoint": checkpoint, "improved": improved, "kept": kept, "checkpoints": checkpoints}
    if variant not in variants:
        raise ValueError(f"no variant {variant!r} of transfer: {', '.join(variants)}")
    return complete(variants[variant]())


def upstream() -> ConfigDict:
    """The quickstart with three seeds and a student whose labels are shuffled."""
    config = quickstart.base()
    config.title, config.seeds = "What transfer starts from", SEEDS
    config.pool.pool.count = 2048
    config.arms = {"shuffled": {"shuffled_labels": True}}
    return config


def checkpoint() -> ConfigDict:
    """A network of one task, with 85 times as many labels as a teacher of `upstream` has; only its teachers run."""
    config = upstream()
    config.title, config.arms, config.pool = "A strong checkpoint", {}, {}
    for section in (config.tasks, config.sets, config.train_sets, config.policies):
        for task in set(section) - {"segmentation"}:
            del section[task]
    config.sets.segmentation.train.count = 2048
    config.teacher.steps = 1500
    return config


def improved() -> ConfigDict:
    """The student of `upstream`, from random numbers and from the checkpoint."""
    config = upstream()
    init = {"weights": "{root}/seed-{seed}/teachers/segmentation", "partial": ("heads_",)}
    config.arms = {"improved": {"init": init}}
    return config


def kept() -> ConfigDict:
    """The student from the checkpoint, which teaches its own task as well."""
    config = improved()
    config.student.init, config.arms, config.baselines = config.arms.improved.init, {}, ()
    config.external_teachers = {"segmentation": {"run": "{root}/seed-{seed}/teachers/segmentation"}}
    return config


def checkpoints() -> ConfigDict:
    """What the checkpoint, MuST on top of it, and MuST from random numbers are worth on the tasks of `scenes`."""
    config, heads = scenes(), ("heads_",)
    config.title = "Strong checkpoints get better"
    weights = {
        "checkpoint": "{root}/seed-{seed}/teachers/segmentation",
        "improved": "{upstream}/seed-{seed}/arms/improved",
        "kept": "{upstream}/kept/seed-{seed}/student",
        "must": "{upstream}/seed-{seed}/student",
    }
    config.starts = {name: {"init": {"weights": path, "partial": heads}} for name, path in weights.items()}
    config.subject = "kept"
    return config


def scenes() -> ConfigDict:
    """Six tasks in a domain that nothing upstream has seen; the classes of one of them, materials, are new as well."""
    first = quickstart.base()
    config = ConfigDict()
    config.recipe, config.title, config.seeds = "transfer", "Transfer to cluttered scenes", SEEDS
    config.image, config.model, config.eval_splits = first.image, first.model, ("test",)
    config.tasks = {**quickstart.tasks(), "material": {"kind": "classification"}}
    config.sets = {task: downstream(task, i) for i, task in enumerate(quickstart.TASKS)}
    of_classes = downstream("classification", len(config.sets))
    config.sets["material"] = {split: materials(section) for split, section in of_classes.items()}
    config.train_sets = {task: task for task in config.tasks}
    config.pool = {"pool": {**first.pool.pool, "count": 2048}}
    config.starts = starts({**{task: task for task in quickstart.TASKS}, "material": "classification"})
    config.subject = "must"
    training = {
        "steps": 200,
        "batch_size": 16,
        "optimizer": {"name": "adamw", "learning_rate": 2e-3, "warmup": 20, "weight_decay": 0.05, "clip_norm": 5.0},
        "ema_decay": 0.95,
        "select": "best",
        "evaluate_every": 100,
        "geometry": {"zoom": (1.0, 1.0), "shift": 0.1},
    }
    config.finetune = training
    config.probe = {**training, "model": {"backbone": {"frozen": 3}}}
    config.protocols, config.learning_rates, config.labels = ("finetune", "probe", "knn"), (1e-3, 4e-3), (0.1, 1.0)
    # As many pictures as the student has seen.
    config.self_supervised = {
        **training,
        "steps": 600,
        "select": "last",
        "evaluate_every": 0,
        "geometry": {"zoom": (1.0, 2.0), "shift": 0.2},
        "view": {"kind": "photometric", "strength": 1.0},
    }
    return config


def starts(teachers: dict, seed: str = "{upstream}/seed-{seed}") -> dict:
    """What networks start from: of a workdir of `upstream`, random numbers, and pictures alone.

    Args:
      teachers: {task: the teacher that is nearest to it}.
      seed: directory of one repetition.
    """
    heads = ("heads_",)
    return {
        "random": {"description": "from scratch"},
        "must": {"init": {"weights": f"{seed}/student", "partial": heads}, "description": "the student"},
        "single": {
            "init": {"partial": heads},
            "tasks": {task: f"{seed}/teachers/{teacher}" for task, teacher in teachers.items()},
            "description": "for every task its own teacher",
        },
        **{
            f"by_{teacher}": {
                "init": {"weights": f"{seed}/teachers/{teacher}", "partial": heads},
                "description": f"the teacher of {teacher} for every task",
            }
            for teacher in ("classification", "detection", "segmentation")
        },
        "multi": {
            "init": {"weights": f"{seed}/baselines/supervised", "partial": heads},
            "description": "supervised on all tasks",
        },
        "simclr": {"self_supervised": True, "description": "self-supervised on the same pictures"},
        "shuffled": {
            "init": {"weights": f"{seed}/arms/shuffled", "partial": heads},
            "control": True,
            "description": "a student of shuffled labels",
        },
    }


def downstream(task: str, number: int) -> dict:
    """The splits of one task in the cluttered domain, of pictures of its own."""
    section = {"kind": "scenes", "seed": "{seed}", "domain": "clutter", "labels": (task,), "start": number * 10_000}
    splits = {"train": ("train", 256), "validation": ("validation", 128), "test": ("test", 512)}
    return {use: {**section, "split": split, "count": count} for use, (split, count) in splits.items()}


def materials(section: dict) -> dict:
    """The same scenes with the material of the nearest body as their class."""
    names = {f"{material} {shape}": material for material in MATERIALS for shape in SHAPES}
    both = {"kind": "aliased", "source": section, "names": {"material": "classification"}}
    return {"kind": "remapped", "source": both, "task": "material", "class_map": names, "classes": MATERIALS}


def real() -> ConfigDict:
    """Six tasks on sets of real pictures: what the networks of procedural scenes know of the world.

    --config.root=DATA holds tfds/cifar10, clothing, bccd, camvid, rgbd_kitchen and unlabeled_photos.
    """
    config, dense = scenes(), quickstart.tasks()
    config.title = "Transfer to real pictures"
    config.tasks = {
        "cifar10": {"kind": "classification"},
        "clothing": {"kind": "classification"},
        "cells": {**dense["detection"], "max_boxes": 60},
        "streets": dense["segmentation"],
        "depth": dense["depth"],
        "normals": dense["normals"],
    }
    splits = {"train": "train", "validation": "val", "test": "test"}
    kitchen = {"root": "{root}/rgbd_kitchen", "images": "rgb", "ids": "splits/{split}.txt"}
    streets = {"images": "images/{split}", "masks": "masks/{split}", "ids": "splits/{split}.txt"}

    def each(**section):
        return {use: {**section, "split": split} for use, split in splits.items()}

    depths = each(kind="depth_png", depths="depth", unit="mm", **kitchen)
    normals = each(kind="normals_png", normals="normals", **kitchen)
    cifar10 = {"kind": "tfds", "dataset": "cifar10", "data_dir": "{root}/tfds", "labels": {"cifar10": "label"}}
    splits10 = {"train": "train[:1000]", "validation": "train[-500:]", "test": "test[:2000]"}
    config.sets = {
        "cifar10": {use: {**cifar10, "split": split} for use, split in splits10.items()},
        "clothing": each(kind="image_folder", root="{root}/clothing", classes="classes.txt", task="clothing"),
        "cells": each(kind="voc", root="{root}/bccd", classes="classes.txt", tasks={"detection": "cells"}),
        "streets": each(kind="mask_png", root="{root}/camvid", classes="classes.json", task="streets", **streets),
        "kitchen": {use: {"kind": "join", "sources": [depths[use], normals[use]]} for use in splits},
    }
    names = ("cifar10", "clothing", "cells", "streets")
    config.train_sets = {**{name: name for name in names}, "depth": "kitchen", "normals": "kitchen"}
    config.pool = {
        "photos": {"kind": "photos", "root": "{root}/unlabeled_photos", "images": "images", "name": "photos"}
    }
    teachers = {"cells": "detection", "streets": "segmentation", "depth": "depth", "normals": "normals"}
    kinds = starts({"cifar10": "classification", "clothing": "classification", **teachers})
    config.starts = {name: start for name, start in kinds.items() if not name.startswith("by_")}
    view = {"kind": "photometric", "strength": 0.5, "color": 0.3, "blur": 0.0}
    for run in (config.finetune, config.probe):
        run.geometry, run.view = {"zoom": (0.8, 1.25), "shift": 0.05}, view
    config.labels = (1.0,)
    return config


def paper() -> ConfigDict:
    """The six tasks of Ghiasi et al. 2021 from a workdir of configs/must.py:paper, for accelerators.

    --config.root=DATA holds cifar100 and nyu_depth_v2 as TFDS prepares them, VOC2007 and VOC2012 (folders of the
    devkit), ADEChallengeData2016 with a classes.json, {"1": "wall", ...}, and diode with the folders train and val and
    their normals. Published: the sets, and that everything is fine-tuned end to end. Ours: frame, schedule, rates to
    choose from, and 2 % of every training split held out for that choice. The paper's self-supervised network is SimCLR
    on ImageNet: a start of its own where its file is at hand.
    """
    config = scenes()
    config.title, config.seeds = "Transfer, the published tasks", (0,)
    config.protocols, config.labels = ("finetune",), (1.0,)
    config.image = {"size": (512, 512)}
    config.model = must.paper().model
    config.tasks = {
        "cifar100": {"kind": "classification"},
        "pascal_boxes": {"kind": "detection", "max_boxes": 60},
        "pascal_masks": {"kind": "segmentation"},
        "ade20k": {"kind": "segmentation"},
        "depth": {"kind": "depth", "max_depth": 10.0},
        "normals": {"kind": "normals"},
    }

    def tfds(dataset, test, task, label):
        section = {"kind": "tfds", "data_dir": "{root}", "dataset": dataset, "labels": {task: label}}
        cuts = {"train": "train[:98%]", "validation": "train[98%:]", "test": test}
        return {use: {**section, "split": cut} for use, cut in cuts.items()}

    def folders(train, test):
        held_out = {"kind": "subset", "source": train, "fraction": 0.02}
        kept = {"kind": "without", "source": train, "others": [held_out]}
        return {"train": kept, "validation": held_out, "test": test}

    def voc(year, split, **section):
        names = {"root": f"{{root}}/VOC{year}", "name": f"voc{year}", "classes": VOC}
        return {"kind": "voc", "split": split, **names, **section}

    def ade(split):
        names = {"images": f"images/{split}", "masks": f"annotations/{split}", "classes": "classes.json", "ignore": 0}
        return {"kind": "mask_png", "root": "{root}/ADEChallengeData2016", "task": "ade20k", **names}

    def diode(split):
        names = {"images": split, "image_suffix": ".png", "normals": split, "normals_suffix": "_normal.npy"}
        return {"kind": "normals_png", "root": "{root}/diode", "name": f"diode-{split}", **names}

    boxes = {"tasks": {"detection": "pascal_boxes"}}
    masks = {"tasks": {"segmentation": "pascal_masks"}, "ids": "ImageSets/Segmentation/{split}.txt", "name": "masks"}
    both = {"kind": "concat", "sources": [voc(year, "trainval", **boxes) for year in (2007, 2012)]}
    config.sets = {
        "cifar100": tfds("cifar100", "test", "cifar100", "label"),
        "pascal_boxes": folders(both, voc(2007, "test", **boxes)),
        "pascal_masks": folders(voc(2012, "train", **masks), voc(2012, "val", **masks)),
        "ade20k": folders(ade("training"), ade("validation")),
        "depth": tfds("nyu_depth_v2", "validation", "depth", "depth"),
        "normals": folders(diode("train"), diode("val")),
    }
    config.train_sets = {task: task for task in config.tasks}
    config.pool = {}

    def declared(counts, size, task, form, **known):
        count = dict(zip(("train", "validation", "test"), counts, strict=True))
        return {"count": count, "size": size, "labels": {task: {"form": form, **known}}}

    planned = {
        "cifar100": declared((49_000, 1_000, 10_000), (32, 32), "cifar100", "classification", classes=100),
        "pascal_boxes": declared((16_220, 331, 4_952), (375, 500), "pascal_boxes", "detection", classes=20),
        "pascal_masks": declared((1_435, 29, 1_449), (375, 500), "pascal_masks", "segmentation", classes=21),
        "ade20k": declared((19_806, 404, 2_000), (512, 683), "ade20k", "segmentation", classes=150),
        "depth": declared((46_632, 952, 654), (480, 640), "depth", "depth"),
        "normals": declared((24_949, 509, 771), (768, 1024), "normals", "normals"),
    }
    config.declared = {"sets": planned}
    teachers = {"cifar100": "classification", "pascal_boxes": "detection", "pascal_masks": "segmentation"}
    teachers |= {"ade20k": "segmentation", "depth": "depth", "normals": "depth"}
    config.starts = {name: start for name, start in starts(teachers, "{upstream}").items() if name in PUBLISHED}
    config.learning_rates = (0.01, 0.03, 0.1)
    sgd = {"name": "sgd", "learning_rate": 0.03, "warmup": 500, "weight_decay": 4e-5, "clip_norm": 0.0}
    config.finetune = {
        "steps": 20_000,
        "batch_size": 64,
        "optimizer": sgd,
        "ema_decay": 0.9998,
        "select": "best",
        "evaluate_every": 2000,
        "geometry": {"zoom": (0.5, 2.0), "shift": 0.0},
    }
    return config


def sanity() -> ConfigDict:
    """Three tasks, two starts, a few steps; needs no upstream workdir."""
    config = scenes()
    config.title, config.seeds, config.labels = "Transfer, a few steps", (0,), (0.5, 1.0)
    for name in ("detection", "segmentation", "normals"):
        for section in (config.tasks, config.sets, config.train_sets):
            del section[name]
    for splits in config.sets.values():
        for section in splits.values():
            section = section.source.source if section.kind == "remapped" else section
            section.count = 32
    config.pool.pool.count = 32
    config.starts = {name: config.starts[name] for name in ("random", "simclr")}
    config.subject = "simclr"
    config.model.backbone.update(width=8, stages=1)
    config.model.neck.update(channels=8, strides=(4,))
    config.probe.model.backbone.frozen = 1
    config.tasks.depth.update(width=8)
    for run in (config.finetune, config.probe, config.self_supervised):
        run.update(steps=6, batch_size=8, evaluate_every=0)
    return config
