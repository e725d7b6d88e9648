"""Leaving out the pseudo labels that a student agrees with least: many of them are wrong.

Small-loss selection (Han et al. 2018) in the form of loss truncation (Kang and Hashimoto 2020), within a step.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from must.core.types import Array, PerExample

PSEUDO = "pseudo"  # in `Batch.extras[supervision]`: other than 0 where a teacher said the label, [B]


def small_losses(
    terms: Mapping[str, PerExample], weights: Array, pseudo: Array, share: float, axis_name: str | None
) -> Array:
    """False for the `share` of the pseudo labels of the global batch, rounded, with the largest losses; bool [B].

    An example's loss is the sum of its terms' means over their items. Labels that are absent or ignored altogether are not
    counted. Of equal losses the later row's goes first, so that one device and many choose alike.

    Args:
      terms: of one supervision.
      weights: 0 where the label is absent, [B].
      pseudo: other than 0 where the label is a teacher's, [B]; ground truth always stays.
      share: 0..1.
      axis_name: device axis.
    """
    loss = sum(jax.lax.stop_gradient(term.value) / jnp.maximum(term.norm, 1.0) for term in terms.values())
    counted = (
        (weights != 0)
        & (pseudo != 0)
        & sum((term.norm > 0) | (term.value != 0) for term in terms.values()).astype(bool)
    )
    loss, place = jnp.where(counted, loss, -jnp.inf), jnp.arange(len(loss))
    others, first = loss, 0
    if axis_name is not None:
        others = jax.lax.all_gather(loss, axis_name, tiled=True)
        first = jax.lax.axis_index(axis_name) * len(loss)
    before = (others > loss[:, None]) | (
        (others == loss[:, None]) & (jnp.arange(len(others)) > (first + place)[:, None])
    )
    dropped = jnp.floor(share * (others > -jnp.inf).sum() + 0.5)
    return ~counted | (before.sum(-1) >= dropped)
