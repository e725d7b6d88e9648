"""Instance masks: the two-stage detector with a mask of every box (Mask R-CNN, He et al. 2017)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from must.core import boxes as bx
from must.core import labels as forms
from must.core import losses
from must.core.types import Array, ArraySpec, Geometry, Label, LabelError, PerExample, Policy, Source, UserError
from must.data.geometry import restore_map, transform_map
from must.tasks import box_lists, exchange
from must.tasks.base import Task
from must.tasks.two_stage import TwoStage

_HIT = 0.5  # IoU of boxes from which on a mask is learned


@dataclasses.dataclass(frozen=True)
class Instances(TwoStage):
    """Boxes of `classes`, each with a mask, see `TwoStage`.

    A mask is predicted as 28 x 28 probabilities in its box and becomes pixels of the network's frame, on or off at
    one half; a record holds pixels of the original, as run lengths, of ground truth exactly. Metrics are those of
    masks. Predictions for tiles and of several teachers are not merged.

    Attributes:
      mask_width: channels of the mask branch.
      mask_depth: 3x3 convolutions of it.
    """

    mask_width: int = 256
    mask_depth: int = 4

    terms: ClassVar[tuple[str, ...]] = (*TwoStage.terms, "mask")
    outputs: ClassVar[Mapping[str, str]] = {
        **box_lists.OUTPUTS,
        "masks": "pixels of the frame that show the object, rows packed to bits, the first one highest",
    }
    paste = Task.paste  # pieces of masks would need pieces of boxes
    fuse = Task.fuse
    stitch = Task.stitch

    def head(self) -> Any:
        from must.models.regions import MaskedRegions

        find = lambda outputs: self._found(outputs, 0.0)["boxes"]  # noqa: E731
        return MaskedRegions(super().head(), find, self.mask_width, self.mask_depth)

    def label_spec(self) -> dict[str, ArraySpec]:
        doc = "run lengths of every mask over the columns of the original, beginning with zeros (COCO), one by one"
        return {
            **super().label_spec(),
            "counts": ArraySpec((None,), "uint32", "zlib", doc),
            "runs": ArraySpec((None,), "uint32", doc="number of run lengths of each box's mask"),
        }

    def network_spec(self, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (self.max_boxes, size[0], -(-size[1] // 8))
        return {**super().network_spec(size), "masks": jax.ShapeDtypeStruct(shape, np.uint8)}

    def _more(self, label: Label, geometry: Geometry) -> Label:
        """The masks, moved with the boxes, nearest neighbor."""
        if "runs" not in label:
            raise ValueError("boxes without masks; sources of kind 'coco' have them with tasks=('instances',)")
        masks = forms.masks_of(label, geometry.source_size)
        if len(masks) != len(label["boxes"]):
            raise ValueError(f"{len(masks)} masks of {len(label['boxes'])} boxes")
        moved = transform_map(np.moveaxis(masks, 0, -1), geometry, False)
        return {"masks": np.packbits(np.moveaxis(moved, -1, 0), axis=-1)}

    def restore(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class; masks at the resolution of the original, exact where the frame's is as high."""
        _, keep = self._stored(label, geometry)
        masks = np.unpackbits(np.asarray(label["masks"])[keep], axis=-1, count=geometry.size[1]).astype(bool)
        moved = (restore_map(mask, geometry, geometry.source_size) for mask in masks)
        return forms.with_masks(super().restore(label, geometry), moved)

    def target(self, label: Label, policy: Policy) -> dict[str, Array]:
        """As in the base class, with the masks."""
        return {**super().target(label, policy), "masks": label["masks"]}

    def loss(self, outputs: dict[str, Array], target: dict[str, Array]) -> dict[str, PerExample]:
        """The terms of the base class, and "mask": binary cross-entropy, the mean over the pixels of each found box
        that has an IoU of .5 with an object, whose mask is cut out there; over the number of such boxes."""
        terms = super().loss(outputs, target)
        found, logits = outputs["found"], outputs["masks"]
        index, hit, _ = bx.assign_overlaps(found, target["boxes"], target["positive"], least=_HIT)
        hit &= bx.area(found) > 0
        aim = jax.lax.map(lambda row: _cut(*row, logits.shape[-1]), (target["masks"], found, index))
        value = losses.binary_soft_focal(logits, aim, 0.0).mean((2, 3))
        sure = jnp.take_along_axis(target.get("sure", jnp.ones(target["positive"].shape)), index, 1)
        value = jnp.where(hit, value * sure, 0.0).sum(-1)
        return {**terms, "mask": PerExample(value, hit.sum(-1).astype(jnp.float32))}

    def predict(self, outputs: dict[str, Array]) -> Label:
        """As in the base class, with the masks in the network's frame, packed to bits."""
        found = super().predict(outputs)
        size = outputs["frame"].shape[1:3]
        masks = jax.lax.map(lambda row: _drawn(*row, size), (jax.nn.sigmoid(outputs["masks"]), found["boxes"]))
        return {**found, "masks": jnp.where(found["valid"][..., None, None], masks, 0).astype(jnp.uint8)}

    def from_external(self, predicted: Sequence[Mapping[str, Array]], size: tuple[int, int]) -> Label:
        """As in the base class, with "masks" [n, H, W] or [n, 1, H, W], bool or probabilities (torchvision)."""
        rows = []
        for row, one in enumerate(predicted):
            try:
                fields = box_lists.checked(one, len(self.classes))
                if "masks" not in one:
                    raise LabelError("masks is missing")
                count = len(fields["scores"])
                masks = np.asarray(one["masks"])
                if masks.size != count * size[0] * size[1] or masks.shape[-2:] not in (tuple(size), (0, 0)):
                    raise LabelError(f"masks is {masks.dtype} {masks.shape}, not [{count}, {size[0]}, {size[1]}]")
            except LabelError as error:
                raise type(error)(str(error), row) from None
            fields["masks"] = np.packbits(masks.reshape(count, *size) >= 0.5, axis=-1)
            rows.append(box_lists.best(fields, size, self.score_floor, self.max_detections))
        return self._stacked(rows)

    def hflip_outputs(self, outputs: dict[str, Array]) -> dict[str, Array]:
        """As in the base class."""
        turned, found = super().hflip_outputs(outputs), outputs["found"]
        x0, y0, x1, y1 = jnp.moveaxis(found, -1, 0)
        width = outputs["size"][:, 1, None]
        moved = jnp.stack([width - x1, y0, width - x0, y1], -1)
        return {**turned, "found": moved, "masks": outputs["masks"][..., ::-1]}

    def both_views(self, outputs: dict[str, Array], mirrored: dict[str, Array]) -> dict[str, Array]:
        """Refused: masks are of the boxes of one view."""
        raise UserError("instances: masks of a picture and its mirror image cannot be averaged; set hflip_tta=False")

    def _shared(self, found: Label, true: Label) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As in the base class, in pixels of the masks."""
        sides = [np.asarray(one["masks"]) for one in (found, true)]
        flat = [np.unpackbits(one.reshape(len(one), -1), axis=-1).astype(np.float32) for one in sides]
        return flat[0] @ flat[1].T, flat[0].sum(-1), flat[1].sum(-1)

    def write_labels(self, directory: str, source: Source, name: str, options: Mapping[str, Any]) -> int:
        """coco.json with the masks as uncompressed run lengths, see `must.tasks.exchange.write_coco`."""
        return exchange.write_coco(
            directory, source, name, self, min_score=options.get("min_score", 0.0), masks=forms.masks_of
        )

    def _outlines(self, label: Label, width: int) -> np.ndarray:
        return np.unpackbits(np.asarray(label["masks"]), axis=-1, count=width).astype(bool)


def _cut(masks: Array, boxes: Array, index: Array, cells: int) -> Array:
    """Masks packed to bits [M, h, w / 8] cut to boxes [K, 4] of objects [K]: 0 or 1, [K, cells, cells]."""
    from must.models.regions import cell_weights

    bits = jnp.unpackbits(masks, axis=-1).astype(jnp.float32)
    rows = cell_weights(boxes[:, 1], boxes[:, 3], bits.shape[1], cells)
    columns = cell_weights(boxes[:, 0], boxes[:, 2], bits.shape[2], cells)
    across = jnp.einsum("ksh,khw->ksw", rows, bits[index])
    return (jnp.einsum("ktw,ksw->kst", columns, across) >= 0.5).astype(jnp.float32)


def _drawn(probabilities: Array, boxes: Array, size: tuple[int, int]) -> Array:
    """Probabilities in boxes [M, s, s] as pixels of a frame that are more likely on, packed to bits [M, h, w / 8]."""
    cells = probabilities.shape[-1]
    sides = []
    for axis, count in ((1, size[0]), (0, size[1])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        center = jnp.arange(count) + 0.5
        at = jnp.clip((center - low) / jnp.maximum(high - low, 1e-3) * cells - 0.5, 0, cells - 1)
        near = jnp.maximum(0.0, 1.0 - jnp.abs(at[..., None] - jnp.arange(cells)))
        sides.append(near * ((center >= low) & (center < high))[..., None])  # [M, count, s]
    likely = jnp.einsum("mxt,mys,mst->myx", sides[1], sides[0], probabilities)
    return jnp.packbits(likely >= 0.5, axis=-1)
