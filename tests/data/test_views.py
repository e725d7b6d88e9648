"""Strong views: what they change, what they may not, and how a configuration names them."""

import numpy as np
import pytest

from must.data.augment import OPERATIONS, RandAugment


def _image(side=32, seed=0):
    """A bright disc on a textured ground."""
    y, x = np.mgrid[:side, :side] - side / 2
    disc = (x**2 + y**2 < (side / 4) ** 2)[..., None]
    noise = np.random.default_rng(seed).integers(0, 60, (side, side, 3))
    return np.where(disc, 180, 60 + noise).astype(np.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_pictures_and_depends_on_the_draw_alone(name):
    image, view = _image(), RandAugment(1, 0.9, operations=(name,), blur=0.1)
    before = image.copy()
    found = [view(image, np.random.default_rng(seed)) for seed in range(4)]
    np.testing.assert_array_equal(image, before)  # pictures are shared with a cache
    np.testing.assert_array_equal(found[1], view(image, np.random.default_rng(1)))
    assert all(f.shape == image.shape and f.dtype == np.uint8 for f in found) and any((f != image).any() for f in found)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_moves_a_pixel(name):
    """A change of one place of the picture changes its neighborhood at most, and mirrored pictures change alike."""
    image = _image()
    view = RandAugment(1, 1.0, operations=(name,), blur=0.02, noise=0.0)
    mirrored = view(np.ascontiguousarray(image[:, ::-1]), np.random.default_rng(3))[:, ::-1]
    np.testing.assert_allclose(mirrored.astype(int), view(image, np.random.default_rng(3)).astype(int), atol=1)
    far = image.copy()
    far[:4] = far[4:8]  # the same gray values, so that statistics stay close
    a, b = (view(x, np.random.default_rng(3)).astype(int) for x in (image, far))
    assert np.abs(a[12:] - b[12:]).max() <= 16


@pytest.mark.parametrize("name", OPERATIONS)
def test_frames_of_a_clip_change_alike(name):
    view = RandAugment(1, 0.8, operations=(name,), blur=0.1)
    clip = view(np.stack([_image()] * 3), np.random.default_rng(5))
    np.testing.assert_array_equal(clip, np.broadcast_to(clip[:1], clip.shape))
    assert (clip[0] == view(_image(), np.random.default_rng(5))).mean() > 0.99


def test_a_view_without_magnitude_changes_next_to_nothing():
    still = ("posterize", "solarize", "brightness", "contrast", "color", "sharpness", "blur", "noise")
    view = RandAugment(8, 0.0, operations=still)
    assert np.abs(view(_image(), np.random.default_rng(0)).astype(int) - _image()).max() <= 1
