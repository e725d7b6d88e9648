"""Joint experts on networks of one layer: what the objective of JEDI may and may not do (traps J1 to J8)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import Batch, Features, Model
from must.models import experts as joint_experts
from must.models.experts import Expert, expert_variables, experts, from_experts
from must.objectives import balance
from must.objectives.joint import joint
from must.tasks.classification import Classification
from must.train import state as states
from must.train.optimizer import optimizer
from must.train.step import train_step

CLASSES = {"a": 3, "b": 4, "c": 5}
WIDTHS = {"a": 6, "b": 7, "c": 8}
TASKS = {name: Classification(tuple(map(str, range(count)))) for name, count in CLASSES.items()}
INPUT = 10


def one_layer(name, width=None, calls=None):
    """tanh features under a linear head, as a `Model`; `calls` gets an entry for every application."""
    width = width or WIDTHS[name]

    def init(key, inputs):
        a, b = jax.random.split(key)
        head = {"kernel": jax.random.normal(b, (width, CLASSES[name])), "bias": jnp.linspace(-1, 1, CLASSES[name])}
        body = {"kernel": jax.random.normal(a, (inputs.shape[-1], width)) / 3}
        return {
            "params": {"backbone": body, f"heads_{name}": {"logits": head}},
            "batch_stats": {"mean": jnp.zeros(width)},
        }

    def apply(variables, inputs, *, train, key=None, axis_name=None, with_features=False):
        assert not train
        if calls is not None:
            calls.append(name)
        params = variables["params"]
        pooled = jnp.tanh(inputs.astype(jnp.float32) @ params["backbone"]["kernel"] - variables["batch_stats"]["mean"])
        outputs = {}
        if f"heads_{name}" in params:
            head = params[f"heads_{name}"]["logits"]
            outputs = {name: pooled @ head["kernel"] + head["bias"]}
        return (outputs, {}, Features({}, pooled)) if with_features else (outputs, {})

    return Model(init, apply)


def parts(calls=None, **options):
    return {name: Expert(one_layer(name, calls=calls), count, **options) for name, count in CLASSES.items()}


def start(made, seed=0):
    return made.init(jax.random.key(seed), {"image": jnp.zeros((1, INPUT))})


def rows(owner, count, seed):
    """`count` rows labeled for one set, or for none."""
    rng = np.random.default_rng(seed)
    labels = {name: {"probs": np.zeros((count, size), np.float32)} for name, size in CLASSES.items()}
    if owner:
        labels[owner]["probs"] = np.eye(CLASSES[owner], dtype=np.float32)[rng.integers(0, CLASSES[owner], count)]
    weights = {name: np.full(count, float(name == owner), np.float32) for name in CLASSES}
    inputs = {"image": rng.standard_normal((count, INPUT)).astype(np.float32)}
    return Batch(inputs, labels, weights, np.arange(count), {})


def groups(count=8, pool=8):
    found = {name: rows(name, count, i) for i, name in enumerate(CLASSES)}
    return {**found, "pool": rows(None, pool, 9)} if pool else found


def values(objective, variables, batch, seed=1, params=None):
    """{term: mean over its rows}."""
    state = {kind: value for kind, value in variables.items() if kind != "params"}
    _, aux = objective.init(jax.random.key(0))
    params = {"model": variables["params"]} if params is None else params

    @jax.jit  # operation by operation it takes several times as long
    def mean(params, state, aux, batch, key):
        ratios, _, _ = objective.terms(params, state, aux, None, batch, key, None)
        return {name: ratio.num / jnp.maximum(ratio.den, 1) for name, ratio in ratios.items()}

    return mean(params, state, aux, batch, jax.random.key(seed))


def gradients(objective, variables, batch, *terms):
    """{term: gradient}, of one program."""

    def losses(params):
        found = values(objective, variables, batch, params={"model": params})
        return {term: found[term] for term in terms}

    return jax.jit(jax.jacrev(losses))(variables["params"])


def gradient(objective, variables, batch, term):
    return gradients(objective, variables, batch, term)[term]


def size(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def moved(made, variables):
    """The same with teachers that no longer are their experts."""
    noise = lambda leaf: leaf + 0.5 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)  # noqa: E731
    teachers = jax.tree.map(noise, variables["params"]["teachers"])
    return {**variables, "params": {**variables["params"], "teachers": teachers}}


def test_teachers_start_as_their_experts_so_that_distillation_starts_at_nothing():
    """J1."""
    made = experts(parts())
    variables = start(made)
    batch = groups()
    outputs, _ = made.model.apply(variables, batch["pool"].inputs)
    terms = [f"{name}/distill" for name in CLASSES]
    found = values(joint(made, TASKS), variables, batch)
    pull = gradients(joint(made, TASKS), variables, batch, *terms)
    for name, term in zip(CLASSES, terms, strict=True):
        np.testing.assert_allclose(outputs[f"{name}-teacher"], outputs[name], atol=1e-6)
        assert np.ptp(outputs[name]) > 1
        assert found[term] < 1e-6 and size(pull[term]) < 1e-6
    apart = from_experts({n: expert_variables(variables, n) for n in CLASSES}, random=jax.random.key(3))
    assert values(joint(made, TASKS), apart, batch)["a/distill"] > 0.1


def test_an_expert_alone_answers_as_in_the_joint_network():
    made = experts(parts())
    variables = moved(made, start(made))
    inputs = groups()["pool"].inputs
    outputs, _ = made.model.apply(variables, inputs)
    for name in CLASSES:
        alone, _ = one_layer(name).apply(expert_variables(variables, name), inputs["image"], train=False)
        np.testing.assert_allclose(alone[name], outputs[name], atol=1e-6)


def test_distillation_teaches_one_student_only():
    """J2."""
    made = experts(parts())
    variables = moved(made, start(made))
    pull = gradients(joint(made, TASKS), variables, groups(), *(f"{name}/distill" for name in CLASSES))
    for name in CLASSES:
        found = pull[f"{name}/distill"]
        assert size(found["teachers"]) == 0
        for other in CLASSES:
            assert (size(found["experts"][other]) > 1e-4) == (other == name)


@pytest.mark.parametrize("reach, reached", [("all", set(CLASSES)), ("own", {"a"}), ("none", set())])
def test_a_teachers_own_loss_reaches_the_backbones_it_may_reach(reach, reached):
    """J2."""
    made = experts(parts())
    variables = moved(made, start(made))
    found = gradient(joint(made, TASKS, teacher_gradient=reach), variables, groups(), "a-teacher/class")
    assert size(found["teachers"]["a"]) > 1e-3
    assert size({name: found["teachers"][name] for name in "bc"}) == 0
    assert {name for name in CLASSES if size(found["experts"][name]["backbone"]) > 0} == reached
    assert all(size(found["experts"][name][f"heads_{name}"]) == 0 for name in CLASSES)


@pytest.mark.parametrize("mixed", [False, True])
def test_other_labels_of_a_set_change_nothing_for_the_others(mixed):
    """J3; and the labels of rows that have none change nothing at all."""
    made = experts(parts(dropout=0.3))
    variables = moved(made, start(made))
    batch = groups()
    other = {**batch, "b": batch["b"]._replace(labels={**batch["b"].labels, "b": rows("b", 8, 77).labels["b"]})}
    other["pool"] = batch["pool"]._replace(labels={n: {"probs": np.full((8, c), 5.0)} for n, c in CLASSES.items()})
    if mixed:
        batch, other = (jax.tree.map(lambda *leaves: np.concatenate(leaves), *b.values()) for b in (batch, other))
    step = jax.jit(functools.partial(values, joint(made, TASKS), variables))
    before, after = step(batch), step(other)
    for term in before:
        assert (before[term] == after[term]) == (term not in ("b/class", "b-teacher/class")), term


def test_backbones_are_applied_once_a_step():
    """J4: n, not n + n * n; with an average of teachers twice."""
    for decay, count in ((0.0, 3), (0.9, 6)):
        calls = []
        made = experts(parts(calls))
        variables = start(made)
        calls.clear()
        objective = joint(made, TASKS, ema_decay=decay, initial=variables["params"])
        jax.make_jaxpr(functools.partial(gradient, objective, variables, term="a/distill"))(groups())
        assert len(calls) == count


def test_the_mean_of_distillation_is_over_rows_without_the_label():
    """J6: labeled rows change neither sum nor count; without other rows it is 0 and so is its gradient."""
    made = experts(parts())
    variables = moved(made, start(made))
    batch = {"a": rows("a", 8, 0), "pool": rows(None, 8, 9)}
    twice = {**batch, "a": jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), batch["a"])}
    for term, same in (("a/distill", True), ("b/distill", False)):
        a, b = (values(joint(made, TASKS), variables, part)[term] for part in (batch, twice))
        assert np.isclose(a, b, rtol=1e-6) == same
    alone = {"a": rows("a", 8, 0)}
    assert values(joint(made, TASKS), variables, alone)["a/distill"] == 0
    assert size(gradient(joint(made, TASKS), variables, alone, "a/distill")) == 0
    assert values(joint(made, TASKS, own_set=True), variables, alone)["a/distill"] > 0
    padded = batch["pool"]._replace(ids=np.where(np.arange(8) < 4, batch["pool"].ids, -1))
    half = jax.tree.map(lambda leaf: leaf[:4], batch["pool"])
    a, b = (values(joint(made, TASKS), variables, {"pool": part})["a/distill"] for part in (padded, half))
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_value_by_hand():
    """tau^2 KL of softened answers; rows under the threshold leave sum and count."""
    made = experts(parts())
    variables = moved(made, start(made))
    pool = rows(None, 6, 4)
    outputs, _ = made.model.apply(variables, pool.inputs)
    soft = lambda logits, tau: np.asarray(jax.nn.softmax(logits / tau))  # noqa: E731
    for tau in (1.0, 3.0):
        p, q = soft(outputs["b-teacher"], tau), soft(outputs["b"], tau)
        each = tau**2 * (p * (np.log(p) - np.log(q))).sum(-1)
        found = values(joint(made, TASKS, temperature=tau), variables, pool)["b/distill"]
        np.testing.assert_allclose(found, each.mean(), rtol=1e-4)
        sure = soft(outputs["b-teacher"], 1.0).max(-1)
        bound = float(np.median(sure))
        found = values(joint(made, TASKS, temperature=tau, threshold=bound), variables, pool)["b/distill"]
        np.testing.assert_allclose(found, each[sure >= bound].mean(), rtol=1e-4)


def test_answers_do_not_depend_on_dropout_and_students_do():
    """J8: the target is a deterministic forward."""
    made = experts(parts(dropout=0.5))
    plain = experts(parts())
    variables = moved(made, start(made))
    batch = groups()
    a, b = (values(joint(made, TASKS), variables, batch, seed=s) for s in (1, 2))
    assert a["a/class"] != b["a/class"] and a["a-teacher/class"] != b["a-teacher/class"]
    params, found = variables["params"], made.features(variables, batch["pool"].inputs)
    np.testing.assert_array_equal(made.teachers(params, found)["a"], plain.teachers(params, found)["a"])


def test_joint_training_leaves_running_statistics_alone():
    """J8: norms are in inference mode, whatever sets a batch mixes."""
    made = experts(parts())
    variables = start(made)
    after, _ = run(joint(made, TASKS), variables, groups(), steps=3)
    before = {kind: value for kind, value in variables.items() if kind != "params"}
    jax.tree.map(np.testing.assert_array_equal, after.model_state, before)
    assert size(jax.tree.map(jnp.subtract, after.params["model"], variables["params"])) > 1e-3


def run(objective, variables, batch, steps, learning_rate=1e-2, **options):
    tx, weights = optimizer(steps=steps, learning_rate=learning_rate, final_factor=1.0), balance.fixed()
    state = states.create(jax.random.key(0), variables, objective, weights, tx)
    step = jax.jit(functools.partial(train_step, objective=objective, balance=weights, tx=tx, **options))
    logs = {}
    for _ in range(steps):
        state, logs = step(state, batch)
    return state, logs


def test_an_average_of_teachers_lags_behind():
    made = experts(parts())
    variables = start(made)
    objective = joint(made, TASKS, ema_decay=0.5, initial=variables["params"])
    state, _ = run(objective, variables, groups(), steps=2)
    first, _ = run(objective, variables, groups(), steps=1)
    wanted = jax.tree.map(
        lambda a, b: 0.5 * a + 0.5 * b, variables["params"]["teachers"], first.params["model"]["teachers"]
    )
    average = state.aux_state["objective"]["average"]["teachers"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), average, wanted)
    with pytest.raises(ValueError, match="start from"):
        joint(made, TASKS, ema_decay=0.5)


def test_shuffled_answers_are_those_to_other_rows_of_the_same_group():
    made = experts(parts())
    variables = moved(made, start(made))
    pool = rows(None, 6, 4)
    turned = jax.tree.map(lambda leaf: np.roll(leaf, 1, 0), pool.inputs)
    outputs, _ = made.model.apply(variables, pool.inputs)
    answers, _ = made.model.apply(variables, turned)
    wanted = np.mean(
        [
            float((np.exp(p) * (p - q)).sum())
            for p, q in zip(
                *(np.asarray(jax.nn.log_softmax(x)) for x in (answers["c-teacher"], outputs["c"])), strict=True
            )
        ]
    )
    batch = {"a": rows("c", 4, 2), "pool": pool}
    np.testing.assert_allclose(
        values(joint(made, TASKS, shuffled=True), variables, batch)["c/distill"], wanted, rtol=1e-4
    )


def test_vectorized_experts_are_the_same():
    same = {name: Expert(one_layer(name, width=6), count) for name, count in CLASSES.items()}
    loop, together = experts(same), experts(same, vectorize=True)
    variables = start(loop)
    inputs = groups()["a"].inputs
    a, b = (made.model.apply(variables, inputs)[0] for made in (loop, together))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)
    views = {"a": same["a"], "b": same["b"]._replace(view="other")}
    with pytest.raises(ValueError, match="views"):
        experts(views, vectorize=True)


def test_linear_layers_on_cached_features_give_what_the_whole_network_gives():
    """The frozen twin: same answers, same loss."""
    made = experts(parts())
    variables = moved(made, start(made))
    twin = experts({name: joint_experts.cached(name, WIDTHS[name], count) for name, count in CLASSES.items()})
    own = {n: {"params": {f"heads_{n}": variables["params"]["experts"][n][f"heads_{n}"]}} for n in CLASSES}
    heads = from_experts(own)
    heads["params"]["teachers"] = variables["params"]["teachers"]
    batch = groups()
    cached = {g: part._replace(inputs=made.features(variables, part.inputs)) for g, part in batch.items()}
    a = values(joint(made, TASKS), variables, batch)
    b = values(joint(twin, TASKS), heads, cached)
    assert a.keys() == b.keys()
    for term in a:
        np.testing.assert_allclose(a[term], b[term], rtol=1e-5, err_msg=term)


def test_without_a_teachers_own_loss_it_stays_what_it_was():
    """J7: nothing but its own loss moves a teacher, so without it students are pulled towards where they came from."""
    made = experts(parts())
    variables = start(made)
    state, _ = run(joint(made, TASKS, teacher=0.0), variables, groups(), steps=5)
    jax.tree.map(np.testing.assert_array_equal, state.params["model"]["teachers"], variables["params"]["teachers"])


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="teacher_gradient"):
        joint(experts(parts()), TASKS, teacher_gradient="some")
