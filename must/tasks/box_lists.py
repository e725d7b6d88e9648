"""Lists of boxes: examined, cut, pasted, fused, drawn and scored; host NumPy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import Geometry, Label, LabelError, NotFinite
from must.data.geometry import restore_boxes
from must.tasks import drawing

OUTPUTS = {
    "boxes": "x0 y0 x1 y1, pixels of the frame, x1 and y1 exclusive, by falling score",
    "classes": "class ids",
    "scores": "0..1",
    "valid": "which places of the list hold a box",
    "crowd": "always False",
    "known": "classes that the network can find: all",
}
_ROUNDING = 1e-4  # by which a score may exceed 1


def checked(found: Mapping[str, Any], count: int) -> Label:
    """One image's boxes with computing types.

    Args:
      found: "boxes" [n, 4], x0 y0 x1 y1 in pixels; "scores" and "labels" [n]; "unknown" class ids, if any.
      count: classes.

    Returns:
      boxes float32 [n, 4]; scores float32 [n]; classes and unknown int64; in the order they came in.

    Raises:
      LabelError: a field that is missing or of a wrong shape or kind; a box that is not finite or reversed; a score
        outside 0..1; an id outside the label space.
    """
    if not isinstance(found, Mapping):
        raise LabelError(f"boxes is {type(found).__name__}, not a dict of boxes, scores, labels")
    for name in ("boxes", "scores", "labels"):
        if name not in found:
            raise LabelError(f"{name} is missing")
    boxes, scores, labels = (np.asarray(found[name]) for name in ("boxes", "scores", "labels"))
    unknown = np.asarray(found.get("unknown", ()))
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4).astype(np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu":
        raise LabelError(f"boxes is {boxes.dtype} {boxes.shape}, not numbers [n, 4]")
    for name, array, kinds in (("scores", scores, "f"), ("labels", labels, "iu")):
        if array.shape != (len(boxes),) or (array.size and array.dtype.kind not in kinds):
            expected = "floats" if kinds == "f" else "integers"
            raise LabelError(f"{name} is {array.dtype} {array.shape}, not {expected} ({len(boxes)},)")
    boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    for name, field in (("boxes", boxes), ("scores", scores)):
        if not np.isfinite(field).all():
            raise NotFinite(f"{name} is not finite")
    for wrong, what in (((boxes[:, 2:] < boxes[:, :2]).any(-1), "reversed"),):
        if wrong.any():
            raise LabelError(f"boxes holds {boxes[wrong][0].tolist()}, which is {what}")
    wrong = ~((scores >= 0) & (scores <= 1 + _ROUNDING))
    if wrong.any():
        raise LabelError(f"scores holds {scores[wrong][0]:.4g}, which is outside 0..1")
    for name, ids in (("labels", labels), ("unknown", unknown)):
        wrong = (ids < 0) | (ids >= count)
        if wrong.any():
            raise LabelError(f"{name} holds class id {ids[wrong][0]} with {count} classes")
    return {
        "boxes": boxes,
        "scores": np.minimum(scores, 1.0),
        "classes": labels.astype(np.int64),
        "unknown": unknown.astype(np.int64),
    }


def fields_of(label: Label, size: tuple[int, int], count: int) -> Label:
    """A label in record form with computing types, or ValueError; `size` of the image, `count` classes."""
    boxes = np.asarray(label["boxes"], np.float32).reshape(-1, 4)
    fields = {
        "boxes": boxes,
        "classes": np.asarray(label["classes"], np.int64).reshape(-1),
        "scores": np.asarray(label["scores"], np.float32).reshape(-1),
        "crowd": np.asarray(label["crowd"], bool).reshape(-1),
        "unknown": np.asarray(label["unknown"], np.int64).reshape(-1),
    }
    lengths = {name: len(value) for name, value in fields.items() if name != "unknown"}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"fields of unequal length: {lengths}")
    height, width = size
    limit = np.array([width, height, width, height], np.float32)
    bad = ~np.isfinite(boxes).all(-1)
    bad |= (boxes[:, 2:] < boxes[:, :2]).any(-1) | (boxes < -1).any(-1) | (boxes > limit + 1).any(-1)
    if bad.any():
        box = boxes[np.flatnonzero(bad)[0]].tolist()
        raise ValueError(f"box {box} is reversed or outside its image of {width} x {height} pixels")
    ids = np.concatenate([fields["classes"], fields["unknown"]])
    wrong = ids[(ids < 0) | (ids >= count)]
    if len(wrong):
        raise ValueError(f"class id {wrong[0]} with {count} classes")
    if not ((fields["scores"] >= 0) & (fields["scores"] <= 1)).all():
        raise ValueError("a score outside 0..1")
    return fields


def best(fields: Label, size: tuple[int, int] | None, floor: float, most: int) -> Label:
    """Of one image's boxes (`checked`) those that count, by falling score: `most` of each class.

    Args:
      fields: boxes [n, 4], scores, classes [n] and what else there is.
      size: (height, width) of the image; boxes without area in it are left out. None for boxes that are inside.
      floor: least score.
      most: boxes of a class.
    """
    seen = fields["boxes"] if size is None else np.clip(fields["boxes"], 0, (*size[::-1], *size[::-1]))
    chosen = np.flatnonzero((fields["scores"] >= floor) & (seen[:, 2:] > seen[:, :2]).all(-1))
    chosen = chosen[np.argsort(-fields["scores"][chosen], kind="stable")]
    chosen = chosen[place_in_class(fields["classes"][chosen]) < most]
    return {name: value if name == "unknown" else value[chosen] for name, value in fields.items()}


def place_in_class(classes: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """How many (valid) boxes of the same class stand before each box, int [M]."""
    same = classes[:, None] == classes
    return np.tril(same if valid is None else same & valid, -1).sum(-1)


def fuse(labels: Sequence[Label], overlap: float = 0.55) -> Label:
    """Weighted boxes fusion of several teachers' boxes in one image (Solovyev et al. 2021, sec. 3).

    By falling score, each box joins the fused box of its class that it overlaps most, by more than `overlap`, or begins
    one. A fused box is the mean of its boxes weighted by their scores; its score is their mean score times the share of
    the teachers that know its class and that found it.

    Args:
      labels: boxes [M, 4], classes, scores, valid [M], known [C] of each teacher.
      overlap: IoU.

    Returns:
      boxes [n, 4], scores, classes [n], unknown.
    """
    parts = [
        {n: np.asarray(one[n])[np.asarray(one["valid"])] for n in ("boxes", "classes", "scores")} for one in labels
    ]
    boxes, classes, scores = (np.concatenate([part[n] for part in parts]) for n in ("boxes", "classes", "scores"))
    owner = np.repeat(np.arange(len(parts)), [len(part["scores"]) for part in parts])
    knows = np.sum([np.asarray(one["known"]) for one in labels], 0)
    groups: list[list[int]] = []
    fused, of = np.zeros((0, 4)), np.zeros(0, np.int64)
    for i in np.argsort(-scores, kind="stable").tolist():
        close = np.where(of == classes[i], _iou(boxes[i].astype(np.float64), fused), 0)
        if len(close) and close.max() > overlap:
            group = groups[at := int(close.argmax())]
            group.append(i)
            fused[at] = np.average(boxes[group], 0, np.maximum(scores[group], 1e-9))
        else:
            groups.append([i])
            fused, of = np.concatenate([fused, boxes[i : i + 1]]), np.append(of, classes[i])
    share = [len(set(owner[group])) / max(1, knows[of[n]]) for n, group in enumerate(groups)]
    mean = [float(scores[group].mean()) for group in groups]
    return {
        "boxes": fused.astype(np.float32),
        "scores": (np.array(mean) * np.array(share)).astype(np.float32),
        "classes": of,
        "unknown": np.flatnonzero(knows == 0),
    }


_CUT = 0.03  # of a frame: boxes that come so close to a border at which the picture goes on are cut by it
_PART = 0.5  # of the area of a cut box that lies in another one of its class, which then is the whole of it
_ALONG = 0.5  # IoU along the border of two boxes that are the two sides of one object


def stitched(parts: Sequence[tuple[Label, Geometry]], overlap: float) -> Label:
    """Boxes of a picture's parts as those of the picture: every object once.

    By falling score, first those that no tile cuts: a box goes where it overlaps one of its class. A box that its tile
    cuts goes where it is a part of another one, and becomes one with the cut box on the other side of the border.

    Args:
      parts: (label in network form, geometry of the picture in the part's frame).
      overlap: IoU of two boxes that are one; of different parts half is enough.

    Returns:
      boxes [n, 4], pixels of the picture, scores, classes [n], unknown.
    """
    found: dict[str, list] = {"boxes": [], "scores": [], "classes": [], "cut": [], "part": []}
    for number, (label, geometry) in enumerate(parts):
        valid = np.asarray(label["valid"])
        boxes = np.asarray(label["boxes"], np.float64)[valid]
        (height, width), (oy, ox) = geometry.size, geometry.offset
        ends = oy + geometry.source_size[0] * geometry.scale[0], ox + geometry.source_size[1] * geometry.scale[1]
        open_ = np.array([ox < 0, oy < 0, ends[1] > width + 0.5, ends[0] > height + 0.5])
        near = np.stack([boxes[:, 0], boxes[:, 1], width - boxes[:, 2], height - boxes[:, 3]], -1)
        near = near < _CUT * np.array([width, height] * 2)
        found["boxes"].append(restore_boxes(boxes, geometry).astype(np.float64))
        found["cut"].append(near & open_)
        found["part"].append(np.full(len(boxes), number))
        for name in ("scores", "classes"):
            found[name].append(np.asarray(label[name])[valid])
    boxes, scores, classes, cut, part = (np.concatenate(found[name]) for name in found)
    kept: list[int] = []
    for i in np.lexsort((-scores, cut.any(-1))).tolist():
        same = np.array([j for j in kept if classes[j] == classes[i]], np.int64)
        close = _iou(boxes[i], boxes[same]) > np.where(part[same] == part[i], overlap, min(overlap, 0.5))
        if close.any():
            continue
        if cut[i].any():
            other = boxes[same]
            shared = np.maximum(np.minimum(boxes[i, 2:], other[:, 2:]) - np.maximum(boxes[i, :2], other[:, :2]), 0)
            area = np.prod(boxes[i, 2:] - boxes[i, :2])
            if (shared.prod(-1) > _PART * area).any():
                continue
            sides = [j for j in same.tolist() if _two_sides(boxes[i], cut[i], boxes[j], cut[j])]
            if sides:
                j = sides[0]
                boxes[j] = [*np.minimum(boxes[i, :2], boxes[j, :2]), *np.maximum(boxes[i, 2:], boxes[j, 2:])]
                cut[j] = cut[j] & cut[i]
                continue
        kept.append(i)
    chosen = np.array(kept, np.int64)
    chosen = {"boxes": boxes[chosen].astype(np.float32), "scores": scores[chosen], "classes": classes[chosen]}
    return {**chosen, "unknown": np.zeros(0, np.int64)}


def _two_sides(a: np.ndarray, cut_a: np.ndarray, b: np.ndarray, cut_b: np.ndarray) -> bool:
    """Whether two boxes that are cut on opposite sides meet there, and are about the same along the border."""
    for axis in (0, 1):
        facing = (cut_a[axis + 2] and cut_b[axis]) or (cut_a[axis] and cut_b[axis + 2])
        meet = min(a[axis + 2], b[axis + 2]) >= max(a[axis], b[axis])
        low, high = 1 - axis, 3 - axis
        shared = min(a[high], b[high]) - max(a[low], b[low])
        if facing and meet and shared > _ALONG * (max(a[high], b[high]) - min(a[low], b[low])):
            return True
    return False


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.maximum(sides, 0).prod(-1)
    whole = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(-1) - common
    return common / np.maximum(whole, 1e-9)


_FAR = 1e5  # pixels; beyond every frame
_FIELDS = ("boxes", "classes", "scores", "crowd")


def paste(
    label: Label | None,
    other: Label | None,
    window: tuple[int, int, int, int],
    *,
    min_visible: float,
    min_size: float,
) -> Label:
    """The boxes around a rectangle and those inside it, as one label in network form with as much room.

    A box of the picture around is cut where the rectangle covers one of its sides from end to end, and keeps its shape
    where less of it is covered; a box of the other picture is cut at the rectangle. One of which little is left becomes
    a crowd, which is ignored, one of which nothing is left is gone. Where nothing is known of a part, a crowd covers
    it. Known are the classes that both sources know. If there are more boxes than room, one crowd stands over the last
    ones.

    Args:
      label: boxes [M, 4], classes, scores, valid, crowd [M], known [C]; None where nothing is known around.
      other: the same of the picture that the rectangle was taken from.
      window: (y0, x0, y1, x1), pixels.
      min_visible: share of a box's area below which it is ignored.
      min_size: shorter side below which it is ignored, pixels.
    """
    y0, x0, y1, x1 = (float(side) for side in window)
    around = [[0, 0, _FAR, y0], [0, y1, _FAR, _FAR], [0, y0, x0, y1], [x1, y0, _FAR, y1]]
    parts = [
        _unknown(np.array(around))
        if label is None
        else _seen(label, *_outside(label["boxes"], (x0, y0, x1, y1)), min_visible, min_size),
        _unknown(np.array([[x0, y0, x1, y1]]))
        if other is None
        else _seen(other, *_inside(other["boxes"], (x0, y0, x1, y1)), min_visible, min_size),
    ]
    found = {name: np.concatenate([part[name] for part in parts]) for name in _FIELDS}
    order = np.lexsort((-found["scores"], found["crowd"]))
    like = other if label is None else label
    room, count = len(like["valid"]), len(order)
    out = {name: np.zeros_like(like[name]) for name in _FIELDS}
    kept = order if count <= room else order[: room - 1]
    for name in _FIELDS:
        out[name][: len(kept)] = found[name][kept]
    if count > room:
        rest = found["boxes"][order[room - 1 :]]
        out["boxes"][-1] = [*rest[:, :2].min(0), *rest[:, 2:].max(0)]
        out["scores"][-1], out["crowd"][-1] = 1.0, True
    known = np.logical_and.reduce([part["known"] for part in (label, other) if part is not None])
    return {**out, "valid": np.arange(room) < count, "known": known}


def _outside(boxes: np.ndarray, window: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] without what a rectangle (x0, y0, x1, y1) covers from side to side, and the share of each that is
    seen."""
    low, high = np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])
    seen = 1.0 - np.prod(np.maximum(high - low, 0.0), -1) / np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], -1), 1e-9)
    out = boxes.copy()
    for axis in range(2):
        across = (low[:, 1 - axis] <= boxes[:, 1 - axis]) & (high[:, 1 - axis] >= boxes[:, 3 - axis])
        across &= (seen > 0) & (seen < 1)
        first = across & (low[:, axis] <= boxes[:, axis])  # the side at the smaller coordinate is covered
        last = across & (high[:, axis] >= boxes[:, 2 + axis])
        out[first, axis], out[last, 2 + axis] = window[2 + axis], window[axis]
    return out, seen


def _inside(boxes: np.ndarray, window: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes cut at a rectangle, and the share of each that lies in it."""
    out = np.concatenate([np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])], -1)
    size = np.prod(np.maximum(out[:, 2:] - out[:, :2], 0.0), -1)
    return out, size / np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], -1), 1e-9)


def _seen(label: Label, boxes: np.ndarray, seen: np.ndarray, min_visible: float, min_size: float) -> Label:
    """Those boxes of a label of which something is left."""
    keep = np.asarray(label["valid"]) & (seen > 1e-6)
    crowd = label["crowd"] | (seen < min_visible) | ((boxes[:, 2:] - boxes[:, :2]).min(-1) < min_size)
    found = {**label, "boxes": boxes, "crowd": crowd}
    return {name: found[name][keep] for name in _FIELDS}


def _unknown(boxes: np.ndarray) -> Label:
    """Crowds over places of which nothing is known."""
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(-1)]
    count = len(boxes)
    return {
        "boxes": boxes,
        "classes": np.zeros(count, np.int32),
        "scores": np.ones(count),
        "crowd": np.ones(count, bool),
    }


_PAPER, _INK, _DARK = (24, 24, 28), (255, 255, 255), (0, 0, 0)


def draw(
    image: np.ndarray,
    label: Label,
    names: Sequence[str],
    shown: np.ndarray,
    ignored: np.ndarray,
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """The enlarged picture with its boxes, crowds thin and nameless; below, how many of each class.

    A name that finds no place of its own beside its box is left out.

    Args:
      image: uint8 [H, W, 3].
      label: boxes [M, 4], classes, scores and crowd [M]; the scores are what is written, but for 1.
      names: of the classes.
      shown: bool [M].
      ignored: bool [M], among the shown ones.
      masks: bool [M, H, W], whose outlines are drawn too.
    """
    from PIL import Image, ImageDraw

    enlarged = drawing.upscale(image)
    zoom, colors = enlarged.shape[0] / image.shape[0], drawing.palette(len(names))
    boxes, classes, scores, crowd = (np.asarray(label[n]) for n in ("boxes", "classes", "scores", "crowd"))
    corners = np.round(boxes * zoom - (0, 0, 1, 1)).astype(np.int64)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2])  # a box of less than a pixel is one pixel
    inside = np.zeros(enlarged.shape[:2], bool)
    for x0, y0, x1, y1 in corners[ignored]:
        inside[max(0, y0) : y1, max(0, x0) : x1] = True
    for i in np.flatnonzero(shown) if masks is not None else ():
        mask = np.pad(masks[i].repeat(round(zoom), 0).repeat(round(zoom), 1), 1)
        inner = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        enlarged[mask[1:-1, 1:-1] & ~inner] = colors[classes[i]]
    canvas = Image.fromarray(drawing.tint(enlarged, inside) if inside.any() else enlarged)
    pen = ImageDraw.Draw(canvas)
    order = np.flatnonzero(shown)[::-1]
    order = order[np.argsort(~ignored[order], kind="stable")]  # the surest last, on top
    for i in order:
        color = tuple(colors[classes[i]].tolist())
        x0, y0, x1, y1 = corners[i].tolist()
        if ignored[i]:
            drawing.dashed(pen, (x0, y0, x1, y1), color)
        else:
            pen.rectangle((x0, y0, x1, y1), outline=color, width=1 if crowd[i] else 2)
    taken: list[tuple[float, float, float, float]] = []
    for i in (i for i in order[::-1] if not crowd[i]):
        text = names[classes[i]] + ("" if scores[i] == 1 else f" {scores[i]:.2f}")
        x0, y0, _, y1 = corners[i].tolist()
        for y in (max(0, y0 - 11), y0 + 2, y1 - 12):  # the first place where no surer box has its name
            place = pen.textbbox((x0 + 2, y), text)
            if not any(a < place[2] and place[0] < c and b < place[3] and place[1] < d for a, b, c, d in taken):
                color = tuple(colors[classes[i]].tolist())
                pen.rectangle(place, fill=_PAPER if ignored[i] else color)
                pen.text((x0 + 2, y), text, fill=_DARK if not ignored[i] and sum(color) > 330 else _INK)
                taken.append(place)
                break
    number = np.bincount(classes[shown & ~ignored & ~crowd], minlength=len(names))
    most = [c for c in np.argsort(-number, kind="stable")[: drawing.ROWS] if number[c]]
    rows = [(f"{number[c]} {names[c]}", colors[c : c + 1]) for c in most]
    if ignored.any():
        rows = [*rows[: drawing.ROWS - 1], (f"{ignored.sum()} ignored", drawing.share(ignored, "")[1])]
    return drawing.caption(np.asarray(canvas), rows)


_RECALLS = np.linspace(0.0, 1.0, 101)  # where the precision is read


def of_classes(rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Average precision and largest recall, means over the classes that have a true box; None where none has.

    Args:
      rows: of N images with M predictions: "scores" and "classes" [N, M]; "hit" and "miss" bool [N, M, T] at T
        thresholds of IoU, neither for what is ignored; "positives" [N, C], true boxes.

    Returns:
      float [T] each, 0..1.
    """
    positives = rows["positives"].sum(0)
    counted = (rows["hit"] | rows["miss"]).any(-1)
    classes, scores, hit, miss = (rows[field][counted] for field in ("classes", "scores", "hit", "miss"))
    precision, recall = [], []
    for c in np.flatnonzero(positives):
        mine = np.flatnonzero(classes == c)
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        hits, misses = (np.cumsum(each[mine], 0, dtype=np.int32) for each in (hit, miss))  # [n, T]
        precision.append(_interpolated(hits, misses, positives[c]))
        recall.append(hits[-1] / positives[c] if len(hits) else np.zeros(rows["hit"].shape[-1]))
    return (np.mean(precision, 0), np.mean(recall, 0)) if precision else None


def _interpolated(hits: np.ndarray, misses: np.ndarray, positives: int) -> np.ndarray:
    """Precision at the 101 recalls, averaged: cumulated hits and misses [n, T] by falling score -> [T]."""
    out = np.zeros(hits.shape[1])
    envelope = np.maximum.accumulate((hits / np.maximum(hits + misses, np.spacing(1)))[::-1], 0)[::-1]
    for t in range(hits.shape[1]):
        at = np.searchsorted(hits[:, t] / positives, _RECALLS, side="left")
        out[t] = envelope[at[at < len(hits)], t].sum() / len(_RECALLS)
    return out
