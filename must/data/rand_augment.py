"""Strong photometric views: a few operations drawn at random, all of one magnitude (RandAugment, Cubuk et al. 2020).

Of the published operations those that leave every pixel where it is, and blur, noise and gray, so that labels of the
clean picture stay right.
"""

from collections.abc import Sequence

import numpy as np

from must.core.types import UserError

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
    """`count` operations, drawn with replacement and done one after the other.

    All frames of a clip change alike: what is measured of a picture is measured of all of them, and noise has one pattern.

    Args:
      count: operations per picture.
      magnitude: 0..1; at 1 posterize keeps 4 bits, solarize inverts all, brightness, contrast, color and sharpness go up
        or down by 90 %, and blur and noise reach the widths below. auto_contrast, equalize and gray have no magnitude.
      operations: to draw from, names of OPERATIONS; leave out "color" and "gray" where color carries the class.
      blur: largest standard deviation of the Gaussian blur, which is drawn evenly, as a share of the shorter side.
      noise: largest standard deviation of pixel noise, drawn evenly, gray levels.

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
                raise UserError(f"view.operations: {name!r} is none of {', '.join(OPERATIONS)}")
        if not operations or count < 1 or not 0 <= magnitude <= 1 or blur < 0 or noise < 0:
            what = f"count {count}, magnitude {magnitude}, blur {blur}, noise {noise}, {len(operations)} operations"
            raise UserError(f"view: {what}: count from 1, magnitude 0..1, one operation at least")
        self.count, self.magnitude, self.operations = count, magnitude, tuple(operations)
        self.blur, self.noise = blur, noise

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [..., H, W, 3] -> the same shape, the same change along the leading axes."""
        from PIL import Image

        height, width = image.shape[-3:-1]
        # Frames stand below one another, so that a point operation sees them as one picture.
        picture = Image.fromarray(np.ascontiguousarray(image).reshape(-1, width, 3))
        for drawn in rng.integers(len(self.operations), size=self.count):
            picture = self._changed(picture, self.operations[drawn], height, rng)
        return np.asarray(picture).reshape(image.shape)

    def _changed(self, picture, name: str, height: int, rng: np.random.Generator):
        """One operation on a picture of frames, each `height` pixels high."""
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
            return self._noisy(picture, height, rng)
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

    def _noisy(self, picture, height: int, rng: np.random.Generator):
        from PIL import Image

        sigma = np.float32(rng.uniform(0.0, self.noise * self.magnitude))
        pattern = rng.standard_normal((height, picture.width, 3), np.float32) * sigma
        frames = np.asarray(picture).reshape(-1, *pattern.shape) + pattern
        return Image.fromarray(np.clip(frames, 0.0, 255.0).astype(np.uint8).reshape(-1, *pattern.shape[1:]))


def _each_frame(picture, height: int, change):
    """A picture of frames one below the other, each changed by itself, since the change looks at neighbors."""
    from PIL import Image

    if picture.height == height:
        return change(picture)
    out = Image.new("RGB", picture.size)
    for top in range(0, picture.height, height):
        out.paste(change(picture.crop((0, top, picture.width, top + height))), (0, top))
    return out
