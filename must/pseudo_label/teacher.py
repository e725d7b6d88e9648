"""Making a `Teacher`: anything that turns images into labels."""

import functools
from collections.abc import Callable, Mapping

import jax

from must.core import devices
from must.core.types import Array, Label, Model, PyTree, Teacher
from must.tasks.base import Task


def label_step(
    variables: PyTree,
    images: Array,
    *,
    model: Model,
    tasks: Mapping[str, Task],
    mirror: bool = False,
    axis_name: str | None = None,
) -> dict[str, Label]:
    """One frozen forward pass as labels; pure.

    Args:
      variables: of the model.
      images: uint8 [B, H, W, 3].
      model: outputs {task: ...}.
      tasks: which of the outputs become labels.
      mirror: average the outputs with those of the mirrored picture (data distillation, Radosavovic et al. 2018); how far
        the two agree is the score of a task whose network says none.
      axis_name: unused, rows do not meet; the argument lets `parallelize` run it.

    Returns:
      {task: Label in network form, leading axis B}.
    """
    outputs, _ = model.apply(variables, images, train=False, key=None)
    if not mirror:
        return {name: task.predict(outputs[name]) for name, task in tasks.items()}
    mirrored, _ = model.apply(variables, images[:, :, ::-1], train=False, key=None)
    labels = {}
    for name, task in tasks.items():
        one, other = outputs[name], task.mirror(mirrored[name])
        mean = jax.tree.map(lambda a, b: 0.5 * (a + b), one, other)
        labels[name] = task.predict(mean) | task.agreement(one, other)
    return labels


def from_model(
    name: str,
    model: Model,
    variables: PyTree,
    tasks: Mapping[str, Task],
    *,
    size: tuple[int, int],
    fingerprint: str,
    mirror: bool = False,
) -> Teacher:
    """A teacher from one of our models, run on all devices of this process.

    Args:
      name: for provenance.
      model: the network.
      variables: its weights, usually the averaged ones; an argument of the compiled step, not a constant in it.
      tasks: that it labels.
      size: (height, width) of its input, pixels.
      fingerprint: of the weights.
      mirror: see `label_step`.
    """
    bound = functools.partial(label_step, model=model, tasks=tasks, mirror=mirror)
    # Each process of a distributed run labels shards of its own.
    step = devices.parallelize(bound, out_axes=0, devices=jax.local_devices())
    return Teacher(name, dict(tasks), lambda images: step(variables, images), size, fingerprint)


def from_function(
    name: str,
    predict: Callable[[Array], dict[str, Label]],
    tasks: Mapping[str, Task],
    *,
    size: tuple[int, int],
    fingerprint: str,
) -> Teacher:
    """A teacher from any Python function, uint8 [B, H, W, 3] of `size` -> {task: Label in network form}."""
    return Teacher(name, dict(tasks), predict, size, fingerprint)
