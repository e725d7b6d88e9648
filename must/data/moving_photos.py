"""Photos as unlabeled clips with simulated camera motion, so that a folder of photos can be a pool of videos."""

import math

import numpy as np

from must.core.types import Example, Geometry, Label, Source, UserError
from must.data.combine import hash_of
from must.data.geometry import transform_image


class MovingPhotos:
    """A `Source` of unlabeled clips, each a photo under a camera that pans, tilts and zooms at constant speed.

    Clips are deterministic and contain only camera motion.

    Args:
      source: of the photos.
      frames: T.
      size: height and width of the frames, pixels.
      travel: maximum camera displacement in one clip, as a fraction of the frame.
      zoom: maximum zoom factor between first and last frame.
      seed: of the motions.
      name: first part of every id; by default "<name of the photos>-moving".

    Raises:
      UserError: an argument out of range.
    """

    def __init__(
        self,
        source: Source,
        *,
        frames: int = 8,
        size: int = 64,
        travel: float = 0.3,
        zoom: float = 1.3,
        seed: int = 0,
        name: str = "",
    ):
        if frames < 2 or size < 1 or not 0 <= travel <= 1 or zoom < 1:
            values = f"frames {frames}, size {size}, travel {travel}, zoom {zoom}"
            raise UserError(f"moving photos: {values}: need frames >= 2, size >= 1, travel in 0..1, zoom >= 1")
        self._source, self._frames, self._size = source, frames, size
        self._travel, self._zoom, self._seed = travel, zoom, seed
        self.name = name or f"{source.name}-moving"
        self.ids = [f"{self.name}/{id.partition('/')[2]}" for id in source.ids]
        self.classes: dict[str, tuple[str, ...]] = {}
        self.fingerprint = hash_of("moving", source.fingerprint, repr((frames, size, travel, zoom, seed)))

    def __len__(self) -> int:
        return len(self._source)

    def labels(self, index: int) -> dict[str, Label]:
        del index
        return {}

    def __getitem__(self, index: int) -> Example:
        photo = np.asarray(self._source[index].image)
        rng = np.random.default_rng((self._seed, index))
        angle, travel = rng.uniform(0, 2 * math.pi), self._travel * math.sqrt(rng.uniform())
        factor = math.exp(rng.uniform(-1, 1) * math.log(self._zoom))
        height, width = photo.shape[:2]
        # The smallest magnification at which all frames stay inside the photo.
        largest = max(factor, 1.0) / min(factor, 1.0)
        reach = np.array([1 + travel * abs(math.sin(angle)), 1 + travel * abs(math.cos(angle))])
        base = self._size * (reach / (height, width)).max() * rng.uniform(1.0, 1.3) * largest
        clip = np.empty((self._frames, self._size, self._size, 3), np.uint8)
        center = np.array([height, width]) / 2
        for t, time in enumerate(np.linspace(-0.5, 0.5, self._frames)):
            scale = base * factor**time / largest**0.5
            shift = travel * time * np.array([math.sin(angle), math.cos(angle)]) * self._size / scale
            corner = self._size / 2 - (center + shift) * scale
            geometry = Geometry((height, width), (self._size,) * 2, (scale, scale), tuple(corner))
            clip[t] = transform_image(photo, geometry)
        return Example(self.ids[index], clip, {})
