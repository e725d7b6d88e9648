"""Feature pyramids: FPN (Lin et al. 2017) with the extra coarse levels of RetinaNet, PAFPN (Liu et al. 2018), and one
from a single level (Li et al. 2022)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from must.core.types import Array, Features


def enlarge(x: Array, factor: int, size: tuple[int, int]) -> Array:
    """Nearest-neighbor upsampling, cropped to `size`: [B, h, w, C] -> [B, *size, C]; size <= (h, w) * factor."""
    for axis in (1, 2):
        if factor > 1:
            x = jnp.repeat(x, factor, axis)
    return x[:, : size[0], : size[1]]


def depth_to_space(x: Array, factor: int) -> Array:
    """[B, h, w, factor * factor * C], channels ordered (row, column, c) -> [B, h * factor, w * factor, C]."""
    if factor == 1:
        return x
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, factor, factor, channels // factor**2).swapaxes(2, 3)
    return x.reshape(batch, height * factor, width * factor, -1)


class FPN(nn.Module):
    """Feature pyramid with a top-down path; all levels have equal width.

    Use only strides at which maps are at least 4x4: 3x3 convolutions on smaller ones are slow on CPU and mostly see
    padding. (8, 16, 32, 64, 128) needs 512 px; (4, 8, 16) fits 64 px.

    Attributes:
      channels: of every level.
      strides: levels to return, each twice the one before; levels coarser than the backbone's are computed from the
        next finer level by 3x3 convolutions of stride 2.
      dtype: of the computation; parameters stay float32.
    """

    channels: int = 256
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Features:
        """`Features` -> `Features`; the pooled vector passes through."""
        shared = [s for s in self.strides if s in features.pyramid]
        steps = zip(self.strides, self.strides[1:], strict=False)
        if shared != list(self.strides[: len(shared)]) or not shared or any(b != 2 * a for a, b in steps):
            raise ValueError(f"strides {self.strides} do not fit a backbone of strides {tuple(features.pyramid)}")
        top, merged = None, {}
        for stride in reversed(shared):
            lateral = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name=f"lateral{stride}")(
                features.pyramid[stride].astype(self.dtype)
            )
            top = lateral if top is None else lateral + enlarge(top, 2, lateral.shape[1:3])
            merged[stride] = top
        pyramid = {stride: self._conv(1, f"output{stride}")(merged[stride]) for stride in shared}
        for stride in self.strides[len(shared) :]:
            finer = pyramid[stride // 2]
            pyramid[stride] = self._conv(2, f"output{stride}")(finer if stride // 2 in shared else nn.relu(finer))
        return Features(pyramid, features.pooled)

    def _conv(self, stride: int, name: str) -> nn.Module:
        return nn.Conv(self.channels, (3, 3), (stride, stride), padding=1, dtype=self.dtype, name=name)


class PAFPN(nn.Module):
    """A feature pyramid with a second path from fine to coarse (path aggregation, Liu et al. 2018, section 3.1).

    Attributes:
      channels, strides, dtype: see `FPN`.
    """

    channels: int = 256
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Features:
        """`Features` -> `Features`; the pooled vector passes through."""
        down = FPN(self.channels, self.strides, self.dtype, name="top_down")(features, train=train).pyramid
        pyramid = {self.strides[0]: down[self.strides[0]]}
        for finer, stride in zip(self.strides, self.strides[1:], strict=False):
            merged = down[stride] + nn.relu(self._conv(2, f"down{stride}")(pyramid[finer]))
            pyramid[stride] = self._conv(1, f"output{stride}")(merged)
        return Features(pyramid, features.pooled)

    def _conv(self, stride: int, name: str) -> nn.Module:
        return nn.Conv(self.channels, (3, 3), (stride, stride), padding=1, dtype=self.dtype, name=name)


class SimplePyramid(nn.Module):
    """Every level from the last one of the backbone alone (ViTDet, Li et al. 2022, section 3): 2x2 transposed
    convolutions to finer strides, 2x2 maxima to coarser ones, then a 1x1 and a 3x3 convolution.

    Attributes:
      channels: of every level.
      strides: levels to return.
      dtype: of the computation; parameters stay float32.
    """

    channels: int = 256
    strides: tuple[int, ...] = (4, 8, 16, 32)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Features:
        """`Features` -> `Features`; the pooled vector passes through."""
        base, pyramid = max(features.pyramid), {}
        for stride in self.strides:
            x, at = features.pyramid[base].astype(self.dtype), base
            if not stride or max(stride, base) % min(stride, base):
                raise ValueError(f"no level of stride {stride} from one of stride {base}")
            while at > stride:
                name, width = f"level{stride}_from{at}", max(1, x.shape[-1] // 2)
                x = depth_to_space(nn.Dense(4 * width, dtype=self.dtype, name=name)(x), 2)
                at //= 2
                if at > stride:
                    x = nn.gelu(nn.LayerNorm(1e-6, dtype=self.dtype, name=f"{name}_norm")(x))
            while at < stride:
                x, at = nn.max_pool(x, (2, 2), (2, 2), "SAME"), 2 * at
            for kernel in (1, 3):
                name = f"level{stride}_conv{kernel}"
                x = nn.Conv(self.channels, (kernel, kernel), use_bias=False, dtype=self.dtype, name=name)(x)
                x = nn.LayerNorm(1e-6, dtype=self.dtype, name=f"{name}_norm")(x)
            pyramid[stride] = x
        return Features(pyramid, features.pooled)
