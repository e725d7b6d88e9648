"""Video files give the frames that are in them, by index, and say what is broken."""

import builtins
import pickle
import shutil
import struct

import numpy as np
import pytest

from must.core.notices import Notice
from must.core.types import UserError
from must.data.clips import ClipEncoder
from must.data.pipeline import eval_batches
from must.data.sources import source
from must.readers.video import VideoFile, VideoFiles, read_table
from must.tasks.action import Action
from tests.support.clip_sets import bar, write_video

av = pytest.importorskip("av")
COUNT = 20


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes, three files; not to be changed."""
    root = tmp_path_factory.mktemp("videos") / "set"
    for name, codec in (("left/a.mp4", "libx264"), ("left/b.avi", "mpeg4"), ("right/c.mpg", "mpeg1video")):
        write_video(root / name, COUNT, codec)
    return root


def straight(path):
    """All frames, decoded in order by PyAV itself."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("name", ["left/a.mp4", "left/b.avi", "right/c.mpg"])
def test_frames_by_index_are_those_in_order(videos, name):
    whole = straight(videos / name)
    video = VideoFile(videos / name, read_table(videos / name))
    assert video.shape == whole.shape == (COUNT, 48, 64, 3)
    assert [bar(frame) for frame in whole] == list(range(COUNT))  # and they are what was written, in RGB
    for wanted in ([*range(COUNT)], [17, 2, 2, 9], [COUNT - 1], [0], [11, 10]):
        np.testing.assert_array_equal(video[np.array(wanted)], whole[wanted])
    with pytest.raises(IndexError):
        video[np.array([COUNT])]


def test_a_container_that_cannot_seek_is_decoded_from_its_start(tmp_path):
    file = write_video(tmp_path / "long.mpg", 60, "mpeg1video")
    video, whole = VideoFile(file, read_table(file)), straight(file)
    for wanted in ([55, 3, 30], [59], [20]):
        np.testing.assert_array_equal(video[np.array(wanted)], whole[wanted])


def test_a_late_frame_does_not_need_the_early_ones(videos, monkeypatch):
    table = read_table(videos / "left/a.mp4")
    decoded = []
    assert len(table.keys) >= 3 and table.times is not None
    video = VideoFile(videos / "left/a.mp4", table)
    reached = video._reached

    class Counting:
        def __init__(self, container):
            self.streams, self.seek, self._container = container.streams, container.seek, container

        def decode(self, stream):
            for frame in self._container.decode(stream):
                decoded.append(frame.pts)
                yield frame

    monkeypatch.setattr(video, "_reached", lambda container, *rest: reached(Counting(container), *rest))
    video[np.array([COUNT - 1])]
    assert len(decoded) <= COUNT - table.keys[-1]


def test_class_folders_lists_and_pools(videos):
    data = pickle.loads(pickle.dumps(source("video_files", root=str(videos), task="moves", name="v")))
    assert data.ids == ["v/left/a", "v/left/b", "v/right/c"] and data.classes == {"moves": ("left", "right")}
    assert [int(data.labels(i)["moves"]["ids"][0]) for i in range(3)] == [0, 0, 1]
    (videos / "few.txt").write_text("right/c.mpg 2\nleft/a.mp4\n")
    listed = VideoFiles(str(videos), list="few.txt", classes=["up", "down", "on"], name="v")
    assert listed.ids == ["v/right/c", "v/left/a"] and [len(listed[i].labels) for i in range(2)] == [1, 0]
    pool = VideoFiles(str(videos), task="", name="v")
    assert pool.classes == {} and pool[2].labels == {} and len(pool) == 3
    encoder = ClipEncoder({"moves": Action(data.classes["moves"])}, (48, 64), {"image": 4})
    (batch,) = eval_batches(data, encoder, batch_size=3)
    assert [[bar(frame) for frame in clip] for clip in batch.inputs["image"]] == 3 * [[2, 7, 12, 17]]


def test_files_that_cannot_be_read(videos, tmp_path):
    whole = write_video(tmp_path / "x" / "whole.mp4", COUNT, options={"movflags": "faststart"}).read_bytes()
    web = write_video(tmp_path / "x" / "whole.webm", 24, "libvpx").read_bytes()
    cases = {
        "third.mp4": (whole[: len(whole) // 3], r"third.mp4: broken video: has \d of 20 frames"),
        "half.webm": (web[: len(web) // 2], r"half.webm: broken video: has \d of 24 frames"),
        "text.mp4": (b"no video at all" * 50, "text.mp4: broken video"),
        "empty.mp4": (b"", "empty.mp4: broken video"),
    }
    for name, (content, says) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says) as raised:
            read_table(tmp_path / name)
        assert "\n" not in str(raised.value)
    (tmp_path / "most.mp4").write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.warns(Notice, match=r"most.mp4: ends before its header says: has 1\d of 20 frames"):
        table = read_table(tmp_path / "most.mp4")
    assert bar(VideoFile(tmp_path / "most.mp4", table)[np.array([table.count - 1])][0]) == table.count - 1
    (tmp_path / "hole.mp4").write_bytes(whole[: len(whole) * 3 // 5] + bytes(len(whole) - len(whole) * 3 // 5))
    with pytest.raises(UserError, match="hole.mp4: broken video"):
        VideoFile(tmp_path / "hole.mp4", read_table(tmp_path / "hole.mp4"))[np.arange(COUNT)]


def test_folders_that_cannot_be_right(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "set")
    with pytest.raises(UserError, match=r"right: folder is not one of the 1 classes"):
        VideoFiles(str(tmp_path / "set"), classes=["left"])
    (tmp_path / "set" / "list.txt").write_text("left/z.mp4 0\n")
    with pytest.raises(UserError, match=r"list.txt: lists 'left/z.mp4'"):
        VideoFiles(str(tmp_path / "set"), list="list.txt", classes=["left"])
    shutil.copy(videos / "left/a.mp4", tmp_path / "set" / "left" / "b.mp4")
    with pytest.raises(UserError, match="same name as"):
        VideoFiles(str(tmp_path / "set"))
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no videos"):
        VideoFiles(str(tmp_path / "none"))


def test_without_pyav_the_extra_is_named(videos, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'must\[video\]'"):
        VideoFiles(str(videos))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_video_is_turned_as_players_do(tmp_path, turns):
    """A phone's track header holds a matrix that turns the frames counterclockwise by `turns` quarters."""
    file = write_video(tmp_path / "a.mp4", 8, "mpeg4")
    lying = VideoFile(file, read_table(file))[np.array([3])][0]
    data = bytearray(file.read_bytes())
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", *(v << 16 for v in (cosine, -sine, 0, sine, cosine, 0, 0, 0)), 1 << 30)
    file.write_bytes(data)
    video = VideoFile(file, read_table(file))
    upright = video[np.array([3])][0]
    assert video.shape[1:] == upright.shape
    np.testing.assert_array_equal(upright, np.rot90(lying, turns))
