"""Box arithmetic against plain loops, and the properties that losses and assignment rest on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core import boxes as bx

STRIDES = (4, 8, 16)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_boxes(rng, *shape, size=64.0):
    center, half = rng.uniform(0, size, (*shape, 2)), rng.uniform(1, size / 4, (*shape, 2))
    return np.concatenate([center - half, center + half], -1).astype(np.float32)


def iou_of_two(a, b):
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in range(2))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def plain_suppression(boxes, classes, scores, threshold):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        rivals = (j for j in kept if classes[j] == classes[i])
        if scores[i] > 0 and all(iou_of_two(boxes[i], boxes[j]) <= threshold for j in rivals):
            kept.append(i)
    return kept


def test_iou_equals_the_textbook(rng):
    a, b = random_boxes(rng, 7), random_boxes(rng, 5)
    expected = [[iou_of_two(x, y) for y in b] for x in a]
    np.testing.assert_allclose(bx.iou(a, b), expected, atol=1e-6)


def test_giou_is_one_for_equal_boxes_and_falls_with_distance_to_minus_one(rng):
    a, b = random_boxes(rng, 200), random_boxes(rng, 200)
    iou, giou = bx.overlaps(a, b)
    assert (giou <= iou + 1e-6).all() and (giou >= -1).all()
    np.testing.assert_allclose(bx.overlaps(a, a)[1], 1.0, atol=1e-5)
    np.testing.assert_allclose(iou, jnp.diagonal(bx.iou(a, b)), atol=1e-6)
    unit = np.array([0, 0, 1, 1.0], np.float32)
    far = [float(bx.overlaps(unit, unit + d)[1]) for d in (0, 0.5, 1, 2, 10, 1000)]
    assert far == sorted(far, reverse=True) and far[-1] == pytest.approx(-1, abs=1e-3)


def test_giou_and_its_gradient_are_finite_for_degenerate_boxes():
    odd = np.array([[5, 5, 5, 5], [9, 9, 2, 2], [5, 5, 5, 9], [-1e4, 0, 1e4, 1], [5, 5, 7, 8]], np.float32)
    a, b = np.repeat(odd, len(odd), 0), np.tile(odd, (len(odd), 1))
    iou, giou = bx.overlaps(a, b)
    slope = jax.grad(lambda a: bx.overlaps(a, b)[1].sum())(a)
    assert np.isfinite(iou).all() and np.isfinite(slope).all()
    assert (np.abs(giou) <= 1 + 1e-6).all()


def test_grid_has_one_point_per_cell_fine_to_coarse():
    grid = bx.point_grid((20, 33), (8, 16))
    assert grid.shape == (3 * 5 + 2 * 3, 3) and grid.dtype == np.float32
    np.testing.assert_array_equal(grid[:2], [[4, 4, 8], [12, 4, 8]])
    np.testing.assert_array_equal(grid[5], [4, 12, 8])
    np.testing.assert_array_equal(grid[-1], [40, 24, 16])


def test_distances_rebuild_a_box(rng):
    box, point = random_boxes(rng, 9), rng.uniform(0, 64, (9, 3)).astype(np.float32)
    xy = point[:, :2]
    distances = np.concatenate([xy - box[:, :2], box[:, 2:] - xy], -1)
    np.testing.assert_allclose(bx.from_distances(point, distances), box, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.1, 0.6])
def test_suppression_equals_the_plain_loop(rng, threshold):
    boxes = random_boxes(rng, 8, 60, size=40.0)
    classes = rng.integers(0, 3, (8, 60))
    scores = -np.sort(-rng.uniform(-0.2, 1, (8, 60)).astype(np.float32), -1)
    suppress = jax.jit(lambda b, c, s: bx.non_maximum_suppression(b, c, s, threshold=threshold, count=40))
    indices, real = jax.tree.map(np.asarray, suppress(boxes, classes, scores))
    assert indices.shape == (8, 40)
    for i in range(8):
        expected = plain_suppression(boxes[i], classes[i], scores[i], threshold)[:40]
        np.testing.assert_array_equal(indices[i][real[i]], expected)
        assert not real[i][len(expected) :].any()


def test_suppression_survives_a_chain_in_which_every_second_box_stays():
    x = np.arange(30, dtype=np.float32) * 3
    chain = np.stack([x, 0 * x, x + 10, 0 * x + 10], -1)  # IoU 7 / 13 with a neighbor, at most 4 / 16 with others
    scores = np.linspace(1, 0.1, 30, dtype=np.float32)
    indices, real = bx.non_maximum_suppression(chain, np.zeros(30, int), scores, threshold=0.5, count=30)
    np.testing.assert_array_equal(np.asarray(indices)[np.asarray(real)], np.arange(0, 30, 2))


assign = jax.jit(
    jax.vmap(lambda p, b, m: bx.assign_points(p, b, m, strides=STRIDES, scale=4.0, radius=1.5), (None, 0, 0))
)


def test_every_box_gets_a_point_on_its_level_and_points_lie_in_their_boxes(rng):
    grid = bx.point_grid((64, 64), STRIDES)
    center, half = rng.uniform(8, 56, (500, 1, 2)), rng.uniform(0.6, 30, (500, 1, 2))
    boxes = np.clip(np.concatenate([center - half, center + half], -1), 0, 64).astype(np.float32)
    index, taken = jax.tree.map(np.asarray, assign(grid, boxes, np.ones((500, 1), bool)))
    assert taken.any(-1).all() and (index == 0).all()
    for i in range(500):
        x0, y0, x1, y1 = boxes[i, 0]
        x, y, stride = grid[taken[i]].T
        assert len(set(stride)) == 1
        if len(x) > 1:
            assert ((x > x0) & (x < x1) & (y > y0) & (y < y1)).all()
        ideal = np.sqrt((x1 - x0) * (y1 - y0)) / 4
        assert stride[0] == min(STRIDES, key=lambda s: abs(np.log(s / max(ideal, 1e-3))))


def test_contests_go_to_the_smaller_box_but_leave_the_larger_its_centre():
    grid = bx.point_grid((64, 64), STRIDES)
    boxes = np.array([[[20, 20, 40, 40], [27, 27, 37, 37], [0, 0, 64, 64]]], np.float32)
    index, taken = jax.tree.map(np.asarray, assign(grid, boxes, np.ones((1, 3), bool)))
    owner = {tuple(p): i for p, i, t in zip(grid.tolist(), index[0], taken[0], strict=True) if t}
    assert owner[(30.0, 30.0, 4.0)] == 0  # the cell of the large one's center
    assert owner[(34.0, 34.0, 4.0)] == 1 and owner[(26.0, 26.0, 4.0)] == 0
    assert {s for (_, _, s), i in owner.items() if i == 2} == {16.0}


def test_absent_boxes_take_no_point(rng):
    grid = bx.point_grid((64, 64), STRIDES)
    boxes = random_boxes(rng, 4, 3)
    present = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]], bool)
    index, taken = jax.tree.map(np.asarray, assign(grid, boxes, present))
    assert not taken[2].any()
    for i in (0, 1, 3):
        assert present[i][index[i][taken[i]]].all() and taken[i].any()
