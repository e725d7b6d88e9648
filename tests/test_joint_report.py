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

TOP1 = Metric("top1", "%", True)
WORDS = {"expert": "trained alone", "plain": "the same steps without distillation", "shuffled": "answers for other clips"}
PAIRS = (("student", "expert"), ("teacher", "expert"), ("student", "plain"), ("shuffled", "plain"))
EXPECTED = (("student", "expert"), ("plain", "shuffled"))
APART = {"camera": {"expert": [1.0]}, "sprites": {"student": [1.0]}}
SETS = {"camera": ["pan left", "pan right", "zoom <in>"], "sprites": ["jump & run", "a class with a very long name indeed"]}


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
