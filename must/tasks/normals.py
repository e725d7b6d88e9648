"""Surface normals in camera axes: x right, y down, z forward."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from must.core import losses
from must.core.types import Array, ArraySpec, Geometry, Label, Metric, PerExample, Policy, Source, UserError
from must.data.geometry import EVERY_PIXEL, Cells, restore_map, restore_quantity, transform_map
from must.tasks import dense, drawing, exchange
from must.tasks.base import Task
from must.tasks.label_states import Claims, codes

_BINS = 1800  # of 0.1 degrees
_WITHIN = (11.25, 22.5, 30.0)  # degrees
_CLOSE = 22.5  # degrees within which a normal is right
_FLIP = np.array([-1.0, 1.0, 1.0], np.float32)


@dataclasses.dataclass(frozen=True)
class Normals(Task):
    """The unit normal of the visible surface per pixel; its z is negative.

    Attributes:
      loss_kind: "cosine" or "angle".
      head_stride: at which the head runs, pixels.
      shuffle: sub-pixels that the head predicts per axis.
      width: channels of the head's convolutions.
      depth: number of the head's convolutions.
      stride: of the stored prediction relative to the original image.
    """

    loss_kind: str = "cosine"
    head_stride: int = 4
    shuffle: int = 1
    width: int = 128
    depth: int = 3
    stride: int = 4

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("mean_angle", "deg", False),
        Metric("median_angle", "deg", False),
        *(Metric(f"within_{limit}", "%", True) for limit in _WITHIN),
    )
    outputs: ClassVar[Mapping[str, str]] = {"normals": "unit vectors of each pixel; x right, y down, z forward"}
    terms: ClassVar[tuple[str, ...]] = ("normals",)
    loss_scale: ClassVar[float] = 24.0
    optional: ClassVar[tuple[str, ...]] = ("scores",)

    def __post_init__(self):
        super().__post_init__()
        dense.output_stride("normals", self.head_stride, self.shuffle)
        if self.loss_kind not in ("cosine", "angle"):
            raise UserError(f"normals: loss_kind {self.loss_kind!r} is neither 'cosine' nor 'angle'")

    @property
    def _output_stride(self) -> int:
        return self.head_stride // self.shuffle

    def head(self) -> Any:
        from must.models.heads import DenseHead

        return DenseHead(3, self.head_stride, self.width, self.depth, self.shuffle)

    def label_spec(self) -> dict[str, ArraySpec]:
        doc = "normal * 127, x right, y down, z forward; 0, 0, 0 = invalid"
        return {"normals": ArraySpec((None, None, 3), "int8", "png", doc), "scores": dense.SCORES}

    def check_frame(self, size: tuple[int, int]) -> None:
        dense.check_size("normals", size, self._output_stride)

    def network_spec(self, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        return {"normals": jax.ShapeDtypeStruct((*size, 3), np.float32), "scores": jax.ShapeDtypeStruct(size, np.uint8)}

    def transform(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class; vectors shorter than one half (blended over an edge) are invalid."""
        normals = np.ascontiguousarray(np.moveaxis(self._vectors(label, geometry)[0], 0, -1))
        return {"normals": normals, "scores": dense.transform_scores(label, geometry)}

    def at_outputs(self, label: Label, geometry: Geometry) -> Label:
        around = Cells.around_centers(self._output_stride)
        normals, valid = self._vectors(label, geometry, around)
        normals, _ = dense.sample_quantity(normals, valid[None], around.count)
        return {
            "normals": np.moveaxis(normals, 0, -1),
            "scores": dense.transform_scores(label, geometry, Cells(self._output_stride)),
        }

    def _vectors(self, label: Label, geometry: Geometry, cells: Cells = EVERY_PIXEL) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors float32 [3, h, w], an array per axis since this runs for every row; and where there is one."""
        codes = np.asarray(label["normals"])
        if codes.ndim != 3 or codes.shape[-1] != 3:
            raise ValueError(f"normals of shape {codes.shape}")
        normals = np.moveaxis(transform_map(codes, geometry, 0, cells), -1, 0).astype(np.float32, order="C") / 127.0
        square = normals[0] * normals[0] + normals[1] * normals[1] + normals[2] * normals[2]
        _check_length(square)
        valid = square >= 0.5**2
        normals *= np.where(valid, 1.0 / np.sqrt(np.maximum(square, 0.5**2)), np.float32(0))
        if geometry.flip:
            normals[0] *= -1.0
        return normals, valid

    def paste(self, label: Label | None, other: Label | None, window: tuple[int, int, int, int]) -> Label:
        """As in the base class."""
        return dense.pasted(label, other, window, {"normals": 0, "scores": 0})

    def restore(self, label: Label, geometry: Geometry) -> Label:
        """The normal at 1 / `stride` of the original's size; each component within 1/254, angles within 0.4°."""
        shape = dense.stored_shape(geometry, self.stride)
        normals = self._restored(label, geometry, shape)
        coded = np.round(127.0 * np.clip(normals, -1.0, 1.0)).astype(np.int8)
        return {"normals": coded, "scores": dense.restore_scores(label, geometry, shape)}

    def _restored(self, label: Label, geometry: Geometry, shape: tuple[int, int]) -> np.ndarray:
        """Vectors float32 [*shape, 3] over the whole original, 0 where there is none."""
        normals = np.asarray(label["normals"], np.float32)
        valid = np.isfinite(normals).all(-1)
        normals, _ = restore_quantity(np.where(valid[..., None], normals, 0), valid, geometry, shape)
        square = np.einsum("hwc,hwc->hw", normals, normals)
        _check_length(square)
        # The mean of unit vectors is shorter; over an edge it is none, as in `transform`.
        normals = normals * np.where(square >= 0.25, 1 / np.sqrt(np.maximum(square, 0.25)), 0)[..., None]
        return (normals * _FLIP if geometry.flip else normals).astype(np.float32)

    def target(self, label: Label, policy: Policy) -> dict[str, Array]:
        """At the output's resolution: normals [B, h', w', 3], and valid [B, h', w'], where the score is positive."""
        stride = dense.label_stride(label, self._output_stride)
        normals, valid = _checked(dense.sample_quantity(*_checked(label["normals"]), stride)[0])
        return {"normals": losses.unit(normals), "valid": valid & dense.positive(label, policy, stride)}

    def loss(self, outputs: Array, target: dict[str, Array]) -> dict[str, PerExample]:
        """Term "normals": 1 - cosine, or the angle in radians, summed over the valid pixels, with their number."""
        valid = target["valid"]
        predicted = losses.unit(jnp.where(valid[..., None], outputs, 1.0))
        distance = losses.cosine_distance if self.loss_kind == "cosine" else losses.angle
        value = jnp.where(valid, distance(predicted, target["normals"]), 0.0)
        return {"normals": PerExample(value.sum((1, 2)), valid.sum((1, 2)).astype(jnp.float32))}

    def predict(self, outputs: Array) -> Label:
        """Unit vectors, enlarged bilinearly to the frame."""
        return {"normals": losses.unit(dense.enlarge(losses.unit(outputs), self._output_stride))}

    def agreement(self, outputs: Array, others: Array) -> Label:
        """1 - angle / 90 degrees between two normals, at least 0."""
        one, other = (self.predict(output)["normals"] for output in (outputs, others))
        return {"scores": codes(jnp.maximum(0.0, 1.0 - jnp.rad2deg(losses.angle(one, other)) / 90.0))}

    def from_external(self, output: Array, size: tuple[int, int]) -> Label:
        """Vectors [B, h, w, 3] of any length and resolution, enlarged bilinearly; zero or not finite is invalid."""
        normals = dense.floats("normals", output, ("B", "h", "w", 3))
        normals, valid = _unit(normals, dense.some_finite("normals", np.isfinite(normals).all(-1)))
        return {"normals": _unit(*dense.resize_valid(normals, valid, size))[0]}

    def hflip_outputs(self, outputs: Array) -> Array:
        """Columns reversed, x negated."""
        return outputs[:, :, ::-1] * _FLIP.astype(outputs.dtype)

    def fuse(self, labels: Sequence[Label]) -> Label:
        """The mean direction; the score is 1 - the mean angle to it / 45 degrees, at least 0."""
        vectors = np.stack([np.asarray(label["normals"], np.float32) for label in labels])
        there = _there(vectors)
        vectors = np.where(there[..., None], vectors, 0)
        mean, valid = _unit(vectors.sum(0), 2 * there.sum(0) >= len(labels))
        cosine = np.clip(np.einsum("t...c,...c->t...", vectors, mean), -1, 1)
        angle = np.where(there, np.rad2deg(np.arccos(cosine)), 45.0).mean(0)
        return {"normals": mean, "scores": codes(np.where(valid, np.maximum(0.0, 1.0 - angle / 45.0), 0.0))}

    def stitch(self, parts: Sequence[tuple[Label, Geometry]], size: tuple[int, int]) -> Label:
        """As in the base class; the mean direction of the tiles."""
        mean = dense.blended([(label["normals"], geometry) for label, geometry in parts[1:]])
        return {"normals": _unit(mean, np.ones(mean.shape[:2], bool))[0]}

    def original(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class, at the original's size and not rounded to codes."""
        if dense.unmoved(geometry):
            return label
        out = {"normals": self._restored(label, geometry, geometry.source_size)}
        if "scores" in label:
            out["scores"] = restore_map(np.asarray(label["scores"]), geometry, geometry.source_size)
        return out

    def measure(self, prediction: Label, truth: Label) -> dict[str, np.ndarray]:
        """Over the pixels with a true normal, [B]: how many, the sum of angles in degrees, how many within each limit.

        "histogram" [B, 1800] counts angles in bins of 0.1 degrees. No predicted normal counts as 90 degrees.
        """
        pairs = zip(prediction["normals"], truth["normals"], strict=True)
        rows = [self._angles(*(np.asarray(normals, np.float32) for normals in pair)) for pair in pairs]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _angles(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
        """Of one image, [h, w, 3] each."""
        valid = _there(true)
        (ax, ay, az), (bx, by, bz) = ([part[..., axis][valid] for axis in range(3)] for part in (predicted, true))
        if not np.isfinite((ax + ay + az).sum()):
            ax, ay, az = (np.nan_to_num(part, posinf=0, neginf=0) for part in (ax, ay, az))
        # atan2(|a x b|, a . b) is accurate for small angles too.
        cross = (ay * bz - az * by) ** 2 + (az * bx - ax * bz) ** 2 + (ax * by - ay * bx) ** 2
        degrees = np.rad2deg(np.arctan2(np.sqrt(cross + np.float32(1e-12)), ax * bx + ay * by + az * bz))
        bins = np.clip(degrees * (_BINS / 180.0), 0, _BINS - 1).astype(np.int64)
        return {
            "pixels": np.int64(len(degrees)),
            "degrees": degrees.sum(dtype=np.float64),
            "histogram": np.bincount(bins, minlength=_BINS),
            **{f"within_{limit}": np.count_nonzero(degrees < limit) for limit in _WITHIN},
        }

    def judge(self, prediction: Label, truth: Label) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """As in the base class; a claim per pixel with a true normal, right within 22.5 degrees; None without
        scores."""
        if "scores" not in prediction:
            return None
        output, true = (np.nan_to_num(np.asarray(label["normals"], np.float32)) for label in (prediction, truth))
        valid = np.einsum("hwc,hwc->hw", true, true) > 0.25
        scores = np.asarray(prediction["scores"])[valid].astype(np.float32) / 255.0
        correct = np.einsum("nc,nc->n", output[valid], true[valid]) > np.cos(np.deg2rad(_CLOSE))
        return scores, correct, np.zeros(len(scores), np.int64)

    def items(self, truth: Label) -> np.ndarray:
        """As in the base class; pixels."""
        true = np.nan_to_num(np.asarray(truth["normals"], np.float32))
        return np.array([(np.einsum("hwc,hwc->hw", true, true) > 0.25).sum()])

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Over all pixels of all images; the (lower) median within 0.05 degrees. NaN without any pixel."""
        pixels = np.asarray(rows["pixels"]).sum(dtype=np.int64)
        if not pixels:
            return {metric.name: float("nan") for metric in self.metrics}
        cumulative = np.asarray(rows["histogram"]).sum(0, dtype=np.int64).cumsum()
        median = (np.searchsorted(cumulative, pixels / 2) + 0.5) * 180.0 / _BINS
        mean = np.asarray(rows["degrees"]).sum(dtype=np.float64) / pixels
        within = {name: 100.0 * float(np.asarray(rows[name]).sum(dtype=np.int64) / pixels) for name in _WITHIN_NAMES}
        return {"mean_angle": float(mean), "median_angle": float(median)} | within

    def claims(self, label: Label, policy: Policy) -> Claims:
        """As in the base class; of every pixel with a normal."""
        return dense.decided(label, policy).where(_there(np.asarray(label["normals"], np.float32)))

    def write_labels(self, directory: str, source: Source, name: str, options: Mapping[str, Any]) -> int:
        """normals/*.png: RGB, n = value / 255 * 2 - 1 in camera axes, x right, y down, z forward.

        Each stored code c = 127 n has a value of its own, round((c / 127 + 1) / 2 * 255), within 1/255 of n; (128, 128,
        128) is no normal.
        """
        values = "n = value / 255 * 2 - 1; 128, 128, 128 = no normal"
        about = {"kind": "normals", "axes": "x right, y down, z forward", "values": values}
        return exchange.write_maps(directory, source, name, self, ("normals", "scores"), about=about)

    def constant_guess(self, labels: Sequence[Label]) -> Label:
        """The mean direction at every pixel."""
        mean = sum(np.sum(label["normals"], (0, 1)) for label in labels)  # invalid ones are zeros and add nothing
        unit = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return {"normals": np.broadcast_to(unit, labels[0]["normals"].shape).astype(np.float32)}

    def draw(self, image: np.ndarray, label: Label, policy: Policy | None = None) -> np.ndarray:
        """The usual colors, (n + 1) / 2 of the axes right, up and towards the camera; invalid pixels hatched.

        With a policy ignored pixels are greyed under diagonals.
        """
        normals = np.asarray(label["normals"], np.float32)
        valid = _there(normals)
        picture = drawing.upscale(_colors(np.where(valid[..., None], normals, 0.0)))
        if policy is not None:
            picture = drawing.fade(picture, drawing.upscale(valid & ~dense.decided(label, policy).positive))
        axes = (("to the right", (1.0, 0.0, 0.0)), ("up", (0.0, -1.0, 0.0)), ("to the camera", (0.0, 0.0, -1.0)))
        legend = [(name, _colors(np.array([axis]))) for name, axis in axes]
        return drawing.caption(drawing.hatch(picture, drawing.upscale(~valid)), legend)


_WITHIN_NAMES = tuple(f"within_{limit}" for limit in _WITHIN)


def _there(normals: np.ndarray) -> np.ndarray:
    """Where there is a normal that `target` uses, bool [...]."""
    with np.errstate(invalid="ignore", over="ignore"):
        square = np.einsum("...c,...c->...", normals, normals)
        return (square > 0.25) & (square < np.inf)


def _colors(normals: np.ndarray) -> np.ndarray:
    return drawing.to_uint8((normals * (1.0, -1.0, -1.0) + 1.0) / 2.0)


def _check_length(square: np.ndarray) -> None:
    if square.max(initial=0.0) > 1.2**2:
        raise ValueError(f"a normal of length {np.sqrt(square.max()):.2f}")


def _unit(vectors: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [..., 3] where there is one, else 0, and where, bool [...]."""
    vectors = np.where(valid[..., None], vectors, np.float32(0))
    length = np.linalg.norm(vectors, axis=-1)
    valid = length > 1e-6
    return vectors / np.where(valid, length, np.inf)[..., None], valid


def _checked(normals: Array) -> tuple[Array, Array]:
    """[..., 3] with 0 where it is not finite, and where there is a normal, bool [...]."""
    valid = jnp.all(jnp.isfinite(normals), -1)
    normals = jnp.where(valid[..., None], normals, 0.0)
    return normals, valid & (jnp.sum(normals**2, -1) > 0.25)
