"""The JEDI recipe: experts, joint stage, arms and page on a finished run; patience, resuming, mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from must.core.types import UserError
from must.data.pipeline import eval_batches
from must.models.experts import from_experts
from must.recipes import jedi, jobs, measuring, overlapping
from must.recipes.dry_run import dry_run
from must.recipes.joint_built import JointBuilt
from must.recipes.joint_stage import load_expert, load_joint, load_student
from must.recipes.run import run
from must.train.checkpoint import Checkpoints
from tests.support.jedi_config import get_config

REPOSITORY = Path(__file__).parents[2]
SETS = ("camera", "turns")
STEPS = 6
ROWS = 16  # the clips of a batch in which the recipe times its networks: their programs are compiled by then


def config_of(**changes) -> dict[str, Any]:
    """The tiny configuration as a run has it; changes by dotted key with "__" for the dot."""
    config = json.loads(get_config().to_json())
    for key, value in changes.items():
        *path, last = key.split("__")
        section = config
        for name in path:
            section = section[name]
        section[last] = value
    return config


class Finished(NamedTuple):
    config: dict
    top: Path
    built: jedi.Built
    experts_before: dict  # {file: bytes} when the joint stage began


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stages(config, top, *names):
    for stage in names:
        run(jedi, config, str(top), stage=stage)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed, to the page."""
    top, config = tmp_path_factory.mktemp("jedi") / "run", config_of()
    stages(config, top, "experts")
    before = contents(top / "experts")
    stages(config, top, "joint", "compare", "report")
    return Finished(config, top, jedi.Built(config, 0), before)


def lines(directory: Path, key: str) -> dict[int, float]:
    """{step: value} of metrics.jsonl."""
    found = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in found if key in line}


def scores(built, variables, name, clips=1) -> dict[str, float]:
    """Of one network alone on the test split, counted by hand; answers to several clips are averaged."""
    predict = measuring.predictor(built.model((name,)), {name: built.tasks[name]})
    right, losses = [], []
    for batch in eval_batches(built.split(name, "test"), built.shown((name,), clips=clips), batch_size=ROWS):
        shown = batch.inputs["image"] if clips > 1 else batch.inputs["image"][:, None]
        probs = np.mean([predict(variables, shown[:, k])[name]["probs"] for k in range(clips)], 0)
        found = counted(probs, batch, name)
        right, losses = right + found[0], losses + found[1]
    return {"top1": pytest.approx(100 * float(np.mean(right))), "nll": pytest.approx(float(np.mean(losses)), abs=1e-5)}


def counted(probs, batch, name):
    """(which answers are right, their losses) of the real rows."""
    truth, real = batch.labels[name]["probs"].argmax(-1), batch.ids >= 0
    losses = -np.log(probs[np.arange(len(truth)), truth])
    return list((probs.argmax(-1) == truth)[real]), list(losses[real])


def measured(facts, name):
    return {metric: facts["test"][name][metric] for metric in ("top1", "nll")}


def same(a, b) -> bool:
    """Whether two trees are equal to the bit."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def bodies(variables, name):
    return {key: part for key, part in variables["params"].items() if key != f"heads_{name}"}


# a finished run


def test_a_student_alone_scores_what_the_results_say(whole):
    results = json.loads((whole.top / "results.json").read_text())["tasks"]
    columns = {"experts/{}": "expert", "joint/jedi": "student", "joint/plain": "plain", "joint/frozen": "frozen"}
    for name in SETS:
        for job, column in columns.items():
            at = whole.top / job.format(name) / ("" if column == "expert" else f"students/{name}")
            found = measured(jobs.facts(str(whole.top), job.format(name)), name)
            assert found == scores(whole.built, load_student(whole.built, str(at), name), name), (name, column)
            assert results[name]["scores"][column] == [found["top1"]]


def test_a_teacher_scores_what_the_results_say(whole):
    predict = measuring.predictor(whole.built.joined().model, whole.built.both())
    variables = load_joint(whole.built, str(whole.top / "joint" / "jedi"))
    encoder = whole.built.shown(whole.built.names, "joint")
    for name in SETS:
        right, losses = [], []
        source, mine = whole.built.split(name, "test"), encoder._replace(tasks={name: whole.built.tasks[name]})
        for batch in eval_batches(source, mine, batch_size=ROWS):
            found = counted(np.asarray(predict(variables, batch.inputs)[f"{name}-teacher"]["probs"]), batch, name)
            right, losses = right + found[0], losses + found[1]
        wanted = measured(jobs.facts(str(whole.top), "joint/jedi"), f"{name}-teacher")
        assert wanted["top1"] == pytest.approx(100 * np.mean(right)) and wanted["nll"] == pytest.approx(
            np.mean(losses), abs=1e-5
        )


def test_teachers_start_as_their_experts(whole):  # J1, through what is on disk
    experts = {name: load_expert(whole.built, whole.top, name) for name in SETS}
    predict = measuring.predictor(whole.built.joined().model, whole.built.both())
    encoder = whole.built.shown(whole.built.names, "joint")._replace(tasks={})
    batch = next(eval_batches(whole.built.split("turns", "test"), encoder, batch_size=ROWS))
    said = predict(jax.device_put(from_experts(experts)), batch.inputs)
    for name in SETS:
        np.testing.assert_allclose(said[f"{name}-teacher"]["probs"], said[name]["probs"], atol=1e-5)
        assert (
            np.ptp(np.asarray(said[name]["probs"]), axis=0).max() > 1e-3
        )  # an answer that hears nothing starts as any other


def test_frozen_backbones_stay_those_of_the_experts_to_the_bit(whole):
    for name in SETS:
        expert = load_expert(whole.built, whole.top, name)
        at = lambda arm: load_student(whole.built, str(whole.top / "joint" / arm / "students" / name), name)  # noqa: B023, E731
        frozen, moved = at("frozen"), at("jedi")
        assert same(bodies(expert, name), bodies(frozen, name)) and not same(bodies(expert, name), bodies(moved, name))
        assert not same(expert["params"][f"heads_{name}"], frozen["params"][f"heads_{name}"])
        assert ("batch_stats" in expert) == (name == "turns")
        assert all(same(expert.get("batch_stats"), arm.get("batch_stats")) for arm in (frozen, moved))


def test_the_joint_stage_leaves_the_experts_alone(whole):
    assert contents(whole.top / "experts") == whole.experts_before


def test_distillation_makes_a_difference_from_the_second_step_on(whole):
    jedi_loss, plain_loss = (lines(whole.top / "joint" / arm, "loss/turns/class") for arm in ("jedi", "plain"))
    assert jedi_loss[1] == plain_loss[1]  # the same batch under the same weights
    assert abs(jedi_loss[STEPS] - plain_loss[STEPS]) > 1e-5


@pytest.mark.parametrize("arm", ["jedi", "plain", "frozen"])
def test_students_are_kept_where_each_was_best_and_teachers_where_all_were(whole, arm):
    directory = whole.top / "joint" / arm
    facts = jobs.facts(str(whole.top), f"joint/{arm}")
    curves = {name: lines(directory, f"validation/{name}/top1") for name in SETS}
    assert all(list(found) == list(range(1, STEPS + 1)) for found in curves.values())
    for name, found in curves.items():
        first = max(found, key=lambda step: found[step])
        assert facts["selected_steps"][name] == first
        assert Checkpoints(str(directory / "students" / name / "weights")).facts()["step"] == first
    mean = {step: round(sum(found[step] for found in curves.values()), 3) for step in range(1, STEPS + 1)}
    assert facts["selected_step"] == max(mean, key=lambda step: mean[step])


def test_scores_change_while_it_learns(whole):
    """Or the test above could not fail."""
    found = [lines(whole.top / "joint" / arm, f"validation/{name}/top1") for name in SETS for arm in ("jedi", "plain")]
    assert any(max(curve, key=curve.get) > 1 for curve in found), found


def test_the_page_shows_every_column(whole):
    results = json.loads((whole.top / "results.json").read_text())
    columns = {"expert", *(c for arm in ("plain", "frozen") for c in (arm, f"{arm}-teacher")), "student", "teacher"}
    assert set(results["over_sets"]["scores"]) == columns
    assert [pair["as_expected"] is None for pair in results["over_sets"]["differences"]] == [False, True, True, True]
    page = (whole.top / "report.html").read_text()
    assert all(column in page for column in columns) and all(name in page for name in SETS)


def test_other_labels_of_one_set_change_no_other_expert(whole, tmp_path):  # J3
    config = config_of()
    config["sets"]["camera"]["train"]["kind"] = "tests.support.jedi_config:Relabeled"
    for name, changed in (("turns", False), ("camera", True)):
        directory = tmp_path / "experts" / name
        jedi.train_expert(config, 0, name, directory=str(directory), report=quiet)
        there = Checkpoints(str(whole.top / "experts" / name / "checkpoints")).facts()["sha256"]
        assert (Checkpoints(str(directory / "checkpoints")).facts()["sha256"] != there) == changed


# stopping and going on


def quiet(*progress):
    pass


def with_experts(whole, top: Path) -> Path:
    """A workdir in which the experts are trained already."""
    shutil.copytree(whole.top / "experts", top / "experts")
    return top


KILLED = """
import json, os, signal, sys
from must.recipes import jedi

def report(at, steps, note):
    if at == 5:
        os.kill(os.getpid(), signal.SIGKILL)

jedi.train_joint(json.loads(sys.argv[1]), 0, "jedi", directory=sys.argv[2], report=report)
"""


def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path):
    directory = with_experts(whole, tmp_path) / "joint" / "jedi"
    os.makedirs(directory)
    command = [sys.executable, "-c", KILLED, json.dumps(whole.config), str(directory)]
    killed = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert Checkpoints(str(directory / "checkpoints")).latest() == 4
    facts = jedi.train_joint(whole.config, 0, "jedi", directory=str(directory), report=quiet)
    there = jobs.facts(str(whole.top), "joint/jedi")
    assert {key: facts[key] for key in ("steps", "selected_steps", "test")} == {
        key: there[key] for key in ("steps", "selected_steps", "test")
    }
    for part in ("checkpoints", "weights", *(f"students/{name}/weights" for name in SETS)):
        a, b = (Checkpoints(str(top / part)).facts()["sha256"] for top in (directory, whole.top / "joint" / "jedi"))
        assert a == b, part
    assert (directory / "metrics.jsonl").read_text() == (whole.top / "joint" / "jedi" / "metrics.jsonl").read_text()


def test_a_run_that_cannot_improve_stops_and_stays_stopped(whole, tmp_path):
    """Learning rate 0: every validation is a tie. No pool, three clips in test; the arm may not stop by itself."""
    still = {**whole.config["joint"]["optimizer"], "learning_rate": 0.0}
    config = config_of(joint__optimizer=still, joint__patience=2, pool={}, test_clips=3, pairs=[], expected=[])
    config["arms"] = {"frozen": {"frozen": True, "patience": 1}}
    top = with_experts(whole, tmp_path / "run")
    stages(config, top, "joint")
    facts = {arm: jobs.facts(str(top), f"joint/{arm}") for arm in ("jedi", "frozen")}
    assert facts["jedi"]["steps"] == 3 and facts["frozen"]["steps"] == 3  # the first, and two that were no better
    assert (
        facts["jedi"]["selected_steps"] == dict.fromkeys(SETS, 1) and facts["jedi"]["selected_step"] == 1
    )  # ties keep the earlier
    built = jedi.Built(config, 0)
    for name in SETS:
        expert = load_expert(built, top, name)
        assert same(expert, load_student(built, str(top / "joint" / "jedi" / "students" / name), name))
        assert measured(facts["jedi"], name) == scores(built, expert, name, clips=3)
    before = contents(top / "joint" / "jedi" / "checkpoints"), (top / "joint" / "jedi" / "metrics.jsonl").read_text()
    (top / "joint" / "jedi" / "done.json").unlink()  # killed after the last checkpoint, before it said so
    stages(config, top, "joint")
    assert jobs.facts(str(top), "joint/jedi")["steps"] == 3
    assert before == (
        contents(top / "joint" / "jedi" / "checkpoints"),
        (top / "joint" / "jedi" / "metrics.jsonl").read_text(),
    )


def test_an_arm_ends_where_jedi_ended_under_the_same_learning_rates(whole, tmp_path):
    """One without any change of settings is JEDI again, although the schedule was cut short."""
    falling = {**whole.config["joint"]["optimizer"], "final_factor": 0.0}
    config = config_of(
        joint__optimizer=falling, joint__steps=40, joint__patience=1, arms={"again": {}}, pairs=[], expected=[]
    )
    top = with_experts(whole, tmp_path / "run")
    stages(config, top, "joint")
    facts = [jobs.facts(str(top), f"joint/{arm}") for arm in ("jedi", "again")]
    assert facts[0]["steps"] == facts[1]["steps"] < 40 and facts[0]["test"] == facts[1]["test"]
    found = [Checkpoints(str(top / "joint" / arm / "checkpoints")).facts()["sha256"] for arm in ("jedi", "again")]
    assert found[0] == found[1]


def test_an_arm_has_the_dropout_that_its_own_tasks_say():
    config = config_of(arms={"more": {"tasks": {"camera": {"dropout": 0.9}}}}, pairs=[], expected=[])
    built = JointBuilt(config, 0)
    found = {"camera": np.ones((2, 500), np.float32), "turns": np.ones((2, 500), np.float32)}
    ones = {"logits": {"kernel": np.ones((500, 1), np.float32), "bias": 0.0}}
    params = {"experts": {name: {f"heads_{name}": ones} for name in built.names}}
    for run, name, rate in (("joint", "camera", 0.25), ("more", "camera", 0.9), ("more", "turns", 0.25)):
        kept = built.joined(run).students(params, found, (jax.random.key(1), np.arange(2)))[name] * (1 - rate) / 500
        np.testing.assert_allclose(kept, 1 - rate, atol=0.1)


def test_pictures_go_through_the_same_recipe(tmp_path):
    """Two domains of still scenes, drawn in proportion to their size, without a pool."""
    still = {"kind": "scenes", "size": 16, "labels": ["classification"]}
    scenes = lambda domain, split, count: {  # noqa: E731
        "kind": "must.data.combine:Aliased",
        "names": {domain: "classification"},
        "source": {**still, "domain": domain, "split": split, "count": count},
    }
    domains = {"indoor": 24, "outdoor": 12}
    config = config_of(
        pool={}, arms={}, joint__sampling="proportional", joint__steps=2, expert__steps=2, pairs=[["student", "expert"]]
    )
    config["image"] = {"size": [16, 16], "keep_aspect": True}
    config["tasks"] = {name: {"kind": "classification"} for name in domains}
    config["sets"] = {
        name: {
            split: scenes(name, split, count if split == "train" else 16) for split in ("train", "validation", "test")
        }
        for name, count in domains.items()
    }
    config["experts"] = {"indoor": {}, "outdoor": {"model": {"backbone": {"width": 6}}}}
    config["model"]["backbone"] = {"depth": 10, "width": 4, "stem": "small", "stages": 1}
    config["expert"]["geometry"] = config["joint"]["geometry"] = {"flip": True}
    stages(config, tmp_path / "run", "experts", "joint", "compare", "report")
    built = jedi.Built(config, 0)
    for name in domains:
        student = load_student(built, str(tmp_path / "run" / "joint" / "jedi" / "students" / name), name)
        assert measured(jobs.facts(str(tmp_path / "run"), "joint/jedi"), name) == scores(built, student, name)
    assert len(built.batches("joint")) == 36 and (tmp_path / "run" / "report.html").exists()


def test_what_a_step_draws_from(whole):
    groups = {name: len(source) for name, source in whole.built.batches("joint").items()}
    assert groups == {"camera": 20, "turns": 20, "pool": 12}
    mixed = jedi.Built(config_of(joint__sampling="proportional"), 0)
    assert len(mixed.batches("joint")) == 52 and mixed.groups("joint", SETS) == 1
    pool = whole.built.batches("joint")["pool"]
    assert all(pool[i].labels == {} for i in range(len(pool)))


# before anything is trained


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sets__extra": {}}, "tasks: no 'extra', which config.sets has"),
        ({"experts__extra": {"frames": 4}}, "tasks: no 'extra', which config.experts has"),
        ({"tasks__extra": {"kind": "action"}}, "sets: no 'extra', which config.tasks has"),
        ({"experts": {"camera": {"frames": 4}}}, "experts: no 'turns', which config.tasks has"),
        ({"experts__camera__frames": 0}, "experts.camera.frames 0: at least 1"),
        ({"experts__camera": {"model": {}}}, "experts.camera.frames None: at least 1"),
        ({"experts__camera__depth": 18}, "experts.camera.depth: not one of"),
        ({"experts__camera__model": {"backbone": {"wide": 3}}}, "model.backbone: .*wide"),
        ({"expert__stepz": 5}, "expert.stepz: not one of"),
        ({"expert__distill": 1.0}, "expert.distill: not one of"),
        ({"joint__stepz": 5}, "joint.stepz: not one of"),
        ({"joint__pool_images": 5}, "pool_images"),
        ({"joint__epochs": 5}, "joint.epochs: not one of"),
        ({"joint__teacher_gradient": "some"}, "joint.teacher_gradient 'some': one of"),
        ({"joint__sampling": "random"}, "joint.sampling 'random': 'equal' or"),
        ({"joint__threshold": 1.0}, "joint.threshold 1.0: 0 to below 1"),
        ({"joint__ema_teacher": -0.1}, "joint.ema_teacher -0.1"),
        ({"joint__temperature": 0.0}, "joint.temperature 0.0: must be positive"),
        ({"joint__balance": {"kind": "best"}}, "balance.kind 'best'"),
        ({"arms": {"odd": {"stepz": 5}}}, "arms.odd.stepz"),
        ({"arms": {"odd": {"weights": {}}}}, "arms.odd.weights: not one of"),
        ({"arms": {"odd": {"temperature": -1}}}, "arms.odd.temperature -1: must be positive"),
        ({"arms": {"experts": {}}}, "arms.experts: a name"),
        ({"arms": {"student": {}}}, "arms.student: a name"),
        ({"arms": {"jedi": {}}}, "arms.jedi: the results have"),
        ({"arms": {"teacher": {}}}, "arms.teacher: the results have"),
        ({"joint__own_set": "no"}, "joint.own_set 'no': like False"),
        ({"joint__threshold": "a"}, "joint.threshold 'a': like 0.0"),
        ({"arms": {"odd": {"ema_teacher": None}}}, "arms.odd.ema_teacher None: like 0.0"),
        ({"joint__select": "last", "joint__patience": 2}, "joint.patience 2: needs select"),
        ({"seeds": []}, "seeds, measured_on, tasks: give at least one"),
        ({"measured_on": ["nope"]}, "no split 'nope'"),
        ({"overlaps": "some"}, "overlaps 'some': one of refuse, drop, ignore"),
        ({"tasks__camera": {"kind": "detection"}}, "tasks.camera: joint experts know classes, not detection"),
        (
            {"sets__turns__validation": config_of()["sets"]["turns"]["test"]},
            "the turns validation and the turns test set share",
        ),
        ({"joint__normalize": "items"}, "joint.normalize: not one of"),
        ({"arms": {"odd": {"steps": 5}}}, "arms.odd.steps: every arm makes as many"),
        ({"test_clips": 0}, "test_clips 0: at least 1"),
        ({"pairs": [["student", "plane"]]}, "pairs: no column 'plane': expert, student, teacher, plain"),
        ({"arms": {}}, "pairs: no column 'plain': expert, student, teacher"),
        ({"pairs": ["student"]}, "pairs: 'student' is not two columns"),
        ({"controls": ["shuffled"]}, "controls: no column 'shuffled'"),
        (
            {"expected": [["student", "frozen-teacher"]]},
            "expected: student and frozen-teacher are not one of config.pairs",
        ),
        (
            {"pool__both__actions": "camera", "pool__both__labels": True, "pool__both__task": "camera"},
            "pool: .* has labels of 'camera'",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(change, says):
    with pytest.raises(UserError, match=says) as raised:
        jedi.check(config_of(**change))
    assert "\n" not in str(raised.value)


def test_clips_of_a_test_set_may_not_train_another_expert():  # J9
    config = config_of(overlaps="refuse")

    def find(**changes):
        return overlapping.find({**config, **changes}, config["seeds"][0], directory="", report=None)

    assert find() == {"dropped": [], "overlaps": []}
    leak = {**config["sets"]["camera"]["test"], "labels": False, "name": "other-videos", "start": 3, "count": 2}
    config["pool"]["leak"] = leak
    shows = r"other-videos/3 \(pool other-videos\) shows what moving-camera-indoor-test-0/3 \(camera test"
    with pytest.raises(UserError, match=shows):
        find()
    dropped = find(overlaps="drop")["dropped"]
    assert dropped == ["other-videos/3", "other-videos/4"]
    everything = JointBuilt(config, 0).everything().ids
    kept = JointBuilt(config, 0, dropped).everything().ids
    assert set(everything) - set(kept) == set(dropped) and len(kept) == len(everything) - 2


def test_validation_clips_that_another_set_tests_select_nothing():  # J9
    config = config_of(overlaps="refuse")
    names = list(config["sets"])
    test = config["sets"][names[0]]["test"]
    config["sets"][names[0]]["validation"] = {**test, "name": "held-out-again"}
    found = overlapping.find({**config, "overlaps": "drop"}, 0, directory="", report=None)
    assert len(found["dropped"]) == test["count"] and all(id.startswith("held-out-again/") for id in found["dropped"])
    with pytest.raises(UserError, match="held-out-again/"):
        overlapping.find(config, 0, directory="", report=None)
    assert len(JointBuilt(config, 0, found["dropped"][1:]).split(names[0], "validation")) == 1


def test_weights_that_are_not_finite_are_never_kept(tmp_path):
    config = config_of()
    config["expert"]["optimizer"]["learning_rate"] = 1e30
    config["expert"]["optimizer"].pop("clip_norm", None)
    with pytest.raises(UserError, match="not finite"):
        run(jedi, config, str(tmp_path / "run"), stage="experts")
    for path in (tmp_path / "run").rglob("weights"):
        kept = Checkpoints(str(path))
        if kept.latest() is not None:
            assert np.isfinite(list(kept.facts()["validation"].values())).all() and kept.facts()["step"] == 1


def test_the_dry_run_says_what_every_run_costs(capsys):
    dry_run(jedi, config_of())
    said = capsys.readouterr().out
    rows = {"expert camera": 4, "expert turns": 4, "joint all tasks": 12, "plain all tasks": 12, "frozen all tasks": 12}
    for run_of, count in rows.items():
        (line,) = [line for line in said.splitlines() if line.strip().startswith(run_of)]
        assert f"6 steps of {count}," in line
