"""Array functions on the outputs of a dense point detector: scores of points, distillation from another detector.

A point has one quality logit q, class logits z and four distances; the score of class c is sigmoid(q) * softmax(z)_c.
Everything is float32 and differentiable unless noted otherwise.
"""

import jax
import jax.numpy as jnp

from must.core import boxes as bx
from must.core import losses
from must.core.types import Array, PerExample

_MOST = 1.0 - 1e-6  # probability; log(1 - p) stays finite


def log_known(quality: Array, log_class: Array, counted: Array) -> tuple[Array, Array]:
    """log p and log(1 - p) of p = sigmoid(quality) * (sum of the counted class probabilities), without cancellation."""
    log_sum = lambda mask: jax.nn.logsumexp(jnp.where(mask, log_class, -1e9), -1)  # noqa: E731
    log_object, log_nothing = jax.nn.log_sigmoid(quality), jax.nn.log_sigmoid(-quality)
    return log_object + log_sum(counted), jnp.logaddexp(log_nothing, log_object + log_sum(~counted))


def scores(outputs: dict[str, Array]) -> Array:
    """Score of every class at every point, [B, L, C]."""
    quality, logits = outputs["quality"].astype(jnp.float32), outputs["class"].astype(jnp.float32)
    return jax.nn.sigmoid(quality)[..., None] * jax.nn.softmax(logits)


def soft(outputs: dict[str, Array], teacher: dict[str, Array], gamma: float) -> dict[str, PerExample]:
    """The loss of a student against a teacher's outputs at every point; every term is proper, lowest at equality.

    soft_score: |t - s|^gamma BCE(s, t) of the qualities (Li et al. 2020, eq. 4).   soft_class: t KL(p_t || p_s).
    soft_box: t (1 - GIoU): boxes count by the teacher's quality t, since those of the background mean nothing; Le and
    Pham 2023 take the mean over all points. All divided by sum t, the teacher's expected number of positive points.
    """
    teacher = jax.lax.stop_gradient(teacher)
    quality = jax.nn.sigmoid(teacher["quality"].astype(jnp.float32))
    score = losses.binary_soft_focal(outputs["quality"], quality, gamma)
    divergence = losses.kl_divergence(teacher["class"], outputs["class"])
    own, other = (bx.from_distances(o["points"], o["distances"].astype(jnp.float32)) for o in (outputs, teacher))
    _, giou = bx.overlaps(own, other)
    norm = quality.sum(-1)
    return {
        "soft_score": PerExample(score.sum(-1), norm),
        "soft_class": PerExample((quality * divergence).sum(-1), norm),
        "soft_box": PerExample((quality * (1.0 - giou)).sum(-1), norm),
    }


def disagreement(outputs: dict[str, Array], teacher: dict[str, Array]) -> tuple[Array, dict[str, PerExample]]:
    """Where two detectors differ and what is learned there (PDF-Distil, Zhang et al. 2021).

    D_c = (t_c - s_c)^2 of the class scores, a constant.

    Returns:
      sqrt(sum_c D_c) [B, L], and the terms pdf_class: sum D BCE(s, t) over the number of t_c > .5; pdf_box: mean
      absolute difference of the distances in strides.
    """
    teacher = jax.lax.stop_gradient(teacher)
    predicted, aim = scores(outputs), scores(teacher)
    differ = jax.lax.stop_gradient((aim - predicted) ** 2)
    bounded = jnp.clip(predicted, 1e-6, _MOST)
    loss = differ * -(aim * jnp.log(bounded) + (1.0 - aim) * jnp.log1p(-bounded))
    stride = outputs["points"][..., 2:]
    apart = jnp.abs(outputs["distances"] - teacher["distances"]).astype(jnp.float32) / stride
    return root(differ.sum(-1)), {
        "pdf_class": PerExample(loss.sum((1, 2)), (aim > 0.5).sum((1, 2)).astype(jnp.float32)),
        "pdf_box": PerExample(apart.sum((1, 2)), jnp.full(len(apart), apart[0].size, jnp.float32)),
    }


def root(x: Array) -> Array:
    """Square root of what carries no gradient, 0 at 0."""
    return jnp.sqrt(jnp.maximum(jax.lax.stop_gradient(x), 0.0))


def inside_any(points: Array, boxes: Array, chosen: Array) -> Array:
    """Points [B, L, 3] inside any chosen [B, M] box [B, M, 4]: bool [B, L]."""
    x, y = points[:, None, :, 0], points[:, None, :, 1]
    x0, y0, x1, y1 = jnp.moveaxis(boxes[..., None], 2, 0)
    depth = jnp.minimum(jnp.minimum(x - x0, x1 - x), jnp.minimum(y - y0, y1 - y))
    return jnp.max(jnp.where(chosen[..., None], depth, 0.0), 1) > 0


def by_level(values: Array, shapes: dict[int, tuple[int, int]], strides: tuple[int, ...]) -> dict[int, Array]:
    """Values [B, L] of all points as maps {stride: [B, h, w]}; `shapes` are those of the pyramid."""
    maps, start = {}, 0
    for stride in strides:
        height, width = shapes[stride]
        maps[stride] = values[:, start : start + height * width].reshape(-1, height, width)
        start += height * width
    if start != values.shape[1]:
        raise ValueError(f"{values.shape[1]} points on levels of {start}")
    return maps
