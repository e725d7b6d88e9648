"""Classification's own: ties, top-5, smoothing, temperature, the rest of a record."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import Policy, UserError
from must.data.geometry import whole_image
from must.tasks.classification import Classification

RNG = np.random.default_rng(0)
CLASSES = tuple(f"class{i}" for i in range(10))
ANY = whole_image((8, 8), (8, 8))
ALL = Policy(0.0, 0.0)


def _measured(task, predicted, true):
    probs = np.eye(len(task.classes), dtype=np.float32)[true]
    return task.summarize(jax.device_get(task.measure({"probs": predicted}, {"probs": probs})))


def test_top1_top5_and_nll_against_naive_counting():
    task = Classification(CLASSES)
    predicted = RNG.dirichlet(np.ones(10), 200).astype(np.float32)
    true = np.array([RNG.choice(10, p=p / p.sum()) for p in predicted.astype(np.float64)])
    order = np.argsort(-predicted, -1)
    got = _measured(task, predicted, true)
    assert got["top1"] == pytest.approx(100 * np.mean(order[:, 0] == true))
    assert got["top5"] == pytest.approx(100 * np.mean([t in o[:5] for t, o in zip(true, order, strict=True)]))
    assert got["nll"] == pytest.approx(-np.log(predicted[np.arange(200), true]).mean(), rel=1e-4)


def test_a_constant_answer_earns_chance():
    got = _measured(Classification(CLASSES), np.full((10, 10), 0.1, np.float32), np.arange(10))
    assert got["top1"] == pytest.approx(10.0) and got["top5"] == pytest.approx(50.0)


def test_record_keeps_the_largest_and_spreads_the_rest():
    task = Classification(CLASSES, top_k=2)
    probs = np.array([0.5, 0.3] + [0.025] * 8, np.float32)
    record = task.restore({"probs": probs}, ANY)
    assert record["ids"].tolist() == [0, 1] and record["rest"] == pytest.approx(0.2, abs=1e-3)
    np.testing.assert_allclose(task.transform(record, ANY)["probs"], probs, atol=1e-3)
    truth = {"ids": np.array([4], np.uint16), "probs": np.ones(1, np.float16), "rest": np.zeros((), np.float16)}
    np.testing.assert_array_equal(task.transform(truth, ANY)["probs"], np.eye(10)[4])


def test_a_thousand_classes_survive_half_precision():
    task = Classification(tuple(map(str, range(1000))), top_k=1000)
    probs = RNG.dirichlet(np.full(1000, 0.1)).astype(np.float32)
    back = task.transform(task.restore({"probs": probs}, ANY), ANY)["probs"]
    assert np.abs(back - probs).max() < 2**-10 and back.sum() == pytest.approx(1, abs=1e-5)


def test_smoothing_and_temperature():
    label = {"probs": np.eye(10, dtype=np.float32)[:3]}
    target = Classification(CLASSES, label_smoothing=0.1).target(label, ALL)["probs"]
    assert target[0, 0] == pytest.approx(0.91) and target[0, 1] == pytest.approx(0.01)
    logits = jnp.asarray(RNG.normal(size=(3, 10)), jnp.float32)
    warm = Classification(CLASSES, temperature=2.0).predict(logits)["probs"]
    np.testing.assert_allclose(warm, jax.nn.softmax(logits / 2), rtol=1e-6)


def test_a_broken_label_is_no_label():
    task = Classification(CLASSES)
    label = {"probs": np.eye(10, dtype=np.float32)[:3]}
    label["probs"][0, 3], label["probs"][1, 3] = np.nan, np.inf
    outputs = jnp.asarray(RNG.normal(size=(3, 10)), jnp.float32)
    term = task.loss(outputs, task.target(label, ALL))["class"]
    assert term.norm.tolist() == [0, 0, 1] and term.value.tolist()[:2] == [0, 0]
    slope = jax.grad(lambda outputs: task.loss(outputs, task.target(label, ALL))["class"].value.sum())(outputs)
    assert np.isfinite(slope).all() and not slope[:2].any() and slope[2].any()


def test_few_classes_still_have_a_top5():
    task = Classification(("a", "b"))
    got = _measured(task, np.array([[0.9, 0.1]], np.float32), np.array([1]))
    assert got["top1"] == 0 and got["top5"] == 100


def test_softened_targets_and_logits():
    """T^2 CE(softmax(log q / T), f / T): at T = 1 the plain loss, for one-hot truth the truth; slopes keep their
    size."""
    probs = RNG.dirichlet(np.ones(10), 4).astype(np.float32)
    logits = jnp.asarray(RNG.normal(size=(4, 10)), jnp.float32)

    def loss(t, z, p):
        return (
            Classification(CLASSES, softening=t)
            .loss(z, Classification(CLASSES, softening=t).target({"probs": p}, ALL))["class"]
            .value
        )

    want = 9 * -(jax.nn.softmax(jnp.log(probs) / 3) * jax.nn.log_softmax(logits / 3)).sum(-1)
    np.testing.assert_allclose(loss(3.0, logits, probs), want, rtol=1e-4)
    hot = np.eye(10, dtype=np.float32)[:4]
    np.testing.assert_allclose(
        Classification(CLASSES, softening=3.0).target({"probs": hot}, ALL)["probs"], hot, atol=1e-6
    )
    slope = [np.abs(jax.grad(lambda z: loss(t, z, probs).sum())(logits)).mean() for t in (1.0, 4.0)]
    assert 0.2 < slope[1] / slope[0] < 5


def test_certainty_is_the_margin():
    probs = np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]], np.float32)
    np.testing.assert_allclose(Classification(("a", "b", "c")).certainty({"probs": probs}), [[0.5], [0.0]], atol=1e-6)
    assert Classification(("a",)).certainty({"probs": np.ones((2, 1), np.float32)}).shape == (2, 1)


@pytest.mark.parametrize("wrong", [{"softening": 0.0}, {"taylor": -1}, {"label_smoothing": 1.0}])
def test_hyper_parameters_out_of_range(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Classification(CLASSES, **wrong)
