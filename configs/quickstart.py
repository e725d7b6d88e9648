"""The whole of MuST on the embedded scenes: five teachers with few labels each, a large pool, one student.

python -m must.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m must.main --config=configs/quickstart.py:sanity --workdir=runs/sanity
python -m must.main --config=configs/quickstart.py:evidence --workdir=runs/evidence
python -m must.main --config=configs/quickstart.py:pool --workdir=runs/pool
python -m must.main --config=configs/quickstart.py:weighted --workdir=runs/quickstart-weighted
python -m must.main --config=configs/quickstart.py:balancing --workdir=runs/balancing
python -m must.main --config=configs/quickstart.py:believing --workdir=runs/believing
python -m must.main --config=configs/quickstart.py:options --workdir=runs/options
"""

from ml_collections import ConfigDict

TASKS = ("classification", "detection", "segmentation", "depth", "normals")
BALANCES = ("uncertainty", "dwa", "rlw", "famo", "gradnorm", "pcgrad", "cagrad", "nash_mtl", "upgrad")


def get_config(variant: str = "") -> ConfigDict:
    """Variants.

    ""        one seed, three columns, five minutes on 2 CPU cores
    sanity    every stage with a few steps, a minute and a half
    evidence  five seeds, every column, a second table for a shifted domain; an hour
    weighted  two seeds, the student with and without weights of its pseudo labels; seven minutes
    balancing three seeds, every way to balance tasks, with all labels and with one task's label per image; half an hour
    believing five seeds, calibrated three-state labels, and three ways to believe less of them; half an hour
    options   three seeds, what strong views, CutMix, the student's own average, dropped losses and further rounds bring
    pool      what a student of the pool alone gains from one 4 and 16 times as large, at equal steps; half an hour
    """
    config = ConfigDict()
    config.recipe = "must"
    config.title = "MuST on procedural scenes"
    config.seeds = (0,)
    config.root = ""
    config.workers = 0  # processes side by side; 0 takes two on a CPU with two cores or more

    config.image = {"size": (64, 64), "keep_aspect": True}
    dense = {"shuffle": 2, "width": 32, "depth": 1, "stride": 1}
    config.tasks = {
        "classification": {"kind": "classification"},
        "detection": {"kind": "detection", "strides": (8, 16), "width": 32, "depth": 2, "max_boxes": 12},
        "segmentation": {"kind": "segmentation", **dense},
        "depth": {"kind": "depth", **dense},
        "normals": {"kind": "normals", **dense},
    }
    # Few enough for teachers that train until they stop improving to be limited by them: a class for an image says
    # less than boxes, and boxes less than a value for every pixel.
    labels = {"classification": 96, "detection": 48, "segmentation": 24, "depth": 24, "normals": 24}
    # Every task has labels on images of its own: five disjoint stretches of one stream of scenes.
    config.sets = {}
    held_out = {"kind": "scenes", "seed": "{seed}", "count": 512}
    for i, task in enumerate(TASKS):
        scenes = {"kind": "scenes", "seed": "{seed}", "labels": (task,)}
        config.sets[task] = {
            "train": {**scenes, "name": task, "count": labels[task], "start": i * 10_000},
            "validation": {**held_out, "split": "validation", "count": 256},
            # Settings are chosen on seeds from 100 on and --config.measured_on="('tune',)"; the test split stays unseen.
            "tune": {**held_out, "split": "validation", "start": 10_000},
            "test": {**held_out, "split": "test"},
            "shifted": {**held_out, "split": "test", "domain": "clutter"},
        }
    config.labeled = {task: task for task in TASKS}
    config.pool = {"pool": {"kind": "scenes", "seed": "{seed}", "split": "pool", "count": 1024, "labels": ()}}
    config.measured_on = ("test",)

    config.model = {
        "backbone": {"kind": "resnet", "depth": 10, "width": 24, "stem": "imagenet", "stages": 3},
        "neck": {"channels": 32, "strides": (4, 8, 16)},
    }
    training = {
        "batch_size": 16,
        "optimizer": {"name": "adamw", "learning_rate": 4e-3, "warmup": 50, "weight_decay": 0.05, "clip_norm": 5.0},
        "ema_decay": 0.99,
        "select": "best",
        "evaluate_every": 300,
        "geometry": {"zoom": (1.0, 1.0), "shift": 0.1, "flip": True},
        "view": {},
        "balance": {"kind": "fixed"},
        "normalize": "items",
        "scales": {},
    }
    # The losses of the dense tasks end several times smaller than the others'. With five metrics the best step on 256
    # images is mostly that of the noisiest one, so the last weights are taken.
    scales = {"segmentation": 4.0, "depth": 4.0, "normals": 24.0}
    together = {**training, "steps": 600, "select": "last", "scales": scales}
    config.teacher = {**training, "steps": 500}
    # Annotated images are few: they are met 12 times as often, and the truth on them counts 8 pseudo labels.
    config.student = {**together, "repeat_labeled": 12, "truth_weight": 8.0, "pool_images": 0}  # 0: the whole pool
    config.arms = {}  # {column: changes to the student's section}
    config.supervised = {**together}
    config.scratch = {**training, "steps": 600}
    config.label = {"shards": 16, "batch_size": 64, "mirror": True}
    config.policies = {
        "classification": {"positive": 0.0, "negative": 0.0},
        "detection": {"from_validation": True, "precision": 0.6, "doubt": 0.2},
        "segmentation": {"positive": 0.5, "negative": 0.0},
        "depth": {"positive": 0.0, "negative": 0.0},
        "normals": {"positive": 0.0, "negative": 0.0},
    }
    config.baselines = ("supervised",)
    config.external = {}  # {task: {"make": "package.module:function"}}: teachers that are given instead of trained
    # Pages and files of the pseudo labels; an empty section leaves them out.
    config.quality, config.gallery, config.files = {}, {}, {}
    if variant == "sanity":
        config.pool.pool.count = 64
        for task in TASKS:
            config.sets[task].validation.count = config.sets[task].test.count = 64
        # Compiling is nearly all of it, so the network is as shallow as it can be.
        config.model.backbone.stages, config.model.neck.strides = 2, (4, 8)
        config.tasks.detection.update(strides=(8,), depth=1)
        for section in (config.teacher, config.student, config.supervised, config.scratch):
            section.steps, section.evaluate_every = 10, 0
    elif variant == "weighted":
        config.seeds = (20, 21)
        config.arms = {"weighted": {"weights": {"kind": "ratio_of_means", "every": 100, "neighbors": 64}}}
        config.baselines = ()
    elif variant == "balancing":
        config.seeds = (30, 31, 32)
        config.baselines = ()
        for section in (config.teacher, config.student):
            section.steps, section.evaluate_every = 200, 0
        config.teacher.select = "last"
        # Beside the plain sum with the scales above: the plain sum without any, which is where the methods start.
        config.student.scales = {}
        methods = {"scaled": {"scales": scales}, **{kind: {"balance": {"kind": kind}} for kind in BALANCES}}
        methods["dwa"]["balance"]["window"] = 50
        for kind in ("rlw", "pcgrad"):
            methods[kind]["balance"]["seed"] = "{seed}"
        config.arms = {
            **methods,
            "partial": {"pseudo_labels": False},
            **{f"partial_{name}": {**changes, "pseudo_labels": False} for name, changes in methods.items()},
        }
    elif variant == "believing":
        config.seeds = (40, 41, 42, 43, 44)  # no setting was chosen on these
        config.baselines = ()
        for task in TASKS:  # the differences are small: enough images to see them
            config.sets[task].test.update(start=512, count=4096)
        config.quality = {"worst": 12}
        wanted = {
            "classification": (0.5, 0.03),
            "detection": (0.6, 0.2),
            "segmentation": (0.6, 0.02),
            "depth": (0.84, 0.0),
            "normals": (0.72, 0.0),
        }
        believed, half = {"positive": 0.0, "negative": 0.0}, {"positive": 0.5, "negative": 0.5}
        for task, (precision, doubt) in wanted.items():
            config.policies[task] = {"from_validation": True, "precision": precision, "doubt": doubt}
        all_but_boxes = {task: believed for task in TASKS if task != "detection"}
        fixed = {**all_but_boxes, "detection": half, "segmentation": half}
        config.arms = {
            "boxes": {"policies": all_but_boxes},  # three states for boxes alone
            "must": {"policies": fixed},  # as published: soft classes, boxes and pixels from 0.5 up
            "hard": {"policies": {**fixed, "classification": half}, "tasks": {"classification": {"hard": True}}},
        }
    elif variant == "options":
        config.seeds = (40, 41, 42)
        config.baselines = ()
        strong = {"kind": "rand_augment", "count": 2, "magnitude": 0.5}
        config.arms = {
            "strong": {"view": strong},
            "cutout": {"cutout": {"probability": 0.5}},
            "cutmix": {"cutmix": {"probability": 0.5}},
            "mean_teacher": {"view": strong, "mean_teacher": {"decay": 0.99, "start": 200}},
            "drop_top": {"drop_top": 0.1, "drop_after": 200},
            "round2": {"labels_from": "student"},
            "round3": {"labels_from": "round2"},
        }
    elif variant in ("evidence", "pool"):
        config.seeds = (10, 11, 12, 13, 14)  # no setting was chosen on these
        config.pool.pool.count = 4096
        # Teachers train as long as the student does, so the step-matched scratch arm is the teachers themselves.
        for section in (config.teacher, config.student, config.supervised, config.scratch):
            section.steps, section.evaluate_every = 2400, 600
        if variant == "evidence":
            config.baselines = ("supervised", "scratch")
            config.measured_on = ("test", "shifted")
        else:
            # The pool alone teaches: beside the labeled images, which carry pseudo labels too, 256 were enough.
            config.baselines = ()
            config.student.update(steps=1200, evaluate_every=0, repeat_labeled=0, pool_images=1024)
            config.arms = {f"pool_{count}": {"pool_images": count} for count in (64, 256)}
    elif variant:
        raise ValueError(
            f"no variant {variant!r} of quickstart: sanity, evidence, pool, weighted, balancing, believing, options"
        )
    return config
