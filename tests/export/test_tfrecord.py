"""The TFRecord twin of a directory of records: the same examples, read by tf.data. Most of it needs TensorFlow."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from must.core.files import file_hash
from must.core.types import UserError
from must.export import tfrecord
from must.export.tfrecord import write_tfrecord
from must.readers.records import Records, stored_records
from tests.support.random_labels import TASKS, Labeled, label_random
from tests.support.toy_labels import ToySource, label_toy


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A complete directory with every type and encoding of fields; not to be changed."""
    directory = tmp_path_factory.mktemp("records") / "toy" / "1.0.0"
    label_toy(directory)
    return directory


@pytest.fixture(scope="module")
def twin(records, tmp_path_factory):
    """Its twin; not to be changed."""
    pytest.importorskip("tensorflow")
    directory = tmp_path_factory.mktemp("twin") / "toy" / "1.0.0"
    assert write_tfrecord(records, directory) == len(ToySource())
    return directory


def shards(directory):
    return sorted(file for file in os.listdir(directory) if "record-" in file)


def test_shards_hold_the_same_bytes_in_the_same_order(records, twin):
    import tensorflow as tf

    assert shards(twin) == [file.replace("array_record", "tfrecord") for file in shards(records)]
    for ours, theirs in zip(shards(records), shards(twin), strict=True):
        wanted = list(stored_records(str(records / ours)))
        assert list(tf.data.TFRecordDataset(str(twin / theirs)).as_numpy_iterator()) == wanted
    assert (twin / "ids.txt").read_bytes() == (records / "ids.txt").read_bytes()
    assert (twin / "features.json").read_bytes() == (records / "features.json").read_bytes()
    for facts in json.loads((twin / "provenance.json").read_text())["shards"]:
        assert facts["sha256"] == file_hash(twin / facts["file"])


def assert_tf_data_gives(twin, source):
    """Every field of every task in the order and with the types of the records."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(twin)
    assert builder.info.splits["train"].num_examples == len(source)
    # Pictures as they are stored: TensorFlow's JPEG decoder rounds in its own way.
    decoders = {"image": tfds.decode.SkipDecoding()}
    read = list(tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False, decoders=decoders)))
    assert [example["id"].decode() for example in read] == list(source.ids)
    for index, example in enumerate(read):
        assert example["image"] == source.encoded(index)
        for task, label in source.labels(index).items():
            for field, value in label.items():
                got = example[task][field]
                if isinstance(value, str):
                    assert got.decode() == value
                else:  # TFDS gives pictures three axes
                    assert got.dtype == np.asarray(value).dtype, field
                    np.testing.assert_array_equal(np.reshape(got, np.shape(value)), value, err_msg=f"{task}.{field}")


def test_tf_data_gives_every_type_and_encoding(records, twin):
    assert_tf_data_gives(twin, Records(records))


def test_tf_data_gives_every_field_of_every_task(tmp_path):
    pytest.importorskip("tensorflow")
    label_random(tmp_path / "records", Labeled([f"pool/{i}" for i in range(6)], missing=False))
    write_tfrecord(tmp_path / "records", tmp_path / "twin")
    source = Records(tmp_path / "records")
    assert set(source[0].labels) == set(TASKS)
    assert_tf_data_gives(tmp_path / "twin", source)


def test_a_twin_is_left_as_it_is_and_takes_no_foreign_place(records, twin, tmp_path):
    before = {file: os.stat(twin / file).st_mtime_ns for file in os.listdir(twin)}
    assert write_tfrecord(records, twin) == len(ToySource())
    assert before == {file: os.stat(twin / file).st_mtime_ns for file in os.listdir(twin)}
    label_toy(tmp_path / "other", source=ToySource(7))
    with pytest.raises(UserError, match="another data set"):
        write_tfrecord(tmp_path / "other", twin)
    with pytest.raises(UserError, match="holds tfrecord files"):
        Records(twin)


def test_damaged_records_have_no_twin(records, tmp_path):
    pytest.importorskip("tensorflow")
    copied = shutil.copytree(records, tmp_path / "toy")
    path = copied / shards(copied)[2]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        write_tfrecord(copied, tmp_path / "twin")
    assert sorted(os.listdir(tmp_path)) == ["toy"]


def test_a_killed_run_leaves_nothing_that_looks_complete(records, tmp_path):
    pytest.importorskip("tensorflow")
    # Stops for good behind the third shard.
    program = f"""
import time
from must.export import tfrecord
write, done = tfrecord._write_shard, []
def slow(*arguments):
    done.append(write(*arguments))
    print(len(done), flush=True)
    if len(done) == 3:
        time.sleep(600)
    return done[-1]
tfrecord._write_shard = slow
tfrecord.write_tfrecord({str(records)!r}, {str(tmp_path / "twin")!r})
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == "3":
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "twin").exists()
    assert os.listdir(tmp_path) != [], "it was at work"
    write_tfrecord(records, tmp_path / "twin")
    assert os.listdir(tmp_path) == ["twin"]


def test_without_tensorflow_the_message_names_the_extra(records, tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'must\[tf\]'"):
        write_tfrecord(records, tmp_path / "twin")
    assert os.listdir(tmp_path) == []
