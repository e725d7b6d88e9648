"""Exact ray casting of a room with solids standing on its floor: the geometry behind `must.data.scenes`.

Level frame: origin at the eye, x right, y down, z forward along the floor; metres. A ray is scaled so that its parameter
is the depth along the camera's optical axis, which is pitched below the horizon. Every intersection is analytic.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

SPHERE, BOX, CYLINDER, CONE = range(4)
HALF_VIEW = 0.6  # tangent of half the field of view: one focal length for all pictures
FLOOR, CEILING, BACK, LEFT, RIGHT, SKY = range(6)
CURVED = 0
FLAT_NORMALS = 4  # per solid: unused, then the box's two side directions and the top
DEPTH_RANGE = 60.0  # metres; anything beyond counts as sky


class Rays(NamedTuple):
    """Level-frame directions per unit of depth, float32: `x` [S] over columns, `y` and `z` [S] over rows."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    pitch: float


class Room(NamedTuple):
    """Distances of the planes from the eye, metres; turned by `yaw`, radians; `wall_top` is y where the walls end."""

    floor: float
    ceiling: float
    back: float
    left: float
    right: float
    yaw: float
    wall_top: float = -math.inf


class Solid(NamedTuple):
    """A body on the floor: `half` extents (x, z) before the turn by `yaw`; equal ones are the radius of a round body."""

    shape: int
    x: float
    z: float
    half: tuple[float, float]
    height: float
    yaw: float = 0.0

    @property
    def reach(self) -> float:
        """Radius of the circle on the floor that holds the body, metres."""
        return math.hypot(*self.half) if self.shape == BOX else self.half[0]


class Background(NamedTuple):
    """The empty room, [S, S] each: which plane, its depth, and the point hit in the room's own axes."""

    plane: np.ndarray
    depth: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


class Hits(NamedTuple):
    """Visible pixels of all solids, concatenated: N pixels.

    Attributes:
      pixel: [N], row * S + column.
      owner: [N], position in `solids`.
      depth: [N], metres.
      point: [3, N], level frame, metres.
      local: [3, N], from the body's centre, in its own turned axes, metres.
      normal: [3, N], unit, level frame, outward.
      solids: the bodies that can be seen, front to back.
      boxes: [K, 4], tight hulls of their visible pixels, x0 y0 x1 y1, pixels.
    """

    pixel: np.ndarray
    owner: np.ndarray
    depth: np.ndarray
    point: np.ndarray
    local: np.ndarray
    normal: np.ndarray
    solids: list[Solid]
    boxes: np.ndarray


@functools.lru_cache(8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image-plane coordinates of the pixel centres [S], and the pixel numbers [S, S]."""
    return (
        ((np.arange(size) + 0.5) * 2 / size - 1) * HALF_VIEW,
        np.arange(size * size).reshape(size, size),
    )


def make_rays(size: int, pitch: float) -> Rays:
    """Rays through the centres of size x size pixels of a camera that looks `pitch` radians below the horizon."""
    offset, _ = _grid(size)
    cos, sin = math.cos(pitch), math.sin(pitch)
    return Rays(
        offset.astype(np.float32), (offset * cos + sin).astype(np.float32), (cos - offset * sin).astype(np.float32), pitch
    )


def to_camera(vectors: np.ndarray, pitch: float) -> np.ndarray:
    """Level frame [3, ...] -> camera axes (x right, y down, z forward)."""
    cos, sin = np.float32(math.cos(pitch)), np.float32(math.sin(pitch))
    x, y, z = vectors
    return np.stack([x, y * cos - z * sin, y * sin + z * cos])


def cast_room(room: Room, rays: Rays) -> Background:
    """What the empty room shows: the plane with the largest inverse depth, as the room is convex."""
    cos, sin = np.float32(math.cos(room.yaw)), np.float32(math.sin(room.yaw))
    x = rays.x * cos + (rays.z * sin)[:, None]
    z = rays.x * -sin + (rays.z * cos)[:, None]
    level = np.maximum(rays.y / np.float32(room.floor), rays.y / np.float32(-room.ceiling))
    inverse = np.repeat(level[:, None], len(rays.x), 1)
    plane = np.repeat(np.where(rays.y > 0, FLOOR, CEILING)[:, None], len(rays.x), 1)
    for name, direction, distance in ((BACK, z, room.back), (LEFT, x, -room.left), (RIGHT, x, room.right)):
        candidate = direction * np.float32(1 / distance)
        np.copyto(plane, name, where=candidate > inverse)
        np.maximum(inverse, candidate, out=inverse)
    depth = np.reciprocal(inverse)
    y = rays.y[:, None] * depth
    if room.wall_top > -math.inf:
        plane[((y < room.wall_top) & (plane >= BACK)) | (plane == CEILING) | (depth > DEPTH_RANGE)] = SKY
    return Background(plane, depth, x * depth, y, z * depth)


def room_normals(room: Room, pitch: float) -> np.ndarray:
    """Unit normals of the planes in camera axes, [6, 3], the last one (sky) zero."""
    cos, sin = math.cos(room.yaw), math.sin(room.yaw)
    level = [[0, -1, 0], [0, 1, 0], [sin, 0, -cos], [cos, 0, sin], [-cos, 0, -sin], [0, 0, 0]]
    return np.ascontiguousarray(to_camera(np.array(level, np.float32).T, pitch).T)


def cast_solids(solids: list[Solid], floor: float, rays: Rays, least: float, share: float) -> Hits:
    """Visible pixels of bodies with disjoint footprints.

    Bodies are taken front to back, by the power of the eye with respect to their footprints, the order in which any ray
    meets disjoint circles. One that shows fewer than `least` pixels or less than `share` of its own outline is not
    there at all; the first one always is.

    Args:
      solids: the bodies.
      floor: height of the eye above the floor, metres.
      rays: of the camera.
      least: pixels.
      share: between 0 and 1.
    """
    size = len(rays.x)
    _, numbers = _grid(size)
    free = np.ones((size, size), bool)
    kept, boxes, pixels, depths, faces = [], [], [], [], []
    for solid in sorted(solids, key=lambda s: s.x**2 + s.z**2 - s.reach**2):
        rows, columns = window(solid.x, solid.z, solid.reach, floor - solid.height, floor, rays)
        part = Rays(rays.x[columns], rays.y[rows], rays.z[rows], rays.pitch)
        if not (part.x.size and part.y.size):
            continue
        hit, depth, face = (_cast_box if solid.shape == BOX else _cast_round)(solid, floor, part)
        outline = np.count_nonzero(hit)
        hit &= free[rows, columns]
        visible = np.count_nonzero(hit)
        if not visible or (kept and visible < max(least, share * outline)):
            continue
        free[rows, columns] &= ~hit
        across, down = hit.any(0).nonzero()[0], hit.any(1).nonzero()[0]
        x, y = columns.start, rows.start
        boxes.append((x + across[0], y + down[0], x + across[-1] + 1, y + down[-1] + 1))
        pixels.append(numbers[rows, columns][hit])
        depths.append(depth[hit])
        faces.append(face[hit] + FLAT_NORMALS * len(kept))
        kept.append(solid)
    owner = np.repeat(np.arange(len(kept)), [len(p) for p in pixels])
    pixel, depth, face = np.concatenate(pixels), np.concatenate(depths), np.concatenate(faces)
    point, local, normal = _surface(kept, floor, rays, pixel, owner, depth, face)
    return Hits(pixel, owner, depth, point, local, normal, kept, np.array(boxes, np.float32))


def window(x: float, z: float, reach: float, top: float, bottom: float, rays: Rays) -> tuple[slice, slice]:
    """Rows and columns that an upright box in the level frame can reach: centre, half side, and its two heights y."""
    cos, sin = math.cos(rays.pitch), math.sin(rays.pitch)
    us, vs = [], []
    for y in (top, bottom):
        for end in (max(0.1, z - reach), z + reach):
            depth = max(0.1, y * sin + end * cos)
            vs.append((y * cos - end * sin) / depth)
            us += [(x - reach) / depth, (x + reach) / depth]
    size = len(rays.x)
    spans = []
    for values in (vs, us):
        low, high = ((v / HALF_VIEW + 1) * size / 2 for v in (min(values), max(values)))
        spans.append(slice(min(size, max(0, int(low))), min(size, max(0, int(high) + 1))))
    return spans[0], spans[1]


def _quadric(solid: Solid, floor: float) -> tuple[float, float, float]:
    """(s, height of the centre's y, R) of x^2 + z^2 + s y^2 = R about the centre."""
    top, radius = floor - solid.height, solid.half[0]
    if solid.shape == SPHERE:
        return 1.0, floor - radius, radius**2
    if solid.shape == CYLINDER:
        return 0.0, floor - solid.height / 2, radius**2
    return -((radius / solid.height) ** 2), top, 0.0


def _cast_round(solid: Solid, floor: float, rays: Rays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hit, depth and face [h, w] of a sphere, cylinder or cone: the near root of one quadratic, between two heights."""
    s, y, radius2 = _quadric(solid, floor)
    top = floor - solid.height
    rx, ry, rz = rays.x, rays.y, rays.z
    f = np.float32
    a = rx * rx + (rz * rz + f(s) * ry * ry)[:, None]
    b = rx * f(solid.x) + (rz * f(solid.z) + f(s * y) * ry)[:, None]
    c = f(solid.x**2 + solid.z**2 + s * y**2 - radius2)
    inside = b * b - a * c
    depth = (b - np.sqrt(np.maximum(inside, 0))) / a
    hit = inside > 0
    if solid.shape != SPHERE:
        height = depth * ry[:, None]
        hit &= (height >= f(top)) & (height <= f(floor))
    face = np.zeros(hit.shape, np.intp)
    if solid.shape == CYLINDER and top > 0:
        lid = f(top) / np.maximum(ry, f(1e-6))  # the rows that look down upon the lid's plane
        cap = (lid[:, None] * rx - f(solid.x)) ** 2 + ((lid * rz - f(solid.z)) ** 2)[:, None] < f(radius2)
        hit |= cap
        np.copyto(depth, lid[:, None], where=cap)
        face[cap] = 3
    return hit, depth, face


def _cast_box(solid: Solid, floor: float, rays: Rays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hit, depth and face [h, w] of an upright box: the three slabs."""
    f = np.float32
    cos, sin = math.cos(solid.yaw), math.sin(solid.yaw)
    centers = (cos * solid.x + sin * solid.z, cos * solid.z - sin * solid.x)
    directions = (rays.x * f(cos) + (rays.z * f(sin))[:, None], rays.x * f(-sin) + (rays.z * f(cos))[:, None])
    nears, fars = [], []
    for center, half, direction in zip(centers, solid.half, directions, strict=True):
        inverse = np.reciprocal(np.where(direction == 0, f(1e-12), direction))
        first, second = f(center - half) * inverse, f(center + half) * inverse
        nears.append(np.minimum(first, second))
        fars.append(np.maximum(first, second))
    inverse = np.reciprocal(np.where(rays.y == 0, f(1e-12), rays.y))
    ends = f(floor - solid.height) * inverse, f(floor) * inverse
    near_y, far_y = np.minimum(*ends)[:, None], np.maximum(*ends)[:, None]
    depth = np.maximum(np.maximum(nears[0], nears[1]), near_y)
    hit = (depth < np.minimum(np.minimum(fars[0], fars[1]), far_y)) & (depth > 0)
    face = np.where(depth == near_y, 3, np.where(depth == nears[0], 1, 2))
    return hit, depth, face


def _surface(solids, floor, rays, pixel, owner, depth, face):
    """Points, points in the bodies' own axes, and outward normals of the visible pixels, [3, N] each."""
    rows, columns = np.divmod(pixel, len(rays.x))
    point = np.stack([rays.x[columns] * depth, rays.y[rows] * depth, rays.z[rows] * depth])
    table = np.empty((5, len(solids)), np.float32)
    flat = np.zeros((3, FLAT_NORMALS * len(solids)), np.float32)
    for i, solid in enumerate(solids):
        s, y, _ = (1.0, floor - solid.height / 2, 0.0) if solid.shape == BOX else _quadric(solid, floor)
        cos, sin = math.cos(solid.yaw), math.sin(solid.yaw)
        table[:, i] = solid.x, y, solid.z, s, 0
        toward = [-math.copysign(1, cos * solid.x + sin * solid.z), -math.copysign(1, cos * solid.z - sin * solid.x)]
        flat[:, FLAT_NORMALS * i + 1] = toward[0] * cos, 0, toward[0] * sin
        flat[:, FLAT_NORMALS * i + 2] = -toward[1] * sin, 0, toward[1] * cos
        flat[:, FLAT_NORMALS * i + 3] = 0, -1, 0
    x, y, z, s, _ = table.take(owner, axis=1)
    offset = point - (x, y, z)
    normal = offset.copy()
    normal[1] *= s
    normal /= np.sqrt((normal * normal).sum(0)) + np.float32(1e-12)
    plane = face % FLAT_NORMALS != CURVED
    normal[:, plane] = flat[:, face[plane]]
    turns = np.array([(math.cos(b.yaw), math.sin(b.yaw)) for b in solids], np.float32).T
    cos, sin = turns.take(owner, axis=1)
    local = np.stack([cos * offset[0] + sin * offset[2], offset[1], cos * offset[2] - sin * offset[0]])
    return point, local, normal
