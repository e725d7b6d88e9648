"""Models of torchvision, timm and transformers with random weights, the referees of ours; files of their weights."""

import functools
import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy

from must.models.pretrained import fit, recognized

torch = pytest.importorskip("torch")
if "cuda" not in torch.__version__ and torch.version.cuda is None:
    # PyPI's torchvision is built for CUDA: beside a CPU torch its operators do not load, and its Python part only
    # misses the declarations of two. No model here runs these operators.
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchvision = pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")


def randomized(model, seed=0):
    """The model in evaluation mode, every parameter and statistic random, so that nothing can be left out unseen.

    Residual branches of a ResNet end small, as in trained networks; deep random ones multiply rounding errors.
    """
    random = torch.Generator().manual_seed(seed)
    blocks = {name: part for name, part in model.named_modules() if hasattr(part, "bn2")}
    last = {f"{name}.{'bn3' if hasattr(part, 'bn3') else 'bn2'}.weight" for name, part in blocks.items()}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=random)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.2 * noise.abs())
            elif tensor.ndim > 1:
                fan = tensor[0].numel() if tensor.ndim != 3 else 1
                tensor.copy_(noise * (fan**-0.5 if tensor.ndim != 3 else 0.2))
            elif name.endswith(("bias", "running_mean")):
                tensor.copy_(0.1 * noise)
            else:
                tensor.copy_((1 + 0.1 * noise) * (0.2 if name in last else 1.0))
    return model.eval()


def write(model, path):
    """A model's state dict, or a state dict, as a .safetensors file, as the documented line makes it of a .pth."""
    import safetensors.torch

    state = model if isinstance(model, dict) else model.state_dict()
    safetensors.torch.save_file({k: v.clone().contiguous() for k, v in state.items()}, path)
    return str(path)


def pixels(*size, batch=1):
    """Normalized pictures, float32 [B, H, W, 3]."""
    return np.random.default_rng(1).normal(size=(batch, *size, 3)).astype(np.float32)


def answers(forward, images):
    """What a torch function makes of [B, H, W, 3] pictures, as NumPy."""
    with torch.no_grad():
        return [np.asarray(x) for x in forward(torch.from_numpy(images).permute(0, 3, 1, 2))]


def of_file(path, backbone, size):
    """Variables of a backbone from a file."""
    like = jax.eval_shape(lambda: backbone.init(jax.random.key(0), pixels(*size), train=False))
    nested = {kind: {"backbone": tree} for kind, tree in like.items()}
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), nested)
    variables, kept = fit(zeros, recognized(safetensors.numpy.load_file(path)))
    assert kept == []
    return {kind: tree["backbone"] for kind, tree in variables.items()}


@functools.cache
def compiled(backbone):
    return jax.jit(lambda variables, x: backbone.apply(variables, x, train=False))


def features(backbone, variables, images):
    """[every level, pooled]."""
    found = compiled(backbone)(variables, images)
    return [*(np.asarray(level) for level in found.pyramid.values()), np.asarray(found.pooled)]


def resnet_levels(model):
    """[every level, pooled] of a torchvision or timm ResNet."""

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


def timm_tokens(model):
    """[patches as a map, pooled] of a timm transformer."""

    def forward(x):
        tokens = model.forward_features(x)
        side = [n // p for n, p in zip(x.shape[2:], model.patch_embed.patch_size, strict=True)]
        level = tokens[:, model.num_prefix_tokens :].unflatten(1, side).permute(0, 3, 1, 2)
        return [level, model.attn_pool(tokens) if model.attn_pool is not None else tokens[:, 0]]

    return forward


def vit_tokens(backbone, variables, images):
    """[patches as a map, pooled] of ours."""
    run = jax.jit(lambda variables, x: backbone.apply(variables, x, train=False, method="tokens"))
    pooled, level = run(variables, images)
    return [np.asarray(level), np.asarray(pooled)]


def timm_levels(model):
    """[every level, pooled] of a timm ConvNeXt."""

    def forward(x):
        x, levels = model.stem(x), []
        for stage in model.stages:
            x = stage(x)
            levels.append(x)
        return [*levels, model.forward_head(x, pre_logits=True)]

    return forward


def torchvision_levels(model):
    """[every level, pooled] of a torchvision ConvNeXt."""

    def forward(x):
        levels = []
        for number, part in enumerate(model.features):
            x = part(x)
            levels += [x] if number % 2 else []
        return [*levels, model.classifier[1](model.classifier[0](model.avgpool(x)))]

    return forward


def as_authors(model):
    """A timm DINOv2 that resizes positions as facebookresearch/dinov2's interpolate_pos_encoding does, for models
    without registers: bicubic without antialiasing, by a scale with an offset of 0.1."""

    def positions(tokens):
        batch, rows, columns, width = tokens.shape
        side = int((model.pos_embed.shape[1] - 1) ** 0.5)
        grid = model.pos_embed[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2)
        scale = (rows + 0.1) / side, (columns + 0.1) / side
        if (rows, columns) != (side, side):
            grid = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
        assert grid.shape[2:] == (rows, columns)
        tokens = tokens.flatten(1, 2) + grid.flatten(2).transpose(1, 2)
        return torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(batch, -1, -1), tokens], 1)

    model._pos_embed = positions
    return model
