"""`moving_scenes`: clips of the rooms of `must.data.scenes` in which the camera, the nearest body, or both move.

Example = f(seed, actions, domain, split, index); size and frames only say how finely it is sampled. Four label spaces ask
different questions about the same motions. The middle of a clip is a still scene and motion runs through it, so that
what happens shows in the order of the frames and not in one of them. The pictures are cast and shaded elsewhere.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np

from must.core.types import Example, UserError
from must.data import labels as record_form
from must.data import raycast, shading
from must.data.layout import DOMAINS, Scene, draw_scene
from must.data.scenes import NumberedIds
from must.data.solids import Solid


class Motion(NamedTuple):
    """Which way things go during a clip, -1, 0 or 1 each, and how.

    Attributes:
      pan: the camera turns to the right.
      tilt: the camera turns down.
      dolly: the camera goes forward.
      arc: the nearest body goes to the right, on a circle about the eye.
      retreat: the nearest body goes away.
      hop: the nearest body hops.
      returns: all goes back again in the second half.
    """

    pan: int = 0
    tilt: int = 0
    dolly: int = 0
    arc: int = 0
    retreat: int = 0
    hop: int = 0
    returns: bool = False


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
DOMAIN = {"camera": "indoor", "bodies": "outdoor", "both": "clutter", "turns": "night"}  # unless another is asked for


def _swapped(*pairs: tuple[str, str]) -> dict[str, str]:
    return {a: b for one, other in pairs for a, b in ((one, other), (other, one))}


# What a clip shows when it is mirrored left to right, or played backwards; classes not named stay what they are.
MIRRORED = {
    "camera": _swapped(("pan_left", "pan_right")),
    "bodies": _swapped(("left", "right")),
    "both": _swapped(("camera_left", "camera_right"), ("body_left", "body_right"), ("follow_left", "follow_right")),
    "turns": _swapped(("left", "right"), ("left_and_back", "right_and_back")),
}
REVERSED = {
    "camera": _swapped(("pan_left", "pan_right"), ("tilt_up", "tilt_down"), ("forward", "backward")),
    "bodies": _swapped(("left", "right"), ("towards", "away")),
    "both": MIRRORED["both"],
    "turns": _swapped(("left", "right")),
}

TURN = (0.06, 0.16)  # of the camera, and of a body about the eye, radians in one clip; 0.025 is a pixel at 48 pixels
WALK = (0.2, 0.5)  # of the camera, metres in one clip
APPROACH = (0.2, 0.5)  # of a body
HOP = (0.1, 0.25)  # height, metres
SHAKE = 0.012  # of the camera, radians
CLEARANCE = 0.35  # metres about the nearest body that no other may touch, so that no motion ends in a collision
_VERSION = 1  # part of the fingerprint; raise it when the same index shows another clip


class MovingScenes:
    """A `Source` of procedural clips, uint8 [T, S, S, 3], each of one action.

    Args:
      count: number of examples; every run of as many examples as there are classes, from index 0, has one of each.
      seed: different seeds, label spaces, domains, splits and indices share no random numbers.
      size: height and width, pixels.
      frames: T.
      actions: one of `ACTIONS`, the label space.
      domain: one of `DOMAINS`; that of the label space in `DOMAIN` when absent.
      split: any name.
      labels: whether the action is annotated.
      task: key of the label.
      name: first part of every id; from actions, domain, split and seed when absent.
      start: index of the first example, so that parts of one split can be annotated differently.

    Raises:
      UserError: an unknown label space or domain, or a count, start, size or number of frames that cannot be.
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
            raise UserError(f"moving_scenes: actions {actions!r} is none of {', '.join(ACTIONS)}")
        domain = DOMAIN[actions] if domain is None else domain
        if domain not in DOMAINS:
            raise UserError(f"moving_scenes: domain {domain!r} is none of {', '.join(DOMAINS)}")
        if count < 0 or start < 0 or not 8 <= size <= 512 or not 2 <= frames <= 256:
            numbers = f"count {count} and start {start} must be >= 0, size {size} within 8..512, frames {frames} within 2..256"
            raise UserError(f"moving_scenes: {numbers}")
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
        """The class, whether it is annotated or not."""
        place, count = self._place(index), len(ACTIONS[self.actions])
        shuffled = hashlib.shake_128(self._key(place // count).encode()).digest(count)
        return sorted(range(count), key=shuffled.__getitem__)[place % count]

    def render(self, index: int) -> np.ndarray:
        """The clip, uint8 [T, S, S, 3]."""
        key = self._key(self._place(index)) + "/clip"
        scene = _cleared(draw_scene(key, DOMAINS[self.domain]))
        motion = MOTIONS[self.actions][ACTIONS[self.actions][self.action(index)]]
        out = np.empty((self.frames, self.size, self.size, 3), np.uint8)
        for t, pose in enumerate(_poses(key, motion, self.frames)):
            out[t] = _picture(_posed(scene, pose), self.size)
        return out

    def _place(self, index: int) -> int:
        return range(self.start, self.start + self.count)[index]

    def _key(self, number: int) -> str:
        return f"moving/{self.seed}/{self.actions}/{self.domain}/{self.split}/{number}"


class _Pose(NamedTuple):
    """Where camera and nearest body are in one frame, against the still scene; radians and metres, `grain` of the noise."""

    pan: float
    tilt: float
    dolly: float
    arc: float
    retreat: float
    lift: float
    grain: float


def _poses(key: str, motion: Motion, frames: int) -> list[_Pose]:
    """Draws a pace and a moment of rest near the middle of the clip, and follows the motion through all frames."""
    digest = hashlib.shake_128(f"{key}/motion".encode()).digest(4 * (24 + frames))
    numbers = (np.frombuffer(digest, np.uint32) * 2.0**-32).tolist()
    stream, grains = iter(numbers[:24]), numbers[24:]

    def draw(low: float, high: float) -> float:
        return low + (high - low) * next(stream)

    rest, turn, walk, approach = draw(0.4, 0.6), draw(*TURN), draw(*WALK), draw(*APPROACH)
    hop, hops = draw(*HOP), draw(1.5, 2.5)
    waves = [(draw(0.3, 1) * SHAKE, draw(0.6, 2.2), draw(0, 1)) for _ in range(4)]

    def shake(first: int, time: float) -> float:
        return sum(a * math.sin(2 * math.pi * (f * time + phase)) for a, f, phase in waves[first : first + 2])

    out = []
    for t, grain in enumerate(grains):
        time = t / (frames - 1)
        run = time - rest
        if motion.returns:  # twice the pace, so that the way is as long
            run = -2 * abs(run)
        out.append(
            _Pose(
                motion.pan * turn * run + shake(0, time),
                motion.tilt * turn * run + shake(2, time),
                motion.dolly * walk * run,
                motion.arc * turn * run,
                motion.retreat * approach * run,
                motion.hop * hop * abs(math.sin(math.pi * hops * run)),
                grain,
            )
        )
    return out


def _cleared(scene: Scene) -> Scene:
    """The scene without the bodies that the nearest one could run into, whatever it does in this clip."""
    first = scene.solids[0]
    free = [
        k == 0 or math.hypot(s.x - first.x, s.z - first.z) > s.reach + first.reach + CLEARANCE
        for k, s in enumerate(scene.solids)
    ]
    solids = [solid for solid, stays in zip(scene.solids, free, strict=True) if stays]
    paints = [paint for paint, stays in zip(scene.paints, free, strict=True) if stays]
    return scene._replace(solids=solids, paints=paints)


def _posed(scene: Scene, pose: _Pose) -> Scene:
    """The scene as the camera sees it in one frame: the body moves, then the eye goes forward, then it turns."""
    first, *others = scene.solids
    grown = 1 + pose.retreat / math.hypot(first.x, first.z)
    x, z = _turned(first.x * grown, first.z * grown, -pose.arc)
    solids = [first._replace(x=x, z=z, lift=pose.lift), *others]
    room, light = scene.room, scene.light
    across, along = pose.dolly * math.sin(room.yaw), pose.dolly * math.cos(room.yaw)
    room = room._replace(
        back=room.back - along,
        left=room.left + across,
        right=room.right - across,
        yaw=room.yaw + pose.pan,
        shift=(across, along),
    )
    lx, ly, lz = light.position
    lx, lz = _turned(lx, lz if light.sun else lz - pose.dolly, pose.pan)
    return scene._replace(
        pitch=scene.pitch + pose.tilt,
        room=room,
        solids=[_seen_from(solid, pose.dolly, pose.pan) for solid in solids],
        light=light._replace(position=(lx, ly, lz)),
        decor=scene.decor._replace(grain=pose.grain),
    )


def _turned(x: float, z: float, angle: float) -> tuple[float, float]:
    """A place on the floor after the camera has turned to the right by an angle."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos - z * sin, z * cos + x * sin


def _seen_from(solid: Solid, dolly: float, pan: float) -> Solid:
    x, z = _turned(solid.x, solid.z - dolly, pan)
    return solid._replace(x=x, z=z, yaw=solid.yaw + pan)


def _picture(scene: Scene, size: int) -> np.ndarray:
    """One frame, uint8 [S, S, 3]; bodies that are mostly hidden stay, as they would come and go from frame to frame."""
    rays = raycast.make_rays(size, scene.pitch)
    background = raycast.cast_room(scene.room, rays)
    hits = raycast.cast_solids(scene.solids, scene.room.floor, rays, least=0, share=0)
    solids, paints = [scene.solids[k] for k in hits.kept], [scene.paints[k] for k in hits.kept]
    unseen = [solid for k, solid in enumerate(scene.solids) if k not in hits.kept]
    return shading.shade(scene.room, background, solids, hits, paints, scene.light, scene.decor, rays, unseen)
