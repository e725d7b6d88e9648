"""R(2+1)D (Tran et al. 2018): a residual network on clips whose 3-D convolutions are a spatial and a temporal one.

Both are computed as 2-D convolutions, the spatial ones with the frames as batch, the temporal ones with the pixels of a
frame as one axis. That is the same sum as the 3-D convolution; on CPU XLA takes 3 to 50 times as long for the latter.
Widths, strides and paddings are torchvision's, so that released weights mean the same here.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from must.core.types import Array, Features
from must.models.resnet import BLOCKS, BOTTLENECK_FROM, Norm, he_normal


def middle_width(before: int, after: int) -> int:
    """Channels between a 1x3x3 and a 3x1x1 convolution that together have the parameters of a 3x3x3 one (section 3.5)."""
    return 27 * before * after // (9 * before + 3 * after)


class SpatialConv(nn.Module):
    """1 x k x k convolution at stride 1 x s x s: [B, T, H, W, C] -> [B, T, ceil(H/s), ceil(W/s), channels].

    Attributes:
      channels: of the output.
      kernel: k, odd; the padding is k // 2.
      stride: s.
      dtype: of the computation; parameters stay float32.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = (self.kernel, self.kernel), (self.stride, self.stride)
        frames = x.reshape(-1, *x.shape[2:])
        convolution = nn.Conv(
            self.channels, *size, self.kernel // 2, use_bias=False, kernel_init=he_normal, dtype=self.dtype, name="conv"
        )
        frames = convolution(frames)
        return frames.reshape(*x.shape[:2], *frames.shape[1:])


class TemporalConv(nn.Module):
    """k x 1 x 1 convolution at stride s x 1 x 1: [B, T, H, W, C] -> [B, ceil(T/s), H, W, channels].

    Attributes: as of `SpatialConv`.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, frames, height, width, channels = x.shape
        pad = self.kernel // 2
        columns = x.reshape(batch, frames, height * width, channels)
        convolution = nn.Conv(
            self.channels,
            (self.kernel, 1),
            (self.stride, 1),
            ((pad, pad), (0, 0)),
            use_bias=False,
            kernel_init=he_normal,
            dtype=self.dtype,
            name="conv",
        )
        columns = convolution(columns)
        return columns.reshape(batch, -1, height, width, self.channels)


class Block(nn.Module):
    """One residual block: twice a spatial and a temporal convolution.

    The width in the middle is that of the first pair, for both pairs, as in torchvision.

    Attributes:
      width: channels of the output.
      stride: of the block, in time and space.
      norm, momentum, axis_name, dtype: see `must.models.resnet.Block`.
    """

    width: int
    stride: int = 1
    norm: str = "batch"
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, T, H, W, C] -> [B, ceil(T/stride), ceil(H/stride), ceil(W/stride), width]."""
        middle, y = middle_width(x.shape[-1], self.width), x
        for i, stride in ((1, self.stride), (2, 1)):
            y = SpatialConv(middle, 3, stride, self.dtype, name=f"spatial{i}")(y)
            y = nn.relu(self._norm(f"middle_norm{i}")(y, train=train))
            y = TemporalConv(self.width, 3, stride, self.dtype, name=f"temporal{i}")(y)
            y = self._norm(f"norm{i}", zero=i == 2)(y, train=train)
            y = nn.relu(y) if i == 1 else y
        if x.shape != y.shape:
            # A 1 x 1 x 1 convolution at a stride in time reads every stride-th frame.
            x = SpatialConv(self.width, 1, self.stride, self.dtype, name="conv_skip")(x[:, :: self.stride])
            x = self._norm("norm_skip")(x, train=train)
        return nn.relu(x + y)

    def _norm(self, name: str, zero: bool = False) -> nn.Module:
        return Norm(self.norm, self.axis_name, self.momentum, zero, self.dtype, name=name)


class R2Plus1D(nn.Module):
    """Clip -> pyramid at strides 2, 4, 8, 16 in space and 1, 2, 4, 8 in time.

    Attributes:
      depth: 10, 18 or 34.
      width: channels of the first stage; every stage doubles them.
      norm: "batch", over clips, frames and space; or "group", over frames and space of each clip.
      stem: spatial kernel of the first layer: "imagenet" (7x7) or "small" (3x3).
      stages: how many of the four stages there are; at 48 px the fourth works on maps of 3x3 pixels.
      momentum, axis_name, dtype: see `must.models.resnet.ResNet`.

    Raises:
      ValueError: no such depth, stem or number of stages.
    """

    depth: int = 18
    width: int = 64
    norm: str = "batch"
    stem: str = "imagenet"
    stages: int = 4
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        known = [depth for depth in BLOCKS if depth < BOTTLENECK_FROM]
        if self.depth not in known or self.stem not in ("imagenet", "small") or not 1 <= self.stages <= 4:
            raise ValueError(f"no R(2+1)D of depth {self.depth}, stem {self.stem!r}, {self.stages} stages")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Features:
        """Normalized float [B, T, H, W, 3] -> {stride: [B, T', h, w, C]}; `pooled` is the mean of the last level."""
        middle = max(1, 45 * self.width // 64)  # 45 of 64 as published, below the formula's 83
        kernel = 7 if self.stem == "imagenet" else 3
        x = SpatialConv(middle, kernel, 2, self.dtype, name="stem_spatial")(x.astype(self.dtype))
        x = nn.relu(self._norm("stem_middle_norm")(x, train=train))
        x = TemporalConv(self.width, 3, 1, self.dtype, name="stem_temporal")(x)
        x = nn.relu(self._norm("stem_norm")(x, train=train))
        pyramid = {}
        for stage in range(self.stages):
            for i in range(BLOCKS[self.depth][stage]):
                stride = 2 if stage > 0 and i == 0 else 1
                x = Block(
                    self.width * 2**stage,
                    stride,
                    self.norm,
                    self.momentum,
                    self.axis_name,
                    self.dtype,
                    name=f"stage{stage + 1}_block{i + 1}",
                )(x, train=train)
            pyramid[2 * 2**stage] = x
        return Features(pyramid, x.astype(jnp.float32).mean((1, 2, 3)))

    def _norm(self, name: str) -> nn.Module:
        return Norm(self.norm, self.axis_name, self.momentum, dtype=self.dtype, name=name)
