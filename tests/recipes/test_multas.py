"""The MulTaS recipe: arms as data, what each of them may see, and its command from splits to page."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest

from must.core.types import UserError
from must.experiment import build, distillation, grid, sections
from must.experiment.grid import Arm, Lists
from must.experiment.plan import with_declared
from must.experiment.settings import Run
from must.recipes import multas
from tests.support.commands import run_command
from tests.support.configs import check, config_of, log_of, settings_of

TASKS = ("detection", "segmentation")
SPLITS = ("quarter", "exclusive")
CONFIG = "tests/support/multas_config.py"


# arms


def test_a_block_is_the_product_of_its_axes():
    arms = grid.expand(
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
    assert len(arms) == 9 and all(arm.name(TASKS) == name for name, arm in arms.items())
    assert arms["detection-quarter-unseen-soft+pdf"] == Arm(("detection",), "quarter", "unseen", labels=("soft", "pdf"))
    assert arms["multi-exclusive-all-own-steps=7"].student == {"steps": 7}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"tasks": [["detection"]], "split": ["quarter"], "color": ["red"]}, r"grid\[0\].color: unknown key"),
        ({"tasks": [["boxes"]], "split": ["quarter"], "labels": [["soft"]]}, "tasks='boxes'"),
        ({"tasks": [["detection"]], "split": ["third"], "labels": [["soft"]]}, "split='third'"),
        ({"tasks": [["detection"]], "split": ["quarter"], "labels": [["sot"]]}, "labels='sot': did you mean 'soft'"),
        ({"split": ["quarter"], "labels": [["soft"]]}, "tasks: required"),
        ({"tasks": [["detection"]], "split": ["quarter"]}, "nothing to learn"),
        (
            {"tasks": [["detection"]], "split": ["quarter"], "images": ["unseen"], "annotation": ["own"]},
            "nothing to learn",
        ),
        (
            {"tasks": [["detection"]], "split": ["quarter"], "annotation": ["own"], "control": ["shuffled"]},
            "takes none",
        ),
    ],
)
def test_arms_that_cannot_work(block, message):
    with pytest.raises(UserError, match=message):
        grid.expand([block], TASKS, SPLITS)


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
    with pytest.raises(UserError, match="have seen every image"):
        Lists({"detection": ["a"]}, ["a"]).images(Arm(("detection",), "quarter", "unseen", labels=("soft",)), 0)
    readable = lambda annotation: LISTS.readable(Arm(TASKS, "quarter", annotation=annotation))  # noqa: E731
    assert readable("none") == {} and readable("own") == {"detection": ["a", "b"], "segmentation": ["b", "c"]}
    assert readable("full")["detection"] == list(LISTS.everything)


# what reaches a student


def deal(settings, name):
    return grid.deal(settings, name, 0, grid.annotated_ids(settings))


def test_annotations_that_an_arm_may_not_read_are_not_in_its_batches():  # M1
    settings = settings_of(config_of(CONFIG))
    arms, lists = multas.arms_of(settings), deal(settings, "exclusive")
    assert not set(lists.annotated["detection"]) & set(lists.annotated["segmentation"])
    source = grid.arm_sources(settings, arms["detection-exclusive-unseen-soft+adaptor"], lists, 0, "per_task")
    assert set(source.ids) == set(lists.annotated["segmentation"])
    assert all(source[i].labels == {} and source.labels(i) == {} for i in range(len(source)))
    arm = arms["multi-exclusive-all-own-soft-missing"]
    groups = grid.arm_sources(settings, arm, lists, 0, "per_task")
    assert sorted(groups) == ["detection", "segmentation"]
    for task, part in groups.items():
        assert set(part.ids) == set(lists.annotated[task])
        assert all(list(part[i].labels) == [task] for i in range(len(part)))


QUARTER = [{"tasks": [list(TASKS)], "split": ["quarter"], "annotation": ["own"], "labels": [["soft"]]}]


def test_images_without_any_annotation_are_a_group_of_their_own():
    settings = settings_of(config_of(CONFIG, splits={"quarter": {"share": 0.25}}, grid=QUARTER))
    (arm,) = multas.arms_of(settings).values()
    lists = deal(settings, "quarter")
    groups = grid.arm_sources(settings, arm, lists, 0, "per_task")
    assert {name: len(part) for name, part in groups.items()} == {"detection": 8, "segmentation": 8, "unannotated": 24}
    assert len(grid.arm_sources(settings, arm, lists, 0, "mixed")) == 32


def test_lists_made_elsewhere(tmp_path):
    config = config_of(CONFIG)
    ids = list(grid.everything(settings_of(config)).ids)

    def write(name, part):
        (tmp_path / name).write_text("\n".join(part))
        return str(tmp_path / name)

    def listed(files, **more):
        return deal(settings_of(config_of(CONFIG, splits={"exclusive": {"files": files, **more}})), "exclusive")

    files = {"detection": write("d.txt", ids[:4]), "segmentation": write("s.txt", ids[2:6])}
    files["unseen"] = write("u.txt", ids[6:9])
    lists = listed(files)
    assert list(lists.everything) == ids[:9] and lists.annotated["segmentation"] == ids[2:6]
    with pytest.raises(UserError, match=f"both contain {ids[2]}"):
        listed(files, exclusive=True)
    with pytest.raises(UserError, match=f"both contain {ids[5]}"):
        listed({**files, "unseen": write("u.txt", ids[5:9])})
    with pytest.raises(UserError, match="nobody is not in"):
        listed({**files, "unseen": write("u.txt", ["nobody"])})


BOTH = [["detection"], ["segmentation"]]
SOFT = {"tasks": BOTH, "split": ["exclusive"], "labels": [["soft"]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": [{**SOFT, "labels": [["defeat"]]}]}, "defeat does not work for segmentation"),
        ({"grid": [{**SOFT, "labels": [["mimic"]]}], "hints__mimic": {"sale": 1.0}}, "mimic for detection: .*sale"),
        ({"grid": [{**SOFT, "labels": [["mimic"]]}], "teacher__model__neck__strides": [2, 4]}, "pyramid|strides"),
        ({"splits": {"exclusive": "half"}}, "splits.exclusive: expected a section"),
        ({"splits": {"exclusive": {"share": "1/2"}}}, "splits.exclusive.share='1/2': expected a finite number"),
        ({"splits": {"exclusive": {"share": 1.0}}}, "leaves one side empty"),
        ({"splits": {"exclusive": {"share": 32}}}, "leaves one side empty"),
        ({"splits": {"exclusive": {"exclusive": False}}}, "set one of share"),
        ({"splits": {"exclusive": {"files": "x.txt"}}}, "files: expected a section"),
        ({"grid": [{**SOFT, "split": "exclusive"}]}, r"grid\[0\].split='exclusive': expected a list"),
        ({"grid": [{**SOFT, "labels": ["soft"]}]}, r"grid\[0\].labels=.*: expected a list of lists"),
        ({"grid": []}, "grid: no arm"),
        ({"grid": [{**SOFT, "tasks": BOTH[:1]}]}, "tasks.segmentation: no arm"),
        ({"grid": [{**SOFT, "student": {"stepz": 5}}]}, "student.stepz: unknown key; did you mean steps"),
        ({"contrasts": [{"axis": "color", "subject": "a", "reference": "b"}]}, "contrasts.color"),
        ({"contrasts": [{"name": "x", "subject": "nobody", "reference": "no one"}]}, "contrasts .x.='nobody'"),
        ({"pictures": ["nobody"]}, "pictures='nobody'"),
        ({"hints__mimik": {}}, "hints.mimik"),
        ({"hints__adaptor": {"standard": "phis"}}, "hints.adaptor.standard='phis'"),
        ({"student__balance": {"kind": "best"}}, "balance.kind='best'"),
        ({"student__batches": "per-task"}, "batches='per-task': did you mean 'per_task'"),
        ({"student__teacher_dropping": 7}, "teacher_dropping=7.0: must be at least 0 and below 1"),
        ({"student__frames": [32]}, "frames.0.=32: expected a list"),
        ({"student__frames": [[31, 31]]}, "31 x 31"),
    ],
)
def test_mistakes_are_refused_before_anything_trains(change, message):
    if "grid" in change:
        change = {**change, "contrasts": [], "pictures": []}
    with pytest.raises(UserError, match=message):
        check(config_of(CONFIG, **change))


def test_validation_may_not_train():  # M9
    with pytest.raises(UserError, match="the training and the validation set share"):
        check(config_of(CONFIG, sets__scenes__validation__split="train"))


@pytest.mark.parametrize("variant", ["camvid", "coco_mini"])
def test_real_sets_are_ready(variant, data_pack):
    config = config_of("configs/multas.py", variant, root=str(data_pack))
    check(config)
    lists = deal(settings_of(config), "exclusive")
    assert not set(lists.annotated["detection"]) & set(lists.annotated["segmentation"])
    if variant == "coco_mini":  # the 28 photos without masks can teach boxes only
        assert {task: len(ids) for task, ids in lists.annotated.items()} == {"detection": 64, "segmentation": 64}


def test_hints_per_group_are_asked_only_where_something_is_missing():
    settings = settings_of(config_of(CONFIG))
    arm, tasks = multas.arms_of(settings)["multi-exclusive-all-own-soft-missing"], build.tasks_of(settings)
    models = {task: build.network(settings.model, {task: tasks[task]}, settings.teacher.model) for task in TASKS}
    hints = distillation.hints_of(settings, multas.run_of(settings, arm), arm, models)
    assert {hint.task: (hint.where, hint.skip) for hint in hints} == {t: ("missing", t) for t in TASKS}


def test_groups_that_share_pictures_can_standardize(tmp_path):
    """A quarter annotated for both tasks stands in both groups; PHI-S is measured on every picture once."""
    block = {"tasks": [list(TASKS)], "split": ["exclusive"], "annotation": ["own"], "labels": [["adaptor"]]}
    # As many steps as in the other runs of this file, whose compiled teachers these are.
    seldom = {f"{run}__checkpoint_every": 6 for run in ("teacher", "student")}
    settings = settings_of(config_of(CONFIG, splits={"exclusive": {"share": 0.25}}, grid=[block], **seldom))
    name = "multi-exclusive-all-own-adaptor"
    for job, make, arguments in (
        ("splits", multas.make_splits, ()),
        *((f"teachers/exclusive-{task}", multas.train_teacher, ("exclusive", task)) for task in TASKS),
        (f"grid/{name}", multas.train_arm, (name,)),
    ):
        os.makedirs(tmp_path / job)
        facts = make(settings, 0, *arguments, directory=str(tmp_path / job), report=lambda *progress: None)
    assert facts["images"] == 32


def test_contrasts_pair_arms_that_differ_in_one_axis():
    arms = grid.expand([{**SOFT, "images": ["seen", "unseen"]}, {**SOFT, "annotation": ["own"]}], TASKS, SPLITS)
    found = grid.contrast_of({"axis": "images", "subject": "unseen", "reference": "seen"}, arms)
    assert found.pairs == [(f"{task}-exclusive-unseen-soft", f"{task}-exclusive-seen-soft") for task in TASKS]
    within = {"axis": "images", "subject": "unseen", "reference": "seen", "within": {"tasks": ["detection"]}}
    assert len(grid.contrast_of(within, arms).pairs) == 1
    assert found.name == "images: unseen vs seen"


# the command


def run(workdir):
    ended = run_command([f"--config={CONFIG}", f"--workdir={workdir}", "--config.workers=1"])
    assert ended.code == 0, ended.lines
    return ended.out


def test_resumed_equals_uninterrupted_to_the_page(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    out = run(whole)
    assert "AP" in out and "mIoU" in out and "report:" in out
    name = "multi-exclusive-all-own-soft-missing"
    shutil.copytree(whole, broken)
    arm = broken / "grid" / name  # as it is after its checkpoint of step 4
    for path in (arm / "checkpoints" / "6", arm / "weights", broken / "compare", broken / "report"):
        shutil.rmtree(path)
    for path in (arm / "done.json", arm / "rows-test.npz", broken / "results.json"):
        path.unlink()
    run(broken)
    read = lambda top: json.loads((top / "results.json").read_text())  # noqa: E731
    results = read(whole)
    assert results["columns"] == read(broken)["columns"]
    rows = [np.load(top / "grid" / name / "rows-test.npz") for top in (whole, broken)]
    jax.tree.map(np.testing.assert_array_equal, dict(rows[0]), dict(rows[1]))
    assert log_of(whole / "grid" / name) == log_of(arm)
    assert "Weights selected: teachers by the validation split; students by the last step." in results["notes"]
    arms = multas.arms_of(settings_of(config_of(CONFIG)))
    assert set(results["columns"]) == {"guess", "teacher-exclusive", *arms}
    facts = json.loads((whole / "grid" / name / "done.json").read_text())
    assert facts["images"] == 32 and facts["selected_step"] == 6
    ids = (whole / "splits" / "exclusive" / "detection.txt").read_text().split()
    assert len(ids) == 16


def test_students_of_both_tasks_train_as_published():
    settings = settings_of(config_of("configs/multas.py", "voc", root="somewhere"))
    arms = multas.arms_of(settings)

    def run(name):
        one = multas.run_of(settings, arms[name])
        return one.batch_size, one.optimizer.learning_rate, one.epochs, one.optimizer.warmup_factor

    assert run("detection-quarter-seen-soft") == run("segmentation-exclusive-seen-own") == (10, 0.01, 70, 0.1)
    assert run("multi-exclusive-all-own") == (7, 0.001, 100, 0.1)
    assert settings.teacher.batch_size == 5
    changed = dataclasses.replace(settings, together={})
    assert multas.run_of(changed, arms["multi-exclusive-all-own"]).batch_size == 10


def test_the_scenes_and_the_published_setting_are_ready():
    check(config_of("configs/multas.py", "scenes"))
    config, declared = with_declared(config_of("configs/multas.py", "voc", root="/nowhere"))
    assert set(declared) == {"voc"}
    settings = settings_of(config)
    present = grid.annotated_ids(settings)
    dealt = {split: grid.deal(settings, split, 0, present) for split in ("half", "quarter", "eighth")}
    assert [len(lists.annotated["detection"]) for lists in dealt.values()] == [8274, 4136, 2066]
    student: Run = settings.student
    assert student.frames and settings.teacher.epochs == 70
    assert {arm.split for arm in multas.arms_of(settings).values()} >= {"quarter", "eighth", "exclusive"}
    assert sections.changed(settings.model, settings.teacher.model, "").backbone.kind == "resnet"
