"""JEDI as small as it can be: two sets of moving scenes, clips of 4 and of 3 frames of 16 pixels, six steps of SGD."""

import numpy as np

from must.core import labels as record_form
from must.recipes.table import complete
from must.scenes.moving import MovingScenes
from tests.support.configs import load


def get_config():
    config = load("configs/jedi.py").get_config("sanity")
    frames = {"camera": 4, "turns": 3}
    clip = {"kind": "moving_scenes", "seed": "{seed}", "size": 16, "frames": 6}
    counts = {"train": 20, "validation": 28, "test": 28}
    config.image.size = (16, 16)
    config.tasks = {name: {"kind": "action", "dropout": 0.25} for name in frames}
    config.sets = {
        name: {
            split: {**clip, "actions": name, "task": name, "split": split, "count": count}
            for split, count in counts.items()
        }
        for name in frames
    }
    config.pool = {"both": {**clip, "actions": "both", "split": "pool", "count": 12, "labels": False}}
    config.workers = 1
    config.experts = {name: {"frames": count} for name, count in frames.items()}
    config.experts.camera.model = {"backbone": {"norm": "group"}}
    config.model = {
        "backbone": {"kind": "temporal_shift", "depth": 10, "width": 4, "stem": "small", "stages": 2},
    }
    for section in (config.expert, config.joint):
        section.update(
            steps=6, batch_size=4, evaluate_every=1, checkpoint_every=2, log_every=1, patience=0, ema_decay=0.5
        )
        section.optimizer = {"name": "sgd", "learning_rate": 0.3}
    config.expert.evaluate_every = 3
    config.arms = {"plain": {"distill": 0.0}, "frozen": {"frozen": True}}
    config.words = {}
    config.controls = ()
    config.pairs = (("student", "expert"), ("student", "plain"), ("student", "frozen"), ("teacher", "expert"))
    config.expected = (("student", "expert"),)
    return complete(config)


class Relabeled(MovingScenes):
    """The same clips with classes drawn at random."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        drawn = int(np.random.default_rng(index).integers(len(self.classes[self.task])))
        return example._replace(labels={self.task: record_form.classification(drawn)})
