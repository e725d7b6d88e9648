"""Labeling alone: given teachers label images, once; what is believed of it, pages and files may be asked for anew.

    python -m must.main --config=configs/quickstart.py --workdir=runs/quickstart --stage=teachers
    python -m must.main --config=configs/label.py --config.root=runs/quickstart --dry_run
    python -m must.main --config=configs/label.py --config.root=runs/quickstart --workdir=runs/label
    python -m must.main --config=configs/label.py --config.root=runs/quickstart --workdir=runs/label --config.policies.detection.precision=0.8

The second command prints what the third costs; the fourth moves a threshold: no teacher runs again. `:photos` labels a
folder of photos with teachers of your own. The tutorial is must/pseudo_label/README.md.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Variants.

    ""      the five teachers of a quickstart run (--config.root) label 1,024 new scenes; a minute on 2 CPU cores
    later   a task that comes later: depth joins finished records of the others, which `onto` names
    photos  your photos (--config.root), your teachers (--config.teachers.segmentation.make="my_project.nets:segmenter")
    """
    config = ConfigDict()
    config.recipe = "pseudo_label"
    config.title = "Pseudo labels of procedural scenes"
    config.seeds = (0,)
    config.root = ""
    config.workers = 0  # processes side by side; 0 takes two on a CPU with two cores or more

    # The frame in which labels are drawn, judged against the truth and given to students; teachers have sizes of their own.
    config.image = {"size": (64, 64), "keep_aspect": True}
    dense = {"shuffle": 2, "width": 32, "depth": 1, "stride": 1}
    tasks = {
        "classification": {"kind": "classification"},
        "detection": {"kind": "detection", "strides": (8, 16), "width": 32, "depth": 2, "max_boxes": 12},
        "segmentation": {"kind": "segmentation", **dense},
        "depth": {"kind": "depth", **dense},
        "normals": {"kind": "normals", **dense},
    }
    scenes = {"kind": "scenes", "seed": 0, "labels": tuple(tasks)}
    images = {"pool": {"kind": "scenes", "seed": 0, "split": "pool", "start": 1024, "count": 1024, "labels": ()}}
    # Held-out truth chooses thresholds ("validation") and tells the quality of labels ("test").
    truth = {
        "validation": {**scenes, "split": "validation", "count": 256},
        "test": {**scenes, "split": "test", "count": 512},
    }
    # {name: {"run": a directory of another run}}, or {"make": "package.module:function", its arguments}; "tasks": which it
    # labels, by default the one of its own name.
    config.teachers = {name: {"run": f"{{root}}/teachers/{name}", "mirror": True} for name in tasks}
    config.label = {"shards": 16, "batch_size": 64, "copy_images": True, "max_rejects": 0.001}
    config.onto = ""  # a directory of finished records that the labels are added to, in the place of `images`
    fitted = {"from_validation": True, "calibration": "isotonic", "precision": 0.7, "doubt": 0.1}
    config.policies = {
        "classification": fitted,
        "detection": {**fitted, "precision": 0.6, "doubt": 0.2},
        "segmentation": {**fitted, "precision": 0.9, "doubt": 0.02},
        "depth": {**fitted, "precision": 0.9},
        "normals": {**fitted, "precision": 0.9},
    }
    config.quality = {"worst": 12}  # an empty section leaves the page out
    config.gallery = {"per_page": 48}
    config.files = {"images": False}
    if variant == "later":
        tasks, images, config.onto = {"depth": tasks["depth"]}, {}, "runs/label-four/pseudo_labels/pool/1.0.0"
        for section in (config.teachers, config.policies):
            for name in [name for name in section if name not in tasks]:
                del section[name]
    elif variant == "photos":
        images, truth = {"photos": {"kind": "photos", "root": "{root}"}}, {}
        tasks = {"segmentation": {"kind": "segmentation", "classes": ("thing", "background")}}
        config.title, config.image = "Pseudo labels of photos", {"size": (256, 256), "keep_aspect": True}
        config.teachers = {"segmentation": {"make": "my_project.nets:segmenter"}}
        config.policies, config.quality = {"segmentation": {"positive": 0.8, "negative": 0.05}}, {}
    elif variant:
        raise ValueError(f"no variant {variant!r} of label: later, photos")
    config.tasks, config.images = tasks, images
    config.truth = dict.fromkeys(tasks, truth) if truth else {}
    return config
