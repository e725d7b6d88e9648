"""The MulTaS recipe: arms as data, what each of them may see, and its command from splits to page."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from must.core.types import UserError
from must.recipes import arms, hints, multas
from must.recipes.arms import Arm, Lists

REPOSITORY = Path(__file__).parents[2]
TASKS = ("detection", "segmentation")
SPLITS = ("quarter", "exclusive")


def config_of(name="tests/support/multas_config.py", *variant):
    spec = importlib.util.spec_from_file_location("config", REPOSITORY / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return json.loads(module.get_config(*variant).to_json())


# arms


def test_a_block_is_the_product_of_its_axes():
    found = arms.expand(
        [
            {
                "tasks": [["detection"], ["segmentation"]],
                "split": ["quarter"],
                "images": ["seen", "unseen"],
                "labels": [["soft"], ["soft", "pdf"]],
            },
            {
                "tasks": [["detection", "segmentation"]],
                "split": ["exclusive"],
                "annotation": ["own"],
                "student": {"steps": 7},
            },
        ],
        TASKS,
        SPLITS,
    )
    assert len(found) == 9 and all(arm.name(TASKS) == name for name, arm in found.items())
    assert found["detection-quarter-unseen-soft+pdf"] == Arm(
        ("detection",), "quarter", "unseen", labels=("soft", "pdf")
    )
    assert found["multi-exclusive-all-own-steps=7"].student == {"steps": 7}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"tasks": [["detection"]], "split": ["quarter"], "color": ["red"]}, "grid.0.color"),
        ({"tasks": [["boxes"]], "split": ["quarter"], "labels": [["soft"]]}, "'boxes' is none of"),
        ({"tasks": [["detection"]], "split": ["third"], "labels": [["soft"]]}, "'third' is none of"),
        ({"tasks": [["detection"]], "split": ["quarter"], "labels": [["sot"]]}, "'sot' is none of"),
        ({"split": ["quarter"], "labels": [["soft"]]}, "says no tasks"),
        ({"tasks": [["detection"]], "split": ["quarter"]}, "nothing to learn"),
        (
            {"tasks": [["detection"]], "split": ["quarter"], "images": ["unseen"], "annotation": ["own"]},
            "nothing to learn",
        ),
        (
            {"tasks": [["detection"]], "split": ["quarter"], "annotation": ["own"], "control": ["shuffled"]},
            "there are none",
        ),
    ],
)
def test_arms_that_cannot_be_meant(block, message):
    with pytest.raises(UserError, match=message):
        arms.expand([block], TASKS, SPLITS)


LISTS = Lists({"detection": ["a", "b"], "segmentation": ["b", "c"]}, ["a", "b", "c", "d", "e", "f", "g"])


def test_what_an_arm_sees():
    see = lambda images, tasks=("detection",): LISTS.images(Arm(tasks, "quarter", images, labels=("soft",)), 0)  # noqa: E731
    assert (
        see("seen") == ["a", "b"]
        and see("unseen") == ["c", "d", "e", "f", "g"]
        and see("all") == list(LISTS.everything)
    )
    cut = see("unseen_cut")
    assert len(cut) == 2 and set(cut) <= set(see("unseen"))
    assert see("seen", TASKS) == ["a", "b", "c"] and len(see("unseen_cut", TASKS)) == 3
    with pytest.raises(UserError, match="no image is unseen"):
        Lists({"detection": ["a"]}, ["a"]).images(Arm(("detection",), "quarter", "unseen", labels=("soft",)), 0)
    shown = lambda annotation: LISTS.shown(Arm(TASKS, "quarter", annotation=annotation))  # noqa: E731
    assert shown("none") == {} and shown("own") == {"detection": ["a", "b"], "segmentation": ["b", "c"]}
    assert shown("full")["detection"] == list(LISTS.everything)


# what reaches a student


def test_annotations_that_an_arm_may_not_read_are_not_in_its_batches():  # M1
    built = multas.Built(config_of(), 0)
    lists = multas._deal(built, "exclusive")
    assert not set(lists.labeled["detection"]) & set(lists.labeled["segmentation"])
    name = "detection-exclusive-unseen-soft+adaptor"
    source = multas.arm_sources(built, name, lists)
    assert set(source.ids) == set(lists.labeled["segmentation"])
    assert all(source[i].labels == {} and source.labels(i) == {} for i in range(len(source)))
    groups = multas.arm_sources(built, "multi-exclusive-all-own-soft-missing", lists)
    assert sorted(groups) == ["detection", "segmentation"]
    for task, part in groups.items():
        assert set(part.ids) == set(lists.labeled[task])
        assert all(list(part[i].labels) == [task] for i in range(len(part)))


def test_images_without_any_annotation_are_a_group_of_their_own():
    config = config_of()
    config["splits"] = {"exclusive": {"exclusive": True}, "quarter": {"share": 0.25}}
    config["grid"] = [{"tasks": [list(TASKS)], "split": ["quarter"], "annotation": ["own"], "labels": [["soft"]]}]
    built = multas.Built(config, 0)
    (name,) = built.arms
    lists = multas._deal(built, "quarter")
    groups = multas.arm_sources(built, name, lists)
    assert {group: len(part) for group, part in groups.items()} == {
        "detection": 8,
        "segmentation": 8,
        "unannotated": 24,
    }
    built.config["student"]["batches"] = "mixed"
    assert len(multas.arm_sources(built, name, lists)) == 32


def test_lists_made_elsewhere(tmp_path):
    config = config_of()
    ids = list(multas.Built(config, 0).everything().ids)
    write = lambda name, part: (tmp_path / name).write_text("\n".join(part)) and str(tmp_path / name)  # noqa: E731
    files = {
        "detection": write("d.txt", ids[:4]),
        "segmentation": write("s.txt", ids[2:6]),
        "unseen": write("u.txt", ids[6:9]),
    }
    config["splits"]["exclusive"] = {"files": files}
    lists = multas._deal(multas.Built(config, 0), "exclusive")
    assert list(lists.everything) == ids[:9] and lists.labeled["segmentation"] == ids[2:6]
    config["splits"]["exclusive"] = {"files": files, "exclusive": True}
    with pytest.raises(UserError, match=f"both hold {ids[2]}"):
        multas._deal(multas.Built(config, 0), "exclusive")
    config["splits"]["exclusive"] = {"files": {**files, "unseen": write("u.txt", ids[5:9])}}
    with pytest.raises(UserError, match=f"both hold {ids[5]}"):
        multas._deal(multas.Built(config, 0), "exclusive")
    config["splits"]["exclusive"] = {"files": {**files, "unseen": write("u.txt", ["nobody"])}}
    with pytest.raises(UserError, match="nobody is not in"):
        multas._deal(multas.Built(config, 0), "exclusive")


def test_hints_that_a_task_cannot_have():
    config = config_of()
    config["grid"] = [{"tasks": [["detection"], ["segmentation"]], "split": ["exclusive"], "labels": [["defeat"]]}]
    with pytest.raises(UserError, match="defeat does not work for segmentation"):
        multas.check(config)
    config["grid"] = [{"tasks": [["detection", "segmentation"]], "split": ["exclusive"], "labels": [["mimic"]]}]
    config["hints"]["mimic"] = {"sale": 1.0}
    with pytest.raises(UserError, match="mimic for detection: .*sale"):
        multas.check(config)
    config["hints"]["mimic"] = {}
    config["teacher"]["model"]["neck"]["strides"] = [2, 4]
    with pytest.raises(UserError, match="pyramid|strides"):
        multas.check(config)


BOTH = [["detection"], ["segmentation"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": {"exclusive": "half"}}, "splits.exclusive: 'half', give one of"),
        ({"splits": {"exclusive": {"share": "1/2"}}}, "splits.exclusive: a part of '1/2'"),
        ({"splits": {"exclusive": {"share": 1.0}}}, "leaves one side empty"),
        ({"splits": {"exclusive": {"exclusive": False}}}, "only True means"),
        ({"splits": {"exclusive": {"files": "x.txt"}}}, "files is {task: list file}"),
        (
            {"grid": [{"tasks": BOTH, "split": "exclusive", "labels": [["soft"]]}]},
            "grid.0.split: give a list of choices",
        ),
        (
            {"grid": [{"tasks": BOTH, "split": ["exclusive"], "labels": ["soft"]}]},
            "grid.0.labels: give a list of lists",
        ),
        ({"grid": []}, "grid: no arm"),
        ({"grid": [{"tasks": BOTH[:1], "split": ["exclusive"], "labels": [["soft"]]}]}, "tasks.segmentation: no arm"),
        (
            {"grid": [{"tasks": BOTH, "split": ["exclusive"], "labels": [["soft"]], "student": {"stepz": 5}}]},
            "student.stepz",
        ),
        ({"contrasts": [{"axis": "color", "subject": "a", "reference": "b"}]}, "contrasts: .*color"),
        ({"contrasts": [{"name": "x", "subject": "nobody", "reference": "nobody else"}]}, "contrasts: .*nobody"),
        ({"pictures": ["nobody"]}, "pictures: 'nobody'"),
        ({"hints": {"mimik": {}}}, "hints.mimik"),
        ({"hints": {"adaptor": {"standard": "phis"}}}, "hints.adaptor.standard 'phis'"),
        ({"policies": {"detection": {"threshold": 0.5}}}, "policies: say which labels of segmentation"),
        ({"student.balance": {}}, "balance.kind None"),
        ({"student.balance": {"kind": "best"}}, "balance.kind 'best'"),
        ({"student.batches": "per-task"}, "'mixed' or 'per_task'"),
        ({"student.teacher_dropping": 7}, "a probability below 1"),
        ({"student.frames": [32]}, "not a .height, width."),
        ({"student.frames": [[31, 31]]}, "31 x 31"),
    ],
)
def test_mistakes_are_refused_before_anything_trains(change, message):
    config = config_of()
    for key, value in change.items():
        *path, last = key.split(".")
        section = config
        for name in path:
            section = section[name]
        section[last] = value
    if "grid" in change:
        config["contrasts"], config["pictures"] = [], []
    with pytest.raises(UserError, match=message):
        multas.check(config)


def test_validation_may_not_train():  # M9
    config = config_of()
    config["sets"]["scenes"]["validation"]["split"] = "train"
    with pytest.raises(UserError, match="the training and the validation set share"):
        multas.check(config)


@pytest.mark.parametrize("variant", ["camvid", "coco_mini"])
def test_real_sets_are_ready(variant, data_pack):
    config = config_of("configs/multas.py", variant)
    config["root"] = str(data_pack)
    multas.check(config)
    built = multas.Built(config, 0)
    lists = multas._deal(built, "exclusive")
    assert not set(lists.labeled["detection"]) & set(lists.labeled["segmentation"])
    if variant == "coco_mini":  # the 28 photos without masks can teach boxes only
        assert {task: len(ids) for task, ids in lists.labeled.items()} == {"detection": 64, "segmentation": 64}


def test_hints_per_group_are_asked_only_where_something_is_missing():
    built = multas.Built(config_of(), 0)
    name = "multi-exclusive-all-own-soft-missing"
    models = {task: built.model((task,), "teacher") for task in TASKS}
    found = hints.hints_of(built, name, built.arms[name], models)
    assert {hint.task: (hint.where, hint.skip) for hint in found} == {t: ("missing", t) for t in TASKS}


def test_groups_that_share_pictures_can_standardize(tmp_path):
    """A quarter annotated for both tasks stands in both groups; PHI-S is measured on every picture once."""
    config = config_of()
    config["splits"] = {"exclusive": {"share": 0.25}}
    config["grid"] = [{"tasks": [list(TASKS)], "split": ["exclusive"], "annotation": ["own"], "labels": [["adaptor"]]}]
    config["student"].update(steps=1, checkpoint_every=1)
    config["teacher"].update(steps=1, checkpoint_every=1)
    quiet = lambda *progress: None  # noqa: E731
    place = lambda job: str(tmp_path / job)  # noqa: E731
    for job, make, arguments in (
        ("splits", multas.make_splits, ()),
        *((f"teachers/exclusive-{task}", multas.train_teacher, ("exclusive", task)) for task in TASKS),
        ("grid/multi-exclusive-all-own-adaptor", multas.train_arm, ("multi-exclusive-all-own-adaptor",)),
    ):
        os.makedirs(place(job))
        facts = make(config, 0, *arguments, directory=place(job), report=quiet)
    assert facts["images"] == 32


# the command


def run(workdir, *arguments, kill_at=None):
    command = [
        sys.executable,
        "-m",
        "must.main",
        "--config=tests/support/multas_config.py",
        f"--workdir={workdir}",
        "--config.workers=1",
    ]
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    if kill_at is not None:
        while process.poll() is None and not kill_at():
            time.sleep(0.02)
        process.kill()
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_killed_and_resumed_equals_uninterrupted_to_the_page(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, out, err = run(whole)
    assert code == 0, err
    assert "detection, AP" in out and "segmentation, mIoU" in out and "report:" in out
    name = "multi-exclusive-all-own-soft-missing"
    reached = lambda: (broken / "grid" / name / "checkpoints" / "4").exists()  # noqa: E731
    code, _, _ = run(broken, kill_at=reached)
    assert code == -9 and not (broken / "grid" / name / "done.json").exists()
    code, out, err = run(broken)
    assert code == 0, err
    read = lambda top: json.loads((top / "results.json").read_text())  # noqa: E731
    results = read(whole)
    assert results["tasks"] == read(broken)["tasks"]
    rows = [np.load(top / "grid" / name / "rows-test.npz") for top in (whole, broken)]
    jax.tree.map(np.testing.assert_array_equal, dict(rows[0]), dict(rows[1]))
    lines = [(top / "grid" / name / "metrics.jsonl").read_text() for top in (whole, broken)]
    assert lines[0] == lines[1]
    assert (
        results["selected_on"] == {"teacher": "validation", "student": "last step"} and results["measured_on"] == "test"
    )
    assert set(results["arms"]) == {"teacher-exclusive", *multas.Built(config_of(), 0).arms}
    page = (whole / "report.html").read_text()
    assert all(arm in page for arm in results["arms"])
    facts = json.loads((whole / "grid" / name / "done.json").read_text())
    assert facts["images"] == 32 and facts["selected_step"] == 6
    ids = (whole / "splits" / "exclusive" / "detection.txt").read_text().split()
    assert len(ids) == 16


def test_the_scenes_and_the_published_setting_are_ready():
    multas.check(config_of("configs/multas.py", "scenes"))
    from must.recipes.dry_run import _with_declared

    config, declared = _with_declared({**config_of("configs/multas.py", "voc"), "root": "/nowhere"})
    assert set(declared) == {"voc"}
    built = multas.Built(config, 0)
    found = {split: multas._deal(built, split) for split in ("half", "quarter", "eighth")}
    assert [len(lists.labeled["detection"]) for lists in found.values()] == [8274, 4136, 2066]
    assert built.schedule("student").frames and built.settings("teacher")["epochs"] == 70
    assert {arm.split for arm in built.arms.values()} >= {"quarter", "eighth", "exclusive"}
