"""Photometric augmentation; labels stay valid since no pixel moves. For geometry see `must.data.geometry`."""

from collections.abc import Sequence

import numpy as np

from must.core.types import UserError


class Photometric:
    """Random brightness, contrast, saturation, hue, blur, noise and cutout, drawn per example.

    All frames of a clip get the same change, including the noise pattern, so that no motion is introduced.

    Args:
      strength: 1 is strong (brightness and contrast within 40%); 0 changes nothing.
      color: factor on saturation and hue changes; 0 if color determines the class.
      blur: probability of a 3x3 binomial blur.
      noise: largest standard deviation of pixel noise, gray levels.
      cutout: probability of one gray rectangle of up to a third of each side.
    """

    def __init__(
        self, strength: float = 1.0, *, color: float = 1.0, blur: float = 0.2, noise: float = 8.0, cutout: float = 0.0
    ):
        self.strength, self.color, self.blur, self.noise, self.cutout = strength, color, blur, noise, cutout

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [..., H, W, 3] -> the same shape; the change is the same along the leading axes."""
        gain, contrast, saturation = 1.0 + self.strength * rng.uniform(-0.4, 0.4, 3)
        saturation = 1.0 + self.color * (saturation - 1.0)
        hue = self.strength * self.color * rng.uniform(-0.1, 0.1)
        # Saturation and hue are linear in RGB, so one 3x3 matrix does both.
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


OPERATIONS = (
    "auto_contrast",
    "equalize",
    "posterize",
    "solarize",
    "brightness",
    "contrast",
    "color",
    "sharpness",
    "blur",
    "gray",
    "noise",
)


class RandAugment:
    """Applies `count` operations in sequence, drawn with replacement (RandAugment, Cubuk et al. 2020).

    All frames of a clip get the same change: image statistics are taken over all frames, and noise has one pattern.

    Args:
      count: operations per picture.
      magnitude: 0..1; at 1 posterize keeps 4 bits, solarize inverts all, brightness, contrast, color and sharpness
        change by 90%, and blur and noise reach the maxima below. auto_contrast, equalize and gray ignore it.
      operations: to draw from, names of OPERATIONS; omit "color" and "gray" if color determines the class.
      blur: largest standard deviation of the Gaussian blur, drawn uniformly, as a fraction of the shorter side.
      noise: largest standard deviation of pixel noise, drawn uniformly, gray levels.

    Raises:
      UserError: an unknown operation, or a number out of range.
    """

    def __init__(
        self,
        count: int = 2,
        magnitude: float = 0.5,
        *,
        operations: Sequence[str] = OPERATIONS,
        blur: float = 0.02,
        noise: float = 32.0,
    ):
        for name in operations:
            if name not in OPERATIONS:
                raise UserError(f"view.operations: {name!r} is not one of {', '.join(OPERATIONS)}")
        if not operations or count < 1 or not 0 <= magnitude <= 1 or blur < 0 or noise < 0:
            what = f"count {count}, magnitude {magnitude}, blur {blur}, noise {noise}, {len(operations)} operations"
            raise UserError(
                f"view: {what}: count must be >= 1, magnitude in 0..1, blur and noise >= 0, operations not empty"
            )
        self.count, self.magnitude, self.operations = count, magnitude, tuple(operations)
        self.blur, self.noise = blur, noise

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [..., H, W, 3] -> the same shape; the change is the same along the leading axes."""
        from PIL import Image

        height, width = image.shape[-3:-1]
        # Frames are stacked vertically, so that a point operation treats them as one picture.
        picture = Image.fromarray(np.ascontiguousarray(image).reshape(-1, width, 3))
        for drawn in rng.integers(len(self.operations), size=self.count):
            picture = self._apply(picture, self.operations[drawn], height, rng)
        return np.asarray(picture).reshape(image.shape)

    def _apply(self, picture, name: str, height: int, rng: np.random.Generator):
        """Applies one operation to a picture of stacked frames, each `height` pixels high."""
        from PIL import ImageEnhance, ImageFilter, ImageOps

        if name == "auto_contrast":
            return ImageOps.autocontrast(picture)
        if name == "equalize":
            return ImageOps.equalize(picture)
        if name == "gray":
            return picture.convert("L").convert("RGB")
        if name == "posterize":
            return ImageOps.posterize(picture, 8 - round(4 * self.magnitude))
        if name == "solarize":
            return ImageOps.solarize(picture, round(256 * (1 - self.magnitude)))
        if name == "noise":
            return self._add_noise(picture, height, rng)
        if name == "blur":
            sigma = rng.uniform(0.0, self.blur * self.magnitude) * min(height, picture.width)
            return _each_frame(picture, height, lambda frame: frame.filter(ImageFilter.GaussianBlur(sigma)))
        factor = 1.0 + rng.choice((-0.9, 0.9)) * self.magnitude
        if name == "sharpness":
            return _each_frame(picture, height, lambda frame: ImageEnhance.Sharpness(frame).enhance(factor))
        enhance = {
            "brightness": ImageEnhance.Brightness,
            "contrast": ImageEnhance.Contrast,
            "color": ImageEnhance.Color,
        }
        return enhance[name](picture).enhance(factor)

    def _add_noise(self, picture, height: int, rng: np.random.Generator):
        from PIL import Image

        sigma = np.float32(rng.uniform(0.0, self.noise * self.magnitude))
        pattern = rng.standard_normal((height, picture.width, 3), np.float32) * sigma
        frames = np.asarray(picture).reshape(-1, *pattern.shape) + pattern
        return Image.fromarray(np.clip(frames, 0.0, 255.0).astype(np.uint8).reshape(-1, *pattern.shape[1:]))


def _each_frame(picture, height: int, change):
    """Applies a change to each of the stacked frames separately, since it depends on neighboring pixels."""
    from PIL import Image

    if picture.height == height:
        return change(picture)
    out = Image.new("RGB", picture.size)
    for top in range(0, picture.height, height):
        out.paste(change(picture.crop((0, top, picture.width, top + height))), (0, top))
    return out
