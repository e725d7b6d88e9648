"""Student-label mixing: worked values, where it is a probability, where its gradient dies, what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.objectives.slam import mix, mix_binary, mixed_cross_entropy, slam, top_candidates

FIRST_THREE = jnp.arange(5) < 3


def test_by_hand():
    probs, top = jnp.array([0.5, 0.3, 0.2, 0.0, 0.0]), FIRST_THREE
    mixed = mix(probs, jnp.float32(0.7), top)
    np.testing.assert_allclose(
        mixed, [0.35 + 0.3 * 0.5 / 2, 0.21 + 0.3 * 0.7 / 2, 0.14 + 0.3 * 0.8 / 2, 0, 0], rtol=1e-6
    )
    np.testing.assert_allclose(mixed.sum(), 1, rtol=1e-6)  # all of the student's mass lies among the candidates
    np.testing.assert_allclose(mix(probs, jnp.float32(0.7), top, normalize=False).sum(), 0.7 + 0.3 * 2, rtol=1e-6)
    np.testing.assert_allclose(mix_binary(jnp.float32(0.9), jnp.float32(0.8)), 0.72 + 0.02, rtol=1e-6)


def test_sums_to_one_or_more():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(5), 100)
    mixed = mix(jnp.asarray(probs), jnp.full(100, 0.7), FIRST_THREE)
    inside = probs[:, :3].sum(1)
    np.testing.assert_allclose(mixed.sum(-1), 0.7 + 0.3 * (3 - inside) / 2, rtol=1e-5)
    assert (mixed.sum(-1) >= 1 - 1e-6).all()


def test_a_sure_teacher_is_plain_cross_entropy_and_two_classes_are_the_binary_form():
    probs = jnp.array([[0.6, 0.3, 0.1]])
    np.testing.assert_allclose(mix(probs, jnp.ones(1), jnp.array([[True, True, False]])), probs)
    np.testing.assert_allclose(mix(probs, jnp.full(1, 0.6), jnp.array([[True, False, False]])), probs)  # k = 1
    two = jnp.array([0.9, 0.1])
    np.testing.assert_allclose(mix(two, jnp.float32(0.8), jnp.array([True, True])), mix_binary(two, 0.8), rtol=1e-6)


@pytest.mark.parametrize("normalize, dead", [(True, 1 / 3), (False, 1 / 2)])
def test_where_the_gradient_dies(normalize, dead):
    slope = jax.grad(lambda f, a: mix(jnp.array([f, 0.2, 0.2, 0.1, 0.1]), a, FIRST_THREE, normalize=normalize)[0])
    assert abs(slope(0.4, dead)) < 1e-6
    assert slope(0.4, dead + 0.1) > 0.05 and slope(0.4, dead - 0.1) < -0.05
    np.testing.assert_allclose(slope(0.4, 0.7), 0.7 - 0.3 / (2 if normalize else 1), rtol=1e-5)  # both terms carry it


def _learnt(loss, steps=1500):
    """The probabilities that minimize the mean loss over what a teacher says about one example of class 2."""
    says = jnp.array([0.15, 0.0, 0.7, 0.0, 0.15])  # right with 0.7, else one of the two other candidates
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(says * jax.vmap(lambda y: loss(jax.nn.softmax(z), y))(jnp.eye(5)))))
    z = jnp.zeros(5)
    for _ in range(steps):
        z = z - 2.0 * gradient(z)
    return jax.nn.softmax(z)


def test_the_clean_label_is_recovered_where_plain_cross_entropy_learns_the_mistakes():
    candidates = jnp.array([True, False, True, False, True])
    slam = _learnt(lambda f, y: mixed_cross_entropy(mix(f, jnp.float32(0.7), candidates), y))
    plain = _learnt(lambda f, y: mixed_cross_entropy(f, y))
    assert slam[2] > 0.98
    np.testing.assert_allclose(plain, [0.15, 0, 0.7, 0, 0.15], atol=0.01)


def test_finite_where_the_student_is_sure_and_wrong():
    value, gradient = jax.value_and_grad(lambda f: mixed_cross_entropy(f, jnp.array([0.0, 1.0])))(jnp.array([1.0, 0.0]))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_candidates_are_the_most_probable():
    probs = jnp.array([[0.1, 0.5, 0.4], [0.2, 0.2, 0.6]])
    np.testing.assert_array_equal(top_candidates(probs, jnp.array([2, 1])), [[False, True, True], [False, False, True]])


def test_as_a_tasks_loss_it_reads_what_is_known_of_the_teacher_and_leaves_truth_alone():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    label = {"probs": jnp.asarray(rng.dirichlet(np.ones(5), 6), jnp.float32)}
    target = {"probs": jax.nn.one_hot(label["probs"].argmax(-1), 5), "used": jnp.arange(6) != 2}
    extras = {"accuracy": jnp.array([1.0, 1, 1, 0.7, 0.7, 0.7]), "candidates": jnp.array([1, 1, 1, 3, 3, 5])}
    term = slam(logits, label, target, extras)["class"]
    plain = -jnp.take_along_axis(jax.nn.log_softmax(logits), label["probs"].argmax(-1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(term.value[:2], plain[:2], rtol=1e-5)  # ground truth: a = 1, k = 1
    assert term.norm.tolist() == [1, 1, 0, 1, 1, 1] and term.value[2] == 0
    top = top_candidates(label["probs"], extras["candidates"])
    want = mixed_cross_entropy(mix(jax.nn.softmax(logits), extras["accuracy"], top), target["probs"])
    np.testing.assert_allclose(term.value[3:], want[3:], rtol=1e-5)
    # Mistakes are expected: doubt costs less than plainly, and being sure costs more.
    np.testing.assert_array_equal(term.value[3:] > plain[3:], jnp.exp(-plain[3:]) > 1 / extras["candidates"][3:])
    broken = logits.at[2].set(jnp.nan)
    slope = jax.grad(lambda z: slam(z, label, target, extras)["class"].value.sum())(broken)
    assert np.isfinite(np.delete(slope, 2, 0)).all() and not slope[2].any()
