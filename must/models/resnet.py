"""Residual networks (He et al. 2016) and the normalization layer of all models.

Padding is explicit and symmetric as in torchvision, so that its released weights can be used.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from must.core.devices import global_row_index
from must.core.types import Array, Features

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECK_FROM = 50  # smallest depth with bottleneck blocks

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


_present: contextvars.ContextVar[Array | None] = contextvars.ContextVar("present", default=None)


@contextlib.contextmanager
def statistics_of(present: Array | None) -> Iterator[None]:
    """While a network is applied: the rows, bool [B], that enter its batch statistics; None for all of them."""
    token = _present.set(present)
    try:
        yield
    finally:
        _present.reset(token)


class Norm(nn.Module):
    """Batch normalization (Ioffe and Szegedy 2015), group normalization (Wu and He 2018), or none.

    One multiplication and one addition per element; about twice as fast on CPU as flax's layers.

    Attributes:
      kind: "batch"; "group", with the largest number of groups up to 32 that divides the channels; or "none".
      axis_name: devices over which batch statistics are averaged in training.
      momentum: of the running batch statistics.
      zero: initialize the scale with 0, so that a residual branch starts at 0.
      dtype: of the output; moments are float32.
    """

    kind: str = "batch"
    axis_name: str | None = None
    momentum: float = 0.9
    zero: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, ..., C] -> [B, ..., C]; in training, "batch" updates the collection "batch_stats"."""
        if self.kind == "none":
            return x
        if self.kind not in ("batch", "group"):
            raise ValueError(f"norm {self.kind!r}: expected 'batch', 'group' or 'none'")
        x = x.astype(jnp.float32)
        mean, var = self._batch(x, train) if self.kind == "batch" else _group(x)
        scale = self.param("scale", nn.initializers.zeros if self.zero else nn.initializers.ones, x.shape[-1:])
        factor = scale * lax.rsqrt(var + 1e-5)
        return (x * factor + (self.param("bias", nn.initializers.zeros, x.shape[-1:]) - mean * factor)).astype(
            self.dtype
        )

    def _batch(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Mean and variance [C], of the batch if `train`, else the running ones."""
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        running_var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        if not train:
            return running_mean.value, running_var.value
        mean, square = self._moments(x)
        var = jnp.maximum(square - mean * mean, 0.0)
        if not self.is_initializing():
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        return mean, var

    def _moments(self, x: Array) -> tuple[Array, Array]:
        """Means [C] of x and of its square over all rows of all devices, but those that are not present."""
        axes, present = tuple(range(x.ndim - 1)), _present.get()
        if present is None:
            moments = x.mean(axes), (x * x).mean(axes)
            return moments if self.axis_name is None else lax.pmean(moments, self.axis_name)
        rows = jnp.repeat(present, len(x) // len(present)).reshape(-1, *(1,) * (x.ndim - 1))  # frames of a clip
        kept = jnp.where(rows, x, 0.0)
        sums = kept.sum(axes), (kept * kept).sum(axes), rows.sum() * (x.size / (len(x) * x.shape[-1]))
        total, square, count = sums if self.axis_name is None else lax.psum(sums, self.axis_name)
        return total / count, square / count


def _group(x: Array) -> tuple[Array, Array]:
    """Mean and variance [B, 1, ..., C] over each example's groups of channels."""
    channels = x.shape[-1]
    groups = max(n for n in range(1, min(32, channels) + 1) if channels % n == 0)
    axes = tuple(range(1, x.ndim - 1))

    def over_group(moment: Array) -> Array:
        moment = moment.reshape(-1, groups, channels // groups).mean(-1)
        moment = jnp.repeat(moment, channels // groups, -1)
        return moment.reshape(x.shape[0], *(1,) * len(axes), channels)

    mean, square = over_group(x.mean(axes)), over_group((x * x).mean(axes))
    return mean, jnp.maximum(square - mean * mean, 0.0)


def drop_path(y: Array, rate: float, key: Array, axis_name: str | None) -> Array:
    """Stochastic depth (Huang et al. 2016): the residual branch y [B, ...] is 0 for a row with probability `rate`.

    Draws are per row of the global batch, so that they do not depend on the number of devices.
    """
    keep = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate))
    kept = keep(global_row_index(len(y), axis_name)).reshape(-1, *(1,) * (y.ndim - 1))
    return jnp.where(kept, y / (1 - rate), 0.0).astype(y.dtype)


def recomputed(on: bool, module: nn.Module, *inputs: Any, **static: Any) -> Any:
    """module(*inputs, **static); if `on`, its inner values are computed again in the backward pass, not kept."""

    def call(module: nn.Module, *inputs: Any) -> Any:
        return module(*inputs, **static)

    return (nn.remat(call) if on else call)(module, *inputs)


def max_pool(x: Array) -> Array:
    """3x3 max pooling with stride 2 and padding 1: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C].

    Uses maxima of slices, since the gradient of a windowed reduction is several times slower on CPU.
    """
    for axis in (1, 2):
        out = -(-x.shape[axis] // 2)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (1, 2 * out - x.shape[axis])
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        # Pairs (2i - 1, 2i) of the map; the window's third element is the first of the next pair.
        pairs = padded[(slice(None),) * axis + (slice(0, 2 * out),)]
        pairs = pairs.reshape(*x.shape[:axis], out, 2, *x.shape[axis + 1 :])
        last = padded[(slice(None),) * axis + (slice(2, 2 * out + 1, 2),)]
        x = jnp.maximum(pairs.max(axis + 1), last)
    return x


def depth_rates(last: float, blocks: Sequence[int]) -> list[list[float]]:
    """Rates of stochastic depth that grow linearly over all blocks, from 0 to `last`, for each stage."""
    rates = iter(i * last / max(1, sum(blocks) - 1) for i in range(sum(blocks)))
    return [[next(rates) for _ in range(count)] for count in blocks]


def check_options(drop_path: float, frozen: int, most: int, what: str) -> None:
    """ValueError for a rate of stochastic depth or a number of frozen stages that cannot be."""
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path={drop_path}: must be at least 0 and below 1")
    if not 0 <= frozen <= most:
        raise ValueError(f"frozen={frozen}: the backbone has {most} {what}")


def frozen_stages(count: int) -> tuple[str, ...]:
    """First letters of the names of all parameters in the stem and the first `count` stages."""
    return ("stem", *(f"stage{stage + 1}_" for stage in range(count)))


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
        return nn.relu(x + y)

    def _conv(self, channels: int, kernel: int, stride: int, name: str) -> nn.Module:
        return nn.Conv(
            channels,
            (kernel, kernel),
            (stride, stride),
            padding=kernel // 2,
            use_bias=False,
            kernel_init=he_normal,
            dtype=self.dtype,
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
