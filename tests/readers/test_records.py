"""What a label pass says is what every reader gets back, and nothing damaged or foreign passes for it."""

import hashlib
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from must.core.types import ArraySpec, Teacher, UserError
from must.data.geometry import whole_image
from must.readers.record_format import check_specs, encode_png, features_of
from must.readers.records import Records
from must.tasks.classification import Classification
from must.tasks.detection import Detection
from must.tasks.segmentation import Segmentation
from tests.support.toy_labels import ToySource, ToyTask, label_toy, toy_teacher

SPEC = ToyTask().label_spec()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A complete directory; not to be changed."""
    directory = tmp_path_factory.mktemp("records") / "toy" / "1.0.0"
    summary = label_toy(directory)
    assert summary.records == len(ToySource()) and summary.rejects == 0
    return directory


@pytest.fixture
def copied(written, tmp_path):
    """The same, to be changed."""
    return Path(shutil.copytree(written, tmp_path / "toy" / "1.0.0"))


def expected(index, task=ToyTask(), size=(16, 12)):
    """What the teacher says of one picture, asked by itself."""
    from must.data.geometry import transform_image

    image = ToySource()[index].image
    geometry = whole_image(image.shape[:2], size)
    predicted = toy_teacher(task=task).predict(transform_image(image, geometry)[None])["toy"]
    return task.restore({name: field[0] for name, field in predicted.items()}, geometry)


def assert_same(label, want):
    assert set(label) == set(want)
    for name, spec in SPEC.items():
        if spec.dtype == "str":
            assert label[name] == want[name]
        else:
            got = np.asarray(label[name])
            assert got.dtype == spec.dtype and got.shape == np.shape(want[name]), name
            np.testing.assert_array_equal(got, want[name], err_msg=name)


def test_every_field_comes_back_exactly(written):
    records, source = Records(written), ToySource()
    assert list(records.ids) == source.ids and len(records) == len(source)
    assert records.classes == {"toy": ("a", "b", "c")}
    counts = set()
    for index in range(len(source)):
        example = records[index]
        assert example.id == source.ids[index]
        np.testing.assert_array_equal(example.image, source[index].image)
        assert_same(example.labels["toy"], expected(index))
        assert_same(records.labels(index)["toy"], expected(index))
        counts.add(len(example.labels["toy"]["boxes"]))
    assert 0 in counts and len(counts) > 2  # empty and of varying size


def test_reading_is_by_index_and_safe_in_threads_and_processes(written):
    records = pickle.loads(pickle.dumps(Records(written)))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(records)), 4)).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, example in zip(order, pool.map(records.__getitem__, order), strict=False):
            assert example.id == records.ids[index]
    with pytest.raises(IndexError):
        records[len(records)]


def test_tfds_reads_it_without_tensorflow(written, tmp_path):
    program = f"""
import pickle, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] == "tensorflow" else self.finder.find_spec(name, *arguments)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(written)!r}).as_data_source("train")
pickle.dump([source[i] for i in range(len(source))], open({str(tmp_path / "read")!r}, "wb"))
"""
    # Without(finder) hides an installed TensorFlow as if it were not there.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = pickle.loads((tmp_path / "read").read_bytes())
    assert [example["id"].decode() for example in read] == ToySource().ids
    for index, example in enumerate(read):
        np.testing.assert_array_equal(example["image"], ToySource()[index].image)
        want = expected(index)
        for name, spec in SPEC.items():
            got = example["toy"][name]
            if spec.dtype == "str":
                assert got.decode() == want[name]
            else:  # TFDS gives pictures three axes and scalars as Python numbers
                np.testing.assert_array_equal(np.asarray(got).reshape(np.shape(want[name])), want[name], err_msg=name)


def fields(message):
    """(number, value) of each field of a protocol buffer message, after its encoding's description alone."""

    def varint(at):
        value = shift = 0
        while True:
            value |= (message[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if message[at - 1] < 128:
                return value, at

    at = 0
    while at < len(message):
        tag, at = varint(at)
        assert tag & 7 == 2, "tf.train.Example holds length-delimited fields only"
        length, at = varint(at)
        yield tag >> 3, message[at : at + length]
        at += length


def features_of_record(record):
    """{path: (kind, payload)} of a serialized tf.train.Example; kind 1 bytes, 2 floats, 3 integers."""
    found = {}
    for _, features in fields(record):
        for _, entry in fields(features):
            parts = dict(fields(entry))
            ((kind, values),) = fields(parts[2])
            found[parts[1].decode()] = kind, [value for _, value in fields(values)]
    return found


def test_an_edited_provenance_is_refused(written, tmp_path):
    shutil.copytree(written, tmp_path / "1.0.0")
    path = tmp_path / "1.0.0" / "provenance.json"
    facts = json.loads(path.read_text())
    facts["tasks"]["toy"]["classes"].reverse()
    for content in (facts, {**facts, "shards": facts["shards"][::-1]}):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"provenance.json: changed or damaged"):
            Records(path.parent)


def test_an_independent_reader_counts_and_hashes_the_same(written):
    from array_record.python.array_record_module import ArrayRecordReader

    provenance = json.loads((written / "provenance.json").read_text())
    ids = []
    for number, shard in enumerate(provenance["shards"]):
        path = written / shard["file"]
        assert path.name == f"toy-train.array_record-{number:05d}-of-00006"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        records = ArrayRecordReader(str(path)).read_all()
        assert len(records) == shard["count"]
        for record in records:
            found = features_of_record(record)
            id = found["id"][1][0].decode()
            want = expected(len(ids))
            assert Image.open(io.BytesIO(found["image"][1][0])).size == ToySource()[len(ids)].image.shape[1::-1]
            kind, payload = found["toy/boxes"]
            assert kind == 2
            assert struct.unpack(f"<{want['boxes'].size}f", b"".join(payload)) == tuple(want["boxes"].ravel())
            assert zlib.decompress(found["toy/depth/value"][1][0]) == want["depth"].astype("<u2").tobytes()
            assert list(found["toy/depth/shape"][1][0]) == list(want["depth"].shape)
            ids.append(id)
    assert ids == ToySource().ids == (written / "ids.txt").read_text().splitlines()
    entry = provenance["tasks"]["toy"]
    assert (entry["teacher"], entry["fingerprint"], entry["input_size"]) == ("toy teacher", "weights", [16, 12])
    assert entry["classes"] == ["a", "b", "c"] and entry["hyper_parameters"]["bright"] == 1.0


def test_no_path_host_or_time_in_any_file(written):
    import os
    import socket

    for file in written.iterdir():
        content = file.read_bytes()
        assert str(written.parent.parent).encode() not in content, file.name
        if len(socket.gethostname()) > 3:
            assert socket.gethostname().encode() not in content, file.name
        assert str(os.getpid()).encode() not in content or "array_record" in file.name or len(str(os.getpid())) < 4


@pytest.mark.parametrize("verify", [True, False])
def test_half_a_shard_is_refused_by_name(copied, verify):
    shard = sorted(copied.glob("*array_record*"))[3]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match=shard.name):
        Records(copied, verify=verify)


def test_any_flipped_byte_is_refused_by_name(copied):
    rng = np.random.default_rng(0)
    shard = sorted(copied.glob("*array_record*"))[1]
    whole = shard.read_bytes()
    for at in [0, *rng.integers(0, len(whole), 8).tolist(), len(whole) - 1]:
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(UserError, match=shard.name):
            Records(copied)
    shard.write_bytes(whole)
    Records(copied)


def test_without_verification_a_damaged_record_is_found_when_it_is_read(copied):
    shard = sorted(copied.glob("*array_record*"))[0]
    whole = shard.read_bytes()
    at = whole.index(b"\x89PNG")
    records = Records(copied, verify=False)
    shard.write_bytes(whole[:at] + bytes(64) + whole[at + 64 :])
    records = Records(copied, verify=False)
    with pytest.raises(UserError, match=f"{shard.name}.*damaged"):
        for index in range(7):
            records[index]


def test_missing_files_and_wrong_questions_are_refused(copied):
    with pytest.raises(UserError, match="contains split 'train', not 'test'"):
        Records(copied, split="test")
    with pytest.raises(UserError, match="no labels of 'depth', only of toy"):
        Records(copied, tasks=["depth"])
    assert Records(copied, tasks=[])[0].labels == {}
    ids = (copied / "ids.txt").read_text()
    (copied / "ids.txt").write_text(ids.replace("000", "0000", 1))
    with pytest.raises(UserError, match="ids.txt"):
        Records(copied)
    (copied / "ids.txt").write_text(ids)
    next(copied.glob("*00005-of*")).unlink()
    with pytest.raises(UserError, match="00005-of-00006: missing"):
        Records(copied)
    (copied / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="no complete records"):
        Records(copied)


def test_pictures_are_copied_where_every_reader_sees_the_same(tmp_path):
    class Files(ToySource):
        """Encoded as JPEG, PNG, gray JPEG and palette PNG in turn."""

        def encoded(self, index):
            picture, buffer = Image.fromarray(super().__getitem__(index).image), io.BytesIO()
            mode, form = (("RGB", "JPEG"), ("RGB", "PNG"), ("L", "JPEG"), ("P", "PNG"))[index % 4]
            picture.convert(mode).save(buffer, form)
            return buffer.getvalue()

        def __getitem__(self, index):
            from must.readers.pictures import decode_picture

            return super().__getitem__(index)._replace(image=decode_picture(self.encoded(index), "toy"))

    source = Files(8)
    label_toy(tmp_path / "1.0.0", source=source, shards=2)
    records = Records(tmp_path / "1.0.0")
    for index in range(8):
        np.testing.assert_array_equal(records[index].image, source[index].image)
        assert (records.encoded(index) == source.encoded(index)) == (index % 4 < 2)


def test_records_without_pictures_find_them_by_id(tmp_path, written):
    label_toy(tmp_path / "1.0.0", copy_images=False)
    source = ToySource()
    shuffled = ToySource()
    shuffled.ids = shuffled.ids[::-1]
    with pytest.raises(UserError, match="é 000 has no picture"):
        Records(tmp_path / "1.0.0")[0]
    records = Records(tmp_path / "1.0.0", images=source)
    np.testing.assert_array_equal(records[7].image, source[7].image)
    np.testing.assert_array_equal(
        Records(tmp_path / "1.0.0", images=shuffled)[7].image, source[len(source) - 1 - 7].image
    )
    assert_same(records[7].labels["toy"], Records(written)[7].labels["toy"])


def test_png_is_lossless_in_every_shape():
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (5, 7, 1), (9, 4, 3), (1, 6, 3), (64, 3)]:
        image = rng.integers(0, 256, shape, np.uint8)
        got = np.asarray(Image.open(io.BytesIO(encode_png(image))))
        np.testing.assert_array_equal(got.reshape(shape), image)


@pytest.mark.parametrize(
    "task, field, spec",
    [
        ("toy", "x", ArraySpec((None, None), "float32")),
        ("toy", "x", ArraySpec((None, None), "int32", "png")),
        ("toy", "x", ArraySpec((None, None, 1), "uint16", "png")),
        ("toy", "x", ArraySpec((None, None, 2), "uint8", "png")),
        ("toy", "x", ArraySpec((None,), "str")),
        ("toy", "x", ArraySpec((None,), "uint8", "gzip")),
        ("toy", "a/b", ArraySpec((None,), "uint8")),
        ("image", "x", ArraySpec((None,), "uint8")),
        ("a/b", "x", ArraySpec((None,), "uint8")),
    ],
)
def test_fields_that_no_record_can_hold_are_refused(task, field, spec):
    with pytest.raises(UserError, match="a record cannot store"):
        check_specs({task: {field: spec}})


def test_teachers_that_differ_in_size_share_a_pass_and_no_task(tmp_path):
    from must.pseudo_label.write import label_images

    small = toy_teacher(size=(8, 8))
    second = Teacher("second", {"other": ToyTask()}, lambda x: {"other": small.predict(x)["toy"]}, (8, 8), "2")
    label_images(tmp_path / "1.0.0", "two", ToySource(9), [toy_teacher(), second], shards=2, batch_size=4)
    records = Records(tmp_path / "1.0.0", tasks=["other"])
    assert set(records[3].labels) == {"other"} and set(Records(tmp_path / "1.0.0")[3].labels) == {"toy", "other"}
    assert_same(records[3].labels["other"], expected(3, size=(8, 8)))
    with pytest.raises(UserError, match="labeled by toy teacher and by toy teacher"):
        label_images(tmp_path / "2.0.0", "two", ToySource(9), [toy_teacher(), toy_teacher()])


@pytest.mark.parametrize("task", [Classification, Detection, Segmentation])
def test_features_name_the_classes(task):
    features = features_of({"a": task(classes=("cat", "dog")).label_spec()})
    again = type(features).from_json(features.to_json())
    assert any("0 cat, 1 dog" in (feature.doc.desc or "") for feature in again["a"].values())
