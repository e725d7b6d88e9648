"""JEDI: joint experts over several video data sets, each with its own label space.

    python -m must.main --config=configs/jedi.py --workdir=runs/jedi

Variants, --config=configs/jedi.py:VARIANT; times on two CPU cores:

    scenes   three procedural video sets with different actions, domains and clip lengths, four seeds; 45 minutes; the
             default
    sanity   every stage with a few steps
    photos   three sets of clips cut from real photos, four seeds; needs --config.root=DATA
    folders  two sets of real clips as folders of frames, photos as the pool; needs --config.root=DATA
    images   the same on still images: three label spaces of procedural rooms, four seeds
    paper    four public action sets at their usual sizes, for accelerators; needs --config.root=DATA
"""

from ml_collections import ConfigDict

from must.data import moving_photos
from must.recipes.table import complete
from must.scenes.moving import MIRRORED, REVERSED


def get_config(variant: str = "scenes") -> ConfigDict:
    """The configuration of a variant."""
    variants = {"scenes": scenes, "sanity": sanity, "photos": photos, "folders": folders, "images": images}
    variants["paper"] = paper
    if variant not in variants:
        raise ValueError(f"no variant {variant!r} of jedi: {', '.join(variants)}")
    return complete(variants[variant]())


def scenes() -> ConfigDict:
    """Which object moves, and in which direction: 24 to 63 labeled clips a set, 768 without labels."""
    config = ConfigDict()
    config.recipe, config.title = "jedi", "JEDI on procedural clips"
    config.seeds = (10, 11, 12, 13)
    config.image = {"size": (48, 48), "video": True}
    frames = {"camera": 4, "bodies": 5, "both": 6}
    labeled = {"camera": 24, "bodies": 60, "both": 63}
    config.tasks = {
        name: {"kind": "action", "mirrored": MIRRORED[name], "reversed": REVERSED[name], "dropout": 0.0}
        for name in frames
    }
    clip = {"kind": "moving_scenes", "seed": "{seed}", "size": 48}
    config.sets = {}
    for name in frames:
        of = {**clip, "actions": name, "task": name, "frames": 8}
        config.sets[name] = {
            "train": {**of, "count": labeled[name]},
            "validation": {**of, "split": "validation", "count": 128},
            "tune": {**of, "split": "validation", "start": 10_000, "count": 256},
            "test": {**of, "split": "test", "count": 384},
        }
    config.pool = {
        name: {**clip, "actions": name, "task": name, "frames": 8, "split": "pool", "count": 256, "labels": False}
        for name in frames
    }
    config.overlaps = "ignore"  # clips are drawn from numbers: no two splits share one
    config.experts = {name: {"frames": count} for name, count in frames.items()}
    config.model = {"backbone": {"kind": "temporal_shift", "depth": 10, "width": 12, "stem": "small", "stages": 3}}
    training = {
        "steps": 2000,
        "batch_size": 16,
        "optimizer": {
            "name": "adamw",
            "learning_rate": 4e-3,
            "final_factor": 1.0,
            "warmup": 50,
            "weight_decay": 0.05,
            "clip_norm": 5.0,
        },
        "ema_decay": 0.99,
        "select": "best",
        "evaluate_every": 50,
        "patience": 20,
        "geometry": {"zoom": (1.0, 1.0), "shift": 0.08, "reverse": True},
        "view": {"kind": "photometric", "strength": 0.5, "color": 1.0, "blur": 0.0, "noise": 4.0},
    }
    config.expert = {**training, "optimizer": {**training["optimizer"], "final_factor": 0.05}}
    short = {"steps": 300, "batch_size": 8, "patience": 4}  # arms make as many steps as the joint stage did
    config.joint = {**training, **short, "optimizer": {**training["optimizer"], "learning_rate": 1e-3}}
    config.arms = {"plain": {"distill": 0.0}, "shuffled": {"shuffled": True}, "frozen": {"frozen": True}}
    config.words = {
        "expert": "trained alone on its set",
        "student": "trained jointly, deployed alone",
        "teacher": "reads the features of all experts",
        "plain": "the same steps without distillation",
        "shuffled": "predictions for other clips",
        "frozen": "linear layers on the experts' features",
    }
    config.controls = ("shuffled",)
    config.pairs = (
        ("student", "expert"),
        ("teacher", "expert"),
        ("student", "plain"),
        ("plain", "expert"),
        ("shuffled", "plain"),
        ("shuffled", "student"),
        ("student", "frozen"),
        ("teacher", "plain-teacher"),
    )
    config.expected = (("student", "expert"), ("teacher", "expert"), ("student", "plain"), ("plain", "shuffled"))
    return config


def photos() -> ConfigDict:
    """Real pixels, drawn motion: a camera over street scenes, cut-outs over photos of clothes, both over everyday
    photos; the photos of a set's splits, of the sets and of the pool are different ones."""
    config = scenes()
    config.title = "JEDI on clips cut from photos"
    frames = {"camera": 4, "objects": 5, "both": 6}
    labeled = {"camera": 18, "objects": 90, "both": 28}
    config.tasks = {
        name: {
            "kind": "action",
            "mirrored": moving_photos.MIRRORED[name],
            "reversed": moving_photos.REVERSED[name],
            "dropout": 0.0,
        }
        for name in frames
    }
    clip = {"kind": "moving_photos", "frames": 8, "size": 48, "travel": 0.6, "zoom": 1.6, "seed": "{seed}"}
    places = {"camera": ("camvid", "images/{}"), "objects": ("clothing", "{}"), "both": ("coco_mini", "images/{}")}

    def clips(name, split, count):
        folder, images = places[name]
        of = {"kind": "photos", "root": f"{{root}}/{folder}", "images": images.format(split)}
        if split == "train":  # neighbors in a folder of street scenes look alike
            of = {"kind": "subset", "source": of, "count": count, "seed": "{seed}"}
        return {**clip, "source": of, "clips": count, "actions": name, "task": name, "name": f"{name}-{split}"}

    config.sets = {
        name: {
            "train": clips(name, "train", labeled[name]),
            "validation": clips(name, "val", 128),
            "test": clips(name, "test", 384),
        }
        for name in frames
    }
    pool = {**clip, "source": {"kind": "photos", "root": "{root}/unlabeled_photos", "images": "images"}}
    config.pool = {
        name: {**pool, "actions": name, "task": name, "name": f"{name}-pool", "labels": False} for name in frames
    }
    config.overlaps = "refuse"
    config.experts = {name: {"frames": count} for name, count in frames.items()}
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
                "move_left": "move_right",
                "move_up": "move_down",
                "approach": "recede",
                "spin_cw": "spin_ccw",
            },
        },
    }
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
    config.experts = {"egomotion": {"frames": 8}, "sprites": {"frames": 6}}
    config.expert.update(steps=1000)
    config.joint.update(steps=200)
    return config


def images() -> ConfigDict:
    """Still images: the object in front, classified by its shape, its material, or both; each set has its own light.

    Sets of one's own as folders of classes, each under the name of its task, without `clip` and `frames` as here:

        config.tasks = {"birds": {"kind": "classification"}, ...}
        birds = {"kind": "image_folder", "root": "{root}/birds", "task": "birds"}
        config.sets = {"birds": {"train": {**birds, "split": "train"}, "validation": ..., "test": ...}, ...}
    """
    config = scenes()
    config.title = "JEDI on procedural still images"
    config.image = {"size": (48, 48)}
    shapes, materials = ("sphere", "box", "cylinder", "cone"), ("matte", "patterned", "metallic")
    pairs = {f"{material} {shape}": (shape, material) for shape in shapes for material in materials}
    spaces = {  # (domain, classes, {class of the scenes: class here})
        "shapes": ("indoor", shapes, {name: shape for name, (shape, _) in pairs.items()}),
        "materials": ("outdoor", materials, {name: material for name, (_, material) in pairs.items()}),
        "both": ("night", tuple(pairs), {name: name for name in pairs}),
    }
    labeled = {"shapes": 96, "materials": 96, "both": 240}
    config.tasks = {name: {"kind": "classification"} for name in spaces}
    rooms = {"kind": "scenes", "seed": "{seed}", "size": 48}

    def of(name, **section):
        domain, classes, class_map = spaces[name]
        pictures = {**rooms, "domain": domain, "labels": ["classification"], **section}
        named = {"kind": "aliased", "source": pictures, "names": {name: "classification"}}
        return {"kind": "remapped", "source": named, "task": name, "class_map": class_map, "classes": classes}

    config.sets = {
        name: {
            "train": of(name, count=labeled[name]),
            "validation": of(name, split="validation", count=256),
            "tune": of(name, split="validation", start=10_000, count=512),
            "test": of(name, split="test", count=768),
        }
        for name in spaces
    }
    config.pool = {
        name: {**rooms, "domain": domain, "split": "pool", "count": 512, "labels": []}
        for name, (domain, _, _) in spaces.items()
    }
    config.experts = {name: {} for name in spaces}
    config.model.backbone = {"kind": "resnet", "depth": 10, "width": 12, "stem": "small", "stages": 3}
    for section in (config.expert, config.joint):
        section.geometry = {"zoom": (0.9, 1.1), "shift": 0.08}
        section.view = {"kind": "photometric", "strength": 0.5, "color": 0.3, "blur": 0.0, "noise": 4.0}
    config.expert.steps, config.joint.steps = 600, 300
    config.words.shuffled = "predictions for other pictures"
    return config


def paper() -> ConfigDict:
    """UCF-101, HMDB-51, Kinetics-400, Something-Something v2, each with a temporal-shift ResNet-50 on 8 frames.

    The abstract of Bicsi et al. does not name their four sets, networks and schedules: the values here are ours, close
    to common practice on these sets. Experts start from ImageNet weights, DATA/resnet50.safetensors in torchvision's
    layout (docs/pretrained.md); --config.expert.init.weights="" starts them from random numbers.

    DATA/ucf101 is prepared once by `tfds build ucf101/ucf101_1_256 --file_format=array_record --data_dir=DATA`. The
    other folders, DATA/hmdb51, DATA/kinetics400 and DATA/something_v2, hold classes.txt, splits/{train,validation,
    test}.txt with a line "<video> <class index>" for each, and the videos below videos/; Something-Something as folders
    of pictures below frames/. Test is split 1 of UCF-101 and HMDB-51, the public validation split of the others; our
    validation is held out of training. The test split of Something-Something, whose labels are not public, is the pool,
    splits/unlabeled.txt.
    """
    config = scenes()
    config.title = "JEDI on four public action sets"
    config.seeds = (0,)
    config.image = {"size": (224, 224), "video": True}
    splits = ("train", "validation", "test")

    def files(name, **section):
        return {use: {"root": f"{{root}}/{name}", "split": use, "task": name, **section} for use in splits}

    ucf101 = {"kind": "tfds", "dataset": "ucf101/ucf101_1_256", "data_dir": "{root}"}
    ucf101 |= {"image": "video", "labels": {"ucf101": "label"}}
    videos = {"kind": "video_files", "list": "splits/{split}.txt", "classes": "classes.txt", "clips": "videos"}
    frames = {"kind": "frame_folders", "clips": "frames"}
    config.sets = {
        "ucf101": {
            use: {**ucf101, "split": part}
            for use, part in {"train": "train[:95%]", "validation": "train[95%:]", "test": "test"}.items()
        },
        "hmdb51": files("hmdb51", **videos),
        "kinetics400": files("kinetics400", **videos),
        "something_v2": files("something_v2", **frames),
    }
    config.pool = {"unlabeled": {**frames, "root": "{root}/something_v2", "split": "unlabeled"}}
    # Only Something-Something has classes that know left from right, these six.
    left_right = {
        "Pulling something from left to right": "Pulling something from right to left",
        "Pushing something from left to right": "Pushing something from right to left",
        "Turning the camera left while filming something": "Turning the camera right while filming something",
    }
    config.tasks = {
        name: {"kind": "action", "mirrored": left_right if name == "something_v2" else {}, "dropout": 0.5}
        for name in config.sets
    }

    def declared(count, frames, size, name, classes, **known):
        label = {"form": "classification", "classes": classes, **known}
        return {"count": dict(zip(splits, count, strict=True)), "frames": frames, "size": size, "labels": {name: label}}

    names = [name for pair in left_right.items() for name in pair]
    config.declared = {
        "sets": {
            "ucf101": declared((9_060, 477, 3_783), 186, (256, 256), "ucf101", 101),
            "hmdb51": declared((3_392, 178, 1_530), 90, (240, 320), "hmdb51", 51),
            "kinetics400": declared((228_414, 12_022, 19_796), 300, (256, 340), "kinetics400", 400),
            "something_v2": declared((160_467, 8_446, 24_777), 45, (240, 427), "something_v2", 174, names=names),
        },
        "pool": {"unlabeled": {"count": 27_157, "frames": 45, "size": (240, 427), "labels": {}}},
    }
    # Three of the sets come from the same sites, cut, rescaled and compressed again.
    config.overlaps, config.overlaps_by = "drop", "looks"
    config.experts = {name: {"frames": 8} for name in config.sets}
    config.model.backbone.update(depth=50, width=64, stem="imagenet", stages=4)
    training = {
        "optimizer": {
            "name": "sgd",
            "learning_rate": 0.01,
            "final_factor": 0.0,
            "warmup": 2000,
            "weight_decay": 1e-4,
            "clip_norm": 20.0,
        },
        "ema_decay": 0.9998,
        "evaluate_every": 2000,
        "geometry": {"zoom": (1.0, 1.5), "shift": 0.1},
        "view": {"kind": "none"},
    }
    for section in (config.expert, config.joint):
        with section.ignore_type():
            section.view = {}
            section.update(training)
    config.expert.steps, config.expert.batch_size = 200_000, 64
    config.expert.init = {"weights": "{root}/resnet50.safetensors", "partial": ("heads_",)}
    config.joint.steps, config.joint.batch_size, config.joint.optimizer.learning_rate = 100_000, 16, 1e-3
    return config


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
