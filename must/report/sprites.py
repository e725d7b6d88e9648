"""Pictures of records for the gallery: every task's drawing, small on shared sheets and large by itself.

<chunk>-<view>.webp   thumbnails of the chunk's images, row by row; view 0 is the photo, view t what task t - 1 drew
<chunk>-r<row>.jpg    one image large: all views side by side, a second row for the truth; JPEG is made 20 times faster
<chunk>-c.webp        captions of the chunk's views, lossless: text stays sharp and small
<chunk>.js            labels of the chunk's images in numbers; written last, so that it marks a complete chunk
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from must.core import files
from must.core.types import Geometry, Label, Policy, Source, UserError
from must.data.geometry import transform_image, whole_image
from must.report.pictures import to_width
from must.tasks.base import Task
from must.tasks.label_states import Claims

CELL, ACROSS, PER_SHEET = 160, 6, 24  # pixels; thumbnails in a row; on a sheet
CHUNKS = 32  # in a folder, about a thousand files
_SHORTER, _LONGEST = 192, 768  # pixels of a drawing; tasks enlarge what is smaller
_QUALITY = {"quality": 45, "method": 0}  # of WebP, which holds the transparent rest of a cell
POSITIVE, IGNORED, NEGATIVE = range(3)  # states of a claim
MIN_SHARE = 0.005  # of all claims, which a class needs to be listed
_PIXELS, _SCORES = 256, 8  # claims from which they are summed up as shares; scores listed per class and state


class Drawn(NamedTuple):
    """A record in the frame in which it is drawn.

    Attributes:
      size: (height, width) of the original, pixels.
      stored: {task: record form}.
      picture: uint8 [h, w, 3]; None when it cannot be read.
      labels: {task: network form} of the valid labels.
      claims: {task: claims under its policy} of the tasks with scores.
      problems: {task, or "" for the picture: why it cannot be drawn}.
    """

    size: tuple[int, int]
    stored: dict[str, Label]
    picture: np.ndarray | None
    labels: dict[str, Label]
    claims: dict[str, Claims]
    problems: dict[str, str]


class View(NamedTuple):
    """One drawing: picture uint8 [H, W, 3] and caption uint8 [C, W, 3], with C = 0 without one."""

    picture: np.ndarray
    caption: np.ndarray


def read(source: Source, index: int, tasks: Mapping[str, Task], policies: Mapping[str, Policy]) -> Drawn:
    """A record, or the reason why it cannot be drawn; of a video the middle frame."""
    try:
        _, image, stored, *_ = source[index]
        if len(image.shape) == 4:
            image = np.asarray(image[np.array([image.shape[0] // 2])])[0]
        geometry = frame(image.shape[:2])
        picture = transform_image(image, geometry)
    except (UserError, ValueError, OSError) as error:
        return Drawn((0, 0), {}, None, {}, {}, {"": str(error)})
    labels, problems = transformed(stored, tasks, geometry)
    claims = {name: tasks[name].claims(label, policies[name]) for name, label in labels.items()}
    claims = {name: made for name, made in claims.items() if made is not None}
    return Drawn(image.shape[:2], stored, picture, labels, claims, problems)


def frame(size: tuple[int, int]) -> Geometry:
    """Where an original of (height, width) is drawn: whole, its shorter side reduced to 192 pixels."""
    scale = min(1.0, _SHORTER / min(size), _LONGEST / max(size))
    shape = tuple(max(1, round(side * scale)) for side in size)
    return whole_image(tuple(size), shape, keep_aspect=False)


def transformed(
    stored: Mapping[str, Label], tasks: Mapping[str, Task], geometry: Geometry
) -> tuple[dict[str, Label], dict[str, str]]:
    """Labels in network form, and {task: why its label is invalid}."""
    labels, problems = {}, {}
    for name in tasks:
        try:
            if name in stored:
                labels[name] = tasks[name].transform(stored[name], geometry)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            problems[name] = f"{type(error).__name__}: {error}"
    return labels, problems


def views(record: Drawn, tasks: Mapping[str, Task], policies: Mapping[str, Policy] | None) -> dict[str, View]:
    """The photo, "", and every task's drawing of its label, all of one size; without policies, without states."""
    drawn = {"": record.picture}
    for name, label in record.labels.items():
        drawn[name] = tasks[name].draw(record.picture, label, policies[name] if policies else None)
    width = min(_LONGEST, max(picture.shape[1] for picture in drawn.values()))
    scaled = {name: np.asarray(to_width(picture, width)) for name, picture in drawn.items()}
    height = scaled[""].shape[0]
    return {name: View(_tall(picture[:height], height), picture[height:]) for name, picture in scaled.items()}


def thumbnail(picture: np.ndarray) -> Image.Image:
    """The picture in the middle of a transparent square cell."""
    scale = CELL / max(picture.shape[:2])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    cell = Image.new("RGBA", (CELL, CELL), (0, 0, 0, 0))
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=1.5)
    cell.paste(small, ((CELL - width) // 2, (CELL - height) // 2))
    return cell


def folder(directory: str, chunk: int) -> str:
    """Where the files of a chunk are."""
    return os.path.join(directory, "pictures", f"{chunk // CHUNKS:04d}")


def is_whole(directory: str, chunk: int) -> bool:
    """All files of the chunk are written."""
    return os.path.exists(os.path.join(folder(directory, chunk), f"{chunk:06d}.js"))


def write_chunk(directory: str, chunk: int, records: Sequence[Drawn], tasks, policies, truths) -> None:
    """Draws some records and writes their files.

    Args:
      directory: of the gallery.
      chunk: its number.
      records: at most `PER_SHEET`.
      tasks, policies: {task: ...}.
      truths: of every record {task: true label in the record's frame}.
    """
    place = folder(directory, chunk)
    os.makedirs(place, exist_ok=True)
    names, described, captions = ["", *tasks], [], []
    down = -(-len(records) // ACROSS)
    sheets = {name: Image.new("RGBA", (ACROSS * CELL, down * CELL), (0, 0, 0, 0)) for name in names}
    differs = dict.fromkeys(names, False)
    for row, (record, truth) in enumerate(zip(records, truths, strict=True)):
        if record.picture is None:
            described.append({"problems": record.problems})
            continue
        mine = views(record, tasks, policies)
        true = views(record._replace(labels=truth), tasks, None) if truth else {}
        corner = (row % ACROSS * CELL, row // ACROSS * CELL)
        for name, view in mine.items():
            sheets[name].paste(thumbnail(view.picture), corner)
            differs[name] |= name == "" or not np.array_equal(view.picture, mine[""].picture)
        sheet, places = _large(mine, true, names)
        encoded = simplejpeg.encode_jpeg(
            np.ascontiguousarray(sheet), quality=62, colorspace="RGB", colorsubsampling="420"
        )
        files.write_plain(os.path.join(place, f"{chunk:06d}-r{row:02d}.jpg"), encoded)
        places["top"] = sum(len(strip) for strip in captions)
        captions += [_captions(views, names) for views in (mine, true) if views]
        described.append({**places, "problems": record.problems, "rows": _rows(record, names)})
    _stacked(captions).save(os.path.join(place, f"{chunk:06d}-c.webp"), lossless=True, quality=0, method=0)
    for view, name in enumerate(names):
        if differs[name]:  # else the page shows the photo
            sheets[name].save(os.path.join(place, f"{chunk:06d}-{view}.webp"), **_QUALITY)
    path = os.path.join(place, f"{chunk:06d}.js")
    files.write_text(path, f"chunk({chunk},{json.dumps(described, separators=(',', ':'))});\n")


def sheets_of(directory: str, chunk: int, count: int) -> int:
    """Which of `count` views the chunk has sheets of, as bits."""
    place = folder(directory, chunk)
    return sum(1 << v for v in range(count) if os.path.exists(os.path.join(place, f"{chunk:06d}-{v}.webp")))


def _large(
    mine: Mapping[str, View], true: Mapping[str, View], names: Sequence[str]
) -> tuple[Image.Image, dict[str, Any]]:
    """All views on one sheet, and their places: (width, height), caption heights by row, -1 without a view.

    A view that only adds a caption to the photo leaves its place empty, "plain".
    """
    photo = mine[""].picture
    height, width = photo.shape[:2]
    rows = [mine, true] if true else [mine]
    sheet = Image.new("RGB", (width * len(names), height * len(rows)))
    plain = [[int(name in row and np.array_equal(row[name].picture, photo)) for name in names] for row in rows]
    for r, row in enumerate(rows):
        for c, name in enumerate(names):
            if name in row and not (plain[r][c] and (r, c) != (0, 0)):
                sheet.paste(Image.fromarray(row[name].picture), (c * width, r * height))
    captions = [[len(row[name].caption) if name in row else -1 for name in names] for row in rows]
    return sheet, {"size": [width, height], "captions": captions, "plain": plain}


def _captions(views: Mapping[str, View], names: Sequence[str]) -> np.ndarray:
    """The captions side by side, at the places of their views: uint8 [deepest, width * views, 3]."""
    width, deepest = views[""].picture.shape[1], max(len(view.caption) for view in views.values())
    out = np.zeros((deepest, width * len(names), 3), np.uint8)
    for c, name in enumerate(names):
        if name in views:
            caption = views[name].caption
            out[: len(caption), c * width : (c + 1) * width] = caption
    return out


def _stacked(strips: Sequence[np.ndarray]) -> Image.Image:
    """One below the other, at the left."""
    shapes = [strip.shape for strip in strips] or [(1, 1, 3)]
    out = Image.new("RGB", (max(shape[1] for shape in shapes), max(1, sum(shape[0] for shape in shapes))))
    top = 0
    for strip in strips:
        if strip.size:
            out.paste(Image.fromarray(strip), (0, top))
            top += len(strip)
    return out


def _rows(record: Drawn, names: Sequence[str]) -> list:
    return [claim_rows(record.claims[name]) if name in record.claims else None for name in names[1:]]


def _tall(picture: np.ndarray, height: int) -> np.ndarray:
    """Cut or filled up below: a task may draw less than the frame."""
    return np.pad(picture, ((0, max(0, height - len(picture))), (0, 0), (0, 0)))[:height]


def claim_rows(claims: Claims) -> list[list]:
    """The claims by class and state for the list beside a picture, the most confident first; numbers in thousandths.

    Returns:
      [class, state, [first scores, falling], count] of each; for pixels [class, state, share, mean score].
    """
    state, scores = states_of(claims), np.clip(np.nan_to_num(claims.scores), 0.0, 1.0)
    listed = []
    for key in np.unique(3 * claims.ids.astype(np.int64) + state):
        mine = np.sort(scores[(claims.ids == key // 3) & (state == key % 3)])[::-1]
        if len(state) <= _PIXELS:
            listed.append([int(key) // 3, int(key) % 3, _thousandths(mine[:_SCORES]), len(mine)])
        elif len(mine) >= MIN_SHARE * len(state):
            listed.append([int(key) // 3, int(key) % 3, *_thousandths(np.array([len(mine) / len(state), mine.mean()]))])
    return sorted(listed, key=lambda row: (row[1], -(row[2][0] if isinstance(row[2], list) else row[2]), row[0]))


def states_of(claims: Claims) -> np.ndarray:
    """State of every claim: `POSITIVE`, `IGNORED` or `NEGATIVE`."""
    return np.where(claims.positive, POSITIVE, np.where(claims.negative, NEGATIVE, IGNORED))


def _thousandths(values: np.ndarray) -> list[int]:
    return np.round(1000 * values).astype(int).tolist()
