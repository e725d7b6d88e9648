"""YOLO txt and COCO panoptic in its original form."""

import json

import numpy as np
import pytest

from must.core.types import UserError
from must.data.sources import source
from tests.support import folder_sets as sets


def yolo(root, text="1 0.5 0.5 0.25 0.5\n\n0 0.25 0.25 0.5 0.5\n", names="names: [cat, dog]"):
    """Three pictures, of which two have a text file, one of them an empty one."""
    for i, name in enumerate("abc"):
        sets.picture(root / "images" / "train" / f"{name}.jpg", seed=i)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text(text)
    (root / "labels" / "train" / "b.txt").write_text("")
    (root / "data.yaml").write_text(names)
    return {"kind": "yolo", "root": str(root), "split": "train"}


def test_boxes_are_centers_and_sides_in_fractions(tmp_path):
    data = source(**yolo(tmp_path))
    label = data[0].labels["detection"]
    assert label["boxes"].tolist() == [[6, 3, 10, 9], [0, 0, 8, 6]] and label["classes"].tolist() == [1, 0]
    assert data.classes == {"detection": ("cat", "dog")} and len(data) == 3
    assert all(data.labels(i)["detection"]["boxes"].shape == (0, 4) for i in (1, 2))
    assert source(**yolo(tmp_path / "other"), partial=True).labels(2) == {}


def test_polygons_names_by_id_and_folders_by_split(tmp_path):
    section = yolo(tmp_path, "7 0.25 0.25 0.75 0.25 0.5 0.75\n", "names: {3: cat, 7: dog}\nnc: 2\n")
    label = source(**section)[0].labels["detection"]
    assert label["boxes"].tolist() == [[4, 3, 12, 9]] and label["classes"].tolist() == [1]
    (tmp_path / "train").mkdir()
    for part in ("images", "labels"):
        (tmp_path / part / "train").rename(tmp_path / "train" / part)
    assert len(source(**section, images="{split}/images", classes={3: "cat", 7: "dog"})) == 3


@pytest.mark.parametrize(
    ("rest", "shape"),
    [
        ("0.1 0.1 2 0.9 0.9 0", ""),
        ("0.1 0.1 2 0.9 0.9 0 0.5 0.5 1", ""),
        ("0.1 0.1 0.9 0.9", "kpt_shape: [2, 2]"),
        ("0.1 0.1 0.9 0.9 0.4 0.3", "kpt_shape: [2, 3]"),
    ],
)
def test_keypoints_after_a_box_are_passed_over(tmp_path, rest, shape):
    section = yolo(tmp_path, f"1 0.5 0.5 0.25 0.5 {rest}\n", f"names: [cat, dog]\n{shape}\n")
    label = source(**section)[0].labels["detection"]
    assert label["boxes"].tolist() == [[6, 3, 10, 9]] and label["classes"].tolist() == [1]


@pytest.mark.parametrize(
    "text, options, part",
    [
        ("0 0.5 0.5 0.2 0.2 0.1 0.1 1 0.9 0.9 0\n", {}, r"line 1: 11 numbers.*kpt_shape: \[2, 3\]"),
        ("0 0.5 0.5 0.2 0.2 0.3 0.3 0.4\n", {}, "a.txt: line 1: 8 numbers, .*kpt_shape"),
        ("2 0.5 0.5 0.2 0.2\n", {}, "a.txt: line 1: class 2 is not one of the 2 ids.*count from 1"),
        ("cat 0.5 0.5 0.2 0.2\n", {}, "a.txt: line 1: 'cat'"),
        ("0 0.5 0.5 0.2\n", {}, "a.txt: line 1: 4 numbers"),
        ("0 8 6 4 4\n", {}, "boxes in pixels"),
        ("0 1.5 0.5 0.2 0.2\n", {}, "a.txt: box 1: .*wholly outside.*drop_empty"),
        ("0 0.9 0.5 0.9 0.2\n", {"bounds": "refuse"}, "a.txt: box 1: .*reaches outside"),
        ("0 nan 0.5 0.2 0.2\n", {}, "a.txt: line 1: 'nan'"),
        ("0 0.5 0.5 0.2 0.2\n", {"classes": "none.yaml"}, "none.yaml"),
        ("0 0.5 0.5 0.2 0.2\n", {"labels": "images/{split}"}, "no text file for any"),
    ],
)
def test_bad_text_files(tmp_path, text, options, part):
    with pytest.raises(UserError, match=part):
        source(**{**yolo(tmp_path, text), **options})[0]


@pytest.mark.parametrize("text", ["names: [", "5", "names: !!python/object:os.system {}", "names: [a, a]"])
def test_bad_yaml(tmp_path, text):
    with pytest.raises(UserError):
        source(**yolo(tmp_path, names=text))


def panoptic(root, change=lambda content: None):
    """One picture: void, a segment of stuff and a thing."""
    sets.picture(root / "val" / "a.jpg")
    ids = np.zeros((*sets.SIZE, 3), np.uint8)
    ids[:, 4:, 1], ids[:, 8:, 2] = 1, 2  # segments 256 and 256 + 2 * 65,536
    sets.png(root / "annotations" / "panoptic_val" / "a.png", ids)
    segments = [{"id": 256, "category_id": 200}, {"id": 131328, "category_id": 9, "iscrowd": 0}]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 200, "name": "sky", "isthing": 0}, {"id": 9, "name": "cat", "isthing": 1}],
    }
    change(content)
    (root / "annotations" / "panoptic_val.json").write_text(json.dumps(content))
    return {
        "kind": "coco_panoptic",
        "root": str(root),
        "split": "val",
        "images": "{split}",
        "annotations": "annotations/panoptic_{split}.json",
    }


def test_panoptic_of_the_original_release(tmp_path):
    section = panoptic(tmp_path)
    data = source(**section)
    assert data.classes == {"segmentation": ("cat", "sky")}
    assert data[0].labels["segmentation"]["ids"][5, ::4, 0].tolist() == [255, 1, 0, 0]
    other = source(**section, classes=["sky", "emu", "cat"])
    assert other.labels(0)["segmentation"]["ids"][5, ::4, 0].tolist() == [255, 0, 2, 2]


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda content: content["annotations"][0]["segments_info"].pop(), "a.png: segment 131328"),
        (lambda content: content["annotations"][0].update(image_id=[1]), r"\[1\]"),
        (lambda content: content["annotations"][0].update(file_name="b.png"), "b.png does not exist"),
        (lambda content: content["annotations"][0].update(segments_info=3), "is not a list"),
        (lambda content: content["annotations"][0]["segments_info"][0].pop("id"), "'id'"),
        (lambda content: content["categories"].pop(), "category 9"),
        (lambda content: content["categories"][0].update(name="cat"), "duplicate category 'cat'"),
        (lambda content: content["annotations"].append(content["annotations"][0]), "'a.jpg' has two annotations"),
        (lambda content: content.pop("images"), "'images'"),
    ],
)
def test_bad_panoptic(tmp_path, change, part):
    with pytest.raises(UserError, match=part):
        source(**panoptic(tmp_path, change))[0]
