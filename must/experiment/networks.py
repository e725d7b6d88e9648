"""Trained networks on disk: a directory describes the network that its weights belong to.

weights/       the selected variables with their validation scores
network.json   backbone, neck, tasks with their classes, the frame, and how it trained
"""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from must.core import files
from must.core.types import Model, PyTree, Teacher, UserError
from must.data.clips import ClipEncoder
from must.data.pipeline import Encoder
from must.experiment import build, sections
from must.experiment.settings import Image, Network, Run
from must.export.exported import tuples
from must.export.predict import Part, Predictor
from must.pseudo_label import teacher as teachers
from must.tasks import base
from must.tasks.base import Task
from must.train.checkpoint import Checkpoints, fingerprint

ABOUT = "network.json"


class Trained(NamedTuple):
    """A trained network.

    Attributes:
      model: init and apply.
      network: its settings.
      variables: selected weights.
      tasks: {task: Task} that it answers.
      image: the frame that it sees.
      frames: {view: T} of clips.
      facts: of the selection, validation scores among them.
    """

    model: Model
    network: Network
    variables: PyTree
    tasks: dict[str, Task]
    image: Image
    frames: dict[str, int]
    facts: dict[str, Any]

    def encoder(self) -> Encoder | ClipEncoder:
        """How an example becomes a row of its input."""
        return build.encoder(self.image, self.tasks, frames=self.frames or None)


def describe(
    directory: str,
    network: Network,
    tasks: Mapping[str, Task],
    image: Image,
    frames: Mapping[str, int] | None = None,
    run: Run | None = None,
) -> None:
    """Writes which network the weights in a directory belong to, and how it trains."""
    about = {
        "network": sections.plain(network),
        "tasks": {name: base.describe(task) for name, task in tasks.items()},
        "image": sections.plain(image),
        "frames": dict(frames or {}),
        "run": None if run is None else sections.plain(run),
    }
    files.write_json(os.path.join(directory, ABOUT), about)


def load(directory: str) -> Trained:
    """The network that a run trained in a directory.

    Raises:
      UserError: no network, or a damaged one.
    """
    path, about = _about(directory)
    tasks = {name: base.build(**tuples(section)) for name, section in about["tasks"].items()}
    image = sections.parse(Image, about["image"], f"{path}: image")
    network = sections.parse(Network, about["network"], f"{path}: network")
    model = build.network(network, tasks)
    blank = build.encoder(image, tasks, frames=about["frames"] or None).blank_inputs()
    variables, facts = load_weights(directory, model, blank[next(iter(blank))])
    return Trained(model, network, variables, tasks, image, about["frames"], facts)


def trained_with(directory: str) -> tuple[int, float] | None:
    """(batch size, peak learning rate) with which the network in a directory trained; None if it does not say.

    Raises:
      UserError: no network, or a damaged one.
    """
    run = _about(directory)[1].get("run")
    return (run["batch_size"], run["optimizer"]["learning_rate"]) if run else None


def _about(directory: str) -> tuple[str, dict[str, Any]]:
    """Path and content of the file that describes a network."""
    path = os.path.join(directory, ABOUT)
    try:
        with open(path, encoding="utf-8") as file:
            return path, dict(json.load(file))
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; {directory} holds no trained network") from None
    except (ValueError, TypeError):
        raise UserError(f"{path}: damaged; remove the directory and train again") from None


def load_weights(directory: str, model: Model, inputs: PyTree) -> tuple[PyTree, dict]:
    """(variables, facts) that a training run selected; only the shapes of `inputs` matter.

    Raises:
      UserError: no weights, weights of another model, or damaged ones.
    """
    like = jax.eval_shape(model.init, jax.random.key(0), inputs)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), like)
    weights = Checkpoints(os.path.join(directory, "weights"))
    try:
        variables, _, facts = weights.restore(like)
    except UserError as error:
        raise UserError(f"{error}; remove {directory} and run again to train it anew") from None
    finally:
        weights.close()
    return variables, facts


def as_teacher(directory: str, name: str, *, tasks: tuple[str, ...] = (), hflip_tta: bool = False) -> Teacher:
    """A trained network as a teacher.

    Args:
      directory: in which it was trained.
      name: of the teacher.
      tasks: that it labels; all that it answers by default.
      hflip_tta: average its predictions for a picture and its mirror image.

    Raises:
      UserError: no network in the directory, or a task that it does not answer.
    """
    return _teacher(load(directory), directory, name, tasks, hflip_tta)


def predictor(directories: Mapping[str, str]) -> Predictor:
    """Trained networks, {name: directory}, as one predictor; of a task that two predict the first.

    Raises:
      UserError: no network in a directory.
    """
    parts: list[Part] = []
    for name, directory in directories.items():
        trained = load(directory)
        mine = tuple(task for task in trained.tasks if not any(task in part.teacher.tasks for part in parts))
        if mine:
            parts.append(Part(_teacher(trained, directory, name, mine), trained.encoder()._replace(tasks={})))
    return Predictor(tuple(parts))


def _teacher(
    trained: Trained, directory: str, name: str, tasks: tuple[str, ...] = (), hflip_tta: bool = False
) -> Teacher:
    for task in tasks:
        if task not in trained.tasks:
            raise UserError(f"{directory}: the network predicts {', '.join(trained.tasks)}, not {task}")
    labeled = {task: trained.tasks[task] for task in tasks or trained.tasks}
    return teachers.from_model(
        name,
        trained.model,
        jax.device_put(trained.variables),
        labeled,
        size=trained.image.size,
        fingerprint=fingerprint(trained.variables),
        hflip_tta=hflip_tta,
    )
