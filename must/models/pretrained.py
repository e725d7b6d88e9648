"""Weights of other libraries under the names of ours: which layout a file has, and whether it fits a network.

Names are those of variables without their collection, such as "backbone/stage1_block1/norm1/mean".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from must.core.types import Array, PyTree, UserError
from must.models import convnext, resnet, vit
from must.models.layouts import LAYOUTS, Layout

Arrays = Mapping[str, np.ndarray]


class Found(NamedTuple):
    """Arrays of a file under our names.

    Attributes:
      layout: name of its layout.
      arrays: {our name, or the file's where we have none: array}.
      whole: the file is of a whole network of this package; otherwise of a backbone.
      pixel_stats: with which it was trained; "" if unknown.
      ambiguous: networks of this layout were trained with several `pixel_stats`.
      classes: {task: names of its classes} of the heads, where they are known.
    """

    layout: str
    arrays: dict[str, np.ndarray]
    whole: bool = False
    pixel_stats: str = ""
    ambiguous: bool = False
    classes: Mapping[str, Sequence[str]] = {}


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


def fit(
    variables: PyTree, found: Found, partial: Iterable[str] = (), classes: Mapping[str, Sequence[str]] = {}
) -> tuple[PyTree, list[str]]:
    """Variables with the arrays of a file in place of those of the same names.

    Strict: names of the network that the file lacks, names of the file that the network lacks, and shapes that differ
    are refused, all of them in one error, unless `partial` names them. Not required of the file: LoRA matrices; of a
    backbone's file, neck and heads. Heads of a whole network that this one lacks are left out. Where the classes of a
    head are known on both sides, they are joined by name: classes that the file lacks stay as they are.

    Args:
      variables: {collection: tree}, freshly initialized.
      found: from `recognized`.
      partial: beginnings of names that may differ; what does not fit stays as it is, or is left out.
      classes: {task: names of its classes} of the network's heads.

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
    wrong: dict[str, list[str]] = {"missing": [], "unexpected": [], "of another shape": [], "of other classes": []}
    kept, given = [], dict(found.arrays)
    for name, path in places.items():
        array, optional = given.pop(name, None), bool(partial) and name.startswith(partial)
        if array is not None and (others := _other_classes(name, found.classes, classes)):
            kept.append(name)
            if not optional:
                wrong["of other classes"].append(f"{name} ({others})")
            continue
        if array is not None:
            array = _by_class(name, array, flat[path], found.classes, classes)
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
        fitting = f"; the file is of the backbone {settings}" if (settings := backbone_of(found)) else ""
        what = f"does not fit the network as {found.layout}; {'; '.join(parts)}{fitting}"
        raise UserError(f"{what}; set these, or name what may differ in init.partial=('beginning of a name', ...)")
    return unflatten_dict(flat), kept


def _by_class(name: str, array: np.ndarray, own: Any, theirs: Mapping, ours: Mapping) -> np.ndarray:
    """A head's array [..., k * C] of the file with its classes in the places that they have in the network."""
    old, new = _both_classes(name, theirs, ours)
    if not old or not new or old == new:
        return array
    if array.shape == own.shape or array.ndim != len(own.shape) or array.shape[:-1] != own.shape[:-1]:
        return array
    times = array.shape[-1] // len(old)
    if times * len(old) != array.shape[-1] or times * len(new) != own.shape[-1]:
        return array
    if isinstance(own, jax.ShapeDtypeStruct):
        return np.zeros(own.shape, array.dtype)
    grown = np.array(own).reshape(*own.shape[:-1], times, len(new))
    known = [(old.index(one), new.index(one)) for one in new if one in old]
    for before, after in known:
        grown[..., after] = array.reshape(*array.shape[:-1], times, len(old))[..., before]
    return grown.reshape(own.shape)


def _other_classes(name: str, theirs: Mapping, ours: Mapping) -> str:
    """How the classes of a head differ when they are as many: nothing tells which of its arrays depend on them."""
    old, new = _both_classes(name, theirs, ours)
    differ = [f"{a!r} is {b!r} in the network" for a, b in zip(old, new, strict=False) if a != b]
    return differ[0] if differ and len(old) == len(new) else ""


def _both_classes(name: str, theirs: Mapping, ours: Mapping) -> tuple[tuple[str, ...], tuple[str, ...]]:
    head = name.partition("/")[0]
    task = head.removeprefix("heads_") if head.startswith("heads_") else ""
    return tuple(theirs.get(task, ())), tuple(ours.get(task, ()))


def backbone_of(found: Found) -> dict[str, Any]:
    """Settings of the backbone whose arrays these are, but for what no shape tells; {} if they are of none."""
    own = {name.removeprefix("backbone/"): array for name, array in found.arrays.items()}
    blocks: dict[str, int] = {}
    for stage in dict.fromkeys(re.findall(r"\bstage(\d)_block\d+/", " ".join(own))):
        blocks[stage] = len({name.partition("/")[0] for name in own if name.startswith(f"stage{stage}_block")})
    counts = tuple(blocks.values())
    try:
        if "stem/patches/kernel" in own:
            return _vit_of(own)
        if "stage1_block1/depthwise/kernel" in own:
            widths = tuple(len(own[f"stage{n}_block1/scale"]) for n in blocks)
            sizes = [name for name, size in convnext.SIZES.items() if size == (counts, widths)]
            return {"kind": "convnext", "size": sizes[0]}
        bottleneck = "stage1_block1/conv3/kernel" in own
        depths = [d for d, n in resnet.BLOCKS.items() if n == counts and (d >= resnet.BOTTLENECK_FROM) == bottleneck]
        return {"kind": "resnet", "depth": depths[0], "width": own["stem/kernel"].shape[-1]}
    except (KeyError, IndexError):
        return {}


def _vit_of(own: Arrays) -> dict[str, Any]:
    width, depth = len(own["norm/scale"]), sum(name.endswith("/norm1/scale") for name in own)
    hidden, scaled = own["block1/mlp2/kernel"].shape[0], "block1/scale1" in own
    family = ("dinov2" if "stem/positions" in own else "dinov3") if scaled else "vit"
    settings = {
        "kind": "vit",
        "family": "siglip" if "pool/probe" in own else family,
        "patch": round((own["stem/patches/kernel"].shape[0] / 3) ** 0.5),
        "registers": len(own.get("stem/registers", ())),
        "swiglu": own["block1/mlp1/kernel"].shape[1] == 2 * hidden,
        "grid": len(own.get("stem/positions", ())),
        "hidden": hidden,
    }
    sizes = [name for name, size in vit.SIZES.items() if (size.width, size.depth) == (width, depth)]
    return settings | ({"size": sizes[0]} if sizes else {"width": width, "depth": depth})


def _not_required(name: str, found: Found) -> bool:
    return "/lora_" in name or (not found.whole and not name.startswith("backbone/"))


def _as(array: np.ndarray, like: Any) -> Array:
    if isinstance(like, jax.ShapeDtypeStruct):
        return like
    return jax.numpy.asarray(array, like.dtype)
