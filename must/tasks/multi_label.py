"""Multi-label classification: independent attributes of a picture, each present, absent or unknown."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from must.core import losses
from must.core.labels import FAINTEST, half, numbered
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
from must.tasks import drawing, exchange
from must.tasks.base import Task
from must.tasks.classification import known_classes, unknown_classes
from must.tasks.label_states import Claims, States, decide, states, uncertain


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of `classes` per image, each with a probability of its own.

    Score 1 is an attribute that is truly present, score 0 one that is truly absent; a teacher's scores lie between.

    Attributes:
      classes: names of the attributes, in the order of the ids.
      hard: learn the state of an attribute, 1 or 0, instead of its probability.
      temperature: predictions are sigmoid(logits / temperature).
      dropout: rate before the linear layer.
    """

    classes: tuple[str, ...]
    hard: bool = False
    temperature: float = 1.0
    dropout: float = 0.0

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("mAP", "", True),
        Metric("F1", "", True),
        Metric("accuracy", "%", True),
    )
    outputs: ClassVar[Mapping[str, str]] = {"scores": "probability of each attribute, 0..1; they are independent"}
    terms: ClassVar[tuple[str, ...]] = ("attribute",)
    optional: ClassVar[tuple[str, ...]] = ("known",)
    whole: ClassVar[bool] = True
    can_be_empty: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.dropout < 1 or self.temperature <= 0:
            raise UserError(f"multi_label: dropout={self.dropout} or temperature={self.temperature} out of range")

    def head(self) -> Any:
        from must.models.heads import ClassHead

        return ClassHead(len(self.classes), self.dropout)

    def label_spec(self) -> dict[str, ArraySpec]:
        count = len(self.classes)
        doc = f"probability of each attribute, 1 and 0 for ground truth: {numbered(self.classes)}"
        return {
            "scores": ArraySpec((count,), "float16", doc=doc),
            "unknown": ArraySpec((None,), "uint16", doc="ids of the attributes of which nothing is known"),
        }

    def network_spec(self, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        count = len(self.classes)
        return {"scores": jax.ShapeDtypeStruct((count,), np.float32), "known": jax.ShapeDtypeStruct((count,), np.bool_)}

    def transform(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class; the geometry does not matter. Unknown attributes have score 0."""
        scores, count = np.asarray(label["scores"], np.float32).reshape(-1), len(self.classes)
        if len(scores) != count:
            raise ValueError(f"{len(scores)} scores for {count} attributes")
        known = known_classes(label, count)
        if not ((scores >= 0) & (scores <= 1))[known].all():
            raise ValueError(f"scores {scores.tolist()} are not all in 0..1")
        return {"scores": np.where(known, scores, np.float32(0)), "known": known}

    def restore(self, label: Label, geometry: Geometry) -> Label:
        """Every score within 2^-12 (above .9995 within 2^-11, below 2^-14 within that: only the truth is certain)."""
        known = np.broadcast_to(label.get("known", True), len(self.classes))
        scores = np.where(known, np.asarray(label["scores"], np.float32), 0)
        kept = half(np.where(scores > 0, np.maximum(scores, FAINTEST), 0))
        return {"scores": kept, "unknown": unknown_classes({"known": known})}

    def _states(self, label: Label, policy: Policy) -> States:
        """Of every attribute; what is truly absent is negative under every policy, what is unknown neither."""
        scores = label["scores"]
        found = states(policy, scores, np.arange(len(self.classes)))
        known, absent = label.get("known", True), scores <= 0
        finite = (scores >= 0) & (scores <= 1)  # not of NaN
        return States(found.positive & known & finite & ~absent, (found.negative | absent) & known & finite)

    def target(self, label: Label, policy: Policy) -> dict[str, Array]:
        """What an example teaches.

        Returns:
          used: bool [B, C], attributes that are positive or negative; the others have no loss.
          aim: [B, C], probabilities to learn: those of the label, or with `hard` the states. They stay as sharp as the
            teacher predicts them: calibration decides which ones are used.
        """
        state = self._states(label, policy)
        aim = state.positive if self.hard else jnp.where(state.positive | state.negative, label["scores"], 0.0)
        return {"used": state.positive | state.negative, "aim": aim.astype(jnp.float32)}

    def loss(self, outputs: Array, target: dict[str, Array]) -> dict[str, PerExample]:
        """Term "attribute": binary cross-entropy, summed over the used attributes, their number as norm."""
        used = target["used"]
        value = losses.binary_soft_focal(jnp.where(used, outputs, 0.0), target["aim"], gamma=0.0)
        return {"attribute": PerExample(jnp.where(used, value, 0.0).sum(-1), used.sum(-1).astype(jnp.float32))}

    def distill_loss(self, outputs: Array, teacher: Array) -> dict[str, PerExample]:
        """Term "soft_attribute": cross-entropy with all of the teacher's probabilities."""
        aim = jax.nn.sigmoid(jax.lax.stop_gradient(teacher).astype(jnp.float32))
        target = {"aim": aim, "used": jnp.ones(aim.shape, bool)}
        return {f"soft_{name}": term for name, term in self.loss(outputs, target).items()}

    def predict(self, outputs: Array) -> Label:
        return {"scores": _teacher(jax.nn.sigmoid(outputs.astype(jnp.float32) / self.temperature))}

    def from_external(self, predicted: Array, size: tuple[int, int]) -> Label:
        """Probabilities [B, C], each of its own."""
        scores, count = np.asarray(predicted), len(self.classes)
        if scores.ndim != 2 or scores.shape[1] != count or scores.dtype.kind != "f":
            raise LabelError(f"scores is {scores.dtype} {scores.shape}, not floats [B, {count}]")
        wrong = ~((scores >= 0) & (scores <= 1))  # true of NaN
        if wrong.any():
            row, at = (int(axis[0]) for axis in np.nonzero(wrong))
            if not np.isfinite(scores[row, at]):
                raise NotFinite("scores is not finite", row)
            raise LabelError(f"scores holds {scores[row, at]:.4g}, which is outside 0..1", row)
        return {"scores": _teacher(scores.astype(np.float32))}

    def hflip_outputs(self, outputs: Array) -> Array:
        """The outputs: an attribute has no left and right."""
        return outputs

    def certainty(self, label: Label) -> Array:
        """Mean distance of the scores from one half, doubled, [B, 1]."""
        return jnp.abs(2.0 * label["scores"].astype(jnp.float32) - 1.0).mean(-1, keepdims=True)

    def fuse(self, labels: Sequence[Label]) -> Label:
        """The mean score of each attribute over the teachers that know it."""
        scores = np.stack([np.asarray(label["scores"], np.float32) for label in labels])
        known = np.stack([np.broadcast_to(label.get("known", True), scores[0].shape) for label in labels])
        mean = (scores * known).sum(0) / np.maximum(known.sum(0), 1)
        return {"scores": _teacher(mean), "known": known.any(0)}

    def original(self, label: Label, geometry: Geometry) -> Label:
        """The label: an attribute has no frame."""
        return label

    def measure(self, prediction: Label, truth: Label) -> dict[str, np.ndarray]:
        """Scores, truth and whether there is one, [B, C]."""
        scores = np.asarray(prediction["scores"], np.float32)
        known = np.broadcast_to(truth.get("known", True), scores.shape)
        return {"scores": scores, "true": np.asarray(truth["scores"]) >= 0.5, "known": known}

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Means over the attributes: average precision, without interpolation, and F1 at score 0.5, over those with a
        picture that truly has it; and the share of all known attributes that are right at 0.5. NaN without any."""
        precision, f1 = [], []
        scores, true, known = (np.asarray(rows[name]) for name in ("scores", "true", "known"))
        for c in np.flatnonzero((true & known).any(0)):
            score, right = scores[known[:, c], c], true[known[:, c], c]
            precision.append(average_precision(score, right))
            f1.append(2 * (right & (score >= 0.5)).sum() / (right.sum() + (score >= 0.5).sum()))
        correct = ((scores >= 0.5) == true)[known]
        values = (precision, f1, 100.0 * correct)
        return {
            metric.name: float(np.mean(value)) if len(value) else float("nan")
            for metric, value in zip(self.metrics, values, strict=True)
        }

    def judge(self, prediction: Label, truth: Label) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As in the base class; a claim of every attribute whose truth is known, so that low scores calibrate too."""
        scores = np.asarray(prediction["scores"])
        ids = np.flatnonzero(np.broadcast_to(truth.get("known", True), scores.shape))
        return scores[ids], np.asarray(truth["scores"])[ids] >= 0.5, ids

    def items(self, truth: Label) -> np.ndarray:
        """As in the base class; the attributes that are known to be present."""
        return (np.asarray(truth["scores"]) >= 0.5).astype(np.int64) * np.asarray(truth.get("known", True))

    def claims(self, label: Label, policy: Policy) -> Claims:
        """As in the base class; of every known attribute."""
        return self._decided(label, policy).where(np.broadcast_to(label.get("known", True), len(self.classes)))

    def _decided(self, label: Label, policy: Policy) -> Claims:
        label = {name: np.asarray(value) for name, value in label.items()}
        state = self._states(label, policy)
        found = decide(policy, label["scores"], np.arange(len(self.classes)))
        return found._replace(positive=np.asarray(state.positive), negative=np.asarray(state.negative))

    def write_labels(self, directory: str, source: Source, name: str, options: Mapping[str, Any]) -> int:
        """attributes.csv, see `must.tasks.exchange.write_attributes`."""
        return exchange.write_attributes(directory, source, name, self)

    def constant_guess(self, labels: Sequence[Label]) -> Label:
        """How often each attribute is present where it is known."""
        scores = np.stack([label["scores"] for label in labels])
        known = np.stack([np.broadcast_to(label.get("known", True), scores[0].shape) for label in labels])
        mean = (scores * known).sum(0) / np.maximum(known.sum(0), 1)
        return {"scores": mean.astype(np.float32)}

    def draw(self, image: np.ndarray, label: Label, policy: Policy | None = None) -> np.ndarray:
        """The picture over bars of its three surest present attributes, with a policy colored and worded by their
        states."""
        scores = np.asarray(label["scores"], np.float32)
        known = np.broadcast_to(label.get("known", True), scores.shape)
        best = [i for i in np.argsort(-scores, kind="stable") if known[i] and scores[i] >= 0.005][: drawing.ROWS]
        if policy is None:
            rows = [(f"{100 * scores[i]:.0f}% {self.classes[i]}", drawing.bar(scores[i])) for i in best]
        else:
            found = self._decided(label, policy)
            rows = [drawing.claim(self.classes[i], found.scores[i], found.positive[i], found.negative[i]) for i in best]
        return drawing.caption(drawing.upscale(image), rows)


def average_precision(scores: np.ndarray, true: np.ndarray) -> float:
    """sum_n (R_n - R_n-1) P_n over the distinct scores [N] by falling score, with at least one true [N]."""
    order = np.argsort(-scores, kind="stable")
    hits, last = np.cumsum(true[order]), np.append(scores[order][1:] != scores[order][:-1], True)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / hits[-1]
    return float((np.diff(recall[last], prepend=0.0) * precision[last]).sum())


def _teacher(scores: Array) -> Array:
    """Scores of a teacher: neither presence nor absence is certain."""
    xp = np if isinstance(scores, np.ndarray) else jnp
    return uncertain(xp.maximum(scores, FAINTEST))
