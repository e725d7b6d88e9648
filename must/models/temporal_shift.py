"""Backbones for clips: temporal shift (TSM, Lin et al. 2019), R(2+1)D (Tran et al. 2018), factorized video transformer.

TSM shifts part of the channels by one frame, so that 2-D convolutions mix time without multiplications or parameters.
Its parameters equal those of `ResNet` in name and shape, so that weights of an image network can be loaded.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from must.core.types import Array, Features
from must.models.layers import Norm, he_normal, residual
from must.models.resnet import BLOCKS, BOTTLENECK_FROM, ResNet


def shift(x: Array, frames: int, fold: int = 8, causal: bool = False) -> Array:
    """Takes 1/fold of the channels from the next frame and 1/fold from the previous one; zeros at the ends.

    Clips of one frame are returned unchanged.

    Args:
      x: [B * frames, H, W, C], clip by clip.
      frames: T.
      fold: 8 in the paper; at least one channel is shifted each way.
      causal: only take the first 1/fold from the previous frame, for streams (the paper's online model).

    Returns:
      Same shape as x.
    """
    if frames == 1:
        return x
    part = max(1, x.shape[-1] // fold)
    clips = x.reshape(-1, frames, *x.shape[1:])
    moving = part if causal else 2 * part
    padded = jnp.pad(clips[..., :moving], ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    after, before = padded[:, 2:, ..., : moving - part], padded[:, :-2, ..., moving - part :]
    return jnp.concatenate([after, before, clips[..., moving:]], -1).reshape(x.shape)


class TemporalShiftResNet(ResNet):
    """Clip -> pyramid: `ResNet` on every frame with `shift` at the input of each residual branch.

    Attributes:
      fold, causal: see `shift`; the identity path is not shifted.
      The others: see `ResNet`; batch statistics are over clips, frames and space, group statistics per frame.
    """

    fold: int = 8
    causal: bool = False

    def __call__(self, x: Array, *, train: bool) -> Features:
        """Normalized float [B, T, H, W, 3] -> {stride: [B, T, h, w, C]}; `pooled` is the mean over frames and space."""
        batch, frames = x.shape[:2]
        reads = functools.partial(shift, frames=frames, fold=self.fold, causal=self.causal)
        features = self.of_images(x.reshape(-1, *x.shape[2:]), train=train, reads=reads)
        pyramid = {stride: level.reshape(batch, frames, *level.shape[1:]) for stride, level in features.pyramid.items()}
        return Features(pyramid, features.pooled.reshape(batch, frames, -1).mean(1))


def middle_width(before: int, after: int) -> int:
    """Channels between 1x3x3 and 3x1x1 convolutions that together have as many parameters as 3x3x3 (section 3.5)."""
    return 27 * before * after // (9 * before + 3 * after)


class SpatialConv(nn.Module):
    """1 x k x k convolution of stride 1 x s x s: [B, T, H, W, C] -> [B, T, ceil(H/s), ceil(W/s), channels].

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
    """k x 1 x 1 convolution of stride s x 1 x 1: [B, T, H, W, C] -> [B, ceil(T/s), H, W, channels].

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
    """One residual block: two pairs of a spatial and a temporal convolution.

    Both pairs use the middle width of the first pair, as in torchvision.

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
            # A 1 x 1 x 1 convolution with a temporal stride reads every stride-th frame.
            x = SpatialConv(self.width, 1, self.stride, self.dtype, name="conv_skip")(x[:, :: self.stride])
            x = self._norm("norm_skip")(x, train=train)
        return nn.relu(residual(x, y))

    def _norm(self, name: str, zero: bool = False) -> nn.Module:
        return Norm(self.norm, self.axis_name, self.momentum, zero, self.dtype, name=name)


class R2Plus1D(nn.Module):
    """Clip -> pyramid at strides 2, 4, 8, 16 in space and 1, 2, 4, 8 in time.

    Attributes:
      depth: 10, 18 or 34.
      width: channels of the first stage; every stage doubles them.
      norm: "batch", over clips, frames and space; or "group", over frames and space of each clip.
      stem: spatial kernel of the first layer: "imagenet" (7x7) or "small" (3x3).
      stages: number of stages, 1 to 4; at 48 px the fourth has maps of 3x3 pixels.
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
        depths = [depth for depth in BLOCKS if depth < BOTTLENECK_FROM]
        if self.depth not in depths or self.stem not in ("imagenet", "small") or not 1 <= self.stages <= 4:
            raise ValueError(f"no R(2+1)D of depth {self.depth}, stem {self.stem!r}, {self.stages} stages")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Features:
        """Normalized float [B, T, H, W, 3] -> {stride: [B, T', h, w, C]}; `pooled` is the mean of the last level."""
        middle = max(1, 45 * self.width // 64)  # 45 for width 64 as published, not the formula's 83
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


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron, both residual (ViT, Dosovitskiy et al. 2021).

    Attributes:
      heads: of the attention.
      dtype: of the computation; parameters stay float32.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, tokens, D] -> [N, tokens, D]."""
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="attention"
        )
        x = residual(x, attention(nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x)))
        y = nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(x)
        y = nn.gelu(self._dense(4 * width, "mlp1")(y))
        return residual(x, self._dense(width, "mlp2")(y))

    def _dense(self, width: int, name: str) -> nn.Module:
        return nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)


class Encoder(nn.Module):
    """Learned position embeddings, `depth` layers, and a final layer normalization.

    Attributes:
      depth: number of layers.
      heads, dtype: see `EncoderLayer`.
    """

    depth: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, tokens, D] -> [N, tokens, D]; the number of tokens is fixed at initialization."""
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:]).astype(self.dtype)
        for i in range(self.depth):
            x = EncoderLayer(self.heads, self.dtype, name=f"layer{i + 1}")(x)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)


class VideoTransformer(nn.Module):
    """Clip -> one level at the stride of the patches: a factorized encoder (ViViT, Arnab et al. 2021, model 2).

    Tubelets of `tubelet` frames and patch x patch pixels become tokens. The spatial encoder processes the tokens of one
    time step; their mean is the step's token for the temporal encoder. No dropout. Sizes are ViT's:

        tiny: width 192, heads 3, depth 12      small: width 384, heads 6      base: width 768, heads 12

    For clips of 48 px, use about a tenth of tiny: width 96, heads 3, depth 4, temporal_depth 2.

    Attributes:
      width: D, a multiple of `heads`.
      depth: layers of the spatial encoder.
      temporal_depth: layers of the temporal encoder; 4 in the paper.
      heads: of the attention.
      patch: side of a patch in pixels; must divide height and width of the clip.
      tubelet: frames per token; must divide the number of frames.
      dtype: of the computation; parameters stay float32.

    Raises:
      ValueError: heads that do not divide the width; a clip that is not divisible into tubelets.
    """

    width: int = 192
    depth: int = 12
    temporal_depth: int = 4
    heads: int = 3
    patch: int = 16
    tubelet: int = 2
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Features:
        """Normalized float [B, T, H, W, 3] -> {patch: [B, T / tubelet, H / patch, W / patch, D]}.

        The level is the output of the spatial encoder, `pooled` the mean over time of the temporal encoder's.
        """
        batch, frames, height, width, channels = x.shape
        if frames % self.tubelet or height % self.patch or width % self.patch:
            raise ValueError(
                f"a clip of {frames} frames of {height} x {width} pixels is not divisible into tubelets "
                f"of {self.tubelet} frames and patches of {self.patch} pixels"
            )
        steps, rows, columns = frames // self.tubelet, height // self.patch, width // self.patch
        x = x.reshape(batch, steps, self.tubelet, rows, self.patch, columns, self.patch, channels)
        x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch * steps, rows * columns, -1)
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="tubelets")(x)
        x = Encoder(self.depth, self.heads, self.dtype, name="spatial")(x)
        over_time = x.mean(1).reshape(batch, steps, -1)
        over_time = Encoder(self.temporal_depth, self.heads, self.dtype, name="temporal")(over_time)
        level = x.reshape(batch, steps, rows, columns, self.width)
        return Features({self.patch: level}, over_time.astype(jnp.float32).mean(1))
