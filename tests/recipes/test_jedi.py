"""The JEDI recipe: experts, joint stage, arms and page on a finished run; patience, resuming, mistakes."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from must.core.types import UserError
from must.data.pipeline import eval_batches
from must.experiment import jobs, measure, networks
from must.experiment import joint as stage
from must.experiment.joint import JointSettings, Seed
from must.models.experts import from_experts
from must.recipes.jedi import RECIPE
from must.recipes.table import dry_run
from must.train.checkpoint import Checkpoints
from tests.support import configs
from tests.support.commands import run_code
from tests.support.configs import ROOT, check, log_of, run, settings_of

SETS = ("camera", "turns")
STEPS = 6
ROWS = 16  # the clips of a batch in which the recipe times its networks: their programs are compiled by then


def config_of(**changes) -> dict[str, Any]:
    """The tiny configuration; changes by dotted key with "__" for the dot."""
    return configs.config_of("tests/support/jedi_config.py", **changes)


class Finished(NamedTuple):
    config: dict
    top: Path
    settings: JointSettings
    experts_before: dict  # {file: bytes} when the joint stage began


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stages(config, top, *names):
    for name in names:
        run(config, top, name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed, to the page."""
    top, config = tmp_path_factory.mktemp("jedi") / "run", config_of()
    stages(config, top, "experts")
    before = contents(top / "experts")
    stages(config, top, "joint", "compare", "report")
    return Finished(config, top, settings_of(config), before)


def lines(directory: Path, key: str) -> dict[int, float]:
    """{step: value} of metrics.jsonl."""
    found = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in found if key in line}


def scores(settings, variables, name, clips=1) -> dict[str, float]:
    """Of one network alone on the test split, counted by hand; predictions for several clips are averaged."""
    one = Seed(settings, 0)
    predict = measure.predictor(stage.expert_model(settings, name), {name: one.tasks[name]})
    right, losses = [], []
    for batch in eval_batches(
        one.split(name, "test"), stage.expert_encoder(settings, name, clips=clips), batch_size=ROWS
    ):
        images = batch.inputs["image"] if clips > 1 else batch.inputs["image"][:, None]
        probs = np.mean([predict(variables, images[:, k])[name]["probs"] for k in range(clips)], 0)
        more = counted(probs, batch, name)
        right, losses = right + more[0], losses + more[1]
    return {"top1": pytest.approx(100 * float(np.mean(right))), "nll": pytest.approx(float(np.mean(losses)), abs=1e-5)}


def weights(*parts):
    """Variables of the network in a directory."""
    return networks.load(str(Path(*map(str, parts)))).variables


def joint_predictor(settings):
    return measure.predictor(stage.joined(settings).model, stage.both_tasks(Seed(settings, 0).tasks))


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


def test_a_student_alone_has_the_scores_of_the_results(whole):
    columns = json.loads((whole.top / "results.json").read_text())["columns"]
    jobs_of = {"experts/{}": "expert", "joint/jedi": "student", "joint/plain": "plain", "joint/frozen": "frozen"}
    for name in SETS:
        for job, column in jobs_of.items():
            at = whole.top / job.format(name) / ("" if column == "expert" else f"students/{name}")
            recorded = measured(jobs.facts(str(whole.top), job.format(name)), name)
            assert recorded == scores(whole.settings, weights(at), name), (name, column)
            assert columns[column]["scores"]["test"][name] == [recorded["top1"]]


def test_a_teacher_has_the_scores_of_the_results(whole):
    predict = joint_predictor(whole.settings)
    variables = stage.load_joint(whole.settings, str(whole.top / "joint" / "jedi"))
    for name in SETS:
        right, losses = [], []
        encoder = stage.joint_encoder(whole.settings, tasks=(name,))
        for batch in eval_batches(Seed(whole.settings, 0).split(name, "test"), encoder, batch_size=ROWS):
            more = counted(np.asarray(predict(variables, batch.inputs)[f"{name}-teacher"]["probs"]), batch, name)
            right, losses = right + more[0], losses + more[1]
        recorded = measured(jobs.facts(str(whole.top), "joint/jedi"), f"{name}-teacher")
        assert recorded["top1"] == pytest.approx(100 * np.mean(right))
        assert recorded["nll"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_teachers_start_as_their_experts(whole):  # J1, through what is on disk
    experts = {name: weights(whole.top, "experts", name) for name in SETS}
    encoder = stage.joint_encoder(whole.settings)._replace(tasks={})
    batch = next(eval_batches(Seed(whole.settings, 0).split("turns", "test"), encoder, batch_size=ROWS))
    predictions = joint_predictor(whole.settings)(jax.device_put(from_experts(experts)), batch.inputs)
    for name in SETS:
        student = np.asarray(predictions[name]["probs"])
        np.testing.assert_allclose(predictions[f"{name}-teacher"]["probs"], student, atol=1e-5)
        assert np.ptp(student, axis=0).max() > 1e-3  # a constant prediction would start as any other


def test_frozen_backbones_stay_those_of_the_experts_to_the_bit(whole):
    for name in SETS:
        expert = weights(whole.top, "experts", name)
        frozen, moved = (weights(whole.top, "joint", arm, "students", name) for arm in ("frozen", "jedi"))
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
    assert set(results["columns"]) == {"guess", *columns} and results["mean_task"]
    means = [one for one in results["contrasts"] if one["task"] == "mean"]
    assert results["seeds"] == [0] and all(one["interval_over"] == "images" for one in means)
    assert [one["expected"] for one in means] == ["above", None, None, None] and all(not one["pairs"] for one in means)


def test_other_labels_of_one_set_change_no_other_expert(whole, tmp_path):  # J3
    config = config_of()
    config["sets"]["camera"]["train"]["kind"] = "tests.support.jedi_config:Relabeled"
    for name, changed in (("turns", False), ("camera", True)):
        directory = tmp_path / "experts" / name
        stage.train_expert(settings_of(config), 0, name, directory=str(directory), report=quiet)
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
import os, pickle, signal
from must.experiment import joint

def report(at, steps, note):
    if at == 5:
        os.kill(os.getpid(), signal.SIGKILL)

settings = pickle.loads(bytes.fromhex({settings!r}))
joint.train_joint(settings, 0, "jedi", directory={directory!r}, report=report)
"""


def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path):
    directory = with_experts(whole, tmp_path) / "joint" / "jedi"
    os.makedirs(directory)
    killed = run_code(KILLED.format(settings=pickle.dumps(whole.settings).hex(), directory=str(directory)), ROOT)
    assert killed.code == -9, killed.lines
    assert Checkpoints(str(directory / "checkpoints")).latest() in (2, 4)  # written while training goes on
    facts = stage.train_joint(whole.settings, 0, "jedi", directory=str(directory), report=quiet)
    there = jobs.facts(str(whole.top), "joint/jedi")
    assert {key: facts[key] for key in ("steps", "selected_steps", "test")} == {
        key: there[key] for key in ("steps", "selected_steps", "test")
    }
    for part in ("checkpoints", "weights", *(f"students/{name}/weights" for name in SETS)):
        a, b = (Checkpoints(str(top / part)).facts()["sha256"] for top in (directory, whole.top / "joint" / "jedi"))
        assert a == b, part
    assert log_of(directory) == log_of(whole.top / "joint" / "jedi")


def test_a_run_that_cannot_improve_stops_and_stays_stopped(whole, tmp_path):
    """Learning rate 0: every validation is a tie. No pool, three clips in test; the arm may not stop by itself."""
    still = {**whole.config["joint"]["optimizer"], "learning_rate": 1e-38}
    config = config_of(joint__optimizer=still, joint__patience=2, pool={}, test_clips=3, pairs=[], expected=[])
    config["arms"] = {"frozen": {"frozen": True, "patience": 1}}
    top = with_experts(whole, tmp_path / "run")
    stages(config, top, "joint")
    facts = {arm: jobs.facts(str(top), f"joint/{arm}") for arm in ("jedi", "frozen")}
    assert facts["jedi"]["steps"] == 3 and facts["frozen"]["steps"] == 3  # the first, and two that were no better
    assert (
        facts["jedi"]["selected_steps"] == dict.fromkeys(SETS, 1) and facts["jedi"]["selected_step"] == 1
    )  # ties keep the earlier
    for name in SETS:
        expert = weights(top, "experts", name)
        assert same(expert, weights(top, "joint", "jedi", "students", name))
        assert measured(facts["jedi"], name) == scores(settings_of(config), expert, name, clips=3)
    before = contents(top / "joint" / "jedi" / "checkpoints"), (top / "joint" / "jedi" / "metrics.jsonl").read_text()
    (top / "joint" / "jedi" / "done.json").unlink()  # killed after the last checkpoint, before its record
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
    settings = settings_of(config)
    found = {"camera": np.ones((2, 500), np.float32), "turns": np.ones((2, 500), np.float32)}
    ones = {"logits": {"kernel": np.ones((500, 1), np.float32), "bias": 0.0}}
    params = {"experts": {name: {f"heads_{name}": ones} for name in SETS}}
    for arm, name, rate in (("jedi", "camera", 0.25), ("more", "camera", 0.9), ("more", "turns", 0.25)):
        students = stage.joined(settings, stage.run_of(settings, arm)).students
        kept = students(params, found, (jax.random.key(1), np.arange(2)))[name] * (1 - rate) / 500
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
    config["image"] = {"size": [16, 16]}
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
    settings = settings_of(config)
    for name in domains:
        student = weights(tmp_path, "run", "joint", "jedi", "students", name)
        assert measured(jobs.facts(str(tmp_path / "run"), "joint/jedi"), name) == scores(settings, student, name)
    assert (
        len(stage.joint_batches(Seed(settings, 0), settings.joint)) == 36
        and (tmp_path / "run" / "report.html").exists()
    )


def test_what_a_step_draws_from(whole):
    groups = stage.joint_batches(Seed(whole.settings, 0), whole.settings.joint)
    assert {name: len(source) for name, source in groups.items()} == {"camera": 20, "turns": 20, "pool": 12}
    mixed = settings_of(config_of(joint__sampling="proportional"))
    assert len(stage.joint_batches(Seed(mixed, 0), mixed.joint)) == 52
    assert stage.batches_of_step(mixed, mixed.joint, SETS) == 1
    assert all(groups["pool"][i].labels == {} for i in range(len(groups["pool"])))


# before anything is trained


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets__extra": {}}, "sets.extra: config.tasks has no such task"),
        ({"experts__extra": {"frames": 4}}, "experts.extra: config.tasks has no such task"),
        ({"tasks__extra": {"kind": "action"}}, "sets: no 'extra', which config.tasks has"),
        ({"experts": {"camera": {"frames": 4}}}, "experts: no 'turns', which config.tasks has"),
        ({"experts__camera__frames": 0}, "experts.camera.frames=0: must be at least 1"),
        ({"experts__camera__depth": 18}, "experts.camera.depth: unknown key"),
        ({"experts__camera__model": {"backbone": {"wide": 3}}}, "camera.model.backbone.wide: unknown key"),
        ({"expert__stepz": 5}, "expert.stepz: unknown key; did you mean steps"),
        ({"expert__distill": 1.0}, "expert.distill: unknown key"),
        ({"joint__pool_images": 5}, "joint.pool_images: unknown key"),
        ({"joint__teacher_gradient": "some"}, "joint.teacher_gradient='some': choices: 'all'"),
        ({"joint__sampling": "random"}, "joint.sampling='random': choices"),
        ({"joint__threshold": 1.0}, "joint.threshold=1.0: must be at least 0 and below 1"),
        ({"joint__ema_teacher": -0.1}, "joint.ema_teacher=-0.1"),
        ({"joint__temperature": 0.0}, "joint.temperature=0.0: must be positive"),
        ({"joint__balance": {"kind": "best"}}, "joint.balance.kind='best'"),
        ({"arms": {"odd": {"stepz": 5}}}, "arms.odd.stepz: unknown key"),
        ({"arms": {"odd": {"weights": {"kind": "oracle"}}}}, "arms.odd.weights: unknown key"),
        ({"arms": {"odd": {"temperature": -1}}}, "arms.odd.temperature=-1.0: must be positive"),
        ({"arms": {"student": {}}}, "arms.student: the results already have"),
        ({"arms": {"jedi": {}}}, "joint: the results already have"),
        ({"joint__own_set": "no"}, "joint.own_set='no': expected True or False"),
        ({"joint__threshold": "a"}, "joint.threshold='a': expected a finite number"),
        ({"joint__select": "last", "joint__patience": 2}, "joint.patience=2: needs select"),
        ({"seeds": []}, "seeds"),
        ({"eval_splits": ["nope"]}, "no split 'nope'"),
        ({"overlaps": "some"}, "overlaps='some': choices: 'refuse', 'drop', 'ignore'"),
        ({"tasks__camera": {"kind": "detection"}}, "tasks.camera: joint experts predict classes, not detection"),
        (
            {"sets__turns__validation": config_of()["sets"]["turns"]["test"]},
            "the turns validation and the turns test set share",
        ),
        ({"arms": {"odd": {"steps": 5}}}, "arms.odd.steps: every arm makes as many"),
        ({"test_clips": 0}, "test_clips=0: at least 1"),
        ({"pairs": [["student", "plane"]]}, "'plane': did you mean 'plain'"),
        ({"arms": {}}, "'plain'"),
        ({"pairs": ["student"]}, r"pairs\[0\]='student': expected a list"),
        ({"controls": ["shuffled"]}, "'shuffled'"),
        ({"expected": [["student", "frozen-teacher"]]}, "student and frozen-teacher are not one of config.pairs"),
        (
            {"pool__both__actions": "camera", "pool__both__labels": True, "pool__both__task": "camera"},
            "pool: .* has labels of 'camera'",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(change, message):
    with pytest.raises(UserError, match=message) as raised:
        check(config_of(**change))
    assert "\n" not in str(raised.value)


def find(config, **changes):
    settings = settings_of(configs.changed(config, **changes))
    return stage.find_overlaps(settings, settings.seeds[0], directory="", report=None)


def test_clips_of_a_test_set_may_not_train_another_expert():  # J9
    config = config_of(overlaps="refuse")
    assert find(config) == {"dropped": [], "overlaps": []}
    leak = {**config["sets"]["camera"]["test"], "labels": False, "name": "other-videos", "start": 3, "count": 2}
    config["pool"]["leak"] = leak
    message = r"other-videos/3 \(pool other-videos\) shows what moving-camera-indoor-test-0/3 \(camera test"
    with pytest.raises(UserError, match=message):
        find(config)
    dropped = find(config, overlaps="drop")["dropped"]
    assert dropped == ["other-videos/3", "other-videos/4"]
    settings = settings_of(config)
    whole, kept = (Seed(settings, 0, frozenset(ids)) for ids in ((), dropped))
    assert sum(map(len, whole.pool())) - sum(map(len, kept.pool())) == 2
    assert not set(dropped) & {id for source in kept.pool() for id in source.ids}


def test_validation_clips_that_another_set_tests_select_nothing():  # J9
    config = config_of(overlaps="refuse")
    names = list(config["sets"])
    test = config["sets"][names[0]]["test"]
    config["sets"][names[0]]["validation"] = {**test, "name": "held-out-again"}
    dropped = find(config, overlaps="drop")["dropped"]
    assert len(dropped) == test["count"] and all(id.startswith("held-out-again/") for id in dropped)
    with pytest.raises(UserError, match="held-out-again/"):
        find(config)
    assert len(Seed(settings_of(config), 0, frozenset(dropped[1:])).split(names[0], "validation")) == 1


def test_weights_that_are_not_finite_are_never_kept(tmp_path):
    with pytest.raises(UserError, match="not finite"):
        run(config_of(expert__optimizer__learning_rate=1e30), tmp_path / "run", "experts")
    for path in (tmp_path / "run").rglob("weights"):
        kept = Checkpoints(str(path))
        if kept.latest() is not None:
            assert np.isfinite(list(kept.facts()["validation"].values())).all()
    (named,) = (tmp_path / "run").rglob("not_finite.json")
    steps = json.loads(named.read_text())
    assert set(steps) == set("123456") and all(id.startswith("moving-") for id in steps["6"])


def test_the_dry_run_prints_what_every_run_costs(capsys):
    dry_run(RECIPE, config_of())
    printed = capsys.readouterr().out
    rows = {"expert camera": 4, "expert turns": 4, "jedi all tasks": 12, "plain all tasks": 12, "frozen all tasks": 12}
    for name, count in rows.items():
        (line,) = [line for line in printed.splitlines() if line.strip().startswith(name)]
        assert f"6 steps of {count}," in line
