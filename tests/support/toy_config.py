"""quickstart with the two tasks of tests/support/toy_tasks.py instead of its own; a few steps each."""

from must.recipes.table import complete
from tests.support.configs import load


def get_config():
    config = load("configs/quickstart.py").get_config("sanity")
    tasks = {"edges": "tests.support.toy_tasks:EdgeMap", "corners": "tests.support.toy_tasks:Corners"}
    scenes = {"kind": "tests.support.toy_tasks:ToyScenes", "seed": "{seed}", "count": 32}
    config.tasks = {name: {"kind": kind} for name, kind in tasks.items()}
    config.sets = {
        name: {
            "train": {**scenes, "name": name, "toys": (name,), "start": 1000 * i},
            "validation": {**scenes, "split": "validation", "toys": (name,)},
            "test": {**scenes, "split": "test", "toys": (name,)},
        }
        for i, name in enumerate(tasks)
    }
    config.train_sets = {name: name for name in tasks}
    config.pool = {"pool": {**scenes, "split": "pool", "count": 64}}
    config.policies = {name: {"positive": 0.5, "negative": 0.5} for name in tasks}
    config.model = {
        "backbone": {"kind": "resnet", "depth": 10, "width": 4, "stem": "imagenet", "stages": 1},
        "neck": {"kind": "fpn", "channels": 8, "strides": (4,)},
    }
    config.label.shards = 2
    for section in (config.teacher, config.student, config.supervised, config.scratch):
        section.steps, section.batch_size, section.loss_scales = 4, 8, {}
    config.workers = 1  # every further process starts Python and JAX once more
    config.baselines = ("supervised", "scratch")
    config.arms = {"few": {"pool_images": 16}}
    config.quality = config.gallery = config.files = {"enabled": True}
    return complete(config)
