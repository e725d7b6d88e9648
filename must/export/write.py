"""A network becomes files that can be used without the code that made it; what they are is in
`must.export.exported`."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jaxlib
import numpy as np
import safetensors.numpy
from jax import export

from must.core import files
from must.core.types import Array, Label, Model, PyTree, UserError
from must.data.clips import ClipEncoder
from must.data.geometry import FILL
from must.data.pipeline import Encoder
from must.export.card import write_card
from must.export.exported import ABOUT, FORMAT, PROGRAM, VERSION, WEIGHTS
from must.models.multi_head import FROZEN, parameter_count
from must.tasks.base import Task

PLATFORMS = ("cpu", "cuda", "tpu")
_ROWS = 3  # random examples on which the files must give the network's outputs


def export_model(
    directory: str,
    model: Model,
    variables: PyTree,
    *,
    tasks: Mapping[str, Task],
    inputs: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    view: str | None = "image",
    bound: float = 1e-5,
    network: Mapping[str, Any] = {},
    card: Mapping[str, Any] = {},
    read: Callable[[str, Mapping[str, np.ndarray]], Mapping[str, Label]] | None = None,
) -> dict[str, Any]:
    """Writes a network as weights, program and description, reads them again and compares with the network.

    The directory appears whole, in the place of an earlier export, or not at all. The comparison is on random pictures,
    on the CPU where this process has one, since other devices may round products of the same program in two ways.

    Args:
      directory: of the files, made when missing.
      model: applied in inference mode.
      variables: of the model, all of which are exported.
      tasks: {task name: Task} that it answers.
      inputs: one row of it, {view: array [1, ...]}, of which shapes and types matter (`Encoder.blank_inputs`).
      settings: JSON for export.json's "preprocessing": how inputs are made (`must.export.write`).
      view: which of the inputs the model is given; None hands it all, {view: inputs}.
      bound: largest difference that is accepted, of floats relative to the field's largest (at least to 1), of integers
        and booleans the share of entries that are not the same.
      network: JSON from which the network can be made again, for export.json's "network".
      card: what the model card tells beside the network, see `must.export.card`.
      read: (directory, inputs) -> {task: label}, what the files predict; by default in a process of its own that cannot
        import this package (`read_alone`).

    Returns:
      The contents of export.json.

    Raises:
      UserError: the files say something else than the network, or something foreign is in the directory.
    """
    directory = os.path.abspath(directory)
    there = os.listdir(directory) if os.path.isdir(directory) else []
    if there and ABOUT not in there:
        raise UserError(f"{directory}: holds other files and no exported network, so nothing is written there")
    weights, program = _program(model, jax.device_get(variables), tasks, view)
    batch = export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct((*batch, *row.shape[1:]), row.dtype) for name, row in inputs.items()}
    with _without_paths():
        exported = export.export(jax.jit(program), platforms=PLATFORMS)(weights, shapes)
    content = {WEIGHTS: safetensors.numpy.save(weights), PROGRAM: bytes(exported.serialize())}
    about = _about(exported, tasks, inputs, content)
    about |= {
        "preprocessing": dict(settings),
        "network": dict(network),
        "parameters": parameter_count({name: variables.get(name, {}) for name in ("params", FROZEN)}),
    }
    with files.whole_directory(directory, replace=True) as partial:
        for name, data in content.items():
            files.write_bytes(os.path.join(partial, name), data)
        files.write_json(os.path.join(partial, ABOUT), about)
        with _on_cpu():
            difference, where = _difference(program, weights, partial, inputs, read or read_alone)
        if not difference <= bound:
            apart = f"differs from the network's by {difference:.3g}, over {bound:g}"
            raise UserError(f"{directory}: the exported {where} {apart}")
        about["verified"] = {"largest_difference": difference, "bound": bound}
        files.write_json(os.path.join(partial, ABOUT), about)
        write_card(partial, about, card)
    return about


def read_alone(directory: str, inputs: Mapping[str, np.ndarray]) -> dict[str, Label]:
    """What exported files predict, by a process that has jax and safetensors and cannot import this package."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(os.path.join(folder, "inputs.npz"), **inputs)
        command = [sys.executable, "-c", _READER, directory, folder]
        done = subprocess.run(
            command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise UserError(f"{directory}: cannot be read without this package: {reason}")
        labels: dict[str, Label] = {}
        with np.load(os.path.join(folder, "labels.npz")) as file:
            for name in file.files:
                task, _, field = name.rpartition("|")
                labels.setdefault(task, {})[field] = file[name]
    return labels


_READER = """
import sys
sys.modules["must"] = None
import jax.export, numpy, safetensors.numpy
directory, folder = sys.argv[1:]
program = jax.export.deserialize(bytearray(open(directory + "/model.stablehlo", "rb").read()))
with numpy.load(folder + "/inputs.npz") as file:
    inputs = {name: file[name] for name in file.files}
labels = program.call(safetensors.numpy.load_file(directory + "/weights.safetensors"), inputs)
fields = {task + "|" + field: numpy.asarray(labels[task][field]) for task in labels for field in labels[task]}
numpy.savez(folder + "/labels.npz", **fields)
"""


def _program(model: Model, variables: PyTree, tasks: Mapping[str, Task], view: str | None):
    """({flat name: array}, (such weights, {view: inputs}) -> {task: label}): weights are arguments, not baked in."""
    paths, tree = jax.tree_util.tree_flatten_with_path(variables)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    if len(set(names)) < len(names):
        raise ValueError("variables that differ only by a '/' in their names cannot be distinguished")

    def program(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Label]:
        own = jax.tree.unflatten(tree, [weights[name] for name in names])
        outputs, _ = model.apply(own, inputs if view is None else inputs[view], train=False, key=None)
        return {name: task.predict(outputs[name]) for name, task in tasks.items()}

    # Of an array that is not contiguous safetensors would write other numbers.
    return {name: np.array(leaf, order="C") for name, (_, leaf) in zip(names, paths, strict=True)}, program


def _difference(program, weights, directory: str, inputs: Mapping[str, np.ndarray], read) -> tuple[float, str]:
    """(largest difference between network and files on random inputs, "task.field" where it is)."""
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 256, (_ROWS, *row.shape[1:])).astype(row.dtype) for name, row in inputs.items()}
    wanted, found = jax.device_get(jax.jit(program)(weights, rows)), read(directory, rows)
    fields = [(task, field) for task in wanted for field in wanted[task]]
    return max((_apart(wanted[task][field], found[task][field]), f"{task}.{field}") for task, field in fields)


def _apart(wanted: np.ndarray, found: np.ndarray) -> float:
    """Infinite where one of the two is not a number."""
    if not np.issubdtype(wanted.dtype, np.floating):
        return float(np.mean(wanted != found))
    difference = np.abs(wanted - found).max() / max(1.0, np.abs(wanted).max())
    return float(difference) if np.isfinite(difference) else float("inf")


def _about(
    exported: export.Exported, tasks: Mapping[str, Task], inputs: Mapping[str, np.ndarray], content: Mapping[str, bytes]
) -> dict[str, Any]:
    """What export.json tells of the program and its files."""
    labels = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "format": FORMAT,
        "version": VERSION,
        "use": "jax.export.deserialize(model.stablehlo).call(weights, {view: inputs}) -> {task: label}; any batch size",
        "tasks": {name: _about_task(task, labels[name]) for name, task in tasks.items()},
        "inputs": {name: _form(row) for name, row in inputs.items()},
        "platforms": list(exported.platforms),
        "versions": {"must": _version("must"), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
        },
    }


def _about_task(task: Task, label: Label) -> dict[str, Any]:
    """Enough to make the task again with `must.tasks.base.build`, and the fields of its labels without B."""
    fields = dataclasses.asdict(task)
    return {
        "kind": f"{type(task).__module__}:{type(task).__qualname__}",
        "classes": fields.pop("classes", None),
        "hyper_parameters": fields,
        "metrics": [metric._asdict() for metric in task.metrics],
        "label": {field: _form(aval) | _meaning(task, field) for field, aval in label.items()},
    }


def _meaning(task: Task, field: str) -> dict[str, str]:
    return {"meaning": task.outputs[field]} if field in task.outputs else {}


def _form(array: Any) -> dict[str, Any]:
    return {"shape": list(array.shape[1:]), "dtype": np.dtype(array.dtype).name}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None


@contextlib.contextmanager
def _without_paths():
    """Programs traced inside do not name the files of the machine that they were made on."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _on_cpu():
    """Computes on the CPU if this process has one."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def preprocessing(encoder: Encoder | ClipEncoder) -> dict[str, Any]:
    """How a test example becomes the inputs of a network, as JSON; of a `ClipEncoder` one clip."""
    placed = (
        f"scaled to fit, then padded right and below with {list(FILL)}" if encoder.keep_aspect else "stretched to fit"
    )
    found: dict[str, Any] = {
        "size": list(encoder.size),
        "keep_aspect": encoder.keep_aspect,
        "pixels": f"RGB, 0 to 255, the whole picture {placed}; bilinear with antialiasing, as Pillow's BILINEAR",
        "normalization": "inside the program",
    }
    if isinstance(encoder, ClipEncoder):
        span = encoder.window.span
        part = f"the middle {span} frames of the video, all of a shorter one" if span else "the whole video"
        found["clips"] = {
            "frames": dict(encoder.frames),
            "window": {"span": span},
            "sampling": f"T frames of {part}: with length L and first frame s of that part, frame i of the clip is "
            "s + a + (b - a) // 2, where a = i * L // T and b = (i + 1) * L // T",
        }
    return found
