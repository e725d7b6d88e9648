"""Weights and corrections on their way from a validation split to the step: joined by id, refreshed, resumed, refused."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import Batch, Model, Policy, UserError
from must.data.merge import BY_TEACHER, Paired
from must.data.pipeline import Encoder, Joined, train_batches
from must.data.weights import write_weights
from must.objectives.supervised import supervised
from must.pseudo_label import weigh
from must.readers.records import Records
from must.recipes import must as recipe
from must.recipes import weighing
from must.recipes.believing import policies_of
from must.recipes.built import Built
from must.recipes.checks import check_sets
from must.recipes.jobs import run_jobs
from must.recipes.labeling import records_directory
from must.recipes.run import run
from must.recipes.training import _student_source
from must.tasks.classification import Classification
from must.train.checkpoint import Checkpoints
from tests.support.memory_source import Memory

ROOT = Path(__file__).parents[2]
CONFIG = "tests/support/weighted_config.py"


def _config():
    spec = importlib.util.spec_from_file_location("weighted_config", ROOT / CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return json.loads(json.dumps(module.get_config().to_dict()))


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """A workdir with teachers and their labels of pool and validation split."""
    workdir = tmp_path_factory.mktemp("weighting") / "run"
    for stage in ("teachers", "label"):
        run(recipe, _config(), str(workdir), stage=stage)
    return workdir


@pytest.fixture(scope="module")
def said(labeled):
    return _said(labeled, {"kind": "ratio_of_means", "every": 4})


def _said(workdir, weights=None, slam=None, tasks=None):
    """What is known in a workdir, for an arm with these sections."""
    config, run = _config(), "tried"
    config["arms"] = {run: {"weights": weights or {}, "slam": slam or {}, "tasks": tasks or {}}}
    built = Built(config, 0)
    records = Records(records_directory(str(workdir)), tasks=list(built.names))
    held_out = Records(records_directory(str(workdir), "held_out"), tasks=list(built.names))
    source = _student_source(built, built.settings(run), records)
    return weighing.Said(built, run, policies_of(built, str(workdir), run), source, records, held_out)


def _variables(said, seed):
    model = said.built.model(said.built.names, said.run)
    return model.init(jax.random.key(seed), np.zeros((1, *said.built.size, 3), np.uint8))


# --- Joining ---


def test_numbers_are_joined_by_id_and_absent_stays_absent():
    labels = [{"classification": {"ids": [i % 2], "probs": [1.0], "rest": 0.0}} if i != 3 else {} for i in range(8)]
    source = Memory("m", labels, {"classification": ("a", "b")})
    table, alpha = np.arange(1, 9, dtype=np.float32), np.linspace(0, 1, 8, dtype=np.float32)
    encoder, extras = (
        Encoder({"classification": Classification(("a", "b"))}, (8, 8)),
        {"classification": {"accuracy": alpha}},
    )
    joined = Joined(train_batches(source, encoder, batch_size=4, seed=0, extras=extras), {"classification": table})
    seen = set()
    for _ in range(4):
        batch = next(joined)
        np.testing.assert_array_equal(batch.weights["classification"], np.where(batch.ids == 3, 0, table[batch.ids]))
        np.testing.assert_array_equal(batch.extras["classification"]["accuracy"], alpha[batch.ids])
        seen |= set(batch.ids.tolist())
    assert seen == set(range(8))
    position, following = joined.get_state(), next(joined)
    joined.weights = {"classification": 10 * table}  # a refresh holds from the next batch on
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


def _gradient(margin, labels, weights, task=Classification(("no", "yes"), hard=True)):
    objective = supervised(
        _two_logits(),
        {"classification": task},
        scales={"classification": 1.0},
        policies={"classification": Policy(0.0, 0.0)},
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


def test_the_ratio_is_of_the_loss_that_is_trained_on(labeled, said):
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
    runs = [_said(labeled, kind, tasks={"classification": {"hard": hard}}) for hard in (False, True)]
    soft, hard = (weighing.weigher(run)[0].weights(_variables(said, 0))["classification"] for run in runs)
    assert not np.allclose(soft, hard, rtol=1e-3)


# --- Refreshing, on real records ---


def test_a_frozen_student_gets_the_same_weights_and_another_one_others(said):
    weigher, seen = weighing.weigher(said)
    first, again, other = (weigher.weights(_variables(said, seed)) for seed in (0, 0, 1))
    for name in said.built.names:
        np.testing.assert_array_equal(first[name], again[name])
        assert len(first[name]) == len(said.ids) and first[name].std() > 0
        assert not np.allclose(first[name], other[name])
        true = np.array([id in said.annotated[name] for id in said.ids])
        assert true.any() and (first[name][true] == 1).all() and (first[name] > 0).all()
    assert weigher.every == 4 and f"{said.built.names[0]}|held_out" in seen


def test_tasks_do_not_share_a_unit(labeled, said):
    both, _ = weighing.weigher(said)
    one, _ = weighing.weigher(_said(labeled, {"kind": "ratio_of_means", "tasks": ["depth"]}))
    variables = _variables(said, 0)
    together, alone = both.weights(variables), one.weights(variables)
    assert set(alone) == {"depth"}
    np.testing.assert_array_equal(together["depth"], alone["depth"])
    assert not np.allclose(together["depth"], together["classification"])


def test_corrections_come_from_the_teacher_alone(labeled):
    said = _said(labeled, slam={"floor": 0.01, "wanted": 0.9, "tasks": ["classification"]})
    weigher, seen = weighing.weigher(said)
    assert not weigher.weights(_variables(said, 0)) and set(weigher.extras) == {"classification"}
    extras = weigher.extras["classification"]
    true = np.array([id in said.annotated["classification"] for id in said.ids])
    assert (extras["accuracy"][true] == 1).all() and (extras["candidates"][true] == 1).all()
    alive = extras["accuracy"][~true] - 1 / extras["candidates"][~true]
    assert (extras["accuracy"] > 0).all() and (extras["accuracy"] <= 1).all() and alive.min() > 0.04
    assert (extras["candidates"][~true] >= 2).all()
    assert np.isin(seen["classification|correct"][np.isfinite(seen["classification|correct"])], (0, 1)).all()


def test_weights_of_the_teachers_own_training_images_are_switched_off(labeled):
    """W5: a teacher is better on what it learned from, so such a validation set says little is wrong, and is refused."""
    config = _config()
    for name in config["sets"]:
        config["sets"][name]["validation"] = config["sets"][name]["train"]
    with pytest.raises(UserError, match="training and the validation set share classification/"):
        check_sets(Built(config, 0))


@pytest.mark.parametrize(
    "weights, slam, says",
    [
        ({"kind": "means"}, {}, "weights.kind 'means'"),
        ({"kind": "plug_in", "tasks": ["depth"]}, {}, "not on 'depth'"),
        ({"kind": "plug_in", "tasks": ["classification"]}, {}, "needs hard labels"),
        ({"kind": "ratio_of_means", "confident": True}, {}, "not on 'depth'"),
        (
            {"kind": "ratio_of_means", "neighbors": 33},
            {},
            "neighbors 33: the validation set of classification has 32",
        ),
        ({"kind": "ratio_of_means", "neighbors": 3}, {}, "tried.weights: .*neighbors"),
        ({"kind": "ratio_of_means", "tasks": ["boxes"]}, {}, "no task 'boxes'"),
        ({}, {"floor": 0.3, "wanted": 0.9}, "not on 'depth'"),
        ({}, {"floor": 1.05, "wanted": 0.9, "tasks": ["classification"]}, "floor 1.05 and wanted 0.9 have to lie"),
        ({"kind": "ratio_of_means"}, {"floor": 0.3, "wanted": 0.9}, "choose one"),
    ],
)
def test_sections_that_cannot_be_meant(weights, slam, says):
    config = _config() | {"arms": {"tried": {"weights": weights, "slam": slam}}}
    with pytest.raises(UserError, match=says):
        Built(config, 0)


def test_only_students_believe_pseudo_labels():
    config = _config()
    config["teacher"] |= {"slam": {"floor": 0.3, "wanted": 0.9}}
    with pytest.raises(UserError, match="teacher.slam: only students"):
        Built(config, 0)


def test_the_truth_of_other_images_is_refused():
    config = _config()
    config["hidden"]["depth"] |= {"split": "test"}
    with pytest.raises(UserError, match=r"hidden.depth: .+ is not in the pool"):
        check_sets(Built(config, 0))


def test_an_empty_section_undoes_the_students():
    config = _config() | {"arms": {"plain": {"weights": {}}, "kept": {}}}
    config["student"]["weights"] = {"kind": "ratio_of_means"}
    built = Built(config, 0)
    assert built.weights("plain") is None and built.weights("kept").kind == "ratio_of_means"


def test_oracles_need_a_truth():
    for arm in ({"weights": {"kind": "oracle"}}, {"oracle_labels": True}):
        with pytest.raises(UserError, match="config.hidden"):
            Built(_config() | {"arms": {"tried": arm}, "hidden": {}}, 0)


def test_a_student_that_is_not_finite_is_refused(said):
    weigher, _ = weighing.weigher(said)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), _variables(said, 0))
    with pytest.raises(UserError, match="not finite"):
        weigher.weights(broken)


# --- Whole runs ---


def _student_command(workdir):
    return [sys.executable, "-m", "must.main", f"--config={CONFIG}", f"--workdir={workdir}", "--stage=student"]


def test_a_killed_weighted_student_ends_like_an_unbroken_one(labeled, tmp_path):
    results = []
    for killed in (False, True):
        workdir = tmp_path / f"killed-{killed}"
        shutil.copytree(labeled, workdir)
        if killed:
            checkpoints = workdir / "arms" / "weighted" / "checkpoints"
            process = subprocess.Popen(
                _student_command(workdir), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
            )
            end = time.time() + 200
            while (
                not any(p.name.isdigit() for p in checkpoints.glob("*"))
                and process.poll() is None
                and time.time() < end
            ):
                time.sleep(0.02)
            alive = process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert alive and not (workdir / "arms" / "weighted" / "done.json").exists()
        run(recipe, _config(), str(workdir), stage="student")
        facts = {
            arm: Checkpoints(str(workdir / "arms" / arm / "checkpoints")).facts()["sha256"]
            for arm in ("weighted", "corrected", "told")
        }
        results.append((facts, Checkpoints(str(workdir / "student" / "checkpoints")).facts()["sha256"]))
    assert results[0] == results[1]
    for workdir in tmp_path.iterdir():  # refreshed at every fourth step, to something else
        lines = [
            json.loads(line) for line in (workdir / "arms" / "weighted" / "metrics.jsonl").read_text().splitlines()
        ]
        means = {line["step"]: line["mean_weight/depth"] for line in lines if "mean_weight/depth" in line}
        assert list(means) == [4, 8] and means[4] != means[8]
    assert len({*results[0][0].values(), results[0][1]}) == 4  # every arm is a student of its own


def test_budgets_end_in_one_table_and_one_page(tmp_path):
    from must.recipes import weighted_distillation

    spec = importlib.util.spec_from_file_location("wd", ROOT / "configs" / "weighted_distillation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = json.loads(json.dumps(module.get_config("sanity").to_dict()))
    config["budgets"], config["pool"]["pool"]["count"] = [8, 16], 32
    config["model"] = {"backbone": {**config["model"]["backbone"], "width": 8, "stages": 1}, "neck": {}}
    config["hidden"]["classification"]["count"] = 32
    config["sets"]["scenes"]["validation"]["count"] = config["sets"]["scenes"]["test"]["count"] = 32
    for section in ("teacher", "student"):
        config[section] |= {"steps": 4, "batch_size": 8}
    weighted_distillation.check(config)
    for name in ("config", "manifest"):
        (tmp_path / f"{name}.json").write_text("{}")
    run_jobs(str(tmp_path), weighted_distillation.plan(config, 1))
    results = json.loads((tmp_path / "results.json").read_text())
    columns = results["tasks"]["classification"]["columns"]
    assert results["budgets"] == [8, 16] and set(columns) == {"teacher", "student", *config["arms"]}
    for budget in ("8", "16"):
        inner = json.loads((tmp_path / f"labels-{budget}" / "results.json").read_text())
        for column, by_budget in columns.items():
            assert by_budget[budget]["per_seed"] == inner["tasks"]["classification"]["scores"][column]
        gain = results["tasks"]["classification"]["gains"]["slam"][budget]
        assert gain["mean"] == pytest.approx(columns["slam"][budget]["mean"] - columns["student"][budget]["mean"])
    page = (tmp_path / "report.html").read_text()
    assert (
        "weighted: weights" in page
        and "slam: probability" in page
        and "http" not in page.replace("http://www.w3.org", "")
    )
    assert "16 labels" in (tmp_path / "results.txt").read_text()
    assert recipe.STAGES == weighted_distillation.STAGES


def test_a_student_teaches_the_next_round_and_arms_believe_what_they_choose(labeled, tmp_path):
    workdir = shutil.copytree(labeled, tmp_path / "run")
    (workdir / "policy" / "done.json").unlink()
    records = Records(records_directory(str(workdir)))
    write_weights(tmp_path / "weights.csv", {"depth": dict.fromkeys(records.ids[-8:], 0.25)})
    config = _config()
    config["student"].update(steps=2, checkpoint_every=2)
    config["arms"] = {
        "own": {
            "policies": {"classification": {"from_validation": True, "precision": 0.6}},
            "weights_file": str(tmp_path / "weights.csv"),
        },
        "again": {"labels_from": "own"},
    }
    wanted = ("policy", "arms/own", "label_by/own/0", "policy_by/own", "arms/again")
    jobs = {job.name: job for job in recipe.plan(config, 1)}
    assert jobs["arms/own"].needs == ("label/0", "policy") and jobs["label_by/own/0"].needs == ("arms/own",)
    run_jobs(str(workdir), [jobs[name] for name in wanted], workers=1)
    own, again = (policies_of(Built(config, 0), str(workdir), run) for run in ("own", "again"))
    assert own["classification"].curve.shape == (12, 33) and again["classification"].positive == 0
    student = Records(records_directory(str(workdir), by="own"))
    assert student.ids == records.ids and {facts["teacher"] for facts in student.provenance["tasks"].values()} == {
        "own"
    }
    assert student.provenance["tasks"]["depth"]["fingerprint"] != records.provenance["tasks"]["depth"]["fingerprint"]
    built = Built(config, 0)
    source = _student_source(built, built.settings("own"), records)
    light = {source.ids[i] for i in range(len(source)) if source[i].weights.get("depth") == 0.25}
    assert light == set(records.ids[-8:])


@pytest.mark.parametrize(
    "arms, says",
    [
        ({"a": {"labels_from": "b"}}, "a.labels_from 'b': arms learn from"),
        ({"a": {"labels_from": "b"}, "b": {"labels_from": "a"}}, "goes in a circle"),
    ],
)
def test_rounds_begin_with_teachers(arms, says):
    config = _config()
    config["arms"] = arms
    with pytest.raises(UserError, match=says):
        Built(config, 0)
