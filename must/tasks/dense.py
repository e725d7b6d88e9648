"""What the tasks with one output per pixel share: the step between the head's resolution and the frame's.

A head runs at `head_stride` and predicts `shuffle` x `shuffle` sub-pixels, so that its output has one cell per
head_stride / shuffle pixels of the frame. The functions on the host are for what networks of other projects say.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from must.core.types import Array, ArraySpec, Geometry, Label, LabelError, NotFinite, Policy, UserError
from must.data.geometry import EVERY_PIXEL, Cells, own_frame, restore_map, transform_map
from must.data.geometry import nearest as nearest_pixels
from must.tasks.label_states import LARGEST, Claims, decide_codes, states
from must.tasks.tiles import feather, window

SCORES = ArraySpec(
    (None, None),
    "uint8",
    "png",
    "score * 255; 255 = truth, 254 = a teacher without scores; one value may hold for all",
)
AT_OUTPUTS = "at_outputs"  # a field of labels whose maps have the resolution of the outputs
_LEVELS = 8  # codes that a stored score is rounded to a multiple of: a noisy map takes half the bytes

_BAND = 1 << 18  # numbers of a band, 1 MiB, which stay in the cache between their uses


def output_stride(task: str, head_stride: int, shuffle: int) -> int:
    """Pixels of the frame per cell of the output; UserError when that is no whole number."""
    if head_stride < 1 or shuffle < 1 or head_stride % shuffle:
        raise UserError(f"{task}: head_stride {head_stride} is not a multiple of shuffle {shuffle}")
    return head_stride // shuffle


def check_size(task: str, size: tuple[int, int], stride: int) -> None:
    """UserError unless the frame is a whole number of cells: predictions and mirrored outputs would be displaced."""
    if size[0] % stride or size[1] % stride:
        raise UserError(
            f"{task}: a frame of {size[0]} x {size[1]} pixels is not a multiple of the output stride {stride}"
        )


def sample(maps: Array, stride: int) -> Array:
    """The pixels at the centers of the output's cells, [B, h, w, ...] -> [B, h / stride, w / stride, ...].

    With an even stride the center is the corner of four pixels, which take turns as in `must.data.geometry.nearest`.
    """
    for axis in (1, 2):
        index = Cells(stride).pixels(maps.shape[axis])
        maps = maps[:, index] if axis == 1 else maps[:, :, index]
    return maps


def sample_quantity(maps: Array, valid: Array, stride: int) -> tuple[Array, Array]:
    """`sample` of a quantity: the mean of the valid pixels around each center; on the host for arrays of NumPy.

    Args:
      maps: [B, h, w, ...].
      valid: bool [B, h, w].
      stride: of the output.

    Returns:
      [B, h / stride, w / stride, ...], 0 where not valid, and where at least half of the pixels are valid.
    """
    xp = np if isinstance(maps, np.ndarray) else jnp
    middle = sorted({(stride - 1) // 2, stride // 2})
    cells = [(slice(None), slice(y, None, stride), slice(x, None, stride)) for y in middle for x in middle]
    expanded = (slice(None),) * 3 + (None,) * (maps.ndim - 3)
    maps = xp.where(valid[expanded], maps, maps.dtype.type(0))
    count = sum(valid[cell].astype(np.float32) for cell in cells)
    total = sum(maps[cell] for cell in cells)
    enough = (count > 0) & (2 * count >= len(cells))
    return xp.where(enough[expanded], total / xp.maximum(count, 1)[expanded], maps.dtype.type(0)), enough


class AtOutputs(NamedTuple):
    """How a label is encoded when only the loss reads it: its maps have one value per cell of the output.

    `target` makes the same of it, to the bit, as of the label at the frame's resolution, from 1 / stride^2 of the work.

    Attributes:
      task: with `_output_stride` and `at_outputs(label, geometry)`.
    """

    task: Any

    def encode(self, label: Label, geometry: Geometry) -> Label:
        """Network form with maps [h / stride, w / stride, ...], and the field "at_outputs", which tells it."""
        check_size(type(self.task).__name__.lower(), geometry.size, self.task._output_stride)
        return {**self.task.at_outputs(label, geometry), AT_OUTPUTS: np.bool_(True)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def blank(self, size: tuple[int, int]) -> Label:
        """A label that stands where none is known."""
        return {**self.task.blank(tuple(side // self.task._output_stride for side in size)), AT_OUTPUTS: np.bool_(True)}


def label_stride(label: Label, stride: int) -> int:
    """Pixels of a label's maps per cell of the output: its stride, or 1 for a label that `AtOutputs` encoded."""
    return 1 if AT_OUTPUTS in label else stride


def enlarge(maps: Array, factor: int) -> Array:
    """Bilinear, pixel centers aligned, edges repeated: [B, h, w, C] -> [B, h * factor, w * factor, C]."""
    for axis in (1, 2) if factor > 1 else ():
        length = maps.shape[axis]
        before = jnp.take(maps, np.maximum(np.arange(length) - 1, 0), axis=axis)
        after = jnp.take(maps, np.minimum(np.arange(length) + 1, length - 1), axis=axis)
        phases = []
        for phase in range(factor):
            shift = (phase + 0.5) / factor - 0.5
            neighbor = before if shift < 0 else after
            phases.append((1 - abs(shift)) * maps + abs(shift) * neighbor)
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


def blended(tiles: Sequence[tuple[np.ndarray, Geometry]]) -> np.ndarray:
    """The mean of overlapping tiles' maps, which fades in from their borders, float32 [*size, ...].

    Args:
      tiles: ([h, w, ...], geometry of the picture in the tile's frame), of one scale; together they see all of it.
    """
    size = tiles[0][1].source_size
    total, weights = np.zeros((*size, *tiles[0][0].shape[2:]), np.float32), np.zeros(size, np.float32)
    for values, geometry in tiles:
        weight, where = feather(geometry), window(geometry)
        total[where] += values * weight.reshape(weight.shape + (1,) * (values.ndim - 2))
        weights[where] += weight
    return total / weights.reshape(weights.shape + (1,) * (total.ndim - 2))


def transform_scores(label: Label, geometry: Geometry, cells: Cells = EVERY_PIXEL) -> np.ndarray:
    """The scores of a label in record form in the network's frame, uint8 [h, w]; records of the first
    version count as certain."""
    stored = np.asarray(label.get("scores", np.full((1, 1), 255, np.uint8)))
    if stored.ndim != 2 or not stored.size:
        raise ValueError(f"scores of shape {stored.shape}")
    return transform_map(stored, geometry, 0, cells)


def restore_scores(label: Label, geometry: Geometry, shape: tuple[int, int]) -> np.ndarray:
    """The scores of a label in network form as a record has them, within 4/255; one value where all are the same."""
    scores = np.asarray(label.get("scores", np.full((1, 1), LARGEST, np.uint8)))
    if (scores == scores.flat[0]).all():
        return scores.reshape(-1)[:1].reshape(1, 1)
    stored = restore_map(scores, geometry, shape).astype(np.int32)
    rounded = np.minimum((stored + _LEVELS // 2) // _LEVELS * _LEVELS, 254)
    return np.where(stored == 255, 255, rounded).astype(np.uint8)


def positive(label: Label, policy: Policy, stride: int) -> Array:
    """Where the scores of a label in network form are positive, at the output's resolution; without scores
    everywhere."""
    if "scores" not in label:
        return jnp.asarray(True)
    return states(policy, sample(label["scores"], stride).astype(jnp.float32) / 255.0).positive


def decided(label: Label, policy: Policy) -> Claims:
    """What becomes of every pixel of a label with scores in network form, [h, w]; no pixel is negative."""
    shape = next(iter(label.values())).shape[:2]
    codes = np.asarray(label.get("scores", np.full(shape, LARGEST, np.uint8)))
    found = Claims(*(field[codes] for field in decide_codes(policy)))
    return found._replace(negative=np.zeros_like(found.negative))


def stored_shape(geometry: Geometry, stride: int) -> tuple[int, int]:
    """(height, width) of a map over the whole original with one value per `stride` pixels, rounded up."""
    return tuple(-(-side // stride) for side in geometry.source_size)


def unmoved(geometry: Geometry) -> bool:
    """Whether the frame is that of the original image."""
    return geometry == own_frame(geometry.source_size)


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


def floats(field: str, predicted: Array, axes: tuple[str | int, ...]) -> np.ndarray:
    """External predictions as float32 on the host; LabelError unless they have these axes: letters of any size,
    sizes."""
    maps = np.asarray(predicted)
    fits = maps.ndim == len(axes) and all(
        want == got for want, got in zip(axes, maps.shape, strict=False) if isinstance(want, int)
    )
    if not fits or maps.dtype.kind != "f" or 0 in maps.shape[1:]:
        raise LabelError(f"{field} is {maps.dtype} {maps.shape}, not floats [{', '.join(map(str, axes))}]")
    return maps.astype(np.float32, copy=False)


def resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, pixel centers aligned, edges repeated, on the host: float32 [h, w, C] -> [*size, C]."""
    out = np.empty((*size, maps.shape[-1]), np.float32)
    for rows, values in bands(maps, size):
        out[rows] = values
    return out


def bands(maps: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[slice, np.ndarray]]:
    """`resize` a few rows at a time, for maps of many classes: (rows, float32 [n, W, C]).

    The next band overwrites the values: new memory for each costs four times as much as all the arithmetic.
    """
    (height, width), (there, before, channels) = size, maps.shape
    maps = np.ascontiguousarray(maps)  # others have the classes first
    if before != width:
        low, high, share = _neighbors(before, width)
        # Not maps[:, low], whose axes lie in another order.
        maps = maps.take(low, 1) * (1 - share)[:, None] + maps.take(high, 1) * share[:, None]
    low, high, share = _neighbors(there, height)
    share = share[:, None, None]
    count = min(height, max(1, _BAND // (width * channels)))
    near, far = np.empty((2, count, width, channels), np.float32)
    for top in range(0, height, count):
        rows = slice(top, min(top + count, height))
        if there == height:
            yield rows, maps[rows]
            continue
        first = np.take(maps, low[rows], 0, out=near[: rows.stop - top], mode="clip")
        second = np.take(maps, high[rows], 0, out=far[: rows.stop - top], mode="clip")
        first *= 1 - share[rows]
        second *= share[rows]
        first += second
        yield rows, first


def resize_valid(maps: np.ndarray, valid: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """`resize` between valid pixels alone; a pixel is valid where they have at least half of its weight.

    Args:
      maps: float32 [B, h, w, C], 0 where not valid.
      valid: bool [B, h, w].
      size: (H, W).

    Returns:
      float32 [B, H, W, C], 0 where not valid, and bool [B, H, W].
    """
    if maps.shape[1:3] == tuple(size):
        return maps, valid
    out, share = (np.empty((len(maps), *size, channels), np.float32) for channels in (maps.shape[-1], 1))
    for row in range(len(maps)):
        out[row], share[row] = resize(maps[row], size), resize(valid[row, ..., None].astype(np.float32), size)
    enough = share >= 0.5
    return np.where(enough, out, 0.0) / np.where(enough, share, np.float32(1)), enough[..., 0]


def some_finite(name: str, finite: np.ndarray) -> np.ndarray:
    """Which pixels are finite, bool [B, ...], as given; NotFinite for the first picture that has none."""
    found = finite.reshape(len(finite), -1).any(-1)
    if not found.all():
        raise NotFinite(f"{name} is not finite anywhere", int(np.argmin(found)))
    return finite


def nearest(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The nearest pixel, on the host: [B, h, w] -> [B, *size]."""
    rows, columns = (
        nearest_pixels((np.arange(n) + 0.5) * there / n, there) for n, there in zip(size, maps.shape[1:], strict=True)
    )
    return maps[:, rows[:, None], columns]


@functools.lru_cache(maxsize=64)
def _neighbors(there: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Between which pixels of an axis those of another length lie, and the share of the second; [wanted] each."""
    position = np.clip((np.arange(wanted) + 0.5) * there / wanted - 0.5, 0, there - 1)
    low = position.astype(np.int64)
    return low, np.minimum(low + 1, there - 1), (position - low).astype(np.float32)
