"""Pretrained models of torchvision, and such with Ultralytics' interface, as teachers.

See `must.pseudo_label.adapters.pretrained`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import Teacher, UserError
from must.pseudo_label.adapters.modules import on_host, state_hash
from must.pseudo_label.adapters.pretrained import (
    ClassNames,
    bounded,
    box_teacher,
    class_map_of,
    only_task,
    pixel_teacher,
    pixels,
)
from must.tasks.base import Task


def torchvision_detector(
    name: str,
    tasks: Mapping[str, Task],
    model: Any,
    *,
    categories: Sequence[str] = (),
    class_map: ClassNames = None,
    device: str = "cpu",
    batch_size: int = 4,
) -> Teacher:
    """A teacher of boxes from a detector of torchvision (Faster R-CNN, RetinaNet, FCOS, SSD); of masks from Mask R-CNN.

    Args:
      name: for provenance and messages.
      tasks: {task: a task with boxes}.
      model: of torchvision's registry with its default weights, such as "fcos_resnet50_fpn"; or the module itself.
      categories: names of the module's labels by id, as `weights.meta["categories"]` has them.
      class_map: {label: class} or a file of such lines.
      device: that torch computes on.
      batch_size: pictures of one size that the network sees at once.

    Raises:
      UserError: no such model, or a class map that does not fit labels and classes.
    """
    import torch

    key, task = only_task(name, tasks)
    model, categories, _ = _registered(name, model, categories)
    classes = class_map_of(name, key, task, class_map, categories)
    model = model.eval().to(device)

    @torch.no_grad()
    def forward(images: np.ndarray) -> Iterator[Any]:
        for found in model(list(_tensor(images, device).float() / 255)):
            masks = {"masks": found["masks"] >= 0.5} if "masks" in found else {}
            yield {**{field: found[field] for field in ("boxes", "scores", "labels")}, **masks}

    return box_teacher(name, key, task, classes, forward, batch_size, (state_hash(model.state_dict()), classes.table))


def torchvision_segmenter(
    name: str,
    tasks: Mapping[str, Task],
    model: Any,
    *,
    transforms: Callable[[Any], Any] | None = None,
    categories: Sequence[str] = (),
    class_map: ClassNames = None,
    device: str = "cpu",
    batch_size: int = 4,
) -> Teacher:
    """A teacher of segmentation from a semantic segmenter of torchvision (DeepLabV3, FCN, LR-ASPP).

    Args: as of `torchvision_detector`, and
      transforms: uint8 [B, 3, H, W] -> the module's input, as `weights.transforms()` has them.

    Raises:
      UserError: no such model, or a class map that does not fit labels and classes.
    """
    import torch

    key, task = only_task(name, tasks)
    model, categories, own = _registered(name, model, categories)
    transforms = transforms or own
    if transforms is None:
        raise UserError(f"teacher {name}: a module needs its transforms=weights.transforms()")
    classes = class_map_of(name, key, task, class_map, categories)
    model = model.eval().to(device)

    @torch.no_grad()
    def forward(images: np.ndarray) -> Iterator[Any]:
        for logits in model(transforms(_tensor(images, device)))["out"].float():
            size = bounded(images.shape[1:3])
            large = torch.nn.functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
            yield pixels(large.softmax(0), classes, task.ignore)

    facts = (state_hash(model.state_dict()), repr(transforms), classes.table)
    return pixel_teacher(name, key, task, classes, forward, batch_size, facts)


def ultralytics_detector(
    name: str,
    tasks: Mapping[str, Task],
    model: Any,
    *,
    class_map: ClassNames = None,
    fingerprint: str = "",
    batch_size: int = 8,
    **options: Any,
) -> Teacher:
    """A teacher of boxes from anything that is called as Ultralytics' models are; their package is not needed here.

    That is: `model([uint8 [H, W, 3] in BGR, ...], conf=..., verbose=False)` returns for each picture an object with
    `boxes.xyxy` in its pixels, `boxes.conf` and `boxes.cls`; and `model.names` is {id: label}.

    Args:
      name: for provenance and messages.
      tasks: {task: a task with boxes}.
      model: as above. Ultralytics' code and weights are under the AGPL.
      class_map: {label: class} or a file of such lines.
      fingerprint: of the weights; by default the hash of `model.model.state_dict()`.
      batch_size: pictures of one size that the network sees at once.
      **options: of its call, such as imgsz=1280.

    Raises:
      UserError: a class map that does not fit labels and classes, or weights without a fingerprint.
    """
    key, task = only_task(name, tasks)
    names = model.names if isinstance(model.names, Mapping) else dict(enumerate(model.names))
    classes = class_map_of(name, key, task, class_map, [names.get(one, "") for one in range(max(names) + 1)])
    module = getattr(model, "model", model)
    if not fingerprint and not hasattr(module, "state_dict"):
        raise UserError(f"teacher {name}: has no state_dict() to tell its weights by: give a fingerprint")
    fingerprint = fingerprint or state_hash(module.state_dict())
    options = {"conf": getattr(task, "score_floor", 0.0), "verbose": False, **options}

    def forward(images: np.ndarray) -> Iterator[Any]:
        for found in model([np.ascontiguousarray(image[..., ::-1]) for image in images], **options):
            boxes = found.boxes
            yield {"boxes": boxes.xyxy, "scores": boxes.conf, "labels": on_host(boxes.cls).astype(np.int64)}

    return box_teacher(
        name, key, task, classes, forward, batch_size, (fingerprint, sorted(options.items()), classes.table)
    )


def _registered(name: str, model: Any, categories: Sequence[str]) -> tuple[Any, Sequence[str], Any]:
    """A module, the names of its labels and its transforms; of torchvision's registry where a name is given."""
    if not isinstance(model, str):
        return model, list(categories), None
    from torchvision import models

    try:
        weights = models.get_model_weights(model).DEFAULT
    except ValueError as error:
        raise UserError(f"teacher {name}: {error}") from None
    return models.get_model(model, weights=weights), categories or weights.meta["categories"], weights.transforms()


def _tensor(images: np.ndarray, device: str) -> Any:
    """uint8 [B, H, W, 3] -> [B, 3, H, W]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))).to(device)
