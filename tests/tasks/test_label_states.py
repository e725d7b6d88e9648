"""Positive, ignored, negative, unknown: the same for classes, pixels and boxes, and what each of them teaches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core import labels as forms
from must.core.types import Policy
from must.data.geometry import whole_image
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.label_states import LARGEST, SUREST, calibrated, codes, states, tempered, uncertain
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation

NAMES = ("a", "b", "c", "d", "e")
RNG = np.random.default_rng(0)
CLASS, PIXELS = Classification(NAMES), Segmentation(NAMES, head_stride=1, width=4, depth=1)


def test_every_score_has_one_state_and_the_truth_is_always_positive():
    policy = Policy(np.array([0.3, 0.6, 0.9, np.inf, 0.5]), np.array([0.1, 0.6, 0.2, 0.4, 0.0]))
    scores, ids = np.append(RNG.random(500), np.ones(5)), np.append(RNG.integers(0, 5, 500), np.arange(5))
    positive, negative = (np.asarray(state) for state in states(policy, scores, ids))
    np.testing.assert_array_equal(positive, (scores >= policy.positive[ids]) | (scores == 1))
    np.testing.assert_array_equal(negative, (scores < policy.negative[ids]) & ~positive)
    assert positive[-5:].all() and not positive[(ids == 3) & (scores < 1)].any() and not (positive & negative).any()


@pytest.mark.parametrize("knots", [2, 9])
def test_calibration_comes_before_the_thresholds_and_by_class(knots):
    grid = np.linspace(0, 1, knots)
    curve = np.stack([grid**power for power in (1, 2, 0.5)])
    scores, ids = RNG.random(200), RNG.integers(0, 3, 200)
    wanted = [np.interp(score, grid, curve[c]) for score, c in zip(scores, ids, strict=True)]
    policy = Policy(0.5, 0.2, curve=curve)
    np.testing.assert_allclose(calibrated(policy, scores, ids), wanted, atol=1e-6)
    np.testing.assert_array_equal(states(policy, scores, ids).positive, np.asarray(wanted, np.float32) >= 0.5)
    np.testing.assert_allclose(calibrated(Policy(), scores, ids), scores, atol=1e-6)
    np.testing.assert_allclose(calibrated(Policy(curve=curve[1]), scores), np.interp(scores, grid, curve[1]), atol=1e-6)


def test_temperature_flattens_and_keeps_the_order():
    logits = RNG.normal(size=(20, 5)) * 3
    probs = jax.nn.softmax(logits)
    np.testing.assert_allclose(tempered(Policy(temperature=2.5), probs), jax.nn.softmax(logits / 2.5), atol=1e-6)
    np.testing.assert_array_equal(tempered(Policy(), probs), probs)


def test_no_teacher_is_as_sure_as_the_truth():
    assert np.float16(uncertain(np.float32(1))) < 1 and uncertain(np.float32(0.4)) == np.float32(0.4)
    assert codes(np.float32(1)) == LARGEST and codes(np.float32(0.25)) == 64 and SUREST > LARGEST / 255
    sure = 1e4 * np.eye(5, dtype=np.float32)
    predicted, target = jax.jit(CLASS.predict)(sure), jax.jit(CLASS.target)
    assert predicted["probs"].max() < 1 and jax.jit(PIXELS.predict)(sure[None, None])["probs"].max() == LARGEST
    policy = Policy(np.inf, 0.0)
    assert not target(predicted, policy)["used"].any()
    assert target({"probs": jnp.eye(5)}, policy)["used"].all()


@functools.partial(jax.jit, static_argnums=0)
def _term_and_slope(task, logits, label, policy):
    """The task's only term, and the gradient of its sum."""

    def total(logits):
        (term,) = task.loss(logits, task.target(label, policy)).values()
        return term.value.sum(), term

    slope, term = jax.grad(total, has_aux=True)(logits)
    return term, slope


def _class_terms(logits, label, policy):
    return _term_and_slope(CLASS, logits, label, policy)


def test_a_class_that_none_is_positive_of_is_one_of_those_that_are_not_negative():
    probs = np.float32(
        [[0.45, 0.35, 0.1, 0.06, 0.04], [0.9, 0.1, 0, 0, 0], [0.3, 0.3, 0.3, 0.05, 0.05], [0.25, 0.25, 0.2, 0.2, 0.1]]
    )
    logits = jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32)
    term, slope = _class_terms(logits, {"probs": probs}, Policy(0.8, 0.2))
    predicted = np.asarray(jax.nn.softmax(logits))
    wanted = [
        -np.log(predicted[0, :2].sum()),
        -(probs[1] * np.log(predicted[1])).sum(),
        -np.log(predicted[2, :3].sum()),
        -np.log(predicted[3, :4].sum()),
    ]
    np.testing.assert_allclose(term.value, wanted, rtol=1e-5)
    assert term.norm.tolist() == [1, 1, 1, 1]
    assert (np.asarray(slope)[0, :2] < 0).all() and (
        np.asarray(slope)[0, 2:] > 0
    ).all()  # the two doubtful ones rise together
    assert np.ptp(np.asarray(slope)[0, :2] / predicted[0, :2]) < 1e-5  # in proportion: which of the two is left open


def test_what_is_neither_positive_nor_negative_teaches_nothing():
    probs, logits = np.full((1, 5), 0.2, np.float32), jnp.ones((1, 5))
    for policy in (Policy(0.5, 0.0), Policy(0.5, 0.5)):  # no class is ruled out; every class is
        term, slope = _class_terms(logits, {"probs": probs}, policy)
        assert term.value == term.norm == 0 and not np.asarray(slope).any()


@pytest.mark.parametrize("bound", [0.5, 0.95])  # positive; doubtful
def test_classes_that_a_source_does_not_know_get_no_gradient(bound):
    label = {"ids": [0, 3], "probs": [0.6, 0.1], "rest": 0.3, "unknown": [2, 4]}
    row = CLASS.transform(label, whole_image((8, 8), (8, 8)))
    assert row["known"].tolist() == [True, True, False, True, False]
    np.testing.assert_allclose(row["probs"], [0.75, 0.125, 0, 0.125, 0], atol=1e-6)
    logits = jnp.asarray(RNG.normal(size=(1, 5)), jnp.float32)
    batch = {name: value[None] for name, value in row.items()}
    term, slope = _class_terms(logits, batch, Policy(bound, 0.125))
    known = np.array([0, 1, 3])
    over = np.asarray(jax.nn.log_softmax(logits[0, known]))
    wanted = -(row["probs"][known] * over).sum()
    if bound > 0.9:
        wanted = 0 if not term.norm else wanted
        assert term.norm == 0  # all known classes are possible, so there is no claim
    np.testing.assert_allclose(term.value[0], wanted, rtol=1e-5)
    assert not np.asarray(slope)[0, [2, 4]].any()
    again = CLASS.restore(row, None)
    assert again["unknown"].tolist() == [2, 4]


def test_pixels_have_the_states_of_classes():
    ids = np.array([[[0, 1], [2, 3], [4, 0], [255, 255], [0, 1]]], np.uint8)
    probs = np.array([[[128, 100], [250, 3], [60, 55], [0, 0], [255, 0]]], np.uint8)
    task = Segmentation(NAMES, top_k=2, head_stride=1, width=4, depth=1)
    label = {"ids": ids[None], "probs": probs[None], "known": np.array([[True, True, True, False, True]])}
    target = jax.jit(task.target)(label, Policy(0.8, 0.15))
    assert np.asarray(target["used"])[0, 0].tolist() == [False, True, False, False, True]
    # The first pixel leaves 27/255 to the three unlisted classes, less than 0.15; the third leaves enough for each of
    # them.
    assert np.asarray(target["candidates"])[0, 0].tolist() == [
        [True, True, False, False, False],
        [False] * 5,
        [False] * 5,
        [False] * 5,
        [False] * 5,
    ]
    logits = jnp.asarray(RNG.normal(size=(1, 1, 5, 5)), jnp.float32)
    over = np.asarray(jax.nn.softmax(logits[0, 0][:, [0, 1, 2, 4]]))
    aims = {1: np.array([2 / 255 / 3, 2 / 255 / 3, 250 / 255, 2 / 255 / 3]), 4: np.eye(4)[0]}
    aims = {place: aim / aim.sum() for place, aim in aims.items()}
    wanted = -np.log(over[0, :2].sum()) - sum((aim * np.log(over[place])).sum() for place, aim in aims.items())
    term, slope = jax.tree.map(np.asarray, _term_and_slope(task, logits, label, Policy(0.8, 0.15)))
    np.testing.assert_allclose(term.value[0], wanted, rtol=1e-4)
    assert term.norm[0] == 3 and not slope[..., 3].any() and not slope[0, 0, 2:4].any()


def test_hard_pixels_are_what_they_were_with_two_states():
    ids, probs = np.full((1, 1, 2, 1), 3, np.uint8), np.array([[[[140], [110]]]], np.uint8)
    target = jax.jit(PIXELS.target)({"ids": ids, "probs": probs}, Policy(0.5, 0.5))
    assert np.asarray(target["used"]).tolist() == [[[True, False]]] and not np.asarray(target["candidates"]).any()


@pytest.mark.parametrize(
    "task, field, value", [(Depth(head_stride=1), "depth", 2.0), (Normals(head_stride=1), "normals", (0, 0, -1))]
)
def test_pixels_of_a_regression_are_positive_or_ignored_by_their_scores(task, field, value):
    maps = np.broadcast_to(np.float32(value), (1, 2, 2, *np.shape(value)))
    scores = np.array([[[255, 254], [128, 3]]], np.uint8)
    valid = np.asarray(task.target({field: maps, "scores": scores}, Policy(0.5, 0.0))["valid"])
    assert valid.tolist() == [[[True, True], [True, False]]]
    assert np.asarray(task.target({field: maps, "scores": scores}, Policy(2.0, 0.0))["valid"]).tolist() == [
        [[True, False], [False, False]]
    ]
    assert np.asarray(task.target({field: maps}, Policy(2.0, 0.0))["valid"]).all()  # without scores all is believed


def test_answers_that_agree_are_sure():
    depth, normals = Depth(head_stride=1), Normals(head_stride=1)
    one, other = (
        jnp.log(jnp.array([1.0, 2.0, 4.0])).reshape(1, 1, 3, 1),
        jnp.log(jnp.array([1.0, 2.2, 2.0])).reshape(1, 1, 3, 1),
    )
    assert np.asarray(depth.agreement(one, other)["scores"]).tolist() == [[[254, round(255 / 1.1), 128]]]
    ahead, aside = jnp.array([0.0, 0.0, -1.0]), jnp.array([1.0, 0.0, 0.0])
    turned = jnp.array([np.sin(np.pi / 12), 0.0, -np.cos(np.pi / 12)])
    predicted = np.asarray(
        normals.agreement(
            jnp.stack([ahead] * 3).reshape(1, 1, 3, 3), jnp.stack([ahead, aside, turned]).reshape(1, 1, 3, 3)
        )["scores"]
    )
    np.testing.assert_allclose(predicted[0, 0], [254, 0, 255 * (1 - 15 / 90)], atol=1)


@pytest.mark.parametrize("task", [Depth(stride=1), Normals(stride=1)])
def test_scores_of_pixels_are_stored_in_steps_and_the_truth_stays_certain(task):
    frame = whole_image((8, 16), (8, 16))
    field = "depth" if isinstance(task, Depth) else "normals"
    value = (
        np.full((8, 16), 2.0, np.float32) if field == "depth" else np.broadcast_to(np.float32([0, 0, -1]), (8, 16, 3))
    )
    scores = np.arange(128, dtype=np.uint8).reshape(8, 16) * 2
    scores[0, 0] = 255
    back = task.transform(task.restore({field: value, "scores": scores}, frame), frame)["scores"].astype(int)
    assert back[0, 0] == 255 and back.ravel()[1:].max() <= 254 and np.abs(back - scores).max() <= 4
    constant = task.restore({field: value}, frame)
    assert constant["scores"].tolist() == [[LARGEST]] and (task.transform(constant, frame)["scores"] == LARGEST).all()
    truth = forms.depth(np.ones((8, 16)), 1e-3) if field == "depth" else forms.normals(value)
    assert (task.transform(truth, frame)["scores"] == 255).all()
    of_old = {name: value for name, value in truth.items() if name != "scores"}
    assert (task.transform(of_old, frame)["scores"] == 255).all()


def test_a_crowd_is_ignored_whatever_its_score_and_boxes_have_three_states():
    task = Detection(NAMES, max_boxes=4)
    label = forms.detection(np.tile([2.0, 2, 20, 20], (4, 1)), [0, 1, 2, 3], [False, False, False, True])
    label["scores"] = np.array([0.9, 0.5, 0.1, 1.0], np.float16)
    row = {name: value[None] for name, value in task.transform(label, whole_image((32, 32), (32, 32))).items()}
    target = {name: np.asarray(value)[0] for name, value in jax.jit(task.target)(row, Policy(0.8, 0.3)).items()}
    by_class = dict(
        zip(
            target["classes"].tolist(),
            zip(target["positive"].tolist(), target["ignored"].tolist(), strict=False),
            strict=False,
        )
    )
    assert by_class == {0: (True, False), 1: (False, True), 2: (False, False), 3: (False, True)}


NOTHING = Policy(np.inf, 0.0)  # takes the truth alone


def taken(task, record, policy=NOTHING, size=(8, 8)):
    """Whether a label of a record is taken as true under a policy that takes no prediction."""
    row = {name: value[None] for name, value in task.transform(record, whole_image(size, size)).items()}
    target = task.target(row, policy)
    return any(bool(np.asarray(target[name]).any()) for name in ("used", "positive", "valid") if name in target)


@pytest.mark.parametrize("score", [0.9995, 0.9998, 1 - 1e-6, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_teacher_however_sure_is_taken_for_the_truth(score, count):
    frame, names = whole_image((8, 8), (8, 8)), NAMES[:count]
    rest = np.full(count, (1 - score) / max(count - 1, 1), np.float32)
    rest[0] = score
    for top_k in (1, count):
        task = Classification(names, top_k=top_k)
        record = task.restore(forms.of_teacher({"probs": rest}), frame)
        assert not taken(task, record)
        assert not taken(task, record, Policy(np.inf, 0.0, temperature=np.float32(0.2)))
        assert taken(task, forms.classification(0))
        assert taken(task, forms.classification(0), Policy(np.inf, 0.0, temperature=np.float32(0.2)))
        unknown = {**record, "unknown": np.arange(1, count, dtype=np.uint16)}  # all that is left is one class
        assert not taken(task, unknown) and taken(task, forms.classification(0, range(1, count)))
        pixels = Segmentation(names, top_k=top_k, head_stride=1, stride=1)
        said = pixels.from_external(np.broadcast_to(rest, (1, 8, 8, count)), (8, 8))
        assert not taken(pixels, pixels.restore({name: value[0] for name, value in said.items()}, frame))
    boxes = Detection(names, max_boxes=2)
    one = {"boxes": np.float32([[0, 0, 8, 8]]), "scores": np.float32([score]), "labels": np.array([0])}
    (row,) = ({name: value[0] for name, value in label.items()} for label in [boxes.from_external([one], (8, 8))])
    for given in (row, {**row, "scores": np.full_like(row["scores"], score) * row["valid"]}):
        assert not taken(boxes, boxes.restore(forms.of_teacher(given), frame))
    for task, said in (
        (Depth(head_stride=1), np.ones((8, 8))),
        (Normals(head_stride=1), np.eye(3)[[2]] * np.ones((8, 8, 1))),
    ):
        field = {Depth: "depth", Normals: "normals"}[type(task)]
        record = task.restore(forms.of_teacher({field: said, "scores": codes(np.full((8, 8), score))}), frame)
        assert not taken(task, record)
        record = task.restore(forms.of_teacher({field: said, "scores": np.full((8, 8), 255, np.uint8)}), frame)
        assert not taken(task, record)


def test_half_precision_makes_nothing_but_1_certain():
    scores = np.linspace(0.99, 1, 1001)
    stored = forms.half(scores)
    assert (stored == 1).tolist() == (scores == 1).tolist() and np.abs(stored - scores).max() < 2**-11
    assert (np.diff(stored) >= 0).all()
