"""Photos as clips: a camera that moves over each, a cut-out of another photo that moves in front of it, or both.

What moves, and in which direction, is the label. Neither the middle of a clip nor how much of the photo it shows tells
which it is: that shows in how the frames follow each other.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from must.core import labels as record_form
from must.core.actions import balanced, opposites
from must.core.types import Example, Label, Source, UserError
from must.data.combine import hash_of, location_of


class Motion(NamedTuple):
    """Directions of motion in a clip, -1, 0 or 1 each.

    Attributes:
      pan, tilt: the camera moves right, down.
      zoom: the camera zooms in.
      turn: the camera turns clockwise.
      shake: the camera shakes.
      across, down: the cut-out moves right, down.
      grow: the cut-out grows.
    """

    pan: int = 0
    tilt: int = 0
    zoom: int = 0
    turn: int = 0
    shake: int = 0
    across: int = 0
    down: int = 0
    grow: int = 0


MOTIONS = {
    "camera": {
        "pan_left": Motion(pan=-1),
        "pan_right": Motion(pan=1),
        "tilt_up": Motion(tilt=-1),
        "tilt_down": Motion(tilt=1),
        "zoom_in": Motion(zoom=1),
        "zoom_out": Motion(zoom=-1),
        "turn_left": Motion(turn=-1),
        "turn_right": Motion(turn=1),
        "shake": Motion(shake=1),
    },
    "objects": {
        "left": Motion(across=-1),
        "right": Motion(across=1),
        "up": Motion(down=-1),
        "down": Motion(down=1),
        "grows": Motion(grow=1),
        "shrinks": Motion(grow=-1),
    },
    "both": {
        "still": Motion(),
        "camera_left": Motion(pan=-1),
        "camera_right": Motion(pan=1),
        "object_left": Motion(across=-1),
        "object_right": Motion(across=1),
        "follow_left": Motion(pan=-1, across=-1),
        "follow_right": Motion(pan=1, across=1),
    },
}


# Classes of a clip flipped left to right or played backwards; classes not listed are unchanged.
MIRRORED = {space: opposites(motions, ("pan", "turn", "across")) for space, motions in MOTIONS.items()}
REVERSED = {
    space: opposites(motions, [field for field in Motion._fields if field != "shake"])
    for space, motions in MOTIONS.items()
}

_TURN = 0.6  # radians, of a clip in which the camera turns
_SHAKE = 0.1  # frames, at most
_GROWTH = 0.9  # logarithm of the cut-out's size, last frame to first
_RADIUS = (0.16, 0.26)  # of the cut-out, in frames
_VERSION = 3  # part of the fingerprint; increment if clips change


class MovingPhotos:
    """A `Source` of clips, uint8 [T, S, S, 3], deterministic, whose every frame lies inside its photo.

    Without `actions` the camera pans, tilts and zooms in any direction and clips have no labels. With them each clip
    has one action; the classes are balanced in every block of as many clips as there are classes.

    Args:
      source: of the photos.
      frames: T.
      size: height and width of the frames, pixels.
      travel: longest way of the camera or cut-out in one clip, in frames.
      zoom: largest zoom between the first and last frame.
      seed: of the motions.
      name: first part of every id; by default "<name of the photos>-moving".
      actions: the label space, "camera", "objects" or "both".
      clips: how many there are; by default one for each photo. Clip i shows photo i modulo the number of photos.
      task: key of the label.
      labels: whether the action is annotated.

    Raises:
      UserError: an argument out of range, or clips that would have one id.
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
        actions: str = "",
        clips: int = 0,
        task: str = "action",
        labels: bool = True,
    ):
        if frames < 2 or size < 1 or not 0 <= travel <= 1 or zoom < 1 or clips < 0:
            values = f"frames {frames}, size {size}, travel {travel}, zoom {zoom}, clips {clips}"
            wanted = "need frames >= 2, size >= 1, travel in 0..1, zoom >= 1, clips >= 0"
            raise UserError(f"moving photos: {values}: {wanted}")
        if actions and actions not in MOTIONS:
            raise UserError(f"moving photos: actions {actions!r} is not one of {', '.join(MOTIONS)}")
        if actions and (not travel or zoom == 1):
            raise UserError(f"moving photos: travel {travel}, zoom {zoom}: actions need travel > 0 and zoom > 1")
        self._source, self._frames, self._size, self._actions = source, frames, size, actions
        self._travel, self._zoom, self._seed = travel, zoom, seed
        self._task = task if actions and labels else ""
        self.name = name or f"{source.name}-moving"
        photos, count = [id.partition("/")[2] for id in source.ids], clips or len(source)
        rounds = [f"-{k}" if k else "" for k in range(-(-count // max(1, len(photos))))]
        self.ids = [f"{self.name}/{photo}{turn}" for turn in rounds for photo in photos][:count]
        if len(set(self.ids)) < len(self.ids):
            raise UserError(f"moving photos: two clips of {source.name} would have one id; rename photos such as A-1")
        paths = [self._camera(motion, 1.0, _SHAKE) for motion in MOTIONS[actions].values()] if actions else []
        self._reach = np.max([_reach(path) for path in paths], 0) if paths else None
        self.classes: dict[str, tuple[str, ...]] = {self._task: tuple(MOTIONS[actions])} if self._task else {}
        content = (_VERSION, frames, size, travel, zoom, seed, actions, count, self._task)
        self.fingerprint = hash_of("moving", source.fingerprint, repr(content))

    def __len__(self) -> int:
        return len(self.ids)

    def action(self, index: int) -> int:
        """The class, even if it is not annotated.

        Raises:
          UserError: clips without actions.
        """
        if not self._actions:
            raise UserError(f"{self.name}: clips without actions")
        return balanced(range(len(self))[index], len(MOTIONS[self._actions]), self._key)

    def location(self, index: int) -> str | None:
        """The path of the photo."""
        return location_of(self._source, index % len(self._source))

    def labels(self, index: int) -> dict[str, Label]:
        return {self._task: record_form.classification(self.action(index))} if self._task else {}

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        photos = len(self._source)
        photo = np.asarray(self._source[index % photos].image)
        rng = np.random.default_rng(list(hashlib.sha256(self._key(f"clip {index}").encode()).digest()))
        if not self._actions:
            path = self._wander(rng)
            return Example(self.ids[index], self._seen(photo, path, _reach(path), rng), {})
        motion, pace = tuple(MOTIONS[self._actions].values())[self.action(index)], rng.uniform(0.6, 1.0)
        clip = self._seen(photo, path := self._camera(motion, pace, rng=rng), self._reach, rng)
        if self._actions != "camera":
            other = np.asarray(self._source[int(rng.integers(photos))].image)
            clip = self._with_body(clip, path, other, self._body(motion, pace, rng))
        return Example(self.ids[index], clip, self.labels(index))

    def _key(self, part: object) -> str:
        """What random numbers are drawn from: sets of other names share none."""
        return f"{self._seed}/{self.name}/{self._actions}/{part}"

    def _times(self) -> np.ndarray:
        return np.linspace(-0.5, 0.5, self._frames)

    def _wander(self, rng: np.random.Generator) -> np.ndarray:
        angle, travel = rng.uniform(0, 2 * math.pi), self._travel * math.sqrt(rng.uniform())
        zoom = rng.uniform(-1, 1) * math.log(self._zoom)
        times = self._times()
        path = [travel * math.cos(angle) * times, travel * math.sin(angle) * times, -zoom * times, 0 * times]
        return np.stack(path, 1)

    def _camera(
        self, motion: Motion, pace: float, shake: float = 0.0, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """x and y in frames, logarithm of the visible part, angle; of each frame, float [T, 4]."""
        times = self._times()
        shaken = motion.shake * (shake if rng is None else rng.uniform(-_SHAKE, _SHAKE, (2, self._frames)))
        x = self._travel * pace * motion.pan * times
        y = self._travel * pace * motion.tilt * times
        part = -math.log(self._zoom) * pace * motion.zoom * times
        return np.stack([*(np.stack([x, y]) + shaken), part, -_TURN * pace * motion.turn * times], 1)

    def _body(self, motion: Motion, pace: float, rng: np.random.Generator) -> np.ndarray:
        """x, y and radius of the cut-out in frames, from the middle of the photo's part; float [T, 3]."""
        times, start, radius = self._times(), rng.uniform(-0.15, 0.15, 2), rng.uniform(*_RADIUS)
        path = [
            start[0] + self._travel * pace * motion.across * times,
            start[1] + self._travel * pace * motion.down * times,
            radius * np.exp(_GROWTH * pace * motion.grow * times),
        ]
        return np.stack(path, 1)

    def _seen(self, photo: np.ndarray, path: np.ndarray, reach: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The frames of a camera's path over a photo, which is at least `reach` frames wide and high, [T, S, S, 3]."""
        part, angle = path.T[2:]
        height, width = photo.shape[:2]
        frame = (np.array([width, height]) / reach).min() * rng.uniform(0.75, 1.0)  # photo pixels
        slack = np.array([width, height]) - frame * reach
        middle = np.array([width, height]) / 2 + rng.uniform(-0.5, 0.5, 2) * slack
        image, scale = _shrunk(photo, frame / self._size)
        clip = np.empty((self._frames, self._size, self._size, 3), np.uint8)
        for t in range(self._frames):
            center = (middle + frame * path[t, :2]) * scale
            clip[t] = _window(image, center, frame * scale * math.exp(part[t]), angle[t], self._size)
        return clip

    def _with_body(self, clip: np.ndarray, path: np.ndarray, photo: np.ndarray, body: np.ndarray) -> np.ndarray:
        """The clip with a disk of a photo in front."""
        height, width = photo.shape[:2]
        disk = 0.8 * min(height, width)  # photo pixels; the edge stays outside
        image, scale = _shrunk(photo, disk / (2 * body[:, 2].max() * self._size))
        pixels = (np.arange(self._size) + 0.5) / self._size - 0.5
        for t, (x, y, radius) in enumerate(body):
            at = np.array([x, y]) - path[t, :2]  # the camera moves past it
            across = disk * scale / (2 * radius)  # of the cut-out's photo, seen in a whole frame
            center = np.array([width, height]) * scale / 2 - at * across
            seen = _window(image, center, across, 0.0, self._size)
            away = np.hypot(pixels[None, :] - at[0], pixels[:, None] - at[1])
            cover = np.clip((radius - away) * self._size + 0.5, 0, 1)[..., None]
            clip[t] = np.round(cover * seen + (1 - cover) * clip[t])
        return clip


def _reach(path: np.ndarray) -> np.ndarray:
    """How many frames across and down a camera's path covers, float [2]."""
    x, y, part, angle = path.T
    half = np.exp(part) / 2 * (np.abs(np.cos(angle)) + np.abs(np.sin(angle)))
    return 2 * np.array([(np.abs(x) + half).max(), (np.abs(y) + half).max()])


def _shrunk(photo: np.ndarray, factor: float) -> tuple[Image.Image, float]:
    """A photo that is sampled every `factor` pixels, made smaller so that nothing is left out, and by how much."""
    image = Image.fromarray(photo)
    if factor <= 1:
        return image, 1.0
    size = [max(1, round(side / factor)) for side in image.size]
    return image.resize(size, Image.Resampling.LANCZOS), size[0] / image.size[0]


def _window(image: Image.Image, center: np.ndarray, side: float, angle: float, size: int) -> np.ndarray:
    """A square part of an image, turned by an angle, uint8 [size, size, 3]."""
    step = side / size
    cos, sin = step * math.cos(angle), step * math.sin(angle)
    corner = (center[0] - (cos - sin) * size / 2, center[1] - (sin + cos) * size / 2)
    data = (cos, -sin, corner[0], sin, cos, corner[1])
    return np.asarray(image.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR))
