"""Scores are those of the original images, over all that is annotated, as independent counts have them."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

import must
from must.core import labels as forms
from must.data.geometry import own_frame, transform_image, whole_image
from must.data.sources import source
from must.experiment import labeling
from must.experiment.measure import measure_predictions
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation
from tests.support.memory_source import Memory

DATA = Path(__file__).parents[3] / "shared" / "data"
FRAME = (88, 120)
RNG = np.random.default_rng(0)


def shared(folder, *arguments, count=0, **more):
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {folder} here")
    data = source(*arguments, root=str(DATA / folder), **more)
    return must.Subset(data, count=count) if count else data


def crowded():
    """Five pictures of other sizes; 150 boxes in the first, some below a pixel."""
    labels, images = [], []
    for count, size in zip((150, 3, 0, 40, 1), ((160, 200), (64, 80), (50, 30), (300, 100), (88, 120)), strict=True):
        low = RNG.uniform(0, 0.9, (count, 2)) * size[::-1]
        high = np.minimum(low + RNG.gamma(1, 8, (count, 2)) + 0.3, size[::-1])
        boxes = np.concatenate([low, high], -1)
        labels.append({"boxes": forms.detection(boxes, RNG.integers(0, 2, count), RNG.random(count) < 0.05)})
        images.append(RNG.integers(0, 255, (*size, 3), np.uint8))
    return Memory("crowded", labels, {"boxes": ("a", "b")}, images=images)


BOXES = {
    "150 boxes": crowded,
    "coco_mini": lambda: shared(
        "coco_mini",
        "coco",
        images="images/val",
        annotations="annotations/detection_val.json",
        tasks={"detection": "boxes"},
    ),
    "bccd": lambda: shared("bccd", "voc", split="test", tasks={"detection": "boxes"}),
}


def recalled(data, name, task, spoil):
    """A teacher that knows every picture by its bytes and predicts its spoiled truth, in the form of the network."""
    known = {}
    for index in range(len(data)):
        example = data[index]
        geometry = whole_image(example.image.shape[:2], FRAME)
        label = task.transform(example.labels[name], geometry)
        known[hash(transform_image(example.image, geometry).tobytes())] = spoil(label, np.random.default_rng(index))

    def predict(images):
        rows = [known[hash(np.asarray(image).tobytes())] for image in images]
        if isinstance(task, Detection):
            return {name: rows}
        return {name: {field: np.stack([row[field] for row in rows]) for field in rows[0]}}

    return must.from_function("recall", predict, {name: task}, size=FRAME, fingerprint="1")


def spoiled_boxes(label, rng):
    valid = label["valid"]
    boxes = np.concatenate([label["boxes"][valid]] * 2) + rng.normal(0, 1.0, (2 * valid.sum(), 4))
    boxes = np.concatenate([boxes, np.sort(rng.uniform(0, 80, (9, 2, 2)), 1).reshape(9, 4)])
    boxes = np.clip(boxes, 0, (*FRAME[::-1], *FRAME[::-1]))
    classes = np.concatenate([label["classes"][valid]] * 2 + [rng.integers(0, 2, 9)])
    wide = (boxes[:, 2:] > boxes[:, :2]).all(-1)
    scores = np.round(rng.uniform(0.06, 0.99, len(boxes)), 2).astype(np.float32)  # with ties
    return {"boxes": boxes[wide].astype(np.float32), "scores": scores[wide], "labels": classes[wide]}


def scores_of(teacher, data, name, task):
    encoder = must.Encoder({}, FRAME)
    rows = measure_predictions(lambda inputs: teacher.predict(inputs["image"]), {name: task}, encoder, {name: data})
    return task.summarize(rows[name])


def average_precision(truth_file, found_file):
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(truth_file))
        judge = cocoeval.COCOeval(truth, truth.loadRes(json.loads(found_file.read_text())["annotations"]), "bbox")
        judge.evaluate(), judge.accumulate(), judge.summarize()
    return dict(zip(("AP", "AP50", "AP75", "AR100"), judge.stats[[0, 1, 2, 8]], strict=True))


@pytest.mark.parametrize("name", BOXES)
def test_average_precision_is_that_of_pycocotools_on_the_exported_files(name, tmp_path):
    data = BOXES[name]()
    task = Detection(data.classes["boxes"], strides=(8, 16))
    teacher = recalled(data, "boxes", task, spoiled_boxes)
    ours = scores_of(teacher, data, "boxes", task)
    must.label_images(tmp_path / "pool" / "1.0.0", "pool", data, [teacher], shards=1, batch_size=8)
    for folder, labels in (("true", data), ("found", must.Records(tmp_path / "pool" / "1.0.0"))):
        must.export_labels(tmp_path / folder, labels, {"boxes": task})
    theirs = average_precision(*(tmp_path / folder / "boxes" / "coco.json" for folder in ("true", "found")))
    assert 0.02 < theirs["AP"] < 0.9
    for metric, value in theirs.items():
        assert ours[metric] == pytest.approx(value, abs=1e-6), metric


def nearest_pixels(array, size, scale):
    rows, columns = (np.floor((np.arange(n) + 0.5) * scale).astype(int) for n in size)
    return array[rows][:, columns]


def masks():
    images = [RNG.integers(0, 255, (*size, 3), np.uint8) for size in ((240, 320), (128, 96), (88, 120))]
    labels = [{"masks": forms.segmentation(RNG.choice([0, 1, 2, 255], image.shape[:2]))} for image in images]
    return Memory("masks", labels, {"masks": ("a", "b", "c")}, images=images)


MASKS = {
    "three sizes": masks,
    "camvid": lambda: shared(
        "camvid",
        "mask_png",
        images="images/val",
        masks="masks/val",
        classes=str(DATA / "camvid" / "classes.json"),
        task="masks",
        count=12,
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_mean_iou_is_a_plain_count_over_the_original_masks(name):
    data = MASKS[name]()
    task = Segmentation(data.classes["masks"], head_stride=4)
    count = len(task.classes)

    def spoil(label, rng):
        wrong = rng.random(FRAME) < 0.2
        ids = np.where(wrong | (label["ids"][..., 0] == 255), rng.integers(0, count, FRAME), label["ids"][..., 0])
        return {
            "ids": ids[..., None].astype(np.uint8),
            "probs": np.full((*FRAME, 1), 200, np.uint8),
            "known": label["known"],
        }

    teacher = recalled(data, "masks", task, spoil)
    ours = scores_of(teacher, data, "masks", task)
    hits = np.zeros((count, count))
    for index in range(len(data)):
        example = data[index]
        size, true = example.image.shape[:2], example.labels["masks"]["ids"][..., 0]
        picture = transform_image(example.image, whole_image(size, FRAME))
        found = np.asarray(teacher.predict(picture[None])["masks"]["ids"])[0, ..., 0]
        found = nearest_pixels(found, size, min(FRAME[0] / size[0], FRAME[1] / size[1]))
        np.add.at(hits, (true[true < 255], found[true < 255]), 1)
    there = hits.sum(1) > 0
    union = hits.sum(0) + hits.sum(1) - np.diag(hits)
    assert ours["mIoU"] == pytest.approx((np.diag(hits)[there] / union[there]).mean(), abs=1e-9)
    assert ours["pixel_accuracy"] == pytest.approx(np.trace(hits) / hits.sum(), abs=1e-9)
    assert 0.2 < ours["mIoU"] < 0.95


def test_depth_and_normals_are_measured_on_the_valid_pixels_of_the_original():
    size = (128, 96)  # no center of a pixel falls between two of the frame
    images = [RNG.integers(0, 255, (*size, 3), np.uint8) for _ in range(3)]
    meters = [RNG.uniform(0.5, 6, size) * (RNG.random(size) < 0.7) for _ in images]
    vectors = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in RNG.normal((0, 0, -2), 1, (3, *size, 3))]
    labels = [
        {"depth": forms.depth(np.round(1e4 * m), 1e-4), "normals": forms.normals(v)}
        for m, v in zip(meters, vectors, strict=True)
    ]
    data = Memory("rooms", labels, images=images)
    scale = min(FRAME[0] / size[0], FRAME[1] / size[1])
    depth = lambda label, rng: {"depth": rng.uniform(1, 5, FRAME).astype(np.float32)}  # noqa: E731
    teacher = recalled(data, "depth", Depth(), depth)
    ours = scores_of(teacher, data, "depth", Depth())
    errors, angles = [], []
    toward = np.float32([0, 0, -1])
    for image, true, normals in zip(images, meters, labels, strict=True):
        picture = transform_image(image, whole_image(size, FRAME))
        found = nearest_pixels(np.asarray(teacher.predict(picture[None])["depth"]["depth"])[0], size, scale)
        true = np.round(1e4 * true) / 1e4
        errors.append(np.mean(np.abs(found - true)[true > 0] / true[true > 0]))
        stored = normals["normals"]["normals"] / 127.0
        angles.append(np.rad2deg(np.arccos(-stored[..., 2] / np.linalg.norm(stored, axis=-1))))
    assert ours["abs_rel"] == pytest.approx(np.mean(errors), rel=1e-5)
    ahead = recalled(data, "normals", Normals(), lambda label, rng: {"normals": np.broadcast_to(toward, (*FRAME, 3))})
    assert scores_of(ahead, data, "normals", Normals())["mean_angle"] == pytest.approx(np.mean(angles), rel=1e-4)


def test_depth_of_real_frames_is_measured_on_all_their_valid_pixels():
    data = shared("rgbd_kitchen", "depth_png", images="rgb", depths="depth", ids="splits/val.txt", unit="mm")

    def spoil(label, rng):
        return {"depth": np.maximum(label["depth"], 1) * rng.uniform(0.8, 1.3, FRAME).astype(np.float32)}

    teacher = recalled(data, "depth", Depth(), spoil)
    ours, errors = scores_of(teacher, data, "depth", Depth()), []
    for index in range(len(data)):
        example = data[index]
        size, true = example.image.shape[:2], example.labels["depth"]["depth"] / 1000.0
        picture = transform_image(example.image, whole_image(size, FRAME))
        found = np.asarray(teacher.predict(picture[None])["depth"]["depth"])[0]
        found = nearest_pixels(found, size, min(FRAME[0] / size[0], FRAME[1] / size[1]))
        valid = (true >= 0.1) & (true <= 10)
        errors.append(np.mean(np.abs(found - true)[valid] / true[valid]))
    assert ours["abs_rel"] == pytest.approx(np.mean(errors), rel=1e-4) and 0.05 < ours["abs_rel"] < 0.5


@pytest.mark.parametrize("kind", ["classification", "segmentation", "depth", "normals", "detection"])
def test_in_a_frame_of_the_original_size_nothing_moves(kind):
    tasks = {
        "classification": Classification(("a", "b", "c")),
        "segmentation": Segmentation(("a", "b", "c")),
        "depth": Depth(),
        "normals": Normals(),
        "detection": Detection(("a", "b", "c"), max_boxes=8, max_detections=8),
    }
    task, rng, frame = tasks[kind], np.random.default_rng(1), own_frame(FRAME)
    label = {
        "classification": lambda: {"probs": rng.dirichlet(np.ones(3)).astype(np.float32)},
        "segmentation": lambda: {
            "ids": rng.integers(0, 3, (*FRAME, 1), np.uint8),
            "probs": rng.integers(0, 254, (*FRAME, 1), np.uint8),
        },
        "depth": lambda: {"depth": rng.uniform(0.5, 5, FRAME).astype(np.float32)},
        "normals": lambda: {"normals": np.broadcast_to(np.float32([0.6, 0, -0.8]), (*FRAME, 3))},
        "detection": lambda: task.transform(
            forms.detection(np.sort(rng.uniform(0, 88, (8, 2, 2)), 1).reshape(8, 4), [0] * 8, [False] * 8), frame
        ),
    }[kind]()
    back = task.original(label, frame)
    for field, value in label.items():
        np.testing.assert_allclose(np.asarray(back[field], np.float64), np.asarray(value, np.float64), atol=1e-6)


def test_every_box_counts_and_training_keeps_to_its_room():
    boxes = np.array([[i, 2, i + 0.5, 60] for i in range(70)] + [[5, 5, 5, 9], [0, 0, 20, 20]], float)
    record = forms.detection(boxes, np.zeros(72), np.zeros(72, bool))
    task = Detection(("a",), max_boxes=10)
    truth = task.transform(record, own_frame(FRAME))
    assert task.items(truth).tolist() == [72] and not truth["crowd"].any()
    row = task.encode(record, own_frame(FRAME))
    assert {n: v.shape for n, v in row.items()} == {n: s.shape for n, s in task.network_spec(FRAME).items()}
    assert row["valid"].all() and row["crowd"].sum() == 9  # below `min_size`; the large one is learned
    rows = task.measure(*({n: v[None] for n, v in label.items()} for label in (truth, truth)))
    assert rows["positives"].sum() == 72 and rows["hit"][0, :, 0].sum() == 71  # nothing overlaps a flat box


def test_at_most_100_predictions_of_a_class_count():
    box = np.tile([0.0, 0, 10, 10], (150, 1))
    box[120] = [20, 20, 60, 60]
    task = Detection(("a", "b"), max_detections=200)
    for classes, hits in ((np.zeros(150, int), 0), (np.arange(150) % 2, 1)):
        said = [{"boxes": box, "scores": np.linspace(0.9, 0.1, 150), "labels": classes}]
        truth = task.transform(forms.detection(box[120:121], [0], [False]), own_frame(FRAME))
        rows = task.measure(task.from_external(said, FRAME), {n: v[None] for n, v in truth.items()})
        assert rows["hit"][0, :, 0].sum() == hits


def test_labels_are_judged_over_all_boxes_however_many_training_learns():
    data = crowded()
    task = Detection(("a", "b"), max_boxes=4)
    encoder = must.Encoder({"boxes": task}, FRAME)
    pairs = list(labeling.recorded(data, data, "boxes", encoder, task))
    counts = [len(data[index].labels["boxes"]["boxes"]) for index in range(len(data))]
    assert counts[0] == 150 and [int(truth["valid"].sum()) for _, truth, _ in pairs] == counts
    assert [int(predicted["valid"].sum()) for predicted, _, _ in pairs] == counts
