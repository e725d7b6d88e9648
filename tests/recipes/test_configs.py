"""Every configuration resolves; the one on users' folders finds every set of real pictures."""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs.multas import VOC
from must.core.types import UserError
from must.data.combine import labels_of
from must.experiment import build
from must.experiment import joint as stage
from must.experiment.joint import Seed
from must.experiment.loss_scales import loss_scales
from must.experiment.plan import with_declared
from must.experiment.run import members, same_configuration
from must.experiment.settings import Optimizer
from must.experiment.students import _pseudo
from must.recipes.jedi import RECIPE as JEDI
from must.recipes.multas import RECIPE as MULTAS
from must.recipes.table import dry_run
from must.recipes.weighted_distillation import RECIPE as WEIGHTED
from must.recipes.weighted_distillation import comparison
from must.scenes.still import CLASSES, Scenes
from tests.support import folder_sets
from tests.support.configs import check, config_of, load, settings_of

QUICKSTART = "configs/quickstart.py"
VARIANTS = {
    "quickstart": (
        "",
        "sanity",
        "evidence",
        "pool",
        "weighted",
        "balancing",
        "scales",
        "policies",
        "strengths",
        "options",
    ),
    "must": ("folders", "defaults", "pretraining", "pretrained", "paper"),
    "multas": ("scenes", "sanity", "camvid", "pretraining", "pretrained", "coco_mini", "voc"),
    "weighted_distillation": ("scenes", "sanity", "folders", "cifar10", "cifar100"),
    "jedi": ("scenes", "sanity", "photos", "folders", "images", "paper"),
    "label": ("", "later", "photos"),
    "transfer": ("upstream", "scenes", "real", "paper", "sanity", "checkpoint", "improved", "kept", "checkpoints"),
}


@pytest.mark.parametrize(("name", "variant"), [(name, one) for name, many in VARIANTS.items() for one in many])
def test_every_variant_is_parsed_with_every_key(name, variant):
    config = config_of(f"configs/{name}.py", variant, root="somewhere")
    if "upstream" in config:
        config["upstream"] = "elsewhere"
    settings = settings_of(config)
    assert settings.title and settings.recipe == config["recipe"]


def test_every_key_can_be_set_from_the_command_line():
    from tests.support.configs import load

    config = load(QUICKSTART).get_config("weighted")
    for path in (
        *("student.weights.kind", "student.slam.floor", "student.mean_teacher.decay", "student.small_loss.drop"),
        *("student.policies.detection.positive", "student.model.backbone.width", "student.tasks.depth.width"),
        *("student.loss_scales.depth", "student.edited.detection", "student.balance.window", "student.view.magnitude"),
        *("arms.weighted.weights.every", "arms.weighted.optimizer.learning_rate", "tasks.depth.max_depth"),
        *("teacher.patience", "teacher.frames", "sets.depth.train.domain", "label.max_rejects", "gallery.per_page"),
    ):
        section = config
        for key in path.split("."):
            assert key in section, path
            section = section[key]


def leaves(section, path="config"):
    """(path, type) of every value that a flag may set."""
    for key in section:
        if isinstance(section[key], ConfigDict):
            yield from leaves(section[key], f"{path}.{key}")
        else:
            yield f"{path}.{key}", section.get_type(key)


@pytest.mark.parametrize("file", ["quickstart", "must", "multas", "weighted_distillation", "jedi", "transfer", "label"])
def test_every_value_has_a_type_by_which_a_flag_sets_it(file):
    from tests.support.configs import load

    module = load(f"configs/{file}.py")
    for variant in VARIANTS.get(file, ("",)):
        untyped = [path for path, kind in leaves(module.get_config(variant)) if kind is type(None)]
        assert not untyped, variant


def sources(settings):
    return build.annotated_sets(settings), build.all_images(settings)


@pytest.mark.parametrize("variant", ["", "sanity", "evidence", "pool", "weighted", "balancing"])
def test_quickstart_keeps_every_id_in_one_place(variant):
    settings = settings_of(config_of(QUICKSTART, variant))
    annotated, everything = sources(settings)
    train, ids = [set(source.ids) for source in annotated], list(everything.ids)
    splits = [source for split in ("validation", "test") for source in build.splits(settings, split).values()]
    held_out = {id for source in splits for id in source.ids}
    assert len(train) == 5 and len(set().union(*train)) == sum(map(len, train))  # disjoint images per task
    assert len(ids) == len(set(ids)) and not held_out & set(ids)
    parts = [set(build.split(settings, "depth", split).ids) for split in ("validation", "tune", "test")]
    assert len(set().union(*parts)) == sum(map(len, parts)) > 500
    shifted, test = (build.split(settings, "depth", split) for split in ("shifted", "test"))
    assert not set(shifted.ids) & set(ids)
    assert not any((shifted[i].image == test[i].image).all() for i in range(4))


def test_seeds_have_scenes_of_their_own():
    config = config_of(QUICKSTART, "evidence")
    a, b = (build.split(settings_of(config, number), "depth", "test") for number in (0, 1))
    assert not set(a.ids) & set(b.ids) and (a[0].image != b[0].image).any()


def test_folders_find_the_real_sets(data_pack):
    settings = settings_of(config_of("configs/must.py", "folders", root=str(data_pack)))
    counts = {"classification": 900, "detection": 205, "segmentation": 367, "depth": 64}
    assert {name: len(build.split(settings, name, "train")) for name in settings.tasks} == counts
    assert len(build.all_images(settings)) == 900 + 205 + 367 + 64 + 900 + 64 + 400
    encoder = build.encoder(settings.image, build.tasks_of(settings))
    for name in settings.tasks:
        row = encoder(build.split(settings, name, "test")[0], 0, None)
        assert row.weights[name] == 1 and row.inputs["image"].shape == (*settings.image.size, 3)


def test_the_published_setting_is_planned_from_declared_features():
    config, reasons = with_declared(config_of("configs/must.py", "paper", root="nowhere"))
    assert set(reasons) == {"imagenet", "objects365", "coco", "nyu"}
    assert "not prepared" in reasons["nyu"]
    settings = settings_of(config)
    tasks = build.tasks_of(settings)
    counts = {"classification": 1000, "detection": 365, "segmentation": 133}
    assert {name: len(tasks[name].classes) for name in counts} == counts
    encoder = build.encoder(settings.image, tasks)
    for name in tasks:
        row = encoder(build.split(settings, name, "train")[0], 0, None)
        assert row.weights[name] == 1 and row.inputs["image"].shape == (640, 640, 3)
    everything = build.all_images(settings)  # each image once, and none that is validated
    assert len(everything) == len(set(everything.ids)) == 1_268_355 + 602_520 + 117_104 + 47_108
    rule = {name: loss_scales(settings, settings.student, tasks)[name] for name in counts}
    assert rule == {"classification": 5.0, "detection": 16.0, "segmentation": 16.0}


def test_transfer_finds_the_real_sets(data_pack):
    settings = settings_of(config_of("configs/transfer.py", "real", root=str(data_pack), upstream="nowhere"))
    counts = {"cifar10": 1000, "clothing": 900, "cells": 205, "streets": 367, "depth": 64, "normals": 64}
    assert {name: len(build.split(settings, name, "train")) for name in settings.tasks} == counts
    encoder = build.encoder(settings.image, build.tasks_of(settings))
    for name in settings.tasks:
        assert encoder(build.split(settings, name, "test")[0], 0, None).weights[name] == 1
    assert settings.starts["must"].init.weights == "nowhere/seed-0/student"


def published_layouts(root):
    """Three pictures a split of VOC, ADE20K and DIODE as their authors distribute them."""
    box = "<object><name>cat</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>"
    xml = f"<annotation><size><width>16</width><height>12</height></size>{box}</annotation>"
    for year, lists in (
        ("2007", "Main/trainval Main/test"),
        ("2012", "Main/trainval Segmentation/train Segmentation/val"),
    ):
        top = root / f"VOC{year}"
        for number, name in enumerate(lists.split()):
            ids = [f"{year}_{number}{i}" for i in range(3)]
            (top / "ImageSets" / name).parent.mkdir(parents=True, exist_ok=True)
            (top / "ImageSets" / f"{name}.txt").write_text("\n".join(ids))
            for at, id in enumerate(ids):
                folder_sets.picture(top / "JPEGImages" / f"{id}.jpg", seed=10 * number + at)
                (top / "Annotations").mkdir(exist_ok=True)
                (top / "Annotations" / f"{id}.xml").write_text(xml)
                (top / "SegmentationClass").mkdir(exist_ok=True)
                mask = Image.fromarray(np.full((12, 16), 8, np.uint8), "P")
                mask.putpalette([value for color in range(256) for value in (color, 0, 0)])
                mask.save(top / "SegmentationClass" / f"{id}.png")
    for split in ("training", "validation"):
        for i in range(3):
            name = f"ADEChallengeData2016/{{}}/{split}/ADE_{split}_{i}.{{}}"
            folder_sets.picture(root / name.format("images", "jpg"), seed=i)
            folder_sets.png(root / name.format("annotations", "png"), np.full((12, 16), 1 + i % 2, np.uint8))
    (root / "ADEChallengeData2016" / "classes.json").write_text('{"1": "wall", "2": "building"}')
    for split in ("train", "val"):
        for i in range(3):
            name = f"diode/{split}/indoors/scene_00019/scan_00183/{split}_{i}"
            folder_sets.picture(root / f"{name}.png", seed=i)
            np.save(root / f"{name}_depth.npy", np.ones((12, 16, 1), np.float32))
            np.save(root / f"{name}_normal.npy", np.broadcast_to(np.float32([0, 0, -1]), (12, 16, 3)))


def test_published_downstream_sets_are_read_as_distributed(tmp_path):
    published_layouts(tmp_path)
    config, declared = with_declared(config_of("configs/transfer.py", "paper", root=str(tmp_path), upstream="student"))
    assert set(declared) == {"cifar100", "depth"}  # TFDS prepares these
    settings = settings_of(config)
    for task, count in {"pascal_boxes": 6, "pascal_masks": 3, "ade20k": 3, "normals": 3}.items():
        splits = {name: build.split(settings, task, name) for name in ("train", "validation", "test")}
        assert [len(source) for source in splits.values()] == [count - 1, 1, 3], task
        assert not set(splits["train"].ids) & set(splits["validation"].ids)
        for source in splits.values():
            label = source[0].labels[task]
            expected = {
                "pascal_boxes": lambda label: label["classes"].tolist() == [VOC.index("cat")],
                "pascal_masks": lambda label: (label["ids"] == 1 + VOC.index("cat")).all(),
                "ade20k": lambda label: set(np.unique(label["ids"])) <= {0, 1},
                "normals": lambda label: (label["normals"] == [0, 0, -127]).all(),
            }
            assert expected[task](label), (task, label)


def test_published_downstream_tasks_are_planned():
    config, reasons = with_declared(config_of("configs/transfer.py", "paper", root="nowhere", upstream="student"))
    assert set(reasons) == {"cifar100", "pascal_boxes", "pascal_masks", "ade20k", "depth", "normals"}
    settings = settings_of(config)
    assert {name: len(build.split(settings, name, "test")) for name in ("depth", "normals")} == {
        "depth": 654,
        "normals": 771,
    }
    assert settings.starts["single"].tasks["ade20k"] == "student/teachers/segmentation"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"arms": {"few": {"pool_image": 3}}}, "arms.few.pool_image: unknown key; did you mean pool_images"),
        ({"arms": {"teacher": {}}}, "arms.teacher: the name of an arm"),
        ({"arms": {"same": {"steps": 900}}}, "arms.same: trains exactly as student does"),
        ({"arms": {"a": {"steps": 7}, "b": {"steps": 7}}}, "arms.b: trains exactly as a does"),
        ({"arms": {"a/b": {}}}, "arms.a/b: the name of an arm"),
        ({"arms": {"many": {"pool_images": 1025}}}, "the pool has 1024 images"),
        ({"baselines": ["supervized"]}, r"baselines\[0\]='supervized': did you mean 'supervised'"),
        ({"arms": {"mixed": {"cutmix": {"prob": 1}}}}, "mixed.cutmix.prob: unknown key"),
        ({"arms": {"mixed": {"cutmix": {"probability": 1}, "weights": {"kind": "oracle"}}}}, "mixed.cutmix: weights"),
        ({"arms": {"mixed": {"cutout": {"largest": 2}}}}, "mixed.cutout.largest=2"),
        ({"arms": {"strong": {"view": {"kind": "auto"}}}}, "strong.view.kind='auto'"),
        ({"arms": {"own": {"mean_teacher": {"kind": "firm"}}}}, "own.mean_teacher.kind='firm'"),
        ({"arms": {"own": {"mean_teacher": {"decoy": 0.9}}}}, "own.mean_teacher.decoy: unknown key"),
        ({"arms": {"own": {"mean_teacher": {"kind": "soft", "tasks": ["flow"]}}}}, "mean_teacher.tasks: no task"),
        ({"arms": {"less": {"small_loss": {"drop": 10}}}}, "less.small_loss.drop=10"),
        ({"teacher__small_loss": {"drop": 0.1}}, "teacher.small_loss: unknown key"),
        ({"policies__depth__sets": ("photos",)}, "config.policies.depth.sets: no images of 'photos'; there are "),
        (
            {"policies__detection": {"from_validation": False}, "policies__depth": {"familiar": 0.9}},
            "policies.depth.familiar: needs from_validation=True in some policy",
        ),
        ({"student__steps": 1200}, "supervised: sees 14,400 images, the student 19,200"),
        ({"train_sets__depth": "deep"}, "train_sets.depth='deep': no such set"),
    ],
)
def test_runs_that_cannot_work(changes, message):
    with pytest.raises(UserError, match=message):
        check(config_of(QUICKSTART, **changes))


def test_cut_pictures_need_labels_that_can_be_cut():
    config = config_of(QUICKSTART)
    sections = {split: {**section, "labels": []} for split, section in config["sets"]["depth"].items()}
    toys = {
        "tasks": {"edges": {"kind": "tests.support.toy_tasks:EdgeMap"}},
        "sets": {"edges": sections},
        "train_sets": {"edges": "edges"},
        "policies": {"edges": {}},
        "arms": {"cut": {"cutout": {"probability": 0.5}}},
        "supervised__loss_scales": {},
    }
    with pytest.raises(UserError, match="arms.cut: cutout: does not work for edges"):
        check(config_of(QUICKSTART, **toys))


def test_a_student_knows_which_of_its_labels_are_pseudo_labels():
    settings = settings_of(config_of(QUICKSTART, "sanity"))
    ids = list(build.all_images(settings).ids)
    extras = _pseudo(settings, settings.student, ids)
    for name in settings.tasks:
        true = set(build.split(settings, name, "train").ids)
        flags = zip(ids, extras[name]["pseudo"], strict=True)
        assert [id for id, flag in flags if not flag] == [id for id in ids if id in true]


def test_an_arm_keeps_what_it_does_not_change():
    arms = {"slow": {"optimizer": {"learning_rate": 1e-3}, "steps": 7}}
    settings = settings_of(config_of(QUICKSTART, arms=arms))
    arm, student = build.student(settings, "slow"), settings.student
    assert vars(arm.optimizer) == vars(student.optimizer) | {"learning_rate": 1e-3}
    assert arm.steps == 7 and arm.loss_scales == student.loss_scales


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ({}, (0.0, 0.0, True, 0.6, 0.2)),  # as usual for boxes
        ({"target_precision": 0.8}, (0.0, 0.0, True, 0.8, 0.2)),
        ({"familiar": 0.5}, (0.0, 0.0, True, 0.6, 0.2)),
        ({"positive": 0.5}, (0.5, 0.0, False, 0.9, 0.2)),  # whoever sets thresholds gets those
        ({"from_validation": False}, (0.0, 0.0, False, 0.9, 0.2)),
        ({"from_validation": True, "negative_below": 0.1}, (0.0, 0.0, True, 0.9, 0.1)),
    ],
)
@pytest.mark.parametrize("by_arm", [False, True])
def test_labels_count_as_usual_for_their_kind_unless_the_settings_decide(stated, found, by_arm):
    """Every box from the lowest stored score on would be taken as true otherwise."""
    config = config_of(QUICKSTART, arms={"own": {"policies": {"detection": stated}}})
    config["policies"] = {} if by_arm else {"detection": stated}
    settings = settings_of(config)
    policies = build.policies(settings, build.student(settings, "own") if by_arm else None)
    names = ("positive", "negative", "from_validation", "target_precision", "negative_below")
    assert tuple(getattr(policies["detection"], name) for name in names) == found
    assert policies["segmentation"].positive == 0.5 and not policies["segmentation"].from_validation
    assert all(policies[name].positive == 0 for name in ("classification", "depth", "normals"))


PUBLISHED_SGD = {
    "must:paper": 0.0,
    "transfer:paper": 0.0,
    "weighted_distillation:cifar100": 0.0,
    "multas:voc": 0.0,
    "jedi:paper": 20.0,
}


@pytest.mark.parametrize("name, clip", PUBLISHED_SGD.items())
def test_published_settings_of_sgd_clip_as_published_and_not_by_default(name, clip):
    recipe, variant = name.split(":")
    found = []

    def visit(section):
        if section.get("name") == "sgd" and "momentum" in section:
            found.append(Optimizer(**section).arguments(steps=400)["clip_norm"])
        for value in section.values():
            if isinstance(value, dict):
                visit(value)

    visit(load(f"configs/{recipe}.py").get_config(variant).to_dict())
    assert found and set(found) == {clip}


def test_an_optimizer_completes_what_is_left_open_by_its_kind_and_the_length_of_the_run():
    def found(**stated):
        arguments = Optimizer(**stated).arguments(steps=400)
        return tuple(arguments[name] for name in ("steps", "warmup", "weight_decay", "clip_norm"))

    assert found() == (400, 20, 0.05, 5.0) == found(name="lamb")
    assert found(name="sgd") == (400, 20, 0.0, 5.0)  # truth that counts 16 pseudo labels has gradients as large
    assert found(warmup=0, weight_decay=0.0, clip_norm=0.0) == (400, 0, 0.0, 0.0)
    assert found(name="sgd", warmup=7, weight_decay=5e-4, clip_norm=20.0) == (400, 7, 5e-4, 20.0)


FITTED = [{"target_precision": 0.8}, {"confidence": 0.5}, {"min_count": 9}, {"max_count": 9}, {"calibration": "none"}]


@pytest.mark.parametrize("name", ["classification", "detection", "segmentation", "depth"])
@pytest.mark.parametrize("stated", FITTED)
def test_what_only_thresholds_from_validation_read_asks_for_them(name, stated):
    policy = build.policies(settings_of(config_of(QUICKSTART, policies={name: stated})))[name]
    assert policy.from_validation and stated.items() <= vars(policy).items()
    assert None not in vars(policy).values()


def test_thresholds_are_given_or_chosen():
    with pytest.raises(UserError, match=r"depth.*positive: negative_below is for choosing it on the validation split"):
        settings_of(config_of(QUICKSTART, policies={"depth": {"positive": 0.5, "negative_below": 0.1}}))


def test_a_missing_root_is_named():
    with pytest.raises(UserError, match="nowhere"):
        check(config_of("configs/must.py", "folders", root="nowhere"))
    with pytest.raises(UserError, match="--config.root=VALUE is required"):
        settings_of(config_of("configs/must.py", "folders"))


def test_weighted_distillation_keeps_its_sets_apart(data_pack):
    config = config_of("configs/weighted_distillation.py", "folders", root=str(data_pack), seeds=[10])
    check(config)
    train = []
    for number, count in enumerate((225, 450, 900)):
        settings = settings_of(config, number)
        train.append(build.split(settings, "classification", "train"))
        assert len(train[-1]) == count
        (pool,) = build.pool(settings)
        oracle = build.oracle_truth(settings)["classification"]
        assert list(oracle.ids) == list(pool.ids) and len(pool) == 900 and not pool.labels(0)
        assert oracle.classes == train[-1].classes
    assert set(train[0].ids) < set(train[2].ids)


def test_a_workdir_of_another_version_says_so():
    """MulTaS once had keys of a student that it never read."""
    old = config_of("configs/multas.py", "sanity")
    old["student"]["weights_file"] = ""
    with pytest.raises(
        UserError, match=r"runs/old/config\.json: is from another version of must.*student.weights_file"
    ):
        same_configuration(MULTAS, "runs/old", old, config_of("configs/multas.py", "sanity"))


def test_weights_are_compared_with_the_same_student_without_them():
    config = config_of("configs/weighted_distillation.py", "sanity", arms={})
    hard = {"tasks": {"classification": {"hard": True}}}
    ratio = {"weights": {"kind": "ratio_of_means"}}
    config["arms"] = {
        "hard": hard,
        "weighted": ratio,
        "weighted_hard": {**hard, **ratio},
        "slam": {"slam": {"floor": 0.3}},
    }
    compared = comparison(members(WEIGHTED, config)).contrasts
    references: dict[str, set[str]] = {}
    for contrast in compared:
        for subject, reference in contrast.pairs:
            references.setdefault(subject.partition("@")[0], set()).add(reference.partition("@")[0])
    assert references.pop("weighted_hard") == {"student", "hard"}
    assert set(references) == {"teacher", "hard", "weighted", "slam"}
    assert set(map(tuple, references.values())) == {("student",)}


@pytest.mark.parametrize(
    "validation, message",
    [
        ("copy", "validation set copied are learned from too, such as copied/.+ the same file as labeled/"),
        ("one", "has one class only, 'dress'"),
    ],
)
def test_a_validation_set_that_cannot_tell_anything(data_pack, tmp_path, validation, message):
    """W5: a copy of training pictures under other names; a single class."""
    clothing = data_pack / "clothing"
    train = {
        "kind": "image_folder",
        "root": str(clothing),
        "classes": "classes.txt",
        "split": "train",
        "name": "labeled",
    }
    for name in ("dress", "hat") if validation == "copy" else ("dress",):
        (tmp_path / "val" / name).mkdir(parents=True)
        folder = clothing / ("train" if validation == "copy" else "val") / name
        for i, path in enumerate(sorted(folder.iterdir())[:3]):
            shutil.copy(path, tmp_path / "val" / name / f"other{i}.jpg")
    other = {"root": str(tmp_path), "split": "val", "name": "copied", "classes": str(clothing / "classes.txt")}
    changes = {
        "arms": {"weighted": {"weights": {"kind": "ratio_of_means"}}},
        "sets__clothing__train": train,
        "sets__clothing__validation": {**train, **other},
    }
    with pytest.raises(UserError, match=message):
        check(config_of("configs/weighted_distillation.py", "folders", root=str(data_pack), **changes))


@pytest.mark.parametrize(("name", "labels", "classes"), [("cifar10", 12_500, 10), ("cifar100", 20_000, 100)])
def test_cifar_is_planned_from_its_declared_features(name, labels, classes):
    config, reasons = with_declared(config_of("configs/weighted_distillation.py", name, root="nowhere"))
    assert set(reasons) == {name, "pool.pool", "oracle_truth.classification"}
    settings = settings_of(config, -1)
    assert len(build.split(settings, "classification", "train")) == labels
    assert len(build.tasks_of(settings)["classification"].classes) == classes


@pytest.mark.parametrize("variant", ["scenes", "images", "sanity"])
def test_joint_experts_have_their_own_classes_and_share_no_example(variant):
    config = config_of("configs/jedi.py", variant)
    check(config)
    one = Seed(settings_of(config), 0)
    assert len({task.classes for task in one.tasks.values()}) == len(one.names) == 3
    assert all(set(labels_of(source, 0)) >= {name} for name, source in one.splits("train").items())
    assert not any(labels_of(source, i) for source in one.pool() for i in (0, len(source) - 1))
    uses = ("train", "validation", "tune", "test")
    splits = [set(source.ids) for split in uses for source in one.splits(split).values()]
    splits += [set(source.ids) for source in one.pool()]
    assert len(set().union(*splits)) == sum(map(len, splits))


def test_still_images_are_classified_by_shape_material_or_both():
    settings = settings_of(config_of("configs/jedi.py", "images"))
    one, names = Seed(settings, 10), CLASSES["classification"]
    for name, domain in {"shapes": "indoor", "materials": "outdoor", "both": "night"}.items():
        source, classes = one.split(name, "train"), one.tasks[name].classes
        scenes = Scenes(len(source), seed=10, size=48, domain=domain, labels=["classification"])
        for i in range(24):
            whole = names[int(scenes[i].labels["classification"]["ids"][0])]
            label = classes[int(labels_of(source, i)[name]["ids"][0])]
            assert label == {"shapes": whole.split()[1], "materials": whole.split()[0], "both": whole}[name]
    row = stage.joint_encoder(settings, settings.joint)(one.split("both", "train")[0], 0, np.random.default_rng(0))
    assert {view: array.shape for view, array in row.inputs.items()} == {"image": (48, 48, 3)}
    assert row.weights == {"shapes": 0, "materials": 0, "both": 1}
    with pytest.raises(UserError, match="test_clips=3"):
        settings_of(config_of("configs/jedi.py", "images", test_clips=3))


def test_the_setting_on_public_action_sets_is_planned_without_data(capsys):
    small = {"depth": 10, "width": 8, "stages": 2}  # traced in a second each
    changes = {f"model__backbone__{key}": value for key, value in small.items()}
    config = config_of(
        "configs/jedi.py", "paper", root="nowhere", arms={}, pairs=[], expected=[], controls=[], **changes
    )
    dry_run(JEDI, config)
    printed = capsys.readouterr().out
    assert "tfds 'ucf101/ucf101_1_256': not prepared" in printed and "jedi all tasks" in printed
    planned, reasons = with_declared(config)
    assert set(reasons) == {"ucf101", "hmdb51", "kinetics400", "something_v2", "pool.unlabeled"}
    settings = settings_of(planned)
    one = Seed(settings, 0)
    counts = {"ucf101": 101, "hmdb51": 51, "kinetics400": 400, "something_v2": 174}
    assert {name: len(one.tasks[name].classes) for name in counts} == counts
    assert [len(pool) for pool in one.pool()] == [27_157] and not one.pool()[0].labels(0)
    row = stage.joint_encoder(settings, settings.joint)(one.split("hmdb51", "train")[0], 0, np.random.default_rng(0))
    (view,) = row.inputs.values()
    assert view.shape == (8, 224, 224, 3)
    something = one.tasks["something_v2"]
    assert len(something.mirrored) == 6 and something.reversed is None and one.tasks["ucf101"].mirrored == ()


def test_joint_experts_find_the_real_clips(data_pack):
    settings = settings_of(config_of("configs/jedi.py", "folders", root=str(data_pack)))
    one = Seed(settings, 0)
    checks = {name: (len(one.split(name, "train")), len(one.tasks[name].classes)) for name in one.names}
    assert all(count > 20 and classes > 2 for count, classes in checks.values()), checks
    example = one.split("sprites", "train")[0]
    row = stage.joint_encoder(settings, settings.joint)(example, 0, np.random.default_rng(0))
    shapes = {f"{expert.frames} frames": (expert.frames, 48, 64, 3) for expert in settings.experts.values()}
    assert {view: array.shape for view, array in row.inputs.items()} == shapes
