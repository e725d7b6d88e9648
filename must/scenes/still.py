"""`scenes`, the built-in data set: procedural 3-D rooms, ray-cast exactly, with pixel-accurate labels.

Example = f(seed, domain, split, index). The image's class is the shape and material of the nearest body; other bodies,
surroundings, light and noise are distractors that depend on the domain.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from must.core import labels as forms
from must.core.types import Example, Label, UserError
from must.scenes import raycast, shading
from must.scenes.layout import DOMAINS, Scene, draw_scene

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
MILLIMETER = 0.001
_SURFACE_OF_PLANE = np.array([0, 2, 1, 1, 1, IGNORE], np.uint8)  # in the order of `raycast`; the sky is unlabeled
_VERSION = 1  # part of the fingerprint; increment if pictures change


class Frame(NamedTuple):
    """One picture with all labels; K bodies, front to back.

    Attributes:
      image: uint8 [S, S, 3].
      depth: float32 [S, S], meters along the optical axis; 0 = sky.
      normals: float32 [S, S, 3], unit, x right, y down, z forward, pointing toward the camera; 0 = sky.
      instances: uint8 [S, S], 0 = surroundings, k + 1 = body k.
      semantic: uint8 [S, S], class of "segmentation"; 255 = sky.
      boxes: float32 [K, 4], bounding boxes of the visible pixels, x0 y0 x1 y1, x1 and y1 exclusive.
      shapes: uint16 [K], class of "detection".
      materials: uint16 [K], index in `MATERIALS`.
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


class NumberedIds(Sequence[str]):
    """`<name>/<index>` for a range of indices, created on access."""

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
      name: first part of every id; by default from domain, split and seed.
      start: index of the first example, so that parts of one split can be annotated differently.

    Raises:
      UserError: an unknown domain or task, or an argument out of range.
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
            raise UserError(f"scenes: domain {domain!r} is not one of {', '.join(DOMAINS)}")
        if unknown := set(labels) - set(TASKS):
            raise UserError(f"scenes: labels {sorted(unknown)} are not among {', '.join(TASKS)}")
        if count < 0 or start < 0 or not 8 <= size <= 512:
            raise UserError(f"scenes: count {count} and start {start} must be >= 0, size {size} in 8..512")
        self.count, self.seed, self.size, self.domain, self.split = count, seed, size, domain, split
        self.annotated, self.start = labels, start
        self.name = name or f"scenes-{domain}-{split}-{seed}"
        self.ids = NumberedIds(self.name, range(start, start + count))
        self.classes = {task: names for task, names in CLASSES.items() if task in labels}
        content = (_VERSION, count, seed, size, domain, split, sorted(labels), start)
        self.fingerprint = hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        frame = self.render(index)
        return Example(self.ids[index], frame.image, {task: _RECORD[task](frame) for task in self.annotated})

    def scene(self, index: int) -> Scene:
        """The scene of one picture."""
        place = range(self.start, self.start + self.count)[index]
        return draw_scene(f"{self.seed}/{self.domain}/{self.split}/{place}", DOMAINS[self.domain])

    def render(self, index: int) -> Frame:
        """Renders one picture with all labels."""
        return render(self.scene(index), self.size)


def render(scene: Scene, size: int) -> Frame:
    """Casts and shades one scene at size x size pixels."""
    rays = raycast.make_rays(size, scene.pitch)
    background = raycast.cast_room(scene.room, rays)
    hits = raycast.cast_solids(scene.solids, scene.room.floor, rays, least=30 * (size / 64) ** 2, share=0.35)
    solids, paints = [scene.solids[k] for k in hits.kept], [scene.paints[k] for k in hits.kept]
    image = shading.shade(scene.room, background, solids, hits, paints, scene.light, scene.decor, rays)

    shapes = np.array([solid.shape for solid in solids], np.uint16)
    materials = np.array([paint.material for paint in paints], np.uint16)
    depth, normals = background.depth, np.empty((size, size, 3), np.float32)
    if scene.room.wall_top > -np.inf:
        depth[background.plane == raycast.SKY] = 0
    depth.reshape(-1)[hits.pixel] = hits.depth
    planes, bodies = raycast.room_normals(scene.room, scene.pitch), raycast.to_camera(hits.normal, scene.pitch)
    for k in range(3):
        normals[..., k] = planes[k].take(background.plane, mode="clip")
        normals.reshape(-1, 3)[:, k][hits.pixel] = bodies[k]
    instances = np.zeros((size, size), np.uint8)
    instances.reshape(-1)[hits.pixel] = np.repeat(np.arange(1, len(solids) + 1), hits.counts)
    semantic = _SURFACE_OF_PLANE.take(background.plane, mode="clip")
    semantic.reshape(-1)[hits.pixel] = np.repeat(shapes + len(SURFACES), hits.counts)
    nearest = hits.kept.index(0)
    label = int(shapes[nearest]) * len(MATERIALS) + int(materials[nearest])
    return Frame(image, depth, normals, instances, semantic, hits.boxes, shapes, materials, label, scene.pitch)


def _classification(frame: Frame) -> Label:
    return forms.classification(frame.label)


def _detection(frame: Frame) -> Label:
    return forms.detection(frame.boxes, frame.shapes, np.zeros(len(frame.boxes), bool))


def _segmentation(frame: Frame) -> Label:
    return forms.segmentation(frame.semantic)


def _depth(frame: Frame) -> Label:
    codes = (frame.depth * np.float32(1 / MILLIMETER) + np.float32(0.5)).astype(np.uint16)
    return forms.depth(codes, MILLIMETER)


def _normals(frame: Frame) -> Label:
    return forms.normals(frame.normals)


_RECORD = dict(zip(TASKS, (_classification, _detection, _segmentation, _depth, _normals), strict=True))
