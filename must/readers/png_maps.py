"""Maps of labels as PNG that every reader opens: 8 bits a channel, lossless, deflated in the way that suits them.

Predicted maps are smooth with a little noise. As differences to what PNG's Paeth filter predicts from the neighbors
they are noise around 0, and maps of ids are runs of zeros: a Huffman code with run lengths makes less of both than
deflate's search for repetitions does, and sooner. Types that PNG does not have become uint8:

    int8              value + 128
    uint16 [H, W]     uint8 [2 H, W]: the high bytes, below them the low bytes
"""

import io
import struct
import zlib

import numpy as np

TYPES = ("uint8", "int8", "uint16")
_LEVEL = 1  # of deflate, whose higher levels search for longer, which is not done here
_MEMORY = 6  # a code for every 4,096 values, so that high and low bytes have their own


def encode_map(values: np.ndarray) -> bytes:
    """PNG of uint8 or int8 [H, W], [H, W, 1] or [H, W, 3], or uint16 [H, W]."""
    stored = as_uint8(values)
    height, width = stored.shape[:2]
    pixels = np.ascontiguousarray(stored).reshape(height, -1)
    channels = pixels.shape[1] // max(width, 1)
    coder = zlib.compressobj(_LEVEL, memLevel=_MEMORY, strategy=zlib.Z_RLE)
    return write_png(width, height, channels == 3, coder.compress(_paeth(pixels, channels)) + coder.flush())


def decode_map(data: bytes, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Inverse of `encode_map`, for a map of that type and of a shape with so many axes."""
    from PIL import Image

    stored = np.asarray(Image.open(io.BytesIO(data)))
    if dtype == "uint16":
        high, low = np.split(stored.astype(np.uint16), 2)
        return high << 8 | low
    if len(shape) == 3 and stored.ndim == 2:
        stored = stored[:, :, None]
    return (stored ^ 128).view(np.int8) if dtype == "int8" else stored


def as_uint8(values: np.ndarray) -> np.ndarray:
    """What the picture holds: uint8 [H, W], [H, W, 1] or [H, W, 3]."""
    if values.dtype == np.uint16:
        return np.concatenate([values >> 8, values & 255]).astype(np.uint8)
    return values.view(np.uint8) ^ 128 if values.dtype == np.int8 else values


def write_png(width: int, height: int, color: bool, deflated: bytes) -> bytes:
    """The file around deflated rows, each behind the number of its filter; gray or RGB, 8 bits."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if color else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", deflated), (b"IEND", b""))
    )


def _paeth(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Rows behind the number of the filter, as differences to the neighbor nearest to left + above - corner.

    Args:
      pixels: uint8 [H, W * channels].
      channels: per pixel.
    """
    known = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + channels), np.int16)
    known[1:, channels:] = pixels
    left, above, corner = known[1:, :-channels], known[:-1, channels:], known[:-1, :-channels]
    to_left, to_above = above - corner, left - corner  # how far the prediction is, with a sign
    to_left, to_above, to_corner = np.abs(to_left), np.abs(to_above), np.abs(to_left + to_above)
    nearest = np.where(to_above <= to_corner, above, corner)
    nearest = np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
    rows = np.full((pixels.shape[0], pixels.shape[1] + 1), 4, np.uint8)
    np.subtract(pixels, nearest.astype(np.uint8), out=rows[:, 1:])
    return rows
