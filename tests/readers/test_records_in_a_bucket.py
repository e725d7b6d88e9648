"""Records in a bucket: shards come when they are read, into a bounded cache, and every process reads its own."""

import itertools
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from must.core import buckets, shard_cache
from must.core.types import UserError
from must.data.order import shuffled
from must.pseudo_label import write
from must.readers.records import PROVENANCE, Records
from tests.support.toy_labels import ToySource, label_toy

SHARDS, PER_SHARD = 8, 4
URL = "memory://bucket/run"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Changes the machine that the test runs on, which has a disk of its own."""
    store = fsspec.filesystem("memory")
    yield lambda name: monkeypatch.setenv("MUST_SCRATCH", str(tmp_path / name))
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def label(directory, **options):
    label_toy(directory, source=ToySource(SHARDS * PER_SHARD), shards=SHARDS, **options)


@pytest.fixture
def written(machine, tmp_path):
    """Records that the machine "one" wrote; they are read on "two"."""
    machine("one")
    with buckets.workdir(URL) as here:
        label(f"{here}/records/1.0.0")
        shutil.copytree(f"{here}/records/1.0.0", tmp_path / "plain")
    machine("two")
    return tmp_path / "plain"


def shards_of(top):
    return sorted(path.name for path in Path(top).rglob("*array_record*"))


def cached(tmp_path):
    return [path for path in (tmp_path / "two" / "shards").glob("*array_record*") if path.suffix != ".lock"]


def same(records, plain, order=None):
    return all(
        records[i].id == plain[i].id
        and np.array_equal(records[i].image, plain[i].image)
        and str(records.labels(i)) == str(plain.labels(i))
        for i in (range(len(plain)) if order is None else order)
    )


def test_a_shard_comes_when_its_first_record_is_read(written, tmp_path):
    here = buckets.fetched(URL)
    assert not shards_of(here)
    records, plain = Records(f"{here}/records/1.0.0"), Records(written)
    assert records.fingerprint == plain.fingerprint and records.ids == plain.ids and not cached(tmp_path)
    assert records.shard(0) is None  # all of it fits into the cache
    assert same(records, plain, [PER_SHARD])
    assert len(cached(tmp_path)) == 1
    assert same(records, plain) and len(cached(tmp_path)) == SHARDS
    fsspec.filesystem("memory").rm(f"{URL}/records", recursive=True)
    assert same(Records(f"{here}/records/1.0.0"), plain)  # from the cache alone


def test_a_cache_that_is_too_small_for_all_is_kept_small(written, machine, tmp_path, monkeypatch):
    largest = max(path.stat().st_size for path in written.glob("*array_record*"))
    monkeypatch.setenv(shard_cache.BOUND, str(1.5 * shard_cache.AT_A_TIME * largest / 2**30))
    records, plain = Records(f"{buckets.fetched(URL)}/records/1.0.0"), Records(written)
    fetches = []
    monkeypatch.setattr(
        buckets.Mirror, "download", lambda *a, real=buckets.Mirror.download: (fetches.append(a[1]), real(*a))
    )
    for process in (0, 1):
        order = shuffled(records, 0, 2, 4)
        rows = [order[4 * batch + 2 * process + row] for batch, row in itertools.product(range(8), range(2))]
        assert same(records, plain, rows)
        assert sum(path.stat().st_size for path in cached(tmp_path)) <= shard_cache.bound()
    assert sorted(fetches) == [f"records/1.0.0/{name}" for name in shards_of(written)]  # each once, by one process
    assert same(records, plain)  # in order, as evaluation reads
    machine("three")
    monkeypatch.setenv(shard_cache.BOUND, str(largest / 2 / 2**30))
    with pytest.raises(UserError, match=f"more than the cache.*{shard_cache.BOUND}"):
        Records(f"{buckets.fetched(URL)}/records/1.0.0")[5 * PER_SHARD]
    monkeypatch.setenv(shard_cache.BOUND, "many")
    with pytest.raises(UserError, match=f"{shard_cache.BOUND}=many"):
        shard_cache.bound()


def test_many_read_at_once_through_a_cache_that_has_room_for_one_shard(written, monkeypatch):
    """What one thread fetches takes the place of what another is about to open."""
    largest = max(path.stat().st_size for path in written.glob("*array_record*"))
    monkeypatch.setenv(shard_cache.BOUND, str(1.2 * largest / 2**30))
    here, plain = f"{buckets.fetched(URL)}/records/1.0.0", Records(written)

    def read(seed):
        records = Records(here)
        return same(records, plain, np.random.default_rng(seed).permutation(len(plain)).tolist())

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(6)))


def test_the_order_of_training_is_the_same_on_every_machine_and_at_every_start(written, machine, monkeypatch):
    """Whatever lies there: on the machine that wrote all shards, on one that has none of them, on the same later."""
    monkeypatch.setenv(shard_cache.BOUND, str(1000 / 2**30))
    orders = []
    for name in ("one", "two", "two"):
        machine(name)
        with buckets.workdir(URL) as here:
            records = Records(f"{here}/records/1.0.0")
            orders.append([shuffled(records, 0, 2, 4)[place] for place in range(40)])
    assert orders[0] == orders[1] == orders[2]
    assert len({records.shard(index) for index in range(len(records))}) == SHARDS
    assert Records(written).shard(0) is None  # in a folder all are shuffled
    monkeypatch.delenv(shard_cache.BOUND)
    assert Records(f"{here}/records/1.0.0").shard(0) is None


def test_damage_in_the_bucket_is_named(written):
    store, name = fsspec.filesystem("memory"), shards_of(written)[2]
    data = bytearray(store.cat_file(f"{URL}/records/1.0.0/{name}"))
    data[len(data) // 2] ^= 1
    store.pipe_file(f"{URL}/records/1.0.0/{name}", bytes(data))
    records = Records(f"{buckets.fetched(URL)}/records/1.0.0")
    assert same(records, Records(written), [0])
    with pytest.raises(UserError, match=f"{name}: damaged in the bucket"):
        records[2 * PER_SHARD]
    store.pipe_file(f"{URL}/records/1.0.0/{name}", bytes(data[:-1]))
    with pytest.raises(UserError, match=f"{name}: has .* bytes in the bucket"):
        Records(f"{buckets.fetched(URL)}/records/1.0.0")
    store.rm_file(f"{URL}/records/1.0.0/{name}")
    with pytest.raises(UserError, match=f"{name}: missing"):
        Records(f"{buckets.fetched(URL)}/records/1.0.0")


def stopped(*_):
    raise KeyboardInterrupt


def test_a_pass_is_finished_where_others_wrote_its_shards(machine, tmp_path, monkeypatch):
    label(tmp_path / "alone")
    machine("one")
    with buckets.workdir(URL) as here, monkeypatch.context() as patch:
        patch.setattr(write.Job, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            label(f"{here}/records/1.0.0")
    machine("two")
    with buckets.workdir(URL) as here:
        assert not shards_of(here)
        label(f"{here}/records/1.0.0")
        assert not shards_of(here) and len(cached(tmp_path)) == SHARDS  # checked, not made again
        assert Records(f"{here}/records/1.0.0").fingerprint == Records(tmp_path / "alone").fingerprint
    machine("three")
    here = buckets.fetched(URL)
    assert (Path(here) / "records" / "1.0.0" / PROVENANCE).exists()
    assert same(Records(f"{here}/records/1.0.0"), Records(tmp_path / "alone"))


def test_a_shard_that_is_made_again_here_is_ours_and_goes_back(written, machine):
    with buckets.workdir(URL) as here:
        path = Path(here, "records", "1.0.0", shards_of(written)[0])
        path.write_bytes(b"new")
    assert fsspec.filesystem("memory").cat_file(f"{URL}/records/1.0.0/{path.name}") == b"new"
    with buckets.workdir(URL) as here:
        assert path.read_bytes() == b"new" and len(shards_of(here)) == 1
    machine("one")
    with buckets.workdir(URL) as here:
        assert len(shards_of(here)) == SHARDS - 1  # its own, but for the one that changed
    assert len([name for name in fsspec.filesystem("memory").find(URL) if "array_record" in name]) == SHARDS
    assert not os.path.exists(Path(here, "records", "1.0.0", path.name))
