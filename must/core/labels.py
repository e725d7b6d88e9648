"""Constructors and checks of ground truth in record form (`Task.label_spec`); its scores and probabilities are 1."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from must.core.notices import notice
from must.core.types import Label, UserError

IGNORE = 255
# Only the truth is certain: the largest score of a teacher, as half precision has it, and as a code of 0..255.
SUREST, LARGEST = 1 - 2**-11, 254
_ROUNDING = 1e-3  # by which a sum of probabilities may miss 1
FAINTEST = 2.0**-14  # smallest score of a teacher where 0 is the truth's: the smallest normal float16
_IGNORED_NAMES = ("ignore", "void", "unlabel", "unknown", "other", "background", "border")
UNITS = {"mm": 1e-3, "cm": 1e-2, "m": 1.0}


def classification(class_id: int, unknown: Sequence[int] = ()) -> Label:
    """One class with certainty, and the ids of the classes unknown to the source."""
    return {
        "ids": np.array([class_id], np.uint16),
        "probs": np.ones(1, np.float16),
        "rest": np.float16(0),
        "unknown": np.asarray(unknown, np.uint16).reshape(-1),
    }


def multi_label(scores: np.ndarray, unknown: Sequence[int] = ()) -> Label:
    """Attributes [C], 1 where present and 0 where absent, and the ids of those of which nothing is known."""
    ids = np.asarray(unknown, np.uint16).reshape(-1)
    scores = half(scores)
    scores[ids] = 0
    return {"scores": scores, "unknown": ids}


def detection(boxes: np.ndarray, classes: np.ndarray, crowd: np.ndarray, unknown: Sequence[int] = ()) -> Label:
    """Boxes [N, 4], class ids [N], crowd [N], and the ids of the unannotated classes."""
    return {
        "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
        "classes": np.asarray(classes, np.uint16).reshape(-1),
        "scores": np.ones(len(classes), np.float16),
        "crowd": np.asarray(crowd, bool).reshape(-1),
        "unknown": np.asarray(unknown, np.uint16).reshape(-1),
    }


def with_masks(label: Label, masks: Iterable[np.ndarray]) -> Label:
    """Detection in record form with a mask bool [H, W] of each box, as run lengths over columns, beginning with 0s."""
    return {**label, **_joined([run_lengths(mask) for mask in masks])}


def masks_of(label: Label, size: tuple[int, int]) -> np.ndarray:
    """The masks of a label in record form, bool [N, H, W]; ValueError where one is not of this size."""
    out = np.zeros((len(label["runs"]), *size), bool)
    for mask, counts in zip(out, _split(label), strict=True):
        if counts.sum() != mask.size:
            raise ValueError(f"a mask of {counts.sum()} pixels in an image of {size[1]} x {size[0]}")
        mask[:] = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T
    return out


def chosen_masks(*parts: tuple[Label, np.ndarray]) -> Label:
    """The fields of the masks of the chosen boxes, bool [N], of several labels; {} where none has masks."""
    if not any("runs" in label for label, _ in parts):
        return {}
    return _joined([c for label, chosen in parts for c, kept in zip(_split(label), chosen, strict=True) if kept])


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """Run lengths of a bool [H, W] mask as COCO has them: over columns, beginning with zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    return np.diff(np.flatnonzero(flat[1:] != flat[:-1]), prepend=0)


def _split(label: Label) -> list[np.ndarray]:
    runs = np.asarray(label["runs"], np.int64)
    counts = np.asarray(label["counts"], np.int64)
    if runs.sum() != len(counts):
        raise ValueError(f"{len(counts)} run lengths, {runs.sum()} by the number of each mask")
    return np.split(counts, np.cumsum(runs)[:-1]) if len(runs) else []


def _joined(counts: Sequence[np.ndarray]) -> Label:
    flat = np.concatenate([*counts, np.zeros(0, np.int64)])
    return {"counts": flat.astype(np.uint32), "runs": np.array([len(one) for one in counts], np.uint32)}


def segmentation(ids: np.ndarray, unknown: Sequence[int] = ()) -> Label:
    """Class ids uint8 [H, W], 255 = ignored, and the ids of the classes unknown to the source."""
    ids = np.ascontiguousarray(ids, np.uint8)[..., None]
    probs = np.where(ids == IGNORE, 0, 255).astype(np.uint8)
    return {"ids": ids, "probs": probs, "unknown": np.asarray(unknown, np.uint16).reshape(-1)}


def check_unit(sample: Iterable[np.ndarray], unit: str | float, where: str) -> None:
    """Refuses depth maps that a unit given by its name makes absurd: mostly beyond 500 m, or all within 10 cm.

    Args:
      sample: maps in that unit; 0 and what is not finite are no measurements.
      unit: as the user gave it; a number is taken as it is.
      where: prefix of the message.
    """
    measured = [stored[np.isfinite(stored) & (stored > 0)] for stored in sample]
    if not isinstance(unit, str) or not sum(map(len, measured)):
        return
    valid = np.concatenate(measured).astype(np.float64) * UNITS[unit]
    middle = float(np.median(valid))
    if middle > 500 or valid.max() < 0.1:
        raise UserError(
            f"{where}: with unit={unit!r} the median depth is {middle:,.4g} m; is the unit "
            f"{'mm' if middle > 500 else 'm'!r}? A number is not questioned: unit={UNITS[unit]:g}"
        )


def depth(codes: np.ndarray, meters_per_unit: float) -> Label:
    """uint16 [H, W], 0 = invalid; meters = codes * meters_per_unit."""
    codes = np.ascontiguousarray(codes, np.uint16)
    scale = np.float32(meters_per_unit)
    return {"depth": codes, "scale": scale, "offset": np.float32(0), "scores": np.full((1, 1), 255, np.uint8)}


def normals(vectors: np.ndarray) -> Label:
    """Unit vectors float [H, W, 3] in camera axes, zeros = invalid; rounded to 1/127."""
    return {"normals": np.round(vectors * 127).astype(np.int8), "scores": np.full((1, 1), 255, np.uint8)}


def half(scores: np.ndarray) -> np.ndarray:
    """Scores 0..1 as float16, which rounds .9998 to the truth's 1: here only 1 itself becomes 1."""
    scores = np.asarray(scores, np.float32)
    return np.where(scores >= 1, scores, np.minimum(scores, SUREST)).astype(np.float16)


def of_teacher(label: Label) -> Label:
    """A teacher's label in network form, host NumPy, without the certainty that is the truth's alone."""
    for name in {"scores", "probs"} & set(label):
        field = np.asarray(label[name])
        most = SUREST if field.dtype.kind == "f" else LARGEST
        if field.size and not field.max() <= most:
            label = {**label, name: np.minimum(field, field.dtype.type(most))}
    return label


def meters_per_unit(unit: str | float) -> float:
    """Meters per unit, given as "mm", "cm", "m" or a number."""
    factor = UNITS.get(unit) if isinstance(unit, str) else float(unit)
    if factor is None or not 0 < factor < np.inf:
        raise UserError(
            f"depth unit {unit!r}: expected one of {', '.join(UNITS)} or a positive number of meters per unit"
        )
    return factor


def class_table(names: Mapping[int, str], ignore: int | None, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The lookup table from stored mask ids to class ids.

    Args:
      names: {stored id: name}, ids in 0..255; an entry for `ignore` is dropped.
      ignore: stored id that becomes 255; none if None or negative.
      where: prefix of error messages.

    Returns:
      Class names in ascending order of their stored ids, and int16 [256]: class id, 255, or -1 for invalid ids.
    """
    kept = {number: name for number, name in names.items() if number != ignore}
    dropped = [name for number, name in names.items() if number == ignore]
    if dropped and not any(word in dropped[0].lower() for word in _IGNORED_NAMES):
        notice(
            f"{where}: {dropped[0]!r} has the id {ignore} that is ignored, so it is no class; ignore=-1 ignores none"
        )
    if not kept or min(kept) < 0 or max(kept) > 255 or len(kept) > IGNORE:
        raise UserError(f"{where}: an 8-bit mask needs 1 to 255 classes with ids in 0..255")
    table = np.full(256, -1, np.int16)
    table[list(kept)] = np.arange(len(kept))
    if ignore is not None and ignore >= 0:
        table[ignore] = IGNORE
    return tuple(kept.values()), table


def checked_mask(stored: np.ndarray, table: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """Stored ids uint8 [H, W] -> class ids uint8 [H, W]; UserError for a wrong size or an invalid id."""
    same_size(stored, size, where)
    ids = table[stored]
    if ids.min() < 0:
        wrong = int(np.unique(stored[ids < 0])[0])
        count, classes = int((table >= 0).sum()), table[(table >= 0) & (table < IGNORE)]
        hint = ""
        if wrong == IGNORE:
            hint = "; ignore=255 ignores it"
        elif wrong == len(classes) and (table[:wrong] == np.arange(wrong)).all() and (stored > 0).all():
            hint = f"; ids seem to count from 1, which classes={{1: ..., {wrong}: ...}} says"
        raise UserError(f"{where}: mask id {wrong} is not one of the {count} ids of classes and ignore{hint}")
    return ids.astype(np.uint8)


def check_masks(stored: Iterable[np.ndarray], names: Sequence[str], table: np.ndarray, where: str) -> None:
    """Refuses a sample of masks in which objects have the ignored id: they hold 0 and 255 and nothing else."""
    if len(names) < 2 or table[255] != IGNORE:
        return
    if set(np.unique(np.concatenate([np.unique(mask) for mask in stored] or [np.zeros(0)])).tolist()) == {0, 255}:
        told = f"{where}: the masks hold 0 and 255 only, and 255 is ignored, so {names[1]!r} never occurs"
        if len(names) == 2:
            raise UserError(f"{told}; classes={{0: {names[0]!r}, 255: {names[1]!r}}} with ignore=-1 makes it a class")
        notice(f"{told} in the first of them")


def same_size(array: np.ndarray, size: tuple[int, int], where: str) -> None:
    """UserError unless the array has the image's height and width."""
    if array.shape[:2] != tuple(size):
        height, width = array.shape[:2]
        raise UserError(f"{where}: is {width}x{height} (width x height), but its image is {size[1]}x{size[0]}")


class CheckedBoxes(NamedTuple):
    """Boxes inside their images.

    Attributes:
      boxes: float64 [K, 4].
      kept: bool [N], which of the given boxes they are.
      clipped: number of boxes that reached out of their images by more than a pixel.
    """

    boxes: np.ndarray
    kept: np.ndarray
    clipped: int

    def tell(self, where: str, *, counted: bool = True, way_out: str = " (bounds='refuse' refuses them)") -> None:
        """Mentions what was clipped and left out; not `counted` where a set is told of when its pictures are read."""
        for number, what in (
            (self.clipped, f"reach beyond their pictures and are clipped{way_out}"),
            (int((~self.kept).sum()), "have no area in their pictures and are left out"),
        ):
            if number:
                notice(f"{where}: {f'{number:,} of {len(self.kept):,}' if counted else 'some'} boxes {what}")

    @classmethod
    def together(cls, parts: "Sequence[CheckedBoxes]") -> "CheckedBoxes":
        """The boxes of several images."""
        boxes, kept = (np.concatenate(field) for field in list(zip(*parts, strict=True))[:2])
        return cls(boxes, kept, sum(part.clipped for part in parts))


def checked_boxes(
    boxes: np.ndarray,
    sizes: np.ndarray,
    where: Callable[[int], str],
    *,
    bounds: str = "clip",
    empty: str = "refuse",
) -> CheckedBoxes:
    """Clips boxes to their images.

    Args:
      boxes: [N, 4], x0 y0 x1 y1, pixels.
      sizes: (height, width), [2] or [N, 2].
      where: index of a box -> prefix of an error message about it.
      bounds: "clip", or "refuse" boxes that leave their images by more than a pixel.
      empty: what becomes of boxes without area, "refuse", "drop" or "keep"; a box wholly outside its image is dropped
        or else refused.

    Raises:
      UserError: a box that is not finite, is reversed, or one that is to be refused.
    """
    if bounds not in ("clip", "refuse"):
        raise UserError(f"bounds={bounds!r}: expected 'clip' or 'refuse'")
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    sizes = np.broadcast_to(np.asarray(sizes, np.float64), (len(boxes), 2))
    limit = sizes[:, [1, 0, 1, 0]]
    beyond = ((boxes < -1) | (boxes > limit + 1)).any(-1)
    inside = np.clip(boxes, 0, limit)
    area = (inside[:, 2:] > inside[:, :2]).all(-1)
    outside = beyond & ~area
    drop = "; drop_empty=True leaves such boxes out" if empty == "refuse" else ""
    checks = [
        (~np.isfinite(boxes).all(-1), "is not finite", ""),
        (~(boxes[:, 2:] >= boxes[:, :2]).all(-1), "is reversed", ""),
        (beyond & (bounds == "refuse"), "reaches outside its image", "; bounds='clip' clips it"),
        (outside & (empty != "drop"), "is wholly outside its image", drop),
        (~area & (empty == "refuse"), "has no area", drop),
    ]
    for bad, what, way_out in checks:
        if bad.any():
            i = int(np.argmax(bad))
            corners = ", ".join(f"{v:g}" for v in boxes[i])
            width, height = limit[i, :2]
            size = f"{width:g}x{height:g} px (width x height)"
            raise UserError(f"{where(i)}: box ({corners}) {what}; the image has {size}{way_out}")
    kept = np.full(len(boxes), True) if empty == "keep" else np.asarray(area)
    return CheckedBoxes(inside[kept], kept, int((beyond & area).sum()))


def broken_contract(label: Label, classes: int = 0, ignore: int | None = IGNORE) -> str:
    """What no reader of a label in record form can use, "<field> <what is wrong>", or "".

    A field is judged by its name: "boxes" have an area at positive corners, "probs" with their "rest" sum to 1,
    "scores" lie in 0..1, depth is positive and finite, "normals" have length 1 or 0, class ids are below `classes`
    (where that is not 0) or the ignored one, those of a distribution once each.
    """
    arrays = {name: np.asarray(value) for name, value in label.items()}
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"{name} is not finite"
        shares = name in ("scores", "probs", "rest") and value.dtype.kind == "f" and value.size
        if shares and not (value.min() >= 0 and value.max() <= 1 + _ROUNDING):
            return f"{name} is outside 0..1"
        if name in ("ids", "classes", "unknown") and classes and value.size and value.max() >= classes:
            beyond = value[(value >= classes) & (value != (-1 if ignore is None else ignore))]
            if beyond.size:
                return f"{name} holds class id {beyond[0]} with {classes} classes"
    for check in (_broken_boxes, _broken_distribution, _broken_depth, _broken_normals):
        if problem := check(arrays):
            return problem
    return ""


def _broken_boxes(label: Mapping[str, np.ndarray]) -> str:
    boxes = label.get("boxes")
    if boxes is not None and boxes.ndim == 2 and boxes.shape[1:] == (4,):
        wrong = ~((boxes[:, 2:] > boxes[:, :2]).all(-1) & (boxes >= 0).all(-1))
        if wrong.any():
            return f"boxes holds {boxes[wrong][0].tolist()}, which has no area in its image"
    return ""


def _broken_distribution(label: Mapping[str, np.ndarray]) -> str:
    ids, probs, rest = (label.get(name) for name in ("ids", "probs", "rest"))
    if ids is None or probs is None:
        return ""
    if rest is not None and ids.ndim == 1:
        if len(np.unique(ids)) < len(ids):
            return f"ids holds a class twice: {ids.tolist()[:8]}"
        total = float(probs.sum(dtype=np.float64) + rest)
        if abs(total - 1) > _ROUNDING * (2 + len(ids)):  # each is rounded to float16
            return f"probs and rest sum to {total:.4g}, not to 1"
    return ""


def _broken_depth(label: Mapping[str, np.ndarray]) -> str:
    codes, scale, offset = (label.get(name) for name in ("depth", "scale", "offset"))
    if codes is None or scale is None or offset is None or not (codes > 0).any():
        return ""
    least = float(scale) * int(codes[codes > 0].min()) + float(offset)
    if scale < 0 or least < -1e-5 * scale or (least <= 0 and scale == 0 and not label.get("inverse", False)):
        return f"depth has {least:.4g} m where it is valid"
    return ""


def _broken_normals(label: Mapping[str, np.ndarray]) -> str:
    normals = label.get("normals")
    if normals is None or normals.ndim != 3 or normals.shape[-1] != 3 or normals.dtype != np.int8:
        return ""
    square = np.einsum("hwc,hwc->hw", normals, normals, dtype=np.int32)
    wrong = (square != 0) & (np.abs(square - 127**2) > 600)  # rounding moves it by 127 * sqrt(3) + 1 at most
    if wrong.any():
        return f"normals holds a vector of length {float(np.sqrt(square[wrong][0])) / 127:.3g}, not 1"
    return ""


def numbered(classes: Sequence[str]) -> str:
    """Class names with their ids, as the features of records describe them: "0 cat, 1 dog"."""
    return ", ".join(f"{number} {name}" for number, name in enumerate(classes))


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names that come without an order: by value if all are whole numbers, so that "2" precedes "10"."""
    names = set(names)
    numeric = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if numeric else None))
