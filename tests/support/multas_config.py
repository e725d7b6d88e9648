"""The sanity run of multas with fewer arms and two steps of plain SGD: what the tests of the command line run."""

from must.recipes.table import complete
from tests.support.configs import load


def get_config():
    module = load("configs/multas.py")
    config = module.get_config("sanity")
    config.sets.scenes.train.count = 32
    config.sets.scenes.validation.count = config.sets.scenes.test.count = 16
    config.model.backbone.width = config.teacher.model.backbone.width = 4
    config.model.backbone.stages = 1  # one level: compiling is nearly all of it
    config.model.neck.update(channels=8, strides=(4,))
    config.tasks.detection.strides = (4,)
    for section in (config.teacher, config.student):
        section.update(steps=6, checkpoint_every=2, log_every=1)
        section.optimizer = {"name": "sgd", "learning_rate": 0.01}
    config.splits = {"exclusive": {"exclusive": True}}
    config.grid = (
        {
            "tasks": (module.DETECTION,),
            "split": ("exclusive",),
            "images": ("unseen",),
            "labels": (("soft", "adaptor"),),
        },
        {
            "tasks": (module.BOTH,),
            "split": ("exclusive",),
            "annotation": ("own",),
            "labels": (("soft",),),
            "where": ("missing",),
        },
    )
    config.contrasts = ()
    config.hints.adaptor = {"standard": "phi_s", "scale": 1.0}
    return complete(config)
