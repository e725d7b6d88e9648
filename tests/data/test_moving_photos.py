"""Photos as clips: a frame that wanders over each, never beyond its edge."""

import numpy as np
import pytest

from must.core.types import Example, UserError
from must.data.geometry import FILL
from must.data.moving_photos import MIRRORED, MOTIONS, REVERSED, MovingPhotos


class Ramps:
    """Photos whose red grows to the right and green downwards, so that a frame says where it was."""

    name, classes, fingerprint = "ramps", {}, "ramps"
    ids = [f"ramps/{i}" for i in range(24)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        height, width = [(60, 90), (90, 60), (200, 70)][index % 3]
        photo = np.zeros((height, width, 3), np.uint8)
        photo[..., 0] = np.linspace(0, 255, width)[None]
        photo[..., 1] = np.linspace(0, 255, height)[:, None]
        return Example(self.ids[index], photo, {})


def test_clips_wander_steadily_and_stay_inside():
    source = MovingPhotos(Ramps(), frames=6, size=24, travel=0.4, zoom=1.5)
    ways = []
    for i in range(len(source)):
        clip = source[i].image
        assert clip.shape == (6, 24, 24, 3) and clip.dtype == np.uint8 and not source[i].labels
        assert not (clip == FILL).all(-1).any()  # blue is 0 in every photo
        place = clip[..., :2].reshape(6, -1, 2).astype(float).mean(1)
        steps = np.diff(place, axis=0)
        assert np.linalg.norm(steps - steps.mean(0), axis=1).max() < 3  # a steady pace, in gray levels
        ways.append(np.linalg.norm(place[-1] - place[0]))
    assert min(ways) < 20 < max(ways)
    spread = [np.ptp(source[i].image[..., 0], (1, 2)).astype(float) for i in range(len(source))]
    ratio = np.array([s[-1] / s[0] for s in spread])
    assert (ratio > 1.1).any() and (ratio < 0.9).any()  # some go in and some go out


def test_a_photo_has_one_clip_and_seeds_have_others():
    a, b, c = MovingPhotos(Ramps()), MovingPhotos(Ramps()), MovingPhotos(Ramps(), seed=1)
    np.testing.assert_array_equal(a[3].image, b[3].image)
    assert (a[3].image != c[3].image).any()
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert a.ids[3] == "ramps-moving/3" and len(a) == 24


def test_impossible_settings_are_refused():
    moving = {"actions": "camera"}
    for wrong in (
        *({"frames": 1}, {"travel": 2.0}, {"zoom": 0.5}, {"clips": -1}, {"actions": "jumps"}),
        *({**moving, "travel": 0.0}, {**moving, "zoom": 1.0}),
    ):
        with pytest.raises(UserError, match="moving photos"):
            MovingPhotos(Ramps(), **wrong)


class Plain(Ramps):
    """Photos of one gray level each."""

    def __getitem__(self, index):
        return Example(self.ids[index], np.full((60, 90, 3), 40 + 8 * index, np.uint8), {})


def _camera(clip):
    """How a camera moves over `Ramps`: right, down, in, clockwise, each -1, 0 or 1; and how unsteadily."""
    red, green = clip[..., 0].astype(float), clip[..., 1].astype(float)
    place = np.stack([red.mean((1, 2)), green.mean((1, 2))], 1)
    slope = np.stack([np.gradient(red, axis=axis).mean((1, 2)) for axis in (1, 2)], 1)  # down and across a frame
    steep, angle = np.hypot(*slope.T), np.arctan2(slope[:, 0], slope[:, 1])
    ways = (*(place[-1] - place[0]) / 10, np.log(steep[0] / steep[-1]) / 0.1, (angle[-1] - angle[0]) / 0.1)
    return [int(np.sign(way)) if abs(way) > 1 else 0 for way in ways], np.abs(np.diff(place, 2, axis=0)).max()


def _moved(motion, names):
    return [int(getattr(motion, name)) for name in names]


def test_the_camera_moves_as_the_class_says():
    source = MovingPhotos(Ramps(), frames=6, size=24, actions="camera", travel=0.8, zoom=2.0, clips=54)
    names = source.classes["action"]
    assert names == tuple(MOTIONS["camera"]) and len(set(source.ids)) == 54
    for i in range(len(source)):
        example, name = source[i], names[source.action(i)]
        assert int(example.labels["action"]["ids"][0]) == source.action(i)
        found, unsteady = _camera(example.image)
        wanted = MOTIONS["camera"][name]
        if name == "shake":
            assert unsteady > 3
            continue
        assert found == _moved(wanted, ("pan", "tilt", "zoom", "turn")) and unsteady < 3, name


def test_cut_outs_move_as_the_class_says():
    source = MovingPhotos(Plain(), frames=6, size=32, actions="objects", travel=0.6, clips=48, seed=3)
    grid = np.indices((32, 32))
    for i in range(len(source)):
        clip, name = source[i].image[..., 0].astype(int), source.classes["action"][source.action(i)]
        body = clip != clip[:, :1, :1]
        if not body.any():
            continue  # a photo in front of itself
        size = body.sum((1, 2))
        y, x = (grid * body[:, None]).sum((2, 3)).T / size
        ways = [(x[-1] - x[0]) / 4, (y[-1] - y[0]) / 4, np.log(size[-1] / size[0]) / 0.5]
        found = [int(np.sign(way)) if abs(way) > 1 else 0 for way in ways]
        assert found == _moved(MOTIONS["objects"][name], ("across", "down", "grow")), name


class Marked(Ramps):
    """Every other photo is blue."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        example.image[..., 2] = 255 * (index % 2)
        return example


def test_camera_and_cut_out_move_as_the_class_says():
    source = MovingPhotos(Marked(), frames=6, size=32, actions="both", travel=0.8, clips=140)
    seen, across = set(), np.arange(32)
    for i in range(len(source)):
        clip, name = source[i].image.astype(float), source.classes["action"][source.action(i)]
        motion = MOTIONS["both"][name]
        way = clip[-1, :4, :, 0].mean() - clip[0, :4, :, 0].mean()  # above every cut-out
        assert (int(np.sign(way)) if abs(way) > 8 else 0) == motion.pan, name
        body = np.abs(clip[..., 2] - clip[:, :1, :1, 2]) > 128
        if body.any():  # else a photo in front of one of its color
            place = (body * across).sum((1, 2)) / body.sum((1, 2))
            drift = place[-1] - place[0]
            assert (int(np.sign(drift)) if abs(drift) > 3 else 0) == motion.across - motion.pan, name
            seen.add(name)
    assert seen == set(MOTIONS["both"])


def test_how_much_a_frame_shows_does_not_tell_the_class():
    for actions in MOTIONS:
        source = MovingPhotos(Ramps(), frames=7, size=24, actions=actions, travel=0.8, zoom=2.0, clips=270)
        shown = {c: [] for c in range(len(MOTIONS[actions]))}
        for i in range(len(source)):
            if i % 24 % 3 == 0:  # photos of one size
                shown[source.action(i)].append(np.ptp(source[i].image[3, :3, :, 0].astype(float)))
        means = [np.mean(values) for values in shown.values()]
        assert np.ptp(means) < 0.12 * np.mean(means), actions


def test_sets_of_other_names_share_no_motion():
    one, other = (MovingPhotos(Ramps(), frames=6, size=24, actions="camera", name=name) for name in ("a", "b"))
    assert [one.action(i) for i in range(24)] != [other.action(i) for i in range(24)]
    assert all((one[i].image != other[i].image).any() for i in range(24))


def test_ids_that_would_collide_are_refused():
    class Named(Ramps):
        ids = ["x/a", "x/a-1"]

    with pytest.raises(UserError, match="would have one id"):
        MovingPhotos(Named(), clips=4)
    with pytest.raises(UserError, match="clips without actions"):
        MovingPhotos(Ramps()).action(0)


def test_labels_of_flipped_and_reversed_clips():
    """Pairs in full, since the tables follow from the motions."""

    def pairs(table):
        return {space: {frozenset(pair) for pair in swaps.items()} for space, swaps in table.items()}

    sideways = {
        "camera": {("pan_left", "pan_right"), ("turn_left", "turn_right")},
        "objects": {("left", "right")},
        "both": {("camera_left", "camera_right"), ("object_left", "object_right"), ("follow_left", "follow_right")},
    }
    other = {
        "camera": {("tilt_up", "tilt_down"), ("zoom_in", "zoom_out")},
        "objects": {("up", "down"), ("grows", "shrinks")},
        "both": set(),
    }
    assert pairs(MIRRORED) == {space: set(map(frozenset, one)) for space, one in sideways.items()}
    assert pairs(REVERSED) == {space: set(map(frozenset, one | other[space])) for space, one in sideways.items()}


def test_classes_are_balanced_and_may_be_left_out():
    source = MovingPhotos(Ramps(), actions="both", clips=70, task="motion", labels=False)
    assert not source.classes and not source[3].labels and source.action(-1) == source.action(69)
    assert np.bincount([source.action(i) for i in range(70)]).tolist() == [10] * 7
    assert [source.action(i) for i in range(7)] != [source.action(i) for i in range(7, 14)]
