"""Photometric views of a picture: what a student sees while its labels come from the clean one.

Nothing here moves a pixel, so every label stays right; geometry is `must.data.geometry`.
"""

import numpy as np


class Photometric:
    """Random light, contrast, saturation, hue, blur, noise and cutout, each drawn per example.

    All frames of a clip change alike, down to the pattern of the noise, so that nothing moves that did not.

    Args:
      strength: 1 is strong (brightness and contrast within 40 %); 0 changes nothing.
      color: factor on saturation and hue changes; 0 where color carries the class.
      blur: probability of a 3x3 binomial blur.
      noise: largest standard deviation of pixel noise, gray levels.
      cutout: probability of one gray rectangle of up to a third of each side.
    """

    def __init__(
        self, strength: float = 1.0, *, color: float = 1.0, blur: float = 0.2, noise: float = 8.0, cutout: float = 0.0
    ):
        self.strength, self.color, self.blur, self.noise, self.cutout = strength, color, blur, noise, cutout

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [..., H, W, 3] -> the same shape, the same change along the leading axes."""
        gain, contrast, saturation = 1.0 + self.strength * rng.uniform(-0.4, 0.4, 3)
        saturation = 1.0 + self.color * (saturation - 1.0)
        hue = self.strength * self.color * rng.uniform(-0.1, 0.1)
        # Saturation and hue are linear maps of RGB, so that one 3x3 product does both.
        matrix = gain * contrast * (_hue_rotation(hue) @ _saturation(saturation))
        out = image.astype(np.float32) @ matrix.T.astype(np.float32)
        out += np.float32((1.0 - contrast) * gain * image.mean())
        if rng.random() < self.blur * self.strength:
            out = _blur(out)
        if self.noise:
            sigma = rng.uniform(0.0, self.noise * self.strength)
            out += rng.standard_normal(out.shape[-3:], np.float32) * np.float32(sigma)
        if rng.random() < self.cutout * self.strength:
            height, width = image.shape[-3:-1]
            h, w = rng.integers(1, height // 3 + 1), rng.integers(1, width // 3 + 1)
            y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            out[..., y : y + h, x : x + w, :] = 128.0
        return np.clip(out, 0.0, 255.0).astype(np.uint8)


_LUMA = np.array([0.299, 0.587, 0.114])


def _saturation(factor: float) -> np.ndarray:
    return factor * np.eye(3) + (1.0 - factor) * np.outer(np.ones(3), _LUMA)


def _hue_rotation(turns: float) -> np.ndarray:
    """Rotation about the gray axis by a fraction of a full turn (Rodrigues)."""
    angle, axis = 2.0 * np.pi * turns, np.full(3, 3.0**-0.5)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * np.outer(axis, axis)


def _blur(image: np.ndarray) -> np.ndarray:
    for axis in (image.ndim - 3, image.ndim - 2):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(image.ndim)], mode="edge")
        before, size = (slice(None),) * axis, image.shape[axis]
        low, mid, high = (padded[(*before, slice(i, i + size))] for i in range(3))
        image = 0.25 * low + 0.5 * mid + 0.25 * high
    return image
