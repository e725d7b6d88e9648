"""Loss formulas against hand values, NumPy and (where installed) torch; masks, propriety, finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core import losses

RNG = np.random.default_rng(0)
GRID = np.linspace(0.001, 0.999, 999)


def _random(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_cross_entropy_of_hard_and_soft_targets():
    logits = jnp.log(jnp.array([[0.2, 0.3, 0.5]]))
    assert losses.soft_cross_entropy(logits, jnp.array([[0.0, 1.0, 0.0]]))[0] == pytest.approx(-np.log(0.3), rel=1e-5)
    soft = -(0.5 * np.log(0.2) + 0.5 * np.log(0.5))
    assert losses.soft_cross_entropy(logits, jnp.array([[0.5, 0.0, 0.5]]))[0] == pytest.approx(soft, rel=1e-5)


def test_cross_entropy_agrees_with_torch():
    torch = pytest.importorskip("torch")
    logits, target = RNG.normal(size=(6, 5)).astype(np.float32), RNG.dirichlet(np.ones(5), 6).astype(np.float32)
    want = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(target), reduction="none")
    np.testing.assert_allclose(losses.soft_cross_entropy(jnp.asarray(logits), target), want.numpy(), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("target", [0.02, 0.2, 0.5, 0.8])
def test_soft_focal_is_proper(gamma, target):
    values = losses.binary_soft_focal(jnp.asarray(np.log(GRID / (1 - GRID))), target, gamma)
    assert GRID[np.argmin(values)] == pytest.approx(target, abs=2e-3)


def test_soft_cross_entropy_is_proper():
    logits = jnp.stack([jnp.log(GRID), jnp.log1p(-GRID)], -1)
    values = losses.soft_cross_entropy(logits, jnp.array([0.2, 0.8]))
    assert GRID[np.argmin(values)] == pytest.approx(0.2, abs=2e-3)


def test_the_older_soft_focal_form_would_fail_that_test():
    s, t = GRID, 0.2
    p_t = t * s + (1 - t) * (1 - s)
    values = (1 - p_t) * -(t * np.log(s) + (1 - t) * np.log(1 - s))
    assert GRID[np.argmin(values)] == pytest.approx(0.091, abs=5e-3)


def test_soft_focal_by_hand_and_saturated():
    s, t = 0.7, 0.9
    bce = -(t * np.log(s) + (1 - t) * np.log(1 - s))
    logit = jnp.log(jnp.float32(s / (1 - s)))
    assert losses.binary_soft_focal(logit, t) == pytest.approx((t - s) ** 2 * bce, rel=1e-4)
    weighted = (0.25 * t + 0.75 * (1 - t)) * (t - s) ** 2 * bce
    assert losses.binary_soft_focal(logit, t, alpha=0.25) == pytest.approx(weighted, rel=1e-4)
    for gamma in (0.0, 1.0, 2.0):
        total = lambda z, gamma=gamma: losses.binary_soft_focal(z, 0.5, gamma).sum()  # noqa: E731
        slope = jax.grad(total)(jnp.array([-200.0, 0.0, 200.0]))
        assert np.isfinite(slope).all()
    with pytest.raises(ValueError, match="gamma"):
        losses.binary_soft_focal(logit, t, 0.5)


def _ssi(p, y, valid, trim=0.2):
    residual, usable = losses.robust_residual(p, y, valid)
    return losses.trimmed_mae(residual, valid, trim), usable


@pytest.mark.parametrize("trim", [0.0, 0.2, 0.5])
def test_the_robust_trimmed_loss_by_its_formulas(trim):
    """MiDaS, eq. 5 to 7, one picture at a time; torch's median is the lower one of an even number."""
    p, y, valid = _random(4, 5, 6), _random(4, 5, 6), RNG.random((4, 5, 6)) < 0.7
    value, usable = _ssi(p, y, valid, trim)
    assert usable.all() and len({count % 2 for count in valid.sum((1, 2))}) == 2
    for i in range(4):
        aligned = []
        for x in (np.asarray(p[i])[valid[i]], np.asarray(y[i])[valid[i]]):
            apart = x - np.sort(x)[(len(x) - 1) // 2]
            aligned.append(apart / np.mean(np.abs(apart)))
        count = len(aligned[0])
        want = np.sort(np.abs(aligned[0] - aligned[1]))[: round((1 - trim) * count)].sum() / (2 * count)
        assert value[i] == pytest.approx(want, rel=1e-5)


def test_what_is_trimmed_away_counts_for_nothing():
    y = jnp.linspace(0, 1, 100)[None]
    valid, wrong = np.ones((1, 100), bool), y.at[0, 95:].set(1e6)  # of a teacher that takes a lamp for the nearest
    value, slope = jax.value_and_grad(lambda p: _ssi(p, wrong, valid)[0][0])(y)
    assert value > 0.1 and np.isfinite(slope).all()  # the deviation of the target is that of its outliers
    residual = jnp.zeros((1, 100)).at[0, 85:].set(1e6)
    assert losses.trimmed_mae(residual, valid)[0] == 0.0 < losses.trimmed_mae(residual, valid, 0.1)[0]


def test_scale_shift_invariance():
    p, y, valid = _random(3, 8, 8), _random(3, 8, 8), RNG.random((3, 8, 8)) < 0.7
    y = y + 2 * p  # correlated, as a half-trained network's
    value, usable = _ssi(p, y, valid)
    assert usable.all() and (value > 0.05).all()
    for a, b in ((1000.0, 0.0), (0.01, 0.0), (1.0, 50.0), (3.0, -7.0)):
        np.testing.assert_allclose(_ssi(a * p + b, y, valid)[0], value, rtol=1e-3)
        np.testing.assert_allclose(_ssi(p, a * y + b, valid)[0], value, rtol=1e-3)
    np.testing.assert_allclose(_ssi(5 * y + 3, y, valid)[0], 0.0, atol=1e-5)


def test_an_inverted_prediction_is_the_worst_and_descends_to_the_right_one():
    y, valid = _random(1, 64), np.ones((1, 64), bool)
    other = _random(1, 64)

    def loss(correlation):
        p = correlation * y + jnp.sqrt(1 - correlation**2) * other
        return _ssi(p, y, valid)[0][0]

    values = [float(loss(c)) for c in (-0.99, -0.6, -0.3, 0.3, 0.6, 0.99)]
    assert values == sorted(values, reverse=True)


def test_degenerate_alignment_is_skipped_by_relative_size():
    y, valid = _random(5, 16), np.ones((5, 16), bool)
    valid[3] = False
    valid[4, 1:] = False
    p = np.array(y)
    p[0] = 7.0  # constant
    p[1] = 1e4 + 1e-3 * p[1]  # varies by less than float32 resolves at its size
    p[2] = 1e-9 * p[2]  # tiny, but it varies
    value, usable = _ssi(jnp.asarray(p), y, valid)
    assert usable.tolist() == [False, False, True, False, False]
    np.testing.assert_allclose(value, 0.0, atol=1e-5)
    slope = jax.grad(lambda p: _ssi(p, y, valid)[0].sum())(jnp.asarray(p))
    assert np.isfinite(slope).all()


def test_silog_by_hand():
    g = np.array([0.1, 0.3, -0.2, 0.6])
    log_p, log_y = jnp.asarray(g + 1.0, jnp.float32)[None], jnp.ones((1, 4))
    want = np.sqrt(np.mean(g**2) - 0.5 * np.mean(g) ** 2)
    valid = np.ones((1, 4), bool)
    assert losses.silog(log_p, log_y, valid, 0.5, 0.0)[0] == pytest.approx(want, rel=1e-5)
    assert losses.silog(log_p + 2, log_y, valid, 1.0)[0] == pytest.approx(losses.silog(log_p, log_y, valid, 1.0)[0])
    assert losses.silog(log_p + 2, log_y, valid, 0.5)[0] > 1.0  # the absolute scale can be learned
    slope = jax.grad(lambda p: losses.silog(p, log_y, valid)[0])(log_y)
    assert np.isfinite(slope).all()


def test_angles_and_cosines():
    a = losses.unit(_random(50, 3))
    degrees = np.array([0.01, 1.0, 45.0, 90.0, 179.0])
    turned = np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees)), 0 * degrees], -1)
    got = losses.angle(jnp.array([1.0, 0.0, 0.0]), jnp.asarray(turned, jnp.float32))
    np.testing.assert_allclose(np.rad2deg(got), degrees, rtol=1e-3)
    np.testing.assert_allclose(
        losses.cosine_distance(jnp.array([1.0, 0, 0]), turned), 1 - np.cos(np.deg2rad(degrees)), atol=1e-6
    )
    for distance in (losses.angle, losses.cosine_distance):
        np.testing.assert_allclose(distance(a, a), 0.0, atol=2e-6)
        for other in (a, -a):
            slope = jax.grad(lambda x: distance(losses.unit(x), other).sum())(a)
            assert np.isfinite(slope).all()
    assert np.isfinite(jax.grad(lambda x: losses.unit(x).sum())(jnp.zeros(3))).all()


def test_gradient_matching_sees_edges_and_not_offsets():
    y = _random(2, 16, 16)
    valid = np.ones((2, 16, 16), bool)
    match = jax.jit(losses.gradient_matching)
    np.testing.assert_allclose(match(np.full((2, 16, 16), 3.0, np.float32), valid), 0.0)
    # One unit per pixel in x: 1 + 2 + 4 + 8 over the four scales.
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32), (2, 16, 16))
    np.testing.assert_allclose(match(ramp, valid), 15.0)
    assert (match(y, valid) > 0).all()


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_masked_pixels_change_neither_values_nor_gradients(garbage):
    p, y, valid = _random(3, 8, 8), _random(3, 8, 8), RNG.random((3, 8, 8)) < 0.6
    valid[2] = False
    formulas = {
        "ssi": lambda p, y: _ssi(p, y, valid)[0].sum(),
        "silog": lambda p, y: losses.silog(p, y, valid).sum(),
        "gradient": lambda p, y: losses.gradient_matching(losses.robust_residual(p, y, valid)[0], valid).sum(),
        "mean": lambda p, y: losses.masked_mean(p, valid).sum(),
    }
    spoilt = [jnp.where(valid, x, garbage) for x in (p, y)]
    for name, formula in formulas.items():
        run = jax.jit(jax.value_and_grad(formula))
        (clean, slope), (dirty, dirty_slope) = run(p, y), run(*spoilt)
        assert clean == dirty and np.isfinite(clean), name
        np.testing.assert_array_equal(slope, dirty_slope, err_msg=name)
        assert np.isfinite(slope).all() and not np.asarray(slope)[~valid].any(), name


def test_taylor_series_of_the_cross_entropy():
    """By hand for one and two terms; towards the cross-entropy with many; bounded where that is not."""
    probs = jnp.array([[0.2, 0.3, 0.5]])
    logits, target = jnp.log(probs), jnp.array([[0.0, 1.0, 0.0]])
    assert losses.taylor_cross_entropy(logits, target, 1)[0] == pytest.approx(0.7, rel=1e-5)
    assert losses.taylor_cross_entropy(logits, target, 2)[0] == pytest.approx(0.7 + 0.49 / 2, rel=1e-5)
    assert losses.taylor_cross_entropy(logits, target, 40)[0] == pytest.approx(
        -np.log(0.3), rel=1e-4
    )  # what is left is below 1e-7
    sure = jnp.array([[50.0, 0.0, 0.0]])
    assert losses.taylor_cross_entropy(sure, target, 4)[0] == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 4, rel=1e-5)
    assert losses.soft_cross_entropy(sure, target)[0] > 40
