"""The public API: its names and signatures, and that its functions train models of other projects (jnp, flax NNX)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from must import (
    Batch,
    Classification,
    Depth,
    Model,
    Policy,
    balance,
    from_function,
    labels,
    objective,
    optimizer,
    parallelize,
    state,
    train_step,
)
from tests.support import public_api

TASKS = {"classification": Classification(classes=("dark", "light")), "depth": Depth(head_stride=1, shuffle=1)}


def _batch():
    """Light pictures are near, dark ones far; half of the depths are missing."""
    rng = np.random.default_rng(0)
    light = np.arange(16) % 2
    images = (light[:, None, None, None] * 120 + rng.integers(0, 100, (16, 8, 8, 3))).astype(np.uint8)
    annotations = {
        "classification": {"probs": np.eye(2, dtype=np.float32)[light]},
        "depth": {"depth": np.broadcast_to((4.0 - 2 * light)[:, None, None], (16, 8, 8)).astype(np.float32)},
    }
    weights = {"classification": np.ones(16, np.float32), "depth": (np.arange(16) < 8).astype(np.float32)}
    return Batch({"image": images}, annotations, weights, np.arange(16))


def _train(model, variables, steps=300):
    policies, scales = dict.fromkeys(TASKS, Policy(0.0, 0.0)), dict.fromkeys(TASKS, 1.0)
    minimized = objective(model, [labels(TASKS, policies)], scales=scales)
    tx = optimizer(steps=steps, learning_rate=0.1)
    weigh = balance.fixed()
    step = parallelize(functools.partial(train_step, objective=minimized, balance=weigh, tx=tx), donate=(0,))
    train_state = state.create(jax.random.key(0), variables, minimized, weigh, tx)
    history = []
    for _ in range(steps):
        train_state, logs = step(train_state, _batch(), None)
        history.append(float(logs["loss"]))
    return history


def test_a_model_in_plain_jnp():
    def init(key, images):
        keys = jax.random.split(key, 3)
        shapes = {"mix": (3, 8), "class": (8, 2), "depth": (8, 1)}
        return {"params": {n: 0.5 * jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}}

    def apply(variables, images, *, train, key, axis_name=None):
        p = variables["params"]
        x = jnp.tanh((images / 255.0 - 0.5) @ p["mix"])
        return {"classification": x.mean((1, 2)) @ p["class"], "depth": x @ p["depth"]}, {}

    history = _train(Model(init, apply), init(jax.random.key(1), None))
    assert history[-1] < 0.4 * history[0]


class _Nnx(nnx.Module):
    def __init__(self, rngs):
        self.mix = nnx.Linear(3, 8, rngs=rngs)
        self.classes = nnx.Linear(8, 2, rngs=rngs)
        self.depth = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, images):
        x = jnp.tanh(self.mix(images / 255.0 - 0.5))
        return {"classification": self.classes(x.mean((1, 2))), "depth": self.depth(x)}


def test_a_model_in_nnx():
    graph, params = nnx.split(_Nnx(nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)

    def apply(variables, images, *, train, key, axis_name=None):
        return nnx.merge(graph, nnx.State(variables["params"]))(images), {}

    history = _train(Model(lambda key, images: {"params": params}, apply), {"params": params})
    assert history[-1] < 0.4 * history[0]


def test_any_function_is_a_teacher():
    def bright(images):
        light = images.mean((1, 2, 3)) > 110
        return {"classification": {"probs": np.eye(2, dtype=np.float32)[light.astype(int)]}}

    teacher = from_function(
        "brightness", bright, {"classification": TASKS["classification"]}, size=(8, 8), fingerprint="brightness-1"
    )
    batch = _batch()
    predicted = teacher.predict(batch.inputs["image"])["classification"]["probs"].argmax(-1)
    np.testing.assert_array_equal(predicted, batch.labels["classification"]["probs"].argmax(-1))


REWRITE = "differs; run `python -m tests.support.public_api`, review the change and describe it in CHANGELOG.md"


def test_names_and_signatures_are_those_of_the_snapshot():
    assert public_api.SNAPSHOT.read_text(encoding="utf-8") == public_api.snapshot(), f"tests/public_api.txt {REWRITE}"


def test_the_stub_names_what_the_package_loads():
    assert public_api.STUB.read_text(encoding="utf-8") == public_api.stub(), f"must/__init__.pyi {REWRITE}"


def test_public_functions_are_fully_annotated():
    assert public_api.unannotated() == []
