"""Learning from a teacher's labels with its mistakes in mind: the student's prediction is corrupted as the teacher's
are.

SLaM, student-label mixing (Kontonis et al., NeurIPS 2023). Everything works on probabilities: a mixture need not sum to
1, so it may never pass through a softmax cross-entropy, which would renormalize it silently.
"""

from typing import Any

import jax
import jax.numpy as jnp

from must.core.types import Array, Label, PerExample

_LEAST = 1e-6  # probability; keeps the logarithm finite and its gradient bounded


def mix_binary(probability: Array, accuracy: Array) -> Array:
    """a f + (1 - a)(1 - f): the probability that the teacher says "yes", [...].

    Args:
      probability: f, the student's probability of the true class being "yes", [...].
      accuracy: a(x), probability that the teacher is right, [...]; at 1/2 the student gets no gradient.
    """
    return accuracy * probability + (1.0 - accuracy) * (1.0 - probability)


def mix(probs: Array, accuracy: Array, candidates: Array, *, normalize: bool = True) -> Array:
    """a f + (1 - a)(1 - f) * top_k / (k - 1): what the teacher would say if f were the truth, [..., C].

    Args:
      probs: f, the student's probabilities, [..., C].
      accuracy: a(x), probability that the teacher is right, [...]; the gradient dies at 1/k, without `normalize` at
        1/2.
      candidates: the teacher's k best classes, among which the truth is expected, bool [..., C]; where k is 1 the
        teacher is taken at its word, and the result is f.
      normalize: divide by k - 1; the authors leave it out in their experiments.
    """
    a, count = jnp.asarray(accuracy)[..., None], jnp.sum(candidates, -1, keepdims=True)
    rest = (1.0 - probs) * candidates
    if normalize:
        rest = rest / jnp.maximum(count - 1, 1)
    return a * probs + (1.0 - a) * jnp.where(count > 1, rest, probs)


def mixed_cross_entropy(mixed: Array, target: Array) -> Array:
    """-sum_c target_c log(mixed_c clamped to [1e-6, 1]): [..., C], [..., C] -> [...]."""
    return -jnp.sum(target * jnp.log(jnp.clip(mixed, _LEAST, 1.0)), -1)


def top_candidates(probs: Array, count: Array) -> Array:
    """The `count` most probable classes, bool [..., C], of the teacher's probabilities [..., C]; count [...] may
    vary."""
    rank = jnp.argsort(jnp.argsort(-probs, axis=-1), axis=-1)
    return rank < count[..., None]


def slam(
    outputs: Array, label: Label, target: dict[str, Any], extras: dict[str, Array], *, normalize: bool = True
) -> dict[str, PerExample]:
    """SLaM for classification in the place of the task's loss: CE(y_teacher, mix(f; a, k)).

    Args:
      outputs: logits [B, C].
      label: network form of the teacher's prediction, "probs" [B, C].
      target: "probs" [B, C], hard or soft, and "used" [B].
      extras: "accuracy" [B], probability that the teacher is right; "candidates" [B], how many of the teacher's best
        classes hold the truth, 1 for ground truth.
      normalize: see `mix`.
    """
    used = target["used"]
    probs = jax.nn.softmax(jnp.where(used[:, None], outputs, 0.0).astype(jnp.float32))
    mixed = mix(probs, extras["accuracy"], top_candidates(label["probs"], extras["candidates"]), normalize=normalize)
    value = jnp.where(used, mixed_cross_entropy(mixed, target["probs"]), 0.0)
    return {"class": PerExample(value, used.astype(jnp.float32))}
