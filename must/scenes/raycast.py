"""Exact ray casting of a room with solids standing on its floor: the geometry behind `must.scenes.still`.

Level frame: origin at the eye, x right, y down, z forward along the floor; meters. A ray is scaled so that its
parameter is the depth along the optical axis of the camera, which is pitched below the horizon. All is analytic.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from must.scenes.solids import BOX, Solid, cast, surface_normals

HALF_VIEW = 0.6  # tangent of half the field of view: one focal length for all pictures
FLOOR, CEILING, BACK, LEFT, RIGHT, SKY = range(6)
DEPTH_RANGE = 60.0  # meters; anything beyond counts as sky


class Rays(NamedTuple):
    """Level-frame directions per unit of depth, float32: `x` [S] over columns, `y` and `z` [S] over rows."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    pitch: float


class Room(NamedTuple):
    """Distances of the planes from the eye, meters; turned by `yaw`, radians; `wall_top` is y where the walls end.

    `shift` is where the eye stands along the room's own x and z, so that textures stay where they are when it moves.
    """

    floor: float
    ceiling: float
    back: float
    left: float
    right: float
    yaw: float
    wall_top: float = -math.inf
    shift: tuple[float, float] = (0.0, 0.0)


class Background(NamedTuple):
    """The empty room, [S, S] each: which plane, its depth, and the point hit in the room's own axes, meters."""

    plane: np.ndarray
    depth: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


class Hits(NamedTuple):
    """Visible pixels of all bodies, one body after the other, front to back: N pixels of K bodies.

    Attributes:
      pixel: [N], row * S + column.
      depth: [N], meters.
      point: [3, N], level frame, meters.
      normal: [3, N], unit, level frame, outward.
      counts: [K], pixels of each body.
      kept: [K], position of each in the list that was cast.
      boxes: float32 [K, 4], tight hulls of their visible pixels, x0 y0 x1 y1, pixels.
    """

    pixel: np.ndarray
    depth: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    counts: np.ndarray
    kept: list[int]
    boxes: np.ndarray


@functools.lru_cache(8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image-plane coordinates of the pixel centers [S]; each pixel's number [S, S], row [S * S] and column [S * S]."""
    numbers = np.arange(size * size)
    offset = ((np.arange(size) + 0.5) * 2 / size - 1) * HALF_VIEW
    return offset.astype(np.float32), numbers.reshape(size, size), numbers // size, numbers % size


def make_rays(size: int, pitch: float) -> Rays:
    """Rays through the centers of size x size pixels of a camera that looks `pitch` radians below the horizon."""
    offset = _grid(size)[0]
    cos, sin = math.cos(pitch), math.sin(pitch)
    return Rays(offset, offset * cos + sin, cos - offset * sin, pitch)


def to_camera(vectors: np.ndarray, pitch: float) -> np.ndarray:
    """Level frame [3, ...] -> camera axes (x right, y down, z forward)."""
    cos, sin = math.cos(pitch), math.sin(pitch)
    out = vectors.copy()
    out[1] = vectors[1] * cos - vectors[2] * sin
    out[2] = vectors[1] * sin + vectors[2] * cos
    return out


def cast_room(room: Room, rays: Rays) -> Background:
    """What the empty room shows: the plane with the largest inverse depth, as the room is convex."""
    cos, sin = math.cos(room.yaw), math.sin(room.yaw)
    x = rays.x * cos + (rays.z * sin)[:, None]
    z = rays.x * -sin + (rays.z * cos)[:, None]
    inverse, plane = np.empty_like(x), np.empty(x.shape, np.intp)
    inverse[:] = np.maximum(rays.y / room.floor, rays.y / -room.ceiling)[:, None]
    plane[:] = np.where(rays.y > 0, FLOOR, CEILING)[:, None]
    for name, direction, distance in ((BACK, z, room.back), (LEFT, x, -room.left), (RIGHT, x, room.right)):
        candidate = direction * (1 / distance)
        np.copyto(plane, name, where=candidate > inverse)
        np.maximum(inverse, candidate, out=inverse)
    depth = np.reciprocal(inverse, out=inverse)
    y = rays.y[:, None] * depth
    if room.wall_top > -math.inf:
        plane[((y < room.wall_top) & (plane >= BACK)) | (plane == CEILING) | (depth > DEPTH_RANGE)] = SKY
    x *= depth
    z *= depth
    return Background(plane, depth, x, y, z)


def room_normals(room: Room, pitch: float) -> np.ndarray:
    """Unit normals of the planes in camera axes, [3, 6], the last one (sky) zero."""
    cos, sin = math.cos(room.yaw), math.sin(room.yaw)
    level = [[0, 0, sin, cos, -cos, 0], [-1, 1, 0, 0, 0, 0], [0, 0, -cos, sin, -sin, 0]]
    return to_camera(np.array(level, np.float32), pitch)


def cast_solids(solids: list[Solid], floor: float, rays: Rays, least: float, share: float) -> Hits:
    """Visible pixels of bodies with disjoint footprints.

    Bodies are taken front to back, by the power of the eye with respect to their footprints, the order in which any ray
    meets disjoint circles. One that shows fewer than `least` pixels or less than `share` of its own outline is not
    there at all; the first one always is.

    Args:
      solids: the bodies.
      floor: height of the eye above the floor, meters.
      rays: of the camera.
      least: pixels.
      share: between 0 and 1.
    """
    size = len(rays.x)
    _, numbers, row_of, column_of = _grid(size)
    # One pass over the candidate pixels of all round bodies, one over those of all boxes.
    order = sorted(range(len(solids)), key=lambda k: solids[k].shape == BOX)
    windows = [numbers[_outline(solids[k], floor, rays)].ravel() for k in order]
    counts = [len(w) for w in windows]
    pixel = np.concatenate(windows)
    row, column = row_of.take(pixel, mode="clip"), column_of.take(pixel, mode="clip")
    directions = np.empty((3, len(pixel)), np.float32)
    for out, values, place in zip(directions, rays[:3], (column, row, row), strict=True):
        values.take(place, mode="clip", out=out)
    hit, depth, face = cast([solids[k] for k in order], counts, floor, directions)

    found = np.flatnonzero(hit)
    stops = found.searchsorted(list(itertools.accumulate(counts))).tolist()
    parts = {k: found[start:stop] for k, start, stop in zip(order, [0, *stops], stops, strict=False)}
    free = np.ones(size * size, bool)
    kept, boxes, chosen = [], [], []
    for k in sorted(order, key=lambda k: solids[k].x ** 2 + solids[k].z ** 2 - solids[k].reach ** 2):
        part, outline = parts[k], len(parts[k])
        own = pixel.take(part, mode="clip")
        seen = free.take(own, mode="clip")
        visible = np.count_nonzero(seen)
        if not visible or (kept and visible < max(least, share * outline)):
            continue
        if visible < outline:
            part, own = part[seen], own[seen]
        free[own] = False
        across = column_of.take(own, mode="clip")
        boxes.append((across.min(), own[0] // size, across.max() + 1, own[-1] // size + 1))
        kept.append(k)
        chosen.append(part)
    counts = np.array([len(part) for part in chosen])
    chosen = np.concatenate(chosen)
    pixel, depth, face = (values.take(chosen, mode="clip") for values in (pixel, depth, face))
    point = directions.take(chosen, axis=1, mode="clip") * depth
    normal = surface_normals([solids[k] for k in kept], counts, floor, point, face)
    return Hits(pixel, depth, point, normal, counts, kept, np.array(boxes, np.float32))


def window(x: float, z: float, reach: float, top: float, bottom: float, rays: Rays) -> tuple[slice, slice]:
    """Rows and columns that an upright box in the level frame can reach: center, half side, and its two heights y.

    The bottom is below the eye; what comes closer than 10 cm is cut off.
    """
    cos, sin = math.cos(rays.pitch), math.sin(rays.pitch)
    near, far = max(0.1, z - reach), z + reach
    closest, farthest = max(0.1, top * sin + near * cos), bottom * sin + far * cos
    end = far if top > 0 else near
    high = (top * cos - end * sin) / max(0.1, top * sin + end * cos)
    low = (bottom * cos - near * sin) / (bottom * sin + near * cos)
    left = (x - reach) / (closest if x < reach else farthest)
    right = (x + reach) / (closest if x > -reach else farthest)
    size = len(rays.x)
    scale, middle = size / (2 * HALF_VIEW), size / 2
    return (
        slice(max(0, int(high * scale + middle)), max(0, int(low * scale + middle) + 1)),
        slice(max(0, int(left * scale + middle)), max(0, int(right * scale + middle) + 1)),
    )


def _outline(solid: Solid, floor: float, rays: Rays) -> tuple[slice, slice]:
    foot = floor - solid.lift
    return window(solid.x, solid.z, solid.reach, foot - solid.height, foot, rays)
