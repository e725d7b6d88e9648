"""Backbones equal torchvision's, timm's and Hugging Face's models on the same weights, read from their own files."""

import jax
import numpy as np
import pytest

from must.models import resnet
from must.models.pretrained import fit, recognized
from must.models.resnet import ResNet
from tests.support.referees import answers, pixels, randomized, timm, torchvision, write

safetensors = pytest.importorskip("safetensors.numpy")


def of_file(path, backbone, size):
    """Variables of a backbone from a file."""
    like = jax.eval_shape(lambda: backbone.init(jax.random.key(0), pixels(*size), train=False))
    nested = {kind: {"backbone": tree} for kind, tree in like.items()}
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), nested)
    variables, kept = fit(zeros, recognized(safetensors.load_file(path)))
    assert kept == []
    return {kind: tree["backbone"] for kind, tree in variables.items()}


def features(backbone, variables, images):
    """[every level, pooled]."""
    found = jax.jit(lambda variables, x: backbone.apply(variables, x, train=False))(variables, images)
    return [*(np.asarray(level) for level in found.pyramid.values()), np.asarray(found.pooled)]


def agree(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other.transpose(0, 2, 3, 1) if other.ndim == 4 else other, atol=1e-4)


def resnet_levels(model):
    def forward(x):
        x = (
            model.maxpool(model.relu(model.bn1(model.conv1(x))))
            if hasattr(model, "relu")
            else model.maxpool(model.act1(model.bn1(model.conv1(x))))
        )
        levels = []
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = layer(x)
            levels.append(x)
        return [*levels, x.mean((2, 3))]

    return forward


@pytest.fixture
def shallow(monkeypatch):
    """ResNets with a block in each stage, which compile in a second; the real depths are in docs/results/parity.md."""
    monkeypatch.setattr(resnet, "BLOCKS", {**resnet.BLOCKS, 50: (1, 1, 1, 1), 34: (1, 2, 1, 1)})


@pytest.mark.parametrize(
    "make, depth",
    [
        (lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], 7), 50),
        (lambda: timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, [1, 2, 1, 1], 7), 34),
    ],
    ids=["torchvision-bottleneck", "timm-basic"],
)
def test_resnets_equal_torchvisions_and_timms(make, depth, tmp_path, shallow):
    model, backbone = randomized(make()), ResNet(depth)
    path = write(model, tmp_path / "resnet.safetensors")
    variables = of_file(path, backbone, (64, 64))
    for size in ((64, 64), (70, 97)):
        agree(features(backbone, variables, pixels(*size)), answers(resnet_levels(model), pixels(*size)))
