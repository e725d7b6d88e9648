"""JEDI: joint experts over several video data sets, each with its own label space.

    python -m must.main --config=configs/jedi.py --workdir=runs/jedi
    python -m must.main --config=configs/jedi.py:sanity --workdir=runs/jedi-sanity
"""

from ml_collections import ConfigDict

from must.data.moving_scenes import MIRRORED, REVERSED


def get_config(variant: str = "scenes") -> ConfigDict:
    """Variants.

    scenes  three procedural video sets with different actions, domains and clip lengths, four seeds
    folders two sets of real clips as folders of frames, photos as the pool
    images  the same on still images: three label spaces of procedural rooms, four seeds
    paper   four public action sets at their usual sizes, for accelerators
    sanity  every stage with a few steps
    """
    variants = {"scenes": scenes, "sanity": sanity, "folders": folders, "images": images, "paper": paper}
    if variant not in variants:
        raise ValueError(f"no variant {variant!r} of jedi: {', '.join(variants)}")
    return variants[variant]()


def scenes() -> ConfigDict:
    """Who moves, and where to: 96 labelled clips a set, 768 without labels."""
    config = ConfigDict()
    config.recipe = "jedi"
    config.title = "JEDI on procedural clips"
    config.seeds = (10, 11, 12, 13)
    config.root = ""
    config.workers = 0
    config.image = {"size": (48, 48), "keep_aspect": True, "clip": {"span": 0}}
    frames = {"camera": 8, "bodies": 4, "both": 6}
    labelled = {"camera": 24, "bodies": 40, "both": 35}
    config.tasks = {
        name: {"kind": "action", "mirrored": MIRRORED[name], "reversed": REVERSED[name], "dropout": 0.0} for name in frames
    }
    clip = {"kind": "moving_scenes", "seed": "{seed}", "size": 48}
    config.sets = {}
    for name, count in frames.items():
        of = {**clip, "actions": name, "task": name, "frames": 8}
        config.sets[name] = {
            "train": {**of, "count": labelled[name]},
            "validation": {**of, "split": "validation", "count": 128},
            "tune": {**of, "split": "validation", "start": 10_000, "count": 256},
            "test": {**of, "split": "test", "count": 384},
        }
    config.pool = {
        name: {**clip, "actions": name, "task": name, "frames": 8, "split": "pool", "count": 256, "labels": False}
        for name in frames
    }
    config.measured_on = ("test",)
    config.test_clips = 1
    config.overlaps = "ignore"  # clips are drawn from numbers: no two splits share one
    config.experts = {name: {"frames": count, "model": {}} for name, count in frames.items()}
    config.model = {
        "backbone": {"kind": "temporal_shift", "depth": 10, "width": 12, "stem": "small", "stages": 3, "norm": "batch"},
        "neck": {},
    }
    training = {
        "steps": 2000,
        "batch_size": 16,
        "optimizer": {"name": "adamw", "learning_rate": 4e-3, "final_factor": 1.0, "warmup": 50, "weight_decay": 0.05, "clip_norm": 5.0},
        "ema_decay": 0.99,
        "select": "best",
        "evaluate_every": 50,
        "patience": 10,
        "geometry": {"zoom": (1.0, 1.0), "shift": 0.08, "flip": True, "reverse": True},
        "view": {"strength": 0.5, "color": 1.0, "blur": 0.0, "noise": 4.0},
        "balance": {"kind": "fixed"},
        "normalize": "items",
        "scales": {},
    }
    config.expert = training
    config.joint = {
        **training,
        "steps": 800,
        "batch_size": 8,
        "optimizer": {**training["optimizer"], "learning_rate": 1e-3},
        "distill": 1.0, "student": 1.0, "teacher": 1.0, "temperature": 1.0, "teacher_gradient": "all", "threshold": 0.0,
        "own_set": False, "ema_teacher": 0.0, "shuffled": False, "sampling": "equal", "frozen": False,
        "random_teachers": False,
    }  # fmt: skip
    config.arms = {"plain": {"distill": 0.0}, "shuffled": {"shuffled": True}, "frozen": {"frozen": True}}
    config.words = {
        "expert": "trained alone on its set",
        "student": "trained jointly, deployed alone",
        "teacher": "reads the features of all experts",
        "plain": "the same steps without distillation",
        "shuffled": "answers for other clips",
        "frozen": "linear layers on the experts' features",
    }
    config.controls = ("shuffled",)
    config.pairs = (
        ("student", "expert"), ("teacher", "expert"), ("student", "plain"), ("plain", "expert"), ("shuffled", "plain"),
        ("student", "frozen"), ("teacher", "plain-teacher"),
    )  # fmt: skip
    config.expected = (("student", "expert"), ("teacher", "expert"), ("student", "plain"), ("plain", "shuffled"))
    return config


def folders() -> ConfigDict:
    """Two sets of short clips as folders of frames, and photos under a wandering frame as the unlabeled pool."""
    config = scenes()
    config.title = "JEDI on folders of frames"
    config.seeds = (0, 1, 2, 3)
    config.image.size = (48, 64)
    names = {"egomotion": "video_egomotion", "sprites": "video_sprites"}
    config.tasks = {
        "egomotion": {
            "kind": "action",
            "mirrored": {"pan_left": "pan_right", "roll_cw": ""},
            "reversed": {"pan_left": "pan_right", "roll_cw": "", "tilt_up": ""},
        },
        "sprites": {
            "kind": "action",
            "mirrored": {"move_left": "move_right", "spin_cw": "spin_ccw"},
            "reversed": {
                "move_left": "move_right", "move_up": "move_down", "approach": "recede", "spin_cw": "spin_ccw",
            },
        },
    }  # fmt: skip
    config.sets = {
        name: {
            use: {"kind": "frame_folders", "root": f"{{root}}/{folder}", "split": split, "frames": 8, "task": name}
            for use, split in {"train": "train", "validation": "val", "test": "test"}.items()
        }
        for name, folder in names.items()
    }
    photos = {"kind": "photos", "root": "{root}/unlabeled_photos", "images": "images"}
    config.pool = {"photos": {"kind": "moving_photos", "source": photos, "frames": 8, "size": 64}}
    config.overlaps = "refuse"
    config.experts = {"egomotion": {"frames": 8, "model": {}}, "sprites": {"frames": 6, "model": {}}}
    return config


def images() -> ConfigDict:
    """Still images: what stands in front, told by its shape, by its material, or by both, each set in light of its own.

    Sets of one's own as folders of classes, each under the name of its task, without `clip` and `frames` as here:

        config.tasks = {"birds": {"kind": "classification"}, ...}
        config.sets = {"birds": {"train": {"kind": "image_folder", "root": "{root}/birds", "split": "train", "task": "birds"}, ...}}
    """
    config = scenes()
    config.title = "JEDI on procedural still images"
    config.image = {"size": (48, 48), "keep_aspect": True}
    shapes, materials = ("sphere", "box", "cylinder", "cone"), ("matte", "patterned", "metallic")
    both = {f"{material} {shape}": (shape, material) for shape in shapes for material in materials}
    spaces = {
        "shapes": {"domain": "indoor", "classes": shapes, "class_map": {name: pair[0] for name, pair in both.items()}},
        "materials": {"domain": "outdoor", "classes": materials, "class_map": {name: pair[1] for name, pair in both.items()}},
        "both": {"domain": "night", "classes": tuple(both), "class_map": {name: name for name in both}},
    }
    labelled = {"shapes": 96, "materials": 96, "both": 192}
    config.tasks = {name: {"kind": "classification"} for name in spaces}
    rooms = {"kind": "scenes", "seed": "{seed}", "size": 48}

    def of(name, **section):
        space = spaces[name]
        pictures = {**rooms, "domain": space["domain"], "labels": ["classification"], **section}
        named = {"kind": "aliased", "source": pictures, "names": {name: "classification"}}
        return {"kind": "remapped", "source": named, "task": name, "class_map": space["class_map"], "classes": space["classes"]}

    config.sets = {
        name: {
            "train": of(name, count=labelled[name]),
            "validation": of(name, split="validation", count=256),
            "tune": of(name, split="validation", start=10_000, count=512),
            "test": of(name, split="test", count=768),
        }
        for name in spaces
    }
    config.pool = {
        name: {**rooms, "domain": space["domain"], "split": "pool", "count": 512, "labels": []}
        for name, space in spaces.items()
    }
    config.experts = {name: {"model": {}} for name in spaces}
    config.model.backbone = {"kind": "resnet", "depth": 10, "width": 12, "stem": "small", "stages": 3, "norm": "batch"}
    for section in (config.expert, config.joint):
        section.geometry = {"zoom": (0.9, 1.1), "shift": 0.08, "flip": True}
        section.view = {"strength": 0.5, "color": 0.3, "blur": 0.0, "noise": 4.0}
    return config


def paper() -> ConfigDict:
    return scenes()


def sanity() -> ConfigDict:
    """One seed, two sets, networks as small as they can be."""
    config = scenes()
    config.seeds = (0,)
    for name in ("camera", "bodies", "both"):
        for split, count in {"train": 16, "validation": 8, "tune": 8, "test": 16}.items():
            config.sets[name][split].count = count
        config.pool[name].count = 8
    config.model.backbone.update(stages=2, width=8)
    config.expert.update(steps=6, evaluate_every=3, batch_size=8)
    config.joint.update(steps=6, evaluate_every=3, batch_size=4)
    return config
