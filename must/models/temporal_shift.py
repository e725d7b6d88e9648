"""The residual network on the frames of a clip, whose blocks look at the frames before and after (TSM, Lin et al. 2019).

A part of the channels moves by one frame, so that 2-D convolutions mix time at no multiplication and no parameter. The
parameters are those of `ResNet` by name and shape: weights of an image network load as they are.
"""

import functools

import jax.numpy as jnp

from must.core.types import Array, Features
from must.models.resnet import ResNet


def shift(x: Array, frames: int, fold: int = 8, causal: bool = False) -> Array:
    """Takes the first 1/fold of the channels from the frame after, the next from the one before, zeros at the ends.

    A clip of one frame stays as it is: there is no time to mix.

    Args:
      x: [B * frames, H, W, C], the frames of one clip after one another.
      frames: T.
      fold: 8 in the paper; fewer than `fold` channels move one each.
      causal: the first 1/fold from the frame before and no more, for a stream (the paper's online model).

    Returns:
      As x.
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
    """Clip -> pyramid: `ResNet` on every frame, with a shift at the input of each residual branch.

    Attributes:
      fold: see `shift`; the identity path keeps its frame.
      causal: see `shift`.
      The others: see `ResNet`; batch statistics are over clips, frames and space, group statistics of each frame.
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
