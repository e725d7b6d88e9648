"""Precision, rematerialization: what is computed in which type, and that gradients stay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import Batch, Policy
from must.models.convnext import ConvNeXt
from must.models.fpn import FPN
from must.models.multi_head import multi_head
from must.models.resnet import ResNet
from must.models.vit import ViT
from must.objectives import balance
from must.objectives.labels import labels
from must.objectives.objective import objective
from must.tasks import base
from must.train import state as states
from must.train.optimizer import optimizer
from must.train.step import train_step

SIZE = (32, 32)
CLASSES = ("a", "b", "c")
DENSE = {"width": 8, "depth": 1}
TASKS = {
    "classification": base.build("classification", classes=CLASSES),
    "detection": base.build("detection", classes=CLASSES, strides=(4, 8), width=8, depth=1, max_boxes=4),
    "segmentation": base.build("segmentation", classes=CLASSES, **DENSE),
    "depth": base.build("depth", **DENSE),
    "normals": base.build("normals", **DENSE),
}
BACKBONES = {
    "resnet": (lambda: ResNet(10, width=8, stem="small", stages=3), lambda: FPN(8, (4, 8))),
    "vit": (lambda: ViT("tiny", patch=8, width=24, depth=2, heads=2, grid=4), lambda: None),
    "convnext": (lambda: ConvNeXt("atto", stages=1, drop_path=0.2), lambda: FPN(8, (4,))),
}


def _model(kind="resnet", tasks=TASKS, **options):
    backbone, neck = (make() for make in BACKBONES[kind])
    return multi_head(backbone, neck, {name: task.head() for name, task in tasks.items()}, **options)


@functools.cache
def _variables(kind="resnet", names=tuple(TASKS)):
    model = _model(kind, {name: TASKS[name] for name in names})
    return model.init(jax.random.key(0), np.zeros((1, *SIZE, 3), np.uint8))


def _batch(tasks=TASKS, rows=4):
    rng = np.random.default_rng(0)
    labels_ = {}
    for name, task in tasks.items():
        spec = task.network_spec(SIZE)
        labels_[name] = {key: np.zeros((rows, *one.shape), one.dtype) for key, one in spec.items()}
    if "classification" in tasks:
        labels_["classification"]["probs"] = np.eye(3, dtype=np.float32)[rng.integers(0, 3, rows)]
    if "depth" in tasks:
        labels_["depth"] = {"depth": rng.uniform(1, 5, (rows, *SIZE)).astype(np.float32)}
        normals = np.zeros((rows, *SIZE, 3), np.float32)
        normals[..., 2] = -1
        labels_["normals"] = {"normals": normals}
        labels_["segmentation"] |= {"ids": rng.integers(0, 3, (rows, *SIZE, 1)).astype(np.uint8)}
        labels_["segmentation"]["probs"][:] = 255
        labels_["detection"] |= {"boxes": np.tile(np.float32([4, 4, 20, 24]), (rows, 4, 1))}
        labels_["detection"]["valid"][:, :1] = labels_["detection"]["scores"][:, :1] = 1
        labels_["detection"]["known"][:] = True
    weights = dict.fromkeys(tasks, np.ones(rows, np.float32))
    images = rng.integers(0, 256, (rows, *SIZE, 3)).astype(np.uint8)
    return Batch({"image": images}, labels_, weights, np.arange(rows), {})


def _equations(jaxpr):
    """All equations, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


def _products(function, *arguments):
    """Operand types of every convolution and matrix product of a function."""
    found = [
        {str(var.aval.dtype) for var in equation.invars}
        for equation in _equations(jax.make_jaxpr(function)(*arguments).jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert found
    return found


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_product_of_backbone_neck_and_heads_is_in_the_precision(kind):
    tasks = TASKS if kind == "resnet" else {"classification": TASKS["classification"]}
    variables, images = _variables(kind, tuple(tasks)), _batch(tasks).inputs["image"]
    for precision in ("float32", "bfloat16"):
        model = _model(kind, tasks, precision=precision)

        def square(params, model=model):
            outputs, state = model.apply({**variables, "params": params}, images, train=True, key=jax.random.key(0))
            assert {str(leaf.dtype) for leaf in jax.tree.leaves((outputs, state))} == {"float32"}
            return sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(outputs))

        # The gradient of attention's logits, which are float32, is so too.
        made = square if kind == "vit" else jax.grad(square)
        assert all(types == {precision} for types in _products(made, variables["params"]))


def test_losses_are_float32_and_those_of_bfloat16_are_close():
    batch, logs, types = _batch(), {}, None
    for precision in ("float32", "bfloat16"):
        model = _model(precision=precision)
        made = objective(
            model,
            [labels(TASKS, {name: Policy() for name in TASKS})],
            scales=dict.fromkeys(TASKS, 1.0),
        )
        fixed, tx = balance.fixed(), optimizer(steps=2, learning_rate=0.01)
        step = functools.partial(train_step, objective=made, balance=fixed, tx=tx)
        state = states.create(jax.random.key(0), _variables(), made, fixed, tx)
        after, logs[precision] = jax.jit(step)(state, batch)
        types = {str(leaf.dtype) for leaf in jax.tree.leaves(after._replace(key=None))}
        assert "bfloat16" not in types and {str(value.dtype) for value in logs[precision].values()} == {"float32"}
    for name, value in logs["float32"].items():
        if name.startswith("loss"):
            np.testing.assert_allclose(logs["bfloat16"][name], value, rtol=0.03, atol=0.01)
            assert value > 0, name


@pytest.mark.parametrize("kind", BACKBONES)
def test_rematerialization_changes_no_gradient(kind):
    tasks = {"classification": TASKS["classification"]}
    variables, images = _variables(kind, tuple(tasks)), _batch(tasks).inputs["image"]
    found, kept = [], []
    for remat in (False, True):
        model = _model(kind, tasks, remat=remat)

        def square(params, model=model):
            outputs, state = model.apply({**variables, "params": params}, images, train=True, key=jax.random.key(0))
            return sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(outputs)), state

        found.append(jax.jit(jax.grad(square, has_aux=True))(variables["params"]))
        names = [equation.primitive.name for equation in _equations(jax.make_jaxpr(square)(variables["params"]).jaxpr)]
        kept.append(sum(name in ("checkpoint", "remat2", "remat") for name in names))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)
    assert kept[0] == 0 and kept[1] >= 2
