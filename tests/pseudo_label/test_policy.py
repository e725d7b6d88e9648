"""Calibration and thresholds from held-out truth keep what they promise, and a file holds them exactly."""

import json

import numpy as np
import pytest

from must.core.types import Policy, UserError
from must.pseudo_label.calibrate import Judged, fit_isotonic, fit_scaling, fit_temperature, gather
from must.pseudo_label.policy import choose, fit, hard, read_policies, save_policies
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.label_states import calibrated, states, tempered

SLOPES = (0.3, 0.7, 1.5)
NAMES = ("easy", "fair", "hard")


def _claims(rng, each, slopes=SLOPES, names=NAMES):
    """Scores that are right with probability score ** slope per class."""
    ids = np.repeat(np.arange(len(slopes)), each)
    score = rng.random(len(ids)).astype(np.float32)
    correct = rng.random(len(ids)) < score ** np.asarray(slopes)[ids]
    return Judged(score, correct, ids, np.bincount(ids, correct), names)


def _true_precision(policy, slopes=SLOPES):
    """Of what the policy takes, from the law that the claims are drawn by; NaN where it takes nothing."""
    score = np.linspace(0, 1, 4001, dtype=np.float32)[:-1]
    found = []
    for c, slope in enumerate(slopes):
        taken = states(policy, score, np.full(len(score), c)).positive
        found.append((score[taken] ** slope).mean() if taken.any() else np.nan)
    return np.array(found)


def _naive(claims, wanted):
    """The lowest score from which on the claims look precise enough, a threshold per class."""
    bounds = []
    for c in range(len(claims.items)):
        score, correct = claims.score[claims.ids == c], claims.correct[claims.ids == c]
        order = np.argsort(-score)
        seen = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
        bounds.append(score[order][np.flatnonzero(seen >= wanted)[-1]] if (seen >= wanted).any() else np.inf)
    return Policy(np.array(bounds), 0.0)


def test_the_wanted_precision_holds_on_fresh_claims_where_the_best_cut_of_many_fails():
    rng, mine, naive = np.random.default_rng(0), [], []
    for seed in range(60):
        claims = _claims(rng, 300)
        policy, _ = choose(claims, curve=fit_isotonic(claims), target_precision=0.9, seed=seed)
        mine.append(_true_precision(policy))
        naive.append(_true_precision(_naive(claims, 0.9)))
    assert (np.nanmean(mine, 0) >= 0.89).all() and (np.nanmean(mine, 0) <= 0.93).all(), np.nanmean(mine, 0)
    assert np.nanmean(naive) < 0.9 < np.nanmean(mine)
    assert np.isnan(mine).mean() < 0.05  # it does not keep its word by taking nothing


def test_confidence_makes_a_broken_promise_rare():
    rng, broken = np.random.default_rng(1), {0.0: [], 0.95: []}
    for seed in range(40):
        claims = _claims(rng, 400, (0.3,), ("one",))
        for confidence, found in broken.items():
            policy, _ = choose(claims, curve=fit_isotonic(claims), confidence=confidence, seed=seed)
            found.append(_true_precision(policy, (0.3,))[0] < 0.895)
    assert np.mean(broken[0.95]) <= 0.05 < np.mean(broken[0.0])


def test_pixels_of_few_images_are_little_evidence():
    examples = np.repeat(np.arange(12), 1000)
    right = np.where(examples % 3 == 0, 800, 1000)  # of the pixels of each image; 93 % in all
    correct, score = np.arange(12_000) % 1000 < right, np.full(12_000, 0.9, np.float32)
    claims = Judged(score, correct, 0 * examples, np.array([12e3]), (), examples)
    bound = lambda claims, confidence: choose(claims, confidence=confidence)[0].positive  # noqa: E731
    assert np.isfinite(bound(claims, 0.0)) and np.isfinite(bound(claims._replace(examples=None), 0.95))
    assert np.isinf(bound(claims, 0.95))  # the same claims, were they of one image each, would prove it


def test_what_no_threshold_reaches_is_ignored_and_said():
    rng = np.random.default_rng(3)
    score = rng.random(2000).astype(np.float32)
    claims = Judged(score, rng.random(2000) < 0.6 * score, np.zeros(2000, int), np.array([700.0]), ("cat",))
    policy, facts = choose(claims, curve=fit_isotonic(claims))
    assert np.isinf(policy.positive[0]) and policy.negative[0] == np.float32(0.2)
    assert "no threshold reaches" in facts["classes"]["cat"]["why"] and facts["classes"]["cat"]["recall"] == 0
    state = states(policy, np.array([0.05, 0.99, 1.0], np.float32), np.zeros(3, int))
    assert state.positive.tolist() == [False, False, True] and state.negative.tolist() == [True, False, False]


def test_facts_are_what_the_policy_does_and_more_precision_costs_recall():
    claims, recalls = _claims(np.random.default_rng(4), 2000), []
    for wanted in (0.7, 0.8, 0.9):
        policy, facts = choose(claims, curve=fit_isotonic(claims), target_precision={"*": wanted, "easy": 0.95})
        state = states(policy, claims.score, claims.ids)
        for c, name in enumerate(NAMES):
            mine, fact = claims.ids == c, facts["classes"][name]
            assert fact["recall"] == pytest.approx((claims.correct & state.positive)[mine].sum() / claims.items[c])
            assert fact["coverage"] == pytest.approx(1 - state.negative[mine].mean())
            assert fact["wanted"] == (0.95 if name == "easy" else wanted) <= fact["precision"] + 1e-6
            seen = claims.correct[mine & state.positive].mean()
            assert fact["precision"] <= seen < fact["precision"] + 0.05
            assert fact["claims"] == mine.sum()
        assert claims.correct[state.negative].mean() < 0.2
        recalls.append([facts["classes"][name]["recall"] for name in NAMES])
    assert (np.diff(np.array(recalls)[:, 1:], axis=0) < 0).all() and np.ptp(np.array(recalls)[:, 0]) == 0


def test_few_claims_take_the_thresholds_of_all_or_the_given_ones():
    many = _claims(np.random.default_rng(5), 500)
    keep = (many.ids != 2) | (np.cumsum(many.ids == 2) <= 5)
    few = many._replace(score=many.score[keep], correct=many.correct[keep], ids=many.ids[keep])
    curve = fit_isotonic(few)
    np.testing.assert_array_equal(curve[2], fit_isotonic(few._replace(classes=()), min_count=1))  # that of all classes
    policy, facts = choose(few, curve=curve)
    assert "of all classes" in facts["classes"]["hard"]["why"] and 0 < policy.positive[2] < 1
    given, _ = choose(few, curve=curve, fallback=Policy(0.66, 0.33))
    np.testing.assert_allclose((given.positive[2], given.negative[2]), (0.66, 0.33))
    np.testing.assert_array_equal(given.positive[:2], policy.positive[:2])
    nothing = Judged(*(np.zeros(0, kind) for kind in (np.float32, bool, int)), np.zeros(2), ("a", "b"))
    assert np.isinf(choose(nothing, curve=fit_isotonic(nothing))[0].positive).all()


@pytest.mark.parametrize(("wanted", "words"), [({"dog": 0.9}, "'dog'"), ({"easy": 0.9}, "'fair'"), (1.2, "1.2")])
def test_a_wanted_precision_that_cannot_be_is_refused(wanted, words):
    with pytest.raises(UserError, match=words):
        choose(_claims(np.random.default_rng(0), 40), target_precision=wanted)


def test_isotonic_curves_are_as_good_as_scikit_learns_and_never_fall():
    sklearn = pytest.importorskip("sklearn.isotonic")
    rng = np.random.default_rng(6)
    claims, fresh = _claims(rng, 1500), _claims(rng, 20_000)
    curves = fit_isotonic(claims)
    assert curves.shape == (3, 33) and (np.diff(curves) >= 0).all() and curves.min() >= 0 and curves.max() < 1
    value = calibrated(Policy(curve=curves), fresh.score, fresh.ids)
    for c in range(3):
        mine, new = claims.ids == c, fresh.ids == c
        referee = sklearn.IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        theirs = referee.fit(claims.score[mine], claims.correct[mine]).predict(fresh.score[new])
        brier = lambda p: np.mean((p - fresh.correct[new]) ** 2)  # noqa: E731
        assert np.abs(value[new] - theirs).mean() < 0.03
        assert brier(value[new]) < brier(theirs) + 1e-4 and brier(value[new]) < brier(fresh.score[new])


def test_temperatures_are_found_again():
    rng = np.random.default_rng(7)
    logits = 2 * rng.standard_normal((3000, 5))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    truth = (probs.cumsum(-1) > rng.random((3000, 1))).argmax(-1)
    sharp = tempered(Policy(temperature=0.5), probs)  # twice as sure as it should be
    assert fit_temperature(sharp, truth) == pytest.approx(2.0, rel=0.1)
    assert fit_temperature(probs[:0], truth[:0]) == 1.0
    cooled = lambda p: 1 / (1 + (1 / np.maximum(p, 1e-9) - 1) ** (1 / 3))  # noqa: E731
    score = rng.random(4000)
    claims = Judged(score.astype(np.float32), rng.random(4000) < cooled(score), np.zeros(4000, int), np.array([1.0]))
    np.testing.assert_allclose(fit_scaling(claims)[1:32], cooled(np.arange(1, 32) / 32), atol=0.03)


def _pairs(count=400):
    """(prediction, truth) of an overconfident classifier of three classes."""
    rng = np.random.default_rng(8)
    for _ in range(count):
        true = rng.integers(3)
        logits = 1.5 * np.eye(3)[true] + rng.standard_normal(3)
        probs = np.exp(3 * logits) / np.exp(3 * logits).sum()
        known = np.ones(3, bool)
        truth = {"probs": np.eye(3, dtype=np.float32)[true], "known": known}
        yield {"probs": probs.astype(np.float32), "known": known}, truth


def test_a_task_is_fitted_from_pairs_of_labels():
    task = Classification(NAMES)
    policy, facts = fit(task, _pairs(), target_precision=0.8)
    assert policy.temperature > 1.5 and policy.curve.shape == (3, 33) and facts["calibration"] == "isotonic"
    assert all(fact["precision"] >= 0.8 and fact["recall"] > 0.2 for fact in facts["classes"].values())
    plain, _ = fit(task, _pairs(), calibration="none")
    assert plain.temperature == 1 and plain.curve.shape == (2,)
    with pytest.raises(UserError, match="platt"):
        fit(task, _pairs(), calibration="platt")
    assert fit(Depth(depth_kind="relative"), [({"depth": np.ones((4, 4))}, {"depth": np.ones((4, 4))})]) is None


def test_a_sample_of_claims_keeps_shares_and_recall():
    shape = (40, 40)
    rng = np.random.default_rng(9)

    def label(depth, scores=255):
        return {"depth": depth.astype(np.float32), "scores": np.full(shape, scores, np.uint8)}

    pairs = [(label(np.where(rng.random(shape) < 0.7, 1.0, 2.0), 40 * i), label(np.ones(shape))) for i in range(5)]
    whole, part = gather(Depth(), pairs), gather(Depth(), pairs, max_count=2000)
    assert len(whole.score) == 8000 == whole.items[0] and len(part.score) == 2000 == part.items[0]
    assert abs(whole.correct.mean() - part.correct.mean()) < 0.03
    assert np.ptp(np.bincount(part.examples, minlength=5)) < 120  # evenly from all examples
    policy, _ = choose(whole)
    assert np.ndim(policy.positive) == 0 and policy.curve.ndim == 1


def test_hard_has_no_middle():
    policy = hard(0.5)
    assert policy.positive == policy.negative == np.float32(0.5)


@pytest.fixture
def saved(tmp_path):
    claims = _claims(np.random.default_rng(10), 300)
    policy, facts = choose(
        claims, curve=fit_isotonic(claims), target_precision={"*": 0.8, "hard": 0.999}, temperature=1.2345
    )
    pixels = choose(claims._replace(ids=0 * claims.ids, classes=(), items=np.array([900.0])))
    chosen = {
        "detection": (policy, {"calibration": "isotonic", **facts}, Detection(NAMES)),
        "depth": (*pixels, Depth()),
        "classification": (Policy(1 / 3, 0.1), None, Classification(NAMES)),
    }
    path = str(tmp_path / "policy.json")
    save_policies(path, chosen)
    return path, chosen


def test_a_file_holds_policies_exactly_and_can_be_edited(saved):
    path, chosen = saved
    text = open(path).read()
    found = read_policies(path, {"detection": NAMES})
    assert list(found) == list(chosen)
    for name, (policy, _, _) in chosen.items():
        for wanted, got in zip(policy, found[name], strict=True):
            np.testing.assert_array_equal(np.asarray(wanted, np.float32), got, err_msg=name)
            assert np.shape(wanted) == np.shape(got)
    assert np.isinf(found["detection"].positive[2]) and '"positive": null' in text and "no threshold reaches" in text
    save_policies(path, chosen)
    assert open(path).read() == text
    lines = [line for line in text.splitlines() if line.startswith('   "fair": {')]
    assert len(lines) == 1  # a class is a line
    old = json.loads("{" + lines[0].strip().rstrip(",") + "}")["fair"]["positive"]
    with open(path, "w") as file:
        file.write(text.replace(lines[0], lines[0].replace(f'"positive": {old}', '"positive": 0.97')))
    edited = read_policies(path)["detection"]
    assert edited.positive[1] == np.float32(0.97) and edited.positive[0] == found["detection"].positive[0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"fair": {', '"fare": {', "policy.json: detection: unknown class 'fare'"),
        ('   "hard": {"positive": null', '   "easy": {"positive": null', "detection: no class 'hard'"),
        ('"positive": null', '"positive": 1.5', "detection: class 'hard': positive is 1.5"),
        ('"positive": null', '"positive": "0.5"', "class 'hard': positive is '0.5'"),
        ('"positive": null', '"positive": 0.1', "class 'hard': negative 0.2 is above positive 0.1"),
        ('"positive": null, ', "", "class 'hard': needs 'positive'"),
        ('"temperature": 1.2345', '"temperature": 0', "detection: temperature is 0"),
        ('"curves"', '"curve"', "policy.json: not a file of policies"),
        ("}", "", "policy.json: damaged, it is not JSON"),
    ],
)
def test_a_file_that_was_edited_wrongly_is_refused_by_name(saved, old, new, words):
    path, _ = saved
    text = open(path).read()
    assert old in text
    with open(path, "w") as file:
        file.write(text.replace(old, new, 1))
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        read_policies(path)


def test_a_file_of_other_classes_is_refused(saved):
    with pytest.raises(UserError, match="detection: curves: unknown class 'hard'"):
        read_policies(saved[0], {"detection": ("easy", "fair")})
    with pytest.raises(UserError, match="not in the order"):
        read_policies(saved[0], {"detection": ("fair", "easy", "hard")})
    with pytest.raises(UserError, match="No such file"):
        read_policies(saved[0] + "x")
