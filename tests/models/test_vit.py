"""Vision transformers and ConvNeXt as backbones of dense and detection heads: strides, frozen parts, LoRA, depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from must.core.types import Features, UserError
from must.models import convnext
from must.models.fpn import SimplePyramid
from must.models.heads import ClassHead, DenseHead, DetectionHead
from must.models.layers import drop_path
from must.models.multi_head import multi_head
from must.models.resnet import ResNet
from must.models.vit import RESIZES, ViT, resized

TINY = {"width": 16, "depth": 2, "heads": 2, "grid": 2}
KEY = jax.random.key(0, impl="rbg")


def images(*size, batch=2):
    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)


@pytest.mark.parametrize("patch, size", [(16, (32, 48)), (14, (42, 70)), (8, (24, 32))])
def test_heads_read_the_simple_pyramid_at_the_strides_of_every_other_backbone(patch, size):
    heads = {"kind": ClassHead(3), "dense": DenseHead(2, 4, 8, 1), "boxes": DetectionHead(3, 8, 1)}
    model = multi_head(ViT(**TINY, patch=patch), SimplePyramid(8), heads)

    def both():
        variables = model.init(KEY, images(*size))
        return model.apply(variables, images(*size), train=False, with_features=True)

    outputs, _, features = jax.eval_shape(both)
    strides = (4, 8, 16, 32)
    levels = {s: (2, -(-size[0] // s), -(-size[1] // s), 8) for s in strides}
    assert {s: level.shape for s, level in features.pyramid.items()} == levels
    assert outputs["boxes"]["quality"].shape == (2, sum(h * w for _, h, w, _ in levels.values()))
    assert outputs["dense"].shape == (2, *levels[4][1:3], 2)


def test_patches_of_14_pixels_are_sampled_where_cells_of_16_have_their_centers():
    net = ViT(**TINY, patch=14)
    image = jnp.zeros((1, 112, 224, 3))
    variables = jax.jit(lambda: net.init(KEY, image, train=False))()
    ramp = jnp.arange(16) * 14 + 7.0  # the centers of the patches, pixels

    def sampled(level):
        from must.models.vit import _at_stride

        return _at_stride(level, 14, 16, (112, 224))

    level = sampled(jnp.broadcast_to(ramp[None, None, :, None], (1, 8, 16, 1)))
    np.testing.assert_allclose(level[0, 3, :, 0], np.clip(np.arange(14) * 16 + 8.0, 7, 217), rtol=1e-6)
    assert level.shape == (1, 7, 14, 1)
    features = jax.eval_shape(lambda: net.apply(variables, image, train=False))
    assert list(features.pyramid) == [16] and features.pyramid[16].shape == (1, 7, 14, 16)


def test_frames_without_whole_patches_are_refused_with_one_that_fits():
    model = multi_head(ViT(**TINY, patch=14), None, {"kind": ClassHead(3)})
    with pytest.raises(UserError, match="a frame of 64 x 96 pixels has no whole patches of 14; 70 x 98 has"):
        model.init(KEY, images(64, 96))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": "huge"}, "size='huge': choices: 'tiny'"),
        ({"family": "clip"}, "family='clip': choices: 'vit'"),
        ({"resize": "linear"}, "resize='linear'"),
        ({"heads": 5}, "width 384 is not a multiple of 5"),
        ({"family": "dinov3", "width": 12, "heads": 2}, "width 12 is not a multiple of 8"),
        ({"frozen": 13}, "frozen=13: the backbone has 12 layers"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"registers": -1}, "registers=-1: must be at least 0"),
    ],
)
def test_networks_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        ViT(**wrong)


@pytest.mark.parametrize("method", RESIZES)
def test_resized_positions_keep_constants_and_their_own_size(method):
    positions = np.random.default_rng(0).normal(size=(5, 5, 3)).astype(np.float32)
    assert resized(positions, (5, 5), method) is positions
    np.testing.assert_allclose(resized(np.ones((5, 5, 1), np.float32), (3, 8), method), 1.0, rtol=1e-5)


def test_lora_changes_nothing_at_first_and_is_all_that_learns():
    plain, lora = (multi_head(ViT(**TINY, lora=rank), None, {"kind": ClassHead(3)}) for rank in (0, 2))
    variables = jax.jit(lora.init)(KEY, images(32, 32))
    learned = jax.tree_util.tree_leaves_with_path(variables["params"]["backbone"])
    assert len(learned) == 2 * 4 and all("lora" in jax.tree_util.keystr(path) for path, _ in learned)
    frozen = variables["frozen"]["backbone"]
    whole = {"params": {"backbone": frozen, "heads_kind": variables["params"]["heads_kind"]}}
    first = jax.jit(lambda v: lora.apply(v, images(32, 32), train=False)[0]["kind"])
    expected = jax.jit(lambda v: plain.apply(v, images(32, 32), train=False)[0]["kind"])(whole)
    np.testing.assert_allclose(first(variables), expected, atol=1e-6)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])
    assert np.abs(first({**variables, "params": moved}) - expected).max() > 1e-2


def test_a_backbone_that_is_frozen_as_a_whole_has_no_parameters_and_no_gradient():
    model = multi_head(ViT(**TINY, frozen=2, drop_path=0.5), None, {"kind": ClassHead(3)})
    variables = jax.jit(model.init)(KEY, images(32, 32))
    assert set(variables["params"]) == {"heads_kind"} and set(variables["frozen"]) == {"backbone"}
    step = jax.jit(lambda v, key: model.apply(v, images(32, 32), train=True, key=key))
    (first, state), (second, _) = (step(variables, jax.random.key(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(first["kind"], second["kind"])  # no layer of a frozen part is dropped
    jax.tree.map(np.testing.assert_array_equal, state["frozen"], variables["frozen"])


@pytest.mark.parametrize(
    "net, branches", [(ResNet(10, 4, stages=2, drop_path=0.5), 1), (ViT(**TINY, drop_path=0.5), 2)], ids=["res", "vit"]
)
def test_stochastic_depth_is_drawn_in_training_alone(net, branches):
    model = multi_head(net, None, {"kind": ClassHead(3)})
    variables = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(model.init)(KEY, images(32, 32)))
    run = jax.jit(lambda key: model.apply(variables, np.repeat(images(32, 32), 8, 0), train=True, key=key)[0]["kind"])
    first, second = run(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_array_equal(first, run(jax.random.key(1)))
    assert not np.array_equal(first, second)
    distinct = len(np.unique(np.asarray(first[:8]).round(4), axis=0))  # equal rows, with and without the last branches
    assert 1 < distinct <= 2**branches


def test_dropped_branches_keep_their_mean():
    y = jnp.ones((4000, 2))
    kept = drop_path(y, 0.25, jax.random.key(0), None)
    assert set(np.unique(kept).round(4)) == {0.0, np.float32(4 / 3).round(4)}
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.03)


def test_depthwise_convolution_and_its_gradient_equal_xlas():
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((2, 9, 5, 3), (7, 7, 1, 3)))
    names = ("NHWC", "HWIO", "NHWC")

    def reference(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names, feature_group_count=3)

    def both(function):
        loss = lambda x, kernel: (function(x, kernel) ** 2).sum()  # noqa: E731
        return jax.jit(lambda x, k: (function(x, k), *jax.grad(loss, (0, 1))(x, k)))(x, kernel)

    for ours, theirs in zip(both(convnext.depthwise), both(reference), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_convnext_pads_frames_to_whole_cells_and_freezes_stages():
    net = convnext.ConvNeXt("atto", frozen=1)
    features, variables = jax.eval_shape(lambda: net.init_with_output(KEY, jnp.zeros((1, 70, 96, 3)), train=False))
    assert {s: level.shape for s, level in features.pyramid.items()} == {
        s: (1, -(-70 // s), 96 // s, width) for s, width in zip((4, 8, 16, 32), (40, 80, 160, 320), strict=True)
    }
    assert {name for name in variables["params"] if not net.learns(f"{name}/")} == {
        *("stem", "stem_norm", "stage1_block1", "stage1_block2")
    }
    assert isinstance(features, Features)
