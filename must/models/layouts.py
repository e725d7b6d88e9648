"""How other libraries name the arrays of their networks, and what each of them is here.

A layout is first renamed to timm's names of its architecture, then one table an architecture says what each array is.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Rule = tuple[str, str, Callable[[np.ndarray], np.ndarray]]  # (pattern of a timm name, our name, what is done to it)


class Layout(NamedTuple):
    """How one library names the arrays of one family of networks.

    Attributes:
      name: for messages.
      marks: patterns of names, each of which some array of the file has.
      rules: of the architecture.
      rename: (pattern, replacement) pairs that lead to timm's names.
      drop: patterns of names that the backbone does not have: classifiers and what only pretraining needs.
      lacks: names that no array of the file has.
      pixel_stats: how the family normalizes images, a key of `must.models.multi_head.PIXEL_STATS`; "" if checkpoints of
        this layout differ.
      prepare: (arrays under timm's names) -> arrays, for what is stored in another form.
    """

    name: str
    marks: Sequence[str]
    rules: Sequence[Rule]
    rename: Sequence[tuple[str, Any]] = ()
    drop: Sequence[str] = ()
    lacks: Sequence[str] = ()
    pixel_stats: str = ""
    prepare: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda arrays: arrays


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _conv(array: np.ndarray) -> np.ndarray:
    """[O, I, kh, kw] -> [kh, kw, I, O]."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _norms(theirs: str, ours: str) -> list[Rule]:
    """Batch normalization."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [(rf"{theirs}\.{old}", f"{ours}/{new}", _same) for old, new in names.items()]


RESNET = [
    (r"conv1\.weight", "stem/kernel", _conv),
    *_norms("bn1", "stem_norm"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.weight", "stage{0}_block{1+}/conv{2}/kernel", _conv),
    *_norms(r"layer(\d)\.(\d+)\.bn(\d)", "stage{0}_block{1+}/norm{2}"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.weight", "stage{0}_block{1+}/conv_skip/kernel", _conv),
    *_norms(r"layer(\d)\.(\d+)\.downsample\.1", "stage{0}_block{1+}/norm_skip"),
]


def _matrix(array: np.ndarray) -> np.ndarray:
    """[O, I] or, of a 1x1 convolution, [O, I, 1, 1] -> [I, O]."""
    return (array[..., 0, 0] if array.shape[2:] == (1, 1) else array).T


def _vector(array: np.ndarray) -> np.ndarray:
    """[1, 1, D], [1, D] or [D, 1, 1] -> [D]."""
    return array.reshape(-1)


def _patches(array: np.ndarray) -> np.ndarray:
    """[D, 3, p, p] -> [p * p * 3, D]."""
    return array.transpose(2, 3, 1, 0).reshape(-1, len(array))


def _layers(theirs: str, ours: str) -> list[Rule]:
    """A linear layer."""
    return [(rf"{theirs}\.weight", f"{ours}/kernel", _matrix), (rf"{theirs}\.bias", f"{ours}/bias", _same)]


def _normalization(theirs: str, ours: str) -> list[Rule]:
    """Layer normalization."""
    return [(rf"{theirs}\.weight", f"{ours}/scale", _same), (rf"{theirs}\.bias", f"{ours}/bias", _same)]


VIT = [
    (r"patch_embed\.proj\.weight", "stem/patches/kernel", _patches),
    (r"patch_embed\.proj\.bias", "stem/patches/bias", _same),
    (r"cls_token", "stem/class_token", _vector),
    (r"reg_token", "stem/registers", lambda array: array[0]),
    (r"pos_embed", "stem/positions", lambda array: array),
    *_normalization(r"blocks\.(\d+)\.norm(\d)", "block{0+}/norm{1}"),
    *_layers(r"blocks\.(\d+)\.attn\.qkv", "block{0+}/qkv"),
    *_layers(r"blocks\.(\d+)\.attn\.proj", "block{0+}/out"),
    *_layers(r"blocks\.(\d+)\.mlp\.fc(\d)", "block{0+}/mlp{1}"),
    (r"blocks\.(\d+)\.ls(\d)\.gamma", "block{0+}/scale{1}", _same),
    *_normalization("norm", "norm"),
    (r"attn_pool\.latent", "pool/probe", _vector),
    *_layers(r"attn_pool\.(q|kv)", "pool/{0}"),
    *_layers(r"attn_pool\.proj", "pool/out"),
    *_normalization(r"attn_pool\.norm", "pool/norm"),
    *_layers(r"attn_pool\.mlp\.fc(\d)", "pool/mlp{0}"),
]

CONVNEXT = [
    (r"stem\.0\.weight", "stem/kernel", _conv),
    (r"stem\.0\.bias", "stem/bias", _same),
    *_normalization(r"stem\.1", "stem_norm"),
    *_normalization(r"stages\.(\d)\.downsample\.0", "stage{0+}_norm"),
    (r"stages\.(\d)\.downsample\.1\.weight", "stage{0+}_down/kernel", _conv),
    (r"stages\.(\d)\.downsample\.1\.bias", "stage{0+}_down/bias", _same),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.weight", "stage{0+}_block{1+}/depthwise/kernel", _conv),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.bias", "stage{0+}_block{1+}/depthwise/bias", _same),
    *_normalization(r"stages\.(\d)\.blocks\.(\d+)\.norm", "stage{0+}_block{1+}/norm"),
    *_layers(r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc(\d)", "stage{0+}_block{1+}/mlp{2}"),
    (r"stages\.(\d)\.blocks\.(\d+)\.gamma", "stage{0+}_block{1+}/scale", _vector),
    *_normalization(r"(?:head\.)?norm", "norm"),
]


def _timm_vit(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Projections in one matrix with a bias, positions as a grid, the class token with its own position."""
    _join(arrays, r"blocks\.\d+\.attn", ("q", "k", "v"), "qkv")
    _join(arrays, r"blocks\.\d+\.mlp", ("g", "x"), "fc1")
    for name in [name for name in arrays if name.endswith(".attn.qkv.weight")]:
        bias = name.replace("weight", "bias")
        arrays.setdefault(bias, np.zeros(len(arrays[name]), np.float32))
        if (mask := arrays.pop(f"{bias}_mask", None)) is not None:
            arrays[bias] = np.where(mask == 1, arrays[bias], 0.0).astype(np.float32)  # NaN or 0 for keys
    for kind in ("weight", "bias"):
        if (three := arrays.pop(f"attn_pool.in_proj_{kind}", None)) is not None:
            arrays[f"attn_pool.q.{kind}"], arrays[f"attn_pool.kv.{kind}"] = np.split(three, [len(three) // 3])
    if "pos_embed" in arrays:
        positions = arrays["pos_embed"].reshape(-1, arrays["pos_embed"].shape[-1])
        side = int(len(positions) ** 0.5)
        first = positions[: len(positions) - side * side]
        if len(first) == 1 and "cls_token" in arrays:
            arrays["cls_token"] = arrays["cls_token"] + first
            arrays["pos_embed"] = positions[1:].reshape(side, side, -1)
        elif not len(first):
            arrays["pos_embed"] = positions.reshape(side, side, -1)
    return arrays


def _join(arrays: dict[str, np.ndarray], layer: str, parts: Sequence[str], whole: str) -> None:
    """Joins linear layers <layer>.<part> to <layer>.<whole>, in place; a bias that one of them lacks is 0."""
    matches = (re.fullmatch(rf"({layer})\.(?:{'|'.join(parts)})\.(?:weight|bias)", name) for name in arrays)
    for prefix in {match[1] for match in matches if match}:
        weights = {part: arrays.pop(f"{prefix}.{part}.weight", None) for part in parts}
        biases = {part: arrays.pop(f"{prefix}.{part}.bias", None) for part in parts}
        there = [part for part in parts if weights[part] is not None] or list(parts)
        if weights[there[0]] is not None:
            arrays[f"{prefix}.{whole}.weight"] = np.concatenate([weights[part] for part in there])
        if known := [bias for bias in biases.values() if bias is not None]:
            every = [np.zeros_like(known[0]) if biases[part] is None else biases[part] for part in there]
            arrays[f"{prefix}.{whole}.bias"] = np.concatenate(every)


def _torchvision_convnext() -> list[tuple[str, str]]:
    names = [(r"features\.0\.(\d)", r"stem.\1"), (r"classifier\.0", "norm"), (r"layer_scale$", "gamma")]
    for stage in range(4):
        names.append((rf"features\.{2 * stage + 1}\.(\d+)\.", rf"stages.{stage}.blocks.\1."))
        names.append((rf"features\.{2 * stage}\.(\d)\.", rf"stages.{stage}.downsample.\1."))
    return [
        *names,
        *(
            (rf"block\.{n}\.", f"{name}.")
            for n, name in enumerate(("conv_dw", "", "norm", "mlp.fc1", "", "mlp.fc2"))
            if name
        ),
    ]


_HUGGING_FACE = [
    (r"^(dinov2|model|vision_model)\.", ""),
    (r"^embeddings\.(patch_embeddings(\.projection)?|patch_embedding)\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens", "reg_token"),
    (r"^embeddings\.position_embedding(s|\.weight)$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^(encoder\.)?layers?\.", "blocks."),
    (r"\.(attention\.attention|attention|self_attn)\.(q|k|v)(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.g."),
    (r"\.mlp\.up_proj\.", ".mlp.x."),
    (r"^(post_)?layernorm\.", "norm."),
    (r"^head\.probe", "attn_pool.latent"),
    (r"^head\.attention\.(in_proj_|out_proj)", lambda m: f"attn_pool.{'proj' if m[1] == 'out_proj' else m[1]}"),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
]
_DINO = [
    *((r"^storage_tokens", "reg_token"), (r"^register_tokens", "reg_token"), (r"\.gamma_(\d)", r".ls\1.gamma")),
    *((r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2."), (r"\.attn\.([qkv])_bias", r".attn.\1.bias")),
    *((r"\.mlp\.(w1|fc1_g)\.", ".mlp.g."), (r"\.mlp\.(w2|fc1_x)\.", ".mlp.x.")),
]
_ONLY_PRETRAINING = (
    r"(.*\.)?mask_token",
    r"(.*\.)?periods",
    r"head\.(weight|bias)",
    r"local_cls_norm\.",
    r"projectors\.",
)
_TEXT = (r"text_model\.", r"logit_(scale|bias)", r".*\.position_ids", r"head\.(weight|bias)")
_CONVNEXT = {"rules": CONVNEXT, "pixel_stats": "imagenet"}

LAYOUTS = [
    Layout(
        "ResNet of torchvision or timm",
        (r"conv1\.weight", r"layer1\.0\.conv1\.weight"),
        RESNET,
        drop=(r"fc\.", r".*\.num_batches_tracked"),
        pixel_stats="imagenet",
    ),
    Layout("ConvNeXt of timm", (r"stages\.0\.blocks\.0\.conv_dw",), drop=(r"head\.fc\.",), **_CONVNEXT),
    Layout(
        "ConvNeXt of torchvision",
        (r"features\.1\.0\.block\.0\.",),
        rename=_torchvision_convnext(),
        drop=(r"classifier\.2\.",),
        **_CONVNEXT,
    ),
    Layout(
        "ConvNeXt of its authors",
        (r"downsample_layers\.0\.0\.", r"stages\.0\.0\.dwconv\."),
        rename=[
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
            (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv(\d)\.", r".mlp.fc\1."),
        ],
        drop=(r"head\.", r"norms\."),
        **_CONVNEXT,
    ),
    Layout(
        "SigLIP of timm",
        (r"attn_pool\.latent", r"blocks\.0\.attn\.qkv"),
        VIT,
        drop=_TEXT,
        pixel_stats="half",
        prepare=_timm_vit,
    ),
    Layout(
        "SigLIP of Hugging Face",
        (r"(vision_model\.)?encoder\.layers\.0\.self_attn", r"(vision_model\.)?head\.probe"),
        VIT,
        rename=_HUGGING_FACE,
        drop=_TEXT,
        pixel_stats="half",
        prepare=_timm_vit,
    ),
    Layout(
        "DINOv3 of its authors or timm",
        (r"blocks\.0\.(gamma_1|ls1\.gamma)", r"storage_tokens|reg_token|rope_embed|blocks\.0\.gamma_1"),
        VIT,
        rename=_DINO,
        drop=_ONLY_PRETRAINING,
        pixel_stats="imagenet",
        prepare=_timm_vit,
        lacks=("pos_embed",),
    ),
    Layout(
        "DINOv2 of its authors or timm",
        (r"blocks\.0\.ls1\.gamma", "pos_embed"),
        VIT,
        rename=_DINO,
        drop=_ONLY_PRETRAINING,
        pixel_stats="imagenet",
        prepare=_timm_vit,
    ),
    Layout(
        "DINO of Hugging Face",
        (r"(.*\.)?embeddings\.cls_token", r"(.*\.)?layer\.0\.layer_scale1\.lambda1"),
        VIT,
        rename=_HUGGING_FACE,
        drop=(*_ONLY_PRETRAINING, r"classifier\."),
        pixel_stats="imagenet",
        prepare=_timm_vit,
    ),
    Layout(
        "ViT of timm",
        (r"blocks\.0\.attn\.qkv", "cls_token", "pos_embed"),
        VIT,
        drop=(r"head\.",),
        prepare=_timm_vit,
    ),
]
