"""Exponential moving averages."""

import jax.numpy as jnp
import numpy as np

from must.core.ema import ema_update


def test_ramp_and_limit():
    old, new = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    np.testing.assert_allclose(ema_update(old, new, 0.9)["w"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(ema_update(old, new, 0.9, jnp.int32(0))["w"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(ema_update(old, new, 0.9, jnp.int32(1000))["w"], 0.1, rtol=1e-6)


def test_no_decay_and_counters_copy():
    old, new = {"w": jnp.full(2, 0.3), "n": jnp.int32(3)}, {"w": jnp.full(2, 1e9), "n": jnp.int32(8)}
    assert ema_update(old, new, 0.0)["w"][0] == new["w"][0]
    assert ema_update(old, new, 0.99)["n"] == 8
