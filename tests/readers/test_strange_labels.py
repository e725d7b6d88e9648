"""Labels of other people's files are read as meant, or refused in one line that says how to say what is meant."""

import json
import warnings

import numpy as np
import pytest

from must.core.notices import Notice
from must.core.types import UserError
from must.data.sources import source
from must.export.labels import export_labels
from must.readers.edited import read_boxes
from must.readers.label_files import LabelFiles
from must.readers.records import Records
from tests.support import folder_sets as sets
from tests.support.random_labels import TASKS, Labeled, label_random


def heard(work):
    """(result, the notices that it gives)."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = work()
    return result, [str(one.message) for one in told if issubclass(one.category, Notice)]


def boxes(section, **options):
    return source(**section, **options)[0].labels["detection"]["boxes"].tolist()


def with_boxes(*rows, **more):
    """Replaces the annotations by boxes, each with the fields of `more`, which may depend on the box."""

    def change(content):
        content["annotations"] = [
            {"id": i, "image_id": 7, "category_id": 10, "bbox": row}
            | {key: value(row) if callable(value) else value for key, value in more.items()}
            for i, row in enumerate(rows)
        ]

    return change


def test_boxes_beyond_the_picture_are_clipped_and_counted_or_refused(tmp_path):
    section = sets.coco(tmp_path, with_boxes([-4, 2, 8, 6], [4, 4, 2, 2], [10, 8, 9, 9], area=lambda b: b[2] * b[3]))
    read, told = heard(lambda: boxes(section))
    assert read == [[0, 2, 4, 8], [4, 4, 6, 6], [10, 8, 16, 12]]
    assert any("2 of 3 boxes" in one and "labels.json" in one for one in told)
    with pytest.raises(UserError, match="annotation 0.*bounds='clip'"):
        source(**section, bounds="refuse")
    with pytest.raises(UserError, match="bounds='crop'"):
        source(**section, bounds="crop")


@pytest.mark.parametrize("sized", [True, False])
def test_boxes_wholly_beyond_the_picture_are_named_or_left_out(tmp_path, sized):
    def change(content):
        with_boxes([20, 2, 8, 6], [4, 4, 2, 2])(content)
        for image in content["images"]:
            image["width"] = image["width"] if sized else None

    section = sets.coco(tmp_path, change)
    with pytest.raises(UserError, match="annotation 0.*wholly outside.*drop_empty"):
        boxes(section)
    read, told = heard(lambda: boxes(section, drop_empty=True))
    assert read == [[4, 4, 6, 6]] and (not sized or any("1 of 2 boxes" in one for one in told))


@pytest.mark.parametrize(
    "rows, more",
    [
        ([[4, 3, 9, 8], [1, 2, 5, 6]], {"area": lambda b: (b[2] - b[0]) * (b[3] - b[1])}),  # inside either way
        ([[8, 6, 15, 11]], {}),  # only corners are inside the picture
    ],
)
def test_corners_where_width_and_height_belong(tmp_path, rows, more):
    section = sets.coco(tmp_path, with_boxes(*rows, **more))
    with pytest.raises(UserError, match="corners=True"):
        source(**section)
    assert boxes(section, corners=True) == rows
    assert len(boxes(section, corners=False)) == len(rows)


def test_boxes_in_fractions_of_the_picture(tmp_path):
    section = sets.coco(tmp_path, with_boxes([0.25, 0.25, 0.5, 0.5], [0, 0, 1, 0.5]))
    with pytest.raises(UserError, match="relative=True"):
        source(**section)
    assert boxes(section, relative=True) == [[4, 3, 12, 9], [0, 0, 16, 6]]
    assert boxes(section, relative=False)[0] == [0.25, 0.25, 0.75, 0.75]
    other = sets.voc(tmp_path / "voc", box=(0.25, 0.25, 0.75, 0.5))
    assert boxes(other, relative=True) == [[4, 3, 12, 6]]


def test_voc_that_counts_from_0(tmp_path):
    section = sets.voc(tmp_path, box=(0, 3, 9, 8))
    with pytest.raises(UserError, match="one_based=False"):
        source(**section)
    assert boxes(section, one_based=False) == [[0, 3, 9, 8]]
    assert boxes(section, one_based=True) == [[0, 2, 9, 8]]


_NO, _YES = ("0", "False", "", None, 0.0, "0.0"), ("1", 1.0)


@pytest.mark.parametrize("value, crowd", [*((value, False) for value in _NO), *((value, True) for value in _YES)])
def test_flags_as_text(tmp_path, value, crowd):
    section = sets.coco(tmp_path, with_boxes([1, 2, 3, 4], iscrowd=value))
    assert source(**section).labels(0)["detection"]["crowd"].tolist() == [crowd]


def test_categories_that_are_left_out_may_be_unknown_in_a_picture(tmp_path):
    section = sets.coco(tmp_path, lambda content: content["images"][0].update(unknown_category_ids=[_unused(content)]))
    names = [name for name in source(**section).classes["detection"] if name != "never"]
    assert source(**section).labels(0)["detection"]["unknown"].tolist() == [len(names)]
    assert source(**section, classes=names).labels(0)["detection"]["unknown"].tolist() == []


def _unused(content):
    content["categories"].append({"id": 99, "name": "never"})
    return 99


def test_boxes_alone_may_have_more_classes_than_a_mask_holds(tmp_path):
    names = ["cat", *(f"class {i}" for i in range(400))]
    assert source(**{**sets.voc(tmp_path), "classes": names}).classes["detection"] == tuple(names)


def test_maps_may_lie_beside_their_pictures(tmp_path):
    sets.picture(tmp_path / "all" / "a.jpg")
    sets.png(tmp_path / "all" / "a.png", np.ones(sets.SIZE, np.uint8))
    section = {"kind": "mask_png", "root": str(tmp_path), "images": "all", "masks": "all", "classes": ["sky", "sea"]}
    with pytest.raises(UserError, match="image_suffix='.jpg'"):
        source(**section)
    data = source(**section, image_suffix=".jpg")
    assert [id.partition("/")[2] for id in data.ids] == ["a"]
    assert (data[0].labels["segmentation"]["ids"] == 1).all()


def test_a_label_file_counts_whole_in_the_fingerprint(tmp_path):
    def change(content, crowd):
        with_boxes(*[[1, 2, 3, 4]] * 4000, iscrowd=0)(content)
        content["annotations"][2000]["iscrowd"] = crowd

    one, two = (sets.coco(tmp_path / str(crowd), lambda content, c=crowd: change(content, c)) for crowd in (0, 1))
    assert (tmp_path / "0" / "labels.json").stat().st_size > 2**18
    assert source(**one, name="a").fingerprint != source(**two, name="a").fingerprint


def test_numbers_and_ids_as_text(tmp_path):
    def change(content):
        with_boxes(["1", "2", "3", "4"], score="0.5")(content)
        content["annotations"][0] |= {"image_id": "7", "category_id": "10"}
        content["images"][0]["width"] = "16"

    label = source(**sets.coco(tmp_path, change))[0].labels["detection"]
    assert label["boxes"].tolist() == [[1, 2, 4, 6]] and label["scores"].tolist() == [0.5]


@pytest.mark.parametrize("field", ["id", "image_id", "category_id", "bbox", "iscrowd", "score", "segmentation"])
@pytest.mark.parametrize("value", [[[1]], {"a": 1}, 10**400, "x" * 300, True, 1.5])
def test_wrong_types_never_give_a_traceback(tmp_path, field, value):
    def change(content):
        content["annotations"][0][field] = value

    section = {**sets.coco(tmp_path, change), "tasks": ["detection", "segmentation"]}
    try:
        source(**section)[0]
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 400


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}", "\x00", '"\ud800"'])
def test_json_bombs(tmp_path, text):
    section = sets.coco(tmp_path)
    (tmp_path / "labels.json").write_text(text, errors="surrogatepass")
    with pytest.raises(UserError, match="labels.json"):
        source(**section)


@pytest.mark.parametrize(
    "shape", [[4, 4, 9, 4, 9, 9, 4, 9], [[4, 4], [9, 4], [9, 9], [4, 9]], [[[4, 4], [9, 4], [9, 9], [4, 9]]]]
)
def test_polygons_in_other_forms(tmp_path, shape):
    read = [
        source(**sets.coco(tmp_path, with_boxes([4, 4, 5, 5], segmentation=one)), tasks=["segmentation"]).labels(0)
        for one in (shape, [[4, 4, 9, 4, 9, 9, 4, 9]])
    ]
    np.testing.assert_array_equal(*(label["segmentation"]["ids"] for label in read))
    assert (read[0]["segmentation"]["ids"] == 1).sum() == 25


def test_annotations_without_a_segment_can_be_left_out(tmp_path):
    section = sets.coco(tmp_path, with_boxes([4, 4, 5, 5], segmentation=[]))
    with pytest.raises(UserError, match="annotation 0.*drop_empty"):
        source(**section, tasks=["segmentation"])
    assert not source(**section, tasks=["segmentation"], drop_empty=True).labels(0)["segmentation"]["ids"].any()


def test_categories_that_no_annotation_uses_are_mentioned_and_can_be_left_out(tmp_path):
    section = sets.coco(tmp_path, with_boxes([1, 2, 3, 4]))
    data, told = heard(lambda: source(**section))
    assert data.classes["detection"] == ("cat", "dog") and any("'dog'" in one for one in told)
    data, told = heard(lambda: source(**section, classes=["cat"]))
    assert data.classes["detection"] == ("cat",) and not told


def test_pixels_beside_instances_of_partly_annotated_classes_are_unlabeled(tmp_path):
    section = sets.coco(tmp_path, lambda content: content["images"][0].update(unknown_category_ids=[10]))
    label = source(**section, tasks=["segmentation"]).labels(0)["segmentation"]
    assert label["unknown"].tolist() == [0, 1]  # the background may show an unknown class
    assert label["ids"][2, 1, 0] == 2 and label["ids"][-1, -1, 0] == 255


def test_masks_whose_objects_have_the_ignored_id(tmp_path):
    mask = np.zeros(sets.SIZE, np.uint8)
    mask[2:6, 2:6] = 255
    section = {**sets.mask_png(tmp_path, mask), "classes": ["background", "thing"], "ignore": 255}
    with pytest.raises(UserError, match="ignore=-1"):
        source(**section)
    data = source(**{**section, "classes": {0: "background", 255: "thing"}, "ignore": -1})
    assert (data[0].labels["segmentation"]["ids"] == 1).sum() == 16
    _, told = heard(lambda: source(**{**section, "classes": ["background", "thing", "other"]}))
    assert any("'thing' never occurs" in one for one in told)


def test_mask_ids_that_count_from_1(tmp_path):
    mask = np.ones(sets.SIZE, np.uint8)
    mask[0] = 2
    section = {**sets.mask_png(tmp_path, mask), "classes": ["near", "far"], "ignore": 255}
    with pytest.raises(UserError, match="count from 1"):
        source(**section)[0]


@pytest.mark.parametrize("unit, depth, other", [("m", 2500, "'mm'"), ("cm", 60000, "'mm'"), ("mm", 40, "'m'")])
def test_depth_in_another_unit(tmp_path, unit, depth, other):
    section = {**sets.depth_png(tmp_path, np.full(sets.SIZE, depth, np.uint16)), "unit": unit}
    with pytest.raises(UserError, match=f"depth: with unit='{unit}'.*{other}"):
        source(**section)
    factor = {"m": 1.0, "cm": 0.01, "mm": 0.001}[unit]
    assert source(**{**section, "unit": factor})[0].labels["depth"]["depth"].max() == depth


@pytest.mark.parametrize(
    "change, part",
    [
        (with_boxes([-4, 2, 8, 6]), None),
        (with_boxes([20, 2, 8, 6]), "wholly outside"),
        (with_boxes([0.1, 0.2, 0.3, 0.4]), "fractions"),
        (with_boxes([8, 6, 15, 11]), "corners"),
        (with_boxes([1, 2, 3, 4], iscrowd="0"), None),
        (with_boxes([1, 2, 3, 4], iscrowd="maybe"), "'maybe'"),
        (with_boxes([1, 2, 3, 4], iscrowd=0, image_id=[7]), r"image_id \[7\]"),
        (with_boxes([1, 2, 3, 4], category_id={}), "category id {}"),
        (with_boxes([1, 2, 10**400, 4]), "four numbers"),
        (lambda content: content["images"][0].update(width="wide"), "'wide'"),
        (lambda content: content["images"][0].update(unknown_category_ids=3), "unknown_category_ids"),
        (lambda content: content["categories"].append({"id": [1], "name": "cat"}), r"category \[1\]"),
    ],
)
def test_edited_boxes_follow_the_same_rules(tmp_path, change, part):
    sets.coco(tmp_path, change)
    if part is None:
        (label, _), *_ = read_boxes(tmp_path / "labels.json", ["cat", "dog"]).values()
        assert not label["crowd"].any() and label["boxes"].min() >= 0
    else:
        with pytest.raises(UserError, match=part):
            read_boxes(tmp_path / "labels.json", ["cat", "dog"])


@pytest.mark.parametrize("value", [None, [], 5, "x", {"a": 1}, [[1]], 10**400, float("nan")])
def test_changed_records_and_label_files_are_named(tmp_path, value):
    """Every field of their json, replaced or deleted."""
    pictures = Labeled(["pool/a"], missing=False)
    label_random(tmp_path / "records" / "1.0.0", pictures)
    export_labels(tmp_path / "files", pictures, TASKS, images=True)
    made = {
        tmp_path / "records" / "1.0.0" / "provenance.json": lambda: Records(tmp_path / "records" / "1.0.0"),
        tmp_path / "files" / "about.json": lambda: LabelFiles(tmp_path / "files"),
        tmp_path / "files" / "masks" / "about.json": lambda: LabelFiles(tmp_path / "files"),
    }
    for file, reader in made.items():
        good = json.loads(file.read_text())
        for key in good:
            for changed in ({**good, key: value}, {k: v for k, v in good.items() if k != key}):
                file.write_text(json.dumps(changed))
                try:
                    data = reader()
                    _ = data.labels(0) if len(data) else None
                except UserError as error:
                    assert str(file.parent) in str(error) and "\n" not in str(error)
        file.write_text(json.dumps(good))


def test_class_names_from_the_categories_of_a_json(tmp_path):
    section = {**sets.mask_png(tmp_path), "ignore": 0}
    categories = [{"id": 10, "name": "sky", "supercategory": "stuff"}, {"id": 7, "name": "road"}]
    (tmp_path / "labels.json").write_text(json.dumps({"categories": categories, "odd": ["a", {"b": 1}]}))
    assert source(**{**section, "classes": "labels.json:categories"}).classes["segmentation"] == ("road", "sky")
    with pytest.raises(UserError, match="name 1: {.b.: 1} is not text"):
        source(**{**section, "classes": "labels.json:odd"})
