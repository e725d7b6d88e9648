"""The settings that recipes have in common, one frozen dataclass per section of a configuration.

`must.experiment.sections.parse` makes them, with every check of a single value; what has to hold between sections or
against the data is in `must.experiment.checks`. The attribute texts are the reference in the documentation.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from must.data.augment import Photometric, RandAugment
from must.experiment.sections import Part, by_task, changed, changes, each_changes, part
from must.models import convnext, fpn, resnet, temporal_shift, vit
from must.models import temporal_shift as r2plus1d
from must.models import temporal_shift as video_transformer
from must.objectives import aggregate, balance

BACKBONES = {
    "resnet": resnet.ResNet,
    "vit": vit.ViT,
    "convnext": convnext.ConvNeXt,
    "temporal_shift": temporal_shift.TemporalShiftResNet,
    "r2plus1d": r2plus1d.R2Plus1D,
    "video_transformer": video_transformer.VideoTransformer,
}
NECKS = {"none": None, "fpn": fpn.FPN, "pafpn": fpn.PAFPN, "simple": fpn.SimplePyramid}
VIEWS = {"none": None, "photometric": Photometric, "rand_augment": RandAugment}
BALANCES = {
    "fixed": balance.fixed,
    "uncertainty": balance.uncertainty,
    "dwa": balance.dwa,
    "rlw": balance.rlw,
    "famo": balance.famo,
    "gradnorm": balance.gradnorm,
    "pcgrad": aggregate.pcgrad,
    "cagrad": aggregate.cagrad,
    "nash_mtl": aggregate.nash_mtl,
    "upgrad": aggregate.upgrad,
}


def _at_least(bound: float, **values: float) -> None:
    for name, value in values.items():
        if value < bound:
            raise ValueError(f"{name}={value}: must be at least {bound}")


def _share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: must be between 0 and 1")


def _below_one(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value}: must be at least 0 and below 1")


@dataclass(frozen=True)
class Clip:
    """Which part of a video a clip shows.

    Attributes:
      span: frames of a dense window; 0 samples the whole video evenly.
      jitter: training clips take any frame of each segment, not its middle one.
    """

    span: int = 0
    jitter: bool = True

    def __post_init__(self):
        _at_least(0, span=self.span)


@dataclass(frozen=True)
class Image:
    """The frame that a network sees.

    Attributes:
      size: (height, width), pixels.
      keep_aspect: pad pictures to the frame; otherwise stretch them.
      video: examples are clips.
      clip: how a clip is cut from a video.
    """

    size: tuple[int, int]
    keep_aspect: bool = True
    video: bool = False
    clip: Clip = Clip()

    def __post_init__(self):
        _at_least(1, **{"size[0]": self.size[0], "size[1]": self.size[1]})


@dataclass(frozen=True)
class Network:
    """Backbone and neck; the heads belong to the tasks.

    Attributes:
      backbone: kind and arguments of the backbone.
      neck: kind and arguments of the neck; with "none" the heads read the levels of the backbone.
      pixel_stats: mean and deviation that images are normalized with, "imagenet" or "half" (.5, of SigLIP and AugReg);
        "" takes those of the backbone's family, "imagenet" where it has none.
      precision: of what backbone, neck and heads compute, "float32" or "bfloat16"; parameters, statistics, losses and
        the optimizer are float32.
      remat: compute blocks, neck and heads again in the backward pass: less memory, about a third more time.
    """

    backbone: Part = part(BACKBONES, "resnet")
    neck: Part = part(NECKS, "none")
    pixel_stats: Literal["", "imagenet", "half"] = ""
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def stats(self) -> str:
        """The key of `must.models.multi_head.PIXEL_STATS` that applies."""
        family = dict(self.backbone.arguments).get("family", "") if self.backbone.kind == "vit" else ""
        return self.pixel_stats or ("half" if family == "siglip" else "imagenet")


@dataclass(frozen=True)
class Optimizer:
    """Arguments of `must.optimizer`.

    Attributes:
      name: "adamw", "lamb" or "sgd" (Nesterov momentum).
      learning_rate: peak.
      warmup: steps of the linear rise to the peak; by default a twentieth of all steps.
      warmup_factor: first learning rate of the rise over the peak.
      final_factor: last learning rate of the cosine over the peak.
      weight_decay: on parameters with more than one dimension; 0.05 by default, 0 of sgd.
      momentum: of sgd.
      clip_norm: bound on the global gradient norm, 0 sets none; 5 by default.
      layer_decay: factor of the learning rate from each layer of the backbone to the one before, such as 0.75 for a
        pretrained transformer; 1 sets equal rates.
      factors: (pattern, factor) pairs, such as (("backbone/stage[12]", 0.1), ("neck", 2.0)): the learning rate of
        parameters whose names begin with a match is multiplied by the factor.
    """

    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    warmup: int | None = None
    warmup_factor: float = 0.0
    final_factor: float = 0.0
    weight_decay: float | None = None
    momentum: float = 0.9
    clip_norm: float | None = None
    layer_decay: float = 1.0
    factors: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate}: must be positive")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay}: must be above 0 and at most 1")
        for pattern, factor in self.factors:
            _at_least(0, **{f"factors {pattern!r}": factor})
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"factors: {pattern!r} is no regular expression: {error}") from None
        names = ("warmup", "warmup_factor", "weight_decay", "clip_norm")
        _at_least(0, **{name: value for name in names if (value := getattr(self, name)) is not None})

    def arguments(self, steps: int) -> dict[str, Any]:
        """Of `must.optimizer` for a run of so many steps, with a value for everything that is left open."""
        usual = {"warmup": steps // 20, "weight_decay": 0.0 if self.name == "sgd" else 0.05, "clip_norm": 5.0}
        stated = {name: value for name, value in vars(self).items() if value is not None}
        return {"steps": steps, **usual, **stated}


@dataclass(frozen=True)
class Init:
    """Weights that a network starts from; see the guide "Pretrained weights".

    Attributes:
      weights: a .safetensors file, an Orbax checkpoint, a workdir, whose student it takes, or the directory of a
        network in a workdir, such as runs/a/teachers/depth; "" starts from random numbers.
      partial: beginnings of names that may be missing on either side or differ in shape, such as "backbone/stage4" or
        "heads_depth"; those of the network stay random.
    """

    weights: str = ""
    partial: tuple[str, ...] = ()


@dataclass(frozen=True)
class Geometry:
    """Random crops and flips of training pictures.

    Attributes:
      zoom: range of the magnification.
      shift: largest shift, as a share of the frame.
      flip: mirror half of the pictures.
      reverse: play half of the clips backwards.
    """

    zoom: tuple[float, float] = (0.8, 1.25)
    shift: float = 0.05
    flip: bool = True
    reverse: bool = False

    def __post_init__(self):
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"zoom={self.zoom}: must be two positive numbers, the smaller one first")
        _at_least(0, shift=self.shift)


@dataclass(frozen=True)
class CutMix:
    """Rectangles of other pictures (Yun et al. 2019).

    Attributes:
      probability: that a row is mixed; 0 turns it off.
      alpha: the share of the row's own picture is drawn from Beta(alpha, alpha).
    """

    probability: float = 0.0
    alpha: float = 1.0

    def __post_init__(self):
        _share(probability=self.probability)


@dataclass(frozen=True)
class Cutout:
    """Rectangles of the mean color (DeVries and Taylor 2017).

    Attributes:
      probability: that a row gets one; 0 turns it off.
      largest: longest side, as a share of the picture's.
    """

    probability: float = 0.0
    largest: float = 0.5

    def __post_init__(self):
        _share(probability=self.probability, largest=self.largest)


@dataclass(frozen=True)
class Run:
    """How a network trains.

    Attributes:
      steps: optimizer steps; for students and baselines 0: the student sees as many images as all teachers together, a
        baseline as many as the student.
      epochs: over the largest set, in place of `steps`; 0: `steps` counts.
      batch_size: over all devices and processes.
      memory: GiB of a device that a step may take; 0: what the device reports, as accelerators do. A batch that does
        not fit is refused before the first step, and the dry run tells the largest power of two that fits.
      accumulate: equal parts of a batch that go through the network one after the other, which takes less memory; batch
        statistics are of each part. It needs balance.kind="fixed".
      optimizer: optimizer and schedule.
      init: weights that the network starts from.
      ema_decay: of the averaged parameters and batch statistics, which are evaluated and used; 0 averages nothing.
      select: "best" keeps the weights with the best validation score, "last" the final ones.
      evaluate_every: steps between validations; 0 validates at the end only.
      checkpoint_every: steps between checkpoints.
      log_every: steps between logged losses.
      patience: validations without a better score after which the run ends; 0: it never ends early.
      frames: multi-scale training: frame sizes (height, width) of which every batch draws one.
      frames_until: share of the steps after which every batch has the plain size.
      geometry: random crops and flips.
      view: photometric augmentation.
      view_on: "host", "device" (inside the step, kind "photometric" alone), or "auto": on accelerators inside the step
        where that is possible.
      cutmix: rectangles of other pictures.
      cutout: rectangles of the mean color.
      data_workers: processes that read and encode rows; -1: as many as pay, none for small pictures in memory. Batches
        are the same for any number of them.
      balance: how task losses are weighted.
      watch_gradients: log norms and cosines of the tasks' gradients.
      normalize: "items" divides a loss by the number of labeled items, "batch" by the batch size.
      loss_scales: {task: factor of its loss}; of unnamed tasks by `loss_scale_rule`.
      loss_scale_rule: "kind", in a network of several tasks 4 for masks and depth and 24 for normals, whose losses end
        several times smaller than others, else 1; "fixed", 1; or "learning_rate", MuST's lambda_t = (b_s lr_t) /
        (b_t lr_s), from the batch size and learning rate of teacher t; `loss_scales` holds where an external teacher
        does not tell them. "gradient", for students and the supervised baseline: the mean over all teachers of the
        norm of their gradients over that of teacher t, so that no loss pulls harder; by kind where one does not tell.
      batches: "mixed", or "per_task": every step takes one batch of the images annotated for each task.
      teacher_dropping: probability that an example drops a teacher whose hints are droppable.
      model: changes to the network of the configuration.
      tasks: {task: changes to its hyper-parameters} for the labels and losses of this run.
    """

    steps: int = 1000
    epochs: int = 0
    batch_size: int = 16
    memory: float = 0.0
    accumulate: int = 1
    optimizer: Optimizer = Optimizer()
    init: Init = Init()
    ema_decay: float = 0.0
    select: Literal["best", "last"] = "last"
    evaluate_every: int = 0
    checkpoint_every: int = 500
    log_every: int = 50
    patience: int = 0
    frames: tuple[tuple[int, int], ...] = ()
    frames_until: float = 0.8
    geometry: Geometry = Geometry()
    view: Part = part(VIEWS, "none")
    view_on: Literal["auto", "host", "device"] = "auto"
    cutmix: CutMix = CutMix()
    cutout: Cutout = Cutout()
    data_workers: int = -1
    balance: Part = part(BALANCES, "fixed")
    watch_gradients: bool = False
    normalize: Literal["items", "batch"] = "items"
    loss_scales: Mapping[str, float] = by_task(float)
    loss_scale_rule: Literal["kind", "fixed", "learning_rate", "gradient"] = "kind"
    batches: Literal["mixed", "per_task"] = "mixed"
    teacher_dropping: float = 0.0
    model: Mapping[str, Any] = changes("model")
    tasks: Mapping[str, Any] = changes("tasks")

    least_steps: ClassVar[int] = 1

    def __post_init__(self):
        _at_least(self.least_steps, steps=self.steps)
        _at_least(1, batch_size=self.batch_size, log_every=self.log_every)
        _at_least(1, checkpoint_every=self.checkpoint_every)
        _at_least(-1, data_workers=self.data_workers)
        _at_least(1, accumulate=self.accumulate)
        if self.accumulate > 1:
            if self.batch_size % self.accumulate:
                raise ValueError(f"accumulate={self.accumulate}: does not divide batch_size={self.batch_size}")
            if self.balance.kind != "fixed" or self.watch_gradients or self.batches != "mixed":
                raise ValueError("accumulate: needs balance.kind='fixed', batches='mixed' and no watch_gradients")
        _at_least(0, epochs=self.epochs, evaluate_every=self.evaluate_every, patience=self.patience, memory=self.memory)
        _below_one(ema_decay=self.ema_decay, teacher_dropping=self.teacher_dropping)
        _share(frames_until=self.frames_until)
        if self.patience and (self.select != "best" or not self.evaluate_every):
            raise ValueError(f"patience={self.patience}: needs select='best' and evaluate_every above 0")
        if self.view_on == "device" and not self.view_in_step:
            raise ValueError("view_on='device': needs view.kind='photometric', and neither cutmix nor cutout")
        if self.cutmix.probability and self.batch_size < 2:
            raise ValueError("cutmix: needs a batch_size of at least 2")

    @property
    def view_in_step(self) -> bool:
        """Whether the view can be drawn inside the step, after all that happens to rows on the host."""
        return self.view.kind == "photometric" and not (self.cutmix.probability or self.cutout.probability)


@dataclass(frozen=True)
class Weights:
    """Estimated weights of a student's pseudo labels (Iliopoulos et al. 2022).

    Attributes:
      kind: "none"; "ratio_of_means" or "plug_in", estimated on the validation split; "oracle", the ratio of means on
        the true labels of the pool; or "confidence", from the teacher's uncertainty alone.
      every: steps between estimates; 0 keeps the weights of the untrained student.
      neighbors: validation examples behind an estimate; 0 takes the square root of their number.
      confident: multiply by the teacher's confidence.
      bounded: bound the weight of a class label by 1 / p, p the accuracy of the teacher nearby.
      tasks: with weights; all of them by default.
    """

    kind: Literal["none", "ratio_of_means", "plug_in", "oracle", "confidence"] = "none"
    every: int = 0
    neighbors: int = 0
    confident: bool = False
    bounded: bool = True
    tasks: tuple[str, ...] = ()

    def __post_init__(self):
        _at_least(0, every=self.every, neighbors=self.neighbors)


@dataclass(frozen=True)
class Slam:
    """Student label mixing (Kontonis et al. 2023); needs scikit-learn, extra [weights].

    Attributes:
      enabled: correct the student's predictions.
      floor: lowest accuracy that a teacher is credited with.
      target_precision: probability with which the teacher's k(x) best classes contain the true one.
      normalize: divide by k - 1, as the paper's equation does.
      tasks: that are corrected; all of them by default.
    """

    enabled: bool = False
    floor: float = 0.5
    target_precision: float = 0.9
    normalize: bool = True
    tasks: tuple[str, ...] = ()

    def __post_init__(self):
        _below_one(floor=self.floor)
        if not 0 < self.target_precision < 1:
            raise ValueError(f"target_precision={self.target_precision}: must be between 0 and 1")


@dataclass(frozen=True)
class MeanTeacher:
    """The student's average as a teacher beside the labels (Tarvainen and Valpola 2017).

    Attributes:
      kind: "none"; "hard", its predictions under the label policy; or "soft", its whole distribution.
      decay: of the average.
      start: steps during which its terms count for nothing.
      scale: factor of its terms.
      where: "missing", rows without ground truth of the task, or "all" rows.
      tasks: that learn from it; all of them by default.
    """

    kind: Literal["none", "hard", "soft"] = "none"
    decay: float = 0.99
    start: int = 0
    scale: float = 1.0
    where: Literal["missing", "all"] = "missing"
    tasks: tuple[str, ...] = ()

    def __post_init__(self):
        _below_one(decay=self.decay)
        _at_least(0, start=self.start, scale=self.scale)


@dataclass(frozen=True)
class SmallLoss:
    """Leaving out the pseudo labels with the largest losses of a batch (Han et al. 2018).

    Attributes:
      drop: share of the pseudo labels that is left out; 0 turns it off.
      after: steps before any is left out.
    """

    drop: float = 0.0
    after: int = 0

    def __post_init__(self):
        _below_one(drop=self.drop)
        _at_least(0, after=self.after)


@dataclass(frozen=True)
class Following(Run):
    """A run that is as long as others; with 0 steps the student sees as many images as all teachers together, and a
    baseline as many as the student."""

    steps: int = 0
    least_steps: ClassVar[int] = 0


@dataclass(frozen=True)
class Student(Following):
    """A run that learns from pseudo labels.

    Attributes:
      pseudo_labels: learn from pseudo labels; False leaves ground truth alone.
      pool_share: share of the images drawn that come from the pool; the annotated sets share the rest in proportion to
        what their teachers draw. By default a tenth, unless `repeat_labeled`, `pool_images` or `epochs` say how often
        images are drawn; 0 draws every image as often as any other.
      repeat_labeled: how often an annotated image appears for one appearance of an image of the pool.
      truth_weight: weight of ground truth, where a pseudo label has 1; without it students of unlike sets fall behind.
      pool_images: images of the pool that are used; 0 uses all.
      labels_from: the student whose predictions are the labels, for a further round; by default the teachers'.
      policies: {task: changes to the label policy}.
      edited: {task: COCO json with boxes that a person has corrected}, in place of the teacher's boxes.
      weights_file: csv or json with weights of examples by record id.
      weights: estimated weights of pseudo labels.
      slam: correction of predictions.
      mean_teacher: the student's average as a teacher.
      small_loss: pseudo labels with large losses are left out.
      oracle_labels: learn the true labels of the pool in place of pseudo labels; for experiments.
      shuffled_labels: every picture has the labels of another one of its batch; a control.
    """

    pseudo_labels: bool = True
    pool_share: float | None = None
    repeat_labeled: int | None = None
    truth_weight: float = 16.0
    pool_images: int = 0
    labels_from: str = ""
    policies: Mapping[str, Mapping[str, Any]] = changes("policies")
    edited: Mapping[str, str] = by_task(str)
    weights_file: str = ""
    weights: Weights = Weights()
    slam: Slam = Slam()
    mean_teacher: MeanTeacher = MeanTeacher()
    small_loss: SmallLoss = SmallLoss()
    oracle_labels: bool = False
    shuffled_labels: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.pool_share is None:
            counted = self.repeat_labeled is not None or self.pool_images or self.epochs
            object.__setattr__(self, "pool_share", 0.0 if counted else 0.1)
        if self.repeat_labeled is None:
            object.__setattr__(self, "repeat_labeled", 1)
        if self.shuffled_labels and self.batch_size < 2:
            raise ValueError("shuffled_labels: needs a batch_size of at least 2")
        _at_least(0, repeat_labeled=self.repeat_labeled, truth_weight=self.truth_weight, pool_images=self.pool_images)
        _below_one(pool_share=self.pool_share)
        if self.pool_share and (self.repeat_labeled != 1 or self.pool_images or self.epochs):
            raise ValueError(
                f"pool_share={self.pool_share}: says how often images are drawn; set it to 0, or leave repeat_labeled, "
                "pool_images and epochs out"
            )
        if self.weights.kind != "none" and self.slam.enabled:
            raise ValueError("slam.enabled: weights and slam are two corrections of the same labels; choose one")
        if self.cutmix.probability and (self.weights.kind != "none" or self.slam.enabled):
            raise ValueError("cutmix: weights and slam are numbers of one picture and mixed rows show two; choose one")


# What only thresholds from the validation split read.
_FITTED = ("calibration", "target_precision", "negative_below", "min_count", "max_count", "confidence")


@dataclass(frozen=True)
class LabelPolicy:
    """Which pseudo labels are positive, ignored or negative.

    Where neither `positive`, `negative` nor `from_validation` is set, the kind of task decides: boxes that are right in
    6 of 10 cases on the validation split, ignored down to a probability of 0.2; pixels of masks with a score from 0.5;
    of other kinds every label.

    Attributes:
      positive: score from which a label is taken as true; 0 where only the others are set.
      negative: score below which it is taken as absent, between the two it is ignored; 0 where only the others are set.
      from_validation: choose both, and a calibration of the scores, on the validation split; setting one of the next
        six asks for it too.
      calibration: of the scores: "isotonic", "temperature" or "none".
      target_precision: share of the positive labels that has to be right, or {class: share}; 0.9 by default.
      negative_below: calibrated probability below which a label is negative; 0.2 by default.
      min_count: predictions that a class needs for thresholds of its own.
      max_count: predictions that are used.
      confidence: with which the precision is reached, one-sided; 0 uses the estimate alone.
      sets: on whose pictures its pseudo labels are used; empty: all.
      familiar: a set is left out where the mean confidence is below this share of that on the task's own validation
        images; needs scores, and thresholds from them.
    """

    positive: float | None = None
    negative: float | None = None
    from_validation: bool | None = None
    calibration: Literal["isotonic", "temperature", "none"] = "isotonic"
    target_precision: float | Mapping[str, float] | None = None
    negative_below: float | None = None
    min_count: int = 50
    max_count: int = 2_000_000
    confidence: float = 0.0
    sets: tuple[str, ...] = ()
    familiar: float = 0.0

    def __post_init__(self):
        _share(familiar=self.familiar)
        bounds = {name: getattr(self, name) for name in ("positive", "negative", "negative_below")}
        _share(**{name: value for name, value in bounds.items() if value is not None})
        if (self.negative or 0.0) > (self.positive or 0.0):
            raise ValueError(f"negative={self.negative}: must not exceed positive={self.positive or 0.0}")
        targets = self.target_precision if self.target_precision is not None else {}
        for name, target in targets.items() if isinstance(targets, Mapping) else [("target_precision", targets)]:
            _share(**{name: target})
        _below_one(confidence=self.confidence)
        fixed, fitted = self._stated("positive", "negative"), self._stated(*_FITTED)
        if fixed and fitted and self.from_validation is None:
            raise ValueError(f"{fixed[0]}: {fitted[0]} is for choosing it on the validation split; set one of the two")

    def _stated(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) != getattr(LabelPolicy, name)]

    def resolved(self, usual: Mapping[str, Any]) -> "LabelPolicy":
        """The same with every value set, where nothing decides which labels count by what is usual for the task."""
        values = {"positive": 0.0, "negative": 0.0, "target_precision": 0.9, "negative_below": 0.2}
        values["from_validation"] = bool(self._stated(*_FITTED))
        if not self._stated("positive", "negative", "from_validation"):
            values |= usual
        missing = values.keys() - self._stated(*values)
        return replace(self, **{name: values[name] for name in missing})


@dataclass(frozen=True)
class Label:
    """The label pass.

    Attributes:
      shards: files of a record directory.
      batch_size: images of one forward pass.
      copy_images: store the pictures in the records; otherwise records refer to them by id.
      max_rejects: share of the images that may be unreadable.
      patience: seconds without a batch after which the shards of a worker that is stopped or hangs are taken over.
      hflip_tta: average the teachers' predictions for a picture and its mirror image; `hflip_tta` in the section of an
        external teacher holds for that one, and a function that makes a teacher has to take it.
      tiles: (rows, columns) of overlapping parts, each as large as a teacher's frame, in which it sees a picture beside
        once as a whole; for large pictures with small objects.
      overlap: of neighboring tiles, as a share of the frame.
    """

    shards: int = 16
    batch_size: int = 64
    copy_images: bool = True
    max_rejects: float = 0.001
    patience: float = 600.0
    hflip_tta: bool = False
    tiles: tuple[int, int] = (1, 1)
    overlap: float = 0.25

    def __post_init__(self):
        _at_least(1, shards=self.shards, batch_size=self.batch_size, **{"tiles[0]": self.tiles[0]})
        _at_least(1, **{"tiles[1]": self.tiles[1]})
        _below_one(overlap=self.overlap)
        _share(max_rejects=self.max_rejects)
        _at_least(0, patience=self.patience)


@dataclass(frozen=True)
class Quality:
    """The page about the quality of pseudo labels.

    Attributes:
      enabled: make it.
      worst: pictures of the worst images.
    """

    enabled: bool = False
    worst: int = 12


@dataclass(frozen=True)
class Gallery:
    """The gallery of all pseudo labels.

    Attributes:
      enabled: make it.
      per_page: images on a page.
      truth: show the true labels where `oracle_truth` has them.
    """

    enabled: bool = False
    per_page: int = 48
    truth: bool = False

    def __post_init__(self):
        _at_least(1, per_page=self.per_page)


@dataclass(frozen=True)
class Files:
    """Pseudo labels as files for other tools.

    Attributes:
      enabled: write them.
      images: the pictures too.
      min_score: score from which boxes are written.
      millimeters: depth as 16-bit PNG in millimeters.
      palette: colored masks.
      boxes: further forms of boxes, "yolo" and "voc".
      masks: a further form of masks, "polygons" or "rle" in coco.json.
      tfrecord: a TFRecord twin of the records; needs the extra [tf].
    """

    enabled: bool = False
    images: bool = False
    min_score: float = 0.0
    millimeters: bool = False
    palette: bool = False
    boxes: tuple[str, ...] = ()
    masks: Literal["", "polygons", "rle"] = ""
    tfrecord: bool = False

    def __post_init__(self):
        if wrong := set(self.boxes) - {"yolo", "voc"}:
            raise ValueError(f"boxes={self.boxes}: {min(wrong)!r} is not one of 'yolo', 'voc'")


@dataclass(frozen=True)
class Experiment:
    """What every recipe's configuration has.

    Attributes:
      recipe: its name.
      title: of tables and pages.
      seeds: one repetition of everything each.
      root: replaces "{root}" in paths.
      workers: processes side by side; 0 takes two on a CPU with two cores or more, one elsewhere.
      max_rejects: share of the examples of an annotated set that may be unreadable; they are listed and left out. Sets
        are read before anything is learned; a negative number skips that.
      image: the frame that networks see.
      tasks: {task: {"kind", hyper-parameters}}.
    """

    recipe: str
    tasks: Mapping[str, Mapping[str, Any]]
    image: Image
    title: str = ""
    seeds: tuple[int, ...] = (0,)
    root: str = ""
    workers: int = 0
    max_rejects: float = 0.0

    def __post_init__(self):
        if not self.seeds:
            raise ValueError("seeds=(): at least one")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: each only once")
        if not self.tasks:
            raise ValueError("tasks: at least one")
        _at_least(0, workers=self.workers)


@dataclass(frozen=True)
class Supervised(Experiment):
    """Recipes whose tasks are taught and evaluated by annotated sets: data and network.

    Attributes:
      sets: {set: {split: {"kind", arguments}}}, annotated data.
      train_sets: {task: the set that teaches and evaluates it}.
      eval_splits: splits that are scored; the first one is the headline.
      declared: {"sets" | "pool" | "oracle_truth": {name: features}}, stand-ins for planning with absent data.
      model: the network.
    """

    sets: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    train_sets: Mapping[str, str] = field(default_factory=dict)
    eval_splits: tuple[str, ...] = ("test",)
    declared: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    model: Network = Network()

    def __post_init__(self):
        super().__post_init__()
        if not self.eval_splits:
            raise ValueError("eval_splits=(): at least one")
        for task in self.tasks:
            if task not in self.train_sets:
                raise ValueError(f"train_sets: no set for {task!r}")
            if self.train_sets[task] not in self.sets:
                raise ValueError(
                    f"train_sets.{task}={self.train_sets[task]!r}: no such set; sets: {', '.join(self.sets)}"
                )
            for split in ("train", "validation", *self.eval_splits):
                if split not in self.sets[self.train_sets[task]]:
                    raise ValueError(f"sets.{self.train_sets[task]}: no split {split!r}")
        self._check_names("train_sets")

    def _check_names(self, *sections: str) -> None:
        for section in sections:
            for task in getattr(self, section):
                if task not in self.tasks:
                    raise ValueError(f"{section}.{task}: no such task; tasks: {', '.join(self.tasks)}")


@dataclass(frozen=True)
class SingleStudent(Supervised):
    """Recipes in which one student learns from single-task teachers: teachers, students, label policies.

    Attributes:
      teacher: how teachers train.
      teachers: {task: changes to `teacher`}, what one teacher does otherwise, its network included.
      student: how the student trains.
      policies: {task: which of its pseudo labels count}.
      external_teachers: {task: {"make": "package.module:function", ...}, {"run": directory} or {"fuse": [of these,
        ...]}}, in place of training.
    """

    teacher: Run = Run()
    teachers: Mapping[str, Mapping[str, Any]] = each_changes("teacher", names="tasks")
    student: Following = Following()
    policies: Mapping[str, LabelPolicy] = by_task(LabelPolicy)
    external_teachers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        self._check_names("policies", "teachers", "external_teachers")
        if not (self.student.steps or self.student.epochs):
            trained = [task for task in self.tasks if task not in self.external_teachers]
            runs = [changed(self.teacher, self.teachers.get(t, {}), f"config.teachers.{t}") for t in trained]
            if not runs or any(run.epochs for run in runs):
                why = "teachers train for epochs" if runs else "no teacher trains here"
                raise ValueError(f"student.steps=0: {why}, so there is no number of steps to follow; set it")
            self._follow("student", sum(run.steps * run.batch_size for run in runs))

    def _follow(self, name: str, images: int) -> None:
        """Gives a section without a length as many steps as see so many images."""
        run = getattr(self, name)
        if not (run.steps or run.epochs):
            object.__setattr__(self, name, replace(run, steps=max(1, round(images / run.batch_size))))


@dataclass(frozen=True)
class Must(SingleStudent):
    """Multi-task self-training, and weighted distillation over label budgets.

    Attributes:
      student: how the student trains, and what it learns of the pseudo labels.
      budgets: numbers of labels, each with teachers and students of its own; replaces "{budget}". Empty: no such axis.
      pool: {name: {"kind", arguments}}, images without labels.
      oracle_truth: {task: {"kind", arguments}}, true labels of the pool, for oracles and measurements only.
      arms: {name: changes to `student`}, further students.
      label: the label pass.
      baselines: of "supervised" (all tasks, no pseudo labels) and "scratch" (one task each, the student's steps).
      supervised: how the supervised baseline trains.
      scratch: how the single-task baselines train.
      quality: the page about the quality of pseudo labels.
      gallery: the gallery of pseudo labels.
      files: pseudo labels as files.
    """

    student: Student = Student()
    budgets: tuple[int, ...] = ()
    pool: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    oracle_truth: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = each_changes("student")
    label: Label = Label()
    baselines: tuple[Literal["supervised", "scratch"], ...] = ()
    supervised: Following = Following()
    scratch: Following = Following()
    quality: Quality = Quality()
    gallery: Gallery = Gallery()
    files: Files = Files()

    def __post_init__(self):
        super().__post_init__()
        for name in ("supervised", "scratch"):
            self._follow(name, self.student.steps * self.student.batch_size)
