"""`must`: many single-task teachers label a pile of images, one multi-head student learns from all of them.

Everything public is here by name and is loaded on first use, so that importing this package costs next to nothing and
has no side effects: `from must import train_step, parallelize, Depth`. The functions are pure and take any model that
is an (init, apply) pair (`Model`); no configuration, flag or global state stands behind them.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "must.core.types": (
        "ArraySpec Balance Batch Example Features Geometry LabelError Metric Model Objective PerExample "
        "Policy Source Teacher TrainState UserError"
    ),
    "must.core.notices": "Notice",
    "must.core.ratio": "Ratio all_devices weighted_sum",
    "must.core.devices": (
        "global_row_index initialize_distributed is_writer move_to_cores parallelize process_rows replicate "
        "set_xla_flags"
    ),
    "must.tasks.base": "Task",
    "must.tasks.action": "Action",
    "must.tasks.classification": "Classification",
    "must.tasks.depth": "Depth InverseDepth",
    "must.tasks.detection": "Detection",
    "must.tasks.instances": "Instances",
    "must.tasks.multi_label": "MultiLabel",
    "must.tasks.normals": "Normals",
    "must.tasks.segmentation": "Segmentation",
    "must.tasks.two_stage": "TwoStage",
    "must.models.experts": "Expert Experts expert_variables experts from_experts",
    "must.models.convnext": "ConvNeXt",
    "must.models.fpn": "FPN PAFPN SimplePyramid",
    "must.models.multi_head": "MultiHead multi_head over_clips",
    "must.models.temporal_shift": "R2Plus1D TemporalShiftResNet VideoTransformer",
    "must.models.resnet": "ResNet",
    "must.models.vit": "ViT",
    "must.readers.coco": "CocoJson",
    "must.readers.dense": "DepthPng MaskPng NormalsPng",
    "must.readers.folders": "AttributeCsv ImageCsv ImageFolder Photos",
    "must.readers.voc": "Voc",
    "must.data.clips": "ClipEncoder Window",
    "must.data.disjoint": "check_disjoint look_alikes overlaps",
    "must.readers.frames": "FrameFolders",
    "must.data.moving_photos": "MovingPhotos",
    "must.scenes.moving": "MovingScenes",
    "must.scenes.still": "Scenes",
    "must.readers.video": "VideoFiles",
    "must.readers.records": "Records",
    "must.data.edited": "EditedCoco",
    "must.readers.label_files": "LabelFiles",
    "must.data.weights": "read_weights write_weights",
    "must.data.augment": "Photometric RandAugment",
    "must.data.mix": "CutMix Cutout",
    "must.data.combine": "Aliased Cached Repeated Subset Weighted",
    "must.data.merge": "Join Overlay Paired",
    "must.data.sources": "source",
    "must.data.pipeline": "Encoder Grouped Joined epoch_steps eval_batches train_batches",
    "must.data.rejects": "Reject check_source",
    "must.train.checkpoint": "Checkpoints",
    "must.train.loop": "fit",
    "must.train.optimizer": "optimizer",
    "must.train.step": "train_step",
    "must.objectives.joint": "joint",
    "must.objectives.mean_teacher": "MeanTeacher mean_teacher",
    "must.objectives.objective": "objective",
    "must.objectives.hints": "hints",
    "must.objectives.labels": "labels learning_rate_rule loss_step",
    "must.objectives.slam": "mix mix_binary mixed_cross_entropy slam top_candidates",
    "must.pseudo_label.adapters.hugging_face": "hf_depth hf_detector hf_segmenter",
    "must.pseudo_label.adapters.modules": "from_onnx from_torch",
    "must.pseudo_label.adapters.vision": "torchvision_detector torchvision_segmenter ultralytics_detector",
    "must.pseudo_label.beam": "label_with_beam",
    "must.pseudo_label.write": "add_labels label_images",
    "must.pseudo_label.clips": "write_clips",
    "must.pseudo_label.plan": "Estimate describe estimate make_plan",
    "must.pseudo_label.teacher": "from_function from_model in_frame label_step",
    "must.pseudo_label.fusion": "fuse",
    "must.pseudo_label.policy": "read_policies save_policies",
    "must.export.exported": "Exported load_exported",
    "must.export.predict": "Predictor",
    "must.export.write": "export_model preprocessing read_alone",
    "must.recipes.table": "load",
    "must.export.labels": "export_labels",
    "must.export.tfrecord": "write_tfrecord",
    "must.evaluate.evaluate": "as_annotated bootstrap_interval measure_batches summarize",
    "must.evaluate.quality": "quality",
    "must.report.gallery": "write_gallery",
    "must.report.quality": "write_quality",
    "must.evaluate.statistics": "delta_m paired_t_interval",
}
_MODULES = {
    "aggregate": "must.objectives.aggregate",
    "balance": "must.objectives.balance",
    "boxes": "must.core.boxes",
    "calibrate": "must.pseudo_label.calibrate",
    "distill": "must.objectives.distill",
    "geometry": "must.data.geometry",
    "losses": "must.core.losses",
    "policy": "must.pseudo_label.policy",
    "ratio": "must.core.ratio",
    "splits": "must.data.splits",
    "state": "must.train.state",
    "label_states": "must.tasks.label_states",
    "weigh": "must.pseudo_label.weigh",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str):
    """Loads a public name from its module (PEP 562)."""
    if name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
