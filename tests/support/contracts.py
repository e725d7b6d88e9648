"""Labels of every kind that break what readers rely on, in record form, and teachers that say such things."""

import numpy as np

from must.core import labels
from must.core.types import Example, Teacher
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.multi_label import MultiLabel
from must.tasks.normals import Normals

CLASSES, SIZE = ("cat", "dog", "cow"), (16, 24)


def whole() -> dict[str, dict]:
    """{kind: a label that keeps the contract}."""
    up = np.zeros((4, 6, 3), np.int8)
    up[..., 2] = -127
    return {
        "classification": labels.classification(1),
        "detection": labels.detection([[1, 2, 8, 9], [0, 0, 24, 16]], [0, 2], [False, False]),
        "multi_label": labels.multi_label([0.2, 1.0, 0.0]),
        "depth": labels.depth(np.full((4, 6), 900), 1e-3),
        "normals": {"normals": up, "scores": np.full((1, 1), 255, np.uint8)},
    }


# kind, field, its value, what is said of it
BROKEN = [
    ("classification", "probs", np.array([0.7], np.float16), "probs and rest sum to 0.7"),
    ("classification", "rest", np.float16(0.4), "probs and rest sum to 1.4"),
    ("classification", "probs", np.array([-0.5], np.float16), "probs is outside 0..1"),
    ("classification", "ids", np.array([3], np.uint16), "ids holds class id 3 with 3 classes"),
    ("detection", "boxes", np.array([[1, 2, 1, 9], [0, 0, 2, 2]], np.float32), "has no area"),
    ("detection", "boxes", np.array([[5, 2, 1, 9], [0, 0, 2, 2]], np.float32), "has no area"),
    ("detection", "boxes", np.array([[-3, 2, 1, 9], [0, 0, 2, 2]], np.float32), "has no area"),
    ("detection", "boxes", np.array([[np.nan, 2, 1, 9], [0, 0, 2, 2]], np.float32), "boxes is not finite"),
    ("detection", "scores", np.array([1.5, 0.5], np.float16), "scores is outside 0..1"),
    ("detection", "classes", np.array([0, 7], np.uint16), "classes holds class id 7"),
    ("multi_label", "scores", np.array([-1, 0, 0], np.float16), "scores is outside 0..1"),
    ("depth", "offset", np.float32(-1), "depth has -0.1 m"),
    ("depth", "scale", np.float32(-1), "depth has -900 m"),
    ("depth", "scale", np.float32(np.inf), "scale is not finite"),
    ("depth", "scale", np.float32(0), "depth has 0 m"),
    ("normals", "normals", np.full((4, 6, 3), (0, 0, -63), np.int8), "length 0.496"),
    ("normals", "normals", np.full((4, 6, 3), (0, 0, -114), np.int8), "length 0.898"),
    ("normals", "normals", np.full((4, 6, 3), (100, 100, 0), np.int8), "length 1.11"),
]

TASKS = {
    "classification": Classification(CLASSES),
    "detection": Detection(CLASSES),
    "multi_label": MultiLabel(CLASSES),
    "depth": Depth(),
    "normals": Normals(),
}


def _map(value: float, count: int) -> np.ndarray:
    return np.full((count, *SIZE), value, np.float32)


def _boxes(*corners: float, score: float = 0.5):
    def label(count: int) -> dict:
        return {
            "boxes": np.tile(np.array(corners, np.float32), (count, 1, 1)),
            "classes": np.zeros((count, 1), np.int32),
            "scores": np.full((count, 1), score, np.float32),
            "valid": np.ones((count, 1), bool),
            "crowd": np.zeros((count, 1), bool),
            "known": np.ones((count, len(CLASSES)), bool),
        }

    return label


def _normals(length: float):
    return lambda count: {"normals": np.stack([_map(0, count), _map(0, count), _map(-length, count)], -1)}


# kind, what a teacher says of a batch of so many pictures in network form, what is said of that
SAYINGS = [
    ("classification", lambda count: {"probs": np.full((count, 3), 0.3, np.float32)}, "no probabilities"),
    ("classification", lambda count: {"probs": np.full((count, 3), np.nan, np.float32)}, "is not finite"),
    ("multi_label", lambda count: {"scores": np.full((count, 3), 1.5, np.float32)}, "outside 0..1"),
    ("detection", _boxes(9, 2, 4, 8), "reversed"),
    ("detection", _boxes(2, 2, 400, 8), "outside 24 x 16 pixels"),
    ("detection", _boxes(2, 2, 8, 8, score=2), "outside 0..1"),
    ("depth", lambda count: {"depth": _map(-1, count)}, "which is below 0, in "),
    ("depth", lambda count: {"depth": _map(np.inf, count)}, "not finite"),
    ("normals", _normals(0.5), "a vector of length 0.5, not 1 or 0, in "),
    ("normals", _normals(0.9), "a vector of length 0.9, not 1 or 0, in "),
]


class Gray:
    """Four gray pictures."""

    name, fingerprint, classes = "gray", "gray", {}
    ids = tuple(f"gray/{number}" for number in range(4))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        return Example(self.ids[index], np.full((*SIZE, 3), 20 * index, np.uint8), {})


def teacher(kind: str, say) -> Teacher:
    """One that says the same of every picture, in network form."""
    spec = TASKS[kind].network_spec(SIZE)

    def predict(images):
        said = say(len(images))
        if "scores" in spec and "scores" not in said and spec["scores"].dtype == "uint8":
            said["scores"] = np.full((len(images), *spec["scores"].shape), 200, np.uint8)
        return {kind: said}

    return Teacher("by hand", {kind: TASKS[kind]}, predict, SIZE, kind)


class Stored:
    """A task that stores a given label whatever the teacher says, and is not asked whether it may."""

    classes = CLASSES

    def __init__(self, kind: str, label: dict):
        self._task, self._label = TASKS[kind], label

    def label_spec(self):
        return self._task.label_spec()

    def network_spec(self, size):
        return {}

    def restore(self, label, geometry):
        return self._label


def store(directory, kind: str, label: dict) -> None:
    """Writes records of one label; `check_record` has to be out of the way for one that is broken."""
    from must.pseudo_label.write import label_images

    predict = lambda images: {kind: {}}  # noqa: E731
    label_images(directory, "r", Gray(), [Teacher("x", {kind: Stored(kind, label)}, predict, SIZE, "x")], shards=1)
