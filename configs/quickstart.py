"""The whole of MuST on the embedded scenes: five teachers with few labels each, a large pool, one student.

    python -m must.main --config=configs/quickstart.py --workdir=runs/quickstart

Variants, --config=configs/quickstart.py:VARIANT; minutes on two CPU cores:

    sanity     every stage with a few steps; 1.5 minutes
    evidence   five seeds, every column, a second table for a shifted domain; an hour
    pool       pools of three sizes at equal steps, five seeds; half an hour
    weighted   with and without estimated weights of pseudo labels, two seeds; 7 minutes
    balancing  every way to balance tasks, with all labels and with one task's per image, three seeds; half an hour
    policies   calibrated three-state labels against fixed thresholds, five seeds; half an hour
    strengths  the same for teachers of 24, 96 and 384 labels, three tasks, three seeds; 40 minutes; once more in
               another workdir with a pool of another domain, --config.pool.pool.domain=clutter
    scales     teachers of unlike batch sizes: the weights of losses by MuST's rule, equal and chosen, three seeds
    options    strong views, CutMix, mean teacher, small-loss selection, further rounds, three seeds; half an hour
"""

from ml_collections import ConfigDict

from must.recipes.table import complete

TASKS = ("classification", "detection", "segmentation", "depth", "normals")
BALANCES = ("uncertainty", "dwa", "rlw", "famo", "gradnorm", "pcgrad", "cagrad", "nash_mtl", "upgrad")
ALL_POSITIVE = {"positive": 0.0, "negative": 0.0, "from_validation": False}
HALF = {"positive": 0.5, "negative": 0.5, "from_validation": False}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a variant."""
    variants = {
        "": first_command,
        "sanity": sanity,
        "evidence": evidence,
        "pool": pool,
        "weighted": weighted,
        "balancing": balancing,
        "scales": scales,
        "policies": policies,
        "strengths": strengths,
        "options": options,
    }
    if variant not in variants:
        raise ValueError(f"no variant {variant!r} of quickstart: {', '.join(filter(None, variants))}")
    config = base()
    variants[variant](config)
    return complete(config)


def base() -> ConfigDict:
    """One seed, three columns; what all variants share."""
    config = ConfigDict()
    config.recipe, config.title, config.seeds = "must", "MuST on procedural scenes", (0,)
    config.image = {"size": (64, 64)}
    config.tasks = tasks()
    config.sets = sets()
    config.train_sets = {task: task for task in TASKS}
    config.pool = {"pool": {"kind": "scenes", "seed": "{seed}", "split": "pool", "count": 1024, "labels": ()}}
    config.eval_splits = ("test",)
    config.model = {
        "backbone": {"kind": "resnet", "depth": 10, "width": 24, "stem": "imagenet", "stages": 3},
        "neck": {"kind": "fpn", "channels": 32, "strides": (4, 8, 16)},
    }
    training = {
        "batch_size": 16,
        "optimizer": {"name": "adamw", "learning_rate": 4e-3, "warmup": 50, "weight_decay": 0.05, "clip_norm": 5.0},
        "ema_decay": 0.99,
        "select": "best",
        "evaluate_every": 300,
        "geometry": {"zoom": (1.0, 1.0), "shift": 0.1},
    }
    config.teacher = {**training, "steps": 500}
    # With five metrics the best step on 256 images is mostly that of the noisiest one, so the last weights are taken.
    together = {**training, "steps": 600, "select": "last"}
    # Annotated images are few: they appear 12 times as often.
    config.student = {**together, "repeat_labeled": 12, "truth_weight": 8.0}
    config.supervised = together
    config.scratch = {**training, "steps": 600}
    config.label = {"hflip_tta": True}
    config.policies = dict.fromkeys(TASKS, ALL_POSITIVE)
    config.policies.detection = {"from_validation": True, "target_precision": 0.6, "negative_below": 0.2}
    config.policies.segmentation = {"positive": 0.5}
    config.baselines = ("supervised",)
    return config


def tasks() -> dict:
    """Five tasks with small heads."""
    dense = {"shuffle": 2, "width": 32, "depth": 1, "stride": 1}
    return {
        "classification": {"kind": "classification"},
        "detection": {"kind": "detection", "strides": (8, 16), "width": 32, "depth": 2, "max_boxes": 12},
        "segmentation": {"kind": "segmentation", **dense},
        "depth": {"kind": "depth", "max_depth": 10.0, **dense},
        "normals": {"kind": "normals", **dense},
    }


def sets() -> dict:
    """Every task has labels on images of its own: five disjoint stretches of one stream of scenes."""
    # Few enough for teachers that train until they stop improving to be limited by them: a class for an image says
    # less than boxes, and boxes less than a value for every pixel.
    labels = {"classification": 96, "detection": 48, "segmentation": 24, "depth": 24, "normals": 24}
    held_out = {"kind": "scenes", "seed": "{seed}", "count": 512}
    return {
        task: {
            "train": {
                "kind": "scenes",
                "seed": "{seed}",
                "labels": (task,),
                "name": task,
                "count": labels[task],
                "start": i * 10_000,
            },
            "validation": {**held_out, "split": "validation", "count": 256},
            # Settings are chosen on seeds from 100 on and --config.eval_splits="('tune',)", never on the test split.
            "tune": {**held_out, "split": "validation", "start": 10_000},
            "test": {**held_out, "split": "test"},
            "shifted": {**held_out, "split": "test", "domain": "clutter"},
        }
        for i, task in enumerate(TASKS)
    }


def first_command(config: ConfigDict) -> None:
    """Half as long again, so that the student is ahead whatever the seed, and enough images to see by how much."""
    for run in (config.student, config.supervised, config.scratch):
        run.steps = 900
    # Without pseudo labels 96 classes are all there is of one: twice the weight was the best of 1, 2 and 4.
    config.supervised.loss_scales = {"classification": 2.0}
    for task in TASKS:
        config.sets[task].test.count = 2048


def sanity(config: ConfigDict) -> None:
    """Compiling is nearly all of the time, so the network is as shallow as it can be."""
    config.pool.pool.count = 64
    for task in TASKS:
        config.sets[task].validation.count = config.sets[task].test.count = 64
    config.model.backbone.stages, config.model.neck.strides = 2, (4, 8)
    config.tasks.detection.update(strides=(8,), depth=1)
    for run in (config.teacher, config.student, config.supervised, config.scratch):
        run.steps, run.evaluate_every = 10, 0


def evidence(config: ConfigDict) -> None:
    """Teachers train as long as the student does, so the step-matched scratch baseline is the teachers themselves."""
    config.seeds = (10, 11, 12, 13, 14)  # no setting was chosen on these
    config.pool.pool.count = 4096
    for run in (config.teacher, config.student, config.supervised, config.scratch):
        run.steps, run.evaluate_every = 2400, 600
    config.baselines = ("supervised", "scratch")
    config.eval_splits = ("test", "shifted")


def pool(config: ConfigDict) -> None:
    """The pool alone teaches: beside the annotated images, which carry pseudo labels too, 256 were enough."""
    evidence(config)
    config.baselines, config.eval_splits = (), ("test",)
    config.student.update(steps=1200, evaluate_every=0, repeat_labeled=0, pool_images=1024)
    config.arms = {f"pool_{count}": {"pool_images": count} for count in (64, 256)}


def weighted(config: ConfigDict) -> None:
    """Weights of pseudo labels by the ratio of means."""
    config.seeds, config.baselines = (20, 21), ()
    config.arms = {"weighted": {"weights": {"kind": "ratio_of_means", "every": 100, "neighbors": 64}}}


def balancing(config: ConfigDict) -> None:
    """The plain sum without scales, where the methods start; with scales; and every method, with and without labels."""
    config.seeds, config.baselines = (30, 31, 32), ()
    for run in (config.teacher, config.student):
        run.steps, run.evaluate_every = 200, 0
    config.teacher.select = "last"
    config.student.loss_scale_rule = "fixed"
    methods = {"scaled": {"loss_scale_rule": "kind"}, **{kind: {"balance": {"kind": kind}} for kind in BALANCES}}
    methods["dwa"]["balance"]["window"] = 50
    for kind in ("rlw", "pcgrad"):
        methods[kind]["balance"]["seed"] = "{seed}"
    partial = {f"partial_{name}": {**changes, "pseudo_labels": False} for name, changes in methods.items()}
    config.arms = {**methods, "partial": {"pseudo_labels": False}, **partial}


def scales(config: ConfigDict) -> None:
    """MuST's rule for the weights of losses says something only where teachers train unlike one another."""
    config.seeds, config.baselines = (0, 1, 2), ()
    sizes = {"classification": 32, "detection": 8, "segmentation": 32, "depth": 8}
    config.teachers = {task: {"batch_size": size} for task, size in sizes.items()}
    config.student.loss_scale_rule = "learning_rate"
    config.arms = {"equal": {"loss_scale_rule": "fixed"}, "chosen": {"loss_scale_rule": "kind"}}


def policies(config: ConfigDict) -> None:
    """Three states for every task, for boxes alone, and fixed thresholds: MuST's, and hard classes on top."""
    config.seeds, config.baselines = (40, 41, 42, 43, 44), ()  # no setting was chosen on these
    for task in TASKS:  # the differences are small: enough images to see them
        config.sets[task].test.update(start=512, count=4096)
    config.quality = {"enabled": True, "worst": 12}
    for task in TASKS:
        config.policies[task] = three_states(task)
    all_but_boxes = {task: ALL_POSITIVE for task in TASKS if task != "detection"}
    fixed = {**all_but_boxes, "detection": HALF, "segmentation": HALF}
    config.arms = {
        "boxes": {"policies": all_but_boxes},
        "must": {"policies": fixed},  # as published: soft classes, boxes and pixels from 0.5 up
        "hard": {"policies": {**fixed, "classification": HALF}, "tasks": {"classification": {"hard": True}}},
    }


def three_states(task: str) -> dict:
    """Calibrated thresholds: accepted from a precision on, absent below a probability, ignored between."""
    targets = {"classification": (0.5, 0.03), "detection": (0.6, 0.2), "segmentation": (0.6, 0.02)}
    targets |= {"depth": (0.84, 0.0), "normals": (0.72, 0.0)}
    precision, negative = targets[task]
    return {"from_validation": True, "target_precision": precision, "negative_below": negative}


def strengths(config: ConfigDict) -> None:
    """Policies for weak and strong teachers: budgets of labels, each with teachers and students of its own."""
    config.recipe, config.title = "weighted_distillation", "Label policies by the strength of the teachers"
    config.seeds, config.budgets, config.baselines = (50, 51, 52), (24, 96, 384), ()  # nothing was chosen on these
    names = ("classification", "detection", "segmentation")
    scenes = {"kind": "scenes", "seed": "{seed}", "labels": names}
    config.tasks = {name: config.tasks[name] for name in names}
    config.sets = {
        "scenes": {
            "train": {**scenes, "name": "scenes", "count": "{budget}"},
            "validation": {**scenes, "split": "validation", "count": 256},
            "tune": {**scenes, "split": "validation", "start": 10_000, "count": 1024},
            "test": {**scenes, "split": "test", "count": 2048},
        }
    }
    config.train_sets = dict.fromkeys(names, "scenes")
    config.pool.pool.domain = "indoor"
    config.teacher.steps = 300
    # The annotated images are drawn as often as the pool, however few they are.
    config.student = {**config.student, "steps": 400, "pool_share": 0.5, "repeat_labeled": 1}
    config.policies = {name: three_states(name) for name in names}
    soft = {"classification": ALL_POSITIVE, "segmentation": ALL_POSITIVE}
    fixed = {"classification": ALL_POSITIVE, "detection": HALF, "segmentation": HALF}
    config.arms = {
        "boxes": {"policies": soft},
        "must": {"policies": fixed},
        "hard": {"policies": {**fixed, "classification": HALF}, "tasks": {"classification": {"hard": True}}},
        "none": {"pseudo_labels": False},
    }


def options(config: ConfigDict) -> None:
    """One option of the student each."""
    config.seeds, config.baselines = (40, 41, 42), ()
    strong = {"kind": "rand_augment", "count": 2, "magnitude": 0.5}
    config.arms = {
        "strong": {"view": strong},
        "cutout": {"cutout": {"probability": 0.5}},
        "cutmix": {"cutmix": {"probability": 0.5}},
        "mean_teacher": {"view": strong, "mean_teacher": {"kind": "hard", "decay": 0.99, "start": 200}},
        "small_loss": {"small_loss": {"drop": 0.1, "after": 200}},
        "round2": {"labels_from": "student"},
        "round3": {"labels_from": "round2"},
    }
