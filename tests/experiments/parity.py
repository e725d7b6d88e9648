"""Backbones of real size against torchvision, timm and Hugging Face on the same random weights, as a Markdown table.

    python -m tests.experiments.parity [part of a name ...]

Every model's weights are written as its own library writes them and read from that file. Batch statistics are those of
a random batch, so that numbers keep the size that they have in trained networks. Differences are the largest absolute
ones over all levels and the pooled vector in float32; the rounding of the reference is its own difference between
float32 and float64. Takes about half an hour and 9 GB on
two cores; needs the packages of `[test]`.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from must.core.devices import set_xla_flags
from must.models.convnext import ConvNeXt
from must.models.resnet import ResNet
from must.models.vit import ViT
from tests.support import referees
from tests.support.referees import timm, torch, torchvision


class Case(NamedTuple):
    """A model, the reference and ours, and the sizes at which they are compared."""

    name: str
    make: Callable[[], Any]
    forward: Callable[[Any], Callable]
    backbone: Any
    sizes: tuple[tuple[int, int], ...] = ((224, 224), (256, 320))


def from_timm(
    name: str, backbone: Any, forward: Callable = referees.timm_tokens, note: str = "", **options: Any
) -> Case:
    sizes = {14: ((518, 518), (224, 280))}.get(getattr(backbone, "patch", 16), ((224, 224), (256, 320)))
    if isinstance(backbone, ViT):
        options |= {"dynamic_img_size": True, "num_classes": 0}
    return Case(f"{name}{note}", partial(timm.create_model, name, **options), forward, backbone, sizes)


def hugging_face(kind: str, size: str, backbone: ViT, **options: Any) -> Case:
    """A transformers model, in the layout of the hub's files."""
    import transformers

    sizes = backbone.sizes()
    shape = {"hidden_size": sizes.width, "num_hidden_layers": sizes.depth, "num_attention_heads": sizes.heads}
    config = getattr(transformers, f"{kind}Config")(**shape, patch_size=backbone.patch, **options)
    more = {"interpolate_pos_encoding": True} if kind == "SiglipVision" else {}

    def forward(model):
        def run(x):
            found, side = model(x, **more), [n // backbone.patch for n in x.shape[2:]]
            tokens = found.last_hidden_state[:, -side[0] * side[1] :]
            return [tokens.unflatten(1, side).permute(0, 3, 1, 2), found.pooler_output]

        return run

    step = 7 if backbone.patch == 14 else 8
    return Case(
        f"Hugging Face {kind} {size}",
        lambda: getattr(transformers, f"{kind}Model")(config),
        forward,
        backbone,
        ((32 * step, 32 * step), (24 * step + 2 * step * 4, 40 * step)),
    )


def cases() -> list[Case]:
    found = []
    for depth in (18, 34, 50, 101, 152):
        make = getattr(torchvision.models, f"resnet{depth}")
        found.append(Case(f"torchvision resnet{depth}", make, referees.resnet_levels, ResNet(depth)))
    found.append(from_timm("resnet50", ResNet(50), referees.resnet_levels))
    for size in ("tiny", "small", "base"):
        make = getattr(torchvision.models, f"convnext_{size}")
        found.append(Case(f"torchvision convnext_{size}", make, referees.torchvision_levels, ConvNeXt(size)))
    found.append(from_timm("convnext_tiny", ConvNeXt("tiny"), referees.timm_levels))
    for size in ("tiny", "small", "base", "large"):
        found.append(from_timm(f"vit_{size}_patch16_224", ViT(size)))
    dino = partial(ViT, patch=14, family="dinov2")
    for size in ("small", "base", "large"):
        found.append(from_timm(f"vit_{size}_patch14_reg4_dinov2", dino(size, registers=4)))
    found.append(from_timm("vit_small_patch14_dinov2", dino("small", resize="antialias")))
    found.append(
        from_timm(
            "vit_small_patch14_dinov2",
            dino("small"),
            lambda m: referees.timm_tokens(referees.as_authors(m)),
            " (positions as its authors)",
        )
    )
    for size in ("small", "base", "large"):
        found.append(from_timm(f"vit_{size}_patch16_dinov3", ViT(size, family="dinov3", registers=4)))
    plus = ViT("small", family="dinov3", registers=4, swiglu=True, hidden=1536)
    found.append(from_timm("vit_small_plus_patch16_dinov3_qkvb", plus))
    for size in ("base", "large"):
        net = ViT(size, family="siglip", grid=14 if size == "base" else 16)
        name = f"vit_{size}_patch16_siglip_{16 * net.grid}"
        found.append(from_timm(name, net, note=" (tanh GELU)", act_layer="gelu_tanh"))
    siglip = ViT("base", family="siglip", resize="bicubic")
    found.append(hugging_face("SiglipVision", "base", siglip, image_size=224, intermediate_size=3072))
    found.append(hugging_face("Dinov2", "small", dino("small", resize="bicubic"), image_size=518))
    three = {"image_size": 224, "num_register_tokens": 4, "intermediate_size": 1536}
    found.append(hugging_face("DINOv3ViT", "small", ViT("small", family="dinov3", registers=4), **three))
    return found


def compare(case: Case) -> None:
    """Prints a row for every size."""
    started = time.perf_counter()
    model = referees.randomized(case.make())
    if norms := [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]:
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.from_numpy(referees.pixels(224, 224, batch=4)).permute(0, 3, 1, 2))
        model.eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        if hasattr(model, "save_pretrained") and case.name.startswith("Hugging"):
            model.save_pretrained(folder)
        else:
            referees.write(model, path)
        variables = referees.of_file(path, case.backbone, case.sizes[0])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    run = referees.vit_tokens if isinstance(case.backbone, ViT) else referees.features
    for size in case.sizes:
        images = referees.pixels(*size)
        ours, theirs = run(case.backbone, variables, images), _reference(case, model, images)
        exact = _reference(case, model.double(), images.astype(np.float64))
        model.float()
        gap, rounding = _gap(ours, theirs), _gap(theirs, exact)
        most = max(float(np.abs(b).max()) for b in theirs)
        shown = f"{size[0]} × {size[1]}"
        row = f"| {case.name} | {parameters / 1e6:.1f} M | {shown} | {gap:.1e} | {rounding:.1e} | {most:.1f} |"
        print(row, flush=True)
    print(f"{case.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def _reference(case: Case, model: Any, images: np.ndarray) -> list[np.ndarray]:
    found = referees.answers(case.forward(model), images)
    return [x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for x in found]


def _gap(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(some, others, strict=True))


def main() -> None:
    set_xla_flags()
    print("| model | parameters | image | difference | rounding of the reference | largest feature |")
    print("|---|---|---|---|---|---|", flush=True)
    for case in cases():
        if len(sys.argv) == 1 or any(part in case.name for part in sys.argv[1:]):
            compare(case)
            jax.clear_caches()
            referees.compiled.cache_clear()
            gc.collect()


if __name__ == "__main__":
    main()
