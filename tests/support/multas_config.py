"""The sanity run of multas with fewer arms and two steps of plain SGD: what the tests of the command line run."""

import importlib.util
import pathlib


def get_config():
    path = pathlib.Path(__file__).parents[2] / "configs" / "multas.py"
    spec = importlib.util.spec_from_file_location("multas", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("sanity")
    config.sets.scenes.train.count = 32
    config.sets.scenes.validation.count = config.sets.scenes.test.count = 16
    config.model.backbone.width = config.teacher.model.backbone.width = 4
    config.model.backbone.stages = 1  # one level: compiling is nearly all of it
    config.model.neck.update(channels=8, strides=(4,))
    config.tasks.detection.strides = (4,)
    for section in (config.teacher, config.student):
        section.update(steps=6, checkpoint_every=2, log_every=1)
        section.optimizer = {"name": "sgd", "learning_rate": 0.01, "warmup": 0, "weight_decay": 0.0, "clip_norm": 0.0}
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
    return config
