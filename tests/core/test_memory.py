"""All caches of a run keep to one budget, whatever is in them and whoever asks."""

import gc
import pickle

import numpy as np
import pytest

from must.core import memory
from must.core.types import Example, UserError
from must.data.combine import Cached


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(memory, "_state", {"used": 0})


class Pictures:
    def __init__(self, name, count=8, size=1 << 18):
        self.name, self.ids, self.classes, self.fingerprint = name, [f"{name}/{n}" for n in range(count)], {}, name
        self._size = size

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return Example(self.ids[index], np.full((self._size,), index, np.uint8), {})


def kept(cache):
    return sum(cache[n].image is cache[n].image for n in range(len(cache)))


def test_several_caches_share_one_budget_and_give_it_back(monkeypatch):
    monkeypatch.setenv("MUST_CACHE_MIB", "1")  # four pictures
    assert memory.budget() == 1 << 20
    one, two = Cached(Pictures("one")), Cached(Pictures("two"))
    assert kept(one) == 4 and kept(two) == 0
    copy = pickle.loads(pickle.dumps(one))  # of another process: it has cached nothing
    assert kept(copy) == 0
    del one
    gc.collect()
    assert kept(two) == 4
    assert kept(Cached(Pictures("small", size=1), limit_mib=1)) == 0  # the budget is used up
    memory.restrict(2 << 20)
    assert kept(Cached(Pictures("limited"), limit_mib=0.5)) == 2


def test_processes_divide_the_budget(monkeypatch):
    monkeypatch.setenv("MUST_CACHE_MIB", "3")
    assert memory.divide(3) == 1 << 20 == memory.budget()


def test_the_budget_comes_from_free_memory(monkeypatch):
    monkeypatch.delenv("MUST_CACHE_MIB", raising=False)
    monkeypatch.setattr(memory, "available", lambda: 4 << 20)
    assert memory.budget() == 1 << 20
    monkeypatch.setattr(memory, "_state", {"used": 0})
    monkeypatch.setattr(memory, "available", lambda: 1 << 40)
    assert memory.budget() == 1 << 30


def test_free_memory_is_that_of_the_container_too(tmp_path, monkeypatch):
    whole = memory.available()
    assert 1 << 20 < whole < 1 << 50
    for name, text in (("max", "900"), ("current", "500")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_CGROUPS", ((str(tmp_path / "max"), str(tmp_path / "current")),))
    assert memory.available() == 400


def test_a_variable_that_is_no_number(monkeypatch):
    monkeypatch.setenv("MUST_CACHE_MIB", "lots")
    with pytest.raises(UserError, match="MUST_CACHE_MIB=lots: expected a whole number"):
        memory.budget()
