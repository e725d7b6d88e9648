"""One train step on one device, on eight and across processes: the same numbers, masks and dropout included."""

import functools
import multiprocessing
import os
import socket

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from must.core import devices
from must.core.ratio import Ratio, divide, weighted_sum
from must.core.types import Balance, Batch, Objective, PerExample, UserError
from must.train.state import create
from must.train.step import train_step
from tests.support.collectives import collectives

ROWS, WIDTH, PIXELS, CLASSES = 32, 12, 6, 5


class Network(nn.Module):
    """Two heads over a batch-normalized layer with dropout whose noise belongs to the row, not to the device."""

    @nn.compact
    def __call__(self, x, train, key, axis_name):
        x = nn.Dense(WIDTH)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=axis_name)(x)
        x = nn.tanh(x)
        rows = devices.global_row_index(x.shape[0], axis_name)
        keep = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 0.7, (WIDTH,)))(rows)
        x = x * keep / 0.7
        return nn.Dense(CLASSES)(x), nn.Dense(PIXELS)(x)


NETWORK = Network()


def terms(params, model_state, aux_state, frozen, batch, key, axis_name):
    """A class term and a masked pixel term; `frozen` shifts the target so that it has to arrive too."""
    variables = {"params": params["model"], **model_state}
    (scores, pixels), model_state = NETWORK.apply(
        variables, batch.inputs["image"], True, key, axis_name, mutable=["batch_stats"]
    )
    valid = batch.labels["depth"]["valid"]
    error = jnp.where(valid, (pixels - batch.labels["depth"]["value"] - frozen) ** 2, 0.0)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(scores, batch.labels["class"]["id"])
    ratios = {
        "class": weighted_sum(PerExample(cross_entropy, jnp.ones_like(cross_entropy)), batch.weights["class"]),
        "depth": weighted_sum(PerExample(error.sum(-1), valid.sum(-1)), batch.weights["depth"]),
    }
    return ratios, model_state, aux_state


def mean_of_device_means(params, model_state, aux_state, frozen, batch, key, axis_name):
    """The tempting mistake, as a control: each device divides by its own counts."""
    ratios, model_state, aux_state = terms(params, model_state, aux_state, frozen, batch, key, axis_name)
    count = 1.0 if axis_name is None else jax.lax.psum(1.0, axis_name)
    ratios = {name: Ratio(divide(ratio) / count, jnp.float32(1 / count)) for name, ratio in ratios.items()}
    return ratios, model_state, aux_state


def make_step(objective_terms=terms):
    objective = Objective(lambda key: ({}, {}), ("class", "depth"), objective_terms, {"class": 1.0, "depth": 0.5})
    ones = lambda losses, present, gram, state: ({name: jnp.ones(()) for name in losses}, state)  # noqa: E731
    balance = Balance(lambda names: {}, ones)
    # Plain SGD: Adam would magnify differences of 1e-8 in a gradient near 0 to a whole step.
    tx = optax.sgd(0.1, momentum=0.9)
    step = functools.partial(train_step, objective=objective, balance=balance, tx=tx, ema_decay=0.9)

    @jax.jit
    def fresh():
        variables = NETWORK.init(jax.random.key(0), jnp.zeros((2, 7)), False, jax.random.key(1), None)
        return create(jax.random.key(2), variables, objective, balance, tx)

    return step, fresh


def make_batch(seed):
    """Most rows of one task lie on the first devices, and on some devices there are none."""
    rng = np.random.default_rng(seed)
    class_weights = np.where(np.arange(ROWS) < 9, rng.uniform(0.5, 2, ROWS), 0.0)
    depth_weights = np.where(np.arange(ROWS) % 8 < 3, 0.0, 1.0)
    return Batch(
        inputs={"image": rng.normal(size=(ROWS, 7)).astype(np.float32)},
        labels={
            "class": {"id": rng.integers(0, CLASSES, ROWS)},
            "depth": {
                "value": rng.normal(size=(ROWS, PIXELS)).astype(np.float32),
                "valid": rng.random((ROWS, PIXELS)) < np.linspace(0.05, 1, ROWS)[:, None],
            },
        },
        weights={"class": class_weights.astype(np.float32), "depth": depth_weights.astype(np.float32)},
        ids=np.arange(ROWS),
    )


FROZEN = np.full((), 0.25, np.float32)


def train(compiled, state, rows=slice(None), steps=3):
    """Numbers after a few steps: parameters, statistics, averages and the last step's logs."""
    for seed in range(steps):
        state, logs = compiled(state, jax.tree.map(lambda leaf: leaf[rows], make_batch(seed)), FROZEN)
    kept = (state.params, state.model_state, state.opt_state, state.ema, state.step, logs)
    return jax.tree.map(np.asarray, kept)


def farthest(a, b):
    return max(float(np.max(np.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def rows_step(scale, batch, *, axis_name):
    """Outputs per example."""
    index = devices.global_row_index(batch["x"].shape[0], axis_name)
    return {"twice": scale * batch["x"], "index": index, "noise": jax.vmap(draw)(index)}


def draw(row):
    return jax.random.normal(jax.random.fold_in(jax.random.key(5), row), (2,))


@pytest.mark.devices(8)
def test_one_device_equals_eight_by_pmap_and_by_shard_map():
    assert jax.device_count() == 8
    step, fresh = make_step()
    one = train(devices.parallelize(step, donate=(0,), devices=jax.devices()[:1]), fresh())
    by_pmap = train(devices.parallelize(step, donate=(0,)), fresh())
    by_shard_map = train(devices._across_processes(step, None, (0,), jax.devices()), fresh())
    assert farthest(one, by_pmap) < 1e-5
    assert farthest(one, by_shard_map) < 1e-5

    wrong_step, fresh = make_step(mean_of_device_means)
    wrong = train(devices.parallelize(wrong_step, donate=(0,)), fresh())
    assert farthest(one, wrong) > 1e-3, "the batch is too even to tell a masked mean from a mean of device means"


@pytest.mark.devices(8)
def test_devices_exchange_gradients_batch_statistics_and_logged_sums_alone():
    step, fresh = make_step()
    state = fresh()
    exchanged = collectives(devices.parallelize(step).lower(state, make_batch(0), FROZEN))
    assert set(exchanged) == {"all-reduce"}
    scalar = 4
    gradients = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    statistics = sum(leaf.nbytes for leaf in jax.tree.leaves(state.model_state))  # once forward, once backward
    assert sum(size for size in exchanged["all-reduce"] if size > scalar) == gradients + 2 * statistics
    assert exchanged["all-reduce"].count(scalar) <= 3 * 2 + 2  # losses, denominators, presence of two tasks, and totals


@pytest.mark.devices(8)
def test_state_is_donated_and_rows_come_back_in_order():
    step, fresh = make_step()
    for donate in ((0,), ()):
        compiled = devices.parallelize(step, donate=donate)
        state, _ = compiled(devices.replicate(fresh()), make_batch(0), FROZEN)
        compiled(state, make_batch(1), FROZEN)
        assert all(leaf.is_deleted() == bool(donate) for leaf in jax.tree.leaves(state.params))
    batch = {"x": np.arange(48.0).reshape(16, 3)}
    runs = [
        devices.parallelize(rows_step, out_axes=0, devices=jax.devices()[:1]),
        devices.parallelize(rows_step, out_axes=0),
        devices._across_processes(rows_step, 0, (), jax.devices()),
    ]
    for outputs in [run(np.float32(2), batch) for run in runs]:
        np.testing.assert_array_equal(outputs["twice"], 2 * batch["x"])
        np.testing.assert_array_equal(outputs["index"], np.arange(16))
        np.testing.assert_allclose(outputs["noise"], jax.vmap(draw)(jnp.arange(16)), rtol=1e-6)
    for run in runs:  # eight devices do not divide twelve rows
        outputs = run(np.float32(2), {"x": batch["x"][:12]})
        np.testing.assert_array_equal(outputs["twice"], 2 * batch["x"][:12])
        np.testing.assert_array_equal(outputs["index"], np.arange(12))
    assert devices.process_rows(12) == (0, 12)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one_process(process_id, port, results):
    """Runs in a process of its own: two simulated devices, half of the rows."""
    devices.set_xla_flags(simulated_devices=2)
    devices.initialize_distributed(f"127.0.0.1:{port}", 2, process_id)
    start, stop = devices.process_rows(ROWS)
    step, fresh = make_step()
    compiled = devices.parallelize(step, donate=(0,))
    trained = train(compiled, devices.replicate(fresh()), slice(start, stop))
    own = {"x": np.arange(48.0).reshape(16, 3)[start // 2 : stop // 2]}
    rows = jax.tree.map(np.asarray, devices.parallelize(rows_step, out_axes=0)(np.float32(2), own))
    try:
        devices.replicate({"w": np.full(3, process_id)})
        refused = ""
    except ValueError as error:
        refused = str(error)
    results.put((process_id, devices.is_writer(), trained, rows, refused))


def test_two_processes_equal_one():
    step, fresh = make_step()
    one = train(devices.parallelize(step, donate=(0,), devices=jax.devices()[:1]), fresh())
    context = multiprocessing.get_context("spawn")
    results, port = context.Queue(), free_port()
    processes = [context.Process(target=one_process, args=(k, port, results), daemon=True) for k in range(2)]
    for process in processes:
        process.start()
    answers = sorted((results.get(timeout=120) for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [writer for _, writer, *_ in answers] == [True, False]
    for _, _, trained, _, refused in answers:
        assert farthest(one, trained) < 1e-5
        assert "different values" in refused
    rows = np.concatenate([answer[3]["twice"] for answer in answers])
    np.testing.assert_array_equal(rows, 2 * np.arange(48.0).reshape(16, 3))
    np.testing.assert_array_equal(np.concatenate([answer[3]["index"] for answer in answers]), np.arange(16))


def test_incomplete_description_of_processes_is_refused():
    with pytest.raises(UserError, match="127.0.0.1:1"):
        devices.initialize_distributed("127.0.0.1:1", 2, None)
    assert devices.initialize_distributed(None, None, None) is None


def pinned(cores, results):
    devices.start_pinned(cores)
    results.put([os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads")
def test_a_process_can_be_kept_on_one_core():
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    core = max(os.sched_getaffinity(0))
    process = context.Process(target=pinned, args=([core], results))
    process.start()
    threads = results.get()
    assert len(threads) > 1 and all(cores == {core} for cores in threads)
    process.join()
