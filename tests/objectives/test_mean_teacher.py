"""The student's average as a teacher, and leaving out the pseudo labels with the largest losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core import devices
from must.core.types import Batch, Features, Model, PerExample, Policy
from must.objectives import balance as balances
from must.objectives.labels import PSEUDO, labels, small_losses
from must.objectives.mean_teacher import MeanTeacher
from must.objectives.mean_teacher import mean_teacher as mean_teacher_part
from must.objectives.objective import objective as make_objective
from must.tasks.classification import Classification
from must.train import state as states
from must.train.optimizer import optimizer
from must.train.step import train_step

ROWS, TASK = 16, {"classification": Classification(("a", "b", "c"))}
BALANCE, TX = balances.fixed(), optimizer(steps=20, learning_rate=0.5, name="sgd")


def _apply(variables, images, *, train, key, axis_name=None, with_features=False):
    logits = (images[:, 0, 0] / 255.0) @ variables["params"]["w"]
    found = ({"classification": logits}, {"count": variables["count"] + train})
    return (*found, Features({}, logits)) if with_features else found


MODEL = Model(lambda key, images: {"params": {"w": jnp.eye(3)}, "count": jnp.int32(0)}, _apply)


def _batch(seed=0, pseudo=0.5):
    rng = np.random.default_rng(seed)
    draw = lambda: rng.integers(0, 256, (ROWS, 1, 1, 3)).astype(np.uint8)  # noqa: E731
    label = {"probs": np.eye(3, dtype=np.float32)[rng.integers(0, 3, ROWS)], "known": np.ones((ROWS, 3), bool)}
    weights = {"classification": (rng.random(ROWS) < 0.8).astype(np.float32)}
    extras = {"classification": {PSEUDO: (rng.random(ROWS) < pseudo).astype(np.float32)}}
    return Batch({"image": draw(), "clean": draw()}, {"classification": label}, weights, np.arange(ROWS), extras)


def _objective(policy=Policy(0.0, 0.0), **options):
    average = options.pop("mean_teacher", None)
    parts = [labels(TASK, {"classification": policy}, **options)]
    if average is not None:
        parts.append(mean_teacher_part(MODEL, TASK, average, initial=MODEL.init(None, None)))
    return make_objective(MODEL, parts, scales={"classification": 1.0})


def _compiled(objective, devices_=None):
    step = functools.partial(train_step, objective=objective, balance=BALANCE, tx=TX)
    return devices.parallelize(step, devices=devices_ or jax.devices()[:1])


def _fresh(objective):
    return states.create(jax.random.key(0), MODEL.init(None, None), objective, BALANCE, TX)


def _cross_entropy(logits, probs):
    return -(probs * np.asarray(jax.nn.log_softmax(logits))).sum(-1)


def test_the_average_answers_the_clean_view_where_ground_truth_is_missing():
    teacher = MeanTeacher(decay=0.9, start=2, scale=0.5)
    objective = _objective(mean_teacher=teacher)
    step, state = _compiled(objective), _fresh(objective)
    average = np.eye(3)
    for number in range(4):
        batch, w = _batch(number), np.asarray(state.params["model"]["w"])
        decay = min(0.9, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * w
        state, logs = step(state, batch)
        clean, strong = (batch.inputs[view][:, 0, 0] / 255.0 for view in ("clean", "image"))
        value = _cross_entropy(strong @ w, np.asarray(jax.nn.softmax(clean @ average)))
        missing = (batch.weights["classification"] == 0) | (batch.extras["classification"][PSEUDO] != 0)
        assert 0 < missing.sum() < ROWS
        expected = value[missing].mean() if number >= 2 else 0.0
        np.testing.assert_allclose(logs["loss/classification/self_class"], expected, rtol=1e-4)
        np.testing.assert_allclose(logs["loss"], logs["loss/classification/class"] + 0.5 * expected, rtol=1e-4)
        np.testing.assert_allclose(
            state.aux_state["objective"]["parts"][1]["average"]["params"]["w"], average, rtol=1e-5
        )
    assert int(state.model_state["count"]) == 4  # statistics move with the student's pass alone


def test_the_average_answers_with_averaged_batch_statistics():
    """The teacher's running statistics start where the student's do and lag behind them as its parameters do."""

    def apply(variables, images, *, train, with_features=False, **_):
        mean = variables["mean"]
        outputs = {"classification": images[:, 0, 0] / 255.0 @ variables["params"]["w"] + mean}
        return outputs, {"mean": mean + 1.0 if train else mean}, *([None] if with_features else [])

    model = Model(lambda key, images: {"params": {"w": jnp.eye(3)}, "mean": jnp.zeros(3)}, apply)
    objective = make_objective(
        model,
        [
            labels(TASK, {"classification": Policy()}),
            mean_teacher_part(model, TASK, MeanTeacher(decay=0.9), initial=model.init(None, None)),
        ],
        scales={"classification": 1.0},
    )
    step, average = _compiled(objective), 0.0
    state = states.create(jax.random.key(0), model.init(None, None), objective, BALANCE, TX)
    for number in range(3):
        state, _ = step(state, _batch(number))
        decay = min(0.9, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * number
        np.testing.assert_allclose(state.aux_state["objective"]["parts"][1]["average"]["mean"], average, rtol=1e-5)


def test_the_average_is_believed_by_the_policy_and_gives_no_gradient():
    batch, unsure = _batch(), Policy(0.99, 0.0)
    objective = _objective(unsure, mean_teacher=MeanTeacher(where="all"))
    _, logs = _compiled(objective)(_fresh(objective), batch)
    assert logs["loss/classification/self_class"] == 0.0  # softmax of numbers within 0..1 is never that sure
    objective = _objective(mean_teacher=MeanTeacher(where="all", kind="soft"))
    _, logs = _compiled(objective)(_fresh(objective), batch)
    assert logs["loss/classification/self_soft_class"] > 0.5
    same = batch._replace(
        inputs={"image": batch.inputs["image"], "clean": batch.inputs["image"]},
        weights={"classification": np.zeros(ROWS, np.float32)},
    )
    _, logs = _compiled(objective)(_fresh(objective), same)
    assert logs["gradient_norm"] < 1e-6  # at its own answer the loss is as low as it gets


def test_options_that_do_not_fit():
    with pytest.raises(ValueError, match="start from"):
        mean_teacher_part(MODEL, TASK, MeanTeacher(), initial=None)
    for wrong in ({"kind": "firm"}, {"where": "some"}, {"decay": 1.0}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            _objective(mean_teacher=MeanTeacher(**wrong))
    with pytest.raises(ValueError, match="small_loss 1.5"):
        _objective(small_loss=1.5)
    objective = _objective(small_loss=0.5)
    with pytest.raises(ValueError, match="does not tell which labels of classification"):
        objective.terms(
            {"model": {"w": jnp.eye(3)}},
            {"count": jnp.int32(0)},
            objective.init(jax.random.key(0))[1],
            None,
            _batch()._replace(extras={}),
            jax.random.key(0),
            None,
        )


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_losses_of_pseudo_labels_are_left_out(seed):
    rng = np.random.default_rng(seed)
    value, norm = (
        rng.integers(0, 6, ROWS).astype(np.float32),
        np.where(rng.random(ROWS) < 0.8, 2.0, 0.0).astype(np.float32),
    )
    weights, pseudo = (np.asarray(rng.random(ROWS) < 0.8, np.float32) for _ in range(2))
    terms = {"a": PerExample(jnp.array(value), jnp.array(norm)), "b": PerExample(jnp.array(value), jnp.array(norm))}
    kept = np.asarray(small_losses(terms, weights, pseudo, 0.3, None))
    loss = 2 * value / np.maximum(norm, 1)
    counted = np.flatnonzero((weights != 0) & (pseudo != 0) & ((norm > 0) | (value != 0)))
    wanted = int(0.3 * len(counted) + 0.5)
    assert kept[np.setdiff1d(np.arange(ROWS), counted)].all() and (~kept).sum() == wanted > 0
    order = sorted(counted, key=lambda i: (loss[i], i))  # of equal losses the later one goes
    assert set(np.flatnonzero(~kept)) == set(order[-wanted:])
    assert np.asarray(small_losses(terms, weights, pseudo, 0.0, None)).all()


def test_dropped_labels_leave_the_denominator_and_truth_stays():
    objective, plain = _objective(small_loss=0.5, small_loss_after=1), _objective()
    step, state = _compiled(objective), _fresh(objective)
    state, first = step(state, _batch(0))
    _, without = _compiled(plain)(_fresh(plain), _batch(0))
    np.testing.assert_allclose(first["loss"], without["loss"], rtol=1e-6)  # nothing is dropped before
    batch, w = _batch(1), np.asarray(state.params["model"]["w"])
    _, logs = step(state, batch)
    value = _cross_entropy((batch.inputs["image"][:, 0, 0] / 255.0) @ w, batch.labels["classification"]["probs"])
    there, pseudo = batch.weights["classification"] != 0, batch.extras["classification"][PSEUDO] != 0
    predicted = np.flatnonzero(there & pseudo)
    kept = sorted(predicted, key=lambda i: value[i])[: len(predicted) - int(0.5 * len(predicted) + 0.5)]
    rows = [*np.flatnonzero(there & ~pseudo), *kept]
    np.testing.assert_allclose(logs["loss"], value[rows].mean(), rtol=1e-5)


@pytest.mark.devices(8)
def test_one_device_equals_eight():
    objective = _objective(mean_teacher=MeanTeacher(start=1), small_loss=0.3)
    single, many = _compiled(objective), _compiled(objective, jax.devices())
    a, b = _fresh(objective), _fresh(objective)
    for seed in range(3):
        (a, a_logs), (b, b_logs) = single(a, _batch(seed, 0.9)), many(b, _batch(seed, 0.9))
        for name in a_logs:
            np.testing.assert_allclose(a_logs[name], b_logs[name], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(a.params["model"]["w"], b.params["model"]["w"], rtol=1e-4)
