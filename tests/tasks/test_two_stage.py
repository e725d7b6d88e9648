"""The second detector: what each stage learns from which box, and that both together find objects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from must.core import boxes as bx
from must.core import labels as forms
from must.core.types import Features, Policy, UserError
from must.data.geometry import own_frame
from must.models.regions import DELTA_SCALES, anchors_of
from must.tasks.base import Task, build, describe

SIZE, NAMES = (64, 64), ("a", "b", "c")
SMALL = {"strides": (8, 16), "width": 8, "hidden": 16, "candidates": 40, "proposals": 12, "anchor_scale": 2.0}
TASK = build("two_stage", classes=NAMES, max_boxes=4, max_detections=8, scale=1.5, **SMALL)
ANCHORS = anchors_of(SIZE, TASK.strides, TASK.anchor_scale, (0.5, 1.0, 2.0))
BOXES = np.float32([[8, 8, 24, 24], [30, 30, 60, 62]])


def label_of(boxes, classes, crowd=None, unknown=(), scores=None):
    crowd = np.zeros(len(classes), bool) if crowd is None else crowd
    record = forms.detection(boxes, classes, crowd, unknown)
    if scores is not None:
        record["scores"] = np.asarray(scores, np.float16)
    return {k: v[None] for k, v in TASK.encode(record, own_frame(SIZE)).items()}


def random_outputs(seed=0, proposals=None):
    rng = np.random.default_rng(seed)
    if proposals is None:
        corner = rng.uniform(0, 40, (TASK.proposals, 2))
        proposals = np.concatenate([corner, corner + rng.uniform(4, 24, corner.shape)], -1)
        proposals[:2] = BOXES + np.float32([1, 0, -1, 2])
    count, anchors = len(proposals), len(ANCHORS)
    outputs = {
        "objectness": rng.normal(-2, 1, anchors),
        "shifts": 0.1 * rng.normal(size=(anchors, 4)),
        "anchors": ANCHORS,
        "proposals": proposals,
        "present": np.arange(count) < count - 1,
        "class": rng.normal(size=(count, 4)),
        "deltas": 0.5 * rng.normal(size=(count, 4)),
        "size": np.array(SIZE),
    }
    return {k: jnp.asarray(v if v.dtype == bool else v.astype(np.float32))[None] for k, v in outputs.items()}


@jax.jit
def loss(outputs, label, policy):
    return {k: (v.value, v.norm) for k, v in TASK.loss(outputs, TASK.target(label, policy)).items()}


@jax.jit
def slopes(outputs, label, policy):
    free = {name: outputs[name] for name in ("objectness", "shifts", "class", "deltas")}
    return jax.grad(lambda free: sum(v.sum() for v, _ in loss({**outputs, **free}, label, policy).values()))(free)


predict = jax.jit(TASK.predict)
HARD = Policy(np.float32([0.5] * 3), np.float32([0.5] * 3))
DOUBT = Policy(np.float32([0.8] * 3), np.float32([0.2] * 3))


def test_each_stage_learns_the_boxes_that_it_overlaps():
    outputs, label = random_outputs(), label_of(BOXES, [2, 0])
    terms, slope = loss(outputs, label, HARD), slopes(outputs, label, HARD)
    iou = np.asarray(bx.iou(ANCHORS, BOXES))
    best = iou.max(-1)
    positive = (best >= 0.7) | (iou == iou.max(0)).any(-1)
    assert float(terms["objectness"][1][0]) == positive.sum() > 0
    between = ~positive & (best >= 0.3)
    assert between.any()
    np.testing.assert_array_equal(np.asarray(slope["objectness"][0]) < 0, positive)  # pushed up
    np.testing.assert_array_equal(np.asarray(slope["objectness"][0]) == 0, between)
    np.testing.assert_array_equal((np.asarray(slope["shifts"][0]) != 0).any(-1), positive)
    hit = (np.asarray(bx.iou(outputs["proposals"][0], BOXES)).max(-1) >= 0.5) & np.asarray(outputs["present"][0])
    assert hit[:2].all()
    push = np.asarray(slope["class"][0])
    assert push[0, 2] < 0 and push[1, 0] < 0 and (push[:2, 3] > 0).all()
    assert (push[~hit & np.asarray(outputs["present"][0]), 3] < 0).all() and not push[-1].any()
    np.testing.assert_array_equal((np.asarray(slope["deltas"][0]) != 0).any(-1), hit)
    assert float(terms["class"][1][0]) == np.asarray(outputs["present"]).sum()


def test_exact_outputs_have_no_loss():
    """What says the truth exactly is at the lowest loss, and is the prediction."""
    proposals = np.concatenate([BOXES + np.float32([2, -2, 1, 3]), [[40, 2, 56, 20]]]).astype(np.float32)
    outputs = random_outputs(1, proposals)
    outputs["present"] = jnp.ones((1, 3), bool)
    label = label_of(BOXES, [2, 0])
    index, hit, _ = bx.assign_overlaps(ANCHORS, BOXES, np.ones(2, bool), least=0.7, every=True)
    outputs["objectness"] = jnp.where(hit, 30.0, -30.0)[None]
    outputs["shifts"] = bx.encode(BOXES[np.asarray(index)], ANCHORS)[None]
    outputs["class"] = 60.0 * jax.nn.one_hot(jnp.array([[2, 0, 3]]), 4)
    outputs["deltas"] = jnp.pad(bx.encode(BOXES, proposals[:2]) * jnp.array(DELTA_SCALES), [(0, 1), (0, 0)])[None]
    assert sum(float(v[0]) for v, _ in loss(outputs, label, HARD).values()) < 1e-4
    found = jax.device_get(predict(outputs))
    assert found["valid"].sum() == 2
    score = TASK.summarize(TASK.measure(found, label))
    assert score["AP"] == pytest.approx(1.0)


def test_ignored_crowd_and_unknown():
    outputs = random_outputs()
    everything = np.float32([[0, 0, 64, 64]])
    plain = slopes(outputs, label_of(BOXES, [2, 0]), HARD)
    for label, policy in (
        (label_of(np.concatenate([BOXES, everything]), [2, 0, 1], np.array([False, False, True])), HARD),  # crowd
        (label_of(np.concatenate([BOXES, everything]), [2, 0, 1], scores=[1, 1, 0.5]), DOUBT),  # doubtful
    ):
        slope = slopes(outputs, label, policy)
        for name in ("shifts", "deltas"):
            np.testing.assert_array_equal(slope[name], plain[name])
        # No anchor and no proposal is background any more; what is an object stays one.
        assert not (np.asarray(slope["objectness"]) > 0).any() and (np.asarray(slope["objectness"]) < 0).any()
        push = np.asarray(slope["class"][0])
        assert push[:2].any(-1).all() and not push[3:].any(-1)[~_hits(outputs)[3:]].any()
    absent = slopes(outputs, label_of(np.concatenate([BOXES, everything]), [2, 0, 1], scores=[1, 1, 0.1]), DOUBT)
    jax.tree.map(np.testing.assert_array_equal, absent, plain)
    # Background may be of an unknown class, which is then not pushed down; anchors count by the share of known ones.
    some = slopes(outputs, label_of(BOXES, [2, 0], unknown=[1]), HARD)
    background = np.asarray(outputs["present"][0]) & ~_hits(outputs)
    assert (np.asarray(some["class"][0])[background, 1] < 0).all()
    assert (np.asarray(plain["class"][0])[background, 1] > 0).all()
    far = np.asarray(plain["objectness"][0]) > 0
    np.testing.assert_allclose(some["objectness"][0][far], plain["objectness"][0][far] * 2 / 3, rtol=1e-5)


def _hits(outputs):
    return np.asarray(bx.iou(outputs["proposals"][0], BOXES)).max(-1) >= 0.5


def test_no_boxes_and_padding_are_finite():
    outputs = random_outputs()
    terms, slope = (
        loss(outputs, label_of(np.zeros((0, 4)), []), HARD),
        slopes(outputs, label_of(np.zeros((0, 4)), []), HARD),
    )
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves((terms, slope)))
    assert float(terms["box"][1][0]) == 0 and float(terms["class"][1][0]) > 0
    label = label_of(BOXES, [2, 0])
    spoilt = {k: np.array(v) for k, v in label.items()}
    spoilt["boxes"][:, 2:], spoilt["classes"][:, 2:] = np.nan, 77
    jax.tree.map(np.testing.assert_array_equal, loss(outputs, label, HARD), loss(outputs, spoilt, HARD))


def test_mirrored_outputs_find_the_mirrored_boxes():
    outputs = random_outputs(3)
    there = TASK.hflip_outputs(outputs)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), TASK.hflip_outputs(there), outputs)
    a, b = (jax.device_get(predict(one)) for one in (outputs, there))
    assert a["valid"].sum() > 3
    turned = np.stack([64 - b["boxes"][..., 2], b["boxes"][..., 1], 64 - b["boxes"][..., 0], b["boxes"][..., 3]], -1)
    np.testing.assert_allclose(a["boxes"][a["valid"]], turned[b["valid"]], atol=1e-3)
    np.testing.assert_array_equal(a["classes"], b["classes"])


def test_two_views_are_joined_by_suppression():
    one, other = random_outputs(3), random_outputs(4)
    nothing = {**one, "present": one["present"] & False}
    alone, twice = (jax.device_get(predict(TASK.both_views(one, x))) for x in (nothing, one))
    jax.tree.map(np.testing.assert_array_equal, alone, twice)
    jax.tree.map(np.testing.assert_array_equal, alone, jax.device_get(predict(one)))
    both = jax.device_get(predict(TASK.both_views(one, other)))
    assert both["scores"].sum() > alone["scores"].sum() and both["scores"].max() >= alone["scores"].max()


def test_soft_labels_are_believed_by_their_scores():
    teacher = random_outputs(5)
    terms = jax.jit(TASK.distill_loss)(random_outputs(6), teacher)
    assert set(terms) == {f"soft_{name}" for name in TASK.terms}
    found = predict(teacher)
    sure = {"boxes": found["boxes"], "classes": found["classes"], "known": found["known"], "positive": found["valid"]}
    outputs = random_outputs(6, np.asarray(found["boxes"][0]))
    outputs["present"] = jnp.asarray(found["valid"])
    # The best class logits for a proposal on a teacher's box: log of its score, and of the rest for background.
    aim = jax.jit(
        lambda s, logits: TASK.loss(
            {**outputs, "class": logits}, {**sure, "ignored": found["crowd"], "sure": found["scores"] * 0 + s}
        )["class"].value[0]
    )
    logits = jnp.log(jnp.where(jax.nn.one_hot(found["classes"], 4) > 0, 0.3, jnp.array([1e-9, 1e-9, 1e-9, 0.7])))
    assert float(jnp.abs(jax.grad(aim, argnums=1)(0.3, logits)).max()) < 1e-4
    assert aim(0.3, logits) < aim(0.3, 2 * logits)


def test_hints_that_need_equal_points_are_refused():
    assert type(TASK).disagreement is Task.disagreement and type(TASK).foreground is not Task.foreground


def test_impossible_settings_and_its_own_description():
    with pytest.raises(UserError, match="do not double"):
        build("two_stage", classes=NAMES, strides=(8, 32))
    with pytest.raises(UserError, match="proposals=0"):
        build("two_stage", classes=NAMES, proposals=0)
    section = describe(TASK)
    assert section["kind"] == "two_stage" and build(**section) == TASK


def test_both_stages_together_learn_to_find_objects():
    """From features that show where objects are, in one compiled program."""
    rng = np.random.default_rng(0)
    records, maps = [], np.zeros((2, 64, 64, 3), np.float32)
    for i in range(2):
        corner = np.stack([rng.uniform(2, 10, 2), rng.uniform(34, 40, 2)])
        boxes = np.concatenate([corner, corner + rng.uniform(12, 22, (2, 2))], -1).astype(np.float32)
        classes = rng.integers(0, 3, 2)
        for (x0, y0, x1, y1), c in zip(boxes.round().astype(int), classes, strict=True):
            maps[i, y0:y1, x0:x1, c] = 1
        records.append(TASK.encode(forms.detection(boxes, classes, np.zeros(2, bool)), own_frame(SIZE)))
    label = jax.tree.map(lambda *x: np.stack(x), *records)
    cells = lambda x, n: x.reshape(2, n, 2, n, 2, 3).swapaxes(2, 3).reshape(2, n, n, -1)  # noqa: E731
    pyramid = {8: jnp.asarray(cells(maps[:, ::4, ::4], 8)), 16: jnp.asarray(cells(maps[:, ::8, ::8], 4))}
    features, head = Features(pyramid, jnp.zeros((2, 8))), TASK.head()
    apply = functools.partial(head.apply, train=True, image_size=SIZE)
    tx = optax.adam(1e-2)

    def total(params):
        terms = TASK.loss(apply(params, features), TASK.target(label, HARD))
        return sum(term.value.sum() / jnp.maximum(term.norm.sum(), 1) for term in terms.values())

    @jax.jit
    def step(params, state):
        update, state = tx.update(jax.grad(total)(params), state)
        return optax.apply_updates(params, update), state

    params = jax.jit(functools.partial(head.init, train=True, image_size=SIZE))(jax.random.key(0), features)
    state = tx.init(params)
    for _ in range(80):  # not a scan, in which convolutions are slow on CPU
        params, state = step(params, state)
    found = jax.device_get(predict(jax.jit(apply)(params, features)))
    score = TASK.summarize(TASK.measure(found, label))
    assert score["AP50"] > 0.9, score
