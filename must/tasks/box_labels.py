"""What tasks with boxes share, whatever network finds them: labels, their files and geometry, metrics, pictures."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from must.core import boxes as bx
from must.core.labels import half, numbered
from must.core.notices import notice
from must.core.types import Array, ArraySpec, Geometry, Label, LabelError, Metric, Policy, Source
from must.data import geometry as geo
from must.tasks import box_files, box_lists, exchange
from must.tasks import points as points_of
from must.tasks.base import Task
from must.tasks.label_states import Claims, decide, states, uncertain

_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # IoU of a hit; AP is the mean over them (COCO)
_MOST = 100  # predictions of a class that count in one image (COCO)
_MIN_VISIBLE = 0.25  # of a cut box's area; with less the object is no longer recognizable, so it is ignored


@dataclasses.dataclass(frozen=True)
class BoxLabels(Task):
    """Boxes of `classes`; a subclass adds the network, its loss and its predictions.

    Attributes:
      classes: names, in the order of the ids.
      max_boxes: boxes of a label that training learns; more are dropped, lowest score first. Evaluation counts all.
      max_detections: boxes of one prediction; of external teachers that many of each class.
      nms_iou: of two boxes of one class that overlap by more, the one with the lower score goes.
      score_floor: predictions below it are not reported and not stored.
      draw_floor: predictions below it are not drawn.
      min_size: boxes with a shorter side in the network's frame are ignored in training, pixels.
    """

    classes: tuple[str, ...]
    max_boxes: int = 100
    max_detections: int = 100
    nms_iou: float = 0.6
    score_floor: float = 0.05
    draw_floor: float = 0.3
    min_size: float = 2.0

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("AP", "", True),
        Metric("AP50", "", True),
        Metric("AP75", "", True),
        Metric("AR100", "", True),
    )
    outputs: ClassVar[Mapping[str, str]] = box_lists.OUTPUTS
    # Most boxes that a detector finds have low scores and are wrong.
    label_policy: ClassVar[Mapping[str, Any]] = {
        "from_validation": True,
        "target_precision": 0.6,
        "negative_below": 0.2,
    }
    can_be_empty: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = ("max_boxes",)

    @classmethod
    def defaults(cls, labels: Iterable[Label]) -> dict[str, Any]:
        """As in the base class: room for a quarter more boxes than the fullest image has, and for 32 at least.

        Images of a pool may be fuller, and boxes without room are taught as background.
        """
        most = max((len(label["boxes"]) for label in labels), default=0)
        return {"max_boxes": max(32, math.ceil(1.25 * most / 8) * 8)}

    def label_spec(self) -> dict[str, ArraySpec]:
        return {
            "boxes": ArraySpec((None, 4), "float32", doc="x0 y0 x1 y1, pixels of the original; x1, y1 exclusive"),
            "classes": ArraySpec((None,), "uint16", doc=f"class ids: {numbered(self.classes)}"),
            "scores": ArraySpec((None,), "float16", doc="1 for ground truth"),
            "crowd": ArraySpec((None,), "bool", doc="a region that holds uncounted objects"),
            "unknown": ArraySpec((None,), "uint16", doc="ids of the classes that this source does not annotate"),
        }

    def network_spec(self, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        return self._spec(self.max_boxes)

    def _spec(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(*form) for name, form in _forms(count, len(self.classes)).items()}

    def transform(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class, room for all boxes; one of which little is left in the frame becomes a crowd."""
        fields = box_lists.fields_of(label, geometry.source_size, len(self.classes))
        boxes, visible = geo.transform_boxes(fields["boxes"], geometry)
        flat = fields["boxes"][:, 2:] <= fields["boxes"][:, :2]  # counts all the same
        seen = np.flatnonzero((flat | (boxes[:, 2:] > boxes[:, :2])).all(-1))
        fields |= {"boxes": boxes, "crowd": fields["crowd"] | (visible < _MIN_VISIBLE)}
        seen = seen[np.lexsort((-fields["scores"][seen], fields["crowd"][seen]))]
        fields |= self._more(label, geometry)
        return self._filled({n: value[seen] for n, value in fields.items() if n != "unknown"}, fields["unknown"])

    def _more(self, label: Label, geometry: Geometry) -> Label:
        """Further fields per box of a label in record form, in the network's frame."""
        return {}

    def _filled(self, fields: Label, unknown: np.ndarray, room: int = 0) -> Label:
        """Network form with room for so many boxes, by default `max_boxes` or more where there are more."""
        count = len(fields["boxes"])
        forms = _forms(room or max(self.max_boxes, count), len(self.classes))
        out = {name: np.zeros(*form) for name, form in forms.items()}
        for name, value in fields.items():
            if name not in out and name != "unknown":
                out[name] = np.zeros((len(out["valid"]), *value.shape[1:]), value.dtype)
            if name != "unknown":
                out[name][:count] = value
        out["valid"][:count] = True
        out["known"][:] = True
        out["known"][unknown] = False
        return out

    def encode(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class: the `max_boxes` surest boxes that have an area, small ones as crowds."""
        found = self.transform(label, geometry)
        shorter = (found["boxes"][:, 2:] - found["boxes"][:, :2]).min(-1)
        found["crowd"] |= found["valid"] & (shorter < self.min_size)
        keep = np.flatnonzero(found["valid"] & (shorter > 0))
        if len(keep) > self.max_boxes:
            told = f"detection: there are pictures with more than max_boxes={self.max_boxes} boxes"
            notice(f"{told}; training learns so many of each, the surest first")
        keep = keep[np.lexsort((-found["scores"][keep], found["crowd"][keep]))][: self.max_boxes]
        fields = {name: value[keep] for name, value in found.items() if name not in ("valid", "known")}
        return self._filled(fields, np.flatnonzero(~found["known"]))

    def paste(self, label: Label | None, other: Label | None, window: tuple[int, int, int, int]) -> Label:
        """As in the base class, see `must.tasks.box_lists`."""
        return box_lists.paste(label, other, window, min_visible=_MIN_VISIBLE, min_size=self.min_size)

    def restore(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class; boxes below the score floor or wholly in the padding are left out."""
        boxes, keep = self._stored(label, geometry)
        spec = BoxLabels.label_spec(self)
        fields = {name: np.asarray(label[name])[keep] for name in ("classes", "scores", "crowd")}
        fields["scores"] = half(fields["scores"])
        fields |= {"boxes": boxes[keep], "unknown": np.flatnonzero(~np.asarray(label["known"]))}
        return {name: fields[name].astype(spec[name].dtype) for name in spec}

    def _stored(self, label: Label, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
        """All boxes in the original's frame, and which of them a record holds."""
        boxes = geo.restore_boxes(label["boxes"], geometry)
        keep = np.asarray(label["valid"]) & (np.asarray(label["scores"]) >= self.score_floor)
        return boxes, keep & (boxes[:, 2:] > boxes[:, :2]).all(-1)

    def target(self, label: Label, policy: Policy) -> dict[str, Array]:
        """Boxes [B, M, 4], classes [B, M], known [B, C]; positive and ignored [B, M] by the policy, else absent."""
        valid = label["valid"]
        classes = jnp.where(valid, label["classes"], 0)
        state = states(policy, label["scores"], classes)
        return {
            "boxes": jnp.where(valid[..., None], label["boxes"], 0.0),
            "classes": classes,
            "positive": valid & ~label["crowd"] & state.positive,
            "ignored": valid & ~state.negative & (label["crowd"] | ~state.positive),
            "known": label["known"],
        }

    def foreground(self, target: dict[str, Array], shapes: dict[int, tuple[int, int]]) -> dict[int, Array]:
        """Points inside a box that is taken as true, {stride: bool [B, h, w]}."""
        size = {stride: (height * stride, width * stride) for stride, (height, width) in shapes.items()}
        return {
            stride: points_of.inside_any(
                jnp.broadcast_to(jnp.asarray(bx.point_grid(size[stride], (stride,))), (len(target["boxes"]), h * w, 3)),
                target["boxes"],
                target["positive"],
            ).reshape(-1, h, w)
            for stride, (h, w) in shapes.items()
        }

    def from_external(self, predicted: Sequence[Mapping[str, Array]], size: tuple[int, int]) -> Label:
        """Of every image "boxes" [n, 4] x0 y0 x1 y1 in its pixels, "scores" [n], "labels" [n], ids of `classes`; any n.

        That is torchvision's convention. They may come with "unknown": ids of the classes that this network does not
        look for. Suppression is the network's own; boxes below `score_floor` or without area in the image are left out.
        """
        rows = []
        for row, found in enumerate(predicted):
            try:
                fields = box_lists.checked(found, len(self.classes))
            except LabelError as error:
                raise type(error)(str(error), row) from None
            rows.append(box_lists.best(fields, size, self.score_floor, self.max_detections))
        return self._stacked(rows)

    def _stacked(self, rows: Sequence[Label]) -> Label:
        """Network form of predictions: boxes, scores, classes [n] and unknown of each image."""
        room = max([self.max_detections, *(len(fields["scores"]) for fields in rows)])
        out = [self._filled({**f, "crowd": np.zeros(len(f["scores"]), bool)}, f["unknown"], room) for f in rows]
        stacked = {name: np.stack([label[name] for label in out]) for name in out[0]}
        return {**stacked, "scores": uncertain(stacked["scores"])}

    def certainty(self, label: Label) -> Array:
        """Highest score, and the sum of the scores, which is the expected number of objects, [B, 2]."""
        scores = jnp.where(label["valid"], label["scores"].astype(jnp.float32), 0.0)
        return jnp.stack([scores.max(-1), scores.sum(-1)], -1)

    def fuse(self, labels: Sequence[Label]) -> Label:
        """Weighted boxes fusion, see `must.tasks.box_lists.fuse`."""
        rows = [
            box_lists.fuse([{n: v[i] for n, v in one.items()} for one in labels])
            for i in range(len(labels[0]["valid"]))
        ]
        return self._stacked([box_lists.best(row, None, self.score_floor, self.max_detections) for row in rows])

    def stitch(self, parts: Sequence[tuple[Label, Geometry]], size: tuple[int, int]) -> Label:
        """As in the base class; suppression over the boxes of all parts, see `must.tasks.box_lists.stitched`."""
        found = box_lists.best(box_lists.stitched(parts, self.nms_iou), size, self.score_floor, self.max_detections)
        return {name: value[0] for name, value in self._stacked([found]).items()}

    def measure(self, prediction: Label, truth: Label) -> dict[str, np.ndarray]:
        """Which predictions hit a true box at the ten IoU thresholds, of each class the 100 surest of an image (COCO);
        classes unknown to the truth are left out."""
        prediction, truth = ({n: np.asarray(v) for n, v in label.items()} for label in (prediction, truth))
        rows: dict[str, list] = {name: [] for name in ("hit", "miss", "positives")}
        for row in range(len(truth["valid"])):
            found, true = ({n: v[row] for n, v in label.items()} for label in (prediction, truth))
            found, true = (
                {**one, "valid": one["valid"] & true["known"][np.where(one["valid"], one["classes"], 0)]}
                for one in (found, true)
            )
            found["valid"] &= box_lists.place_in_class(found["classes"], found["valid"]) < _MOST
            hit, ignored = bx.match(found, true, _THRESHOLDS, self._shared(found, true))
            rows["hit"].append(hit)
            rows["miss"].append(found["valid"][:, None] & ~hit & ~ignored)
            counted = true["valid"] & ~true["crowd"]
            rows["positives"].append(np.bincount(true["classes"][counted], minlength=len(self.classes)))
        stacked = {name: np.stack(parts) for name, parts in rows.items()}
        return {"scores": prediction["scores"], "classes": prediction["classes"], **stacked}

    def _shared(self, found: Label, true: Label) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Areas that found and true objects share [D, M], and their own [D] and [M]; None: those of the boxes."""
        return None

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """COCO's AP, AP50, AP75 and AR100, 0..1, over the classes that have a true box; all 0 where none has."""
        found = box_lists.of_classes(rows)
        if found is None:
            return {metric.name: 0.0 for metric in self.metrics}
        ap, recall = found  # by IoU threshold
        values = (ap.mean(), ap[0], ap[5], recall.mean())
        return {metric.name: float(value) for metric, value in zip(self.metrics, values, strict=True)}

    def judge(self, prediction: Label, truth: Label) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As in the base class; correct means a hit at IoU 0.5, and what falls to a crowd is no claim."""
        rows = self.measure(*({n: np.asarray(v)[None] for n, v in label.items()} for label in (prediction, truth)))
        hit, miss = (rows[name][0, :, 0] for name in ("hit", "miss"))
        claims = hit | miss
        return np.asarray(prediction["scores"])[claims], hit[claims], np.asarray(prediction["classes"])[claims]

    def items(self, truth: Label) -> np.ndarray:
        """As in the base class; boxes of known classes that are no crowds."""
        classes, counted = np.asarray(truth["classes"]), np.asarray(truth["valid"]) & ~np.asarray(truth["crowd"])
        return np.bincount(classes[counted], minlength=len(self.classes)) * np.asarray(truth["known"])

    def claims(self, label: Label, policy: Policy) -> Claims:
        """As in the base class; of every box."""
        return self._decided(label, policy).where(np.asarray(label["valid"]))

    def _decided(self, label: Label, policy: Policy) -> Claims:
        """Of every place for a box, [M]; a crowd is never taken."""
        found = decide(policy, label["scores"], np.where(label["valid"], label["classes"], 0).astype(np.int64))
        return found._replace(positive=found.positive & ~np.asarray(label["crowd"]))

    def write_labels(self, directory: str, source: Source, name: str, options: Mapping[str, Any]) -> int:
        """coco.json, see `must.tasks.exchange.write_coco`, and further forms, see `must.tasks.box_files`."""
        least, top = options.get("min_score", 0.0), os.path.dirname(directory)
        box_files.write(options.get("boxes", ()), top, source, name, self, min_score=least)
        return exchange.write_coco(directory, source, name, self, min_score=least)

    def constant_guess(self, labels: Sequence[Label]) -> Label:
        """No box at all."""
        return {field: np.zeros_like(value) for field, value in labels[0].items()}

    def draw(self, image: np.ndarray, label: Label, policy: Policy | None = None) -> np.ndarray:
        """Boxes from `draw_floor` up with class and score, crowds thin and nameless; below, how many of each class.

        With a policy: what is taken with its calibrated score, what is ignored dashed and hatched, no others.
        """
        boxes = np.asarray(label["boxes"])
        shown, scores = np.asarray(label["valid"]) & (boxes[:, 2:] > boxes[:, :2]).all(-1), np.asarray(label["scores"])
        ignored = np.zeros(len(boxes), bool)
        if policy is None:
            shown = shown & (scores >= self.draw_floor)
        else:
            state = self._decided(label, policy)
            shown, scores = shown & ~state.negative, np.where(scores == 1, 1.0, state.scores)
            ignored = shown & ~state.positive
        masks = self._outlines(label, image.shape[1])
        return box_lists.draw(image, {**label, "scores": scores}, self.classes, shown, ignored, masks)

    def _outlines(self, label: Label, width: int) -> np.ndarray | None:
        """Masks whose outlines a picture shows, bool [M, H, W]."""
        return None

    def _listed(self, boxes: Array, classes: Array, scores: Array, size: Array, least: float) -> Label:
        """A prediction from candidates: clipped, suppressed by class, the `max_detections` best by falling score.

        Args:
          boxes: [B, K, 4].
          classes: int [B, K].
          scores: [B, K], by falling score.
          size: [B, 2], (height, width) of the frame.
          least: score below which there is no box.

        Returns:
          Label in network form, every class known.
        """
        boxes = jnp.clip(boxes.astype(jnp.float32), 0.0, size[:, None, jnp.array([1, 0, 1, 0])])
        scores = jnp.where((scores >= least) & (bx.area(boxes) > 0), scores, 0.0)
        index, valid = bx.non_maximum_suppression(
            boxes, classes, scores, threshold=self.nms_iou, count=self.max_detections
        )
        found = {"boxes": take(boxes, index), "classes": jnp.take_along_axis(classes, index, 1)}
        found["scores"] = uncertain(jnp.take_along_axis(scores, index, 1))
        found = {name: jnp.where(_expand(valid, value), value, 0) for name, value in found.items()} | {"valid": valid}
        missing = self.max_detections - index.shape[1]
        found = {name: jnp.pad(v, [(0, 0), (0, missing)] + [(0, 0)] * (v.ndim - 2)) for name, v in found.items()}
        found["crowd"] = jnp.zeros_like(found["valid"])
        found["known"] = jnp.ones((scores.shape[0], len(self.classes)), bool)
        return found


@functools.cache  # asked for every row of every batch
def _forms(count: int, classes: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """{field: (shape, type)} of a label in network form with room for `count` boxes."""
    per_box = {"boxes": ((count, 4), np.float32), "classes": ((count,), np.int32), "scores": ((count,), np.float32)}
    return per_box | {"valid": ((count,), np.bool_), "crowd": ((count,), np.bool_), "known": ((classes,), np.bool_)}


def take(array: Array, index: Array) -> Array:
    """array [B, N, ...] at index [B, K]: [B, K, ...]."""
    return jnp.take_along_axis(array, _expand(index, array), 1)


def _expand(array: Array, like: Array) -> Array:
    return array.reshape(array.shape + (1,) * (like.ndim - array.ndim))
