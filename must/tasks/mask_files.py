"""Masks as COCO json: one annotation per class of a picture, as polygons along the pixels or as run lengths."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from must.core import files
from must.core.types import Source, UserError
from must.data.geometry import own_frame, transform_map
from must.readers.edited import MUST_ID
from must.readers.label_files import COCO
from must.tasks.exchange import coco_head, coco_image, labeled, picture_file, picture_size, rle

FORMS = ("polygons", "rle")


def write(form: str, directory: str, source: Source, name: str, task: Any, fields: Sequence[str]) -> None:
    """<directory>/coco.json, masks at the size of the pictures.

    Args:
      form: "polygons" or "rle", uncompressed.
      directory: of the task's files.
      source: of labeled examples.
      name: key of the labels.
      task: whose classes are the categories, with its `ignore` id.
      fields: of a label.

    Raises:
      UserError: another form, no labels of the task.
    """
    if form not in FORMS:
        raise UserError(f"masks={form!r}: expected one of {', '.join(FORMS)}")
    images, annotations = [], []
    for index, label in labeled(source, name, task, fields):
        size = picture_size(source, index)
        images.append(coco_image(len(images) + 1, picture_file(source, index), size) | {MUST_ID: source.ids[index]})
        ids, codes = (transform_map(np.asarray(label[field]), own_frame(size), 0)[..., 0] for field in ("ids", "probs"))
        for class_id in np.unique(ids[ids != task.ignore]).tolist():
            mask = ids == class_id
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            corner, end = (int(columns[0]), int(rows[0])), (int(columns[-1]) + 1, int(rows[-1]) + 1)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": len(images),
                "category_id": class_id + 1,
                "segmentation": rle(mask) if form == "rle" else list(polygons(mask)),
                "area": int(mask.sum()),
                "bbox": [*corner, end[0] - corner[0], end[1] - corner[1]],
                "iscrowd": 0,
                "score": round(float(codes[mask].mean()) / 255, 4),
            }
            annotations.append(json.dumps(annotation))
    parts = (
        f'"{key}": [\n' + ",\n".join(rows) + "\n]"
        for key, rows in (("images", map(json.dumps, images)), ("annotations", annotations))
    )
    text = coco_head(task.classes, source.name) + ",\n" + ",\n".join(parts) + "\n}\n"
    files.write_text(os.path.join(directory, COCO), text)


def polygons(mask: np.ndarray) -> Iterator[list[int]]:
    """Outlines [x0, y0, x1, y1, ...] along the pixels of a bool [H, W] mask, in pieces without holes."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
        part = parts[rows, columns] == number
        holes = np.flatnonzero((ndimage.binary_fill_holes(part) & ~part).any(1))
        # A polygon has no holes: a cut above one opens it.
        pieces = [(0, part)] if not len(holes) else [(0, part[: holes[0]]), (int(holes[0]), part[holes[0] :])]
        for top, piece in pieces:
            outlines = [_outline(piece)] if not len(holes) else polygons(piece)
            for outline in outlines:
                xy = np.reshape(outline, (-1, 2)) + np.array([columns.start, rows.start + top])
                yield xy.ravel().tolist()


def _outline(part: np.ndarray) -> list[int]:
    """The corners of a connected part without holes, clockwise."""
    padded = np.pad(part, 1)
    after: dict[tuple[int, int], tuple[int, int]] = {}
    for axis, (forward, backward) in enumerate((((0, 0), (1, 0)), ((0, 1), (0, 0)))):
        edge = np.diff(padded.astype(np.int8), axis=axis)
        inner = edge[:, 1:-1] if axis == 0 else edge[1:-1]
        for sign in (1, -1):
            y, x = np.nonzero(inner == sign)
            ends = [np.stack([x + dx, y + dy], -1).tolist() for dx, dy in (forward, backward)]
            first, last = ends if sign == 1 else ends[::-1]
            after |= {tuple(a): tuple(b) for a, b in zip(first, last, strict=True)}
    start = min(after)
    path, at = [start], after[start]
    while at != start:
        path.append(at)
        at = after[at]
    xy = np.array(path)
    turns = (np.roll(xy, -1, 0) - xy != xy - np.roll(xy, 1, 0)).any(-1)
    return xy[turns].ravel().tolist()
