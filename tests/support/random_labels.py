"""Random labels of every task, as a source and as the records of a label pass."""

import io
import zlib

import numpy as np
from PIL import Image

from must.core.types import ArraySpec, Example, Teacher
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.multi_label import MultiLabel
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation

CLASSES = ("cat", "dög, big", "cow", "2")
TASKS = {
    "class": Classification(CLASSES),
    "boxes": Detection(CLASSES),
    "masks": Segmentation(CLASSES, top_k=3),
    "depth": Depth(),
    "normals": Normals(),
    "several": MultiLabel(CLASSES),
}
SIZE = (23, 31)  # of the pictures; the maps have a pixel per 4 x 4, rounded up
STORED = (6, 8)


def random_labels(rng, size=SIZE, stored=STORED):
    """One label of each task in record form, with all that a field may hold."""
    count = int(rng.integers(0, 5))
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), 1) * (size[1], size[0])
    ids = rng.permuted(np.tile(np.arange(len(CLASSES), dtype=np.uint8), (*stored, 1)), axis=-1)[..., :3]
    ids[rng.random(stored) < 0.1] = 255
    normals = rng.normal(size=(*stored, 3)) - (0, 0, 2)
    normals = np.round(127 * normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.int8)
    normals[rng.random(stored) < 0.1] = 0
    own = rng.spawn(1)[0]
    unknown = np.flatnonzero(own.random(len(CLASSES)) < 0.3).astype(np.uint16)
    several = own.choice([0, 1, *own.uniform(0.001, 1, 4)], len(CLASSES)).astype(np.float16)
    several[unknown] = 0
    probs = np.sort(rng.dirichlet(np.ones(len(CLASSES))))[::-1].astype(np.float16)
    listed = int(rng.integers(1, len(CLASSES) + 1))
    return {
        "class": {
            "ids": rng.permutation(len(CLASSES)).astype(np.uint16)[:listed],
            "probs": probs[:listed],
            "rest": np.float16(probs[listed:].sum()),
            "unknown": np.flatnonzero(rng.random(len(CLASSES)) < 0.3).astype(np.uint16),
        },
        "boxes": {
            "boxes": corners.reshape(count, 4).astype(np.float32),
            "classes": rng.integers(0, len(CLASSES), count).astype(np.uint16),
            "scores": rng.uniform(0, 1, count).astype(np.float16),
            "crowd": rng.random(count) < 0.3,
            "unknown": np.flatnonzero(rng.random(len(CLASSES)) < 0.3).astype(np.uint16),
        },
        "masks": {
            "ids": ids,
            "probs": rng.integers(0, 256, ids.shape, np.uint8),
            "unknown": np.flatnonzero(rng.random(len(CLASSES)) < 0.3).astype(np.uint16),
        },
        "depth": {
            "depth": rng.choice(np.array([0, 1, 2, 30000, 65534, 65535], np.uint16), stored),
            "scale": np.float32(rng.uniform(1e-6, 9e-4)),
            "offset": np.float32(rng.uniform(-1e-9, 3)),
            "scores": rng.integers(0, 256, stored, np.uint8) if count else np.full((1, 1), 254, np.uint8),
        },
        "normals": {"normals": normals, "scores": rng.integers(0, 256, stored, np.uint8)},
        "several": {"scores": several, "unknown": unknown},
    }


class Labeled:
    """Random examples with the given ids, some without some labels; every other picture is there as a JPEG."""

    name, fingerprint = "pool", "random"

    def __init__(self, ids, seed=0, missing=True):
        self.ids = list(ids)
        self.classes = dict.fromkeys(("class", "boxes", "masks", "several"), CLASSES)
        rng = np.random.default_rng(seed)
        self.known = [random_labels(rng) for _ in self.ids]
        for label in self.known[1::2] if missing else ():
            del label[str(rng.choice(list(label)))]

    def __len__(self):
        return len(self.ids)

    def image(self, index):
        return np.random.default_rng(zlib.crc32(self.ids[index].encode())).integers(0, 255, (*SIZE, 3), np.uint8)

    def encoded(self, index):
        if index % 2:
            return None
        file = io.BytesIO()
        Image.fromarray(self.image(index)).save(file, "JPEG")
        return file.getvalue()

    def labels(self, index):
        return {task: dict(label) for task, label in self.known[index].items()}

    def __getitem__(self, index):
        data = self.encoded(index)
        image = self.image(index) if data is None else np.asarray(Image.open(io.BytesIO(data)))
        return Example(self.ids[index], image, self.labels(index))


class Said:
    """A task whose teacher knows the pictures by heart: from the hash of one it says the label of that example."""

    def __init__(self, name, task, known):
        self.name, self.task, self.known = name, task, known

    def __getattr__(self, name):
        return getattr(self.task, name)

    def network_spec(self, size):
        return {"key": ArraySpec((), "int64")}

    def restore(self, label, geometry):
        predicted = self.known[int(label["key"])][self.name]
        return {field: predicted[field] for field in self.label_spec()}


def label_random(directory, source):
    """Writes records of a `Labeled` source whose labels are complete."""
    from must.data.geometry import transform_image, whole_image
    from must.pseudo_label.write import label_images

    def key(image):
        return zlib.crc32(image.tobytes())

    geometry = whole_image(SIZE, SIZE)
    keys = [key(transform_image(source[index].image, geometry)) for index in range(len(source))]
    known = dict(zip(keys, source.known, strict=True))
    tasks = {name: Said(name, task, known) for name, task in TASKS.items()}

    def predict(images):
        keys = np.array([key(np.asarray(image)) for image in images])
        return {name: {"key": keys} for name in tasks}

    label_images(
        directory, "random", source, [Teacher("random", tasks, predict, SIZE, "random")], shards=3, batch_size=4
    )
