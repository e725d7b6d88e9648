"""Photos as clips: a frame that wanders over each, never beyond its edge."""

import numpy as np
import pytest

from must.core.types import Example, UserError
from must.data.geometry import FILL
from must.data.moving_photos import MovingPhotos


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
    for wrong in ({"frames": 1}, {"travel": 2.0}, {"zoom": 0.5}):
        with pytest.raises(UserError, match="moving photos"):
            MovingPhotos(Ramps(), **wrong)
