"""Labels leave as files that other tools read, and come back under their ids: the same numbers, or corrected ones."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from must.core.notices import Notice
from must.core.types import UserError
from must.data.edited import EditedCoco
from must.data.geometry import own_frame, transform_map
from must.data.merge import Overlay
from must.data.sources import source as data_source
from must.export.labels import export_labels
from must.readers.coco import CocoJson
from must.readers.dense import DepthPng, MaskPng, NormalsPng
from must.readers.folders import ImageCsv
from must.readers.label_files import LabelFiles
from must.readers.names import file_of, id_of
from must.readers.records import Records
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.segmentation import Segmentation
from tests.support.random_labels import CLASSES, SIZE, STORED, TASKS, Labeled, label_random, random_labels

IDS = ["pool/a/1", "pool/a/2.jpg", 'pool/ü: "x"\n%', "pool/.hidden", "pool/..//z", "pool/1.png/2", "pool/1"]
IDS += ["pool/" + "lóng." * 99, "pool/" + "deep/" * 99]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(source, folder) of all tasks with pictures; not to be changed."""
    source, folder = Labeled(IDS), tmp_path_factory.mktemp("exported") / "labels"
    counts = export_labels(folder, source, TASKS, images=True)
    assert counts == {"images": len(IDS)} | {task: sum(task in label for label in source.known) for task in TASKS}
    return source, folder


def assert_same(found, wanted):
    """Equal fields, types and shapes."""
    assert set(found) == set(wanted)
    for task in wanted:
        assert set(found[task]) == set(wanted[task]), task
        for field, value in wanted[task].items():
            got = found[task][field]
            assert np.asarray(got).dtype == np.asarray(value).dtype and np.shape(got) == np.shape(value), (task, field)
            np.testing.assert_array_equal(got, value, err_msg=f"{task}.{field}")


def test_every_field_of_every_task_comes_back_exactly_under_its_id(exported):
    source, folder = exported
    back = LabelFiles(folder)
    assert back.ids == source.ids and back.name == source.name and back.classes == source.classes
    for index in range(len(source)):
        assert_same(back.labels(index), source.labels(index))
        np.testing.assert_array_equal(back[index].image, source[index].image)
        if (data := source.encoded(index)) is not None:
            assert back.encoded(index) == data, "a picture that was encoded is copied byte for byte"


def test_records_of_every_task_leave_and_come_back(tmp_path):
    source = Labeled([f"pool/{i}" for i in range(6)], missing=False)
    label_random(tmp_path / "random" / "1.0.0", source)
    records = Records(tmp_path / "random" / "1.0.0")
    assert sum(len(records.labels(index)["boxes"]["boxes"]) for index in range(6)) > 3
    export_labels(tmp_path / "out", records, TASKS, images=True)
    back = LabelFiles(tmp_path / "out")
    edited = EditedCoco(tmp_path / "out" / "boxes" / "coco.json", records, task="boxes")
    both = Overlay(records, [edited])
    for index in range(6):
        assert_same(back.labels(index), records.labels(index))
        assert_same(both.labels(index), records.labels(index))
        assert back.encoded(index) == records.encoded(index)


def test_labels_without_pictures_take_them_from_a_source_by_id(tmp_path):
    source = Labeled(["pool/b", "pool/a", "pool/c"], seed=1)
    export_labels(tmp_path / "out", source, {"masks": TASKS["masks"]})
    back = LabelFiles(tmp_path / "out", images=Labeled(["pool/c", "pool/a", "pool/b"], seed=2), tasks=["masks"])
    assert [back[i].id for i in range(3)] == source.ids
    np.testing.assert_array_equal(back[1].image, source[1].image)
    with pytest.raises(UserError, match="pool/b"):
        LabelFiles(tmp_path / "out")[0]


def test_names_of_files_tell_all_ids_apart_and_stay_inside_the_folder():
    rng = np.random.default_rng(0)
    pieces = [
        "a",
        "B",
        ".",
        "..",
        "/",
        "//",
        "%",
        "%2E",
        "%-",
        "-",
        "é",
        "\\",
        ":",
        " ",
        "\n",
        ".png",
        ".JPG",
        "x" * 150,
    ]
    ids = {"".join(rng.choice(pieces, rng.integers(1, 9))) for _ in range(3000)} | set(IDS)
    files = {id: file_of(id) for id in ids}
    assert all(id_of(file) == id for id, file in files.items())
    folders = {"/".join(file.split("/")[:n]) for file in files.values() for n in range(1, file.count("/") + 1)}
    assert not folders & {f"{file}.png" for file in files.values()}, "a file and a folder of one name"
    for file in files.values():
        parts = file.split("/")
        assert all(0 < len(part) < 240 and not part.startswith(".") and part.isascii() for part in parts)
        assert not set(file) & set('\\:*?"<>|\n'), file


def test_our_readers_of_users_files_read_what_was_exported(tmp_path):
    source = Labeled([f"pool/{i}" for i in range(6)], seed=3, missing=False)
    for label in source.known:  # a person's set has one mask per picture and no scores of depth
        label["masks"] = {"ids": label["masks"]["ids"][..., :1], "probs": label["masks"]["probs"][..., :1]}
    tasks = {**TASKS, "masks": Segmentation(CLASSES)}
    root = str(tmp_path / "out")
    export_labels(root, source, tasks, images=True, millimeters=True, palette=True)
    common = {"images": "images/pool", "name": "pool"}
    boxes = CocoJson(root, images="images", annotations="boxes/coco.json", tasks={"detection": "boxes"}, name="x")
    masks = MaskPng(
        root,
        masks="masks/ids/pool",
        classes="masks/about.json:classes",
        ignore=255,
        coarse=True,
        task="masks",
        **common,
    )
    depth = DepthPng(root, depths="depth/depth/pool", unit="mm", coarse=True, **common)
    normals = NormalsPng(root, normals="normals/normals/pool", coarse=True, **common)
    table = ImageCsv(root, "class/classes.csv", images="images", classes=CLASSES, task="class", name="x")
    assert masks.ids == depth.ids == normals.ids == source.ids
    assert boxes.ids == table.ids == [f"x/{id}" for id in source.ids]
    for index in range(len(source)):
        want = source.labels(index)
        assert_same(boxes.labels(index), {"boxes": want["boxes"]})
        np.testing.assert_array_equal(masks.labels(index)["masks"]["ids"], want["masks"]["ids"])
        assert table.labels(index)["class"]["ids"] == want["class"]["ids"][:1]
        got = depth.labels(index)["depth"]
        code, (scale, offset) = want["depth"]["depth"], (np.float64(want["depth"][key]) for key in ("scale", "offset"))
        meters = code * scale + offset
        np.testing.assert_array_equal(got["depth"] > 0, code > 0)
        error = np.abs(got["depth"] * np.float64(got["scale"]) - meters)[(code > 0) & (meters > 1e-3)]
        assert error.max(initial=0) < 0.5001e-3
        off = normals.labels(index)["normals"]["normals"].astype(int) - want["normals"]["normals"]
        assert np.abs(off).max() <= 1, "the reader of users' files brings normals to unit length again"


@pytest.mark.parametrize(("read", "folder"), [(MaskPng, "masks/ids"), (DepthPng, "depth/depth")])
def test_coarse_maps_must_fit_their_pictures(tmp_path, read, folder):
    source = Labeled(["pool/1"])
    export_labels(tmp_path / "out", source, TASKS, images=True)
    file = tmp_path / "out" / folder / "pool" / "1.png"
    picture = Image.open(file)
    picture.resize((STORED[1], STORED[0] + 1), Image.NEAREST).save(file)
    name, more = ("masks", {"classes": CLASSES}) if read is MaskPng else ("depths", {"unit": "mm"})
    with pytest.raises(UserError, match="1.png: is 8x7 .* its image is 8x6"):
        read(str(tmp_path / "out"), images="images/pool", **{name: f"{folder}/pool"}, coarse=True, **more)[0]


def test_pycocotools_reads_the_boxes_and_finds_them_perfect(exported, capsys):
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    source, folder = exported
    truth = coco.COCO(str(folder / "boxes" / "coco.json"))
    assert [c["name"] for c in truth.loadCats(truth.getCatIds())] == list(CLASSES)
    known = [label["boxes"] for label in source.known if "boxes" in label]
    assert len(truth.getImgIds()) == len(known) and len(truth.anns) == sum(len(label["boxes"]) for label in known) > 5
    assert any(label["crowd"].any() for label in known)
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(list(truth.anns.values())), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def edit(folder, change):
    """Changes the exported json as a person would and returns its path."""
    path = folder / "boxes" / "coco.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def corrected(tmp_path):
    """Four records, and their boxes in a json that is there to be changed."""
    source = Labeled([f"pool/{name}" for name in "abcd"], seed=8, missing=False)
    for label in source.known:
        label["boxes"] = {**random_labels(np.random.default_rng(5))["boxes"], "unknown": np.array([2], np.uint16)}
    assert len(source.known[0]["boxes"]["boxes"]) >= 2
    export_labels(tmp_path / "out", source, {"boxes": TASKS["boxes"]})
    return source, tmp_path / "out"


@pytest.mark.parametrize("tool", ["keeps must_id", "drops must_id"])
def test_corrected_boxes_replace_the_teachers(corrected, tool):
    source, folder = corrected

    def change(content):
        a, b, c, _ = content["images"]
        content["images"].remove(c)  # deleted: stays as it was
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] not in (b["id"], c["id"])]
        moved = content["annotations"][0]
        moved["bbox"], moved["category_id"] = [1, 2, 10.5, 3], 3
        del moved["score"]
        content["categories"].reverse()
        a["unknown_category_ids"] = []
        if tool == "drops must_id":
            for image in content["images"]:
                del image["must_id"]
                image.pop("unknown_category_ids", None)

    edited = EditedCoco(edit(folder, change), source, task="boxes")
    assert edited.ids == ["pool/a", "pool/b", "pool/d"] and edited.classes == {"boxes": CLASSES}
    both = Overlay(source, [edited])
    assert both.ids == source.ids
    before, after = source.known[0]["boxes"], both[0].labels["boxes"]
    np.testing.assert_array_equal(after["boxes"][0], np.float32([1, 2, 11.5, 5]))
    assert after["classes"][0] == 2 and after["scores"][0] == 1
    np.testing.assert_array_equal(after["scores"][1:], before["scores"][1:])
    assert after["unknown"].tolist() == ([] if tool == "keeps must_id" else [2])
    assert len(both.labels(1)["boxes"]["boxes"]) == 0, "an image that is listed without boxes has none"
    for index in (2, 3):
        assert_same({"boxes": both.labels(index)["boxes"]}, {"boxes": source.known[index]["boxes"]})
    for index in range(4):  # the other tasks stay, and all are labels that the task takes
        assert set(both.labels(index)) == set(TASKS)
        assert edited.fingerprint != source.fingerprint


def mistake(where, key, value):
    return lambda content: content[where][0].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (mistake("images", "must_id", "pool/nobody"), ["pool/nobody"]),
        (mistake("images", "must_id", "pool/b"), ["pool/b", "twice"]),
        (mistake("categories", "name", "unicorn"), ["unicorn"]),
        (mistake("categories", "id", 2), ["duplicate"]),
        (mistake("annotations", "bbox", [9, 2, -3, 3]), ["pool/a", "reversed"]),
        (mistake("annotations", "bbox", [900, 2, 3, 3]), ["pool/a", "outside"]),
        (mistake("annotations", "bbox", [9, 2, float("nan"), 3]), ["pool/a", "not finite"]),
        (mistake("annotations", "bbox", "9 2 3 3"), ["pool/a", "four numbers"]),
        (mistake("annotations", "score", 1.5), ["pool/a", "score 1.5"]),
        (mistake("annotations", "category_id", 77), ["pool/a", "77"]),
        (mistake("annotations", "image_id", 77), ["image_id"]),
        (mistake("annotations", "image_id", [1]), ["image_id"]),
        (mistake("categories", "name", {}), ["{}"]),
        (mistake("images", "id", None), ["None"]),
        (mistake("images", "width", "wide"), ["pool/a", "width"]),
        (lambda content: content.pop("images"), ["'images'"]),
    ],
)
def test_mistakes_in_an_edited_json_name_file_and_record(corrected, change, parts):
    source, folder = corrected
    path = edit(folder, change)
    with pytest.raises(UserError) as error:
        EditedCoco(path, source, task="boxes")
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in [str(path), *parts]), message


def test_a_json_made_for_pictures_of_another_size_is_refused(corrected):
    source, folder = corrected
    edited = EditedCoco(edit(folder, mistake("images", "width", SIZE[1] + 5)), source, task="boxes")
    with pytest.raises(UserError, match="pool/a.*px"):
        edited[0]


def test_boxes_below_a_score_are_left_out_on_request(tmp_path):
    source = Labeled([f"pool/{i}" for i in range(9)], missing=False)
    export_labels(tmp_path / "out", source, {"boxes": TASKS["boxes"]}, min_score=0.5)
    back, kept = LabelFiles(tmp_path / "out"), 0
    for index in range(len(source)):
        scores = source.known[index]["boxes"]["scores"]
        np.testing.assert_array_equal(back.labels(index)["boxes"]["scores"], scores[scores >= 0.5])
        kept += (scores >= 0.5).sum()
    assert 0 < kept < sum(len(label["boxes"]["scores"]) for label in source.known)


def test_an_export_appears_whole_and_never_replaces_edited_files(tmp_path):
    source = Labeled(["pool/1", "pool/2"], missing=False)
    source.known[1]["masks"]["ids"] = source.known[1]["masks"]["ids"].copy()
    source.known[1]["masks"]["ids"][0, 0] = 9
    with pytest.raises(UserError, match="pool/2.*class id 9"):
        export_labels(tmp_path / "out", source, TASKS)
    assert os.listdir(tmp_path) == []
    (tmp_path / "out").mkdir()
    export_labels(tmp_path / "out", source, {"boxes": TASKS["boxes"]})
    export_labels(tmp_path / "out", source, {"boxes": TASKS["boxes"]}, min_score=0.5)  # as it was written: replaced
    written = tmp_path / "out" / "boxes" / "coco.json"
    first = written.read_bytes()
    written.write_bytes(first + b"\n")
    with pytest.raises(UserError, match="that an export did not write"):
        export_labels(tmp_path / "out", source, {"boxes": TASKS["boxes"]})
    assert written.read_bytes() == first + b"\n"


def test_what_has_no_place_in_the_files_is_refused(tmp_path):
    source = Labeled(["pool/1"])
    source.known[0]["depth"]["extra"] = np.zeros(3)
    with pytest.raises(UserError, match="pool/1: depth.extra"):
        export_labels(tmp_path / "out", source, {"depth": TASKS["depth"]})
    with pytest.raises(UserError, match="no labels of 'other'"):
        export_labels(tmp_path / "out", source, {"other": TASKS["boxes"]})
    with pytest.raises(UserError, match="classes of boxes"):
        export_labels(tmp_path / "out", source, {"boxes": Detection(CLASSES[::-1])})
    with pytest.raises(UserError, match="relative"):
        export_labels(tmp_path / "out", source, {"depth": Depth(depth_kind="relative")}, millimeters=True)
    source.known[0]["depth"] = {**random_labels(np.random.default_rng(0))["depth"], "offset": np.float32(70)}
    with pytest.raises(UserError, match="pool/1: depth: .* m in millimeters"):
        export_labels(tmp_path / "out", source, {"depth": TASKS["depth"]}, millimeters=True)


@pytest.fixture(scope="module")
def in_all_forms(tmp_path_factory):
    """(source, folder) with boxes as YOLO and VOC and masks as polygons, and the same masks as run lengths."""
    source, top = (
        Labeled([f"pool/{name}" for name in "abcdef"], seed=3, missing=False),
        tmp_path_factory.mktemp("forms"),
    )
    tasks = {name: TASKS[name] for name in ("boxes", "masks") if name in TASKS}
    for form in ("polygons", "rle"):
        export_labels(top / form, source, tasks, images=True, boxes=("yolo", "voc"), masks=form)
    return source, top


def test_boxes_leave_as_yolo_and_voc_and_come_back(in_all_forms):
    source, top = in_all_forms
    yolo = data_source("yolo", root=str(top / "rle"), images="images", drop_empty=True)
    voc = data_source(
        "voc", root=str(top / "rle"), images="images", classes=list(CLASSES), one_based=True, drop_empty=True
    )
    assert yolo.classes["detection"] == voc.classes["detection"] == CLASSES
    for found, tolerance in ((yolo, 1e-4), (voc, 1e-3)):
        places = {id.split("/", 1)[1]: index for index, id in enumerate(found.ids)}
        assert len(places) == len(source)
        for index, id in enumerate(source.ids):
            label, want = found[places[file_of(id)]].labels["detection"], source.labels(index)["boxes"]
            kept = (want["boxes"][:, 2:] > want["boxes"][:, :2]).all(-1)
            if found is yolo:
                kept &= ~want["crowd"]
            else:
                assert label["crowd"].tolist() == want["crowd"][kept].tolist()
            np.testing.assert_allclose(label["boxes"], want["boxes"][kept], atol=tolerance * max(SIZE))
            assert label["classes"].tolist() == want["classes"][kept].tolist()


def test_the_json_has_the_keys_that_others_document(in_all_forms):
    _, top = in_all_forms
    for file in (top / "rle" / "boxes" / "coco.json", top / "rle" / "masks" / "coco.json"):
        content = json.loads(file.read_text())
        assert set(content) == {"info", "licenses", "categories", "images", "annotations"}
        assert set(content["info"]) == {"description", "contributor", "date_created", "url", "version", "year"}
        (license,) = content["licenses"]
        assert set(license) == {"id", "name", "url"}
        for entry in content["images"]:
            assert {"id", "width", "height", "file_name", "license"} <= set(entry) and entry["license"] == license["id"]
            assert Image.open(top / "rle" / "images" / entry["file_name"]).size == (entry["width"], entry["height"])
        assert all(set(entry) == {"id", "name", "supercategory"} for entry in content["categories"])
        needed = {"id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd"}
        assert all(needed <= set(entry) for entry in content["annotations"]) and content["annotations"]
        for part in ("images", "categories", "annotations"):
            assert [entry["id"] for entry in content[part]] == list(range(1, len(content[part]) + 1))


@pytest.mark.parametrize("form", ["polygons", "rle"])
def test_pycocotools_paints_the_masks_as_they_were(in_all_forms, form, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    source, top = in_all_forms
    read = coco.COCO(str(top / form / "masks" / "coco.json"))
    read.info()
    again = read.loadRes([dict(entry) for entry in read.dataset["annotations"]])
    assert len(again.anns) == len(read.anns)
    for image in read.imgs.values():
        ids = source.labels(source.ids.index(image["must_id"]))["masks"]["ids"][..., 0]
        painted = np.full((image["height"], image["width"]), 255)
        for entry in read.imgToAnns[image["id"]]:
            mask = read.annToMask(entry).astype(bool)
            assert mask.sum() == entry["area"] and (painted[mask] == 255).all()
            painted[mask] = entry["category_id"] - 1
        np.testing.assert_array_equal(painted, transform_map(ids, own_frame(painted.shape), 255))


def test_what_yolo_and_voc_have_no_place_for_is_told(tmp_path):
    with pytest.warns(Notice, match="of 40 pictures have no label.*YOLO and VOC have no place"):
        export_labels(
            tmp_path / "a", Labeled([f"pool/{i}" for i in range(40)], seed=3), {"boxes": TASKS["boxes"]}, boxes=("voc",)
        )


def test_other_forms_are_refused_by_name(tmp_path):
    source = Labeled(["pool/a"], seed=3, missing=False)
    with pytest.raises(UserError, match="'kitti' is not one of yolo, voc"):
        export_labels(tmp_path / "a", source, {"boxes": TASKS["boxes"]}, boxes="kitti")
    with pytest.raises(UserError, match="masks='paint': expected one of polygons, rle"):
        export_labels(tmp_path / "b", source, {"masks": TASKS["masks"]}, masks="paint")
