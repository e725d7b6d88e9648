"""Depth against naive formulas; the camera under zoom; relative depth's freedom; 16-bit storage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import Geometry, LabelError, Policy, UserError
from must.data.geometry import own_frame, whole_image
from must.tasks.depth import Depth, InverseDepth

RNG = np.random.default_rng(0)
ALL, OWN = Policy(0.0, 0.0), own_frame((64, 64))


def _depth(*shape):
    return RNG.uniform(0.5, 9.0, shape).astype(np.float32)


def _naive(predicted, true, valid):
    d, y = predicted[valid].astype(np.float64), true[valid].astype(np.float64)
    ratio, log = np.maximum(d / y, y / d), np.log(d) - np.log(y)
    return {
        "abs_rel": np.mean(np.abs(d - y) / y),
        "delta1": 100 * np.mean(ratio < 1.25),
        "delta2": 100 * np.mean(ratio < 1.25**2),
        "delta3": 100 * np.mean(ratio < 1.25**3),
        "sq_rel": np.mean((d - y) ** 2 / y),
        "rmse": np.sqrt(np.mean((d - y) ** 2)),
        "rmse_log": np.sqrt(np.mean(log**2)),
        "log10": np.mean(np.abs(np.log10(d) - np.log10(y))),
        "silog": np.sqrt(np.mean(log**2) - np.mean(log) ** 2),
    }


def test_metrics_against_naive_formulas_averaged_over_images():
    task = Depth()
    true, predicted = _depth(4, 8, 8), _depth(4, 8, 8)
    true[RNG.random(true.shape) < 0.3] = 0
    true[0, 0, 0], true[0, 0, 1], true[0, 0, 2] = np.nan, 50.0, 0.01  # out of range
    true[3] = 0
    valid = (true >= 0.1) & (true <= 10)
    want = [_naive(predicted[i], true[i], valid[i]) for i in range(3)]
    got = task.summarize(jax.device_get(task.measure({"depth": predicted}, {"depth": true})))
    assert list(got) == [metric.name for metric in task.metrics] and task.metrics[0].name == "abs_rel"
    for name, value in got.items():
        assert value == pytest.approx(np.mean([w[name] for w in want]), rel=2e-4), name


def test_relative_metrics_are_those_of_the_aligned_prediction():
    task = Depth(depth_kind="relative")
    true = _depth(1, 16, 16)
    inverse = 0.6 / true + 0.3 + 0.02 * RNG.normal(size=true.shape)
    got = task.summarize(jax.device_get(task.measure({"depth": (1 / inverse).astype(np.float32)}, {"depth": true})))
    design = np.stack([inverse.ravel(), np.ones(inverse.size)], -1)
    fitted = design @ np.linalg.lstsq(design, 1 / true.ravel(), rcond=None)[0]
    predicted = 1 / np.clip(fitted, 0.1, 10).reshape(true.shape)
    for name, value in _naive(predicted, true, true > 0).items():
        assert got[f"aligned_{name}"] == pytest.approx(value, rel=2e-3), name
    upside_down = task.summarize(jax.device_get(task.measure({"depth": 1 / (2.5 - inverse)}, {"depth": true})))
    # No credit for the inverted scene: with no positive scale left, the best is a constant.
    constant = np.full_like(true, 1 / np.mean(1 / true))
    for name, value in _naive(constant, true, true > 0).items():
        assert upside_down[f"aligned_{name}"] == pytest.approx(value, rel=2e-3, abs=1e-3), name


def test_relative_prediction_keeps_all_but_scale_and_shift():
    task = Depth(depth_kind="relative", head_stride=1, stride=1)
    outputs = jnp.asarray(RNG.normal(size=(3, 8, 8, 1)), jnp.float32)
    depth = task.predict(outputs)["depth"]
    np.testing.assert_allclose(depth.min((1, 2)), 0.1, rtol=1e-5)
    np.testing.assert_allclose(depth.max((1, 2)), 10.0, rtol=1e-3)
    np.testing.assert_allclose(task.predict(7 * outputs - 3)["depth"], depth, rtol=1e-3)
    terms = task.loss(outputs, task.target({"depth": depth}, ALL))
    np.testing.assert_allclose(terms["depth"].value, 0.0, atol=1e-4)


def test_relative_labels_need_no_meters():
    task = Depth(depth_kind="relative", head_stride=1)
    outputs, true = jnp.asarray(RNG.normal(size=(2, 8, 8, 1)), jnp.float32), _depth(2, 8, 8)
    value = lambda depth: task.loss(outputs, task.target({"depth": depth}, ALL))["depth"].value  # noqa: E731
    np.testing.assert_allclose(value(1000 * true), value(true), rtol=1e-4)


def test_constant_output_of_a_relative_network_counts_for_nothing():
    task = Depth(depth_kind="relative", head_stride=1, gradient=True)
    terms = task.loss(jnp.full((2, 8, 8, 1), 3.0), task.target({"depth": _depth(2, 8, 8)}, ALL))
    for term in terms.values():
        assert not term.value.any() and not term.norm.any()


@pytest.mark.parametrize("kind, factor", [("metric", 2.0), ("relative", 1.0)])
def test_zoom_divides_metric_depth_and_restoring_multiplies(kind, factor):
    task = Depth(depth_kind=kind, stride=1)
    codes = RNG.integers(1000, 9000, (16, 16)).astype(np.uint16)
    record = {"depth": codes, "scale": np.float32(1e-3), "offset": np.float32(0)}
    zoomed = Geometry((16, 16), (16, 16), (2.0, 2.0), (0.0, 0.0), False, 2.0)
    label = task.transform(record, zoomed)
    np.testing.assert_allclose(label["depth"], codes[:8, :8].repeat(2, 0).repeat(2, 1) * 1e-3 / factor, rtol=1e-5)
    back = task.restore(label, zoomed)
    stored, want = back["depth"] * back["scale"] + back["offset"], codes[:8, :8] * 1e-3
    assert ("inverse" in back) == (kind == "relative")
    np.testing.assert_allclose(stored[:8, :8], want if kind == "metric" else 1 / want, atol=8.0 / 131068 * 1.05)


def _through_a_record(task, label):
    """As a reader has it again."""
    return task.transform(task.restore(label, OWN), OWN)["depth"].astype(np.float64)


@pytest.mark.parametrize("ratio", [2, 100, 1300])
def test_sixteen_bits_hold_relative_depth_to_one_percent(ratio):
    task = Depth(depth_kind="relative", stride=1, min_depth=0.1, max_depth=0.1 * ratio)
    values = np.geomspace(1e-4, 1, 64 * 64).reshape(1, 64, 64).astype(np.float32)
    values[0, 0, 0] = 0  # the sky
    label = {name: field[0] for name, field in task.from_external(InverseDepth(values * 77 - 5), (64, 64)).items()}
    apart = np.abs(_through_a_record(task, label) / label["depth"] - 1)
    assert label["depth"].min() == pytest.approx(0.1) and label["depth"].max() == pytest.approx(0.1 * ratio)
    assert apart.max() < 0.01 and (ratio < 1300 or apart.max() > 0.004)
    with pytest.raises(UserError, match="16 bits hold relative depth to 1 %"):
        Depth(depth_kind="relative", min_depth=0.1, max_depth=0.1 * 1312)


def test_inverse_depth_keeps_all_but_scale_and_shift_through_records():
    task = Depth(depth_kind="relative", stride=1, head_stride=1)
    values = RNG.normal(size=(2, 64, 64)).astype(np.float32)
    values[1, 3:9, 5] = np.nan
    label = task.from_external(InverseDepth(values), (64, 64))
    stored = np.stack([_through_a_record(task, {"depth": label["depth"][row]}) for row in range(2)])
    assert ((stored == 0) == np.isnan(values)).all()
    for row in range(2):
        known = stored[row] > 0
        slope, _ = np.polyfit(values[row][known], 1 / stored[row][known], 1)
        assert slope > 0 and np.corrcoef(values[row][known], 1 / stored[row][known])[0, 1] > 1 - 1e-8
    outputs = jnp.nan_to_num(jnp.asarray(values))[..., None] * 3 - 1
    terms = task.loss(outputs, task.target({"depth": stored}, ALL))
    np.testing.assert_allclose(terms["depth"].value, 0.0, atol=1e-4)


def test_labels_in_meters_teach_a_relative_network_and_inverse_ones_no_metric_one():
    relative, metric = Depth(depth_kind="relative", stride=1), Depth(stride=1)
    true = _depth(64, 64)
    truth = metric.restore({"depth": true}, OWN)
    np.testing.assert_allclose(relative.transform(truth, OWN)["depth"], true, atol=1e-3)
    inverse = relative.restore({"depth": true}, OWN)
    with pytest.raises(ValueError, match="inverse depth without scale, which a metric task cannot use: depth_kind"):
        metric.transform(inverse, OWN)
    with pytest.raises(LabelError, match="depth is inverse and without scale, the task is metric"):
        metric.from_external(InverseDepth(1 / true[None]), (64, 64))
    assert set(metric.label_spec()) == set(truth) and set(relative.label_spec()) == set(inverse)
    assert "inverse depth" in relative.label_spec()["depth"].doc and "meters" in metric.label_spec()["depth"].doc


def test_an_invalid_pixel_stays_invalid_and_a_flat_wall_is_exact():
    task = Depth(stride=1)
    flat = np.full((8, 8), 2.5, np.float32)
    flat[0, 0], flat[1, 1], flat[2, 2] = 0, np.nan, -1
    record = task.restore({"depth": flat}, whole_image((8, 8), (8, 8)))
    assert (record["depth"] == 0).sum() == 3
    label = task.transform(record, whole_image((8, 8), (8, 8)))
    assert label["depth"][0, 0] == label["depth"][1, 1] == label["depth"][2, 2] == 0
    np.testing.assert_array_equal(label["depth"][3:], 2.5)
    empty = task.restore({"depth": np.zeros((8, 8), np.float32)}, whole_image((8, 8), (8, 8)))
    assert not task.transform(empty, whole_image((8, 8), (8, 8)))["depth"].any()


@pytest.mark.parametrize("loss_kind", ["silog", "log_l1"])
def test_metric_losses_learn_the_scale(loss_kind):
    task = Depth(loss_kind=loss_kind, head_stride=1)
    true = _depth(1, 8, 8)
    target, right = task.target({"depth": true}, ALL), jnp.log(true)[..., None]
    values = [float(task.loss(right + shift, target)["depth"].value[0]) for shift in (0.0, 0.1, 0.5, -0.5)]
    assert values[0] == min(values) and values[0] < 2e-3 and values[1] < values[2]
