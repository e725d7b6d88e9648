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
      pixel_stats: how the family normalizes images, a key of `must.models.multi_head.PIXEL_STATS`; "" if checkpoints of
        this layout differ.
      prepare: (arrays under timm's names) -> arrays, for what is stored in another form.
    """

    name: str
    marks: Sequence[str]
    rules: Sequence[Rule]
    rename: Sequence[tuple[str, str]] = ()
    drop: Sequence[str] = ()
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
        if all(any(re.match(mark, name) for name in arrays) for mark in layout.marks):
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

LAYOUTS = [
    Layout(
        "ResNet of torchvision or timm",
        (r"conv1\.weight", r"layer1\.0\.conv1\.weight"),
        RESNET,
        drop=(r"fc\.", r".*\.num_batches_tracked"),
        pixel_stats="imagenet",
    ),
]
