"""An image annotated for some classes of a task keeps the teacher's labels for the others."""

import numpy as np
import pytest

from must.core import labels as forms
from must.data.classes import aligned
from must.data.merge import Overlay, completed
from must.data.pipeline import Encoder, eval_batches
from must.tasks.detection import Detection
from must.tasks.segmentation import Segmentation
from tests.support.memory_source import Memory

OLD = ("cat", "dog")
SPACE = (*OLD, "emu")


def predicted(boxes, classes, scores, unknown=()):
    label = forms.detection(boxes, classes, np.zeros(len(classes), bool), unknown)
    return {**label, "scores": np.array(scores, np.float16)}


def test_boxes_of_other_classes_stay_unless_they_show_a_true_object():
    truth = forms.detection([[0, 0, 4, 4]], [2], [False], unknown=[0, 1])
    pseudo = predicted(
        [[0, 0, 4, 4], [0, 0, 4, 2], [5, 5, 8, 8], [1, 1, 2, 2], [5, 0, 8, 3]],
        [0, 0, 1, 1, 2],
        [0.9, 0.8, 0.7, 0.3, 0.6],
    )
    label = completed(truth, pseudo)
    # The first one is the true object (IoU 1), the second has an IoU of exactly 0.5, the last one is of a known class.
    assert label["boxes"].tolist() == [[0, 0, 4, 4], [0, 0, 4, 2], [5, 5, 8, 8], [1, 1, 2, 2]]
    assert label["classes"].tolist() == [2, 0, 1, 1] and label["unknown"].tolist() == []
    assert label["scores"].tolist() == [1, *np.array([0.8, 0.7, 0.3], np.float16).tolist()]
    assert {name: value.dtype for name, value in label.items()} == {name: value.dtype for name, value in truth.items()}


def test_what_is_unknown_to_both_stays_unknown():
    truth = forms.detection([[0, 0, 4, 4]], [2], [False], unknown=[0, 1])
    label = completed(truth, predicted([[5, 5, 8, 8]], [1], [0.7], unknown=[0, 2]))
    assert label["unknown"].tolist() == [0] and label["classes"].tolist() == [2, 1]


def test_an_annotation_of_all_classes_is_kept_as_it_is():
    truth, pseudo = forms.detection([[0, 0, 4, 4]], [2], [False]), predicted([[5, 5, 8, 8]], [1], [0.7])
    assert completed(truth, pseudo) is truth
    mask = forms.segmentation(np.full((4, 4), 255))
    assert completed(mask, forms.segmentation(np.zeros((4, 4)))) is mask
    picture = forms.classification(2, unknown=[0, 1])
    assert completed(picture, forms.classification(0)) is picture


@pytest.mark.parametrize("shape", [(8, 8), (4, 4), (16, 16), (3, 5)])
@pytest.mark.parametrize("depth", [1, 2])
def test_unlabeled_pixels_take_the_classes_that_the_annotation_does_not_know(shape, depth):
    ids = np.full((8, 8), 255, np.uint8)
    ids[:, :2] = 2
    truth = forms.segmentation(ids, unknown=[0, 1])
    pseudo = np.stack([np.zeros(shape, np.uint8), np.full(shape, 1, np.uint8)][:depth], -1)
    pseudo[shape[0] // 2 :, :, 0] = 2  # emus that the truth would show
    label = completed(
        truth, {"ids": pseudo, "probs": np.full(pseudo.shape, 100, np.uint8), "unknown": np.zeros(0, np.uint16)}
    )
    assert label["ids"].shape == (8, 8, depth) and label["unknown"].tolist() == []
    assert (label["ids"][:, :2, 0] == 2).all() and (label["probs"][:, :2, 0] == 255).all()
    assert (label["ids"][:3, 2:, 0] == 0).all() and (label["probs"][:3, 2:, 0] == 100).all()
    assert (label["ids"][-3:, 2:, 0] == 255).all()


def test_through_sources_and_rows():
    """A new class is annotated on one picture, by a set that knows no other; the teacher knows the old ones."""
    keys = ["s/0", "s/1"]
    found = [predicted([[4, 4, 8, 8], [0, 0, 4, 4]], [1, 0], [0.8, 0.9]), predicted([[0, 0, 4, 4]], [0], [0.9])]
    teacher = Memory("records", [{"kind": one} for one in found], {"kind": OLD}, keys)
    truth = Memory("s", [{"kind": forms.detection([[0, 0, 4, 4]], [0], [False])}], {"kind": ("emu",)}, keys[:1])
    everything = Memory("t", [], {"kind": SPACE})
    data = Overlay(teacher, [everything, truth])
    assert data.classes["kind"] == SPACE
    task = Detection(SPACE, strides=(8,), max_boxes=4, min_size=1.0)
    (batch,) = eval_batches(data, Encoder({"kind": task}, (8, 8)), batch_size=2)
    rows = batch.labels["kind"]
    assert rows["known"].tolist() == [[True, True, True], [True, True, False]]
    assert [sorted(rows["classes"][i][rows["valid"][i]].tolist()) for i in range(2)] == [[1, 2], [0]]
    mask = np.full((8, 8), 255)
    mask[:4] = 0
    teacher = Memory("records", [{"kind": forms.segmentation(np.full((8, 8), 1))}] * 2, {"kind": OLD}, keys)
    truth = Memory("s", [{"kind": forms.segmentation(mask)}], {"kind": ("emu",)}, keys[:1])
    data = Overlay(teacher, [everything, truth])
    task = Segmentation(SPACE)
    (batch,) = eval_batches(data, Encoder({"kind": task}, (8, 8)), batch_size=2)
    rows = batch.labels["kind"]
    assert rows["ids"][0, ::4, 0, 0].tolist() == [2, 1] and rows["known"].tolist() == [[True] * 3, [True, True, False]]


@pytest.mark.parametrize("name", ["background", "_background_"])
def test_a_background_does_not_hide_what_the_annotation_does_not_know(name):
    """A mask of cats alone says "background" over the emus, which the teacher sees."""
    masks = [[0, 1, 0, 0]], [[2, 2, 2, 0]]
    truth, pseudo = (
        Memory(kind, [{"segmentation": forms.segmentation(np.repeat(mask, 4, 0))}], {"segmentation": names}, ["p/0"])
        for kind, mask, names in zip(("truth", "pseudo"), masks, ((name, "cat"), (name, "cat", "emu")), strict=True)
    )
    truth = aligned(truth, pseudo.classes)
    label = Overlay(pseudo, [truth]).labels(0)["segmentation"]
    assert label["ids"][0, :, 0].tolist() == [2, 1, 2, 0] and label["unknown"].tolist() == []
