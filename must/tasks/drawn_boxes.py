"""Boxes drawn on a picture: plain where they are taken as true, dashed and hatched where they are ignored."""

from collections.abc import Sequence

import numpy as np

from must.core.types import Label
from must.tasks import drawing

_PAPER, _INK, _DARK = (24, 24, 28), (255, 255, 255), (0, 0, 0)


def draw(image: np.ndarray, label: Label, names: Sequence[str], shown: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """The enlarged picture with its boxes, crowds thin and nameless; below, how many of each class.

    Args:
      image: uint8 [H, W, 3].
      label: boxes [M, 4], classes, scores and crowd [M]; the scores are what is written, but for 1.
      names: of the classes.
      shown: bool [M].
      ignored: bool [M], among the shown ones.
    """
    from PIL import Image, ImageDraw

    enlarged = drawing.upscale(image)
    zoom, colors = enlarged.shape[0] / image.shape[0], drawing.palette(len(names))
    boxes, classes, scores, crowd = (np.asarray(label[n]) for n in ("boxes", "classes", "scores", "crowd"))
    corners = np.round(boxes * zoom - (0, 0, 1, 1)).astype(np.int64)
    inside = np.zeros(enlarged.shape[:2], bool)
    for x0, y0, x1, y1 in corners[ignored]:
        inside[max(0, y0) : y1, max(0, x0) : x1] = True
    canvas = Image.fromarray(drawing.tint(enlarged, inside) if inside.any() else enlarged)
    pen = ImageDraw.Draw(canvas)
    for i in sorted(np.flatnonzero(shown)[::-1], key=lambda i: not ignored[i]):  # the surest last, on top
        color = tuple(colors[classes[i]].tolist())
        x0, y0, x1, y1 = corners[i].tolist()
        if ignored[i]:
            drawing.dashed(pen, (x0, y0, x1, y1), color)
        else:
            pen.rectangle((x0, y0, x1, y1), outline=color, width=1 if crowd[i] else 2)
        if not crowd[i]:
            text = names[classes[i]] + ("" if scores[i] == 1 else f" {scores[i]:.2f}")
            corner = (x0 + 2, max(0, y0 - 11))
            pen.rectangle(pen.textbbox(corner, text), fill=_PAPER if ignored[i] else color)
            pen.text(corner, text, fill=_DARK if not ignored[i] and sum(color) > 330 else _INK)
    number = np.bincount(classes[shown & ~ignored & ~crowd], minlength=len(names))
    most = [c for c in np.argsort(-number, kind="stable")[: drawing.ROWS] if number[c]]
    rows = [(f"{number[c]} {names[c]}", colors[c : c + 1]) for c in most]
    if ignored.any():
        rows = [*rows[: drawing.ROWS - 1], (f"{ignored.sum()} ignored", drawing.share(ignored, "")[1])]
    return drawing.caption(np.asarray(canvas), rows)
