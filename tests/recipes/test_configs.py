"""Every configuration resolves; the one on users' folders finds every set of real pictures."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from must.core.types import UserError
from must.data.combine import labels_of
from must.recipes import jedi
from must.recipes import must as recipe
from must.recipes.dry_run import _with_declared, dry_run
from must.recipes.training import _pseudo

ROOT = Path(__file__).parents[2]


def _config(name, variant, root=""):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    config.root = root
    return json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize("variant", ["", "sanity", "evidence", "pool", "weighted", "balancing"])
def test_quickstart_keeps_every_id_in_one_place(variant):
    built = recipe.Built(_config("quickstart", variant), 0)
    train = [set(source.ids) for source in built.labeled()]
    held_out = {id for split in ("validation", "test") for source in built.splits(split).values() for id in source.ids}
    everything = list(built.everything().ids)
    assert len(train) == 5 and len(set().union(*train)) == sum(map(len, train))  # disjoint images per task
    assert len(everything) == len(set(everything)) and not held_out & set(everything)
    splits = [set(built.split("depth", split).ids) for split in ("validation", "tune", "test")]
    assert len(set().union(*splits)) == sum(map(len, splits)) > 500
    shifted = built.split("depth", "shifted")
    assert not set(shifted.ids) & set(everything) and not any(
        (shifted[i].image == built.split("depth", "test")[i].image).all() for i in range(4)
    )


def test_seeds_have_scenes_of_their_own():
    config = _config("quickstart", "evidence")
    a, b = (recipe.Built(config, seed).split("depth", "test") for seed in (0, 1))
    assert not set(a.ids) & set(b.ids) and (a[0].image != b[0].image).any()


def test_folders_find_the_real_sets(data_pack):
    built = recipe.Built(_config("must", "folders", str(data_pack)), 0)
    assert [len(built.split(n, "train")) for n in built.names] == [
        {"classification": 900, "detection": 205, "segmentation": 367, "depth": 64}[n] for n in built.names
    ]
    assert len(built.everything()) == 900 + 205 + 367 + 64 + 900 + 64 + 400
    for name in built.names:
        source = built.split(name, "test")
        row = built.plain(source[0], 0, None)
        assert row.weights[name] == 1 and row.inputs["image"].shape == (*built.size, 3)


def test_the_published_setting_is_planned_from_declared_features():
    config, reasons = _with_declared(_config("must", "paper", "nowhere"))
    assert (
        set(reasons) == {"imagenet", "objects365", "coco", "nyu", "pool.imagenet"}
        and "nothing prepared" in reasons["nyu"]
    )
    built = recipe.Built(config, 0)
    assert [len(built.tasks[name].classes) for name in ("classification", "detection", "segmentation")] == [
        1000,
        365,
        133,
    ]
    for name in built.names:
        row = built.plain(built.split(name, "train")[0], 0, None)
        assert row.weights[name] == 1 and row.inputs["image"].shape == (640, 640, 3)
    (pool,) = built.pool()
    assert len(pool) == 1_281_167 and not pool[0].labels


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"arms": {"few": {"pool_image": 3}}}, "arms.few.pool_image"),
        ({"arms": {"teacher": {}}}, "arms.teacher"),
        ({"arms": {"a/b": {}}}, "arms.a/b"),
        ({"arms": {"many": {"pool_images": 1025}}}, "the pool has 1024 images"),
        ({"baselines": ["supervized"]}, "no 'supervized'"),
        ({"arms": {"mixed": {"cutmix": {"prob": 1}}}}, "mixed.cutmix: .*'prob'"),
        ({"arms": {"mixed": {"cutmix": {"probability": 1}, "weights": {"kind": "oracle"}}}}, "mixed.cutmix: 'weights'"),
        ({"arms": {"mixed": {"cutout": {"largest": 2}}}}, "mixed.cutout.largest 2"),
        ({"arms": {"strong": {"view": {"kind": "auto"}}}}, "strong.view.kind 'auto'"),
        ({"arms": {"own": {"mean_teacher": {"kind": "firm"}}}}, "own.mean_teacher: kind 'firm'"),
        ({"arms": {"own": {"mean_teacher": {"decoy": 0.9}}}}, "own.mean_teacher: .*'decoy'"),
        ({"arms": {"own": {"mean_teacher": {"tasks": ["flow"]}}}}, "own.mean_teacher.tasks: no task 'flow'"),
        ({"arms": {"less": {"drop_top": 10}}}, "less.drop_top 10"),
    ],
)
def test_runs_that_cannot_be_meant(changes, says):
    with pytest.raises(UserError, match=says):
        recipe.Built(_config("quickstart", "") | changes, 0)


def test_options_of_students_are_refused_where_they_cannot_work():
    config = _config("quickstart", "")
    with pytest.raises(UserError, match="teacher.drop_top: only students"):
        recipe.Built({**config, "teacher": {**config["teacher"], "drop_top": 0.1}}, 0)
    task = {"kind": "tests.support.toy_tasks:EdgeMap"}
    sets = {
        **config["sets"],
        "edges": {split: {**section, "labels": []} for split, section in config["sets"]["depth"].items()},
    }
    toys = {
        **config,
        "tasks": {"edges": task},
        "sets": sets,
        "labeled": {"edges": "edges"},
        "arms": {"cut": {"cutout": {"probability": 0.5}}},
    }
    with pytest.raises(UserError, match="cut.cutout: does not work for edges, which has no paste"):
        recipe.Built(toys, 0)


def test_a_student_knows_which_of_its_labels_are_pseudo_labels():
    built = recipe.Built(_config("quickstart", "sanity"), 0)
    ids = list(built.everything().ids)
    extras = _pseudo(built, built.settings("student"), ids)
    for name in built.names:
        true = set(built.split(name, "train").ids)
        assert [id for id, flag in zip(ids, extras[name]["pseudo"], strict=True) if not flag] == [
            id for id in ids if id in true
        ]


def test_baselines_see_as_many_images_as_the_student():
    config = _config("quickstart", "")
    config["student"]["steps"] *= 2
    with pytest.raises(UserError, match="supervised sees 9,600 images, the student 19,200"):
        recipe.Built(config, 0)


def test_an_arm_keeps_what_it_does_not_change():
    config = _config("quickstart", "") | {"arms": {"slow": {"optimizer": {"learning_rate": 1e-3}, "steps": 7}}}
    arm, student = (recipe.Built(config, 0).settings(run) for run in ("slow", "student"))
    assert arm["optimizer"] == student["optimizer"] | {"learning_rate": 1e-3}
    assert arm["steps"] == 7 and arm["scales"] == student["scales"]


def test_a_missing_root_is_named():
    with pytest.raises(UserError, match="nowhere"):
        recipe.Built(_config("must", "folders", "nowhere"), 0)


def test_weighted_distillation_keeps_its_sets_apart(data_pack):
    from must.recipes import weighted_distillation

    config = _config("weighted_distillation", "folders", str(data_pack))
    weighted_distillation.check(config)
    for budget, count in zip(config["budgets"], (225, 450, 900), strict=True):
        built = recipe.Built(weighted_distillation.at_budget(config, budget), 0)
        assert len(built.split("classification", "train")) == count
        (pool,) = built.pool()
        hidden = built.hidden()["classification"]
        assert list(hidden.ids) == list(pool.ids) and len(pool) == 900 and not pool.labels(0)
        assert hidden.classes == built.split("classification", "train").classes
    few = recipe.Built(weighted_distillation.at_budget(config, 225), 0).split("classification", "train")
    assert set(few.ids) < set(
        recipe.Built(weighted_distillation.at_budget(config, 900), 0).split("classification", "train").ids
    )


@pytest.mark.parametrize(
    "validation, says",
    [
        ("{copy}", "the same picture, labeled/.+ and copied/"),
        ("{one}", "holds one class only, 'dress'"),
    ],
)
def test_a_validation_set_that_tells_nothing(data_pack, tmp_path, validation, says):
    """W5 and W-bad-input: a copy of training pictures under other names; a single class."""
    import shutil

    from must.recipes import weighted_distillation

    config = _config("weighted_distillation", "folders", str(data_pack))
    train = {
        "kind": "image_folder",
        "root": str(data_pack / "clothing"),
        "classes": "classes.txt",
        "split": "train",
        "name": "labeled",
    }
    source = data_pack / "clothing" / "train"
    for name in ("dress", "hat") if "copy" in validation else ("dress",):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i, path in enumerate(
            sorted((source if "copy" in validation else data_pack / "clothing" / "val").joinpath(name).iterdir())[:3]
        ):
            shutil.copy(path, tmp_path / "val" / name / f"other{i}.jpg")
    config["arms"] = {"weighted": {"weights": {"kind": "ratio_of_means"}}}
    sets = config["sets"]["clothing"]
    sets["train"] = train
    sets["validation"] = {
        **train,
        "root": str(tmp_path),
        "split": "val",
        "name": "copied",
        "classes": str(data_pack / "clothing" / "classes.txt"),
    }
    with pytest.raises(UserError, match=says):
        weighted_distillation.check(config)


def test_cifar_is_planned_from_its_declared_features():
    from must.recipes import weighted_distillation

    config, reasons = _with_declared(
        weighted_distillation.single(_config("weighted_distillation", "cifar100", "nowhere"))
    )
    assert set(reasons) == {"cifar100", "pool.pool", "hidden.classification"}
    built = recipe.Built(config, 0)
    assert len(built.split("classification", "train")) == 20_000 and len(built.tasks["classification"].classes) == 100


@pytest.mark.parametrize("variant", ["scenes", "images", "sanity"])
def test_joint_experts_know_their_own_classes_and_share_no_example(variant):
    built = jedi.Built(_config("jedi", variant), 0)
    jedi.check(built.config)
    assert len({task.classes for task in built.tasks.values()}) == len(built.names) == 3
    assert all(set(labels_of(source, 0)) >= {name} for name, source in built.splits("train").items())
    assert not any(labels_of(source, i) for source in built.pool() for i in (0, len(source) - 1))
    uses = ("train", "validation", "tune", "test")
    splits = [set(source.ids) for split in uses for source in built.splits(split).values()]
    splits += [set(source.ids) for source in built.pool()]
    assert len(set().union(*splits)) == sum(map(len, splits))


def test_still_images_are_named_by_shape_material_or_both():
    from must.scenes.still import CLASSES, Scenes

    built = jedi.Built(_config("jedi", "images"), 0)
    names = CLASSES["classification"]
    for name, domain in {"shapes": "indoor", "materials": "outdoor", "both": "night"}.items():
        source, classes = built.split(name, "train"), built.tasks[name].classes
        scenes = Scenes(len(source), seed=0, size=48, domain=domain, labels=["classification"])
        for i in range(24):
            whole = names[int(scenes[i].labels["classification"]["ids"][0])]
            said = classes[int(labels_of(source, i)[name]["ids"][0])]
            assert said == {"shapes": whole.split()[1], "materials": whole.split()[0], "both": whole}[name]
    row = built.encoder(built.names, "joint")(built.split("both", "train")[0], 0, np.random.default_rng(0))
    assert {view: array.shape for view, array in row.inputs.items()} == {"image": (48, 48, 3)}
    assert row.weights == {"shapes": 0, "materials": 0, "both": 1}
    with pytest.raises(UserError, match="test_clips 3"):
        jedi.check(_config("jedi", "images") | {"test_clips": 3})


def test_the_setting_on_public_action_sets_is_planned_without_data(capsys):
    config = _config("jedi", "paper", "nowhere") | {"arms": {}}
    config["model"]["backbone"].update(depth=10, width=8, stages=2)  # traced in a second each
    dry_run(jedi, config)
    said = capsys.readouterr().out
    assert "tfds 'ucf101/ucf101_1_256': nothing prepared" in said and "joint all tasks" in said
    planned, reasons = _with_declared(config)
    assert set(reasons) == {"ucf101", "hmdb51", "kinetics400", "something_v2", "pool.unlabeled"}
    built = jedi.Built(planned, 0)
    assert [len(built.tasks[n].classes) for n in ("ucf101", "hmdb51", "kinetics400", "something_v2")] == [
        101,
        51,
        400,
        174,
    ]
    assert [len(pool) for pool in built.pool()] == [27_157] and not built.pool()[0].labels(0)
    row = built.encoder(built.names, "joint")(built.split("hmdb51", "train")[0], 0, np.random.default_rng(0))
    (view,) = row.inputs.values()
    assert view.shape == (8, 224, 224, 3)
    something = built.tasks["something_v2"]
    assert len(something.mirrored) == 6 and something.reversed is None and built.tasks["ucf101"].mirrored == ()


def test_joint_experts_find_the_real_clips(data_pack):
    built = jedi.Built(_config("jedi", "folders", str(data_pack)), 0)
    checks = {name: (len(built.split(name, "train")), len(built.tasks[name].classes)) for name in built.names}
    assert all(count > 20 and classes > 2 for count, classes in checks.values()), checks
    example = built.split("sprites", "train")[0]
    row = built.encoder(built.names, "joint")(example, 0, np.random.default_rng(0))
    lengths = {section["frames"] for section in built.config["experts"].values()}
    assert {view: array.shape for view, array in row.inputs.items()} == {f"{n} frames": (n, 48, 64, 3) for n in lengths}
