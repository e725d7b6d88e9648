"""torchvision's detectors and segmenters and what has Ultralytics' interface as teachers, against what they return."""

import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from must.core.labels import SUREST  # noqa: E402
from must.core.types import UserError  # noqa: E402
from must.pseudo_label.adapters.vision import (  # noqa: E402
    torchvision_detector,
    torchvision_segmenter,
    ultralytics_detector,
)
from must.tasks.detection import Detection  # noqa: E402
from must.tasks.instances import Instances  # noqa: E402
from must.tasks.segmentation import Segmentation  # noqa: E402
from tests.support.referees import torchvision  # noqa: E402
from tests.support.tiny_pretrained import torchvision_model  # noqa: E402

CATEGORIES = ("__background__", "person", "car", "truck", "N/A")
CLASSES, MAP = ("vehicle", "person"), {"car": "vehicle", "truck": "vehicle", "person": "person"}
GOAL = np.array([-1, 1, 0, 0, -1])
FORMS = {"score_floor": 0.01, "max_detections": 300}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 50, 71, 3), np.uint8)
PIXELS = [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in IMAGES]


def check(label, row, boxes, scores, ids):
    """A row of a label against boxes of the classes `ids`, -1 for none."""
    area = (np.asarray(boxes)[:, 2:] > np.asarray(boxes)[:, :2]).all(-1)  # untrained networks find flat ones
    kept = np.flatnonzero(area & (np.asarray(ids) >= 0) & (np.asarray(scores) >= 0.01))
    order = kept[np.argsort(-np.asarray(scores)[kept], kind="stable")]
    valid = label["valid"][row]
    assert valid.sum() == len(order) > 3
    np.testing.assert_allclose(label["scores"][row][valid], np.minimum(np.asarray(scores)[order], SUREST), rtol=1e-5)
    np.testing.assert_allclose(label["boxes"][row][valid], np.asarray(boxes)[order], atol=1e-3)
    np.testing.assert_array_equal(label["classes"][row][valid], np.asarray(ids)[order])
    return order


@pytest.mark.parametrize("kind", ["FCOS", "RetinaNet", "FasterRCNN", "MaskRCNN"])
def test_torchvision_detectors(kind, monkeypatch):
    model, masks = torchvision_model(kind, monkeypatch), kind == "MaskRCNN"
    task = (Instances if masks else Detection)(CLASSES, **FORMS)
    with pytest.warns(match="2 of its 5 labels are no class of b and are dropped: '__background__', 'N/A'"):
        teacher = torchvision_detector(kind, {"b": task}, model, categories=CATEGORIES, class_map=MAP, batch_size=2)
    label = teacher.predict(IMAGES)["b"]
    with torch.no_grad():
        every = model(PIXELS[:2]) + model(PIXELS[2:])
    for row, found in enumerate(every):
        found = {field: value.numpy() for field, value in found.items()}
        order = check(label, row, found["boxes"], found["scores"], GOAL[found["labels"]])
        if masks:
            ours = np.unpackbits(label["masks"][row], axis=-1, count=71).astype(bool)[: len(order)]
            np.testing.assert_array_equal(ours, found["masks"][order, 0] >= 0.5)
    assert len(set(label["classes"][label["valid"]])) == 2


class _Body(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.see = torch.nn.Conv2d(3, 4, 8, 8)

    def forward(self, pixels):
        return {"out": 9 * self.see(pixels)}


def test_torchvision_segmenters():
    torch.manual_seed(0)
    model = torchvision.models.segmentation.FCN(_Body(), torch.nn.Conv2d(4, 5, 1)).eval()
    transforms = torchvision.transforms._presets.SemanticSegmentation(resize_size=64)
    task = Segmentation((*CLASSES, "else"))
    make = lambda **more: torchvision_segmenter("s", {"p": task}, model, class_map=MAP, **more)  # noqa: E731
    teacher = make(transforms=transforms, categories=CATEGORIES)
    label = teacher.predict(IMAGES[:2])["p"]
    with torch.no_grad():
        logits = model(transforms(torch.from_numpy(IMAGES[:2]).permute(0, 3, 1, 2)))["out"]
        probs = torch.nn.functional.interpolate(logits, (50, 71), mode="bilinear").softmax(1).numpy()
    known = np.stack([probs[:, 2] + probs[:, 3], probs[:, 1]], 1)
    want = np.where(np.maximum(probs[:, 0], probs[:, 4]) > known.max(1), 255, known.argmax(1))
    assert (label["ids"][..., 0] == want).mean() > 0.999 and len(np.unique(want)) > 1
    assert label["known"].tolist() == [[True, True, False]] * 2
    with pytest.raises(UserError, match=r"teacher s: a module needs its transforms=weights.transforms\(\)"):
        make(categories=CATEGORIES)
    with pytest.raises(UserError, match="the names of its labels are not known: give categories"):
        make(transforms=transforms)


class Yolo:
    """What is called as Ultralytics' models are: lists of BGR pictures in, objects with boxes out."""

    names = {0: "person", 2: "car", 3: "truck"}

    def __init__(self):
        self.model, self.calls = torch.nn.Linear(2, 2), []

    def __call__(self, pictures, *, conf, verbose, imgsz=640):
        self.calls.append((len(pictures), conf, verbose, imgsz))
        return [self.found(picture[..., ::-1], conf) for picture in pictures]

    def found(self, rgb, conf):
        """Boxes that depend on each channel of the picture."""
        means = torch.from_numpy(rgb.reshape(-1, 3).mean(0).astype(np.float32))
        corners = torch.arange(8.0)[:, None] + torch.tensor([0.0, 1.0, 20.0, 30.0]) + means[0] / 50
        scores = (torch.linspace(0.1, 0.9, 8) * means[1] / 128).clamp(0, 1)
        ids = torch.tensor([0.0, 2.0, 3.0, 2.0, 0.0, 3.0, 2.0, 0.0])
        kept = scores > conf
        boxes = types.SimpleNamespace(xyxy=corners[kept], conf=scores[kept], cls=ids[kept])
        return types.SimpleNamespace(boxes=boxes, names=self.names)


def test_ultralytics_interface():
    model, task = Yolo(), Detection(("person", "vehicle"), **FORMS)
    teacher = ultralytics_detector(
        "yolo", {"b": task}, model, class_map={"car": "vehicle", "person": "person"}, batch_size=2, imgsz=320
    )
    colors = np.array([[250, 90, 10], [10, 250, 90], [90, 10, 250]], np.uint8)
    images = np.broadcast_to(colors[:, None, None], (3, 50, 71, 3))
    label = teacher.predict(images)["b"]
    assert model.calls == [(2, 0.01, False, 320), (1, 0.01, False, 320)]
    for row in range(2):
        boxes = model.found(images[row], 0.01).boxes
        check(label, row, boxes.xyxy, boxes.conf, [{0: 0, 2: 1, 3: -1}[int(one)] for one in boxes.cls])
    other = Yolo()
    assert (
        ultralytics_detector("y", {"b": task}, other, class_map={"car": "vehicle"}).fingerprint != teacher.fingerprint
    )
    del other.model
    with pytest.raises(UserError, match=r"teacher y: has no state_dict\(\) to tell its weights by: give a fingerprint"):
        ultralytics_detector("y", {"b": task}, other, class_map={"car": "vehicle"})
