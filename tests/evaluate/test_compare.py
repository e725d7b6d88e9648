"""Relative gains, paired intervals over seeds, the table and the JSON of a comparison."""

import json
import math
import re

import numpy as np
import pytest
import scipy.stats

from must.core.types import Metric
from must.evaluate.compare import delta_m, paired_t_interval, relative_gain, results, table

METRICS = {
    "classification": Metric("top1", "%", True),
    "detection": Metric("AP", "", True),
    "depth": Metric("abs_rel", "", False),
    "normals": Metric("mean_angle", "deg", False),
}
LEVELS = {"classification": 70.0, "detection": 0.18, "depth": 0.14, "normals": 21.0}
COLUMNS = ("scratch", "student", "supervised", "teacher")
COSTS = {
    "teacher": {"networks": 5, "parameters": 14_210_000, "milliseconds": 9.13, "images_per_second": 109.5},
    "student": {"networks": 1, "parameters": 3_470_000, "milliseconds": 2.31, "images_per_second": 432.0},
}


def scores(seeds, columns=COLUMNS, spread=0.02, seed=0):
    rng = np.random.default_rng(seed)
    return {t: {c: list(LEVELS[t] * (1 + spread * rng.normal(size=seeds))) for c in columns} for t in METRICS}


def compared(seeds, **overrides):
    arguments = {"recipe": "must", "seeds": range(seeds), "metrics": METRICS, "scores": scores(seeds), "costs": COSTS}
    return results(**(arguments | overrides))


def test_delta_m_by_hand():
    up, down = {"a": True, "b": False}, {"a": 0.5, "b": 0.2}
    # a: (0.6 - 0.5) / 0.5 = +20 %; b: 0.2 -> 0.15 is +25 % of an error; mean 22.5 %
    assert delta_m({"a": 0.6, "b": 0.15}, down, up) == pytest.approx(22.5)
    assert delta_m({"a": 0.45, "b": 0.2}, down, up) == pytest.approx(-5.0)
    assert delta_m({"b": 0.1}, {"b": -0.2}, {"b": True}) == pytest.approx(150.0)  # by the size of the baseline


def test_delta_m_turns_with_the_direction_and_is_zero_against_itself():
    rng = np.random.default_rng(0)
    tasks = "abcde"
    for _ in range(20):
        mine, base = ({t: float(v) for t, v in zip(tasks, rng.uniform(0.1, 9, 5))} for _ in range(2))
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


def test_results_are_paired_json_and_in_order():
    drift = np.array([-9.0, 4.0, 0.0, 2.0, 7.0])  # shared by both columns: pairing removes it
    paired = {"classification": {"student": list(73 + drift), "teacher": list(70 + drift + [0, 0, 0, 0, 0.5])}}
    found = json.loads(json.dumps(results("must", range(5), METRICS, paired), allow_nan=False))
    entry = found["tasks"]["classification"]
    assert (entry["metric"], entry["unit"], entry["higher_is_better"]) == ("top1", "%", True)
    assert list(entry["scores"]) == ["teacher", "student"]
    assert entry["scores"]["student"] == paired["classification"]["student"]
    gain = entry["gains"]["student_vs_teacher"]
    assert gain["mean"] == pytest.approx(2.9) and 2.5 < gain["ci95"][0] < 2.9 < gain["ci95"][1] < 3.3
    assert entry["columns"]["student"]["ci95"][0] < 70  # unpaired, the drift is all there
    delta = found["delta_m"]["student_vs_teacher"]
    assert delta["per_seed"][0] == pytest.approx(100 * 3 / 61) and delta["tasks"] == ["classification"]


def test_better_is_positive_for_errors_too():
    found = results("must", [0, 1], METRICS, {"depth": {"teacher": [0.2, 0.2], "student": [0.1, 0.15]}})
    assert found["tasks"]["depth"]["gains"]["student_vs_teacher"]["per_seed"] == pytest.approx([0.1, 0.05])
    assert found["delta_m"]["student_vs_teacher"]["per_seed"] == pytest.approx([50.0, 25.0])


def test_lead_is_the_difference_of_two_gains_over_the_reference():
    mine = {"student": [0.10, 0.12], "little": [0.15, 0.12], "teacher": [0.20, 0.20]}
    found = results("must", [0, 1], METRICS, {"depth": mine})
    assert found["delta_m_lead"]["little"]["per_seed"] == pytest.approx([25.0, 0.0])  # 50 - 25, 40 - 40
    assert list(found["delta_m_lead"]) == ["little"] and "lead (%)" in table(found)
    assert not results("must", [0], METRICS, {"depth": {"student": [0.1], "teacher": [0.2]}})["delta_m_lead"]


def test_delta_m_is_over_the_tasks_that_both_columns_have():
    both = scores(3)
    del both["normals"]["teacher"]  # a task that is measured but has no teacher
    found = compared(3, scores=both)
    assert found["delta_m"]["student_vs_teacher"]["tasks"] == ["classification", "detection", "depth"]
    assert found["delta_m"]["student_vs_scratch"]["tasks"] == list(METRICS)
    assert "student_vs_teacher" not in found["tasks"]["normals"]["gains"]
    assert "–" in table(found)


def test_wrong_number_of_scores_is_refused():
    with pytest.raises(ValueError, match="'student' has 4 scores for 5 seeds"):
        compared(5, scores={"depth": {"teacher": [0.1] * 5, "student": [0.1] * 4}})


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_table_holds_every_number(seeds):
    found = compared(seeds)
    text = table(found)
    numbers = [float(n.replace(",", "")) for n in re.findall(r"[-+]?\d[\d,]*\.?\d*", text)]

    def shown(value, tolerance):
        return any(abs(number - value) <= tolerance for number in numbers)

    decimals = {"classification": 2, "detection": 4, "depth": 4, "normals": 2}  # four significant digits, at most four
    for task, entry in found["tasks"].items():
        half = 0.51 * 10 ** -decimals[task]
        paired = [entry["gains"][f"student_vs_{c}"] for c in COLUMNS if c != "student"]
        for summary in [*entry["columns"].values(), *paired]:
            assert shown(summary["mean"], half)
            assert seeds == 1 or shown(summary["ci95"][1] - summary["mean"], half)
    for other in ("teacher", "scratch", "supervised"):
        assert shown(found["delta_m"][f"student_vs_{other}"]["mean"], 0.0051)
    for value in (14.21, 3.47, 9.13, 2.31, 432):
        assert shown(value, 0.0051)
    for word in (*METRICS, *COLUMNS, "top1 (%) ↑", "abs_rel ↓", "one seed" if seeds == 1 else f"{seeds} seeds"):
        assert word in text
    assert ("±" in text) == (seeds > 1)


@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS + tuple(f"arm {i}" for i in range(9))])
@pytest.mark.parametrize("width", [80, 100])
def test_table_fits_its_width(columns, width):
    text = table(compared(5, scores=scores(5, columns)), width=width)
    assert max(map(len, text.splitlines())) <= width
    for column in columns:
        assert column in text


def test_best_is_marked_once_by_direction():
    text = table(results("must", [0], METRICS, {"depth": {"teacher": [0.2], "student": [0.1], "scratch": [0.3]}}))
    assert text.count("*0.1") == 1 and text.count("*0.") == 1


def test_undefined_is_said_not_hidden():
    found = results("must", [0], METRICS, {"detection": {"teacher": [0.0], "student": [0.1]}})
    json.dumps(found, allow_nan=False)
    assert found["delta_m"]["student_vs_teacher"]["mean"] is None
    assert "undefined" in table(found)


def test_one_column_is_a_table_without_gains():
    found = compared(2, scores=scores(2, ("teacher",)))
    assert found["delta_m"] == {} and "gain" not in table(found)
