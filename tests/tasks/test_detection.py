"""Detection: the loss under missing and doubtful labels, AP against pycocotools, geometry, and that it learns."""

import contextlib
import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from must.core import boxes as bx
from must.core.notices import Notice
from must.core.types import Policy, UserError
from must.data import geometry as geo
from must.tasks.detection import Detection

NAMES = ("cat", "dog", "cup")
TASK = Detection(NAMES, strides=(4, 8, 16), max_boxes=6, max_detections=30, candidates=120)
SIZE = (64, 64)
BATCH = 4  # the same everywhere, so that one compiled program serves all tests
POINTS = bx.point_grid(SIZE, TASK.strides)
WHOLE = geo.whole_image(SIZE, SIZE)


@jax.jit
def loss(outputs, label, policy=Policy()):
    return {name: (term.value, term.norm) for name, term in TASK.loss(outputs, TASK.target(label, policy)).items()}


@jax.jit
def slopes(outputs, label, policy=Policy()):
    free = {name: outputs[name] for name in ("quality", "class", "distances")}
    total = lambda free: sum(v.sum() for v, _ in loss({**outputs, **free}, label, policy).values())  # noqa: E731
    return jax.grad(total)(free)


predict = jax.jit(TASK.predict)
measure = TASK.measure
mirror = jax.jit(TASK.hflip_outputs)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def record(boxes=(), classes=(), scores=None, crowd=None, unknown=()):
    count = len(boxes)
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "classes": np.array(classes, np.uint16),
        "scores": np.ones(count, np.float16) if scores is None else np.array(scores, np.float16),
        "crowd": np.zeros(count, bool) if crowd is None else np.array(crowd, bool),
        "unknown": np.array(unknown, np.uint16),
    }


def network(*records, count=BATCH):
    """The records in network form, repeated until there are `count`."""
    labels = [TASK.transform(records[i % len(records)], WHOLE) for i in range(count)]
    return jax.tree.map(lambda *x: np.stack(x), *labels)


def random_record(rng, most=4):
    count = rng.integers(1, most + 1)
    center, half = rng.uniform(12, 52, (count, 2)), rng.uniform(3, 11, (count, 2))
    return record(np.concatenate([center - half, center + half], -1), rng.integers(0, 3, count))


def random_outputs(rng, size=SIZE, batch=BATCH):
    points = bx.point_grid(size, TASK.strides)
    count = len(points)
    outputs = {
        "quality": rng.normal(-1, 1, (batch, count)),
        "class": rng.normal(0, 1, (batch, count, 3)),
        "distances": rng.uniform(1, 14, (batch, count, 4)),
        "points": np.tile(points, (batch, 1, 1)),
        "size": np.tile(np.array(size), (batch, 1)),
    }
    return {name: np.asarray(value, np.float32) for name, value in outputs.items()}


def shapes(fields):
    return {name: (value.shape, np.dtype(value.dtype)) for name, value in fields.items()}


def assert_same(a, b, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), a, b)


# The loss


def test_score_term_is_proper(rng):
    """Along the quality of one point, the lowest loss is where the score equals the IoU of the point's own box."""
    label = network(record([[8, 8, 24, 24]], [1]))
    at = int(np.flatnonzero((POINTS == [18, 18, 4]).all(-1))[0])
    outputs = random_outputs(rng)
    for iou in (0.2, 0.5, 0.9):
        outputs["distances"][:, at] = [10, 10, 16 * iou - 10, 6]  # the true height, the fraction iou of the width
        grid = np.linspace(0.01, 0.99, 99, dtype=np.float32)
        many = {name: np.repeat(value[:1], 99, 0) for name, value in outputs.items()}
        many["quality"][:, at] = np.log(grid / (1 - grid))
        value = np.asarray(loss(many, jax.tree.map(lambda x: np.repeat(x[:1], 99, 0), label))["score"][0])
        assert grid[value.argmin()] == pytest.approx(iou, abs=0.011)


def test_an_image_without_objects_teaches_the_score_alone(rng):
    outputs, label = random_outputs(rng), network(record(), record())
    terms = loss(outputs, label)
    assert (terms["score"][0] > 0).all() and all((norm == 0).all() for _, norm in terms.values())
    assert (terms["class"][0] == 0).all() and (terms["box"][0] == 0).all()
    slope = slopes(outputs, label)
    assert all(np.isfinite(s).all() for s in slope.values()) and (slope["quality"] > 0).all()


def test_loss_and_gradient_stay_finite_for_extreme_outputs(rng):
    label = network(random_record(rng), record(unknown=[0, 1, 2]), record([[0, 0, 64, 64]], [0], unknown=[1]))
    for scale in (1e2, 1e4):
        outputs = random_outputs(rng)
        outputs["quality"] *= scale
        outputs["class"] *= scale
        outputs["distances"] *= scale
        assert all(np.isfinite(v).all() for v, _ in loss(outputs, label).values())
        assert all(np.isfinite(s).all() for s in slopes(outputs, label).values())


def test_unknown_classes_get_no_loss_and_known_ones_still_do(rng):
    outputs = random_outputs(rng)
    share = np.exp(outputs["class"]) / np.exp(outputs["class"]).sum(-1, keepdims=True)
    p = share[..., 1] / (1 + np.exp(-outputs["quality"]))
    score = loss(outputs, network(record(unknown=[0, 2])))["score"][0]
    np.testing.assert_allclose(score, (p**2 * -np.log(1 - p)).sum(-1), rtol=1e-4)
    assert (loss(outputs, network(record(unknown=[0, 1, 2])))["score"][0] == 0).all()
    # Away from objects only the probability of known classes counts: swapping two unknown ones changes nothing ...
    label = network(record(unknown=[0, 2]))
    swapped = {**outputs, "class": outputs["class"][..., [2, 1, 0]]}
    assert_same(loss(outputs, label), loss(swapped, label), rtol=1e-5)
    # ... and a point that is sure of an unknown class is not pushed down.
    sure = {**outputs, "class": np.tile(np.array([30, 0, 0], np.float32), (BATCH, len(POINTS), 1))}
    assert (loss(sure, label)["score"][0] < 1e-6).all() and np.abs(slopes(sure, label)["quality"]).max() < 1e-6
    assert (loss(sure, network(record()))["score"][0] > 1).all()


@pytest.mark.parametrize("doubt", [{"crowd": [True]}, {"scores": [0.3]}])
def test_points_in_an_ignored_box_get_no_loss(rng, doubt):
    policy = Policy(0.5, 0.2)
    label = network(record([[16, 16, 48, 48]], [0], **doubt))
    outputs, other = random_outputs(rng), random_outputs(rng)
    inside = (np.abs(POINTS[:, :2] - 32) < 16).all(-1)
    mixed = {n: outputs[n].copy() for n in ("quality", "class", "distances")}
    for name, value in mixed.items():
        value[:, inside] = other[name][:, inside]
    assert_same(loss({**outputs, **mixed}, label, policy), loss(outputs, label, policy), rtol=1e-6)
    slope = np.asarray(slopes(outputs, label, policy)["quality"])
    assert (slope[:, inside] == 0).all() and (slope[:, ~inside] > 0).all()


def test_a_true_box_inside_an_ignored_one_is_learnt_as_if_alone(rng):
    small = [[24, 24, 40, 40]]
    outputs, alone = random_outputs(rng), network(record(small, [1]))
    both = network(record([*small, [8, 8, 56, 56]], [1, 0], crowd=[False, True]))
    learnt = np.asarray(slopes(outputs, alone)["distances"])[0].any(-1)
    for name, slope in slopes(outputs, both).items():
        assert learnt.any() and np.asarray(slope)[0, learnt].any()
        np.testing.assert_allclose(slope[0, learnt], slopes(outputs, alone)[name][0, learnt], rtol=1e-5, atol=1e-6)


def test_the_score_term_teaches_no_box(rng):
    """Its target, the IoU, is a constant: a box must not move to suit a low score."""
    outputs, label = random_outputs(rng), network(random_record(rng))
    score = jax.jit(lambda d: TASK.loss({**outputs, "distances": d}, TASK.target(label, Policy()))["score"].value.sum())
    assert not np.asarray(jax.grad(score)(outputs["distances"])).any()


def test_three_states_follow_the_policy_per_class():
    boxes = [[4, 4, 20, 20]] * 4
    label = network(record(boxes, [0, 1, 2, 0], scores=[0.5, 0.5, 0.5, 1.0]))
    order = np.lexsort((label["classes"][0][:4], -label["scores"][0][:4]))  # truth first
    target = TASK.target(label, Policy(np.array([0.4, 0.6, 0.9]), np.array([0.1, 0.4, 0.8])))
    positive, ignored = (np.asarray(target[n])[0][order] for n in ("positive", "ignored"))
    assert positive.tolist() == [True, True, False, False] and ignored.tolist() == [False, False, True, False]
    hard = TASK.target(label, Policy())
    assert np.asarray(hard["positive"])[0].sum() == 4 and not np.asarray(hard["ignored"]).any()
    strict = TASK.target(label, Policy(1.5, 1.5))
    assert np.asarray(strict["positive"])[0][order].tolist() == [True, False, False, False]


def test_absent_and_below_threshold_boxes_equal_no_boxes(rng):
    outputs, truth = random_outputs(rng), random_record(rng, 2)
    doubtful = {n: np.concatenate([truth[n], truth[n]]) for n in ("classes", "crowd")}
    doubtful["boxes"] = np.concatenate([truth["boxes"], truth["boxes"] / 2])
    doubtful["scores"] = np.concatenate([truth["scores"], truth["scores"] * 0.1])
    doubtful["unknown"] = truth["unknown"]
    assert_same(loss(outputs, network(truth)), loss(outputs, network(doubtful), Policy(0.5, 0.2)), rtol=1e-6)


def test_padding_cannot_matter(rng):
    outputs, label = random_outputs(rng), network(*[random_record(rng) for _ in range(3)], record())
    dirty = {name: value.copy() for name, value in label.items()}
    empty = ~label["valid"]
    dirty["boxes"][empty], dirty["classes"][empty], dirty["scores"][empty], dirty["crowd"][empty] = np.nan, 10**6, 1, 1
    jax.tree.map(np.testing.assert_array_equal, TASK.target(label, Policy()), TASK.target(dirty, Policy()))
    jax.tree.map(np.testing.assert_array_equal, loss(outputs, label), loss(outputs, dirty))
    jax.tree.map(np.testing.assert_array_equal, slopes(outputs, label), slopes(outputs, dirty))
    found = predict(outputs)
    jax.tree.map(np.testing.assert_array_equal, measure(found, label), measure(found, dirty))


def test_order_of_boxes_and_of_examples_does_not_matter(rng):
    outputs, label = random_outputs(rng), network(*[random_record(rng) for _ in range(4)])
    turn = rng.permutation(TASK.max_boxes)
    turned = {name: value if name == "known" else value[:, turn] for name, value in label.items()}
    assert_same(loss(outputs, label), loss(outputs, turned), rtol=1e-6)
    order = np.array([2, 0, 3, 1])
    rows = partial(jax.tree.map, lambda x: x[order])
    jax.tree.map(np.testing.assert_array_equal, loss(rows(outputs), rows(label)), rows(loss(outputs, label)))


def test_raw_outputs_learn_the_boxes(rng):
    """Gradient descent on the outputs themselves reaches an AP near 1, through the same verbs that a student uses."""
    label = network(*[random_record(rng, 3) for _ in range(4)])
    outputs = random_outputs(rng)
    free = {"quality": outputs["quality"] - 2, "class": 0 * outputs["class"], "distances": 0 * outputs["distances"] + 8}
    tx = optax.adam(0.1)

    @jax.jit
    def train(free):
        def step(carry, _):
            free, state = carry
            update, state = tx.update(slopes({**outputs, **free}, label), state)
            return (optax.apply_updates(free, update), state), None

        return jax.lax.scan(step, (free, tx.init(free)), None, length=400)[0][0]

    before = TASK.summarize(jax.tree.map(np.asarray, measure(predict({**outputs, **free}), label)))
    found = predict({**outputs, **train(free)})
    after = TASK.summarize(jax.tree.map(np.asarray, measure(found, label)))
    assert before["AP"] < 0.1 and after["AP"] > 0.97 and after["AP50"] > 0.99


# Predictions


def test_predictions_are_sorted_clipped_padded_and_above_the_floor(rng):
    outputs = random_outputs(rng)
    outputs["quality"][2] = -20
    found = jax.tree.map(np.asarray, predict(outputs))
    assert shapes(jax.tree.map(lambda x: x[0], found)) == shapes(TASK._spec(TASK.max_detections))
    assert (np.diff(found["scores"]) <= 0).all() and found["known"].all() and not found["crowd"].any()
    assert (found["scores"][found["valid"]] >= TASK.score_floor).all()
    assert found["boxes"].min() >= 0 and found["boxes"].max() <= 64
    assert found["valid"].any(-1).tolist() == [True, True, False, True]
    for name in ("boxes", "scores", "classes"):
        assert (found[name][~found["valid"]] == 0).all()


def test_the_score_is_quality_times_class_probability(rng):
    outputs = random_outputs(rng)
    outputs["quality"][:] = -20
    outputs["quality"][:, 100] = 1.0
    found = jax.tree.map(np.asarray, predict(outputs))
    logits = np.exp(outputs["class"][0, 100].astype(np.float64))
    expected = np.sort(logits / logits.sum() / (1 + np.exp(-1.0)))[::-1]
    expected = expected[expected >= TASK.score_floor]
    np.testing.assert_allclose(found["scores"][0][: len(expected)], expected, rtol=1e-5)
    assert found["valid"][0].sum() == len(expected)


@pytest.mark.parametrize("size", [(64, 64), (40, 70)])
def test_mirror_brings_the_outputs_of_a_mirrored_image_back(rng, size):
    """Also for widths that are no multiple of the stride, where the grid overhangs on the right."""
    outputs = random_outputs(rng, size)
    there = mirror(outputs)
    assert_same(mirror(there), outputs, atol=1e-4)
    # Boxes of the mirrored outputs are the mirrored boxes, with the quality and class of their own.
    straight, turned = (np.asarray(bx.from_distances(o["points"], o["distances"])) for o in (outputs, there))
    turned = np.stack([size[1] - turned[..., 2], turned[..., 1], size[1] - turned[..., 0], turned[..., 3]], -1)
    keys = [np.lexsort(np.round(b[0], 2).T) for b in (straight, turned)]
    np.testing.assert_allclose(straight[0][keys[0]], turned[0][keys[1]], atol=1e-3)
    np.testing.assert_array_equal(outputs["quality"][0][keys[0]], np.asarray(there["quality"])[0][keys[1]])


# Geometry and records


def test_transform_and_restore_are_inverse_up_to_rounding(rng):
    for _ in range(30):
        source = tuple(rng.integers(40, 200, 2).tolist())
        geometry = geo.draw(rng, source, (96, 80), zoom=(0.5, 1.0), shift=0.0)
        low = rng.uniform(0, 0.5, (4, 2)) * source[::-1]
        boxes = np.concatenate([low, low + rng.uniform(0.2, 0.5, (4, 2)) * source[::-1]], -1)
        truth = record(boxes, [0, 2, 1, 1], scores=[1, 0.75, 0.5, 0.25], crowd=[0, 0, 0, 1], unknown=[2])
        label = TASK.transform(truth, geometry)
        assert shapes(label) == shapes(TASK.network_spec((96, 80)))
        back = TASK.restore(label, geometry)
        assert {n: v.dtype for n, v in back.items()} == {n: s.dtype for n, s in TASK.label_spec().items()}
        assert_same(back["boxes"], truth["boxes"], atol=2e-3 * max(source) / 64)
        for name in ("classes", "scores", "crowd", "unknown"):
            np.testing.assert_array_equal(back[name], truth[name])


def test_cut_and_tiny_boxes_are_ignored_and_lost_ones_dropped():
    boxes = [[0, 0, 40, 40], [60, 0, 100, 40], [20, 20, 21, 60], [70, 70, 90, 90], [30, 30, 30, 40]]
    truth = record(boxes, [0, 1, 2, 0, 1])
    crop = geo.Geometry((100, 100), SIZE, (1.0, 1.0), (0.0, 0.0))
    label = TASK.encode(truth, crop)
    assert label["valid"].tolist() == [True, True, True, False, False, False]
    assert label["crowd"].tolist()[:3] == [False, True, True] and sorted(label["classes"].tolist()[:3]) == [0, 1, 2]


def test_too_many_boxes_keep_the_surest():
    boxes = [[i, i, i + 20, i + 20] for i in range(10)]
    with pytest.warns(Notice, match="max_boxes=6"):
        label = TASK.encode(record(boxes, [0] * 10, scores=np.arange(10) / 10, crowd=[0] * 9 + [1]), WHOLE)
    np.testing.assert_allclose(label["scores"], [0.8, 0.7, 0.6, 0.5, 0.4, 0.3], atol=1e-3)
    assert not label["crowd"].any()


@pytest.mark.parametrize(
    "bad, says",
    [
        (record([[10, 10, 5, 20]], [0]), "reversed"),
        (record([[10, 10, 70, 20]], [0]), "outside"),
        (record([[np.nan, 10, 20, 20]], [0]), "nan"),
        (record([[1, 1, 20, 20]], [3]), "class id 3"),
        (record(unknown=[3]), "class id 3"),
        (record([[1, 1, 20, 20]], [0], scores=[2]), "score"),
        (record([[1, 1, 20, 20]], [0, 1]), "length"),
    ],
)
def test_impossible_labels_are_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        TASK.transform(bad, WHOLE)


def test_impossible_tasks_are_refused():
    with pytest.raises(UserError, match="classes"):
        Detection(())
    with pytest.raises(UserError, match="strides"):
        Detection(NAMES, strides=(16, 8))


# Metrics


def coco_referee(found, truth, count):
    """pycocotools on labels in network form; detections of classes unknown to the image left out."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    images, annotations, detections = [], [], []
    for i in range(len(found["valid"])):
        images.append({"id": i + 1})
        for label, rows in ((truth, annotations), (found, detections)):
            for j in np.flatnonzero(label["valid"][i]):
                c = int(label["classes"][i, j])
                if not truth["known"][i, c]:
                    continue
                x0, y0, x1, y1 = label["boxes"][i, j].astype(float)
                row = {"id": len(rows) + 1, "image_id": i + 1, "category_id": c + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
                row |= {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": int(label["crowd"][i, j])}
                rows.append(row | {"score": float(label["scores"][i, j])})
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO()
        categories = [{"id": c + 1} for c in range(count)]
        reference.dataset = {"images": images, "annotations": annotations, "categories": categories}
        reference.createIndex()
        evaluation = cocoeval.COCOeval(reference, reference.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("AP", "AP50", "AP75", "AR100"), evaluation.stats[[0, 1, 2, 8]], strict=True))


def random_pair(rng, images):
    """Truth with crowds, unknown classes and empty images; detections near it and elsewhere, some with equal scores."""
    truth, found = [], []
    for i in range(images):
        objects = random_record(rng, 6) if i % 4 else record()
        count = len(objects["boxes"])
        objects["crowd"] = rng.random(count) < 0.2
        objects["unknown"] = np.array([2] if i % 5 == 0 else [], np.uint16)
        truth.append(TASK.transform(objects, WHOLE))
        extra = random_record(rng, 6)
        boxes = np.concatenate([objects["boxes"], objects["boxes"], extra["boxes"]])
        boxes = np.clip(boxes + rng.normal(0, 1.2, boxes.shape), 0, 64).astype(np.float32)
        wide = (boxes[:, 2:] - boxes[:, :2] > 0.5).all(-1)
        classes = np.concatenate([objects["classes"], objects["classes"], extra["classes"]])
        classes = np.where(rng.random(len(classes)) < 0.8, classes, rng.integers(0, 3, len(classes)))
        scores = -np.sort(-np.round(rng.random(len(classes)), 2))
        label = {n: np.zeros(s.shape, s.dtype) for n, s in TASK._spec(TASK.max_detections).items()}
        for name, value in (("boxes", boxes), ("classes", classes), ("scores", scores), ("valid", wide)):
            label[name][: len(value)] = value
        label["known"][:] = True
        found.append(label)
    return tuple(jax.tree.map(lambda *x: np.stack(x), *labels) for labels in (found, truth))


def measured(found, truth):
    """Rows of any number of examples, a batch at a time."""
    starts = range(0, len(truth["valid"]), BATCH)
    parts = [measure(*jax.tree.map(lambda x: x[i : i + BATCH], (found, truth))) for i in starts]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_pycocotools(seed):
    found, truth = random_pair(np.random.default_rng(seed), 40)
    rows = measured(found, truth)
    ours, theirs = TASK.summarize(rows), coco_referee(found, truth, len(NAMES))
    assert 0.05 < ours["AP"] < 0.9
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name


def test_perfect_predictions_score_one_and_nothing_to_find_scores_zero(rng):
    label = network(*[random_record(rng) for _ in range(3)], record())
    assert TASK.summarize(jax.tree.map(np.asarray, measure(label, label)))["AP"] == pytest.approx(1)
    empty = network(record())
    assert set(TASK.summarize(jax.tree.map(np.asarray, measure(predict(random_outputs(rng)), empty))).values()) == {0.0}
    blind = {**label, "valid": np.zeros_like(label["valid"])}
    assert TASK.summarize(jax.tree.map(np.asarray, measure(blind, label)))["AP"] == 0


def test_judge_says_which_claims_are_hits():
    truth = network(record([[0, 0, 20, 20], [30, 30, 60, 60]], [0, 1], crowd=[0, 1]))
    boxes = [[1, 0, 20, 20], [0, 0, 19, 20], [32, 32, 50, 50], [0, 40, 20, 60]]
    found = network(record(boxes, [0, 0, 1, 2], scores=[0.75, 0.5, 0.25, 0.125]))
    score, correct, classes = TASK.judge(*jax.tree.map(lambda x: x[0], (found, truth)))
    assert score.tolist() == [0.75, 0.5, 0.125] and classes.tolist() == [0, 0, 2]  # the crowd's is no claim
    assert correct.tolist() == [True, False, False]


# The rest


def test_head_gives_points_and_skips_levels_that_it_does_not_read(rng):
    from must.core.types import Features

    task = Detection(NAMES, strides=(8, 16), width=8, depth=1)
    size = (40, 60)
    pyramid = {s: jnp.ones((2, -(-size[0] // s), -(-size[1] // s), 4)) for s in (4, 8, 16)}
    head = task.head()
    run = jax.jit(partial(head.init_with_output, train=False, image_size=size))
    outputs, _ = run(jax.random.key(0), Features(pyramid, None))
    np.testing.assert_array_equal(outputs["points"][1], bx.point_grid(size, (8, 16)))
    np.testing.assert_array_equal(outputs["size"], [size, size])
    with pytest.raises(ValueError, match="strides"):
        head.init(jax.random.key(0), Features({8: pyramid[8]}, None), train=False, image_size=size)


def test_a_blank_label_is_a_label():
    blank = jax.tree.map(lambda x: np.stack([x] * BATCH), TASK.blank(SIZE))
    outputs = random_outputs(np.random.default_rng(0))
    assert all(np.isfinite(v).all() for v, _ in loss(outputs, blank).values())
    assert not np.asarray(measure(predict(outputs), blank)["hit"]).any()


def test_a_picture_shows_boxes_and_grows_when_small():
    image = np.zeros((*SIZE, 3), np.uint8)
    shown = record([[10, 10, 30, 30], [40, 40, 60, 60], [2, 40, 20, 60]], [0, 1, 2], scores=[0.7, 1, 0.2])
    picture = TASK.draw(image, jax.tree.map(lambda x: x[0], network(shown)))
    assert picture.shape[1:] == (192, 3) and picture.dtype == np.uint8
    assert picture[60, 30].any() and picture[150, 120].any() and not picture[150, 6].any() and (image == 0).all()
    assert not TASK.draw(image, TASK.blank(SIZE))[:192].any()
    assert TASK.draw(np.zeros((200, 300, 3), np.uint8), TASK.blank((200, 300))).shape[1] == 300


def test_boxes_of_less_than_a_pixel_are_drawn_and_names_never_overlap():
    task = Detection(classes=("a rather long name", "b"))
    boxes = np.array([[3.0, 3.0, 3.2, 3.1], [10.0, 10.0, 30.0, 30.0], [10.0, 10.0, 30.0, 30.5]], np.float32)
    label = {"boxes": boxes, "classes": np.zeros(3, np.int32), "scores": np.array([0.9, 0.8, 0.7], np.float32)}
    label |= {"valid": np.ones(3, bool), "crowd": np.zeros(3, bool)}
    picture = task.draw(np.zeros((64, 64, 3), np.uint8), label)
    assert picture.shape[1] == 192 and picture.any()
