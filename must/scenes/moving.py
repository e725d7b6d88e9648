"""`moving_scenes`: procedural clips in which the camera, the nearest body, or both move.

Example = f(seed, actions, domain, split, index); size and frames only set the sampling. Four label spaces classify the
same motions in different ways, all of which depend on the order of the frames.
"""

import hashlib

import numpy as np

from must.core import labels as record_form
from must.core.actions import balanced, opposites
from must.core.types import Example, UserError
from must.scenes import raycast, shading
from must.scenes.layout import DOMAINS, Scene, draw_scene
from must.scenes.motion import Motion, cleared, draw_poses, posed
from must.scenes.still import NumberedIds

MOTIONS = {
    "camera": {
        "pan_left": Motion(pan=-1),
        "pan_right": Motion(pan=1),
        "tilt_up": Motion(tilt=-1),
        "tilt_down": Motion(tilt=1),
        "forward": Motion(dolly=1),
        "backward": Motion(dolly=-1),
    },
    "bodies": {
        "left": Motion(arc=-1),
        "right": Motion(arc=1),
        "towards": Motion(retreat=-1),
        "away": Motion(retreat=1),
        "hops": Motion(hop=1),
    },
    "both": {
        "still": Motion(),
        "camera_left": Motion(pan=-1),
        "camera_right": Motion(pan=1),
        "body_left": Motion(arc=-1),
        "body_right": Motion(arc=1),
        "follow_left": Motion(pan=-1, arc=-1),
        "follow_right": Motion(pan=1, arc=1),
    },
    "turns": {
        "left": Motion(pan=-1),
        "right": Motion(pan=1),
        "left_and_back": Motion(pan=-1, returns=True),
        "right_and_back": Motion(pan=1, returns=True),
    },
}
ACTIONS = {space: tuple(motions) for space, motions in MOTIONS.items()}
DOMAIN = {"camera": "indoor", "bodies": "outdoor", "both": "clutter", "turns": "night"}  # defaults
PACE = {"camera": 0.85, "bodies": 1.6, "both": 1.6, "turns": 1.0}  # motion of one body is harder to see


# Classes of a clip flipped left to right or played backwards; classes not listed are unchanged.
MIRRORED = {space: opposites(motions, ("pan", "arc")) for space, motions in MOTIONS.items()}
REVERSED = {
    space: opposites(
        {name: motion for name, motion in motions.items() if not motion.returns},
        ("pan", "tilt", "dolly", "arc", "retreat"),
    )
    for space, motions in MOTIONS.items()
}

_VERSION = 1  # part of the fingerprint; increment if clips change


class MovingScenes:
    """A `Source` of procedural clips, uint8 [T, S, S, 3], each of one action.

    Args:
      count: number of examples; classes are balanced in every block of as many examples as there are classes.
      seed: different seeds, label spaces, domains, splits and indices share no random numbers.
      size: height and width, pixels.
      frames: T.
      actions: one of `ACTIONS`, the label space.
      domain: one of `DOMAINS`; by default, `DOMAIN` of the label space.
      split: any name.
      labels: whether the action is annotated.
      task: key of the label.
      name: first part of every id; by default from actions, domain, split and seed.
      start: index of the first example, so that parts of one split can be annotated differently.

    Raises:
      UserError: an unknown label space or domain, or an argument out of range.
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        size: int = 48,
        frames: int = 8,
        actions: str = "camera",
        domain: str | None = None,
        split: str = "train",
        labels: bool = True,
        task: str = "action",
        name: str | None = None,
        start: int = 0,
    ):
        if actions not in ACTIONS:
            raise UserError(f"moving_scenes: actions {actions!r} is not one of {', '.join(ACTIONS)}")
        domain = DOMAIN[actions] if domain is None else domain
        if domain not in DOMAINS:
            raise UserError(f"moving_scenes: domain {domain!r} is not one of {', '.join(DOMAINS)}")
        if count < 0 or start < 0 or not 8 <= size <= 512 or not 2 <= frames <= 256:
            values = f"count {count}, start {start}, size {size}, frames {frames}"
            raise UserError(f"moving_scenes: {values}: need count, start >= 0, size in 8..512, frames in 2..256")
        self.count, self.seed, self.size, self.frames, self.start = count, seed, size, frames, start
        self.actions, self.domain, self.split, self.annotated, self.task = actions, domain, split, bool(labels), task
        self.name = name or f"moving-{actions}-{domain}-{split}-{seed}"
        self.ids = NumberedIds(self.name, range(start, start + count))
        self.classes = {task: ACTIONS[actions]} if labels else {}
        content = (_VERSION, count, seed, size, frames, actions, domain, split, labels and task, start)
        self.fingerprint = hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        label = {self.task: record_form.classification(self.action(index))} if self.annotated else {}
        return Example(self.ids[index], self.render(index), label)

    def action(self, index: int) -> int:
        """The class, even if it is not annotated."""
        return balanced(self._place(index), len(ACTIONS[self.actions]), self._key)

    def scenes(self, index: int) -> list[Scene]:
        """The scene of each frame, relative to its camera."""
        key = self._key(self._place(index)) + "/clip"
        scene = cleared(draw_scene(key, DOMAINS[self.domain]))
        motion = MOTIONS[self.actions][ACTIONS[self.actions][self.action(index)]]
        return [posed(scene, pose) for pose in draw_poses(key, motion, self.frames, PACE[self.actions])]

    def render(self, index: int) -> np.ndarray:
        """The clip, uint8 [T, S, S, 3]."""
        out = np.empty((self.frames, self.size, self.size, 3), np.uint8)
        for image, scene in zip(out, self.scenes(index), strict=True):
            image[:] = picture(scene, self.size)
        return out

    def _place(self, index: int) -> int:
        return range(self.start, self.start + self.count)[index]

    def _key(self, number: int) -> str:
        return f"moving/{self.seed}/{self.actions}/{self.domain}/{self.split}/{number}"


def picture(scene: Scene, size: int) -> np.ndarray:
    """Casts and shades one frame, uint8 [S, S, 3].

    Unlike `must.scenes.still.render`, keeps mostly hidden bodies, which would otherwise appear and vanish in a clip.
    """
    rays = raycast.make_rays(size, scene.pitch)
    background = raycast.cast_room(scene.room, rays)
    hits = raycast.cast_solids(scene.solids, scene.room.floor, rays, least=0, share=0)
    solids, paints = [scene.solids[k] for k in hits.kept], [scene.paints[k] for k in hits.kept]
    unseen = [solid for k, solid in enumerate(scene.solids) if k not in hits.kept]
    return shading.shade(scene.room, background, solids, hits, paints, scene.light, scene.decor, rays, unseen)
