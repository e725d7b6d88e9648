"""Random layout of a scene (room, bodies, paint, light, decor) and the domains; a function of the example's key."""

import hashlib
import math
from typing import NamedTuple

import numpy as np

from must.scenes import shading
from must.scenes.raycast import BOX, CONE, CYLINDER, SPHERE, Room, Solid
from must.scenes.shading import MATTE, METALLIC, PATTERNED, Decor, Lighting, Paint, linear

HUES = {
    SPHERE: 0.0,
    BOX: 0.33,
    CYLINDER: 0.62,
    CONE: 0.14,
}  # centers of overlapping ranges, so that hue alone does not determine the shape


class Domain(NamedTuple):
    """The appearance of a family of pictures; pairs are ranges.

    Attributes:
      bodies: number to place, inclusive; hidden ones are dropped.
      strength: of the light.
      ambient: strength of ambient light.
      tint: saturation of the light's color.
      contrast: of the surroundings' textures, 0 to 1.
      color: saturation of the surroundings' color.
      noise: standard deviation, gray levels of 255.
      open_air: sun, sky and low walls; the sky has no label, depth or normal.
    """

    bodies: tuple[int, int]
    strength: tuple[float, float]
    ambient: tuple[float, float]
    tint: tuple[float, float]
    contrast: tuple[float, float]
    color: tuple[float, float]
    noise: tuple[float, float]
    open_air: bool = False


DOMAINS = {
    "indoor": Domain((4, 6), (0.9, 1.5), (0.25, 0.45), (0.0, 0.15), (0.1, 0.3), (0.0, 0.12), (2, 6)),
    "night": Domain((4, 6), (0.7, 1.2), (0.02, 0.06), (0.3, 0.6), (0.1, 0.3), (0.0, 0.15), (7, 12)),
    "clutter": Domain((6, 9), (0.8, 1.4), (0.25, 0.5), (0.0, 0.2), (0.45, 0.8), (0.1, 0.4), (3, 8)),
    "outdoor": Domain((4, 6), (0.8, 1.2), (0.25, 0.4), (0.0, 0.1), (0.2, 0.5), (0.2, 0.45), (1, 4), open_air=True),
}


class Scene(NamedTuple):
    """All random parameters of one picture."""

    pitch: float
    room: Room
    solids: list[Solid]
    paints: list[Paint]
    light: Lighting
    decor: Decor


def draw_scene(key: str, domain: Domain) -> Scene:
    """Draws a scene; the first body is the nearest one, which determines the class."""
    # The random stream is a hash of the key, which is 10 times faster to set up than a generator.
    numbers = np.frombuffer(hashlib.shake_128(key.encode()).digest(1536), np.uint32) * 2.0**-32
    stream = iter(numbers.tolist())

    def draw(low: float, high: float) -> float:
        return low + (high - low) * next(stream)

    eye, pitch = draw(1.35, 1.6), draw(0.17, 0.29)
    if domain.open_air:
        room = Room(eye, 1e6, draw(7, 14), draw(4, 9), draw(4, 9), draw(-0.45, 0.45), eye - draw(1.2, 2.4))
    else:
        room = Room(eye, draw(2.7, 3.3) - eye, draw(5, 7.5), draw(2.7, 4.2), draw(2.7, 4.2), draw(-0.45, 0.45))
    light = _draw_light(draw, domain, room)
    decor = _draw_decor(draw, domain)
    solids, paints = [], []
    count = domain.bodies[0] + int(draw(0, domain.bodies[1] - domain.bodies[0] + 1))
    for _ in range(count + 7):  # 7 more attempts, since some collide
        solid = _draw_solid(draw, solids)
        if _fits(solid, solids, room):
            solids.append(solid)
            paints.append(_draw_paint(draw, solid.shape))
        if len(solids) == count:
            break
    return Scene(pitch, room, solids, paints, light, decor)


def _draw_solid(draw, placed: list[Solid]) -> Solid:
    shape = int(draw(0, 4))
    reach, height, yaw = draw(0.5, 0.72), draw(1.0, 1.45), draw(-math.pi, math.pi)
    half = (reach, reach)
    if shape == SPHERE:
        height = 2 * reach
    elif shape == BOX:
        turn, reach = draw(0.6, 0.97), 1.1 * reach  # 0.785 would be a square footprint
        half, height = (reach * math.cos(turn), reach * math.sin(turn)), height * 0.85
    elif shape == CYLINDER:
        reach *= 0.85
        half = (reach, reach)
    front = draw(1.5, 1.8) if not placed else placed[0].z - placed[0].reach + draw(0.5, 3.2)
    z = front + reach
    x = draw(-0.25, 0.25) * z if not placed else draw(-0.55, 0.55) * z
    return Solid(shape, x, z, half, height, yaw, reach)


def _fits(solid: Solid, others: list[Solid], room: Room) -> bool:
    """Whether the body is inside the room and its bounding circle touches no other."""
    cos, sin = math.cos(room.yaw), math.sin(room.yaw)
    x, z = solid.x * cos + solid.z * sin, solid.z * cos - solid.x * sin
    space = solid.reach + 0.05
    if not (-room.left + space < x < room.right - space and z < room.back - space):
        return False
    return all(math.hypot(solid.x - o.x, solid.z - o.z) > solid.reach + o.reach + 0.05 for o in others)


def _draw_paint(draw, shape: int) -> Paint:
    material = int(draw(0, 3))
    hue = HUES[shape] + (draw(0, 1) if draw(0, 1) < 0.1 else draw(-0.17, 0.17))
    phase = (draw(0, 1), draw(0, 1), draw(0, 1))
    none = (0.0, 0.0, 0.0)
    if material == MATTE:
        color = linear(hue, draw(0.45, 0.85), draw(0.6, 0.95))
        return Paint(material, color, color, none, none)
    if material == METALLIC:
        color = linear(hue, draw(0.15, 0.5), draw(0.8, 1.0))
        return Paint(material, color, color, none, none)
    first = linear(hue, draw(0.5, 0.9), draw(0.65, 0.95))
    second = linear(draw(0, 1), draw(0.0, 0.2), draw(0.85, 1.0) if draw(0, 1) < 0.6 else draw(0.1, 0.3))
    pitch = draw(2.6, 4.2)
    return Paint(PATTERNED, first, second, (pitch, pitch, pitch) if draw(0, 1) < 0.5 else (0.0, pitch, 0.0), phase)


def _draw_light(draw, domain: Domain, room: Room) -> Lighting:
    hue = draw(0, 1) if domain.tint[0] > 0.2 else draw(0.05, 0.17)
    tint = linear(hue, draw(*domain.tint), 1.0)
    strength, ambient = draw(*domain.strength), draw(*domain.ambient)
    if domain.open_air:
        turn, rise = draw(-math.pi, math.pi), draw(0.5, 1.1)
        away = -abs(math.sin(turn)) * 0.8 + 0.2 * math.cos(turn)  # mostly behind the camera
        across = math.copysign(math.sqrt(max(0.0, 1 - away * away)), turn)
        position = (across * math.cos(rise), -math.sin(rise), away * math.cos(rise))
        return Lighting(position, True, strength, ambient, tint)
    position = (draw(-1.8, 1.8), -room.ceiling * draw(0.6, 0.9), draw(-0.5, 1.6))
    return Lighting(position, False, strength * 1.6, ambient, tint)


def _draw_decor(draw, domain: Domain) -> Decor:
    def texture(*kinds: str) -> int:
        low, high = shading.TEXTURES[kinds[int(draw(0, len(kinds)))]]
        return low + int(draw(0, high - low))

    if domain.open_air:
        floor = linear(draw(0.08, 0.35), draw(*domain.color), draw(0.5, 0.75))
        wall = linear(draw(0.02, 0.14), draw(*domain.color), draw(0.45, 0.75))
        kinds = [texture("cloud", "tile"), 0, texture("brick", "plank", "stripe")]
    else:
        floor = linear(draw(0, 1), draw(*domain.color), draw(0.4, 0.7))
        wall = linear(draw(0, 1), draw(*domain.color), draw(0.6, 0.9))
        kinds = [texture("cloud", "tile", "plank"), texture("cloud"), texture("cloud", "stripe", "brick")]
    value = draw(0.8, 0.95)
    ceiling = (value**2,) * 3
    horizon, zenith = linear(0.58, draw(0.05, 0.2), draw(0.85, 1.0)), linear(draw(0.55, 0.63), draw(0.4, 0.7), 0.85)
    return Decor(
        [floor, ceiling, wall, wall, wall, zenith],
        [kinds[0], kinds[1], kinds[2], kinds[2], kinds[2], 0],
        draw(*domain.contrast),
        horizon,
        zenith,
        draw(*domain.noise),
        draw(0, 1),
    )
