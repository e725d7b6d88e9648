"""Attributes: unknown ones are silent, metrics are scikit-learn's, tables of users give the labels that they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from must.core import labels as forms
from must.core.types import LabelError, NotFinite, Policy, UserError
from must.data.classes import ClassMap, remap
from must.data.geometry import own_frame
from must.data.merge import completed
from must.data.sources import source
from must.evaluate.quality import quality
from must.export.labels import export_labels
from must.pseudo_label import policy as policies
from must.readers.label_files import LabelFiles
from must.tasks.base import build, describe

CLASSES = ("red", "round", "shiny")
TASK = build("multi_label", classes=CLASSES)


def random_rows(seed, count=40):
    rng = np.random.default_rng(seed)
    true = (rng.random((count, 3)) < (0.3, 0.6, 0.1)).astype(np.float32)
    scores = np.clip(np.round(0.4 * true + 0.6 * rng.random(true.shape), 1), 0.05, 0.95).astype(np.float32)  # with ties
    return scores, true, rng.random(true.shape) < 0.8


def test_metrics_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        scores, true, known = random_rows(seed)
        found = TASK.summarize(TASK.measure({"scores": scores}, {"scores": true, "known": known}))
        by_class = [(true[known[:, c], c], scores[known[:, c], c]) for c in range(3)]
        expected = np.mean([metrics.average_precision_score(*pair) for pair in by_class if pair[0].any()])
        assert found["mAP"] == pytest.approx(expected, abs=1e-12)
        f1 = [metrics.f1_score(one, score >= 0.5) for one, score in by_class if one.any()]
        assert found["F1"] == pytest.approx(np.mean(f1), abs=1e-12)
        assert found["accuracy"] == pytest.approx(100 * ((scores >= 0.5) == true)[known].mean())


def test_an_attribute_that_no_picture_has_leaves_the_mean():
    scores, true, known = random_rows(0)
    true[:, 2] = 0
    both = TASK.summarize(TASK.measure({"scores": scores}, {"scores": true, "known": known}))
    known[:, 2] = False
    assert TASK.summarize(TASK.measure({"scores": scores}, {"scores": true, "known": known}))["mAP"] == both["mAP"]
    nothing = TASK.measure({"scores": scores}, {"scores": true, "known": known & False})
    assert all(np.isnan(value) for value in TASK.summarize(nothing).values())


def test_what_is_unknown_or_doubtful_teaches_nothing():
    label = {"scores": np.float32([[1, 0, 0.9], [0.6, 0.1, 0]]), "known": np.array([[1, 1, 0], [1, 1, 1]], bool)}
    outputs = jax.random.normal(jax.random.key(0), (2, 3))
    policy = Policy(np.float32([0.8] * 3), np.float32([0.2] * 3))
    value = lambda x: TASK.loss(x, TASK.target(label, policy))["attribute"].value.sum()  # noqa: E731
    slope = np.asarray(jax.grad(value)(outputs))
    np.testing.assert_array_equal(slope != 0, [[True, True, False], [False, True, True]])
    np.testing.assert_allclose(slope[0, :2], np.asarray(jax.nn.sigmoid(outputs[0, :2])) - (1, 0), rtol=1e-5)
    np.testing.assert_allclose(slope[1, 1], float(jax.nn.sigmoid(outputs[1, 1])) - 0.1, rtol=1e-5)  # soft
    hard = build("multi_label", classes=CLASSES, hard=True).target(label, policy)
    np.testing.assert_array_equal(hard["aim"], [[1, 0, 0], [0, 0, 0]])
    # The truth's absence is no matter of thresholds.
    for odd in (Policy(0.0, 0.0), Policy(1.5, 0.0), Policy(0.3, 0.3, curve=(0.5, 1.0))):
        target = TASK.target(label, odd)
        assert target["used"][0, :2].all() and target["used"][1, 2] and not target["used"][0, 2]
        np.testing.assert_array_equal(target["aim"][0, :2], [1, 0])


def test_a_teachers_scores_are_never_certain_and_learned_as_they_are():
    outputs = jnp.array([[40.0, -40.0, 0.3]])
    label = TASK.predict(outputs)
    record = TASK.restore({k: np.asarray(v[0]) for k, v in label.items()}, own_frame((4, 4)))
    back = TASK.transform(record, own_frame((4, 4)))["scores"]
    assert 0 < back[1] < 1e-4 and 0.999 < back[0] < 1
    term = TASK.distill_loss(jnp.array([[0.1, 0.2, 0.3]]), outputs)["soft_attribute"]
    slope = jax.grad(lambda x: TASK.distill_loss(x, outputs)["soft_attribute"].value.sum())(outputs)
    assert float(term.norm[0]) == 3 and np.abs(slope).max() < 1e-6


@pytest.mark.parametrize(
    "scores, says",
    [(np.zeros((2, 2), np.float32), "floats"), ([[0.1, 2.0, 0]], "2, which"), ([[0.1, np.nan, 0]], "finite")],
)
def test_scores_of_other_networks_are_checked(scores, says):
    with pytest.raises(LabelError, match=says) as caught:
        TASK.from_external(np.asarray(scores, np.float32), (4, 4))
    assert isinstance(caught.value, NotFinite) == (says == "finite")


def test_fused_scores_are_means_over_who_knows():
    a = {"scores": np.float32([[0.2, 0.4, 0.6]]), "known": np.array([[True, True, False]])}
    b = {"scores": np.float32([[0.6, 0.2, 0.8]]), "known": np.array([[True, False, False]])}
    fused = TASK.fuse([a, b])
    np.testing.assert_allclose(fused["scores"][0, :2], [0.4, 0.4], rtol=1e-6)
    assert fused["known"].tolist() == [[True, True, False]]


def test_calibration_and_quality_read_attributes():
    scores, true, known = random_rows(3, 400)
    rows = zip(scores, true, known, strict=True)
    pairs = [({"scores": s, "known": np.ones(3, bool)}, {"scores": t, "known": k}) for s, t, k in rows]
    policy, facts = policies.fit(TASK, pairs, target_precision=0.9, min_count=20)
    assert np.shape(policy.positive) == (3,) and facts["classes"]["red"]["claims"] == known[:, 0].sum()
    report = quality(TASK, ((*pair, f"{i}") for i, pair in enumerate(pairs)), policy)
    assert report["metrics"]["positive"]["accuracy"] > report["metrics"]["labels"]["accuracy"]


def make_table(root, text):
    for name in "abc":
        Image.new("RGB", (8, 6)).save(root / f"{name}.png")
    (root / "t.csv").write_text(text)
    return {"kind": "attribute_csv", "root": str(root), "table": "t.csv"}


def test_a_users_table_gives_its_attributes(tmp_path):
    section = make_table(tmp_path, "image,red,round,shiny\na.png,1,1,0\nb,0,,0.25\nc.png,nan,1,?\n")
    data = source(**section)
    assert data.classes == {"multi_label": CLASSES}
    labels = [data[i].labels["multi_label"] for i in range(3)]
    assert [label["scores"].tolist() for label in labels] == [[1, 1, 0], [0, 0, 0.25], [0, 1, 0]]
    assert [label["unknown"].tolist() for label in labels] == [[], [1], [0, 2]]
    other = source(**section, classes=["shiny", "old", "red"])
    assert other[0].labels["multi_label"]["scores"].tolist() == [0, 0, 1]
    assert other[1].labels["multi_label"]["unknown"].tolist() == [1]
    assert other.fingerprint != data.fingerprint
    export_labels(tmp_path / "out", data, {"multi_label": TASK}, images=True)
    table = section | {"images": "out/images", "table": "out/multi_label/attributes.csv"}
    for again in (LabelFiles(tmp_path / "out"), source(**table)):
        for i, label in enumerate(labels):
            found = again[i].labels["multi_label"]
            assert all(found[k].dtype == v.dtype and found[k].tolist() == v.tolist() for k, v in label.items())


@pytest.mark.parametrize(
    "text, says",
    [
        ("image,red,round\na.png,1,-1\n", "line 2: round: '-1' is no score .* minus='absent'"),
        ("image,red,round\na.png,1,yes\n", "line 2: round: 'yes'"),
        ("a.png,1,0\n", "line 1: expected a heading"),
        ("image,red\na.png,1\na.png,0\n", "line 3: a.png is listed twice"),
        ("image,red\nzz.png,1\n", "line 2: zz.png is not in"),
        ("image,red,red\na.png,1,1\n", "line 1: a column occurs twice"),
        ("image,red\na.png,1,1\n", "line 2: 3 cells under 2 columns"),
    ],
)
def test_tables_that_cannot_be_right(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        source(**make_table(tmp_path, text))


@pytest.mark.parametrize("minus, unknown", [("absent", []), ("unknown", [1])])
def test_minus_one_is_what_the_user_says(tmp_path, minus, unknown):
    data = source(**make_table(tmp_path, "image,red,round\na.png,1,-1\n"), minus=minus)
    label = data[0].labels["multi_label"]
    assert label["scores"].tolist() == [1, 0] and label["unknown"].tolist() == unknown


def test_class_maps_and_overlays_keep_what_is_known():
    label = forms.multi_label([1, 0, 0.4], unknown=[1])
    class_map = ClassMap(("a", "b", "c"), ("x", "y", "z"), (0, 0, 1))
    mapped = remap(label, class_map)
    assert mapped["scores"].tolist() == [1, np.float16(0.4), 0] and mapped["unknown"].tolist() == [2]
    mapped = remap(forms.multi_label([0, 0, 1], unknown=[1]), class_map)
    assert mapped["unknown"].tolist() == [0, 2]  # the unknown half may be present
    teacher = {**forms.multi_label([0.2, 0.7, 0.9], unknown=[2])}
    both = completed(forms.multi_label([1, 0, 0], unknown=[1, 2]), teacher)
    assert both["scores"].tolist() == [1, np.float16(0.7), 0] and both["unknown"].tolist() == [2]


def test_a_constant_guess_is_how_often_each_occurs():
    labels = [TASK.transform(forms.multi_label(*row), own_frame((4, 4))) for row in (([1, 0, 1], [2]), ([0, 0, 1], []))]
    np.testing.assert_allclose(TASK.constant_guess(labels)["scores"], [0.5, 0, 1])
    assert describe(TASK)["kind"] == "multi_label"
