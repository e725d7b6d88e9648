"""From pretrained networks of another library and a folder of photos to a step of a student."""

import functools

import jax
import numpy as np
import pytest

from tests.support.tiny_pretrained import made  # isort: skip  (torchvision, before transformers)

from must.core.devices import parallelize
from must.core.types import Policy, UserError
from must.data.pipeline import Encoder, train_batches
from must.models.fpn import FPN
from must.models.multi_head import multi_head
from must.models.resnet import ResNet
from must.objectives import balance
from must.objectives.labels import labels
from must.objectives.objective import objective
from must.readers.records import Records
from must.tasks.base import build
from must.train import state
from must.train.optimizer import optimizer
from must.train.step import train_step
from tests.support.configs import run

KINDS = {"detection": "rt_detr", "segmentation": "segformer", "depth": "depth_anything"}
MAKERS = {"detection": "hf_detector", "segmentation": "hf_segmenter", "depth": "hf_depth"}
TASKS = {
    "detection": {"kind": "detection", "classes": ("person", "car"), "strides": (8,), "width": 8, "depth": 1},
    "segmentation": {"kind": "segmentation", "classes": ("car", "dog"), "head_stride": 8, "width": 8, "depth": 1},
    "depth": {"kind": "depth", "depth_kind": "relative", "head_stride": 8, "width": 8, "depth": 1},
}
COUNT = 4


@pytest.fixture(scope="module")
def records(tmp_path_factory, data_pack):
    """Directory of the records of a label recipe over photos of several sizes, whose teachers lie in directories."""
    top = tmp_path_factory.mktemp("pass")
    names = sorted(path.name for path in (data_pack / "unlabeled_photos" / "images").iterdir())[:COUNT]
    (top / "list.txt").write_text("\n".join(names))
    (top / "map.txt").write_text("dog -> dog\ncar -> car\ntruck -> car\n* -> ignore\n")
    maps = {"detection": {"person": "person", "car": "car"}, "segmentation": str(top / "map.txt")}
    teachers = {}
    for task, kind in KINDS.items():
        for part in made(kind):
            part.save_pretrained(top / kind)
        mapped = {"class_map": maps[task]} if task in maps else {}
        teachers[task] = {"make": f"must:{MAKERS[task]}", "model": str(top / kind), **mapped}
    images = {
        "kind": "photos",
        "root": str(data_pack / "unlabeled_photos"),
        "images": "images",
        "ids": str(top / "list.txt"),
    }
    config = {
        "recipe": "label",
        "title": "photos",
        "workers": 1,
        "image": {"size": (64, 64)},
        "tasks": TASKS,
        "images": {"photos": images},
        "teachers": teachers,
        "label": {"shards": 2, "batch_size": 2},
    }
    run(config, top / "run", stage="label")
    return top / "run" / "pseudo_labels" / "pool" / "1.0.0"


def test_tfds_reads_what_the_teachers_predict(records):
    import tensorflow_datasets as tfds

    read = tfds.builder_from_directory(str(records)).as_data_source("train")
    ours = Records(records)
    assert len(read) == len(ours) == COUNT and len({ours[index].image.shape for index in range(COUNT)}) > 1
    for index in range(COUNT):
        one, label = read[index], ours[index].labels
        height, width = ours[index].image.shape[:2]
        np.testing.assert_array_equal(one["detection"]["boxes"], label["detection"]["boxes"])
        assert (one["detection"]["boxes"].reshape(-1, 2) <= [width, height]).all()
        assert bool(one["depth"]["inverse"]) is True and (label["depth"]["scores"] == 254).all()
        assert (
            label["depth"]["depth"].shape == label["segmentation"]["ids"].shape[:2] == (-(-height // 4), -(-width // 4))
        )
    assert "inverse depth, right up to scale and shift" in str(ours.specs["depth"]["depth"].doc)


def test_a_student_takes_a_step_on_them(records):
    tasks = {name: build(**section) for name, section in TASKS.items()}
    encoder, policies = Encoder(tasks, (64, 64)), dict.fromkeys(tasks, Policy(0.3, 0.1))
    batch = next(iter(train_batches(Records(records), encoder, batch_size=COUNT, seed=0)))
    model = multi_head(ResNet(10, width=8, stages=2), FPN(8, (8,)), {name: task.head() for name, task in tasks.items()})
    minimized = objective(model, [labels(tasks, policies)], scales=dict.fromkeys(tasks, 1.0))
    tx, plain = optimizer(steps=10, learning_rate=1e-2), balance.fixed()
    step = parallelize(functools.partial(train_step, objective=minimized, balance=plain, tx=tx))
    variables = model.init(jax.random.key(0), batch.inputs["image"])
    before = state.create(jax.random.key(1), variables, minimized, plain, tx)
    after, logs = step(before, batch, None)
    values = {name: float(value) for name, value in logs.items() if np.ndim(value) == 0}
    terms = [value for name, value in values.items() if name.startswith("loss") and "depth" in name]
    assert np.isfinite(list(values.values())).all() and terms and min(terms) > 0.05, values
    for name in ("detection", "segmentation", "depth"):
        moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), after.params["model"], before.params["model"])
        assert max(jax.tree.leaves(moved[f"heads_{name}"])) > 0, name


def test_a_metric_student_refuses_inverse_depth_by_record(records):
    tasks = {"depth": build(**{**TASKS["depth"], "depth_kind": "metric"})}
    with pytest.raises(
        UserError, match=r"unlabeled_photos.*depth.*inverse depth without scale, which a metric task cannot"
    ):
        next(iter(train_batches(Records(records), Encoder(tasks, (64, 64)), batch_size=2, seed=0)))
