"""What a label claims and how it is drawn under a policy, against the targets that the losses read."""

import jax
import numpy as np
import pytest

from must import Classification, Depth, Detection, MultiLabel, Normals, Policy, Segmentation
from must.tasks.label_states import LARGEST

SIZE, CLASSES = (12, 16), ("a", "b", "c", "d", "e")
TASKS = {
    "classification": Classification(CLASSES),
    "multi_label": MultiLabel(CLASSES),
    "detection": Detection(CLASSES, max_boxes=9),
    "segmentation": Segmentation(CLASSES, top_k=3, head_stride=1),
    "depth": Depth(head_stride=1, max_depth=5.0),
    "normals": Normals(head_stride=1),
}
every_task = pytest.mark.parametrize("name", list(TASKS))


def label_of(name, seed):
    """One example's label in network form, raw scores all over 0..1 and some pixels without a label."""
    rng, (height, width) = np.random.default_rng(seed), SIZE
    known = rng.random(5) < 0.8
    known[0] = True
    if name == "classification":
        probs = rng.dirichlet(np.full(5, 0.7)).astype(np.float32) * known
        return {"probs": probs / probs.sum(), "known": known}
    if name == "multi_label":
        scores = rng.random(5).astype(np.float32)
        scores[:2] = seed % 2, 1  # truth
        return {"scores": scores * known, "known": known}
    if name == "segmentation":
        ids = np.argsort(rng.random((height, width, 5)), -1)[..., :3].astype(np.uint8)
        probs = -np.sort(-rng.dirichlet(np.full(4, 0.6), (height, width)), -1)[..., :3]
        ids[:2], probs[:2] = 255, 0
        ids[5, :, 1:], probs[5, :, 1:] = 255, 0
        probs = np.minimum(np.round(255 * probs), LARGEST).astype(np.uint8)
        probs[6, :, 0], probs[6, :, 1:] = 255, 0
        return {"ids": ids, "probs": probs, "known": known}
    if name == "detection":
        corner = rng.uniform(0, 8, (9, 2))
        scores = rng.random(9).astype(np.float32)
        scores[0] = 1
        return {
            "boxes": np.concatenate([corner, corner + rng.uniform(2, 4, (9, 2))], 1).astype(np.float32),
            "classes": rng.integers(0, 5, 9).astype(np.int32),
            "scores": scores,
            "valid": np.arange(9) < 7,
            "crowd": np.arange(9) == 2,
            "known": known,
        }
    scores = rng.integers(0, 256, SIZE).astype(np.uint8)
    if name == "depth":
        return {"depth": rng.uniform(0, 7, SIZE).astype(np.float32) * (rng.random(SIZE) < 0.9), "scores": scores}
    normals = rng.normal(size=(*SIZE, 3)) * (rng.random((*SIZE, 1)) < 0.9)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
    return {"normals": normals.astype(np.float32), "scores": scores}


def policy_of(name, seed):
    rng = np.random.default_rng(seed)
    shape = () if name in ("depth", "normals") else (5,)
    positive = rng.uniform(0.3, 0.7, shape).astype(np.float32)
    curve = np.sort(rng.random((*shape, 7)), -1).astype(np.float32)
    return Policy(positive, positive * rng.uniform(0, 1, shape).astype(np.float32), np.float32(1.7), curve)


def target_of(name, label, policy):
    target = TASKS[name].target(jax.tree.map(lambda field: field[None], label), policy)
    return {field: np.asarray(value)[0] for field, value in target.items()}


@every_task
def test_claims_have_the_states_of_the_target(name):
    seen = set()
    for seed in range(8):
        label, policy = label_of(name, seed), policy_of(name, seed)
        claims, target = TASKS[name].claims(label, policy), target_of(name, label, policy)
        assert all(len(field) == len(claims.ids) for field in claims)
        assert not (claims.positive & claims.negative).any()
        ignored = ~claims.positive & ~claims.negative
        seen |= {bool(x) for x in claims.positive} | {2 for x in ignored if x}
        if name == "detection":
            there = label["valid"]
            np.testing.assert_array_equal(claims.positive, target["positive"][there])
            np.testing.assert_array_equal(ignored, target["ignored"][there])
            np.testing.assert_array_equal(claims.ids, label["classes"][there])
        elif name == "multi_label":
            known = label["known"]
            np.testing.assert_array_equal(~ignored, target["used"][known])
            np.testing.assert_array_equal(claims.ids, np.flatnonzero(known))
            certain = np.isin(label["scores"], (0, 1))[known]
            np.testing.assert_array_equal(claims.positive[certain], label["scores"][known][certain] == 1)
            assert (~ignored)[certain].all()
        elif name == "classification":
            assert claims.positive.any() == target["used"]
            if target["candidates"].any():
                np.testing.assert_array_equal(~claims.negative, target["candidates"][claims.ids])
            elif not target["used"]:
                assert ignored.all()
        elif name == "segmentation":
            there = label["ids"][..., 0] != 255
            np.testing.assert_array_equal(claims.positive, target["used"][there])
            partly = TASKS[name]._decided(label, policy)[1]
            np.testing.assert_array_equal(partly, target["candidates"].any(-1))
        else:
            assert claims.positive.sum() == target["valid"].sum()
            assert not claims.negative.any()
    assert seen == {True, False, 2}


@every_task
def test_drawing_changes_where_something_is_ignored_and_only_there(name):
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    task, label, policy = TASKS[name], label_of(name, 3), policy_of(name, 3)
    plain, drawn = task.draw(image, label), task.draw(image, label, policy)
    assert plain.shape == drawn.shape and drawn.dtype == np.uint8
    assert (plain != drawn).any()
    if name in ("segmentation", "depth", "normals"):
        target = target_of(name, label, policy)
        ignored = ~target["used" if name == "segmentation" else "valid"]
        factor = plain.shape[1] // SIZE[1]
        changed = (plain != drawn).any(-1)[: SIZE[0] * factor].reshape(SIZE[0], factor, SIZE[1], factor)
        labeled = {
            "segmentation": lambda: label["ids"][..., 0] != 255,
            "depth": lambda: label["depth"] > 0,
            "normals": lambda: (label["normals"] != 0).any(-1),
        }[name]()
        assert not changed.any((1, 3))[~ignored | ~labeled].any()
        assert changed.any((1, 3))[ignored & labeled].all()


def test_boxes_are_drawn_by_their_state():
    task, image = TASKS["detection"], np.zeros((200, 300, 3), np.uint8)
    label = {name: value.copy() for name, value in task.blank((200, 300)).items()}
    label["valid"][:3], label["scores"][:3] = True, (0.9, 0.5, 0.2)
    label["boxes"][:3] = ((20, 20, 80, 80), (120, 20, 180, 80), (220, 20, 280, 80))
    picture = task.draw(image, label, Policy(0.8, 0.4))[:200].any(-1)
    taken, ignored, absent = (picture[20:80, x : x + 60] for x in (20, 120, 220))
    assert not absent.any()
    assert taken[-1].all() and not ignored[-1].all() and ignored[-1].any(), "solid and dashed lower edges"
    assert not taken[30:50, 10:50].any() and ignored[30:50, 10:50].any(), "hatched inside"


def test_a_task_without_scores_claims_nothing():
    from tests.support.toy_tasks import Corners

    assert Corners().claims({}, Policy()) is None
