"""Values of settings and arguments against their annotations: one line that names the place, whatever the value."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest

import must
from must.core.arguments import converted
from must.core.types import UserError
from must.experiment.run import members
from must.recipes.table import recipe_of
from tests.recipes.test_label import config_of

STRANGE = [
    None,
    -1,
    0.5,
    10**400,
    float("nan"),
    True,
    "",
    "nope",
    (),
    {},
    {1: 2},
    {"kind": 5},
    {"kind": None},
    [{}],
    b"x",
]


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [3, np.int64(3)], [3.5, True, "3", None, ()]),
        (float, [3, 0.5, np.float32(0.5)], [float("nan"), float("inf"), 10**400, "x", False]),
        (bool, [True], [1, "yes"]),
        (Literal["a", 1], ["a", 1], [True, "b", 1.0, []]),
        (tuple[int, int], [(1, 2), [1, 2]], [(1,), 5, "ab", {}, (1, "b")]),
        (Sequence[str] | None, [("a",), []], ["a", 5, (1,)]),
        (Mapping[str, Mapping[str, Any]], [{}, {"a": {"b": 1}}], [5, {1: {}}, {"a": 5}, []]),
        (np.ndarray, [5, None], []),
    ],
)
def test_values(hint, right, wrong):
    for value in right:
        converted(value, hint, "at")
    for value in wrong:
        with pytest.raises(UserError, match="^at"):
            converted(value, hint, "at")


def _places(section, at=()):
    yield at
    if isinstance(section, dict | list | tuple):
        for key, item in section.items() if isinstance(section, dict) else enumerate(section):
            yield from _places(item, (*at, key))


def _put(section, at, value):
    if not at:
        return value
    section = dict(section) if isinstance(section, dict) else list(section)
    section[at[0]] = _put(section[at[0]], at[1:], value)
    return section


def test_strange_values_anywhere_in_a_configuration_are_one_line():
    """Every place gets a few of them: a refusal names something, the rest is read as it stands."""
    config = config_of()
    for number, place in enumerate(list(_places(config))[1:]):
        for value in STRANGE[number % 5 :: 5]:
            changed = _put(copy.deepcopy(config), place, value)
            try:
                recipe = recipe_of(changed)
                recipe.check(members(recipe, changed))
            except UserError as error:
                assert "\n" not in str(error) and str(error), (place, value)


CALLS = {
    "classes is text": lambda: must.Detection("cat"),
    "no classes": lambda: must.Segmentation(()),
    "a class twice": lambda: must.Classification(("a", "a")),
    "a class without name": lambda: must.Action(("",)),
    "a class that is a number": lambda: must.Detection((1, 2)),
    "no boxes": lambda: must.Detection(("a",), max_boxes=0),
    "no strides": lambda: must.Detection(("a",), strides=()),
    "stride 0": lambda: must.Depth(stride=0),
    "depth in text": lambda: must.Depth(max_depth="a"),
    "dropout": lambda: must.Classification(("a",), dropout=2.0),
    "thresholds the wrong way round": lambda: must.labels({"d": must.Depth()}, {"d": must.Policy(0.1, 0.5)}),
    "thresholds NaN": lambda: must.quality(must.Depth(), [], must.Policy(float("nan"), 0)),
    "subset": lambda: must.Subset(must.Scenes(4), count=1.5),
    "repeated": lambda: must.Repeated(must.Scenes(4), 2),
    "weights": lambda: must.Weighted(must.Scenes(4), {"depth": 1.0}),
    "not a data set": lambda: must.source("os:getcwd"),
    "kind is a number": lambda: must.source(5),
    "count in text": lambda: must.source("scenes", count="x"),
    "root is a number": lambda: must.source("photos", root=5),
    "nested nonsense": lambda: must.source("subset", source=5, count=1),
    "teacher of no size": lambda: _teacher(size=(0, 0)),
    "teacher of a side": lambda: _teacher(size=32),
    "teacher of no task": lambda: _teacher(tasks={}),
    "teacher that is no function": lambda: _teacher(predict=5),
    "teacher of a task in text": lambda: _teacher(tasks={"depth": "depth"}),
}


def _teacher(predict=lambda images: {}, tasks=None, size=(32, 32)):
    tasks = {"depth": must.Depth()} if tasks is None else tasks
    return must.from_function("t", predict, tasks, size=size, fingerprint="1")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_calls_are_refused(call):
    with pytest.raises(UserError):
        call()


def test_a_label_pass_refuses_nonsense(tmp_path):
    label = functools.partial(must.label_images, tmp_path / "records", "x", must.Scenes(2, size=32))
    for options in ({"shards": 1.5}, {"batch_size": "a"}, {"max_rejects": 2.0}, {"max_rejects": float("nan")}):
        with pytest.raises(UserError, match=next(iter(options))):
            label([_teacher()], **{"shards": 1, "batch_size": 2, **options})
    with pytest.raises(UserError, match="'a' is no Teacher"):
        label(["a"])


@pytest.mark.parametrize("value", [None, 5, "", b"x", ["a"]])
def test_what_is_no_path_is_one_line(value):
    for make in (must.Records, must.Photos, functools.partial(must.MaskPng, classes=("a",), images="i", masks="m")):
        with pytest.raises(UserError, match="expected the path of a folder"):
            make(value)


def test_an_optimizer_has_steps():
    with pytest.raises(UserError, match="steps=0"):
        must.optimizer(steps=0, learning_rate=0.1)
