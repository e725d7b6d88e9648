"""Color for the geometry of `must.scenes.raycast`: textures, lights, shadows, sensor noise."""

import colorsys
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from must.scenes.raycast import CEILING, FLOOR, LEFT, SKY, Background, Hits, Rays, Room, Solid, window

MATTE, PATTERNED, METALLIC = range(3)
TEXELS_PER_METER = 16
_TILE = 64  # texels; textures repeat after 4 m
FALLOFF = 0.08  # of a lamp, per square meter
GLOSS = (0.06, 0.12, 0.9)  # strength of the highlight, by material
_NOISE = 1 << 20  # size of the noise table


class Paint(NamedTuple):
    """A body's surface: linear RGB of both tones; frequency (per meter) and phase of the pattern along its axes."""

    material: int
    color: tuple[float, float, float]
    second: tuple[float, float, float]
    frequency: tuple[float, float, float]
    phase: tuple[float, float, float]


class Lighting(NamedTuple):
    """One light: a lamp at `position` (level frame, meters) or a sun in that direction; `tint` is its linear RGB."""

    position: tuple[float, float, float]
    sun: bool
    strength: float
    ambient: float
    tint: tuple[float, float, float]


class Decor(NamedTuple):
    """The surroundings and the sensor.

    Attributes:
      albedo: [6][3], linear RGB of the planes in the order of `raycast`.
      textures: [6], index of each plane's texture.
      contrast: of the textures, 0 to 1.
      horizon: linear RGB of the sky above the walls.
      zenith: linear RGB of the sky at the top.
      noise: standard deviation, gray levels of 255.
      grain: 0 to 1, selects the noise.
    """

    albedo: list[tuple[float, float, float]]
    textures: list[int]
    contrast: float
    horizon: tuple[float, float, float]
    zenith: tuple[float, float, float]
    noise: float
    grain: float


@functools.lru_cache(1)
def _textures() -> np.ndarray:
    """All textures in the order of `TEXTURES`, concatenated, _TILE x _TILE texels each; float32 in [-1, 1]."""
    rng = np.random.Generator(np.random.Philox(key=1))
    y, x = np.mgrid[:_TILE, :_TILE]
    out = []
    for _ in range(4):
        cloud = sum(np.kron(rng.uniform(-1, 1, (n, n)), np.ones((_TILE // n,) * 2)) for n in (8, 16, 32, 64))
        out.append(cloud)
    for side in (8, 16):
        tone = np.kron(rng.uniform(-0.3, 0.3, (_TILE // side,) * 2), np.ones((side, side)))
        out.append(tone + np.where((x % side == 0) | (y % side == 0), -1, 0.3))
        out.append(tone + np.where((x // side + y // side) % 2, 0.7, -0.7))
    for width in (4, 8):
        shift = rng.integers(0, _TILE, _TILE // width)[x // width]
        tone = rng.uniform(-0.7, 0.7, (_TILE // width, 2))[x // width, ((y + shift) // 32) % 2]
        out.append(tone + np.where((x % width == 0) | ((y + shift) % 32 == 0), -0.5, 0.1))
    for width, height in ((8, 4), (16, 8)):
        moved = x + (y // height % 2) * width // 2
        tone = rng.uniform(-0.4, 0.4, (_TILE // height, _TILE // width))[y // height, moved % _TILE // width]
        out.append(tone + np.where((moved % width == 0) | (y % height == 0), 0.8, -0.2))
    for width in (4, 8):
        out.append(np.where(x // width % 2, 0.6, -0.6) + rng.uniform(-0.2, 0.2, x.shape))
        out.append(np.where(x // width % 2, 0.6, -0.6) * np.where(y // 8 % 2, 1, 0.4))
    stack = np.stack(out)
    stack -= stack.mean((1, 2), keepdims=True)
    return (stack / np.abs(stack).max((1, 2), keepdims=True)).astype(np.float32).ravel()


TEXTURES = {"cloud": (0, 4), "tile": (4, 8), "plank": (8, 10), "brick": (10, 12), "stripe": (12, 16)}


@functools.lru_cache(1)
def _noise() -> np.ndarray:
    """Standard normal numbers, float32; a picture's noise is a slice of them at a random offset."""
    return np.random.Generator(np.random.Philox(key=2)).standard_normal(_NOISE, np.float32)


def linear(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """Linear RGB (display gamma 2) of a color given by hue, saturation and value, 0 to 1 each; hue wraps."""
    return tuple(c * c for c in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def shade(
    room: Room,
    background: Background,
    solids: list[Solid],
    hits: Hits,
    paints: list[Paint],
    light: Lighting,
    decor: Decor,
    rays: Rays,
    unseen: Sequence[Solid] = (),
) -> np.ndarray:
    """Shades the picture, uint8 [S, S, 3].

    `solids` and `paints` are those of `hits`, in its order; `unseen` bodies only cast shadows.
    """
    size = len(rays.x)
    rgb = _shade_room(room, background, [*solids, *unseen], light, decor, rays).reshape(3, -1)
    for channel, values in zip(rgb, _shade_solids(hits, solids, paints, light, room.floor), strict=True):
        channel[hits.pixel] = values
    np.sqrt(rgb, out=rgb)
    rgb *= 255
    start = int(decor.grain * (_NOISE - rgb.size))
    rgb += _noise()[start : start + rgb.size].reshape(rgb.shape) * decor.noise
    np.clip(rgb, 0, 255, out=rgb)
    image = np.empty((size, size, 3), np.uint8)
    for k in range(3):
        image.reshape(-1, 3)[:, k] = rgb[k]
    return image


def _shade_room(room: Room, background: Background, solids: list[Solid], light: Lighting, decor: Decor, rays: Rays):
    """Linear RGB of the room with soft shadows of the bodies, float32 [3, S, S]."""
    plane, _, x, y, z = background
    cos, sin = math.cos(room.yaw), math.sin(room.yaw)
    lx, ly, lz = light.position
    mx, mz = lx * cos + lz * sin, lz * cos - lx * sin  # the light in the room's axes
    if light.sun:
        facing = (-ly, ly, -mz, mx, -mx, 0)
        bright = _pick([light.ambient + light.strength * max(0.0, c) for c in facing], plane)
    else:
        away = (room.floor - ly, ly + room.ceiling, room.back - mz, mx + room.left, room.right - mx, 0)
        bright = _pick([light.strength * max(0.0, d) for d in away], plane)
        dx, dy, dz = x - mx, y - ly, z - mz
        bright /= _reach(dx * dx + dy * dy + dz * dz)
        bright += light.ambient
    on_floor = plane == FLOOR
    for solid in solids:
        _shadow(bright, on_floor, solid, light, room.floor, rays)
    sx, sz = room.shift
    if sx or sz:
        x, z = x + sx, z + sz
    across, along = np.where(plane >= LEFT, z, x), np.where(plane <= CEILING, z, y)
    texel = _texel(along) * _TILE
    texel |= _texel(across)
    texel = texel + np.array([k * _TILE * _TILE for k in decor.textures]).take(plane, mode="clip")
    pattern = _textures().take(texel, mode="clip")
    pattern *= decor.contrast
    pattern += 1
    bright *= pattern
    rgb = np.empty((3, *plane.shape), np.float32)
    for channel, colors, tint in zip(rgb, zip(*decor.albedo, strict=True), light.tint, strict=True):
        np.multiply(_pick([color * tint for color in colors], plane), bright, out=channel)
    if room.wall_top > -math.inf:
        sky = plane == SKY
        fade = np.clip(1 + rays.y * 3, 0, 1)[:, None]
        for channel, low, high in zip(rgb, decor.horizon, decor.zenith, strict=True):
            np.copyto(channel, high + (low - high) * fade, where=sky)
    return rgb


def _pick(values: list[float], index: np.ndarray) -> np.ndarray:
    return np.array(values, np.float32).take(index, mode="clip")


def _texel(meters: np.ndarray) -> np.ndarray:
    return (meters * TEXELS_PER_METER + 64 * _TILE).astype(np.int32) & (_TILE - 1)


def _reach(square: np.ndarray) -> np.ndarray:
    """Divisor of a lamp's light by squared distance [...], square meters: distance (Lambert's cosine) times falloff."""
    return np.sqrt(square) * (1 + FALLOFF * square)


def _shadow(bright, on_floor, solid, light, floor, rays) -> None:
    """Darkens the floor, in place, in a soft ellipse under the body, elongated away from the light."""
    lx, ly, lz = light.position
    dx, dz = (-lx, -lz) if light.sun else (solid.x - lx, solid.z - lz)
    level = math.hypot(dx, dz) + 1e-6
    ex, ez = dx / level, dz / level
    slope = level / -ly if light.sun else level / max(0.3, floor - ly - solid.height)
    stretch, radius = min(1.2, 0.5 * solid.height * slope), solid.reach * 1.05
    cx, cz = solid.x + ex * stretch, solid.z + ez * stretch
    rows, columns = window(cx, cz, (radius + stretch) * 1.1, floor, floor, rays)
    # On the floor, z is constant along a row, and x is the row's depth times the column's direction.
    depth = (floor / np.maximum(rays.y[rows], 1e-3))[:, None]
    z, x = depth * rays.z[rows, None] - cz, rays.x[columns]
    ax, az, bx, bz = ex / (radius + stretch), ez / (radius + stretch), ez / radius, -ex / radius
    along = (depth * ax) * x
    along += z * az - cx * ax
    aside = (depth * bx) * x
    aside += z * bz - cx * bx
    along *= along
    aside *= aside
    along += aside
    strength = 0.75 * light.strength / (light.strength + light.ambient)
    along *= 2 * strength
    along += 1 - 2.4 * strength
    np.clip(along, 1 - strength, 1, out=along)
    part = bright[rows, columns]
    np.multiply(part, along, out=part, where=on_floor[rows, columns])


def _shade_solids(hits: Hits, solids: list[Solid], paints: list[Paint], light: Lighting, floor: float) -> np.ndarray:
    """Linear RGB of the bodies' visible pixels, float32 [3, N]: Lambert, Phong highlights, room reflections."""
    normal, point = hits.normal, hits.point
    position = np.array(light.position, np.float32)[:, None]
    if light.sun:
        lit, strength, toward = (normal * position).sum(0), light.strength, position
    else:
        toward = position - point
        square = (toward * toward).sum(0)
        lit = (normal * toward).sum(0) / np.sqrt(square)
        strength = light.strength / (1 + FALLOFF * square)
        toward /= np.sqrt(square)
    lit = np.maximum(lit, 0)
    lit *= strength
    view = point / np.sqrt((point * point).sum(0))
    mirrored = view - normal * (2 * (view * normal).sum(0))
    shine = np.maximum((mirrored * toward).sum(0), 0)
    for _ in range(4):  # exponent 16
        shine *= shine
    table = np.array([(*p.color, GLOSS[p.material]) for p in paints], np.float32).T
    table[:3] *= np.array(light.tint, np.float32)[:, None]
    albedo = np.repeat(table, hits.counts, axis=1)
    shine *= albedo[3]
    shine *= strength
    albedo = albedo[:3]
    bright = lit + light.ambient * (0.8 - 0.2 * normal[1])
    end = 0
    for solid, paint, count in zip(solids, paints, hits.counts.tolist(), strict=True):
        part = slice(end, end := end + count)
        if paint.material == METALLIC:
            room = _mirrored_room(mirrored[:, part])
            room *= light.ambient + 0.5 * (strength if light.sun else strength[part])
            bright[part] = room + 0.3 * lit[part]
        elif paint.material == PATTERNED:
            second = _pattern(paint, solid, floor, point[:, part])
            for channel, color, tint in zip(albedo, paint.second, light.tint, strict=True):
                np.copyto(channel[part], color * tint, where=second)
    albedo *= bright
    albedo += shine
    return albedo


def _mirrored_room(direction: np.ndarray) -> np.ndarray:
    """Brightness of the reflected room along [3, n]: dark floor, light ceiling, bright windows all around."""
    azimuth = direction[0] * 2.2
    windows = np.abs(azimuth - np.floor(azimuth) - 0.5) < 0.17
    ceiling = np.minimum(np.maximum(0.5 - 2 * direction[1], 0.05), 1.3)
    return ceiling + windows * np.where(direction[1] < 0, np.float32(1), np.float32(0.6))


def _pattern(paint: Paint, solid: Solid, floor: float, point: np.ndarray) -> np.ndarray:
    """Whether a checkered or striped body has its second tone at `point` [3, n]; bool [n]."""
    cos, sin = math.cos(solid.yaw), math.sin(solid.yaw)
    fx, fy, fz = paint.frequency
    px, py, pz = paint.phase
    cells = np.floor((point[1] - (floor - solid.lift)) * fy + py)
    if fx or fz:
        x, z = point[0] - solid.x, point[2] - solid.z
        cells = cells + np.floor(x * (cos * fx) + z * (sin * fx) + px) + np.floor(z * (cos * fz) - x * (sin * fz) + pz)
    return (cells.astype(np.int32) & 1).astype(bool)
