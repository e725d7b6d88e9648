"""Balancing of tasks: values worked by hand, tasks that are absent, solutions of independent solvers, whole steps."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize, nnls

from must.core.ratio import weighted_sum
from must.core.types import Balance, Batch, Objective, PerExample
from must.experiment.settings import BALANCES
from must.objectives import aggregate
from must.objectives import balance as balances
from must.objectives.objective import without_heads
from must.train import state as states
from must.train.checkpoint import Checkpoints
from must.train.gradients import balanced_gradient, denominators, task_losses
from must.train.step import train_step

# Windows of one step, rates that show within four.
SETTINGS = {"dwa": {"window": 1}, "famo": {"learning_rate": 0.5}, "uncertainty": {"learning_rate": 0.1}}
METHODS = {kind: functools.partial(make, **SETTINGS.get(kind, {})) for kind, make in BALANCES.items()}
AGGREGATORS = ("pcgrad", "cagrad", "nash_mtl", "upgrad")


@functools.cache
def _compiled(kind, tasks):
    """An update on vectors: a dict that goes through jit comes back sorted, and the order of tasks matters here."""
    balance = METHODS[kind]()

    @jax.jit
    def update(values, present, gram, state):
        losses = dict(zip(tasks, values, strict=True))
        return balance.update(losses, dict(zip(tasks, present, strict=True)), gram if balance.gram else None, state)

    return balance.init, update


def _weigh(kind, losses, state=None, gram=None, absent=()):
    """One update of a method on plain numbers: ({task: float}, state)."""
    tasks = tuple(losses)
    init, update = _compiled(kind, tasks)
    gram = jnp.asarray(np.eye(len(tasks)) if gram is None else gram, jnp.float32)
    values, present = np.array(list(losses.values()), np.float32), np.array([task not in absent for task in tasks])
    weights, state = update(values, present, gram, init(tasks) if state is None else state)
    return {task: float(weights[task]) for task in tasks}, state


def _close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose([found[t] for t in expected], list(expected.values()), rtol=tolerance, atol=tolerance)


def test_plain_sum_and_uncertainty_by_hand():
    assert _weigh("fixed", {"a": 3, "b": 0})[0] == {"a": 1, "b": 1}
    weights, state = _weigh("uncertainty", {"a": 2.0, "b": 0.5})
    assert weights == {"a": 1, "b": 1}
    _close(_weigh("uncertainty", {"a": 2.0, "b": 0.5}, state)[0], {"a": math.exp(-0.15), "b": 1.0})


def test_dynamic_weight_average_by_hand():
    weights, state = _weigh("dwa", {"a": 4.0, "b": 1.0})
    _close(weights, {"a": 1, "b": 1})
    weights, state = _weigh("dwa", {"a": 2.0, "b": 1.0}, state)
    _close(weights, {"a": 1, "b": 1})
    weights, _ = _weigh("dwa", {"a": 9.0, "b": 9.0}, state)  # r = 2/4 and 1/1, temperature 2
    total = math.exp(0.25) + math.exp(0.5)
    _close(weights, {"a": 2 * math.exp(0.25) / total, "b": 2 * math.exp(0.5) / total})

    balance = balances.dwa(window=3)
    state = balance.init(("a",))
    for value in (1.0, 2.0, 6.0, 5.0):
        _, state = balance.update({"a": jnp.float32(value)}, {"a": jnp.array(True)}, None, state)
    assert state["a"]["last"] == 3 and state["a"]["sum"] == 5 and state["a"]["windows"] == 1


def test_random_weights_are_a_softmax_of_normals():
    balance = balances.rlw(seed=3)
    losses, present = dict.fromkeys("ab", jnp.float32(1)), dict.fromkeys("ab", jnp.array(True))

    def draw(key, _):
        weights, key = balance.update(losses, present, None, key)
        return key, (weights["a"], weights["b"])

    _, (a, b) = jax.lax.scan(draw, balance.init(("a", "b")), None, 4000)
    np.testing.assert_allclose(a + b, 2, rtol=1e-5)
    scores = np.log(a / b)  # difference of two standard normals
    assert abs(scores.mean()) < 0.1 and abs(scores.std() - 2**0.5) < 0.06
    assert abs(np.corrcoef(scores[1:], scores[:-1])[0, 1]) < 0.06


def test_famo_by_hand():
    weights, state = _weigh("famo", {"a": 1.0, "b": 3.0})
    _close(weights, {"a": 1.5, "b": 0.5})  # z equal, so proportional to 1 / L
    weights, state = _weigh("famo", {"a": 0.5, "b": 3.0}, state)  # delta = (log 2, 0), J' delta = (1, -1) log 2 / 4
    moved = 0.5 * math.log(2) / 4
    a, b = math.exp(-moved) / 0.5, math.exp(moved) / 3
    _close(weights, {"a": 2 * a / (a + b), "b": 2 * b / (a + b)})
    _, after = _weigh("famo", {"a": 0.5, "b": 1.5}, state)  # delta = (0, log 2), z no longer equal
    z = 1 / (1 + math.exp(2 * moved))
    expected = -moved - 0.5 * (-z * (1 - z) * math.log(2) - 1e-3 * moved)
    assert float(after["a"]["logit"]) == pytest.approx(expected, rel=1e-4)


def test_gradnorm_by_hand():
    gram = np.diag([4.0, 16.0])  # norms over their mean: 2/3 and 4/3
    weights, state = _weigh("gradnorm", {"a": 2.0, "b": 5.0}, gram=gram)
    assert weights == {"a": 1, "b": 1}
    a, b = 1 + 0.025 * 2 / 3, 1 - 0.025 * 4 / 3
    weights, state = _weigh("gradnorm", {"a": 2.0, "b": 1.0}, state, gram)
    _close(weights, {"a": 2 * a / (a + b), "b": 2 * b / (a + b)})
    # b fell to a fifth, so its rate is 1/3 and a's 5/3 of their mean: b's weight is drawn down, a's up
    assert state["a"]["weight"] > weights["a"] and state["b"]["weight"] < weights["b"]

    # One that is absent keeps its share: what the others have together stays 2.5 of 3.
    before = {"a": 2.0, "b": 0.5, "c": 0.5}
    stored = {task: {"weight": np.float32(w), "first": np.float32(1), "seen": True} for task, w in before.items()}
    weights, state = _weigh("gradnorm", dict.fromkeys("abc", 1.0), stored, np.diag([1.0, 4.0, 0.0]), absent="c")
    _close(weights, {"a": 1.6, "b": 0.4, "c": 0})
    assert float(state["a"]["weight"] + state["b"]["weight"]) == pytest.approx(2.5, rel=1e-5)


def test_aggregators_by_hand():
    conflict = [[1, -1], [-1, 2]]  # (1, 0) and (-1, 1): the first gains half the second, the second the whole first
    _close(_weigh("pcgrad", {"a": 1, "b": 1}, gram=conflict)[0], {"a": 2, "b": 1.5})
    _close(_weigh("upgrad", {"a": 1, "b": 1}, gram=conflict)[0], {"a": 2, "b": 1.5}, 1e-4)
    _close(_weigh("nash_mtl", {"a": 1, "b": 1}, gram=np.diag([1, 4]))[0], {"a": 4 / 3, "b": 2 / 3})
    # 1 and 2 on a line: g_0 = 1.5, w = (1, 0), d = 1.5 + 0.6, in weights (0.5 + 0.6, 0.5) times 2 / 1.4
    _close(_weigh("cagrad", {"a": 1, "b": 1}, gram=[[1, 2], [2, 4]])[0], {"a": 2.2 / 1.4, "b": 1 / 1.4}, 1e-4)


def _random_steps(seed, steps=5, tasks="abc"):
    """(losses, gram) per step; every task has its own rows of J, in conflict with the others."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.normal(size=(len(tasks), 20)) * rng.uniform(0.2, 3, (len(tasks), 1))
        rows -= 0.8 * rows.mean(0)
        yield dict(zip(tasks, rng.uniform(0.1, 3, len(tasks)), strict=True)), rows @ rows.T


@pytest.mark.parametrize("kind", METHODS)
def test_order_of_tasks_does_not_matter(kind):
    place = [2, 0, 1]
    state = other_state = None
    for losses, gram in _random_steps(0):
        weights, state = _weigh(kind, losses, state, gram)
        moved = {"abc"[i]: losses["abc"[i]] for i in place}
        other, other_state = _weigh(kind, moved, other_state, gram[np.ix_(place, place)])
        _close(other, weights, 1e-4)


@pytest.mark.parametrize("kind", METHODS)
def test_absent_task_is_the_task_removed(kind):
    steps = list(_random_steps(1, 8))
    state = None
    for losses, gram in steps[:4]:
        _, state = _weigh(kind, losses, state, gram)
    by_task = isinstance(state, dict) and bool(state)
    without = {task: state[task] for task in "ab"} if by_task else state
    kept = jax.tree.map(np.asarray, state["c"]) if by_task else None
    for losses, gram in steps[4:]:
        gram[2] = gram[:, 2] = 0
        weights, state = _weigh(kind, losses | {"c": 0.0}, state, gram, absent="c")
        expected, without = _weigh(kind, {t: losses[t] for t in "ab"}, without, gram[:2, :2])
        assert weights["c"] == 0
        _close(weights, expected, 1e-4)
        if by_task:
            jax.tree.map(np.testing.assert_array_equal, state["c"], kept)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), {t: state[t] for t in "ab"}, without)


@pytest.mark.parametrize("kind", METHODS)
def test_never_not_finite(kind):
    state = None
    zero, one = np.zeros((3, 3)), np.ones((3, 3))
    losses = [dict.fromkeys("abc", value) for value in (1.0, 0.0, 1e4, 1e-12)]
    grams = [zero, one, np.diag([1, 0, 4]), 1e-20 * one, 1e15 * np.eye(3), np.diag([1, 1e8, 1e-8]), 3 * np.eye(3) - one]
    for values, gram, absent in itertools.product(losses, grams, ("", "b", "abc")):
        there = np.array([task not in absent for task in "abc"])
        weights, state = _weigh(kind, values, state, gram * there * there[:, None], absent)
        assert np.isfinite(list(weights.values())).all(), (values, gram, absent, weights)
        leaves = [x for x in jax.tree.leaves(state) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert all(weights[task] == 0 for task in absent)


def _gradients(kind, tasks, rng):
    """J [T, n] of one of several characters; float64."""
    rows = rng.normal(size=(tasks, 30))
    if kind == "conflict":
        rows -= 0.8 * rows.mean(0)
    elif kind == "scaled":
        rows *= 10.0 ** rng.uniform(-1, 1, (tasks, 1))
    elif kind == "duplicated":
        rows[1] = rows[0]
    elif kind == "singular":
        rows = rng.normal(size=(tasks, 2)) + np.array([1.5, 0])
    return rows


CHARACTERS = ("plain", "conflict", "scaled", "duplicated", "singular")


def _problems(characters=CHARACTERS):
    rng = np.random.default_rng(0)
    for character, tasks, _ in itertools.product(characters, range(2, 7), range(3)):
        rows = _gradients(character, tasks, rng)
        yield rows, jnp.asarray(rows @ rows.T, jnp.float32), jnp.ones(tasks, bool)


def _same_direction(found, expected, rows, tolerance=1e-3):
    """Directions, not weights, which are not unique for duplicated tasks."""
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(rows.sum(0))


def test_pcgrad_equals_its_definition_on_vectors():
    rng = np.random.default_rng(1)
    solve = jax.jit(aggregate.pcgrad_weights)
    for rows, gram, present in _problems():
        places = rng.random(gram.shape).astype(np.float32)
        expected = 0
        for i, gradient in enumerate(rows):
            gradient = gradient.copy()
            for j in np.argsort(places[i]):
                if j != i and gradient @ rows[j] < 0:
                    gradient -= gradient @ rows[j] / (rows[j] @ rows[j]) * rows[j]
            expected = expected + gradient
        _same_direction(rows.T @ np.asarray(solve(gram, present, places)), expected, rows)
    agreeing = 1 + 0.1 * np.asarray(gram)  # no product below 0
    np.testing.assert_array_equal(solve(jnp.abs(agreeing), present, places), np.ones(len(gram)))


def test_upgrad_equals_nnls_and_hurts_no_task():
    solve = jax.jit(aggregate.upgrad_weights)
    for rows, gram, present in _problems():
        # The projection of g on {x: J x >= 0} is g + J' u, u = argmin over u >= 0 of |J' u + g|
        expected = sum(row + rows.T @ nnls(rows.T, -row)[0] for row in rows)
        found = rows.T @ np.asarray(solve(gram, present), np.float64)
        _same_direction(found, expected, rows)
        norms = np.linalg.norm(rows, axis=1)
        assert (rows @ found / norms).min() > -1e-3 * norms.mean()


def test_nash_solves_its_equation():
    solve = jax.jit(aggregate.nash_weights)
    for rows, gram, present in _problems(("plain", "conflict", "scaled", "duplicated")):
        weights = np.asarray(solve(gram, present), np.float64)
        products = weights * (rows @ rows.T @ weights)  # all 1 before weights were scaled
        assert (weights > 0).all() and np.ptp(products) < 1e-3 * products.max()
        assert weights.sum() == pytest.approx(len(weights), rel=1e-5)


def test_cagrad_equals_a_general_solver():
    solve = jax.jit(aggregate.cagrad_weights)
    for rows, gram, present in _problems():
        mean, simplex = rows.mean(0), {"type": "eq", "fun": lambda w: w.sum() - 1}
        radius = 0.4 * np.linalg.norm(mean)

        def value(w, rows=rows, mean=mean, radius=radius):
            return (rows.T @ w) @ mean + radius * np.linalg.norm(rows.T @ w)

        start = np.full(len(rows), 1 / len(rows))
        options = {"ftol": 1e-14, "maxiter": 500}
        solved = minimize(
            value, start, bounds=[(0, 1)] * len(rows), constraints=simplex, method="SLSQP", options=options
        )
        mixed = rows.T @ solved.x
        expected = len(rows) / 1.4 * (mean + radius * mixed / np.linalg.norm(mixed))
        _same_direction(rows.T @ np.asarray(solve(gram, present, 0.4)), expected, rows)
        np.testing.assert_allclose(solve(gram, present, 0.0), 1.0, rtol=1e-6)


ROWS, WIDTH = 8, 5
PARAMS = {
    "trunk": jax.random.normal(jax.random.key(0), (4, WIDTH)),
    "heads_a": jax.random.normal(jax.random.key(1), (WIDTH,)),
    "heads_b": jax.random.normal(jax.random.key(2), (WIDTH,)),
}
NAMES = ("b/square", "b/size", "a/square")  # not in alphabetic order
SCALES = {"b/square": 0.5, "b/size": 0.1, "a/square": 2.0}


def _terms(params, model_state, aux_state, frozen, batch, key, axis_name):
    """A batch is {task: Batch}; a task of two terms and one of one over a shared layer."""
    model, ratios = params["model"], {}
    for task, part in batch.items():
        outputs = jnp.tanh(part.inputs["x"] @ model["trunk"]) @ model[f"heads_{task}"]
        found = {"square": (outputs - part.labels[task]["y"]) ** 2} | ({"size": outputs**4} if task == "b" else {})
        for term, value in found.items():
            ratios[f"{task}/{term}"] = weighted_sum(PerExample(value, jnp.ones_like(value)), part.weights[task])
    return ratios, model_state, aux_state


OBJECTIVE = Objective(lambda key: ({}, {}), NAMES, _terms, SCALES, without_heads)
TX = optax.adam(0.02)


def _batch(seed=0, tasks="ab"):
    def part(task):
        rng = np.random.default_rng(seed + ord(task))
        x, y = rng.normal(size=(ROWS, 4)).astype(np.float32), rng.normal(size=ROWS).astype(np.float32)
        return Batch({"x": x}, {task: {"y": y}}, {task: np.ones(ROWS, np.float32)}, np.arange(ROWS))

    return {task: part(task) for task in tasks}


def _alone(task, params, batch):
    ratios, _, _ = _terms({"model": params}, {}, {}, None, batch, None, None)
    return sum(SCALES[n] * r.num / jnp.maximum(r.den, 1.0) for n, r in ratios.items() if n.startswith(f"{task}/"))


def _only(task, shared_only):
    """Weight 1 for one task, 0 for the others, on the path of the Gram matrix."""

    def update(losses, present, gram, state):
        assert tuple(losses) == ("b", "a")  # what the rows of the matrix are
        return {t: jnp.float32(t == task) for t in losses}, gram

    return Balance(lambda tasks: None, update, gram=True, shared_only=shared_only)


@functools.cache
def _gradient(task, shared_only):
    def gradient(params, batch):
        def losses(params):
            ratios, _, _ = _terms(params, {}, {}, None, batch, None, None)
            local, seen = task_losses(OBJECTIVE, ratios, denominators(ratios, None), None)
            return local, (seen, None)

        grads, (_, _, gram), logs = balanced_gradient(losses, params, OBJECTIVE, _only(task, shared_only), None, None)
        return grads["model"], gram, logs

    return jax.jit(gradient)


def test_gradients_of_tasks_equal_those_of_each_alone():
    batch = _batch()
    alone = {task: jax.grad(functools.partial(_alone, task))(PARAMS, batch) for task in "ab"}
    for task in "ab":
        whole, gram, logs = _gradient(task, False)({"model": PARAMS}, batch)
        _equal_trees(whole, alone[task])
        shared, _, _ = _gradient(task, True)({"model": PARAMS}, batch)
        heads = {f"heads_{t}": alone[t][f"heads_{t}"] for t in "ab"}  # every head keeps its own task's
        _equal_trees(shared, {"trunk": alone[task]["trunk"]} | heads)
    rows = np.stack([alone[t]["trunk"].reshape(-1) for t in "ba"])  # the order of the objective's names
    np.testing.assert_allclose(gram, rows @ rows.T, rtol=1e-5)
    norms = np.linalg.norm(rows, axis=1)
    _close(logs, {"gradient/b": norms[0], "gradient/a": norms[1], "cosine/b:a": rows[0] @ rows[1] / norms.prod()})


def test_gradients_of_a_batch_without_a_task():
    grads, gram, logs = _gradient("b", True)({"model": PARAMS}, _batch(tasks="a"))
    alone = jax.grad(functools.partial(_alone, "a"))(PARAMS, _batch())
    assert not np.any(grads["heads_b"]) and not np.any(grads["trunk"])
    np.testing.assert_allclose(grads["heads_a"], alone["heads_a"], rtol=1e-5)
    assert np.count_nonzero(gram) == 1 and logs["cosine/b:a"] == 0 and logs["gradient/b"] == 0


def _equal_trees(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@functools.cache
def _trainer(kind):
    """(fresh state, compiled step) of the small network."""
    balance = METHODS[kind]()
    step = functools.partial(train_step, objective=OBJECTIVE, balance=balance, tx=TX)
    return functools.partial(states.create, jax.random.key(0), {"params": PARAMS}, OBJECTIVE, balance, TX), jax.jit(
        step
    )


@pytest.mark.parametrize("kind", METHODS)
def test_trains_a_small_network(kind):
    fresh, step = _trainer(kind)
    state, history = fresh(), []
    for _ in range(150):
        state, logs = step(state, _BATCH, None)
        history.append(sum(SCALES[name] * float(logs[f"loss/{name}"]) for name in NAMES))
    assert history[-1] < 0.35 * history[0]
    weighted = sum(float(logs[f"weight/{name[0]}"]) * SCALES[name] * float(logs[f"loss/{name}"]) for name in NAMES)
    assert float(logs["loss"]) == pytest.approx(weighted, rel=1e-4)
    assert {name for name in logs if name.startswith("weight/")} == {"weight/a", "weight/b"}
    assert ("cosine/b:a" in logs) == METHODS[kind]().gram


_BATCH = _batch()


def test_watching_changes_nothing_but_the_logs():
    fresh, step = _trainer("fixed")
    watched = functools.partial(train_step, objective=OBJECTIVE, balance=balances.fixed()._replace(gram=True), tx=TX)
    plain, logs = step(fresh(), _BATCH, None)
    other, more = jax.jit(watched)(fresh(), _BATCH, None)
    _equal_trees(plain.params, other.params)
    _close(more, {name: float(value) for name, value in logs.items()})
    assert set(more) - set(logs) == {"gradient/a", "gradient/b", "cosine/b:a"}


@pytest.mark.parametrize("kind", ["famo", "rlw"])
def test_resumed_equals_uninterrupted(kind, tmp_path):
    fresh, step = _trainer(kind)

    def run(state, start, stop):
        for seed in range(start, stop):
            state, _ = step(state, _batch(seed), None)
        return state

    whole = run(fresh(), 0, 6)
    Checkpoints(str(tmp_path)).save(3, run(fresh(), 0, 3))
    restored, _, _ = Checkpoints(str(tmp_path)).restore(fresh())
    rest = run(restored, 3, 6)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(rest), strict=True):
        raw = jax.random.key_data if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else np.asarray
        np.testing.assert_array_equal(raw(a), raw(b))


@pytest.mark.parametrize("kind", METHODS)
def test_no_buffer_stands_twice_in_a_fresh_state(kind):
    """A step that is given the state's memory, as every run's is, refuses one that does."""
    state = _trainer(kind)[0]()
    raw = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
    places = [raw(leaf).unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(places) == len(set(places))
