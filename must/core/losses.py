"""Loss functions on arrays, without reduction over the batch (see `must.core.ratio`).

They return one value per element, or per image if the formula has an inner mean. Masked elements, even NaN, affect
neither values nor gradients. Everything is computed in float32.
"""

import jax
import jax.numpy as jnp

from must.core.types import Array

_RELATIVE_EPS = 1e-8  # of the mean square: a standard deviation below 1e-4 of the RMS is rounding error


def soft_cross_entropy(logits: Array, target: Array) -> Array:
    """-sum_c target_c log softmax(logits)_c over the last axis: [..., C], [..., C] -> [...]."""
    return -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32)), -1)


def kl_divergence(target_logits: Array, logits: Array) -> Array:
    """KL(softmax(target_logits) || softmax(logits)) over the last axis, [..., C], [..., C] -> [...].

    Nonnegative, 0 for logits that are equal up to a constant; no gradient flows to the target.
    """
    target = jax.nn.log_softmax(jax.lax.stop_gradient(target_logits).astype(jnp.float32))
    return jnp.sum(jnp.exp(target) * (target - jax.nn.log_softmax(logits.astype(jnp.float32))), -1)


def taylor_cross_entropy(logits: Array, target: Array, terms: int) -> Array:
    """sum_c target_c sum_{i=1..terms} (1 - p_c)^i / i, the truncated series of -log p_c: [..., C], [..., C] -> [...].

    One term is the mean absolute error up to a factor, robust to label noise but slow to converge; many approach the
    cross-entropy (Feng et al. 2020, "Can Cross Entropy Loss Be Robust to Label Noise?").
    """
    missing = 1.0 - jax.nn.softmax(logits.astype(jnp.float32))
    return jnp.sum(target * sum(missing**i / i for i in range(1, terms + 1)), -1)


def binary_soft_focal(logits: Array, target: Array, gamma: float = 2.0, alpha: float | None = None) -> Array:
    """|t - s|^gamma BCE(s, t) with s = sigmoid(logits), per element (quality focal loss, Li et al. 2020, eq. 4).

    Proper for soft targets: minimal at s = t, unlike the focal loss with p_t = t s + (1 - t)(1 - s).

    Args:
      logits: [...].
      target: [...], in 0..1.
      gamma: 0 (plain cross-entropy) or at least 1; in between, the gradient is infinite at s = t.
      alpha: positive weight: the loss is multiplied by alpha t + (1 - alpha)(1 - t). None for no weighting.
    """
    if 0.0 < gamma < 1.0:
        raise ValueError(f"gamma {gamma}: expected 0 or at least 1")
    logits = logits.astype(jnp.float32)
    loss = jnp.maximum(logits, 0.0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    if gamma:
        loss *= jnp.abs(target - jax.nn.sigmoid(logits)) ** gamma
    return loss if alpha is None else loss * (alpha * target + (1.0 - alpha) * (1.0 - target))


def smooth_l1(difference: Array, bend: float) -> Array:
    """d^2 / (2 bend) below `bend`, |d| - bend / 2 above (Girshick 2015, eq. 3), elementwise."""
    size = jnp.abs(difference)
    return jnp.where(size < bend, 0.5 * difference**2 / bend, size - 0.5 * bend)


def masked_mean(values: Array, valid: Array) -> Array:
    """Mean of the valid elements of each example, [B, ...] -> [B]; 0 if there are none."""
    axes = tuple(range(1, values.ndim))
    return jnp.sum(jnp.where(valid, values, 0.0), axes) / jnp.maximum(jnp.sum(valid, axes), 1)


def _center(x: Array, valid: Array) -> tuple[Array, Array, Array, Array]:
    """x minus its mean over valid elements (0 elsewhere), the mean, the variance, and whether x is not constant."""
    x = jnp.where(valid, x.astype(jnp.float32), 0.0)
    mean = masked_mean(x, valid)
    centered = jnp.where(valid, x - _expand(mean, x), 0.0)
    variance = masked_mean(centered**2, valid)
    return centered, mean, variance, variance > _RELATIVE_EPS * masked_mean(x**2, valid)


def robust_residual(prediction: Array, target: Array, valid: Array) -> tuple[Array, Array]:
    """Difference of prediction and target, each less its median and over its mean absolute deviation from it.

    Invariant to positive scale and to shift of both (MiDaS, Ranftl et al. 2020, eq. 5 and 6).

    Args:
      prediction: [B, ...].
      target: [B, ...].
      valid: bool [B, ...].

    Returns:
      The residual [B, ...], 0 at invalid pixels, and its validity, bool [B]: prediction and target are not constant.
    """
    (p, p_scale, p_varies), (y, y_scale, y_varies) = (_deviations(x, valid) for x in (prediction, target))
    usable = p_varies & y_varies
    p_scale, y_scale = (_expand(jnp.where(usable, scale, 1.0), p) for scale in (p_scale, y_scale))
    return jnp.where(_expand(usable, p) & valid, p / p_scale - y / y_scale, 0.0), usable


def _deviations(x: Array, valid: Array) -> tuple[Array, Array, Array]:
    """x minus its median over valid elements (0 elsewhere), its mean absolute deviation, and whether x varies."""
    x = jnp.where(valid, x.astype(jnp.float32), 0.0)
    axes = tuple(range(1, x.ndim))
    ordered = jnp.sort(jnp.where(valid, x, jnp.inf).reshape(len(x), -1), -1)
    middle = jnp.maximum(jnp.sum(valid, axes) - 1, 0) // 2  # of an even number the lower one, as in torch
    median = jnp.where(jnp.any(valid, axes), jnp.take_along_axis(ordered, middle[:, None], -1)[:, 0], 0.0)
    apart = jnp.where(valid, x - _expand(median, x), 0.0)
    scale = masked_mean(jnp.abs(apart), valid)
    return apart, scale, scale > jnp.sqrt(_RELATIVE_EPS * masked_mean(x**2, valid))


def trimmed_mae(residual: Array, valid: Array, trim: float = 0.2) -> Array:
    """Half the sum of all but the largest absolute residuals over the number of all (MiDaS, Ranftl et al. 2020, eq. 7).

    Args:
      residual: [B, ...].
      valid: bool [B, ...].
      trim: share of the valid elements, those with the largest residuals, that count for nothing.

    Returns:
      [B]; 0 if nothing is valid.
    """
    sizes = jnp.sort(jnp.where(valid, jnp.abs(residual), jnp.inf).reshape(len(residual), -1), -1)
    count = jnp.sum(valid, tuple(range(1, valid.ndim)))[:, None]
    kept = jnp.arange(sizes.shape[-1]) < jnp.round((1.0 - trim) * count)
    return jnp.sum(jnp.where(kept, sizes, 0.0), -1) / (2.0 * jnp.maximum(count[:, 0], 1))


def silog(log_prediction: Array, log_target: Array, valid: Array, focus: float = 0.5, eps: float = 1e-6) -> Array:
    """sqrt(mean g^2 - focus (mean g)^2 + eps) per image with g the difference of the logarithms (Eigen et al. 2014).

    Args:
      log_prediction: [B, ...].
      log_target: [B, ...].
      valid: bool [B, ...].
      focus: lambda; 1 ignores the scale, 0 is the plain log RMSE.
      eps: keeps the gradient finite at prediction = target.

    Returns:
      [B]; sqrt(eps) if nothing is valid.
    """
    _, mean, variance, _ = _center(log_prediction.astype(jnp.float32) - log_target, valid)
    # mean g^2 = variance + mean^2; this form cannot become negative by rounding.
    return jnp.sqrt(variance + (1.0 - focus) * mean**2 + eps)


def gradient_matching(residual: Array, valid: Array, scales: int = 4) -> Array:
    """Sum over scales of the mean |horizontal| + mean |vertical| difference of neighboring residuals (MiDaS, eq. 11).

    Args:
      residual: [B, h, w].
      valid: bool [B, h, w]; a difference counts if both of its pixels are valid.
      scales: K; scale k takes every 2^k-th pixel.

    Returns:
      [B].
    """
    residual = jnp.where(valid, residual, 0.0)
    total = jnp.zeros(residual.shape[0])
    for k in range(scales):
        r, v = residual[:, :: 2**k, :: 2**k], valid[:, :: 2**k, :: 2**k]
        total += masked_mean(jnp.abs(r[:, 1:] - r[:, :-1]), v[:, 1:] & v[:, :-1])
        total += masked_mean(jnp.abs(r[:, :, 1:] - r[:, :, :-1]), v[:, :, 1:] & v[:, :, :-1])
    return total


def unit(vectors: Array, eps: float = 1e-6) -> Array:
    """Normalizes vectors [..., D]; those shorter than sqrt(eps) are divided by sqrt(eps), for finite gradients."""
    vectors = vectors.astype(jnp.float32)
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(vectors**2, -1, keepdims=True), eps))


def cosine_distance(a: Array, b: Array) -> Array:
    """1 - a . b of unit vectors: [..., D], [..., D] -> [...], 0..2."""
    return 1.0 - jnp.sum(a * b, -1)


def angle(a: Array, b: Array) -> Array:
    """Angle between 3-vectors in radians, [..., 3], [..., 3] -> [...].

    atan2(|a x b|, a . b), which unlike the arc cosine is accurate for small angles (to 1e-6) and has finite gradients
    for parallel vectors.
    """
    cross = jnp.cross(a, b)
    return jnp.arctan2(jnp.sqrt(jnp.sum(cross**2, -1) + 1e-12), jnp.sum(a * b, -1))


def _expand(per_example: Array, like: Array) -> Array:
    return per_example.reshape(per_example.shape + (1,) * (like.ndim - 1))
