"""Colour for the geometry of `must.data.raycast`: textures, lights, shadows, sensor noise. Pictures only, no labels."""

import colorsys
import functools
import math
from typing import NamedTuple

import numpy as np

from must.data.raycast import BACK, CEILING, FLOOR, LEFT, SKY, Background, Hits, Rays, Room, Solid, window

MATTE, PATTERNED, METALLIC = range(3)
TEXELS_PER_METRE = 16
_TILE = 64  # texels; textures repeat after 4 m
FALLOFF = 0.08  # of a lamp, per square metre


class Paint(NamedTuple):
    """One body's surface: linear RGB of both tones, and the pattern's frequency (per metre) and phase along its axes."""

    material: int
    color: tuple[float, float, float]
    second: tuple[float, float, float]
    frequency: tuple[float, float, float]
    phase: tuple[float, float, float]


class Lighting(NamedTuple):
    """One light: a lamp at `position` (level frame, metres) or a sun in that direction; `tint` is its linear RGB."""

    position: tuple[float, float, float]
    sun: bool
    strength: float
    ambient: float
    tint: tuple[float, float, float]


class Decor(NamedTuple):
    """The surroundings and the sensor.

    Attributes:
      albedo: [6][3], linear RGB of the planes in the order of `raycast`.
      textures: [6], number of each plane's texture.
      contrast: of the textures, 0 to 1.
      horizon: linear RGB of the sky above the walls.
      zenith: linear RGB of the sky at the top.
      noise: standard deviation, grey levels of 255.
      grain: 0 to 1, picks the noise.
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
    """All textures, flat float32, values within [-1, 1], _TILE x _TILE texels each: clouds, tiles, planks, bricks, stripes."""
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
    """Standard normal numbers, float32; a picture's noise is a run of them from a drawn place."""
    return np.random.Generator(np.random.Philox(key=2)).standard_normal(1 << 20, np.float32)


def linear(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """Linear RGB (display gamma 2) of a colour given by hue, saturation and value, 0 to 1 each; hue wraps."""
    return tuple(c * c for c in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def shade(
    room: Room, background: Background, hits: Hits, paints: list[Paint], light: Lighting, decor: Decor, rays: Rays
) -> np.ndarray:
    """The picture, uint8 [S, S, 3]; `paints` go with `hits.solids`."""
    size = len(rays.x)
    rgb = _shade_room(room, background, hits.solids, light, decor, rays).reshape(3, -1)
    rgb[:, hits.pixel] = _shade_solids(hits, paints, light)
    np.maximum(rgb, 0, out=rgb)
    np.sqrt(rgb, out=rgb)
    rgb *= 255
    noise = _noise()
    count = 3 * size * size
    start = int(decor.grain * max(1, len(noise) - count))
    rgb += np.resize(noise[start : start + count], count).reshape(3, -1) * np.float32(decor.noise)
    np.maximum(rgb, 0, out=rgb)
    np.minimum(rgb, 255, out=rgb)
    image = np.empty((size, size, 3), np.uint8)
    for channel in range(3):
        image[..., channel] = rgb[channel].reshape(size, size)
    return image


def _shade_room(room: Room, background: Background, solids: list[Solid], light: Lighting, decor: Decor, rays: Rays):
    """Linear RGB of the empty room with the bodies' soft shadows, float32 [3, S, S]."""
    f = np.float32
    plane, _, x, y, z = background
    cos, sin = math.cos(room.yaw), math.sin(room.yaw)
    lx, ly, lz = light.position
    lamp = (lx * cos + lz * sin, ly, lz * cos - lx * sin)
    if light.sun:
        facing = [-ly, ly, -lamp[2], lamp[0], -lamp[0], 0]
        bright = np.array([light.ambient + light.strength * max(0.0, c) for c in facing], f).take(plane, mode="clip")
    else:
        away = [room.floor - ly, ly + room.ceiling, room.back - lamp[2], lamp[0] + room.left, room.right - lamp[0], 0]
        square = (x - f(lamp[0])) ** 2 + (y - f(ly)) ** 2
        square += (z - f(lamp[2])) ** 2
        bright = np.array([light.strength * max(0.0, d) for d in away], f).take(plane, mode="clip")
        bright /= np.sqrt(square) * (1 + f(FALLOFF) * square)
        bright += f(light.ambient)
    for solid in solids:
        _shadow(bright, plane == FLOOR, x, z, solid, (cos, sin), lamp, light, room.floor, rays)
    across = np.where(plane >= LEFT, z, x)
    along = np.where(plane <= CEILING, z, y)
    texel = ((along * TEXELS_PER_METRE + 64 * _TILE).astype(np.int64) & (_TILE - 1)) * _TILE
    texel += (across * TEXELS_PER_METRE + 64 * _TILE).astype(np.int64) & (_TILE - 1)
    texel += (np.array(decor.textures) * _TILE * _TILE).take(plane, mode="clip")
    bright *= 1 + f(decor.contrast) * _textures().take(texel, mode="clip")
    albedo = np.array(decor.albedo, f).T * np.array(light.tint, f)[:, None]
    rgb = np.stack([channel.take(plane, mode="clip") for channel in albedo])
    rgb *= bright
    if room.wall_top > -math.inf:
        sky = plane == SKY
        fade = np.clip(1 + rays.y * 3, 0, 1)[:, None]
        for channel, low, high in zip(rgb, decor.horizon, decor.zenith, strict=True):
            np.copyto(channel, f(high) + f(low - high) * fade, where=sky)
    return rgb


def _shadow(bright, on_floor, x, z, solid, turn, lamp, light, floor, rays):
    """Darkens the floor, in place, in a soft ellipse under the body that stretches away from the light."""
    f = np.float32
    cos, sin = turn
    cx, cz = solid.x * cos + solid.z * sin, solid.z * cos - solid.x * sin
    toward = (lamp[0], lamp[2]) if light.sun else (lamp[0] - cx, lamp[2] - cz)
    level = math.hypot(*toward) + 1e-6
    ex, ez = -toward[0] / level, -toward[1] / level
    slope = level / -lamp[1] if light.sun else level / max(0.3, floor - lamp[1] - solid.height)
    stretch = min(1.2, 0.5 * solid.height * slope)
    radius = solid.reach * 1.05
    level_x, level_z = cx + ex * stretch, cz + ez * stretch
    rows, columns = window(
        level_x * cos - level_z * sin, level_z * cos + level_x * sin, (radius + stretch) * 1.15, floor, floor, rays
    )
    dx, dz = x[rows, columns] - f(level_x), z[rows, columns] - f(level_z)
    inside = ((dx * f(ex) + dz * f(ez)) * f(1 / (radius + stretch))) ** 2 + ((dz * f(ex) - dx * f(ez)) * f(1 / radius)) ** 2
    depth = f(0.75 * light.strength / (light.strength + light.ambient))
    dark = np.minimum(np.maximum(f(2.4) - f(2) * inside, 0), 1) * on_floor[rows, columns]
    bright[rows, columns] *= 1 - depth * dark


def _shade_solids(hits: Hits, paints: list[Paint], light: Lighting) -> np.ndarray:
    """Linear RGB of the bodies' visible pixels, float32 [3, N]: Lambert, a Phong highlight, and for metal a mirrored room."""
    f = np.float32
    table = np.array([(*p.color, *p.second, *p.frequency, *p.phase) for p in paints], f).T
    values = table.take(hits.owner, axis=1)
    cells = np.floor(hits.local * values[6:9] + values[9:12]).astype(np.int32).sum(0)
    albedo = np.where(cells & 1, values[3:6], values[:3]) * np.array(light.tint, f)[:, None]
    normal = hits.normal
    position = np.array(light.position, f)[:, None]
    if light.sun:
        toward, strength = np.broadcast_to(position, normal.shape), f(light.strength)
    else:
        toward = position - hits.point
        square = (toward * toward).sum(0)
        toward = toward / np.sqrt(square)
        strength = f(light.strength) / (1 + f(FALLOFF) * square)
    lit = np.maximum((normal * toward).sum(0), 0)
    view = hits.point / np.sqrt((hits.point * hits.point).sum(0))
    mirrored = view - 2 * (view * normal).sum(0) * normal
    shine = np.maximum((mirrored * toward).sum(0), 0)
    for _ in range(4):  # exponent 16
        shine *= shine
    metal = np.array([p.material == METALLIC for p in paints]).take(hits.owner)
    gloss = np.array([(0.06, 0.12, 0.9)[p.material] for p in paints], f).take(hits.owner)
    ambient = f(light.ambient) * (f(0.8) - f(0.2) * normal[1])
    around = np.minimum(np.maximum(f(0.5) - 2 * mirrored[1], f(0.05)), f(1.3))
    azimuth = mirrored[0] * f(2.2)
    bands = np.abs(azimuth - np.floor(azimuth) - f(0.5)) < f(0.17)  # bright windows all around
    room = (around + bands * np.where(mirrored[1] < 0, f(1), f(0.6))) * (f(light.ambient) + f(0.5) * strength)
    return albedo * np.where(metal, room + f(0.3) * lit * strength, ambient + lit * strength) + gloss * shine * strength
