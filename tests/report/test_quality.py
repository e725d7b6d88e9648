"""The quality of labels equals direct counting, and the page shows it."""

import json

import numpy as np
import pytest

from must.core.proportions import design_effect, wilson
from must.core.types import Policy
from must.evaluate.quality import Cells, Counted, quality, reliability, trade_off
from must.pseudo_label.policy import fit
from must.report.quality import write_quality
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.label_states import states, tempered_label
from tests.support.toy_teacher import TASKS, pairs

COUNT = 20  # more than a block, and no multiple of it
POLICY = Policy(0.8, 0.4, 1.5, (0.0, 0.1, 0.6, 0.95))


@pytest.fixture(scope="module")
def qualities():
    """{task: (pairs, quality)} of a toy teacher."""
    return {name: (rows, quality(TASKS[name], rows, POLICY)) for name, rows in pairs(COUNT, size=32).items()}


@pytest.mark.parametrize("name", TASKS)
def test_counts_equal_those_of_single_claims(qualities, name):
    triples, result = qualities[name]
    task = TASKS[name]
    parts = [task.judge(tempered_label(POLICY, label), truth) for label, truth, _ in triples]
    score, correct, ids = (np.concatenate(part) for part in zip(*parts, strict=True))
    state = states(POLICY, score, ids)
    items = sum(task.items(truth) for _, truth, _ in triples)
    for c, (key, entry) in enumerate(result["classes"].items()):
        assert key == (task.classes[c] if hasattr(task, "classes") else "all")
        mine = ids == c
        positive, negative = mine & state.positive, mine & state.negative
        assert (entry["items"], entry["claims"]) == (items[c], mine.sum())
        assert (entry["positive"], entry["negative"]) == (positive.sum(), negative.sum())
        assert entry["ignored"] == entry["claims"] - entry["positive"] - entry["negative"]
        assert entry["precision"] == (pytest.approx(correct[positive].mean()) if positive.any() else None)
        assert entry["recall"] == (pytest.approx((correct & positive).sum() / items[c]) if items[c] else None)
        assert entry["right_negative"] == (pytest.approx(correct[negative].mean()) if negative.any() else None)
    total = result["total"]
    assert total["positive"] == state.positive.sum() and total["items"] == items.sum()
    example = np.repeat(np.arange(COUNT), [len(part[0]) for part in parts])
    count = np.bincount(example[state.positive], minlength=COUNT)
    right = np.bincount(example[state.positive & correct], minlength=COUNT)
    spread = design_effect(right, count)
    assert total["precision_ci95"] == pytest.approx(
        list(map(float, wilson(right.sum() / spread, count.sum() / spread)))
    )
    assert total["raw"]["brier"] != total["policy"]["brier"]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("name", TASKS)
def test_metrics_are_the_tasks_own_and_better_where_labels_are_positive(qualities, name):
    triples, result = qualities[name]
    task, metrics = TASKS[name], result["metrics"]
    if name in ("classification", "segmentation"):  # quick without compiling
        both = [{key: np.stack([pair[side][key] for pair in triples]) for key in triples[0][side]} for side in (0, 1)]
        direct = task.summarize({key: np.asarray(value) for key, value in task.measure(*both).items()})
        assert metrics["labels"] == pytest.approx(direct, rel=1e-4)
    headline = task.metrics[0]
    gain = metrics["positive"][headline.name] - metrics["labels"][headline.name]
    if name != "detection":  # fewer boxes have a lower recall
        assert gain > 0 if headline.higher_is_better else gain < 0


def test_the_worst_and_the_most_uncertain_examples_come_first():
    known = np.ones(3, bool)
    sure, torn = np.array([0.98, 0.01, 0.01], np.float32), np.array([0.45, 0.45, 0.1], np.float32)
    truth = {"probs": np.eye(3, dtype=np.float32)[0], "known": known}
    wrong = {"probs": sure[::-1].copy(), "known": known}
    found = [({"probs": sure, "known": known}, truth, f"right/{i}") for i in range(9)]
    found += [(wrong, truth, "wrong"), ({"probs": torn, "known": known}, truth, "torn")]
    result = quality(Classification(("a", "b", "c")), found, Policy(0.9, 0.2), worst=2)
    assert [key for key, _ in result["worst_examples"]] == ["wrong", "torn"]
    assert result["uncertain_examples"] == [["torn", pytest.approx(2 / 3)]]
    assert result["worst_classes"] == ["a"] and result["classes"]["b"]["recall"] is None  # no true items of b and c
    assert result["classes"]["c"]["precision"] == 0 and result["classes"]["b"]["precision"] is None


def _cells(score, correct):
    cells = Cells(1)
    for part in np.array_split(np.arange(len(score)), 7):
        cells.add(score[part], correct[part], np.zeros(len(part), int))
    return Counted(*(array[0] for array in cells.counted()))


def test_calibration_error_is_the_gap_and_vanishes_for_calibrated_scores():
    rng = np.random.default_rng(0)
    score = rng.random(30_000)
    calibrated = reliability(_cells(score, rng.random(30_000) < score))
    assert calibrated["ece"] < 0.015 and calibrated["brier"] == pytest.approx(1 / 6, abs=0.01)
    assert len(calibrated["bins"]) == 15 and np.ptp([b[4] for b in calibrated["bins"]]) < 100
    overconfident = reliability(_cells(score, rng.random(30_000) < score / 2))
    assert overconfident["ece"] == pytest.approx(0.25, abs=0.01)
    constant = reliability(_cells(np.full(1000, 0.9), np.arange(1000) < 500))
    assert constant["ece"] == pytest.approx(0.4) and constant["brier"] == pytest.approx(0.41)
    assert reliability(_cells(score[:0], score[:0] > 0)) == {"ece": None, "brier": None, "bins": []}


def test_the_trade_off_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    score = np.round(rng.random(3000), 2)
    correct = rng.random(3000) < score**2
    precision, recall, threshold = metrics.precision_recall_curve(correct, score)
    for at, p, r in trade_off(_cells(score, correct), correct.sum()):
        i = np.abs(threshold - at).argmin()
        assert abs(threshold[i] - at) < 1e-6
        assert (p, r) == (pytest.approx(precision[i], abs=1e-4), pytest.approx(recall[i], abs=1e-4))


def test_wilsons_interval_holds_and_groups_widen_it():
    rng = np.random.default_rng(2)
    held = {"alone": [], "grouped": []}
    for _ in range(400):
        share = rng.beta(9, 1, 30)  # of the claims of each example, 0.9 in the mean
        right = rng.binomial(50, share)
        spread = design_effect(right, np.full(30, 50))
        for key, effect in (("alone", 1.0), ("grouped", spread)):
            low, high = wilson(right.sum() / effect, 1500 / effect)
            held[key].append(low <= 0.9 <= high)
    assert np.mean(held["alone"]) < 0.8 < 0.9 < np.mean(held["grouped"])
    assert design_effect(rng.binomial(1, 0.5, 5000), np.ones(5000)) == pytest.approx(1.0, abs=0.01)


def _classifier(count, seed):
    """An overconfident classifier of three classes."""
    rng, known = np.random.default_rng(seed), np.ones(3, bool)
    for index in range(count):
        true = rng.integers(3)
        powered = np.exp(3 * (1.5 * np.eye(3)[true] + rng.standard_normal(3)))
        truth = {"probs": np.eye(3, dtype=np.float32)[true], "known": known}
        yield {"probs": (powered / powered.sum()).astype(np.float32), "known": known}, truth, f"toy/{seed}/{index}"


def test_a_fitted_policy_reaches_its_target_on_another_split_and_calibrates():
    task = Classification(("a", "b", "c"))
    policy, facts = fit(task, ((label, truth) for label, truth, _ in _classifier(900, 0)), target_precision=0.85)
    result = quality(task, _classifier(900, 1), policy)
    low, high = result["total"]["precision_ci95"]
    assert low <= 0.85 <= high or low > 0.85
    for name, entry in result["classes"].items():
        assert entry["precision_ci95"][1] >= 0.85
        assert entry["recall"] == pytest.approx(facts["classes"][name]["recall"], abs=0.15)
    assert result["total"]["policy"]["ece"] < 0.5 * result["total"]["raw"]["ece"]
    assert result["total"]["policy"]["brier"] < result["total"]["raw"]["brier"]


@pytest.fixture(scope="module")
def page(qualities, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "quality.html"
    classes = tuple(f"<class {i}>" for i in range(30))
    entry = qualities["detection"][1]["classes"]["box"]
    many = {**qualities["detection"][1], "classes": dict.fromkeys(classes, entry), "worst_classes": list(classes)}
    maps = {"depth": np.ones((8, 8), np.float32), "scores": np.full((8, 8), 254, np.uint8)}
    plain = quality(Depth(depth_kind="relative"), [(maps, maps, "a")], Policy())
    assert plain["total"] is None and plain["classes"] == {} and plain["metrics"]["labels"]["aligned_delta1"] == 100
    worst = qualities["segmentation"][1]["worst_examples"][0][0]
    results = {"detection": many, "segmentation": qualities["segmentation"][1], "plain": plain}
    pictures = {"segmentation": {worst: np.zeros((8, 8, 3), np.uint8)}}
    facts = {"segmentation": {"classes": {"wall": {"wanted": 0.999, "why": "a reason"}}}}
    write_quality(str(path), results, pictures, facts=facts, settings={"policy": {"a": 1}})
    return path.read_text(), results


def test_the_page_shows_all_tasks_and_names_what_is_bad(page):
    text, results = page
    for name in results:
        assert f"<h2>{name}</h2>" in text and f"<li>{name}: " in text
    assert "http" not in text.replace("http://www.w3.org", "") and "<script" not in text
    assert "<class" not in text and text.count("&lt;class 29&gt;") == 1  # escaped; only in the folded table
    assert "The other 6 classes" in text and text.count("<!-- &lt;class 3&gt; -->") + text.count("&lt;class 3&gt;") > 1
    assert text.count("<img") in (1, 2) and "a reason" in text
    assert "! " in text and "lies below its target" in text and "no scores" in text


def test_the_page_holds_the_numbers_of_the_results(page):
    text, results = page
    total = results["segmentation"]["total"]
    assert f"precision {100 * total['precision']:.1f}%" in text and f"recall {100 * total['recall']:.1f}%" in text
    assert f"{100 * total['raw']['ece']:.1f} → {100 * total['policy']['ece']:.1f} points" in text
    assert f"{results['segmentation']['metrics']['positive']['mIoU']:#.4g}" in text
