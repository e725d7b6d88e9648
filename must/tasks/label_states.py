"""Positive, ignored or negative: what a policy makes of raw scores, the same for boxes, classes and pixels."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from must.core.labels import LARGEST, SUREST
from must.core.types import Array, Label, Policy


class States(NamedTuple):
    """Two of the three states; what is in neither is ignored.

    Attributes:
      positive: bool [...], taken as true.
      negative: bool [...], taken as absent.
    """

    positive: Array
    negative: Array


class Claims(NamedTuple):
    """The claims of a label and their states under a policy, one entry per class, box or pixel; NumPy.

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

    A task without classes has no ids and one threshold. NumPy for NumPy, which need not compile for every number of
    claims, JAX for JAX.
    """
    value, xp = calibrated(policy, scores, ids), _library(policy, scores, ids)
    positive, negative = (_of(xp.asarray(bound, np.float32), ids) for bound in policy[:2])
    taken = (scores >= 1) | (value >= positive)
    return States(taken, ~taken & (value < negative))


def calibrated(policy: Policy, scores: Array, ids: Array | None = None) -> Array:
    """The probability that claims with raw scores [...] of the classes `ids` [...] are true, by `policy.curve`."""
    xp = _library(policy, scores, ids)
    curve = xp.asarray(policy.curve, np.float32)
    last = curve.shape[-1] - 1
    place = xp.clip(xp.asarray(scores, np.float32), 0.0, 1.0) * last
    low = xp.clip(place.astype(np.int32), 0, last - 1)
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
    """Distributions over classes [..., C] with logits divided by `policy.temperature`; the truth's 1 stays, no other
    becomes 1."""
    xp = _library(policy, probs, None)
    temperature = xp.asarray(policy.temperature, np.float32)
    powered = xp.asarray(probs, np.float32) ** (1.0 / temperature)
    powered = xp.minimum(powered / xp.maximum(powered.sum(-1, keepdims=True), 1e-12), SUREST)
    return xp.where((temperature == 1) | (xp.asarray(probs) >= 1), probs, powered)


def uncertain(scores: Array) -> Array:
    """Scores 0..1 of a teacher, of which none is the truth's."""
    return _module(scores).minimum(scores, SUREST)


def is_distribution(label: Label) -> bool:
    """Whether a label in network form is one distribution over classes."""
    return set(label) - {"known"} == {"probs"}


def tempered_label(policy: Policy, label: Label) -> Label:
    """A label in network form, by the policy's temperature if it is a distribution over classes."""
    return {**label, "probs": tempered(policy, label["probs"])} if is_distribution(label) else label


def codes(scores: Array) -> Array:
    """Scores 0..1 of a teacher -> uint8, within 1/510 but never certain."""
    xp = _module(scores)
    return xp.minimum(xp.round(255.0 * scores), LARGEST).astype(xp.uint8)


def _library(policy: Policy, scores: Array, ids: Array | None):
    return jnp if any(isinstance(value, jax.Array) for value in (scores, ids, *policy)) else np


def _of(values: Array, ids: Array | None) -> Array:
    return values[ids] if values.ndim else values


def _module(scores: Array) -> Any:
    return np if isinstance(scores, np.ndarray) else jnp
