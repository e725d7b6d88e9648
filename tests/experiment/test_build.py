"""Objects from settings: backbones, necks, views, balances by kind; mistakes are one line that begins with the path."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from must.core.types import UserError
from must.data import sources
from must.data.augment import Photometric, RandAugment
from must.experiment import build, training
from must.experiment.sections import make, parse
from must.experiment.settings import BALANCES, VIEWS, Network, Run
from must.tasks.classification import Classification
from tests.support.memory_source import Memory

TASKS = {"action": Classification(("left", "right", "still"))}
SMALL = {"kind": "temporal_shift", "depth": 10, "width": 8, "stem": "small", "stages": 2}


@pytest.mark.parametrize(
    "backbone, width",
    [
        (SMALL, 16),
        ({"kind": "r2plus1d", "depth": 10, "width": 8, "stages": 2}, 16),
        ({"kind": "video_transformer", "width": 24, "depth": 1, "temporal_depth": 1, "patch": 8}, 24),
    ],
)
def test_a_section_names_a_backbone_and_needs_no_neck(backbone, width):
    clips = jax.ShapeDtypeStruct((2, 4, 16, 16, 3), jnp.uint8)
    model = build.network(parse(Network, {"backbone": backbone}), TASKS)
    params = jax.eval_shape(model.init, jax.random.key(0), clips)["params"]
    assert set(params) == {"backbone", "heads_action"}
    assert params["heads_action"]["logits"]["kernel"].shape == (width, 3)


def test_equal_settings_give_the_same_network():
    first, second = (build.network(parse(Network, {"backbone": dict(SMALL)}), dict(TASKS)) for _ in range(2))
    assert first is second  # so that compiled programs are found again
    assert build.network(parse(Network, {"backbone": SMALL}), TASKS, {"backbone": {"width": 4}}) is not first


@pytest.mark.parametrize(
    "section, message",
    [
        ({"backbone": {"kind": "tsm"}}, "config.backbone.kind='tsm': choices: 'resnet', "),
        ({"backbone": {"kind": "temporal_shift", "shifts": 3}}, "config.backbone.shifts: unknown key"),
        ({"backbone": {"kind": "temporal_shift", "depth": 19}}, "config.model.backbone: no ResNet of depth 19"),
        ({"backbone": {"kind": "r2plus1d", "depth": 50}}, r"config.model.backbone: no R\(2\+1\)D of depth 50"),
        ({"backbone": {"kind": "video_transformer", "heads": 5}}, "config.model.backbone: width 192 is not a multiple"),
        ({"neck": {"kind": "bifpn"}}, "config.neck.kind='bifpn': did you mean 'fpn'"),
        ({"neck": {"kind": "fpn", "channel": 8}}, "config.neck.channel: unknown key; did you mean channels"),
    ],
)
def test_a_wrong_network_is_one_line(section, message):
    with pytest.raises(UserError, match=f"^{message}[^\n]*$"):
        build.network(parse(Network, section), TASKS)


def test_views_by_kind():
    def view(**section):
        return make(VIEWS, parse(Run, {"view": section}).view, "view")

    assert view() is None and view(kind="none") is None
    assert isinstance(view(kind="photometric", strength=0.5), Photometric)
    strong = view(kind="rand_augment", count=3, operations=["blur", "noise"])
    assert isinstance(strong, RandAugment) and strong.count == 3 and strong.operations == ("blur", "noise")
    for section, message in (
        ({"kind": "auto_augment"}, "config.view.kind='auto_augment'"),
        ({"kind": "rand_augment", "strength": 1.0}, "config.view.strength: kind 'rand_augment' has no such argument"),
        ({"kind": "rand_augment", "operations": ["shear"]}, "view: .*'shear'"),
        ({"kind": "rand_augment", "magnitude": 5}, "view: .*magnitude 5"),
    ):
        with pytest.raises(UserError, match=message):
            view(**section)


def test_balances_by_kind():
    def balance(**section):
        watch = section.pop("watch", False)
        return build.balance(parse(Run, {"balance": section, "watch_gradients": watch}))

    assert balance(kind="famo", decay=0.0).gram is False and balance(watch=True).gram is True
    shared = {"gradnorm", "pcgrad", "cagrad", "nash_mtl", "upgrad"}
    assert {kind for kind in BALANCES if balance(kind=kind).gram} == shared
    for section, message in (
        ({"kind": "fomo"}, "config.balance.kind='fomo': did you mean 'famo'"),
        ({"kind": "famo", "rate": 1}, "config.balance.rate: unknown key"),
        ({"kind": "upgrad", "seed": 1}, "config.balance.seed: kind 'upgrad' has no such argument; it has none"),
    ):
        with pytest.raises(UserError, match=message):
            balance(**section)


def test_what_a_task_leaves_out_comes_from_its_training_labels():
    def boxes(count):
        return {"detection": {"boxes": np.zeros((count, 4)), "classes": np.zeros(count), "scores": np.ones(count)}}

    def meters(farthest):
        codes = np.array([[0, 1000], [2000, int(1000 * farthest)]], np.uint16)
        return {"depth": {"depth": codes, "scale": 0.001, "offset": 0.0}}

    sources = {
        "detection": Memory("a", [boxes(3), boxes(150)], {"detection": ("x",)}),
        "depth": Memory("b", [meters(3.0), meters(61.0)]),
    }
    made = build.tasks({"detection": {"kind": "detection"}, "depth": {"kind": "depth"}}, sources)
    assert made["detection"].max_boxes == 192 and made["depth"].max_depth == 67.0
    told = {"detection": {"kind": "detection", "max_boxes": 5}, "depth": {"kind": "depth", "max_depth": 9.0}}
    for unread in sources.values():
        unread.labels = None  # nothing is read of which nothing is needed
    build.defaults.cache_clear()
    made = build.tasks(told, sources)
    assert made["detection"].max_boxes == 5 and made["depth"].max_depth == 9.0
    few = {"detection": Memory("c", [boxes(2)], {"detection": ("x",)})}
    assert build.tasks({"detection": {"kind": "detection"}}, few)["detection"].max_boxes == 32  # a pool may be fuller


def test_none_is_the_default_of_a_source(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    assert len(sources.source("photos", root=str(tmp_path), name=None)) == 1


def test_a_task_whose_loss_is_always_zero_is_named(tmp_path):
    lines = [{"step": s, "loss": 1.0, "loss/a/x": 0.0, "loss/a/y": 0.0, "loss/b/x": float(s == 2)} for s in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training._never_learned(str(tmp_path)) == ["a"]
    assert training._never_learned(str(tmp_path), least=6) == [] and training._never_learned(str(tmp_path / "x")) == []
