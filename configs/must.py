"""MuST on users' folders, and the published setting.

    python -m must.main --config=configs/must.py:folders --config.root=DATA --workdir=runs/folders
    python -m must.main --config=configs/must.py:defaults --config.root=DATA --workdir=runs/defaults
    python -m must.main --config=configs/must.py:pretraining --config.root=DATA --workdir=runs/pretraining
    python -m must.main --config=configs/must.py:pretrained --config.root=DATA --workdir=runs/pretrained
    python -m must.main --config=configs/must.py:paper --config.root=DATA --dry_run

`folders` is an example to copy: four annotated sets of different kinds, each teaching one task, and a pool of photos.
It reads DATA/clothing (class folders), DATA/bccd (VOC xml), DATA/camvid (PNG masks), DATA/rgbd_kitchen (16-bit depth)
and DATA/unlabeled_photos. `defaults` leaves out what has a default. `pretraining` trains the network of `folders` on
scenes and photos, and `pretrained` compares a student that starts there
(--config.arms.pretrained.init.weights=runs/pretraining) with one from random numbers. `paper` is the setting of Ghiasi
et al. 2021, table 1 and appendix, for accelerators.
"""

from ml_collections import ConfigDict

from configs import quickstart
from must.recipes.table import complete


def get_config(variant: str = "folders") -> ConfigDict:
    """The configuration of a variant."""
    variants = {"folders": folders, "defaults": defaults, "pretraining": pretraining, "pretrained": pretrained}
    variants["paper"] = paper
    if variant not in variants:
        raise ValueError(f"no variant {variant!r} of must: {', '.join(variants)}")
    return complete(variants[variant]())


def folders() -> ConfigDict:
    """Four teachers on four sets of real pictures, one student over all of them that sees as many pictures as they do
    together; an hour on 2 CPU cores."""
    config = ConfigDict()
    config.recipe, config.title = "must", "MuST on folders of real pictures"
    config.image = {"size": (128, 128)}
    dense = {"shuffle": 2, "width": 48, "depth": 1}
    config.tasks = {
        "classification": {"kind": "classification"},
        "detection": {"kind": "detection", "strides": (8, 16), "width": 48, "depth": 2},
        "segmentation": {"kind": "segmentation", **dense},
        "depth": {"kind": "depth", **dense},
    }
    splits = {"train": "train", "validation": "val", "test": "test"}

    def each(**section):
        return {use: {**section, "split": split} for use, split in splits.items()}

    config.sets = {
        "clothing": each(kind="image_folder", root="{root}/clothing", classes="classes.txt"),
        "bccd": each(kind="voc", root="{root}/bccd", classes="classes.txt"),
        "camvid": each(
            kind="mask_png",
            root="{root}/camvid",
            images="images/{split}",
            masks="masks/{split}",
            ids="splits/{split}.txt",
            classes="classes.json",
        ),
        "kitchen": each(
            kind="depth_png",
            root="{root}/rgbd_kitchen",
            images="rgb",
            depths="depth",
            unit="mm",
            ids="splits/{split}.txt",
        ),
    }
    config.train_sets = {
        "classification": "clothing",
        "detection": "bccd",
        "segmentation": "camvid",
        "depth": "kitchen",
    }
    config.pool = {
        "clothing": {"kind": "photos", "root": "{root}/clothing", "images": "unlabeled", "name": "clothing-pool"},
        "kitchen": {"kind": "photos", "root": "{root}/rgbd_kitchen", "images": "unlabeled", "name": "kitchen-pool"},
        "photos": {"kind": "photos", "root": "{root}/unlabeled_photos", "images": "images", "name": "photos"},
    }
    config.model = {
        "backbone": {"kind": "resnet", "depth": 10, "width": 32, "stem": "imagenet", "stages": 3},
        "neck": {"kind": "fpn", "channels": 48, "strides": (4, 8, 16)},
    }
    training = {
        "batch_size": 16,
        "optimizer": {"name": "adamw", "learning_rate": 2e-3, "warmup": 50, "weight_decay": 0.05, "clip_norm": 5.0},
        "ema_decay": 0.99,
        "select": "best",
        "evaluate_every": 300,
        "geometry": {"zoom": (0.8, 1.25), "shift": 0.05},
        "view": {"kind": "photometric", "strength": 0.5, "color": 0.3, "blur": 0.0},
    }
    # A teacher of classes has gradients twice as large as one of boxes and six times as large as one of depth.
    scales = {"classification": 0.5, "detection": 2.0, "segmentation": 3.0, "depth": 6.0}
    together = {**training, "loss_scales": scales}
    together["optimizer"] = {**training["optimizer"], "learning_rate": 4e-3}
    config.teacher = {**training, "steps": 900}
    config.student = {**together, "select": "last"}
    config.supervised = together
    config.scratch = training
    config.label = {"batch_size": 32, "hflip_tta": True}
    return config


def defaults() -> ConfigDict:
    """The sets and networks of `folders`, and nothing else but the teachers' steps; `plain` takes every stored box and
    pixel as true and weighs it as much as the truth."""
    config = folders()
    config.title = "MuST on folders of real pictures, by default"
    for section in ("teacher", "student", "supervised", "scratch", "label"):
        del config[section]
    config.teacher = {"steps": 900}
    every = {"positive": 0.0, "negative": 0.0, "from_validation": False}
    config.arms = {"plain": {"truth_weight": 1.0, "policies": {"detection": every, "segmentation": every}}}
    return config


def pretraining() -> ConfigDict:
    """The network of `folders`, taught by the quickstart's teachers, on scenes and photos; 20 minutes of a CPU core."""
    config, own = quickstart.base(), folders()
    config.title, config.model, config.baselines = "Pretraining on scenes and photos", own.model, ()
    config.pool.photos = own.pool.photos
    config.student.steps = 2400
    return config


def pretrained() -> ConfigDict:
    """The student of `folders` from weights, beside the one from random numbers."""
    config = folders()
    config.title = "Folders of real pictures, with and without pretraining"
    config.arms = {"pretrained": {"init": {"weights": "runs/pretraining", "partial": ("heads_",)}}}
    return config


def paper() -> ConfigDict:
    """Ghiasi et al. 2021 on ImageNet, for a TPU pod.

    Published: soft classes; boxes and pixels of at least .5, as hard labels; depth as it is; every image once, with the
    truth where there is one and the teachers' labels elsewhere, of equal weight; levels 3 to 7 of a feature pyramid;
    the rule for the weights of the losses. The sets are those of the paper but for depth, which comes from MiDaS there
    and from NYU Depth V2 here; its larger pool, of 300 M images, is not public.
    Recollected, not verified: ResNet-152, 640 px, batches of 256 and 4096, learning rate, weight decay.
    Ours: steps, warm-up, crops, the average of the weights, the classification teacher's own settings, the last percent
    of every training split for validation.
    """
    config = folders()
    config.title = "MuST, the published setting"
    config.image = {"size": (640, 640)}
    config.tasks = {
        "classification": {"kind": "classification"},
        "detection": {"kind": "detection", "max_boxes": 100},
        "segmentation": {"kind": "segmentation"},
        "depth": {"kind": "depth", "max_depth": 10.0},
    }
    tfds = {"kind": "tfds", "data_dir": "{root}"}

    def splits(train, validation, test, **section):
        named = {"train": train, "validation": validation, "test": test}
        return {use: {**tfds, **section, "split": split} for use, split in named.items()}

    config.sets = {
        "imagenet": splits(
            "train[:99%]", "train[99%:]", "validation", dataset="imagenet2012", labels={"classification": "label"}
        ),
        "objects365": {  # not in TFDS: as its authors distribute it
            use: {
                "kind": "coco",
                "root": "{root}/objects365",
                "images": part,
                "annotations": f"{part}.json",
                "name": f"objects365-{part}",
            }
            for use, part in {"train": "train", "validation": "minival", "test": "val"}.items()
        },
        "coco": splits(
            "train[:99%]",
            "train[99%:]",
            "validation",
            dataset="coco/2017_panoptic",
            labels={"segmentation": "panoptic_image"},
        ),
        "nyu": splits("train[:99%]", "train[99%:]", "validation", dataset="nyu_depth_v2", labels={"depth": "depth"}),
    }
    config.train_sets = {
        "classification": "imagenet",
        "detection": "objects365",
        "segmentation": "coco",
        "depth": "nyu",
    }
    # What the teachers learn from is what they label for each other: each image once, and no validation image.
    config.pool = {}
    # What the sets hold, from their papers; --dry_run plans with this where a set is not on disk.
    imagenet = {"size": (400, 350), "labels": {"classification": {"form": "classification", "classes": 1000}}}
    config.declared = {
        "sets": {
            "imagenet": {"count": {"train": 1_268_355, "validation": 12_812, "test": 50_000}, **imagenet},
            "objects365": {
                "count": {"train": 602_520, "validation": 6_086, "test": 30_000},
                "size": (512, 680),
                "labels": {"detection": {"form": "detection", "classes": 365}},
            },
            "coco": {
                "count": {"train": 117_104, "validation": 1_183, "test": 5_000},
                "size": (480, 640),
                "labels": {"segmentation": {"form": "segmentation", "classes": 133}},
            },
            "nyu": {
                "count": {"train": 47_108, "validation": 476, "test": 654},
                "size": (480, 640),
                "labels": {"depth": {"form": "depth"}},
            },
        },
    }
    config.model = {
        "backbone": {"kind": "resnet", "depth": 152, "width": 64, "stem": "imagenet", "stages": 4},
        "neck": {"kind": "fpn", "channels": 256, "strides": (8, 16, 32, 64, 128)},
    }
    training = {
        "steps": 180_000,
        "batch_size": 256,
        "optimizer": {"name": "sgd", "learning_rate": 0.32, "warmup": 1000, "weight_decay": 4e-5, "clip_norm": 0.0},
        "ema_decay": 0.9998,
        "evaluate_every": 10_000,
        "geometry": {"zoom": (0.5, 2.0), "shift": 0.0},
    }
    config.teacher = config.supervised = config.scratch = training
    # One label for an image says less than boxes or pixels: larger batches; 90 epochs.
    config.teachers = {
        "classification": {"steps": 28_000, "batch_size": 4096, "optimizer": {"learning_rate": 1.6}},
    }
    # Images are drawn uniformly, ground truth and pseudo labels weigh the same.
    config.student = {**training, "batch_size": 4096, "normalize": "batch", "pool_share": 0.0, "truth_weight": 1.0}
    config.student.loss_scale_rule = "learning_rate"
    config.policies = {
        "classification": {"positive": 0.0, "negative": 0.0},
        "detection": {"positive": 0.5, "negative": 0.5},
        "segmentation": {"positive": 0.5, "negative": 0.5},
        "depth": {"positive": 0.0, "negative": 0.0},
    }
    return config
