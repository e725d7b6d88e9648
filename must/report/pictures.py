"""Pictures as pages hold them: contact sheets of uint8 arrays, and images inside of text.

What is drawn on a picture is the tasks' business (`Task.draw`).
"""

import base64
import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
      columns: captions; one that is wider than its column is broken at its hyphens and signs.
      cell: (least, greatest) width of a column in pixels; within it the widest picture decides. Others are brought to
        that width: enlarged by repeated pixels, reduced by averaging.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: a row with another number of pictures than columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} pictures under {len(columns)} columns")
    width = int(np.clip(max((picture.shape[1] for row in rows for picture in row), default=0), *cell))
    scaled = [[_to_width(picture, width) for picture in row] for row in rows]
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


def _broken(name: str, width: int, font) -> list[str]:
    """A caption as lines of at most `width` pixels, where its parts allow it."""
    lines = [""]
    for part in re.split(r"(?<=[-+ ])", name):
        if lines[-1] and font.getlength(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def _to_width(picture: np.ndarray, width: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture, np.uint8))
    size = (width, max(1, round(image.height * width / image.width)))
    how = Image.Resampling.NEAREST if image.width <= width else Image.Resampling.BOX
    return image if size == image.size else image.resize(size, how)


def data_uri(picture: np.ndarray, *, quality: int | None = 88) -> str:
    """A picture as text for an `src`: uint8 [H, W, 3] -> "data:image/...".

    Args:
      picture: RGB.
      quality: of JPEG with full colour resolution; None keeps every pixel, as PNG.
    """
    buffer = io.BytesIO()
    if quality is None:
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    else:
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
