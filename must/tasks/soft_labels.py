"""Class probabilities of which only the largest are listed, shared by the tasks that label with classes."""

import jax.numpy as jnp
import numpy as np

from must.core.types import Array, LabelError, Policy

ROUNDING = 1e-3  # by which a sum of probabilities may miss 1


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


def distribution(said: Array, axes: tuple[str, ...], classes: int) -> np.ndarray:
    """What another network calls class probabilities, checked; host NumPy.

    Args:
      said: [*axes, C].
      axes: letters of the axes before the last, batch first.
      classes: C.

    Returns:
      float32 [*axes, C].

    Raises:
      LabelError: other axes, no float, not finite, negative, or a sum that misses 1 by more than `ROUNDING`.
    """
    probs = np.asarray(said)
    if probs.ndim != len(axes) + 1 or probs.shape[-1] != classes or probs.dtype.kind != "f" or 0 in probs.shape[1:]:
        raise LabelError(f"probs is {probs.dtype} {probs.shape}, not floats [{', '.join(axes)}, {classes}]")
    probs = probs.astype(np.float32, copy=False)
    total, least = probs.sum(-1), probs.min(-1)
    wrong = ~((np.abs(total - 1) <= ROUNDING) & (least >= 0))  # true of NaN
    if wrong.any():
        where = tuple(axis[0] for axis in np.nonzero(wrong))
        if not np.isfinite(total[where]):
            raise LabelError("probs is not finite", int(where[0]))
        sums = f"least {least[where]:.4g}, sum {total[where]:.4g}"
        raise LabelError(f"probs are no probabilities: {sums}", int(where[0]))
    return probs


def believed(policy: Policy, ids: Array, scores: Array) -> Array:
    """Where a label of class `ids` [...] with score `scores` [...] is taken as true: bool [...]; score 1 always is.

    One label per item knows no "absent": what is not taken is ignored, whatever `policy.negative`.
    """
    bound = jnp.minimum(jnp.asarray(policy.positive, jnp.float32), 1.0)
    return scores >= (bound[ids] if bound.ndim else bound)
