"""Photometric augmentation; labels stay valid since no pixel moves. For geometry see `must.data.geometry`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
        return self._changed(image, self.draw(rng, image.shape[-3:-1]), np)

    def in_step(self, images: Any, keys: Any) -> Any:
        """The view inside a compiled step: images uint8 [B, H, W, 3], a PRNG key per row [B] -> the same shape.

        Draws have the distributions of `draw`, from another generator; what is drawn changes a picture as on the host,
        within one gray level.
        """
        import jax

        return jax.vmap(lambda image, key: self.apply_in_step(image, self._draw_in_step(key, image.shape[:2])))(
            images, keys
        )

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> "Drawn":
        """The change of one picture of (height, width) `size`."""
        gain, contrast, saturation = 1.0 + self.strength * rng.uniform(-0.4, 0.4, 3)
        hue = self.strength * self.color * rng.uniform(-0.1, 0.1)
        blurred = rng.random() < self.blur * self.strength
        noise, window = np.float32(0), (0, 0, 0, 0)
        if self.noise:
            sigma = rng.uniform(0.0, self.noise * self.strength)
            noise = rng.standard_normal((*size, 3), np.float32) * np.float32(sigma)
        if rng.random() < self.cutout * self.strength:
            h, w = (rng.integers(1, side // 3 + 1) for side in size)
            y, x = rng.integers(0, size[0] - h + 1), rng.integers(0, size[1] - w + 1)
            window = (y, x, y + h, x + w)
        return self._drawn(np, gain, contrast, saturation, hue, blurred, noise, window)

    def _draw_in_step(self, key: Any, size: tuple[int, int]) -> "Drawn":
        import jax
        import jax.numpy as jnp

        pattern, *keys = jax.random.split(key, 3)
        gain, contrast, saturation, hue, *shares = jax.random.uniform(keys[0], (10,))
        gain, contrast, saturation = (1.0 + self.strength * (0.8 * one - 0.4) for one in (gain, contrast, saturation))
        hue = self.strength * self.color * (0.2 * hue - 0.1)
        sigma = self.noise * self.strength * shares[0]
        noise = jax.random.normal(pattern, (*size, 3)) * sigma if self.noise else jnp.float32(0)
        h, w = (1 + jnp.floor(share * (side // 3)) for share, side in zip(shares[1:3], size, strict=True))
        y, x = (jnp.floor(one * (side - cut + 1)) for one, side, cut in zip(shares[3:5], size, (h, w), strict=True))
        cut = jax.random.uniform(keys[1], (2,)) < jnp.array([self.cutout, self.blur]) * self.strength
        window = tuple(jnp.where(cut[0], edge, 0) for edge in (y, x, y + h, x + w))
        return self._drawn(jnp, gain, contrast, saturation, hue, cut[1], noise, window)

    def _drawn(self, xp: Any, gain, contrast, saturation, hue, blurred, noise, window) -> "Drawn":
        saturation = 1.0 + self.color * (saturation - 1.0)
        # Saturation and hue are linear in RGB, so one 3x3 matrix does both.
        matrix = gain * contrast * xp.matmul(_hue_rotation(hue, xp), _saturation(saturation), **_exact(xp))
        return Drawn(matrix.T.astype(np.float32), (1.0 - contrast) * gain, blurred, noise, window)

    def apply_in_step(self, image: Any, drawn: "Drawn") -> Any:
        """A drawn change of one picture [H, W, 3] on the device."""
        import jax.numpy as jnp

        return self._changed(image, drawn, jnp)

    def _changed(self, image: Any, drawn: "Drawn", xp: Any) -> Any:
        out = xp.matmul(image.astype(np.float32), drawn.matrix, **_exact(xp))
        out = out + xp.float32(drawn.gray * image.mean())
        if self.blur and (xp is not np or drawn.blurred):
            out = xp.where(drawn.blurred, _blur(out, xp), out)
        out = out + drawn.noise
        if self.cutout:
            (y0, x0, y1, x1), (height, width) = drawn.window, image.shape[-3:-1]
            rows, columns = np.arange(height)[:, None], np.arange(width)
            inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
            out = xp.where(inside[..., None], xp.float32(128.0), out)
        return xp.clip(out, 0.0, 255.0).astype(np.uint8)


class Drawn(NamedTuple):
    """What `Photometric` does to one picture.

    Attributes:
      matrix: float32 [3, 3], from the right onto colors.
      gray: factor of the picture's mean, which is added.
      blurred: whether it is blurred.
      noise: float32 [H, W, 3] or [], added.
      window: (y0, x0, y1, x1), gray pixels; empty where y0 == y1.
    """

    matrix: Any
    gray: Any
    blurred: Any
    noise: Any
    window: tuple[Any, Any, Any, Any]


def _exact(xp: Any) -> dict[str, str]:
    """Accelerators round the factors of a product by default."""
    return {} if xp is np else {"precision": "highest"}


_LUMA = np.array([0.299, 0.587, 0.114])


def _saturation(factor: Any) -> Any:
    return factor * np.eye(3) + (1.0 - factor) * np.outer(np.ones(3), _LUMA)


def _hue_rotation(turns: Any, xp: Any) -> Any:
    """Rotation about the gray axis by a fraction of a full turn (Rodrigues)."""
    angle, axis = 2.0 * np.pi * turns, np.full(3, 3.0**-0.5)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return xp.cos(angle) * np.eye(3) + xp.sin(angle) * cross + (1.0 - xp.cos(angle)) * np.outer(axis, axis)


def _blur(image: Any, xp: Any) -> Any:
    for axis in (image.ndim - 3, image.ndim - 2):
        padded = xp.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(image.ndim)], mode="edge")
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
