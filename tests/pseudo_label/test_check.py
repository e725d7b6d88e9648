"""Labels that cannot be right are refused before they are written, by teacher, field and record."""

import functools

import numpy as np
import pytest

from must.core.types import UserError
from must.data.geometry import whole_image
from must.pseudo_label.check import check_batch
from must.pseudo_label.infer import Labeller
from must.pseudo_label.teacher import from_function
from must.pseudo_label.write import label_images
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation
from tests.support.toy_labels import ToySource

SIZE, CLASSES, BATCH = (16, 24), ("a", "b", "c"), 3
TASKS = {
    "classification": Classification(CLASSES),
    "segmentation": Segmentation(CLASSES),
    "soft_segmentation": Segmentation(CLASSES, top_k=2),
    "detection": Detection(CLASSES, max_boxes=3, max_detections=4),  # as many slots of a label as classes
    "depth": Depth(),
    "normals": Normals(),
}


def good(name):
    """A label in network form that is right in every field, writeable."""
    found = {"boxes": [(1, 2, 9, 8), (0, 0, 24, 16)], "scores": np.array([0.9, 0.5]), "labels": np.array([0, 2])}
    predicted = {
        "classification": np.full((BATCH, 3), 1 / 3, np.float32),
        "segmentation": np.full((BATCH, 4, 6, 3), 1 / 3, np.float32),
        "soft_segmentation": np.full((BATCH, 4, 6, 3), 1 / 3, np.float32),
        "detection": [found] * BATCH,
        "depth": np.full((BATCH, 4, 6), 2.0),
        "normals": np.broadcast_to([0.0, 0.0, -1.0], (BATCH, 4, 6, 3)),
    }
    return TASKS[name].from_external(predicted[name], SIZE)


def put(field, index, value):
    def change(label):
        label[field][index] = value

    return change


def make(field, change):
    return lambda label: label.update({field: change(label[field])})


FIELDS = [(task, field) for task in TASKS for field in good(task)]
FLOATS = [(task, field) for task, field in FIELDS if good(task)[field].dtype == np.float32]
WRONG = [
    *((task, put(field, 1, bad), 1, f"{field} is not finite") for task, field in FLOATS for bad in (np.nan, np.inf)),
    # Shapes and kinds
    *(
        (task, make(field, lambda v: v[..., :-1]), 0, f"{field} has shape")
        for task, field in FIELDS
        if field != "valid"
    ),
    *((task, make(field, lambda v: v[:-1]), 0, f"{field} has shape") for task, field in FIELDS),
    *((task, lambda label, field=field: label.pop(field), 0, f"{field} is missing") for task, field in FIELDS),
    ("depth", make("depth", lambda value: value[..., None]), 0, "depth has shape (3, 16, 24, 1), not (3, 16, 24)"),
    ("classification", make("probs", lambda v: np.pad(v, [(0, 0), (0, 1)])), 0, "probs has shape (3, 4), not (3, 3)"),
    ("classification", make("probs", lambda value: value.astype(int)), 0, "probs is int64, not float32"),
    ("detection", make("classes", lambda value: value.astype(float)), 0, "classes is float64, not int32"),
    ("detection", make("valid", lambda value: value.astype(int)), 0, "valid is int64, not bool"),
    # Probabilities
    ("classification", put("probs", (1, 0), -0.1), 1, "probs are no probabilities: least -0.1"),
    ("classification", put("probs", (2, 0), 0.4), 2, "probs are no probabilities: least 0.3333, sum 1.067"),
    ("classification", put("probs", (2, 0), 0.331), 2, "probs are no probabilities: least 0.331, sum 0.9977"),
    ("soft_segmentation", put("probs", (1, 3, 4), 200), 1, "probs are no probabilities: least 200, sum 400"),
    # Label space
    ("segmentation", put("ids", (1, 3, 4), 3), 1, "ids holds class id 3 with 3 classes"),
    ("segmentation", put("ids", (2, 3, 4), 254), 2, "ids holds class id 254 with 3 classes"),
    ("detection", put("classes", (1, 1), 3), 1, "classes holds class id 3 with 3 classes"),
    ("detection", put("classes", (1, 1), -1), 1, "classes holds class id -1 with 3 classes"),
    # Boxes and scores
    ("detection", put("boxes", (1, 0), (9, 2, 1, 8)), 1, "boxes holds [9.0, 2.0, 1.0, 8.0], which is reversed"),
    ("detection", put("boxes", (1, 0), (1, 8, 9, 2)), 1, "which is reversed"),
    ("detection", put("boxes", (1, 0), (1, 2, 25.5, 8)), 1, "which is outside 24 x 16 pixels"),
    ("detection", put("boxes", (1, 0), (1, 2, 9, 17.5)), 1, "which is outside 24 x 16 pixels"),
    ("detection", put("boxes", (1, 0), (-1.5, 2, 9, 8)), 1, "which is outside 24 x 16 pixels"),
    ("detection", put("scores", (1, 0), 0.4), 1, "scores do not fall"),
    ("detection", put("scores", (1, 0), 1.01), 1, "scores holds 1.01, which is outside 0..1"),
    ("detection", put("scores", (1, 1), -0.01), 1, "scores holds -0.01, which is outside 0..1"),
]


@pytest.mark.parametrize(("task", "change", "row", "message"), WRONG)
def test_every_wrong_label_is_found_in_its_field_and_row(task, change, row, message):
    label = good(task)
    change(label)
    found, what = check_batch(label, TASKS[task], SIZE, BATCH, range(BATCH))
    assert found == row and message in what, what


RIGHT = [
    *((task, lambda label: None) for task in TASKS),
    ("classification", put("probs", (1, 0), 1 / 3 + 9e-4)),  # rounded
    ("segmentation", put("ids", (1, 3, 4), 255)),
    ("soft_segmentation", put("probs", (1, 3, 4), (128, 128))),  # rounded
    ("depth", put("depth", (1, 3, 4), 0)),
    ("normals", put("normals", (1, 3, 4), 0)),
    ("detection", put("boxes", (1, 0), (-0.9, 2, 24.9, 8))),
    ("detection", put("scores", (1, 0), 0.5)),  # equal to the next
    ("detection", put("boxes", (1, 2), np.nan)),  # the rest in an empty slot
    ("detection", put("boxes", (1, 2), (9, 9, 1, 1))),
    ("detection", put("scores", (1, 2), 7)),
    ("detection", put("classes", (1, 2), 77)),
    ("detection", put("valid", 1, (False, True, False, False))),
]


@pytest.mark.parametrize(("task", "change"), RIGHT)
def test_what_is_right_passes(task, change):
    label = good(task)
    change(label)
    assert check_batch(label, TASKS[task], SIZE, BATCH, range(BATCH)) is None


def test_rows_without_an_image_are_not_judged():
    label = good("classification")
    label["probs"][1] = np.nan
    assert check_batch(label, TASKS["classification"], SIZE, BATCH, [0, 2]) is None
    label["probs"][2] = np.nan
    assert check_batch(label, TASKS["classification"], SIZE, BATCH, [0, 2]) == (2, "probs is not finite")
    assert check_batch(label, TASKS["classification"], SIZE, BATCH, []) is None


def test_normals_that_no_reader_would_take_are_not_stored():
    with pytest.raises(ValueError, match="a normal of length 1.73"):
        Normals().restore({"normals": np.ones((8, 8, 3), np.float32)}, whole_image((8, 8), (8, 8)))


CLASSIFICATION = {"classification": TASKS["classification"]}
UNIFORM = np.full((4, 3), 1 / 3, np.float32)


def says(label):
    return lambda images: {"classification": label}


def raises(images):
    raise RuntimeError("first line\nsecond line")


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (raises, "RuntimeError: first line second line, records toy/é 000..toy/é 002"),
        (lambda images: None, "says NoneType, not {task: label}, records"),
        (lambda images: {"kind": UNIFORM}, "says nothing of classification, only of kind, records"),
        (lambda images: {}, "says nothing of classification, only of nothing, records"),
        (says(UNIFORM[:3]), "classification.probs has shape (3, 3), not (4, 3), record toy/é 000"),
        (says(2 * UNIFORM), "classification.probs are no probabilities: least 0.6667, sum 2, record toy/é 000"),
        (says({"probs": [[0.5], [0.5, 0.5]]}), "ValueError: "),
        (
            says(UNIFORM[:, :2]),
            "classification.probs is float32 (4, 2), not floats [B, 3], records toy/é 000..toy/é 002",
        ),
    ],
)
def test_whatever_a_teacher_does_is_one_line_that_names_it(tmp_path, predict, message):
    teacher = from_function("mine", predict, CLASSIFICATION, size=(4, 6), fingerprint="1")
    with pytest.raises(UserError) as caught:
        label_images(tmp_path / "1.0.0", "toy", ToySource(3), [teacher], shards=1, batch_size=4)
    assert str(caught.value).startswith("teacher mine: " + message) and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*array_record*"))


@pytest.mark.parametrize(("name", "axes"), [("depth", ()), ("normals", (3,))])
def test_a_map_without_a_finite_pixel_rejects_its_picture(tmp_path, name, axes):
    failing = []

    def predict(images):
        failing[:] = failing or [images[1].copy()]
        maps = np.ones((len(images), 4, 6, *axes))
        maps[[np.array_equal(image, failing[0]) for image in images]] = np.nan
        maps[0, 0, 0] = np.nan  # one pixel alone is only invalid
        return {name: maps}

    teacher = from_function("mine", predict, {name: TASKS[name]}, size=SIZE, fingerprint="1")
    with pytest.raises(UserError, match=f"toy/é 001: teacher mine: {name}.{name} is not finite anywhere"):
        label_images(tmp_path / "1.0.0", "toy", ToySource(3), [teacher], shards=1, batch_size=4)


def test_records_need_a_teacher_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="records toy: no teachers"):
        label_images(tmp_path / "1.0.0", "toy", ToySource(3), [])
    (tmp_path / "file").write_text("")
    teacher = from_function("mine", says(UNIFORM), CLASSIFICATION, size=(4, 6), fingerprint="1")
    for path in ("file", "file/1.0.0"):
        with pytest.raises(UserError, match=f"{path}: cannot hold records: "):
            label_images(tmp_path / path, "toy", ToySource(3), [teacher])
    with pytest.raises(UserError, match="directory=5: expected the path of a folder"):
        label_images(5, "toy", ToySource(3), [teacher])


def test_a_teacher_sees_pictures_alone():
    """Rows that fill up or cannot be read repeat one; a batch without any asks no teacher."""
    asked = []

    def predict(images):
        asked.append(images.copy())
        return {"classification": UNIFORM}

    teacher = from_function("mine", predict, CLASSIFICATION, size=(4, 6), fingerprint="1")
    source = ToySource(6, broken=(0, 3, 4, 5))
    with Labeller(source, [teacher], 4) as labeller:
        rows = [row for _, part in labeller.run([(0, range(3)), (1, range(3, 6))]) for row in part]
    assert [row.record is None for row in rows] == [True, False, False, True, True, True]
    (images,) = asked
    assert images.any((1, 2, 3)).all() and not np.array_equal(images[1], images[2])
    for row in (0, 3):
        np.testing.assert_array_equal(images[row], images[1])


def test_a_size_is_rounded_up_to_the_multiple_and_refused_where_a_task_cannot_have_it():
    make_teacher = functools.partial(from_function, "mine", says(UNIFORM), size=(33, 64), fingerprint="1")
    assert make_teacher(CLASSIFICATION, multiple=32).size == (64, 64)
    with pytest.raises(UserError, match="depth: a frame of 33 x 64 pixels is not a multiple of the output stride 4"):
        make_teacher({"depth": Depth()})


def test_labels_in_network_form_pass_as_they_are():
    label = {"probs": UNIFORM}
    teacher = from_function("mine", says(label), CLASSIFICATION, size=(8, 8), fingerprint="1")
    assert teacher.predict(np.zeros((4, 8, 8, 3), np.uint8))["classification"] is label
