"""Speed of the metrics: boxes against pycocotools, masks and classes against a loop over classes in NumPy.

    python tests/benchmarks/evaluate.py [--quick] [--json FILE]

Both sides score the same random predictions and must give the same number; arms take turns. pycocotools gets its
dictionaries for nothing: the clock runs over loadRes, evaluate and accumulate.
"""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import measure

from must.tasks import base

CLASSES = tuple(f"c{i}" for i in range(80))


def boxes(images: int, true: int, found: int, size: int = 640) -> tuple[dict, dict]:
    """(predictions, truth) in network form: `true` boxes an image, found near them and elsewhere."""
    rng = np.random.default_rng(0)

    def corners(count: int) -> np.ndarray:
        middle, half = rng.uniform(50, size - 50, (images, count, 2)), rng.uniform(8, 120, (images, count, 2))
        return np.concatenate([middle - half, middle + half], -1).clip(0, size).astype(np.float32)

    truth = corners(true)
    near = np.repeat(truth, 3, 1) + rng.normal(0, 8, (images, 3 * true, 4)).astype(np.float32)
    predicted = np.concatenate([near.clip(0, size), corners(found - 3 * true)], 1)
    classes = rng.integers(0, len(CLASSES), (images, true))
    guessed = np.concatenate([np.repeat(classes, 3, 1), rng.integers(0, len(CLASSES), (images, found - 3 * true))], 1)
    wide = (predicted[..., 2:] - predicted[..., :2] > 1).all(-1)

    def label(boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, valid: np.ndarray) -> dict:
        known = np.ones((images, len(CLASSES)), bool)
        facts = {"boxes": boxes, "classes": classes.astype(np.int32), "scores": scores, "valid": valid}
        return facts | {"crowd": np.zeros(valid.shape, bool), "known": known}

    scores = -np.sort(-rng.uniform(0.05, 1, (images, found)).astype(np.float32))
    return label(predicted, guessed, scores, wide), label(
        truth, classes, np.ones(classes.shape, np.float32), np.ones(classes.shape, bool)
    )


def referee(predicted: dict, truth: dict):
    """() -> AP by pycocotools of the same boxes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows: list[list[dict]] = [[], []]
    for label, its in ((truth, rows[0]), (predicted, rows[1])):
        for image, at in zip(*np.nonzero(label["valid"]), strict=True):
            x0, y0, x1, y1 = (float(value) for value in label["boxes"][image, at])
            facts = {"image_id": int(image) + 1, "category_id": int(label["classes"][image, at]) + 1}
            facts |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            its.append(facts | {"id": len(its) + 1, "score": float(label["scores"][image, at])})
    reference = COCO()
    images, categories = range(len(truth["valid"])), range(len(CLASSES))
    reference.dataset = {"images": [{"id": i + 1} for i in images], "categories": [{"id": i + 1} for i in categories]}
    reference.dataset["annotations"] = rows[0]

    def work() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            reference.createIndex()
            evaluation = COCOeval(reference, reference.loadRes([dict(row) for row in rows[1]]), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])

    return work


def loop_of_masks(predicted: np.ndarray, true: np.ndarray) -> float:
    """Mean IoU, image by image and class by class."""
    hit, union = np.zeros(len(CLASSES)), np.zeros(len(CLASSES))
    for one, other in zip(predicted, true, strict=True):
        for c in range(len(CLASSES)):
            hit[c] += ((one == c) & (other == c)).sum()
            union[c] += ((one == c) | (other == c)).sum()
    return float((hit[union > 0] / union[union > 0]).mean())


def compare(results: measure.Results, what: str, images: int, arms: dict, rounds: int) -> None:
    """Images a second of both; refuses arms that give different scores."""
    scores = {name: work() for name, work in arms.items()}
    if np.ptp(list(scores.values())) > 1e-6:
        raise ValueError(f"{what}: the arms disagree: {scores}")
    spent = measure.alternating(arms, rounds)
    ours = spent["must"]
    for name, seconds in spent.items():
        results.add(f"{what}, {name}", images_per_second=images / seconds, of_ours=seconds / ours, score=scores[name])


def main() -> None:
    chosen = measure.options(__doc__)
    results = measure.Results(chosen.json)
    images, rounds = (50, 1) if chosen.quick else (1000, 3)
    detection = base.build("detection", classes=CLASSES, max_detections=100)
    predicted, truth = boxes(images, true=7, found=100)
    ours = lambda: detection.summarize(detection.measure(predicted, truth))["AP"]  # noqa: E731
    compare(results, "boxes", images, {"must": ours, "pycocotools": referee(predicted, truth)}, rounds)

    images, rng = images // 10, np.random.default_rng(1)
    true = rng.integers(0, len(CLASSES), (images, 32, 32), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    guess = np.where(rng.random(true.shape) < 0.7, true, rng.integers(0, len(CLASSES), true.shape, dtype=np.uint8))
    segmentation = base.build("segmentation", classes=CLASSES)
    label = {"ids": guess[..., None], "probs": np.full((*guess.shape, 1), 255, np.uint8)}
    arms = {
        "must": lambda: segmentation.summarize(segmentation.measure(label, {"ids": true[..., None]}))["mIoU"],
        "a loop in NumPy": lambda: loop_of_masks(guess, true),
    }
    compare(results, "masks of 512 px", images, arms, rounds)


if __name__ == "__main__":
    main()
