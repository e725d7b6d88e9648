"""Labels of actions follow mirroring and reversal as declared, and nothing is assumed where nothing is declared."""

import jax.numpy as jnp
import numpy as np
import pytest

from must.core import labels
from must.core.types import UserError
from must.data.geometry import whole_image
from must.tasks.action import Action
from must.tasks.base import build
from must.tasks.classification import Classification
from tests.support.clip_sets import numbered

CLASSES = ("pan_left", "pan_right", "tilt_up", "roll", "stand")
TASK = Action(
    CLASSES, mirrored={"pan_left": "pan_right", "roll": ""}, reversed={"tilt_up": "", "pan_left": "pan_right"}
)
PLAIN = whole_image((6, 8), (6, 8))
FLIP, BACK = PLAIN._replace(flip=True), PLAIN._replace(reverse=True)
BOTH = FLIP._replace(reverse=True)


def probs(task, name, geometry):
    return CLASSES[task.transform(labels.classification(CLASSES.index(name)), geometry)["probs"].argmax()]


def test_one_direction_of_a_pair_is_enough():
    assert [probs(TASK, name, FLIP) for name in ("pan_left", "pan_right", "stand")] == [
        "pan_right",
        "pan_left",
        "stand",
    ]
    assert [probs(TASK, name, BOTH) for name in ("pan_left", "stand")] == ["pan_left", "stand"]
    spelt = Action(
        CLASSES, mirrored={"pan_right": "pan_left", "pan_left": "pan_right", "roll": ""}, reversed=TASK.reversed
    )
    assert spelt == TASK and hash(spelt) == hash(TASK)
    assert build("action", classes=CLASSES, mirrored=dict(TASK.mirrored), reversed=TASK.reversed) == TASK


def test_admissible_takes_off_what_the_label_cannot_follow():
    def allowed(task, name):
        left = task.admissible(labels.classification(CLASSES.index(name)), BOTH)
        return left.flip, left.reverse

    left = [(True, True), (True, True), (True, False), (False, True), (True, True)]
    assert [allowed(TASK, name) for name in CLASSES] == left
    assert {allowed(Action(CLASSES), name) for name in CLASSES} == {(False, False)}
    assert {allowed(Action(CLASSES, mirrored={}), name) for name in CLASSES} == {(True, False)}
    soft = {"ids": np.array([0], np.uint16), "probs": np.array([0.9], np.float16), "rest": np.float16(0.1)}
    assert not TASK.admissible(soft, FLIP).flip  # the rest may be "roll"
    assert Classification(CLASSES).admissible(soft, BOTH) == BOTH


def test_a_label_that_cannot_follow_is_not_moved_silently():
    for task, name, geometry in ((TASK, "roll", FLIP), (TASK, "tilt_up", BACK), (Action(CLASSES), "stand", FLIP)):
        with pytest.raises(ValueError, match="not declared"):
            probs(task, name, geometry)


@pytest.mark.parametrize("geometry", [PLAIN, FLIP, BACK, BOTH])
def test_restore_undoes_transform(geometry):
    three = Action(("a", "b", "c"), mirrored={"a": "b"}, reversed={"b": "c"}, top_k=3)  # which do not commute
    probs = np.array([0.5, 0.375, 0.125], np.float16)
    label = {"ids": np.array([1, 0, 2], np.uint16), "probs": probs, "rest": np.float16(0)}
    back = three.restore(three.transform(label, geometry), geometry)
    for field, value in label.items():
        np.testing.assert_array_equal(back[field], value)


def test_flip_testing_permutes_logits():
    task = Action(CLASSES, mirrored={"pan_left": "pan_right"})
    logits = jnp.array([[5.0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(task.hflip_outputs(logits), [[1, 5, 2, 3, 4]])
    label = {"probs": np.asarray(task.predict(logits)["probs"])[0]}
    mirrored = task.transform(labels.classification(int(label["probs"].argmax())), FLIP)["probs"]
    assert mirrored.argmax() == task.hflip_outputs(logits)[0].argmax()
    for refused, why in ((Action(CLASSES), "not declared"), (TASK, "'roll' no class")):
        with pytest.raises(UserError, match=why):
            refused.hflip_outputs(logits)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mirrored": {"pan_left": "pan_rihgt"}}, "mirrored names 'pan_rihgt', which is not one of the 5"),
        ({"reversed": {"": "roll"}}, "reversed names ''"),
        ({"reversed": {"": ""}}, "reversed names ''"),
        ({"mirrored": {"pan_left": "pan_right", "pan_right": "stand"}}, "done twice"),
        ({"mirrored": {"pan_left": "pan_right", "stand": "pan_right"}}, "done twice"),
        ({"mirrored": {"pan_left": "pan_right", "pan_right": ""}}, "done twice"),
    ],
)
def test_declarations_that_cannot_be_right(change, says):
    with pytest.raises(UserError, match=says):
        Action(CLASSES, **change)


def test_a_strip_shows_the_clip_in_order():
    label = {"probs": np.eye(5, dtype=np.float32)[1]}
    strip = TASK.draw(numbered(0, 9, (96, 96)), label)
    still = Classification(CLASSES).draw(numbered(0, 1, (96, 96))[0], label)
    assert strip.dtype == np.uint8 and strip.shape[1] == 4 * 96 and strip.shape[0] - 96 == still.shape[0] - 192
    assert strip[0, ::96, 1].tolist() == [0, 3, 5, 8]
    np.testing.assert_array_equal(TASK.draw(numbered(0, 1, (96, 96))[0], label), still)
