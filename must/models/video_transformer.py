"""The factorized encoder for clips (ViViT, Arnab et al. 2021, model 2): a transformer in space, then one in time."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from must.core.types import Array, Features


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each normalized at its input and added to it (Dosovitskiy et al. 2021).

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
        x = x + attention(nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x))
        y = nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(x)
        y = nn.gelu(self._dense(4 * width, "mlp1")(y))
        return x + self._dense(width, "mlp2")(y)

    def _dense(self, width: int, name: str) -> nn.Module:
        return nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)


class Encoder(nn.Module):
    """Learned positions, `depth` layers, a normalization.

    Attributes:
      depth: number of layers.
      heads, dtype: see `EncoderLayer`.
    """

    depth: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, tokens, D] -> [N, tokens, D]; as many tokens as at initialization."""
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:]).astype(self.dtype)
        for i in range(self.depth):
            x = EncoderLayer(self.heads, self.dtype, name=f"layer{i + 1}")(x)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)


class VideoTransformer(nn.Module):
    """Clip -> one level at the stride of the patches.

    Tubelets of `tubelet` frames and patch x patch pixels become tokens; the spatial encoder sees those of one time step,
    their mean is that step's token, the temporal encoder sees all steps. No dropout. Sizes are ViT's:

        tiny: width 192, heads 3, depth 12      small: width 384, heads 6      base: width 768, heads 12

    and a tenth of a tiny one, width 96, heads 3, depth 4, temporal_depth 2, for clips of 48 px.

    Attributes:
      width: D, a multiple of `heads`.
      depth: layers in space.
      temporal_depth: layers in time; 4 in the paper.
      heads: of the attention.
      patch: side of a patch in pixels; the size of the clip is a multiple.
      tubelet: frames in a token; the number of frames is a multiple.
      dtype: of the computation; parameters stay float32.

    Raises:
      ValueError: heads that do not divide the width; a clip that tubelets do not fill.
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

        The level is what the spatial encoder says of each patch; `pooled` is the mean over time of the temporal one.
        """
        batch, frames, height, width, channels = x.shape
        if frames % self.tubelet or height % self.patch or width % self.patch:
            raise ValueError(
                f"a clip of {frames} frames of {height} x {width} pixels does not divide into tubelets "
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
