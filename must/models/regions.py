"""Networks that look at regions: ROI align, region proposals with a box head, and a mask branch.

Faster R-CNN (Ren et al. 2015) on a feature pyramid (Lin et al. 2017); ROI align and masks of Mask R-CNN (He et al.
2017). All shapes are static: of every image the same number of proposals, of which some may be empty.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from must.core import boxes as bx
from must.core.types import Array, Features
from must.models.heads import read_levels
from must.models.layers import he_normal

_SAMPLES = 2  # per side of a cell, as in He et al. 2017
DELTA_SCALES = (10.0, 10.0, 5.0, 5.0)  # of the box head's deltas, which are small


def roi_align(pyramid: dict[int, Array], boxes: Array, level: Array, size: int) -> Array:
    """Bilinear features of regions (He et al. 2017, section 3; corners exact, torchvision's `aligned=True`).

    Each of size x size cells is the mean of 2 x 2 samples. Bilinear weights are products of one per axis, so that this
    is two matrix products per level, whose gradients are exact and in a fixed order.

    Args:
      pyramid: {stride: [B, h, w, C]}.
      boxes: [B, K, 4], pixels of the image.
      level: int [B, K], stride of the level that each region is read from.
      size: cells per side.

    Returns:
      float32 [B, K, size, size, C]; what a cell samples more than a pixel of the level outside of it is 0.
    """
    total = 0.0
    for stride, features in sorted(pyramid.items()):
        rows, columns = (
            cell_weights(boxes[..., axis] / stride, boxes[..., axis + 2] / stride, features.shape[2 - axis], size)
            for axis in (1, 0)
        )
        rows = rows * (level == stride)[..., None, None]
        across = jnp.einsum("bksh,bhwc->bkswc", rows, features.astype(jnp.float32))
        total += jnp.einsum("bktw,bkswc->bkstc", columns, across)
    return total


def cell_weights(low: Array, high: Array, count: int, size: int) -> Array:
    """Bilinear weights of an axis' `count` pixels in the cells between `low` and `high`, [..., size, count]."""
    places = (jnp.arange(size * _SAMPLES) + 0.5) / (size * _SAMPLES)
    at = low[..., None] - 0.5 + places * (high - low)[..., None]
    inside = (at >= -1) & (at <= count)
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(jnp.clip(at, 0, count - 1)[..., None] - jnp.arange(count)))
    weights = weights * inside[..., None]
    return weights.reshape(*at.shape[:-1], size, _SAMPLES, count).mean(-2)


def level_of(boxes: Array, strides: tuple[int, ...], scale: float) -> Array:
    """Stride of the level of each box [..., 4]: 2^floor(log2(root area / scale)), within `strides`, int [...].

    Lin et al. 2017, eq. 1, where 224 pixels are read at stride 16: scale 14.
    """
    root = jnp.sqrt(jnp.maximum(bx.area(boxes), 1e-6))
    exponent = jnp.floor(jnp.log2(root / scale) + 1e-6)
    index = jnp.clip(exponent - math.log2(strides[0]), 0, len(strides) - 1)
    return jnp.array(strides)[index.astype(jnp.int32)]


def anchors_of(size: tuple[int, int], strides: tuple[int, ...], scale: float, ratios: tuple[float, ...]) -> np.ndarray:
    """Anchor boxes float32 [A, 4] at every point of the pyramid, `ratios` (height / width) innermost; pixels.

    The root area of a level's anchors is `scale` strides.
    """
    points = bx.point_grid(size, strides)
    sides = scale * np.stack([1 / np.sqrt(ratios), np.sqrt(ratios)], -1)  # (width, height) in strides
    half = points[:, None, 2:] * sides / 2
    return (
        np.concatenate([points[:, None, :2] - half, points[:, None, :2] + half], -1).reshape(-1, 4).astype(np.float32)
    )


class RegionHead(nn.Module):
    """Region proposals, and a class and a better box for each of them.

    Attributes:
      classes: C.
      strides: levels that are read, fine to coarse.
      width: channels of the proposals' convolution.
      hidden: units of the box head's two layers.
      cells: per side of a region.
      candidates: best anchors of each level that go into suppression.
      proposals: K, regions of an image.
      overlap: IoU above which a proposal suppresses a less likely one of its level.
      anchor_scale, ratios: see `anchors_of`.
      scale: see `level_of`.
      dtype: of the layers; parameters stay float32, and places and weights of what is read there.
    """

    classes: int
    strides: tuple[int, ...]
    width: int = 256
    hidden: int = 1024
    cells: int = 7
    candidates: int = 400
    proposals: int = 256
    overlap: float = 0.7
    anchor_scale: float = 4.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    scale: float = 14.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, *, train: bool, image_size: tuple[int, int]) -> dict[str, Array]:
        """Outputs for A anchors and K proposals; no gradient passes through the proposals' places.

        Returns:
          objectness [B, A], logits; shifts [B, A, 4], deltas from anchors [B, A, 4] to boxes.
          proposals [B, K, 4], inside the image, by falling objectness; present bool [B, K].
          class [B, K, C + 1], logits, the last of the background; deltas [B, K, 4], of every class the same, times
            `DELTA_SCALES`.
          size [B, 2], (height, width) of the image.
        """
        pyramid = read_levels(features.pyramid, self.strides)
        batch = features.pooled.shape[0]
        objectness, shifts = self._anchors(pyramid)
        anchors = anchors_of(image_size, self.strides, self.anchor_scale, self.ratios)
        anchors = jnp.broadcast_to(jnp.asarray(anchors), (batch, *anchors.shape))
        size = jnp.broadcast_to(jnp.asarray(image_size, jnp.float32), (batch, 2))
        boxes = jnp.clip(bx.decode(shifts, anchors), 0.0, size[:, None, jnp.array([1, 0, 1, 0])])
        proposals, present = self._propose(*jax.lax.stop_gradient((objectness, boxes)), pyramid)
        level = level_of(proposals, self.strides, self.scale)
        x = roi_align(pyramid, proposals, level, self.cells).reshape(batch, proposals.shape[1], -1)
        for name in ("hidden1", "hidden2"):
            x = nn.relu(nn.Dense(self.hidden, kernel_init=he_normal, dtype=self.dtype, name=name)(x))
        small, dense = nn.initializers.normal, partial(nn.Dense, dtype=self.dtype)
        return {
            "objectness": objectness,
            "shifts": shifts,
            "anchors": anchors,
            "proposals": proposals,
            "present": present,
            "class": dense(self.classes + 1, kernel_init=small(0.01), name="class")(x).astype(jnp.float32),
            "deltas": dense(4, kernel_init=small(0.001), name="box")(x).astype(jnp.float32),
            "size": size,
        }

    def _anchors(self, pyramid: dict[int, Array]) -> tuple[Array, Array]:
        """Objectness [B, A] and shifts [B, A, 4] of all anchors, with weights shared by the levels."""
        count, small = len(self.ratios), nn.initializers.normal(0.01)
        conv = nn.Conv(self.width, (3, 3), padding=1, kernel_init=he_normal, dtype=self.dtype, name="rpn")
        dense = partial(nn.Dense, kernel_init=small, dtype=self.dtype)
        prior = nn.initializers.constant(-math.log(99.0))
        predict = dense(count, bias_init=prior, name="rpn_objectness")
        shift = dense(4 * count, name="rpn_box")
        parts = [(predict(x), shift(x)) for x in (nn.relu(conv(pyramid[stride])) for stride in self.strides)]
        batch = parts[0][0].shape[0]
        objectness = jnp.concatenate([logits.reshape(batch, -1) for logits, _ in parts], 1)
        shifts = jnp.concatenate([deltas.reshape(batch, -1, 4) for _, deltas in parts], 1)
        return objectness.astype(jnp.float32), shifts.astype(jnp.float32)

    def _propose(self, objectness: Array, boxes: Array, pyramid: dict[int, Array]) -> tuple[Array, Array]:
        """The best boxes [B, K, 4] after suppression within each level, and which of them are there."""
        found, start = [], 0
        for number, stride in enumerate(self.strides):
            count = math.prod(pyramid[stride].shape[1:3]) * len(self.ratios)
            score, index = jax.lax.top_k(objectness[:, start : start + count], min(self.candidates, count))
            found.append((score, index + start, jnp.full(index.shape, number)))
            start += count
        scores, index, level = (jnp.concatenate(part, 1) for part in zip(*found, strict=True))
        order = jnp.argsort(-scores, axis=1)
        scores, index, level = (jnp.take_along_axis(one, order, 1) for one in (scores, index, level))
        boxes = jnp.take_along_axis(boxes, index[..., None], 1)
        scores = jnp.where(bx.area(boxes) > 1.0, jax.nn.sigmoid(scores), 0.0)
        kept, present = bx.non_maximum_suppression(boxes, level, scores, threshold=self.overlap, count=self.proposals)
        boxes = jnp.where(present[..., None], jnp.take_along_axis(boxes, kept[..., None], 1), 0.0)
        missing = self.proposals - boxes.shape[1]
        return jnp.pad(boxes, [(0, 0), (0, missing), (0, 0)]), jnp.pad(present, [(0, 0), (0, missing)])


class MaskedRegions(nn.Module):
    """`RegionHead` with a mask of every box that it finds (He et al. 2017, figure 4 right), one for all classes.

    Class-agnostic masks are nearly as good as one per class (section 4.1 there).

    Attributes:
      regions: the head of boxes.
      find: its outputs -> boxes [B, M, 4] whose masks are wanted.
      width: channels of the branch.
      depth: 3x3 convolutions of it.
      cells: per side of a region; a mask has twice as many.
      dtype: see `RegionHead`.
    """

    regions: RegionHead
    find: Callable[[Any], Array]
    width: int = 256
    depth: int = 4
    cells: int = 14
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, *, train: bool, image_size: tuple[int, int]) -> dict[str, Array]:
        """Those of `regions`, with found [B, M, 4], masks [B, M, 2 cells, 2 cells], logits, and an empty frame."""
        outputs = self.regions(features, train=train, image_size=image_size)
        boxes = jax.lax.stop_gradient(self.find(outputs))
        pyramid = {stride: features.pyramid[stride] for stride in self.regions.strides}
        x = roi_align(pyramid, boxes, level_of(boxes, self.regions.strides, self.regions.scale), self.cells)
        x = x.reshape(-1, *x.shape[2:])
        options = {"kernel_init": he_normal, "dtype": self.dtype}
        for i in range(self.depth):
            x = nn.relu(nn.Conv(self.width, (3, 3), padding=1, name=f"mask_conv{i + 1}", **options)(x))
        x = nn.relu(nn.ConvTranspose(self.width, (2, 2), (2, 2), name="mask_up", **options)(x))
        last = nn.Dense(1, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name="mask")
        logits = last(x)[..., 0].astype(jnp.float32)
        frame = jnp.zeros((boxes.shape[0], *image_size, 0), bool)  # holds nothing; its shape is that of the picture
        return {**outputs, "frame": frame, "found": boxes, "masks": logits.reshape(*boxes.shape[:2], *logits.shape[1:])}
