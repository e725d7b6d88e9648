"""MulTaS: weak teachers, unseen images, partial annotation; a grid of students described by data.

    python -m must.main --config=configs/multas.py --workdir=runs/multas

Variants, --config=configs/multas.py:VARIANT:

    scenes       procedural scenes, four seeds, 36 students each; the default
    sanity       every stage and every kind of label with a few steps; two minutes on two CPU cores
    camvid       street scenes: masks, and boxes derived from them; needs --config.root=DATA
    pretraining  the network of `scenes` on 4,096 scenes with boxes and masks, from which `pretrained` starts
    pretrained   `camvid` with teachers and students that start from runs/multas-pretraining; needs --config.root=DATA
    coco_mini    128 photos with boxes, 100 of them with masks too; needs --config.root=DATA
    voc          PASCAL VOC 2007 + 2012 and SBD with the paper's sizes, for accelerators; needs --config.root=DATA
"""

from ml_collections import ConfigDict

from must.recipes.table import complete

DETECTION, SEGMENTATION, BOTH = ("detection",), ("segmentation",), ("detection", "segmentation")
CROPS = {"zoom": (0.8, 1.25), "shift": 0.05}
COLORS = {"kind": "photometric", "strength": 0.5, "color": 0.3, "blur": 0.0}


def get_config(variant: str = "scenes") -> ConfigDict:
    """The configuration of a variant."""
    variants = {"scenes": scenes, "sanity": sanity, "camvid": camvid, "coco_mini": coco_mini, "voc": voc}
    variants |= {"pretraining": pretraining, "pretrained": pretrained}
    if variant not in variants:
        raise ValueError(f"no variant {variant!r} of multas: {', '.join(variants)}")
    return complete(variants[variant]())


def scenes() -> ConfigDict:
    """Boxes and masks of 512 scenes; teachers with a quarter or an eighth of them, or with exclusive halves."""
    config = ConfigDict()
    config.recipe, config.title = "multas", "MulTaS on procedural scenes"
    config.seeds = (10, 11, 12, 13)
    config.image = {"size": (64, 64)}
    config.tasks = {
        "detection": {"kind": "detection", "strides": (8, 16), "width": 32, "depth": 2, "max_boxes": 12},
        "segmentation": {"kind": "segmentation", "shuffle": 2, "width": 32, "depth": 1, "stride": 1},
    }
    scene = {"kind": "scenes", "seed": "{seed}", "labels": BOTH}
    config.sets = {
        "scenes": {
            "train": {**scene, "count": 512},
            "validation": {**scene, "split": "validation", "count": 256},
            # Settings were chosen on seed 100 and --config.eval_splits="('tune',)"; the test split stayed unseen.
            "tune": {**scene, "split": "validation", "start": 10_000, "count": 512},
            "test": {**scene, "split": "test", "count": 768},
        }
    }
    config.train_sets = {"detection": "scenes", "segmentation": "scenes"}
    # What the teachers learn from; a student's images and annotations follow from it.
    config.splits = {
        "half": {"share": 0.5},
        "quarter": {"share": 0.25},
        "eighth": {"share": 0.125},
        "exclusive": {"exclusive": True},
    }
    config.model = {
        "backbone": {"kind": "resnet", "depth": 10, "width": 16, "stem": "imagenet", "stages": 3},
        "neck": {"kind": "fpn", "channels": 32, "strides": (4, 8, 16)},
    }
    training = {
        "steps": 600,
        "batch_size": 16,
        "optimizer": {"name": "adamw", "learning_rate": 4e-3, "warmup": 50, "weight_decay": 0.05, "clip_norm": 5.0},
        "ema_decay": 0.99,
        "geometry": {"zoom": (1.0, 1.0), "shift": 0.1},
        "loss_scales": {"segmentation": 4.0},
    }
    larger = {"backbone": {"width": 24}, "neck": {"kind": "pafpn"}}
    # The selected step comes from the validation split, never from the test split.
    config.teacher = {**training, "model": larger, "select": "best", "evaluate_every": 200}
    # Together, boxes learn faster than masks: their loss counts double there.
    config.student = {**training, "batches": "per_task", "loss_scales": {"segmentation": 8.0}}
    config.hints = {"mimic": {"scale": 1.0}, "pdf": {"scale": 1.0}, "defeat": {"scale": 1.0}, "adaptor": {"scale": 1.0}}
    config.policies = {
        "detection": {"from_validation": True, "target_precision": 0.6, "negative_below": 0.2},
        "segmentation": {"positive": 0.5},
    }
    config.grid = grid()
    config.contrasts = CONTRASTS
    config.pictures = (
        "detection-quarter-seen-soft",
        "detection-quarter-unseen-soft",
        "segmentation-quarter-seen-soft",
        "segmentation-quarter-unseen-soft",
        "multi-exclusive-all-own-soft-missing",
    )
    return config


def grid():
    """Every arm of the paper, and the controls."""
    single, weak = (DETECTION, SEGMENTATION), ("quarter", "eighth")
    return (
        # Does a weak teacher help on images that it has not seen, and how much of it is their number?
        {"tasks": single, "split": weak, "images": ("seen", "unseen", "unseen_cut", "all"), "labels": (("soft",),)},
        # The truth where the teachers had it, and everywhere: an oracle.
        {"tasks": single, "split": ("quarter",), "images": ("seen",), "annotation": ("own",)},
        {"tasks": single, "split": ("quarter",), "images": ("all",), "annotation": ("full",)},
        # What is taken from the teacher.
        {
            "tasks": (DETECTION,),
            "split": ("quarter",),
            "images": ("unseen",),
            "labels": (("hard",), ("soft", "mimic"), ("soft", "pdf"), ("soft", "defeat"), ("soft", "adaptor")),
        },
        {
            "tasks": (SEGMENTATION,),
            "split": ("quarter",),
            "images": ("unseen",),
            "labels": (("hard",), ("soft", "pdf")),
        },
        # Answers for other pictures have to lose.
        {
            "tasks": single,
            "split": ("quarter",),
            "images": ("unseen",),
            "labels": (("soft",),),
            "control": ("shuffled",),
        },
        # Every image is annotated for one task: alone, together, together with what the teachers say.
        {"tasks": single, "split": ("exclusive",), "images": ("seen",), "annotation": ("own",)},
        {"tasks": (BOTH,), "split": ("exclusive",), "annotation": ("own", "full")},
        {
            "tasks": (BOTH,),
            "split": ("exclusive",),
            "annotation": ("own",),
            "labels": (("soft",),),
            "where": ("missing", "all"),
        },
        {
            "tasks": (BOTH,),
            "split": ("exclusive",),
            "annotation": ("own",),
            "labels": (("soft",),),
            "where": ("missing",),
            "control": ("shuffled",),
        },
    )


_ALONE = {task: f"{task}-exclusive-seen-own" for task in BOTH}
CONTRASTS = (
    *(
        {
            "name": f"{part}: {images} vs seen",
            "axis": "images",
            "subject": images,
            "reference": "seen",
            "within": {"split": part, "labels": ["soft"], "control": ""},
        }
        for part in ("eighth", "quarter")
        for images in ("unseen", "unseen_cut", "all")
    ),
    {"axis": "labels", "subject": ("hard",), "reference": ("soft",)},
    {"axis": "labels", "subject": ("soft", "mimic"), "reference": ("soft",)},
    {"axis": "labels", "subject": ("soft", "pdf"), "reference": ("soft",)},
    {"axis": "labels", "subject": ("soft", "defeat"), "reference": ("soft",)},
    {"axis": "labels", "subject": ("soft", "adaptor"), "reference": ("soft",)},
    {"axis": "control", "subject": "shuffled", "reference": ""},
    {
        "name": "both, exclusive, distilled, vs one task each",
        "subject": "multi-exclusive-all-own-soft-missing",
        "reference": _ALONE,
    },
    {
        "name": "both, exclusive, not distilled, vs one task each",
        "subject": "multi-exclusive-all-own",
        "reference": _ALONE,
    },
    {"name": "both, all truth, vs one task each", "subject": "multi-exclusive-all-full", "reference": _ALONE},
    {
        "name": "both, exclusive: distilled vs not",
        "subject": "multi-exclusive-all-own-soft-missing",
        "reference": "multi-exclusive-all-own",
    },
)


def sanity() -> ConfigDict:
    """One seed, networks as small as they can be, every kind of label once."""
    config = scenes()
    config.seeds = (0,)
    config.sets.scenes.train.count = 64
    config.sets.scenes.validation.count = config.sets.scenes.test.count = 32
    config.model.backbone.update(stages=2, width=8)
    config.model.neck.update(strides=(4, 8), channels=16)
    config.tasks.detection.update(strides=(8,), depth=1, width=16)
    config.tasks.segmentation.update(width=16)
    config.teacher.model.backbone.width = 12
    for section in (config.teacher, config.student):
        section.update(steps=10, evaluate_every=0, batch_size=8)
    every = (("hard",), ("soft", "mimic", "pdf", "defeat", "adaptor"))
    config.grid = (
        {"tasks": (DETECTION,), "split": ("quarter",), "images": ("seen", "unseen"), "labels": every},
        {
            "tasks": (BOTH,),
            "split": ("exclusive",),
            "annotation": ("own",),
            "labels": (("soft",),),
            "where": ("missing",),
        },
    )
    config.contrasts, config.pictures = ({"axis": "images", "subject": "unseen", "reference": "seen"},), ()
    return config


def camvid() -> ConfigDict:
    """Street scenes with masks of 11 classes, and boxes derived from them; teachers with a quarter or exclusive
    halves."""
    config = real("camvid", "MulTaS on street scenes (camvid)")
    boxes = {"kind": "coco", "root": "{root}/camvid", "images": "images/{split}", "name": "camvid-{split}"}
    masks = {"kind": "mask_png", "root": "{root}/camvid", "images": "images/{split}", "masks": "masks/{split}"}
    masks |= {"ids": "splits/{split}.txt", "classes": "classes.json"}
    config.sets = {
        "camvid": _each(
            lambda use: {
                "kind": "join",
                "sources": [
                    {**masks, "split": use},
                    {**boxes, "annotations": "annotations/derived_boxes_{split}.json", "split": use},
                ],
                "name": f"camvid-{use}",
            }
        )
    }
    config.image.size = (96, 128)
    return config


def pretraining() -> ConfigDict:
    """One network of both tasks on 4,096 scenes with all their boxes and masks."""
    config = scenes()
    config.title, config.seeds = "Boxes and masks of scenes", (0,)
    config.sets.scenes.train.count = 4096
    config.teacher.steps = 1  # nobody learns from them
    config.student.update(steps=2400, evaluate_every=0)
    config.splits = {"exclusive": {"exclusive": True}}
    config.grid = ({"tasks": (BOTH,), "split": ("exclusive",), "annotation": ("full",)},)
    config.contrasts, config.pictures = (), ("multi-exclusive-all-full",)
    return config


def pretrained() -> ConfigDict:
    """Street scenes for networks that can see already: soft labels of a quarter and an eighth, exclusive halves.

    Teachers are no larger than students here, so that one pretrained network serves both.
    """
    config = camvid()
    config.title = "MulTaS on street scenes (camvid), pretrained on scenes"
    init = {"weights": "runs/multas-pretraining/grid/multi-exclusive-all-full", "partial": ("heads_",)}
    for section in (config.teacher, config.student):
        section.init = init
    config.teacher.model = {}
    config.splits = {"quarter": {"share": 0.25}, "eighth": {"share": 0.125}, "exclusive": {"exclusive": True}}
    single = (DETECTION, SEGMENTATION)
    shuffled = {"labels": (("soft",),), "control": ("shuffled",)}
    apart = {"split": ("exclusive",), "annotation": ("own",)}
    config.grid = (
        {
            "tasks": single,
            "split": ("quarter", "eighth"),
            "images": ("seen", "unseen", "unseen_cut", "all"),
            "labels": (("soft",),),
        },
        {"tasks": single, "split": ("quarter",), "images": ("unseen",), **shuffled},
        {"tasks": single, "images": ("seen",), **apart},
        {"tasks": (BOTH,), **apart},
        {"tasks": (BOTH,), "where": ("missing",), "labels": (("soft",),), **apart},
        {"tasks": (BOTH,), "where": ("missing",), **shuffled, **apart},
    )
    ours = ("eighth: ", "quarter: ", "both, exclusive")
    config.contrasts = tuple(
        c for c in CONTRASTS if c.get("name", "").startswith(ours) or c.get("subject") == "shuffled"
    )
    return config


def coco_mini() -> ConfigDict:
    """128 photos with boxes in four groups, 100 of them with masks of 27 classes: the other 28 have boxes only."""
    config = real("coco_mini", "MulTaS on photos (coco_mini)")
    boxes = {"kind": "coco", "root": "{root}/coco_mini", "images": "images/{split}"}
    masks = {
        "kind": "mask_png",
        "root": "{root}/coco_mini",
        "images": "images/{split}",
        "masks": "semantic_super/{split}",
    }
    masks |= {"ids": "splits/{split}_with_masks.txt", "classes": {str(i): name for i, name in enumerate(COCO_SUPER)}}
    config.sets = {
        "coco_mini": _each(
            lambda use: {
                "kind": "remapped",
                "task": "detection",
                "class_map": "configs/coco_groups.txt",
                "classes": ["person", "vehicle", "animal", "object"],
                "source": {
                    "kind": "join",
                    "sources": [
                        {**boxes, "annotations": "annotations/detection_{split}.json", "split": use},
                        {**masks, "split": use},
                    ],
                    "name": f"coco_mini-{use}",
                },
            }
        )
    }
    config.image.size = (128, 128)
    return config


COCO_SUPER = (
    "person",
    "vehicle",
    "outdoor",
    "animal",
    "accessory",
    "sports",
    "kitchen",
    "food",
    "furniture",
    "electronic",
    "appliance",
    "indoor",
    "textile",
    "building",
    "raw-material",
    "furniture-stuff",
    "floor",
    "plant",
    "food-stuff",
    "ground",
    "structural",
    "water",
    "wall",
    "window",
    "ceiling",
    "sky",
    "solid",
)


def _each(section):
    return {use: section(split) for use, split in {"train": "train", "validation": "val", "test": "test"}.items()}


def real(name: str, title: str) -> ConfigDict:
    """What the two sets of real pictures have in common: three seeds, the arms that the small sets can carry."""
    config = scenes()
    config.title = title
    config.seeds = (0, 1, 2)
    config.train_sets = {"detection": name, "segmentation": name}
    config.tasks.detection.max_boxes = 40
    config.tasks.segmentation.update(shuffle=1, stride=4)
    for section in (config.teacher, config.student):
        section.update(steps=250, batch_size=8)
        section.geometry, section.view = CROPS, COLORS
    config.splits = {"quarter": {"share": 0.25}, "exclusive": {"exclusive": True}}
    single = (DETECTION, SEGMENTATION)
    config.grid = (
        {
            "tasks": single,
            "split": ("quarter",),
            "images": ("seen", "unseen", "all"),
            "labels": (("hard",), ("soft",), ("soft", "pdf")),
        },
        {"tasks": single, "split": ("exclusive",), "images": ("seen",), "annotation": ("own",)},
        {"tasks": (BOTH,), "split": ("exclusive",), "annotation": ("own",)},
        {
            "tasks": (BOTH,),
            "split": ("exclusive",),
            "annotation": ("own",),
            "labels": (("soft",),),
            "where": ("missing",),
        },
    )
    kept = [c for c in CONTRASTS if c.get("name", "").startswith("both, exclusive")]
    images = [
        {"axis": "images", "subject": "unseen", "reference": "seen"},
        {"axis": "images", "subject": "all", "reference": "seen"},
        {"axis": "labels", "subject": ("hard",), "reference": ("soft",)},
        {"axis": "labels", "subject": ("soft", "pdf"), "reference": ("soft",)},
    ]
    config.contrasts = tuple(images + kept)
    return config


VOC = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def voc() -> ConfigDict:
    """PASCAL VOC 2007 + 2012 with the masks of SBD, for accelerators.

    Of the authors' code (github.com/lhoangan/multas, read, not copied): ResNet-50 with PAFPN teaches ResNet-18 with FPN
    at 320 px, four levels of 256 channels; SGD with momentum .9, learning rate .01, weight decay 5e-4, 500 steps of
    warm-up from a tenth, a cosine to a tenth; batches of 5 for teachers, 10 for students, 7 per task at a rate of .001
    for students of both tasks, for 70, 70 and 100 epochs; sides of 256, 320 and 384 px in the first 80 % of the steps;
    the average of the weights with decay .9998; features weigh 5 in `mimic`. Ours: the anchor-free detector with its
    losses, in place of anchors, BalancedL1 and mutual guidance; one view of an image per step for teachers, where the
    code makes two; views and crops; no early end; what selects and measures.

    DATA/VOC2007 and DATA/VOC2012 hold the devkit's folders, DATA/SBD has img and cls of benchmark_RELEASE/dataset.
    Splits have 8,274, 4,136 and 2,066 images, as many as the paper's, of which those with masks teach masks; what is
    left is unseen: splits of our own, exact complements, where the paper's lists are complements only nearly. The 1,449
    images with VOC 2012's validation masks select steps and train nothing; boxes and masks of VOC 2007's test images
    are measured once.
    """
    config = scenes()
    config.title = "MulTaS on PASCAL VOC"
    config.seeds = (0,)
    config.image.size = (320, 320)
    config.tasks = {
        "detection": {"kind": "detection", "strides": (8, 16, 32, 64)},
        "segmentation": {"kind": "segmentation"},
    }
    old = {"kind": "voc", "root": "{root}/VOC2007", "tasks": BOTH, "classes": VOC, "name": "voc07"}
    new = {"kind": "voc", "root": "{root}/VOC2012", "tasks": BOTH, "classes": VOC, "name": "voc12"}
    boxes = {**new, "tasks": DETECTION, "split": "trainval"}
    sbd = {
        "kind": "mask_png",
        "root": "{root}/SBD",
        "images": "img",
        "masks": "cls",
        "mask_suffix": ".mat",
        "partial": True,
    }
    sbd["classes"] = {str(i): name for i, name in enumerate(("background", *VOC))}
    validation = {**new, "split": "val", "ids": "ImageSets/Segmentation/{split}.txt"}
    train = {
        "kind": "without",
        "source": {"kind": "join", "sources": [boxes, sbd], "name": "voc12"},
        "others": [validation],
    }
    config.sets = {
        "voc": {
            "train": {"kind": "concat", "sources": [{**old, "split": "trainval"}, train]},
            "validation": validation,
            "test": {**old, "split": "test"},
        }
    }
    config.train_sets = {"detection": "voc", "segmentation": "voc"}
    forms = {"detection": {"form": "detection", "classes": 20}, "segmentation": {"form": "segmentation", "classes": 21}}
    counts = {"train": 15_102, "validation": 1_449, "test": 4_952}
    config.declared = {"sets": {"voc": {"count": counts, "size": (375, 500), "labels": forms}}}
    config.splits = {
        "half": {"share": 8274},
        "quarter": {"share": 4136},
        "eighth": {"share": 2066},
        "exclusive": {"exclusive": True},
    }
    config.model = {
        "backbone": {"kind": "resnet", "depth": 18, "width": 64, "stem": "imagenet", "stages": 4},
        "neck": {"kind": "fpn", "channels": 256, "strides": (8, 16, 32, 64)},
    }
    sgd = {
        "name": "sgd",
        "learning_rate": 0.01,
        "warmup": 500,
        "warmup_factor": 0.1,
        "weight_decay": 5e-4,
        "clip_norm": 0.0,
        "final_factor": 0.1,
    }
    for section in (config.teacher, config.student):
        with section.ignore_type():
            section.update(epochs=70, batch_size=10, ema_decay=0.9998, evaluate_every=2000, select="best")
            section.optimizer = sgd
            section.geometry, section.view = {"zoom": (0.5, 2.0), "shift": 0.0}, COLORS
            section.frames = ((256, 256), (320, 320), (384, 384))  # multi-scale for the first 80%
            section.loss_scales, section.loss_scale_rule = {}, "fixed"
    config.teacher.batch_size = 5
    config.teacher.model = {"backbone": {"depth": 50}, "neck": {"kind": "pafpn"}}
    config.together = {"epochs": 100, "batch_size": 7, "optimizer": {"learning_rate": 1e-3}}
    config.hints.mimic.scale = 5.0
    return config
