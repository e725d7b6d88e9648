"""Encoded pictures: decoding to RGB, size, orientation, the ids of masks; no other module opens them with Pillow.

JPEGs go through libjpeg-turbo, which notices damage; what it cannot read and all viewers do (stray bytes between
segments, rare chroma sampling) goes through Pillow, as does every other format. No picture above `MAX_PIXELS` is
decoded.
"""

import contextlib
import contextvars
import io
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np

from must.core.memory import number_of
from must.core.notices import notice
from must.core.types import UserError

MAX_PIXELS = number_of("MUST_MAX_PIXELS", 1 << 28)  # 16,384 x 16,384, 0.8 GB of RGB
_SAMPLE = 16  # pictures that tell how many bits are significant
STORED, DISPLAYED = "stored", "displayed"  # how a picture with an orientation tag is read

_CUT = re.compile("Premature end of JPEG")  # perhaps only its last two bytes, the end mark, are missing
_END = b"\xff\xd9"
_DAMAGE = re.compile("premature end|bad huffman|bad arithmetic|instead of rst", re.IGNORECASE)
# What Pillow may open: some of its other formats run programs (EPS) or follow names (FPX).
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_TAG = 0x0112  # EXIF's orientation
_PNG, _JPEG, _TIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", (b"II", b"MM")
_METADATA = (b"eXIf", b"iCCP", b"iTXt", b"tEXt", b"zTXt", b"tIME", b"pHYs", b"sPLT", b"hIST", b"dSIG")
# Orientation -> the picture as displayed, of an array [H, W, ...] (EXIF 2.32, section 4.6.4).
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}
Result = TypeVar("Result")
_REDUCED = 5  # eighths of the size; libjpeg-turbo decodes six and seven of them more slowly than eight
_undecoded: contextvars.ContextVar[bool] = contextvars.ContextVar("undecoded", default=False)


@contextlib.contextmanager
def undecoded() -> Iterator[None]:
    """Meanwhile `read_picture` leaves JPEGs `Encoded` in this thread: which size is needed is known later."""
    token = _undecoded.set(True)
    try:
        yield
    finally:
        _undecoded.reset(token)


class Encoded:
    """A JPEG that is decoded when its pixels are read.

    Attributes:
      shape: (height, width, 3), as displayed.
      nbytes: of the file.
    """

    def __init__(self, data: bytes, where: str, turn: int, stored: tuple[int, int]):
        self._data, self._where, self._turn, self._stored = data, where, turn, stored
        self.shape = (*(stored[::-1] if turn >= 5 else stored), 3)
        self.nbytes = len(data)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.at_least(1.0)[0].astype(dtype or np.uint8, copy=False)

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.asarray(self)[key]

    def at_least(self, scale: float) -> tuple[np.ndarray, float]:
        """The picture, uint8 [h, w, 3], at the least multiple of 1/8 of its size that is at least `scale`, and that
        multiple: the inverse DCT of fewer coefficients is a part of the work (`simplejpeg`, libjpeg-turbo).

        Raises:
          UserError: truncated or corrupt.
        """
        import simplejpeg

        eighths = min(8, max(1, math.ceil(8 * scale - 1e-6)))
        sides = [-(-side * eighths // 8) for side in self._stored]
        # A last row or column that is not whole would come first in a turned picture.
        whole = self._turn == 1 or not any(side * eighths % 8 for side in self._stored)
        if eighths <= _REDUCED and whole:
            least = {"min_height": sides[0], "min_width": sides[1], "min_factor": 1}
            with contextlib.suppress(ValueError, KeyError):  # what is wrong shows below
                array = simplejpeg.decode_jpeg(self._data, "RGB", **least)
                if list(array.shape[:2]) == sides:
                    return _turned(array, self._turn), eighths / 8
        return _decode_whole(self._data, self._where, self._turn), 1.0


def is_undecoded() -> bool:
    """Whether this thread is inside `undecoded`."""
    return _undecoded.get()


def read_picture(data: bytes, where: str, *, orientation: str = STORED, bits: int = 16) -> np.ndarray | Encoded:
    """`decode_picture`, or an `Encoded` JPEG inside `undecoded`, which fails when it is decoded."""
    if is_undecoded() and (size := _jpeg_size(data, where)):
        return Encoded(data, where, _turn(data, orientation), size)
    return decode_picture(data, where, orientation=orientation, bits=bits)


def decode_picture(data: bytes, where: str, *, orientation: str = STORED, bits: int = 16) -> np.ndarray:
    """Decodes a picture to RGB, uint8 [H, W, 3]; converts gray, palette, CMYK and 16-bit pictures and drops alpha.

    Args:
      data: encoded.
      where: begins error messages.
      orientation: "stored", or "displayed", turned as its orientation tag says; TIFFs always are.
      bits: that the values of a 16-bit picture have; higher values become 255.

    Raises:
      UserError: not a picture, truncated, corrupt or larger than `MAX_PIXELS`.
    """
    return _decode_whole(data, where, _turn(data, orientation), bits)


def _decode_whole(data: bytes, where: str, turn: int, bits: int = 16) -> np.ndarray:
    array = _decode_jpeg(data, where)
    if array is None:
        array = _with_pillow(data, where, lambda picture: _rgb(picture, data, where, bits))
    return _turned(array, turn)


def _turned(array: np.ndarray, turn: int) -> np.ndarray:
    return np.ascontiguousarray(_TURNS[turn](array) if turn in _TURNS else array)


def open_picture(data: bytes, where: str, *, limit: int | None = None) -> Any:
    """Loads an encoded picture as a `PIL.Image`; UserError if it is broken or above the limit (`MAX_PIXELS`)."""

    def loaded(picture: Any) -> Any:
        picture.load()
        return picture

    return _with_pillow(data, where, loaded, limit)


class Header(NamedTuple):
    """What the first bytes of a picture tell.

    Attributes:
      format: "JPEG", "PNG", ... as Pillow calls it.
      mode: "RGB", "L", ... as Pillow calls it.
      size: (height, width), pixels.
      transparent: one color stands for transparency.
    """

    format: str
    mode: str
    size: tuple[int, int]
    transparent: bool


def header(data: bytes, where: str, *, strict: bool = False) -> Header:
    """Format, mode and size; UserError as `decode_picture`, if `strict` also for metadata that Pillow refuses."""

    def read(picture: Any) -> Header:
        return Header(picture.format, picture.mode, picture.size[::-1], "transparency" in picture.info)

    return _with_pillow(data, where, read, strict=strict)


def picture_size(data: bytes, where: str, orientation: str = STORED) -> tuple[int, int]:
    """(height, width) of an encoded picture, from its header; UserError as `decode_picture`."""
    height, width = header(data, where).size
    return (width, height) if _turn(data, orientation) >= 5 else (height, width)


def stored_ids(data: bytes, where: str) -> np.ndarray:
    """Ids uint8 [H, W] as they are stored in a mask: gray or palette with 1 to 16 bits, or RGB with equal channels."""

    def ids(picture: Any) -> np.ndarray:
        raw = _raw_mode(picture)
        if picture.mode in ("L", "P", "1"):
            # Pillow stretches gray of 2 and 4 bits to 0..255.
            return np.asarray(picture).astype(np.uint8) // {"L;2": 85, "L;4": 17}.get(raw, 1)
        if picture.mode.startswith("I"):
            deep = np.asarray(picture)
            if deep.min() < 0 or deep.max() > 255:
                raise UserError(f"{where}: mask id {deep.max()} is not in 0..255")
            return deep.astype(np.uint8)
        channels = np.asarray(picture)
        colors = channels[..., : len(picture.getbands()) - ("A" in picture.getbands())]
        if picture.mode not in ("RGB", "RGBA", "LA") or raw.endswith("16B") or (colors != colors[..., :1]).any():
            raise UserError(
                f"{where}: masks need one channel of class ids (gray or palette), not mode {picture.mode} with colors"
            )
        return np.ascontiguousarray(colors[..., 0])

    return _with_pillow(data, where, ids)


def is_deep(data: bytes) -> bool:
    """Whether a picture has 16 bits per channel: a PNG, or a gray TIFF."""
    if data.startswith(_PNG):
        return data[24:25] == b"\x10"
    try:
        return data[:2] in _TIFF and header(data, "").mode.startswith("I;16")
    except UserError:
        return False


def is_portable(data: bytes) -> bool:
    """Whether readers that are less patient than this one open a picture and agree on which way up it is."""
    try:
        header(data, "", strict=True)
    except UserError:
        return False
    return orientation_of(data) == 1 and (not data.startswith(_JPEG) or _END in _segments(data)[1])


def significant_bits(name: str, count: int, encoded: Callable[[int], bytes]) -> int:
    """The bits that the values of a set's 16-bit pictures have, from the largest in a sample; told if they are fewer.

    Args:
      name: of the set, for the notice.
      count: of pictures.
      encoded: of an index; one that cannot be read says nothing.
    """
    top = 0
    for index in sorted({count * k // _SAMPLE for k in range(_SAMPLE)}):
        with contextlib.suppress(UserError):
            data = encoded(index)
            if is_deep(data):
                top = max(top, int(_with_pillow(data, "", lambda picture, data=data: _deep(picture, data)).max()))
    bits = next(bits for bits in (8, 10, 12, 14, 16) if bits >= top.bit_length())
    if bits < 16:
        notice(f"{name}: 16-bit pictures whose values end at {top} are read as {bits} bits: {2**bits - 1} becomes 255")
    return bits


def orientation_of(data: bytes) -> int:
    """1 to 8, what a viewer does with the picture before it shows it (EXIF); 1 is nothing."""
    if not _has_metadata(data):
        return 1
    try:
        tag = _pillow().open(io.BytesIO(data), formats=_FORMATS).getexif().get(_TAG, 1)
    except Exception:  # Pillow's plugins raise a dozen types; what is broken shows on decoding
        return 1
    return tag if tag in _TURNS else 1


def untagged(data: bytes) -> bytes:
    """The same picture without an orientation tag, if it is a JPEG or PNG with one; else the same bytes."""
    if orientation_of(data) == 1 or not data.startswith((_JPEG, _PNG)):
        return data
    if data.startswith(_PNG):
        return _bare_png(data)
    segments, rest = _segments(data)
    return b"".join([_JPEG, *(one for one in segments if one[1] != 0xE1), rest]) if segments else data


def _has_metadata(data: bytes) -> bool:
    """Whether a picture has a part that may hold EXIF or XMP; much faster than Pillow."""
    if data.startswith(_JPEG):
        return any(one[1] == 0xE1 for one in _segments(data)[0])
    if data.startswith(_PNG):
        return any(kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt") for kind, _ in _chunks(data))
    return data[:2] in _TIFF or data[12:16] == b"VP8X"


def _turn(data: bytes, orientation: str) -> int:
    """What is left to do after decoding; Pillow turns TIFFs itself."""
    return 1 if orientation == STORED or data[:2] in _TIFF else orientation_of(data)


def _pillow() -> Any:
    """Pillow's `Image`, whose own limit, for the whole process, is above ours."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, 2 * MAX_PIXELS)
    return Image


def _with_pillow(
    data: bytes, where: str, work: Callable[[Any], Result], limit: int | None = None, *, strict: bool = False
) -> Result:
    """`work` of the opened picture; of a PNG whose metadata Pillow refuses, of the picture without them."""
    Image = _pillow()
    for attempt in range(2 if data.startswith(_PNG) and not strict else 1):
        try:
            picture = Image.open(io.BytesIO(_bare_png(data) if attempt else data), formats=_FORMATS)
            check_size(*picture.size, where, limit)
            return work(picture)
        except UserError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise UserError(f"{where}: too large; {_ALLOWED}") from None
        except MemoryError:
            raise UserError(f"{where}: too large for the memory of this machine") from None
        except Exception as error:  # Pillow's plugins raise a dozen types, from SyntaxError to struct.error
            problem = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else f"broken picture: {error}"
    raise UserError(f"{where}: {problem}")


_ALLOWED = f"at most {MAX_PIXELS:,} pixels are decoded, the environment variable MUST_MAX_PIXELS allows more"


def check_size(width: int, height: int, where: str, limit: int | None = None) -> None:
    """UserError for a picture or frame of more pixels than the limit (`MAX_PIXELS`)."""
    if width * height > (limit or MAX_PIXELS):
        raise UserError(f"{where}: too large, {width}x{height} px (width x height); {_ALLOWED}")


def _jpeg_size(data: bytes, where: str) -> tuple[int, int] | None:
    """(height, width) as stored of a JPEG that needs no repair and no Pillow; None for all others."""
    import simplejpeg

    if data.startswith(_JPEG):
        with contextlib.suppress(ValueError, KeyError):
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            check_size(width, height, where)
            return (height, width) if space in ("YCbCr", "RGB", "Gray") else None
    return None


def _decode_jpeg(data: bytes, where: str) -> np.ndarray | None:
    """RGB, None for other formats and what Pillow has to read; UserError if the pixels are damaged."""
    import simplejpeg

    if not data.startswith(_JPEG):
        return None
    for form in (lambda: data, lambda: _repaired(data), lambda: _repaired(data) + _END):
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(jpeg := form())
            check_size(width, height, where)
            return simplejpeg.decode_jpeg(jpeg, "RGB") if space in ("YCbCr", "RGB", "Gray") else None
        except (ValueError, KeyError) as error:  # KeyError: chroma sampling that the library does not know
            problem = str(error)
            if _DAMAGE.search(problem) and not _CUT.search(problem):
                raise UserError(f"{where}: broken picture: {error}") from None
    if _DAMAGE.search(problem):
        raise UserError(f"{where}: broken picture: {problem}")
    return None


def _segments(data: bytes) -> tuple[list[bytes], bytes]:
    """A JPEG's segments before its first scan, without stray bytes between them, and the rest."""
    found, at = [], 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker == 0xDA:
            return found, data[at:]
        if marker in (0x00, 0xFF) or 0xD0 <= marker <= 0xD8:  # filling and markers without content
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        found.append(data[at:end])
        at = end
    return [], b""


def _repaired(data: bytes) -> bytes:
    segments, rest = _segments(data)
    return b"".join([_JPEG, *segments, rest])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, whole chunk) of a PNG."""
    at = len(_PNG)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], data[at:end]
        at = end


def _bare_png(data: bytes) -> bytes:
    """A PNG without metadata."""
    return _PNG + b"".join(chunk for kind, chunk in _chunks(data) if kind not in _METADATA)


def _raw_mode(picture: Any) -> str:
    """How the picture is stored, in Pillow's words, such as "L;4"; "" if it is loaded already."""
    arguments = picture.tile[0].args if picture.tile else ""
    return arguments if isinstance(arguments, str) else str((arguments or ("",))[0])


def _rgb(picture: Any, data: bytes, where: str, bits: int) -> np.ndarray:
    deep = _deep(picture, data) if is_deep(data) else None
    if deep is not None:
        picture = np.minimum(deep >> (bits - 8), 255).astype(np.uint8)
        return np.repeat(picture[..., None], 3, -1) if picture.ndim == 2 else picture
    if picture.mode in ("I", "F"):
        raise UserError(f"{where}: pictures need 8 or 16 bits per channel, not mode {picture.mode}")
    if picture.mode in ("1", "L") and "transparency" not in picture.info:  # a third of the memory
        return np.repeat(np.asarray(picture.convert("L"))[..., None], 3, -1)
    return np.array(picture.convert("RGB"))


def _deep(picture: Any, data: bytes) -> np.ndarray:
    """A 16-bit picture, uint16 [H, W] or [H, W, 3]."""
    raw = _raw_mode(picture)
    if picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.uint16)
    high = np.asarray(picture.convert("RGB")).astype(np.uint16)
    if raw not in ("RGB;16B", "RGBA;16B"):  # gray with alpha: only the high bytes can be had
        return high << 8
    # Pillow keeps only the high byte of colors; read as little-endian, that is the low one.
    low = _pillow().open(io.BytesIO(data), formats=_FORMATS)
    low.tile = [tile._replace(args=f"{raw[:-1]}L") for tile in low.tile]
    return high << 8 | np.asarray(low.convert("RGB"))
