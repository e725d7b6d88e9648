"""One convention of pixel centers: generations of labels do not move what they show."""

import jax.numpy as jnp
import numpy as np
import pytest

from must.core import labels as forms
from must.core.types import Policy
from must.data.geometry import nearest, transform_map, whole_image
from must.tasks import dense
from must.tasks.depth import Depth
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation

SIZE = (128, 128)
ALL = Policy(0.0, 0.0)
Y, X = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
EDGES = {"stairs": 56 + Y // 8, "leaning": 64 + 0.5 * (Y - 64)}  # all phases of a cell; hard labels round each of them
FRAMES = {"native": (128, 128), "half": (64, 64), "three quarters": (96, 96)}


def next_label(task, label, frame):
    """The record of a student that has learned a record by heart, or of its mirrored picture."""
    geometry = whole_image(SIZE, frame)
    row = {name: value[None] for name, value in task.transform(label, geometry).items()}
    target = task.target(row, ALL)
    if isinstance(task, Segmentation):
        outputs = 20.0 * (target["ids"] == jnp.arange(len(task.classes)))
    elif isinstance(task, Depth):
        outputs = jnp.log(target["depth"])[..., None]
    else:
        outputs = target["normals"]
    return task.restore({name: np.asarray(value)[0] for name, value in task.predict(outputs).items()}, geometry)


def after(task, label, frame, generations=10):
    for _ in range(generations):
        label = next_label(task, label, frame)
    return label


@pytest.mark.parametrize("frame", FRAMES.values(), ids=list(FRAMES))
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_ten_generations_leave_the_edges_of_masks_where_they_are(edge, stride, frame):
    task = Segmentation(("left", "right"), head_stride=stride, stride=4)
    for axes in ((0, 1), (1, 0)):
        moved = []  # of an edge and of its mirror image; the corners of the stairs are rounded off in both
        for sign, mask in ((-1, EDGES[edge] < X), (1, SIZE[1] - EDGES[edge] > X)):
            mask = mask.astype(np.uint8).transpose(axes)
            stored = after(task, forms.segmentation(mask), frame)["ids"][..., 0]
            moved.append(sign * (stored.mean() - mask.mean()) * SIZE[1])
        assert abs(np.mean(moved)) <= 0.1 and np.abs(moved).max() <= 0.5, f"{moved} pixels"
    straight = (X > 64).astype(np.uint8)
    stored = after(task, forms.segmentation(straight), frame)["ids"][..., 0]
    np.testing.assert_array_equal(stored, straight[::4, ::4])


@pytest.mark.parametrize("frame", FRAMES.values(), ids=list(FRAMES))
@pytest.mark.parametrize("axis", [0, 1])
def test_ten_generations_leave_slopes_of_depth_and_normals_where_they_are(axis, frame):
    along = (Y, X)[axis]
    codes = forms.depth(np.round(2e4 * np.exp(along / 400)), 1e-4)
    stored = after(Depth(), codes, frame)
    meters = stored["depth"] * float(stored["scale"]) + float(stored["offset"])
    center = along.reshape(32, 4, 32, 4).mean((1, 3))
    inner = (slice(8, -8), slice(8, -8))  # enlarging repeats what is at the border
    assert abs((400 * np.log(meters / 2) - center)[inner].mean()) < 0.1

    angle = (along - along.mean()) / 100
    vectors = np.stack([np.sin(angle), np.zeros_like(angle), -np.cos(angle)], -1)
    stored = after(Normals(), forms.normals(vectors), frame)["normals"].astype(np.float32)
    turned = np.arctan2(stored[..., 0], -stored[..., 2]) * 100 - (center - along.mean())
    assert abs(turned[inner].mean()) < 0.1


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
def test_samples_lie_at_the_centers_of_the_cells(stride):
    ramp = np.broadcast_to(np.arange(48) + 0.5, (1, 48, 48)).astype(np.float32)
    center = (np.arange(48 // stride) + 0.5) * stride
    values, valid = dense.sample_quantity(ramp, np.ones(ramp.shape, bool), stride)
    np.testing.assert_allclose(values[0, 0], center)
    assert valid.all()
    near = dense.sample(ramp, stride)[0, 0]
    assert np.abs(near - center).max() <= 0.5 and abs((near - center).mean()) < 1e-6
    up = dense.sample_quantity(np.swapaxes(ramp, 1, 2), np.ones(ramp.shape, bool), stride)[0]
    np.testing.assert_allclose(up[0, :, 0], center)


def test_a_sample_is_the_mean_of_valid_pixels_and_needs_half_of_them():
    maps = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    for count, want in ((4, 7.5), (3, (5 + 6 + 9) / 3), (2, 5.5), (1, None)):
        valid = np.zeros((1, 4, 4), bool)
        valid.reshape(-1)[[5, 6, 9, 10][:count]] = True
        values, there = dense.sample_quantity(maps, valid, 4)
        assert there.item() is (want is not None) and values.item() == pytest.approx(want or 0)


def test_equally_near_pixels_take_turns():
    assert nearest(np.array([0.5, 1.0, 1.5, 3.0, 2.0]), 4).tolist() == [0, 1, 1, 3, 1]
    halved = transform_map(np.arange(8)[None].repeat(8, 0), whole_image((8, 8), (4, 4)), -1)
    assert halved[0].tolist() == [0, 3, 4, 7]
    mirrored = whole_image((8, 8), (4, 4))._replace(flip=True)
    assert transform_map(np.arange(8)[None].repeat(8, 0), mirrored, -1)[0].tolist() == [7, 4, 3, 0]
