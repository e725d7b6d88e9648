"""Relative gains and paired intervals over seeds."""

import math

import numpy as np
import pytest
import scipy.stats

from must.evaluate import statistics
from must.evaluate.statistics import confusion, delta_m, paired_t_interval, relative_gain


def test_delta_m_by_hand():
    up, down = {"a": True, "b": False}, {"a": 0.5, "b": 0.2}
    # a: (0.6 - 0.5) / 0.5 = +20%; b: 0.2 -> 0.15 is +25% of an error; mean 22.5%
    assert delta_m({"a": 0.6, "b": 0.15}, down, up) == pytest.approx(22.5)
    assert delta_m({"a": 0.45, "b": 0.2}, down, up) == pytest.approx(-5.0)
    assert delta_m({"b": 0.1}, {"b": -0.2}, {"b": True}) == pytest.approx(150.0)  # by the size of the baseline


def test_delta_m_turns_with_the_direction_and_is_zero_against_itself():
    rng = np.random.default_rng(0)
    tasks = "abcde"
    for _ in range(20):
        mine, base = ({t: float(v) for t, v in zip(tasks, rng.uniform(0.1, 9, 5), strict=True)} for _ in range(2))
        up = {t: bool(rng.integers(2)) for t in tasks}
        gain = delta_m(mine, base, up)
        assert delta_m(mine, base, {t: not up[t] for t in tasks}) == pytest.approx(-gain)
        assert delta_m(base, base, up) == 0
        # A unit does not matter.
        scaled = [{t: v * (1000 if t == "a" else 1) for t, v in side.items()} for side in (mine, base)]
        assert delta_m(*scaled, up) == pytest.approx(gain)


def test_a_baseline_of_zero_has_no_relative_gain():
    assert math.isnan(relative_gain(0.1, 0.0, True))
    assert math.isnan(delta_m({"a": 1.0, "b": 0.1}, {"a": 1.0, "b": 0.0}, {"a": True, "b": True}))


@pytest.mark.parametrize("baseline", [{}, {"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}])
def test_delta_m_refuses_other_tasks(baseline):
    with pytest.raises(ValueError, match="same tasks"):
        delta_m({"a": 1.0, "b": 1.0} if baseline else {}, baseline, {"a": True, "b": True, "c": True})


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_paired_interval_is_scipys(confidence):
    rng = np.random.default_rng(1)
    for count in (2, 3, 5, 30):
        values = rng.normal(0.5, 2, count)
        mean, low, high = paired_t_interval(values, confidence)
        expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(confidence)
        np.testing.assert_allclose((mean, low, high), (values.mean(), expected.low, expected.high), rtol=1e-9)
        assert statistics.tested(values.tolist())["p"] == pytest.approx(
            scipy.stats.ttest_1samp(values, 0).pvalue, rel=1e-9
        )


def test_interval_of_one_or_equal_differences():
    mean, low, high = paired_t_interval([0.25])
    assert mean == 0.25 and math.isnan(low) and math.isnan(high)
    assert paired_t_interval([0.25] * 4) == pytest.approx((0.25, 0.25, 0.25))
    assert all(map(math.isnan, paired_t_interval([])))


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(2000):
        _, low, high = paired_t_interval(rng.normal(0.3, 1.0, 5))
        inside += low <= 0.3 <= high
    assert abs(inside / 2000 - 0.95) < 0.02  # four standard errors


def test_confusion_counts_predictions_by_class_and_survives_empty_classes():
    rng = np.random.default_rng(1)
    probs, truth = rng.random((200, 3)), rng.integers(0, 4, 200)
    truth[truth == 2] = -1  # no example of class 2, and some to leave out
    rates = confusion(probs, truth, 4)
    assert rates.shape == (4, 3) and not rates[2].any()
    for j in (0, 1, 3):
        for i in range(3):
            assert rates[j, i] == pytest.approx(np.mean(probs[truth == j].argmax(1) == i))
    broken = np.concatenate([probs, np.full((5, 3), np.nan)])
    np.testing.assert_array_equal(confusion(broken, np.append(truth, [0] * 5), 4), rates)
    assert not confusion(np.zeros((0, 3)), np.zeros(0, int), 4).any()


def test_bootstrapped_values_that_are_mostly_not_defined_have_no_interval():
    values = np.arange(100.0)
    assert statistics.percentile_interval(values) == pytest.approx((2.475, 96.525))
    values[:5] = math.nan
    assert statistics.percentile_interval(values) == pytest.approx(tuple(np.quantile(values[5:], [0.025, 0.975])))
    values[5] = math.nan  # the others tell of the draws alone in which the score exists
    assert all(map(math.isnan, statistics.percentile_interval(values)))
    assert all(map(math.isnan, statistics.percentile_interval([])))
