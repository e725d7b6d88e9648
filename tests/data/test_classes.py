"""Class maps: gaps and typos are found, and each kind of label lands where the map says."""

import numpy as np
import pytest

from must.core import labels as forms
from must.core.types import UserError
from must.data.classes import ClassMap, Remapped, as_table, load_class_map, remap
from must.data.geometry import whole_image
from must.data.sources import source
from must.tasks.classification import Classification
from must.tasks.detection import Detection
from must.tasks.segmentation import Segmentation
from tests.support import folder_sets as sets
from tests.support.memory_source import Memory

SOURCE = ("car", "truck", "person", "drawn car", "zebra")
TARGET = ("person", "vehicle", "tree")
TEXT = """
# ours -> theirs
car -> vehicle   # an inline comment
truck->vehicle
person  ->  person
drawn car -> ignore
zebra -> unknown
"""


@pytest.fixture
def class_map(tmp_path):
    (tmp_path / "map.txt").write_text(TEXT)
    return load_class_map(tmp_path / "map.txt", SOURCE, TARGET)


def test_file_to_map_to_table(class_map):
    assert class_map.table == (1, 1, 0, -1, -2) and class_map.unlisted == (2,)
    rows = [line.split("  <-  ") for line in as_table(class_map).splitlines()]
    assert {left.strip(): right for left, right in rows} == {
        "person": "person",
        "vehicle": "car, truck",
        "tree": "(not annotated)",
        "(ignore)": "drawn car",
        "(unknown)": "zebra",
    }


def test_a_star_stands_for_the_classes_without_a_line(tmp_path):
    (tmp_path / "map.txt").write_text("* -> ignore\nperson -> person\n")
    assert load_class_map(tmp_path / "map.txt", SOURCE, TARGET).table == (-1, -1, 0, -1, -1)


@pytest.mark.parametrize(
    "old, new, parts",
    [
        ("zebra -> unknown", "", ("no line", "'zebra'")),
        ("zebra ->", "zebre ->", ("'zebre'", "nearest is 'zebra'")),
        ("->  person", "->  persom", ("'persom'", "nearest is 'person'")),
        ("-> ignore", "-> ignor", ("'ignor'", "nearest is 'ignore'")),
        ("truck->", "car->", ("'car'", "two lines")),
        ("zebra -> unknown", "zebra = unknown", ("'zebra = unknown'",)),
        ("zebra -> unknown", "zebra ->", ("'zebra ->'",)),
    ],
)
def test_bad_maps(tmp_path, old, new, parts):
    (tmp_path / "map.txt").write_text(TEXT.replace(old, new))
    with pytest.raises(UserError) as error:
        load_class_map(tmp_path / "map.txt", SOURCE, TARGET)
    assert all(part in str(error.value) for part in ("map.txt", *parts)) and "\n" not in str(error.value)


def test_a_target_class_may_not_be_called_like_a_word(tmp_path):
    (tmp_path / "map.txt").write_text("* -> ignore")
    with pytest.raises(UserError, match="words"):
        load_class_map(tmp_path / "map.txt", SOURCE, (*TARGET, "unknown"))


def test_boxes(class_map):
    boxes = np.arange(20, dtype=np.float32).reshape(5, 4)
    label = remap(forms.detection(boxes, np.arange(5), [False] * 5), class_map)
    np.testing.assert_array_equal(label["boxes"], boxes[:4])
    assert label["classes"][:3].tolist() == [1, 1, 0] and label["crowd"].tolist() == [False, False, False, True]
    assert label["unknown"].tolist() == [2]
    assert Detection(TARGET).transform(label, whole_image((32, 32), (32, 32)))["known"].tolist() == [True, True, False]


def test_a_target_is_unknown_when_one_of_its_source_classes_is(class_map):
    label = remap(forms.detection(np.zeros((0, 4)), [], [], unknown=[1, 4]), class_map)
    assert label["unknown"].tolist() == [1, 2]


def test_pixels(class_map):
    ids = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
    label = remap(forms.segmentation(ids), class_map)
    assert label["ids"][..., 0].tolist() == [[1, 1, 0], [255, 255, 255]]
    assert label["probs"][..., 0].tolist() == [[255, 255, 255], [0, 0, 0]]


def test_soft_pixels_add_up_and_stay_in_order(class_map):
    ids = np.array([[[2, 0, 1], [3, 0, 1], [0, 1, 3]]], np.uint8)
    probs = np.array([[[100, 80, 60], [100, 80, 60], [100, 80, 60]]], np.uint8)
    label = remap({"ids": ids, "probs": probs}, class_map)
    assert label["ids"].tolist() == [[[1, 0, 255], [255, 255, 255], [1, 255, 255]]]
    assert label["probs"].tolist() == [[[140, 100, 0], [0, 0, 0], [180, 0, 0]]]
    row = Segmentation(TARGET, top_k=3).transform(label, whole_image((1, 3), (16, 16)))
    assert row["known"].tolist() == [True, True, False]


def test_classes_add_up(class_map):
    ids, probs = np.array([0, 2, 1, 4], np.uint16), np.array([0.4, 0.3, 0.1, 0.1], np.float16)
    label = remap({"ids": ids, "probs": probs, "rest": np.float16(0.1)}, class_map)
    row = Classification(TARGET).transform(label, whole_image((8, 8), (8, 8)))
    np.testing.assert_allclose(row["probs"], [0.3 / 0.8, 0.5 / 0.8, 0], atol=2e-3)
    assert row["known"].tolist() == [True, True, False]  # no class of the source is a tree: not there, or not known
    assert remap(forms.classification(3), class_map) is None and remap(forms.classification(4), class_map) is None
    assert remap(forms.classification(1), class_map)["ids"].tolist() == [1]


def test_a_remapped_source_changes_one_task_and_its_fingerprint(class_map):
    rows = [{"kind": forms.classification(i), "other": forms.classification(i)} for i in range(5)]
    data = Memory("m", rows, {"kind": SOURCE, "other": SOURCE})
    mapped = Remapped(data, "kind", class_map)
    assert mapped.classes == {"kind": TARGET, "other": SOURCE}
    assert [("kind" in mapped[i].labels, "kind" in mapped.labels(i)) for i in (0, 3)] == [(True, True), (False, False)]
    assert mapped[2].labels["other"]["ids"].tolist() == [2] and mapped.ids == data.ids
    other = Remapped(data, "kind", class_map._replace(table=(0, 1, 0, -1, -2)))
    assert len({data.fingerprint, mapped.fingerprint, other.fingerprint}) == 3


def test_a_remapped_source_from_a_section(tmp_path):
    (tmp_path / "map.txt").write_text("cat -> animal\ndog -> animal\n")
    inner = sets.coco(tmp_path)
    data = source(
        "remapped", source=inner, task="detection", class_map=str(tmp_path / "map.txt"), classes=["animal", "plant"]
    )
    label = data[0].labels["detection"]
    assert label["classes"].tolist() == [0, 0] and label["unknown"].tolist() == [1]


def test_a_map_in_a_configuration_is_that_of_the_file(tmp_path):
    (tmp_path / "map.txt").write_text("a -> x\nb -> ignore\n* -> y\n")
    data = Memory("m", [{"kind": forms.classification(i)} for i in range(3)], {"kind": ("a", "b", "c")})
    lines = {"a": "x", "b": "ignore", "*": "y"}
    written, read = (Remapped(data, "kind", given, classes=["x", "y"]) for given in (lines, tmp_path / "map.txt"))
    assert written.class_map == read.class_map and written.fingerprint == read.fingerprint
    assert written.class_map.table == (0, -1, 1)
    mistakes = (
        ({"a": "x"}, "no line for source class 'b', 'c'"),
        ({"d": "x"}, "'d' is not a source class"),
        ({"a": "z"}, "'z' is not a target"),
    )
    for wrong, says in mistakes:
        with pytest.raises(UserError, match=f"class map of m: {says}"):
            Remapped(data, "kind", wrong, classes=["x", "y"])
    with pytest.raises(UserError, match="m: a class map needs `classes`"):
        Remapped(data, "kind", lines)


def test_maps_that_do_not_fit_the_source(class_map, tmp_path):
    data = Memory("m", [{}], {"kind": ("a", "b")})
    with pytest.raises(UserError, match="not those of the class map"):
        Remapped(data, "kind", class_map)
    with pytest.raises(UserError, match="'boxes'"):
        Remapped(data, "boxes", class_map)
    with pytest.raises(UserError, match="`classes`"):
        Remapped(data, "kind", tmp_path / "map.txt")


def test_a_map_of_every_class_to_itself_changes_nothing():
    identity = ClassMap(SOURCE, SOURCE, tuple(range(len(SOURCE))))
    for label in (
        forms.classification(2),
        forms.detection(np.ones((2, 4)), [1, 4], [True, False], [0]),
        forms.segmentation(np.array([[0, 4, 255]], np.uint8)),
    ):
        for name, value in remap(label, identity).items():
            np.testing.assert_array_equal(value, label[name])
            assert np.asarray(value).dtype == np.asarray(label[name]).dtype


def test_classes_that_add_up_to_one_are_not_the_truth_unless_it_was(class_map):
    half = np.float16(0.5)
    sure = {"ids": np.uint16([0, 1]), "probs": np.array([half, half]), "rest": np.float16(0)}  # car, truck
    frame = whole_image((2, 2), (2, 2))
    task = Classification(TARGET)
    for label, certain in ((sure, False), (forms.classification(0), True)):
        mapped = remap(label, class_map)
        assert bool(mapped["probs"].max() == 1) is certain
        assert bool(task.transform(mapped, frame)["probs"].max() == 1) is certain
    ids = np.zeros((2, 2, 2), np.uint8) + np.uint8([0, 1])
    pixels = {"ids": ids, "probs": np.full((2, 2, 2), 127, np.uint8) + np.uint8([1, 0])}
    assert remap(pixels, class_map)["probs"].max() == 254
    assert remap(forms.segmentation(np.zeros((2, 2))), class_map)["probs"].min() == 255
