"""A prepared TFDS directory is read by name, without TensorFlow; what is missing is named."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from must.core.types import UserError
from must.data.disjoint import check_disjoint
from must.data.sources import source

SIZE = (8, 12)


def _png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    file.seek(0)
    return file


def _example(features, i):
    mask = np.full(SIZE, 2, np.uint8)
    mask[0] = 0
    box = {"bbox": features.BBox(0.0, 0.5, 0.5, 1.0), "label": 2, "is_crowd": i == 2}
    return {
        "image": _png(np.full((*SIZE, 3), 20 * i, np.uint8)),
        "label": i % 2 if i else -1,
        "objects": [box] * i,
        "mask": _png(mask),
        "depth": np.full(SIZE, 1.5 * i, np.float16),
    }


def _write(folder, suffix="array_record"):
    """Three records of every kind of label that is read."""
    import tensorflow_datasets as tfds

    kinds = tfds.features
    features = kinds.FeaturesDict(
        {
            "image": kinds.Image(shape=(None, None, 3)),
            "label": kinds.ClassLabel(names=["a", "b"]),
            "objects": kinds.Sequence(
                {"bbox": kinds.BBoxFeature(), "label": kinds.ClassLabel(names=["x", "y", "z"]), "is_crowd": np.bool_}
            ),
            "mask": kinds.Image(shape=(None, None, 1)),
            "depth": kinds.Tensor(shape=SIZE, dtype=np.float16),
        }
    )
    return _write_rows(folder, "toy", features, [_example(kinds, i) for i in range(3)], suffix)


def _write_rows(folder, name, features, rows, suffix="array_record"):
    """One shard and its metadata."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core import ShardedFileTemplate, SplitInfo, example_serializer

    directory = folder / name / "1.0.0"
    directory.mkdir(parents=True)
    template = ShardedFileTemplate(
        data_dir=directory,
        dataset_name=name,
        split="train",
        filetype_suffix=suffix,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    path = directory / f"{name}-train.{suffix}-00000-of-00001"
    serialized = [serializer.serialize_example(features.encode_example(row)) for row in rows]
    if suffix == "tfrecord":  # framed by length and checksums, which are not compared
        path.write_bytes(b"".join(len(one).to_bytes(8, "little") + bytes(4) + one + bytes(4) for one in serialized))
    else:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for one in serialized:
            writer.write(one)
        writer.close()
    split = SplitInfo(name="train", shard_lengths=[len(rows)], num_bytes=0, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=features, split_infos=[split], check_data=False, version="1.0.0"
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("tfds"))


def _toy(folder, **changes):
    labels = {"classification": "label", "detection": "objects", "segmentation": "mask", "depth": "depth"}
    section = {
        "kind": "tfds",
        "dataset": "toy",
        "split": "train",
        "data_dir": str(folder),
        "labels": labels,
        "ignore": 0,
        "classes": {"segmentation": {1: "near", 2: "far"}},
    }
    return source(**{**section, **changes})


def test_every_kind_of_label(folder):
    already = "tensorflow" in sys.modules
    data = _toy(folder)
    assert len(data) == 3 and data.ids[2] == "toy-train/00000002"
    assert data.classes == {"classification": ("a", "b"), "detection": ("x", "y", "z"), "segmentation": ("near", "far")}
    assert "classification" not in data[0].labels  # TFDS hides labels of test splits as -1
    example = data[2]
    assert (example.image == 40).all() and example.image.shape == (*SIZE, 3)
    assert example.labels["classification"]["ids"].tolist() == [0]
    np.testing.assert_array_equal(example.labels["detection"]["boxes"], [[6, 0, 12, 4]] * 2)
    assert example.labels["detection"]["classes"].tolist() == [2, 2] and example.labels["detection"]["crowd"].all()
    assert data[0].labels["detection"]["boxes"].shape == (0, 4)
    assert example.labels["segmentation"]["ids"][:, 0, 0].tolist() == [255] + [1] * 7
    depth = example.labels["depth"]
    np.testing.assert_allclose(depth["depth"] * depth["scale"], 3.0, rtol=1e-4)
    assert not data[0].labels["depth"]["depth"].any()
    assert already or "tensorflow" not in sys.modules


def test_slices_pickles_labels_and_bytes(folder):
    part = _toy(folder, split="train[1:]")
    assert len(part) == 2 and part.fingerprint != _toy(folder).fingerprint == _toy(folder).fingerprint
    again = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(again[1].image, part[1].image)
    assert part.labels(0).keys() == part[0].labels.keys()
    assert np.array(Image.open(io.BytesIO(part.encoded(0)))).tolist() == part[0].image.tolist()
    by_folder = source("tfds", dataset=str(folder / "toy" / "1.0.0"), split="train")
    assert len(by_folder) == 3 and by_folder[1].labels == {}


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"dataset": "nothing"}, ("'nothing'", "data_dir", "must[tf]")),
        ({"split": "val"}, ("toy", "'val'")),
        ({"image": "picture"}, ("'picture'", "label")),
        ({"labels": {"t": "text"}}, ("'text'",)),
        ({"labels": {"t": "image"}}, ("'image'", "Image")),
        ({"classes": {}}, ("'mask'", "names")),
        ({"unit": "feet"}, ("'feet'",)),
    ],
)
def test_what_is_missing_is_named(folder, changes, parts):
    with pytest.raises(UserError) as error:
        _toy(folder, **changes)
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


def test_a_mask_id_outside_the_classes_names_the_record(folder):
    data = _toy(folder, classes={"segmentation": {1: "near"}})
    with pytest.raises(UserError, match="toy-train/00000001, mask: mask id 2"):
        data[1]


def test_tfrecords_are_read_without_tensorflow(folder, tmp_path):
    """The usual form of prepared sets: the same ids and labels, also of slices and after pickling."""
    _write(tmp_path, "tfrecord")
    already = "tensorflow" in sys.modules
    for data in (_toy(tmp_path), _toy(tmp_path, split="train[1:]"), pickle.loads(pickle.dumps(_toy(tmp_path)))):
        for i, id in enumerate(data.ids):
            other = _toy(folder)[_toy(folder).ids.index(id)]
            np.testing.assert_array_equal(data[i].image, other.image)
            assert data.encoded(i) and sorted(data[i].labels) == sorted(other.labels)
            for task, label in data[i].labels.items():
                for field, value in label.items():
                    np.testing.assert_array_equal(value, other.labels[task][field])
    assert already or "tensorflow" not in sys.modules
    (file,) = (tmp_path / "toy" / "1.0.0").glob("*.tfrecord-*")
    content = file.read_bytes()
    for damaged, says in ((content[:-5], "truncated after 2 records"), (b"\x1f\x8b" + content, "gunzip")):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=says):
            _toy(tmp_path)[0]


def test_panoptic_pictures_are_class_maps(tmp_path):
    import tensorflow_datasets as tfds

    kinds = tfds.features
    segment = {"id": np.int64, "label": kinds.ClassLabel(names=["sky", "cat"]), "bbox": kinds.BBoxFeature()}
    features = kinds.FeaturesDict(
        {"image": kinds.Image(), "panoptic_image": kinds.Image(), "panoptic_objects": kinds.Sequence(segment)}
    )
    ids = np.zeros((*SIZE, 3), np.uint8)
    ids[:, 4:, 1], ids[:, 8:, 0] = 1, 7  # segments 256 and 263
    box = kinds.BBox(0.0, 0.0, 1.0, 1.0)
    segments = [{"id": 256, "label": 1, "bbox": box}, {"id": 263, "label": 0, "bbox": box}]
    rows = [{"image": _png(ids), "panoptic_image": _png(ids), "panoptic_objects": segments[:n]} for n in (2, 1)]
    _write_rows(tmp_path, "pan", features, rows)
    data = source("tfds", dataset="pan", split="train", data_dir=str(tmp_path), labels={"seg": "panoptic_image"})
    assert data.classes == {"seg": ("sky", "cat")}
    assert data.labels(0)["seg"]["ids"][3, ::4, 0].tolist() == [255, 1, 0]
    with pytest.raises(UserError, match="00000001.*segment 263"):
        data[1]


def test_a_missing_shard_is_named(tmp_path):
    _write(tmp_path)
    next((tmp_path / "toy" / "1.0.0").glob("*.array_record-*")).unlink()
    with pytest.raises(UserError, match="toy"):
        _toy(tmp_path)[0]


def test_slices_of_one_split_have_the_ids_of_the_whole(folder):
    """So that sets which should be disjoint, and overlap, are found by their ids."""
    whole, first, last = (
        source("tfds", dataset="toy", split=s, data_dir=str(folder)) for s in ("train", "train[:2]", "train[1:]")
    )
    assert first.ids == whole.ids[:2] and last.ids == whole.ids[1:] and first.name == last.name == "toy-train"
    assert [(last[i].image == whole[i + 1].image).all() for i in range(2)] == [True, True]
    with pytest.raises(UserError, match="share toy-train/00000001"):
        check_disjoint({"training": first, "validation": last})


def _write_videos(folder, as_video=True):
    """Videos of 3, 0 and 5 frames, 8 x 12 pixels, frame t of video i all 20 i + t; stored as TFDS stores a Video."""
    import tensorflow_datasets as tfds

    kinds = tfds.features
    of = {"video": kinds.Sequence(kinds.Image(shape=(None, None, 3))), "label": kinds.ClassLabel(names=["a", "b"])}
    rows = [
        {"video": [_png(np.full((*SIZE, 3), 20 * i + t, np.uint8)) for t in range(count)], "label": i % 2}
        for i, count in enumerate((3, 0, 5))
    ]
    _write_rows(folder, "toy", kinds.FeaturesDict(of), rows)
    if as_video:  # only TensorFlow could make a Video feature; this is how its file names one
        file = folder / "toy" / "1.0.0" / "features.json"
        content = json.loads(file.read_text())
        content["featuresDict"]["features"]["video"] = {
            "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
            "video": {"dtype": "uint8", "encodingFormat": "png", "shape": {"dimensions": ["-1", "-1", "-1", "3"]}},
        }
        file.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("as_video", [True, False])
def test_a_video_decodes_the_frames_that_are_asked_for(tmp_path, as_video, monkeypatch):
    from must.readers import frames

    _write_videos(tmp_path, as_video)
    section = {"dataset": "toy", "split": "train", "data_dir": str(tmp_path), "image": "video", "name": "clips"}
    data = source("tfds", labels={"moves": "label"}, **section)
    decoded = []
    real = frames.decode_picture
    monkeypatch.setattr(
        frames, "decode_picture", lambda *arguments, **more: decoded.append(arguments[1]) or real(*arguments, **more)
    )
    example = pickle.loads(pickle.dumps(data))[2]
    assert example.id == "clips/00000002" and example.image.shape == (5, *SIZE, 3) and not decoded
    assert example.labels["moves"]["ids"].tolist() == [0] and data.classes == {"moves": ("a", "b")}
    found = example.image[np.array([4, 0, 4])]
    assert found.shape == (3, *SIZE, 3) and found[:, 0, 0, 0].tolist() == [44, 40, 44] and len(decoded) == 2
    assert data.labels(0).keys() == {"moves"} and data.encoded(0) is None
    with pytest.raises(UserError, match="clips/00000001 has no frames"):
        data[1]
    assert "tensorflow" not in sys.modules
