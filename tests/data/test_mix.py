"""Rows of two pictures, or with a hole: every place keeps the label of the picture that is seen there, or none."""

import functools

import numpy as np
import pytest

from must.core.types import Batch, Example, Policy, UserError
from must.data import geometry
from must.data.mix import PASTED, CutMix, Cutout, shuffled_labels
from must.data.pipeline import Encoder, train_batches
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation

SIDE, COUNT, STEP = 16, 16, 15  # two batches are an epoch, so that no picture is met twice in one
NAMES = tuple("abcdef")
TASKS = {
    "classification": Classification(NAMES),
    "detection": Detection(NAMES, strides=(8,), max_boxes=8, min_size=1.0),
    "segmentation": Segmentation(NAMES, head_stride=1),
    "depth": Depth(head_stride=1),
    "normals": Normals(head_stride=1),
}


def _known(i):
    return [] if i % 3 else [5]  # every third source does not know the last class


class _Source:
    """Pictures whose pixels say which picture and which place they are of, and labels that say the same.

    Red is the number of the picture, green and blue the place; every label is a function of these three.
    """

    name, classes, fingerprint = "places", {}, "0"
    ids = [f"places/{i}" for i in range(COUNT)]

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        y, x = np.mgrid[:SIDE, :SIDE].astype(np.uint8)
        image = np.stack([np.full_like(y, STEP * i), 10 * y, 10 * x], -1)
        rng = np.random.default_rng(i)
        box = [i % 8, i % 5, 8 + i % 7, 9 + i % 6]
        labels = {
            "classification": {"ids": np.array([i % 5]), "probs": np.ones(1), "rest": 0.0, "unknown": _known(i)},
            "detection": {"boxes": [box], "classes": [i % 5], "scores": [1.0], "crowd": [False], "unknown": _known(i)},
            "segmentation": {"ids": _ids(image), "probs": np.full((SIDE, SIDE), 255, np.uint8), "unknown": _known(i)},
            "depth": {"depth": _code(image), "scale": 0.001, "offset": 0.0, "scores": np.full((1, 1), 255, np.uint8)},
            "normals": {"normals": _normals(image), "scores": np.full((1, 1), 255, np.uint8)},
        }
        kept = {name: label for name, label in labels.items() if rng.random() < 0.75}
        return Example(self.ids[i], image, kept, {"depth": 1.0 + i})


def _ids(image):
    """Of any pixel; a picture whose source does not know the last class does not show it."""
    picture, place = image[..., 0] // STEP, image[..., 1].astype(int) + image[..., 2]
    return np.where(picture % 3 == 0, place // 10 % 5, place // 10 % 6).astype(np.uint8)


def _code(image):
    return (1000 + 7 * image[..., 0].astype(int) + 100 * image[..., 1] + image[..., 2]).astype(np.uint16)


def _normals(image):
    vector = image.astype(np.float64) - 100.0
    return np.round(127 * vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1)).astype(np.int8)


ENCODER = Encoder(TASKS, (SIDE, SIDE), functools.partial(geometry.draw, shift=0.2, flip=False))


def _rows(changes, count=12, encoder=ENCODER, seed=0, **options):
    batches = train_batches(_Source(), encoder, batch_size=8, seed=seed, changes=changes, **options)
    return [next(batches) for _ in range(count)]


def _check_places(batch):
    """Every labeled pixel of every row has the label of the picture that its color says it is of."""
    image = batch.inputs["image"]
    seen = (image != geometry.FILL).any(-1)
    for name in ("segmentation", "depth", "normals"):
        label, there = batch.labels[name], batch.weights[name] != 0
        if name == "segmentation":
            valid, right = label["ids"][..., 0] != 255, label["ids"][..., 0] == _ids(image)
            assert (
                np.take_along_axis(label["known"], np.where(valid, label["ids"][..., 0], 0).reshape(len(image), -1), 1)
                .reshape(valid.shape)[valid & there[:, None, None]]
                .all()
            )
        elif name == "depth":
            valid, right = label["depth"] > 0, np.abs(label["depth"] - 0.001 * _code(image)) < 1e-4
        else:
            valid = (label["normals"] != 0).any(-1)
            right = np.abs(label["normals"] - _normals(image) / 127.0).max(-1) < 0.02
        valid &= there[:, None, None]
        assert (right | ~valid).all() and (seen | ~valid).all(), name
        assert valid.any(), name


@pytest.mark.parametrize("seed", range(3))
def test_after_cutmix_every_place_has_the_label_of_the_picture_seen_there_or_none(seed):
    batches = _rows([CutMix(TASKS, 1.0)], seed=seed)
    pictures = [len(np.unique(row[..., 0])) for batch in batches for row in batch.inputs["image"]]
    assert np.mean(np.array(pictures) > 2) > 0.5  # two pictures and the padding
    for batch in batches:
        _check_places(batch)


def test_under_a_hole_nothing_is_learned_and_elsewhere_everything():
    whole = ENCODER._replace(draw=None)
    plain, holes = _rows([], encoder=whole), _rows([Cutout(TASKS, 1.0, 0.5)], encoder=whole)
    for before, after in zip(plain, holes, strict=True):
        _check_places(after)
        hidden = (before.inputs["image"] != after.inputs["image"]).any(-1)
        assert hidden.any((1, 2)).all() and hidden.mean((1, 2)).max() <= 0.25
        np.testing.assert_array_equal(before.weights["depth"], after.weights["depth"])
        for name in ("ids", "probs"):  # what is seen keeps its label
            same = (before.labels["segmentation"][name] == after.labels["segmentation"][name])[..., 0]
            assert same[~hidden].all()
        np.testing.assert_array_equal(before.labels["classification"]["probs"], after.labels["classification"]["probs"])
    both = _rows([CutMix(TASKS, 1.0), Cutout(TASKS, 1.0)])
    for batch in both:
        _check_places(batch)


def test_boxes_follow_what_is_seen_of_them():
    """By brute force: the share of a box's pixels that is still seen decides, and their hull is the box."""
    rng, seen = np.random.default_rng(0), {"kept": 0, "ignored": 0, "gone": 0, "unknown": 0}
    for _ in range(300):
        pair = [_draw_boxes(rng) for _ in range(2)]
        absent = rng.integers(4)  # 0: of the first picture nothing is known, 1: of the second
        window = _corners(rng, 1)
        y0, x0, y1, x1 = window
        inside = np.zeros((SIDE, SIDE), bool)
        inside[y0:y1, x0:x1] = True
        out = TASKS["detection"].paste(
            *(None if k == absent else _label(boxes) for k, boxes in enumerate(pair)), window
        )
        found = [(tuple(b), bool(c)) for b, c, v in zip(out["boxes"], out["crowd"], out["valid"], strict=True) if v]
        for k, shown in enumerate((~inside, inside)):
            if k == absent:  # nothing is claimed of what is seen of it, not even that nothing is there
                for y, x in np.argwhere(shown) + 0.5:
                    assert any(c and b[0] <= x < b[2] and b[1] <= y < b[3] for b, c in found)
                seen["unknown"] += 1
                continue
            for a, b, c, d in pair[k]:
                part, share = shown[b:d, a:c], shown[b:d, a:c].mean()
                seen["gone" if share == 0 else "ignored" if share < 0.25 else "kept"] += 1
                if share:
                    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
                    hull = (a + columns[0], b + rows[0], a + columns[-1] + 1, b + rows[-1] + 1)
                    assert (hull, share < 0.25) in found, (hull, share, found)
        shown = sum(m[b:d, a:c].any() for k, m in enumerate((~inside, inside)) if k != absent for a, b, c, d in pair[k])
        assert absent == 0 or len(found) == shown + (absent == 1)
    assert min(seen.values()) > 30, seen


def _corners(rng, least):
    low = rng.integers(0, SIDE - least, 2)
    high = [rng.integers(a + least, SIDE + 1) for a in low]
    return (*(int(a) for a in low), *(int(b) for b in high))


def _draw_boxes(rng):
    return [_corners(rng, 2) for _ in range(2)]


def test_what_is_hidden_is_nowhere():
    label = _label([[2, 2, 6, 6], [8, 8, 12, 12]])
    out = TASKS["detection"].paste(label, _label([]), (0, 0, 7, 16))
    assert out["valid"].tolist() == [True] + 7 * [False] and out["boxes"][0].tolist() == [8, 8, 12, 12]
    assert not out["crowd"].any()
    out = TASKS["detection"].paste(label, None, (0, 0, 7, 16))  # nothing known there: a crowd over it
    assert out["crowd"].tolist()[:2] == [False, True] and out["boxes"][1].tolist() == [0, 0, 16, 7]


def test_boxes_without_room_are_ignored_not_absent():
    many = [[2 * i, 0, 2 * i + 2, 4] for i in range(8)]
    out = TASKS["detection"].paste(_label(many), _label([[0, 12, 3, 15], [8, 12, 11, 15]]), (8, 0, 16, 16))
    assert out["valid"].all() and out["crowd"].tolist() == 7 * [False] + [True]
    for box in [*many, [0, 12, 3, 15], [8, 12, 11, 15]]:
        kept = (out["boxes"] == box).all(-1).any()
        a, b, c, d = out["boxes"][-1]
        assert kept or (a <= box[0] and b <= box[1] and c >= box[2] and d >= box[3])


def _label(boxes):
    record = {"boxes": boxes, "classes": [0] * len(boxes), "scores": [1.0] * len(boxes), "crowd": [False] * len(boxes)}
    whole = geometry.whole_image((SIDE, SIDE), (SIDE, SIDE))
    return TASKS["detection"].transform({**record, "unknown": []}, whole)


def test_two_classes_of_a_picture_count_by_area_and_both_have_to_be_there():
    mixed = _rows([CutMix(TASKS, 1.0)])
    own, its = (
        np.concatenate([b.weights[name] for b in mixed]) for name in ("classification", "classification" + PASTED)
    )
    there = own != 0
    np.testing.assert_array_equal(there, its != 0)
    np.testing.assert_allclose((own + its)[there], 2.0, rtol=1e-6)
    assert 0.3 < there.mean() < 0.9
    plain = _rows([CutMix(TASKS, 1e-9)])
    for batch in plain:  # a batch has the same fields, mixed or not
        assert not batch.weights["classification" + PASTED].any() and batch.weights["classification"].any()


def test_a_mixed_class_is_the_loss_on_the_mixture():
    import jax.numpy as jnp

    from must.core.ratio import divide, merge, weighted_sum

    task, logits = TASKS["classification"], jnp.array([[0.3, -1.0, 2.0, 0.0, 0.5, -0.2]])
    labels = [{"probs": np.eye(6, dtype=np.float32)[[k]], "known": np.ones((1, 6), bool)} for k in (1, 4)]
    row = Batch({"image": np.zeros((4, 4, 3), np.uint8)}, {}, {}, np.int64(0))
    rows = [
        row._replace(
            labels={"classification": {k: v[0] for k, v in x.items()}}, weights={"classification": np.float32(1)}
        )
        for x in labels
    ]
    mixed = CutMix({"classification": task}, 1.0)(rows[0], np.random.default_rng(0), lambda rng: rows[1])
    share = mixed.weights["classification"] / 2
    parts = [
        weighted_sum(
            task.loss(logits, task.target({k: v[None] for k, v in mixed.labels[name].items()}, Policy()))["class"],
            mixed.weights[name][None],
        )
        for name in ("classification", "classification" + PASTED)
    ]
    blend = {"probs": share * labels[0]["probs"] + (1 - share) * labels[1]["probs"], "known": labels[0]["known"]}
    whole = task.loss(logits, task.target(blend, Policy(0.0, 0.0)))["class"]
    np.testing.assert_allclose(divide(merge(*parts)), whole.value[0], rtol=1e-6)


def test_relative_depths_of_two_pictures_are_never_in_one_label():
    task = Depth(depth_kind="relative", head_stride=1)
    one, other = (
        {"depth": np.full((8, 8), value, np.float32), "scores": np.full((8, 8), 254, np.uint8)} for value in (1, 2)
    )
    assert set(np.unique(task.paste(one, other, (0, 0, 8, 3))["depth"])) == {0, 1}
    assert set(np.unique(task.paste(one, other, (0, 0, 8, 5))["depth"])) == {0, 2}


def test_mixed_rows_are_those_of_their_place():
    changes = [CutMix(TASKS, 0.5), Cutout(TASKS, 0.5)]
    extras = {"depth": {"pseudo": np.arange(COUNT) % 2}, "classification": {"pseudo": np.arange(COUNT) % 2}}
    make = functools.partial(train_batches, _Source(), ENCODER, batch_size=8, seed=3, changes=changes, extras=extras)
    batches = make()
    whole = [next(batches) for _ in range(5)]
    parts = [make(process=(k, 2)) for k in range(2)]
    for batch in whole:
        halves = [next(part) for part in parts]
        _same(batch, _joined(halves))
    position = batches.get_state()
    after = next(batches)
    again = make()
    again.set_state(position)
    _same(after, next(again))
    # A row without any change is what it was before there were changes.
    plain = _rows([], 5, seed=3)
    same = [(a.inputs["image"] == b.inputs["image"]).all((1, 2, 3)) for a, b in zip(plain, whole, strict=True)]
    assert 0.1 < np.mean(same) < 0.5
    flags = np.concatenate([b.extras["depth"]["pseudo"] for b in whole])
    ids = np.concatenate([b.ids for b in whole])
    assert (flags <= ids % 2).all() and (flags < ids % 2).any()  # truth in a part makes a row one with truth
    assert whole[0].extras["classification" + PASTED]["pseudo"].shape == (8,)


def test_views_show_one_mixture_and_the_clean_one_has_no_hole():
    encoder = ENCODER._replace(views={"image": lambda x, rng: 255 - x, "clean": None})
    for batch in _rows([CutMix(TASKS, 1.0)], 3, encoder):
        np.testing.assert_array_equal(255 - batch.inputs["image"], batch.inputs["clean"])
    for plain, holes in zip(_rows([], 3, encoder), _rows([Cutout(TASKS, 1.0)], 3, encoder), strict=True):
        np.testing.assert_array_equal(plain.inputs["clean"], holes.inputs["clean"])
        assert (plain.inputs["image"] != holes.inputs["image"]).any((1, 2, 3)).all()


def test_shares_that_cannot_be():
    with pytest.raises(UserError, match="cutmix.probability 2"):
        CutMix(TASKS, 2)
    with pytest.raises(UserError, match="cutout.largest 0"):
        Cutout(TASKS, 0.5, 0)


def _same(a, b):
    import jax

    jax.tree.map(np.testing.assert_array_equal, a, b)


def _joined(parts):
    import jax

    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def test_shuffled_labels_are_those_of_another_picture():
    encoder = Encoder({"depth": TASKS["depth"]}, (SIDE, SIDE))
    plain = next(iter(train_batches(_Source(), encoder, batch_size=8, seed=0)))
    mixed = next(iter(train_batches(_Source(), encoder, batch_size=8, seed=0, changes=[shuffled_labels])))
    np.testing.assert_array_equal(mixed.inputs["image"], plain.inputs["image"])
    own = {int(w): row for row, w in enumerate(plain.weights["depth"]) if w}  # weights tell pictures apart
    moved = [(row, own[int(w)]) for row, w in enumerate(mixed.weights["depth"]) if w]
    assert moved and all(row != source for row, source in moved)
    for row, source in moved:
        for field, values in mixed.labels["depth"].items():
            np.testing.assert_array_equal(values[row], plain.labels["depth"][field][source])
