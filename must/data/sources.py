"""Builds sources from a kind and keyword arguments, as in a section of a configuration."""

import importlib
import inspect
from typing import Any

import numpy as np

from must.core.arguments import check, scalar
from must.core.types import Source, UserError
from must.data.combine import Aliased, labels_of

KINDS = {
    "scenes": "must.scenes.still:Scenes",
    "moving_photos": "must.data.moving_photos:MovingPhotos",
    "aliased": "must.data.combine:Aliased",
    "moving_scenes": "must.scenes.moving:MovingScenes",
    "records": "must.readers.records:Records",
    "tfds": "must.readers.tfds:Tfds",
    "image_folder": "must.readers.folders:ImageFolder",
    "image_csv": "must.readers.folders:ImageCsv",
    "attribute_csv": "must.readers.folders:AttributeCsv",
    "photos": "must.readers.folders:Photos",
    "coco": "must.readers.coco:CocoJson",
    "coco_panoptic": "must.readers.panoptic:CocoPanoptic",
    "yolo": "must.readers.yolo:Yolo",
    "voc": "must.readers.voc:Voc",
    "mask_png": "must.readers.dense:MaskPng",
    "depth_png": "must.readers.dense:DepthPng",
    "normals_png": "must.readers.dense:NormalsPng",
    "frame_folders": "must.readers.frames:FrameFolders",
    "video_files": "must.readers.video:VideoFiles",
    "declared": "must.readers.declared:Declared",
    "edited_coco": "must.data.edited:EditedCoco",
    "label_files": "must.readers.label_files:LabelFiles",
    "join": "must.data.merge:Join",
    "concat": "must.data.merge:Concat",
    "subset": "must.data.combine:Subset",
    "overlay": "must.data.merge:Overlay",
    "cached": "must.data.combine:Cached",
    "listed": "must.data.splits:Listed",
    "annotated": "must.data.splits:Annotated",
    "without": "must.data.splits:Without",
    "remapped": "must.data.classes:Remapped",
}


def source(kind: str, **arguments: Any) -> Source:
    """Builds a source.

    Args:
      kind: one of `KINDS`, or the import path of a class ("package.module:Class").
      **arguments: of its constructor; None stands for the default. Mappings with a "kind", also inside lists and
        mappings, are built as sources: source("subset", source={"kind": "photos", "root": "pool"}, count=100). `task`
        names the labels of any kind that reads labels of one task, whether or not its constructor has the argument.

    Raises:
      UserError: unknown kind, unknown or missing argument, or an error of the constructor.
    """
    cls = class_of(kind)
    arguments = {name: _built(value) for name, value in arguments.items() if value is not None}
    what, task = f"source kind {kind!r}", ""
    if "task" in arguments and not _takes(cls, "task"):
        task = scalar(arguments.pop("task"), str, f"{what}: task")
        if not task:
            raise UserError(f"{what}: task='' names no task")
        if _takes(cls, "tasks") and len(own := _listed(arguments.get("tasks", _default(cls, "tasks")))) == 1:
            arguments["tasks"], task = {own[0]: task}, ""
    check(cls, arguments, what)
    try:
        made = cls(**arguments)
    except (TypeError, ValueError, AttributeError, LookupError) as error:  # values that fit no annotation
        raise UserError(f"{what}: {type(error).__name__}: {error}") from error
    if not hasattr(made, "fingerprint"):
        raise UserError(f"{what}: makes a {type(made).__name__}, not a data set")
    return _renamed(made, task, what) if task else made


def _takes(cls: type, name: str) -> bool:
    known = inspect.signature(cls).parameters.values()
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in known)


def _default(cls: type, name: str) -> Any:
    return inspect.signature(cls).parameters[name].default


def _listed(tasks: Any) -> list[str]:
    return [tasks] if isinstance(tasks, str) else list(tasks) if isinstance(tasks, list | tuple) else []


def _renamed(made: Source, task: str, what: str) -> Source:
    """The source with its labels, which are of one task, under another name."""
    seen = np.unique(np.linspace(0, len(made) - 1, min(32, len(made))).round().astype(int))
    looked = [name for index in seen for name in labels_of(made, int(index))]  # depth has no classes
    own = list(dict.fromkeys([*made.classes, *looked]))
    if len(own) != 1:
        has = f"has labels of {', '.join(own)}" if own else "has no labels"
        raise UserError(f"{what}: task={task!r} names the labels of a source of one task, and {made.name} {has}")
    return Aliased(made, {task: own[0]}, keep=False)


def class_of(kind: str) -> type:
    """The class of a kind; UserError for an unknown kind."""
    if not isinstance(kind, str):
        raise UserError(f"source kind {kind!r}: expected text")
    module_name, _, class_name = KINDS.get(kind, kind).partition(":")
    if not class_name:
        raise UserError(f"source kind {kind!r}: expected one of {', '.join(KINDS)}, or 'package.module:Class'")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"source kind {kind!r}: {error}") from None


def _built(value: Any) -> Any:
    """The value with every nested section of a source replaced by the source."""
    if isinstance(value, list | tuple):
        return [_built(item) for item in value]
    if not hasattr(value, "items"):
        return value
    section = dict(value.items())
    return source(**section) if "kind" in section else {name: _built(item) for name, item in section.items()}
