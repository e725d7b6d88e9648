"""Geometric augmentation: draws one geometry per example and applies it to images, videos, label maps and boxes.

Changes of values, such as depth divided by the zoom or normals with a mirrored x axis, belong to the tasks.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from must.core.types import Geometry

FILL = (124, 116, 104)  # mean color of natural images, so that padding adds no strong edges


def whole_image(source_size: tuple[int, int], size: tuple[int, int], *, keep_aspect: bool = True) -> Geometry:
    """The whole image in the frame: padded right and below if `keep_aspect`, else stretched; sizes (height, width)."""
    scale = (size[0] / source_size[0], size[1] / source_size[1])
    if keep_aspect:
        scale = (min(scale), min(scale))
    return Geometry(source_size, size, scale, (0.0, 0.0))


def own_frame(source_size: tuple[int, int]) -> Geometry:
    """The image as it is: its own frame, in which labels are compared."""
    return whole_image(source_size, source_size)


def draw(
    rng: np.random.Generator,
    source_size: tuple[int, int],
    size: tuple[int, int],
    *,
    zoom: tuple[float, float] = (1.0, 1.0),
    shift: float = 0.0,
    flip: bool = True,
    keep_aspect: bool = True,
    reverse: bool = False,
) -> Geometry:
    """Draws a random crop or padding with scale jitter and flips.

    Args:
      rng: source of all randomness.
      source_size: (height, width) of the original, pixels.
      size: (height, width) of the network's frame, pixels.
      zoom: range of the magnification, drawn log-uniformly; above 1 crops, below 1 pads.
      shift: largest extra displacement as a fraction of the frame, drawn uniformly in whole network pixels.
      flip: flip left to right with probability 1/2.
      keep_aspect: same scale in both directions.
      reverse: play videos backwards with probability 1/2.
    """
    base = whole_image(source_size, size, keep_aspect=keep_aspect)
    magnification = float(np.exp(rng.uniform(np.log(zoom[0]), np.log(zoom[1]))))
    scale = (base.scale[0] * magnification, base.scale[1] * magnification)
    offset = []
    for axis in range(2):
        slack = size[axis] - source_size[axis] * scale[axis]  # negative: the image is larger than the frame
        extra = round(shift * size[axis])
        # Whole network pixels, so that an unscaled image is copied and not resampled.
        offset.append(float(round(rng.uniform(min(0.0, slack), max(0.0, slack))) + rng.integers(-extra, extra + 1)))
    flipped = bool(flip and rng.random() < 0.5)
    reversed_ = bool(reverse and rng.random() < 0.5)  # drawn last, so that it does not affect the other draws
    return Geometry(source_size, size, scale, tuple(offset), flipped, magnification, reversed_)


def transform_image(image: Any, geometry: Geometry, fill: tuple[int, int, int] = FILL) -> np.ndarray:
    """The picture in the network's frame, antialiased; uint8 [H, W, 3] -> uint8 [h, w, 3].

    Videos [T, H, W, 3] become [T, h, w, 3]; `geometry.reverse` is up to the caller. A picture that is still encoded
    (`must.readers.pictures.Encoded`) is decoded as small as the frame allows.
    """
    height, width = geometry.size
    image, decoded = (image, 1.0) if isinstance(image, np.ndarray) else image.at_least(max(geometry.scale))
    if geometry.scale == (1.0, 1.0) and all(o == round(o) for o in geometry.offset):
        return _placed(image, geometry, fill, image.ndim - 3)
    from PIL import Image

    out = np.empty((*image.shape[:-3], height, width, 3), np.uint8)
    # The part of the frame that the image covers, and the corresponding part of the image.
    spans = []
    for axis in range(2):
        low = max(0, round(geometry.offset[axis]))
        high = min(
            geometry.size[axis], round(geometry.offset[axis] + geometry.source_size[axis] * geometry.scale[axis])
        )
        begin = (low - geometry.offset[axis]) / geometry.scale[axis]
        end = (high - geometry.offset[axis]) / geometry.scale[axis]
        begin, end = max(0.0, begin) * decoded, min(float(geometry.source_size[axis]), end) * decoded
        spans.append((low, high, begin, end))
    (top, bottom, y0, y1), (left, right, x0, x1) = spans
    if (top, bottom, left, right) != (0, height, 0, width):
        out.reshape(-1, 3 * width)[:] = np.tile(np.array(fill, np.uint8), width)  # whole rows are fast to copy
    if bottom > top and right > left:
        first, last = (width - right, width - left) if geometry.flip else (left, right)
        for frame, into in ((image, out),) if image.ndim == 3 else zip(image, out, strict=True):
            picture = Image.fromarray(frame).resize((right - left, bottom - top), Image.BILINEAR, box=(x0, y0, x1, y1))
            if geometry.flip:  # ten times as fast as reversed columns of an array
                picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
            into[top:bottom, first:last] = np.asarray(picture)
    return out


class Cells(NamedTuple):
    """Those pixels of a frame that an output of a lower resolution is compared with.

    Attributes:
      stride: pixels per cell of the output.
      count: pixels per axis of a cell: the nearest to its center, or the 2 around it.
    """

    stride: int
    count: int = 1

    @classmethod
    def around_centers(cls, stride: int) -> "Cells":
        """All pixels that are nearest to a center, which with an even stride lies between two per axis."""
        return cls(stride, 2 - stride % 2)

    @functools.lru_cache(maxsize=256)  # noqa: B019, of values
    def pixels(self, length: int) -> np.ndarray:
        """The pixels of an axis, ascending, int64 [length / stride * count]."""
        centers = (np.arange(length // self.stride) + 0.5) * self.stride
        if self.count == 1:
            return nearest(centers, length)
        return np.stack([centers - 1, centers], -1).reshape(-1).astype(np.int64)


EVERY_PIXEL = Cells(1)


def transform_map(array: np.ndarray, geometry: Geometry, fill: Any, cells: Cells = EVERY_PIXEL) -> np.ndarray:
    """A label map in the network's frame, nearest neighbor.

    Args:
      array: [Hm, Wm, ...]; covers the original uniformly, possibly at a lower resolution.
      geometry: of the original in the frame.
      fill: value outside the original.
      cells: of the frame's pixels, those that are made.

    Returns:
      [h, w, ...], same type; h and w count the pixels that are made.
    """
    return _placed(array, geometry, fill, 0, cells)


def restore_map(array: np.ndarray, geometry: Geometry, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `transform_map`: [h, w, ...] -> [*shape, ...] over the whole original, nearest neighbor."""
    rows, columns = (
        nearest(_destinations(geometry, axis, shape[axis], array.shape[axis]), array.shape[axis]) for axis in range(2)
    )
    return array[rows][:, columns]


def restore_quantity(
    array: np.ndarray, valid: np.ndarray, geometry: Geometry, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """`restore_map` of a quantity: the mean of the valid pixels where several are equally near.

    Args:
      array: [h, w, ...], 0 where not valid.
      valid: bool [h, w].
      geometry: of the original in the frame.
      shape: of the result, over the whole original.

    Returns:
      [*shape, ...], 0 where not valid, and bool [*shape], where at least half of the nearest pixels are valid.
    """
    sides = []
    for axis in range(2):
        position = _destinations(geometry, axis, shape[axis], array.shape[axis])
        sides.append(
            [nearest(position, array.shape[axis], turn) for turn in ((0, 1) if _ties(position).any() else (0,))]
        )
    parts = [(array[rows][:, columns], valid[rows][:, columns]) for rows in sides[0] for columns in sides[1]]
    count = sum(there.astype(np.float32) for _, there in parts)
    enough = 2 * count >= len(parts)
    share = np.where(enough, 1 / np.maximum(count, 1), 0).astype(np.float32)
    return sum(part for part, _ in parts) * share.reshape(share.shape + (1,) * (array.ndim - 2)), enough & (count > 0)


def nearest(position: np.ndarray, pixels: int, turn: int | np.ndarray | None = None) -> np.ndarray:
    """The pixels of an axis that positions lie in, int64 [N].

    A position on the border of two pixels is equally near to both. Those take turns, so that resampled edges do not
    move on average: always the later one would move them by half a pixel, again in every generation of labels.

    Args:
      position: [N], in pixels of the axis, whose first one spans 0..1.
      pixels: length of the axis.
      turn: 0 for the pixel before a border, 1 for the one after it; alternates by default.
    """
    index, on_border = np.floor(position), _ties(position)
    if on_border.any():
        turn = np.arange(len(position)) % 2 if turn is None else turn
        at_border = np.minimum(np.maximum(np.rint(position) + turn - 1, 0), pixels - 1)
        index = np.where(on_border, at_border, index)
    return index.astype(np.int64)


def _ties(position: np.ndarray) -> np.ndarray:
    return np.abs(position - np.rint(position)) < 1e-6


def transform_boxes(boxes: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in the network's frame, clipped to it.

    Args:
      boxes: [N, 4], x0 y0 x1 y1, pixels of the original.
      geometry: of the original in the frame.

    Returns:
      float32 [N, 4] in network pixels, and the fraction of each box's area inside the frame, [N]; 1 for no area.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    (sy, sx), (oy, ox) = geometry.scale, geometry.offset
    x0, y0, x1, y1 = boxes[:, 0] * sx + ox, boxes[:, 1] * sy + oy, boxes[:, 2] * sx + ox, boxes[:, 3] * sy + oy
    if geometry.flip:
        x0, x1 = geometry.size[1] - x1, geometry.size[1] - x0
    moved = np.stack([x0, y0, x1, y1], -1).astype(np.float32)
    limit = np.array([geometry.size[1], geometry.size[0]] * 2, np.float32)
    clipped = np.clip(moved, 0, limit)
    area = np.prod(moved[:, 2:] - moved[:, :2], -1)
    return clipped, np.where(area > 0, np.prod(clipped[:, 2:] - clipped[:, :2], -1) / np.maximum(area, 1e-9), 1.0)


def restore_boxes(boxes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Boxes [N, 4] of the network's frame in pixels of the original, clipped to it; float32."""
    x0, y0, x1, y1 = np.asarray(boxes, np.float32).reshape(-1, 4).T
    if geometry.flip:
        x0, x1 = geometry.size[1] - x1, geometry.size[1] - x0
    (sy, sx), (oy, ox) = geometry.scale, geometry.offset
    out = np.stack([(x0 - ox) / sx, (y0 - oy) / sy, (x1 - ox) / sx, (y1 - oy) / sy], -1)
    return np.clip(out, 0, np.array([geometry.source_size[1], geometry.source_size[0]] * 2)).astype(np.float32)


def _placed(array: np.ndarray, geometry: Geometry, fill, axis: int, cells: Cells = EVERY_PIXEL) -> np.ndarray:
    """`transform_map` of an array whose rows and columns are the axes `axis` and `axis + 1`."""
    rows, top, bottom, height = _sources(geometry, 0, array.shape[axis], cells)
    columns, left, right, width = _sources(geometry, 1, array.shape[axis + 1], cells)
    before = (slice(None),) * axis
    inside = array
    for which, index in ((axis, rows), (axis + 1, columns)):
        along = (slice(None),) * which
        inside = inside[(*along, index)] if isinstance(index, slice) else inside.take(index, which)
    if inside.shape[axis : axis + 2] == (height, width):
        return inside
    out = np.empty((*array.shape[:axis], height, width, *array.shape[axis + 2 :]), array.dtype)
    out[:] = fill
    out[(*before, slice(top, bottom), slice(left, right))] = inside
    return out


@functools.lru_cache(maxsize=4096)  # shared by the maps of several tasks and by pictures of equal size
def _destinations(geometry: Geometry, axis: int, length: int, pixels: int) -> np.ndarray:
    """Along one axis: where each of `length` pixels over the original has its center in the frame's map, [length]."""
    centers = (np.arange(length) + 0.5) * geometry.source_size[axis] / length
    position = centers * geometry.scale[axis] + geometry.offset[axis]
    if axis == 1 and geometry.flip:
        position = geometry.size[1] - position
    return np.clip(position * pixels / geometry.size[axis], 0, pixels - 0.5)


@functools.lru_cache(maxsize=4096)  # a run without scale jitter draws few different geometries
def _sources(geometry: Geometry, axis: int, pixels: int, cells: Cells) -> tuple[np.ndarray | slice, int, int, int]:
    """Along one axis: the map's pixel at each made position in [start, stop), the part that the image covers; and how
    many positions are made."""
    length = geometry.size[axis]
    centers = (np.arange(length) if cells == EVERY_PIXEL else cells.pixels(length)) + 0.5
    made = len(centers)
    if axis == 1 and geometry.flip:
        centers = length - centers
    position = (centers - geometry.offset[axis]) / geometry.scale[axis] * pixels / geometry.source_size[axis]
    index = nearest(position, pixels, np.floor(centers).astype(np.int64) % 2)
    inside = np.flatnonzero((position > -1e-6) & (position < pixels + 1e-6))
    start, stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    index = index[start:stop]
    for step in (1, -1):
        runs = len(index) and index[-1] - index[0] == step * (len(index) - 1)
        if runs and (np.diff(index) == step).all():  # a slice, so that an unscaled map is not copied
            end = int(index[-1]) + step
            return slice(int(index[0]), end if end >= 0 else None, step), start, stop, made
    return index, start, stop, made
