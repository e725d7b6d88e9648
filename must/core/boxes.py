"""Box arithmetic in JAX: overlap, prediction points, non-maximum suppression, assignment, matching.

Boxes are x0 y0 x1 y1 in pixels, with (0, 0) the outer corner of the first pixel and x1, y1 exclusive.
"""

import jax
import jax.numpy as jnp
import numpy as np

from must.core.types import Array

_EPS = 1e-9


def area(boxes: Array) -> Array:
    """Area of boxes [..., 4] in square pixels, [...]; 0 for a reversed box."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def intersection(a: Array, b: Array) -> Array:
    """Intersection area of all pairs: a [..., N, 4], b [..., M, 4] -> [..., N, M]."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    return jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)


def iou(a: Array, b: Array) -> Array:
    """IoU of all pairs: a [..., N, 4], b [..., M, 4] -> [..., N, M]; 0 for empty boxes."""
    common = intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - common
    return common / jnp.maximum(union, _EPS)


def overlaps(a: Array, b: Array) -> tuple[Array, Array]:
    """Elementwise IoU and generalized IoU of a [..., 4] and b [..., 4]: [...], [...].

    GIoU = IoU - (hull - union) / hull, in [-1, 1], with hull the smallest enclosing box (Rezatofighi et al. 2019).
    Values and gradients are finite for empty and reversed boxes.
    """
    sides = jnp.maximum(jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2]), 0.0)
    common = sides[..., 0] * sides[..., 1]
    union = area(a) + area(b) - common
    # With reversed boxes, any of the four corners may be extreme.
    low = jnp.minimum(jnp.minimum(a[..., :2], a[..., 2:]), jnp.minimum(b[..., :2], b[..., 2:]))
    high = jnp.maximum(jnp.maximum(a[..., :2], a[..., 2:]), jnp.maximum(b[..., :2], b[..., 2:]))
    hull = (high - low)[..., 0] * (high - low)[..., 1]
    ratio = common / jnp.maximum(union, _EPS)
    return ratio, ratio - (hull - union) / jnp.maximum(hull, _EPS)


def point_grid(image_size: tuple[int, int], strides: tuple[int, ...]) -> np.ndarray:
    """Prediction points of a feature pyramid, by level in the order of `strides`, then by row and column.

    Args:
      image_size: (height, width), pixels.
      strides: pixels between neighbors; level s has ceil(height / s) x ceil(width / s) points.

    Returns:
      float32 [L, 3]: x, y of the cell's center in pixels, and the stride.
    """
    levels = []
    for stride in strides:
        rows, columns = (-(-side // stride) for side in image_size)
        y, x = np.mgrid[:rows, :columns]
        levels.append(np.stack([(x + 0.5) * stride, (y + 0.5) * stride, np.full(x.shape, stride)], -1).reshape(-1, 3))
    return np.concatenate(levels).astype(np.float32)


def from_distances(points: Array, distances: Array) -> Array:
    """Boxes [..., 4] from points [..., 2 or more] (x, y first) and distances to left, top, right, bottom [..., 4]."""
    x, y = points[..., 0], points[..., 1]
    left, top, right, bottom = jnp.moveaxis(distances, -1, 0)
    return jnp.stack([x - left, y - top, x + right, y + bottom], -1)


def greedy_keep(overlap: Array, threshold: float) -> Array:
    """Exact greedy suppression: removes an item if an earlier kept item overlaps it by more than the threshold.

    Starts with all items and applies the rule to all of them at once until nothing changes. The number of rounds is
    the longest chain of suppressions, in practice a handful, instead of one per item in the textbook loop.

    Args:
      overlap: [..., N, N], items by descending score.
      threshold: larger overlaps suppress.

    Returns:
      bool [..., N].
    """
    count = overlap.shape[-1]
    earlier = jnp.triu(jnp.ones((count, count), bool), 1)  # [j, i]: j before i
    suppresses = (overlap > threshold) & earlier

    def again(carry):
        keep, _ = carry
        new = ~jnp.any(suppresses & keep[..., :, None], axis=-2)
        return new, jnp.any(new != keep)

    keep = jnp.ones(overlap.shape[:-1], bool)
    return jax.lax.while_loop(lambda carry: carry[1], again, (keep, jnp.array(True)))[0]


def non_maximum_suppression(
    boxes: Array, classes: Array, scores: Array, *, threshold: float, count: int
) -> tuple[Array, ...]:
    """Class-wise greedy non-maximum suppression with a fixed number of results.

    Args:
      boxes: [..., N, 4], by descending score.
      classes: int [..., N].
      scores: [..., N]; items with scores <= 0 are ignored.
      threshold: IoU above which the lower score is suppressed.
      count: results, K.

    Returns:
      Indices int32 [..., K] by descending score, and their validity, bool [..., K].
    """
    present = scores > 0
    comparable = present[..., :, None] & present[..., None, :] & (classes[..., :, None] == classes[..., None, :])
    keep = greedy_keep(jnp.where(comparable, iou(boxes, boxes), 0.0), threshold) & present
    ranked, indices = jax.lax.top_k(jnp.where(keep, scores, -jnp.inf), min(count, scores.shape[-1]))
    return indices, jnp.isfinite(ranked)


def assign_points(
    points: Array, boxes: Array, present: Array, *, strides: tuple[int, ...], scale: float, radius: float
) -> tuple[Array, Array]:
    """Assigns prediction points of one image to boxes: center sampling on the level that fits the box's size.

    A box belongs to the level whose `scale * stride` is nearest to the root of its area (in ratio). On this level it
    gets the points inside it within `radius` strides of its center (FCOS, Tian et al. 2019), and always the point
    nearest to its center, inside or not, so that every box gets one. Conflicts go to the box for which the point is the
    nearest, then to the smaller box, then to the earlier one.

    Args:
      points: [L, 3], see `point_grid`.
      boxes: [M, 4], inside the image.
      present: bool [M]; other boxes are ignored.
      strides: levels of the grid.
      scale: root area of the boxes of a level, in strides.
      radius: half side of the sampled square, in strides.

    Returns:
      Index of the assigned box, int32 [L] (0 if none), and whether a box is assigned, bool [L].
    """
    count = boxes.shape[0]
    size = area(boxes)
    misfit = jnp.abs(0.5 * jnp.log(jnp.maximum(size, _EPS))[:, None] - jnp.log(scale * jnp.array(strides, jnp.float32)))
    level = jnp.array(strides, jnp.float32)[misfit.argmin(-1)]
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    reach = jnp.minimum(half, radius * level[:, None])
    corner = jnp.floor(center / level[:, None]) * level[:, None]  # of the cell that contains the center

    order = jnp.argsort(jnp.where(present, size, jnp.inf))
    rank = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32))
    x, y, stride = points.T
    near = (jnp.abs(x - center[:, :1]) < reach[:, :1]) & (jnp.abs(y - center[:, 1:]) < reach[:, 1:])
    nearest = (x - stride / 2 == corner[:, :1]) & (y - stride / 2 == corner[:, 1:])
    # Priorities are encoded as integers, so that one minimum over the boxes resolves all conflicts.
    claim = jnp.where(nearest, 0, jnp.where(near, count, 2 * count)) + rank[:, None]
    claim = jnp.where(present[:, None] & (stride == level[:, None]), claim, 2 * count).min(0)
    return order[claim % count].astype(jnp.int32), claim < 2 * count


def match(detections: dict[str, Array], truth: dict[str, Array], thresholds: Array) -> tuple[Array, Array]:
    """COCO's matching in one image: by descending score, each detection takes the unmatched true box of largest IoU.

    A detection without a match is ignored if a true crowd covers it by at least the threshold; crowds match any number
    of detections.

    Args:
      detections: boxes [D, 4], classes [D], valid [D], by descending score.
      truth: boxes [M, 4], classes [M], valid [M], crowd [M].
      thresholds: minimum IoU of a match, [T].

    Returns:
      hit and ignored, bool [D, T]; both False for false positives and invalid detections.
    """
    crowd = truth["crowd"]
    comparable = (detections["classes"][:, None] == truth["classes"]) & detections["valid"][:, None] & truth["valid"]
    common = intersection(detections["boxes"], truth["boxes"])
    share = common / jnp.maximum(area(detections["boxes"]), _EPS)[:, None]
    overlap = jnp.where(crowd, share, iou(detections["boxes"], truth["boxes"]))
    overlap = jnp.where(comparable, overlap, -1.0)
    bounds = jnp.asarray(thresholds, jnp.float32)[:, None]
    places = jnp.arange(crowd.shape[0])

    def one(taken, overlap):  # bool [T, M], [M]
        free = (overlap >= bounds) & (crowd | ~taken)
        # A crowd only if nothing else matches; ties go to the last box, as in COCO.
        rank = jnp.where(free, jnp.where(crowd, overlap, overlap + 2.0), -1.0)
        best = free & (rank == rank.max(-1, keepdims=True))
        chosen = best & (places == jnp.where(best, places, -1).max(-1, keepdims=True))
        return taken | chosen, (jnp.any(chosen & ~crowd, -1), jnp.any(chosen & crowd, -1))

    _, (hit, ignored) = jax.lax.scan(one, jnp.zeros((bounds.shape[0], crowd.shape[0]), bool), overlap)
    return hit, ignored
