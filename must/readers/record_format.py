"""The bytes of one record: a tf.train.Example in TFDS's layout, without TensorFlow and without TFDS.

Features are stored as "<task>/<field>". Numbers are widened as in TFDS (integers and booleans to int64, floats to
float32); "zlib" fields are deflated little-endian bytes, with their shape beside them if more than one dimension
varies; "png" fields are encoded by `must.readers.png_maps`; an image is an encoded picture, a video a list of them.
"""

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import ArraySpec, Label, UserError
from must.readers.pictures import MAX_PIXELS, header, is_deep, is_portable
from must.readers.png_maps import TYPES, decode_map, encode_map, write_png

IMAGE, VIDEO, ID = "image", "video", "id"
Specs = Mapping[str, Mapping[str, ArraySpec]]
_LEVEL = 1  # of deflate
_LARGEST = 8 * MAX_PIXELS  # bytes of a field
_PNG_DOC = {"int8": "; stored + 128", "uint16": "; high bytes, below them the low bytes"}


def features_of(specs: Specs, *, images: bool = True, videos: bool = False) -> Any:
    """The TFDS features of a record.

    Args:
      specs: {task: Task.label_spec()}.
      images: the record contains the picture.
      videos: the record contains a video instead.

    Returns:
      tfds.features.FeaturesDict: "id", "image" or "video", and one dict of fields per task.
    """
    import tensorflow_datasets as tfds

    def feature(spec: ArraySpec) -> Any:
        if spec.dtype == "str":
            return tfds.features.Text(doc=spec.doc)
        if spec.encoding == "png":
            channels = spec.shape[2] if len(spec.shape) == 3 else 1
            height = spec.shape[0] and spec.shape[0] * (2 if spec.dtype == "uint16" else 1)
            doc = spec.doc + _PNG_DOC.get(spec.dtype, "")
            return tfds.features.Image(shape=(height, spec.shape[1], channels), encoding_format="png", doc=doc)
        return tfds.features.Tensor(shape=spec.shape, dtype=np.dtype(spec.dtype), encoding=spec.encoding, doc=spec.doc)

    features = {ID: tfds.features.Text(doc="<source>/<name>")}
    if videos:
        frame = tfds.features.Image(shape=(None, None, 3), doc="RGB, encoded as in the source or as PNG")
        features[VIDEO] = tfds.features.Sequence(frame, doc="frames in order")
    elif images:
        features[IMAGE] = tfds.features.Image(shape=(None, None, 3), doc="RGB, encoded as in the source or as PNG")
    for task, fields in specs.items():
        features[task] = {name: feature(spec) for name, spec in fields.items()}
    return tfds.features.FeaturesDict(features)


def check_specs(specs: Specs) -> None:
    """Raises UserError for a name with "/", a reserved task name, or an encoding that does not fit type and shape."""
    for task, fields in specs.items():
        if task in (ID, IMAGE, VIDEO) or "/" in task:
            raise UserError(f"task {task!r}: a record cannot store a task of this name")
        for name, spec in fields.items():
            varying = spec.shape.count(None)
            fits = {
                "none": varying <= 1 and (spec.dtype != "str" or spec.shape == ()),
                "zlib": spec.dtype != "str",
                "png": spec.dtype in TYPES
                and (len(spec.shape) == 2 or (spec.shape[2:] in ((1,), (3,)) and spec.dtype != "uint16")),
            }
            if "/" in name or not fits.get(spec.encoding, False):
                raise UserError(f"task {task}: a record cannot store field {name!r} as {spec}")


def mismatch(value: Any, spec: ArraySpec) -> str:
    """Why a value cannot be stored in this field, "" if it can."""
    if spec.dtype == "str":
        return "" if isinstance(value, str) else f"is {type(value).__name__}, not a string"
    array, dtype = np.asarray(value), _dtype(spec.dtype)
    if array.shape != spec.shape:
        same_rank = len(array.shape) == len(spec.shape)
        if not same_rank or any(n not in (None, m) for n, m in zip(spec.shape, array.shape, strict=True)):
            return f"has shape {array.shape}, not {spec.shape}"
    if array.dtype != dtype:
        return f"is {array.dtype}, not {dtype}"
    if dtype.kind == "f" and not np.isfinite(array).all():
        return "is not finite"
    return ""


def encode_record(id: str, image: bytes | Sequence[bytes] | None, labels: Mapping[str, Label], specs: Specs) -> bytes:
    """Serializes one tf.train.Example, deterministically.

    Args:
      id: of the example.
      image: encoded picture, encoded frames of a video, or None if the records refer to pictures by id.
      labels: {task: fields in record form} for all tasks of `specs`; types and shapes as specified.
      specs: {task: Task.label_spec()}.
    """
    example = _example_class()()
    feature = example.features.feature
    feature[ID].bytes_list.value.append(id.encode())
    if isinstance(image, bytes):
        feature[IMAGE].bytes_list.value.append(image)
    elif image is not None:
        feature[VIDEO].bytes_list.value.extend(image)
    for task, fields in specs.items():
        for name, spec in fields.items():
            _put(feature, f"{task}/{name}", labels[task][name], spec)
    return example.SerializeToString(deterministic=True)


def decode_record(record: bytes, specs: Specs) -> tuple[str, bytes | list[bytes] | None, dict[str, Label]]:
    """Inverse of `encode_record`: id, encoded picture or frames or None, labels of the tasks in `specs`."""
    feature = _example_class().FromString(record).features.feature
    labels = {
        task: {name: _get(feature, f"{task}/{name}", spec) for name, spec in fields.items()}
        for task, fields in specs.items()
    }
    image = feature[IMAGE].bytes_list.value[0] if IMAGE in feature else None
    if VIDEO in feature:
        image = list(feature[VIDEO].bytes_list.value)
    return feature[ID].bytes_list.value[0].decode(), image, labels


def field_sizes(record: bytes) -> dict[str, int]:
    """Bytes of each part of a record: "id", "image" or "video", "<task>/<field>"; they sum to the record's length."""
    features = _example_class().FromString(record).features
    sizes: dict[str, int] = {}
    for key in sorted(features.feature):
        alone = type(features)(feature={key: features.feature[key]})
        name = "/".join(key.split("/")[:2])  # "<task>/<field>/shape" belongs to the field
        sizes[name] = sizes.get(name, 0) + alone.ByteSize()
    sizes[ID] += len(record) - sum(sizes.values())  # the enclosing message
    return sizes


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8 [H, W], [H, W, 1] or [H, W, 3] as PNG, two to six times as fast as Pillow."""
    height, width = image.shape[:2]
    color = image.ndim == 3 and image.shape[2] == 3
    rows = np.zeros((height, 1 + width * (3 if color else 1)), np.uint8)
    pixels = image.reshape(height, -1)
    rows[:, 1:] = pixels
    if color:  # pictures deflate better as differences to the row above
        rows[1:, 0] = 2
        rows[1:, 1:] -= pixels[:-1]
    return write_png(width, height, color, zlib.compress(rows, _LEVEL))


def is_plain(data: bytes, size: tuple[int, int]) -> bool:
    """Whether all readers decode these bytes to the same RGB picture of (height, width) `size`; reads only the header.

    False for gray, 16-bit and CMYK pictures, palettes, transparency and pictures that are to be turned.
    """
    try:
        look = header(data, "")
    except UserError:
        return False
    plain = look.format in ("JPEG", "PNG") and look.mode == "RGB" and not look.transparent and not is_deep(data)
    return plain and look.size == tuple(size) and is_portable(data)


def _put(feature: Any, key: str, value: Any, spec: ArraySpec) -> None:
    if spec.encoding == "png":
        feature[key].bytes_list.value.append(encode_map(value))
    elif spec.encoding == "zlib":
        data = zlib.compress(np.ascontiguousarray(value), _LEVEL) if np.size(value) else zlib.compress(b"", _LEVEL)
        if spec.shape.count(None) > 1:
            feature[f"{key}/shape"].int64_list.value.extend(value.shape)
            key = f"{key}/value"
        feature[key].bytes_list.value.append(data)
    elif spec.dtype == "str":
        feature[key].bytes_list.value.append(value.encode())
    else:
        array = np.asarray(value).ravel()
        numbers = feature[key].float_list if array.dtype.kind == "f" else feature[key].int64_list
        numbers.SetInParent()  # so that an empty list is stored, too
        numbers.value.extend((array.view(np.uint8) if array.dtype == bool else array).tolist())


def _get(feature: Any, key: str, spec: ArraySpec) -> Any:
    sizes = [-1 if size is None else size for size in spec.shape]
    if spec.encoding == "png":
        return decode_map(feature[key].bytes_list.value[0], spec.dtype, spec.shape)
    if spec.encoding == "zlib":
        if spec.shape.count(None) > 1:
            sizes = feature[f"{key}/shape"].int64_list.value
            key = f"{key}/value"
        unpacked = zlib.decompressobj()
        data = unpacked.decompress(feature[key].bytes_list.value[0], _LARGEST)
        if unpacked.unconsumed_tail or not unpacked.eof:
            raise ValueError(f"{key}: cut, or more than {_LARGEST:,} bytes when unpacked")
        return np.frombuffer(data, spec.dtype).reshape(sizes)
    if spec.dtype == "str":
        return feature[key].bytes_list.value[0].decode()
    kind = _dtype(spec.dtype).kind
    numbers = feature[key].float_list if kind == "f" else feature[key].int64_list
    return np.array(numbers.value, spec.dtype).reshape(sizes)


@functools.cache
def _dtype(name: str) -> np.dtype:
    return np.dtype(name)  # cached, since parsing the name is slow


@functools.cache
def _example_class() -> Any:
    """The message class tf.train.Example, in a separate pool so that TensorFlow and TFDS can register theirs."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="must/example.proto", package="must", syntax="proto3")

    def message(parent: Any, name: str) -> Any:
        return parent.add(name=name)

    def add(to: Any, name: str, number: int, kind: int, *, repeated: bool = False, of: str | None = None, **more: Any):
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        to.field.add(name=name, number=number, type=kind, label=label, type_name=of and f".must.{of}", **more)

    for name, kind in (("BytesList", "BYTES"), ("FloatList", "FLOAT"), ("Int64List", "INT64")):
        add(message(file.message_type, name), "value", 1, getattr(field, f"TYPE_{kind}"), repeated=True)
    feature = message(file.message_type, "Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), 1):
        key = f"{name[:-4].lower()}_list"
        add(feature, key, number, field.TYPE_MESSAGE, of=name, oneof_index=0)
    features = message(file.message_type, "Features")
    entry = message(features.nested_type, "FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, of="Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, repeated=True, of="Features.FeatureEntry")
    add(message(file.message_type, "Example"), "features", 1, field.TYPE_MESSAGE, of="Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("must.Example"))
