import math
import pickle

import numpy as np
import pytest

from must.core.types import UserError
from must.data.sources import source
from must.scenes import raycast
from must.scenes.moving import ACTIONS, DOMAIN, MIRRORED, REVERSED, MovingScenes, picture

EACH = 12  # clips of every class that the flow is averaged over


def flow(clip):
    """Coarse image motion of a clip, [T - 1, 4, 4, 2] (right, down): normal flow averaged over blocks."""
    gray = clip.astype(np.float32).mean(-1)
    gray = (gray - gray.mean()) / gray.std()
    middle = (gray[1:] + gray[:-1]) / 2
    change = gray[1:] - gray[:-1]
    down, right = np.gradient(middle, axis=(1, 2))
    scale = -change / (right**2 + down**2 + 0.1)
    side = clip.shape[1] // 4
    blocks = np.stack([scale * right, scale * down], -1).reshape(len(change), 4, side, 4, side, 2)
    return blocks.mean((2, 4))


@pytest.fixture(scope="module", params=list(ACTIONS))
def space(request):
    """A label space and {class: [EACH] clips} of it."""
    names = ACTIONS[request.param]
    clips = MovingScenes(EACH * len(names), seed=5, actions=request.param, frames=16)
    found = {name: [] for name in names}
    for i in range(len(clips)):
        found[names[clips.action(i)]].append(clips.render(i))
    return request.param, found


def signature(clips):
    """Mean flow of clips in both halves of time, one vector."""
    flows = np.mean([flow(clip) for clip in clips], 0)
    return np.concatenate([flows[: len(flows) // 2].mean(0).ravel(), flows[-(len(flows) // 2) :].mean(0).ravel()])


def nearest(vector, table):
    return min(table, key=lambda name: np.linalg.norm(table[name] - vector))


def test_mirrored_and_reversed_clips_move_as_declared(space):
    name, clips = space
    known = {action: signature(found) for action, found in clips.items()}
    for action, found in clips.items():
        mirrored = signature([clip[:, :, ::-1] for clip in found])
        assert nearest(mirrored, known) == MIRRORED[name].get(action, action), action
        backwards = signature([clip[::-1] for clip in found])
        assert nearest(backwards, known) == REVERSED[name].get(action, action), action


@pytest.mark.parametrize(
    ("space", "action", "where", "axis", "sign"),
    [
        ("camera", "pan_left", np.s_[:, :], 0, 1),
        ("camera", "tilt_up", np.s_[:, :], 1, 1),
        ("camera", "forward", np.s_[:, 3], 0, 1),
        ("bodies", "left", np.s_[2, 1:3], 0, -1),
        ("bodies", "towards", np.s_[3, 1:3], 1, 1),
        ("both", "camera_left", np.s_[:2, :], 0, 1),
        ("both", "body_left", np.s_[2, 1:3], 0, -1),
        ("both", "follow_left", np.s_[:2, :], 0, 1),
    ],
)
def test_names_say_which_way_the_picture_moves(space, action, where, axis, sign):
    names = ACTIONS[space]
    clips = MovingScenes(10 * len(names), seed=8, actions=space)
    chosen = [i for i in range(len(clips)) if names[clips.action(i)] == action]
    mean = np.mean([flow(clips.render(i)).mean(0)[where][..., axis].mean() for i in chosen])
    assert mean * sign > 0.02


def seen_from(scene, other, size):
    """Where the room's points that one frame shows lie in another: row and column [S, S], float, and which are
    background.

    Written out apart from the library: through the room's own axes, that both frames share.
    """
    rays = raycast.make_rays(size, scene.pitch)
    shown = raycast.cast_room(scene.room, rays)
    hits = raycast.cast_solids(scene.solids, scene.room.floor, rays, least=0, share=0)
    free = np.ones(size * size, bool)
    free[hits.pixel] = False
    x = shown.x + scene.room.shift[0] - other.room.shift[0]
    z = shown.z + scene.room.shift[1] - other.room.shift[1]
    cos, sin = math.cos(other.room.yaw), math.sin(other.room.yaw)
    x, y, z = x * cos - z * sin, shown.y, z * cos + x * sin
    cos, sin = math.cos(other.pitch), math.sin(other.pitch)
    down, ahead = y * cos - z * sin, y * sin + z * cos
    row, column = (((v / ahead / raycast.HALF_VIEW) + 1) * size / 2 - 0.5 for v in (down, x))
    return row, column, free.reshape(size, size)


@pytest.mark.parametrize("action", ["pan_left", "tilt_down", "forward"])
def test_the_room_stands_still_while_the_camera_moves(action):
    clips, size = MovingScenes(18, seed=3, domain="clutter"), 96
    apart, together = [], []
    for index in range(len(clips)):
        if ACTIONS["camera"][clips.action(index)] != action:
            continue
        first, last = (scene._replace(decor=scene.decor._replace(noise=0)) for scene in clips.scenes(index)[::7])
        row, column, free = seen_from(first, last, size)
        free &= (row >= 0) & (row <= size - 1) & (column >= 0) & (column <= size - 1)
        other = seen_from(last, first, size)[2]
        row, column = np.rint(row).astype(int).clip(0, size - 1), np.rint(column).astype(int).clip(0, size - 1)
        free &= other[row, column]
        one, two = (picture(scene, size).astype(float) for scene in (first, last))
        together.append(np.abs(one - two[row, column])[free].mean())
        apart.append(np.abs(one - two)[free].mean())
    assert np.mean(together) < 0.6 * np.mean(apart)


def test_bodies_never_touch_and_the_camera_meets_none():
    for space in ACTIONS:
        clips = MovingScenes(30, seed=4, actions=space)
        for index in range(30):
            for scene in clips.scenes(index):
                first, room = scene.solids[0], scene.room
                assert first.z - first.reach > 0.9 and first.lift >= 0
                for other in scene.solids[1:]:
                    assert math.hypot(first.x - other.x, first.z - other.z) > first.reach + other.reach
                    assert math.hypot(other.x, other.z) > other.reach + 0.5
                assert min(room.back, room.left, room.right) > 2


@pytest.mark.parametrize(
    ("space", "sides"),
    [
        ("camera", ("pan_left", "pan_right")),
        ("bodies", ("left", "right")),
        ("both", ("camera_left", "camera_right")),
        ("both", ("follow_left", "follow_right")),
        ("turns", ("left", "right")),
    ],
)
def test_where_things_are_in_the_middle_says_nothing_about_the_class(space, sides):
    names = ACTIONS[space]
    clips = MovingScenes(40 * len(names), seed=6, actions=space, frames=9)
    found = {side: [] for side in sides}
    for index in range(len(clips)):
        if (side := names[clips.action(index)]) in found:
            frames = [clips.scenes(index)[t] for t in (0, 4, 8)]
            first, middle, last = (scene.room.yaw if "follow_left" in sides else scene.solids[0].x for scene in frames)
            found[side].append((middle, last - first))
    left, right = (np.array(values) for values in found.values())
    error = np.sqrt((left.var(0) + right.var(0)) / 40)
    middle, change = np.abs(left.mean(0) - right.mean(0)) / error
    assert middle < 2.5 and change > 10


def test_size_and_frames_sample_the_same_clip():
    few, many = MovingScenes(3, seed=2, frames=5), MovingScenes(3, seed=2, frames=9)
    large = MovingScenes(3, seed=2, frames=5, size=96)
    for i in range(3):
        clip = few.render(i).astype(float)
        assert np.abs(clip - many.render(i)[::2]).mean() < 8 < np.abs(clip[0] - clip[-1]).mean()
        halved = large.render(i).reshape(5, 48, 2, 48, 2, 3).mean((2, 4))
        assert np.abs(clip - halved).mean() < 10


def test_noise_differs_from_frame_to_frame():
    clip = MovingScenes(1, seed=1, actions="bodies").render(0).astype(float)
    sky = clip[:, :3] - clip[:, :3].mean(2, keepdims=True)
    assert sky.std() > 0.5
    assert np.abs(np.corrcoef(sky.reshape(8, -1)) - np.eye(8)).max() < 0.5


def test_an_example_depends_on_its_place_alone():
    clips = MovingScenes(12, seed=3)
    part, copy = MovingScenes(4, seed=3, start=7), pickle.loads(pickle.dumps(clips))
    for i in (9, 7, 10):
        for other in (part[i - 7], copy[i]):
            assert other.id == clips[i].id == f"moving-camera-indoor-train-3/{i}"
            np.testing.assert_array_equal(other.image, clips[i].image)
            assert other.labels["action"]["ids"] == clips[i].labels["action"]["ids"]


def test_seeds_splits_spaces_domains_and_indices_share_nothing():
    variants = [{}, {"seed": 1}, {"split": "test"}, {"actions": "both"}, {"domain": "clutter"}, {"start": 3}]
    sources = [MovingScenes(3, **variant) for variant in variants]
    assert len({id for clips in sources for id in clips.ids}) == 3 * len(variants)
    assert len({clips.fingerprint for clips in sources}) == len(variants)
    assert len({clips.scenes(i)[0].solids[0].x for clips in sources for i in range(3)}) == 3 * len(variants)


@pytest.mark.parametrize("space", ACTIONS)
def test_classes_are_balanced_and_in_no_fixed_order(space):
    count = len(ACTIONS[space])
    clips = MovingScenes(10 * count, actions=space)
    order = np.array([clips.action(i) for i in range(len(clips))]).reshape(10, count)
    assert (np.sort(order, 1) == np.arange(count)).all()
    assert (order != order[0]).any()


def test_labels_and_pools():
    clips = source("moving_scenes", count=2, actions="both", size=16, frames=4, task="watcher", name="w")
    example = clips[1]
    assert example.id == "w/1" and example.image.shape == (4, 16, 16, 3) and example.image.dtype == np.uint8
    assert clips.classes == {"watcher": ACTIONS["both"]} and clips.domain == DOMAIN["both"]
    label = example.labels["watcher"]
    assert label["ids"].tolist() == [clips.action(1)] and label["probs"].tolist() == [1] and label["rest"] == 0
    pool = MovingScenes(2, actions="both", size=16, frames=4, labels=False)
    assert pool[1].labels == {} and pool.classes == {}
    np.testing.assert_array_equal(pool[1].image, example.image)


@pytest.mark.parametrize(
    "wrong", [{"actions": "chess"}, {"domain": "mars"}, {"size": 4}, {"frames": 1}, {"count": -1}, {"start": -1}]
)
def test_mistakes_are_named(wrong):
    with pytest.raises(UserError, match="moving_scenes"):
        MovingScenes(**{"count": 2, **wrong})


def test_indices_outside_are_refused():
    with pytest.raises(IndexError):
        MovingScenes(2, start=5)[2]
