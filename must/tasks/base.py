"""What a task is: a frozen dataclass whose fields are its hyper-parameters and whose methods are pure.

A new task is one new file with one subclass; nothing else has to know it. A configuration names it by the class's
import path ("my_project.edges:EdgeMap") or, for the tasks that come with `must`, by its file name ("depth").
"""

import dataclasses
import functools
import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from must.core.arguments import check, check_types
from must.core.types import Array, ArraySpec, Geometry, Label, Metric, PerExample, Policy, Source, UserError
from must.data.geometry import own_frame
from must.tasks.dense import AtOutputs
from must.tasks.label_states import Claims

_POSITIVE = (
    "width",
    "stride",
    "strides",
    "head_stride",
    "shuffle",
    "top_k",
    "max_boxes",
    "max_detections",
    "candidates",
)
_SIZES = {**dict.fromkeys(_POSITIVE, 1), "depth": 0, "dropout": 0}


@dataclasses.dataclass(frozen=True)
class Task:
    """The verbs of a task; B is the batch, record and network form of a label are explained in `must.core.types`.

    A label's way:    record --encode--> network form --target--> target --loss(outputs, .)--> per-example terms
    A teacher's way:  outputs --predict--> network form --restore--> record
    Others' networks: what they say --from_external--> network form --restore--> record
    Evaluation:       outputs --predict--> network form --original--> measure <--transform-- record
    """

    metrics: ClassVar[tuple[Metric, ...]]  # the first one is the headline
    terms: ClassVar[
        tuple[str, ...]
    ]  # names of what `loss` returns; `distill_loss` returns the same with "soft_" before
    pdf_terms: ClassVar[tuple[str, ...]] = ()  # names of what `disagreement` returns
    optional: ClassVar[
        tuple[str, ...]
    ] = ()  # fields that a label in network form may lack: all classes known, all certain
    whole: ClassVar[bool] = False  # its label is of the picture as a whole: cutting a part out or in leaves it as it is

    loss_scale: ClassVar[float] = 1.0  # of its loss beside other tasks' where the settings name none
    label_policy: ClassVar[Mapping[str, Any]] = {}  # which of its pseudo labels count where the settings do not say
    can_be_empty: ClassVar[bool] = False  # its truth may be that nothing is there
    outputs: ClassVar[Mapping[str, str]] = {}  # meaning and unit of the fields of a prediction in network form
    fitted: ClassVar[tuple[str, ...]] = ()  # hyper-parameters that `defaults` gives; labels are read if one is left out

    def __post_init__(self):
        """Refuses hyper-parameters of other types, sizes that are none, and classes without names of their own."""
        kind, values = type(self).__name__.lower(), dict(vars(self))
        for name in ("classes", "strides"):
            if isinstance(values.get(name), list | tuple):
                object.__setattr__(self, name, tuple(values[name]))
        check_types(type(self), values, f"{kind}: ")
        if "classes" in values and not self.classes:
            raise UserError(f"{kind}: no classes")
        if wrong := [one for one, count in Counter(values.get("classes", ())).items() if count > 1 or not one]:
            raise UserError(f"{kind}: the class {wrong[0]!r} " + ("occurs twice" if wrong[0] else "has no name"))
        for name, value in values.items():
            for one in value if name == "strides" else (value,):
                if name in _SIZES and one < _SIZES[name]:
                    raise UserError(f"{kind}: {name}={value}: must be at least {_SIZES[name]}")

    @classmethod
    def defaults(cls, labels: Iterable[Label]) -> dict[str, Any]:
        """Those hyper-parameters of `fitted` that suit training labels, in record form."""
        return {}

    def head(self) -> Any:
        """A flax module: `Features` -> outputs (any pytree with leading axis B)."""
        raise NotImplementedError

    def label_spec(self) -> dict[str, ArraySpec]:
        """The fields of a label in record form."""
        raise NotImplementedError

    def network_spec(self, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        """The fields of one example's label in network form, without B; `size` is (height, width) in pixels."""
        raise NotImplementedError

    def check_frame(self, size: tuple[int, int]) -> None:
        """UserError where this task's own network cannot have a frame of (height, width) pixels."""

    def transform(self, label: Label, geometry: Geometry) -> Label:
        """Record form -> network form under one drawn geometry; host NumPy.

        Raises:
          ValueError: the label cannot be right (a box outside its image, an id outside the label space, ...); the
            message says what, the caller adds the record's id.
        """
        raise NotImplementedError

    def encode(self, label: Label, geometry: Geometry) -> Label:
        """`transform` for training: with the fixed shapes of `network_spec`, and without what cannot be learned at
        this size."""
        return self.transform(label, geometry)

    def for_loss(self) -> Any:
        """What encodes labels that only the loss reads, an object with `encode` and `blank`: the task, or its
        `at_outputs(label, geometry)`, see `must.tasks.dense.AtOutputs`."""
        return AtOutputs(self) if hasattr(self, "at_outputs") else self

    def admissible(self, label: Label, geometry: Geometry) -> Geometry:
        """The drawn geometry of a clip without the mirroring or reversal that this label, in record form, cannot
        follow."""
        return geometry

    def paste(self, label: Label | None, other: Label | None, window: tuple[int, int, int, int]) -> Label:
        """What is known of a picture into which a rectangle of another one was pasted; one example's, host NumPy.

        Nothing may be claimed of a place that its own picture's label does not claim. A task may do without, or be
        `whole`: elsewhere CutMix and cutout are refused before anything trains.

        Args:
          label: in network form; None where nothing is known of the picture around the rectangle.
          other: of the picture that the rectangle was taken from, at the same place; None where nothing is known of it.
            One of the two is there.
          window: (y0, x0, y1, x1), the rectangle, pixels.
        """
        raise NotImplementedError

    def restore(self, label: Label, geometry: Geometry) -> Label:
        """Network form of one example -> record form in the frame of the original image; host NumPy."""
        raise NotImplementedError

    def original(self, label: Label, geometry: Geometry) -> Label:
        """A prediction for one example in the frame of the original image, where it is compared with the truth.

        By default what a record of it holds; a task whose records are coarser than its predictions does better.
        """
        return self.transform(self.restore(label, geometry), own_frame(geometry.source_size))

    def target(self, label: Label, policy: Policy) -> Any:
        """Network form, leading axis B -> what the loss reads, fixed shapes; jnp, traceable."""
        raise NotImplementedError

    def loss(self, outputs: Any, target: Any) -> dict[str, PerExample]:
        """Named per-example terms, values and norms [B]; never reduced over B."""
        raise NotImplementedError

    def distill_loss(self, outputs: Any, teacher: Any) -> dict[str, PerExample]:
        """Named per-example terms of learning all that a teacher's outputs say; no gradient reaches the teacher.

        By default the loss on the teacher's prediction, all of which is used: soft distillation for a task whose
        predictions keep what the outputs say.
        """
        target = self.target(self.predict(jax.lax.stop_gradient(teacher)), Policy(0.0, 0.0))
        return {f"soft_{name}": term for name, term in self.loss(outputs, target).items()}

    def disagreement(
        self, outputs: Any, teacher: Any, shapes: dict[int, tuple[int, int]]
    ) -> tuple[dict[int, Array], dict[str, PerExample]]:
        """How far student and teacher are apart at every place of a pyramid, and terms that weigh places by it.

        A task may do without: PDF is then refused for it before anything trains.

        Args:
          outputs: of the student.
          teacher: outputs of the teacher.
          shapes: {stride: (height, width)} of the pyramid's levels.

        Returns:
          ({stride: [B, h, w] >= 0, without gradient}, {term: PerExample}); levels may be left out.
        """
        raise NotImplementedError

    def foreground(self, target: Any, shapes: dict[int, tuple[int, int]]) -> dict[int, Array]:
        """Which places of a pyramid show an object of a target, {stride: bool [B, h, w]}.

        A task may do without: DeFeat is then refused for it before anything trains.
        """
        raise NotImplementedError

    def predict(self, outputs: Any) -> Label:
        """Outputs -> label in network form with scores, leading axis B; jnp, traceable."""
        raise NotImplementedError

    def from_external(self, predicted: Any, size: tuple[int, int]) -> Label:
        """Predictions of a network from another project, in that network's own form -> network form; host NumPy.

        A task may do without: a teacher of another project then has to give its labels in network form.

        Args:
          predicted: of B images; each task documents which forms it takes.
          size: (height, width) of the images that the network saw, pixels.

        Returns:
          Label in network form, leading axis B.

        Raises:
          LabelError: what cannot be right; the message names the field.
        """
        raise NotImplementedError(f"{type(self).__name__} has no from_external(); return its labels in network form")

    def hflip_outputs(self, outputs: Any) -> Any:
        """Outputs on left-right mirrored images, brought back to the frame of the originals; leading axis B."""
        raise NotImplementedError

    def both_views(self, outputs: Any, mirrored: Any) -> Any:
        """Outputs for a picture and those for its mirror image, brought back, as one: by default their mean, for tasks
        whose outputs mean the same place by place."""
        return jax.tree.map(lambda a, b: 0.5 * (a + b), outputs, mirrored)

    def fuse(self, labels: Sequence[Label]) -> Label:
        """Predictions of several teachers for the same pictures as one, whose scores fall where they disagree.

        A task may do without: `must.fuse` then refuses it.

        Args:
          labels: of each teacher, in network form, leading axis B; host NumPy.
        """
        raise NotImplementedError(f"{type(self).__name__} has no fuse(); use one teacher")

    def stitch(self, parts: Sequence[tuple[Label, Geometry]], size: tuple[int, int]) -> Label:
        """Predictions for overlapping parts of one picture as one; host NumPy.

        By default that for the whole picture, for tasks whose labels are of the picture as a whole.

        Args:
          parts: (label in network form without B, geometry of the picture in the network's frame) of the whole picture
            first, then of tiles of its own scale (`must.tasks.tiles`).
          size: (height, width) of the picture, pixels.

        Returns:
          Label in network form without B, in the frame of `size`.
        """
        return self.transform(self.restore(*parts[0]), own_frame(size))

    def measure(self, prediction: Label, truth: Label) -> dict[str, Array]:
        """Both in one frame, leading axis B -> rows [B, ...] that `summarize` needs; host NumPy.

        Headline scores are measured in the frame of the original image, see `must.evaluate.evaluate`.
        """
        raise NotImplementedError

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Rows of any number of examples, [N, ...] -> {metric name: value in its unit}; host NumPy.

        Rows are concatenated over examples, short ones filled up with zeros; resampling them gives bootstrap intervals
        over images.
        """
        raise NotImplementedError

    def agreement(self, outputs: Any, others: Any) -> Label:
        """Scores from how far two outputs for the same pictures agree, fields of a label in network form; jnp,
        traceable.

        For a task whose network outputs no confidence; {} for all others.
        """
        return {}

    def judge(self, prediction: Label, truth: Label) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """What one example's prediction claims: (score [N], correct [N], class id [N]); host NumPy.

        Thresholds and calibration are chosen from these on a validation split; ids are 0 where there are no classes.
        None for a task without scores.
        """
        return None

    def items(self, truth: Label) -> np.ndarray:
        """How many true items of each class one example has, int [C], what `judge` could find; [1] without classes."""
        raise NotImplementedError

    def certainty(self, label: Label) -> Array:
        """How sure a label in network form is of itself, leading axis B -> [B, D], with D = 0 for one without scores.

        Examples are near one another, for `must.pseudo_label.weigh`, when teacher and student are as sure there; jnp,
        traceable.
        """
        return jnp.zeros((len(next(iter(label.values()))), 0))

    def claims(self, label: Label, policy: Policy) -> Claims | None:
        """The claims of one example's label and their states under a policy; host NumPy. None for a task without
        scores.

        The states are those that `target` gives the loss: a pixel is positive or ignored, never negative.
        """
        return None

    def draw(self, image: np.ndarray, label: Label, policy: Policy | None = None) -> np.ndarray:
        """A picture of one label in network form, for truth, teacher and student.

        Args:
          image: uint8 [H, W, 3].
          label: of this frame.
          policy: shows what becomes of the label: what is taken as true plainly, what is ignored dashed and hatched.
            Without one the label is drawn as it is.

        Returns:
          uint8 [factor * H + caption, factor * W, 3], the picture enlarged by a whole factor over an optional caption.
        """
        raise NotImplementedError

    def on_scale_of(self, label: Label, reference: Label) -> Label:
        """A label that `draw` colors on the scale of another one, so that pictures side by side compare."""
        return label

    def constant_guess(self, labels: Sequence[Label]) -> Label | None:
        """The best prediction that ignores the picture, from training labels in network form; without B.

        None for a task that has no rule: then the training label is taken that scores best on the others.
        """
        return None

    def blank(self, size: tuple[int, int]) -> Label:
        """A label in network form that stands where none is known; it always travels with weight 0."""
        return dict(_blank(self, tuple(size)))


@runtime_checkable
class Exports(Protocol):
    """A task whose labels can be written as files for other tools."""

    def write_labels(self, directory: str, source: Source, name: str, options: Mapping[str, Any]) -> int:
        """Writes the labels of a source below a directory and returns how many there are.

        Args:
          directory: of the task's files; created when missing.
          source: of labeled examples.
          name: key of the labels.
          options: of `must.export_labels`, of which the task takes what concerns it.

        Raises:
          UserError: no labels of the task, or a label that cannot be right.
        """
        ...


@runtime_checkable
class LabelsImages(Protocol):
    """A task with one class per image, as probabilities: what SLaM, estimated accuracies and joint experts need."""

    classes: tuple[str, ...]
    temperature: float
    hard: bool
    label_smoothing: float


@functools.lru_cache(maxsize=256)  # most rows of a partly labeled set need one for most tasks
def _blank(task: Task, size: tuple[int, int]) -> Label:
    fields = {name: np.zeros(spec.shape, spec.dtype) for name, spec in task.network_spec(size).items()}
    for array in fields.values():
        array.setflags(write=False)
    return fields


def describe(task: Task) -> dict[str, Any]:
    """The section of a configuration that `build` makes this task from, in plain values."""
    cls = type(task)
    name, own = cls.__name__, cls.__module__.removeprefix("must.tasks.")
    is_ours = cls.__module__ == f"must.tasks.{own}" and name == "".join(part.capitalize() for part in own.split("_"))
    values = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return {"kind": own if is_ours else f"{cls.__module__}:{name}", **values}


def build(kind: str, **hyper_parameters: Any) -> Task:
    """Makes a task from its name ("depth") or import path ("package.module:Class") and its hyper-parameters.

    Raises:
      UserError: no such task, or an unknown hyper-parameter.
    """
    cls = class_of(kind)
    check(cls, hyper_parameters, f"task kind {kind!r}")
    try:
        return cls(**hyper_parameters)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UserError(f"task kind {kind!r}: {error}") from error


def class_of(kind: str) -> type[Task]:
    """The class that a kind names.

    Raises:
      UserError: no such task.
    """
    if not isinstance(kind, str):
        raise UserError(f"task kind {kind!r}: expected text")
    module_name, _, class_name = kind.partition(":")
    try:
        module = importlib.import_module(module_name if class_name else f"must.tasks.{kind}")
        return getattr(module, class_name or "".join(part.capitalize() for part in kind.split("_")))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"task kind {kind!r}: {error}") from None


def knows(kind: str) -> bool:
    """Whether a kind names a task rather than a data set."""
    try:
        return isinstance(cls := class_of(kind), type) and issubclass(cls, Task)
    except UserError:
        return False
