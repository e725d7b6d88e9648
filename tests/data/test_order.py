"""The order of a training run: a source larger than the disk is read shard by shard, every process its own shards."""

import itertools
import pickle

import numpy as np
import pytest

from must.core.shard_cache import AT_A_TIME
from must.data.combine import Subset
from must.data.order import shuffled

COUNT, LENGTH = 12, 10


class Stored:
    """Records of shards that do not fit into the cache of this machine."""

    name, classes, fingerprint = "s", {}, "0"
    ids = [f"s/{i}" for i in range(COUNT * LENGTH)]

    def __len__(self):
        return len(self.ids)

    def shard(self, index):
        return index // LENGTH


def stream(order, process, count, batch_size, batches):
    rows = batch_size // count
    return [
        order[batch * batch_size + process * rows + row]
        for batch, row in itertools.product(range(batches), range(rows))
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_epoch_has_every_example_once_and_no_shard_in_two_processes(count):
    batch_size = 6
    order, epoch = shuffled(Stored(), 0, count, batch_size), COUNT * LENGTH // batch_size
    for number in range(2):
        streams = [stream(order, process, count, batch_size, 2 * epoch) for process in range(count)]
        half = COUNT * LENGTH // count
        streams = [one[number * half : (number + 1) * half] for one in streams]
        shards = [{index // LENGTH for index in one} for one in streams]
        assert sorted(itertools.chain(*streams)) == list(range(COUNT * LENGTH))
        assert sum(map(len, shards)) == COUNT
    again = pickle.loads(pickle.dumps(order))
    assert [again[place] for place in range(50)] == [order[place] for place in range(50)]


def test_few_shards_are_read_at_a_time_in_random_order():
    order = [shuffled(Stored(), 3, 1, 4)[place] for place in range(COUNT * LENGTH)]
    windows = [order[start : start + AT_A_TIME * LENGTH] for start in range(0, len(order), AT_A_TIME * LENGTH)]
    assert all(len({index // LENGTH for index in window}) == AT_A_TIME for window in windows)
    assert all(sorted(window) != window for window in windows)
    assert order != [shuffled(Stored(), 4, 1, 4)[place] for place in range(COUNT * LENGTH)]


def test_shards_are_known_through_other_sources_and_too_few_of_them_are_shuffled_as_a_whole():
    half = Subset(Stored(), count=COUNT * LENGTH // 2)
    order = shuffled(half, 0, 2, 4)
    mine, theirs = (
        {int(half._indices[index]) // LENGTH for index in stream(order, process, 2, 4, 10)} for process in (0, 1)
    )
    assert not mine & theirs
    many = shuffled(Stored(), 0, COUNT + 1, COUNT + 1)
    assert len({many[place] // LENGTH for place in range(20)}) > AT_A_TIME
    plain = Stored()
    plain.shard = lambda index: None
    np.testing.assert_array_equal(
        [shuffled(plain, 0, 1, 4)[place] for place in range(20)],
        [shuffled(plain, 0, 2, 4)[place] for place in range(20)],
    )
