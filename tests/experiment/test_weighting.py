"""Weights and corrections on their way from a validation split to the step: joined by id, renewed, resumed, refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import Batch, Model, Policy, UserError
from must.data.combine import Subset
from must.data.merge import BY_TEACHER, Paired
from must.data.pipeline import Encoder, Joined, train_batches
from must.data.weights import write_weights
from must.experiment import build, labeling, weighting
from must.experiment.checks import check_sets
from must.experiment.jobs import run_jobs
from must.experiment.labeling import records_directory
from must.experiment.run import members
from must.experiment.settings import Must
from must.experiment.students import given_weights, student_source
from must.objectives.labels import labels as labels_part
from must.objectives.objective import objective as make_objective
from must.pseudo_label import weigh
from must.readers.records import Records
from must.recipes import must as recipe
from must.tasks.classification import Classification
from must.train.checkpoint import Checkpoints
from tests.support.configs import ROOT, check, config_of, run, settings_of
from tests.support.memory_source import Memory

CONFIG = "tests/support/weighted_config.py"


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """A workdir with teachers and their labels of pool and validation split."""
    workdir = tmp_path_factory.mktemp("weighting") / "run"
    for stage in ("teachers", "label"):
        run(config_of(CONFIG), workdir, stage)
    return workdir


@pytest.fixture(scope="module")
def evidence(labeled):
    return _evidence(labeled, {"kind": "ratio_of_means", "every": 4})


def _evidence(workdir, weights=None, slam=None, tasks=None):
    """What a workdir holds, for an arm with these sections."""
    arm = {"weights": weights or {}, "slam": slam or {}, "tasks": tasks or {}}
    settings: Must = settings_of(config_of(CONFIG, arms={"tried": arm}))
    student = build.student(settings, "tried")
    names = list(settings.tasks)
    records = Records(records_directory(str(workdir)), tasks=names)
    held_out = Records(records_directory(str(workdir), "held_out"), tasks=names)
    source = student_source(settings, student, records)
    policies = labeling.policies_of(settings, str(workdir), "tried")
    return weighting.Evidence(settings, student, "tried", policies, source, records, held_out)


def _variables(evidence, seed):
    return evidence.model.init(jax.random.key(seed), np.zeros((1, *evidence.settings.image.size, 3), np.uint8))


# --- Joining ---


def test_numbers_are_joined_by_id_and_absent_stays_absent():
    labels = [{"classification": {"ids": [i % 2], "probs": [1.0], "rest": 0.0}} if i != 3 else {} for i in range(8)]
    source = Memory("m", labels, {"classification": ("a", "b")})
    table, alpha = np.arange(1, 9, dtype=np.float32), np.linspace(0, 1, 8, dtype=np.float32)
    encoder, extras = (
        Encoder({"classification": Classification(("a", "b"))}, (8, 8)),
        {"classification": {"accuracy": alpha}},
    )
    joined = Joined(
        train_batches(source, encoder, batch_size=4, seed=0, extras=extras), {"classification": {"estimated": table}}
    )
    seen = set()
    for _ in range(4):
        batch = next(joined)
        np.testing.assert_array_equal(batch.weights["classification"], np.where(batch.ids == 3, 0, table[batch.ids]))
        np.testing.assert_array_equal(batch.extras["classification"]["accuracy"], alpha[batch.ids])
        seen |= set(batch.ids.tolist())
    assert seen == set(range(8))
    position, following = joined.get_state(), next(joined)
    joined.weights = {
        "classification": {"estimated": 5 * table, "confidence": np.float32([2.0]).repeat(len(table))}
    }  # a refresh holds from the next batch on
    joined.set_state(position)
    again = next(joined)
    np.testing.assert_array_equal(again.ids, following.ids)
    np.testing.assert_allclose(again.weights["classification"], 10 * following.weights["classification"])


def test_the_teacher_stands_beside_the_truth():
    truth = Memory("m", [{"depth": {"v": np.float32(i)}} for i in range(3)])
    records = Memory(
        "r", [{"depth": {"v": np.float32(10 + i)}} for i in range(5)], keys=[f"m/{i}" for i in (4, 2, 1, 0, 3)]
    )
    paired = Paired(truth, records)
    assert list(paired.ids) == ["m/0", "m/1", "m/2"]
    assert [(paired[i].labels["depth"]["v"], paired[i].labels["depth" + BY_TEACHER]["v"]) for i in range(3)] == [
        (0, 13),
        (1, 12),
        (2, 11),
    ]
    with pytest.raises(UserError, match="no pseudo labels of m/0"):
        Paired(truth, Memory("r", [{}], keys=["m/2"]))


# --- P4, P5, W4, W8: what a constant weight does in the objective ---


def _two_logits():
    """A model whose one parameter is the margin of class 1 over class 0 for every image."""

    def apply(variables, images, *, train, key, axis_name=None):
        margin = variables["params"]["margin"]
        return {"classification": jnp.stack([jnp.zeros(len(images)), jnp.full(len(images), margin)], -1)}, {}

    return Model(lambda key, images: {"params": {"margin": jnp.float32(0)}}, apply)


HARD = Classification(("no", "yes"), hard=True)


def _gradient(margin, labels, weights, task=HARD):
    objective = make_objective(
        _two_logits(),
        [labels_part({"classification": task}, {"classification": Policy(0.0, 0.0)})],
        scales={"classification": 1.0},
    )
    _, state = objective.init(jax.random.key(0))
    probs = np.stack([1 - np.asarray(labels), np.asarray(labels)], -1).astype(np.float32)
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    batch = Batch(
        {"image": images},
        {"classification": {"probs": probs}},
        {"classification": jnp.asarray(weights)},
        np.arange(len(labels)),
    )

    def loss(margin):
        ratios, _, _ = objective.terms({"model": {"margin": margin}}, {}, state, None, batch, jax.random.key(0), None)
        ratio = ratios["classification/class"]
        return ratio.num / ratio.den

    return float(jax.grad(loss)(jnp.float32(margin)))


def test_constant_weights_move_no_stationary_point_and_differentiated_ones_do():
    says = [1.0, 1.0, 1.0, 1.0, 0.0]  # right with probability .8
    true, wrong = (lambda m: jnp.logaddexp(0.0, -m)), (lambda m: jnp.logaddexp(0.0, m))
    weight = lambda m: weigh.exact(0.8, wrong(m) / true(m))  # noqa: E731
    for margin in (0.3, float(np.log(4)), 3.0):
        plain = _gradient(margin, says, np.ones(5, np.float32))
        weighted = _gradient(margin, says, np.full(5, weight(margin), np.float32))
        np.testing.assert_allclose(weighted, weight(margin) * plain, rtol=1e-4, atol=1e-7)
    assert abs(_gradient(np.log(4), says, np.full(5, weight(np.log(4)), np.float32))) < 1e-6
    through = jax.grad(lambda m: weight(m) * (0.8 * true(m) + 0.2 * wrong(m)))(jnp.log(4.0))
    np.testing.assert_allclose(through, jax.grad(true)(jnp.log(4.0)), rtol=1e-4)  # the clean gradient, which is not 0
    assert abs(through) > 0.1


def test_several_wrong_labels_count_by_their_mean():
    rng = np.random.default_rng(0)
    loss, p = -np.log(rng.dirichlet(np.ones(5), 20)), 0.6
    among_wrong = rng.dirichlet(np.ones(4), 20)  # class 0 is the truth
    distortion = (among_wrong * loss[:, 1:]).sum(1) / loss[:, 0]
    risk = p * loss[:, 0] + (1 - p) * (among_wrong * loss[:, 1:]).sum(1)
    np.testing.assert_allclose(weigh.exact(np.full(20, p), distortion) * risk, loss[:, 0], rtol=1e-12)
    with pytest.raises(AssertionError):  # the likeliest wrong label alone is not enough
        one = loss[:, 1:].max(1) / loss[:, 0]
        np.testing.assert_allclose(weigh.exact(np.full(20, p), one) * risk, loss[:, 0], rtol=0.05)


def test_the_ratio_is_of_the_loss_that_is_trained_on(labeled, evidence):
    """Hard ratios on soft losses leave a bias; every run measures in its own."""
    rng = np.random.default_rng(0)
    teacher = 0.7 * np.eye(4)[rng.integers(0, 4, 400)] + 0.3 * rng.dirichlet(np.ones(4), 400)
    student = 0.6 * np.eye(4)[teacher.argmax(1)] + 0.4 * rng.dirichlet(np.ones(4), 400)
    truth = np.where(rng.random(400) < 0.8, teacher.argmax(1), rng.integers(0, 4, 400))
    log = -np.log(student)
    true, soft = log[np.arange(400), truth], (teacher * log).sum(1)
    hard = log[np.arange(400), teacher.argmax(1)]
    at = np.zeros((400, 2))
    estimate = lambda loss: weigh.ratio_of_means(weigh.HeldOut(at, true, loss), neighbors=400)(at)  # noqa: E731
    assert abs((estimate(soft) * soft).mean() - true.mean()) < 1e-3
    assert abs((estimate(hard) * soft).mean() - true.mean()) > 0.02
    # A run that learns from hard labels gets the weights of hard losses.
    kind = {"kind": "ratio_of_means", "bounded": False, "tasks": ["classification"]}
    runs = [_evidence(labeled, kind, tasks={"classification": {"hard": hard}}) for hard in (False, True)]
    soft, hard = (
        weighting.weighting_of(run)[0].factors(_variables(evidence, 0))["classification"]["estimated"] for run in runs
    )
    assert not np.allclose(soft, hard, rtol=1e-3)


# --- Refreshing, on real records ---


def _estimated(scheme, variables):
    return {name: factors["estimated"] for name, factors in scheme.factors(variables).items()}


def test_a_frozen_student_gets_the_same_weights_and_another_one_others(evidence):
    scheme, seen = weighting.weighting_of(evidence)
    first, again, other = (_estimated(scheme, _variables(evidence, seed)) for seed in (0, 0, 1))
    for name in tuple(evidence.tasks):
        np.testing.assert_array_equal(first[name], again[name])
        assert len(first[name]) == len(evidence.ids) and first[name].std() > 0
        assert not np.allclose(first[name], other[name])
        true = np.array([id in evidence.annotated[name] for id in evidence.ids])
        assert true.any() and (first[name][true] == 1).all() and (first[name] > 0).all()
    assert scheme.every == 4 and f"{next(iter(evidence.tasks))}|held_out" in seen


def test_tasks_do_not_share_a_unit(labeled, evidence):
    both, _ = weighting.weighting_of(evidence)
    one, _ = weighting.weighting_of(_evidence(labeled, {"kind": "ratio_of_means", "tasks": ["depth"]}))
    variables = _variables(evidence, 0)
    together, alone = _estimated(both, variables), _estimated(one, variables)
    assert set(alone) == {"depth"}
    np.testing.assert_array_equal(together["depth"], alone["depth"])
    assert not np.allclose(together["depth"], together["classification"])


def test_estimates_are_shown_beside_what_the_truth_gives_the_same_student(labeled, evidence):
    own, true = (_evidence(labeled, {"kind": kind}) for kind in ("ratio_of_means", "oracle"))
    shown = {}
    for name, each in (("estimated", own), ("oracle", true)):
        scheme, seen = weighting.weighting_of(each)
        shown[name] = weighting.weights_to_show(each, scheme, seen, _variables(evidence, 0))
    known = [name for name in own.tasks if name in own.oracles]
    assert known and {key.partition("|")[0] for key in shown["estimated"] if "true" in key} == set(known)
    for name in known:
        found, told = shown["estimated"][f"{name}|true_weights"], shown["oracle"][f"{name}|weights"]
        ids = np.array(own.pool.ids)[shown["estimated"][f"{name}|places"]]
        np.testing.assert_array_equal(found, np.where(np.isin(ids, own.oracles[name].ids), told, np.nan))
        assert np.isfinite(found).any() and np.isnan(found).any()  # images of the other task's set have no truth
        assert not np.allclose(shown["estimated"][f"{name}|weights"], found)
    assert not any("true_weights" in key for key in shown["oracle"])


def test_a_figure_that_cannot_be_drawn_does_not_cost_the_student(labeled, evidence):
    own = _evidence(labeled, {"kind": "ratio_of_means", "tasks": ["classification"], "neighbors": 20})
    scheme, seen = weighting.weighting_of(own)
    variables, truth = _variables(evidence, 0), own.oracles["classification"]
    own.oracles["classification"] = Subset(truth, count=10)  # fewer than the neighbors that are asked for
    assert "classification|true_weights" in weighting.weights_to_show(own, scheme, seen, variables)
    own.oracles["classification"] = Memory("m", [], {})
    assert "classification|true_weights" not in weighting.weights_to_show(own, scheme, dict(seen), variables)
    unlabeled = Memory("m", [{}] * 3, {"classification": truth.classes["classification"]}, keys=truth.ids[:3])
    own.oracles["classification"] = unlabeled
    with pytest.warns(UserWarning, match="lacks weights from the truth"):
        assert "classification|true_weights" not in weighting.weights_to_show(own, scheme, dict(seen), variables)


def test_corrections_come_from_the_teacher_alone(labeled):
    evidence = _evidence(labeled, slam={"enabled": True, "floor": 0.01, "tasks": ["classification"]})
    scheme, seen = weighting.weighting_of(evidence)
    assert not scheme.factors(_variables(evidence, 0)) and set(scheme.extras) == {"classification"}
    extras = scheme.extras["classification"]
    true = np.array([id in evidence.annotated["classification"] for id in evidence.ids])
    assert (extras["accuracy"][true] == 1).all() and (extras["candidates"][true] == 1).all()
    alive = extras["accuracy"][~true] - 1 / extras["candidates"][~true]
    assert (extras["accuracy"] > 0).all() and (extras["accuracy"] <= 1).all() and alive.min() > 0.04
    assert (extras["candidates"][~true] >= 2).all()
    assert np.isin(seen["classification|correct"][np.isfinite(seen["classification|correct"])], (0, 1)).all()


def test_validation_sets_share_nothing_with_the_training_sets():
    """W5: a teacher is better on its training images, so such a validation set would hide its errors."""
    config = config_of(CONFIG)
    for name in config["sets"]:
        config["sets"][name]["validation"] = config["sets"][name]["train"]
    settings = settings_of(config)
    with pytest.raises(UserError, match="training and the validation set share classification/"):
        check_sets(settings, build.all_images(settings), build.pool(settings))


RATIO = {"kind": "ratio_of_means"}


@pytest.mark.parametrize(
    "weights, slam, message",
    [
        ({"kind": "means"}, {}, "weights.kind='means'"),
        ({"kind": "plug_in", "tasks": ["depth"]}, {}, "not on 'depth'"),
        ({"kind": "plug_in", "tasks": ["classification"]}, {}, "needs hard labels"),
        ({**RATIO, "confident": True}, {}, "not on 'depth'"),
        ({**RATIO, "neighbors": 33}, {}, "neighbors=33: the validation set of classification has 32"),
        ({**RATIO, "neigbors": 3}, {}, "tried.weights.neigbors: unknown key; did you mean neighbors"),
        ({**RATIO, "tasks": ["boxes"]}, {}, "no task 'boxes'"),
        ({}, {"enabled": True, "floor": 0.3}, "not on 'depth'"),
        ({}, {"enabled": True, "floor": 1.05, "tasks": ["classification"]}, "floor=1.05: must be"),
        (RATIO, {"enabled": True, "floor": 0.3}, "choose one"),
    ],
)
def test_corrections_that_cannot_work(weights, slam, message):
    with pytest.raises(UserError, match=message):
        check(config_of(CONFIG, arms={"tried": {"weights": weights, "slam": slam}}))


def test_only_students_learn_pseudo_labels():
    with pytest.raises(UserError, match=r"config.teacher.slam: unknown key"):
        settings_of(config_of(CONFIG, teacher__slam={"enabled": True}))


def test_the_truth_of_other_images_is_refused():
    settings = settings_of(config_of(CONFIG, oracle_truth__depth__split="test"))
    with pytest.raises(UserError, match=r"oracle_truth.depth: .+ is not in the pool"):
        check_sets(settings, build.all_images(settings), build.pool(settings))


def test_oracles_need_a_truth():
    for arm in ({"weights": {"kind": "oracle"}}, {"oracle_labels": True}):
        with pytest.raises(UserError, match="config.oracle_truth"):
            check(config_of(CONFIG, arms={"tried": arm}, oracle_truth={}))


def test_a_student_that_is_not_finite_is_refused(evidence):
    scheme, _ = weighting.weighting_of(evidence)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), _variables(evidence, 0))
    with pytest.raises(UserError, match="not finite"):
        scheme.factors(broken)


# --- Whole runs ---


def _student_command(workdir):
    return [sys.executable, "-m", "must.main", f"--config={CONFIG}", f"--workdir={workdir}", "--stage=student"]


def test_a_killed_weighted_student_ends_like_an_unbroken_one(labeled, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(labeled, whole)
    run(config_of(CONFIG), whole, "student")
    shutil.copytree(whole, killed)  # the others are done
    shutil.rmtree(killed / "arms" / "weighted")
    checkpoints = killed / "arms" / "weighted" / "checkpoints"
    process = subprocess.Popen(_student_command(killed), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.time() + 200
    while not any(p.name.isdigit() for p in checkpoints.glob("*")) and process.poll() is None and time.time() < end:
        time.sleep(0.02)
    alive = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert alive and not (killed / "arms" / "weighted" / "done.json").exists()
    run(config_of(CONFIG), killed, "student")
    ends = lambda top: Checkpoints(str(top / "checkpoints")).facts()["sha256"]  # noqa: E731
    assert ends(killed / "arms" / "weighted") == ends(whole / "arms" / "weighted")
    for workdir in (whole, killed):  # refreshed at every fourth step, to something else
        lines = [
            json.loads(line) for line in (workdir / "arms" / "weighted" / "metrics.jsonl").read_text().splitlines()
        ]
        means = {line["step"]: line["weight/depth/estimated"] for line in lines if "weight/depth/estimated" in line}
        assert list(means) == [0, 4, 8] and len(set(means.values())) == 3
    students = ["student", *(f"arms/{arm}" for arm in ("weighted", "corrected", "told"))]
    assert len({ends(whole / at) for at in students}) == 4  # every arm is a student of its own


def test_a_student_teaches_the_next_round_and_arms_have_their_own_policies(labeled, tmp_path):
    workdir = shutil.copytree(labeled, tmp_path / "run")
    (workdir / "policy" / "done.json").unlink()
    records = Records(records_directory(str(workdir)))
    write_weights(tmp_path / "weights.csv", {"depth": dict.fromkeys(records.ids[-8:], 0.25)})
    arms = {
        "own": {
            "policies": {"classification": {"from_validation": True, "target_precision": 0.6}},
            "weights_file": str(tmp_path / "weights.csv"),
        },
        "again": {"labels_from": "own"},
    }
    config = config_of(CONFIG, student__steps=2, student__checkpoint_every=2, arms=arms)
    settings, mine = settings_of(config), members(recipe.RECIPE, config)
    jobs = {job.name: job for job in recipe.jobs(mine, 1)}
    assert jobs["arms/own"].needs == ("policy",) and jobs["label_by/own/0"].needs == ("arms/own",)
    order = ("policy", "arms/own", "label_by/own/0", "policy_by/own", "arms/again")
    run_jobs(str(workdir), [jobs[name] for name in order], workers=1)
    own, again = (labeling.policies_of(settings, str(workdir), arm) for arm in ("own", "again"))
    assert own["classification"].curve.shape == (12, 33) and again["classification"].positive == 0
    student = Records(records_directory(str(workdir), by="own"))
    assert student.ids == records.ids
    assert {facts["teacher"] for facts in student.provenance["tasks"].values()} == {"own"}
    assert student.provenance["tasks"]["depth"]["fingerprint"] != records.provenance["tasks"]["depth"]["fingerprint"]
    run = build.student(settings, "own")
    ids = list(student_source(settings, run, records).ids)
    factors = given_weights(settings, run, ids, records)
    assert {name for name, given in factors.items() if "file" in given} == {"depth"}
    assert {id for id, weight in zip(ids, factors["depth"]["file"], strict=True) if weight == 0.25} == set(
        records.ids[-8:]
    )
    heavy = given_weights(settings, dataclasses.replace(run, weights_file="", truth_weight=3.0), ids, records)
    for name, given in heavy.items():
        true = set(build.split(settings, name, "train").ids)
        assert given["truth"].tolist() == [3.0 if id in true else 1.0 for id in ids]
    logged = [json.loads(line) for line in (workdir / "arms" / "own" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in logged if "weight/depth/file" in line)
    assert first["step"] == 0 and first["weight/depth/file"] == pytest.approx(factors["depth"]["file"].mean())
    for lines, message in (("elsewhere,depth,1", "'elsewhere', which has a weight for depth"), ("x,edges,1", "edges")):
        (tmp_path / "wrong.csv").write_text(f"id,task,weight\n{lines}\n")
        with pytest.raises(UserError, match=message):
            given_weights(settings, dataclasses.replace(run, weights_file=str(tmp_path / "wrong.csv")), ids, records)


@pytest.mark.parametrize(
    "arms, message",
    [
        ({"a": {"labels_from": "b"}}, "a.labels_from='b': arms learn from"),
        ({"a": {"labels_from": "b"}, "b": {"labels_from": "a"}}, "goes in a circle"),
    ],
)
def test_rounds_begin_with_teachers(arms, message):
    with pytest.raises(UserError, match=message):
        check(config_of(CONFIG, arms=arms))
