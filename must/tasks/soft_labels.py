"""Class probabilities of which only the largest are listed, and classes that a source does not know."""

import jax
import jax.numpy as jnp
import numpy as np

from must.core.types import Array, Label, LabelError

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


def known_classes(label: Label, classes: int) -> np.ndarray:
    """bool [C] from the ids that a label in record form lists as unknown to its source; records of old list none.

    Raises:
      ValueError: an id outside the label space.
    """
    unknown = np.asarray(label.get("unknown", ()), np.int64).reshape(-1)
    if unknown.size and not 0 <= unknown.min() <= unknown.max() < classes:
        raise ValueError(f"unknown class id {unknown.max()} with {classes} classes")
    known = np.ones(classes, bool)
    known[unknown] = False
    return known


def unknown_classes(label: Label) -> np.ndarray:
    """The inverse of `known_classes`, from a label in network form."""
    return np.flatnonzero(~np.asarray(label.get("known", True))).astype(np.uint16)


def among(logits: Array, candidates: Array, known: Array) -> Array:
    """-log P(one of the candidates | one of the known classes) of softmax(logits): [..., C] -> [...].

    What a label that rules classes out teaches without saying which of the others it is (Jin and Ghahramani 2002,
    "Learning with Multiple Labels"); 0 where it rules out none, and at least 0. Unknown classes get no gradient.
    """
    masked = [jax.nn.logsumexp(jnp.where(where, logits, -jnp.inf), -1) for where in (known, candidates & known)]
    return masked[0] - masked[1]


def only_known(logits: Array, known: Array) -> Array:
    """Logits of a distribution over the known classes alone: unknown ones are neither right nor wrong."""
    return jnp.where(known, logits, -1e9)
