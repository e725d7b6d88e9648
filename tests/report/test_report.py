"""The page of a run: self-contained, well-formed, complete; charts and contact sheets that place things right."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from must.core.types import Metric
from must.evaluate.compare import results
from must.report import charts, clouds, reliability
from must.report.html import in_words, write_report
from must.report.pictures import contact_sheet, data_uri

METRICS = {"depth": Metric("abs_rel", "", False), "classes <&>": Metric("top1", "%", True)}
COLUMNS = ("teacher", "student", "scratch", "supervised")
VOID = {"meta", "img", "br"}


class Parser(html.parser.HTMLParser):
    """Checks that every element is closed in order; collects tags with their attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.found, self.text, self.extra = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text.append(data)


def compared(seeds, columns=COLUMNS, level=1.0):
    rng = np.random.default_rng(0)
    scores = {t: {c: list(level * rng.uniform(0.1, 0.9, seeds)) for c in columns} for t in METRICS}
    cost = {"networks": 2, "parameters": 1_250_000, "milliseconds": 3.21, "images_per_second": 311.5}
    costs = {"teacher": cost, "student": cost | {"networks": 1, "milliseconds": 1.59}}
    return results("must", range(seeds), METRICS, scores, costs=costs, seconds={"label": 12.5})


def material():
    rng = np.random.default_rng(1)
    pictures = [[rng.integers(0, 255, (16, 16, 3), np.uint8) for _ in range(3)] for _ in range(2)]
    series = {"step": [10, 20, 30], "value": [3.0, 2.0, float("nan")]}
    return {
        "curves": {"teachers/depth": {"loss": series, "validation/depth/abs_rel": series}, "student": {"loss": series}},
        "grids": {task: {"columns": ["input", "truth", "student"], "rows": pictures} for task in METRICS},
        "kept": {"depth": {"all": (7, 0, 0)}, "classes <&>": {"cup & <saucer>": (120, 30, 4500), "none": (0, 0, 0)}},
        "settings": {"command": "python -m must.main --config=x", "config": {"key": ["<script>", 1.5]}},
    }


def page(tmp_path, found, **parts):
    path = tmp_path / "report.html"
    write_report(str(path), title="Title <of> a run", results=found, **parts)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return text, parser


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_page_is_complete_well_formed_and_self_contained(tmp_path, seeds):
    found = compared(seeds)
    found["other_splits"] = {"shifted": compared(seeds)}
    text, parser = page(tmp_path, found, **material())
    assert not re.search(r"https?://|url\(|@import|<script", text)
    for _, attributes in parser.found:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    words = " ".join(parser.text)
    for word in (*METRICS, *COLUMNS, "Title <of> a run", "shifted", "abs_rel", "top1 (%)", "cup & <saucer>"):
        assert word in words
    for value in ("3.21", "1.59", "1.25", "312", "12.5", "120 of 4,650", "python -m must.main --config=x"):
        assert value in words
    assert sum(tag == "img" for tag, _ in parser.found) == len(METRICS)
    assert ("±" in words) == (seeds > 1)
    assert "nan" not in words.lower().split()


def test_every_score_stands_on_the_page(tmp_path):
    found = compared(3)
    text, parser = page(tmp_path, found)
    words = " ".join(parser.text)
    for entry in found["tasks"].values():
        for column in COLUMNS:
            assert f"{entry['columns'][column]['mean']:.4f}" in words
            for value in entry["scores"][column]:
                assert f"{value:.4f}" in words
        for other in COLUMNS:
            if other != "student":
                assert f"{entry['gains'][f'student_vs_{other}']['mean']:+.4f}" in words
    for entry in found["delta_m"].values():
        assert f"{entry['mean']:+.1f}" in words


def test_gains_over_a_blind_guess_are_a_table(tmp_path):
    gain = {"mean": 0.1234, "ci95": [0.0871, 0.1509]}
    found = compared(1) | {"against_guess": {"depth": {"guess": 0.4321, "gains": {"student": gain}}}}
    _, parser = page(tmp_path, found)
    words = " ".join(parser.text)
    for value in ("0.432", "+0.123", "0.087", "0.151", "Against a blind guess"):
        assert value in words
    assert "Against a blind guess" not in page(tmp_path, compared(1))[1].text


def test_page_of_bare_results(tmp_path):
    for found in (compared(1, ("teacher",)), compared(1, level=0.0), compared(4, ("student", "scratch"))):
        found = found | {"costs": {}, "seconds": {}}
        _, parser = page(tmp_path, found)
        assert "Pictures" not in parser.text and "Learning curves" not in parser.text


def test_page_replaces_the_one_before(tmp_path):
    page(tmp_path, compared(5), **material())
    text, _ = page(tmp_path, compared(1))
    assert "one seed" in text and "data:image" not in text


def test_words_follow_the_numbers():
    scores = {"depth": {"teacher": [0.2] * 3, "student": [0.1, 0.1, 0.11]}, "classes <&>": {}}
    scores["classes <&>"] = {"teacher": [50.0] * 3, "student": [49.0, 50.0, 49.5]}
    said = in_words(results("must", range(3), METRICS, scores))
    # Δm per seed is (50 - 2) / 2, (50 - 0) / 2, (45 - 1) / 2 = 24, 25, 22; half the interval is 4.303 * 1.528 / sqrt(3)
    assert said == [
        "Student against teacher: Δm +23.7 % (95 % interval +19.9 to +27.5); better on 1 of 2 tasks, "
        "on 1 with an interval above 0."
    ]
    zero = in_words(results("must", [0], METRICS, {"depth": {"teacher": [0.0], "student": [0.1]}}))
    assert "undefined" in zero[0] and "One seed" in zero[-1]


def test_dots_stand_in_the_order_of_their_values_and_wide_intervals_are_cut():
    values = (-3.0, 0.5, 12.0)
    row = [charts.Dot(0, value, (value - 1, value + 1), f"{value}") for value in values]
    row += [charts.Dot(0, 2.0, (-500, 500), "wide"), charts.Dot(0, None, None, "none")]
    svg = charts.dots([("task", row)], axis="%")
    places = [float(x) for x in re.findall(r'<circle cx="([-\d.]+)"', svg)]
    assert len(places) == 4 and places[0] < places[1] < places[3] < places[2]
    assert places[2] - places[0] > 150  # 500 does not squeeze the rest together
    spans = [tuple(map(float, pair)) for pair in re.findall(r'd="M([-\d.]+) [-\d.]+H([-\d.]+)"', svg)]
    assert all(0 <= low <= high <= 860 for low, high in spans)


def test_lines_leave_out_what_is_not_a_number_and_thin_out_what_is_long():
    curve = charts.Line(1, range(2001), [float("nan"), None, *np.linspace(3, 1, 1999)])
    svg = charts.lines([curve], title="loss", axis="nats")
    points = re.search(r'stroke-width="1.8" d="M([^"]*)"', svg).group(1).split("L")
    assert 200 <= len(points) <= 301 and "nan" not in svg
    x, y = np.array([[float(v) for v in point.split()] for point in points]).T
    assert np.all(np.diff(x) > 0) and np.all(np.diff(y) >= 0)  # y grows downwards: the loss falls
    assert charts.lines([charts.Line(0, [1], [float("nan")])], title="", axis="") == ""
    assert "<svg" in charts.lines([charts.Line(0, [5], [2.0])], title="one point", axis="")


def test_shares_add_up_to_the_whole_bar():
    svg = charts.shares([("a", (1, 2, 3)), ("b", (0, 0, 0))], ("x", "y", "z"), title="t")
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="14"', svg)]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2) and widths[2] == pytest.approx(3 * widths[0], abs=0.2)
    assert widths[3:] == [0, 0, 0]
    starts = [float(x) for x in re.findall(r'<rect x="([\d.]+)"', svg)]
    assert starts[1] - starts[0] == pytest.approx(widths[0], abs=0.2)
    assert starts[2] - starts[1] == pytest.approx(widths[1], abs=0.2)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (0.131, 0.1422), (1e4, 9.3e6)])
def test_ticks_are_round_few_and_inside(low, high):
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert all(len(charts.tick_text(t)) <= 6 for t in found)


def test_contact_sheet_places_every_picture():
    colors = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]]
    sizes = [[(8, 8), (24, 16)], [(400, 640), (200, 200)]]
    rows = [
        [np.full((*size, 3), color, np.uint8) for color, size in zip(*row, strict=True)]
        for row in zip(colors, sizes, strict=True)
    ]
    sheet = contact_sheet(rows, ["left", "right"], cell=(160, 320))
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 2 * 320 + 3 * 6
    assert sheet.shape[0] == 24 + (480 + 6) + (320 + 6) + 6
    for y, row in ((24 + 100, colors[0]), (24 + 486 + 100, colors[1])):
        assert [tuple(sheet[y, x]) for x in (6 + 160, 12 + 320 + 160)] == row
    assert sheet[:24].max() > 200  # the captions
    with pytest.raises(ValueError, match="1 pictures under 2"):
        contact_sheet([[rows[0][0]]], ["left", "right"])


def test_small_pictures_are_enlarged_pixel_by_pixel():
    picture = np.random.default_rng(2).integers(0, 255, (20, 40, 3), np.uint8)
    sheet = contact_sheet([[picture]], ["one"], cell=(160, 320))
    np.testing.assert_array_equal(sheet[24:-12, 6:-6], picture.repeat(4, 0).repeat(4, 1))


def test_data_uri_decodes_to_the_picture():
    picture = np.random.default_rng(3).integers(0, 255, (12, 9, 3), np.uint8)
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 64, 3))
    for given, quality, kind, tolerance in ((picture, None, "png", 0), (smooth, 88, "jpeg", 6)):
        head, _, body = data_uri(given, quality=quality).partition(",")
        assert head == f"data:image/{kind};base64"
        decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB"), int)
        assert np.abs(decoded - given).max() <= tolerance


def test_weights_as_a_histogram_a_map_and_a_reliability_diagram():
    rng = np.random.default_rng(0)
    drawing = clouds.histogram(np.array([1.0] * 90 + [0.25] * 10), title="w")
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"', drawing)]
    assert len(heights) == 2 and min(heights) / max(heights) == pytest.approx(1 / 9, abs=0.01)
    assert "100 examples, 10 % below 1" in drawing
    points = np.concatenate([np.full((50, 2), 0.1), np.full((50, 2), 0.9)])
    weights = np.repeat([0.5, 2.0], 50)
    drawing = clouds.cloud(points, weights, rng.random((2000, 2)), title="map", axes=("a", "b"))
    assert "50 examples, weight 0.50" in drawing and "50 examples, weight 2.00" in drawing
    assert drawing.count("<circle") == 500
    claimed = np.repeat([0.2, 0.8], 500)
    right = rng.random(1000) < claimed
    gap = lambda text: float(re.search(r"mean gap ([\d.]+)", text)[1])  # noqa: E731
    assert gap(reliability.reliability(claimed, right, title="r")) < 5
    assert gap(reliability.reliability(1 - claimed, right, title="r")) > 50


def test_trends_stand_in_the_order_of_their_means():
    found = [
        charts.Trend(0, [(10, 1.0, (0.5, 1.5)), (100, 2.0, None)]),
        charts.Trend(1, [(10, 3.0, None), (100, 4.0, None)]),
    ]
    drawing = charts.trends(found, title="t", axis="a", x_axis="labels")
    paths = re.findall(r'stroke-width="1.6" d="M[\d.]+ ([\d.]+)L[\d.]+ ([\d.]+)"', drawing)
    (low1, low2), (high1, high2) = [[float(v) for v in pair] for pair in paths]
    assert low1 > low2 > high1 > high2  # y grows downwards


def test_a_long_caption_is_broken_and_stays_in_its_column():
    picture = np.zeros((20, 20, 3), np.uint8)
    short = contact_sheet([[picture, picture]], ["a", "b"])
    long = contact_sheet([[picture, picture]], ["a", "multi-exclusive-all-own-soft-missing"])
    assert long.shape[1] == short.shape[1] and long.shape[0] > short.shape[0]
    height = long.shape[0] - short.shape[0]
    edge = long[: 24 + height, [0, 1, -2, -1]]
    assert (edge == edge[0, 0]).all()  # nothing runs over the sheet's sides
    np.testing.assert_array_equal(long[24 + height :], short[24:])  # the pictures only moved down
