"""Object detection: boxes with a class and a score, from one dense stage.

At each point of a feature pyramid the network predicts one class-agnostic quality q, class logits z and the distances
to the four sides of a box; the score of class c is sigmoid(q) * softmax(z)_c. One quality plus class probabilities
learns boxes and classes from few images, where one heat map per class learns only boxes.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from must.core import boxes as bx
from must.core.types import Array, Features, Label, PerExample, UserError
from must.models.heads import read_levels
from must.tasks import points as points_of
from must.tasks.box_labels import BoxLabels, take


class PointHead(nn.Module):
    """A dense head whose outputs also say where its points are: "points" [B, L, 3] (x, y, stride), "size" [B, 2]."""

    head: nn.Module
    strides: tuple[int, ...]

    @nn.compact
    def __call__(self, features: Features, *, train: bool, image_size: tuple[int, int]) -> dict[str, Array]:
        features = features._replace(pyramid=read_levels(features.pyramid, self.strides))
        outputs = self.head(features, train=train, image_size=image_size)
        batch = outputs["quality"].shape[0]
        points = bx.point_grid(image_size, self.strides)
        return {
            **outputs,
            "points": jnp.broadcast_to(jnp.asarray(points), (batch, *points.shape)),
            "size": jnp.broadcast_to(jnp.asarray(image_size, jnp.float32), (batch, 2)),
        }


@dataclasses.dataclass(frozen=True)
class Detection(BoxLabels):
    """Boxes of `classes`, see `BoxLabels`.

    Attributes:
      strides: levels of the pyramid that predict, fine to coarse, pixels.
      width: channels of the head's towers.
      depth: convolutions of each tower.
      candidates: predictions of one image that go into suppression.
      scale: root area of the boxes that a level learns, in strides.
      radius: points within this many strides of a box's center learn it.
      gamma: exponent of the focal factor.
    """

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    width: int = 256
    depth: int = 4
    candidates: int = 200
    scale: float = 4.0
    radius: float = 1.5
    gamma: float = 2.0

    terms: ClassVar[tuple[str, ...]] = ("score", "class", "box")
    pdf_terms: ClassVar[tuple[str, ...]] = ("pdf_class", "pdf_box")

    def __post_init__(self):
        super().__post_init__()
        if not self.strides or list(self.strides) != sorted(set(self.strides)):
            raise UserError(f"detection: strides {self.strides} are not increasing")

    def head(self) -> nn.Module:
        from must.models.heads import DetectionHead

        return PointHead(DetectionHead(len(self.classes), width=self.width, depth=self.depth), self.strides)

    def loss(self, outputs: dict[str, Array], target: dict[str, Array]) -> dict[str, PerExample]:
        """Terms "score", "class" and "box", each a sum over points with the number of positive points as norm.

        score: |t - p|^gamma BCE(p, t) with t the IoU of the predicted box with its own at positives, 0 elsewhere
            (quality focal loss, Li et al. 2020, eq. 4; proper: lowest at p = t). p is the probability of any known
            class; points inside an ignored box are left out.
        class: cross-entropy at positives.   box: 1 - GIoU at positives.
        """
        quality, logits, distances, points = (
            outputs[name].astype(jnp.float32) for name in ("quality", "class", "distances", "points")
        )
        assign = partial(bx.assign_points, strides=self.strides, scale=self.scale, radius=self.radius)
        index, positive = jax.vmap(assign)(points, target["boxes"], target["positive"])
        boxes = jnp.take_along_axis(target["boxes"], index[..., None], 1)
        classes = jnp.take_along_axis(target["classes"], index, 1)
        iou, giou = bx.overlaps(bx.from_distances(points, distances), boxes)
        aim = jax.lax.stop_gradient(jnp.where(positive, iou, 0.0))

        log_class = jax.nn.log_softmax(logits)
        # At a positive the class is settled, so its score speaks of the quality alone.
        counted = target["known"][:, None, :] | positive[..., None]
        log_p, log_not_p = points_of.log_known(quality, log_class, counted)
        score = jnp.abs(aim - jnp.exp(log_p)) ** self.gamma * -(aim * log_p + (1.0 - aim) * log_not_p)
        ignored = points_of.inside_any(points, target["boxes"], target["ignored"]) & ~positive
        log_likelihood = jnp.take_along_axis(log_class, classes[..., None], -1)[..., 0]
        norm = positive.sum(-1).astype(jnp.float32)
        return {
            "score": PerExample(jnp.where(ignored, 0.0, score).sum(-1), norm),
            "class": PerExample(jnp.where(positive, -log_likelihood, 0.0).sum(-1), norm),
            "box": PerExample(jnp.where(positive, 1.0 - giou, 0.0).sum(-1), norm),
        }

    def distill_loss(self, outputs: dict[str, Array], teacher: dict[str, Array]) -> dict[str, PerExample]:
        """Terms "soft_score", "soft_class" and "soft_box", see `must.tasks.points.soft`."""
        self._check_alike(outputs, teacher)
        return points_of.soft(outputs, teacher, self.gamma)

    def disagreement(
        self, outputs: Any, teacher: Any, shapes: dict[int, tuple[int, int]]
    ) -> tuple[dict[int, Array], dict[str, PerExample]]:
        """See the base class and `must.tasks.points.disagreement`."""
        self._check_alike(outputs, teacher)
        where, terms = points_of.disagreement(outputs, teacher)
        return points_of.by_level(where, shapes, self.strides), terms

    def _check_alike(self, outputs: dict[str, Array], teacher: dict[str, Array]) -> None:
        if outputs["class"].shape != teacher["class"].shape:
            shapes = outputs["class"].shape[1:], teacher["class"].shape[1:]
            raise ValueError(
                f"detection: student and teacher have {shapes} points and classes: give both the same strides"
            )

    def predict(self, outputs: dict[str, Array]) -> Label:
        """The `max_detections` best boxes after class-wise suppression, by falling score; every class is known."""
        quality, logits = outputs["quality"].astype(jnp.float32), outputs["class"].astype(jnp.float32)
        count = logits.shape[-1]
        quality = jax.nn.sigmoid(quality)
        best, where = jax.lax.top_k(quality, min(self.candidates, quality.shape[-1]))
        scores = best[..., None] * jax.nn.softmax(take(logits, where))
        scores, flat = jax.lax.top_k(scores.reshape(scores.shape[0], -1), min(self.candidates, where.shape[-1] * count))
        classes, where = flat % count, jnp.take_along_axis(where, flat // count, 1)
        boxes = bx.from_distances(take(outputs["points"], where), take(outputs["distances"], where))
        return self._listed(boxes, classes, scores, outputs["size"], self.score_floor)

    def hflip_outputs(self, outputs: dict[str, Array]) -> dict[str, Array]:
        """As in the base class; exact also where the width is not a multiple of the stride and the grid overhangs."""
        points, distances = outputs["points"], outputs["distances"]
        x, stride = points[..., 0], points[..., 2]
        extent = jnp.zeros_like(x)  # width of the point's level, which may overhang the image
        for level in self.strides:
            last = jnp.where(stride == level, x, 0.0).max(-1, keepdims=True)
            extent = jnp.where(stride == level, last + level / 2, extent)
        index = jnp.arange(x.shape[1]) + jnp.round((extent - 2 * x) / stride).astype(jnp.int32)
        overhang = take(extent - outputs["size"][:, 1:], index)
        left, top, right, bottom = jnp.moveaxis(take(distances, index), -1, 0)
        swapped = jnp.stack([right + overhang, top, left - overhang, bottom], -1).astype(distances.dtype)
        quality, logits = take(outputs["quality"], index), take(outputs["class"], index)
        return {**outputs, "quality": quality, "class": logits, "distances": swapped}
