"""Several teachers as one: fused predictions, scores that fall where they disagree, one pass and one record."""

import jax.numpy as jnp
import numpy as np
import pytest

import must
from must.core import labels as forms
from must.core.notices import Notice
from must.core.types import Teacher, UserError
from must.experiment.external import external_teacher
from must.pseudo_label.fusion import fuse
from must.tasks.base import Task
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation
from tests.support.memory_source import Memory

SIZE, NAMES = (16, 24), ("a", "b", "c")
RNG = np.random.default_rng(0)
TASKS = {
    "classification": Classification(NAMES),
    "segmentation": Segmentation(NAMES, top_k=3),
    "depth": Depth(),
    "normals": Normals(),
    "detection": Detection(NAMES, max_detections=6),
}


def said(name, seed, count=2):
    """What a teacher from another project would say of some pictures."""
    rng = np.random.default_rng(seed)
    if name in ("classification", "segmentation"):
        return rng.dirichlet(np.ones(3), (count, *SIZE) if name == "segmentation" else count)
    if name == "detection":
        low = rng.uniform(0, 8, (count, 4, 2))
        boxes = np.concatenate([low, low + rng.uniform(3, 8, (count, 4, 2))], -1)
        return [{"boxes": b, "scores": rng.uniform(0.2, 0.9, 4), "labels": rng.integers(0, 3, 4)} for b in boxes]
    return rng.uniform(1, 5, (count, *SIZE)) if name == "depth" else rng.normal((0, 0, -2), 1, (count, *SIZE, 3))


def label(name, seed):
    return TASKS[name].from_external(said(name, seed), SIZE)


@pytest.mark.parametrize("name", TASKS)
def test_of_teachers_that_agree_the_fusion_says_the_same_and_is_sure(name):
    task, one = TASKS[name], label(name, 1)
    if name == "detection":
        one = task.from_external(
            [{"boxes": [[1, 1, 6, 6], [9, 2, 15, 9]], "scores": [0.8, 0.6], "labels": [0, 2]}] * 2, SIZE
        )
    fused = task.fuse([one, one, one])
    assert {n: v.shape for n, v in fused.items() if n in one} == {n: v.shape for n, v in one.items()}
    for field in set(one) - ({"ids"} if name == "segmentation" else set()):  # equal codes may change places
        tolerance = {"probs": 3 if name == "segmentation" else 1e-3}.get(field, 1e-5)
        np.testing.assert_allclose(np.asarray(fused[field], float), np.asarray(one[field], float), atol=tolerance)
    if "scores" in fused and name != "detection":
        assert fused["scores"].min() >= 253


@pytest.mark.parametrize("name", ["classification", "segmentation", "depth", "normals"])
def test_the_order_of_teachers_does_not_matter_and_disagreement_lowers_scores(name):
    task, several = TASKS[name], [label(name, seed) for seed in range(3)]
    fused, other = task.fuse(several), task.fuse(several[::-1])
    for field in fused:
        np.testing.assert_allclose(np.asarray(fused[field], float), np.asarray(other[field], float), atol=1e-4)
    score = "probs" if name in ("classification", "segmentation") else "scores"
    if score == "scores":
        assert fused[score].mean() < 220
    else:
        assert fused[score].max(-1).mean() < 0.95 * np.mean([one[score].max(-1).mean() for one in several])


def test_classes_and_pixels_are_means():
    probs = [said("classification", seed) for seed in range(3)]
    task = TASKS["classification"]
    np.testing.assert_allclose(
        task.fuse([label("classification", s) for s in range(3)])["probs"], np.mean(probs, 0), atol=1e-3
    )
    pixels = np.mean([said("segmentation", seed) for seed in range(3)], 0)
    fused = TASKS["segmentation"].fuse([label("segmentation", s) for s in range(3)])
    clear = np.sort(pixels, -1)[..., -1] - np.sort(pixels, -1)[..., -2] > 0.02
    np.testing.assert_array_equal(fused["ids"][..., 0][clear], pixels.argmax(-1)[clear])
    assert np.abs(fused["probs"][..., 0] / 255.0 - pixels.max(-1)).max() < 0.01


def test_a_pixel_without_a_label_is_left_to_the_other_teachers():
    one = {k: v.copy() for k, v in label("segmentation", 0).items()}
    two = {k: v.copy() for k, v in label("segmentation", 1).items()}
    one["ids"][:, 0], two["ids"][:, :2] = 255, 255
    fused = TASKS["segmentation"].fuse([one, two])
    assert (fused["ids"][:, 0] == 255).all() and (fused["probs"][:, 0] == 0).all()
    clear = one["probs"][:, 1, :, 0] > one["probs"][:, 1, :, 1]
    np.testing.assert_array_equal(fused["ids"][:, 1, :, 0][clear], one["ids"][:, 1, :, 0][clear])


def test_depth_is_the_median_of_what_is_valid():
    depth = np.stack([np.full(SIZE, value, np.float32) for value in (2.0, 3.0, 9.0)])[:, None]
    depth[2, 0, 0], depth[1:, 0, 1], depth[:, 0, 2] = 0, np.nan, 0
    fused = Depth().fuse([{"depth": one} for one in depth])
    assert fused["depth"][0, :4, 0].tolist() == [2.5, 0, 0, 3]
    assert fused["scores"][0, 1:3].max() == 0 and 0 < fused["scores"][0, 0, 0] < fused["scores"][0, 3, 0] * 1.5


def test_weighted_boxes_fusion_as_in_the_paper():
    task = TASKS["detection"]
    one = {"boxes": [[0, 0, 10, 10], [12, 2, 20, 12]], "scores": [0.9, 0.5], "labels": [0, 1]}
    two = {"boxes": [[1, 0, 11, 10], [12, 2, 20, 12]], "scores": [0.3, 0.4], "labels": [0, 2], "unknown": [1]}
    fused = task.fuse([task.from_external([found], SIZE) for found in (one, two)])
    valid = fused["valid"][0]
    np.testing.assert_allclose(fused["scores"][0][valid], [0.6, 0.5, 0.2], atol=1e-6)  # one knows b, one of two says c
    assert fused["classes"][0][valid].tolist() == [0, 1, 2]
    np.testing.assert_allclose(fused["boxes"][0][0], [0.25, 0, 10.25, 10], atol=1e-6)
    assert fused["known"].all()
    none = task.from_external([{"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}], SIZE)
    assert not task.fuse([none, none])["valid"].any()


def teacher(name, seed, tasks=TASKS, size=SIZE, key=None):
    def predict(images):
        found = {n: TASKS[n].from_external(said(n, seed, len(images)), size) for n in tasks}
        return {n: {f: jnp.asarray(v) for f, v in one.items()} for n, one in found.items()}

    return Teacher(name, {n: TASKS[n] for n in tasks}, predict, size, key or name)


def test_one_pass_writes_one_record(tmp_path):
    images = [RNG.integers(0, 255, (*SIZE, 3), np.uint8) for _ in range(5)]
    pool = Memory("pool", [{}] * 5, images=images)
    both = fuse("both", [teacher("x", 1), teacher("y", 2, ["depth", "detection"]), teacher("z", 3, ["depth"])])
    found = must.label_images(tmp_path / "1.0.0", "records", pool, [both], shards=1, batch_size=5)
    assert (found.records, found.rejects) == (5, 0)
    labels = must.Records(tmp_path / "1.0.0").labels(0)
    assert set(labels) == set(TASKS)
    want = Depth().fuse([TASKS["depth"].from_external(said("depth", seed, 5), SIZE) for seed in (1, 2, 3)])
    assert labels["depth"]["scores"].max() <= 254 and want["scores"].max() <= 254
    assert labels["detection"]["scores"].max() < 1
    assert fuse("both", [teacher("x", 1), teacher("y", 2)]).fingerprint != both.fingerprint


def test_teachers_of_other_sizes_are_brought_to_the_first():
    tasks = {"classification": TASKS["classification"]}
    small = Teacher("s", tasks, lambda images: {"classification": label("classification", 0)}, (8, 8), "1")
    fused = fuse("f", [teacher("x", 1, ["classification"]), small])
    assert fused.size == SIZE and fused.predict(np.zeros((2, *SIZE, 3), np.uint8))["classification"]["probs"].shape == (
        2,
        3,
    )


class _NoFusion(Task):
    pass


def test_what_cannot_be_fused_is_one_line():
    one = teacher("x", 1)
    with pytest.raises(UserError, match="takes two teachers or more, not None"):
        fuse("both", None)
    with pytest.raises(UserError, match="takes two teachers or more, not 1"):
        fuse("f", [one])
    other = one._replace(name="w", tasks={"classification": Classification(("a", "c", "b"))})
    with pytest.raises(UserError, match="w has other classes of classification"):
        fuse("f", [one, other])
    odd = Teacher("o", {"odd": _NoFusion()}, None, SIZE, "1")
    with pytest.raises(UserError, match="_NoFusion 'odd' has no fuse"):
        fuse("f", [odd, odd])
    assert forms.SUREST < 1


def make(name, tasks, *, size, seed):
    return teacher(name, seed, tasks, size)


def make_mirrored(name, tasks, *, size, hflip_tta):
    return teacher(f"{name} {hflip_tta}", 1, tasks, size)._replace(fingerprint=str(hflip_tta))


def test_a_function_gets_hflip_tta_or_a_note_says_that_it_does_not_take_it():
    tasks, section = {"depth": TASKS["depth"]}, {"make": "tests.pseudo_label.test_fusion:make_mirrored"}
    for own, expected in (({}, "True"), ({"hflip_tta": False}, "False")):
        assert external_teacher("t", {**section, **own}, tasks, SIZE, hflip_tta=True).fingerprint == expected
    without = {"make": "tests.pseudo_label.test_fusion:make", "seed": 1}
    with pytest.warns(Notice, match="test_fusion:make takes no hflip_tta"):
        external_teacher("t", {"fuse": [without, without]}, tasks, SIZE, hflip_tta=True)


def test_a_configuration_lists_the_teachers():
    part = {"make": "tests.pseudo_label.test_fusion:make"}
    tasks = {"depth": TASKS["depth"]}
    fused = external_teacher("depth", {"fuse": [{**part, "seed": 1}, {**part, "seed": 2}]}, tasks, SIZE)
    assert fused.name == "depth" and set(fused.tasks) == {"depth"}
    for section, message in (
        ({"fuse": [{**part, "seed": 1}]}, "two teachers or more"),
        ({"fuse": [part], "make": "x:y"}, "one of 'make'"),
        ({"fuse": "x:y"}, "'fuse' is a list of sections"),
        ({"fuse": [part], "seed": 1}, "'fuse' is a list of sections, without other keys"),
    ):
        with pytest.raises(UserError, match=message):
            external_teacher("depth", section, tasks, SIZE)
