"""Class probabilities of which only the largest are listed, shared by the tasks that label with classes."""

import jax.numpy as jnp
import numpy as np

from must.core.types import Array, Policy


def spread(ids: Array, probs: Array, rest: Array, classes: int) -> Array:
    """The whole distribution: the rest mass evenly over the unlisted classes, then divided by its sum.

    Args:
      ids: int [..., K]; an id outside the label space lists nothing.
      probs: [..., K].
      rest: [...].
      classes: C.

    Returns:
      [..., C]; NumPy for NumPy, JAX for JAX.
    """
    hits = ids[..., None] == np.arange(classes)
    unlisted = ~hits.any(-2)
    count = unlisted.sum(-1)
    # Adding the comparison guards both divisions in NumPy and JAX alike.
    each = rest * (count > 0) / (count + (count == 0))
    out = (hits * probs[..., None]).sum(-2) + unlisted * each[..., None]
    total = out.sum(-1)
    return out / (total + (total == 0))[..., None]


def believed(policy: Policy, ids: Array, scores: Array) -> Array:
    """Where a label of class `ids` [...] with score `scores` [...] is taken as true: bool [...]; score 1 always is.

    One label per item knows no "absent": what is not taken is ignored, whatever `policy.negative`.
    """
    bound = jnp.minimum(jnp.asarray(policy.positive, jnp.float32), 1.0)
    return scores >= (bound[ids] if bound.ndim else bound)
