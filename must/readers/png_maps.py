"""Label maps as standard 8-bit PNG, lossless.

Predicted maps are smooth with a little noise. After PNG's Paeth filter they are noise around 0, and maps of ids are
runs of zeros. For both, Huffman coding with run lengths is smaller and faster than deflate's search for repetitions.
Types that PNG does not support are stored as uint8:

    int8              value + 128
    uint16 [H, W]     uint8 [2 H, W]: the high bytes, below them the low bytes
"""

import struct
import zlib

import numpy as np

from must.readers.pictures import MAX_PIXELS, open_picture

TYPES = ("uint8", "int8", "uint16")
_LEVEL = 1  # higher levels only search for longer repetitions, which Z_RLE skips
_MEMORY = 6  # one Huffman code per 4,096 values, so that high and low bytes have separate codes


def encode_map(values: np.ndarray) -> bytes:
    """Encodes uint8 or int8 [H, W], [H, W, 1] or [H, W, 3], or uint16 [H, W] as PNG."""
    stored = as_uint8(values)
    height, width = stored.shape[:2]
    pixels = np.ascontiguousarray(stored).reshape(height, -1)
    channels = pixels.shape[1] // max(width, 1)
    coder = zlib.compressobj(_LEVEL, memLevel=_MEMORY, strategy=zlib.Z_RLE)
    return write_png(width, height, channels == 3, coder.compress(_paeth(pixels, channels)) + coder.flush())


def decode_map(data: bytes, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Inverse of `encode_map`; of `shape` only the number of axes matters."""
    stored = np.asarray(open_picture(data, "a map of a record", limit=2 * MAX_PIXELS))
    if dtype == "uint16":
        high, low = np.split(stored.astype(np.uint16), 2)
        return high << 8 | low
    if len(shape) == 3 and stored.ndim == 2:
        stored = stored[:, :, None]
    return (stored ^ 128).view(np.int8) if dtype == "int8" else stored


def as_uint8(values: np.ndarray) -> np.ndarray:
    """The pixels to store: uint8 [H, W], [H, W, 1] or [H, W, 3]."""
    if values.dtype == np.uint16:
        return np.concatenate([values >> 8, values & 255]).astype(np.uint8)
    return values.view(np.uint8) ^ 128 if values.dtype == np.int8 else values


def write_png(width: int, height: int, color: bool, deflated: bytes) -> bytes:
    """8-bit gray or RGB PNG file from deflated rows, each preceded by its filter number."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if color else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", deflated), (b"IEND", b""))
    )


def _paeth(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Paeth-filtered rows, uint8 [H, 1 + W * channels], each preceded by its filter number; pixels: [H, W * channels].

    Each pixel becomes its difference to the neighbor nearest to left + above - corner.
    """
    padded = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + channels), np.int16)
    padded[1:, channels:] = pixels
    left, above, corner = padded[1:, :-channels], padded[:-1, channels:], padded[:-1, :-channels]
    to_left, to_above = above - corner, left - corner  # signed distances from the prediction
    to_left, to_above, to_corner = np.abs(to_left), np.abs(to_above), np.abs(to_left + to_above)
    nearest = np.where(to_above <= to_corner, above, corner)
    nearest = np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
    rows = np.full((pixels.shape[0], pixels.shape[1] + 1), 4, np.uint8)
    np.subtract(pixels, nearest.astype(np.uint8), out=rows[:, 1:])
    return rows
