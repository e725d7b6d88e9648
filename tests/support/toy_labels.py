"""A source, a task with every kind of field, a teacher of plain NumPy; and one worker of a label pass as a program."""

import dataclasses
import sys
import time

import numpy as np

from must.core.types import ArraySpec, Example, Teacher, UserError


class ToySource:
    """Pictures of varying size, drawn from their index; `broken` ones cannot be read."""

    name, classes = "toy", {}

    def __init__(self, count: int = 41, broken: tuple[int, ...] = (), fingerprint: str = "pictures"):
        self.ids = [f"toy/é {i:03d}" for i in range(count)]
        self.broken, self.fingerprint = broken, fingerprint

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        if index in self.broken:
            raise UserError(f"{self.ids[index]}: broken picture")
        rng = np.random.default_rng(index)
        height, width = rng.integers(5, 40, 2)
        return Example(self.ids[index], rng.integers(0, 256, (height, width, 3), np.uint8), {})


@dataclasses.dataclass(frozen=True)
class ToyTask:
    """Fields of every type and encoding; how many boxes there are depends on the picture."""

    classes: tuple[str, ...] = ("a", "b", "c")
    bright: float = 1.0

    def label_spec(self):
        return {
            "ids": ArraySpec((None,), "uint16", doc="class ids"),
            "probs": ArraySpec((None,), "float16"),
            "rest": ArraySpec((), "float16"),
            "boxes": ArraySpec((None, 4), "float32"),
            "crowd": ArraySpec((None,), "bool"),
            "map": ArraySpec((None, None, 1), "uint8", "png"),
            "plain": ArraySpec((None, None), "uint8", "png"),
            "color": ArraySpec((None, None, 3), "uint8", "png"),
            "depth": ArraySpec((None, None), "uint16", "zlib"),
            "scale": ArraySpec((), "float32"),
            "signed": ArraySpec((None, None, 3), "int8", "zlib"),
            "row": ArraySpec((None,), "float32", "zlib"),
            "fixed": ArraySpec((2, 3), "int64", "zlib"),
            "count": ArraySpec((), "int32"),
            "note": ArraySpec((), "str"),
        }

    def network_spec(self, size):
        return {"probs": ArraySpec((len(self.classes),), "float32"), "mean": ArraySpec((*size, 3), "float32")}

    def restore(self, label, geometry):
        height, width = geometry.source_size
        probs, mean = label["probs"], label["mean"]
        count = int(mean[0, 0].sum() * 1000) % 4
        ramp = np.arange(height * width * 3).reshape(height, width, 3)
        return {
            "ids": np.argsort(-probs).astype(np.uint16),
            "probs": np.sort(probs)[::-1].astype(np.float16),
            "rest": np.float16(0),
            "boxes": np.outer(np.arange(count) + 1, [1, 2, 3, 4]).astype(np.float32) + probs[0],
            "crowd": np.arange(count) % 2 == 1,
            "map": (ramp[..., :1] % 255).astype(np.uint8),
            "plain": (ramp[..., 0] // 7 % 251).astype(np.uint8),
            "color": (ramp % 249).astype(np.uint8),
            "depth": (ramp[: height // 2, :, 0] * 31).astype(np.uint16),
            "scale": np.float32(mean[0, 0, 0] / 3),
            "signed": (ramp[:, : width - 4] % 254 - 127).astype(np.int8),
            "row": mean[0, :count, 0].astype(np.float32),
            "fixed": np.arange(6).reshape(2, 3) - 2**60,
            "count": np.int32(-count),
            "note": "ü" * count,
        }


def toy_teacher(*, seconds=0.0, task=ToyTask(), size=(16, 12), fingerprint="weights", edit=None):
    """Probabilities from the mean color; `edit` changes what it says, in place."""

    def predict(images):
        time.sleep(seconds)
        mean = images.reshape(len(images), -1, 3).mean(1, dtype=np.float64) + task.bright
        label = {
            "probs": (mean / mean.sum(-1, keepdims=True)).astype(np.float32),
            "mean": np.broadcast_to(mean[:, None, None].astype(np.float32), images.shape).copy(),
        }
        if edit:
            edit(label)
        return {"toy": label}

    return Teacher("toy teacher", {"toy": task}, predict, size, fingerprint)


def label_toy(directory, *, source=None, teacher=None, **arguments):
    """The pass that all tests share."""
    from must.pseudo_label.write import label_images

    settings = {"shards": 6, "batch_size": 4, **arguments}
    return label_images(directory, "toy", source or ToySource(), [teacher or toy_teacher()], **settings)


def main():
    """One worker: directory, its number, the number of workers, seconds per batch."""
    directory, worker, workers, seconds = sys.argv[1:]
    label_toy(directory, worker=(int(worker), int(workers)), teacher=toy_teacher(seconds=float(seconds)))
