"""ROI align and suppression against references in plain NumPy; levels, anchors and deltas against the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from must.core import boxes as bx
from must.models.regions import RegionHead, anchors_of, level_of, roi_align


def bilinear(level, y, x):
    """torchvision's bilinear_interpolate, one point of [h, w, C]."""
    height, width, _ = level.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(level.shape[-1])
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = int(y), int(x)
    if y0 >= height - 1:
        y0 = y1 = height - 1
        y = float(y0)
    else:
        y1 = y0 + 1
    if x0 >= width - 1:
        x0 = x1 = width - 1
        x = float(x0)
    else:
        x1 = x0 + 1
    ly, lx = y - y0, x - x0
    top = (1 - lx) * level[y0, x0] + lx * level[y0, x1]
    return (1 - ly) * top + ly * ((1 - lx) * level[y1, x0] + lx * level[y1, x1])


def reference(level, box, stride, size, samples=2):
    """ROI align with aligned=True, one region of one level, cell by cell."""
    x0, y0, x1, y1 = np.asarray(box, np.float64) / stride - 0.5
    cell_h, cell_w = (y1 - y0) / size, (x1 - x0) / size
    out = np.zeros((size, size, level.shape[-1]))
    for i, j, a, b in np.ndindex(size, size, samples, samples):
        y, x = y0 + (i + (a + 0.5) / samples) * cell_h, x0 + (j + (b + 0.5) / samples) * cell_w
        out[i, j] += bilinear(level, y, x) / samples**2
    return out


SHAPES = {4: (8, 10), 8: (4, 5)}  # of a picture of 30 x 37


def drawn(seed, count=12):
    rng = np.random.default_rng(seed)
    pyramid = {s: rng.normal(size=(2, *shape, 3)).astype(np.float32) for s, shape in SHAPES.items()}
    corner = rng.uniform(-8, 36, (2, count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.5, 30, corner.shape)], -1).astype(np.float32)
    boxes[0, 0], boxes[0, 1] = (0, 0, 40, 32), (5, 5, 5, 5)
    return pyramid, boxes, rng.choice([4, 8], (2, count))


@pytest.mark.parametrize("seed", range(3))
def test_roi_align_is_that_of_the_reference(seed):
    pyramid, boxes, level = drawn(seed)
    found = roi_align(pyramid, boxes, level, 3)
    for b, k in np.ndindex(*level.shape):
        stride = int(level[b, k])
        np.testing.assert_allclose(found[b, k], reference(pyramid[stride][b], boxes[b, k], stride, 3), atol=2e-5)


def test_gradients_of_roi_align_are_those_of_differences():
    pyramid, boxes, level = drawn(7, 4)
    check_grads(lambda p: roi_align(p, boxes, level, 2), (pyramid,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    slope = jax.grad(lambda p: roi_align(p, boxes, level, 2).sum())(pyramid)
    for stride, part in slope.items():  # a sum of cells spreads their number over the pixels that they read
        inside = sum(reference(np.ones((*SHAPES[stride], 1)), boxes[b, k], stride, 2).sum()
                     for b, k in np.argwhere(level == stride))  # fmt: skip
        np.testing.assert_allclose(part.sum() / 3, inside, rtol=1e-4)


def test_levels_follow_equation_1():
    sides = np.array([10, 56, 111, 112, 223, 224, 447, 448, 5000], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, 2 * sides, sides / 2], -1)  # the root of the area counts, not the shape
    expected = 2 ** np.clip(np.floor(4 + np.log2(sides / 224)), 3, 7)
    np.testing.assert_array_equal(level_of(boxes, (8, 16, 32, 64, 128), 14.0), expected)


def test_anchors_have_the_stated_area_ratio_and_place():
    anchors = anchors_of((32, 48), (8, 16), 4.0, (0.5, 1.0, 2.0))
    assert anchors.shape == (3 * (4 * 6 + 2 * 3), 4)
    sides = anchors[:, 2:] - anchors[:, :2]
    np.testing.assert_allclose(np.sqrt(sides.prod(-1)), [32] * 72 + [64] * 18, rtol=1e-5)
    np.testing.assert_allclose(sides[:3, 1] / sides[:3, 0], [0.5, 1, 2], rtol=1e-5)
    np.testing.assert_allclose((anchors[3, :2] + anchors[3, 2:]) / 2, [12, 4])


def test_deltas_come_back_and_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    corner, other = rng.uniform(0, 50, (2, 20, 2))
    boxes, anchors = (np.concatenate([c, c + rng.uniform(2, 30, c.shape)], -1) for c in (corner, other))
    deltas = bx.encode(boxes, anchors)
    np.testing.assert_allclose(bx.decode(deltas, anchors), boxes, atol=1e-3)
    center, side = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    np.testing.assert_allclose(deltas[:, :2], ((boxes[:, :2] + boxes[:, 2:]) / 2 - center) / side, atol=1e-5)
    assert np.isfinite(bx.decode(jnp.full((1, 4), 1e4), anchors[:1])).all()


def test_assignment_follows_overlap_and_leaves_no_object_out():
    anchors = np.float32([[0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30], [50, 50, 60, 60]])
    truth = np.float32([[0, 0, 10, 9], [22, 26, 40, 40], [50, 50, 60, 60]])
    present = np.array([True, True, False])
    index, hit, best = bx.assign_overlaps(anchors, truth, present, least=0.7, every=True)
    assert hit.tolist() == [True, False, True, False] and index[:3].tolist() == [0, 0, 1]
    np.testing.assert_allclose(best, [0.9, 60 / 90, 8 * 4 / (100 + 18 * 14 - 32), 0], rtol=1e-5)
    assert not bx.assign_overlaps(anchors, truth, present, least=0.7)[1][2]


def greedy(boxes, scores, threshold, count):
    """The textbook loop."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        a = boxes[i]
        for j in kept:
            b = boxes[j]
            common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
            if common / union > threshold:
                break
        else:
            kept.append(i)
    return [i for i in kept if scores[i] > 0][:count]


@pytest.mark.parametrize("seed", range(3))
def test_proposals_are_those_of_the_textbook_loop(seed):
    rng = np.random.default_rng(seed)
    head = RegionHead(3, (4, 8), candidates=20, proposals=12, overlap=0.4)
    pyramid = {s: np.zeros((1, 8 * 4 // s, 8 * 4 // s, 1)) for s in (4, 8)}
    corner = rng.uniform(0, 20, (1, 3 * (64 + 16), 2))
    boxes = np.concatenate([corner, corner + rng.uniform(3, 12, corner.shape)], -1).astype(np.float32)
    objectness = rng.normal(size=boxes.shape[:2]).astype(np.float32)
    proposals, present = head._propose(objectness, boxes, pyramid)
    found = []
    for level in (slice(0, 192), slice(192, None)):
        order = np.argsort(-objectness[0, level])[:20]
        score = 1 / (1 + np.exp(-objectness[0, level][order]))
        found += [(score[i], *boxes[0, level][order[i]]) for i in greedy(boxes[0, level][order], score, 0.4, 99)]
    expected = np.array(sorted(found, reverse=True))[:12, 1:]
    assert present.sum() == len(expected)
    np.testing.assert_allclose(proposals[0][: len(expected)], expected, rtol=1e-6)
