"""Geometry moves every label with its pixels; batches depend on seed and index alone, whoever reads them."""

import functools
import multiprocessing
import time

import jax
import numpy as np
import pytest

from must.core.types import Example, UserError
from must.data import ahead, geometry
from must.data.ahead import Placed, workers_for
from must.data.augment import Photometric
from must.data.pipeline import Encoder, Grouped, epoch_steps, eval_batches, train_batches
from must.scenes.still import CLASSES, Scenes
from must.tasks.classification import Classification
from must.tasks.depth import Depth

COUNT, SIDE = 23, 12


class _Source:
    """Images whose pixels say which example they are."""

    name, classes, fingerprint = "numbers", {}, "0"
    ids = [f"numbers/{i}" for i in range(COUNT)]

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        labels = {
            "classification": {
                "ids": np.array([i % 3], np.uint16),
                "probs": np.ones(1, np.float16),
                "rest": np.float16(0),
            }
        }
        return Example(self.ids[i], np.full((SIDE, SIDE, 3), i, np.uint8), labels if i % 2 else {})


TASKS = {"classification": Classification(classes=("a", "b", "c")), "depth": Depth(head_stride=1)}
ENCODER = Encoder(TASKS, (SIDE, SIDE), functools.partial(geometry.draw, zoom=(0.8, 1.3), shift=0.2))


def _take(iterator, count):
    return [next(iterator) for _ in range(count)]


def _same(a, b):
    import jax

    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_absent_labels_are_blank_with_weight_zero():
    batch = next(train_batches(_Source(), ENCODER, batch_size=8, seed=0))
    np.testing.assert_array_equal(batch.weights["classification"], batch.ids % 2)
    assert not batch.weights["depth"].any() and not batch.labels["depth"]["depth"].any()


def test_an_epoch_sees_everything_once_and_orders_differ():
    batches = _take(train_batches(_Source(), ENCODER, batch_size=1, seed=0), 2 * COUNT)
    ids = [int(b.ids[0]) for b in batches]
    assert sorted(ids[:COUNT]) == sorted(ids[COUNT:]) == list(range(COUNT))
    assert ids[:COUNT] != ids[COUNT:]


def test_same_seed_same_batches_and_position_resumes():
    whole = _take(train_batches(_Source(), ENCODER, batch_size=4, seed=3), 9)
    first = train_batches(_Source(), ENCODER, batch_size=4, seed=3)
    part = _take(first, 4)
    position = first.get_state()
    second = train_batches(_Source(), ENCODER, batch_size=4, seed=3)
    second.set_state(position)
    _same(whole, part + _take(second, 5))
    other = _take(train_batches(_Source(), ENCODER, batch_size=4, seed=4), 9)
    assert any((a.ids != b.ids).any() for a, b in zip(whole, other, strict=True))


def test_workers_make_the_same_batches_resume_and_fail_in_one_line():
    whole = _take(train_batches(_Source(), ENCODER, batch_size=4, seed=3), 6)
    source = _Broken(int(whole[5].ids[0]))  # an epoch has every example once
    batches = train_batches(source, ENCODER, batch_size=4, seed=3, workers=2)
    assert batches.get_state() == {"next_index": 0}
    _same(whole[:3], _take(batches, 3))
    batches.close()
    resumed = train_batches(source, ENCODER, batch_size=4, seed=3, workers=1)
    resumed.set_state(batches.get_state())
    _same(whole[3:5], _take(resumed, 2))
    with pytest.raises(UserError, match="^numbers: example .* cannot be read$"):
        next(resumed)
    resumed.close()
    assert not multiprocessing.active_children()


class _Broken(_Source):
    def __init__(self, broken):
        self.broken = broken

    def __getitem__(self, i):
        if i == self.broken:
            raise UserError(f"numbers: example {i} cannot be read")
        return super().__getitem__(i)


def test_workers_are_chosen_by_the_work(monkeypatch):
    class Slow(_Source):
        def __getitem__(self, i):
            until = time.process_time() + 0.004
            while time.process_time() < until:
                pass
            return super().__getitem__(i)

    chosen = functools.partial(workers_for, encoder=ENCODER, batch_size=8)
    assert chosen(_Source(), cores=16) == 0
    assert [chosen(Slow(), cores=cores) for cores in (2, 8, 64)] == [0, 6, 16]
    assert chosen(*[Slow()] * 3, cores=16) == 4
    monkeypatch.setattr(ahead, "_shared_memory", lambda: 5 * 8 * 4 * SIDE * SIDE * 4)
    assert 0 < chosen(Slow(), cores=64) < 16


def test_arrays_are_sent_ahead_and_the_position_is_that_of_what_was_taken(monkeypatch):
    placed = []
    make = functools.partial(train_batches, _Source(), ENCODER, batch_size=4, seed=3)
    batches = Placed(make(), lambda leaf: placed.append(leaf.shape) or leaf)
    monkeypatch.setattr(ahead, "_LARGE", 500)
    whole = _take(make(), 5)
    _same(whole[:2], _take(batches, 2))
    assert len(placed) >= 3 and batches.get_state() == {"next_index": 2}
    again = Placed(make(), lambda leaf: leaf)
    again.set_state(batches.get_state())
    _same(whole[2:], _take(again, 3))


def test_processes_share_each_global_batch():
    whole = _take(train_batches(_Source(), ENCODER, batch_size=6, seed=1), 5)
    parts = [_take(train_batches(_Source(), ENCODER, batch_size=6, seed=1, process=(k, 2)), 5) for k in range(2)]
    for one, a, b in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(one.ids, np.concatenate([a.ids, b.ids]))
        np.testing.assert_array_equal(one.inputs["image"], np.concatenate([a.inputs["image"], b.inputs["image"]]))
    with pytest.raises(UserError, match="batch_size=0"):
        next(eval_batches(_Source(), ENCODER, batch_size=0))
    with pytest.raises(UserError, match="batch_size 5"):
        train_batches(_Source(), ENCODER, batch_size=5, seed=1, process=(0, 2))


def test_evaluation_reads_every_example_once_and_pads_with_nothing():
    batches = list(eval_batches(_Source(), ENCODER._replace(draw=None), batch_size=5))
    ids = np.concatenate([b.ids for b in batches])
    assert ids[ids >= 0].tolist() == list(range(COUNT)) and all(len(b.ids) == 5 for b in batches)
    assert not np.concatenate([b.weights["classification"] for b in batches])[ids < 0].any()


def test_a_label_that_cannot_be_right_names_its_record():
    class Wrong(_Source):
        def __getitem__(self, i):
            example = super().__getitem__(i)
            label = {"ids": np.array([7], np.uint16), "probs": np.ones(1, np.float16), "rest": np.float16(0)}
            return example._replace(labels={"classification": label})

    with pytest.raises(UserError, match="numbers/0.*classification"):
        list(eval_batches(Wrong(), ENCODER, batch_size=4))


@pytest.mark.parametrize("seed", range(8))
def test_maps_boxes_and_pixels_move_together(seed):
    rng = np.random.default_rng(seed)
    height, width = 40, 60
    image = np.zeros((height, width, 3), np.uint8)
    y0, x0 = rng.integers(2, 15, 2)
    y1, x1 = y0 + rng.integers(10, 20), x0 + rng.integers(10, 30)
    image[y0:y1, x0:x1] = 255
    g = geometry.draw(rng, (height, width), (64, 64), zoom=(0.7, 1.4), shift=0.1)
    moved = geometry.transform_image(image, g, (0, 0, 0))[..., 0] > 127
    mask = geometry.transform_map(image[..., 0], g, 0) > 127
    assert (moved != mask).mean() < 0.03  # they differ along the antialiased outline only
    (box,), (visible,) = geometry.transform_boxes([[x0, y0, x1, y1]], g)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows):
        hull = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(box, hull, atol=1.01)
    if visible > 0.999:
        np.testing.assert_allclose(geometry.restore_boxes([box], g), [[x0, y0, x1, y1]], atol=1e-3)


@pytest.mark.parametrize("flip", [False, True])
def test_a_map_comes_back_from_the_frame(flip):
    small = np.arange(6 * 8).reshape(6, 8)
    g = geometry.whole_image((24, 32), (48, 64))._replace(flip=flip)
    frame = geometry.transform_map(small, g, -1)
    np.testing.assert_array_equal(geometry.restore_map(frame, g, (6, 8)), small)


def test_the_plain_view_copies_pixels():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    np.testing.assert_array_equal(geometry.transform_image(image, geometry.whole_image((16, 16), (16, 16))), image)


def test_photometric_views_keep_shape_and_vary():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    view = Photometric(1.0, cutout=0.5)
    views = [view(image, np.random.default_rng(i)) for i in range(6)]
    assert all(v.shape == image.shape and v.dtype == np.uint8 for v in views)
    assert len({v.tobytes() for v in views}) == 6
    np.testing.assert_array_equal(views[0], view(image, np.random.default_rng(0)))
    still = Photometric(0.0, noise=0.0)(image, np.random.default_rng(0)).astype(int)
    assert np.abs(still - image).max() <= 1


def _scenes(count, name):
    return Scenes(count, size=16, labels=("classification",), name=name)


def test_groups_go_through_their_sets_at_their_own_pace():
    encoder = Encoder({"classification": Classification(CLASSES["classification"])}, (16, 16))

    def make():
        return Grouped(
            {
                name: train_batches(_scenes(count, name), encoder, batch_size=4, seed=i)
                for i, (name, count) in enumerate((("a", 8), ("b", 20)))
            }
        )

    batches = make()
    seen = [next(batches) for _ in range(5)]
    assert sorted(np.concatenate([step["b"].ids for step in seen])) == list(range(20))  # one epoch of the largest set
    assert sorted(np.concatenate([step["a"].ids for step in seen[:4]])) == sorted(
        [*range(8), *range(8)]
    )  # two of the other
    assert epoch_steps({"a": 8, "b": 20}, 4) == 5 and epoch_steps({"a": 3}, 4) == 1
    position = batches.get_state()
    ahead = next(batches)
    again = make()
    again.set_state(position)
    jax.tree.map(np.testing.assert_array_equal, next(again), ahead)


def test_every_batch_draws_its_frame_until_the_plain_size():
    encoder = Encoder({"classification": Classification(CLASSES["classification"])}, (16, 16))
    sizes = [(16, 16), (24, 24), (32, 32)]
    settings = {"batch_size": 4, "sizes": sizes, "sizes_until": 12}
    make = lambda seed: train_batches(_scenes(20, "a"), encoder, seed=seed, **settings)  # noqa: E731
    frames = lambda batches, count: [next(batches).inputs["image"].shape[1:3] for _ in range(count)]  # noqa: E731
    shapes = frames(make(0), 16)
    assert set(shapes[:12]) == set(sizes) and set(shapes[12:]) == {(16, 16)}
    assert frames(make(1), 16) == shapes  # groups with seeds of their own agree
    batches = make(0)
    frames(batches, 10)
    position = batches.get_state()
    rest = frames(batches, 6)
    again = make(0)
    again.set_state(position)
    assert frames(again, 6) == rest == shapes[10:]
