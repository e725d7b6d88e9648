"""Networks of other frameworks as teachers: PyTorch modules and ONNX files. Neither framework is needed otherwise.

The label pass resizes every image to the teacher's size and maps its labels back, so a network needs no images of its
own size; `multiple` rounds that size up where a network has strides, and outputs that are coarser than the input are
enlarged. `read` turns what the network returns into {task: what `Task.from_external` takes}, one form or another of

    classification   probabilities [B, C]
    segmentation     probabilities [B, h, w, C]; or the tuple (class ids [B, h, w], confidences [B, h, w] in 0..1)
                     (with many classes at full resolution the tuple, made on the device, is the faster one)
    detection        for each image {"boxes": [n, 4] x0 y0 x1 y1 in pixels of the input, "scores": [n], "labels": [n]}
    depth            meters [B, h, w]; 0 or NaN is invalid
    normals          vectors [B, h, w, 3], x right, y down, z forward; 0 or NaN is invalid

Probabilities sum to 1 within 1e-3, which a softmax in bfloat16 misses: take it of `logits.float()`.

A PyTorch segmenter whose classes are those of the task, `pip install 'must[torch]'`:

    from must import from_torch

    segmenter = from_torch(
        "segmenter", module, {"segmentation": Segmentation(classes)}, size=(90, 120), multiple=32,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        read=lambda logits: {"segmentation": logits.softmax(1).movedim(1, -1)},
    )

torchvision's detectors normalize by themselves (mean 0, std 1), and their class 0 is the background:

    def read(found):
        return {"detection": [{**one, "labels": one["labels"] - 1} for one in found]}

    detector = from_torch(
        "detector", detector_module, {"detection": Detection(classes)}, size=(96, 128),
        mean=(0, 0, 0), std=(1, 1, 1), read=read,
    )

An ONNX file, run by ONNX Runtime on the CPU, `pip install 'must[onnx]'`; its outputs come by name:

    from must import from_onnx

    classifier = from_onnx(
        "classifier", path, {"classification": Classification(classes)}, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        read=lambda outputs: {"classification": outputs["probs"]},
    )

Anything else is a function of uint8 images, `must.from_function`. All of them go into one `must.label_images`, which
decodes every image once. The fingerprint of a teacher covers its weights, `mean` and `std`; it cannot see into `read`,
so that another `read` wants another name.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from must.core.files import file_hash
from must.core.types import Array, Label, Teacher, UserError
from must.pseudo_label.teacher import from_function, labels_from_external, rounded_up
from must.tasks.base import Task

_ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def from_torch(
    name: str,
    module: Any,
    tasks: Mapping[str, Task],
    *,
    size: tuple[int, int],
    read: Callable[[Any], Mapping[str, Any]],
    mean: Sequence[float],
    std: Sequence[float],
    device: str = "cpu",
    multiple: int = 1,
    bounds: str = "clip",
) -> Teacher:
    """A teacher from a `torch.nn.Module`, which is moved to the device and set to evaluation.

    Args:
      name: for provenance and messages.
      module: called with [B, 3, H, W] in the type of its weights, (pixel / 255 - mean) / std.
      tasks: that it labels.
      size: (height, width) of its input, pixels.
      read: what the module returns -> {task: what `Task.from_external` takes}, in tensors or arrays.
      mean: per channel, of pixels in 0..1.
      std: per channel.
      device: that torch computes on.
      multiple: what height and width must be multiples of; `size` is rounded up.
      bounds: see `must.from_function`.
    """
    import torch

    module = module.eval().to(device)
    mean_, std_ = (torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1) for values in (mean, std))
    dtype = next((weight.dtype for weight in module.parameters()), torch.float32)

    @torch.no_grad()
    def predict(images: np.ndarray) -> Mapping[str, Any]:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).movedim(-1, 1).float() / 255
        return jax.tree.map(on_host, read(module(((pixels - mean_) / std_).contiguous().to(dtype))))

    fingerprint = _preprocessed(state_hash(module.state_dict()), mean, std)
    return from_function(name, predict, tasks, size=size, fingerprint=fingerprint, multiple=multiple, bounds=bounds)


def from_onnx(
    name: str,
    path: str | os.PathLike,
    tasks: Mapping[str, Task],
    *,
    read: Callable[[dict[str, np.ndarray]], Mapping[str, Any]],
    size: tuple[int, int] | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    layout: str = "NCHW",
    multiple: int = 1,
    bounds: str = "clip",
) -> Teacher:
    """A teacher from an ONNX file with one input of images; where its batch is fixed, that many images at a time.

    Args:
      name: for provenance and messages.
      path: of the file.
      tasks: that it labels.
      read: {output name: array} of one run -> {task: what `Task.from_external` takes}.
      size: (height, width) of its input, pixels; None where the file fixes it.
      mean: per channel, of pixels in 0..1; the input is (pixel / 255 - mean) / std.
      std: per channel.
      layout: "NCHW" or "NHWC".
      multiple: what height and width must be multiples of; `size` is rounded up.
      bounds: see `must.from_function`.

    Raises:
      UserError: a file that cannot be read, or another input than this.
    """
    session = _session(path)
    input_, (count, size) = session.get_inputs()[0], _input_form(session, os.fspath(path), layout, size, multiple)
    mean_, std_ = (np.asarray(values, np.float32) for values in (mean, std))
    outputs = [output.name for output in session.get_outputs()]

    def predict(images: np.ndarray) -> dict[str, Label]:
        step, parts = count or len(images), []
        for first in range(0, len(images), step):
            rows = np.minimum(np.arange(first, first + step), len(images) - 1)  # the last image fills up
            pixels = (images[rows].astype(np.float32) / 255 - mean_) / std_
            pixels = (pixels if layout == "NHWC" else np.moveaxis(pixels, -1, 1)).astype(_ELEMENTS[input_.type])
            predicted = session.run(outputs, {input_.name: np.ascontiguousarray(pixels)})
            labels = labels_from_external(tasks, read(dict(zip(outputs, predicted, strict=True))), size, first=first)
            left = len(images) - first
            parts.append(jax.tree.map(lambda field, left=left: np.asarray(field)[:left], labels))
        return jax.tree.map(lambda *fields: np.concatenate(fields), *parts)

    fingerprint = _preprocessed(file_hash(path), mean, std)
    return from_function(name, predict, tasks, size=size, fingerprint=fingerprint, bounds=bounds)


def on_host(value: Any) -> Array:
    """A tensor as an array; anything else as it is. NumPy has no bfloat16."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def state_hash(state: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes of a `state_dict`."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        else:  # a module may keep more than tensors
            digest.update(f"{name} {value!r}\n".encode())
    return digest.hexdigest()


def _preprocessed(weights: str, mean: Sequence[float], std: Sequence[float]) -> str:
    return f"{weights} mean {[float(value) for value in mean]} std {[float(value) for value in std]}"


def _session(path: str | os.PathLike) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{os.fspath(path)}: needs ONNX Runtime: pip install 'must[onnx]'") from None
    try:
        return onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has types of its own
        raise UserError(f"{os.fspath(path)}: cannot be read as ONNX: {str(error).splitlines()[0]}") from None


def _input_form(
    session: Any, path: str, layout: str, size: tuple[int, int] | None, multiple: int
) -> tuple[int | None, tuple[int, int]]:
    """Images per run, None for any number, and (height, width); of the input's axes names are free, numbers fixed."""
    if layout not in ("NCHW", "NHWC"):
        raise UserError(f"{path}: layout {layout!r} is neither 'NCHW' nor 'NHWC'")
    inputs = session.get_inputs()
    axes = dict(zip(layout, (axis if isinstance(axis, int) else None for axis in inputs[0].shape), strict=False))
    if len(inputs) != 1 or inputs[0].type not in _ELEMENTS or len(inputs[0].shape) != 4 or axes["C"] not in (None, 3):
        taken = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise UserError(f"{path}: takes {taken}, not one float {layout} of three channels")
    fixed = axes["H"], axes["W"]
    if size is None and None in fixed:
        raise UserError(f"{path}: does not fix its input size {fixed}: set size")
    size = rounded_up(size, multiple) if size else fixed
    if any(want not in (None, got) for want, got in zip(fixed, size, strict=True)):
        raise UserError(f"{path}: takes images of {fixed[0]} x {fixed[1]} pixels, not {size[0]} x {size[1]}")
    return axes["N"], size
