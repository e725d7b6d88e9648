"""Tiled prediction against one view, on mosaics of scenes, whose objects are too small for a student's frame:

    python -m tests.experiments.tiles WORKDIR [MOSAICS]

WORKDIR is a finished run on the scenes (`configs/quickstart.py`). Each mosaic shows 3 x 3 test scenes of the student's
own size; the truth is that of the scenes. Scores are in the frame of the mosaic.
"""

import sys

import numpy as np

import must
from must.data.geometry import own_frame
from must.evaluate.evaluate import joined

SIDE = 3
GRIDS = ((1, 1), (3, 3), (4, 4))


def mosaics(count: int, size: int):
    """(picture, [(label of a scene, (top, left))]) of each."""
    scenes = must.source("scenes", seed=0, split="test", count=count * SIDE**2, size=size)
    for first in range(0, len(scenes), SIDE**2):
        picture, parts = np.zeros((SIDE * size, SIDE * size, 3), np.uint8), []
        for number in range(SIDE**2):
            top, left = (size * place for place in divmod(number, SIDE))
            example = scenes[first + number]
            picture[top : top + size, left : left + size] = example.image
            parts.append((example.labels, (top, left)))
        yield picture, parts


def truth_of(parts, shape) -> dict:
    """Boxes and masks of the scenes as those of the mosaic, in network form."""
    boxes = {field: [] for field in ("boxes", "classes", "scores", "crowd")}
    ids = np.zeros((*shape, 1), np.uint8)
    for labels, (top, left) in parts:
        one = labels["detection"]
        boxes["boxes"].append(np.asarray(one["boxes"]) + np.array([left, top, left, top], np.float32))
        for field in ("classes", "scores", "crowd"):
            boxes[field].append(np.asarray(one[field]))
        mask = np.asarray(labels["segmentation"]["ids"])
        ids[top : top + mask.shape[0], left : left + mask.shape[1]] = mask.reshape(*mask.shape[:2], -1)[..., :1]
    found = {field: np.concatenate(values) for field, values in boxes.items()}
    segmentation = {"ids": ids, "probs": np.full_like(ids, 255), "unknown": np.zeros(0, np.uint16)}
    return {"detection": {**found, "unknown": np.zeros(0, np.uint16)}, "segmentation": segmentation}


def main(workdir: str, count: int) -> None:
    """Prints the scores of each grid."""
    student = must.load(workdir)
    size = student.parts[0].encoder.size[0]
    cases = list(mosaics(count, size))
    for grid in GRIDS:
        rows: dict[str, list] = {"detection": [], "segmentation": []}
        predictions = student.predict([picture for picture, _ in cases], tiles=grid, batch_size=4)
        for (picture, parts), labels in zip(cases, predictions, strict=True):
            frame, truth = own_frame(picture.shape[:2]), truth_of(parts, picture.shape[:2])
            for name, mine in rows.items():
                task = student.tasks[name]
                pair = (task.transform(label[name], frame) for label in (labels, truth))
                both = ({field: np.asarray(value)[None] for field, value in one.items()} for one in pair)
                mine.append({field: np.asarray(value) for field, value in task.measure(*both).items()})
        scores = {name: student.tasks[name].summarize(joined(mine)) for name, mine in rows.items()}
        box, mask = scores["detection"], scores["segmentation"]
        print(f"tiles {grid}: AP {box['AP']:.3f} AP50 {box['AP50']:.3f} mIoU {mask['mIoU']:.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8)
