"""The bodies of `must.scenes.still` and where rays meet them; everything is analytic.

Level frame: origin at the eye, x right, y down, z forward along the floor; meters. Directions are [3, M], one ray per
column; solving many rays and bodies in one pass keeps NumPy's cost per call small.
"""

import math
from typing import NamedTuple

import numpy as np

SPHERE, BOX, CYLINDER, CONE = range(4)
CURVED, SIDE_X, SIDE_Z, TOP = range(4)  # faces of a body


class Solid(NamedTuple):
    """A body on the floor, meters: `half` extents before the turn by `yaw`, radians; a round body's are its radius."""

    shape: int
    x: float
    z: float
    half: tuple[float, float]
    height: float
    yaw: float
    reach: float  # radius of the circle on the floor that holds the body
    lift: float = 0.0  # of its foot above the floor


def _quadric(solid: Solid, floor: float) -> tuple[float, float, float]:
    """(s, y of the center, R) of the surface x^2 + z^2 + s y^2 = R about the center; a box has only a center."""
    radius, floor = solid.half[0], floor - solid.lift
    if solid.shape == SPHERE:
        return 1.0, floor - radius, radius**2
    if solid.shape == CONE:
        return -((radius / solid.height) ** 2), floor - solid.height, 0.0
    return 0.0, floor - solid.height / 2, radius**2


def cast(solids, counts, floor, directions):
    """Whether the ray of each candidate pixel meets its body, at which depth and face; [M] each.

    Round bodies come first; `counts` says how many candidates belong to each body.
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
    """Hit and depth of spheres, cylinders' sides and cones: the near root of one quadratic, between two heights."""
    table = []
    for solid in solids:
        s, y, radius2 = _quadric(solid, floor)
        rest = solid.x**2 + solid.z**2 + s * y**2 - radius2
        # A sphere is cut by no height; one meter of room keeps its poles safe from rounding.
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
    """Adds a cylinder's lid, seen from above, in place."""
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
    tiny = np.float32(1e-20)  # a ray parallel to a slab is as good as one that meets it at the end of the world
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
        u = -math.copysign(1, cos * solid.x + sin * solid.z)  # the sides that face the eye
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
