"""Making a `Teacher`: anything that turns images into labels.

Networks of other frameworks and libraries: `must.pseudo_label.adapters`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from must.core import devices
from must.core.arguments import converted
from must.core.labels import of_teacher
from must.core.notices import notice
from must.core.types import Array, Label, LabelError, Model, PyTree, Teacher, UserError
from must.data.geometry import transform_image, whole_image
from must.pseudo_label.check import check_said, inside
from must.tasks.base import Task


def label_step(
    variables: PyTree,
    images: Array,
    *,
    model: Model,
    tasks: Mapping[str, Task],
    hflip_tta: bool = False,
    axis_name: str | None = None,
) -> dict[str, Label]:
    """One frozen forward pass as labels; pure.

    Args:
      variables: of the model.
      images: uint8 [B, H, W, 3], or whatever else the model takes.
      model: outputs {task: ...}.
      tasks: which of the outputs become labels.
      hflip_tta: average the outputs with those of the mirrored picture (data distillation, Radosavovic et al. 2018);
        how far the two agree is the score of a task whose network has none.
      axis_name: unused, rows do not meet; the argument lets `parallelize` run it.

    Returns:
      {task: Label in network form, leading axis B}.
    """
    outputs, _ = model.apply(variables, images, train=False, key=None)
    if not hflip_tta:
        return {name: task.predict(outputs[name]) for name, task in tasks.items()}
    mirrored, _ = model.apply(variables, images[:, :, ::-1], train=False, key=None)
    labels = {}
    for name, task in tasks.items():
        one, other = outputs[name], task.hflip_outputs(mirrored[name])
        labels[name] = task.predict(task.both_views(one, other)) | task.agreement(one, other)
    return labels


def from_model(
    name: str,
    model: Model,
    variables: PyTree,
    tasks: Mapping[str, Task],
    *,
    size: tuple[int, int],
    fingerprint: str,
    hflip_tta: bool = False,
) -> Teacher:
    """A teacher from one of our models, run on all devices of this process.

    Args:
      name: for provenance.
      model: the network.
      variables: its weights, usually the averaged ones; an argument of the compiled step, not a constant in it.
      tasks: that it labels.
      size: (height, width) of its input, pixels.
      fingerprint: of the weights.
      hflip_tta: see `label_step`.
    """
    bound = functools.partial(label_step, model=model, tasks=tasks, hflip_tta=hflip_tta)
    # Each process of a distributed run labels shards of its own.
    step = devices.parallelize(bound, out_axes=0, devices=jax.local_devices())
    return Teacher(name, dict(tasks), lambda images: step(variables, images), size, fingerprint)


def from_function(
    name: str,
    predict: Callable[[Array], Mapping[str, Any]],
    tasks: Mapping[str, Task],
    *,
    size: tuple[int, int] | None,
    fingerprint: str,
    multiple: int = 1,
    bounds: str = "clip",
) -> Teacher:
    """A teacher from any Python function.

    Args:
      name: for provenance and messages.
      predict: uint8 [B, H, W, 3] -> {task: what `Task.from_external` of that task takes, or its Label in network form}.
      tasks: that it labels.
      size: (height, width) of its input, pixels; None where it takes pictures of any size as they are, those of one
        batch of equal size, and predicts in their frame.
      fingerprint: of its weights and code; records made with another one are refused.
      multiple: what height and width must be multiples of; `size` is rounded up.
      bounds: what becomes of boxes that leave the input by more than a pixel, "clip" or "refuse".

    Raises:
      UserError: a size that a task cannot have.
    """
    if bounds not in ("clip", "refuse"):
        raise UserError(f"teacher {name}: bounds={bounds!r}: expected 'clip' or 'refuse'")
    if not callable(predict):
        raise UserError(f"teacher {name}: predict is {predict!r}, not a function")
    if not tasks:
        raise UserError(f"teacher {name}: labels no task")
    if size is not None:
        size = converted(size, tuple[int, int], f"teacher {name}: size")
        if min(size) < 1:
            raise UserError(f"teacher {name}: size={size}: must be at least 1")
        size = rounded_up(size, multiple)
    for key, task in tasks.items():
        if not hasattr(task, "network_spec"):
            raise UserError(f"teacher {name}: tasks: {key!r} is {task!r}, not a task such as must.Depth()")
        if size is not None:
            task.check_frame(size)
    input_ = f"its input of {size[1]} x {size[0]} pixels" if size else "their pictures"

    def labels(images: Array) -> dict[str, Label]:
        frame = size or images.shape[1:3]
        found = labels_from_external(tasks, predict(images), frame)
        for key in found:
            try:
                found[key], beyond = inside(found[key], frame, bounds)
            except LabelError as error:
                raise LabelError(f"{key}.{error}", error.row) from None
            if beyond:
                notice(
                    f"teacher {name}: boxes of {key} reach beyond {input_} or have no area, first {beyond} in a batch, "
                    "and are clipped or left out (bounds='refuse' refuses them)"
                )
        return found

    return Teacher(name, dict(tasks), labels, size, fingerprint)


def in_frame(teacher: Teacher, size: tuple[int, int], *, keep_aspect: bool = True) -> Teacher:
    """The same teacher for pictures of another size: they are brought to its own, its labels back, as the records have
    them.

    Args:
      teacher: with an input of any size.
      size: (height, width) of the pictures and of the labels in network form, pixels.
      keep_aspect: pad the pictures instead of stretching them.
    """
    if teacher.size is None:
        return teacher._replace(size=tuple(size))
    if tuple(teacher.size) == tuple(size):
        return teacher
    there, here = whole_image(size, teacher.size, keep_aspect=keep_aspect), whole_image(size, size)

    def predict(images: Array) -> dict[str, Label]:
        predicted = jax.device_get(
            teacher.predict(np.stack([transform_image(np.asarray(image), there) for image in images]))
        )
        labels = {}
        for key, task in teacher.tasks.items():
            rows = ({name: field[row] for name, field in predicted[key].items()} for row in range(len(images)))
            mapped = [task.encode(task.restore(row, there), here) for row in rows]
            labels[key] = {name: np.stack([row[name] for row in mapped]) for name in mapped[0]}
        return labels

    return teacher._replace(predict=predict, size=tuple(size))


def rounded_up(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Both sides to the next multiple."""
    height, width = (-(-int(side) // multiple) * multiple for side in size)
    return height, width


def labels_from_external(
    tasks: Mapping[str, Task], predicted: Mapping[str, Any], size: tuple[int, int], *, first: int = 0
) -> dict[str, Label]:
    """Predictions of a network from another project as labels in network form; a mapping already is one.

    Args:
      tasks: to convert; other predictions are left out.
      predicted: {task: what `Task.from_external` takes, or a Label in network form}.
      size: (height, width) of the images, pixels.
      first: row of the batch that `predicted` begins with, for messages.

    Raises:
      LabelError: what cannot be right; names task and field.
    """
    check_said(tasks, predicted)
    labels = {}
    for key, task in tasks.items():
        try:
            labels[key] = (
                of_teacher(predicted[key])
                if isinstance(predicted[key], Mapping)
                else task.from_external(predicted[key], size)
            )
        except LabelError as error:
            raise type(error)(f"{key}.{error}", None if error.row is None else first + error.row) from None
    return labels
