"""Boxes as files of the two other forms that tools take: YOLO txt and VOC xml, beside the folder of pictures.

Neither has a place for scores or for what a label's source does not annotate; `coco.json` keeps both.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from must.core import files
from must.core.notices import notice
from must.core.types import Label, Source, UserError
from must.readers.label_files import IMAGES
from must.tasks.exchange import BOX_FIELDS, class_names, labeled, picture_file, picture_size, write_new

LABELS, NAMES, ANNOTATIONS = "labels", "data.yaml", "Annotations"


def write(forms: Sequence[str], directory: str, source: Source, name: str, task: Any, *, min_score: float) -> None:
    """Writes boxes in each of the forms, "yolo" or "voc", into a directory that holds the folder of pictures.

    Args:
      forms: names.
      directory: of the export.
      source: of labeled examples.
      name: key of the labels.
      task: whose classes they are.
      min_score: score from which boxes are written.

    Raises:
      UserError: another form, a class id outside the label space, no labels of the task.
    """
    for form in forms:
        if form not in _WRITERS:
            raise UserError(f"boxes={list(forms)}: {form!r} is not one of {', '.join(_WRITERS)}")
        _WRITERS[form](directory, source, name, task, min_score)


def _rows(
    source: Source, name: str, task: Any, least: float
) -> Iterator[tuple[str, tuple[int, int], Label, list[str]]]:
    """Picture, its (height, width), the boxes to be written and the names of their classes; tells what has no place."""
    count, partly = 0, 0
    for index, label in labeled(source, name, task, BOX_FIELDS):
        count, partly = count + 1, partly + (np.size(label.get("unknown", ())) > 0)
        chosen = np.asarray(label["scores"]) >= least
        label = {field: np.asarray(label[field])[chosen] for field in ("boxes", "classes", "crowd")}
        names = class_names(label["classes"], task.classes, f"{source.ids[index]}: {name}")
        yield picture_file(source, index), picture_size(source, index), label, names
    for number, what in ((len(source) - count, "no label"), (partly, "classes that are not annotated")):
        if number:
            notice(
                f"{source.name}: {number:,} of {len(source):,} pictures have {what}, for which YOLO and VOC have no "
                "place: tools take what is missing as absent (coco.json keeps it)"
            )


def _write_yolo(directory: str, source: Source, name: str, task: Any, least: float) -> None:
    """labels/<file>.txt, lines "class x y width height", center and sides in fractions; data.yaml names the classes."""
    crowds = 0
    for picture, (height, width), label, _ in _rows(source, name, task, least):
        crowds += int(label["crowd"].sum())
        corners = label["boxes"][~label["crowd"]].astype(np.float64) / (width, height, width, height)
        values = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], -1)
        classes = label["classes"][~label["crowd"]].tolist()
        lines = (f"{c} {' '.join(f'{v:.8g}' for v in row)}\n" for c, row in zip(classes, values.tolist(), strict=True))
        write_new(os.path.join(directory, LABELS), f"{os.path.splitext(picture)[0]}.txt", "".join(lines).encode())
    if crowds:
        notice(f"{source.name}: YOLO has no crowds: {crowds:,} boxes around several objects are left out of {LABELS}/")
    names = "".join(f"  {i}: {json.dumps(class_name)}\n" for i, class_name in enumerate(task.classes))
    files.write_text(os.path.join(directory, NAMES), f"train: {IMAGES}\nval: {IMAGES}\nnames:\n{names}")


def _write_voc(directory: str, source: Source, name: str, task: Any, least: float) -> None:
    """Annotations/<file>.xml: pixels count from 1, the last one is inclusive; a crowd is a difficult object."""
    for picture, (height, width), label, names in _rows(source, name, task, least):
        folder, file = os.path.split(picture)
        lines = [
            f"<folder>{escape(os.path.join(IMAGES, folder).rstrip('/'))}</folder>",
            f"<filename>{escape(file)}</filename>",
            f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
            "<segmented>0</segmented>",
        ]
        for (x0, y0, x1, y1), class_name, crowd in zip(label["boxes"].tolist(), names, label["crowd"], strict=True):
            sides = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
            box = "".join(f"<{side}>{value:.7g}</{side}>" for side, value in sides.items())
            lines.append(
                f"<object><name>{escape(class_name)}</name><pose>Unspecified</pose><truncated>0</truncated>"
                f"<difficult>{int(crowd)}</difficult><bndbox>{box}</bndbox></object>"
            )
        text = "<annotation>\n" + "".join(f"  {line}\n" for line in lines) + "</annotation>\n"
        write_new(os.path.join(directory, ANNOTATIONS), f"{os.path.splitext(picture)[0]}.xml", text.encode())


_WRITERS = {"yolo": _write_yolo, "voc": _write_voc}
