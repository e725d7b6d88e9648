"""Semantic segmentation with soft or hard labels per pixel."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from must.core import losses
from must.core.labels import numbered
from must.core.types import (
    Array,
    ArraySpec,
    Geometry,
    Label,
    LabelError,
    Metric,
    NotFinite,
    PerExample,
    Policy,
    Source,
    UserError,
)
from must.data.geometry import EVERY_PIXEL, Cells, restore_map, transform_map
from must.tasks import dense, drawing, exchange, mask_files
from must.tasks.base import Task
from must.tasks.classification import among, distribution, known_classes, only_known, spread, unknown_classes
from must.tasks.label_states import Claims, codes, decide_codes, states


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
    """One class of `classes` per pixel.

    Probabilities travel as uint8, p = code / 255: within 1/510 of the truth, online and in records alike; those of a
    teacher end at 254/255, since 1 is the truth's.

    Attributes:
      classes: names, in the order of the ids.
      top_k: probabilities listed per pixel; 1 gives hard labels with a confidence, more give soft labels.
      head_stride: at which the head runs, pixels.
      shuffle: sub-pixels that the head predicts per axis.
      width: channels of the head's convolutions.
      depth: number of the head's convolutions.
      stride: of the stored prediction relative to the original image.
      ignore: id of pixels without a label.
    """

    classes: tuple[str, ...]
    top_k: int = 1
    head_stride: int = 4
    shuffle: int = 1
    width: int = 128
    depth: int = 3
    stride: int = 4
    ignore: int = 255

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("mIoU", "", True), Metric("pixel_accuracy", "", True))
    outputs: ClassVar[Mapping[str, str]] = {
        "ids": "class ids of each pixel of the frame, most probable first",
        "probs": "their probabilities * 255",
    }
    terms: ClassVar[tuple[str, ...]] = ("segmentation",)
    pdf_terms: ClassVar[tuple[str, ...]] = ("pdf_class",)
    loss_scale: ClassVar[float] = 4.0
    label_policy: ClassVar[Mapping[str, Any]] = {"positive": 0.5}
    optional: ClassVar[tuple[str, ...]] = ("known",)

    def __post_init__(self):
        super().__post_init__()
        dense.output_stride("segmentation", self.head_stride, self.shuffle)
        if not len(self.classes) <= self.ignore <= 255:
            raise UserError(f"segmentation: {len(self.classes)} classes and ignore id {self.ignore} do not fit uint8")
        if not 1 <= self.top_k <= len(self.classes):
            raise UserError(f"segmentation: top_k {self.top_k} with {len(self.classes)} classes")

    def head(self) -> Any:
        from must.models.heads import DenseHead

        return DenseHead(len(self.classes), self.head_stride, self.width, self.depth, self.shuffle)

    def label_spec(self) -> dict[str, ArraySpec]:
        shape, encoding = (None, None, self.top_k), "png" if self.top_k == 1 else "zlib"
        names = numbered(self.classes)
        return {
            "ids": ArraySpec(
                shape, "uint8", encoding, f"class ids, most probable first: {names}, {self.ignore} no label"
            ),
            "probs": ArraySpec(shape, "uint8", encoding, "their probabilities * 255"),
            "unknown": ArraySpec((None,), "uint16", doc="ids of the classes that this source does not know"),
        }

    def check_frame(self, size: tuple[int, int]) -> None:
        dense.check_size("segmentation", size, self._output_stride)

    def network_spec(self, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        spec = jax.ShapeDtypeStruct((*size, self.top_k), np.uint8)
        return {"ids": spec, "probs": spec, "known": jax.ShapeDtypeStruct((len(self.classes),), np.bool_)}

    @property
    def _output_stride(self) -> int:
        return self.head_stride // self.shuffle

    def transform(self, label: Label, geometry: Geometry, cells: Cells = EVERY_PIXEL) -> Label:
        """As in the base class, made at `cells`; labels with fewer or more classes per pixel than `top_k` are padded
        or cut."""
        ids, probs = (np.asarray(label[name]) for name in ("ids", "probs"))
        if ids.shape != probs.shape or ids.ndim not in (2, 3):
            raise ValueError(f"ids of shape {ids.shape} with probs of shape {probs.shape}")
        wrong = (ids >= len(self.classes)) & (ids != self.ignore)
        if wrong.any():
            raise ValueError(f"class id {ids[wrong][0]} with {len(self.classes)} classes")
        out = {"known": known_classes(label, len(self.classes))}
        for name, array, fill in (("ids", ids, self.ignore), ("probs", probs, 0)):
            array = array.reshape(*array.shape[:2], -1)[..., : self.top_k].astype(np.uint8, copy=False)
            moved = transform_map(array, geometry, fill, cells)
            if moved.shape[-1] < self.top_k:
                rest = np.full((*moved.shape[:2], self.top_k - moved.shape[-1]), fill, np.uint8)
                moved = np.concatenate([moved, rest], -1)
            out[name] = moved
        return out

    def at_outputs(self, label: Label, geometry: Geometry) -> Label:
        return self.transform(label, geometry, Cells(self._output_stride))

    def paste(self, label: Label | None, other: Label | None, window: tuple[int, int, int, int]) -> Label:
        """As in the base class; known are the classes that both sources know, pixels of other classes are ignored."""
        out = dense.pasted(label, other, window, {"ids": self.ignore, "probs": 0})
        parts = [part["known"] for part in (label, other) if part is not None]
        known = np.logical_and.reduce(parts)
        if not known.all():
            learned = np.append(known, np.zeros(256 - len(known), bool))  # by id, `ignore` among them
            out["ids"][~learned[out["ids"][..., 0]]] = self.ignore
        return {**out, "known": known}

    def restore(self, label: Label, geometry: Geometry) -> Label:
        """Nearest pixels at 1 / `stride` of the original's size; nothing is rounded."""
        shape = dense.stored_shape(geometry, self.stride)
        maps = {name: restore_map(np.asarray(label[name]), geometry, shape) for name in ("ids", "probs")}
        return {**maps, "unknown": unknown_classes(label)}

    def target(self, label: Label, policy: Policy) -> dict[str, Array]:
        """What each pixel of the output's resolution teaches, by the state of each class.

        Returns:
          ids, probs: [B, h', w', K], probabilities 0..1.
          used: bool [B, h', w'], the first class is positive.
          candidates: bool [B, h', w', C], the classes that are not negative, where none is positive but some are
            negative: the class is one of them. Elsewhere all False. An unlisted class may have as much as the last
            listed one, or all that the listed ones leave, if that is less.
          known: bool [B, 1, 1, C].
        """
        count = len(self.classes)
        stride = dense.label_stride(label, self._output_stride)
        ids = dense.sample(label["ids"], stride).astype(jnp.int32)
        probs = dense.sample(label["probs"], stride).astype(jnp.float32) / 255.0
        listed, labeled = jnp.minimum(ids, count - 1), ids[..., 0] != self.ignore
        state = states(policy, probs, listed)
        used = labeled & state.positive[..., 0]
        most = jnp.minimum(probs[..., -1], 1.0 - probs.sum(-1))
        every = jnp.arange(count)
        negative = states(policy, most[..., None], every).negative
        for k in range(self.top_k):
            negative = jnp.where(ids[..., k, None] == every, state.negative[..., k, None], negative)
        known = jnp.broadcast_to(label.get("known", np.ones((1, count), bool)), (len(ids), count))[:, None, None, :]
        candidates = known & ~negative
        doubtful = labeled & ~used & candidates.any(-1) & (known & negative).any(-1)
        return {
            "ids": ids,
            "probs": probs,
            "used": used,
            "candidates": candidates & doubtful[..., None],
            "known": known,
        }

    def loss(self, outputs: Array, target: dict[str, Array]) -> dict[str, PerExample]:
        """Term "segmentation": cross-entropy, or -log P(one of the candidates), summed over the pixels with a state.

        With one class per pixel the target is that class; with more it is the listed probabilities, and what they leave
        of 1 evenly over the other known classes.
        """
        ids, probs, used, known = target["ids"], target["probs"], target["used"], target["known"]
        doubtful = target["candidates"].any(-1)
        if self.top_k == 1:
            aim = jax.nn.one_hot(ids[..., 0], len(self.classes))
        else:
            aim = spread(ids, probs, jnp.maximum(0.0, 1.0 - probs.sum(-1)), len(self.classes)) * known
            aim = aim / jnp.maximum(aim.sum(-1, keepdims=True), 1e-12)
        logits = jnp.where((used | doubtful)[..., None], outputs, 0.0).astype(jnp.float32)
        value = losses.soft_cross_entropy(only_known(logits, known), aim)
        partly = among(logits, jnp.where(doubtful[..., None], target["candidates"], known), known)
        value = jnp.where(used, value, jnp.where(doubtful, partly, 0.0)).sum((1, 2))
        return {"segmentation": PerExample(value, (used | doubtful).sum((1, 2)).astype(jnp.float32))}

    def distill_loss(self, outputs: Array, teacher: Array) -> dict[str, PerExample]:
        """Term "soft_segmentation": KL(teacher || student) over all classes, summed over the pixels of the output."""
        value = losses.kl_divergence(teacher, outputs).sum((1, 2))
        return {"soft_segmentation": PerExample(value, _pixels(outputs))}

    def disagreement(
        self, outputs: Any, teacher: Any, shapes: dict[int, tuple[int, int]]
    ) -> tuple[dict[int, Array], dict[str, PerExample]]:
        """As in the base class, with D_c = (t_c - s_c)^2 per pixel; term "pdf_class": mean of sum_c D BCE(s, t)."""
        prediction, aim = jax.nn.softmax(outputs), jax.lax.stop_gradient(jax.nn.softmax(teacher))
        differ = jax.lax.stop_gradient((aim - prediction) ** 2)
        bounded = jnp.clip(prediction, 1e-6, 1.0 - 1e-6)
        loss = differ * -(aim * jnp.log(bounded) + (1.0 - aim) * jnp.log1p(-bounded))
        where = jnp.sqrt(differ.sum(-1))
        found = {stride: dense.to_shape(where, shape) for stride, shape in shapes.items()}
        return found, {"pdf_class": PerExample(loss.sum((1, 2, 3)), _pixels(outputs))}

    def predict(self, outputs: Array) -> Label:
        """The `top_k` classes of the probabilities, enlarged bilinearly to the frame."""
        probs = dense.enlarge(jax.nn.softmax(outputs.astype(jnp.float32)), self._output_stride)
        if self.top_k == 1:  # much faster than top_k
            best, ids = jnp.max(probs, -1, keepdims=True), jnp.argmax(probs, -1, keepdims=True)
        else:
            best, ids = jax.lax.top_k(probs, self.top_k)
        return {"ids": ids.astype(jnp.uint8), "probs": codes(best)}

    def from_external(self, prediction: Array | tuple[Array, Array], size: tuple[int, int]) -> Label:
        """Probabilities [B, h, w, C], enlarged bilinearly; or class ids [B, h, w] and confidences in 0..1, the nearest.

        h, w: any resolution, the map covers the frame evenly.
        """
        if isinstance(prediction, tuple):
            return self._adopt_ids(*prediction, size)
        probs = distribution(prediction, ("B", "h", "w"), len(self.classes))
        ids, found = (np.empty((len(probs), *size, self.top_k), np.uint8) for _ in range(2))
        for image, map_ in enumerate(probs):
            for rows, values in dense.bands(map_, size):
                ids[image, rows], found[image, rows] = _best(values, self.top_k)
        return {"ids": ids, "probs": found}

    def _adopt_ids(self, ids: Array, confidence: Array, size: tuple[int, int]) -> Label:
        ids, confidence = np.asarray(ids), np.asarray(confidence)
        if ids.ndim != 3 or ids.dtype.kind not in "iu":
            raise LabelError(f"ids is {ids.dtype} {ids.shape}, not integers [B, h, w]")
        if confidence.shape != ids.shape or confidence.dtype.kind != "f":
            raise LabelError(f"probs is {confidence.dtype} {confidence.shape}, not floats {ids.shape}")
        labeled = ids != self.ignore
        wrong = labeled & ((ids < 0) | (ids >= len(self.classes)))
        if wrong.any():
            row = int(np.nonzero(wrong)[0][0])
            raise LabelError(f"ids holds class id {ids[wrong][0]} with {len(self.classes)} classes", row)
        wrong = labeled & ~((confidence >= 0) & (confidence <= 1))
        if wrong.any():
            row = int(np.nonzero(wrong)[0][0])
            if not np.isfinite(confidence[row]).all():
                raise NotFinite("probs is not finite", row)
            raise LabelError(f"probs holds a confidence of {confidence[wrong][0]:.4g}", row)
        coded = codes(np.where(labeled, confidence, 0.0))
        out = {}
        for name, maps, fill in (("ids", ids, self.ignore), ("probs", coded, 0)):
            out[name] = np.full((len(ids), *size, self.top_k), fill, np.uint8)
            out[name][..., 0] = dense.nearest(maps, size)
        return out

    def hflip_outputs(self, outputs: Array) -> Array:
        return outputs[:, :, ::-1]

    def certainty(self, label: Label) -> Array:
        """Mean probability of the first class over the labeled pixels, [B, 1]."""
        valid = label["ids"][..., 0] != self.ignore
        return losses.masked_mean(label["probs"][..., 0].astype(jnp.float32) / 255.0, valid)[:, None]

    def fuse(self, labels: Sequence[Label]) -> Label:
        """The mean of the distributions per pixel; what a teacher does not list is spread evenly over the others."""
        out: dict[str, list] = {"ids": [], "probs": []}
        for parts in zip(*(zip(label["ids"], label["probs"], strict=True) for label in labels), strict=True):
            total, count = np.zeros((*parts[0][0].shape[:2], len(self.classes)), np.float32), 0
            for ids, codes_ in parts:
                probs, labeled = codes_.astype(np.float32) / 255.0, ids[..., 0] != self.ignore
                rest = np.maximum(0.0, 1.0 - probs.sum(-1))
                total += spread(ids, probs, rest, len(self.classes)) * labeled[..., None]
                count = count + labeled
            best, found = _best(total / np.maximum(count, 1)[..., None].astype(np.float32), self.top_k)
            out["ids"].append(np.where(count[..., None] > 0, best, self.ignore).astype(np.uint8))
            out["probs"].append(np.where(count[..., None] > 0, found, 0).astype(np.uint8))
        known = [np.asarray(label["known"]) for label in labels if "known" in label]
        fused = {name: np.stack(maps) for name, maps in out.items()}
        return fused | ({"known": np.logical_and.reduce(known)} if known else {})

    def stitch(self, parts: Sequence[tuple[Label, Geometry]], size: tuple[int, int]) -> Label:
        """As in the base class; the mean distribution of the tiles, of which only the listed classes are known."""
        tiles = parts[1:]
        ids = np.full((self.top_k, *size), self.ignore, np.uint8)
        probs = np.zeros(ids.shape, np.float32)
        for number in np.unique(np.concatenate([np.unique(label["ids"]) for label, _ in tiles])).tolist():
            if number == self.ignore:
                continue
            one = [((label["probs"] / np.float32(255) * (label["ids"] == number)).sum(-1), g) for label, g in tiles]
            mean, own = dense.blended(one), np.full(size, number, np.uint8)
            for place in range(self.top_k):  # into the list, those with less move on
                more = mean > probs[place]
                mean, probs[place] = np.where(more, probs[place], mean), np.where(more, mean, probs[place])
                own, ids[place] = np.where(more, ids[place], own), np.where(more, own, ids[place])
        return {"ids": np.moveaxis(ids, 0, -1), "probs": codes(np.moveaxis(probs, 0, -1))}

    def original(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class; every pixel of the original takes the prediction that is nearest."""
        if dense.unmoved(geometry):
            return label
        maps = {n: restore_map(np.asarray(label[n]), geometry, geometry.source_size) for n in ("ids", "probs")}
        return {**label, **maps}

    def measure(self, prediction: Label, truth: Label) -> dict[str, np.ndarray]:
        """Pixels per class, int64 [B, C], where the truth has a label: both agree, predicted, true."""
        rows: dict[str, list] = {"hit": [], "predicted": [], "true": []}
        for predicted, true in zip(prediction["ids"], truth["ids"], strict=True):
            predicted, true = (np.asarray(ids)[..., 0] for ids in (predicted, true))
            where = true != self.ignore
            predicted, true = (predicted, true) if where.all() else (predicted[where], true[where])
            parts = true[predicted == true], predicted.ravel(), true.ravel()
            for name, ids in zip(rows, parts, strict=True):
                rows[name].append(np.bincount(ids, minlength=256)[: len(self.classes)])
        return {name: np.stack(counts) for name, counts in rows.items()}

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Mean intersection over union of the classes that occur in the truth, and the share of right pixels, 0..1."""
        hit, predicted, true = (np.asarray(rows[name]).sum(0, dtype=np.int64) for name in ("hit", "predicted", "true"))
        if not true.any():
            return {metric.name: float("nan") for metric in self.metrics}
        present = true > 0
        iou = hit[present] / (predicted + true - hit)[present]
        return {"mIoU": float(iou.mean()), "pixel_accuracy": float(hit.sum() / true.sum())}

    def judge(self, prediction: Label, truth: Label) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As in the base class; a claim of every listed class of a pixel that has a true label."""
        true, ids, probs = (
            np.asarray(truth["ids"])[..., :1],
            np.asarray(prediction["ids"]),
            np.asarray(prediction["probs"]),
        )
        valid = (true != self.ignore) & (ids != self.ignore)
        known = np.asarray(truth.get("known", np.ones(len(self.classes), bool)))
        valid &= known[np.minimum(ids, len(self.classes) - 1)]
        return probs[valid].astype(np.float32) / 255.0, (ids == true)[valid], ids[valid].astype(np.int64)

    def items(self, truth: Label) -> np.ndarray:
        """As in the base class; pixels."""
        ids = np.asarray(truth["ids"])[..., 0]
        return np.bincount(ids[ids != self.ignore], minlength=len(self.classes))

    def claims(self, label: Label, policy: Policy) -> Claims:
        """As in the base class; of the first class of every labeled pixel."""
        return self._decided(label, policy)[0].where(np.asarray(label["ids"])[..., 0] != self.ignore)

    def _decided(self, label: Label, policy: Policy) -> tuple[Claims, np.ndarray]:
        """The first class of every pixel, [h, w], and which pixels only have candidates: `target` without its
        strides."""
        ids, stored = np.asarray(label["ids"]), np.asarray(label["probs"])
        known, table = (
            np.asarray(label.get("known", np.ones(len(self.classes), bool))),
            decide_codes(policy, len(self.classes)),
        )
        listed = np.minimum(ids, len(self.classes) - 1)
        first = Claims(listed[..., 0], *(field[listed[..., 0], stored[..., 0]] for field in table[1:]))
        labeled = ids[..., 0] != self.ignore
        used = labeled & first.positive
        # Of the known classes as many are candidates as an unlisted class's most would make, corrected for the listed
        # ones.
        possible = known[:, None] & ~table.negative
        most = np.clip(np.minimum(stored[..., -1], 255 - stored.sum(-1, dtype=np.int64)), 0, 255)
        count = possible.sum(0)[most]
        for k in range(ids.shape[-1]):
            here, there = possible[listed[..., k], stored[..., k]], possible[listed[..., k], most]
            count += np.where(ids[..., k] != self.ignore, here.astype(np.int64) - there, 0)
        partly = labeled & ~used & (count > 0) & (count < known.sum())
        return first._replace(positive=used, negative=np.zeros_like(used)), partly

    def write_labels(self, directory: str, source: Source, name: str, options: Mapping[str, Any]) -> int:
        """ids/*.png: class ids, 8 bits; probs/*.png: confidences, code / 255; nothing is rounded.

        Labels with several classes per pixel have the most probable one in ids, the others in ids-2, probs-2 and so on.
        The option `palette` gives the ids colors to be looked at; some readers then return colors instead of ids.
        The option `masks` adds coco.json, see `must.tasks.mask_files`.
        """
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(self.classes)] = drawing.palette(len(self.classes))

        def checked(label: Label, where: str) -> Label:
            ids = np.unique(label["ids"])
            exchange.class_names([*ids[ids != self.ignore], *label.get("unknown", ())], self.classes, where)
            return label

        about = {"kind": "masks", "ignore": self.ignore, "ids": f"class ids, {self.ignore} = no label"}
        about["probs"] = "probabilities * 255"
        encode = {"ids": lambda array: exchange.paletted_map(array, colors)} if options.get("palette") else {}
        maps, columns = ("ids", "probs"), ("unknown",)
        count = exchange.write_maps(
            directory, source, name, self, maps, columns, about=about, prepare=checked, encode=encode
        )
        if form := options.get("masks"):
            mask_files.write(form, directory, source, name, self, (*maps, *columns))
        return count

    def constant_guess(self, labels: Sequence[Label]) -> Label:
        """The most frequent class at every pixel."""
        counts = sum(np.bincount(np.ravel(label["ids"][..., 0]), minlength=256) for label in labels)
        first = labels[0]
        return {"ids": np.full_like(first["ids"], np.argmax(counts[:255])), "probs": np.full_like(first["probs"], 255)}

    def draw(self, image: np.ndarray, label: Label, policy: Policy | None = None) -> np.ndarray:
        """The classes blended over the picture, pixels without a label hatched, the three largest classes named.

        With a policy ignored pixels are greyed under diagonals, and those for which some classes are ruled out keep
        their color under thin ones.
        """
        ids = np.asarray(label["ids"])[..., 0]
        unlabeled = ids == self.ignore
        colors = drawing.palette(len(self.classes))
        blend = (0.4 * image + 0.6 * colors[np.where(unlabeled, 0, ids)]).astype(np.uint8)
        picture = drawing.hatch(drawing.upscale(blend), drawing.upscale(unlabeled))
        if policy is not None:
            claims, partly = self._decided(label, policy)
            ignored = ~unlabeled & ~claims.positive
            picture = drawing.fade(picture, drawing.upscale(ignored & ~partly))
            picture = drawing.tint(picture, drawing.upscale(partly))
        area = np.bincount(ids[~unlabeled], minlength=len(self.classes))
        largest = [i for i in np.argsort(-area, kind="stable")[: drawing.ROWS] if area[i]]
        rows = [(f"{100 * area[i] / ids.size:.0f}% {self.classes[i]}", colors[i : i + 1]) for i in largest]
        if policy is not None and ignored.any():
            rows = [*rows[: drawing.ROWS - 1], drawing.share(ignored, "ignored")]
        return drawing.caption(picture, rows)


def _pixels(outputs: Array) -> Array:
    """Number of pixels of every example's output, [B]."""
    return jnp.full(len(outputs), outputs.shape[1] * outputs.shape[2], jnp.float32)


def _best(probs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the largest of [..., C], the first of equals, and their codes, uint8 [..., count]."""
    probs = probs if count == 1 else probs.copy()
    ids, found = (np.empty((*probs.shape[:-1], count), np.uint8) for _ in range(2))
    for place in range(count):
        best = probs.argmax(-1, keepdims=True)
        ids[..., place] = best[..., 0]
        found[..., place] = codes(np.take_along_axis(probs, best, -1)[..., 0])
        if place + 1 < count:
            np.put_along_axis(probs, best, -1.0, -1)
    return ids, found
