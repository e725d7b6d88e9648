"""SimCLR's loss against NumPy, on any number of devices, and two views of one picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from must.core import devices
from must.core.types import Batch, Example, Features, Model
from must.data.pipeline import OTHER, Encoder, TwoViews
from must.objectives import balance
from must.objectives.simclr import TERM, contrast, simclr
from must.train import state as states
from must.train.step import train_step


def _reference(z, temperature):
    """Equation 1 of the paper, with loops."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    count, losses = len(z) // 2, []
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        others = [np.exp(z[i] @ z[k] / temperature) for k in range(2 * count) if k != i]
        losses.append(-np.log(np.exp(z[i] @ z[j] / temperature) / sum(others)))
    return np.array(losses)


def test_the_loss_is_that_of_the_paper_and_absent_rows_are_nobodys_negatives():
    z = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    np.testing.assert_allclose(contrast(z, jnp.ones(12, bool), 0.3), _reference(z, 0.3), rtol=2e-5)
    kept = np.array([0, 1, 2, 4, 6, 7, 8, 10])  # pictures 3 and 5 are padding
    real = np.isin(np.arange(12), kept)
    np.testing.assert_allclose(contrast(z, jnp.asarray(real), 0.3)[kept], _reference(z[kept], 0.3), rtol=2e-5)


def _model():
    """Pooled features are a linear map of the mean color."""

    def init(key, inputs):
        return {"params": {"map": jax.random.normal(key, (3, 6))}}

    def apply(variables, inputs, *, train, key=None, axis_name=None, with_features=False, present=None):
        pooled = inputs.astype(jnp.float32).mean((1, 2)) / 255 @ variables["params"]["map"]
        return {}, {}, Features({}, pooled)

    return Model(init, apply)


def _batch(rows):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (rows, 4, 4, 3)).astype(np.uint8)
    other = np.clip(image + rng.integers(-9, 9, image.shape), 0, 255).astype(np.uint8)
    return Batch({"image": image, OTHER: other}, {}, {}, np.arange(rows), {})


@pytest.mark.devices(8)
@pytest.mark.parametrize("rows", [16, 13])
def test_one_device_equals_eight(rows):
    model, tx = _model(), optax.sgd(0.5)
    objective = simclr(model, 6)
    step = functools.partial(train_step, objective=objective, balance=balance.fixed(), tx=tx)
    ends = []
    for chosen in (jax.devices()[:1], jax.devices()):
        variables = model.init(jax.random.key(0), None)
        state = states.create(jax.random.key(1), variables, objective, balance.fixed(), tx)
        run = devices.parallelize(step, devices=chosen)
        losses = []
        for _ in range(4):
            state, logs = run(state, _batch(rows), None)
            losses.append(float(logs[f"loss/{TERM}"]))
        assert losses[-1] < losses[0]
        ends.append((losses, np.asarray(state.params["model"]["map"])))
    for one, many in zip(*ends, strict=True):
        np.testing.assert_allclose(one, many, atol=2e-5)


def test_two_views_are_two_draws_of_one_picture():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    view = lambda picture, rng: picture // 2 + np.uint8(rng.integers(100))  # noqa: E731
    encoder = TwoViews(Encoder({}, (8, 8), None, {"image": view}))
    row = encoder(Example("a/0", image, {}), 0, np.random.default_rng(0))
    assert set(row.inputs) == {"image", OTHER} == set(encoder.blank_inputs())
    assert np.ptp(row.inputs["image"].astype(int) - row.inputs[OTHER]) == 0  # they differ by one brightness
    assert (row.inputs["image"] != row.inputs[OTHER]).all()
