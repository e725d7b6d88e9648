"""An exported network as ONNX, in an environment of its own, since jax2onnx pins another Orbax than this package:

    python -m venv onnx && onnx/bin/pip install jax2onnx onnxruntime safetensors ml_collections grain
    PYTHONPATH=. JAX_PLATFORMS=cpu onnx/bin/python -m tests.experiments.to_onnx runs/x/export/student student.onnx

It reads weights.safetensors and export.json, makes the network again, converts it with any batch size, and compares
ONNX Runtime with the exported program, field by field. All heads are decoded but detection: suppression is a loop that
ends when nothing changes, so its raw outputs are converted (quality, class, distances, points, size), to which
`Detection.predict` is applied outside and compared as well. Pixels are float32, 0 to 255.
"""

import json
import logging
import sys
from pathlib import Path

import jax
import jax2onnx
import numpy as np
import onnxruntime
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from jax2onnx.converter import conversion_api, output_binding

from must.experiment import build
from must.experiment.sections import parse
from must.experiment.settings import Network
from must.export.exported import ABOUT, PROGRAM, WEIGHTS, tuples
from must.tasks import base
from must.tasks.detection import Detection

BOUND = 1e-4

# Two steps of jax2onnx 0.17 look through all nodes for each node, which takes long for five heads: a check of the
# converter itself, which the comparison below replaces, and simplifications that ONNX Runtime makes as well.
output_binding._value_is_graph_connected = lambda ctx, value: True
conversion_api.optimize_graph = lambda model: model
logging.getLogger("onnx_ir").setLevel(logging.ERROR)


def network(directory: Path):
    """(export.json, tasks, (images) -> {"task/field": array}): raw outputs for detection, labels elsewhere."""
    about = json.loads((directory / ABOUT).read_text())
    tasks = {}
    for name, one in about["tasks"].items():
        classes = {"classes": one["classes"]} if one["classes"] else {}
        tasks[name] = base.build(one["kind"], **classes, **tuples(one["hyper_parameters"]))
    model = build.network(parse(Network, about["network"], "network"), tasks)
    variables = unflatten_dict(safetensors.numpy.load_file(directory / WEIGHTS), sep="/")

    def decoded(images):
        outputs, _ = model.apply(variables, images, train=False)
        found = {
            name: value if isinstance(tasks[name], Detection) else tasks[name].predict(value)
            for name, value in outputs.items()
        }
        return flatten_dict(found, sep="/")

    return about, tasks, decoded


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Relative to the largest, at least 1; of integers the share that is not the same."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind in "iub":
        return float(np.mean(a != b))
    return float(np.abs(a - b).max() / max(1.0, np.abs(a).max()))


def main(directory: Path, file: Path) -> None:
    """Converts, compares, prints the differences; exit code 1 where one is larger than `BOUND`."""
    about, tasks, decoded = network(directory)
    (view,) = about["inputs"]
    shape = about["inputs"][view]["shape"]
    names = sorted(jax.eval_shape(decoded, jax.ShapeDtypeStruct((2, *shape), np.uint8)))
    model = jax2onnx.to_onnx(
        lambda images: tuple(decoded(images)[name] for name in names),
        [("B", *shape)],
        model_name=directory.name,
        input_names=[view],
        output_names=names,
    )
    file.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it tells of every unused constant
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    program = jax.export.deserialize(bytearray((directory / PROGRAM).read_bytes()))
    weights, worst = safetensors.numpy.load_file(directory / WEIGHTS), 0.0
    for rows in (1, 3):
        images = np.random.default_rng(rows).integers(0, 256, (rows, *shape), np.uint8)
        (given,) = session.get_inputs()
        values = session.run(None, {given.name: images.astype(np.float32)})
        got = dict(zip([one.name for one in session.get_outputs()], values, strict=True))
        labels, raw = flatten_dict(program.call(weights, {view: images}), sep="/"), jax.jit(decoded)(images)
        for name in names:
            apart = difference(labels[name] if name in labels else raw[name], got[name])
            worst = max(worst, apart)
            print(f"batch {rows}  {name:32} {'decoded' if name in labels else 'raw':8} {apart:.2e}")
        for name, task in tasks.items():
            if isinstance(task, Detection):  # decoded outside from ONNX Runtime's numbers
                own = {key.partition("/")[2]: value for key, value in got.items() if key.startswith(f"{name}/")}
                found = task.predict(own)
                for field in ("boxes", "scores", "classes", "valid"):
                    apart = difference(labels[f"{name}/{field}"], found[field])
                    worst = max(worst, apart)
                    print(f"batch {rows}  {name + '/' + field:32} {'after':8} {apart:.2e}")
    print(f"largest difference {worst:.2e}, bound {BOUND:g}: {file}")
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
