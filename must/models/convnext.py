"""ConvNeXt (Liu et al. 2022)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from must.core.types import Array, Features
from must.models.layers import check_options, depth_rates, drop_path, frozen_stages, recomputed, residual

SIZES = {  # blocks and widths of the stages
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
_normal = nn.initializers.normal(0.02)


def _norm(dtype: Any, name: str) -> nn.Module:
    return nn.LayerNorm(1e-6, dtype=dtype, use_fast_variance=False, name=name)


class Depthwise(nn.Module):
    """7x7 convolution of every channel by itself: [B, H, W, C] -> [B, H, W, C].

    Attributes:
      dtype: of the computation; parameters stay float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", _normal, (7, 7, 1, channels)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(self.dtype)
        return depthwise(x, kernel) + bias


@jax.custom_vjp
def depthwise(x: Array, kernel: Array) -> Array:
    """x [B, H, W, C], kernel [k, k, 1, C] with k odd -> [B, H, W, C], zeros outside.

    On CPU a sum of shifted slices: XLA's grouped convolution takes 50 to 200 times as long there, its gradient 40 times
    as long as the one below (tests/benchmarks/depthwise.py).
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_shifted, default=_grouped)


def _shifted(x: Array, kernel: Array) -> Array:
    padded, side, (height, width) = _padded(x, kernel), len(kernel), x.shape[1:3]
    shifts = [(i, j) for i in range(side) for j in range(side)]
    return sum(padded[:, i : i + height, j : j + width] * kernel[i, j] for i, j in shifts)  # type: ignore[return-value]


def _grouped(x: Array, kernel: Array) -> Array:
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=names, feature_group_count=x.shape[-1]
    )


def _padded(x: Array, kernel: Array) -> Array:
    around = (len(kernel) // 2,) * 2
    return jnp.pad(x, ((0, 0), around, around, (0, 0)))


def _depthwise_gradient(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    padded, side = _padded(x, kernel), len(kernel)

    def of_tap(number: Array) -> Array:
        part = jax.lax.dynamic_slice(padded, (0, number // side, number % side, 0), x.shape)
        return (part.astype(jnp.float32) * dy).sum((0, 1, 2))

    taps = jax.lax.map(of_tap, jnp.arange(side * side))
    return depthwise(dy, kernel[::-1, ::-1]), taps.reshape(kernel.shape).astype(kernel.dtype)


depthwise.defvjp(lambda x, kernel: (depthwise(x, kernel), (x, kernel)), _depthwise_gradient)


class Block(nn.Module):
    """A residual block: depthwise 7x7, normalization, a perceptron per pixel, a factor per channel.

    Attributes:
      drop: rate of stochastic depth.
      axis_name: devices that share the batch.
      dtype: of the computation; parameters stay float32.
    """

    drop: float = 0.0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        width = x.shape[-1]
        y = _norm(self.dtype, "norm")(Depthwise(self.dtype, name="depthwise")(x))
        y = nn.gelu(nn.Dense(4 * width, kernel_init=_normal, dtype=self.dtype, name="mlp1")(y), approximate=False)
        y = nn.Dense(width, kernel_init=_normal, dtype=self.dtype, name="mlp2")(y)
        y = y * self.param("scale", nn.initializers.constant(1e-6), (width,)).astype(self.dtype)
        if train and self.drop:
            y = drop_path(y, self.drop, self.make_rng("dropout"), self.axis_name)
        return residual(x, y)


class ConvNeXt(nn.Module):
    """Image -> pyramid at strides 4, 8, 16, 32.

    Attributes:
      size: "atto", "tiny", "small", "base" or "large".
      stages: number of stages, 1 to 4.
      drop_path: rate of stochastic depth at the last block; it grows linearly from 0 at the first.
      frozen: number of first stages, the stem with them, that do not learn; all of them: nothing does.
      axis_name: devices that share the batch.
      dtype: of the computation; parameters stay float32.
      remat: compute blocks again in the backward pass.

    Raises:
      ValueError: no such size or number of stages.
    """

    size: str = "tiny"
    stages: int = 4
    drop_path: float = 0.0
    frozen: int = 0
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"size={self.size!r}: choices: {', '.join(map(repr, SIZES))}")
        if not 1 <= self.stages <= 4:
            raise ValueError(f"stages={self.stages}: must be from 1 to 4")
        check_options(self.drop_path, self.frozen, self.stages, "stages")
        super().__post_init__()

    def learns(self, name: str) -> bool:
        """Whether a parameter, such as "stage1_block1/mlp1/kernel", is not frozen."""
        if self.frozen == self.stages:
            return False
        return not self.frozen or not name.startswith(frozen_stages(self.frozen))

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Features:
        """Normalized float [B, H, W, 3] -> one level a stage; `pooled` is the normalized mean of the last one."""
        blocks, widths = SIZES[self.size]
        rates = depth_rates(self.drop_path, blocks[: self.stages])
        x = _norm(self.dtype, "stem_norm")(self._patches(widths[0], 4, "stem")(_whole(x.astype(self.dtype), 4)))
        pyramid = {}
        for stage in range(self.stages):
            learns = train and stage >= self.frozen
            if stage:
                x = _norm(self.dtype, f"stage{stage + 1}_norm")(x)
                x = self._patches(widths[stage], 2, f"stage{stage + 1}_down")(_whole(x, 2))
            for i in range(blocks[stage]):
                name = f"stage{stage + 1}_block{i + 1}"
                block = Block(rates[stage][i], self.axis_name, self.dtype, name=name)
                x = recomputed(self.remat, block, x, train=learns)
            pyramid[4 * 2**stage] = x
        return Features(pyramid, _norm(jnp.float32, "norm")(x.astype(jnp.float32).mean((1, 2))))

    def _patches(self, width: int, side: int, name: str) -> nn.Module:
        return nn.Conv(width, (side, side), (side, side), "VALID", kernel_init=_normal, dtype=self.dtype, name=name)


def _whole(x: Array, side: int) -> Array:
    """The map with zeros below and to the right, up to whole patches."""
    height, width = (-n % side for n in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, height), (0, width), (0, 0))) if height or width else x
