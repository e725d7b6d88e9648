"""The vocabulary shared by every room: what an example, a label, a batch and a model are.

No behavior lives here beyond small constructors; arrays are NumPy on the host and JAX on the device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = Any
PyTree = Any

# A label is the fields of one task's annotation of one image. It has two forms with the same meaning:
#   record form   as annotated or predicted, raw, in the frame of the original image, any size; `Task.label_spec`
#   network form  fixed shapes in the frame that the network sees, what a batch stacks; `Task.network_spec`
# `Task.transform` takes the first to the second, `Task.restore` takes the second back.
Label = dict[str, Array]


class UserError(Exception):
    """Something that the user can mend; the message is one line that names the file, key or record id."""


class LabelError(ValueError):
    """A label that cannot be right; the message is "<field> <what is wrong>", who catches it adds task and record.

    Attributes:
      row: of the batch, or None where it is none in particular.
    """

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


class ArraySpec(NamedTuple):
    """One field of a label as a record stores it.

    Attributes:
      shape: sizes, with None for one that varies from record to record.
      dtype: NumPy name of the stored type.
      encoding: "none", "zlib", or "png" (uint8 or int8 [H, W], [H, W, 1] or [H, W, 3]; uint16 [H, W]).
      doc: what it holds, with its unit.
    """

    shape: tuple[int | None, ...]
    dtype: str
    encoding: str = "none"
    doc: str = ""


class Example(NamedTuple):
    """One image or video and what is known about it.

    Attributes:
      id: unique over all sources of a run, "<source>/<name>".
      image: uint8 [H, W, 3], RGB; or a video: an array [T, H, W, 3], or what has that `shape` and gives the frames of
        an array of indices, video[indices] -> uint8 [len(indices), H, W, 3], so that frames are decoded when asked for.
      labels: {task name: Label in record form}; a task that is absent is not annotated here.
      weights: {task name: how much its label counts}; 1 for a task that is absent.
    """

    id: str
    image: np.ndarray
    labels: dict[str, Label]
    weights: dict[str, float] = {}


class Source(Protocol):
    """A random-access data set: index -> Example, always the same one.

    Attributes:
      name: first part of every id.
      ids: the ids in order, known without decoding anything.
      classes: {task name: class names} for the tasks whose labels hold class ids.
      fingerprint: hash that changes when the content does.
    """

    # Read-only properties, so that a class may hold any kind of sequence or mapping.
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
    """Where an original image lands in the network's frame: scale, then shift, then mirror.

    A point at (y, x) of the original, in pixels with (0, 0) the outer corner of the first pixel, lands at
    (y * scale[0] + offset[0], x * scale[1] + offset[1]); when `flip`, x becomes size[1] - x.

    Attributes:
      source_size: (height, width) of the original, pixels.
      size: (height, width) of the network's frame, pixels.
      scale: network pixels per original pixel, (vertical, horizontal).
      offset: network position of the original's corner, (vertical, horizontal), pixels.
      flip: mirrored left to right.
      zoom: magnification relative to showing the whole image in the frame; metric depth is divided by it.
      reverse: of a video, played backwards.
    """

    source_size: tuple[int, int]
    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]
    flip: bool = False
    zoom: float = 1.0
    reverse: bool = False


class Policy(NamedTuple):
    """Which labels are believed, by calibrated score; scalars or one value per class.

    score >= positive: positive, taken as true; negative <= score < positive: ignored, no loss either way; below
    negative: negative, taken as absent. Ground truth, and nothing else, has score 1 and is always taken. positive ==
    negative gives hard two-state labels (MuST: 0.5). What the states mean for a task's loss its `target` says.

    Attributes:
      positive: [] or [C].
      negative: [] or [C].
      temperature: [], T that divides the logits of a distribution over classes before its scores are judged (Guo et al.
        2017); the distribution that is learned stays as it is.
      curve: [K] or [C, K], the calibrated score at the scores 0, 1 / (K - 1), ..., 1, linear between them.
    """

    positive: Array = 0.5
    negative: Array = 0.5
    temperature: Array = 1.0
    curve: Array = (0.0, 1.0)


class Features(NamedTuple):
    """What every backbone and neck returns.

    Attributes:
      pyramid: {stride: [B, H / stride, W / stride, C]}; of a video [B, T, H / stride, W / stride, C], where T may
        shrink.
      pooled: [B, C], global average of the coarsest backbone level.
    """

    pyramid: dict[int, Array]
    pooled: Array


class Model(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: (key, inputs [B, H, W, 3] or [B, T, H, W, 3] uint8) -> variables, {"params": ..., other collections}.
      apply: (variables, inputs, *, train: bool, key, axis_name=None) -> ({task name: outputs}, model_state), where
        model_state is the variables without "params"; statistics are taken over `axis_name` when it is given.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., tuple[dict[str, Array], PyTree]]


class Batch(NamedTuple):
    """What one step reads; a leading axis B everywhere.

    Attributes:
      inputs: {view: uint8 [B, H, W, 3], of videos [B, T, H, W, 3]}.
      labels: {supervision: Label in network form}; a supervision is a task, or a task from one source.
      weights: {supervision: float32 [B]}; 0 means absent and leaves the denominator, any other value stays in it.
      ids: int64 [B], position in the source, for joining per-example state; -1 is padding.
      extras: {supervision: {name: array [B, ...]}}, per-example side information.
    """

    inputs: dict[str, Array]
    labels: dict[str, Label]
    weights: dict[str, Array]
    ids: Array
    extras: dict[str, dict[str, Array]] = {}


class PerExample(NamedTuple):
    """One term before any reduction over the batch.

    Attributes:
      value: float [B], sum of the term over the example's items (pixels, boxes, ...).
      norm: float [B], number of those items.
    """

    value: Array
    norm: Array


class TrainState(NamedTuple):
    """Everything a training run carries from step to step; arrays only, no functions and no configuration.

    Attributes:
      step: int32 [].
      params: trained parameters.
      model_state: running statistics of the model.
      opt_state: optax state.
      aux_state: balancers, weighters, running target statistics.
      ema: {"params", "model_state"}, exponential moving averages of both.
      key: PRNG key from which every step's randomness is folded.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    aux_state: PyTree
    ema: PyTree
    key: Array


class Objective(NamedTuple):
    """What a recipe minimizes; the only part of the train step that differs between recipes.

    Attributes:
      init: (key) -> (params, aux_state) of adaptors and statistics, merged beside the model's own.
      names: of the terms, "<task>/<term>", known before any step.
      terms: (params, model_state, aux_state, frozen, batch, key, axis_name) ->
        ({name: Ratio of local sums}, model_state, aux_state); `frozen` holds teachers' variables.
      scales: {name: fixed factor of the term}.
      shared: params (or gradients of the same structure) -> the part that all tasks share.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    names: tuple[str, ...]
    terms: Callable[..., tuple[dict[str, Any], PyTree, PyTree]]
    scales: dict[str, float]
    shared: Callable[[PyTree], PyTree] = lambda params: params["model"]


class Balance(NamedTuple):
    """How much each task counts, from the values of the tasks' losses or from their gradients.

    The loss of a task is the sum of its terms with their fixed factors, `Objective.scales`.

    Attributes:
      init: (tasks) -> state.
      update: (losses {task: []}, present {task: bool []}, gram, state) -> (weights {task: []}, state); a task that is
        not present keeps its state and takes part in nothing.
      gram: the update reads `gram` [T, T], inner products of the tasks' gradients of the shared parameters, in the
        order of `losses`, a task that is not present 0; else it is given None.
      shared_only: weights multiply the gradients of the shared parameters only; every head keeps its own task's.
    """

    init: Callable[..., PyTree]
    update: Callable[..., tuple[dict[str, Array], PyTree]]
    gram: bool = False
    shared_only: bool = False


class Teacher(NamedTuple):
    """Anything that labels images.

    Attributes:
      name: for provenance and messages.
      tasks: {task name: Task} that it labels.
      predict: uint8 [B, H, W, 3] of `size` -> {task name: Label in network form, leading axis B}.
      size: (height, width) of its input, pixels.
      fingerprint: hash of its weights or code.
    """

    name: str
    tasks: dict[str, Any]
    predict: Callable[[Array], dict[str, Label]]
    size: tuple[int, int]
    fingerprint: str


class Metric(NamedTuple):
    """One figure of merit of a task.

    Attributes:
      name: as printed.
      unit: "%", "m", "deg", ... or "" for a ratio.
      higher_is_better: direction.
    """

    name: str
    unit: str
    higher_is_better: bool
