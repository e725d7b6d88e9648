"""Residual networks (He et al. 2016).

Padding is explicit and symmetric as in torchvision, so that its released weights can be used.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from must.core.types import Array, Features
from must.models.layers import (
    Norm,
    check_options,
    convolved,
    depth_rates,
    drop_path,
    frozen_stages,
    he_normal,
    max_pool,
    recomputed,
    residual,
)

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECK_FROM = 50  # smallest depth with bottleneck blocks


class Block(nn.Module):
    """One residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with the stride in the 3x3.

    Attributes:
      width: inner channels; the output has `width`, or 4 * `width` for a bottleneck.
      stride: of the block.
      bottleneck: three layers instead of two.
      norm: kind of normalization, see `Norm`.
      momentum, axis_name: see `Norm`.
      dtype: of the computation; parameters stay float32.
      reads: [B, H, W, C] -> [B, H, W, C], applied to the input of the residual branch; None for the identity.
      drop: probability with which a row skips the residual branch in training, see `drop_path`.
    """

    width: int
    stride: int = 1
    bottleneck: bool = False
    norm: str = "batch"
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: Any = jnp.float32
    reads: Callable[[Array], Array] | None = None
    drop: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> [B, ceil(H/stride), ceil(W/stride), C_out]."""
        out = self.width * (4 if self.bottleneck else 1)
        if self.bottleneck:
            layers = ((self.width, 1, 1), (self.width, 3, self.stride), (out, 1, 1))
        else:
            layers = ((self.width, 3, self.stride), (out, 3, 1))
        y = x if self.reads is None else self.reads(x)
        for i, (channels, kernel, stride) in enumerate(layers):
            last = i == len(layers) - 1
            y = self._conv(channels, kernel, stride, f"conv{i + 1}")(y)
            y = self._norm(f"norm{i + 1}", zero=last)(y, train=train)
            y = y if last else nn.relu(y)
        if x.shape != y.shape:
            x = self._conv(out, 1, self.stride, "conv_skip")(x)
            x = self._norm("norm_skip")(x, train=train)
        if train and self.drop:
            y = drop_path(y, self.drop, self.make_rng("dropout"), self.axis_name)
        return nn.relu(residual(x, y))

    def _conv(self, channels: int, kernel: int, stride: int, name: str) -> nn.Module:
        return nn.Conv(
            channels,
            (kernel, kernel),
            (stride, stride),
            padding=kernel // 2,
            use_bias=False,
            kernel_init=he_normal,
            dtype=self.dtype,
            conv_general_dilated=convolved,
            name=name,
        )

    def _norm(self, name: str, zero: bool = False) -> nn.Module:
        return Norm(self.norm, self.axis_name, self.momentum, zero, self.dtype, name=name)


class ResNet(nn.Module):
    """Image -> pyramid.

    Stages have strides 4, 8, 16, 32 with stem "imagenet" (7x7 stride 2, then 3x3 max pooling) and 2, 4, 8, 16 with stem
    "small" (3x3 stride 2). Use "small" for pictures of 64 px: 3x3 convolutions on maps of 2x2 pixels are two orders of
    magnitude slower on CPU and mostly see padding.

    Attributes:
      depth: 10, 18, 34 (two layers per block), 50, 101, 152 (bottlenecks, stride in the 3x3).
      width: inner channels of the first stage; every stage doubles them.
      norm: "batch" or "group".
      stem: "imagenet" or "small".
      stages: number of stages, 1 to 4.
      drop_path: rate of stochastic depth at the last block; it grows linearly from 0 at the first.
      frozen: number of first stages, the stem with them, that do not learn and keep their batch statistics.
      momentum: of the running batch statistics.
      axis_name: devices over which batch statistics are averaged in training.
      dtype: of the computation; parameters stay float32.
      remat: compute blocks again in the backward pass.

    Raises:
      ValueError: no such depth, stem or number of stages.
    """

    depth: int = 18
    width: int = 64
    norm: str = "batch"
    stem: str = "imagenet"
    stages: int = 4
    drop_path: float = 0.0
    frozen: int = 0
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self):
        if self.depth not in BLOCKS or self.stem not in ("imagenet", "small") or not 1 <= self.stages <= 4:
            raise ValueError(f"no ResNet of depth {self.depth}, stem {self.stem!r}, {self.stages} stages")
        check_options(self.drop_path, self.frozen, self.stages, "stages")
        super().__post_init__()

    def learns(self, name: str) -> bool:
        """Whether a parameter, such as "stage1_block1/conv1/kernel", is not frozen."""
        return not self.frozen or not name.startswith(frozen_stages(self.frozen))

    def __call__(self, x: Array, *, train: bool) -> Features:
        """Normalized float [B, H, W, 3] -> one level per stage; `pooled` is the mean of the last level."""
        return self.of_images(x, train=train)

    @nn.compact
    def of_images(self, x: Array, *, train: bool, reads: Callable[[Array], Array] | None = None) -> Features:
        """`__call__` with `reads` in every block, see `Block`."""
        kernel = 7 if self.stem == "imagenet" else 3
        stem_train = train and not self.frozen
        x = nn.Conv(
            self.width,
            (kernel, kernel),
            (2, 2),
            padding=kernel // 2,
            use_bias=False,
            kernel_init=he_normal,
            dtype=self.dtype,
            name="stem",
        )(x.astype(self.dtype))
        x = Norm(self.norm, self.axis_name, self.momentum, dtype=self.dtype, name="stem_norm")(x, train=stem_train)
        x = nn.relu(x)
        stride = 2
        if self.stem == "imagenet":
            x, stride = max_pool(x), 4
        pyramid, drops = {}, depth_rates(self.drop_path, BLOCKS[self.depth][: self.stages])
        for stage in range(self.stages):
            for i in range(BLOCKS[self.depth][stage]):
                block = Block(
                    self.width * 2**stage,
                    2 if stage > 0 and i == 0 else 1,
                    self.depth >= BOTTLENECK_FROM,
                    self.norm,
                    self.momentum,
                    self.axis_name,
                    self.dtype,
                    reads,
                    drops[stage][i],
                    name=f"stage{stage + 1}_block{i + 1}",
                )
                x = recomputed(self.remat, block, x, train=train and stage >= self.frozen)
            pyramid[stride * 2**stage] = x
        return Features(pyramid, x.astype(jnp.float32).mean((1, 2)))
