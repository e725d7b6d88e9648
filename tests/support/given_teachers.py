"""External teachers of a configuration: the truth of small scenes with the errors of `tests.support.toy_teacher`."""

import numpy as np

from must.core.types import UserError
from must.data.pipeline import Encoder
from must.pseudo_label.teacher import from_function
from must.scenes.still import Scenes
from tests.support import toy_teacher

COUNTS = {"pool": 20, "validation": 40, "test": 24}
ASKED = []  # images of every batch, so that a test sees whether a teacher was asked


def scenes(split, tasks=(), count=None):
    """The section of a set of small scenes."""
    return {"kind": "scenes", "split": split, "count": count or COUNTS[split], "size": 64, "labels": tuple(tasks)}


def knowing(name, tasks, size, mistakes=True):
    """A teacher of the small scenes; `size` must be theirs."""
    if tuple(size) != (64, 64):
        raise UserError(f"teacher {name}: knows scenes of 64 x 64 pixels, not of {size}")
    known = {}
    for split, count in COUNTS.items():
        source = Scenes(count, split=split, size=64, labels=tuple(tasks))
        encoder = Encoder(dict(tasks), (64, 64))
        for index in range(count):
            example, rng = source[index], np.random.default_rng(index)
            truth = encoder(example, index, rng).labels
            predicted = {
                key: toy_teacher._SAY[key](task, truth[key], rng) if mistakes else truth[key]
                for key, task in tasks.items()
            }
            known[example.image.tobytes()] = predicted

    def predict(images):
        ASKED.append(len(images))
        black = next(iter(known.values()))
        rows = [known.get(image.tobytes(), black) for image in images]
        return {key: {field: np.stack([row[key][field] for row in rows]) for field in rows[0][key]} for key in tasks}

    return from_function(name, predict, tasks, size=size, fingerprint=f"knowing {mistakes}")


def no_teacher(name, tasks, size):
    """Returns something else."""
    return name
