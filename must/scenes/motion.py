"""Motion of camera and bodies in a scene of `must.scenes.layout` during one clip.

The middle of a clip is near the scene as drawn, and motion passes through it in either direction, so that a single
frame does not reveal the action. Time is continuous; the number of frames only sets the sampling rate.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np

from must.scenes.layout import Scene
from must.scenes.raycast import Solid

# Displacements in one clip, at pace 1.
TURN = (0.2, 0.4)  # of the camera, and of a body about the eye, radians; at 48 px, a pixel is 0.025
WALK = (0.5, 1.0)  # of the camera, meters
APPROACH = (0.5, 0.8)  # of a body, meters
HOP = (0.2, 0.4)  # height, meters
SHAKE = 0.005  # of the camera, radians
CLEARANCE = 0.7  # free space around the nearest body, meters, so that no motion ends in a collision


class Motion(NamedTuple):
    """Directions of motion in a clip, -1, 0 or 1 each.

    Attributes:
      pan: the camera turns right.
      tilt: the camera turns down.
      dolly: the camera moves forward.
      arc: the nearest body moves right, on a circle about the eye.
      retreat: the nearest body moves away.
      hop: the nearest body hops.
      returns: the motion is reversed in the second half.
    """

    pan: int = 0
    tilt: int = 0
    dolly: int = 0
    arc: int = 0
    retreat: int = 0
    hop: int = 0
    returns: bool = False


class Pose(NamedTuple):
    """Displacement of camera and nearest body in one frame, radians and meters; `grain` of the noise."""

    pan: float
    tilt: float
    dolly: float
    arc: float
    retreat: float
    lift: float
    grain: float


def draw_poses(key: str, motion: Motion, frames: int, pace: float) -> list[Pose]:
    """Draws speeds and a time of zero displacement near the middle of the clip; returns the pose in every frame.

    Args:
      key: of the example, the only seed.
      motion: of the action.
      frames: number of frames.
      pace: factor on the ranges above.
    """
    digest = hashlib.shake_128(f"{key}/motion".encode()).digest(4 * (24 + frames))
    numbers = (np.frombuffer(digest, np.uint32) * 2.0**-32).tolist()
    stream, grains = iter(numbers[:24]), numbers[24:]

    def draw(low: float, high: float) -> float:
        return low + (high - low) * next(stream)

    rest, hops = draw(0.4, 0.6), draw(1.5, 2.5)
    turn, walk, approach, hop = (pace * draw(*span) for span in (TURN, WALK, APPROACH, HOP))
    waves = [(draw(0.3, 1) * SHAKE, draw(0.6, 2.2), draw(0, 1)) for _ in range(4)]

    def shake(first: int, time: float) -> float:
        return sum(a * math.sin(2 * math.pi * (f * time + phase)) for a, f, phase in waves[first : first + 2])

    out = []
    for t, grain in enumerate(grains):
        time = t / (frames - 1)
        run = time - rest
        if motion.returns:  # twice the speed, for the same distance
            run = -2 * abs(run)
        out.append(
            Pose(
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


def cleared(scene: Scene) -> Scene:
    """The scene without the bodies that the nearest one could collide with."""
    first = scene.solids[0]
    free = [
        k == 0 or math.hypot(s.x - first.x, s.z - first.z) > s.reach + first.reach + CLEARANCE
        for k, s in enumerate(scene.solids)
    ]
    solids = [solid for solid, keep in zip(scene.solids, free, strict=True) if keep]
    paints = [paint for paint, keep in zip(scene.paints, free, strict=True) if keep]
    return scene._replace(solids=solids, paints=paints)


def posed(scene: Scene, pose: Pose) -> Scene:
    """The scene relative to the camera in one frame: the body moves, then the eye moves forward, then it turns."""
    first, *others = scene.solids
    scale = 1 + pose.retreat / math.hypot(first.x, first.z)
    x, z = _turned(first.x * scale, first.z * scale, -pose.arc)
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
    """A point on the floor relative to a camera that turned right by an angle."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos - z * sin, z * cos + x * sin


def _seen_from(solid: Solid, dolly: float, pan: float) -> Solid:
    x, z = _turned(solid.x, solid.z - dolly, pan)
    return solid._replace(x=x, z=z, yaw=solid.yaw + pan)
