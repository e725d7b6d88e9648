"""The :sanity variant of a recipe with one task or two, few examples and five steps of plain SGD: every stage, at the
least cost. What is compared on one process and on two."""

from must.recipes.table import complete
from tests.support.configs import load

SGD = {"name": "sgd", "learning_rate": 0.01}


def get_config(recipe):
    config = MADE[recipe]()
    config.workers = 1  # every further process starts Python and JAX once more
    return complete(config)


def must():
    """A teacher of depth and a student."""
    from tests.support.tiny_config import get_config as tiny

    config = tiny("depth")
    config.teacher.update(steps=5, ema_decay=0.0)
    config.student.steps, config.baselines = 5, ()
    return config


def multas():
    """A teacher of masks, and a student of it that sees other pictures."""
    config = load("configs/multas.py").get_config("sanity")
    _keep(config, "segmentation")
    config.image.size = (32, 32)
    for split in config.sets.scenes.values():
        split.labels, split.count = ("segmentation",), 32
    _narrow(config, config.teacher, config.student)
    config.teacher.model = {}
    config.grid = (
        {"tasks": (("segmentation",),), "split": ("quarter",), "images": ("unseen",), "labels": (("soft",),)},
    )
    config.splits, config.contrasts = {"quarter": {"share": 0.25}}, ()
    return config


def jedi():
    """Two experts, and the joint stage with one arm."""
    from tests.support.jedi_config import get_config as small

    config = small()
    for section in (config.expert, config.joint):
        section.update(evaluate_every=0, checkpoint_every=100, steps=5)
        section.optimizer.learning_rate = 0.01
    config.arms, config.pairs = {"plain": {"distill": 0.0}}, (("student", "expert"), ("student", "plain"))
    return config


def weighted():
    """One budget, a weighted and a corrected student."""
    config = load("configs/weighted_distillation.py").get_config("sanity")
    config.budgets = (32,)
    config.pool.pool.count = config.oracle_truth.classification.count = 32
    config.sets.scenes.validation.count = config.sets.scenes.test.count = 32
    config.arms = {name: config.arms[name] for name in ("weighted", "slam")}
    config.arms.weighted.weights.every = 3
    _narrow(config, config.teacher, config.student, config.supervised, config.scratch)
    config.teacher.model, config.baselines = {}, ()
    config.label.shards = 2
    return config


def transfer():
    """One task; random numbers and SimCLR, fine-tuned, probed and by nearest neighbors."""
    config = load("configs/transfer.py").get_config("sanity")
    _keep(config, "material")
    config.labels, config.learning_rates = (1.0,), (1e-2,)
    _narrow(config, config.finetune, config.probe, config.self_supervised)
    return config


def _keep(config, task):
    for section in (config.tasks, config.train_sets, config.get("policies", {})):
        for other in [name for name in section if name != task]:
            del section[other]


def _narrow(config, *runs):
    config.model.backbone.update(width=4, stages=1)
    config.model.neck.update(channels=8, strides=(4,))
    for run in runs:
        run.update(steps=5, batch_size=8, evaluate_every=0, log_every=1, loss_scales={}, ema_decay=0.0)
        run.optimizer = dict(SGD)


MADE = {"must": must, "multas": multas, "jedi": jedi, "weighted_distillation": weighted, "transfer": transfer}
