"""Sections as dataclasses: parsing, completing, changing; every mistake names the full path of its key."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

from must.core.types import UserError
from must.experiment.sections import Part, by_task, changed, changes, complete, each_changes, parse, part, plain


def circle(radius: float = 1.0, width: int = 2):
    return ("circle", radius, width)


def square(side: float = 1.0, width: int = 3):
    return ("square", side, width)


SHAPES = {"none": None, "circle": circle, "square": square}


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate={self.rate}: must be positive")


@dataclass(frozen=True)
class Outer:
    size: tuple[int, int]
    mode: Literal["fast", "slow"] = "fast"
    on: bool = False
    inner: Inner = Inner()
    shape: Part = part(SHAPES, "circle")
    tasks: Mapping[str, Any] = field(default_factory=dict)
    scales: Mapping[str, float] = by_task(float)
    rules: Mapping[str, Inner] = field(default_factory=dict)
    own: Mapping[str, Any] = changes("shape")
    other_limits: Mapping[str, Any] = changes("limits")
    limits: Mapping[str, Inner] = by_task(Inner)
    arms: Mapping[str, Any] = each_changes("inner")


def test_values_are_converted_and_none_is_the_default():
    outer = parse(Outer, {"size": [3, 4], "inner": {"rate": 1, "names": ["a"]}, "mode": None, "rules": {"x": {}}})
    assert outer == Outer((3, 4), inner=Inner(1.0, ("a",)), rules={"x": Inner()})
    assert isinstance(outer.inner.rate, float) and parse(Outer, plain(outer)) == outer


@pytest.mark.parametrize(
    "section, message",
    [
        ({}, "config.size: required"),
        ({"size": [1]}, r"config.size=\[1\]: expected 2 values"),
        ({"size": "12"}, "config.size='12': expected a list"),
        ({"size": [1, 2.5]}, r"config.size\[1\]=2.5: expected a whole number"),
        ({"size": [1, True]}, r"config.size\[1\]=True: expected a whole number"),
        ({"size": [1, 2], "on": 1}, "config.on=1: expected True or False"),
        ({"size": [1, 2], "mode": "fst"}, "config.mode='fst': did you mean 'fast'"),
        ({"size": [1, 2], "inner": {"rat": 1}}, "config.inner.rat: unknown key; did you mean rate"),
        ({"size": [1, 2], "inner": 3}, "config.inner: expected a section, got 3"),
        ({"size": [1, 2], "inner": {"rate": -1}}, "config.inner.rate=-1.0: must be positive"),
        ({"size": [1, 2], "rules": {"x": {"rate": 0}}}, "config.rules.x.rate=0.0: must be positive"),
        ({"size": [1, 2], "shape": {"kind": "cube"}}, "config.shape.kind='cube': choices"),
        ({"size": [1, 2], "shape": {"side": 2.0}}, "config.shape.side: kind 'circle' has no such argument"),
        ({"size": [1, 2], "shape": {"radius": "wide"}}, "config.shape.radius='wide': expected a finite number"),
        ({"size": [1, 2], "zzz": 1}, "config.zzz: unknown key; known keys: arms, inner"),
    ],
)
def test_mistakes_name_the_key(section, message):
    with pytest.raises(UserError, match=message) as raised:
        parse(Outer, section)
    assert "\n" not in str(raised.value)


def test_changes_reach_nested_keys_and_leave_the_rest():
    outer = parse(Outer, {"size": [1, 2], "inner": {"rate": 0.5, "names": ["a"]}, "shape": {"radius": 7, "width": 9}})
    new = changed(outer, {"inner": {"rate": 0.25, "names": None}, "mode": "slow"}, "config.arms.a")
    assert new.inner == Inner(0.25, ("a",)) and new.mode == "slow" and new.size == (1, 2)
    assert changed(outer, {}, "x") is outer
    with pytest.raises(UserError, match="config.arms.a.inner.rate=-1.0"):
        changed(outer, {"inner": {"rate": -1}}, "config.arms.a")
    # Another kind keeps the arguments that it has too.
    assert changed(outer, {"shape": {"kind": "square"}}, "x").shape == Part("square", (("width", 9),))
    assert changed(outer, {"shape": {"radius": 8}}, "x").shape == Part("circle", (("radius", 8.0), ("width", 9)))
    # An empty mapping empties one.
    outer = parse(Outer, {"size": [1, 2], "scales": {"a": 2.0, "b": 3.0}})
    assert changed(outer, {"scales": {"a": 4.0}}, "x").scales == {"a": 4.0, "b": 3.0}
    assert changed(outer, {"scales": {}}, "x").scales == {}


def test_a_completed_configuration_has_every_key_and_means_the_same():
    section = {"size": (1, 2), "tasks": {"a": {"kind": "k"}}, "arms": {"x": {"rate": 2.0}}, "shape": {"width": 4}}
    config = complete(Outer, section, lambda named: {"depth": 3})
    assert config.shape.radius is None and config.shape.side is None and config.shape.width == 4
    assert config.scales.a is None and config.arms.x.names is None and config.own.width is None
    assert config.tasks.a.depth is None and config.inner.rate == 0.1
    assert config.limits.a.rate == 0.1 and config.other_limits.a.rate is None
    assert replace(parse(Outer, config.to_dict()), limits={}) == parse(Outer, section)
    assert parse(Outer, config.to_dict()).limits == {"a": Inner()}
    config.other_limits.a.rate = 7.0
    assert parse(Outer, config.to_dict()).other_limits == {"a": {"rate": 7.0}}
    config.scales.a, config.arms.x.names, config.own.width, config.inner.rate = 2.0, ("n",), 5, 3.0
    outer = parse(Outer, config.to_dict())
    assert (outer.scales, outer.arms, outer.own) == ({"a": 2.0}, {"x": {"rate": 2.0, "names": ("n",)}}, {"width": 5})
    with pytest.raises(TypeError):
        config.scales.a = "wide"


def test_completing_twice_changes_nothing():
    section = {"size": (1, 2), "shape": {"kind": "square"}, "arms": {"x": {}}}
    once = complete(Outer, section, lambda named: {})
    assert complete(Outer, once, lambda named: {}).to_dict() == once.to_dict()
