"""The announced cost of a label pass is its cost."""

import shutil

import numpy as np
import pytest

from must.core.types import UserError
from must.pseudo_label.plan import Estimate, describe, estimate, make_plan
from must.readers.record_format import field_sizes
from tests.support.toy_labels import ToySource, ToyTask, label_toy, toy_teacher


def planned(count, *, shards=6, batch_size=8):
    source = ToySource(count)
    return make_plan("toy", "train", source, shards=shards, batch_size=batch_size), source


def read_all(directory):
    from array_record.python.array_record_module import ArrayRecordReader

    readers = (ArrayRecordReader(str(path)) for path in sorted(directory.glob("*array_record*")))
    return [record for reader in readers for record in reader.read_all()]


def test_bytes_are_those_of_the_records_that_are_written(tmp_path):
    source = ToySource(120)
    summary = label_toy(tmp_path / "1.0.0", source=source, shards=6, batch_size=8)
    records = read_all(tmp_path / "1.0.0")
    every = [field_sizes(record) for record in records]
    assert [sum(sizes.values()) for sizes in every] == [len(record) for record in records]
    plan, _ = planned(120)
    cost = estimate(plan, source, [toy_teacher()])
    assert list(cost.fields) == ["image", *(f"toy/{name}" for name in ToyTask().label_spec()), "id"]
    sample = every[:: 120 // 8][:8]  # the batch is drawn from the whole source
    for name, size in cost.fields.items():
        assert size == pytest.approx(np.mean([sizes[name] for sizes in sample])), name
    assert abs(cost.bytes - summary.bytes) <= 2 * 6 * 2**16  # a block or two of each shard
    fields = estimate(plan, source, [toy_teacher()], copy_images=False).fields
    assert fields == {name: size for name, size in cost.fields.items() if name != "image"}


def test_time_is_that_of_the_slowest_worker_and_without_compilation():
    calls = []

    def slow_at_first(label):
        import time

        time.sleep(1.5 if not calls else 0.02)
        calls.append(0)

    plan, source = planned(40, shards=3, batch_size=8)
    one, two, many = (estimate(plan, source, [toy_teacher(edit=slow_at_first)], workers=n) for n in (1, 2, 4))
    assert 8 / 1.5 < one.rate < 8 / 0.02
    batches = lambda cost: cost.hours * 3600 * cost.rate / 8  # noqa: E731
    assert [round(batches(cost), 6) for cost in (one, two, many)] == [6, 4, 2]  # of two batches a shard


def test_a_batch_that_cannot_be_read_is_refused_or_said(tmp_path):
    plan, _ = planned(4, shards=1)
    with pytest.raises(UserError, match="no image of the batch can be read: .*broken picture"):
        estimate(plan, ToySource(4, broken=(0, 1, 2, 3)), [toy_teacher()])
    cost = estimate(plan, ToySource(4, broken=(1,)), [toy_teacher()])
    assert "1 of the 4 images of the batch cannot be read: toy/é 001: broken picture" in describe(cost, plan)


COST = Estimate(412.0, 4, 0.5, {"image": 24000.0, "depth/depth": 15900.0, "id": 100.0}, 2_000_000_000, ())


def test_the_table_says_speed_time_fields_and_shards(tmp_path):
    plan, _ = planned(50, shards=7)
    text = describe(COST, plan, directory=tmp_path)
    for line in (
        "50 images in batches of 8",
        "412 images/s",
        "30.0 minutes with 4 workers",
        "2 GB in 7 shards of 8 images",
        "24,000    60.0%",
        "15,900    39.8%",
        "40,000   100.0%",
    ):
        assert line in text, text
    assert "WARNING" not in text and max(map(len, text.splitlines())) < 100
    assert "pictures stay" in describe(COST._replace(fields={"id": 1.0}), plan)


def test_too_small_a_disk_and_too_many_workers_are_warned_of(tmp_path):
    plan, _ = planned(50, shards=3)
    where, free = tmp_path / "not" / "there" / "yet", shutil.disk_usage(tmp_path).free
    text = describe(COST._replace(bytes=2 * free, workers=5), plan, directory=where)
    assert f"WARNING  {tmp_path}: " in text and "free, the records need about" in text
    assert "WARNING  5 workers and 3 shards" in text
    assert not where.exists()
    assert "WARNING" not in describe(
        COST._replace(bytes=2 * free), plan._replace(shards=4)
    )  # nobody asked about a disk
