"""Classes of pictures as a table."""

import csv
import os

import numpy as np

from must.core.types import Source
from must.export.examples import class_names, labeled, picture_file, write_about
from must.readers.label_files import CLASSES, list_cell
from must.tasks.classification import Classification

_FIELDS = ("ids", "probs", "rest", "unknown")


def write_classes(directory: str, source: Source, name: str, task: Classification) -> int:
    """<directory>/classes.csv: the most probable class of every labeled example and its probability, then the others.

    Columns: file (below the folder of pictures), class, score, rest (the probability of all classes that are not listed),
    unknown (ids of the classes that the label's source does not know), class_2, score_2, ... A number is the shortest text
    that is the same float16 again.

    Args:
      directory: made when missing.
      source: of labeled examples.
      name: key of the labels.
      task: whose classes they are.

    Returns:
      The number of lines.

    Raises:
      UserError: a class id outside the label space, no labels of the task.
    """
    os.makedirs(directory, exist_ok=True)
    width = max(np.size(label["ids"]) for _, label in labeled(source, name, task, _FIELDS))
    more = [f"{column}_{rank}" for rank in range(2, width + 1) for column in ("class", "score")]
    lines = 0
    with open(os.path.join(directory, CLASSES), "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "class", "score", "rest", "unknown", *more])
        for index, label in labeled(source, name, task, _FIELDS):
            names = class_names(label["ids"], task.classes, f"{source.ids[index]}: {name}")
            scores = [str(score) for score in np.asarray(label["probs"], np.float16).reshape(-1)]
            cells = [cell for pair in zip(names, scores, strict=True) for cell in pair] + [""] * (
                2 * (width - len(names))
            )
            rest = str(np.float16(np.asarray(label["rest"]).reshape(())))
            table.writerow([picture_file(source, index), *cells[:2], rest, list_cell(label.get("unknown")), *cells[2:]])
            lines += 1
    write_about(directory, {"kind": "classes", "classes": list(task.classes), "examples": lines})
    return lines
