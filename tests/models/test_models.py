"""Backbones, pyramid, heads: shapes, known parameter counts, agreement with references, and that they learn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from must.core import devices
from must.core.devices import parallelize
from must.core.types import Features
from must.models.fpn import FPN, enlarge
from must.models.heads import ClassHead, DenseHead, DetectionHead, depth_to_space, read_levels, sum_levels
from must.models.layers import Norm, convolved, max_pool, residual
from must.models.multi_head import multi_head, parameter_count
from must.models.resnet import BLOCKS, ResNet

KEY = jax.random.key(0, impl="rbg")  # compiles in a quarter of the time


def _random(*shape, key=1):
    return np.random.default_rng(key).normal(size=shape).astype(np.float32)


def _images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _init(module, *args, **kwargs):
    return jax.jit(lambda key: module.init(key, *args, **kwargs))(KEY)  # compiled once, not once per layer


def _shapes(module, *args, **kwargs):
    """(outputs, variables) of a module as shapes, without computing anything."""
    return jax.eval_shape(lambda: module.init_with_output(KEY, *args, **kwargs))


def _pyramid(channels=8, strides=(4, 8, 16), size=(32, 48)):
    levels = {s: _random(2, -(-size[0] // s), -(-size[1] // s), channels, key=s) for s in strides}
    return Features(levels, _random(2, channels))


def _raised(level, row, column):
    level = level.copy()
    level[:, row, column] += 9.0
    return level


# --- backbone


@pytest.mark.parametrize("depth", sorted(BLOCKS))
def test_levels_have_the_stated_strides_and_widths(depth):
    image = jnp.zeros((2, 70, 96, 3))
    for stem, finest in (("imagenet", 4), ("small", 2)):
        features, _ = _shapes(ResNet(depth, 8, stem=stem, stages=3), image, train=True)
        end = 4 if depth >= 50 else 1
        assert {s: v.shape for s, v in features.pyramid.items()} == {
            s: (2, -(-70 // s), 96 // s, s // finest * 8 * end) for s in (finest, 2 * finest, 4 * finest)
        }
        assert features.pooled.shape == (2, 32 * end)


@pytest.mark.parametrize("depth, published", [(18, 11_689_512), (50, 25_557_032), (101, 44_549_160)])
def test_parameter_count_is_the_published_one(depth, published):
    features, variables = _shapes(ResNet(depth), jnp.zeros((1, 64, 64, 3)), train=False)
    assert parameter_count(variables["params"]) + (features.pooled.shape[1] + 1) * 1000 == published


def test_unknown_depth_stem_and_norm_are_refused():
    for wrong in ({"depth": 19}, {"stem": "large"}, {"norm": "layer"}, {"stages": 5}):
        with pytest.raises(ValueError, match=str(*wrong.values())):
            _shapes(ResNet(**wrong), jnp.zeros((1, 32, 32, 3)), train=False)


def test_zero_initialized_branches_make_a_block_the_identity_at_first():
    net = ResNet(18, 8, stem="small", stages=1)
    x = _random(2, 16, 16, 3)
    variables = _init(net, x, train=False)
    apply = jax.jit(lambda variables: net.apply(variables, x, train=False).pyramid[2])
    before = apply(variables)
    for name in ("stage1_block1", "stage1_block2"):  # whatever the branch computes is multiplied by zero
        variables["params"][name]["conv2"]["kernel"] += 1.0
    np.testing.assert_array_equal(apply(variables), before)


@pytest.mark.parametrize("size,kernel,stride", [(2, 3, 1), (4, 3, 2), (1, 3, 1), (2, 7, 2), (5, 3, 2), (4, 3, 1)])
def test_convolution_of_pictures_smaller_than_the_kernel_equals_xlas(size, kernel, stride):
    x, weights = _random(3, size, size, 4), _random(kernel, kernel, 4, 5, key=2)
    layout, pad = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}, ((kernel // 2, kernel // 2),) * 2

    def both(convolution):
        loss = lambda *arguments: (convolution(*arguments, (stride, stride), pad, **layout) ** 2).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, weights)

    ours, theirs = both(convolved), both(jax.lax.conv_general_dilated)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)
    small = max(1, size // stride) ** 2 < kernel**2
    assert (
        "platform" in str(jax.make_jaxpr(lambda *a: convolved(*a, (stride, stride), pad, **layout))(x, weights))
    ) == small


@pytest.mark.parametrize("several", [False, True])
def test_the_sums_of_a_residual_stream_are_computed_once(several):
    """A step that devices run keeps the barriers, without which XLA makes each sum anew for every later block."""

    def step(state, batch, axis_name):
        def loss(weights):
            x = batch
            for one in weights:
                x = residual(x, jnp.tanh(x) @ one)
            return (x**2).sum()

        return jax.grad(loss)(state)

    arguments = jnp.ones((3, 8, 8)), jnp.ones((4, 8))
    one = jax.devices()[:1]
    compiled = devices._across_processes(step, None, (), one) if several else parallelize(step, devices=one)
    program = compiled.lower(*arguments).compile().as_text()
    assert program.count("opt-barrier(") >= 5  # of three sums and of their gradients
    grads = compiled(*arguments)
    plain = jax.jit(lambda *a: step(*a, None))(*arguments)
    np.testing.assert_allclose(grads, plain, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 6), (7, 1)])
def test_max_pool_equals_the_windowed_reduction(size):
    x = _random(2, *size, 3) - 5.0  # all negative, so that a zero padding would show

    def reference(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    weights = _random(2, -(-size[0] // 2), -(-size[1] // 2), 3, key=2)

    @jax.jit
    def both(x):
        return [(pool(x), jax.grad(lambda x: (pool(x) * weights).sum())(x)) for pool in (max_pool, reference)]

    ours, theirs = both(x)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


# --- normalization


def test_batch_norm_equals_flax():
    x = 3.0 + 2.0 * _random(6, 5, 4, 8)
    ours, theirs = Norm("batch"), nn.BatchNorm(use_running_average=False, momentum=0.9)
    params = {"scale": _random(8, key=2), "bias": _random(8, key=3)}
    stats = {"mean": jnp.zeros(8), "var": jnp.ones(8)}
    variables = {"params": params, "batch_stats": stats}
    y, updated = jax.jit(lambda x: ours.apply(variables, x, train=True, mutable=["batch_stats"]))(x)
    expected, expected_stats = jax.jit(lambda x: theirs.apply(variables, x, mutable=["batch_stats"]))(x)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updated, expected_stats)
    expected = nn.BatchNorm(use_running_average=True).apply({"params": params, **updated}, x)
    np.testing.assert_allclose(ours.apply({"params": params, **updated}, x, train=False), expected, atol=1e-4)


@pytest.mark.parametrize("channels, groups", [(48, 24), (64, 32), (6, 6)])
def test_group_norm_equals_flax(channels, groups):
    x = 3.0 + _random(2, 3, 5, channels)
    variables = {"params": {"scale": _random(channels, key=2), "bias": _random(channels, key=3)}}
    expected = jax.jit(nn.GroupNorm(groups, epsilon=1e-5).apply)(variables, x)
    ours = jax.jit(lambda variables, x: Norm("group").apply(variables, x, train=True))(variables, x)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_statistics_over_an_axis_equal_those_of_the_whole_batch():
    model = multi_head(ResNet(10, 4, stem="small", stages=2), FPN(8, (2, 4)), {"depth": DenseHead(1, 4, 8, 1)})
    images = _images(4, 16, 16, 3)
    variables = model.init(KEY, images)
    assert set(variables) == {"params", "batch_stats"}

    def loss(params, images, axis_name):
        outputs, state = model.apply({**variables, "params": params}, images, train=True, axis_name=axis_name)
        return (outputs["depth"] ** 2).sum(), (outputs, state)

    def shard(images, axis_name="data"):
        gradient, (outputs, state) = jax.grad(loss, has_aux=True)(variables["params"], images, axis_name)
        return outputs, state, jax.lax.psum(gradient, axis_name)

    expected_gradient, (expected, expected_state) = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)(
        variables["params"], images, None
    )
    outputs, state, gradient = jax.jit(jax.vmap(shard, axis_name="data"))(images.reshape(2, 2, 16, 16, 3))
    np.testing.assert_allclose(outputs["depth"].reshape(expected["depth"].shape), expected["depth"], atol=1e-4)
    for got, wanted in ((state, expected_state), (gradient, expected_gradient)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=2e-3, rtol=1e-3), got, wanted)
    # Statistics of half the batch are different ones: the axis matters.
    separate = jax.jit(jax.vmap(lambda x: model.apply(variables, x, train=True)[0]["depth"]))
    half = separate(images.reshape(2, 2, 16, 16, 3))[0]
    assert np.abs(half - expected["depth"][:2]).max() > 1e-2


# --- pyramid


def test_enlarge_repeats_and_cuts():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    expected = np.arange(6).reshape(2, 3)[np.arange(3)[:, None] // 2, np.arange(5) // 2]
    np.testing.assert_array_equal(enlarge(x, 2, (3, 5))[0, ..., 0], expected)


@pytest.mark.parametrize("size", [(64, 64), (70, 45)])
def test_pyramid_has_the_stated_strides_at_odd_sizes_too(size):
    backbone = _shapes(ResNet(10, 4), jnp.zeros((2, *size, 3)), train=False)[0]
    backbone = jax.tree.map(lambda level: jnp.zeros(level.shape), backbone)
    features = _shapes(FPN(16, (8, 16, 32, 64, 128)), backbone, train=False)[0]
    assert {s: v.shape for s, v in features.pyramid.items()} == {
        s: (2, -(-size[0] // s), -(-size[1] // s), 16) for s in (8, 16, 32, 64, 128)
    }
    assert features.pooled.shape == backbone.pooled.shape


def test_coarse_levels_inform_finer_ones_and_not_the_reverse():
    neck, features = FPN(6, (8, 16, 32)), _pyramid(strides=(4, 8, 16), size=(40, 56))
    variables = _init(neck, features, train=False)
    apply = jax.jit(lambda features: neck.apply(variables, features, train=False).pyramid)
    before = apply(features)
    touched = features._replace(pyramid={**features.pyramid, 16: _raised(features.pyramid[16], 2, 3)})
    change = np.abs(apply(touched)[8] - before[8]).max((0, 3)) > 0
    rows, columns = np.nonzero(change)  # cells (4..5, 6..) of the finer level and one neighbor around them
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 4, 5, 6)
    touched = features._replace(pyramid={**features.pyramid, 8: features.pyramid[8] + 1.0})
    after = apply(touched)
    for stride in (16, 32):
        np.testing.assert_array_equal(after[stride], before[stride])


@pytest.mark.parametrize("strides", [(2, 4), (4, 16), (32,), (8, 4)])
def test_pyramid_that_cannot_be_built_is_refused(strides):
    with pytest.raises(ValueError, match="strides"):
        _shapes(FPN(8, strides), _pyramid(), train=False)


# --- heads


def test_depth_to_space_puts_every_sub_pixel_in_its_place():
    r, channels = 3, 2
    sub_pixels = jnp.arange(r * r * channels, dtype=jnp.float32)  # (row, column, channel)
    image = depth_to_space(jnp.broadcast_to(sub_pixels, (1, 2, 4, r * r * channels)), r)
    assert image.shape == (1, 2 * r, 4 * r, channels)
    tile = np.asarray(sub_pixels).reshape(r, r, channels)
    np.testing.assert_array_equal(image[0], np.tile(tile, (2, 4, 1)))


def test_levels_are_summed_where_they_lie():
    features = _pyramid(size=(20, 28))
    total, stride = sum_levels(features.pyramid, 8)
    y, x = np.mgrid[:3, :4]
    coarse = np.asarray(features.pyramid[16])[:, y // 2, x // 2]
    fine = features.pyramid[4][:, :4, :6].reshape(2, 2, 2, 3, 2, 8).mean((2, 4))
    assert stride == 8 and total.shape == (2, 3, 4, 8)
    expected = np.asarray(features.pyramid[8]) + coarse
    np.testing.assert_allclose(total[:, :2, :3], (expected[:, :2, :3] + fine), atol=1e-5)
    with pytest.raises(ValueError, match="equal width.*'strides': \\(4, 8\\)"):
        sum_levels({4: jnp.zeros((1, 4, 4, 3)), 8: jnp.zeros((1, 2, 2, 6))}, 4)


def test_levels_that_a_network_does_not_have_are_told_with_the_way_out():
    even = {stride: jnp.zeros((1, 8 // stride, 8 // stride, 3)) for stride in (2, 4, 8)}
    assert list(read_levels(even, (8, 2))) == [8, 2] and list(read_levels(even)) == [2, 4, 8]
    with pytest.raises(
        ValueError, match="strides=\\(4, 8\\), or add a neck, model.neck={'kind': 'fpn', 'strides': \\(2, 4, 8, 16\\)}"
    ):
        read_levels(even, (4, 8, 16))
    uneven = {**even, 4: jnp.zeros((1, 2, 2, 6))}
    assert list(read_levels(uneven, (4,))) == [4]
    with pytest.raises(ValueError, match="equal width"):
        read_levels(uneven, (4, 8))
    with pytest.raises(ValueError, match=": add a neck, model.neck"):  # the levels that are there would not do either
        read_levels(uneven, (4, 8, 16))
    with pytest.raises(ValueError, match="add a neck that has them"):  # no pyramid has these levels
        read_levels({16: even[8]}, (8, 64))


@pytest.mark.parametrize(
    "stride, shuffle, size, expected",
    [
        (4, 1, (32, 48), (8, 12)),
        (4, 2, (32, 48), (16, 24)),
        (4, 2, (30, 45), (15, 23)),
        (2, 1, (30, 45), (15, 23)),
        (8, 4, (32, 48), (16, 24)),
    ],
)
def test_pixel_head_covers_the_image(stride, shuffle, size, expected):
    outputs, _ = _shapes(DenseHead(5, stride, 8, 2, shuffle), _pyramid(size=size), train=False, image_size=size)
    assert outputs.shape == (2, *expected, 5) and outputs.dtype == jnp.float32


def test_detection_starts_at_the_prior_and_orders_points_from_fine_to_coarse():
    head, features = DetectionHead(3, 8, 2, prior=0.02), _pyramid(strides=(8, 16, 32), size=(40, 56))
    variables = _init(head, features, train=False, image_size=(40, 56))
    apply = jax.jit(lambda features: head.apply(variables, features, train=False, image_size=(40, 56)))
    outputs = apply(features)
    sizes = [(5, 7), (3, 4), (2, 2)]
    points = sum(h * w for h, w in sizes)
    assert {k: v.shape for k, v in outputs.items()} == {
        "quality": (2, points),
        "class": (2, points, 3),
        "distances": (2, points, 4),
    }
    assert abs(jax.nn.sigmoid(outputs["quality"]).mean() - 0.02) < 0.01
    reach = (
        outputs["distances"]
        / np.concatenate([np.full(h * w, s) for (h, w), s in zip(sizes, (8, 16, 32), strict=False)])[:, None]
    )
    assert outputs["distances"].min() > 0 and reach.min() > 1.5 and reach.max() < 2.7
    # A change in one corner cell of the middle level reaches its own points, row-major from there, and no other level.
    touched = features._replace(pyramid={**features.pyramid, 16: _raised(features.pyramid[16], 0, 0)})
    moved = np.abs(apply(touched)["class"] - outputs["class"]).max((0, 2)) > 0
    assert moved[35:].any() and not moved[:35].any() and not moved[47:].any() and moved[35]


def test_levels_share_the_weights_of_the_detection_towers():
    head, features = DetectionHead(3, 8, 1), _pyramid(strides=(8, 16), size=(32, 48))
    same = features._replace(pyramid={8: features.pyramid[8], 16: features.pyramid[8]})
    variables = _init(head, features, train=False, image_size=(32, 48))
    outputs = jax.jit(lambda f: head.apply(variables, f, train=False, image_size=(32, 48)))(same)
    for name, factor in (("class", 1), ("quality", 1), ("distances", 2)):
        fine, coarse = np.split(outputs[name], 2, axis=1)
        np.testing.assert_allclose(coarse, fine * factor, rtol=1e-5)


# --- the joined model


def test_inference_changes_nothing_and_needs_no_key():
    model = multi_head(ResNet(10, 4, stem="small", stages=2), None, {"classification": ClassHead(5, dropout=0.5)})
    images = _images(2, 16, 16, 3)
    variables = model.init(KEY, images)
    infer = jax.jit(lambda variables: model.apply(variables, images, train=False, with_features=True))
    outputs, state, features = infer(variables)
    jax.tree.map(np.testing.assert_array_equal, state, {"batch_stats": variables["batch_stats"]})
    assert outputs["classification"].shape == (2, 5) and set(features.pyramid) == {2, 4}
    train = jax.jit(lambda key: model.apply(variables, images, train=True, key=key)[0]["classification"])
    first, second = train(jax.random.key(1)), train(jax.random.key(2))
    assert np.abs(first - second).max() > 0  # dropout follows the key


def test_initial_weights_are_normal_independent_and_follow_the_key():
    model = multi_head(ResNet(10, 16, stem="small", stages=3), None, {"classification": ClassHead(5)})
    images = jnp.zeros((1, 16, 16, 3), jnp.uint8)

    def kernels(seed):
        backbone = model.init(jax.random.key(seed), images)["params"]["backbone"]
        blocks = [backbone[f"stage{i}_block1"] for i in (1, 2, 3)]
        return [
            np.ravel(block[f"conv{i}"]["kernel"]) * (block[f"conv{i}"]["kernel"].shape[3] * 9 / 2) ** 0.5
            for block in blocks
            for i in (1, 2)
        ]

    first, again, other = kernels(0), kernels(0), kernels(1)
    values = np.concatenate(first)  # he_normal undone: standard normal
    n = len(values)
    assert abs(values.mean()) < 4 / n**0.5 and abs(values.std() - 1) < 4 / (2 * n) ** 0.5
    assert abs((values**4).mean() - 3) < 4 * (96 / n) ** 0.5
    for lag in (1, 2, 9, 16):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4 / n**0.5
    for a, b in [*zip(first, other, strict=True), (first[0], first[1]), (first[3], first[4][: first[3].size])]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / a.size**0.5
    np.testing.assert_array_equal(values, np.concatenate(again))


def _three_heads(depth, norm="batch", stages=2, dtype=jnp.float32):
    heads = {
        "classification": ClassHead(8),
        "detection": DetectionHead(3, 8, 1, dtype=dtype),
        "segmentation": DenseHead(4, 4, 8, 1, shuffle=2, norm=norm, dtype=dtype),
    }
    return multi_head(
        ResNet(depth, 8, norm, "small", stages, dtype=dtype), FPN(8, (2,) if stages == 1 else (4,), dtype=dtype), heads
    )


@pytest.mark.parametrize("depth, norm, stages", [(10, "batch", 2), (18, "group", 2), (50, "batch", 1)])
def test_every_family_overfits_eight_examples_and_compiles_once(depth, norm, stages):
    model = _three_heads(depth, norm, stages)
    images = _images(8, 16 * stages, 16 * stages, 3)
    variables = model.init(KEY, images)
    rng = np.random.default_rng(1)
    quality = rng.integers(0, 2, (8, 64))
    masks = rng.integers(0, 4, (8, 2 * stages, 2 * stages)).repeat(4, 1).repeat(4, 2)
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state, opt_state, images):
        def loss(params):
            outputs, new_state = model.apply({"params": params, **state}, images, train=True)
            terms = (
                optax.softmax_cross_entropy_with_integer_labels(outputs["classification"], jnp.arange(8)).mean(),
                optax.sigmoid_binary_cross_entropy(outputs["detection"]["quality"], quality).mean(),
                optax.softmax_cross_entropy_with_integer_labels(outputs["segmentation"], masks).mean(),
            )
            return sum(terms), new_state

        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state)
        return optax.apply_updates(params, updates), state, opt_state, value

    params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    opt_state, values = tx.init(params), []
    for _ in range(150):
        params, state, opt_state, value = step(params, state, opt_state, images)
        values.append(float(value))
        if value < 0.05 * values[0]:
            break
    assert values[-1] < 0.05 * values[0], values[::15]
    assert step._cache_size() == 1


def test_bfloat16_keeps_parameters_and_outputs_in_float32():
    model = _three_heads(10, dtype=jnp.bfloat16)
    images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    variables = jax.eval_shape(model.init, KEY, images)
    outputs, state = jax.eval_shape(lambda v: model.apply(v, images, train=True), variables)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, outputs, state))} == {jnp.dtype("float32")}
