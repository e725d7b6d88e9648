"""What networks have in common: normalization, initialization, stochastic depth, frozen and recomputed parts."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from must.core.devices import global_row_index
from must.core.types import Array

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


def residual(x: Array, y: Array) -> Array:
    """x + y, the stream of a residual network after a branch.

    XLA on CPU fuses the sums of all branches so far into each of their readers, forward and backward, and so computes
    them anew in every block: work that grows with the square of the depth. The barrier keeps the sum, in programs that
    are compiled with `must.core.devices.compiler_options`.
    """
    return jax.lax.optimization_barrier(x + y)


def convolved(x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated` for layers of Flax, [B, H, W, C] and [k, k, C, C_out].

    On CPU, where input or output are smaller than the kernel, XLA lets picture and kernel change places, forward or
    backward, and takes twenty times as long as the products here.
    """
    convolve = functools.partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    plain = options.get("feature_group_count", 1) == 1 and not isinstance(padding, str) and x.ndim == 4
    plain = plain and all(set(options.get(name) or (1,)) == {1} for name in ("lhs_dilation", "rhs_dilation"))
    if not plain or x.shape[1] // strides[0] * (x.shape[2] // strides[1]) >= kernel.shape[0] * kernel.shape[1]:
        return convolve(x, kernel)

    def products(x: Array, kernel: Array) -> Array:
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        sides = zip(x.shape[1:3], kernel.shape[:2], strides, strict=True)
        rows, columns = (range(0, size - side + 1, step) for size, side, step in sides)
        windows = [
            x[:, i : i + rows[-1] + 1 : strides[0], j : j + columns[-1] + 1 : strides[1]]
            for i, j in np.ndindex(kernel.shape[:2])
        ]
        return jnp.concatenate(windows, -1) @ kernel.reshape(-1, kernel.shape[-1])

    return lax.platform_dependent(x, kernel, cpu=products, default=convolve)


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
