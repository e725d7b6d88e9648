"""Backbones equal torchvision's, timm's and Hugging Face's models on the same weights, read from their own files."""

import re

import numpy as np
import pytest

from must.core.types import UserError
from must.models import convnext, resnet
from must.models.convnext import ConvNeXt
from must.models.pretrained import backbone_of, recognized
from must.models.resnet import ResNet
from must.models.vit import ViT
from tests.support.referees import (
    answers,
    as_authors,
    features,
    of_file,
    pixels,
    randomized,
    resnet_levels,
    timm,
    timm_levels,
    timm_tokens,
    torch,
    torchvision,
    torchvision_levels,
    vit_tokens,
    write,
)


def agree(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other.transpose(0, 2, 3, 1) if other.ndim == 4 else other, atol=1e-4)


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


TINY = {"width": 32, "depth": 2, "heads": 2}
TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True}


@pytest.mark.parametrize(
    "name, options, backbone, sizes",
    [
        ("vit_small_patch16_224", {"img_size": 64}, {"grid": 4}, ((64, 64), (48, 80))),
        (
            "vit_small_patch14_dinov2",
            {"img_size": 56},
            {"family": "dinov2", "patch": 14, "grid": 4, "resize": "antialias"},
            ((56, 56), (42, 84)),
        ),
        (
            "vit_small_patch14_reg4_dinov2",
            {"img_size": 56},
            {"family": "dinov2", "patch": 14, "grid": 4, "registers": 4},
            ((56, 56), (42, 84)),
        ),
        (
            "vit_giant_patch14_dinov2",
            {"img_size": 56, "mlp_ratio": 5.5},
            {"family": "dinov2", "patch": 14, "grid": 4, "swiglu": True, "resize": "antialias"},
            ((56, 56), (42, 84)),
        ),
        ("vit_small_patch16_dinov3", {}, {"family": "dinov3", "registers": 4}, ((64, 64), (48, 80))),
        (
            "vit_small_plus_patch16_dinov3_qkvb",
            {},
            {"family": "dinov3", "registers": 4, "swiglu": True, "hidden": 128},
            ((64, 64), (48, 80)),
        ),
        (
            "vit_base_patch16_siglip_224",
            {"img_size": 64, "act_layer": "gelu_tanh"},
            {"family": "siglip", "grid": 4},
            ((64, 64), (48, 80)),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transformers_equal_timms(name, options, backbone, sizes, tmp_path):
    model = randomized(timm.create_model(name, **TIMM, **options))
    backbone = ViT(**TINY, **backbone)
    variables = of_file(write(model, tmp_path / "vit.safetensors"), backbone, sizes[0])
    for size in sizes:
        agree(vit_tokens(backbone, variables, pixels(*size)), answers(timm_tokens(model), pixels(*size)))


def test_dinov2_without_registers_resizes_positions_as_its_authors_do(tmp_path):
    model = randomized(timm.create_model("vit_small_patch14_dinov2", img_size=56, **TIMM))
    backbone = ViT(**TINY, family="dinov2", patch=14, grid=4)
    state = {**model.state_dict(), "mask_token": torch.ones(1, 32)}
    variables = of_file(write(state, tmp_path / "hub.safetensors"), backbone, (56, 56))
    agree(vit_tokens(backbone, variables, pixels(56, 56)), answers(timm_tokens(model), pixels(56, 56)))
    as_authors(model)
    for size in ((42, 84), (112, 70)):
        agree(vit_tokens(backbone, variables, pixels(*size)), answers(timm_tokens(model), pixels(*size)))


def test_registers_and_gated_perceptrons_under_dinov2s_own_names(tmp_path):
    model = randomized(timm.create_model("vit_giant_patch14_reg4_dinov2", img_size=56, mlp_ratio=5.5, **TIMM))
    state = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value
        for name, value in model.state_dict().items()
    }
    place = torch.full((1, 1, 32), 0.25)  # of the class token
    state |= {"cls_token": state["cls_token"] - place, "pos_embed": torch.cat([place, state["pos_embed"]], 1)}
    state |= {"register_tokens": state.pop("reg_token"), "mask_token": torch.ones(1, 32)}
    backbone = ViT(**TINY, family="dinov2", patch=14, grid=4, registers=4, swiglu=True)
    variables = of_file(write(state, tmp_path / "hub.safetensors"), backbone, (56, 56))
    agree(vit_tokens(backbone, variables, pixels(42, 84)), answers(timm_tokens(model), pixels(42, 84)))


def test_dinov3_under_its_own_names(tmp_path):
    model = randomized(timm.create_model("vit_small_plus_patch16_dinov3_qkvb", **TIMM))
    state = {}
    for name, value in model.state_dict().items():
        for timms, own in (("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")):
            name = name.replace(timms, own)
        for timms, own in (("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")):
            name = name.replace(f"mlp.{timms}", f"mlp.{own}")
        state[name] = value
    nothing = torch.full((32,), torch.nan)
    for prefix in ("blocks.0.attn", "blocks.1.attn"):
        q, v = (state.pop(f"{prefix}.{part}_bias") for part in "qv")
        state[f"{prefix}.qkv.bias"] = torch.cat([q, nothing, v])
        state[f"{prefix}.qkv.bias_mask"] = torch.cat([torch.ones(32), nothing, torch.ones(32)])
    state |= {"mask_token": torch.ones(1, 32), "rope_embed.periods": torch.ones(4)}
    backbone = ViT(**TINY, family="dinov3", registers=4, swiglu=True, hidden=128)
    variables = of_file(write(state, tmp_path / "hub.safetensors"), backbone, (64, 64))
    agree(vit_tokens(backbone, variables, pixels(48, 80)), answers(timm_tokens(model), pixels(48, 80)))


HF = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}


@pytest.mark.parametrize(
    "kind, options, backbone",
    [
        ("Dinov2", {"use_swiglu_ffn": True}, {"family": "dinov2", "grid": 4, "swiglu": True, "resize": "bicubic"}),
        ("Dinov2WithRegisters", {}, {"family": "dinov2", "grid": 4, "registers": 4}),
        ("DINOv3ViT", {"intermediate_size": 64, "num_register_tokens": 4}, {"family": "dinov3", "registers": 4}),
        (
            "DINOv3ViT",
            {"intermediate_size": 48, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
            {"family": "dinov3", "registers": 4, "swiglu": True},
        ),
        ("SiglipVision", {"intermediate_size": 64}, {"family": "siglip", "grid": 4, "resize": "bicubic"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transformers_equal_hugging_faces(kind, options, backbone, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**HF, **options)
    model = randomized(getattr(transformers, f"{kind}Model")(config))
    model.save_pretrained(tmp_path)  # under the names of the hub's files
    if hidden := options.get("intermediate_size"):
        backbone = {**backbone, "hidden": hidden}
    backbone = ViT(**TINY, **backbone)
    variables = of_file(tmp_path / "model.safetensors", backbone, (64, 64))

    def forward(x):
        more = {"interpolate_pos_encoding": True} if kind == "SiglipVision" else {}
        found = model(x, **more)
        side = x.shape[2] // 16, x.shape[3] // 16
        tokens = found.last_hidden_state[:, -side[0] * side[1] :].unflatten(1, side).permute(0, 3, 1, 2)
        return [tokens, found.pooler_output]

    for size in ((64, 64), (48, 80)):
        agree(vit_tokens(backbone, variables, pixels(*size)), answers(forward, pixels(*size)))


NARROW = ((1, 2, 1, 1), (4, 8, 12, 16))  # compiles in seconds


@pytest.mark.parametrize("layout", ["timm", "authors", "torchvision"])
def test_convnexts_equal_timms_and_torchvisions(layout, tmp_path, monkeypatch):
    monkeypatch.setitem(convnext.SIZES, "tiny", NARROW)
    if layout == "torchvision":
        setting = [
            torchvision.models.convnext.CNBlockConfig(width, after, blocks)
            for blocks, width, after in zip(*NARROW, [*NARROW[1][1:], None], strict=True)
        ]
        model = randomized(torchvision.models.ConvNeXt(setting, num_classes=7))
        forward = torchvision_levels(model)
    else:
        model = randomized(timm.models.convnext.ConvNeXt(depths=NARROW[0], dims=NARROW[1], num_classes=7))
        forward = timm_levels(model)
    state = model.state_dict()
    if layout == "authors":
        for pattern, own in (
            (r"stem\.", "downsample_layers.0."),
            (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"\.blocks\.", "."),
            (r"conv_dw", "dwconv"),
            (r"mlp\.fc", "pwconv"),
            (r"head\.norm", "norm"),
            (r"head\.fc", "head"),
        ):
            state = {re.sub(pattern, own, name): value for name, value in state.items()}
    backbone = ConvNeXt("tiny")
    variables = of_file(write(state, tmp_path / "convnext.safetensors"), backbone, (64, 64))
    for size in ((64, 64), (32, 96)) if layout == "timm" else ((64, 64),):  # compiled once for all
        agree(features(backbone, variables, pixels(*size)), answers(forward, pixels(*size)))


def test_a_file_that_does_not_fit_names_the_backbone_that_it_is_of(tmp_path, shallow):
    of = {"family": "dinov2", "patch": 14, "registers": 4, "swiglu": False, "grid": 4, "hidden": 128}
    model = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, **TIMM)
    path = write(model, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="unexpected: backbone/stem/registers") as error:
        of_file(path, ViT(**TINY, family="dinov2", patch=14, grid=4), (56, 56))
    assert f"the file is of the backbone { ({'kind': 'vit', **of, 'width': 32, 'depth': 2}) }" in str(error.value)
    for make, backbone in (
        (
            lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1] * 4),
            {"kind": "resnet", "depth": 50},
        ),
        (lambda: torchvision.models.convnext_tiny(), {"kind": "convnext", "size": "tiny"}),
    ):
        found = backbone_of(recognized({k: v.numpy() for k, v in make().state_dict().items()}))
        assert {key: found[key] for key in backbone} == backbone
