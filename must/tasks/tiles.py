"""Large pictures seen in parts: a teacher of a larger frame, which it cuts into overlapping tiles of its own.

The whole picture, made smaller, is one of the parts. Each task joins the parts in its `Task.stitch`.
"""

import itertools
import math

import jax
import numpy as np

from must.core.types import Array, Geometry, Label, Teacher, UserError
from must.data.geometry import transform_image, whole_image

_MULTIPLE = 8  # pixels; tiles begin at multiples, so that dense outputs have whole cells


def tiled(teacher: Teacher, grid: tuple[int, int], overlap: float = 0.25) -> Teacher:
    """The same teacher with a frame of several tiles.

    Args:
      teacher: of pictures.
      grid: (rows, columns) of tiles; (1, 1) is the teacher itself.
      overlap: least share of a tile that its neighbor sees too.

    Raises:
      UserError: no such grid or overlap, or a teacher of pictures as they are.
    """
    if len(grid) != 2 or min(grid) < 1 or not 0 <= overlap < 1:
        raise UserError(f"tiles={grid}, overlap={overlap}: expected (rows, columns) and a share below 1")
    if tuple(grid) == (1, 1):
        return teacher
    if teacher.size is None:
        raise UserError(f"tiles={tuple(grid)}: teacher {teacher.name} sees pictures whole, in their own size")
    frame = tuple(teacher.size)
    step = [max(_MULTIPLE, math.floor(side * (1 - overlap) / _MULTIPLE) * _MULTIPLE) for side in frame]
    size = tuple(side + (count - 1) * by for side, count, by in zip(frame, grid, step, strict=True))
    whole = whole_image(size, frame)
    tiles = [
        Geometry(size, frame, (1.0, 1.0), (-float(row * step[0]), -float(column * step[1])), zoom=1 / whole.scale[0])
        for row, column in itertools.product(*map(range, grid))
    ]
    geometries = [whole, *tiles]

    def predict(images: Array) -> dict[str, Label]:
        images = np.asarray(images)
        seen = [teacher.predict(np.stack([transform_image(one, g) for one in images])) for g in geometries]
        seen = jax.device_get(seen)
        labels = {}
        for name, task in teacher.tasks.items():
            rows = [
                task.stitch(
                    [
                        ({field: np.asarray(value)[row] for field, value in labels_of[name].items()}, geometry)
                        for labels_of, geometry in zip(seen, geometries, strict=True)
                    ],
                    size,
                )
                for row in range(len(images))
            ]
            labels[name] = _stacked(rows)
        return labels

    about = f"{teacher.fingerprint}-tiles-{grid[0]}x{grid[1]}-{overlap}"
    return teacher._replace(predict=predict, size=size, fingerprint=about)


def feather(geometry: Geometry) -> np.ndarray:
    """How much each pixel of a part counts, float32 [h, w]: less towards the borders at which the picture goes on.

    0 where the part shows nothing of the picture.
    """
    sides = []
    for axis in range(2):
        length, offset = geometry.size[axis], geometry.offset[axis]
        end = offset + geometry.source_size[axis] * geometry.scale[axis]
        center = np.arange(length) + 0.5
        weight = ((center >= offset) & (center <= end)).astype(np.float32)
        if offset < 0:
            weight = np.minimum(weight, center / (length / 4))
        if end > length:
            weight = np.minimum(weight, (length - center) / (length / 4))
        sides.append(weight)
    return np.maximum(sides[0][:, None] * sides[1][None], 0).astype(np.float32)


def window(geometry: Geometry) -> tuple[slice, slice]:
    """Where a tile lies in the frame."""
    top, left = (round(-offset) for offset in geometry.offset)
    return slice(top, top + geometry.size[0]), slice(left, left + geometry.size[1])


def _stacked(rows: list[Label]) -> Label:
    """Labels of several pictures with a leading axis, shorter lists of boxes filled up with zeros."""
    out = {}
    for field in rows[0]:
        values = [np.asarray(row[field]) for row in rows]
        shape = np.max([value.shape for value in values], 0) if values[0].ndim else ()
        out[field] = np.stack(
            [np.pad(v, [(0, int(m - n)) for m, n in zip(shape, v.shape, strict=True)]) for v in values]
        )
    return out
