"""Labels encoded for the loss alone give the same targets, to the bit, as labels at the frame's resolution."""

import jax
import numpy as np
import pytest

from must.core.types import Policy
from must.data import geometry
from must.tasks.depth import Depth
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation

RNG = np.random.default_rng(0)
SIZE = (37, 53)
NORMALS = RNG.normal(size=(*SIZE, 3))
NORMALS[:5] = 0
LABELS = {
    "segmentation": {
        "ids": RNG.choice(np.array([0, 1, 2, 255], np.uint8), (*SIZE, 1)),
        "probs": RNG.integers(0, 255, (*SIZE, 1), np.uint8),
    },
    "depth": {
        "depth": RNG.integers(0, 4, SIZE).astype(np.uint16) * 5000,
        "scale": np.float32(1e-3),
        "offset": np.float32(-0.5),
        "scores": RNG.integers(0, 255, (19, 27), np.uint8),
    },
    "normals": {
        "normals": np.round(127 * NORMALS / np.maximum(np.linalg.norm(NORMALS, axis=-1, keepdims=True), 1e-9)).astype(
            np.int8
        ),
        "scores": np.full((1, 1), 255, np.uint8),
    },
}


def _task(name: str, stride: int):
    options = {"head_stride": stride, "shuffle": 1}
    if name == "segmentation":
        return Segmentation(classes=("a", "b", "c"), top_k=2, **options)
    return Depth(max_depth=12.0, **options) if name == "depth" else Normals(**options)


@pytest.mark.parametrize("stride", [1, 2, 4, 3])
@pytest.mark.parametrize("name", LABELS)
def test_targets_are_equal_to_the_bit(name, stride):
    task, policy = _task(name, stride), Policy(0.4, 0.1)
    drawn = [geometry.whole_image(SIZE, (48, 48)), geometry.own_frame((48, 48))._replace(source_size=SIZE)]
    rng = np.random.default_rng(stride)
    drawn += [geometry.draw(rng, SIZE, (48, 48), zoom=(0.5, 2.0), shift=0.2) for _ in range(6)]
    assert any(one.flip for one in drawn)
    whole = [task.encode(LABELS[name], one) for one in drawn]
    cells = [task.for_loss().encode(LABELS[name], one) for one in drawn]
    assert all(sum(np.asarray(v).size for v in row.values()) <= 49**2 * 3 * 2 / stride**2 + 64 for row in cells)
    targets = [task.target(jax.tree.map(lambda *leaves: np.stack(leaves), *rows), policy) for rows in (whole, cells)]
    if name == "normals":  # what stands where there is none is not read
        targets = [{**target, "normals": target["normals"] * target["valid"][..., None]} for target in targets]
    jax.tree.map(np.testing.assert_array_equal, *targets)


@pytest.mark.parametrize("name", LABELS)
def test_absent_labels_have_the_form_of_others(name):
    encoder = _task(name, 4).for_loss()
    row, blank = encoder.encode(LABELS[name], geometry.whole_image(SIZE, (48, 48))), encoder.blank((48, 48))
    shapes = [{key: (np.shape(value), np.asarray(value).dtype) for key, value in one.items()} for one in (row, blank)]
    assert shapes[0] == shapes[1]
