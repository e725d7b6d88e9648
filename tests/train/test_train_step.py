"""The invariants of the train step, on a small two-task network: weights, frozen parts, scales, seeds, resuming."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core import devices
from must.core.ratio import Ratio
from must.core.types import Batch, Model, Objective, Policy, UserError
from must.data.pipeline import Joined
from must.models.fpn import FPN
from must.models.heads import ClassHead, DenseHead
from must.models.multi_head import multi_head
from must.models.resnet import ResNet
from must.objectives import aggregate
from must.objectives import balance as balances
from must.objectives.labels import labels, learning_rate_rule
from must.objectives.objective import objective as make_objective
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.train import state as states
from must.train.checkpoint import Checkpoints
from must.train.loop import fit
from must.train.optimizer import optimizer
from must.train.step import train_step

SIZE, ROWS = (8, 8), 16
TASKS = {"classification": Classification(classes=("a", "b", "c")), "depth": Depth(head_stride=1, shuffle=1)}


class _Net(nn.Module):
    """Shared layer and two heads, small enough to compile in no time; dropout draws per global row."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(nn.Conv(8, (3, 3), name="shared")(images.astype(jnp.float32) / 255 - 0.5))
        if train:
            rows = devices.global_row_index(len(x), self.axis_name)
            keys = jax.vmap(lambda row: jax.random.fold_in(self.make_rng("dropout"), row))(rows)
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.8, (8,)))(keys)
            x = x * keep[:, None, None, :] / 0.8
        return {
            "classification": nn.Dense(3, name="classification")(x.mean((1, 2))),
            "depth": nn.Dense(1, name="depth")(x),
        }


def _model() -> Model:
    def init(key, images):
        return _Net().init({"params": key}, images, False)

    def apply(variables, images, *, train, key, axis_name=None):
        return _Net(axis_name).apply(variables, images, train, rngs={"dropout": key} if train else {}), {}

    return Model(init, apply)


def _batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    labels = {
        "classification": {"probs": np.eye(3, dtype=np.float32)[rng.integers(0, 3, ROWS)]},
        "depth": {"depth": rng.uniform(1, 5, (ROWS, *SIZE)).astype(np.float32)},
    }
    weights = {
        "classification": (rng.random(ROWS) < 0.6).astype(np.float32),
        "depth": np.where(np.arange(ROWS) < 3, 0, rng.uniform(0.5, 2, ROWS)).astype(np.float32),
    }
    images = rng.integers(0, 256, (ROWS, *SIZE, 3)).astype(np.uint8)
    return Batch({"image": images}, labels, weights, np.arange(ROWS), {})


def _objective(scales=None, **options):
    policies = {name: Policy(0.0, 0.0) for name in TASKS}
    scales = {"classification": 1.0, "depth": 1.0} | (scales or {})
    return make_objective(_model(), [labels(TASKS, policies)], scales=scales, **options)


def _step(objective, tx, devices_=None, balance=None):
    bound = functools.partial(
        train_step, objective=objective, balance=balance or balances.fixed(), tx=tx, ema_decay=0.9
    )
    return devices.parallelize(bound, devices=devices_ or jax.devices()[:1])


def _fresh(objective, tx, balance=None):
    variables = _model().init(jax.random.key(1), np.zeros((1, *SIZE, 3), np.uint8))
    return states.create(jax.random.key(0), variables, objective, balance or balances.fixed(), tx)


TX = optimizer(steps=20, learning_rate=0.05, name="sgd")
FIXED = balances.fixed()
OBJECTIVE = _objective()


@pytest.fixture(scope="module")
def step():
    return _step(OBJECTIVE, TX)


def _close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def test_labels_with_weight_zero_cannot_matter(step):
    batch = _batch()
    poisoned = jax.tree.map(np.copy, batch)
    poisoned.labels["classification"]["probs"][batch.weights["classification"] == 0] = np.nan
    poisoned.labels["depth"]["depth"][batch.weights["depth"] == 0] = np.nan
    state, logs = step(_fresh(OBJECTIVE, TX), batch)
    other, other_logs = step(_fresh(OBJECTIVE, TX), poisoned)
    assert logs["loss"] == other_logs["loss"]
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)
    seen = jax.tree.map(np.copy, batch)
    seen.labels["depth"]["depth"][batch.weights["depth"] != 0] *= 2  # the same change where it counts does matter
    assert step(_fresh(OBJECTIVE, TX), seen)[1]["loss"] != logs["loss"]


def test_thresholds_travel_in_the_state(step):
    batch = _batch()
    batch.labels["classification"]["probs"] = 0.7 * batch.labels["classification"]["probs"] + np.float32(
        0.1
    )  # best: 0.8
    policies = {"classification": Policy(np.array([0.9, 0.9, 0.9]), 0.0), "depth": Policy(0.0, 0.0)}
    strict = make_objective(_model(), [labels(TASKS, policies)], scales=dict.fromkeys(TASKS, 1.0))
    _, logs = step(_fresh(OBJECTIVE, TX), batch)
    _, strict_logs = step(_fresh(strict, TX), batch)  # the step was compiled for the other objective
    term = "loss/classification/class"
    assert logs[term] > 0 and strict_logs[term] == 0 and strict_logs["loss/depth/depth"] == logs["loss/depth/depth"]


@pytest.mark.devices(8)
@pytest.mark.parametrize("balance", [balances.fixed(), aggregate.upgrad()], ids=["sum", "gram"])
def test_one_device_equals_eight(balance):
    single, many = _step(OBJECTIVE, TX, balance=balance), _step(OBJECTIVE, TX, jax.devices(), balance)
    assert len(jax.devices()) == 8
    a, b = _fresh(OBJECTIVE, TX, balance), _fresh(OBJECTIVE, TX, balance)
    for seed in range(3):
        (a, a_logs), (b, b_logs) = single(a, _batch(seed)), many(b, _batch(seed))
        _close(a_logs, b_logs, 1e-5)
    _close(a.params, b.params, 1e-5)


@pytest.mark.devices(6)
@pytest.mark.parametrize("normalize", ["items", "batch"])
def test_devices_that_do_not_divide_the_batch_train_like_one(normalize):
    """Batch statistics, denominators and dropout see the 16 rows, not those that pad them to 18, 20 and 18."""
    task = dict(list(TASKS.items())[:1])
    head = ClassHead(3, dropout=0.3)
    model = multi_head(ResNet(10, width=8, stem="small", stages=1), None, {"classification": head})
    policies = {name: Policy(0.0, 0.0) for name in task}
    made = make_objective(model, [labels(task, policies)], scales={"classification": 1.0}, normalize=normalize)
    variables = model.init(jax.random.key(1), np.zeros((1, *SIZE, 3), np.uint8))

    def run(count):
        state = states.create(jax.random.key(0), variables, made, balances.fixed(), TX)
        step = _step(made, TX, jax.devices()[:count])
        for seed in range(3):
            batch = _batch(seed)
            state, logs = step(state, batch._replace(labels={name: batch.labels[name] for name in task}))
        return jax.device_get((state.params, state.model_state, state.ema, logs))

    one = run(1)
    for count in (3, 5, 6):
        _close(one, run(count), 2e-5)


def _trained(norm, **options):
    """After three steps of a network with normalization, and how many programs they took."""
    heads = {"classification": ClassHead(3), "depth": DenseHead(1, 4, 8, 1, 4, norm="none")}
    backbone = ResNet(10, width=8, stem="small", stages=2, norm=norm)
    model = multi_head(backbone, FPN(8, (4,)), heads)
    policies = {name: Policy(0.0, 0.0) for name in TASKS}
    made = make_objective(model, [labels(TASKS, policies)], scales=dict.fromkeys(TASKS, 1.0))
    variables = model.init(jax.random.key(1), np.zeros((1, *SIZE, 3), np.uint8))
    state = states.create(jax.random.key(0), variables, made, FIXED, TX)
    step = jax.jit(functools.partial(train_step, objective=made, balance=FIXED, tx=TX, ema_decay=0.9, **options))
    for seed in range(3):
        state, logs = step(state, _batch(seed))
    return jax.device_get((state._replace(key=None), logs)), step._cache_size()


def test_parts_of_a_batch_add_up_to_the_batch():
    whole, programs = _trained("group")
    assert programs == 1
    parts, programs = _trained("group", accumulate=4)
    assert programs == 1
    _close(whole, parts, 1e-5)
    (state, _), _ = _trained("batch", accumulate=2)  # running statistics follow the mean of the parts'
    (apart, _), _ = _trained("batch")
    means = [one.model_state["batch_stats"]["backbone"]["stem_norm"]["mean"] for one in (state, apart)]
    np.testing.assert_allclose(*means, rtol=0.05, atol=0.01)
    with pytest.raises(UserError, match="accumulate=3"):
        _trained("group", accumulate=3)


def test_a_run_compiles_one_step_and_gives_its_state_away(caplog):
    """Whatever changes on the way, weights of examples that are estimated anew among it; the memory of a state is the
    next one's."""
    table = np.linspace(0.5, 1, ROWS, dtype=np.float32)
    batches = Joined(iter([_batch(seed) for seed in range(4)]), {"depth": {"estimated": table}})

    def refresh(progress):
        batches.weights = {"depth": {"estimated": table * progress.step, "confidence": table}}

    bound = functools.partial(train_step, objective=OBJECTIVE, balance=FIXED, tx=TX, ema_decay=0.9)
    first = devices.replicate(_fresh(OBJECTIVE, TX))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        fit(first, devices.parallelize(bound, donate=(0,)), batches, steps=4, hooks=(refresh,))
    compiled = [one.getMessage() for one in caplog.records if one.getMessage().startswith("Compiling")]
    assert sum("train_step" in message for message in compiled) == 1, compiled
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((first.params, first.opt_state, first.ema)))


def test_scale_zero_is_the_task_removed(step):
    batch = _batch()
    objective = _objective({"depth": 0.0})
    with_zero, _ = _step(objective, TX)(_fresh(objective, TX), batch)
    absent = batch._replace(weights=batch.weights | {"depth": np.zeros(ROWS, np.float32)})
    without, logs = step(_fresh(OBJECTIVE, TX), absent)
    assert logs["loss/depth/" + TASKS["depth"].terms[0]] == 0
    _close(with_zero.params, without.params)


def test_all_tasks_absent_changes_nothing(step):
    batch = _batch()
    absent = batch._replace(weights={name: np.zeros(ROWS, np.float32) for name in TASKS})
    before = _fresh(OBJECTIVE, TX)
    after, logs = step(before, absent)
    assert logs["loss"] == 0 and logs["gradient_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_two_sources_of_one_task_share_a_denominator(step):
    batch = _batch()
    half = np.arange(ROWS) < ROWS // 2
    whole = batch.weights["depth"]
    split = batch._replace(
        labels={"classification": batch.labels["classification"]}
        | {f"depth@{k}": batch.labels["depth"] for k in ("truth", "teacher")},
        weights={
            "classification": batch.weights["classification"],
            "depth@truth": np.where(half, whole, 0).astype(np.float32),
            "depth@teacher": np.where(half, 0, whole).astype(np.float32),
        },
    )
    merged, _ = step(_fresh(OBJECTIVE, TX), batch)
    parted, _ = step(_fresh(OBJECTIVE, TX), split)
    _close(merged.params, parted.params)


def test_dividing_by_the_batch_counts_absent_rows():
    objective = _objective(normalize="batch")
    batch = _batch()
    _, logs = _step(objective, TX)(_fresh(objective, TX), batch)
    halved = batch._replace(weights={name: np.where(np.arange(ROWS) % 2, w, 0) for name, w in batch.weights.items()})
    _, fewer = _step(objective, TX)(_fresh(objective, TX), halved)
    assert fewer["loss/classification/class"] < 0.8 * logs["loss/classification/class"]


def test_learning_rate_rule():
    scales = learning_rate_rule((32, 0.1), {"depth": (16, 0.05), "classification": (64, 0.2)})
    assert scales == {"depth": pytest.approx(1.0), "classification": pytest.approx(1.0)}
    assert learning_rate_rule((32, 0.1), {"depth": (32, 0.3)})["depth"] == pytest.approx(3.0)


def test_uncertainty_weights_follow_the_losses():
    balance = balances.uncertainty(0.05)
    objective = OBJECTIVE
    step, state = _step(objective, TX, balance=balance), _fresh(objective, TX, balance)
    batch = _batch()
    gone = batch._replace(weights=batch.weights | {"depth": np.zeros(ROWS, np.float32)})
    for _ in range(3):
        state, _ = step(state, gone)
    log_variance = state.aux_state["balance"]
    assert log_variance["depth"] == 0  # absent keeps its state
    assert log_variance["classification"] != 0


def test_killed_and_resumed_equals_uninterrupted(step, tmp_path):
    def batches(start):
        seed = start
        while True:
            yield _batch(seed)
            seed += 1

    whole = fit(_fresh(OBJECTIVE, TX), lambda s, b, f: step(s, b), batches(0), steps=6)
    part = fit(_fresh(OBJECTIVE, TX), lambda s, b, f: step(s, b), batches(0), steps=3)
    checkpoints = Checkpoints(str(tmp_path / "run"))
    checkpoints.save(3, part, position={"at": 3})
    restored, position, _ = Checkpoints(str(tmp_path / "run")).restore(_fresh(OBJECTIVE, TX))
    rest = fit(restored, lambda s, b, f: step(s, b), batches(position["at"]), steps=6)
    for a, b in zip(jax.tree.leaves(whole._replace(key=0)), jax.tree.leaves(rest._replace(key=0)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_damaged_or_foreign_checkpoint_is_refused(tmp_path):
    state = _fresh(OBJECTIVE, TX)
    checkpoints = Checkpoints(str(tmp_path / "run"))
    checkpoints.save(1, state.params)
    with pytest.raises(UserError, match="run/1"):
        checkpoints.restore({"other": np.zeros(3)})
    file = max((tmp_path / "run").rglob("d/*"), key=lambda path: path.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UserError, match="run/1"):
        Checkpoints(str(tmp_path / "run")).restore(state.params)


def test_ema_follows_the_parameters(step):
    state = _fresh(OBJECTIVE, TX)
    for seed in range(3):
        before = state
        state, _ = step(state, _batch(seed))
        decay = min(0.9, (1 + seed) / (10 + seed))
        expected = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, before.ema["params"], state.params)
        _close(state.ema["params"], expected)


def test_ema_averages_batch_statistics_and_is_a_copy_without_decay():
    variables = {"params": {"w": jnp.ones((3, 2))}, "stats": {"mean": jnp.zeros(2), "count": jnp.int32(0)}}

    def terms(params, model_state, aux_state, frozen, batch, key, axis_name):
        mean = model_state["stats"]["mean"] + 0.7
        value = jnp.sum((params["model"]["w"] - 0.3) ** 2)
        ratios = {"a/loss": Ratio(value, jnp.float32(1.0))}
        return ratios, {"stats": {"mean": mean, "count": model_state["stats"]["count"] + 1}}, aux_state

    objective = Objective(lambda key: ({}, {}), ("a/loss",), terms, {"a/loss": 1.0}, shared=lambda params: params)
    for decay in (0.0, 0.9):
        state, average = states.create(jax.random.key(0), variables, objective, FIXED, TX), 0.0
        for number in range(3):
            state, _ = train_step(state, None, objective=objective, balance=FIXED, tx=TX, ema_decay=decay)
            at = min(decay, (1 + number) / (10 + number))
            average = at * average + (1 - at) * 0.7 * (number + 1)
        averaged, raw = states.model_variables(state), states.model_variables(state, ema=False)
        np.testing.assert_allclose(averaged["stats"]["mean"], average, rtol=1e-5)
        np.testing.assert_allclose(raw["stats"]["mean"], 2.1, rtol=1e-6)
        assert averaged["stats"]["count"] == 3  # counters are copied
        if not decay:
            jax.tree.map(np.testing.assert_array_equal, averaged, raw)


@pytest.mark.parametrize("bad", [(), (0,), (1, 2), (0, 1, 2, 3)])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    """NaN in the loss, infinity in the gradient: the other steps are those of a run without them."""
    variables = {"params": {"w": jnp.ones(3)}, "stats": {"mean": jnp.zeros(3)}}

    def terms(params, model_state, aux_state, frozen, batch, key, axis_name):
        value = jnp.sum((params["model"]["w"] * batch) ** 2)
        return {"a/loss": Ratio(value, jnp.float32(1.0))}, {"stats": {"mean": batch}}, aux_state

    objective = Objective(lambda key: ({}, {}), ("a/loss",), terms, {"a/loss": 1.0}, shared=lambda params: params)
    step = jax.jit(functools.partial(train_step, objective=objective, balance=FIXED, tx=TX, ema_decay=0.5))
    state = states.create(jax.random.key(0), variables, objective, FIXED, TX)
    flags = []
    for number in range(4):
        value = ([jnp.nan, 1e30][number % 2]) if number in bad else 0.1
        before, (state, logs) = state, step(state, jnp.full(3, value))
        flags.append(float(logs["skipped"]))
        same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before[1:6], state[1:6])), strict=True)]
        assert all(same) == (number in bad) and int(state.step) == number + 1
    assert flags == [float(number in bad) for number in range(4)]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema)))
