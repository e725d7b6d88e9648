"""quickstart with the two tasks of tests/support/toy_tasks.py instead of its own; a few steps each."""

import importlib.util
import pathlib


def get_config():
    path = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("sanity")
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
    config.labeled = {name: name for name in tasks}
    config.pool = {"pool": {**scenes, "split": "pool", "count": 64}}
    config.policies = {name: {"positive": 0.5, "negative": 0.5} for name in tasks}
    config.model = {
        "backbone": {"kind": "resnet", "depth": 10, "width": 4, "stem": "imagenet", "stages": 1},
        "neck": {"channels": 8, "strides": (4,)},
    }
    config.label.shards = 2
    for section in (config.teacher, config.student, config.supervised, config.scratch):
        section.steps, section.batch_size = 4, 8
    config.workers = 1  # every further process starts Python and JAX once more
    config.baselines = ("supervised", "scratch")
    config.arms = {"few": {"pool_images": 16}}
    return config
