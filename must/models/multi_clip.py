"""A network asked about several clips of each video; its answer is the mean of theirs."""

import math

import jax
import jax.numpy as jnp

from must.core.types import Array, Model, PyTree


def over_clips(model: Model) -> Model:
    """The same network on K clips of each example at once, for classes of softmax probabilities.

    Inputs [B, K, T, H, W, 3] (or a tree of them) give, for every output [B, C], the logarithm of the mean over clips of
    softmax(logits), which are logits of that mean. Inputs of one clip, [B, T, H, W, 3], pass through. The K clips are
    one batch of B * K: take a smaller B. `model_state` comes back as it was given.

    Raises:
      ValueError: K clips while training or `with_features`; an output that is not [B, C].
    """

    def init(key: Array, inputs: PyTree) -> PyTree:
        return model.init(key, jax.tree.map(lambda x: x[:, 0] if x.ndim == 6 else x, inputs))

    def apply(variables, inputs, *, train, with_features=False, **options):
        counts = {x.shape[1] if x.ndim == 6 else None for x in jax.tree.leaves(inputs)}
        if counts == {None}:
            options = {**options, "with_features": True} if with_features else options
            return model.apply(variables, inputs, train=train, **options)
        if train or with_features or len(counts) > 1:
            raise ValueError(
                "several clips of each example are for tests without features, equally many of every input"
            )
        clips = counts.pop()

        def mean(logits: Array) -> Array:
            if logits.ndim != 2:
                raise ValueError(
                    f"an output of shape {logits.shape} is not [B, C]: the mean over clips is one of classes"
                )
            logits = jax.nn.log_softmax(logits).reshape(-1, clips, logits.shape[-1])
            return jax.nn.logsumexp(logits, 1) - math.log(clips)

        flat = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), inputs)
        outputs, state = model.apply(variables, flat, train=False, **options)
        return jax.tree.map(mean, outputs), state

    return Model(init, apply)
