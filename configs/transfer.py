"""What weights are worth on other tasks: fine-tuned, as a probe on a frozen backbone, and by nearest neighbors.

    python -m must.main --config=configs/transfer.py:upstream --workdir=runs/upstream
    python -m must.main --config=configs/transfer.py:scenes --config.root=runs/upstream --workdir=runs/transfer

`upstream` trains, for three seeds, what `scenes` starts from: teachers, the student, the supervised network, and a
student whose labels are shuffled, which should be worth nothing. `sanity` runs every stage with a few steps.
"""

from ml_collections import ConfigDict

from configs import quickstart
from must.recipes.table import complete

SEEDS = (0, 1, 2)
MATERIALS = ("matte", "patterned", "metallic")
SHAPES = ("sphere", "box", "cylinder", "cone")


def get_config(variant: str = "scenes") -> ConfigDict:
    """The configuration of a variant."""
    variants = {"upstream": upstream, "scenes": scenes, "sanity": sanity}
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
    seed, heads = "{root}/seed-{seed}", ("heads_",)
    teachers = {task: f"{seed}/teachers/{task}" for task in quickstart.TASKS}
    config.starts = {
        "random": {"description": "from scratch"},
        "must": {"init": {"weights": f"{seed}/student", "partial": heads}, "description": "the student"},
        "single": {
            "init": {"partial": heads},
            "tasks": {**teachers, "material": teachers["classification"]},
            "description": "the teacher of the task",
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
    config.subject = "must"
    training = {
        "steps": 200,
        "batch_size": 16,
        "optimizer": {"name": "adamw", "learning_rate": 2e-3, "warmup": 20, "weight_decay": 0.05, "clip_norm": 5.0},
        "ema_decay": 0.95,
        "select": "best",
        "evaluate_every": 100,
        "geometry": {"shift": 0.1},
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
    for name in ("must", "single", "multi", "shuffled"):
        del config.starts[name]
    config.subject = "simclr"
    config.model.backbone.update(width=8, stages=1)
    config.model.neck.update(channels=8, strides=(4,))
    config.probe.model.backbone.frozen = 1
    config.tasks.depth.update(width=8)
    for run in (config.finetune, config.probe, config.self_supervised):
        run.update(steps=6, batch_size=8, evaluate_every=0)
    return config
