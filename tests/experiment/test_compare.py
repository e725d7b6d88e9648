"""Several workdirs side by side: further seeds of one experiment, or values of the key in which they differ."""

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest

from must.core.types import Metric, UserError
from must.evaluate.over_images import over_images
from must.evaluate.results import MEAN, Axis, Column, Contrast, Score, compare, contrasts_of
from must.experiment.compare import (
    Answer,
    Answers,
    Comparison,
    _draws,
    _Guess,
    compare_workdirs,
    cost,
    print_results,
    read_results,
    write_results,
)
from must.experiment.measure import save_rows
from must.report.table import table
from must.tasks.classification import Classification

METRICS = {"depth": Metric("abs_rel", "", False), "class": Metric("top1", "%", True)}


def workdir(path, seeds, shift=0.0, **config):
    """A finished workdir: a student that is better than its teacher by `shift` more with every seed."""
    path.mkdir()
    scores = [
        Score(column, task, "test", seed, base + sign * (0.01 * seed + (column == "student") * (0.1 + shift)))
        for seed in seeds
        for column in ("teacher", "student")
        for task, base, sign in (("depth", 1.0, -1), ("class", 50.0, 1))
    ]
    contrast = Contrast("student vs teacher", [("student", "teacher")], ("tasks", "delta_m"))
    columns = [Column("teacher"), Column("student")]
    write_results(str(path), compare("must", METRICS, scores, columns, [contrast], title="t"))
    whole = {"recipe": "must", "seeds": list(seeds), "title": "t", "pool": {"count": 8}, **config}
    (path / "config.json").write_text(json.dumps(whole))
    return str(path)


def entry(results, task, name="student vs teacher"):
    (found,) = [one for one in results["contrasts"] if one["name"] == name and one["task"] == task]
    return found


def test_further_seeds_are_pooled(tmp_path):
    parts = [workdir(tmp_path / "a", (0, 1)), workdir(tmp_path / "b", (2,), title="other", workers=2)]
    compare_workdirs(parts, str(tmp_path / "both"))
    results = read_results(str(tmp_path / "both"))
    assert results["seeds"] == [0, 1, 2] and set(results["columns"]) == {"teacher", "student"}
    assert results["columns"]["student"]["scores"]["test"]["class"] == pytest.approx([50.1, 50.11, 50.12])
    gain = entry(results, "depth")
    assert gain["per_seed"] == pytest.approx([0.1] * 3) and gain["ci95"] is not None
    page = (tmp_path / "both" / "report.html").read_text()
    assert "student vs teacher" in page and (tmp_path / "both" / "results.txt").read_text()


def test_another_key_becomes_an_axis(tmp_path):
    parts = [workdir(tmp_path / "a", (0, 1)), workdir(tmp_path / "b", (0, 1), shift=0.3, pool={"count": 16})]
    compare_workdirs(parts, str(tmp_path / "both"))
    results = read_results(str(tmp_path / "both"))
    assert set(results["columns"]) == {f"{name}@{count}" for name in ("teacher", "student") for count in (8, 16)}
    assert results["axes"]["pool.count"]["values"] == [["8", "8"], ["16", "16"]]
    assert entry(results, "class", "student vs teacher, pool.count 16")["mean"] == pytest.approx(0.4)
    assert entry(results, "class", "student: pool.count 16 vs 8")["mean"] == pytest.approx(0.3)


def test_workdirs_of_one_seed_keep_their_intervals_over_images(tmp_path):
    parts = [workdir(tmp_path / "a", (0,)), workdir(tmp_path / "b", (0,), pool={"count": 16})]
    for part in parts:
        results = read_results(part)
        entry(results, "depth").update(ci95=[0.05, 0.2], interval_over="images")
        write_results(part, results)
    compare_workdirs(parts, str(tmp_path / "both"))
    results = read_results(str(tmp_path / "both"))
    kept = entry(results, "depth", "student vs teacher, pool.count 16")
    assert kept["ci95"] == [0.05, 0.2] and kept["interval_over"] == "images"
    assert entry(results, "class", "student vs teacher, pool.count 16")["ci95"] is None
    assert entry(results, "depth", "student: pool.count 16 vs 8")["ci95"] is None


def test_workdirs_of_one_name_stay_apart(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "q").mkdir()
    parts = [
        workdir(tmp_path / "p" / "run", (0, 1), rate=1, steps=1),
        workdir(tmp_path / "q" / "run", (0, 1), rate=2, steps=2),
    ]
    compare_workdirs(parts, str(tmp_path / "both"))
    results = read_results(str(tmp_path / "both"))
    assert set(results["columns"]) == {f"{name}@{part}" for name in ("teacher", "student") for part in parts}


def test_losses_are_in_the_sentences_too():
    metrics = {
        "depth": Metric("abs_rel", "", False),
        "boxes": Metric("AP", "", True),
        "masks": Metric("mIoU", "", True),
    }
    values = {"guess": (0.4, 0.0, 0.1), "teacher": (0.2, 0.3, 0.2), "student": (0.1, 0.2, 0.1)}
    scores = [
        Score(name, task, "test", 0, value)
        for name, row in values.items()
        for task, value in zip(metrics, row, strict=True)
    ]
    contrasts = [Contrast("student vs teacher", [("student", "teacher")])]
    results = compare("must", metrics, scores, [Column(name) for name in values], contrasts)
    assert results["notes"] == [
        "student vs teacher: ahead on depth; behind on boxes, masks.",
        "No better than a constant guess on masks: student.",
    ]


def _resampled(seeds):
    """A teacher and a student on an error and a score, with 500 resamples of the first seed, paired."""
    rng, common = np.random.default_rng(0), np.random.default_rng(1).normal(size=500)
    values = {"guess": {"depth": 0.9, "class": 10.0}, "teacher": {"depth": 0.2, "class": 60.0}}
    values["student"] = {"depth": 0.21, "class": 70.0}
    scores = [
        Score(name, task, "test", seed, value * (1 + 0.01 * seed))
        for name, row in values.items()
        for task, value in row.items()
        for seed in range(seeds)
    ]
    draws = {
        name: {task: value * (1 + 0.1 * common + 0.03 * rng.normal(size=500)) for task, value in row.items()}
        for name, row in values.items()
    }
    contrast = Contrast("student vs teacher", [("student", "teacher")], ("tasks", "delta_m"), expected="above")
    other = Contrast("student vs arm", [("student", "arm")])  # a column of another member, without resamples
    scores += [Score("arm", "class", "test", seed, 50.0) for seed in range(seeds)]
    columns = [Column(name) for name in (*values, "arm")]
    results = compare("must", METRICS, scores, columns, [contrast, other])
    return over_images(results, METRICS, [contrast, other], draws), draws


def test_one_seed_has_paired_intervals_over_images():
    results, draws = _resampled(1)
    bounds = {}
    for task, sign in (("depth", -1), ("class", 1)):
        apart = sign * (draws["student"][task] - draws["teacher"][task])
        bounds[task] = np.quantile(apart, [0.025, 0.975])
        found = entry(results, task)
        np.testing.assert_allclose(found["ci95"], bounds[task])
        assert found["interval_over"] == "images" and found["per_seed"] == [found["mean"]]
        alone = np.quantile(draws["student"][task], [0.025, 0.975])
        assert bounds[task][1] - bounds[task][0] < alone[1] - alone[0]  # what both find hard is not counted
    assert entry(results, "class")["holds"] is True and entry(results, "depth")["holds"] is None
    relative = [
        -(draws["student"]["depth"] / draws["teacher"]["depth"] - 1),
        draws["student"]["class"] / draws["teacher"]["class"] - 1,
    ]
    np.testing.assert_allclose(
        entry(results, "delta_m")["ci95"], np.quantile(100 * np.mean(relative, 0), [0.025, 0.975])
    )
    assert entry(results, "class", "student vs arm")["ci95"] is None
    guess = entry(results, "depth", "teacher vs guess")
    assert guess["mean"] == pytest.approx(0.7) and guess["ci95"][0] < 0.7 < guess["ci95"][1]
    assert results["notes"][0] == ("student vs teacher: ahead on class; behind on depth*; * its interval contains 0.")


def test_several_seeds_have_intervals_over_seeds_and_a_guess_of_the_first():
    results, draws = _resampled(3)
    assert entry(results, "class")["interval_over"] == "seeds"
    guess = entry(results, "class", "student vs guess")
    assert guess["interval_over"] == "images" and guess["per_seed"] == [pytest.approx(60.0)]
    np.testing.assert_allclose(
        guess["ci95"], np.quantile(draws["student"]["class"] - draws["guess"]["class"], [0.025, 0.975])
    )
    assert {c.name for c in contrasts_of(results)} == {"student vs teacher", "student vs arm"}


def test_columns_of_one_label_are_told_apart_in_the_sentences():
    axis = Axis("budget", "labels", {8: "8 labels", 64: "64 labels"}, across=True)
    columns = [Column("guess"), *(Column(f"student@{n}", {"budget": n}, "student") for n in (8, 64))]
    scores = [
        Score(name, "class", "test", 0, value) for name, value in (("guess", 9), ("student@8", 8), ("student@64", 7))
    ]
    notes = compare("must", METRICS, scores, columns, [], axes=[axis])["notes"]
    assert notes == ["No better than a constant guess on class: student (8 labels), student (64 labels)."]


def test_rows_of_unlike_numbers_of_images_are_not_paired(tmp_path):
    """The same draws would not be the same images."""
    five, six = ({name: np.ones(count) for name in ("top1", "top5", "nll")} for count in (5, 6))
    save_rows(str(tmp_path / "student" / "rows-test.npz"), {"class": five})
    settings = SimpleNamespace(eval_splits=("test",))
    member = SimpleNamespace(settings=settings, axes={}, prefix="")
    compared = Comparison([Answers(Column("student"), {"class": Answer("student")})], [])
    guess = _Guess({}, {"class": six})
    with pytest.raises(UserError, match="student: scores of class are of 5 images of test, which has 6"):
        _draws(member, compared, {"class": Classification(("a", "b"))}, guess, str(tmp_path))


def test_a_mean_is_over_the_tasks_that_all_pairs_have():
    metrics = {"one": Metric("acc", "%", True), "two": Metric("acc", "%", True)}
    values = {"r": (1.0, 1.0), "a": (2.0, None), "b": (4.0, 9.0)}
    scores = [
        Score(column, task, "test", 0, value)
        for column, pair in values.items()
        for task, value in zip(metrics, pair, strict=True)
        if value is not None
    ]
    contrast = Contrast("c", [("a", "r"), ("b", "r")], (MEAN,))
    results = compare("must", metrics, scores, [Column(c) for c in values], [contrast], mean_label="mean")
    (mean,) = results["contrasts"]
    assert mean["mean"] == pytest.approx(2.0)  # of 2 - 1 and 4 - 1; b's second task has no counterpart


def test_parameters_that_nobody_knows_are_a_dash():
    scores = [Score(column, "depth", "test", 0, 1.0) for column in ("teacher", "student")]
    costs = {"teacher": cost(2, math.nan, 0.5, 4), "student": cost(1, 250_000, 0.25, 4)}
    columns = [Column("teacher"), Column("student")]
    text = table(compare("must", {"depth": METRICS["depth"]}, scores, columns, [], title="t", costs=costs), 100)
    rows = [line.split() for line in text[text.index("Cost of all tasks") :].splitlines()]
    assert ["teacher", "2", "–", "125.00", "8"] in rows and ["student", "1", "0.25", "62.50", "16"] in rows


def test_what_does_not_fit_together_is_one_line(tmp_path):
    first = workdir(tmp_path / "a", (0,))
    further = workdir(tmp_path / "b", (0, 1), rate=2)
    with pytest.raises(UserError, match="its seeds 0, 1 are not those of .*, 0; compare workdirs with equal seeds"):
        compare_workdirs([first, further], str(tmp_path / "x"))
    os.remove(os.path.join(further, "config.json"))
    with pytest.raises(UserError, match="config.json: does not exist"):
        compare_workdirs([first, further], str(tmp_path / "x"))
    with pytest.raises(UserError, match="at least two workdirs"):
        compare_workdirs([first], str(tmp_path / "x"))
    with pytest.raises(UserError, match="listed twice"):
        compare_workdirs([first, first + "/"], str(tmp_path / "x"))
    with pytest.raises(UserError, match=r"results.json: does not exist; run --stage=compare"):
        compare_workdirs([first, str(tmp_path / "nowhere")], str(tmp_path / "x"))
    old = tmp_path / "old"
    old.mkdir()
    (old / "results.json").write_text("{}")
    with pytest.raises(UserError, match="schema None is from another version"):
        compare_workdirs([first, str(old)], str(tmp_path / "x"))
    (old / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"old/results.json: damaged"):
        compare_workdirs([first, str(old)], str(tmp_path / "x"))
    other = json.loads((tmp_path / "a" / "results.json").read_text()) | {"recipe": "jedi"}
    (old / "results.json").write_text(json.dumps(other))
    (old / "config.json").write_text('{"seeds": [0]}')
    with pytest.raises(UserError, match="its recipe is not that of"):
        compare_workdirs([first, str(old)], str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_damaged_comparison_is_not_passed_over(tmp_path, capsys):
    path = workdir(tmp_path / "a", (0,))
    print_results(path)
    assert "student" in capsys.readouterr().out
    results = tmp_path / "a" / "results.json"
    results.write_text(results.read_text()[:-20])
    with pytest.raises(UserError, match="results.json: damaged; run --stage=compare"):
        print_results(path)
