"""Two tasks, or one, tiny networks, a few SGD steps: what the tests of the command line run."""

from must.recipes.table import complete
from tests.support.configs import load


def get_config(variant=""):
    config = load("configs/quickstart.py").get_config("sanity")
    kept = (variant,) if variant else ("classification", "depth")
    for section in (config.tasks, config.sets, config.train_sets, config.policies):
        for name in [name for name in section if name not in kept]:
            del section[name]
    for name in kept:
        config.sets[name].train.count = 16
        config.sets[name].validation.count = config.sets[name].test.count = 16
    config.pool.pool.count = 64
    config.model.backbone.update(width=8, stages=1)
    config.model.neck.update(channels=8, strides=(4,))
    if "depth" in config.tasks:
        config.tasks.depth.update(width=8, depth=1)
    config.label.update(shards=4, batch_size=16)
    for section in (config.teacher, config.student, config.supervised, config.scratch):
        section.update(steps=12, batch_size=8, checkpoint_every=4, log_every=1, evaluate_every=0)
        section.optimizer, section.loss_scales = {"name": "sgd", "learning_rate": 0.01}, {}
    return complete(config)
