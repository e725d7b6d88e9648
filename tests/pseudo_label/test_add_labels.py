"""Labels of a later task stand beside the old ones by record id, all or none, and what was there stays as it was."""

import shutil

import numpy as np
import pytest

from must.core.types import Teacher, UserError
from must.pseudo_label.write import add_labels, label_images
from must.readers.records import Records
from tests.pseudo_label.test_label_resume import tree
from tests.support.toy_labels import ToySource, ToyTask, label_toy, toy_teacher

COUNT = 21
SETTINGS = {"shards": 3, "batch_size": 4}


def other_teacher(name="other", **arguments):
    """The toy teacher at another size, under another task's name."""
    toy = toy_teacher(size=(8, 8), **arguments)
    return Teacher(f"{name} teacher", {name: ToyTask()}, lambda x: {name: toy.predict(x)["toy"]}, (8, 8), name)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Records of one task; not to be changed."""
    directory = tmp_path_factory.mktemp("base") / "1.0.0"
    label_toy(directory, source=ToySource(COUNT), **SETTINGS)
    return directory


@pytest.fixture
def records(base, tmp_path):
    """The same, to be added to."""
    return shutil.copytree(base, tmp_path / "1.0.0")


def assert_equal(label, want):
    assert set(label) == set(want)
    for name in want:
        np.testing.assert_array_equal(label[name], want[name])


def test_added_labels_are_those_of_one_pass_and_old_files_stay(base, records, tmp_path):
    summary = add_labels(records, [other_teacher()], **SETTINGS)
    assert summary.records == COUNT and summary.directory == str(records / "added" / "other" / "1.0.0")
    label_images(tmp_path / "both", "toy", ToySource(COUNT), [toy_teacher(), other_teacher()], **SETTINGS)
    together, found = Records(tmp_path / "both"), Records(records)
    assert found.ids == together.ids and found.specs == together.specs and found.classes == together.classes
    for index in range(COUNT):
        for labels in (found[index].labels, found.labels(index)):
            assert list(labels) == ["toy", "other"]
            for task in labels:
                assert_equal(labels[task], together.labels(index)[task])
        np.testing.assert_array_equal(found[index].image, together[index].image)
    kept = {file: content for file, content in tree(records).items() if not file.startswith("added")}
    assert kept == tree(base)
    new = Records(records / "added" / "other" / "1.0.0")
    assert new.encoded(0) is None
    assert {task: facts["teacher"] for task, facts in found.provenance["tasks"].items()} == {
        "toy": "toy teacher",
        "other": "other teacher",
    }
    assert found.provenance["added"]["other"]["shards"] == new.provenance["shards"]


def test_the_fingerprint_is_of_what_is_read(base, records):
    old = Records(base)
    add_labels(records, [other_teacher()], **SETTINGS)
    one = Records(records).fingerprint
    assert one != old.fingerprint and Records(records, tasks=["toy"]).fingerprint == old.fingerprint
    assert Records(records, tasks=["other"]).fingerprint not in (one, old.fingerprint)
    add_labels(records, [other_teacher("third")], **SETTINGS)
    assert Records(records).fingerprint != one and Records(records, tasks=["toy", "other"]).fingerprint == one
    assert list(Records(records).labels(0)) == ["toy", "other", "third"]


def test_tfds_reads_the_records_and_the_addition(records):
    import tensorflow_datasets as tfds

    add_labels(records, [other_teacher()], **SETTINGS)
    pictures = tfds.builder_from_directory(str(records)).as_data_source("train")
    added = tfds.builder_from_directory(str(records / "added" / "other" / "1.0.0")).as_data_source("train")
    assert [example["id"] for example in added] == [example["id"] for example in pictures]
    want = Records(records).labels(5)["other"]
    np.testing.assert_array_equal(added[5]["other"]["depth"], want["depth"])
    assert set(added[5]) == {"id", "other"} and set(pictures[5]) == {"id", "image", "toy"}


def test_pictures_elsewhere_and_records_that_an_addition_lacks(tmp_path):
    label_toy(tmp_path / "1.0.0", source=ToySource(COUNT), copy_images=False, **SETTINGS)
    pictures = ToySource(COUNT, broken=(3, 9))  # two have been lost since then
    pictures.ids = pictures.ids[::-1]
    lost = [pictures.ids[index] for index in pictures.broken]
    with pytest.raises(UserError, match="max_rejects allows 0"):
        add_labels(tmp_path / "1.0.0", [other_teacher()], images=pictures, **SETTINGS)
    summary = add_labels(tmp_path / "1.0.0", [other_teacher()], images=pictures, max_rejects=0.2, **SETTINGS)
    assert (summary.records, summary.rejects) == (COUNT - 2, 2)
    found = Records(tmp_path / "1.0.0", images=pictures)
    alone = Records(tmp_path / "1.0.0" / "added" / "other" / "1.0.0")
    by_id = {id: alone.labels(index)["other"] for index, id in enumerate(alone.ids)}
    for index, id in enumerate(found.ids):
        labels = found.labels(index)
        assert ("other" in labels) == (id not in lost) == (id in by_id)
        if id in by_id:
            assert_equal(labels["other"], by_id[id])
    assert found.labels(found.ids.index(lost[0])).keys() == {"toy"}


def test_half_an_addition_is_invisible_and_ends_in_the_same_bytes(base, records, tmp_path):
    whole = shutil.copytree(base, tmp_path / "whole")
    add_labels(whole, [other_teacher()], **SETTINGS)
    calls = []

    def breaks_down(label):
        calls.append(0)
        if len(calls) > 5:  # of six batches
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_labels(records, [other_teacher(edit=breaks_down)], **SETTINGS)
    assert list((records / "added" / "other" / "1.0.0").glob("*array_record*"))
    half = Records(records)
    assert half.fingerprint == Records(base).fingerprint and list(half[0].labels) == ["toy"]
    with pytest.raises(UserError, match="added/other/1.0.0: labels 'other' already"):
        add_labels(records, [other_teacher()], name="mine", **SETTINGS)
    add_labels(records, [other_teacher("third")], **SETTINGS)  # does not change what the half one is about
    shutil.rmtree(records / "added" / "third")
    add_labels(records, [other_teacher()], worker=(1, 2), **SETTINGS)
    assert tree(records) == tree(whole)
    assert add_labels(records, [other_teacher(edit=breaks_down)], **SETTINGS).records == COUNT  # asks nobody


def test_what_is_there_or_foreign_or_damaged_is_refused(records, tmp_path):
    with pytest.raises(UserError, match="1.0.0: labels 'toy' already"):
        add_labels(records, [toy_teacher()], **SETTINGS)
    add_labels(records, [other_teacher()], **SETTINGS)
    with pytest.raises(UserError, match="added/other/1.0.0: labels 'other' already"):
        add_labels(records, [other_teacher()], name="again", **SETTINGS)
    with pytest.raises(UserError, match="belongs to another label pass, tasks.other.fingerprint"):
        add_labels(records, [other_teacher()._replace(fingerprint="new")], **SETTINGS)
    with pytest.raises(UserError, match="no complete records"):
        add_labels(tmp_path / "nowhere", [other_teacher()], **SETTINGS)
    with pytest.raises(UserError, match="has no labels of 'third', only of toy, other"):
        Records(records, tasks=["third"])
    shutil.copytree(records / "added" / "other", records / "added" / "twin")
    with pytest.raises(UserError, match="added/twin/1.0.0: adds 'other', which already exists"):
        Records(records)
    shutil.rmtree(records / "added" / "twin")
    shard = sorted((records / "added" / "other" / "1.0.0").glob("*array_record*"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"{shard}: damaged"):
        Records(records)
    Records(records, tasks=["toy"])  # whose files are whole
    label_toy(tmp_path / "others", source=ToySource(COUNT - 1), **SETTINGS)
    shutil.copytree(records / "added", tmp_path / "others" / "added")
    with pytest.raises(UserError, match="added/other/1.0.0: was added to different records"):
        Records(tmp_path / "others")
