"""Exact analytic ray casting of a room with solids on its floor.

Level frame: origin at the eye, x right, y down, z forward along the floor; meters. Rays are scaled so that their
parameter is the depth along the optical axis of the camera, which is pitched below the horizon.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

SPHERE, BOX, CYLINDER, CONE = range(4)
CURVED, SIDE_X, SIDE_Z, TOP = range(4)  # faces of a body


class Solid(NamedTuple):
    """A body on the floor, meters: `half` extents before rotation by `yaw`, radians; for round bodies, the radius."""

    shape: int
    x: float
    z: float
    half: tuple[float, float]
    height: float
    yaw: float
    reach: float  # radius of the bounding circle on the floor
    lift: float = 0.0  # height of its base above the floor


def _quadric(solid: Solid, floor: float) -> tuple[float, float, float]:
    """(s, y of the center, R) of the surface x^2 + z^2 + s y^2 = R about the center; boxes use only the center."""
    radius, floor = solid.half[0], floor - solid.lift
    if solid.shape == SPHERE:
        return 1.0, floor - radius, radius**2
    if solid.shape == CONE:
        return -((radius / solid.height) ** 2), floor - solid.height, 0.0
    return 0.0, floor - solid.height / 2, radius**2


def cast(solids, counts, floor, directions):
    """Whether each candidate pixel's ray hits its body, at which depth and face; [M] each.

    Round bodies come first; `counts` is the number of candidate pixels per body.
    """
    rounds = sum(solid.shape != BOX for solid in solids)
    middle, count = sum(counts[:rounds]), directions.shape[1]
    hit, depth, face = np.empty(count, bool), np.empty(count, np.float32), np.zeros(count, np.intp)
    if rounds:
        hit[:middle], depth[:middle] = _cast_round(solids[:rounds], counts[:rounds], floor, directions[:, :middle])
    end = 0
    for solid, own in zip(solids[:rounds], counts, strict=False):
        part = slice(end, end := end + own)
        if solid.shape == CYLINDER and solid.height + solid.lift < floor:
            _cast_lid(solid, floor, directions[:, part], hit[part], depth[part], face[part])
    if rounds < len(solids):
        part = slice(middle, count)
        hit[part], depth[part], face[part] = _cast_box(solids[rounds:], counts[rounds:], floor, directions[:, part])
    return hit, depth, face


def _cast_round(solids, counts, floor, directions):
    """Hit and depth of spheres, cylinder sides and cones: the near root of a quadratic, between two heights."""
    table = []
    for solid in solids:
        s, y, radius2 = _quadric(solid, floor)
        rest = solid.x**2 + solid.z**2 + s * y**2 - radius2
        # Spheres need no height limits; a margin of one meter protects their poles from rounding.
        foot, spare = floor - solid.lift, solid.shape == SPHERE
        table.append((solid.x, s * y, solid.z, s, rest, foot - solid.height - spare, foot + spare))
    cx, sy, cz, s, c, top, bottom = np.repeat(np.array(table, np.float32).T, counts, axis=1)
    x, y, z = directions
    a = x * x + z * z + s * (y * y)
    b = x * cx + z * cz + y * sy
    inside = b * b - a * c
    depth = (b - np.sqrt(np.maximum(inside, 0))) / a
    height = depth * y
    return (inside > 0) & (height >= top) & (height <= bottom), depth


def _cast_lid(solid, floor, directions, hit, depth, face) -> None:
    """Adds the top of a cylinder below the eye, in place."""
    x, y, z = directions
    lid = (floor - solid.lift - solid.height) / np.maximum(y, 1e-6)
    across, along = lid * x - solid.x, lid * z - solid.z
    cap = across * across + along * along < solid.half[0] ** 2
    hit |= cap
    np.copyto(depth, lid, where=cap)
    face[cap] = TOP


def _cast_box(solids, counts, floor, directions):
    """Hit, depth and face of upright boxes: the three slabs."""
    table = []
    for solid in solids:
        cos, sin = math.cos(solid.yaw), math.sin(solid.yaw)
        u, w = cos * solid.x + sin * solid.z, cos * solid.z - sin * solid.x
        (a, b), foot = solid.half, floor - solid.lift
        table.append((cos, sin, u - a, u + a, w - b, w + b, foot - solid.height, foot))
    cos, sin, u0, u1, w0, w1, top, foot = np.repeat(np.array(table, np.float32).T, counts, axis=1)
    x, y, z = directions
    tiny = np.float32(1e-20)  # avoids division by zero for rays parallel to a slab
    u, v, w = 1 / (x * cos + z * sin + tiny), 1 / (y + tiny), 1 / (z * cos - x * sin + tiny)
    u0, u1, w0, w1, top, bottom = u0 * u, u1 * u, w0 * w, w1 * w, top * v, foot * v
    near_x, near_y = np.minimum(u0, u1), np.minimum(top, bottom)
    depth = np.maximum(np.maximum(near_x, np.minimum(w0, w1)), near_y)
    far = np.minimum(np.minimum(np.maximum(u0, u1), np.maximum(w0, w1)), np.maximum(top, bottom))
    face = np.where(depth == near_y, TOP, np.where(depth == near_x, SIDE_X, SIDE_Z))
    return depth < far, depth, face


def surface_normals(solids, counts, floor, point, face):
    """Outward unit normals [3, N] at visible points [3, N]."""
    centers, flat = [], []
    for solid in solids:
        s, y, _ = _quadric(solid, floor)
        centers.append((solid.x, y, solid.z, s))
        cos, sin = math.cos(solid.yaw), math.sin(solid.yaw)
        u = -math.copysign(1, cos * solid.x + sin * solid.z)  # sides that face the eye
        w = -math.copysign(1, cos * solid.z - sin * solid.x)
        flat += [(0, 0, 0), (u * cos, 0, u * sin), (-w * sin, 0, w * cos), (0, -1, 0)]  # in the order of the faces
    table = np.repeat(np.array(centers, np.float32).T, counts, axis=1)
    normal = point - table[:3]
    normal[1] *= table[3]
    x, y, z = normal
    normal /= np.sqrt(x * x + y * y + z * z) + 1e-12
    plane = face.nonzero()[0]
    if len(plane):
        which = (face + np.repeat(np.arange(0, len(flat), 4), counts))[plane]
        for out, values in zip(normal, np.array(flat, np.float32).T, strict=True):
            out[plane] = values[which]
    return normal


HALF_VIEW = 0.6  # tangent of half the field of view, for all pictures
FLOOR, CEILING, BACK, LEFT, RIGHT, SKY = range(6)
DEPTH_RANGE = 60.0  # meters; anything beyond is sky


class Rays(NamedTuple):
    """Level-frame directions per unit of depth, float32: `x` [S] over columns, `y` and `z` [S] over rows."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    pitch: float


class Room(NamedTuple):
    """Distances of the planes from the eye, meters, rotated by `yaw`, radians; `wall_top` is y of the walls' top.

    `shift` is the eye's position along the room's x and z axes, so that textures stay in place when the eye moves.
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
    """The empty room, [S, S] each: visible plane, its depth, and the point in the room's axes, meters."""

    plane: np.ndarray
    depth: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


class Hits(NamedTuple):
    """Visible pixels of all bodies, body by body, front to back: N pixels of K bodies.

    Attributes:
      pixel: [N], row * S + column.
      depth: [N], meters.
      point: [3, N], level frame, meters.
      normal: [3, N], unit, level frame, outward.
      counts: [K], pixels of each body.
      kept: [K], index of each body in the input list.
      boxes: float32 [K, 4], bounding boxes of their visible pixels, x0 y0 x1 y1, pixels.
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
    """Rays through the centers of size x size pixels for a camera pitched `pitch` radians below the horizon."""
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
    """Casts the empty room: the visible plane has the largest inverse depth, since the room is convex."""
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
    """Unit normals of the planes in camera axes, [3, 6]; 0 for the sky."""
    cos, sin = math.cos(room.yaw), math.sin(room.yaw)
    level = [[0, 0, sin, cos, -cos, 0], [-1, 1, 0, 0, 0, 0], [0, 0, -cos, sin, -sin, 0]]
    return to_camera(np.array(level, np.float32), pitch)


def cast_solids(solids: list[Solid], floor: float, rays: Rays, least: float, share: float) -> Hits:
    """Visible pixels of bodies with disjoint footprints.

    Bodies are processed front to back, by the power of the eye with respect to their footprints, which is the order in
    which any ray hits disjoint circles. A body with fewer than `least` visible pixels, or less than `share` of its
    outline, is dropped, except for the first.

    Args:
      solids: the bodies.
      floor: height of the eye above the floor, meters.
      rays: of the camera.
      least: pixels.
      share: between 0 and 1.
    """
    size = len(rays.x)
    _, numbers, row_of, column_of = _grid(size)
    # One pass over the candidate pixels of all round bodies, and one over those of all boxes.
    order = sorted(range(len(solids)), key=lambda k: solids[k].shape == BOX)
    windows = [numbers[_outline(solids[k], floor, rays)].ravel() for k in order]
    counts = [len(w) for w in windows]
    pixel = np.concatenate(windows)
    row, column = row_of.take(pixel, mode="clip"), column_of.take(pixel, mode="clip")
    directions = np.empty((3, len(pixel)), np.float32)
    for out, values, place in zip(directions, rays[:3], (column, row, row), strict=True):
        values.take(place, mode="clip", out=out)
    hit, depth, face = cast([solids[k] for k in order], counts, floor, directions)

    hits = np.flatnonzero(hit)
    stops = hits.searchsorted(list(itertools.accumulate(counts))).tolist()
    parts = {k: hits[start:stop] for k, start, stop in zip(order, [0, *stops], stops, strict=False)}
    free = np.ones(size * size, bool)
    kept, boxes, chosen = [], [], []
    for k in sorted(order, key=lambda k: solids[k].x ** 2 + solids[k].z ** 2 - solids[k].reach ** 2):
        part, outline = parts[k], len(parts[k])
        own = pixel.take(part, mode="clip")
        free_own = free.take(own, mode="clip")
        visible = np.count_nonzero(free_own)
        if not visible or (kept and visible < max(least, share * outline)):
            continue
        if visible < outline:
            part, own = part[free_own], own[free_own]
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
    """Rows and columns covered by an upright box in the level frame, given its center, half side, and top and bottom y.

    The bottom is below the eye; parts closer than 10 cm are clipped.
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
