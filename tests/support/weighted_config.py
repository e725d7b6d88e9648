"""Two tasks of the embedded scenes with weighted and corrected students, a few steps each: what test_weighting runs."""

from must.recipes.table import complete
from tests.support.tiny_config import get_config as tiny


def get_config():
    config = tiny()
    for name in config.tasks:
        config.sets[name].validation.count = 32
    pool = config.pool.pool.to_dict()
    config.oracle_truth = {name: {**pool, "labels": (name,)} for name in config.tasks}
    config.arms = {
        "weighted": {"weights": {"kind": "ratio_of_means", "every": 4}},
        "corrected": {"slam": {"enabled": True, "floor": 0.3, "tasks": ("classification",)}},
        "told": {"oracle_labels": True},
    }
    config.baselines = ()
    config.workers = 1  # every further process starts Python and JAX once more
    return complete(config)
