"""Monocular depth, metric or relative."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from must.core import losses
from must.core.types import Array, ArraySpec, Geometry, Label, LabelError, Metric, PerExample, Policy, Source, UserError
from must.data.geometry import EVERY_PIXEL, Cells, restore_map, restore_quantity, transform_map
from must.tasks import dense, depth_files, drawing
from must.tasks.base import Task
from must.tasks.label_states import Claims, codes

_CLOSE = 1.25  # factor within which a depth is right (delta1)
_LEVELS = 65534  # steps between the least and the largest depth of a stored map; code 0 is "invalid"
_WIDEST = 1300  # largest over least relative depth: half a step of inverse depth is 1 % of the farthest's at 1311


class InverseDepth(NamedTuple):
    """Inverse depth of another project's network, right up to a scale > 0 and a shift per image: near is large.

    Attributes:
      values: floats [B, h, w]; not finite is invalid.
    """

    values: Array


@dataclasses.dataclass(frozen=True)
class Depth(Task):
    """Distance along the optical axis per pixel.

    metric: the network predicts the logarithm of the depth in meters. Under a zoom by s, depth is divided by s (a
      longer focal length), so that one network sees one camera.
    relative: the network predicts inverse depth up to an unknown scale > 0 and shift per image. Predictions fix these
      so that each image's nearest pixel is at `min_depth` and its farthest at `max_depth`. Records hold the inverse
      depth and say so; labels in meters teach a relative network as well, inverse ones a metric network never.

    Attributes:
      depth_kind: "metric" or "relative".
      loss_kind: of a metric network, "silog" or "log_l1".
      focus: lambda of silog.
      trim: of a relative network, the share of an image's pixels, those farthest off, that its loss leaves out.
      gradient: adds the term "gradient", which matches edges over four scales.
      min_depth: least depth that is predicted and measured, meters.
      max_depth: largest, meters.
      head_stride: at which the head runs, pixels.
      shuffle: sub-pixels that the head predicts per axis.
      width: channels of the head's convolutions.
      depth: number of the head's convolutions.
      stride: of the stored prediction relative to the original image.
    """

    depth_kind: str = "metric"
    loss_kind: str = "silog"
    focus: float = 0.5
    trim: float = 0.2
    gradient: bool = False
    min_depth: float = 0.1
    max_depth: float = 10.0
    head_stride: int = 4
    shuffle: int = 1
    width: int = 128
    depth: int = 3
    stride: int = 4

    loss_scale: ClassVar[float] = 4.0
    optional: ClassVar[tuple[str, ...]] = ("scores",)
    fitted: ClassVar[tuple[str, ...]] = ("max_depth",)

    def __post_init__(self):
        super().__post_init__()
        dense.output_stride("depth", self.head_stride, self.shuffle)
        if self.depth_kind not in ("metric", "relative"):
            raise UserError(f"depth: depth_kind {self.depth_kind!r} is neither 'metric' nor 'relative'")
        if self.loss_kind not in ("silog", "log_l1"):
            raise UserError(f"depth: loss_kind {self.loss_kind!r} is neither 'silog' nor 'log_l1'")
        if not 0 < self.min_depth < self.max_depth:
            raise UserError(
                f"depth: min_depth {self.min_depth} and max_depth {self.max_depth}: expected 0 < min_depth < max_depth"
            )
        if not 0 <= self.trim < 1:
            raise UserError(f"depth: trim {self.trim}: expected a share from 0 to below 1")
        if self.depth_kind == "relative" and self.max_depth / self.min_depth > _WIDEST:
            raise UserError(
                f"depth: min_depth {self.min_depth} and max_depth {self.max_depth}: 16 bits hold relative depth to 1 % "
                f"up to a ratio of {_WIDEST}"
            )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Of a relative network after alignment, and named so."""
        prefix = "aligned_" if self.depth_kind == "relative" else ""
        return tuple(Metric(prefix + name, unit, higher) for name, unit, higher in _METRICS)

    @property
    def outputs(self) -> dict[str, str]:
        unit = "meters" if self.depth_kind == "metric" else "no unit: inverse depth is right up to scale and shift"
        return {"depth": f"depth of each pixel of the frame, {unit}"}

    @property
    def terms(self) -> tuple[str, ...]:
        return ("depth", "gradient") if self.gradient else ("depth",)

    @property
    def _output_stride(self) -> int:
        return self.head_stride // self.shuffle

    def head(self) -> Any:
        from must.models.heads import DenseHead

        return DenseHead(1, self.head_stride, self.width, self.depth, self.shuffle)

    @classmethod
    def defaults(cls, labels: Iterable[Label]) -> dict[str, Any]:
        """As in the base class: a depth a tenth beyond the farthest, with two digits."""
        farthest = 0.0
        for label in labels:
            if label.get("inverse", False):
                continue
            code = int(np.max(label["depth"], initial=0))
            scale, offset = (float(np.asarray(label[name]).reshape(())) for name in ("scale", "offset"))
            farthest = max(farthest, code * scale + offset if code else 0.0)
        return {"max_depth": float(f"{1.1 * farthest:.2g}")} if 0.1 < farthest < np.inf else {}

    def label_spec(self) -> dict[str, ArraySpec]:
        metric = self.depth_kind == "metric"
        what = "meters" if metric else "inverse depth, right up to scale and shift,"
        spec = {
            "depth": ArraySpec((None, None), "uint16", "png", f"{what} = code * scale + offset; code 0 = invalid"),
            "scale": ArraySpec((), "float32", doc="meters per code" if metric else "per code"),
            "offset": ArraySpec((), "float32", doc="meters" if metric else "of code 0"),
            "scores": dense.SCORES,
        }
        return spec if metric else {**spec, "inverse": ArraySpec((), "bool", doc="inverse depth; else meters")}

    def check_frame(self, size: tuple[int, int]) -> None:
        dense.check_size("depth", size, self._output_stride)

    def network_spec(self, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        return {"depth": jax.ShapeDtypeStruct(size, np.float32), "scores": jax.ShapeDtypeStruct(size, np.uint8)}

    def transform(self, label: Label, geometry: Geometry) -> Label:
        return {"depth": self._depth(label, geometry), "scores": dense.transform_scores(label, geometry)}

    def at_outputs(self, label: Label, geometry: Geometry) -> Label:
        depth = self._depth(label, geometry, around := Cells.around_centers(self._output_stride))[None]
        depth, _ = dense.sample_quantity(depth, self._learnable(depth), around.count)
        return {"depth": depth[0], "scores": dense.transform_scores(label, geometry, Cells(self._output_stride))}

    def _depth(self, label: Label, geometry: Geometry, cells: Cells = EVERY_PIXEL) -> np.ndarray:
        code, inverse = np.asarray(label["depth"]), bool(label.get("inverse", False))
        if inverse and self.depth_kind == "metric":
            raise ValueError("inverse depth without scale, which a metric task cannot use: depth_kind='relative' can")
        scale, offset = (float(np.asarray(label[name]).reshape(())) for name in ("scale", "offset"))
        if code.ndim != 2:
            raise ValueError(f"depth of shape {code.shape}")
        if not (0 <= scale < np.inf and np.isfinite(offset)):
            raise ValueError(f"depth with scale {scale} and offset {offset}")
        if not scale + offset > 0 and (code > 0).any() and not (least := code[code > 0].min() * scale + offset) > 0:
            raise ValueError(f"depth of {least:.3g} {'inverse' if inverse else 'm'}")
        code = transform_map(code, geometry, 0, cells)
        depth = np.where(code > 0, (code * scale + offset) / self._zoom(geometry), 0.0).astype(np.float32)
        return _reciprocal(depth, code > 0) if inverse else depth

    def restore(self, label: Label, geometry: Geometry) -> Label:
        """The depth at 1 / `stride` of the original's size, each value within (largest - least) / 131068 meters.

        Relative: the inverse depth likewise; where the farthest is within 1300 times the nearest, to 1 % of its value.
        """
        shape = dense.stored_shape(geometry, self.stride)
        depth, valid = self._restored(label, geometry, shape)
        low, high = (depth[valid].min(), depth[valid].max()) if valid.any() else (0.0, 0.0)
        scale = (high - low) / _LEVELS
        code = np.round((np.where(valid, depth, low) - low) / scale) if scale > 0 else np.zeros(depth.shape)
        record = {
            "depth": np.where(valid, code + 1, 0).astype(np.uint16),
            "scale": np.float32(scale),
            "offset": np.float32(low - scale),
            "scores": dense.restore_scores(label, geometry, shape),
        }
        return record if self.depth_kind == "metric" else {**record, "inverse": np.bool_(True)}

    def _restored(self, label: Label, geometry: Geometry, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Meters, or inverse depth, float64 [*shape] over the whole original, and where they are valid."""
        depth = np.asarray(label["depth"], np.float64)
        valid = np.isfinite(depth) & (depth > 0)
        if self.depth_kind == "relative":
            depth = _reciprocal(depth, valid)
        depth, valid = restore_quantity(np.where(valid, depth, 0.0), valid, geometry, shape)
        return depth * self._zoom(geometry), valid

    def paste(self, label: Label | None, other: Label | None, window: tuple[int, int, int, int]) -> Label:
        """As in the base class; relative depths of two pictures have no common scale, so only the larger part
        keeps its."""
        if self.depth_kind == "relative" and label is not None and other is not None:
            inside = (window[2] - window[0]) * (window[3] - window[1])
            label, other = (None, other) if 2 * inside > label["depth"].size else (label, None)
        return dense.pasted(label, other, window, {"depth": 0, "scores": 0})

    def _zoom(self, geometry: Geometry) -> float:
        return geometry.zoom if self.depth_kind == "metric" else 1.0

    def target(self, label: Label, policy: Policy) -> dict[str, Array]:
        """At the output's resolution: depth, and valid, where its score is positive, [B, h', w']; all else is
        ignored."""
        stride, depth = dense.label_stride(label, self._output_stride), label["depth"]
        # At outputs: the mean of depths in range, maybe a rounding error outside.
        valid = depth > 0 if dense.AT_OUTPUTS in label else self._learnable(depth)
        depth, valid = dense.sample_quantity(depth, valid, stride)
        return {"depth": jnp.where(valid, depth, 1.0), "valid": valid & dense.positive(label, policy, stride)}

    def _in_range(self, depth: Array) -> Array:
        return (depth >= self.min_depth) & (depth <= self.max_depth)  # False for NaN

    def loss(self, outputs: Array, target: dict[str, Array]) -> dict[str, PerExample]:
        """Term "depth", one item per image with valid pixels; and "gradient" of the same residuals.

        metric: SiLog (Eigen et al. 2014, eq. 4) or the mean absolute difference of the logarithms.
        relative: scale- and shift-invariant, trimmed, in inverse depth (MiDaS, Ranftl et al. 2020, eq. 5 to 7); images
          where it is degenerate count for nothing.
        """
        valid = target["valid"]
        predicted = outputs[..., 0].astype(jnp.float32)
        if self.depth_kind == "metric":
            log_depth = jnp.log(target["depth"])
            residual, usable = jnp.where(valid, predicted - log_depth, 0.0), valid.any((1, 2))
        else:
            residual, usable = losses.robust_residual(predicted, 1.0 / target["depth"], valid)
        if self.depth_kind == "relative":
            value = losses.trimmed_mae(residual, valid, self.trim)
        elif self.loss_kind == "silog":
            value = losses.silog(predicted, log_depth, valid, self.focus)
        else:
            value = losses.masked_mean(jnp.abs(residual), valid)
        values = {"depth": value}
        if self.gradient:
            values["gradient"] = losses.gradient_matching(residual, valid)
        norm = usable.astype(jnp.float32)
        return {name: PerExample(jnp.where(usable, value, 0.0), norm) for name, value in values.items()}

    def predict(self, outputs: Array) -> Label:
        """Meters within `min_depth`..`max_depth`; the logarithm or inverse depth is enlarged bilinearly."""
        value = dense.enlarge(outputs.astype(jnp.float32), self._output_stride)[..., 0]
        if self.depth_kind == "metric":
            return {"depth": jnp.clip(jnp.exp(value), self.min_depth, self.max_depth)}
        low, high = value.min((1, 2), keepdims=True), value.max((1, 2), keepdims=True)
        return {"depth": self._from_nearness((value - low) / jnp.maximum(high - low, 1e-6))}

    def _from_nearness(self, near: Array) -> Array:
        """Depth of inverse depths 0..1, of which 1 is nearest."""
        far = 1.0 / self.max_depth
        return 1.0 / (far + near * (1.0 / self.min_depth - far))

    def agreement(self, outputs: Array, others: Array) -> Label:
        """The smaller of two depths over the larger."""
        one, other = (self.predict(output)["depth"] for output in (outputs, others))
        return {"scores": codes(jnp.minimum(one, other) / jnp.maximum(one, other))}

    def from_external(self, output: Array | InverseDepth, size: tuple[int, int]) -> Label:
        """Depth [B, h, w] in meters at any resolution, enlarged bilinearly; not finite or not above 0 is invalid.

        Of a relative task also `InverseDepth`, which becomes depth as in `predict`.

        Raises:
          NotFinite: a picture without any finite pixel.
          LabelError: inverse depth for a metric task.
        """
        if isinstance(output, InverseDepth):
            return self._from_inverse(output.values, size)
        depth = dense.floats("depth", output, ("B", "h", "w"))
        valid = dense.some_finite("depth", np.isfinite(depth)) & (depth > 0)
        return {"depth": dense.resize_valid(np.where(valid, depth, 0.0)[..., None], valid, size)[0][..., 0]}

    def _from_inverse(self, values: Array, size: tuple[int, int]) -> Label:
        if self.depth_kind == "metric":
            raise LabelError("depth is inverse and without scale, the task is metric: it takes depth_kind='relative'")
        values = dense.floats("depth", values, ("B", "h", "w"))
        valid = dense.some_finite("depth", np.isfinite(values))
        values, valid = dense.resize_valid(np.where(valid, values, 0.0)[..., None], valid, size)
        values = values[..., 0]
        low, high = (
            function(values, (1, 2), where=valid, initial=start, keepdims=True)
            for function, start in ((np.min, np.inf), (np.max, -np.inf))
        )
        near = (values - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
        return {"depth": np.where(valid, self._from_nearness(near), 0.0).astype(np.float32)}

    def hflip_outputs(self, outputs: Array) -> Array:
        return outputs[:, :, ::-1]

    def fuse(self, labels: Sequence[Label]) -> Label:
        """The median of the valid depths; the score is the mean ratio to it, smaller over larger, 0 where invalid."""
        depth = np.stack([np.asarray(label["depth"], np.float32) for label in labels])
        valid = np.isfinite(depth) & (depth > 0)
        enough = 2 * valid.sum(0) >= len(labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixels where no depth is valid
            middle = np.nan_to_num(np.nanmedian(np.where(valid, depth, np.nan), 0))
        ratio = np.where(valid, np.minimum(depth, middle) / np.maximum(np.maximum(depth, middle), 1e-9), 0).mean(0)
        return {"depth": np.where(enough, middle, 0).astype(np.float32), "scores": codes(np.where(enough, ratio, 0))}

    def stitch(self, parts: Sequence[tuple[Label, Geometry]], size: tuple[int, int]) -> Label:
        """As in the base class; the mean of the tiles. Relative depths of two tiles have no common scale: the whole."""
        if self.depth_kind != "metric":
            return super().stitch(parts, size)
        return {"depth": dense.blended([(label["depth"] * geometry.zoom, geometry) for label, geometry in parts[1:]])}

    def original(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class, at the original's size and not rounded to codes."""
        if dense.unmoved(geometry):
            return label
        depth, valid = self._restored(label, geometry, geometry.source_size)
        if self.depth_kind == "relative":
            depth = _reciprocal(depth, valid)
        out = {"depth": np.where(valid, depth, 0).astype(np.float32)}
        if "scores" in label:
            out["scores"] = restore_map(np.asarray(label["scores"]), geometry, geometry.source_size)
        return out

    def measure(self, prediction: Label, truth: Label) -> dict[str, np.ndarray]:
        """Each metric's mean over the image's valid pixels, [B], and "images": 1 where there are any.

        Valid are true depths within `min_depth`..`max_depth`. A relative prediction is first aligned to the truth by
        least squares in inverse depth, with scale >= 0.
        """
        pairs = zip(prediction["depth"], truth["depth"], strict=True)
        rows = [self._errors(np.asarray(depth), np.asarray(true)) for depth, true in pairs]
        return {name: np.array([row[name] for row in rows], np.float32) for name in rows[0]}

    def _errors(self, depth: np.ndarray, true: np.ndarray) -> dict[str, float]:
        """Of one image, [h, w] each."""
        valid = self._in_range(true)
        if not valid.any():
            return dict.fromkeys((*(name for name, _, _ in _METRICS), "images"), 0.0)
        true, depth = true[valid].astype(np.float64), depth[valid].astype(np.float64)
        if self.depth_kind == "relative":
            inverse, aim = 1.0 / np.maximum(depth, 1e-6), 1.0 / true
            spread = inverse - inverse.mean()
            variance = np.mean(spread**2)
            scale = max(0.0, np.mean(spread * aim) / variance) if variance > 1e-12 else 0.0
            inverse = scale * spread + aim.mean()
            depth = 1.0 / np.clip(inverse, 1.0 / self.max_depth, 1.0 / self.min_depth)
        depth = np.clip(depth, self.min_depth, self.max_depth)
        difference, log = depth - true, np.log(depth / true)
        apart, square = np.abs(log), difference**2
        return {
            "abs_rel": np.mean(np.abs(difference) / true),
            **{f"delta{n}": 100.0 * np.mean(apart < n * np.log(_CLOSE)) for n in (1, 2, 3)},
            "sq_rel": np.mean(square / true),
            "rmse": np.sqrt(np.mean(square)),
            "rmse_log": np.sqrt(np.mean(log**2)),
            "log10": np.mean(apart) / np.log(10.0),
            "silog": np.std(log),
            "images": 1.0,
        }

    def judge(self, prediction: Label, truth: Label) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """As in the base class; a claim per pixel with a true depth, right within a factor of 1.25.

        None without scores, and for a relative depth, whose pixels are right only together.
        """
        if self.depth_kind == "relative" or "scores" not in prediction:
            return None
        depth, true = np.asarray(prediction["depth"]), np.asarray(truth["depth"])
        valid = (true >= self.min_depth) & (true <= self.max_depth)
        ratio = np.maximum(depth[valid], 1e-6) / true[valid]
        scores = np.asarray(prediction["scores"])[valid].astype(np.float32) / 255.0
        return scores, np.maximum(ratio, 1 / ratio) < _CLOSE, np.zeros(len(ratio), np.int64)

    def items(self, truth: Label) -> np.ndarray:
        """As in the base class; pixels."""
        true = np.asarray(truth["depth"])
        return np.array([((true >= self.min_depth) & (true <= self.max_depth)).sum()])

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Means over the images that have valid pixels; NaN without any."""
        measured = np.asarray(rows["images"]) > 0
        values = [np.asarray(rows[name])[measured] for name, _, _ in _METRICS]
        pairs = zip(self.metrics, values, strict=True)
        return {metric.name: float(value.mean()) if measured.any() else float("nan") for metric, value in pairs}

    def claims(self, label: Label, policy: Policy) -> Claims:
        """As in the base class; of every pixel with a depth that can be learned."""
        return dense.decided(label, policy).where(self._learnable(np.asarray(label["depth"])))

    def _learnable(self, depth: Array) -> Array:  # in inverse depth the far is near zero and needs no bound
        return self._in_range(depth) if self.depth_kind == "metric" else (depth > 0) & (depth < np.inf)

    def write_labels(self, directory: str, source: Source, name: str, options: Mapping[str, Any]) -> int:
        """As 16-bit PNGs, see `must.tasks.depth_files`."""
        return depth_files.write(directory, source, name, self, bool(options.get("millimeters")))

    def constant_guess(self, labels: Sequence[Label]) -> Label:
        """The median depth at every pixel."""
        valid = np.concatenate([label["depth"][label["depth"] > 0] for label in labels])
        return {"depth": np.full_like(labels[0]["depth"], np.median(valid) if valid.size else 1)}

    def draw(self, image: np.ndarray, label: Label, policy: Policy | None = None) -> np.ndarray:
        """Near red, far blue, even steps in the logarithm over the picture's own range, which stands below it.

        With a policy ignored pixels are greyed under diagonals.
        """
        depth = np.asarray(label["depth"], np.float32)
        valid = np.isfinite(depth) & (depth > 0)
        low, high = label["range"] if "range" in label else self._range(depth)
        position = np.log(np.where(valid, depth, low) / low) / max(np.log(high / low), 1e-6)
        picture = drawing.hatch(drawing.upscale(drawing.turbo(1.0 - position)), drawing.upscale(~valid))
        ends = f"{low:.2f} to {high:.2f} m" if self.depth_kind == "metric" else "near to far"
        ramp = drawing.turbo(1.0 - np.linspace(0.0, 1.0, 100))
        rows = [(ends, ramp)] if valid.any() else []
        if policy is not None:
            ignored = valid & ~(self._learnable(depth) & dense.decided(label, policy).positive)
            picture = drawing.fade(picture, drawing.upscale(ignored))
            rows += [drawing.share(ignored, "ignored")] if ignored.any() else []
        return drawing.caption(picture, rows)

    def on_scale_of(self, label: Label, reference: Label) -> Label:
        """As in the base class; metric depth only, since relative depth has no scale in common."""
        if self.depth_kind != "metric":
            return label
        return {**label, "range": self._range(np.asarray(reference["depth"], np.float32))}

    def _range(self, depth: np.ndarray) -> tuple[float, float]:
        """The nearest and the farthest percent of the valid pixels, meters."""
        valid = np.isfinite(depth) & (depth > 0)
        return tuple(np.percentile(depth[valid], (1, 99)).tolist()) if valid.any() else (1.0, 1.0)


_METRICS = (
    ("abs_rel", "", False),
    ("delta1", "%", True),
    ("delta2", "%", True),
    ("delta3", "%", True),
    ("sq_rel", "m", False),
    ("rmse", "m", False),
    ("rmse_log", "", False),
    ("log10", "", False),
    ("silog", "", False),
)


def _reciprocal(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """1 / values, 0 elsewhere."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=where)
