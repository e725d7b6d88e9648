"""A grid of arms: contrasts worked by hand, words, the table a person reads, the page."""

import json
import re

import numpy as np
import pytest
import scipy.stats

from must.core.types import Metric
from must.evaluate import arms as settings_of
from must.evaluate.grid import grid_results, grid_table
from must.report.grid import write_page
from tests.report.test_report import Parser

METRICS = {"boxes": Metric("AP", "", True), "depth": Metric("abs_rel", "", False)}
PLAIN = {
    "tasks": ["boxes"],
    "split": "half",
    "images": "seen",
    "annotation": "none",
    "labels": ["soft"],
    "where": "all",
}
IMAGES = {"axis": "images", "subject": "unseen", "reference": "seen"}


def arm(**changes):
    return PLAIN | {"control": ""} | changes


def small(seeds=3, contrasts=(IMAGES,), scores=None, **more):
    """Four arms with one setting changed at a time, and one with two tasks."""
    arms = {
        "teacher": None,
        "seen": arm(),
        "unseen": arm(images="unseen"),
        "seen-pdf": arm(labels=["soft", "pdf"]),
        "unseen-pdf": arm(labels=["pdf", "soft"], images="unseen"),
        "both": arm(tasks=["boxes", "depth"]),
    }
    boxes = {"teacher": 0.20, "seen": 0.22, "unseen": 0.25, "seen-pdf": 0.24, "unseen-pdf": 0.23, "both": 0.21}
    drift = np.array([0.0, 0.01, -0.02, 0.03])[:seeds]
    made = {
        "boxes": {name: list(value + drift) for name, value in boxes.items()},
        "depth": {"teacher": [0.2] * seeds, "both": [0.1] * seeds},
    }
    own = {name: dict.fromkeys(settings["tasks"], "teacher") for name, settings in arms.items() if settings}
    given = {"arms": arms, "contrasts": list(contrasts), "teachers": own} | more
    found = grid_results("grid", range(seeds), METRICS, scores or made, **given)
    return json.loads(json.dumps(found, allow_nan=False))


def entry(found, task="boxes", index=0):
    return [contrast for contrast in found["contrasts"] if contrast["task"] == task][index]


def ends(contrast):
    return [(pair["subject"], pair["reference"]) for pair in contrast["pairs"]]


def test_pairs_differ_in_the_one_axis_only():
    contrast = entry(small())
    assert ends(contrast) == [("unseen", "seen"), ("unseen-pdf", "seen-pdf")]  # the order of labels does not matter
    assert [pair["mean"] for pair in contrast["pairs"]] == pytest.approx([0.03, -0.01])
    assert contrast["pairs"][0]["common"] == {k: v for k, v in arm().items() if k != "images"}
    assert [pair["words"] for pair in contrast["pairs"]] == ["soft", "soft + pdf"]
    assert contrast["pooled"]["per_seed"] == pytest.approx([0.01] * 3)
    assert (contrast["name"], contrast["axis"]) == ("images: unseen against seen", "images")


def test_values_that_are_lists_and_filters():
    labels = {"axis": "labels", "subject": ["soft", "pdf"], "reference": ["soft"]}
    assert ends(entry(small(contrasts=[labels]))) == [("seen-pdf", "seen"), ("unseen-pdf", "unseen")]
    for within, expected in (
        ({"images": "seen"}, [("seen-pdf", "seen")]),
        ({"images": ["seen", "all"]}, [("seen-pdf", "seen")]),
        ({"images": ["seen", "unseen"]}, [("seen-pdf", "seen"), ("unseen-pdf", "unseen")]),
        ({"tasks": ["boxes", "depth"]}, []),
    ):
        assert ends(entry(small(contrasts=[labels | {"within": within}]))) == expected
    for within, expected in (
        ({"labels": ["pdf", "soft"]}, [("unseen-pdf", "seen-pdf")]),
        ({"labels": ["soft"]}, [("unseen", "seen")]),
        ({"labels": [["soft"], ["hard"]]}, [("unseen", "seen")]),
        ({"labels": []}, []),
    ):
        assert ends(entry(small(contrasts=[IMAGES | {"within": within}]))) == expected
    both = {"axis": "tasks", "subject": ["depth", "boxes"], "reference": ["boxes"]}
    found = small(contrasts=[both])
    assert ends(entry(found)) == [("both", "seen")]
    assert entry(found, "depth")["pairs"] == [] and entry(found, "depth")["pooled"] is None  # "seen" has no depth


def test_intervals_and_p_are_scipys_and_the_mean_is_paired_by_seed():
    rng = np.random.default_rng(0)
    names = ("seen", "unseen", "seen-pdf", "unseen-pdf")
    scores = {"boxes": {name: list(rng.normal(0.3, 0.05, 4)) for name in names}}
    found = entry(small(4, scores=scores, teachers={}, arms={name: small()["arms"][name] for name in names}))
    gains = [np.subtract(scores["boxes"][a], scores["boxes"][b]) for a, b in ends(found)]
    for summary, gain in zip([*found["pairs"], found["pooled"]], [*gains, np.mean(gains, 0)], strict=True):
        test = scipy.stats.ttest_1samp(gain, 0)
        assert summary["per_seed"] == pytest.approx(list(gain))
        assert (summary["mean"], summary["p"]) == pytest.approx((gain.mean(), test.pvalue))
        assert summary["ci95"] == pytest.approx(
            [test.confidence_interval(0.95).low, test.confidence_interval(0.95).high]
        )


def test_better_is_positive_for_errors_and_teachers_are_named():
    found = small(contrasts=[{"name": "of its own", "subject": "both", "reference": "teacher"}])
    assert entry(found, "depth")["pairs"][0]["per_seed"] == pytest.approx([0.1] * 3)
    assert entry(found)["pairs"][0]["mean"] == pytest.approx(0.01) and entry(found)["pairs"][0]["common"] == {}
    over = found["over_teacher"]
    assert over["both"]["depth"]["mean"] == pytest.approx(0.1) and over["both"]["depth"]["teacher"] == "teacher"
    assert over["seen"]["boxes"]["mean"] == pytest.approx(0.02) and list(over["seen"]) == ["boxes"]


def test_delta_m_over_one_column_per_task():
    apart = {"name": "two tasks", "subject": "both", "reference": {"boxes": "seen", "depth": "teacher"}}
    found = small(1, contrasts=[apart])
    assert found["contrasts"] == []
    # boxes: 0.21 / 0.22 is -4.545 %; depth: 0.2 -> 0.1 is +50 % of an error
    assert found["delta_m"][0]["mean"] == pytest.approx((-100 / 22 + 50) / 2)
    assert found["delta_m"][0]["tasks"]["depth"]["mean"] == pytest.approx(50)
    with pytest.raises(ValueError, match="two tasks: no scores of depth for both 'both' and 'seen'"):
        small(contrasts=[apart | {"reference": {"depth": "seen"}}])


def test_one_seed_has_no_interval_and_no_p():
    found = small(1)
    pair = entry(found)["pairs"][0]
    assert pair["mean"] == pytest.approx(0.03) and pair["ci95"] is None and pair["p"] is None
    text = grid_table(found)
    assert "±" not in text and "(p" not in text and "one seed" in text


def test_a_score_that_is_no_number_leaves_the_others():
    made = small()["tasks"]["boxes"]["scores"]
    found = small(scores={"boxes": made | {"unseen": [0.1, float("nan"), 0.2]}})
    pairs = entry(found)["pairs"]
    assert pairs[0]["mean"] is None and pairs[1]["mean"] == pytest.approx(-0.01)
    assert entry(found)["pooled"]["mean"] is None and "undefined" in grid_table(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"seen": arm(), "unseen": arm()}, "teachers": {}}, "'seen' and 'unseen' have the same settings"),
        ({"arms": {"seen": arm(), "unseen": {"images": "unseen", "split": "half"}}}, "arm 'unseen' has the settings"),
        ({"teachers": {"seen": {"boxes": "nobody"}}}, "teachers: 'nobody' is not in the grid"),
        ({"contrasts": [{"name": "n", "subject": "nobody", "reference": "seen"}]}, "n: 'nobody' is not in the grid"),
        ({"contrasts": [IMAGES, IMAGES]}, "two contrasts are called 'images: unseen against seen'"),
        ({"contrasts": [{"axis": "weather", "subject": "a", "reference": "b"}]}, "no arm has a setting 'weather'"),
        ({"scores": {"boxes": {"stranger": [0.1] * 3}}}, "scores: 'stranger' is not in the grid"),
        ({"scores": {"boxes": {"seen": [0.1] * 2}}}, "'seen' has 2 scores for 3 seeds"),
    ],
)
def test_mistakes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def large(seeds=4, name="{}"):
    """Arms over every axis, with a control, an oracle and a setting that nobody knows."""
    arms = {"teacher": None}
    for split in ("half", "exclusive"):
        for images in ("all", "seen", "unseen_cut", "unseen"):
            for tasks in (["boxes"], ["depth"], ["boxes", "depth"]):
                changes = {"split": split, "images": images, "tasks": tasks}
                arms[name.format(f"{split}-{images}-{len(tasks)}-{tasks[0]}")] = arm(**changes)
    arms[name.format("shuffled")] = arm(control="shuffled", images="unseen")
    arms[name.format("truth")] = arm(annotation="full", labels=[])
    arms[name.format("mild")] = arm(annotation="mild", where="missing", labels=["soft", "mimic", "defeat", "adaptor"])
    rng = np.random.default_rng(0)
    able = {task: [name for name, found in arms.items() if not found or task in found["tasks"]] for task in METRICS}
    scores = {task: {name: list(rng.uniform(0.1, 0.9, seeds)) for name in names} for task, names in able.items()}
    teachers = {n: dict.fromkeys(found["tasks"], "teacher") for n, found in arms.items() if found}
    contrasts = [
        IMAGES,
        {"axis": "control", "subject": "shuffled", "reference": ""},
        {"axis": "split", "subject": "quarter", "reference": "half"},
        {"name": name.format("named"), "subject": name.format("truth"), "reference": "teacher"},
        {
            "name": "two",
            "subject": name.format("half-seen-2-boxes"),
            "reference": {"boxes": "teacher", "depth": "teacher"},
        },
    ]
    found = grid_results("grid", range(seeds), METRICS, scores, arms, contrasts, teachers, seconds={"students": 12.5})
    return json.loads(json.dumps(found, allow_nan=False))


def test_every_arm_stands_once_in_the_layout():
    found = large()
    layout = found["layout"]
    assert list(layout["columns"]) == ["seen", "unseen", "unseen_cut", "all"]
    placed = [
        (name, column) for group in layout["groups"] for row in group["rows"] for column, name in row["arms"].items()
    ]
    assert sorted(name for name, _ in placed) == sorted(name for name, settings in found["arms"].items() if settings)
    assert all(found["arms"][name]["images"] == column for name, column in placed)
    assert layout["groups"][0]["teachers"] == {"boxes": ["teacher"], "depth": ["teacher"]}
    assert [row["control"] for row in layout["groups"][0]["rows"]].index("shuffled") == len(
        layout["groups"][0]["rows"]
    ) - 1


def test_several_tasks_are_counted_only_where_that_is_clear():
    pair = {"a": arm(), "b": arm(tasks=["boxes", "depth"])}
    assert [words["tasks"] for words in settings_of.described(pair).values()] == ["alone", "2 tasks"]
    other = pair | {"c": arm(tasks=["boxes", "class"])}
    assert [words["tasks"] for words in settings_of.described(other).values()] == [
        "alone",
        "boxes + depth",
        "boxes + class",
    ]


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("width", [90, 110])
def test_table_fits_and_holds_every_arm(seeds, width):
    found = large(seeds)
    text = grid_table(found, width)
    assert max(map(len, text.splitlines())) <= width
    for name in found["arms"]:
        assert name in text
    for task, about in found["tasks"].items():
        assert task in text
        for summary in about["columns"].values():
            assert f"{summary['mean']:.4f}" in text and f"{summary['mean']:.3f}" in text
    for contrast in found["contrasts"]:
        assert contrast["name"] in text
        for pair in contrast["pairs"]:
            assert f"{pair['mean']:+.4f}" in text
    assert "no such pair of arms" in text and f"{found['delta_m'][0]['mean']:+.1f}" in text


def page(tmp_path, found, pictures=None):
    path = tmp_path / "report.html"
    settings = {"config": {"a": "<b>"}}
    write_page(str(path), title="Title <of> a grid", results=found, pictures=pictures or {}, settings=settings)
    text = path.read_text(encoding="utf-8")
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return text, parser, " ".join(parser.text)


@pytest.mark.parametrize("seeds", [1, 4])
def test_page_is_well_formed_escaped_and_holds_every_arm(tmp_path, seeds):
    found = large(seeds, name="<{}> & co")
    pictures = {"boxes": {"columns": ["image", "student"], "rows": [[np.zeros((16, 16, 3), np.uint8)] * 2]}}
    text, parser, words = page(tmp_path, found, pictures)
    assert not re.search(r"https?://|url\(|@import|<script|& co|<half", text)
    assert "nan" not in words.lower().split() and ("±" in words) == (seeds > 1)
    for name in found["arms"]:
        assert name in words
    for about in found["tasks"].values():
        for summary in about["columns"].values():
            assert f"{summary['mean']:.4f}" in words
    for contrast in found["contrasts"]:
        for pair in contrast["pairs"]:
            assert f"{pair['mean']:+.4f}" in words
    assert sum(tag == "img" for tag, _ in parser.found) == 1 and "12.5" in words


def test_cells_are_colored_by_the_gain_over_the_teacher(tmp_path):
    text, _, words = page(tmp_path, small())
    color = lambda hint: re.search(rf"<title>{hint}[^<]*</title><rect[^>]*fill:([^\"]*)\"", text)[1]  # noqa: E731
    # 0.05 over the teacher is the largest gain, 0.02 two fifths of it; a full color is mixed in by 60 %
    assert color("unseen:") == "color-mix(in srgb, var(--good) 60%, var(--panel))"
    assert color("seen:") == "color-mix(in srgb, var(--good) 24%, var(--panel))"
    assert "above 0 in 1 of 2 pairs, mean +0.0100" in words
    assert "stroke-dasharray" not in text and "stroke-dasharray" in page(tmp_path, large())[0]


def test_page_of_a_grid_without_contrasts_or_teachers(tmp_path):
    _, _, words = page(tmp_path, small(contrasts=[], teachers={}))
    assert "What one setting changes" not in words and "Several tasks" not in words
