"""Labels leave: from any source of labeled examples to files that other tools read, and that come back without loss.

    about.json                     source, number of examples, tasks
    examples.csv                   picture, id: one line per example, in order
    images/<file>.jpg|png|...      the pictures, with `images`
    <task>/about.json              kind, classes, what the numbers mean
    <task>/coco.json               detection, `must.tasks.exchange`; segmentation, with `masks`
    labels/, Annotations/          detection as YOLO txt or VOC xml, with `boxes`
    <task>/classes.csv             classification, `must.export.labels`
    <task>/attributes.csv          multi-label, the score of every attribute
    <task>/maps.csv, <field>/...   segmentation, depth, normals, `must.export.labels`

<file> is the example's id, `must.readers.names`. `must.readers.label_files.LabelFiles` reads all of it back, our
readers of users' files (`CocoJson`, `MaskPng`, `DepthPng`, `NormalsPng`, `ImageCsv`, `AttributeCsv`) any one task. What
a label rounds was rounded when the record was written: boxes are float32, scores and probabilities float16, confidences
codes of 1/255, depths 16-bit codes with scale and offset, normals codes of 1/127. The files keep these numbers;
`millimeters` alone rounds again.
"""

import csv
import hashlib
import json
import os
from collections.abc import Mapping, Sequence

from must.core import files
from must.core.types import Source, UserError
from must.readers.label_files import EXAMPLES, IMAGES
from must.tasks.base import Exports, Task
from must.tasks.exchange import ABOUT, picture_bytes, picture_file, write_about, write_new


def export_labels(
    directory: str | os.PathLike,
    source: Source,
    tasks: Mapping[str, Task],
    *,
    images: bool = False,
    min_score: float = 0.0,
    millimeters: bool = False,
    palette: bool = False,
    boxes: Sequence[str] = (),
    masks: str = "",
) -> dict[str, int]:
    """Writes the labels of a source into a folder that appears whole or not at all.

    Args:
      directory: of the files; new, empty, or an export that nobody has edited, which is replaced.
      source: records or ground truth; an example without a label of a task is not in the task's files.
      tasks: {task: Task} whose labels are written.
      images: write the pictures too, byte for byte where the source has them encoded, as PNG elsewhere.
      min_score: score from which boxes are written; 0 writes all.
      millimeters: write depth in millimeters, see `write_depth`.
      palette: give masks colors, see `write_masks`.
      boxes: further forms of boxes: "yolo" (labels/*.txt and data.yaml), "voc" (Annotations/*.xml).
      masks: a further form of masks, "polygons" or "rle", in <task>/coco.json.

    Returns:
      {task: number of labeled examples}, and with `images` {"images": number of pictures}.

    Raises:
      UserError: the directory holds other files or edited ones, a task without labels or without a file format, a video
        with `images`, or a label that cannot be right.
    """
    directory = os.path.abspath(os.fspath(directory))
    empty = not os.path.exists(directory) or (os.path.isdir(directory) and not os.listdir(directory))
    if not empty and not _as_written(directory):
        raise UserError(
            f"{directory}: holds files that an export did not write, or that were edited; export into a new folder"
        )
    for name, task in tasks.items():
        if name == IMAGES or not isinstance(task, Exports):
            raise UserError(f"task {name!r} ({type(task).__name__}): there are no files for its labels, leave it out")
    options = {"min_score": min_score, "palette": palette, "millimeters": millimeters}
    options |= {"boxes": (boxes,) if isinstance(boxes, str) else tuple(boxes), "masks": masks}
    counts = {}
    with files.whole_directory(directory, replace=True) as partial:
        for name, task in tasks.items():
            counts[name] = task.write_labels(os.path.join(partial, name), source, name, options)
        pictures = [picture_file(source, index) for index in range(len(source))]
        with files.replacing(os.path.join(partial, EXAMPLES), newline="") as table:
            csv.writer(table).writerows([("picture", "id"), *zip(pictures, source.ids, strict=True)])
        if images:
            for index, file in enumerate(pictures):
                write_new(os.path.join(partial, IMAGES), file, picture_bytes(source, index))
            counts[IMAGES] = len(pictures)
        about = {
            "source": source.name,
            "fingerprint": source.fingerprint,
            "examples": len(source),
            "tasks": list(tasks),
            "content": _digest(partial),
        }
        write_about(partial, about)
    return counts


def _as_written(directory: str) -> bool:
    """Whether the files are byte for byte what an export wrote."""
    try:
        with open(os.path.join(directory, ABOUT), encoding="utf-8") as file:
            return json.load(file)["content"] == _digest(directory)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(directory: str) -> str:
    """SHA-256 over names and contents of all files below a folder but about.json."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if (relative := os.path.relpath(path, directory)) != ABOUT:
                digest.update(f"{relative}\0{files.file_hash(path)}\n".encode())
    return digest.hexdigest()
