"""What the tasks with one output per pixel share: the step between the head's resolution and the frame's.

A head runs at `head_stride` and predicts `shuffle` x `shuffle` sub-pixels, so that its output has one cell per
head_stride / shuffle pixels of the frame.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from must.core.types import Array, ArraySpec, Geometry, Label, UserError
from must.data.geometry import restore_map, transform_map

SCORES = ArraySpec(
    (None, None), "uint8", "zlib", "score * 255; 255 = truth, 254 = a teacher that says none; one value may stand for all"
)
_LEVELS = 8  # codes that a stored score is rounded to a multiple of: a noisy map takes half the bytes


def output_stride(task: str, head_stride: int, shuffle: int) -> int:
    """Pixels of the frame per cell of the output; UserError when that is no whole number."""
    if head_stride < 1 or shuffle < 1 or head_stride % shuffle:
        raise UserError(f"{task}: head_stride {head_stride} is no multiple of shuffle {shuffle}")
    return head_stride // shuffle


def check_size(task: str, size: tuple[int, int], stride: int) -> None:
    """UserError unless the frame is a whole number of cells: predictions and mirrored outputs would be displaced."""
    if size[0] % stride or size[1] % stride:
        raise UserError(f"{task}: a frame of {size[0]} x {size[1]} pixels is no multiple of the output stride {stride}")


def sample(maps: Array, stride: int) -> Array:
    """The values at the centres of the output's cells, [B, h, w, ...] -> [B, h / stride, w / stride, ...]."""
    return maps[:, stride // 2 :: stride, stride // 2 :: stride]


def enlarge(maps: Array, factor: int) -> Array:
    """Bilinear, pixel centres aligned, edges repeated: [B, h, w, C] -> [B, h * factor, w * factor, C]."""
    for axis in (1, 2) if factor > 1 else ():
        length = maps.shape[axis]
        before = jnp.take(maps, np.maximum(np.arange(length) - 1, 0), axis)
        after = jnp.take(maps, np.minimum(np.arange(length) + 1, length - 1), axis)
        phases = []
        for phase in range(factor):
            shift = (phase + 0.5) / factor - 0.5
            neighbour = before if shift < 0 else after
            phases.append((1 - abs(shift)) * maps + abs(shift) * neighbour)
        shape = list(maps.shape)
        shape[axis] *= factor
        maps = jnp.stack(phases, axis + 1).reshape(shape)
    return maps


def pasted(
    label: Label | None, other: Label | None, window: tuple[int, int, int, int], blank: Mapping[str, int]
) -> Label:
    """Maps of a label with another one's inside a rectangle, see `Task.paste`; one of the two is there.

    Args:
      label, other: with maps [h, w, ...]; None where nothing is known.
      window: (y0, x0, y1, x1), pixels.
      blank: {name of a map: its value where nothing is known}.
    """
    y0, x0, y1, x1 = window
    out = {}
    for name, nothing in blank.items():
        out[name] = np.full_like(other[name], nothing) if label is None else label[name].copy()
        out[name][y0:y1, x0:x1] = nothing if other is None else other[name][y0:y1, x0:x1]
    return out


def transform_scores(label: Label, geometry: Geometry) -> np.ndarray:
    """The scores of a label in record form in the network's frame, uint8 [h, w]; records of old are believed throughout."""
    stored = np.asarray(label.get("scores", np.full((1, 1), 255, np.uint8)))
    if stored.ndim != 2 or not stored.size:
        raise ValueError(f"scores of shape {stored.shape}")
    return transform_map(stored, geometry, 0)


def restore_scores(label: Label, geometry: Geometry, shape: tuple[int, int]) -> np.ndarray:
    """The scores of a label in network form as a record has them, within 4/255; one value where all are the same."""
    scores = np.asarray(label["scores"])
    if (scores == scores.flat[0]).all():
        return scores.reshape(-1)[:1].reshape(1, 1)
    stored = restore_map(scores, geometry, shape).astype(np.int32)
    rounded = np.minimum((stored + _LEVELS // 2) // _LEVELS * _LEVELS, 254)
    return np.where(stored == 255, 255, rounded).astype(np.uint8)


def stored_shape(geometry: Geometry, stride: int) -> tuple[int, int]:
    """(height, width) of a map over the whole original with one value per `stride` pixels, rounded up."""
    return tuple(-(-side // stride) for side in geometry.source_size)


def to_shape(maps: Array, shape: tuple[int, int]) -> Array:
    """[B, h, w, ...] -> [B, *shape, ...]: cells averaged or repeated where the factor is whole, bilinear elsewhere."""
    height, width = maps.shape[1:3]
    if any(a % b and b % a for a, b in zip((height, width), shape, strict=True)):
        return jax.image.resize(maps, (len(maps), *shape, *maps.shape[3:]), "linear")
    for axis, wanted in zip((1, 2), shape, strict=True):
        there = maps.shape[axis]
        if there > wanted:
            maps = maps.reshape(*maps.shape[:axis], wanted, there // wanted, *maps.shape[axis + 1 :]).mean(axis + 1)
        elif there < wanted:
            maps = jnp.repeat(maps, wanted // there, axis)
    return maps
