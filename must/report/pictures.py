"""Pictures for pages: contact sheets of uint8 arrays, strips and animations of videos, images as text.

Tasks draw labels on pictures (`Task.draw`).
"""

import base64
import io
import os
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from must.core import files
from must.core.types import Geometry

_PAPER = (24, 24, 28)
_INK = (238, 238, 238)
_GAP = 6  # pixels
_CAPTION = 24  # pixels, of a caption with one line
_LINE = 16  # pixels, of every further one


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], columns: Sequence[str], *, cell: tuple[int, int] = (160, 320)
) -> np.ndarray:
    """Pictures side by side under the names of their columns, aligned at the top of their rows.

    Args:
      rows: uint8 [H, W, 3] of any sizes, as many in every row as there are columns.
      columns: captions; one that is wider than its column is broken at hyphens and plus signs.
      cell: (smallest, largest) width of a column in pixels; within this range it is that of the widest picture. Others
        are scaled to that width: enlarged by repeating pixels, reduced by averaging.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: a row whose number of pictures is not that of the columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} pictures under {len(columns)} columns")
    width = int(np.clip(max((picture.shape[1] for row in rows for picture in row), default=0), *cell))
    scaled = [[to_width(picture, width) for picture in row] for row in rows]
    heights = [max(picture.height for picture in row) for row in scaled]
    font = ImageFont.load_default(14)
    captions = [_broken(name, width, font) for name in columns]
    top = _CAPTION + _LINE * (max(map(len, captions), default=1) - 1)
    size = (len(columns) * (width + _GAP) + _GAP, top + sum(h + _GAP for h in heights) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for x, lines in enumerate(captions):
        for y, line in enumerate(lines):
            at = (_GAP + x * (width + _GAP) + width // 2, _CAPTION // 2 + 2 + _LINE * y)
            pen.text(at, line, _INK, font, anchor="mm")
    for row, height in zip(scaled, heights, strict=True):
        for x, picture in enumerate(row):
            sheet.paste(picture, (_GAP + x * (width + _GAP), top))
        top += height + _GAP
    return np.asarray(sheet)


def stacked(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets below each other, the narrower ones filled up."""
    width = max(sheet.shape[1] for sheet in sheets)
    page = np.empty((sum(len(sheet) for sheet in sheets), width, 3), np.uint8)
    page[:] = _PAPER
    top = 0
    for sheet in sheets:
        page[top : top + len(sheet), : sheet.shape[1]] = sheet
        top += len(sheet)
    return page


def cut(drawn: np.ndarray, frame: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A drawing of a whole picture in a padded frame, without the padding right and below; a caption stays.

    Args:
      drawn: of `Task.draw`, uint8: the frame enlarged by a whole factor over an optional caption.
      frame: uint8 [h, w, 3], what was drawn on.
      geometry: of the picture in the frame, `whole_image`.
    """
    factor = drawn.shape[1] // frame.shape[1]
    height, width = (
        factor * min(side, round(source * scale))
        for side, source, scale in zip(frame.shape[:2], geometry.source_size, geometry.scale, strict=True)
    )
    return np.concatenate([drawn[:height, :width], drawn[factor * frame.shape[0] :, :width]])


def _broken(name: str, width: int, font) -> list[str]:
    """A caption as lines of at most `width` pixels, where its parts allow it."""
    lines = [""]
    for part in re.split(r"(?<=[-+ ])", name):
        if lines[-1] and font.getlength(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def to_width(picture: np.ndarray, width: int) -> Image.Image:
    """uint8 [H, W, 3] at another width: pixels repeated or averaged."""
    image = Image.fromarray(np.ascontiguousarray(picture, np.uint8))
    size = (width, max(1, round(image.height * width / image.width)))
    how = Image.Resampling.NEAREST if image.width <= width else Image.Resampling.BOX
    return image if size == image.size else image.resize(size, how)


def strip(video: np.ndarray, *, most: int = 6, largest: int = 112) -> np.ndarray:
    """Frames of a video side by side: uint8 [T, H, W, 3] -> uint8 [h, w, 3].

    Args:
      video: RGB.
      most: frames, evenly spaced, first and last included.
      largest: side of a frame in pixels; larger frames are reduced.
    """
    frames = [np.asarray(frame) for frame in _frames(video, most, largest)]
    gap = np.broadcast_to(np.uint8(_PAPER), (frames[0].shape[0], max(1, frames[0].shape[1] // 32), 3))
    return np.concatenate([part for frame in frames for part in (gap, frame)][1:], axis=1)


def animation_uri(video: np.ndarray, fps: float, *, most: int = 32, largest: int = 160, quality: int = 78) -> str:
    """A video as text for an `src`, in a loop: uint8 [T, H, W, 3] -> "data:image/webp...".

    Animated WebP has a tenth of the bytes of PNG and a fifth of GIF for the same clip (16 frames of 112 pixels: 36, 360
    and 175 kB).

    Args:
      video: RGB.
      fps: frames per second; a thinned-out video keeps its duration.
      most: frames, evenly spaced, first and last included.
      largest: side of a frame in pixels; larger frames are reduced.
      quality: of the lossy compression.
    """
    frames = _frames(video, most, largest)
    held = round(1000 * len(video) / (fps * len(frames)))
    buffer = io.BytesIO()
    how = {"save_all": True, "append_images": frames[1:], "duration": held, "loop": 0, "quality": quality, "method": 4}
    frames[0].save(buffer, "WEBP", **how)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _frames(video: np.ndarray, most: int, largest: int) -> list[Image.Image]:
    places = np.unique(np.linspace(0, len(video) - 1, min(most, len(video))).round().astype(int))
    side = max(video.shape[1:3])
    width = video.shape[2] if side <= largest else max(1, round(video.shape[2] * largest / side))
    return [to_width(video[place], width) for place in places]


def write_picture(path: str, picture: np.ndarray, *, quality: int = 90) -> None:
    """uint8 [H, W, 3] as a JPEG file, with its folders."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "JPEG", quality=quality, subsampling=0)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.write_bytes(path, buffer.getvalue())


def data_uri(picture: np.ndarray, *, quality: int | None = 88) -> str:
    """A picture as text for an `src`: uint8 [H, W, 3] -> "data:image/...".

    Args:
      picture: RGB.
      quality: of JPEG with full color resolution; None keeps every pixel, as PNG.
    """
    buffer = io.BytesIO()
    if quality is None:
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    else:
        # Not `optimize`: its buffer is too small for a noisy picture in full color resolution.
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
