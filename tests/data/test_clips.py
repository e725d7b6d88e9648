"""Clips show the window, order, geometry and light that they say; folders of frames are what their lists say."""

import dataclasses
import functools
import pickle

import numpy as np
import pytest

from must.core.types import Example, UserError
from must.data import geometry
from must.data.augment import Photometric
from must.data.clips import ClipEncoder, Window, segment_frames
from must.data.combine import Cached
from must.data.disjoint import check_disjoint, overlaps
from must.data.pipeline import Encoder, eval_batches, train_batches
from must.data.sources import source
from must.pseudo_label.clips import write_clips
from must.readers.frames import FrameFolders
from must.readers.records import Records
from must.tasks.action import Action
from tests.support.clip_sets import Clips, frame_folders, numbered, write_frames

SIZE = (6, 8)
TASK = Action(("left", "right", "up"), mirrored={"left": "right"}, reversed={"up": ""})
ALL = np.arange


def shown(frames):
    """The frame numbers of a clip from `numbered`."""
    return frames[..., 0, 0, 1].tolist()


def row(encoder, video, class_id=None, seed=0):
    return encoder(Clips("c", [video], [class_id], TASK.classes)[0], 0, np.random.default_rng(seed))


@pytest.mark.parametrize("length", [1, 2, 5, 8, 13, 64])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_every_segment_gives_one_frame(length, count):
    middle = segment_frames(10, 10 + length, count)
    assert middle.dtype == np.int64 and middle.shape == (count,) and (np.diff(middle) >= 0).all()
    edges = 10 + ALL(count + 1) * length // count
    for seed in range(20):
        drawn = segment_frames(10, 10 + length, count, np.random.default_rng(seed).random(count))
        assert (drawn >= edges[:-1]).all() and (drawn < np.maximum(edges[1:], edges[:-1] + 1)).all()
    if length <= count:  # a short window repeats frames and leaves none out
        assert set(middle) == set(range(10, 10 + length))
    else:
        assert len(set(middle)) == count


def test_jitter_reaches_every_frame_and_only_when_asked():
    rng = np.random.default_rng(0)
    video = numbered(0, 12)
    random = Window(random=True)
    encoder = ClipEncoder({}, SIZE, {"v": 4}, random)
    assert {f for _ in range(60) for f in shown(encoder(Example("x", video, {}), 0, rng).inputs["v"])} == set(range(12))
    for window in (Window(), dataclasses.replace(random, jitter=False)):
        encoder = ClipEncoder({}, SIZE, {"v": 4}, window)
        assert {tuple(shown(row(encoder, video, seed=i).inputs["v"])) for i in range(9)} == {(1, 4, 7, 10)}


def test_dense_windows_lie_in_the_middle_or_anywhere():
    assert Window(4).places(12) == [(4, 8, 0.5)]
    assert Window(4).places(3) == [(0, 3, 0.5)]
    assert [place[:2] for place in Window(4).places(12, clips=3)] == [(0, 4), (4, 8), (8, 12)]
    rng = np.random.default_rng(0)
    starts = {Window(4, random=True).places(12, rng=rng)[0][:2] for _ in range(200)}
    assert starts == {(s, s + 4) for s in range(9)}
    with pytest.raises(UserError, match="span -1"):
        Window(-1)


def test_views_of_different_length_share_the_moment():
    encoder = ClipEncoder({}, SIZE, {"short": 2, "long": 8}, Window(8, random=True, jitter=False))
    moments = set()
    for seed in range(20):
        inputs = row(encoder, numbered(0, 40), seed=seed).inputs
        long, short = shown(inputs["long"]), shown(inputs["short"])
        assert long == list(range(long[0], long[0] + 8)) and short == [long[2], long[6]]
        moments.add(long[0])
    assert len(moments) > 5
    assert {name: blank.shape for name, blank in encoder.blank_inputs().items()} == {
        "short": (1, 2, *SIZE, 3),
        "long": (1, 8, *SIZE, 3),
    }


def test_several_clips_of_a_video_differ_and_cover_it():
    whole = row(ClipEncoder({}, SIZE, {"v": 2}, clips=3), numbered(0, 6)).inputs["v"]
    assert whole.shape == (3, 2, *SIZE, 3) and shown(whole) == [[0, 3], [1, 4], [2, 5]]
    dense = row(ClipEncoder({}, SIZE, {"v": 2}, Window(2), clips=3), numbered(0, 6)).inputs["v"]
    assert shown(dense) == [[0, 1], [2, 3], [4, 5]]


def test_mirroring_and_reversal_only_where_the_label_can_follow():
    draw = functools.partial(geometry.draw, reverse=True)
    encoder = ClipEncoder({"action": TASK}, SIZE, {"v": 4}, draw=draw)
    kinds = {}
    for class_id in (None, 0, 1, 2):
        for seed in range(40):
            made = row(encoder, numbered(0, 4), class_id, seed)
            frames = made.inputs["v"]
            flip, back = bool(frames[0, 0, 0, 2]), shown(frames) == [3, 2, 1, 0]
            assert back or shown(frames) == [0, 1, 2, 3]
            if class_id is not None:
                expected = {0: 1, 1: 0, 2: 2}[class_id] if flip else class_id
                assert made.labels["action"]["probs"].argmax() == expected
            assert made.weights["action"] == (class_id is not None)
            kinds.setdefault(class_id, set()).add((flip, back))
    both = {(a, b) for a in (False, True) for b in (False, True)}
    assert kinds == {None: both, 0: both, 1: both, 2: {(False, False), (True, False)}}  # "up" backwards is no class
    undeclared = encoder._replace(tasks={"action": Action(TASK.classes)})
    for seed in range(9):
        np.testing.assert_array_equal(row(undeclared, numbered(0, 4), 0, seed).inputs["v"], numbered(0, 4))


def test_asking_for_no_reversal_leaves_the_stream_as_it_was():
    for seed in range(5):
        a, b = np.random.default_rng(seed), np.random.default_rng(seed)
        drawn, with_reverse = geometry.draw(a, SIZE, SIZE), geometry.draw(b, SIZE, SIZE, reverse=True)
        assert drawn == with_reverse._replace(reverse=False) and not drawn.reverse
        assert a.random() != b.random()


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.6, 1.7)])
@pytest.mark.parametrize("size", [(6, 8), (9, 7)])
def test_all_frames_move_as_one_picture_does(zoom, size):
    video = np.random.default_rng(0).integers(0, 255, (5, 6, 8, 3), np.uint8)
    for seed in range(8):
        drawn = geometry.draw(np.random.default_rng(seed), (6, 8), size, zoom=zoom, shift=0.2)
        alone = [geometry.transform_image(frame, drawn) for frame in video]
        moved = geometry.transform_image(video, drawn)
        np.testing.assert_array_equal(moved, np.stack(alone))
        other = geometry.transform_image(video, drawn._replace(flip=not drawn.flip))
        np.testing.assert_array_equal(moved, other[:, :, ::-1])


def test_light_is_one_for_the_whole_clip():
    still = np.repeat(np.random.default_rng(1).integers(0, 255, (1, 12, 12, 3), np.uint8), 4, 0)
    view = Photometric(1.0, blur=0.5, cutout=0.5)
    for seed in range(12):
        clip = view(still, np.random.default_rng(seed))
        np.testing.assert_array_equal(clip, np.broadcast_to(clip[:1], clip.shape))  # equal frames stay equal
        np.testing.assert_array_equal(clip[0], view(still[0], np.random.default_rng(seed)))
        assert (clip != still).any()
    encoder = ClipEncoder({}, (12, 12), {"a": 2, "b": 4}, photometric=view)
    made = row(encoder, still).inputs
    np.testing.assert_array_equal(made["a"], made["b"][:2])


def test_batches_of_clips_are_those_of_their_seed():
    data = Clips("c", [numbered(i, 5 + i) for i in range(6)], [0, 1, 2, None, 0, 1], TASK.classes)
    draw = functools.partial(geometry.draw, zoom=(0.8, 1.2), reverse=True)
    encoder = ClipEncoder({"action": TASK}, SIZE, {"v": 3}, Window(3, random=True), draw, Photometric())
    one, two = (train_batches(data, encoder, batch_size=4, seed=5, threads=k) for k in (1, 2))
    for _ in range(4):
        a, b = next(one), next(two)
        np.testing.assert_array_equal(a.inputs["v"], b.inputs["v"])
        assert a.inputs["v"].shape == (4, 3, *SIZE, 3) and a.labels["action"]["probs"].shape == (4, 3)
    tested = list(eval_batches(data, ClipEncoder({"action": TASK}, SIZE, {"v": 3}), batch_size=4))
    assert tested[1].ids.tolist() == [4, 5, -1, -1] and tested[1].weights["action"].tolist() == [1, 1, 0, 0]


def test_pictures_and_videos_are_not_taken_for_each_other():
    with pytest.raises(UserError, match="record c/0: is a picture"):
        row(ClipEncoder({}, SIZE), numbered(0, 1)[0])
    with pytest.raises(UserError, match=r"record c/0: is a video \(3, 6, 8, 3\)"):
        row(Encoder({}, SIZE), numbered(0, 3))
    with pytest.raises(UserError, match="record c/0"):
        row(ClipEncoder({}, SIZE), numbered(0, 0))


def test_folders_of_frames(tmp_path):
    data = pickle.loads(pickle.dumps(source(**frame_folders(tmp_path, lines="train/b/1 0\ntrain/a/0\n"))))
    assert data.ids == [f"{tmp_path.name}-train/train/b/1", f"{tmp_path.name}-train/train/a/0"]
    assert data.classes == {"action": ("left", "right")} and [sorted(data[i].labels) for i in range(2)] == [
        ["action"],
        [],
    ]
    video = data[0].image
    assert video.shape == (5, 6, 8, 3)
    np.testing.assert_array_equal(video[ALL(5)], numbered(2, 5))  # 8.png, 9.png, 10.png, ...
    np.testing.assert_array_equal(video[np.array([3, 0, 3])], numbered(2, 5)[[3, 0, 3]])
    pool = FrameFolders(str(tmp_path), list="", clips="train", name="pool")
    assert pool.ids == ["pool/a/0", "pool/b/0", "pool/b/1"] and pool.classes == {} and pool[1].labels == {}
    before = data.fingerprint
    (tmp_path / "train" / "b" / "1" / "9.png").write_bytes((tmp_path / "train" / "b" / "1" / "8.png").read_bytes())
    assert FrameFolders(str(tmp_path), split="train").fingerprint != before


def test_class_indices_of_a_list_may_count_from_1(tmp_path):
    data = source(**frame_folders(tmp_path, lines="train/a/0 1\ntrain/b/0 2\n"), first_class=1)
    assert [data.classes["action"][data.labels(i)["action"]["ids"][0]] for i in range(2)] == ["left", "right"]


@pytest.mark.parametrize(
    ("lines", "change", "says"),
    [
        ("train/a/0 2\n", {}, r"splits/train.txt: train/a/0: class index 2 is not in 0..1"),
        ("train/a/0 -1\n", {}, r"class index -1"),
        ("train/a/7 0\n", {}, r"train/a/7: no such folder"),
        ("train/a/0 0\ntrain/a/0 1\n", {}, r"line 2: lists 'train/a/0' twice"),
        ("train/b/0 0\n", {"frames": 6}, r"train/b/0: has 5 frames, expected 6"),
        ("train 0\n", {}, r"train: clip without pictures"),
        ("", {}, r"empty file"),
        ("train/a/0 1\ntrain/b/0 2\n", {}, r"splits/train.txt: .*first_class=1"),
        ("train/a/0 3\n", {"first_class": 1}, r"class index 3 is not in 1..2"),
    ],
)
def test_lists_that_cannot_be_right(tmp_path, lines, change, says):
    with pytest.raises(UserError, match=says) as raised:
        source(**frame_folders(tmp_path, lines), **change)
    assert "\n" not in str(raised.value)


def test_frames_that_cannot_be_right(tmp_path):
    data = source(**frame_folders(tmp_path))
    write_frames(tmp_path / "odd", numbered(0, 1, (5, 8)), first=12)
    (tmp_path / "odd" / "12.png").replace(tmp_path / "train" / "a" / "0" / "12.png")
    (tmp_path / "train" / "b" / "0" / "9.png").write_bytes(b"\x89PNG no")
    assert data[0].image[ALL(4)].shape[0] == 4
    with pytest.raises(UserError, match=r"a/0/12.png: is 8x5 \(width x height\), but the clip's first frame is 8x6"):
        data[0].image[ALL(5)]
    with pytest.raises(UserError, match=r"b/0/9.png: not a picture"):
        data[1].image[ALL(5)]


def test_a_cache_keeps_whole_videos_while_they_fit(tmp_path):
    data = source(**frame_folders(tmp_path))
    kept = Cached(data, limit_mib=(5 * 6 * 8 * 3 + 100) / 2**20)
    first, second = kept[0].image, kept[1].image
    assert isinstance(first, np.ndarray) and not first.flags.writeable and kept[0].image is first
    assert not isinstance(second, np.ndarray)
    np.testing.assert_array_equal(second[ALL(5)], numbered(1, 5))
    np.testing.assert_array_equal(first, numbered(0, 5))


def test_videos_with_a_frame_in_common_overlap():
    black = np.zeros((2, 6, 8, 3), np.uint8)
    long = np.concatenate([black, numbered(1, 9)])
    train = Clips("a", [numbered(0, 5), long, numbered(1, 3)], [0, 0, 0], TASK.classes)  # clips of one set may
    test = Clips("b", [np.concatenate([black, numbered(2, 4)]), numbered(1, 9)[4:7].copy()], [0, 0], TASK.classes)
    found = overlaps({"training": train, "test": test})
    assert found == [("training", "a/1", "test", "b/1", 3)]  # and not b/0, which shares black frames
    with pytest.raises(UserError, match="the training and the test set contain the same frame, a/1 and b/1"):
        check_disjoint({"training": train, "test": test}, by_content=True)
    check_disjoint({"training": train, "test": test})
    assert overlaps({"training": train, "test": Clips("b", [numbered(3, 4)], [0], TASK.classes)}) == []


@pytest.mark.filterwarnings("ignore")
def test_records_of_clips_give_back_clips_to_us_and_to_tfds(tmp_path):
    import tensorflow_datasets as tfds

    data = FrameFolders(**{k: v for k, v in frame_folders(tmp_path / "s").items() if k != "kind"}, name="s")
    tasks = {"action": Action(("left", "right"))}
    directory = tmp_path / "clips" / "1.0.0"
    assert write_clips(directory, "clips", data, tasks, shards=2) == 3
    assert write_clips(directory, "clips", data, tasks, shards=2) == 3  # complete: left as it is
    back = Records(directory)
    assert list(back.ids) == data.ids and back.classes == data.classes
    for i in range(3):
        assert back[i].labels["action"]["ids"] == data[i].labels["action"]["ids"] and back.encoded(i) is None
        np.testing.assert_array_equal(back[i].image[ALL(5)], data[i].image[ALL(5)])
        assert back[i].image.encoded(3) == data[i].image.encoded(3)  # the file's bytes
    theirs = tfds.builder_from_directory(str(directory)).as_data_source(split="train")
    np.testing.assert_array_equal(np.stack(theirs[2]["video"]), numbered(2, 5))
    with pytest.raises(UserError, match="plan.shards is 2 there, 1 here"):
        write_clips(directory, "clips", data, tasks, shards=1)
    made = Clips("made", [numbered(4, 40)], [1], ("left", "right"))  # no files to copy from
    write_clips(tmp_path / "made", "made", made, tasks)
    np.testing.assert_array_equal(Records(tmp_path / "made")[0].image[ALL(40)], numbered(4, 40))
    with pytest.raises(UserError, match="u/0: has no label of action"):
        write_clips(tmp_path / "u", "u", Clips("u", [numbered(0, 3)], [None], ("left", "right")), tasks)
    assert write_clips(tmp_path / "pool", "pool", Clips("u", [numbered(0, 3)], [None], ()), {}) == 1


def test_the_real_sets(data_pack):
    sets = {"egomotion": {"train": 73, "val": 33, "test": 26}, "sprites": {"train": 144, "val": 40, "test": 64}}
    for name, counts in sets.items():
        parts = {
            split: FrameFolders(
                str(data_pack / f"video_{name}"), split=split, frames=8, task=name, name=f"{name}-{split}"
            )
            for split in counts
        }
        assert {split: len(part) for split, part in parts.items()} == counts
        assert parts["val"][0].image[ALL(8)].shape[0] == 8
    assert overlaps({split: part for split, part in parts.items() if split != "train"}) == []  # of the sprites
