"""Strong views: what they change, what they may not, and how a configuration names them."""

import jax
import numpy as np
import pytest

from must.core import devices
from must.core.types import Batch, Objective
from must.data.augment import OPERATIONS, Photometric, RandAugment
from must.data.mix import CLEAN
from must.objectives.objective import with_view


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


SETTINGS = ({}, {"blur": 1.0, "cutout": 1.0}, {"noise": 0.0, "cutout": 0.5, "color": 0.0})


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_what_is_drawn_changes_a_picture_alike_on_the_host_and_in_the_step(options):
    view = Photometric(**options)
    apply = jax.jit(view.apply_in_step)
    for seed in range(8):
        host = view(_image(seed=seed), np.random.default_rng(seed)).astype(int)
        device = apply(_image(seed=seed), view.draw(np.random.default_rng(seed), (32, 32)))
        assert np.abs(host - np.asarray(device)).max() <= 1
    images = np.stack([_image()] * 256)
    drawn = np.asarray(jax.jit(view.in_step)(images, jax.random.split(jax.random.key(0), 256))).astype(float)
    host = np.stack([view(image, np.random.default_rng(seed)) for seed, image in enumerate(images)]).astype(float)
    for statistic in (np.mean, np.std):  # of the pictures, over the draws: the same distributions
        of = [statistic(pictures, (1, 2)) for pictures in (drawn, host)]
        error = np.hypot(*(one.std(0) for one in of)) / 16
        assert (np.abs(of[0].mean(0) - of[1].mean(0)) < 4 * error).all()
        np.testing.assert_allclose(of[0].std(0), of[1].std(0), rtol=0.3)


@pytest.mark.devices(4)
def test_a_view_in_the_step_does_not_depend_on_the_devices():
    view = Photometric(blur=0.5, cutout=0.5)

    def terms(params, model_state, aux_state, frozen, batch, key, axis_name):
        return {view: image.astype(np.int32) for view, image in batch.inputs.items()}, model_state, aux_state

    made = with_view(Objective(None, (), terms, {}), view.in_step)

    def step(key, batch, axis_name):
        return made.terms({}, {}, {}, None, batch, key, axis_name)[0]

    batch = Batch({"image": np.stack([_image(seed=k) for k in range(8)])}, {}, {}, np.arange(8))
    one, many = (
        devices.parallelize(step, out_axes=0, devices=some)(jax.random.key(3), batch)
        for some in (jax.devices()[:1], jax.devices()[:4])
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(many))
    np.testing.assert_array_equal(one[CLEAN], batch.inputs["image"])
    changed = np.asarray(one["image"])
    assert (changed != batch.inputs["image"]).any() and (changed[0] - changed[1] != one[CLEAN][0] - one[CLEAN][1]).any()
