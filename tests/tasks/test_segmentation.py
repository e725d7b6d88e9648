"""Segmentation against naive counting; soft targets; the step between the head's and the frame's resolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import Policy
from must.data.geometry import whole_image
from must.tasks import dense
from must.tasks.classification import spread
from must.tasks.segmentation import Segmentation

RNG = np.random.default_rng(0)
CLASSES = tuple("abcde")
ALL = Policy(0.0, 0.0)


def _label(ids):
    ids = np.asarray(ids, np.uint8)[..., None]
    return {"ids": ids, "probs": np.where(ids == 255, 0, 255).astype(np.uint8)}


def test_miou_against_a_naive_confusion_matrix():
    task = Segmentation(CLASSES)
    true = RNG.integers(0, 4, (6, 8, 8))  # class 4 never occurs in the truth
    predicted = np.where(RNG.random(true.shape) < 0.6, true, RNG.integers(0, 5, true.shape))
    true[RNG.random(true.shape) < 0.2] = 255
    confusion = np.zeros((5, 5))
    for t, s in zip(true.ravel(), predicted.ravel(), strict=True):
        if t != 255:
            confusion[t, s] += 1
    iou = [confusion[c, c] / (confusion[c].sum() + confusion[:, c].sum() - confusion[c, c]) for c in range(4)]
    got = task.summarize(jax.device_get(task.measure(_label(predicted), _label(true))))
    assert got["mIoU"] == pytest.approx(np.mean(iou))
    assert got["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())


def test_a_pixel_that_the_prediction_leaves_open_is_a_miss():
    task = Segmentation(CLASSES)
    true, predicted = np.ones((1, 4, 4)), np.ones((1, 4, 4))
    predicted[0, :2] = 255
    got = task.summarize(jax.device_get(task.measure(_label(predicted), _label(true))))
    assert got == {"mIoU": 0.5, "pixel_accuracy": 0.5}


def test_soft_targets_are_the_listed_probabilities_and_the_rest_evenly():
    task = Segmentation(CLASSES, top_k=2, head_stride=1)
    ids = np.full((1, 2, 2, 2), (3, 1), np.uint8)
    probs = np.full((1, 2, 2, 2), (153, 51), np.uint8)  # 0.6, 0.2; 0.2 over the other three
    ids[0, 0, 0], probs[0, 0, 0] = (4, 255), (255, 0)  # ground truth
    logits = jnp.asarray(RNG.normal(size=(1, 2, 2, 5)), jnp.float32)
    terms = task.loss(logits, task.target({"ids": ids, "probs": probs}, ALL))["segmentation"]
    aim = np.full((2, 2, 5), (0.2 / 3, 0.2, 0.2 / 3, 0.6, 0.2 / 3))
    aim[0, 0] = np.eye(5)[4]
    assert terms.value[0] == pytest.approx(-float((aim * jax.nn.log_softmax(logits[0])).sum()), rel=1e-5)
    assert terms.norm[0] == 4


def test_spread_sums_to_one():
    ids = np.array([[0, 2], [1, 255], [255, 255]])
    got = spread(ids, np.array([[0.5, 0.3], [1.0, 0.0], [0.0, 0.0]]), np.array([0.2, 0.0, 1.0]), 4)
    np.testing.assert_allclose(got, [[0.5, 0.1, 0.3, 0.1], [0, 1, 0, 0], [0.25] * 4])
    # With every class listed there is nowhere for a rest to go.
    np.testing.assert_allclose(spread(np.arange(2), np.array([0.5, 0.3]), np.array(0.2), 2), [0.625, 0.375])


def test_hard_labels_are_learned_in_full_whatever_their_confidence():
    task, sure, unsure = Segmentation(CLASSES, head_stride=1), _label(np.ones((1, 4, 4))), _label(np.ones((1, 4, 4)))
    unsure["probs"] //= 2
    logits = jnp.asarray(RNG.normal(size=(1, 4, 4, 5)), jnp.float32)
    a, b = (task.loss(logits, task.target(label, ALL))["segmentation"] for label in (sure, unsure))
    assert a.value == b.value


def test_enlarging_is_bilinear_and_sampling_undoes_it_on_smooth_maps():
    x = jnp.asarray(RNG.normal(size=(2, 5, 7, 3)), jnp.float32)
    for factor in (1, 2, 3, 4):
        want = jax.image.resize(x, (2, 5 * factor, 7 * factor, 3), "bilinear")
        enlarge = jax.jit(dense.enlarge, static_argnums=1)
        np.testing.assert_allclose(enlarge(x, factor), want, atol=1e-5)
        ramp = np.broadcast_to(np.arange(8.0, dtype=np.float32)[None, :, None, None], (1, 8, 4, 1))
        again = dense.sample(np.asarray(enlarge(ramp, factor)), factor)
        np.testing.assert_allclose(again, ramp, atol=0.5 / factor)  # half a pixel for an even factor
        assert again.shape == ramp.shape


def test_ground_truth_of_one_class_fills_the_wider_form():
    task = Segmentation(CLASSES, top_k=3)
    record = {k: v[0] for k, v in _label(RNG.integers(0, 5, (1, 8, 8))).items()}
    label = task.transform(record, whole_image((8, 8), (8, 8)))
    np.testing.assert_array_equal(label["ids"][..., :1], record["ids"])
    assert (label["ids"][..., 1:] == 255).all() and not label["probs"][..., 1:].any()


def test_padding_is_ignored():
    task = Segmentation(CLASSES)
    record = {k: v[0] for k, v in _label(np.zeros((1, 8, 16))).items()}
    label = task.transform(record, whole_image((8, 16), (16, 16)))
    assert (label["ids"][:8] == 0).all() and (label["ids"][8:] == 255).all()
