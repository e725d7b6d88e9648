"""What a record holds is within the stated distance of the prediction, and now and then nearly as far."""

import jax
import numpy as np
import pytest

from must.core.labels import SUREST
from must.data.geometry import whole_image
from must.readers.record_format import decode_record, encode_record
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation

SIZE = (32, 48)
GEOMETRY = whole_image(SIZE, SIZE)
RNG = np.random.default_rng(0)


def stored(task, label):
    """The label as a reader of the record has it."""
    specs = {"task": task.label_spec()}
    return decode_record(encode_record("a", None, {"task": task.restore(label, GEOMETRY)}, specs), specs)[2]["task"]


def assert_tight(error, bound):
    assert 0.5 * bound < error <= bound * (1 + 1e-4)


def test_probabilities_of_classes_are_within_two_to_the_minus_twelve():
    task, errors, rests = Classification(tuple("abcdefgh"), top_k=3), [], []
    for sharpness in np.geomspace(0.01, 10, 64):
        probs = np.minimum(RNG.dirichlet(np.full(8, sharpness)), SUREST).astype(np.float32)  # only the truth is surer
        label = stored(task, {"probs": probs})
        assert list(label["ids"]) == list(np.argsort(-probs, kind="stable")[:3])
        errors.append(np.abs(label["probs"].astype(np.float64) - probs[label["ids"]]).max())
        rests.append(abs(float(label["rest"]) - (1 - probs[label["ids"]].sum(dtype=np.float64))))
    assert_tight(max(errors), 2.0**-12)
    assert max(rests) <= 4 * 2.0**-12


@pytest.mark.parametrize("top_k", [1, 3])
def test_probabilities_of_pixels_are_within_one_over_510(top_k):
    task = Segmentation(tuple("abcde"), top_k=top_k, head_stride=4, shuffle=4, stride=1)
    logits = RNG.normal(0, 2, (1, *SIZE, 5)).astype(np.float32)
    probs = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    probs = np.sort(probs, -1)[..., ::-1][..., :top_k]
    predicted = {name: np.asarray(field)[0] for name, field in jax.jit(task.predict)(logits).items()}
    label = stored(task, predicted)
    np.testing.assert_array_equal(label["ids"], np.argsort(-logits[0], -1, kind="stable")[..., :top_k])
    assert_tight(np.abs(label["probs"] / 255.0 - probs).max(), 1 / 510)


@pytest.mark.parametrize("low, high", [(0.1, 10.0), (3.0, 3.5), (0.5, 80.0)])
def test_depth_is_within_the_range_over_131068(low, high):
    task, meters = Depth(stride=1), RNG.uniform(low, high, SIZE).astype(np.float32)
    meters[0, 0] = np.nan
    label = stored(task, {"depth": meters})
    assert (label["depth"] == 0).sum() == 1
    seen = label["depth"].astype(np.float64) * float(label["scale"]) + float(label["offset"])
    span = float(np.nanmax(meters)) - float(np.nanmin(meters))
    assert_tight(np.nanmax(np.abs(seen - meters)[label["depth"] > 0]) / 1.03, span / 131068)  # scale, offset: float32


def test_normals_are_within_one_over_254_and_two_fifths_of_a_degree():
    normals = RNG.normal(0, 1, (*SIZE, 3))
    normals = (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32)
    seen = stored(Normals(stride=1), {"normals": normals})["normals"] / 127.0
    assert_tight(np.abs(seen - normals).max(), 1 / 254)
    seen /= np.linalg.norm(seen, axis=-1, keepdims=True)
    assert_tight(np.rad2deg(np.arccos(np.minimum((seen * normals).sum(-1), 1))).max(), 0.4)
