"""Boxes as a COCO json, which COCO's own tools and most editors of annotations read."""

import json
import os
import shutil

import numpy as np

from must.core.types import Source
from must.export.examples import class_names, labeled, picture_file, picture_size, write_about
from must.readers.edited import MUST_ID, UNKNOWN
from must.readers.label_files import COCO
from must.tasks.detection import Detection

_FIELDS = ("boxes", "classes", "scores", "crowd", "unknown")


def write_coco(directory: str, source: Source, name: str, task: Detection, *, least: float = 0.0) -> int:
    """<directory>/coco.json: the boxes of every labeled example, in pixels of the original, with their scores.

    bbox is x, y, width, height such that x + width is x1 again in float32; a category's id is the class id + 1. Beside
    COCO's keys an image has "must_id", its id in `source`, and, where the label has such, "unknown_category_ids".
    Memory does not grow with the number of boxes.

    Args:
      directory: made when missing.
      source: of labeled examples.
      name: key of the labels.
      task: whose classes are the categories.
      least: score from which boxes are written; ground truth has score 1.

    Returns:
      The number of images.

    Raises:
      UserError: a class id outside the label space, no labels of the task.
    """
    os.makedirs(directory, exist_ok=True)
    path, images, boxes = os.path.join(directory, COCO), [], 0
    categories = [{"id": i + 1, "name": class_name} for i, class_name in enumerate(task.classes)]
    # Annotations come before it is known how many images there are, and stand behind them in the file.
    with open(path + ".part", "w+", encoding="utf-8") as annotations:
        for index, label in labeled(source, name, task, _FIELDS):
            id, (height, width) = source.ids[index], picture_size(source, index)
            class_names([*label["classes"], *label["unknown"]], task.classes, f"{id}: {name}")
            image = {"id": len(images) + 1, "file_name": picture_file(source, index), "width": width, "height": height}
            image[MUST_ID] = id
            if len(label["unknown"]):
                image[UNKNOWN] = [int(i) + 1 for i in label["unknown"]]
            images.append(json.dumps(image))
            corners = np.asarray(label["boxes"], np.float64).reshape(-1, 4)
            rows = zip(corners, label["classes"], label["scores"], label["crowd"], strict=True)
            for (x0, y0, x1, y1), class_id, score, crowd in rows:
                if score < least:
                    continue
                annotation = {
                    "id": boxes + 1,
                    "image_id": len(images),
                    "category_id": int(class_id) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(crowd),
                    "score": float(score),
                }
                annotations.write((",\n" if boxes else "") + json.dumps(annotation))
                boxes += 1
        annotations.seek(0)
        with open(path, "w", encoding="utf-8") as file:
            file.write('{"categories": ' + json.dumps(categories) + ',\n"images": [\n' + ",\n".join(images))
            file.write('\n],\n"annotations": [\n')
            shutil.copyfileobj(annotations, file)
            file.write("\n]}\n")
    os.remove(path + ".part")
    about = {"kind": "coco", "classes": list(task.classes), "images": len(images), "boxes": boxes, "least_score": least}
    write_about(directory, about)
    return len(images)
