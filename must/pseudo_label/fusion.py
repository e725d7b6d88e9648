"""Several teachers as one: what they agree on is surer than what each of them says alone."""

import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from must.core.types import Array, Label, Teacher, UserError
from must.pseudo_label.teacher import in_frame
from must.readers.fields import shown
from must.tasks.base import Task


def fuse(name: str, teachers: Sequence[Teacher]) -> Teacher:
    """A teacher that asks several, each task by those that label it, and fuses what they predict (`Task.fuse`).

    Boxes: weighted boxes fusion; classes and pixels: mean distributions; depth: medians; normals: mean directions.
    Scores fall where the teachers disagree. Teachers of other input sizes are brought to the first one's.

    Args:
      name: for provenance and messages.
      teachers: at least two.

    Raises:
      UserError: fewer than two, teachers of one task with different classes, or a task that cannot be fused.
    """
    known = isinstance(teachers, list | tuple) and all(isinstance(one, Teacher) for one in teachers)
    if not known or len(teachers) < 2:
        said = len(teachers) if known else shown(teachers)
        raise UserError(f"teacher {name}: fusion takes two teachers or more, not {said}")
    tasks: dict[str, Task] = {}
    for teacher in teachers:
        for key, task in teacher.tasks.items():
            ours, theirs = (tuple(getattr(one, "classes", ())) for one in (tasks.setdefault(key, task), task))
            if ours != theirs:
                raise UserError(
                    f"teacher {name}: {teacher.name} has other classes of {key} than the teachers before it"
                )
    shared = [key for key in tasks if sum(key in teacher.tasks for teacher in teachers) > 1]
    for key in shared:
        if type(tasks[key]).fuse is Task.fuse:
            raise UserError(f"teacher {name}: {type(tasks[key]).__name__} {key!r} has no fuse(); use one teacher")
    size = next((tuple(teacher.size) for teacher in teachers if teacher.size), None)
    asked = [in_frame(teacher, size) if size else teacher for teacher in teachers]

    def predict(images: Array) -> dict[str, Label]:
        said = jax.device_get([teacher.predict(images) for teacher in asked])
        labels = {}
        for key, task in tasks.items():
            own = [{n: np.asarray(v) for n, v in one[key].items()} for one in said if key in one]
            labels[key] = task.fuse(own) if len(own) > 1 else own[0]
        return labels

    facts = [(teacher.name, teacher.fingerprint, teacher.size and tuple(teacher.size)) for teacher in teachers]
    return Teacher(name, tasks, predict, size, hashlib.sha256(repr(facts).encode()).hexdigest())
