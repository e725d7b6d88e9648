"""Object detection in two stages: region proposals, then a class and a box for each (Faster R-CNN, Ren et al. 2015).

On a feature pyramid (Lin et al. 2017), with ROI align (He et al. 2017). Labels, files and metrics are those of
`must.tasks.detection`. Proposals are found by the network alone, so that all shapes are static and a step is compiled
once. In place of random samples of anchors and proposals both stages learn from all of them: anchors by the focal
loss, which keeps the many easy ones from mattering (Lin et al. 2017, "Focal Loss"), proposals by cross-entropy over the
fixed number that is left after suppression.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from must.core import boxes as bx
from must.core import losses
from must.core.types import Array, Label, PerExample, UserError
from must.tasks.box_labels import BoxLabels, take

_FAR, _NEAR = 0.3, 0.7  # IoU below which an anchor is background, from which on it is an object
_HIT = 0.5  # IoU from which on a proposal is an object; share of a box in an ignored region that is ignored with it
_BEND = 1 / 9  # of the smooth L1 loss of anchors


@dataclasses.dataclass(frozen=True)
class TwoStage(BoxLabels):
    """Boxes of `classes` by region proposals, see `BoxLabels`.

    Attributes:
      strides: levels of the pyramid that propose and are read, each twice the one before, pixels.
      width: channels of the proposals' convolution.
      hidden: units of each of the box head's two layers.
      candidates: best anchors of each level that go into suppression.
      proposals: regions of one image that the second stage looks at.
      proposal_iou: of two proposals of a level that overlap by more, the less likely one goes.
      anchor_scale: root area of a level's anchors, in strides.
      scale: root area of the boxes that a level is read for, in strides; from twice that on it is the next one.
      gamma: exponent of the focal factor of the proposals' score.
    """

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    width: int = 256
    hidden: int = 1024
    candidates: int = 400
    proposals: int = 256
    proposal_iou: float = 0.7
    anchor_scale: float = 4.0
    scale: float = 14.0
    gamma: float = 2.0

    terms: ClassVar[tuple[str, ...]] = ("objectness", "proposal", "class", "box")

    def __post_init__(self):
        super().__post_init__()
        if not self.strides or any(b != 2 * a for a, b in zip(self.strides, self.strides[1:], strict=False)):
            raise UserError(f"{type(self).__name__.lower()}: strides {self.strides} do not double")
        for name in ("hidden", "proposals", "anchor_scale", "scale"):
            if getattr(self, name) <= 0:
                raise UserError(f"{type(self).__name__.lower()}: {name}={getattr(self, name)}: must be positive")

    def head(self) -> Any:
        from must.models.regions import RegionHead

        return RegionHead(
            len(self.classes),
            self.strides,
            width=self.width,
            hidden=self.hidden,
            candidates=self.candidates,
            proposals=self.proposals,
            overlap=self.proposal_iou,
            anchor_scale=self.anchor_scale,
            scale=self.scale,
        )

    def loss(self, outputs: dict[str, Array], target: dict[str, Array]) -> dict[str, PerExample]:
        """Four terms; "sure" of a target is how far its boxes are believed, by default wholly.

        objectness: focal binary cross-entropy of anchors, 1 where the IoU with an object is at least .7 or the largest
            one of the object, 0 below .3; over their number. Background counts by the share of known classes, since
            an object of an unknown one may be there.
        proposal: smooth L1 of the deltas of anchors with an object, over their number.
        class: cross-entropy of proposals, those with an IoU below .5 with every object being background or of an
            unknown class; over the number of proposals.
        box: smooth L1 of the deltas of proposals with an object, over their number.
        Anchors and proposals that an ignored region covers by half teach nothing, unless they have an object.
        """
        boxes, positive = target["boxes"], target["positive"]
        sure = target.get("sure", jnp.ones(positive.shape))
        known = target["known"].astype(jnp.float32)
        aside = lambda places, hit: ~hit & (bx.covered(places, boxes, target["ignored"]) >= _HIT)  # noqa: E731

        anchors = outputs["anchors"]
        index, hit, best = bx.assign_overlaps(anchors, boxes, positive, least=_NEAR, every=True)
        belief = jnp.take_along_axis(sure, index, 1)
        used = hit | ((best < _FAR) & ~aside(anchors, hit))
        focal = losses.binary_soft_focal(outputs["objectness"], jnp.where(hit, belief, 0.0), self.gamma)
        focal = jnp.where(hit, focal, focal * known.mean(-1, keepdims=True))
        apart = outputs["shifts"] - bx.encode(take(boxes, index), anchors)
        terms = {
            "objectness": PerExample(jnp.where(used, focal, 0.0).sum(-1), hit.sum(-1).astype(jnp.float32)),
            "proposal": _boxes(apart, hit, belief, _BEND),
        }
        proposals, present = outputs["proposals"], outputs["present"]
        index, hit, _ = bx.assign_overlaps(proposals, boxes, positive, least=_HIT)
        hit, belief = hit & present, jnp.take_along_axis(sure, index, 1)
        used = present & ~aside(proposals, hit)
        value = self._class_loss(outputs["class"], jnp.take_along_axis(target["classes"], index, 1), hit, belief, known)
        apart = outputs["deltas"] - bx.encode(take(boxes, index), proposals) * _delta_scales()
        terms["class"] = PerExample(jnp.where(used, value, 0.0).sum(-1), used.sum(-1).astype(jnp.float32))
        terms["box"] = _boxes(apart, hit, belief, 1.0)
        return terms

    def _class_loss(self, logits: Array, classes: Array, hit: Array, belief: Array, known: Array) -> Array:
        """[B, K]; of background, that it is none of the known classes (Jin and Ghahramani 2002)."""
        logits = logits.astype(jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        of_class = jnp.take_along_axis(log_p, classes[..., None], -1)[..., 0]
        other = jnp.concatenate([known < 0.5, jnp.ones((len(known), 1), bool)], -1)[:, None, :]
        other &= ~(hit[..., None] & (jnp.arange(logits.shape[-1]) == classes[..., None]))
        nothing = jax.nn.logsumexp(jnp.where(other, log_p, -1e9), -1)
        share = jnp.where(hit, belief, 0.0)
        return -(share * of_class + (1.0 - share) * nothing)

    def distill_loss(self, outputs: dict[str, Array], teacher: dict[str, Array]) -> dict[str, PerExample]:
        """The loss on the boxes that the teacher finds, each believed by its score: an IoU with one of score s is its
        class with probability s, else background."""
        found = self.predict(jax.lax.stop_gradient(teacher))
        target = {name: value for name, value in found.items() if name not in ("valid", "crowd", "scores")}
        target |= {"positive": found["valid"], "ignored": found["crowd"], "sure": found["scores"]}
        return {f"soft_{name}": term for name, term in self.loss(outputs, target).items()}

    def predict(self, outputs: dict[str, Array]) -> Label:
        """The `max_detections` best boxes after class-wise suppression, by falling score; every class is known."""
        return self._found(outputs, self.score_floor)

    def _found(self, outputs: dict[str, Array], least: float) -> Label:
        """The prediction with another floor; the boxes of a higher one come first."""
        boxes = bx.decode(outputs["deltas"].astype(jnp.float32) / _delta_scales(), outputs["proposals"])
        scores = jax.nn.softmax(outputs["class"].astype(jnp.float32))[..., :-1] * outputs["present"][..., None]
        count = scores.shape[-1]
        scores, flat = jax.lax.top_k(scores.reshape(scores.shape[0], -1), min(self.candidates, scores[0].size))
        classes, where = flat % count, flat // count
        return self._listed(take(boxes, where), classes, scores, outputs["size"], least)

    def hflip_outputs(self, outputs: dict[str, Array]) -> dict[str, Array]:
        """As in the base class; anchors and proposals stay in their order and move with what is said of them."""
        width = outputs["size"][:, 1, None, None]
        mirrored = {
            name: jnp.concatenate([width - x[..., 2:3], x[..., 1:2], width - x[..., :1], x[..., 3:]], -1)
            for name, x in ((name, outputs[name]) for name in ("anchors", "proposals"))
        }
        turned = {name: outputs[name] * jnp.array([-1.0, 1.0, 1.0, 1.0]) for name in ("shifts", "deltas")}
        return {**outputs, **mirrored, **turned}

    def both_views(self, outputs: dict[str, Array], mirrored: dict[str, Array]) -> dict[str, Array]:
        """The proposals of both: their boxes meet in suppression, and the surer one of two that agree stays."""
        names = ("proposals", "present", "class", "deltas")
        return {**outputs, **{name: jnp.concatenate([outputs[name], mirrored[name]], 1) for name in names}}


def _delta_scales() -> Array:
    from must.models.regions import DELTA_SCALES

    return jnp.array(DELTA_SCALES)


def _boxes(apart: Array, hit: Array, belief: Array, bend: float) -> PerExample:
    """Smooth L1 of deltas [B, N, 4] where there is an object, over their number."""
    value = losses.smooth_l1(jnp.where(hit[..., None], apart, 0.0), bend).sum(-1) * belief
    return PerExample(jnp.where(hit, value, 0.0).sum(-1), hit.sum(-1).astype(jnp.float32))
