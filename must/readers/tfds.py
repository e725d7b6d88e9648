"""TensorFlow Datasets (TFDS) that are prepared on disk as ArrayRecord or TFRecord, read without TensorFlow.

Nothing is downloaded or prepared; error messages give the command to do so.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from must.core import labels as forms
from must.core.files import read_json
from must.core.types import Example, Label, UserError
from must.readers.files import read_classes
from must.readers.frames import FrameVideo
from must.readers.panoptic import painted, segment_ids
from must.readers.pictures import (
    decode_picture,
    is_deep,
    open_picture,
    picture_size,
    read_picture,
    significant_bits,
    stored_ids,
    untagged,
)
from must.readers.record_format import encode_png
from must.readers.tfrecords import TfRecordRows

_CROWD_KEYS = ("is_crowd", "is_difficult")
_FEATURES = "tensorflow_datasets.core.features"


class Tfds:
    """One split; the kind of each label follows from the type of its feature.

    A ClassLabel becomes classification; a Sequence with a BBoxFeature and a ClassLabel becomes detection (`is_crowd`
    and `is_difficult` boxes become crowd); an Image with one uint8 channel becomes segmentation, and so does one with
    three channels (COCO panoptic: colors are ids of segments, whose classes are in a Sequence with "id" and a
    ClassLabel); any other one-channel Image and a Tensor [H, W] or [H, W, 1] become depth. If the image feature is a
    Video or a Sequence of Images, examples are videos, whose frames are decoded on access. Ids are "<name>/<position>".

    Args:
      dataset: "name", "name/config", "name/config:version", or a folder that contains dataset_info.json.
      split: in TFDS syntax, for example "train[:10%]".
      labels: {task name: feature}.
      data_dir: TFDS's data directory; by default ~/tensorflow_datasets.
      image: feature of the picture or video.
      classes: {task name: names, {stored id: name} or a file (`read_classes`)}; by default the feature's own names.
        Segmentation needs it.
      ignore: stored id of unlabeled pixels; None or -1 if there is none.
      unit: of depth, "mm", "cm", "m" or meters per unit.
      name: of the source; by default "<dataset>-<split>".

    Raises:
      UserError: not prepared, in another file format, unknown split or feature, unsupported feature; on reading, a
        broken record or a video without frames.
    """

    def __init__(
        self,
        dataset: str,
        *,
        split: str,
        labels: Mapping[str, str] | None = None,
        data_dir: str | None = None,
        image: str = "image",
        classes: Mapping[str, Any] | None = None,
        ignore: int | None = 255,
        unit: str | float = "m",
        name: str = "",
    ):
        import tensorflow_datasets as tfds

        self._arguments = {  # workers reopen the data set with these
            "dataset": dataset,
            "split": split,
            "labels": labels,
            "data_dir": data_dir,
            "image": image,
            "classes": classes,
            "ignore": ignore,
            "unit": unit,
            "name": name,
        }
        builder, videos = _open(dataset, data_dir)
        features = builder.info.features
        self._where = f"tfds {builder.info.full_name}, {split}"
        labels = dict(labels or {})
        for key in (image, *labels.values()):
            if key not in features:
                raise UserError(f"{self._where}: no feature {key!r}, only {', '.join(features)}")
        classes, class_names = {}, dict(classes or {})
        self._readers = {}
        for task, key in labels.items():
            where = f"{self._where}: feature {key!r}"
            segments = _segments(features) if tuple(features[key].shape or ())[-1:] == (3,) else None
            if segments is not None:
                reader = _Panoptic(*segments, class_names.get(task), where)
            else:
                reader = _reader(features[key], class_names.get(task), ignore, unit, where)
            self._readers[task] = (key, reader)
            if reader.classes:
                classes[task] = reader.classes
        pictures = [key for key in (image, *labels.values()) if isinstance(features[key], tfds.features.Image)]
        try:
            self._rows = builder.as_data_source(split, decoders={key: tfds.decode.SkipDecoding() for key in pictures})
        except NotImplementedError:
            stored = builder.info.file_format.value
            if stored != "tfrecord":
                raise UserError(
                    f"{self._where}: stored as {stored}; convert it with the extra must[tf]: "
                    f"tfds convert_format --to_file_format=array_record --dataset_dir={builder.data_dir}"
                ) from None
            decoders = {key: tfds.decode.SkipDecoding() for key in pictures}
            self._rows = TfRecordRows(builder.info, _spans(split, builder.info), decoders)
        except Exception as error:  # TFDS raises many types
            raise UserError(f"{self._where}: {(str(error) or repr(error)).splitlines()[0]}") from None
        self._check_sample()
        whole, places = _places(split, builder.info)
        self.name = name or f"{builder.name}-{whole}".replace("/", "-")
        self.ids = [f"{self.name}/{place}" for place in places]
        self.classes = classes
        self._image, self._video = image, image in videos
        info = builder.info
        content = (info.full_name, str(info.splits), split, labels, image, classes, ignore, unit)
        sums = [(split.name, tuple(split.shard_lengths), split.num_bytes) for split in info.splits.values()]
        self.fingerprint = hashlib.sha256(repr((content, sums)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self):
        return functools.partial(Tfds, **self._arguments), ()

    def __getitem__(self, index: int) -> Example:
        row = self._row(index)
        if self._video:
            video = self._frames_of(row, index)
            return Example(self.ids[index], video, self._labels_of(row, index, video.shape[1:3]))
        bits = self._bits if is_deep(row[self._image]) else 16
        image = read_picture(row[self._image], self.ids[index], bits=bits)
        return Example(self.ids[index], image, self._labels_of(row, index, image.shape[:2]))

    def labels(self, index: int) -> dict[str, Label]:
        """The labels alone; the picture is not decoded."""
        row = self._row(index)
        if self._video:
            return self._labels_of(row, index, self._frames_of(row, index).shape[1:3])
        return self._labels_of(row, index, picture_size(row[self._image], self.ids[index]))

    def encoded(self, index: int) -> bytes | None:
        """The stored picture; None for videos."""
        if self._video:
            return None
        data = self._row(index)[self._image]
        if is_deep(data) and self._bits < 16:  # other readers would see it darker
            return encode_png(decode_picture(data, self.ids[index], bits=self._bits))
        return untagged(data)

    @functools.cached_property
    def _bits(self) -> int:
        return significant_bits(self.name, len(self), lambda index: self._row(index)[self._image])

    def _check_sample(self) -> None:
        """Refuses masks whose objects have the ignored id, and depths in another unit, as seen in a few records."""
        for key, reader in self._readers.values():
            if isinstance(reader, _Mask | _Depth):
                maps = []
                for i in range(0, len(self._rows), -(-len(self._rows) // 8) or 1):
                    with contextlib.suppress(Exception):  # a damaged record is named when it is read
                        maps.append(reader.stored(self._rows[i][key], ""))
                reader.check(maps, f"{self._where}: feature {key!r}")

    def _frames_of(self, row: dict[str, Any], index: int) -> FrameVideo:
        frames = list(row[self._image])
        if not frames:
            raise UserError(f"{self._where}: record {self.ids[index]} has no frames")
        return FrameVideo(frames, self.ids[index])

    def _row(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        try:
            return self._rows[int(index) % len(self)]
        except Exception as error:  # reader, parser and decoders each raise their own types
            raise UserError(f"{self._where}: record {self.ids[index]} is damaged: {error}") from None

    def _labels_of(self, row: dict[str, Any], index: int, size: tuple[int, int]) -> dict[str, Label]:
        out = {}
        for task, (key, reader) in self._readers.items():
            value = (row[key], row[reader.segments]) if isinstance(reader, _Panoptic) else row[key]
            label = reader.read(value, size, f"{self.ids[index]}, {key}")
            if label is not None:
                out[task] = label
        return out


def _places(split: str, info) -> tuple[str, list[str]]:
    """Name of the whole split and each example's position in it, so that overlapping slices share ids."""
    spans = _spans(split, info)
    if len({name for name, _ in spans}) == 1:
        return spans[0][0], [f"{i:08d}" for _, span in spans for i in span]
    return split, [f"{name}-{i:08d}" for name, span in spans for i in span]


def _spans(split: str, info) -> list[tuple[str, range]]:
    """[(name of a whole split, positions in it)]."""
    import tensorflow_datasets as tfds

    lengths = {name: part.num_examples for name, part in info.splits.items()}
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(info.splits)
    return [(p.splitname, range(p.from_ or 0, lengths[p.splitname] if p.to is None else p.to)) for p in parts]


class _Class:
    """A ClassLabel; negative ids, TFDS's mark of hidden labels, mean no label."""

    def __init__(self, names: tuple[str, ...]):
        self.classes = names

    def read(self, value: Any, size: tuple[int, int], where: str) -> Label | None:
        if value >= len(self.classes):
            raise UserError(f"{where}: class id {value} is not below {len(self.classes)}")
        return forms.classification(int(value)) if value >= 0 else None


class _Boxes:
    """A Sequence of boxes, stored as fractions (y0, x0, y1, x1)."""

    def __init__(self, names: tuple[str, ...], box: str, label: str, crowd: Sequence[str], where: str):
        self.classes, self._where = names, where
        self._box, self._label, self._crowd = box, label, crowd

    def read(self, value: Any, size: tuple[int, int], where: str) -> Label:
        fractions = np.asarray(value[self._box], np.float64).reshape(-1, 4)
        if (fractions > 2).any():
            raise UserError(
                f"{where}: boxes {fractions[0].tolist()}, ... are not fractions of the picture, as TFDS has them"
            )
        boxes = fractions[:, [1, 0, 3, 2]] * (size[::-1] * 2)
        classes = np.asarray(value[self._label], np.int64)
        if len(classes) and classes.max() >= len(self.classes):
            raise UserError(f"{where}: class id {classes.max()} is not below {len(self.classes)}")
        checked = forms.checked_boxes(boxes, size, lambda i: f"{where}, object {i + 1}", empty="drop")
        checked.tell(self._where, counted=False, way_out="")
        crowd = np.zeros(len(boxes), bool)
        for key in self._crowd:
            crowd |= np.asarray(value[key], bool).reshape(-1)
        known = classes[checked.kept] >= 0
        kept = np.flatnonzero(checked.kept)[known]
        return forms.detection(checked.boxes[known], classes[kept], crowd[kept])


class _Mask:
    """An encoded picture of class ids."""

    def __init__(self, names: Mapping[int, str], ignore: int | None, where: str):
        self.classes, self._table = forms.class_table(names, ignore, where)

    def read(self, value: bytes, size: tuple[int, int], where: str) -> Label:
        return forms.segmentation(forms.checked_mask(self.stored(value, where), self._table, size, where))

    def stored(self, value: bytes, where: str) -> np.ndarray:
        return stored_ids(value, where)

    def check(self, masks: Sequence[np.ndarray], where: str) -> None:
        forms.check_masks(masks, self.classes, self._table, where)


class _Panoptic:
    """An encoded picture of segment ids, and the sequence that gives the segments' classes."""

    def __init__(self, segments: str, id: str, label: str, own: Sequence[str], names: Any, where: str):
        self.classes = tuple(own if names is None else read_classes(names).values())
        if len(self.classes) < len(own):
            raise UserError(f"{where}: {len(self.classes)} class names for {len(own)} classes")
        self.segments, self._id, self._label = segments, id, label

    def read(self, value: tuple[bytes, Any], size: tuple[int, int], where: str) -> Label:
        picture, segments = value
        stored = segment_ids(picture, where)
        forms.same_size(stored, size, where)
        classes = dict(
            zip(np.asarray(segments[self._id]).tolist(), np.asarray(segments[self._label]).tolist(), strict=True)
        )
        return forms.segmentation(painted(stored, classes, where))


def _segments(features: Any) -> tuple[str, str, str, Sequence[str]] | None:
    """(feature, its id, its label, class names) of the sequence of panoptic segments, None without one."""
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, tfds.features.Sequence) and hasattr(inner, "items") and "id" in inner:
            for label, part in inner.items():
                if isinstance(part, tfds.features.ClassLabel):
                    return name, "id", label, part.names
    return None


class _Depth:
    """A depth map, an array or an encoded 16-bit picture; values that are not finite or not positive are invalid."""

    classes = ()

    def __init__(self, unit: str | float):
        self._unit, self._meters_per_unit = unit, forms.meters_per_unit(unit)

    def read(self, value: Any, size: tuple[int, int], where: str) -> Label:
        array = self.stored(value, where)
        forms.same_size(array, size, where)
        whole = not (array % 1).any() and array.max() <= 65535
        step = 1.0 if whole else array.max() / 65535  # integers keep their value, others use the finest step
        return forms.depth(np.round(array / step), step * self._meters_per_unit)

    def stored(self, value: Any, where: str) -> np.ndarray:
        array = np.asarray(open_picture(value, where) if isinstance(value, bytes) else value).astype(np.float64)
        array = array.reshape(array.shape[:2])
        return np.where(np.isfinite(array) & (array > 0), array, 0)

    def check(self, maps: Sequence[np.ndarray], where: str) -> None:
        forms.check_unit(maps, self._unit, where)


def _reader(feature: Any, class_names: Any, ignore: int | None, unit: str | float, where: str) -> Any:
    """The reader that converts the stored feature to a label."""
    import tensorflow_datasets as tfds

    kinds = tfds.features
    names = () if class_names is None else read_classes(class_names)
    if isinstance(feature, kinds.ClassLabel):
        return _Class(tuple(names.values()) if names else tuple(feature.names))
    inner = getattr(feature, "feature", None)
    if isinstance(feature, kinds.Sequence) and hasattr(inner, "items"):
        boxes = [key for key, part in inner.items() if isinstance(part, kinds.BBoxFeature)]
        label = [key for key, part in inner.items() if isinstance(part, kinds.ClassLabel)]
        if boxes and label:
            crowd = [key for key in _CROWD_KEYS if key in inner]
            names = tuple(names.values()) if names else tuple(inner[label[0]].names)
            return _Boxes(names, boxes[0], label[0], crowd, where)
    shape = tuple(feature.shape or ())
    if isinstance(feature, kinds.Image) and shape[-1] == 1 and np.dtype(feature.np_dtype) == np.uint8:
        names = names or dict(enumerate(getattr(feature, "names", None) or ()))
        if not names:
            raise UserError(f"{where}: a mask needs class names, classes={{task: ...}}")
        return _Mask(names, ignore, where)
    if isinstance(feature, kinds.Image | kinds.Tensor) and (len(shape) == 2 or (len(shape) == 3 and shape[-1] == 1)):
        return _Depth(unit)
    raise UserError(f"{where}: {type(feature).__name__} is not a class, boxes, a mask or a depth map")


def _open(dataset: str, data_dir: str | None) -> tuple[Any, frozenset[str]]:
    """A builder from files alone, without the data set's own code, and the names of its video features.

    The builder returns a video's frames as stored: TFDS can skip decoding of a picture but not of a sequence of them,
    and needs TensorFlow for its Video feature.
    """
    from tensorflow_datasets.core import dataset_info, read_only_builder
    from tensorflow_datasets.core.features import FeatureConnector

    directory = Path(dataset).expanduser()
    try:
        if not (directory / "dataset_info.json").is_file():
            directory = Path(read_only_builder._find_builder_dir(dataset, data_dir=data_dir))
        content = read_json(directory / "features.json")
        videos = _store_frames(content)
        if not videos:
            return read_only_builder.builder_from_directory(str(directory)), videos
        info = dataset_info.read_from_json(directory / "dataset_info.json")
        info.features.CopyFrom(FeatureConnector.from_json(content).to_proto())
        return read_only_builder.builder_from_metadata(str(directory), info), videos
    except Exception:  # TFDS raises many types: no such data set or version, unreadable metadata
        place = data_dir or "~/tensorflow_datasets"
        raise UserError(
            f"tfds {dataset!r}: not prepared in {place} (data_dir); prepare it once with the extra must[tf]: "
            f"tfds build {dataset} --file_format=array_record --data_dir={place}"
        ) from None


def _store_frames(content: dict[str, Any]) -> frozenset[str]:
    """Names of the videos in the content of features.json; replaces each by a sequence of encoded pictures."""
    features = content.get("featuresDict", {}).get("features", {})
    videos = [
        name for name, of in features.items() if "video" in of or "image" in of.get("sequence", {}).get("feature", {})
    ]
    text = {"shape": {}, "dtype": "string", "encoding": "none"}
    picture = {"pythonClassName": f"{_FEATURES}.tensor_feature.Tensor", "tensor": text}
    for name in videos:
        stored = {"feature": picture, "length": "-1"}
        features[name] = {"pythonClassName": f"{_FEATURES}.sequence_feature.Sequence", "sequence": stored}
    return frozenset(videos)


def write_tfds_info(
    folder: str,
    directory: str,
    name: str,
    split: str,
    features: Any,
    shards: Sequence[Mapping[str, Any]],
    *,
    file_format: str = "array_record",
) -> None:
    """Writes features.json and dataset_info.json.

    Args:
      folder: to write to.
      directory: of the dataset; its last part is the version if it is a valid one, else the version is 1.0.0.
      name: of the dataset.
      split: the only split.
      features: tfds.features.FeaturesDict.
      shards: [{"count", "bytes"}] in order.
      file_format: of the shards, "array_record" or "tfrecord"; also part of their names.
    """
    import tensorflow_datasets as tfds

    version = os.path.basename(directory)
    if not tfds.core.Version.is_valid(version):
        version = "1.0.0"
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix=file_format
    )
    split_info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard["count"] for shard in shards],
        num_bytes=sum(shard["bytes"] for shard in shards),
        filename_template=template,
    )
    dataset = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=folder, module_name=""
    )
    info = tfds.core.DatasetInfo(builder=dataset, features=features)
    info.set_file_format(file_format)
    info.set_splits(tfds.core.splits.SplitDict([split_info]))
    info.write_to_directory(folder)
