"""JEDI's numbers and page: differences worked by hand, intervals, confusion, curves, clips that move."""

import base64
import io
import json
import re

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from must.core.types import Metric
from must.evaluate import joint
from must.report import bars, charts, matrices
from must.report.joint import write_joint_report
from must.report.pictures import animation_uri, strip
from tests.report.test_report import Parser

TOP1 = Metric("top1", "%", True)
WORDS = {
    "expert": "trained alone",
    "plain": "the same steps from the same experts with the same batches, but without distillation between sets",
    "shuffled": "answers for other clips",
}
PAIRS = (("student", "expert"), ("teacher", "expert"), ("student", "plain"), ("shuffled", "plain"))
EXPECTED = (("student", "expert"), ("plain", "shuffled"))
APART = {"camera": {"expert": [1.0]}, "sprites": {"student": [1.0]}}
SETS = {
    "camera": ["pan left", "pan right", "zoom <in>"],
    "sprites": ["jump & run", "a class with a very long name indeed"],
}


def found(seeds=4, sets=SETS, **changes):
    rng = np.random.default_rng(0)
    level = {"expert": 60, "student": 62, "teacher": 63, "plain": 60, "plain-teacher": 61, "shuffled": 48}
    scores = {s: {c: list(v + rng.normal(0, 1, seeds)) for c, v in level.items()} for s in sets}
    scores = changes.pop("scores", scores)
    given = {"pairs": PAIRS, "words": WORDS, "controls": ["shuffled"], "expected": EXPECTED, "classes": sets} | changes
    made = joint.results(range(seeds), dict.fromkeys(scores, TOP1), scores, **given)
    return json.loads(json.dumps(made, allow_nan=False))


def test_differences_are_means_over_sets_paired_by_seed():
    scores = {
        "camera": {"expert": [50.0, 60.0, 55.0], "student": [52.0, 61.0, 58.0], "shuffled": [40.0, 41.0, 42.0]},
        "sprites": {"expert": [80.0, 70.0, 75.0], "student": [80.0, 73.0, 76.0]},
    }
    metrics = dict.fromkeys(scores, TOP1)
    pairs = [("student", "expert"), ("shuffled", "student"), ("expert", "student")]
    given = {"pairs": pairs, "words": {}, "controls": ["shuffled"]}
    made = joint.results([3, 5, 8], metrics, scores, expected=[("student", "shuffled"), ("expert", "student")], **given)
    first, second, third = made["over_sets"]["differences"]
    assert first["per_seed"] == pytest.approx([1.0, 2.0, 2.0])  # (2 + 0) / 2, (1 + 3) / 2, (3 + 1) / 2
    half = scipy.stats.t.ppf(0.975, 2) * np.std([1, 2, 2], ddof=1) / np.sqrt(3)
    assert first["ci95"] == pytest.approx([5 / 3 - half, 5 / 3 + half])
    assert first["p"] == pytest.approx(scipy.stats.ttest_1samp([1, 2, 2], 0).pvalue)
    assert first["by_set"]["sprites"]["per_seed"] == [0.0, 3.0, 1.0] and first["sets"] == ["camera", "sprites"]
    assert second["sets"] == ["camera"] and second["per_seed"] == [-12.0, -20.0, -16.0]
    assert [d["expected"] for d in (first, second, third)] == ["below", "below", "above"]
    assert [d["as_expected"] for d in (first, second, third)] == [False, True, False]
    assert made["over_sets"]["scores"] == {"expert": [65.0, 65.0, 65.0], "student": [66.0, 67.0, 67.0]}
    assert made["arms"] == {"jedi": ["student"], "shuffled": ["shuffled"]} and made["seeds"] == [3, 5, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": [("student", "nobody")]}, "nobody"),
        ({"controls": ["frozen"]}, "frozen"),
        ({"expected": [("student", "shuffled")]}, "not compared"),
        ({"seeds": 1, "scores": APART, "pairs": PAIRS[:1], "controls": [], "expected": []}, "no set has both"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        found(**changes)


def test_an_undefined_score_stays_undefined():
    scores = {"camera": {"expert": [1.0, np.nan], "student": [2.0, 3.0]}}
    made = joint.results([0, 1], {"camera": TOP1}, scores, pairs=[("student", "expert")], words={}, controls=[])
    assert made["over_sets"]["scores"]["expert"] == [1.0, None]
    assert made["over_sets"]["differences"][0]["mean"] is None
    assert "undefined" in joint.table(json.loads(json.dumps(made, allow_nan=False)))


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("width", [80, 100])
def test_table_fits_and_holds_every_number(seeds, width):
    made = found(seeds)
    text = joint.table(made, width)
    assert max(map(len, text.splitlines())) <= width
    for entry in (*made["tasks"].values(), made["over_sets"]):
        assert all(f"{summary['mean']:.2f}" in text for summary in entry["columns"].values())
    for difference in made["over_sets"]["differences"]:
        assert difference["name"] in text and f"{difference['mean']:+.2f}" in text
    assert ("±" in text.partition("\n")[2]) == (seeds > 1) and "control, must lose" in text
    assert joint.MEAN in text and joint.MEAN not in joint.table(found(seeds, {"camera": ["a"]}), width)


def test_confusion_counts_answers_by_class_and_survives_empty_ones():
    rng = np.random.default_rng(1)
    probs, truth = rng.random((200, 3)), rng.integers(0, 4, 200)
    truth[truth == 2] = -1  # no clip of class 2, and some to leave out
    rates = joint.confusion(probs, truth, list("wxyz"), list("abc"))
    assert rates.shape == (4, 3) and not rates[2].any()
    for j in (0, 1, 3):
        for i in range(3):
            assert rates[j, i] == pytest.approx(np.mean(probs[truth == j].argmax(1) == i))
    assert joint.confusion(np.eye(3), np.arange(3), list("abc"), list("abc")) == pytest.approx(np.eye(3))
    broken = np.concatenate([probs, np.full((5, 3), np.nan)])
    np.testing.assert_array_equal(joint.confusion(broken, np.append(truth, [0] * 5), list("wxyz"), list("abc")), rates)
    everyone = joint.confusion(probs, None, list("wxyz"), list("abc"))
    assert everyone.shape == (1, 3) and everyone.sum() == pytest.approx(1)
    assert not joint.confusion(np.zeros((0, 3)), np.zeros(0, int), list("wxyz"), list("abc")).any()
    for bad in ((probs, truth[:-1]), (probs[:, :2], truth), (probs, truth + 9)):
        with pytest.raises(ValueError, match="classes"):
            joint.confusion(*bad, list("wxyz"), list("abc"))


def material(sets=SETS):
    rng = np.random.default_rng(2)
    series = {"step": [0, 10, 20], "value": [50.0, 55.0, 61.0]}
    nothing = {"step": [0, 10], "value": [float("nan"), None]}
    probs = lambda s: rng.dirichlet(np.ones(len(sets[s])))  # noqa: E731
    clip = lambda s, t: {  # noqa: E731
        "video": rng.integers(0, 255, (3, 8, 12, 3), np.uint8),
        "truth": t,
        "answers": {"expert": probs(s), "student": probs(s), "teacher": np.full(len(sets[s]), np.nan)},
    }
    return {
        "curves": {
            "jedi": {f"validation/{s}{who}/top1": series for s in sets for who in ("", "-teacher")},
            "plain": {
                "validation/camera/top1": nothing,
                "validation/camera-teacher/top1": {"step": [1, 2], "value": [1.0]},
            },
        },
        "confusions": {j: {i: rng.random((len(sets[j]), len(sets[i]))) for i in sets} for j in sets},
        "clips": {s: [clip(s, names[-1]), clip(s, None)] for s, names in sets.items()},
        "settings": {"command": "python -m must.main", "config": {"a": "<b>"}},
        "selected": {"jedi": 20},
    }


def page(tmp_path, made, parts):
    path = tmp_path / "report.html"
    write_joint_report(str(path), title="Title <of> a page", results=made, **parts)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    parser = Parser()
    parser.feed(text := path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return text, parser, " ".join(parser.text)


@pytest.mark.parametrize("seeds", [1, 4])
def test_page_is_complete_well_formed_and_self_contained(tmp_path, seeds):
    costs = {"expert": {"networks": 2, "milliseconds": 3.21}}
    made = found(seeds, costs=costs, seconds={"joint": 12.5}) | {"notes": ["A note."]}
    text, parser, words = page(tmp_path, made, material())
    assert not re.search(r"https?://|url\(|@import|<script|& run|<in>|<b>[^<]*<b>", text)
    sources = [attributes["src"] for tag, attributes in parser.found if tag == "img"]
    assert [source[:15] for source in sources] == ["data:image/webp", "data:image/jpeg"] * 4
    assert ("±" in words) == (seeds > 1) and "nan" not in words.lower().split()
    for entry in (*made["tasks"].values(), made["over_sets"]):
        for column, summary in entry["columns"].items():
            assert column in words and f"{summary['mean']:.2f}" in words
            assert seeds == 1 or all(f"{value:.2f}" in words for value in entry["scores"][column])
    for difference in made["over_sets"]["differences"]:
        assert difference["name"] in words and f"{difference['mean']:+.1f}" in words
    for name in (
        *SETS,
        *WORDS.values(),
        *SETS["camera"],
        "control, must lose",
        "A note.",
        "3.21",
        "12.5",
        "time per example (ms)",
    ):
        assert name in words
    assert "undefined" not in words and "as expected" in words


def test_what_is_missing_is_left_out(tmp_path):
    bare = dict.fromkeys(("curves", "confusions", "clips", "settings"), {})
    made = found(2, {"camera": ["a", "b"]}, pairs=[], expected=[], controls=[], words={})
    _, _, words = page(tmp_path, made, bare)
    for head in (
        "Differences",
        "Learning curves",
        "What every head",
        "Clips",
        "mean over sets",
        "What answering costs",
    ):
        assert head not in words
    parts = material() | {"selected": None, "experts": {"camera": 50.0}}
    parts["confusions"] = {
        "camera": {"sprites": np.full((1, 2), 0.5), "nowhere": np.ones((3, 1))},
        "sprites": {"sprites": np.ones((9, 9))},
    }
    parts["clips"]["camera"][0]["answers"] = {"expert": np.ones(7)}
    text, _, words = page(tmp_path, found(2), parts)
    assert "all clips" in words and "nowhere" not in text and "A ring marks" not in words
    assert "the expert on the validation split." in words and words.count("sprites head") == 1


def test_an_expectation_that_failed_is_said(tmp_path):
    made = found(expected=[("expert", "teacher")])
    assert "NO" in joint.table(made)
    assert "expected below 0" in page(tmp_path, made, material())[2]


def test_bars_have_the_heights_of_their_values_and_wide_intervals_are_cut():
    made = [bars.Bar(0, False, 20.0, None, [20.0], "a"), bars.Bar(1, True, 60.0, (-400.0, 520.0), [55.0, 65.0], "b")]
    svg = bars.bars([("set", [*made, bars.Bar(2, False, None, None, [None], "c")])], axis="top1", most=100)
    found = re.findall(r'<rect x="[^"]*" y="([^"]*)" width="[^"]*" height="([^"]*)"', svg)
    (y_low, low), (y_high, high) = [[float(v) for v in pair] for pair in found]
    assert high == pytest.approx(3 * low, rel=0.01)
    floor = float(re.findall(r'class="axis" d="M[\d.]+ ([\d.]+)H', svg)[-1])
    assert y_low + low == pytest.approx(floor, abs=0.2) and y_high + high == pytest.approx(floor, abs=0.2)
    stem = re.search(r'stroke-width="1.3" d="M[\d.]+ ([\d.]+)V([\d.]+)"', svg)  # no caps: both ends lie outside
    assert float(stem[1]) > float(stem[2]) >= 0 and svg.count("<circle") == 2
    svg = bars.bars([("set", [bars.Bar(0, False, 99.0, (88.0, 110.0), [], "a")])], axis="top1", most=100)
    hundred = float(re.search(r'y="([\d.]+)" text-anchor="end">100<', svg)[1]) - 4
    assert float(re.search(r'stroke-width="1.3" d="M[\d.]+ [\d.]+V([\d.]+)', svg)[1]) == pytest.approx(hundred, abs=0.2)


def test_a_curve_is_dashed_ringed_at_its_step_and_the_level_is_in_sight():
    curves = [charts.Line(1, [0, 10, 20], [1.0, 2.0, 3.0], True, 10), charts.Line(2, [0, 20], [1.0, 3.0])]
    svg = charts.lines(curves, title="t", axis="a", level=9.0)
    points = [point.split() for point in re.search(r'dasharray[^>]*d="M([^"]*)"', svg)[1].split("L")]
    ring = re.search(r'<circle [^>]*cx="([^"]*)" cy="([^"]*)" r="6"', svg)
    assert list(ring.groups()) == points[1] and svg.count("dasharray") == 2  # the curve and its ring
    level = float(re.search(r'stroke="var\(--s0\)"[^>]*d="M[\d.]+ ([\d.]+)H', svg)[1])
    assert 40 <= level < float(points[2][1])


def test_cells_are_as_dark_as_their_rates():
    rate = np.array([[0.25, 0.75], [0.0, 0.0], [0.0, 1.0]])
    svg = matrices.heat_maps({"s": {"h": rate}}, {"s": ["a", "b", "c"], "h": ["<x>", "y"]})
    cells = re.findall(r'fill-opacity="([\d.]+)"><title>([^<]*)</title>', svg)
    assert cells == [
        ("0.25", "s, a → h, &lt;x&gt;: 25 %"),
        ("0.75", "s, a → h, y: 75 %"),
        ("1.00", "s, c → h, y: 100 %"),
    ]
    assert svg.count("stroke-dasharray") == 1 and "--ink" not in svg
    assert "--ink" in matrices.heat_maps({"s": {"s": np.eye(3)}}, {"s": ["a", "b", "c"]})
    assert matrices.heat_maps({}, {}) == ""


def test_an_answer_says_whether_it_is_right():
    said = lambda truth: bars.answer("student", [("a", 0.7), ("b & c", 0.3)], truth=truth)  # noqa: E731
    assert "✓" in said("a") and "✗" in said("b & c") and "✓" not in said(None) and "✗" not in said(None)
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="5" fill="var\(--(?:good|s0)', said("a"))]
    assert widths == [140.0, 60.0] and "b &amp; c" in said("a")


def test_a_video_moves_for_ever_and_its_strip_shows_its_ends():
    levels = np.linspace(0, 255, 40).astype(np.uint8)
    video = np.broadcast_to(levels[:, None, None, None], (40, 64, 32, 3))
    moving = Image.open(io.BytesIO(base64.b64decode(animation_uri(video, 8, most=10, largest=32).partition(",")[2])))
    assert (moving.n_frames, moving.size, moving.info["loop"]) == (10, (16, 32), 0)
    shown = []
    for i in range(10):
        moving.seek(i)
        moving.load()
        shown.append(np.asarray(moving.convert("RGB"), float).mean())
        assert moving.info["duration"] == 500  # 40 frames at 8 per second last 5 seconds
    assert np.abs(np.array(shown) - levels[np.linspace(0, 39, 10).round().astype(int)]).max() < 4
    sheet = strip(video, most=4, largest=32)
    assert sheet.shape == (32, 4 * 16 + 3, 3) and sheet[0, 0, 0] == 0 and sheet[0, -1, 0] == 255
    assert strip(video[:1]).shape == (64, 32, 3)
    assert Image.open(io.BytesIO(base64.b64decode(animation_uri(video[:1], 4).partition(",")[2]))).size == (32, 64)
