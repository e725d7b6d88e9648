"""Learning rates by layer and by name, what decays, and parts that do not learn at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from must.core.types import UserError
from must.models.convnext import ConvNeXt
from must.models.heads import ClassHead
from must.models.multi_head import multi_head
from must.models.resnet import ResNet
from must.models.vit import ViT
from must.train.optimizer import optimizer, rates

VIT = {"width": 16, "depth": 3, "heads": 2, "patch": 8, "grid": 2}


def params(backbone, size=16):
    model = multi_head(backbone, None, {"kind": ClassHead(3)})
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, size, size, 3), np.uint8))
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), {"model": shapes["params"]})


def test_rates_decay_from_the_heads_to_the_stem():
    found = rates(params(ViT(**VIT)), 0.5)
    by_layer = {
        "stem/positions": 1 / 16,
        "block1/qkv/kernel": 1 / 8,
        "block2/mlp1/bias": 1 / 4,
        "block3/out/kernel": 1 / 2,
    }
    assert {name: found[f"backbone/{name}"] for name in by_layer} == by_layer
    assert found["backbone/norm/scale"] == found["heads_kind/logits/kernel"] == 1
    found = rates(params(ResNet(10, 4, stages=2)), 0.5)
    assert found["backbone/stem_norm/scale"] == 1 / 8 and found["backbone/stage2_block1/norm1/scale"] == 1 / 2
    found = rates(params(ConvNeXt("atto", stages=2), 32), 0.5)
    assert found["backbone/stage2_down/kernel"] == found["backbone/stage2_norm/bias"] == 1 / 4
    assert found["backbone/stage2_block2/scale"] == 1 / 2 and found["backbone/stage1_block1/scale"] == 1 / 16


def test_layers_count_from_the_end_when_the_first_are_frozen():
    whole, part = rates(params(ViT(**VIT)), 0.5), rates(params(ViT(**VIT, frozen=2)), 0.5)
    assert part == {name: rate for name, rate in whole.items() if name in part} and len(part) < len(whole)
    assert not any(name.startswith(("backbone/stem", "backbone/block1/", "backbone/block2/")) for name in part)


def test_the_first_matching_pattern_is_the_factor_and_several_backbones_are_apart():
    tree = {"experts": {name: params(ViT(**VIT))["model"] for name in "ab"}}
    factors = (("experts/a/.*kernel", 0.1), ("experts/a", 2.0), (".*heads", 0.0))
    found = rates({"model": tree}, 0.5, factors)
    assert found["experts/a/backbone/block3/out/kernel"] == pytest.approx(0.05)
    assert found["experts/a/backbone/block3/out/bias"] == 1.0
    assert found["experts/b/backbone/block3/out/kernel"] == 0.5
    assert found["experts/b/heads_kind/logits/kernel"] == 0 and found["experts/a/heads_kind/logits/kernel"] == 0.1


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_updates_are_scaled_decay_included(name):
    layer = {"kernel": jnp.ones((2, 2))}
    tree = {"model": {"backbone": {"stem": layer, "block1": layer}, "heads_kind": {"logits": layer}}}
    options = {"steps": 4, "learning_rate": 0.1, "name": name, "weight_decay": 0.1}
    grads = jax.tree.map(lambda leaf: 0.1 * leaf, tree)

    def update(**more):
        tx = optimizer(**options, **more)
        return tx.update(grads, tx.init(tree), tree)[0]

    plain, scaled = update(), update(layer_decay=0.5, factors=(("heads_", 0.0),))
    factors = rates(tree, 0.5, (("heads_", 0.0),))
    for one, other, factor in zip(jax.tree.leaves(plain), jax.tree.leaves(scaled), factors.values(), strict=True):
        np.testing.assert_allclose(other, one * factor, rtol=1e-6)
    assert not np.any(scaled["model"]["heads_kind"]["logits"]["kernel"])


def test_positions_do_not_decay():
    tree = params(ViT(**VIT, registers=2))
    tx = optimizer(steps=4, learning_rate=0.1, weight_decay=0.5)
    updates, _ = jax.jit(lambda tree: tx.update(optax.tree.zeros_like(tree), tx.init(tree), tree))(tree)
    moved = {name for name, u in zip(rates(tree), jax.tree.leaves(updates), strict=True) if np.any(u)}
    assert moved == {name for name in rates(tree) if name.endswith("kernel")}


def test_a_pattern_that_matches_nothing_is_refused():
    tx = optimizer(steps=4, learning_rate=0.1, factors=(("bakbone", 0.1),))
    with pytest.raises(UserError, match="optimizer.factors: 'bakbone' matches no parameter; these are backbone/"):
        tx.init(params(ViT(**VIT)))


def test_the_rise_begins_at_its_factor_of_the_peak():
    def first(**settings):
        update = optimizer(steps=10, learning_rate=0.5, name="sgd", momentum=0.0, **settings)
        params = {"w": jnp.ones(2)}
        state, sizes = update.init(params), []
        for _ in range(6):
            updates, state = update.update({"w": jnp.ones(2)}, state, params)
            sizes.append(-float(updates["w"][0]))
        return sizes

    np.testing.assert_allclose(first(warmup=5, warmup_factor=0.1), np.linspace(0.05, 0.5, 6), rtol=1e-6)
    np.testing.assert_allclose(first(warmup=5)[0], 0.0)
    assert first(warmup_factor=0.1)[0] == 0.5  # without a rise
