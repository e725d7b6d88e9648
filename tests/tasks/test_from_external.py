"""What networks of other projects say becomes the label that a network of ours with the same outputs would have
given."""

import jax
import numpy as np
import pytest

import must
from must.core.types import LabelError
from must.pseudo_label.check import check_batch
from must.tasks import dense
from must.tasks.action import Action
from must.tasks.base import Task
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation

RNG = np.random.default_rng(0)
SIZE, CLASSES = (16, 24), tuple("abcde")
TASKS = {
    "classification": Classification(CLASSES),
    "segmentation": Segmentation(CLASSES),
    "soft_segmentation": Segmentation(CLASSES, top_k=3),
    "detection": Detection(CLASSES, max_detections=4),
    "depth": Depth(),
    "normals": Normals(),
}


def softmax(*shape):
    powers = np.exp(2 * RNG.normal(size=shape))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def boxes(*corners, scores=None, labels=None, **more):
    scores = np.linspace(0.9, 0.5, len(corners)) if scores is None else scores
    labels = np.zeros(len(corners), int) if labels is None else labels
    return {"boxes": np.array(corners, float), "scores": np.array(scores, float), "labels": np.array(labels), **more}


SAID = {
    "classification": softmax(3, 5),
    "segmentation": softmax(3, 4, 6, 5),
    "soft_segmentation": softmax(3, 4, 6, 5),
    "detection": [boxes(), boxes((1, 2, 9, 8), (0, 0, 24, 16)), boxes((5, 5, 6, 6))],
    "depth": RNG.uniform(0.5, 9, (3, 5, 7)),
    "normals": RNG.normal(size=(3, 5, 7, 3)),
}


@pytest.mark.parametrize("name", TASKS)
def test_what_is_adopted_passes_every_check(name):
    label = TASKS[name].from_external(SAID[name], SIZE)
    assert check_batch(label, TASKS[name], SIZE, 3, range(3)) is None
    spec = {field: want for field, want in TASKS[name].network_spec(SIZE).items() if field not in TASKS[name].optional}
    assert {field: value.dtype for field, value in label.items()} == {field: want.dtype for field, want in spec.items()}


@pytest.mark.parametrize("name", ["classification", "segmentation", "soft_segmentation", "normals"])
def test_a_head_that_is_adopted_says_what_it_predicts(name):
    task = TASKS[name]
    outputs = RNG.normal(size=(3, 4, 6, 3) if name == "normals" else SAID[name].shape).astype(np.float32)
    want = jax.device_get(jax.jit(task.predict)(outputs))
    got = task.from_external(np.asarray(jax.nn.softmax(outputs)) if hasattr(task, "classes") else outputs, SIZE)
    assert set(got) == set(want)
    for field, value in want.items():
        assert got[field].dtype == value.dtype
        if field == "ids":
            assert (got[field] == value).mean() > 0.995  # but where two classes are equal
        else:
            np.testing.assert_allclose(got[field], value, atol=1 if value.dtype == np.uint8 else 1e-5, err_msg=field)


def test_an_action_is_adopted_as_a_class():
    np.testing.assert_array_equal(
        Action(CLASSES).from_external(SAID["classification"], SIZE)["probs"], SAID["classification"]
    )


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (16, 7), (1, 1), (16, 24)])
def test_enlarging_is_bilinear_between_aligned_centres(shape):
    maps = RNG.normal(size=(*shape, 3)).astype(np.float32)
    want = np.asarray(jax.image.resize(maps, (*SIZE, 3), "linear"))  # renormalizes at the edges, which repeats them
    np.testing.assert_allclose(dense.resize(maps, SIZE), want, atol=1e-5)


def test_bands_of_a_large_map_fit_together(monkeypatch):
    whole = TASKS["soft_segmentation"].from_external(SAID["soft_segmentation"], SIZE)
    monkeypatch.setattr("must.tasks.dense._BAND", 5 * 24 * 5)  # 16 rows are three bands of 5 and one of 1
    parts = TASKS["soft_segmentation"].from_external(SAID["soft_segmentation"], SIZE)
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name])


def test_probabilities_of_the_frame_are_not_changed():
    predicted = softmax(1, *SIZE, 5)
    before = predicted.copy()
    label = TASKS["soft_segmentation"].from_external(predicted, SIZE)
    np.testing.assert_array_equal(predicted, before)
    np.testing.assert_array_equal(label["ids"], np.argsort(-predicted, -1, kind="stable")[..., :3])
    np.testing.assert_array_equal(label["probs"], np.round(255 * -np.sort(-predicted, -1)[..., :3]))


@pytest.mark.parametrize("top_k", [1, 2])
def test_class_ids_with_a_confidence_come_from_the_nearest_pixel(top_k):
    ids, confidence = np.array([[[0, 4, 255]]]), np.array([[[0.5, 1.0, np.nan]]])  # nothing is asked of what is ignored
    label = Segmentation(CLASSES, top_k=top_k).from_external((ids, confidence), (4, 12))
    assert {value.shape for value in label.values()} == {(1, 4, 12, top_k)}
    np.testing.assert_array_equal(label["ids"][0, 2, ::2, 0], [0, 0, 4, 4, 255, 255])
    np.testing.assert_array_equal(label["probs"][0, 2, ::2, 0], [128, 128, 254, 254, 0, 0])
    if top_k == 2:
        assert (label["ids"][..., 1] == 255).all() and not label["probs"][..., 1].any()


def test_the_nearest_pixel_is_that_of_the_centre():
    maps = np.arange(6).reshape(1, 2, 3)
    np.testing.assert_array_equal(dense.nearest(maps, (3, 5)), [[[0, 0, 1, 2, 2], [3, 3, 4, 5, 5], [3, 3, 4, 5, 5]]])
    np.testing.assert_array_equal(dense.nearest(maps, (1, 2)), [[[0, 2]]])  # as near as [3, 5]


def test_boxes_are_sorted_and_padded():
    corners = [(k, 0, k + 2, 3) for k in range(6)]
    scores, labels = [0.3, 0.9, 0.04, 0.5, 0.9, 0.6], [0, 1, 2, 3, 4, 0]
    second = boxes((-0.5, 3, 25, 5), (3, 3, 3, 5), unknown=[2, 4])
    predicted = [boxes(*corners, scores=scores, labels=labels, masks=None), second]
    label = TASKS["detection"].from_external(predicted, SIZE)
    np.testing.assert_array_equal(label["classes"][0], [1, 4, 0, 3, 0])  # of equals the first; more than four slots
    np.testing.assert_array_equal(label["boxes"][0, :, 0], [1, 4, 5, 3, 0])
    np.testing.assert_allclose(label["scores"][0], [0.9, 0.9, 0.6, 0.5, 0.3])
    np.testing.assert_array_equal(label["valid"], [[True] * 5, [True, False, False, False, False]])  # no area, no box
    many = TASKS["detection"].from_external([boxes(*[(k, 0, k + 2, 3) for k in range(6)])], SIZE)
    assert many["valid"].tolist() == [[True] * 4]  # four of a class
    np.testing.assert_array_equal(label["known"], [[True] * 5, [True, True, False, True, False]])
    assert not label["crowd"].any()


def test_invalid_depths_and_normals_do_not_leak():
    depth = np.full((1, 4, 6), 2.0)
    depth[0, 1, 1:5] = 0, -1, np.nan, np.inf
    got = Depth().from_external(depth, SIZE)["depth"][0]
    np.testing.assert_allclose(got[got != 0], 2.0, rtol=1e-6)
    assert not got[5:7, 5:19].any() and got[:3].all() and got[9:].all()
    vectors = np.zeros((1, 4, 6, 3))
    vectors[..., 2], vectors[0, 1, 1, 2], vectors[0, 1, 2, 0] = -3.0, 0, np.nan
    got = Normals().from_external(vectors, SIZE)["normals"][0]
    valid = (got != 0).any(-1)
    np.testing.assert_allclose(got[valid], np.broadcast_to([0, 0, -1], (valid.sum(), 3)), atol=1e-6)
    assert not valid[5:7, 5:11].any() and valid[:3].all() and valid[:, 13:].all()


def changed(predicted, index, value):
    predicted = np.array(predicted, np.float64)
    predicted[index] = value
    return predicted


BOX = (1, 2, 9, 8)


@pytest.mark.parametrize(
    ("name", "predicted", "row", "message"),
    [
        ("classification", SAID["classification"][:, :4], None, r"probs is float32 \(3, 4\), not floats \[B, 5\]"),
        ("classification", SAID["classification"][0], None, r"probs is float32 \(5,\)"),
        ("classification", np.eye(5, dtype=int), None, "probs is int64"),
        ("classification", changed(SAID["classification"], (1, 2), np.nan), 1, "probs is not finite"),
        ("classification", 1.1 * SAID["classification"], 0, "probs are no probabilities: .* sum 1.1"),
        ("classification", 0.9 * SAID["classification"], 0, "probs are no probabilities: .* sum 0.9"),
        ("classification", [[0.2] * 5, [1.2, -0.2, 0.0, 0.0, 0.0]], 1, "probs are no probabilities: least -0.2, sum 1"),
        ("segmentation", np.moveaxis(SAID["segmentation"], -1, 1), None, r"probs is .*, not floats \[B, h, w, 5\]"),
        ("segmentation", changed(SAID["segmentation"], (2, 3, 1, 2), np.nan), 2, "probs is not finite"),
        ("segmentation", changed(SAID["segmentation"], (1, 0, 0, 0), 3.0), 1, "probs are no probabilities"),
        ("segmentation", np.zeros((2, 0, 4, 5)), None, "probs is"),
        ("segmentation", (np.zeros((2, 4, 4)), np.ones((2, 4, 4))), None, "ids is float64"),
        ("segmentation", (np.zeros((2, 4), int), np.ones((2, 4))), None, r"ids is int64 \(2, 4\), not integers"),
        ("segmentation", (np.zeros((2, 4, 4), int), np.ones((2, 4, 5))), None, "probs is float64"),
        ("segmentation", (np.full((2, 4, 4), 5), np.ones((2, 4, 4))), 0, "ids holds class id 5 with 5 classes"),
        ("segmentation", (np.full((2, 4, 4), -1), np.ones((2, 4, 4))), 0, "ids holds class id -1"),
        ("segmentation", (np.zeros((2, 4, 4), int), np.full((2, 4, 4), 1.5)), 0, "probs holds a confidence of 1.5"),
        ("segmentation", (np.zeros((2, 4, 4), int), np.full((2, 4, 4), np.nan)), 0, "probs is not finite"),
        ("detection", [boxes(), {"boxes": [BOX], "scores": [0.5]}], 1, "labels is missing"),
        ("detection", [boxes(), [BOX]], 1, "boxes is list, not a dict"),
        ("detection", [boxes(), {**boxes(BOX), "boxes": [BOX[:3]]}], 1, r"boxes is int64 \(1, 3\), not numbers"),
        ("detection", [boxes(BOX, scores=[0.5, 0.4])], 0, r"scores is float64 \(2,\), not floats \(1,\)"),
        ("detection", [boxes(BOX, labels=[0.0])], 0, r"labels is float64 \(1,\), not integers \(1,\)"),
        ("detection", [boxes(BOX), boxes((9, 2, 1, 8))], 1, r"boxes holds \[9.0, 2.0, 1.0, 8.0\], which is reversed"),
        ("detection", [boxes((1, 9, 2, 8))], 0, "which is reversed"),
        ("detection", [boxes((1, 2, np.nan, 8))], 0, "boxes is not finite"),
        ("detection", [boxes(BOX, scores=[1.2])], 0, "scores holds 1.2, which is outside 0..1"),
        ("detection", [boxes(BOX, scores=[np.nan])], 0, "scores is not finite"),
        ("detection", [boxes(BOX, labels=[5])], 0, "labels holds class id 5 with 5 classes"),
        ("detection", [boxes(BOX, labels=[-1])], 0, "labels holds class id -1"),
        ("detection", [boxes(BOX, unknown=[7])], 0, "unknown holds class id 7"),
        ("depth", SAID["depth"][..., None], None, r"depth is float64 \(3, 5, 7, 1\), not floats \[B, h, w\]"),
        ("depth", np.ones((2, 4, 4), int), None, "depth is int64"),
        ("normals", np.moveaxis(SAID["normals"], -1, 1), None, r"normals is .*, not floats \[B, h, w, 3\]"),
    ],
)
def test_what_cannot_be_right_is_refused_by_field_and_row(name, predicted, row, message):
    with pytest.raises(LabelError, match=message) as caught:
        TASKS[name].from_external(predicted, SIZE)
    assert caught.value.row == row


def test_a_task_without_the_verb_says_what_to_do():
    with pytest.raises(NotImplementedError, match="Task has no from_external.*network form"):
        Task().from_external(np.zeros(3), SIZE)


@pytest.mark.parametrize("form", ["lists", "network form"])
def test_boxes_that_leave_the_input_are_clipped_and_told_or_refused(form):
    task, far = TASKS["detection"], (30, 2, 40, 8)
    said = [boxes(BOX), boxes((1, 2, 30, 8), (-3, -2, 9, 20), far, (1, 2, 24.5, 8))]

    def predict(images):
        label = task.from_external(said, SIZE)
        if form == "network form":  # whose boxes nobody has left out
            label["boxes"][1, 3], label["valid"][1, 3], label["scores"][1, 3] = far, True, label["scores"][1, 2]
        return {"detection": said if form == "lists" else label}

    teacher = must.from_function("mine", predict, {"detection": task}, size=SIZE, fingerprint="1")
    with pytest.warns(must.Notice, match="teacher mine: boxes of detection reach beyond its input of 24 x 16 pixels"):
        found = teacher.predict(None)["detection"]
    assert check_batch(found, task, SIZE, 2, range(2)) is None
    corners = found["boxes"][1][found["valid"][1]].tolist()
    assert sorted(corners) == [[0, 0, 9, 16], [1, 2, 24, 8], [1, 2, 24, 8]]
    strict = must.from_function("mine", predict, {"detection": task}, size=SIZE, fingerprint="1", bounds="refuse")
    with pytest.raises(LabelError, match="detection.boxes holds .* outside 24 x 16 pixels; bounds='clip'") as caught:
        strict.predict(None)
    assert caught.value.row == 1
    with pytest.raises(must.UserError, match="bounds='cut': expected 'clip' or 'refuse'"):
        must.from_function("mine", predict, {"detection": task}, size=SIZE, fingerprint="1", bounds="cut")
