"""Whatever is wrong with users' files is refused in one line that names the file, key or record."""

import json
import shutil

import numpy as np
import pytest

from must.core.types import UserError
from must.data.sources import source
from tests.support import folder_sets as sets

MAKERS = [sets.image_folder, sets.coco, sets.voc, sets.mask_png, sets.depth_png, sets.normals_png]


def refused(section, *parts, read=True):
    """The section is refused, on construction or, when `read`, on reading everything; one line with all the parts."""
    with pytest.raises(UserError) as error:
        data = source(**section)
        if read:
            for i in range(len(data)):
                data[i]
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


@pytest.mark.parametrize("make", MAKERS)
def test_missing_and_empty_folders(tmp_path, make):
    section = make(tmp_path)
    refused({**section, "root": str(tmp_path / "elsewhere")}, tmp_path / "elsewhere", read=False)
    for file in [f for f in tmp_path.rglob("*") if f.suffix in (".jpg", ".png") and "asks" not in f.parent.name]:
        file.unlink()
    refused(section, tmp_path, read=False)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", ["half", "text", "empty"])
def test_broken_pictures_are_named(tmp_path, make, damage):
    section = make(tmp_path)
    file = next(f for f in sorted(tmp_path.rglob("*")) if f.name in ("a.jpg", "a_left.png"))
    data = file.read_bytes()
    file.write_bytes({"half": data[: len(data) // 2], "text": b"not a picture", "empty": b""}[damage])
    refused(section, file)


@pytest.mark.parametrize("folder", ["masks", "depth", "normals"])
def test_broken_maps_are_named(tmp_path, folder):
    section = {"masks": sets.mask_png, "depth": sets.depth_png, "normals": sets.normals_png}[folder](tmp_path)
    (file,) = (tmp_path / folder).iterdir()
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    refused(section, file)
    file.unlink()
    refused(section, file, read=False)


def test_flipped_bytes_of_a_jpeg_do_not_pass(tmp_path):
    file = sets.picture(tmp_path / "a.jpg", (64, 64))
    data = bytearray(file.read_bytes())
    data[-200:-150] = b"\xff\xd9" * 25
    file.write_bytes(data)
    refused({"kind": "photos", "root": str(tmp_path)}, file)


def test_two_pictures_with_one_id(tmp_path):
    sets.picture(tmp_path / "a.jpg")
    sets.picture(tmp_path / "a.png")
    refused({"kind": "photos", "root": str(tmp_path)}, "a.png", "a.jpg", read=False)


@pytest.mark.parametrize("lines, part", [("a\nmissing\n", "'missing'"), ("a\na\n", "twice"), ("\n", "empty")])
def test_bad_lists(tmp_path, lines, part):
    sets.picture(tmp_path / "photos" / "a.jpg")
    (tmp_path / "list.txt").write_text(lines)
    section = {"kind": "photos", "root": str(tmp_path), "images": "photos", "ids": "list.txt"}
    refused(section, "list.txt", part, read=False)


def test_bad_class_folders(tmp_path):
    section = sets.image_folder(tmp_path)
    refused({**section, "classes": ["cat"]}, tmp_path / "train" / "dog", read=False)
    refused({**section, "classes": ["cat", "dog", "cat"]}, "'cat'", "twice", read=False)
    (tmp_path / "train" / "emu").mkdir()
    refused(section, tmp_path / "train" / "emu", read=False)
    shutil.rmtree(tmp_path / "train" / "emu")
    sets.picture(tmp_path / "train" / "loose.jpg")
    refused(section, "loose.jpg", read=False)


@pytest.mark.parametrize(
    "box, parts",
    [
        ([18, 2, 4, 6], ("annotation 1", "'a.jpg'", "wholly outside", "16x12", "drop_empty")),
        ([-8, 2, 6, 6], ("annotation 1", "wholly outside")),
        ([8, 2, -4, 6], ("annotation 1", "reversed")),
        ([8, 2, 0, 6], ("annotation 1", "drop_empty")),
        ([8, 2, float("nan"), 6], ("annotation 1", "not finite")),
        ([8, 2, "wide", 6], ("annotation 1", "four numbers")),
        ([8, 2, True, 6], ("annotation 1", "four numbers")),
        ([8, 2, 10**400, 6], ("annotation 1", "four numbers")),
        ([8, 2, 4], ("annotation 1", "four numbers")),
        (None, ("annotation 1", "four numbers")),
    ],
)
@pytest.mark.parametrize("sized", [True, False])
def test_bad_coco_boxes(tmp_path, box, parts, sized):
    def change(content):
        content["annotations"][0]["bbox"] = box
        for image in content["images"]:
            image["width"] = image["width"] if sized else None

    refused(sets.coco(tmp_path, change), "labels.json", *parts, read=not sized)


def test_boxes_that_stick_out_by_a_pixel_are_clipped_and_empty_ones_can_be_dropped(tmp_path):
    def change(content):
        content["annotations"][0]["bbox"] = [-0.9, 2, 17.5, 6]
        content["annotations"][1]["bbox"] = [3, 3, 0, 4]

    label = source(**sets.coco(tmp_path, change), drop_empty=True)[0].labels["detection"]
    np.testing.assert_array_equal(label["boxes"], np.array([[0, 2, 16, 8]], np.float32))


def _set(part, entry, key, value):
    def change(content):
        content[part][entry][key] = value

    return change


def _delete(part, entry, key):
    def change(content):
        del content[part][entry][key]

    return change


@pytest.mark.parametrize(
    "change, parts",
    [
        (_set("images", 0, "file_name", "gone.jpg"), ("gone.jpg", "does not exist")),
        (_set("images", 0, "file_name", "b.jpg"), ("b.jpg", "twice")),
        (_set("images", 0, "id", 9), ("id 9", "duplicate")),
        (_set("images", 0, "width", 99), ("a.jpg", "99x12", "16x12")),
        (_set("annotations", 0, "category_id", 5), ("annotation 1", "category id 5")),
        (_set("annotations", 0, "image_id", 5), ("annotation 1", "image id 5")),
        (_set("categories", 0, "name", "cat"), ("'cat'", "duplicate")),
        (_set("categories", 0, "id", 10), ("id 10", "duplicate")),
        (_delete("images", 0, "file_name"), ("image 7", "'file_name'")),
        (_delete("annotations", 0, "bbox"), ("annotation 1", "'bbox'")),
        (lambda content: content.pop("categories"), ("'categories'",)),
        (lambda content: content["images"].clear(), ("no images",)),
    ],
)
def test_bad_coco_json(tmp_path, change, parts):
    refused(sets.coco(tmp_path, change), "labels.json", *parts)


def test_pictures_of_a_json_that_differ_in_their_extension_alone(tmp_path):
    def change(content):
        content["images"][1]["file_name"] = "a.png"
        sets.png(tmp_path / "images" / "a.png", np.zeros((*sets.SIZE, 3), np.uint8))

    data = source(**sets.coco(tmp_path, change))
    assert [id.partition("/")[2] for id in data.ids] == ["a.jpg", "a.png"]
    assert len(data[0].labels["detection"]["boxes"]) == 2 and not len(data[1].labels["detection"]["boxes"])


def test_json_that_is_none(tmp_path):
    section = sets.coco(tmp_path)
    (tmp_path / "labels.json").write_text('{"images": [')
    refused(section, "labels.json", "invalid json", read=False)
    (tmp_path / "labels.json").write_text(json.dumps([1]))
    refused(section, "labels.json", read=False)


@pytest.mark.parametrize(
    "shape, part",
    [
        ([[1, 2, 3, 4]], "three points"),
        ([], "three points"),
        (None, "no segmentation"),
        ("1 2 3 4 5 6", "neither RLE nor"),
        ([[1, 2, 3, 4, 1e12, 6]], "not x, y pairs"),
        ([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], "fractions"),
        ({"size": [12, 16], "counts": [2**63 - 1, 2**63 - 1, 194]}, "RLE"),
        ({"size": [12, 16], "counts": [191.5, 0.5]}, "RLE"),
        ({"size": 5, "counts": [192]}, "annotation 1"),
        ({"size": [12, 16]}, "counts"),
        ({"size": [16, 12], "counts": [192]}, "[16, 12]"),
        ({"size": [12, 16], "counts": [10, 10]}, "20 of 192"),
        ({"size": [12, 16], "counts": [200, -8]}, "RLE"),
        ({"size": [12, 16], "counts": "zz!~"}, "annotation 1"),
        ({"size": [12, 16], "counts": ""}, "0 of 192"),
    ],
)
def test_bad_coco_masks(tmp_path, shape, part):
    section = sets.coco(tmp_path, _set("annotations", 0, "segmentation", shape))
    refused({**section, "tasks": ["segmentation"]}, "labels.json", "annotation 1", part)


def test_coco_arguments(tmp_path):
    section = sets.coco(tmp_path)
    refused({**section, "classes": ["cat"]}, "'dog'", read=False)
    refused({**section, "annotated": ["cow"]}, "'cow'", read=False)
    refused({**section, "tasks": ["pose"]}, "'pose'", read=False)


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ({"box": (20, 3, 30, 8)}, ("a.xml", "object 1", "wholly outside")),
        ({"box": (0, 3, 9, 8)}, ("a.xml", "object 1", "one_based=False")),
        ({"box": (0.1, 0.2, 0.5, 0.75)}, ("Annotations", "relative=True")),
        ({"box": ("nan", 3, 9, 8)}, ("a.xml", "object 1", "four numbers")),
        ({"difficult": "maybe"}, ("a.xml", "object 1", "'maybe'")),
        ({"size": ("12 px", 16)}, ("a.xml", "'12 px'")),
        ({"box": (9, 3, 2, 8)}, ("a.xml", "object 1", "reversed")),
        ({"box": (2, "", 5, 8)}, ("a.xml", "object 1", "four numbers")),
        ({"name": "cow"}, ("a.xml", "'cow'")),
        ({"name": ""}, ("a.xml", "no name")),
        ({"size": (24, 32)}, ("a.xml", "32x24", "16x12")),
    ],
)
def test_bad_voc(tmp_path, arguments, parts):
    refused(sets.voc(tmp_path, **arguments), *parts)


def test_bad_voc_files(tmp_path):
    section = sets.voc(tmp_path)
    both = {**section, "tasks": ["detection", "segmentation"]}
    sets.png(tmp_path / "SegmentationClass" / "a.png", np.full(sets.SIZE, 2, np.uint8))
    refused(both, "SegmentationClass/a.png", "mask id 2")
    sets.png(tmp_path / "SegmentationClass" / "a.png", np.zeros((6, 8), np.uint8))
    refused(both, "SegmentationClass/a.png", "8x6", "16x12")
    refused({**both, "masks": "Nowhere"}, "Nowhere", read=False)
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation>")
    refused(section, "a.xml", "invalid xml", read=False)
    (tmp_path / "Annotations" / "a.xml").unlink()
    refused(section, "a.xml", read=False)
    refused({**section, "split": "val"}, "val.txt", read=False)


@pytest.mark.parametrize(
    "mask, parts",
    [
        (np.full(sets.SIZE, 11, np.uint8), ("mask id 11",)),
        (np.full((6, 8), 10, np.uint8), ("8x6", "16x12")),
        (np.full(sets.SIZE, 300, np.uint16), ("300", "0..255")),
        (np.full((*sets.SIZE, 3), (10, 0, 0), np.uint8), ("one channel", "RGB")),
    ],
)
def test_bad_masks(tmp_path, mask, parts):
    refused(sets.mask_png(tmp_path, mask), "a_ids.png", *parts)


@pytest.mark.parametrize(
    "depth, parts",
    [
        (np.full(sets.SIZE, 10, np.uint8), ("8-bit depth needs", "unit=0.0392")),
        (np.full((*sets.SIZE, 3), 10, np.uint8), ("16 or 8 bits", "RGB")),
        (np.full(sets.SIZE, 1, bool), ("16 or 8 bits", "of 1 bits")),
        (np.full((6, 8), 1000, np.uint16), ("8x6", "16x12")),
    ],
)
def test_bad_depth(tmp_path, depth, parts):
    refused(sets.depth_png(tmp_path, depth), tmp_path / "depth" / "a.png", *parts)


def test_bad_units_axes_and_names(tmp_path):
    section = sets.depth_png(tmp_path)
    for unit in ("feet", 0, -1.0):
        refused({**section, "unit": unit}, "unit", read=False)
    refused({**section, "name": "a/b"}, "'a/b'", read=False)
    refused(sets.normals_png(tmp_path, (0.0, 0.6, 0.8)), "normals/a.png", "negate='z'")
    refused({**sets.normals_png(tmp_path), "negate": "w"}, "'w'", read=False)


def test_bad_class_files(tmp_path):
    section = sets.mask_png(tmp_path)
    (tmp_path / "classes.json").write_text('{"stuff": {"0": "void"}, "odd": 5}')
    refused({**section, "classes": "classes.json:things"}, "classes.json", "'things'", read=False)
    refused({**section, "classes": "classes.json:odd"}, "classes.json", read=False)
    refused({**section, "classes": "classes.json:stuff"}, "classes", read=False)
    refused({**section, "classes": "missing.txt"}, "missing.txt", read=False)
    refused({**section, "classes": {300: "far"}}, "0..255", read=False)


def test_a_source_that_cannot_be_built():
    refused({"kind": "foto"}, "'foto'", "photos", read=False)
    refused({"kind": "photos"}, "'photos'", "root", read=False)
    refused({"kind": "photos", "root": ".", "color": 1}, "color", read=False)
    refused({"kind": "no.such.module:Class"}, "no.such.module", read=False)
