"""Labels as an imperfect teacher says them, made from the truth: it errs more often where it is less sure."""

import numpy as np

from must.data.pipeline import Encoder
from must.scenes.still import CLASSES, Scenes
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation

TASKS = {
    "classification": Classification(CLASSES["classification"]),
    "detection": Detection(CLASSES["detection"], max_boxes=32),
    "segmentation": Segmentation(CLASSES["segmentation"]),
    "depth": Depth(),
    "normals": Normals(),
}


def pairs(count: int, *, seed: int = 0, size: int = 64, split: str = "validation"):
    """{task: [(prediction, truth, id)]} on `count` scenes."""
    source, found = Scenes(count, seed=seed, size=size, split=split), {name: [] for name in TASKS}
    encoder = Encoder(TASKS, (size, size))
    for index in range(count):
        example, rng = source[index], np.random.default_rng((seed, index))
        for name, truth in encoder(example, index, rng).labels.items():
            found[name].append((_SAY[name](TASKS[name], truth, rng), truth, example.id))
    return found


def _distribution(task, truth, rng):
    count = len(task.classes)
    logits = 2.2 * truth["probs"] + rng.standard_normal(count) + 0.8 * np.roll(truth["probs"], 1)
    powered = np.exp(2.5 * logits)  # overconfident
    return {"probs": (powered / powered.sum()).astype(np.float32), "known": np.ones(count, bool)}


def _boxes(task, truth, rng):
    """Each object is found or missed, well or badly placed; and there are boxes of nothing."""
    predicted = {name: np.zeros_like(value) for name, value in truth.items()}
    where = np.flatnonzero(truth["valid"] & ~truth["crowd"])
    found = [i for i in where if rng.random() < 0.85]
    rows = []
    for i in found:
        ease = rng.beta(4, 1.5)
        side = truth["boxes"][i, 2:] - truth["boxes"][i, :2]
        shift = 0.35 * (1 - ease) * rng.standard_normal(4) * np.tile(side, 2)
        kind = truth["classes"][i] if rng.random() < 0.5 + 0.5 * ease else rng.integers(len(task.classes))
        rows.append((truth["boxes"][i] + shift, kind, ease**0.5))
    for _ in range(rng.poisson(2.0)):
        corner, side = rng.uniform(0, 40, 2), rng.uniform(6, 20, 2)
        rows.append((np.concatenate([corner, corner + side]), rng.integers(len(task.classes)), rng.beta(1.5, 4)))
    rows = sorted(rows, key=lambda row: -row[2])[: len(predicted["valid"])]
    for k, (box, kind, score) in enumerate(rows):
        predicted["boxes"][k], predicted["classes"][k] = np.clip(box, 0, 64), kind
        predicted["scores"][k], predicted["valid"][k] = min(score, 0.99), True
    predicted["known"][:] = True
    return predicted


def _sureness(truth_shape, rng):
    """A smooth map in 0..1, larger where the teacher is better; and noise of the same smoothness."""
    height, width = truth_shape
    coarse = rng.beta(4, 1.2) * np.ones((8, 8)) + 0.25 * rng.standard_normal((8, 8))
    enlarge = lambda m: np.kron(m, np.ones((height // 8, width // 8)))  # noqa: E731
    return np.clip(enlarge(coarse), 0.02, 0.995), enlarge(rng.standard_normal((8, 8))), enlarge(rng.random((8, 8)))


def _ids(task, truth, rng):
    true = truth["ids"][..., 0]
    sure, _, draw = _sureness(true.shape, rng)
    wrong = (draw > 0.35 + 0.65 * sure) & (true != task.ignore)
    ids = np.where(wrong, rng.integers(len(task.classes)), np.where(true == task.ignore, 0, true))
    probs = np.clip(255 * (0.3 + 0.69 * sure), 0, 254)
    return {"ids": ids[..., None].astype(np.uint8), "probs": probs[..., None].astype(np.uint8), "known": truth["known"]}


def _depth(task, truth, rng):
    sure, noise, _ = _sureness(truth["depth"].shape, rng)
    depth = np.clip(truth["depth"] * np.exp(0.45 * (1 - sure) * noise), 0.1, 10.0)
    return {"depth": depth.astype(np.float32), "scores": (254 * np.sqrt(sure)).astype(np.uint8)}


def _normals(task, truth, rng):
    sure, noise, draw = _sureness(truth["normals"].shape[:2], rng)
    tilt = 0.8 * (1 - sure)[..., None] * np.stack([noise, 2 * draw - 1, 0 * noise], -1)
    normals = truth["normals"] + tilt
    normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
    return {"normals": normals.astype(np.float32), "scores": (254 * sure).astype(np.uint8)}


_SAY = {
    "classification": _distribution,
    "detection": _boxes,
    "segmentation": _ids,
    "depth": _depth,
    "normals": _normals,
}
