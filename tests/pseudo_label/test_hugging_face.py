"""Pretrained networks of other libraries as teachers, against the libraries' own post-processing."""

import functools
import warnings

import numpy as np
import pytest

from must.core.labels import SUREST
from must.core.notices import Notice
from must.core.types import UserError
from must.experiment.external import external_teacher
from must.pseudo_label.adapters import pretrained
from must.pseudo_label.adapters.hugging_face import hf_depth, hf_detector, hf_segmenter
from must.pseudo_label.adapters.vision import torchvision_segmenter
from must.pseudo_label.write import label_images
from must.readers.records import Records
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.segmentation import Segmentation
from tests.support.memory_source import Memory
from tests.support.tiny_pretrained import LABELS, made, torch

RNG = np.random.default_rng(0)
CLASSES = ("vehicle", "person")
MAP = {"car": "vehicle", "truck": "vehicle", "person": "person"}
BOXES = Detection(CLASSES, score_floor=0.02, max_detections=100)


def picture(height, width):
    """Blocks of colors, so that networks see different things in different places."""
    colors = RNG.integers(0, 256, (-(-height // 9), -(-width // 9), 3), np.uint8)
    return colors.repeat(9, 0).repeat(9, 1)[:height, :width]


def photos(pictures):
    return Memory("photos", [{}] * len(pictures), images=pictures)


PICTURES = [picture(50, 71), picture(90, 64), picture(50, 71)]


@functools.cache
def outputs_of(kind, index, text=None):
    """The library's own preprocessing and network for one picture."""
    model, processor = made(kind)
    words = {} if text is None else {"text": [list(text)]}
    inputs = processor(images=PICTURES[index], return_tensors="pt", **words)
    with torch.no_grad():
        return inputs, model(**inputs)


def size_of(index):
    return PICTURES[index].shape[:2]


def found_by(label):
    """Boxes, scores and classes of the first row of a label in network form, in falling order of the scores."""
    valid = label["valid"][0]
    return [np.asarray(label[field])[0][valid] for field in ("boxes", "scores", "classes")]


def check_boxes(label, found, classes, size):
    """The first row of a label against the library's boxes, whose classes are ids or -1 for what is dropped."""
    found = {field: found[field].numpy() for field in ("boxes", "scores")}
    order = [one for one in np.argsort(-found["scores"], kind="stable") if classes[one] >= 0]
    boxes, scores, ids = found_by(label)
    assert 3 < len(order) == len(boxes)
    np.testing.assert_allclose(scores, np.minimum(found["scores"][order], SUREST), rtol=1e-5)
    np.testing.assert_allclose(boxes, np.clip(found["boxes"][order], 0, [*size[::-1]] * 2), atol=1e-3)
    np.testing.assert_array_equal(ids, np.asarray(classes)[order])
    return set(ids.tolist())


@pytest.mark.parametrize("kind", ["detr", "rt_detr"])
def test_detectors_of_fixed_labels(kind):
    model, processor = made(kind)
    with pytest.warns(Notice, match=r"2 of its 5 labels are no class of objects and are dropped: 'N/A', 'dog'"):
        teacher = hf_detector(kind, {"objects": BOXES}, model, processor=processor, class_map=MAP)
    assert teacher.size is None
    seen = set()
    for index in range(2):
        _, outputs = outputs_of(kind, index)
        (found,) = processor.post_process_object_detection(outputs, threshold=0.02, target_sizes=[size_of(index)])
        goal = [(-1, 1, 0, 0, -1)[one] for one in found["labels"]]
        assert -1 in goal
        seen |= check_boxes(teacher.predict(PICTURES[index][None])["objects"], found, goal, size_of(index))
    assert seen == {0, 1}


def test_a_detector_that_is_prompted_by_tokens():
    model, processor = made("grounding_dino")
    prompts = {"a cat": "animal", "remote control": "thing", "red dog": "animal"}
    task = Detection(("thing", "animal", "else"), score_floor=0.02, max_detections=100)
    teacher = hf_detector("prompted", {"objects": task}, model, processor=processor, class_map=prompts)
    label = teacher.predict(PICTURES[0][None])["objects"]
    assert label["known"].tolist() == [[True, True, False]]

    inputs, outputs = outputs_of("grounding_dino", 0, tuple(prompts))
    ids = inputs["input_ids"][0].tolist()
    probs = outputs.logits[0].sigmoid().numpy()
    stops = [place for place, one in enumerate(ids) if one == 5]  # the full stop behind each prompt
    spans = [range(begin + 1, end) for begin, end in zip([0, *stops], stops, strict=False)]
    assert [len(span) for span in spans] == [2, 2, 2]
    each = np.stack([probs[:, list(span)].max(-1) for span in spans], -1)
    kept = np.flatnonzero(each.max(-1) > 0.02)
    every = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=-1, target_sizes=[size_of(0)]
    )
    found = {"boxes": every[0]["boxes"][kept], "scores": torch.from_numpy(each.max(-1)[kept])}
    goal = [(1, 0, 1)[one] for one in each.argmax(-1)[kept]]
    assert len(check_boxes(label, found, goal, size_of(0))) > 1
    # The library's score is that of the best token of all; where that is one of a prompt's, it is ours.
    own = every[0]["scores"].numpy()[kept] == each.max(-1)[kept]
    assert own.mean() > 0.2


def test_a_detector_that_is_prompted_by_pictures_of_words():
    model, processor = made("owlvit")
    prompts = ("a cat", "a red dog", "dog")
    task = Detection(("cat", "dog"), score_floor=0.02, max_detections=100)
    goal = dict(zip(prompts, ("cat", "dog", "dog"), strict=True))
    teacher = hf_detector("owl", {"objects": task}, model, processor=processor, class_map=goal, batch_size=1)
    pair = np.stack([PICTURES[0], PICTURES[2]])
    label = teacher.predict(pair)["objects"]
    _, outputs = outputs_of("owlvit", 0, prompts)
    (found,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0.02, target_sizes=[size_of(0)], text_labels=[list(prompts)]
    )
    ids = [("cat", "dog").index(goal[text]) for text in found["text_labels"]]
    assert check_boxes(label, found, ids, size_of(0)) == {0, 1}
    assert not np.allclose(label["boxes"][0], label["boxes"][1])


@pytest.mark.parametrize("kind", ["segformer", "upernet", "mask2former"])
def test_segmenters(kind):
    model, processor = made(kind)
    index = {"segformer": 0, "upernet": 1, "mask2former": 0}[kind]
    _, outputs = outputs_of(kind, index)
    (want,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size_of(index)])
    task = Segmentation(LABELS[::-1])
    label = hf_segmenter(kind, {"pixels": task}, model, processor=processor).predict(PICTURES[index][None])["pixels"]
    np.testing.assert_array_equal(label["ids"][0, ..., 0], 4 - want.numpy())  # the same names in another order
    assert len(np.unique(want)) > 1 and "known" not in label

    (found,) = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[size_of(index)], return_segmentation_scores=True
    )
    scores = found["segmentation_scores"].numpy()
    probs = np.exp(scores) / np.exp(scores).sum(0)
    if kind == "mask2former":
        probs = scores / np.maximum(scores.sum(0), 1)
    np.testing.assert_allclose(label["probs"][0, ..., 0], np.minimum(255 * probs.max(0), 254), atol=0.51)

    few = hf_segmenter(kind, {"pixels": Segmentation((*CLASSES, "else"))}, model, processor=processor, class_map=MAP)
    label = few.predict(np.stack([PICTURES[index]] * 2))["pixels"]
    vehicle, person, other = probs[2] + probs[3], probs[1], np.maximum(probs[0], probs[4])
    want = np.where(other > np.maximum(vehicle, person), 255, person > vehicle)
    assert (label["ids"][..., 0] == want).mean() > 0.999 and 255 in want  # but of equals
    assert label["known"].tolist() == [[True, True, False]] * 2


@pytest.mark.parametrize("kind", ["depth_anything", "metric_depth_anything", "dpt"])
def test_depth_is_metric_or_inverse(kind):
    model, processor = made(kind)
    metric, stated = kind.startswith("metric"), {"kind": "inverse"} if kind == "dpt" else {}
    make = functools.partial(hf_depth, kind, model=model, processor=processor)
    task = Depth(depth_kind="metric" if metric else "relative", max_depth=30.0 if metric else 10.0)
    teacher = make({"depth": task}, **stated)
    for index in range(2):
        _, outputs = outputs_of(kind, index)
        (found,) = processor.post_process_depth_estimation(outputs, target_sizes=[size_of(index)])
        values = found["predicted_depth"].numpy().reshape(size_of(index))
        depth = teacher.predict(PICTURES[index][None])["depth"]["depth"][0].astype(np.float64)
        if metric:
            np.testing.assert_allclose(depth, np.where(values > 0, values, 0), rtol=1e-5)
        else:
            slope, shift = np.polyfit(values.ravel(), 1 / depth.ravel(), 1)
            assert slope > 0 and depth.min() == pytest.approx(0.1) and depth.max() == pytest.approx(10, rel=1e-4)
            np.testing.assert_allclose(slope * values + shift, 1 / depth, atol=1e-3)
    if kind == "dpt":
        with pytest.raises(UserError, match=r"teacher dpt: kind='': dpt does not tell whether it predicts meters"):
            make({"depth": task})
    if not metric:
        with pytest.raises(UserError, match="predicts inverse depth up to scale and shift, from which metric 'depth'"):
            make({"depth": Depth()}, **stated)


def test_records_hold_what_the_networks_say_of_each_picture_in_its_own_size(tmp_path):
    kinds = {
        "boxes": ("rt_detr", hf_detector),
        "pixels": ("segformer", hf_segmenter),
        "depth": ("depth_anything", hf_depth),
    }
    tasks = {
        "boxes": Detection(LABELS, score_floor=0.02, max_detections=100),
        "pixels": Segmentation(LABELS, stride=1),
        "depth": Depth(depth_kind="relative", stride=1),
    }
    teachers = [
        make(kind, {key: tasks[key]}, made(kind)[0], processor=made(kind)[1]) for key, (kind, make) in kinds.items()
    ]
    source = photos(PICTURES)
    label_images(tmp_path / "1.0.0", "mixed", source, teachers, shards=1, batch_size=4)
    records = Records(tmp_path / "1.0.0")
    for index, size in enumerate([size_of(0), size_of(1), size_of(2)]):
        labels, outputs = records[index].labels, {key: outputs_of(kind, index)[1] for key, (kind, _) in kinds.items()}
        post = {key: made(kind)[1] for key, (kind, _) in kinds.items()}
        (found,) = post["boxes"].post_process_object_detection(outputs["boxes"], threshold=0.02, target_sizes=[size])
        order = np.argsort(-found["scores"].numpy(), kind="stable")
        corners = np.clip(found["boxes"].numpy()[order], 0, [*size[::-1]] * 2)
        np.testing.assert_allclose(labels["boxes"]["boxes"], corners, atol=1e-3)
        (ids,) = post["pixels"].post_process_semantic_segmentation(outputs["pixels"], target_sizes=[size])
        np.testing.assert_array_equal(labels["pixels"]["ids"][..., 0], ids)
        (depth,) = post["depth"].post_process_depth_estimation(outputs["depth"], target_sizes=[size])
        assert labels["depth"]["inverse"] and labels["depth"]["depth"].shape == size
        values = depth["predicted_depth"].numpy().reshape(size)
        unit = (values - values.min()) / np.ptp(values)
        np.testing.assert_allclose((labels["depth"]["depth"] - 1.0) / 65534, unit, atol=2e-5)


class _Seen(torch.nn.Module):
    """Logits of what color each pixel has: its red is one of four."""

    def forward(self, pixels):
        return {"out": torch.nn.functional.one_hot(pixels[:, 0].long() // 64, 4).movedim(-1, 1) * 20.0}


def test_pixels_stay_where_they_are_and_large_pictures_get_smaller(tmp_path, monkeypatch):
    names, task = tuple("abcd"), Segmentation(tuple("abcd"), stride=1)
    teacher = torchvision_segmenter("eye", {"p": task}, _Seen(), transforms=lambda x: x, categories=names)
    pictures = [picture(33, 47), picture(20, 61)]
    label_images(tmp_path / "a" / "1.0.0", "a", photos(pictures), [teacher], shards=1, batch_size=2)
    for index, image in enumerate(pictures):
        labels = Records(tmp_path / "a" / "1.0.0")[index].labels["p"]
        np.testing.assert_array_equal(labels["ids"][..., 0], image[..., 0] // 64)

    wide = np.zeros((12, 80, 3), np.uint8)
    wide[:, 27:, 0] = 255
    monkeypatch.setattr("must.pseudo_label.infer._LONGEST", 40)
    monkeypatch.setattr(pretrained, "_LARGEST_MAP", 100)  # the 6 x 40 pixels it sees become 3 x 20
    seen = []
    watched = teacher._replace(predict=lambda images: seen.append(images.shape) or teacher.predict(images))
    label_images(tmp_path / "b" / "1.0.0", "b", photos([wide]), [watched], shards=1, batch_size=1)
    ids = Records(tmp_path / "b" / "1.0.0")[0].labels["p"]["ids"][..., 0]
    assert seen == [(1, 6, 40, 3)] and ids.shape == (12, 80)
    assert abs((ids == 3).sum(1) - 53).max() <= 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"persn": "person"}, "class_map of objects: 'persn' is not a source class; nearest is 'person'"),
        ({"person": "peson"}, "class_map of objects: 'peson' is not a target class; nearest is 'person'"),
        (None, "class_map of objects: 'vehicle' is not a source class"),
        ({}, "class_map of objects: no label is one of the classes vehicle, person"),
        ({**MAP, "dog": "ignore"}, "class_map: 'ignore' is for pixels; boxes of no class are 'unknown'"),
    ],
)
def test_class_maps_that_do_not_fit_are_refused(given, message):
    model, processor = made("rt_detr")
    with pytest.raises(UserError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf_detector("d", {"objects": BOXES}, model, processor=processor, class_map=given)


def test_prompts_that_do_not_fit_are_refused():
    model, processor = made("grounding_dino")
    make = functools.partial(hf_detector, "p", {"objects": BOXES}, model, processor=processor)
    with pytest.raises(UserError, match="the prompt 'a cat.' holds '.' or '?'"):
        make(class_map={"a cat.": "person"})
    with pytest.raises(UserError, match="12 prompts are 26 tokens, it takes 24: make two teachers"):
        make(class_map={"cat" + " " * k: "person" for k in range(12)})
    with pytest.raises(UserError, match="a module needs its processor"):
        hf_detector("p", {"objects": BOXES}, model)
    with pytest.raises(UserError, match="labels one task, not a, b"):
        hf_detector("p", {"a": BOXES, "b": BOXES}, model, processor=processor)


def test_a_configuration_names_a_directory_and_the_fingerprint_follows_its_content(tmp_path):
    model, processor = made("rt_detr")
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    section = {"make": "must:hf_detector", "model": str(tmp_path / "m"), "class_map": MAP}
    teacher = external_teacher("objects", section, {"objects": BOXES}, (64, 64))
    direct = hf_detector("d", {"objects": BOXES}, model, processor=processor, class_map=MAP)
    assert teacher.size is None and teacher.fingerprint == direct.fingerprint
    for one, other in zip(*(found_by(t.predict(PICTURES[0][None])["objects"]) for t in (teacher, direct)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    (tmp_path / "map.txt").write_text("car -> vehicle\n* -> unknown\n")
    other = external_teacher(
        "objects", {**section, "class_map": str(tmp_path / "map.txt")}, {"objects": BOXES}, (64, 64)
    )
    assert other.fingerprint != direct.fingerprint
    with pytest.raises(UserError, match=r"teacher objects: .*/none"):
        external_teacher("objects", {**section, "model": str(tmp_path / "none")}, {"objects": BOXES}, (64, 64))
