"""Colors, captions, hatching, enlargement for the tasks' `draw`; all captions have one height, so that pictures
align."""

import functools
from typing import Any

import numpy as np

ROWS = 3
ROW_HEIGHT = 18  # pixels
_PAPER = (24, 24, 28)
_INK = (238, 238, 238)
TAKEN, IGNORED, ABSENT = (90, 180, 250), (150, 150, 158), (96, 70, 66)  # of bars, by state
# Polynomials in x of degree 0..5 for red, green, blue: Turbo (A. Mikhailov, Google, 2019; Apache-2.0).
_TURBO = np.array(
    [
        (0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943),
        (0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604),
        (0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973),
    ]
)


def upscale(picture: np.ndarray, shorter: int = 192) -> np.ndarray:
    """Pixels repeated by the least whole factor that brings the shorter side to `shorter`; [H, W, ...]."""
    factor = max(1, -(-shorter // min(picture.shape[:2])))
    return picture.repeat(factor, 0).repeat(factor, 1)


def turbo(values: np.ndarray) -> np.ndarray:
    """0..1 -> uint8 [..., 3], from blue over green to red."""
    powers = np.clip(values, 0.0, 1.0)[..., None] ** np.arange(6)
    return to_uint8(powers @ _TURBO.T)


def to_uint8(colors: np.ndarray) -> np.ndarray:
    """0..1, clipped -> 0..255."""
    return np.round(255 * np.clip(colors, 0.0, 1.0)).astype(np.uint8)


def palette(count: int) -> np.ndarray:
    """Colors that differ from their neighbors in hue and lightness: uint8 [count, 3]."""
    i = np.arange(count)
    hue = (0.02 + i * 0.61803398875) % 1.0  # the golden ratio keeps successive hues far apart
    value, saturation = np.array([1.0, 0.75, 0.9])[i % 3], np.array([0.75, 0.9, 0.5])[i // 3 % 3]
    ramp = np.clip(np.abs((hue[:, None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0.0, 1.0)
    return to_uint8(value[:, None] * (1 - saturation[:, None] * (1 - ramp)))


def hatch(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Darkens the pixels `where` bool [H, W] and rules them diagonally: no label there."""
    if not where.any():
        return picture
    y, x = np.indices(where.shape)
    stripes = np.where((x + y) % 8 < 2, 110, 35)[..., None]
    dark = (0.25 * picture.mean(-1, keepdims=True) + 0.75 * stripes).astype(np.uint8)
    return np.where(where[..., None], dark, picture)


def fade(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Greys the pixels `where` bool [H, W] and rules them diagonally, colors still distinguishable: a label that is
    ignored."""
    return _ruled(picture, where, gray=0.45, width=2, strength=0.7, rising=True)


def tint(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Thin pale diagonals, falling the other way, over colors that stay: ignored, though the label makes a claim
    there."""
    return _ruled(picture, where, gray=0.0, width=1, strength=0.5, rising=False)


def _ruled(picture, where, *, gray: float, width: int, strength: float, rising: bool) -> np.ndarray:
    y, x = np.nonzero(where)
    colors = picture[y, x].astype(np.float32)
    colors = (1 - gray) * colors + gray * (0.5 * colors.mean(-1, keepdims=True) + 30)
    lines = ((x + y if rising else x - y) % 8 < width)[:, None]
    out = picture.copy()
    out[y, x] = np.where(lines, (1 - strength) * colors + strength * (24 if rising else 255), colors).astype(np.uint8)
    return out


def dashed(pen: Any, box: tuple[float, float, float, float], color: tuple[int, int, int]) -> None:
    """An outline x0, y0, x1, y1 of dashes of 5 pixels, 2 wide."""
    x0, y0, x1, y1 = (round(side) for side in box)
    for x in range(x0, x1 + 1, 9):
        for y in (y0, y1 - 1):
            pen.rectangle((x, y, min(x + 4, x1), y + 1), fill=color)
    for y in range(y0, y1 + 1, 9):
        for x in (x0, x1 - 1):
            pen.rectangle((x, y, x + 1, min(y + 4, y1)), fill=color)


def share(where: np.ndarray, what: str) -> tuple[str, np.ndarray]:
    """A row of `caption`: the share of the pixels `where`, under a hatched strip."""
    percent = 100 * where.mean()
    lines = np.arange(100)[:, None] // 6 % 2 == 0
    text = f"{percent:.0f}% {what}" if percent >= 1 or percent == 0 else f"< 1% {what}"
    return text, np.where(lines, IGNORED, _PAPER).astype(np.uint8)


def bar(fraction: float, color: tuple[int, int, int] = TAKEN) -> np.ndarray:
    """A strip for `caption` that is filled up to `fraction`: uint8 [100, 3]."""
    filled = np.arange(100)[:, None] < 100 * fraction
    return np.where(filled, color, (60, 60, 66)).astype(np.uint8)


def claim(name: str, score: float, positive: bool, negative: bool) -> tuple[str, np.ndarray]:
    """A row of `caption` for a claim, worded and colored by its state."""
    word, color = ("taken", TAKEN) if positive else ("absent", ABSENT) if negative else ("ignored", IGNORED)
    return f"{100 * score:.0f}% {word}: {name}", bar(score, color)


def caption(picture: np.ndarray, rows: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Adds up to three lines below a picture, each a colored strip and a text.

    Args:
      picture: uint8 [H, W, 3].
      rows: (text, strip uint8 [n, 3]); the strip is stretched to a quarter of the width.

    Returns:
      uint8 [H + ROWS * ROW_HEIGHT + 4, W, 3], whatever the number of rows.
    """
    from PIL import Image, ImageDraw

    width = picture.shape[1]
    panel = np.empty((ROWS * ROW_HEIGHT + 4, width, 3), np.uint8)
    panel[:] = _PAPER
    strip_width = width // 4
    for i, (_, strip) in enumerate(rows[:ROWS]):
        top = 2 + i * ROW_HEIGHT
        stretched = strip[np.arange(strip_width) * len(strip) // strip_width]
        panel[top + 3 : top + ROW_HEIGHT - 3, 4 : 4 + strip_width] = stretched
    canvas = Image.fromarray(panel)
    pen, font = ImageDraw.Draw(canvas), _font()
    for i, (text, _) in enumerate(rows[:ROWS]):
        pen.text((strip_width + 9, 2 + (i + 0.5) * ROW_HEIGHT), text, fill=_INK, font=font, anchor="lm")
    return np.concatenate([picture, np.asarray(canvas)])


@functools.cache  # reading it takes longer than writing with it
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(12)
