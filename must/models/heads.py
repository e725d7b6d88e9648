"""Heads, the layers from features to outputs; a task selects one in `Task.head`.

Heads are called as head(features, train=..., image_size=(height, width)), with a static image size in pixels.
"""

import itertools
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from must.core.devices import global_row_index
from must.core.types import Array, Features
from must.models.fpn import depth_to_space, enlarge
from must.models.layers import Norm, he_normal


def _convolution(head: Any, name: str) -> nn.Conv:
    """A layer of a head's tower; a norm behind it has the bias."""
    options = {"use_bias": head.norm == "none", "kernel_init": he_normal, "dtype": head.dtype}
    return nn.Conv(head.width, (3, 3), padding=1, name=name, **options)


class ClassHead(nn.Module):
    """Pooled features -> logits.

    Attributes:
      classes: C.
      dropout: rate on the pooled features in training, drawn per row of the global batch.
      axis_name: devices that share the batch.
      dtype: of the computation; parameters stay float32.
    """

    classes: int
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, *, train: bool, image_size: tuple[int, int]) -> Array:
        """-> float32 [B, C]."""
        x = features.pooled
        if train and self.dropout:
            key = self.make_rng("dropout")
            rows = global_row_index(len(x), self.axis_name)
            keep = partial(jax.random.bernoulli, p=1 - self.dropout, shape=x.shape[1:])
            x = x * jax.vmap(lambda row: keep(jax.random.fold_in(key, row)))(rows) / (1 - self.dropout)
        small = nn.initializers.normal(0.01)
        return nn.Dense(self.classes, kernel_init=small, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


def read_levels(pyramid: dict[int, Array], strides: tuple[int, ...] = ()) -> dict[int, Array]:
    """The levels of some strides, of all by default, for layers that are applied to each.

    Raises:
      ValueError: a level that the network does not have, or levels of unequal width.
    """
    strides = tuple(strides or pyramid)
    shared = {stride: pyramid[stride] for stride in strides if stride in pyramid}
    even = len({level.shape[-1] for level in shared.values()}) < 2
    every = sorted({*strides, *pyramid})
    doubled = all(b == 2 * a for a, b in itertools.pairwise(every)) and every[0] in pyramid
    neck = f"a neck, model.neck={ {'kind': 'fpn', 'strides': tuple(every)} }" if doubled else "a neck that has them"
    if len(shared) < len(strides):
        own = f"give the task strides={tuple(shared)}, or " if shared and even else ""
        raise ValueError(f"a head reads strides {strides}, and the network has {tuple(pyramid)}: {own}add {neck}")
    if not even:
        raise ValueError(f"a head reads levels of equal width, and those of the backbone are not: add {neck}")
    return shared


def sum_levels(pyramid: dict[int, Array], stride: int) -> Array:
    """Sums all levels at one stride, with coarser ones repeated and finer ones averaged; returns sum and stride.

    Raises:
      ValueError: levels of unequal width.
    """
    pyramid = read_levels(pyramid)
    total, above = None, stride
    for level_stride in sorted(pyramid, reverse=True):  # coarse to fine, so that partial sums are enlarged together
        level = pyramid[level_stride]
        if level_stride < stride:
            ratio = stride // level_stride
            level = nn.avg_pool(level, (ratio, ratio), (ratio, ratio), "SAME", count_include_pad=False)
            level_stride = stride
        if total is not None:
            level = level + enlarge(total, above // level_stride, level.shape[1:3])
        total, above = level, level_stride
    return total, above


class DenseHead(nn.Module):
    """MuST's dense head (Ghiasi et al. 2021, section 3.2): sum of levels, 3x3 convolutions, a linear layer.

    Attributes:
      channels_out: C.
      stride: of the convolutions' maps.
      width: channels of the convolutions.
      depth: number of convolutions.
      shuffle: r; the linear layer predicts r x r sub-pixels, for an output of stride `stride` / r.
      norm: "batch", "group" or "none" after every convolution.
      axis_name: see `must.models.resnet.Norm`.
      dtype: of the computation; parameters stay float32.
    """

    channels_out: int
    stride: int = 4
    width: int = 128
    depth: int = 3
    shuffle: int = 1
    norm: str = "batch"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, *, train: bool, image_size: tuple[int, int]) -> Array:
        """-> float32 [B, ceil(height * r / stride), ceil(width * r / stride), C]."""
        x, level_stride = sum_levels(features.pyramid, self.stride)
        size = tuple(math.ceil(n / self.stride) for n in image_size)
        x = enlarge(x, level_stride // self.stride, size).astype(self.dtype)
        for i in range(self.depth):
            x = _convolution(self, f"conv{i + 1}")(x)
            x = nn.relu(Norm(self.norm, self.axis_name, dtype=self.dtype, name=f"norm{i + 1}")(x, train=train))
        x = nn.Dense(self.channels_out * self.shuffle**2, dtype=self.dtype, name="linear")(x)
        x = depth_to_space(x.astype(jnp.float32), self.shuffle)
        height, width = (math.ceil(n * self.shuffle / self.stride) for n in image_size)
        return x[:, :height, :width]


class DetectionHead(nn.Module):
    """One-stage anchor-free detection (FCOS, Tian et al. 2019): two towers with weights shared by all levels.

    Attributes:
      classes: C.
      width: channels of the towers.
      depth: 3x3 convolutions per tower.
      prior: initial objectness, as in RetinaNet.
      norm: "group" or "none"; batch statistics would mix the levels.
      dtype: of the computation; parameters stay float32.
    """

    classes: int
    width: int = 256
    depth: int = 4
    prior: float = 0.01
    norm: str = "group"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, *, train: bool, image_size: tuple[int, int]) -> dict[str, Array]:
        """Outputs at L points: levels from fine to coarse, each row-major with ceil(size / stride) rows and columns.

        Returns:
          quality: float32 [B, L], logits.
          class: float32 [B, L, C], logits.
          distances: float32 [B, L, 4] > 0, from the point to the left, top, right and bottom sides, pixels.
        """
        class_tower = self._tower("class")
        box_tower = self._tower("box")
        small = nn.initializers.normal(0.01)
        quality_bias = nn.initializers.constant(-math.log((1 - self.prior) / self.prior))
        predict_class = nn.Conv(self.classes, (3, 3), padding=1, kernel_init=small, dtype=self.dtype, name="class")
        # One convolution for box and quality: 4 + 1 channels.
        predict_box = nn.Conv(5, (3, 3), padding=1, kernel_init=small, dtype=self.dtype, name="box")
        parts = {"quality": [], "class": [], "distances": []}
        for stride, level in sorted(features.pyramid.items()):
            level = level.astype(self.dtype)
            logits = predict_class(class_tower(level)).astype(jnp.float32)
            box = predict_box(box_tower(level)).astype(jnp.float32)
            offset = self.param(f"quality_bias{stride}", quality_bias, ())
            scale = self.param(f"scale{stride}", nn.initializers.ones, ())
            batch = level.shape[0]
            parts["class"].append(logits.reshape(batch, -1, self.classes))
            parts["quality"].append(box[..., 4].reshape(batch, -1) + offset)
            # softplus(2) = 2.1 strides, the middle of the level's range of object sizes.
            parts["distances"].append(stride * nn.softplus(scale * (box[..., :4].reshape(batch, -1, 4) + 2.0)))
        return {name: jnp.concatenate(levels, 1) for name, levels in parts.items()}

    def _tower(self, name: str):
        convolutions = [_convolution(self, f"{name}_conv{i + 1}") for i in range(self.depth)]
        norms = [Norm(self.norm, dtype=self.dtype, name=f"{name}_norm{i + 1}") for i in range(self.depth)]

        def apply(x: Array) -> Array:
            for convolution, norm in zip(convolutions, norms, strict=True):
                x = nn.relu(norm(convolution(x), train=False))
            return x

        return apply
