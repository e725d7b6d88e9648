"""Image classification with soft labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from must.core import losses
from must.core.labels import half, numbered
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
from must.tasks.label_states import Claims, decide, states, tempered, uncertain

_LEAST = 0.05  # of a probability that claims its class


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One class of `classes` per image, as a distribution.

    Attributes:
      classes: names, in the order of the ids.
      top_k: probabilities that a record lists; the rest is stored as one number.
      hard: learn the most probable class instead of the distribution.
      label_smoothing: share of the target that is spread evenly over all classes.
      softening: T of distillation: targets are raised to 1/T and normalized, logits divided by T, the loss multiplied
        by T^2 (Hinton et al. 2015); ground truth stays what it is.
      taylor: terms of the Taylor series that replace the logarithm of the cross-entropy, which makes it robust to
        wrong labels (Feng et al. 2020); 0 is the logarithm itself.
      temperature: predictions are softmax(logits / temperature).
      dropout: rate before the linear layer.
    """

    classes: tuple[str, ...]
    top_k: int = 5
    hard: bool = False
    label_smoothing: float = 0.0
    softening: float = 1.0
    taylor: int = 0
    temperature: float = 1.0
    dropout: float = 0.0

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("top1", "%", True),
        Metric("top5", "%", True),
        Metric("nll", "nat", False),
    )
    outputs: ClassVar[Mapping[str, str]] = {"probs": "probability of each class, 0..1"}
    terms: ClassVar[tuple[str, ...]] = ("class",)
    optional: ClassVar[tuple[str, ...]] = ("known",)
    whole: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.dropout >= 1:
            raise UserError(f"classification: dropout={self.dropout}: must be at least 0 and below 1")
        for name in ("temperature", "softening"):
            if getattr(self, name) <= 0:
                raise UserError(f"classification: {name} {getattr(self, name)} must be positive")
        if self.taylor < 0 or not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"classification: taylor {self.taylor} or label_smoothing {self.label_smoothing} out of range"
            )

    def head(self) -> Any:
        from must.models.heads import ClassHead

        return ClassHead(len(self.classes), self.dropout)

    def label_spec(self) -> dict[str, ArraySpec]:
        return {
            "ids": ArraySpec((None,), "uint16", doc=f"class ids, most probable first: {numbered(self.classes)}"),
            "probs": ArraySpec((None,), "float16", doc="their probabilities"),
            "rest": ArraySpec((), "float16", doc="probability of all other classes together"),
            "unknown": ArraySpec((None,), "uint16", doc="ids of the classes that this source does not know"),
        }

    def network_spec(self, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        count = len(self.classes)
        return {"probs": jax.ShapeDtypeStruct((count,), np.float32), "known": jax.ShapeDtypeStruct((count,), np.bool_)}

    def transform(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class; the geometry does not matter. Unknown classes have probability 0."""
        ids = np.asarray(label["ids"], np.int64).reshape(-1)
        probs = np.asarray(label["probs"], np.float32).reshape(-1)
        rest = np.float32(np.asarray(label["rest"]).reshape(()))
        if len(ids) != len(probs):
            raise ValueError(f"{len(ids)} class ids with {len(probs)} probabilities")
        if ((ids < 0) | (ids >= len(self.classes))).any():
            raise ValueError(f"class id {ids.max()} with {len(self.classes)} classes")
        if len(set(ids.tolist())) < len(ids):
            raise ValueError(f"class ids {ids.tolist()} name a class twice")
        # Half precision rounds each of K numbers by up to 2^-12.
        if not ((probs >= 0).all() and rest >= 0 and abs(probs.sum() + rest - 1) < 0.02):
            raise ValueError(f"probabilities {probs.tolist()} and rest {rest} do not sum to 1")
        certain = probs.max(initial=0) >= 1  # before what is listed is divided by its sum
        probs, known = spread(ids, probs, rest, len(self.classes)), known_classes(label, len(self.classes))
        if not known.all():
            probs = probs * known / max(float((probs * known).sum()), 1e-12)
        probs = probs.astype(np.float32)
        return {"probs": probs if certain else uncertain(probs), "known": known}

    def restore(self, label: Label, geometry: Geometry) -> Label:
        """The `top_k` largest probabilities, each within 2^-12 (above .9995 within 2^-11: only the
        truth is certain), and the rest, within (K + 1) 2^-12.

        Classes beyond the largest come back with the mean of what they had.
        """
        probs = np.asarray(label["probs"], np.float32)
        ids = np.argsort(-probs, kind="stable")[: self.top_k]
        listed = half(probs[ids])
        rest = max(0.0, 1.0 - float(listed.astype(np.float32).sum()))
        if len(ids) == len(probs):
            rest = 0.0
        unknown = unknown_classes(label)
        return {"ids": ids.astype(np.uint16), "probs": listed, "rest": np.float16(rest), "unknown": unknown}

    def target(self, label: Label, policy: Policy) -> dict[str, Array]:
        """What an example teaches, by the state of each class.

        Returns:
          used: bool [B], the most probable class is positive: the distribution is learned.
          probs: [B, C], that distribution, hardened, softened, smoothed, over the known classes. It stays as sharp as
            the teacher predicts it: calibration decides which labels are used, and a student of flattened labels
            learned less.
          candidates: bool [B, C], the classes that are not negative, where none is positive but some are negative: the
            class is one of them. Elsewhere all False.
          known: bool [B, C].
        """
        probs, count = label["probs"], len(self.classes)
        best, known = jnp.argmax(probs, -1), jnp.broadcast_to(label.get("known", np.ones(count, bool)), probs.shape)
        state = states(policy, tempered(policy, probs), jnp.arange(count))
        finite = jnp.all(jnp.isfinite(probs), -1)
        used = finite & jnp.take_along_axis(state.positive, best[:, None], -1)[:, 0]
        candidates = known & ~state.negative
        doubtful = finite & ~used & candidates.any(-1) & (known & state.negative).any(-1)
        if self.hard:
            probs = jax.nn.one_hot(best, count)
        if self.softening != 1:
            powered = probs ** (1 / self.softening)
            probs = powered / jnp.maximum(powered.sum(-1, keepdims=True), 1e-12)
        even = known / jnp.maximum(known.sum(-1, keepdims=True), 1)
        probs = (1 - self.label_smoothing) * probs + self.label_smoothing * even
        return {"probs": probs, "used": used, "candidates": candidates & doubtful[:, None], "known": known}

    def loss(self, outputs: Array, target: dict[str, Array]) -> dict[str, PerExample]:
        """Term "class": soft cross-entropy, or -log P(one of the candidates); one item per example with a state."""
        used, known, doubtful = target["used"], target["known"], target["candidates"].any(-1)
        logits = jnp.where((used | doubtful)[:, None], outputs, 0.0).astype(jnp.float32)
        over_known = only_known(logits, known) / self.softening
        if self.taylor:
            value = losses.taylor_cross_entropy(over_known, target["probs"], self.taylor)
        else:
            value = losses.soft_cross_entropy(over_known, target["probs"])
        partly = among(logits, jnp.where(doubtful[:, None], target["candidates"], known), known)
        value = jnp.where(used, value * self.softening**2, jnp.where(doubtful, partly, 0.0))
        return {"class": PerExample(value, (used | doubtful).astype(jnp.float32))}

    def predict(self, outputs: Array) -> Label:
        return {"probs": uncertain(jax.nn.softmax(outputs.astype(jnp.float32) / self.temperature))}

    def from_external(self, predicted: Array, size: tuple[int, int]) -> Label:
        """Probabilities [B, C]."""
        return {"probs": uncertain(distribution(predicted, ("B",), len(self.classes)))}

    def hflip_outputs(self, outputs: Array) -> Array:
        """The outputs: a class has no left and right."""
        return outputs

    def certainty(self, label: Label) -> Array:
        """Margin between the first and the second class, [B, 1]."""
        best, _ = jax.lax.top_k(label["probs"], min(2, len(self.classes)))
        return best[:, :1] - best[:, 1:2] if best.shape[-1] > 1 else best

    def fuse(self, labels: Sequence[Label]) -> Label:
        """The mean distribution, of each class over the teachers that know it."""
        probs = np.stack([np.asarray(label["probs"], np.float32) for label in labels])
        known = np.stack([np.broadcast_to(label.get("known", True), probs[0].shape) for label in labels])
        mean = (probs * known).sum(0) / np.maximum(known.sum(0), 1)
        return {"probs": uncertain(mean / np.maximum(mean.sum(-1, keepdims=True), 1e-12)), "known": known.any(0)}

    def original(self, label: Label, geometry: Geometry) -> Label:
        """The label: a class has no frame."""
        return label

    def measure(self, prediction: Label, truth: Label) -> dict[str, np.ndarray]:
        """Whether the true class is the first, and among the first five; -log of its probability. Of ties the first."""
        probs, true = np.asarray(prediction["probs"]), np.asarray(truth["probs"]).argmax(-1)[:, None]
        best = np.argsort(-probs, -1, kind="stable")[:, :5]
        probability = np.take_along_axis(probs, true, -1)[:, 0]
        return {
            "top1": (best[:, :1] == true).any(-1).astype(np.float32),
            "top5": (best == true).any(-1).astype(np.float32),
            "nll": -np.log(np.maximum(probability, 1e-12)).astype(np.float32),
        }

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Means over the examples; NaN without any."""
        scale = {metric.name: 100.0 if metric.unit == "%" else 1.0 for metric in self.metrics}
        return {name: scale[name] * float(np.mean(rows[name])) if len(rows[name]) else float("nan") for name in scale}

    def judge(self, prediction: Label, truth: Label) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As in the base class; a claim of every class with at least 5% and of the most probable one."""
        probs, known = np.asarray(prediction["probs"]), np.asarray(truth.get("known", True))
        claimed = np.flatnonzero(known & ((probs >= _LEAST) | (probs == probs.max())))
        return probs[claimed], claimed == np.asarray(truth["probs"]).argmax(), claimed

    def items(self, truth: Label) -> np.ndarray:
        """As in the base class; one item."""
        return np.eye(len(self.classes), dtype=np.int64)[np.asarray(truth["probs"]).argmax()]

    def claims(self, label: Label, policy: Policy) -> Claims:
        """As in the base class; of every known class with at least 5% and of the most probable one."""
        probs, known = np.asarray(label["probs"]), np.asarray(label.get("known", np.ones(len(self.classes), bool)))
        claimed = known & ((probs >= _LEAST) | (probs == probs.max())) & np.isfinite(probs).all()
        return self._decided(label, policy).where(claimed)

    def _decided(self, label: Label, policy: Policy) -> Claims:
        """Of every class. Only the most probable one is taken, and where all are ruled out the label makes no claim
        at all."""
        probs, known = (
            np.asarray(label["probs"], np.float32),
            np.asarray(label.get("known", np.ones(len(self.classes), bool))),
        )
        found = decide(policy, tempered(policy, probs), np.arange(len(self.classes)))
        negative = found.negative & (known & ~found.negative).any()
        return found._replace(positive=found.positive & (np.arange(len(probs)) == probs.argmax()), negative=negative)

    def write_labels(self, directory: str, source: Source, name: str, options: Mapping[str, Any]) -> int:
        """classes.csv, see `must.tasks.exchange.write_classes`."""
        return exchange.write_classes(directory, source, name, self)

    def constant_guess(self, labels: Sequence[Label]) -> Label:
        """The mean distribution; its largest entry is the majority class."""
        return {"probs": np.mean([label["probs"] for label in labels], axis=0, dtype=np.float32)}

    def draw(self, image: np.ndarray, label: Label, policy: Policy | None = None) -> np.ndarray:
        """The picture over bars of the three most probable classes, with a policy colored and worded by their
        states."""
        return drawing.caption(drawing.upscale(image), self.bars(label, policy))

    def bars(self, label: Label, policy: Policy | None = None) -> list[tuple[str, np.ndarray]]:
        """The three most probable classes, rows of `drawing.caption`."""
        probs = np.asarray(label["probs"], np.float32)
        best = [i for i in np.argsort(-probs, kind="stable")[:3] if probs[i] >= 0.005]
        if policy is None:
            return [(f"{100 * probs[i]:.0f}% {self.classes[i]}", drawing.bar(probs[i])) for i in best]
        found = self._decided(label, policy)
        return [drawing.claim(self.classes[i], found.scores[i], found.positive[i], found.negative[i]) for i in best]


ROUNDING = 1e-3  # by which a sum of probabilities may miss 1


def spread(ids: Array, probs: Array, rest: Array, classes: int) -> Array:
    """The whole distribution: the rest mass evenly over the unlisted classes, then divided by its sum.

    Args:
      ids: int [..., K]; an id outside the label space lists nothing.
      probs: [..., K].
      rest: [...].
      classes: C.

    Returns:
      [..., C]; NumPy for NumPy, JAX for JAX.
    """
    hits = ids[..., None] == np.arange(classes)
    unlisted = ~hits.any(-2)
    count = unlisted.sum(-1)
    # Adding the comparison guards both divisions in NumPy and JAX alike.
    each = rest * (count > 0) / (count + (count == 0))
    out = (hits * probs[..., None]).sum(-2) + unlisted * each[..., None]
    total = out.sum(-1)
    return out / (total + (total == 0))[..., None]


def distribution(predicted: Array, axes: tuple[str, ...], classes: int) -> np.ndarray:
    """What another network calls class probabilities, checked; host NumPy.

    Args:
      predicted: [*axes, C].
      axes: letters of the axes before the last, batch first.
      classes: C.

    Returns:
      float32 [*axes, C].

    Raises:
      LabelError: other axes, no float, not finite, negative, or a sum that misses 1 by more than `ROUNDING`.
    """
    probs = np.asarray(predicted)
    if probs.ndim != len(axes) + 1 or probs.shape[-1] != classes or probs.dtype.kind != "f" or 0 in probs.shape[1:]:
        raise LabelError(f"probs is {probs.dtype} {probs.shape}, not floats [{', '.join(axes)}, {classes}]")
    probs = probs.astype(np.float32, copy=False)
    total, least = probs.sum(-1), probs.min(-1)
    wrong = ~((np.abs(total - 1) <= ROUNDING) & (least >= 0))  # true of NaN
    if wrong.any():
        where = tuple(axis[0] for axis in np.nonzero(wrong))
        if not np.isfinite(total[where]):
            raise NotFinite("probs is not finite", int(where[0]))
        sums = f"least {least[where]:.4g}, sum {total[where]:.4g}"
        raise LabelError(f"probs are no probabilities: {sums}", int(where[0]))
    return probs


def known_classes(label: Label, classes: int) -> np.ndarray:
    """bool [C] from the ids that a label in record form lists as unknown to its source; records of the first version
    list none.

    Raises:
      ValueError: an id outside the label space.
    """
    unknown = np.asarray(label.get("unknown", ()), np.int64).reshape(-1)
    if unknown.size and not 0 <= unknown.min() <= unknown.max() < classes:
        raise ValueError(f"unknown class id {unknown.max()} with {classes} classes")
    known = np.ones(classes, bool)
    known[unknown] = False
    return known


def unknown_classes(label: Label) -> np.ndarray:
    """The inverse of `known_classes`, from a label in network form."""
    return np.flatnonzero(~np.asarray(label.get("known", True))).astype(np.uint16)


def among(logits: Array, candidates: Array, known: Array) -> Array:
    """-log P(one of the candidates | one of the known classes) of softmax(logits): [..., C] -> [...].

    What a label that rules classes out teaches without saying which of the others it is (Jin and Ghahramani 2002,
    "Learning with Multiple Labels"); 0 where it rules out none, and at least 0. Unknown classes get no gradient.
    """
    masked = [jax.nn.logsumexp(jnp.where(where, logits, -jnp.inf), -1) for where in (known, candidates & known)]
    return masked[0] - masked[1]


def only_known(logits: Array, known: Array) -> Array:
    """Logits of a distribution over the known classes alone: unknown ones are neither right nor wrong."""
    return jnp.where(known, logits, -1e9)
