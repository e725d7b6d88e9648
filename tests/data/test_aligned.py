"""Classes are joined by name, whatever their order and number in a file."""

import numpy as np
import pytest

from must.core import labels as forms
from must.core.types import Teacher, UserError
from must.data.classes import ClassMap, aligned, renumbered
from must.data.merge import Concat, Overlay, Paired
from must.data.sources import source
from must.experiment import build
from must.experiment.external import external_teacher
from must.tasks.classification import Classification
from must.tasks.detection import Detection
from must.tasks.segmentation import Segmentation
from tests.support import folder_sets as sets
from tests.support.memory_source import Memory

SPACE = ("cat", "dog", "emu")
FORMS = {
    "class": lambda i: forms.classification(i),
    "boxes": lambda i: forms.detection([[1, 1, 3, 3]], [i], [False]),
    "mask": lambda i: forms.segmentation(np.full((8, 8), i)),
}


def holding(form, names, space, name="s", keys=None):
    """One picture per name, with a label of this class."""
    return Memory(name, [{"kind": FORMS[form](space.index(one))} for one in names], {"kind": tuple(space)}, keys)


def said(data):
    """Class names of the labels."""
    found = []
    for i in range(len(data)):
        label = data.labels(i)["kind"]
        found.append(data.classes["kind"][int(np.asarray(label.get("classes", label.get("ids"))).flat[0])])
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("own", [("dog", "cat", "emu"), ("emu", "dog"), ("emu",), SPACE])
@pytest.mark.parametrize("exhaustive", [True, False])
def test_names_stay_and_what_is_lacking_is_absent_or_unknown(form, own, exhaustive):
    data = aligned(holding(form, own, own), {"kind": SPACE, "other": ("x",)}, exhaustive=exhaustive)
    assert data.classes["kind"] == SPACE and said(data) == list(own)
    lacking = [] if exhaustive else [i for i, name in enumerate(SPACE) if name not in own]
    assert data.labels(0)["kind"].get("unknown", np.zeros(0)).tolist() == lacking


def test_a_class_that_the_space_lacks_names_set_and_class():
    with pytest.raises(UserError, match="birds: kind: 'Emu' is not one of the 3 classes of train; nearest is 'emu'"):
        aligned(holding("class", ["Emu"], ["Emu"], "birds"), {"kind": SPACE}, of="train")


@pytest.mark.parametrize("form", FORMS)
def test_sources_side_by_side_take_the_widest_space(form):
    parts = [holding(form, ["emu", "cat"], ["emu", "cat"], "a"), holding(form, SPACE, SPACE, "b")]
    data = Concat(parts)
    assert data.classes["kind"] == SPACE and said(data) == ["emu", "cat", *SPACE]
    assert data.labels(0)["kind"]["unknown"].tolist() == [1]
    keys = ["s/0", "s/1"]
    records = holding(form, ["dog", "cat"], ["dog", "cat", "emu"], keys=keys)
    truth = holding(form, ["emu"], SPACE, keys=keys[1:])
    both = Overlay(records, [truth])
    assert both.classes["kind"] == SPACE and said(both) == ["dog", "emu"]  # the order of the truth, not of the records
    paired = Paired(holding(form, ["cat"], SPACE, keys=keys[1:]), records)
    assert (
        int(
            np.asarray(
                paired.labels(0)["kind@teacher"].get("classes", paired.labels(0)["kind@teacher"].get("ids"))
            ).flat[0]
        )
        == 0
    )


def test_splits_of_a_set_in_the_order_of_its_training_split(tmp_path):
    first = sets.coco(tmp_path / "train")

    def change(content):
        content["categories"] = [{"id": 5, "name": "dog"}]
        content["annotations"] = [{"id": 1, "image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4]}]

    held_out = sets.coco(tmp_path / "val", change)
    data = build.joined(held_out, first)
    assert data.classes["detection"] == ("cat", "dog") == build.joined(first, first).classes["detection"]
    label = data.labels(0)["detection"]
    assert label["classes"].tolist() == [1] and label["unknown"].tolist() == []
    assert build.joined(held_out, first) is data and build.joined(first, first) is build.source(first)
    with pytest.raises(UserError, match="train: detection: 'cat' is not one of the 1 classes of val"):
        build.joined(first, held_out)
    assert build.joined(held_out, first, {"detection": ("emu", "dog", "cat")}).labels(0)["detection"][
        "unknown"
    ].tolist() == [0]


@pytest.mark.parametrize(
    "kind", [lambda names: Classification(names), lambda names: Detection(names, strides=(8,)), Segmentation]
)
def test_teachers_with_other_numbers(kind):
    """A teacher's predictions in the task's numbers are those of the same label remapped in record form."""
    own, size = ("emu", "cat"), (8, 8)
    theirs, ours = kind(own), kind(SPACE)
    label = {Classification: "class", Detection: "boxes", Segmentation: "mask"}[type(ours)]
    from must.data.geometry import whole_image

    geometry = whole_image(size, size, keep_aspect=True)
    data = holding(label, own, own)
    expected = aligned(data, {"kind": SPACE})
    for i in range(2):
        network = theirs.transform(data.labels(i)["kind"], geometry)
        mapped = renumbered({name: value[None] for name, value in network.items()}, ClassMap(own, SPACE, (2, 0)))
        for name, value in ours.transform(expected.labels(i)["kind"], geometry).items():
            valid = network.get("valid", np.True_) if name == "classes" else np.True_
            np.testing.assert_array_equal(np.where(valid, mapped[name][0], 0), np.where(valid, value, 0), err_msg=name)


def make_teacher(name, tasks, size, classes):
    theirs = {key: Classification(tuple(classes)) for key in tasks}
    return Teacher(
        name, theirs, lambda x: {k: {"probs": np.eye(len(classes), dtype=np.float32)[:1]} for k in theirs}, size, "f"
    )


def test_external_teachers_are_joined_by_name():
    section = {"make": f"{__name__}:make_teacher"}
    teacher = external_teacher("t", {**section, "classes": ["emu", "cat"]}, {"kind": Classification(SPACE)}, (8, 8))
    label = teacher.predict(np.zeros((1, 8, 8, 3), np.uint8))["kind"]
    assert label["probs"].tolist() == [[0, 0, 1]] and label["known"].tolist() == [[True, False, True]]
    assert teacher.tasks["kind"].classes == SPACE and teacher.fingerprint != "f"
    with pytest.raises(UserError, match="teacher t: its class 'gnu' of kind"):
        external_teacher("t", {**section, "classes": ["gnu"]}, {"kind": Classification(SPACE)}, (8, 8))


def test_numeric_names_sort_by_value(tmp_path):
    for name in ("10", "9", "0"):
        sets.picture(tmp_path / "train" / name / "a.png")
    assert source("image_folder", root=str(tmp_path), split="train").classes["classification"] == ("0", "9", "10")
    (tmp_path / "table.csv").write_text("picture,class\n10/a.png,10\n9/a.png,9\n")
    section = {"kind": "image_csv", "root": str(tmp_path), "images": "train", "table": "table.csv"}
    assert source(**section).classes["classification"] == ("9", "10")
    assert forms.in_order({"b10", "b9", "a"}) == ("a", "b10", "b9")
