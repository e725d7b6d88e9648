"""Backbones on clips: what they share with image networks and 3-D convolutions, that time matters, and that they
learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from must.core.types import Features, Model
from must.models.heads import ClassHead
from must.models.multi_head import multi_head, over_clips, parameter_count
from must.models.resnet import ResNet
from must.models.temporal_shift import R2Plus1D, SpatialConv, TemporalConv, TemporalShiftResNet, VideoTransformer, shift

KEY = jax.random.key(0, impl="rbg")  # compiles in a quarter of the time
FAMILIES = {
    "temporal_shift": TemporalShiftResNet(10, 8, "group", "small", 2),
    "r2plus1d": R2Plus1D(10, 4, "group", "small", 2),
    "video_transformer": VideoTransformer(16, 1, 1, heads=2, patch=8, tubelet=2),
}


def _random(*shape, key=1):
    return np.random.default_rng(key).normal(size=shape).astype(np.float32)


def _clips(*shape, key=0):
    return np.random.default_rng(key).integers(0, 256, shape, np.uint8)


def _init(module, *args, **kwargs):
    return jax.jit(lambda key: module.init(key, *args, **kwargs))(KEY)


def _shapes(module, *args, **kwargs):
    """(outputs, variables) of a module as shapes, without computing anything."""
    return jax.eval_shape(lambda: module.init_with_output(KEY, *args, **kwargs))


def _active(variables):
    """With every residual branch switched on: the last scale of a block starts at 0."""
    return jax.tree.map(lambda leaf: leaf + 0.1, variables)


class FrameWise(ResNet):
    """The image network on every frame, the mean over time pooled."""

    def __call__(self, x, *, train):
        features = self.of_images(x.reshape(-1, *x.shape[2:]), train=train)
        return Features({}, features.pooled.reshape(*x.shape[:2], -1).mean(1))


# --- shapes and sizes


@pytest.mark.parametrize("size", [(4, 48, 64), (5, 30, 46)])
def test_levels_have_the_stated_strides_and_lengths(size):
    frames, height, width = size
    clips = jnp.zeros((2, *size, 3))
    features, _ = _shapes(TemporalShiftResNet(10, 8, stages=3), clips, train=True)
    assert {s: v.shape for s, v in features.pyramid.items()} == {
        s: (2, frames, -(-height // s), -(-width // s), s // 4 * 8) for s in (4, 8, 16)
    }
    assert features.pooled.shape == (2, 32)
    features, _ = _shapes(R2Plus1D(10, 8, stages=3), clips, train=True)
    assert {s: v.shape for s, v in features.pyramid.items()} == {
        s: (2, -(-2 * frames // s), -(-height // s), -(-width // s), s // 2 * 8) for s in (2, 4, 8)
    }
    assert features.pooled.shape == (2, 32)
    network = VideoTransformer(24, 1, 1, patch=8 if height == 48 else 2, tubelet=2 if frames == 4 else 5)
    features, _ = _shapes(network, clips, train=True)
    assert {s: v.shape for s, v in features.pyramid.items()} == {
        network.patch: (2, frames // network.tubelet, height // network.patch, width // network.patch, 24)
    }
    assert features.pooled.shape == (2, 24)


@pytest.mark.parametrize(
    "network, published",
    [
        (R2Plus1D(18), 31_505_325),  # torchvision's r2plus1d_18
        (TemporalShiftResNet(50), 25_557_032 - 2049 * 600),  # that of a ResNet-50
        # ViT-B/16 has 85,798,656 without its classifier; two frames a patch, 4 layers in time, 2 positions, no class
        # token.
        (VideoTransformer(768, heads=12), 85_798_656 + 16 * 16 * 3 * 768 + 4 * 7_087_872 + 1536 + (2 + 16 - 198) * 768),
    ],
)
def test_parameter_count_is_the_published_one(network, published):
    features, variables = _shapes(network, jnp.zeros((1, 4, 64, 64, 3)), train=False)
    classifier = 0 if isinstance(network, VideoTransformer) else (features.pooled.shape[1] + 1) * 400
    assert parameter_count(variables["params"]) + classifier == published


def test_bfloat16_keeps_parameters_and_features_in_float32():
    for network in (net.clone(dtype=jnp.bfloat16) for net in FAMILIES.values()):
        features, variables = _shapes(network, jnp.zeros((1, 4, 16, 16, 3)), train=True)
        assert {leaf.dtype for leaf in jax.tree.leaves((variables, features.pooled))} == {jnp.dtype("float32")}
        assert {leaf.dtype for leaf in features.pyramid.values()} == {jnp.dtype("bfloat16")}


def test_a_clip_that_tubelets_do_not_fill_is_refused():
    for size in ((5, 16, 16), (4, 20, 16), (4, 16, 12)):
        with pytest.raises(ValueError, match=r"a clip of . frames of .* is not divisible"):
            _shapes(FAMILIES["video_transformer"], jnp.zeros((1, *size, 3)), train=False)


# --- temporal shift


@pytest.mark.parametrize("channels, part, causal", [(16, 2, False), (16, 2, True), (5, 1, False)])
def test_shift_moves_its_channels_by_one_frame_and_nothing_else(channels, part, causal):
    clips = _random(2, 4, 3, 1, channels)
    moved = shift(clips.reshape(8, 3, 1, channels), 4, causal=causal).reshape(clips.shape)
    for t in range(4):
        after = clips[:, t + 1] if t < 3 else 0 * clips[:, 0]
        before = clips[:, t - 1] if t > 0 else 0 * clips[:, 0]
        wanted = [after[..., :part], before[..., part : 2 * part], clips[:, t, ..., 2 * part :]]
        if causal:
            wanted = [before[..., :part], clips[:, t, ..., part:]]
        np.testing.assert_array_equal(moved[:, t], np.concatenate(wanted, -1))


def test_image_weights_load_unchanged_and_mean_the_same_on_one_frame():
    image, video = ResNet(50, 8, "batch", "small", 2), TemporalShiftResNet(50, 8, "batch", "small", 2)
    x = _random(2, 3, 16, 16, 3)
    variables, other = _shapes(image, x[:, 0], train=False)[1], _shapes(video, x, train=False)[1]
    assert jax.tree.structure(variables) == jax.tree.structure(other)
    assert jax.tree.leaves(variables) == jax.tree.leaves(other)
    variables = jax.tree.map(lambda leaf: np.abs(_random(*leaf.shape)) * 0.1, variables)

    @jax.jit
    def both(variables):
        return image.apply(variables, x[:, 0], train=False), video.apply(variables, x[:, :1], train=False)

    of_image, of_clip = both(variables)
    np.testing.assert_allclose(of_clip.pooled, of_image.pooled, rtol=1e-6)
    for stride, level in of_image.pyramid.items():
        np.testing.assert_allclose(of_clip.pyramid[stride][:, 0], level, rtol=1e-6)


def test_the_order_of_frames_matters_to_the_shift_and_not_to_a_mean_over_frames():
    x = _random(2, 4, 16, 16, 3)
    shifted, frame_wise = TemporalShiftResNet(10, 8, "group", "small", 2), FrameWise(10, 8, "group", "small", 2)
    variables = _init(frame_wise, x, train=False)

    @jax.jit
    def pooled(variables, x):
        return [net.apply(variables, x, train=False).pooled for net in (shifted, frame_wise)]

    np.testing.assert_array_equal(*pooled(variables, x))  # branches start as nothing, the identity path keeps its frame
    variables = _active(variables)
    forwards, backwards = pooled(variables, x), pooled(variables, x[:, ::-1])
    np.testing.assert_allclose(backwards[1], forwards[1], rtol=1e-4, atol=1e-5)
    assert np.abs(backwards[0] - forwards[0]).max() > 0.01 * np.abs(forwards[0]).max()


# --- R(2+1)D


@pytest.mark.parametrize("frames, stride", [(4, 1), (5, 2), (4, 2), (1, 2)])
def test_factorized_convolutions_equal_the_3d_ones(frames, stride):
    x = _random(2, frames, 5, 6, 3)
    for module, size in ((SpatialConv(4, 3, stride), (1, 3, 3)), (TemporalConv(4, 3, stride), (3, 1, 1))):
        kernel = _random(*size, 3, 4, key=2)

        def ours(x, kernel, module=module):
            kernel = kernel.reshape((3, 3, 3, 4) if isinstance(module, SpatialConv) else (3, 1, 3, 4))
            return module.apply({"params": {"conv": {"kernel": kernel}}}, x)

        def reference(x, kernel, size=size):
            strides = [stride if n > 1 else 1 for n in size]
            padding = [(n // 2, n // 2) for n in size]
            return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))

        @jax.jit
        def both(x, kernel, ours=ours, reference=reference):
            return [
                (convolve(x, kernel), jax.grad(lambda *a: (convolve(*a) ** 2).sum(), (0, 1))(x, kernel))
                for convolve in (ours, reference)
            ]

        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), *both(x, kernel))


# --- transformer


def test_a_pixel_reaches_its_tubelet_then_its_time_step_then_all_and_steps_have_an_order():
    clips = _random(1, 6, 8, 12, 3)
    touched = clips.copy()
    touched[0, 3, 5, 9] += 1.0

    def parts(depth):
        network = VideoTransformer(8, depth, 1, heads=2, patch=4, tubelet=2)
        variables = jax.tree.map(lambda leaf: _random(*leaf.shape), _shapes(network, clips, train=False)[1])
        return jax.jit(lambda clips: network.apply(variables, clips, train=False))

    for depth in (0, 1):
        network = parts(depth)
        before, after = network(clips), network(touched)
        changed = np.abs(after.pyramid[4] - before.pyramid[4]).max(-1)[0] > 1e-6
        np.testing.assert_array_equal(np.argwhere(changed)[:, 0], 1 if depth == 0 else [1] * 6)
        if depth == 0:
            assert np.argwhere(changed).tolist() == [[1, 1, 2]]
        assert np.abs(after.pooled - before.pooled).max() > 1e-4
    reordered = network(clips[:, [4, 5, 2, 3, 0, 1]])
    np.testing.assert_allclose(reordered.pyramid[4], before.pyramid[4][:, ::-1], atol=1e-4)  # space does not see time
    assert np.abs(reordered.pooled - before.pooled).max() > 1e-2


# --- all families


@pytest.mark.parametrize("name", FAMILIES)
def test_clips_do_not_see_each_other_and_every_parameter_has_a_finite_gradient(name):
    model = multi_head(FAMILIES[name], None, {"action": ClassHead(3)})
    clips = _clips(3, 4, 16, 16, 3)
    variables = jax.tree.map(lambda leaf: leaf + 0.1 * _random(*leaf.shape), model.init(KEY, clips))

    @jax.jit
    def logits_and_gradient(params, clips):
        def loss(params):
            outputs, _, features = model.apply({"params": params}, clips, train=True, with_features=True)
            level = features.pyramid[max(features.pyramid)]
            return (outputs["action"] ** 2).sum() + (level**2).mean(), outputs["action"]

        gradient, logits = jax.grad(loss, has_aux=True)(params)
        return logits, gradient

    logits, gradient = logits_and_gradient(variables["params"], clips)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
    # A bias before a softmax over keys changes nothing: its gradient is 0 but for rounding.
    moved = {
        jax.tree_util.keystr(path): float(np.abs(leaf).max()) for path, leaf in jax.tree.leaves_with_path(gradient)
    }
    assert [path for path, size in moved.items() if size == 0 and "['key']['bias']" not in path] == []
    order = np.array([2, 0, 1])
    permuted, _ = logits_and_gradient(variables["params"], clips[order])
    np.testing.assert_allclose(permuted, logits[order], rtol=1e-4, atol=1e-5)
    clips[2] = 0
    changed, _ = logits_and_gradient(variables["params"], clips)
    np.testing.assert_allclose(changed[:2], logits[:2], rtol=1e-4, atol=1e-5)
    assert np.abs(changed[2] - logits[2]).max() > 1e-3


@pytest.mark.parametrize("family", [TemporalShiftResNet, R2Plus1D])
def test_statistics_are_over_clips_frames_and_space_of_all_devices(family):
    model = multi_head(family(10, 4, stem="small", stages=1), None, {"action": ClassHead(3)})
    clips = _clips(4, 2, 8, 8, 3)
    variables = model.init(KEY, clips)
    variables = {**variables, "params": _active(variables["params"])}

    def apply(clips, axis_name=None):
        outputs, state = model.apply(variables, clips, train=True, axis_name=axis_name)
        return outputs["action"], state

    @jax.jit
    def three(clips):
        halves = clips.reshape(2, 2, *clips.shape[1:])
        together = jax.vmap(lambda x: apply(x, "data"), axis_name="data")(halves)
        return apply(clips), together, jax.vmap(lambda x: apply(x)[0])(halves)

    (expected, expected_state), (logits, state), apart = three(clips)
    np.testing.assert_allclose(logits.reshape(expected.shape), expected, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=2e-3, rtol=1e-3), state, expected_state)
    assert np.abs(apart.reshape(expected.shape) - expected).max() > 1e-3  # the axis matters
    stem = state["batch_stats"]["backbone"]["stem_norm"]["mean"]
    assert stem.shape == (2, 4)


def _bars(count, key):
    """Clips of a bar that goes right (label 0), and the same clips backwards (label 1)."""
    rng = np.random.default_rng(key)
    clips = rng.integers(0, 40, (count, 6, 16, 16, 3))
    start, speed = rng.integers(0, 16, count), rng.integers(1, 4, count)
    for t in range(6):
        columns = (start + speed * t)[:, None] + np.arange(3)
        clips[np.arange(count)[:, None], t, :, columns % 16] += 200
    clips = clips.astype(np.uint8)
    return np.concatenate([clips, clips[:, ::-1]]), np.repeat([0, 1], count)


def test_the_shift_learns_a_direction_that_a_frame_wise_network_cannot_know():
    clips, labels = _bars(32, 0)
    unseen, truth = _bars(64, 1)
    model = multi_head(TemporalShiftResNet(10, 8, stem="small", stages=2), None, {"action": ClassHead(2)})
    variables = model.init(KEY, clips)
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state, opt_state):
        def loss(params):
            outputs, new_state = model.apply({"params": params, **state}, clips, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(outputs["action"], labels).mean(), new_state

        gradient, state = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state)
        return optax.apply_updates(params, updates), state, opt_state

    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    opt_state = tx.init(params)
    for _ in range(40):
        params, state, opt_state = step(params, state, opt_state)
    frame_wise = multi_head(FrameWise(10, 8, stem="small", stages=2), None, {"action": ClassHead(2)})

    @jax.jit
    def answer(variables, clips):
        return [m.apply(variables, clips, train=False)[0]["action"] for m in (model, frame_wise)]

    by_shift, by_frame = answer({"params": params, **state}, unseen)
    assert (by_shift.argmax(1) == truth).mean() > 0.9
    # With any weights, of each clip and its reversal a mean over frames gets one right: 50%.
    np.testing.assert_allclose(by_frame[:64], by_frame[64:], atol=1e-3)


# --- several clips


def _linear():
    """A network of no layers: logits are the sums of the clip's first values."""

    def apply(variables, inputs, *, train, key=None, axis_name=None, with_features=False):
        logits = inputs.reshape(len(inputs), -1)[:, :3].astype(jnp.float32) * variables["params"]
        outputs = {"a": logits, "b": -logits[:, :2]}
        return (outputs, {"seen": jnp.ones(())}, "features") if with_features else (outputs, {"seen": jnp.ones(())})

    return Model(lambda key, inputs: {"params": jnp.ones(inputs.shape[1:])}, apply)


def test_several_clips_give_the_mean_of_their_probabilities():
    model = over_clips(_linear())
    clips = _clips(2, 5, 2, 2, 2, 3) // 64
    outputs, state = jax.jit(lambda clips: model.apply({"params": 0.7}, clips, train=False))(clips)
    logits = 0.7 * clips.reshape(2, 5, -1)[..., :3]
    for task, each in (("a", logits), ("b", -logits[..., :2])):
        mean = (np.exp(each) / np.exp(each).sum(-1, keepdims=True)).mean(1)
        np.testing.assert_allclose(np.exp(outputs[task]), mean, rtol=1e-5)
    assert state == {"seen": 1}
    assert model.init(KEY, clips)["params"].shape == (2, 2, 2, 3)  # initialized on one clip


def test_one_clip_passes_through_and_training_on_several_is_refused():
    model, one, several = over_clips(_linear()), _clips(2, 2, 2, 2, 3), _clips(2, 5, 2, 2, 2, 3)
    for options in ({"train": False}, {"train": True, "with_features": True}):
        expected = _linear().apply({"params": 1.0}, one, **options)
        jax.tree.map(np.testing.assert_array_equal, model.apply({"params": 1.0}, one, **options)[:2], expected[:2])
    for options in ({"train": True}, {"train": False, "with_features": True}):
        with pytest.raises(ValueError, match="several clips"):
            model.apply({"params": 1.0}, several, **options)
    dense = Model(None, lambda variables, inputs, **_: ({"depth": jnp.zeros((len(inputs), 4, 4))}, {}))
    with pytest.raises(ValueError, match=r"not \[B, C\]"):
        over_clips(dense).apply({}, several, train=False)
