"""A small program on the public API, for the type checker only: `must` type-checks in a strict project."""

import functools

import jax
import numpy as np

from must import (
    Batch,
    Depth,
    Detection,
    Model,
    Policy,
    Records,
    Scenes,
    balance,
    delta_m,
    from_function,
    label_images,
    labels,
    losses,
    objective,
    optimizer,
    parallelize,
    policy,
    quality,
    state,
    train_step,
    weigh,
)


def train(model: Model, variables: dict[str, object], batch: Batch) -> float:
    """One step of a model on a depth task."""
    tasks = {"depth": Depth()}
    minimized = objective(model, [labels(tasks, {"depth": Policy(0.0, 0.0)})], scales={"depth": 1.0})
    tx, plain_sum = optimizer(steps=10, learning_rate=1e-3), balance.fixed()
    step = parallelize(functools.partial(train_step, objective=minimized, balance=plain_sum, tx=tx))
    train_state = state.create(jax.random.key(0), variables, minimized, plain_sum, tx)
    train_state, logs = step(train_state, batch, None)
    return float(logs["loss"])


def label(directory: str) -> list[str]:
    """Labels of a plain function as records."""
    teacher = from_function(
        "flat", lambda images: {"depth": images[..., 0]}, {"depth": Depth()}, size=(64, 64), fingerprint="1"
    )
    label_images(directory, "flat", Scenes(8), [teacher], shards=1, batch_size=4)
    return list(Records(directory).ids)


def numbers() -> float:
    """Arrays in, numbers out."""
    estimate = weigh.isotonic_accuracy(np.zeros(3), np.ones(3, bool), floor=0.1)
    detection = Detection(("cat", "dog"))
    chosen = policy.fit(detection, [])
    fitted, facts = chosen if chosen else (Policy(0.5, 0.1), {})
    found = quality(detection, [], fitted)
    assert losses is not None and facts is not None and found is not None and estimate is not None
    return delta_m({"depth": 1.0}, {"depth": 2.0}, {"depth": False})
