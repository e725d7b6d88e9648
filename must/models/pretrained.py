"""Weights of other libraries under the names of ours: which layout a file has, and what each array becomes.

Names are those of variables without their collection, such as "backbone/stage1_block1/norm1/mean". A layout is first
renamed to timm's names of its architecture, then one table an architecture says what each array is here.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from must.core.types import Array, PyTree, UserError

Arrays = Mapping[str, np.ndarray]
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


class Found(NamedTuple):
    """Arrays of a file under our names.

    Attributes:
      layout: name of its layout.
      arrays: {our name, or the file's where we have none: array}.
      whole: the file is of a whole network of this package; otherwise of a backbone.
      pixel_stats: with which it was trained; "" if unknown.
      ambiguous: networks of this layout were trained with several `pixel_stats`.
    """

    layout: str
    arrays: dict[str, np.ndarray]
    whole: bool = False
    pixel_stats: str = ""
    ambiguous: bool = False


def recognized(arrays: Arrays) -> Found:
    """Arrays of a state dict under our names; arrays that a layout drops are left out.

    Raises:
      UserError: no known layout.
    """
    if any(re.match(r"((params|frozen|batch_stats)/)?(backbone|heads_\w+)/", name) for name in arrays):
        collections = ("params/", "frozen/", "batch_stats/")
        own = {re.sub(f"^({'|'.join(collections)})", "", name): array for name, array in arrays.items()}
        return Found("must", own, whole=True)
    for layout in LAYOUTS:
        marked = all(any(re.match(mark, name) for name in arrays) for mark in layout.marks)
        if marked and not set(layout.lacks) & set(arrays):
            return _translated(arrays, layout)
    first = ", ".join(sorted(arrays)[:5])
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise UserError(f"no known layout of weights, with {first}, ...; known ones: {known}")


def _translated(arrays: Arrays, layout: Layout) -> Found:
    kept = {}
    for name, array in arrays.items():
        if not any(re.match(pattern, name) for pattern in layout.drop):
            for pattern, replacement in layout.rename:
                name = re.sub(pattern, replacement, name)
            kept[name] = array
    found = {}
    for name, array in layout.prepare(kept).items():
        for pattern, ours, change in layout.rules:
            if match := re.fullmatch(pattern, name):
                found[f"backbone/{_name(ours, match)}"] = change(array)
                break
        else:
            found[name] = array
    return Found(layout.name, found, pixel_stats=layout.pixel_stats, ambiguous=not layout.pixel_stats)


def _name(template: str, match: re.Match) -> str:
    """Our name: {0} is a group of the match, {0+} a group that counts from 0, counted from 1."""

    def filled(place: re.Match) -> str:
        group = match.group(int(place[1]) + 1)
        return str(int(group) + 1) if place[2] else group

    return re.sub(r"\{(\d)(\+?)\}", filled, template)


def fit(variables: PyTree, found: Found, partial: Iterable[str] = ()) -> tuple[PyTree, list[str]]:
    """Variables with the arrays of a file in place of those of the same names.

    Strict: names of the network that the file lacks, names of the file that the network lacks, and shapes that differ
    are refused, all of them in one error, unless `partial` names them. Not required of the file: LoRA matrices; of a
    backbone's file, neck and heads. Heads of a whole network that this one lacks are left out.

    Args:
      variables: {collection: tree}, freshly initialized.
      found: from `recognized`.
      partial: beginnings of names that may differ; what does not fit stays as it is, or is left out.

    Returns:
      (variables, names that stay as they are).

    Raises:
      UserError: listing every name that does not fit, or an entry of `partial` that no name begins with.
    """
    partial, flat = tuple(partial), flatten_dict(variables)
    places = {"/".join(path[1:]): path for path in flat}
    for start in partial:
        if not any(name.startswith(start) for name in (*places, *found.arrays)):
            raise UserError(f"partial: {start!r} begins no name of the network or the file")
    wrong: dict[str, list[str]] = {"missing": [], "unexpected": [], "of another shape": []}
    kept, given = [], dict(found.arrays)
    for name, path in places.items():
        array, optional = given.pop(name, None), bool(partial) and name.startswith(partial)
        if array is None:
            kept.append(name)
            if not (optional or _not_required(name, found)):
                wrong["missing"].append(name)
        elif array.shape != flat[path].shape:
            kept.append(name)
            if not optional:
                shapes = f"{list(array.shape)}, the network {list(flat[path].shape)}"
                wrong["of another shape"].append(f"{name} {shapes}")
        else:
            flat[path] = _as(array, flat[path])
    for name in given:
        head = found.whole and name.startswith("heads_")
        if not (head or (partial and name.startswith(partial))):
            wrong["unexpected"].append(f"{name} {list(given[name].shape)}")
    if any(wrong.values()):
        parts = [f"{kind}: {', '.join(names)}" for kind, names in wrong.items() if names]
        hint = "settings of the backbone that fit the file, or init.partial=('beginning of a name', ...), are needed"
        raise UserError(f"does not fit the network as {found.layout}; {'; '.join(parts)}; {hint}")
    return unflatten_dict(flat), kept


def _not_required(name: str, found: Found) -> bool:
    return "/lora_" in name or (not found.whole and not name.startswith("backbone/"))


def _as(array: np.ndarray, like: Any) -> Array:
    if isinstance(like, jax.ShapeDtypeStruct):
        return like
    return jax.numpy.asarray(array, like.dtype)


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
