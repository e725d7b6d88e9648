"""An exported network: what its files are, and how they are read. Reading needs jax and safetensors, no flax, no
recipe.

    weights.safetensors   the variables under flat names, "params/backbone/..."
    model.stablehlo       the program (weights, inputs) -> {task: label in network form}, serialized by `jax.export`
    export.json           what is needed to use the two: tasks with their classes, inputs and how they are made, hashes

    card.md, card.json    the model card, `must.export.card`

Without this package, on a CPU, a GPU or a TPU and with any batch size:

    program = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    labels = program.call(safetensors.numpy.load_file("weights.safetensors"), {"image": pictures})
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from jax import export

from must.core.types import Array, Label, UserError

WEIGHTS, PROGRAM, ABOUT = "weights.safetensors", "model.stablehlo", "export.json"
FORMAT, VERSION = "must.export", 1
_KEYS = ("tasks", "inputs", "files")


class Exported(NamedTuple):
    """A network that was read from files.

    Attributes:
      about: contents of export.json.
      weights: {flat name: array}.
      apply: (weights, {view: uint8 [B, ...]}) -> {task: label in network form, leading axis B}; pure, traceable,
        compiled once for every B.
    """

    about: dict[str, Any]
    weights: dict[str, Array]
    apply: Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, Label]]

    def predict(self, images: Sequence[Any], **options: Any) -> list[dict[str, Label]]:
        """Per image of any size {task: Label in record form, in the frame of the original}, see `Predictor.predict`.

        This needs all of `must`; `run` does not.

        Raises:
          UserError: export.json does not say how inputs are made, or an image cannot be read.
        """
        from must.core.types import Teacher
        from must.export.predict import Predictor, part_of
        from must.tasks import base

        if "size" not in self.about.get("preprocessing", {}) or len(self.about["inputs"]) != 1:
            raise UserError(f"{ABOUT}: does not say how inputs are made from pictures; use run() on inputs of your own")
        tasks = {}
        for name, one in self.about["tasks"].items():
            classes = {"classes": one["classes"]} if one["classes"] else {}
            tasks[name] = base.build(one["kind"], **classes, **tuples(one["hyper_parameters"]))
        (view,) = self.about["inputs"]
        size = tuple(self.about["preprocessing"]["size"])
        fingerprint = self.about["files"][WEIGHTS]["sha256"]
        teacher = Teacher("exported", tasks, lambda inputs: self.apply(self.weights, {view: inputs}), size, fingerprint)
        return Predictor((part_of(self.about, teacher),)).predict(images, **options)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Label]:
        """{view: uint8 [B, ...]} with any B from 1 -> {task: label in network form}, NumPy, leading axis B.

        Raises:
          UserError: a view is missing or has another shape or type than the network was exported for.
        """
        rows = set()
        for view, spec in self.about["inputs"].items():
            if view not in inputs:
                raise UserError(f"inputs: no {view!r}, which the network reads")
            array = np.asarray(inputs[view])
            if list(array.shape[1:]) != spec["shape"] or array.dtype != spec["dtype"] or not len(array):
                expected = f"{spec['dtype']} {['B', *spec['shape']]}"
                raise UserError(f"inputs: {view!r} is {array.dtype} {list(array.shape)}, the network reads {expected}")
            rows.add(len(array))
        if len(rows) > 1:
            raise UserError(f"inputs: views have {sorted(rows)} rows, but all need the same number")
        return jax.device_get(self.apply(self.weights, {view: inputs[view] for view in self.about["inputs"]}))


def load_exported(directory: str) -> Exported:
    """Reads a network that `must.export.write.export_model` wrote.

    Raises:
      UserError: no exported network there, or one that is damaged, foreign or of a later version; names the file.
    """
    path, about = os.path.join(directory, ABOUT), {}
    try:
        with open(path, encoding="utf-8") as file:
            about = json.load(file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; an exported network has this file") from None
    except ValueError:
        raise UserError(f"{path}: damaged, it is not JSON") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path}: not from an exported network: its 'format' is not {FORMAT!r}")
    if about.get("version") != VERSION:
        raise UserError(f"{path}: version {about.get('version')} of the format, but this code reads {VERSION}")
    for key in _KEYS:
        if not isinstance(about.get(key), dict):
            raise UserError(f"{path}: damaged, it has no {key!r}")
    content = {
        name: _verified(os.path.join(directory, name), about["files"].get(name, {})) for name in (WEIGHTS, PROGRAM)
    }
    try:
        program = export.deserialize(bytearray(content[PROGRAM]))
    except Exception as error:  # whole, yet this jax cannot read it: jax promises half a year of older programs
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{os.path.join(directory, PROGRAM)}: jax {jax.__version__} cannot read it: {reason}") from None
    return Exported(about, jax.device_put(safetensors.numpy.load(content[WEIGHTS])), jax.jit(program.call))


def tuples(value: Any) -> Any:
    """What JSON holds, with tuples in place of lists."""
    if isinstance(value, Mapping):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _verified(path: str, predicted: Mapping[str, Any]) -> bytes:
    """Content of a file whose hash is known."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != predicted.get("sha256"):
        raise UserError(f"{path}: damaged, its SHA-256 is not the one in {ABOUT}")
    return content
