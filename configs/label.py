"""Labeling alone: external teachers label images once; label policies, pages and files may change afterwards.

    python -m must.main --config=configs/quickstart.py --workdir=runs/quickstart --stage=teachers
    python -m must.main --config=configs/label.py --config.root=runs/quickstart --dry_run
    python -m must.main --config=configs/label.py --config.root=runs/quickstart --workdir=runs/label
    python -m must.main --config=configs/label.py --config.root=runs/quickstart --workdir=runs/label \
        --config.policies.detection.target_precision=0.8

The second command prints the cost of the third; the fourth moves a threshold: no teacher runs again.

Variants, --config=configs/label.py:VARIANT:

    (none)  the five teachers of a quickstart run (--config.root) label 1,024 new scenes; a minute on two CPU cores
    later   a task that comes later: depth joins finished records of the others, which `onto` names
    photos  your photos (--config.root), your teachers (--config.teachers.segmentation.make=my_project.nets:segmenter)
"""

from ml_collections import ConfigDict

from must.recipes.table import complete


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a variant."""
    variants = {"": scenes, "later": later, "photos": photos}
    if variant not in variants:
        raise ValueError(f"no variant {variant!r} of label: later, photos")
    return complete(variants[variant]())


def scenes() -> ConfigDict:
    """Five teachers on new scenes."""
    config = ConfigDict()
    config.recipe, config.title = "label", "Pseudo labels of procedural scenes"
    # The frame in which labels are drawn, compared with the truth and given to students; teachers have their own sizes.
    config.image = {"size": (64, 64)}
    dense = {"shuffle": 2, "width": 32, "depth": 1, "stride": 1}
    config.tasks = {
        "classification": {"kind": "classification"},
        "detection": {"kind": "detection", "strides": (8, 16), "width": 32, "depth": 2, "max_boxes": 12},
        "segmentation": {"kind": "segmentation", **dense},
        "depth": {"kind": "depth", "max_depth": 10.0, **dense},
        "normals": {"kind": "normals", **dense},
    }
    scene = {"kind": "scenes", "seed": 0, "labels": tuple(config.tasks)}
    config.images = {"pool": {"kind": "scenes", "seed": 0, "split": "pool", "start": 1024, "count": 1024, "labels": ()}}
    truth = {
        "validation": {**scene, "split": "validation", "count": 256},
        "test": {**scene, "split": "test", "count": 512},
    }
    config.truth = dict.fromkeys(config.tasks, truth)
    config.teachers = {task: {"run": f"{{root}}/teachers/{task}"} for task in config.tasks}
    config.label = {"hflip_tta": True}
    config.policies = {
        "classification": {"target_precision": 0.7, "negative_below": 0.1},
        "detection": {"target_precision": 0.6, "negative_below": 0.2},
        "segmentation": {"target_precision": 0.9, "negative_below": 0.02},
        "depth": {"target_precision": 0.9, "negative_below": 0.1},
        "normals": {"target_precision": 0.9, "negative_below": 0.1},
    }
    for policy in config.policies.values():
        policy.from_validation = True
    config.quality = config.gallery = config.files = {"enabled": True}
    return config


def later() -> ConfigDict:
    """Depth alone, added to records that have the other tasks."""
    config = scenes()
    for section in (config.tasks, config.truth, config.teachers, config.policies):
        for task in [task for task in section if task != "depth"]:
            del section[task]
    config.images, config.onto = {}, "runs/label/pseudo_labels/pool/1.0.0"
    return config


def photos() -> ConfigDict:
    """A folder of photos and a teacher of your own."""
    config = scenes()
    config.title, config.image = "Pseudo labels of photos", {"size": (256, 256)}
    config.tasks = {"segmentation": {"kind": "segmentation", "classes": ("thing", "background")}}
    config.images, config.truth = {"photos": {"kind": "photos", "root": "{root}"}}, {}
    config.teachers = {"segmentation": {"make": "my_project.nets:segmenter"}}
    config.policies, config.quality = {"segmentation": {"positive": 0.8, "negative": 0.05}}, {}
    config.label = {}
    return config
