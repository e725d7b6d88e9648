"""Every number of a comparison is in its text table, which keeps its width and marks what is best."""

import re

import numpy as np
import pytest

from must.report import table
from tests.support import comparisons

KINDS = {
    "students": comparisons.students,
    "budgets": comparisons.budgets,
    "grid": comparisons.grid,
    "sets": comparisons.sets,
}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_score_and_contrast_is_in_the_table(kind, seeds):
    results = KINDS[kind](seeds)
    text = table.table(results)
    for column in results["columns"].values():
        assert column["label"] in text
        for split, by_task in column["scores"].items():
            for task, values in by_task.items():
                digits = table.places(results, split, task)
                assert f"{np.mean(values):.{digits}f}" in text
    for contrast in results["contrasts"]:
        digits = 2 if contrast["task"] == "delta_m" else table.places(results, contrast["split"], contrast["task"])
        if contrast["reference"] != "guess":
            assert f"{contrast['mean']:+.{digits}f}" in text
            assert all(f"{pair['mean']:+.{digits}f}" in text for pair in contrast["pairs"])
    assert ("±" in text) == (seeds > 1) == ("(p " in text)


@pytest.mark.parametrize("width", [60, 100, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_lines_keep_to_the_width(kind, width):
    lines = table.table(KINDS[kind](), width).splitlines()
    # A label and one column are the least that a line holds.
    assert max(len(line) for line in lines if "─" in line) <= max(width, 90)


def test_the_mean_of_tasks_is_that_of_the_scores():
    results = comparisons.sets()
    by_task = results["columns"]["student"]["scores"]["test"].values()
    text = table.table(results)
    assert f"{np.mean(list(by_task)):.2f}" in text and "mean over sets" in text


def test_settings_across_stand_beside_each_other_and_others_head_the_groups():
    grid = table.score_grid(comparisons.grid(), "test")
    assert [head[1] for head in grid.heads] == ["", "seen", "unseen"] * 2
    assert [heading for heading, _ in grid.groups] == ["half of the labels", "a quarter of the labels"]
    assert [row.label for row in grid.groups[0][1]] == ["teacher on half of the labels", "soft", "soft + pdf"]
    budgets = table.score_grid(comparisons.budgets(), "test")
    assert len(budgets.heads) == 3 and [heading for heading, _ in budgets.groups] == [""]
    differences = table.contrast_grid(comparisons.budgets(), "test")
    assert [row.label for row in differences.groups[0][1]][:2] == ["weighted vs student", "slam vs student"]


def test_the_best_is_marked_by_direction_and_controls_do_not_compete():
    results = comparisons.students()
    for column, values in results["columns"].items():
        values["scores"]["test"]["depth"] = [{"shuffled": 0.01, "guess": 0.02, "student": 0.1}.get(column, 0.2)] * 3
    grid = table.score_grid(results, "test")
    best = [row.label for row in grid.groups[0][1] if row.cells[1].best]
    assert best == ["student"]
    assert sum(row.cells[0].best for row in grid.groups[0][1]) == 1


def test_expectations_and_undefined_numbers_are_spelled_out():
    results = comparisons.students()
    verdicts = {True: "yes", False: "NO", None: "undecided"}
    for holds, word in verdicts.items():
        for contrast in results["contrasts"]:
            contrast["holds"] = holds
        assert f"above 0: {word}" in table.table(results)
    results["columns"]["student"]["scores"]["test"]["depth"][0] = None
    results["contrasts"][0]["mean"] = None
    assert table.table(results).count("undefined") == 2


def test_intervals_over_images_have_a_table_of_their_own():
    text = table.table(comparisons.students())
    assert "Gain over a constant guess" in text and re.search(r"student +[+-]\d\.\d+ \[-?\d\.\d+, -?\d\.\d+\]", text)
    assert "A note <here>." in text and "14.21" in text and "12.5" in text


def test_one_seed_has_intervals_over_its_images():
    one, bare = comparisons.students(1), comparisons.students(1, resampled=False)
    assert "one seed; intervals of differences" in table.table(one) and "another seed may differ" in table.table(one)
    (contrast,) = [c for c in one["contrasts"] if c["name"] == "student vs teacher" and c["task"] == "classification"]
    low, high = contrast["ci95"]
    assert f"{contrast['mean']:+.2f} [{low:.2f}, {high:.2f}]" in table.table(one)
    assert "one seed, so no intervals" in table.table(bare) and "another seed" not in table.table(bare)
    both = table.table(comparisons.students(1, splits=("test", "clutter")))
    assert both.count("another seed may differ") == 1  # the other split was not resampled
    assert "over the test images" not in table.table(comparisons.students(3))


def test_a_score_that_is_not_defined_has_no_gain_either():
    results = comparisons.students(1)
    for contrast in results["contrasts"]:
        contrast |= {"mean": None, "ci95": None, "interval_over": None}
    assert "undefined" in table.table(results)


def test_two_splits_are_two_tables():
    text = table.table(comparisons.students(splits=("test", "clutter")))
    assert "Scores on test" in text and "Scores on clutter" in text and "Differences on clutter" in text
