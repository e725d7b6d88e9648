"""Two tasks of the embedded scenes with weighted and corrected students, a few steps each: what test_weighting runs."""

import importlib.util
import pathlib


def get_config():
    path = pathlib.Path(__file__).parent / "tiny_config.py"
    spec = importlib.util.spec_from_file_location("tiny_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    for name in config.tasks:
        config.sets[name].validation.count = 32
    pool = config.pool.pool.to_dict()
    config.hidden = {name: {**pool, "labels": (name,)} for name in config.tasks}
    config.arms = {
        "weighted": {"weights": {"kind": "ratio_of_means", "every": 4}},
        "corrected": {"slam": {"floor": 0.3, "wanted": 0.9, "tasks": ("classification",)}},
        "told": {"oracle_labels": True},
    }
    config.baselines = ()
    config.workers = 1  # every further process starts Python and JAX once more
    return config
