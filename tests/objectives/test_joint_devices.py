"""A joint step of several groups on one device and on eight: the same losses, gradients, parameters and averages."""

import functools

import jax
import numpy as np
import optax
import pytest

from must.core import devices
from must.models.experts import experts
from must.objectives import balance
from must.objectives.joint import joint
from must.train import state as states
from must.train.step import train_step
from tests.objectives.test_joint import TASKS, groups, moved, parts, start

STEPS = 3


def trained(compile_step, objective, variables):
    """Numbers after a few steps on groups of 16 rows a set and 24 of the pool: two and three rows a device."""
    # Plain SGD: Adam would magnify differences of 1e-8 in a gradient near 0 to a whole step.
    tx, weights = optax.sgd(0.1, momentum=0.9), balance.fixed()
    step = compile_step(functools.partial(train_step, objective=objective, balance=weights, tx=tx, ema_decay=0.9))
    state = states.create(jax.random.key(2), variables, objective, weights, tx)
    for _ in range(STEPS):
        state, logs = step(state, groups(count=16, pool=24), None)
    kept = {"state": (state.params, state.opt_state, state.aux_state, state.ema), "logs": logs}
    return jax.tree.map(np.asarray, kept)


def farthest(a, b):
    return max(float(np.max(np.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.devices(8)
def test_one_device_equals_eight():
    """Dropout, a threshold and an average of teachers; shuffled answers come from other devices too."""
    assert jax.device_count() == 8
    made = experts(parts(dropout=0.3))
    variables = moved(made, start(made))
    options = {"threshold": 0.5, "ema_decay": 0.9, "initial": variables["params"]}
    on_one = functools.partial(devices.parallelize, devices=jax.devices()[:1])
    across = functools.partial(devices._across_processes, out_axes=None, donate=(), devices=jax.devices())
    ones = []
    for shuffled, ways in ((False, (devices.parallelize, across)), (True, (devices.parallelize,))):
        objective = joint(made, TASKS, shuffled=shuffled, **options)
        one = trained(on_one, objective, variables)
        assert one["logs"]["loss/a/distill"] > 0.05
        assert all(farthest(one, trained(way, objective, variables)) < 2e-5 for way in ways)
        ones.append(one)
    assert farthest(*ones) > 1e-2  # the control is another objective
