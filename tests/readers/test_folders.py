"""Every layout of users' files gives the labels that were put there, and the real sets have the counts they state."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from must.core.types import UserError
from must.data.sources import source
from must.readers.coco import decode_mask
from must.readers.pictures import decode_picture
from tests.support import folder_sets as sets


def test_image_folder_class_is_the_first_folder(tmp_path):
    data = source(**sets.image_folder(tmp_path), name="pets")
    assert data.ids == ["pets/cat/a", "pets/cat/deep/b", "pets/dog/a"]
    assert data.classes == {"classification": ("cat", "dog")}
    assert [int(data[i].labels["classification"]["ids"][0]) for i in range(3)] == [0, 0, 1]


def test_given_classes_fix_the_ids(tmp_path):
    data = source(**sets.image_folder(tmp_path), classes=["emu", "dog", "cat"])
    assert [int(data[i].labels["classification"]["ids"][0]) for i in range(3)] == [2, 2, 1]


def test_coco_boxes_categories_and_crowds(tmp_path):
    data = source(**sets.coco(tmp_path))
    assert data.classes["detection"] == ("cat", "dog")
    label = data[0].labels["detection"]
    np.testing.assert_array_equal(label["boxes"], [[1, 2, 9, 8], [4, 4, 6, 6]])
    assert label["classes"].tolist() == [1, 0] and label["crowd"].tolist() == [False, True]
    assert data[1].labels["detection"]["boxes"].shape == (0, 4)


def test_coco_paints_small_instances_over_large_ones(tmp_path):
    data = source(**sets.coco(tmp_path), tasks={"segmentation": "things"})
    expected = np.zeros(sets.SIZE, np.uint8)
    expected[2:8, 1:9] = 2
    expected[4:6, 4:6] = 1
    assert data.classes == {"things": ("background", "cat", "dog")}
    np.testing.assert_array_equal(data[0].labels["things"]["ids"][..., 0], expected)
    without = source(**sets.coco(tmp_path), tasks=["segmentation"], background="")[0].labels["segmentation"]
    np.testing.assert_array_equal(without["ids"][..., 0], np.where(expected == 0, 255, expected - 1))


def test_coco_classes_beyond_the_json_are_unknown(tmp_path):
    data = source(**sets.coco(tmp_path), classes=["dog", "emu", "cat"])
    assert data[1].labels["detection"]["unknown"].tolist() == [1]
    assert data[0].labels["detection"]["classes"].tolist() == [0, 2]
    only_cats = source(**sets.coco(tmp_path), annotated=["cat"])
    assert only_cats[0].labels["detection"]["unknown"].tolist() == [1]


def test_coco_id_list_selects_and_orders(tmp_path):
    section = sets.coco(tmp_path)
    (tmp_path / "ids.txt").write_text("b.jpg\na\n")
    assert [id.split("/")[1] for id in source(**section, ids="ids.txt").ids] == ["b", "a"]
    (tmp_path / "ids.txt").write_text("b\n")
    assert len(source(**section, ids="ids.txt")) == 1


def test_voc_pixels_count_from_one_and_the_last_is_inside(tmp_path):
    data = source(**sets.voc(tmp_path), tasks=("detection", "segmentation"))
    labels = data[0].labels
    np.testing.assert_array_equal(labels["detection"]["boxes"], [[1, 2, 9, 8]])
    assert labels["detection"]["crowd"].tolist() == [True]
    ids = labels["segmentation"]["ids"][..., 0]
    rows, columns = np.nonzero(ids == 1)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (1, 2, 9, 8)  # the box around the mask
    assert (ids[0] == 255).all() and data.classes["segmentation"] == ("background", "cat")


def test_voc_without_a_split_takes_what_has_an_xml(tmp_path):
    section = {**sets.voc(tmp_path), "split": "", "ignore_difficult": False}
    sets.picture(tmp_path / "JPEGImages" / "unlabeled.jpg")
    data = source(**section)
    assert len(data) == 1 and not data[0].labels["detection"]["crowd"].any()


def test_masks_are_renumbered_and_their_ignored_id_becomes_255(tmp_path):
    data = source(**sets.mask_png(tmp_path))
    label = data[0].labels["segmentation"]
    assert data.ids[0].endswith("/a") and data.classes["segmentation"] == ("road", "sky")
    assert label["ids"][::3, 0, 0].tolist() == [255, 0, 1, 0]
    np.testing.assert_array_equal(label["probs"], np.where(label["ids"] == 255, 0, 255))


@pytest.mark.parametrize("unit, factor", [("mm", 1e-3), ("cm", 1e-2), (1.0, 1.0), (0.0002, 0.0002)])
def test_depth_in_meters_and_its_invalid_codes(tmp_path, unit, factor):
    label = source(**{**sets.depth_png(tmp_path), "unit": unit})[0].labels["depth"]
    meters = label["depth"] * label["scale"] + label["offset"]
    np.testing.assert_allclose(meters[::3, 0], [0, 1000 * factor, 0, 2500 * factor], rtol=1e-6)


def test_depth_of_eight_bits_with_a_numeric_unit(tmp_path):
    depth = np.repeat(np.array([0, 51, 255, 102], np.uint8), 48).reshape(sets.SIZE)
    label = source(**{**sets.depth_png(tmp_path, depth), "unit": 10 / 255})[0].labels["depth"]
    meters = label["depth"] * label["scale"] + label["offset"]
    np.testing.assert_allclose(meters[::3, 0], [0, 2, 10, 4], rtol=1e-4)
    sets.picture(tmp_path / "rgb" / "b.jpg")
    sets.png(tmp_path / "depth" / "b.png", depth.astype(np.uint16))
    mixed = source(**{**sets.depth_png(tmp_path, depth), "unit": 10 / 255})
    with pytest.raises(UserError, match="b.png: has 16 bits, and the first map of the set 8: no unit fits both"):
        mixed[1]


def test_normals_are_unit_vectors_and_black_is_invalid(tmp_path):
    label = source(**sets.normals_png(tmp_path))[0].labels["normals"]["normals"]
    assert not label[0].any()
    np.testing.assert_allclose(label[1:] / 127.0, np.broadcast_to([0.6, 0, -0.8], (11, 16, 3)), atol=2 / 127)
    negated = source(**sets.normals_png(tmp_path, (0.6, 0.0, 0.8)), negate="z")[0].labels["normals"]["normals"]
    np.testing.assert_array_equal(negated[1:, :, 2], label[1:, :, 2])


def test_normals_of_numpy_files(tmp_path):
    section = sets.normals_png(tmp_path)
    expected = source(**section)[0].labels["normals"]["normals"]
    vectors = np.broadcast_to(np.array([0.6, 0, -0.8], np.float32), (12, 16, 3)).copy()
    vectors[0] = [[np.nan] * 3] * 8 + [[0.0] * 3] * 8
    np.save(tmp_path / "normals" / "a_normal.npy", vectors)
    section |= {"normals_suffix": "_normal.npy"}
    np.testing.assert_allclose(source(**section)[0].labels["normals"]["normals"].astype(int), expected, atol=1)
    for broken, says in (
        (vectors[..., 0], r"need floats \[h, w, 3\], not float32 \[12, 16\]"),
        (vectors[1:], "is 16x11"),
    ):
        np.save(tmp_path / "normals" / "a_normal.npy", broken)
        with pytest.raises(UserError, match=says):
            source(**section)[0]
    (tmp_path / "normals" / "a_normal.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"a_normal.npy: not a NumPy array"):
        source(**section)[0]


def test_partial_leaves_the_label_out(tmp_path):
    section = sets.depth_png(tmp_path)
    sets.picture(tmp_path / "rgb" / "b.jpg")
    data = source(**section, partial=True)
    assert [sorted(data[i].labels) for i in range(2)] == [["depth"], []]


def test_photos_are_found_in_a_fixed_order(tmp_path):
    for name in ("b.jpg", "a/z.PNG", "c.webp"):
        sets.picture(tmp_path / name)
    sets.picture(tmp_path / ".thumbnails" / "b.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    data = source("photos", root=str(tmp_path), name="pool")
    assert data.ids == ["pool/a/z", "pool/b", "pool/c"] and data[0].labels == {}


@pytest.mark.parametrize(
    "suffix, mode", [(".jpg", "L"), (".jpg", "CMYK"), (".png", "RGBA"), (".png", "P"), (".png", "LA")]
)
def test_every_kind_of_picture_becomes_rgb(tmp_path, suffix, mode):
    file = sets.picture(tmp_path / f"a{suffix}", mode=mode)
    image = decode_picture(file.read_bytes(), "a")
    assert image.shape == (*sets.SIZE, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image.astype(int), np.asarray(Image.open(file).convert("RGB")).astype(int), atol=3)


@pytest.mark.parametrize(
    "make", [sets.image_folder, sets.coco, sets.voc, sets.mask_png, sets.depth_png, sets.normals_png]
)
def test_every_source_survives_pickling_and_gives_labels_without_the_picture(tmp_path, make):
    data = source(**make(tmp_path))
    again = pickle.loads(pickle.dumps(data))
    assert again.ids == data.ids and again.fingerprint == data.fingerprint
    for task, label in data[0].labels.items():
        for name, value in label.items():
            np.testing.assert_array_equal(again[0].labels[task][name], value)
            np.testing.assert_array_equal(data.labels(0)[task][name], value)
    assert decode_picture(data.encoded(0), "a").tobytes() == data[0].image.tobytes()


def test_fingerprint_follows_labels_pictures_and_settings(tmp_path):
    section = sets.depth_png(tmp_path)
    before = source(**section).fingerprint
    assert source(**section).fingerprint == before
    assert source(**{**section, "unit": 1.0}).fingerprint != before
    sets.png(tmp_path / "depth" / "a.png", np.full(sets.SIZE, 900, np.uint16))
    changed = source(**section).fingerprint
    assert changed != before
    sets.picture(tmp_path / "rgb" / "a.jpg", seed=5)
    assert source(**section).fingerprint not in (before, changed)


def test_polygons_and_run_lengths_agree_with_pycocotools():
    referee = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    height, width = 37, 53
    for _ in range(20):
        polygons = [(rng.random(2 * n) * np.tile([width, height], n)).tolist() for n in (3, 5)]
        rle = referee.merge(referee.frPyObjects(polygons, height, width))
        expected = referee.decode(rle).astype(bool)
        np.testing.assert_array_equal(decode_mask(polygons, (height, width), ""), expected)
        text = {"size": [height, width], "counts": rle["counts"].decode()}
        np.testing.assert_array_equal(decode_mask(text, (height, width), ""), expected)
        flat = expected.ravel(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
        counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        lengths = {"size": [height, width], "counts": counts}
        np.testing.assert_array_equal(decode_mask(lengths, (height, width), ""), expected)


def _boxes(data):
    return sum(len(data.labels(i)["detection"]["boxes"]) for i in range(len(data)))


@pytest.mark.parametrize("split, images, boxes", [("train", 205, 2804), ("val", 87, 1137), ("test", 72, 945)])
def test_bccd(data_pack, split, images, boxes):
    data = source("voc", root=str(data_pack / "bccd"), split=split, classes="classes.txt")
    assert (len(data), _boxes(data)) == (images, boxes)


@pytest.mark.parametrize("split, images, boxes", [("train", 367, 4000), ("val", 101, 912), ("test", 233, 2126)])
def test_camvid(data_pack, split, images, boxes):
    common = {"root": str(data_pack / "camvid"), "split": split, "images": "images/{split}"}
    masks = source("mask_png", masks="masks/{split}", ids="splits/{split}.txt", classes="classes.json", **common)
    derived = source("coco", annotations="annotations/derived_boxes_{split}.json", **common)
    assert (len(masks), len(derived), _boxes(derived)) == (images, images, boxes)
    assert len(masks.classes["segmentation"]) == 11
    # Boxes are of connected components of the masks, so a box's class has to be inside it.
    place, checked = {key: i for i, key in enumerate(masks.ids)}, 0
    for i in range(0, len(derived), 40):
        ids = masks.labels(place[derived.ids[i]])["segmentation"]["ids"][..., 0]
        label = derived.labels(i)["detection"]
        for box, class_id in zip(label["boxes"].round().astype(int), label["classes"], strict=True):
            name = derived.classes["detection"][class_id]
            inside = ids[box[1] : box[3], box[0] : box[2]]
            checked += 1
            assert (inside == masks.classes["segmentation"].index(name)).any(), (derived.ids[i], box, name)
    assert checked


@pytest.mark.parametrize("split, first, total", [("train", 90, 900), ("val", 32, 341), ("test", 15, 372)])
def test_clothing(data_pack, split, first, total):
    section = {"root": str(data_pack / "clothing"), "classes": "classes.txt", "ids": "splits/{split}.txt"}
    data = source("image_folder", split=split, **section)
    numbers = np.bincount([int(data.labels(i)["classification"]["ids"][0]) for i in range(len(data))])
    assert (numbers[0], numbers.sum(), len(data), len(numbers)) == (first, total, total, 10)


@pytest.mark.parametrize(
    "split, images, boxes, masks, instances",
    [("train", 128, 929, 100, 746), ("val", 64, 390, 50, 294), ("test", 64, 508, 50, 418)],
)
def test_coco_mini(data_pack, split, images, boxes, masks, instances):
    root = data_pack / "coco_mini"
    common = {"root": str(root), "split": split, "images": "images/{split}"}
    detection = source("coco", annotations="annotations/detection_{split}.json", **common)
    assert (len(detection), _boxes(detection), len(detection.classes["detection"])) == (images, boxes, 80)
    semantic = {"masks": "semantic/{split}", "classes": "classes.json:semantic", "ignore": 0}
    stuff = source("mask_png", ids="splits/{split}_with_masks.txt", **semantic, **common)
    assert (len(stuff), len(stuff.classes["segmentation"])) == (masks, 133)
    stuff[0]
    both = source(
        "coco", annotations="annotations/instances_{split}.json", tasks=("detection", "segmentation"), **common
    )
    assert (len(both), _boxes(both)) == (masks, instances)
    referee = pytest.importorskip("pycocotools.mask")
    content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    for rle in (entry["segmentation"] for entry in content["annotations"][::20]):
        np.testing.assert_array_equal(decode_mask(rle, tuple(rle["size"]), ""), referee.decode(rle))


@pytest.mark.parametrize("split, frames", [("train", 64), ("val", 12), ("test", 18)])
def test_rgbd_kitchen(data_pack, split, frames):
    common = {"root": str(data_pack / "rgbd_kitchen"), "split": split, "images": "rgb", "ids": "splits/{split}.txt"}
    depth = {"kind": "depth_png", "depths": "depth", "unit": "mm", **common}
    normals = {"kind": "normals_png", "normals": "normals", **common}
    data = source("join", sources={"depth": depth, "normals": normals})
    assert len(data) == frames
    labels = data[0].labels
    meters = labels["depth"]["depth"] * labels["depth"]["scale"]
    assert 0.5 < np.median(meters[meters > 0]) < 4.0
    length = np.linalg.norm(labels["normals"]["normals"] / 127.0, axis=-1)
    assert (np.abs(length[length > 0] - 1) < 0.01).all() and 0.5 < (length > 0).mean() < 1


@pytest.mark.parametrize(
    "section, count",
    [
        ({"root": "unlabeled_photos", "images": "images", "ids": "list.txt"}, 400),
        ({"root": "clothing", "images": "unlabeled"}, 900),
        ({"root": "rgbd_kitchen", "images": "unlabeled", "ids": "splits/unlabeled.txt"}, 64),
    ],
)
def test_unlabeled_pools(data_pack, section, count):
    data = source("photos", **{**section, "root": str(data_pack / section["root"])})
    assert len(data) == count and data[0].labels == {} and data[0].image.shape[2] == 3
