"""Types shared by the whole package; arrays are NumPy on the host and JAX on the device."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = Any
PyTree = Any

# The fields of one task's annotation of one image, in one of two forms with the same meaning:
#   record form   as annotated or predicted, in coordinates of the original image, any size; `Task.label_spec`
#   network form  fixed shapes in the network's frame, as stacked in batches; `Task.network_spec`
# `Task.transform` converts the first to the second, `Task.restore` the second to the first.
Label = dict[str, Array]


class UserError(Exception):
    """An error that the user can fix; the message is one line that names the file, key or record id."""

    def __init__(self, message: str = ""):
        super().__init__(one_line(message))


_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: str, form: str = "\\x{:02x}") -> str:
    """The text with every line break, control character and byte that is no UTF-8 (PEP 383) as `form` of its code."""
    return _BREAKS.sub(lambda found: form.format(ord(found[0]) - (0xDC00 if found[0] >= "\ud800" else 0)), text)


def first_line(error: BaseException) -> str:
    """The first line of a library's error, at most 200 characters; its type where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class LabelError(ValueError):
    """An invalid label; the message is "<field> <problem>", to which the catching code adds task and record.

    Attributes:
      row: of the batch, or None.
    """

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


class NotFinite(LabelError):
    """A label of one image with NaN or infinity in it; a label pass leaves that image out."""


class ArraySpec(NamedTuple):
    """One field of a label as stored in a record.

    Attributes:
      shape: sizes, with None for those that vary between records.
      dtype: NumPy name of the stored type.
      encoding: "none", "zlib", or "png" (uint8 or int8 [H, W], [H, W, 1] or [H, W, 3]; uint16 [H, W]).
      doc: meaning and unit.
    """

    shape: tuple[int | None, ...]
    dtype: str
    encoding: str = "none"
    doc: str = ""


class Example(NamedTuple):
    """One image or video with its labels.

    Attributes:
      id: unique over all sources of a run, "<source>/<name>".
      image: uint8 [H, W, 3], RGB; or a video, an array [T, H, W, 3] or an object with that `shape` which decodes frames
        on access, video[indices] -> uint8 [len(indices), H, W, 3].
      labels: {task name: Label in record form}; absent tasks are not annotated.
      weights: {task name: weight of its label}; 1 for absent tasks.
    """

    id: str
    image: np.ndarray
    labels: dict[str, Label]
    weights: dict[str, float] = {}


class Source(Protocol):
    """A deterministic random-access data set: index -> Example.

    Attributes:
      name: first part of every id.
      ids: in order, available without decoding.
      classes: {task name: class names} of the tasks whose labels contain class ids.
      fingerprint: hash that changes with the content.
    """

    # Read-only properties, so that implementations may use any sequence or mapping type.
    @property
    def name(self) -> str: ...

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Geometry(NamedTuple):
    """The map from an original image to the network's frame: scale, then shift, then flip.

    A point (y, x) of the original, in pixels with (0, 0) the outer corner of the first pixel, maps to
    (y * scale[0] + offset[0], x * scale[1] + offset[1]); with `flip`, x becomes size[1] - x.

    Attributes:
      source_size: (height, width) of the original, pixels.
      size: (height, width) of the network's frame, pixels.
      scale: network pixels per original pixel, (vertical, horizontal).
      offset: network position of the original's corner, (vertical, horizontal), pixels.
      flip: left to right.
      zoom: magnification relative to the whole image in the frame; metric depth is divided by it.
      reverse: play videos backwards.
    """

    source_size: tuple[int, int]
    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]
    flip: bool = False
    zoom: float = 1.0
    reverse: bool = False


class Policy(NamedTuple):
    """Thresholds on calibrated scores that make pseudo labels positive, ignored or negative; scalars or one per class.

    score >= positive: positive; negative <= score < positive: ignored, no loss; score < negative: negative (absent).
    Ground truth, and nothing else, has score 1 and is always positive. positive == negative gives two states (MuST:
    0.5). A task's `target` defines the effect of the states on its loss.

    Attributes:
      positive: [] or [C].
      negative: [] or [C].
      temperature: [], divides the logits of a class distribution before scoring (Guo et al. 2017); the distribution
        that the student learns is unchanged.
      curve: [K] or [C, K], the calibrated score at the scores 0, 1 / (K - 1), ..., 1, linear in between.
    """

    positive: Array = 0.5
    negative: Array = 0.5
    temperature: Array = 1.0
    curve: Array = (0.0, 1.0)

    def checked(self, task: str) -> "Policy":
        """Itself; UserError naming the task where a threshold is no number or the negative one is the higher."""
        try:
            positive, negative = (np.asarray(bound, np.float64) for bound in self[:2])
            right = bool(np.all(positive >= negative))  # never of NaN
        except (TypeError, ValueError):
            right = False
        if not right:
            raise UserError(
                f"policy of {task}: positive={self.positive}, negative={self.negative}: expected two numbers, or one "
                "per class each, of which the negative one is not the higher"
            )
        return self


class Features(NamedTuple):
    """Output of backbones and necks.

    Attributes:
      pyramid: {stride: [B, H / stride, W / stride, C]}; for videos [B, T, H / stride, W / stride, C], with a possibly
        smaller T.
      pooled: [B, C], global average of the coarsest backbone level.
    """

    pyramid: dict[int, Array]
    pooled: Array


class Model(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: (key, inputs [B, H, W, 3] or [B, T, H, W, 3] uint8) -> variables, {"params": ..., other collections}.
      apply: (variables, inputs, *, train: bool, key, axis_name=None) -> ({task name: outputs}, model_state), where
        model_state is the variables without "params"; batch statistics are taken over `axis_name` unless it is None.
        A training batch that was padded to the devices comes with present=`Batch.present`: the rows that enter them.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., tuple[dict[str, Array], PyTree]]


class Batch(NamedTuple):
    """The input of one step; all arrays have a leading axis B.

    Attributes:
      inputs: {view: uint8 [B, H, W, 3], for videos [B, T, H, W, 3]}.
      labels: {supervision: Label in network form}; a supervision is a task, or a task from one source.
      weights: {supervision: float32 [B]}; 0 means absent and excluded from the denominator, see `weighted_sum`.
      ids: int64 [B], position in the source, for joining per-example state; -1 is padding.
      extras: {supervision: {name: array [B, ...]}}, per-example side information.
      present: bool [B], False in rows added to divide the batch by the devices; None when there are none.
    """

    inputs: dict[str, Array]
    labels: dict[str, Label]
    weights: dict[str, Array]
    ids: Array
    extras: dict[str, dict[str, Array]] = {}
    present: Array | None = None


class PerExample(NamedTuple):
    """A loss term or metric before reduction over the batch.

    Attributes:
      value: float [B], sum over the example's items (pixels, boxes, ...).
      norm: float [B], number of items.
    """

    value: Array
    norm: Array


class TrainState(NamedTuple):
    """The state of a training run; arrays only.

    Attributes:
      step: int32 [].
      params: trained parameters.
      model_state: running statistics of the model.
      opt_state: optax state.
      aux_state: balancers, weighters, running target statistics.
      ema: {"params", "model_state"}, exponential moving averages of both.
      key: PRNG key that every step's randomness is derived from.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    aux_state: PyTree
    ema: PyTree
    key: Array


class Objective(NamedTuple):
    """The objective of a recipe, the only part of the train step that differs between recipes.

    Attributes:
      init: (key) -> (params, aux_state) of adaptors and statistics, stored beside the model's own.
      names: of the terms, "<task>/<term>", known before the first step.
      terms: (params, model_state, aux_state, frozen, batch, key, axis_name) ->
        ({name: Ratio of local sums}, model_state, aux_state); `frozen` contains the teachers' variables.
      scales: {name: fixed factor of the term}.
      shared: params (or gradients of the same structure) -> the part that all tasks share.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    names: tuple[str, ...]
    terms: Callable[..., tuple[dict[str, Any], PyTree, PyTree]]
    scales: dict[str, float]
    shared: Callable[[PyTree], PyTree] = lambda params: params["model"]


class Balance(NamedTuple):
    """Task weights from the values of the tasks' losses or from their gradients.

    The loss of a task is the sum of its terms times `Objective.scales`.

    Attributes:
      init: (tasks) -> state.
      update: (losses {task: []}, present {task: bool []}, gram, state) -> (weights {task: []}, state); absent tasks
        keep their state and do not affect the others.
      gram: whether `update` needs `gram` [T, T], inner products of the tasks' gradients of the shared parameters, in
        the order of `losses`, 0 for absent tasks; otherwise it is None.
      shared_only: weights apply only to the gradients of the shared parameters, not to those of the heads.
    """

    init: Callable[..., PyTree]
    update: Callable[..., tuple[dict[str, Array], PyTree]]
    gram: bool = False
    shared_only: bool = False


class Teacher(NamedTuple):
    """A predictor that labels images.

    Attributes:
      name: for provenance and messages.
      tasks: {task name: Task} that it predicts.
      predict: uint8 [B, H, W, 3] of `size` -> {task name: Label in network form, leading axis B}.
      size: (height, width) of its input, pixels; None for one that takes pictures of any size as they are.
      fingerprint: hash of its weights or code.
    """

    name: str
    tasks: dict[str, Any]
    predict: Callable[[Array], dict[str, Label]]
    size: tuple[int, int] | None
    fingerprint: str


class Metric(NamedTuple):
    """One metric of a task.

    Attributes:
      name: as printed.
      unit: "%", "m", "deg", ... or "" for a ratio.
      higher_is_better: direction.
    """

    name: str
    unit: str
    higher_is_better: bool
