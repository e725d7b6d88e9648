"""The page of a comparison is one well-formed, self-contained file that shows every figure and every section."""

import html.parser
import re

import numpy as np
import pytest

from must.report import charts
from must.report import page as pages
from must.report.table import table
from tests.support import comparisons

KINDS = {
    "students": comparisons.students,
    "budgets": comparisons.budgets,
    "grid": comparisons.grid,
    "sets": comparisons.sets,
}
VOID = {"meta", "img", "br", "use", "path"}


class Parser(html.parser.HTMLParser):
    """Checks that every element is closed in order; collects the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert tag in VOID or (self.open and self.open.pop() == tag), f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text.append(data)


def sections():
    rng = np.random.default_rng(1)
    pictures = [[rng.integers(0, 255, (16, 16, 3), np.uint8) for _ in range(3)] for _ in range(2)]
    series = {"step": [10, 20, 30], "value": [3.0, 2.0, float("nan")]}
    curves = {"teachers/depth": {"loss": series, "validation/depth/abs_rel": series}, "student": {"loss": series}}
    curves["joint/jedi"] = {"validation/camera-teacher/top1": series, "validation/camera/top1": series}
    classes = {"camera": ["pan", "tilt & <roll>"], "motion": ["fall", "spin", "rest"]}
    rates = {a: {b: rng.dirichlet(np.ones(len(classes[b])), len(classes[a])) for b in classes} for a in classes}
    clip = {"video": rng.integers(0, 255, (3, 8, 12, 3), np.uint8), "truth": "pan", "classes": classes["camera"]}
    clip["predictions"] = {"student": np.array([0.7, 0.3]), "teacher": np.array([np.nan, 1])}
    arrays = {"depth|weights": np.exp(rng.normal(size=60)), "depth|covariates": rng.random((60, 2))}
    arrays["depth|true_weights"] = arrays["depth|weights"][::-1]
    accuracy = {"depth|accuracy": rng.random(60), "depth|correct": np.array([1.0, 0.0, np.nan] * 20)}
    return [
        pages.curves_section(curves, levels={"camera": (2.5, "the expert")}, selected={"joint/jedi": 20}),
        pages.pictures_section({"depth": {"columns": ["input", "truth", "student"], "rows": pictures}}),
        pages.label_states_section({"classes <&>": {"cup & <saucer>": (120, 30, 4500), "none": (0, 0, 0)}}),
        pages.confusion_section(rates, classes),
        pages.clips_section({"camera": [clip, {**clip, "truth": "tilt & <roll>"}, {**clip, "truth": None}]}),
        pages.weights_section(
            {"weighted": arrays, "slam": {**accuracy, "depth|candidates": np.ones(60, int)}}, "seed 0"
        ),
    ]


def write(tmp_path, results, parts=()):
    path = tmp_path / "report.html"
    settings = {"command": "python -m must.main", "config": {"key": ["<script>", 1.5]}}
    pages.write_page(path, title="Title <of> a run", results=results, sections=parts, settings=settings)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return text, " ".join(parser.text)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_well_formed_and_shows_every_figure_of_the_table(tmp_path, kind, seeds):
    results = KINDS[kind](seeds)
    text, words = write(tmp_path, results)
    assert "<script" not in text and "http" not in re.sub(r"http://www\.w3\.org|https?://matplotlib", "", text)
    assert "&lt;of&gt;" in text and "&lt;script&gt;" in text
    plain = re.sub(r"\s+", " ", words)
    numbers = re.findall(r"[+-]?\d+\.\d+", table(results))
    assert numbers and all(number in plain for number in numbers)


def test_sections_are_drawn_and_empty_ones_left_out(tmp_path):
    text, words = write(tmp_path, comparisons.students(), sections())
    for section in sections():
        assert section.html and section.title in words
    assert "Weights from the true labels of these examples: mean" in words
    assert "cup &amp; &lt;saucer&gt;" in text and "<saucer>" not in text and "<roll>" not in text
    assert words.count("✓") == 1 and words.count("✗") == 1  # a network with undefined probabilities is left out
    assert "no truth" in text and "The horizontal line is the expert" in words and "A ring marks" in words
    empty = [pages.curves_section({}), pages.pictures_section({}), pages.label_states_section({})]
    empty += [pages.confusion_section({}, {}), pages.clips_section({}), pages.weights_section({})]
    text, _ = write(tmp_path, comparisons.students(), empty)
    assert not any(f"<h2>{section.title}</h2>" in text for section in empty)


def test_cells_are_shaded_by_the_gain_over_the_groups_teacher(tmp_path):
    results = comparisons.grid()
    for name, column in results["columns"].items():
        value = {"teacher-half": 0.5, "half-seen-soft": 0.6, "half-unseen-soft": 0.4}.get(name, 0.5)
        column["scores"]["test"] = {task: [value] * 3 for task in results["tasks"]}
    text, _ = write(tmp_path, results)
    shades = re.findall(r"var\(--(good|bad)\) (\d+)%[^>]*>(?:<b>)?([\d.]+)", text)
    assert ("good", "55", "0.6000") in shades and ("bad", "55", "0.4000") in shades
    assert all(strength == "0" for _, strength, value in shades if value == "0.5000")


def test_sentences_follow_the_numbers():
    results = comparisons.students()
    results["contrasts"] = [c for c in results["contrasts"] if c["name"] == "student vs teacher"]
    for contrast, mean in zip(results["contrasts"], (1.0, -1.0, 2.0, 5.25), strict=True):
        contrast.update(mean=mean, ci95=[mean - 0.5, mean + 0.5], holds=True)
    first, *findings, note = pages.summary(results)
    assert first == (
        "Student vs teacher: Δm +5.2% [+4.8, +5.8], as expected; better on 2 of 3 tasks; on 2 with an interval above 0."
    )
    assert findings[0].startswith("student vs teacher: ahead on") and note == "A note <here>."


def test_a_numeric_setting_becomes_curves(tmp_path):
    _, words = write(tmp_path, comparisons.budgets())
    assert "Scores by labels" in words and "weighted" in words and "1,024" in words


def test_charts_are_the_same_bytes_and_follow_the_page():
    drawn = [
        charts.lines([("a & b", [charts.Line("x", [1, 2], [3.0, 4.0], chosen=2)])], words="curves <one>")
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1] and "var(--s1, #0072b2)" in drawn[0] and "var(--ink" in drawn[0]
    assert drawn[0].startswith("<svg") and "a &amp; b" in drawn[0] and "curves &lt;one&gt;" in drawn[0]
    assert not re.search(r"\d{4}-\d\d-\d\d", drawn[0])


def test_dots_stand_in_the_order_of_their_values():
    dots = [charts.Dot(value, (value - 0.1, value + 0.1)) for value in (0.3, -0.2, 0.9)]
    drawn = charts.estimates([("gain", [*dots, charts.Dot(None)])], ["a", "b", "c", "d"], zero=True, words="gains")
    places = [float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)" y="[\d.]+" style="fill: var\(--s\d', drawn)]
    assert len(places) == 3 and places[1] < places[0] < places[2]


def test_matrices_of_other_sizes_are_left_out():
    section = pages.confusion_section({"a": {"a": np.ones((2, 3))}}, {"a": ["x", "y"]})
    assert section.html == ""
