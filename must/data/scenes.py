"""`scenes`, the embedded data set: procedural 3-D rooms, ray-cast exactly, every label true to the pixel.

Example = f(seed, domain, split, index); nothing is on disk. The image's class is the shape and material of the nearest
body; the others, surroundings, light and noise are distractors that a domain sets.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from must.core.types import Example, Label, UserError
from must.data import raycast, shading
from must.data.raycast import BOX, CONE, CYLINDER, SPHERE, Room, Solid
from must.data.shading import MATTE, METALLIC, PATTERNED, Decor, Lighting, Paint, linear

SHAPES = ("sphere", "box", "cylinder", "cone")
MATERIALS = ("matte", "patterned", "metallic")
SURFACES = ("floor", "wall", "ceiling")
CLASSES = {
    "classification": tuple(f"{material} {shape}" for shape in SHAPES for material in MATERIALS),
    "detection": SHAPES,
    "segmentation": SURFACES + SHAPES,
}
TASKS = ("classification", "detection", "segmentation", "depth", "normals")
IGNORE = 255
MILLIMETRE = 0.001
HUES = {SPHERE: 0.0, BOX: 0.33, CYLINDER: 0.62, CONE: 0.14}  # centres of ranges that overlap: a cue, not a giveaway
_SURFACE_OF_PLANE = np.array([0, 2, 1, 1, 1, IGNORE], np.uint8)  # in the order of `raycast`; the sky is unlabelled
_VERSION = 1  # part of the fingerprint; raise it when the same index shows another picture


class Domain(NamedTuple):
    """What one family of pictures looks like; pairs are ranges.

    Attributes:
      bodies: how many are tried (hidden ones are dropped), inclusive.
      strength: of the light.
      ambient: light from everywhere.
      tint: saturation of the light's colour.
      contrast: of the surroundings' textures, 0 to 1.
      color: saturation of the surroundings' colour.
      noise: standard deviation, grey levels of 255.
      open_air: sun, sky and low walls; the sky has no label, no depth and no normal.
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
    """Everything that is drawn by chance for one picture."""

    pitch: float
    room: Room
    solids: list[Solid]
    paints: list[Paint]
    light: Lighting
    decor: Decor


class Frame(NamedTuple):
    """One picture and all that is known of it; K bodies, front to back.

    Attributes:
      image: uint8 [S, S, 3].
      depth: float32 [S, S], metres along the optical axis; 0 = sky.
      normals: float32 [S, S, 3], unit, x right, y down, z forward, towards the camera; 0 = sky.
      instances: uint8 [S, S], 0 = surroundings, k + 1 = body k.
      semantic: uint8 [S, S], class of "segmentation"; 255 = sky.
      boxes: float32 [K, 4], tight hulls of the visible pixels, x0 y0 x1 y1, x1 and y1 exclusive.
      shapes: uint16 [K], class of "detection".
      materials: uint16 [K], position in `MATERIALS`.
      label: class of "classification".
      pitch: of the camera below the horizon, radians.
    """

    image: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    instances: np.ndarray
    semantic: np.ndarray
    boxes: np.ndarray
    shapes: np.ndarray
    materials: np.ndarray
    label: int
    pitch: float


class _Ids(Sequence):
    """`<name>/<index>` for a range of indices, made when asked for."""

    def __init__(self, name: str, indices: range):
        self._name, self._indices = name, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [f"{self._name}/{i}" for i in self._indices[index]]
        return f"{self._name}/{self._indices[index]}"


class Scenes:
    """A `Source` of procedural rooms.

    Args:
      count: number of examples.
      seed: different seeds, domains, splits and indices share no random numbers.
      size: height and width, pixels.
      domain: one of `DOMAINS`.
      split: any name.
      labels: the tasks that are annotated.
      name: first part of every id; from domain, split and seed when absent.
      start: index of the first example, so that parts of one split can be annotated differently.

    Raises:
      UserError: an unknown domain or task, or a count, start or size that cannot be.
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        size: int = 64,
        domain: str = "indoor",
        split: str = "train",
        labels: Iterable[str] = TASKS,
        name: str | None = None,
        start: int = 0,
    ):
        labels = tuple(labels)
        if domain not in DOMAINS:
            raise UserError(f"scenes: domain {domain!r} is none of {', '.join(DOMAINS)}")
        if unknown := set(labels) - set(TASKS):
            raise UserError(f"scenes: labels {sorted(unknown)} are none of {', '.join(TASKS)}")
        if count < 0 or start < 0 or not 8 <= size <= 512:
            raise UserError(f"scenes: count {count} and start {start} must be >= 0, size {size} within 8..512")
        self.count, self.seed, self.size, self.domain, self.split = count, seed, size, domain, split
        self.labels, self.start = labels, start
        self.name = name or f"scenes-{domain}-{split}-{seed}"
        self.ids = _Ids(self.name, range(start, start + count))
        self.classes = {task: names for task, names in CLASSES.items() if task in labels}
        content = (_VERSION, count, seed, size, domain, split, sorted(labels), start)
        self.fingerprint = hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        frame = self.render(index)
        return Example(self.ids[index], frame.image, {task: _RECORD[task](frame) for task in self.labels})

    def scene(self, index: int) -> Scene:
        """What is drawn for one picture, before anything is cast."""
        place = range(self.start, self.start + self.count)[index]
        return draw_scene(f"{self.seed}/{self.domain}/{self.split}/{place}", DOMAINS[self.domain])

    def render(self, index: int) -> Frame:
        """One picture with raw labels."""
        return render(self.scene(index), self.size)


def render(scene: Scene, size: int) -> Frame:
    """Casts and shades one scene at size x size pixels."""
    rays = raycast.make_rays(size, scene.pitch)
    background = raycast.cast_room(scene.room, rays)
    hits = raycast.cast_solids(scene.solids, scene.room.floor, rays, least=30 * (size / 64) ** 2, share=0.35)
    kept = [scene.solids.index(solid) for solid in hits.solids]
    paints = [scene.paints[k] for k in kept]
    image = shading.shade(scene.room, background, hits, paints, scene.light, scene.decor, rays)

    shapes = np.array([solid.shape for solid in hits.solids], np.uint16)
    materials = np.array([paint.material for paint in paints], np.uint16)
    depth, normals = background.depth, raycast.room_normals(scene.room, scene.pitch).take(background.plane, axis=0)
    if scene.room.wall_top > -math.inf:
        depth[background.plane == raycast.SKY] = 0
    depth.reshape(-1)[hits.pixel] = hits.depth
    normals.reshape(-1, 3)[hits.pixel] = raycast.to_camera(hits.normal, scene.pitch).T
    instances = np.zeros((size, size), np.uint8)
    instances.reshape(-1)[hits.pixel] = hits.owner + 1
    semantic = _SURFACE_OF_PLANE.take(background.plane)
    semantic.reshape(-1)[hits.pixel] = (shapes + len(SURFACES)).take(hits.owner)
    nearest = kept.index(0)
    label = int(shapes[nearest]) * len(MATERIALS) + int(materials[nearest])
    return Frame(image, depth, normals, instances, semantic, hits.boxes, shapes, materials, label, scene.pitch)


def draw_scene(key: str, domain: Domain) -> Scene:
    """Draws a scene; the first body is the nearest one, that the class is about."""
    # A hash of the key is the stream: as random as a generator, and 10 times faster to start.
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
    wanted = domain.bodies[0] + int(draw(0, domain.bodies[1] - domain.bodies[0] + 1))
    for _ in range(wanted + 8):  # 8 more tries for places that are taken
        solid = _draw_solid(draw, solids)
        if _stands_free(solid, solids, room):
            solids.append(solid)
            paints.append(_draw_paint(draw, solid.shape))
        if len(solids) == wanted:
            break
    return Scene(pitch, room, solids, paints, light, decor)


def _draw_solid(draw, placed: list[Solid]) -> Solid:
    shape = int(draw(0, 4))
    reach, height, yaw = draw(0.5, 0.72), draw(1.0, 1.45), draw(-math.pi, math.pi)
    half = (reach, reach)
    if shape == SPHERE:
        height = 2 * reach
    elif shape == BOX:
        turn = draw(0.6, 0.97)  # 0.785 would be a square footprint
        half, height = (reach * 1.1 * math.cos(turn), reach * 1.1 * math.sin(turn)), height * 0.85
    elif shape == CYLINDER:
        half = (reach * 0.85, reach * 0.85)
    front = draw(1.5, 1.8) if not placed else placed[0].z - placed[0].reach + draw(0.5, 3.2)
    z = front + reach
    x = draw(-0.25, 0.25) * z if not placed else draw(-0.55, 0.55) * z
    return Solid(shape, x, z + 0.1 * reach * (shape == BOX), half, height, yaw)


def _stands_free(solid: Solid, others: list[Solid], room: Room) -> bool:
    """Inside the room, and no footprint touches another's circle."""
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
    position = (draw(-1.8, 1.8), -room.ceiling * draw(0.6, 0.9), draw(0.0, 2.5))
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


def _classification(frame: Frame) -> Label:
    return {"ids": np.array([frame.label], np.uint16), "probs": np.ones(1, np.float16), "rest": np.zeros((), np.float16)}


def _detection(frame: Frame) -> Label:
    count = len(frame.boxes)
    return {
        "boxes": frame.boxes,
        "classes": frame.shapes,
        "scores": np.ones(count, np.float16),
        "crowd": np.zeros(count, bool),
        "unknown": np.zeros(0, np.uint16),
    }


def _segmentation(frame: Frame) -> Label:
    ids = frame.semantic[..., None]
    return {"ids": ids, "probs": (ids != IGNORE) * np.uint8(255)}


def _depth(frame: Frame) -> Label:
    codes = (frame.depth * np.float32(1 / MILLIMETRE) + np.float32(0.5)).astype(np.uint16)
    return {"depth": codes, "scale": np.array(MILLIMETRE, np.float32), "offset": np.zeros((), np.float32)}


def _normals(frame: Frame) -> Label:
    return {"normals": np.rint(frame.normals * np.float32(127)).astype(np.int8)}


_RECORD = dict(zip(TASKS, (_classification, _detection, _segmentation, _depth, _normals), strict=True))
