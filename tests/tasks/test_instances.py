"""Masks: exact in records, moved with their boxes, learned where boxes are found, scored as COCO's own tool does."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core import labels as forms
from must.core.types import LabelError, Policy, UserError
from must.data.classes import ClassMap, remap
from must.data.geometry import own_frame, whole_image
from must.data.merge import completed
from must.data.sources import source
from must.export.labels import export_labels
from must.readers.label_files import LabelFiles
from must.tasks.base import Task, build, describe
from tests.support import folder_sets as sets
from tests.support.memory_source import Memory

NAMES, SIZE = ("a", "b"), (32, 40)
SMALL = {
    "strides": (8, 16),
    "width": 8,
    "hidden": 8,
    "candidates": 20,
    "proposals": 6,
    "mask_width": 4,
    "mask_depth": 1,
}
TASK = build("instances", classes=NAMES, max_boxes=5, max_detections=4, **SMALL)
HARD = Policy(np.float32([0.5] * 2), np.float32([0.5] * 2))


def random_label(rng, count, size=SIZE, scores=False, crowd=False):
    """Blobs, some of one pixel, in boxes around them."""
    y, x = np.mgrid[: size[0], : size[1]]
    masks, boxes = [], []
    for _ in range(count):
        cy, cx = rng.uniform(4, size[0] - 4), rng.uniform(4, size[1] - 4)
        ry, rx = rng.uniform(1.0, 9, 2)
        mask = ((y + 0.5 - cy) / ry) ** 2 + ((x + 0.5 - cx) / rx) ** 2 < 1
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        masks.append(mask)
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    crowds = rng.random(count) < 0.2 if crowd else np.zeros(count, bool)
    label = forms.detection(np.array(boxes), rng.integers(0, 2, count), crowds)
    if scores:
        label["scores"] = np.sort(rng.uniform(0.1, 0.9, count))[::-1].astype(np.float16)
    return forms.with_masks(label, masks)


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_records_are_exact_and_masks_follow_the_order_of_boxes():
    rng = np.random.default_rng(0)
    for flip in (False, True):
        geometry = own_frame(SIZE)._replace(flip=flip)
        label = random_label(rng, 4, scores=True)
        found = TASK.transform(label, geometry)
        straight = forms.masks_of(label, SIZE)
        bits = np.unpackbits(found["masks"], axis=-1, count=SIZE[1]).astype(bool)
        np.testing.assert_array_equal(bits[:4], straight[:, :, ::-1] if flip else straight)
        assert not bits[4:].any()
        assert_same(TASK.restore(found, geometry), label)
    spec = TASK.network_spec(SIZE)
    encoded = TASK.encode(random_label(rng, 9), own_frame(SIZE))
    assert {k: (v.shape, v.dtype) for k, v in encoded.items()} == {k: (s.shape, s.dtype) for k, s in spec.items()}
    nothing = TASK.transform(random_label(rng, 0), own_frame(SIZE))
    assert not nothing["masks"].any() and len(TASK.restore(nothing, own_frame(SIZE))["runs"]) == 0


def test_a_box_shows_its_own_mask_after_zoom_and_selection():
    rng = np.random.default_rng(1)
    label = random_label(rng, 7)
    geometry = whole_image(SIZE, (64, 80))
    found = TASK.encode(label, geometry)  # five of seven
    bits = np.unpackbits(found["masks"], axis=-1, count=80).astype(bool)
    for box, mask in zip(found["boxes"][found["valid"]], bits, strict=False):
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        np.testing.assert_allclose(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1e-4)


def test_impossible_masks_are_refused():
    label = random_label(np.random.default_rng(2), 2)
    for wrong, says in (
        ({"counts": label["counts"][:-1]}, "run lengths"),
        ({"counts": label["counts"] + np.uint32(1)}, "pixels in an image"),
    ):
        with pytest.raises(ValueError, match=says):
            TASK.transform({**label, **wrong}, own_frame(SIZE))
    with pytest.raises(ValueError, match="without masks"):
        TASK.transform({k: v for k, v in label.items() if k not in ("counts", "runs")}, own_frame(SIZE))
    one = {"boxes": np.zeros((1, 4), np.float32), "scores": np.float32([0.5]), "labels": np.array([0])}
    with pytest.raises(LabelError, match="masks"):
        TASK.from_external([one | {"masks": np.zeros((1, 5, 5))}], SIZE)
    with pytest.raises(UserError, match="hflip_tta=False"):
        TASK.both_views({}, {})
    assert all(getattr(type(TASK), verb) is getattr(Task, verb) for verb in ("paste", "fuse", "stitch"))
    assert describe(TASK)["kind"] == "instances" and build(**describe(TASK)) == TASK


def test_masks_of_another_network_keep_their_boxes():
    label = random_label(np.random.default_rng(3), 3)
    masks = forms.masks_of(label, SIZE)
    said = {"boxes": label["boxes"], "scores": np.float32([0.2, 0.9, 0.01]), "labels": label["classes"].astype(int)}
    found = TASK.from_external([said | {"masks": masks[:, None].astype(np.float32)}], SIZE)
    back = TASK.restore({k: v[0] for k, v in found.items()}, own_frame(SIZE))
    np.testing.assert_array_equal(forms.masks_of(back, SIZE), masks[[1, 0]])


@pytest.mark.parametrize("seed", range(2))
def test_mask_ap_equals_pycocotools_on_exported_files(tmp_path, seed):
    coco, evaluate = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(6):
        truth = random_label(rng, int(rng.integers(1, 5)), crowd=True)
        shift = rng.integers(-2, 3, 2)
        masks = [np.roll(mask, shift, (0, 1)) & (rng.random(SIZE) < 0.97) for mask in forms.masks_of(truth, SIZE)]
        other = random_label(rng, len(masks), scores=True)
        other |= {"classes": truth["classes"], "boxes": truth["boxes"]}
        truths.append(truth)
        found.append(forms.with_masks(other, masks))
    image = np.zeros((*SIZE, 3), np.uint8)
    for name, labels in (("truth", truths), ("found", found)):
        data = Memory("m", [{"boxes": one} for one in labels], {"boxes": NAMES}, images=[image] * 6)
        export_labels(tmp_path / name, data, {"boxes": TASK}, images=True)
        for back, label in zip(LabelFiles(tmp_path / name), labels, strict=False):
            assert_same(back.labels["boxes"], label)
    api = coco.COCO(str(tmp_path / "truth" / "boxes" / "coco.json"))
    results = json.loads((tmp_path / "found" / "boxes" / "coco.json").read_text())["annotations"]
    run = evaluate.COCOeval(api, api.loadRes(results), "segm")
    run.evaluate(), run.accumulate(), run.summarize()
    whole = own_frame(SIZE)
    rows = [TASK.measure(*({k: v[None] for k, v in TASK.transform(one, whole).items()} for one in pair))
            for pair in zip(found, truths, strict=True)]  # fmt: skip
    score = TASK.summarize({k: np.concatenate([row[k] for row in rows]) for k in rows[0]})
    for name, at in (("AP", 0), ("AP50", 1), ("AP75", 2), ("AR100", 8)):
        assert score[name] == pytest.approx(run.stats[at], abs=1e-6), name
    assert 0.02 < score["AP"] < 0.99


def outputs_of(label, seed=0):
    """Random outputs whose found boxes are those of the label."""
    rng = np.random.default_rng(seed)
    count = TASK.max_detections
    boxes = np.zeros((1, count, 4), np.float32)
    boxes[0, : len(label["boxes"])] = label["boxes"][:count]
    classes = np.zeros(count, int)
    classes[: len(label["boxes"])] = label["classes"]
    logits = np.where(np.eye(3)[classes] > 0, 4.0 - np.arange(count)[:, None] / 8, 0.0)
    random = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "objectness": random(1, 3),
        "shifts": random(1, 3, 4),
        "anchors": jnp.ones((1, 3, 4)) * jnp.array([0.0, 0, 8, 8]),
        "proposals": jnp.asarray(boxes),
        "present": jnp.asarray(boxes[..., 2] > 0),
        "class": jnp.asarray(logits, jnp.float32)[None],
        "deltas": jnp.zeros((1, count, 4)),
        "size": jnp.array([SIZE], jnp.float32),
        "frame": jnp.zeros((1, *SIZE, 0), bool),
        "found": jnp.asarray(boxes),
        "masks": random(1, count, 28, 28),
    }


def test_masks_are_learned_where_they_are_and_drawn_where_they_were_learned():
    rng = np.random.default_rng(5)
    label = random_label(rng, 3)
    label["boxes"] = np.float32([[2, 3, 16, 15], [18, 8, 36, 30], [5, 18, 14, 31]])
    boxes = label["boxes"].astype(int)
    masks = np.zeros((3, *SIZE), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0 : (y0 + y1) // 2, x0:x1] = True  # the upper half
    label = forms.with_masks(label, masks)
    target = TASK.target({k: v[None] for k, v in TASK.encode(label, own_frame(SIZE)).items()}, HARD)
    outputs = outputs_of(label)
    predict = jax.jit(TASK.predict)
    value = jax.jit(lambda x: TASK.loss({**outputs, "masks": x}, target)["mask"])
    slope = jax.jit(jax.grad(lambda x: TASK.loss({**outputs, "masks": x}, target)["mask"].value.sum()))
    assert float(value(outputs["masks"]).norm[0]) == 3
    push = np.asarray(slope(outputs["masks"])[0])
    assert (push[:3, 1:13, 1:-1] < 0).all() and (push[:3, 15:] > 0).all() and not push[3].any()
    learned = -1e3 * slope(outputs["masks"])
    found = jax.device_get(predict({**outputs, "masks": learned}))
    drawn = np.unpackbits(found["masks"][0], axis=-1, count=SIZE[1]).astype(bool)
    assert found["valid"][0].sum() == 3
    for box, mask in zip(found["boxes"][0][:3], drawn, strict=False):
        truth = masks[np.abs(label["boxes"] - box).sum(-1).argmin()]
        assert (mask & truth).sum() / (mask | truth).sum() > 0.8
    turned = jax.device_get(predict(TASK.hflip_outputs({**outputs, "masks": learned})))
    mirrored = np.unpackbits(turned["masks"][0], axis=-1, count=SIZE[1]).astype(bool)
    assert (mirrored != drawn[:, :, ::-1]).mean() < 0.01
    soft = jax.jit(TASK.distill_loss)({**outputs, "masks": learned}, {**outputs, "masks": learned})
    assert set(soft) == {f"soft_{name}" for name in TASK.terms}
    np.testing.assert_array_less(soft["soft_mask"].value, value(outputs["masks"]).value)


def test_the_head_gives_what_the_task_reads():
    from must.core.types import Features

    features = Features({s: jnp.ones((2, -(-SIZE[0] // s), -(-SIZE[1] // s), 3)) for s in (8, 16)}, jnp.zeros((2, 3)))
    run = lambda key: TASK.head().init_with_output(key, features, train=True, image_size=SIZE)[0]  # noqa: E731
    outputs = jax.eval_shape(run, jax.random.key(0))
    assert outputs["masks"].shape == (2, 4, 28, 28)
    label = jax.eval_shape(TASK.predict, outputs)
    spec = TASK.network_spec(SIZE)["masks"]
    assert (label["masks"].shape, label["masks"].dtype) == ((2, 4, *spec.shape[1:]), spec.dtype)
    blank = {k: v[None] for k, v in TASK.blank(SIZE).items()}
    both = {k: np.concatenate([v, v]) for k, v in blank.items()}
    terms = jax.eval_shape(lambda o: TASK.loss(o, TASK.target(both, HARD)), outputs)
    assert set(terms) == set(TASK.terms) and all(part.shape == (2,) for term in terms.values() for part in term)


def test_class_maps_overlays_and_coco_keep_masks_with_their_boxes(tmp_path):
    label = random_label(np.random.default_rng(6), 4)
    label["classes"][:] = [0, 1, 0, 1]
    mapped = remap(label, ClassMap(NAMES, ("x", "y"), (-2, 1)))
    np.testing.assert_array_equal(forms.masks_of(mapped, SIZE), forms.masks_of(label, SIZE)[[1, 3]])
    truth = forms.chosen_masks((label, np.array([1, 0, 0, 0], bool)))
    truth = {**forms.detection(label["boxes"][:1], [0], [False], unknown=[1]), **truth}
    both = completed(truth, {**label, "boxes": label["boxes"] + np.float32([0, 0, 0.5, 0])})
    assert len(both["runs"]) == len(both["boxes"]) > 1
    np.testing.assert_array_equal(forms.masks_of(both, SIZE)[0], forms.masks_of(label, SIZE)[0])
    data = source(**sets.coco(tmp_path), tasks={"instances": "things", "segmentation": "segmentation"})
    own = data[0].labels["things"]
    masks = forms.masks_of(own, sets.SIZE)
    ids = data[0].labels["segmentation"]["ids"][..., 0]
    np.testing.assert_array_equal(masks.any(0), ids > 0)
    assert masks[1].sum() < masks[0].sum() and data.classes["things"] == ("cat", "dog")


def test_outlines_are_drawn():
    label = random_label(np.random.default_rng(8), 2)
    image = np.zeros((*SIZE, 3), np.uint8)
    found = TASK.transform(label, own_frame(SIZE))
    plain = {**found, "masks": np.zeros_like(found["masks"])}
    assert (TASK.draw(image, found) != TASK.draw(image, plain)).any()
    assert functools.reduce(max, TASK.draw(image, found, HARD).shape) >= 192
