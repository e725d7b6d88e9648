"""Normals against naive formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import Policy
from must.data.geometry import whole_image
from must.tasks.normals import Normals

RNG = np.random.default_rng(0)


def _unit(*shape):
    n = RNG.normal(size=(*shape, 3))
    return (n / np.linalg.norm(n, axis=-1, keepdims=True)).astype(np.float32)


def test_metrics_against_naive_formulas_over_all_pixels():
    task = Normals()
    true = _unit(3, 8, 8)
    predicted = true + 0.4 * _unit(3, 8, 8)
    predicted /= np.linalg.norm(predicted, axis=-1, keepdims=True)
    invalid = RNG.random((3, 8, 8)) < 0.3
    true[invalid] = 0
    true[2] = np.nan
    valid = ~invalid
    valid[2] = False
    degrees = np.rad2deg(np.arccos(np.clip((predicted * np.nan_to_num(true)).sum(-1), -1, 1)))[valid]
    got = task.summarize(jax.device_get(task.measure({"normals": predicted}, {"normals": true})))
    assert got["mean_angle"] == pytest.approx(degrees.mean(), rel=1e-4)
    assert got["median_angle"] == pytest.approx(np.sort(degrees)[(len(degrees) - 1) // 2], abs=0.051)
    for limit in (11.25, 22.5, 30.0):
        assert got[f"within_{limit}"] == pytest.approx(100 * (degrees < limit).mean())


def test_no_predicted_normal_counts_as_a_right_angle():
    got = Normals().measure({"normals": np.zeros((1, 2, 2, 3), np.float32)}, {"normals": _unit(1, 2, 2)})
    assert got["degrees"][0] == pytest.approx(4 * 90, rel=1e-4)


@pytest.mark.parametrize("loss_kind, want", [("cosine", 1 - np.cos(0.3)), ("angle", 0.3)])
def test_loss_by_hand_and_blind_to_length(loss_kind, want):
    task = Normals(loss_kind=loss_kind, head_stride=1)
    true = np.zeros((1, 2, 2, 3), np.float32)
    true[..., 2] = -1
    outputs = 5.0 * jnp.broadcast_to(jnp.array([np.sin(0.3), 0.0, -np.cos(0.3)]), true.shape)
    term = task.loss(outputs, task.target({"normals": true}, Policy()))["normals"]
    assert term.value[0] == pytest.approx(4 * want, rel=1e-4) and term.norm[0] == 4


def test_blended_vectors_are_invalid_and_others_get_unit_length():
    codes = np.zeros((2, 2, 3), np.int8)
    codes[0, 0], codes[0, 1], codes[1, 0] = (0, 0, -40), (0, 0, -110), (0, 0, -127)
    normals = Normals().transform({"normals": codes}, whole_image((2, 2), (2, 2)))["normals"]
    np.testing.assert_allclose(normals, [[[0, 0, 0], [0, 0, -1]], [[0, 0, -1], [0, 0, 0]]])
