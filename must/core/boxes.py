"""Box arithmetic in JAX: overlap, prediction points, non-maximum suppression, assignment; and matching, in NumPy.

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


_LARGEST = 4.135  # log(1000 / 16), of a box's side by its anchor's


def encode(boxes: Array, anchors: Array) -> Array:
    """Deltas [..., 4] from anchors [..., 4] to boxes [..., 4]: shifts of the center in sides of the anchor, logarithms
    of the ratio of sides (Ren et al. 2015, eq. 2)."""
    sides, base = (jnp.maximum(one[..., 2:] - one[..., :2], 1e-3) for one in (boxes, anchors))
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return jnp.concatenate([shift / base, jnp.log(sides / base)], -1)


def decode(deltas: Array, anchors: Array) -> Array:
    """The inverse of `encode`; sides grow by a factor of 62 at most."""
    base = jnp.maximum(anchors[..., 2:] - anchors[..., :2], 1e-3)
    center = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * base
    half = base * jnp.exp(jnp.clip(deltas[..., 2:], -_LARGEST, _LARGEST)) / 2
    return jnp.concatenate([center - half, center + half], -1)


def covered(boxes: Array, regions: Array, chosen: Array) -> Array:
    """The largest share of each box's area that one of the chosen [..., M] regions covers: [..., N, 4], [..., M, 4] ->
    [..., N]."""
    share = intersection(boxes, regions) / jnp.maximum(area(boxes), _EPS)[..., :, None]
    return jnp.where(chosen[..., None, :], share, 0.0).max(-1, initial=0.0)


def assign_overlaps(
    boxes: Array, truth: Array, present: Array, *, least: float, every: bool = False
) -> tuple[Array, Array, Array]:
    """Assigns boxes to the true boxes that they overlap most (Ren et al. 2015, section 3.1.2).

    Args:
      boxes: [..., N, 4], anchors or proposals.
      truth: [..., M, 4].
      present: bool [..., M]; other true boxes do not exist.
      least: IoU of an assignment.
      every: a true box also gets the boxes that overlap it most of all, however little.

    Returns:
      Index of the true box, int32 [..., N]; whether one is assigned, bool [..., N]; the largest IoU [..., N].
    """
    overlap = jnp.where(present[..., None, :], iou(boxes, truth), 0.0)
    index, best = overlap.argmax(-1), overlap.max(-1)
    assigned = best >= least
    if every:
        forced = (overlap == overlap.max(-2, keepdims=True)) & (overlap > 1e-3)
        index = jnp.where(forced.any(-1), jnp.where(forced, overlap, -1.0).argmax(-1), index)
        assigned |= forced.any(-1)
    return index.astype(jnp.int32), assigned, best


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


def match(
    detections: dict[str, np.ndarray],
    truth: dict[str, np.ndarray],
    thresholds: np.ndarray,
    shared: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's matching in one image: by descending score, each detection takes the unmatched true box of largest IoU.

    A detection without a match is ignored if a true crowd covers it by at least the threshold; crowds match any number
    of detections. Host NumPy in float64, as COCO's own tools have it.

    Args:
      detections: boxes [D, 4], classes [D], valid [D], by descending score.
      truth: boxes [M, 4], classes [M], valid [M], crowd [M].
      thresholds: minimum IoU of a match, [T], above 0.
      shared: areas that both share [D, M], and of each [D] and [M]; by default those of the boxes.

    Returns:
      hit and ignored, bool [D, T]; both False for false positives and invalid detections.
    """
    found, true = (np.asarray(label["boxes"], np.float64) for label in (detections, truth))
    if shared is None:
        low, high = np.maximum(found[:, None, :2], true[:, :2]), np.minimum(found[:, None, 2:], true[:, 2:])
        common = np.maximum(high - low, 0).prod(-1)
        areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (found, true)]
    else:
        common, *areas = (np.asarray(part, np.float64) for part in shared)
    crowd = np.asarray(truth["crowd"])
    whole = np.where(crowd, areas[0][:, None], areas[0][:, None] + areas[1] - common)
    comparable = np.asarray(detections["classes"])[:, None] == np.asarray(truth["classes"])
    comparable = comparable & np.asarray(detections["valid"])[:, None] & np.asarray(truth["valid"])
    overlap = np.where(comparable & (common > 0), common / np.where(common > 0, whole, 1), -1.0)
    bounds = np.minimum(np.asarray(thresholds, np.float64), 1 - 1e-10)
    hit, ignored = np.zeros((2, len(found), len(bounds)), bool)
    taken, rows = np.zeros((len(bounds), len(true)), bool), np.arange(len(bounds))
    for at in np.flatnonzero((overlap >= bounds.min()).any(-1)):
        free = (overlap[at] >= bounds[:, None]) & (crowd | ~taken)
        # A crowd only if nothing else matches; ties go to the last box, as in COCO.
        rank = np.where(free, np.where(crowd, overlap[at], overlap[at] + 2.0), -1.0)
        best = len(true) - 1 - rank[:, ::-1].argmax(-1)
        chosen = free[rows, best]
        taken[rows, best] |= chosen
        hit[at], ignored[at] = chosen & ~crowd[best], chosen & crowd[best]
    return hit, ignored
