"""Positive, ignored or negative: what a policy makes of raw scores, the same for boxes, classes and pixels."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from must.core.types import Array, Policy

LARGEST = 254  # of the codes 0..255 of a teacher's scores per pixel: only the truth is certain


class States(NamedTuple):
    """Two of the three states; what is in neither is ignored.

    Attributes:
      positive: bool [...], taken as true.
      negative: bool [...], taken as absent.
    """

    positive: Array
    negative: Array


class Claims(NamedTuple):
    """What a label says and what a policy makes of it, one entry per class, box or pixel; NumPy.

    Attributes:
      ids: int [N], the class; 0 for a task without classes.
      scores: float32 [N], calibrated.
      positive: bool [N], taken as true.
      negative: bool [N], taken as absent; what is in neither is ignored.
    """

    ids: np.ndarray
    scores: np.ndarray
    positive: np.ndarray
    negative: np.ndarray

    def where(self, chosen: np.ndarray) -> "Claims":
        """The claims at `chosen`, bool of their shape."""
        return Claims(*(field[chosen] for field in self))


def states(policy: Policy, scores: Array, ids: Array | None = None) -> States:
    """The states of claims with raw scores [...] in 0..1 of the classes `ids` [...]; score 1, the truth, is positive.

    A task without classes has no ids and one threshold.
    """
    value, xp = calibrated(policy, scores, ids), _module(scores)
    positive, negative = (_of(xp.asarray(bound, xp.float32), ids) for bound in policy[:2])
    taken = (scores >= 1) | (value >= positive)
    return States(taken, ~taken & (value < negative))


def calibrated(policy: Policy, scores: Array, ids: Array | None = None) -> Array:
    """The probability that claims with raw scores [...] of the classes `ids` [...] are true, by `policy.curve`."""
    xp = _module(scores)
    curve = xp.asarray(policy.curve, xp.float32)
    last = curve.shape[-1] - 1
    place = xp.clip(scores, 0.0, 1.0) * xp.float32(last)
    low = xp.clip(place.astype(xp.int32), 0, last - 1)
    at = (lambda knot: curve[knot]) if curve.ndim == 1 else (lambda knot: curve[ids, knot])
    if last == 1:  # a line needs no look-up
        before, after = (_of(curve[..., knot], ids) for knot in (0, 1))
    else:
        before, after = at(low), at(low + 1)
    return before + (place - low.astype(xp.float32)) * (after - before)


def decide(policy: Policy, scores: np.ndarray, ids: np.ndarray | None = None) -> Claims:
    """`states` and `calibrated` of one label on the host; all of the scores' shape."""
    scores = np.asarray(scores, np.float32)
    found = states(policy, scores, ids)
    return Claims(np.zeros(scores.shape, np.int64) if ids is None else ids, calibrated(policy, scores, ids), *found)


def decide_codes(policy: Policy, classes: int | None = None) -> Claims:
    """What becomes of every code of a stored score, [256] or [classes, 256]: pixels are then looked up."""
    codes = np.arange(256, dtype=np.float32) / np.float32(255)
    if classes is None:
        return decide(policy, codes)
    return decide(policy, *np.broadcast_arrays(codes, np.arange(classes)[:, None]))


def tempered(policy: Policy, probs: Array) -> Array:
    """Distributions over classes [..., C] with logits divided by `policy.temperature`."""
    xp = _module(probs)
    powered = probs ** (1.0 / xp.asarray(policy.temperature, xp.float32))
    return powered / xp.maximum(powered.sum(-1, keepdims=True), 1e-12)


def codes(scores: Array) -> Array:
    """Scores 0..1 of a teacher -> uint8, within 1/510 but never certain."""
    xp = _module(scores)
    return xp.minimum(xp.round(255.0 * scores), LARGEST).astype(xp.uint8)


def _of(values: Array, ids: Array | None) -> Array:
    return values[ids] if values.ndim else values


def _module(scores: Array) -> Any:
    return np if isinstance(scores, np.ndarray) else jnp
