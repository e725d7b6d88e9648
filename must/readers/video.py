"""Videos in container files (mp4, webm, avi, ...), decoded on access; needs PyAV, the extra `[video]`."""

import contextlib
import functools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.core import labels
from must.core.files import read_bytes
from must.core.notices import notice
from must.core.types import Example, UserError
from must.readers.files import (
    check_inside,
    fingerprint_of,
    folder,
    locate,
    read_classes,
    source_name,
    tell_passed_over,
    walk,
)
from must.readers.frames import ClipSource, checked_classes, read_clips
from must.readers.names import class_name, readable
from must.readers.pictures import MAX_PIXELS, check_size

VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv")
# Others, such as lists of further files, make FFmpeg open what they name.
_FORMATS = "mov,mp4,m4v,matroska,webm,avi,mpeg,mpegts,mpegvideo,ogg"
_TOLERANCE = 0.1  # seconds
_BLOCK = 8  # frames that are decoded together


class FrameTable(NamedTuple):
    """Positions of the frames in a video file.

    Attributes:
      size: (height, width) as stored, pixels.
      count: T.
      times: int64 [T], presentation times in the stream's unit, ascending; None if the container has none.
      keys: int64 [K], indices of key frames, ascending.
      turns: by how many quarters players turn the frames counterclockwise (the track's display matrix).
    """

    size: tuple[int, int]
    count: int
    times: np.ndarray | None
    keys: np.ndarray
    turns: int = 0


class VideoFile:
    """The frames of one file, turned as players do.

    Args:
      path: of the file.
      table: of its frames.

    Attributes:
      shape: (T, H, W, 3).
    """

    def __init__(self, path: Path, table: FrameTable):
        self._path, self._table = path, table
        self.shape = (table.count, *table.size[:: -1 if table.turns % 2 else 1], 3)

    def fingerprint(self) -> str:
        """Hash that changes with the file."""
        return fingerprint_of("video", [self._path])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Decodes frames by index, int [N] -> uint8 [N, H, W, 3], from the nearest preceding key frame.

        Raises:
          UserError: a requested frame is broken.
        """
        av = _av()
        requested, places = np.unique(indices, return_inverse=True)
        if len(requested) and not 0 <= requested[0] <= requested[-1] < self.shape[0]:
            raise IndexError(f"frames {requested[0]} to {requested[-1]} of {self.shape[0]}")
        frames = np.empty((len(requested), *self.shape[1:]), np.uint8)
        try:
            # Some containers cannot seek to key frames (MPEG program streams): then decode from the start.
            missed = self._decode(requested.tolist(), frames, seek=True)
            if missed is not None and self._table.times is not None:
                missed = self._decode(requested.tolist(), frames, seek=False)
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self._path}: broken video: {_reason(error)}") from None
        if missed is not None:
            raise UserError(f"{self._path}: broken video: frame {missed} of {self.shape[0]} cannot be decoded")
        return frames if len(requested) == len(places) and (np.diff(places) > 0).all() else frames[places]

    def _decode(self, requested: list[int], frames: np.ndarray, *, seek: bool) -> int | None:
        """Fills `frames`; returns the first requested index that cannot be decoded, else None."""
        with _opened(self._path) as container:
            for index, into, frame in zip(requested, frames, self._reached(container, requested, seek), strict=True):
                if frame is None:
                    return index
                if (frame.height, frame.width) != self._table.size:
                    raise UserError(f"{self._path}: changes its size to {frame.width}x{frame.height} (width x height)")
                into[:] = np.rot90(frame.to_ndarray(format="rgb24"), self._table.turns)
        return None

    def _reached(self, container: Any, requested: list[int], seek: bool) -> Iterator[Any]:
        """Yields the requested frames, ascending, None for a missing one; seeks if that saves decoding."""
        stream, times, keys = container.streams.video[0], self._table.times, self._table.keys
        decoded = iter(enumerate(container.decode(stream)))
        at = -1  # the last decoded frame
        for index in requested:
            key = int(keys[np.searchsorted(keys, index, side="right") - 1])
            if seek and times is not None and key > at + 1:
                container.seek(int(times[key]), stream=stream)
                decoded = ((int(np.searchsorted(times, frame.pts)), frame) for frame in container.decode(stream))
            at, frame = next(((i, frame) for i, frame in decoded if i >= index), (at, None))
            yield frame if at == index and not frame.is_corrupt else None


class VideoFrames:
    """Frames of video files as pictures without labels.

    Args:
      name: first part of every id, which goes on with the key and the number of the frame.
      videos: {key: file}.
      fps: frames per second that are taken; 0 takes all.

    Raises:
      UserError: PyAV is not installed, or a broken video.
    """

    def __init__(self, name: str, videos: Mapping[str, Path], *, fps: float = 0.0):
        self.name, self.classes, self.ids = name, {}, []
        self._frames: list[tuple[int, np.ndarray, int]] = []  # (video, block of frames, place in it)
        self._videos = []
        for number, (key, path) in enumerate(videos.items()):
            table = read_table(path)
            self._videos.append(VideoFile(path, table))
            step = max(1.0, _frame_rate(path) / fps) if fps else 1.0
            chosen = np.unique(np.arange(0, table.count, step).astype(np.int64))
            for start in range(0, len(chosen), _BLOCK):
                block = chosen[start : start + _BLOCK]
                self._frames += [(number, block, place) for place in range(len(block))]
            self.ids += [f"{name}/{readable(key)}/{frame:06d}" for frame in chosen]
        self.fingerprint = fingerprint_of(f"{name} {fps}", list(videos.values()))
        self._decode = functools.lru_cache(maxsize=4)(self._block)  # neighbors are decoded together

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        number, block, place = self._frames[index]
        return Example(self.ids[range(len(self))[index]], self._decode(number, tuple(block.tolist()))[place], {})

    def _block(self, number: int, frames: tuple[int, ...]) -> np.ndarray:
        return self._videos[number][np.array(frames)]


def _frame_rate(path: Path) -> float:
    with _opened(path) as container:
        return float(container.streams.video[0].average_rate or 25)


class VideoFiles(ClipSource):
    """Video files with one class each: of a list, or <root>/<clips>/<class>/**/<video>.

    Args:
      root: dataset root.
      split: name of the split.
      list: file below root with one line "<video> <class index>" or, without a label, "<video>" per video, relative to
        `clips`; "{split}" is replaced. If empty, all videos in class folders.
      classes: names or a file of names below root (`read_classes`) in order of their ids; by default "classes.txt" with
        a list, otherwise the sorted names of the class folders.
      clips: folder below root that contains the videos; "{split}" is replaced.
      first_class: index of the first class in the list; by default 0, and an error if the smallest index is 1.
      task: key of the labels; if empty, videos are unlabeled and may be in any folder.
      name: of the source; by default "<root>-<split>".

    Raises:
      UserError: PyAV is not installed, no videos, names that differ only in extension, a folder that is not a class, a
        missing or repeated video, an invalid class index; on opening a video, a broken or truncated file.
    """

    def __init__(
        self,
        root: str,
        *,
        split: str = "",
        list: str = "",
        classes: str | Sequence[str] | None = None,
        clips: str = "",
        first_class: int | None = None,
        task: str = "action",
        name: str = "",
    ):
        _av()
        path = folder(locate(root, clips, split))
        if list:
            file = locate(root, list, split)
            class_ids = read_clips(file, path)
            names = checked_classes(class_ids, classes or "classes.txt", root, file, first_class) if task else ()
            for clip in class_ids:
                if not os.path.isfile(path / clip):
                    raise UserError(f"{file}: lists {clip!r}, which is not in {path}")
            videos = _keyed(path, class_ids)
            class_ids = dict(zip(videos, class_ids.values() if task else [None] * len(videos), strict=True))
        else:
            videos = _keyed(path, _find_videos(path, root))
            names, class_ids = _class_folders(path, videos, classes, root) if task else ((), dict.fromkeys(videos))
        super().__init__(source_name(name, root, split), class_ids, names, task)
        self._videos = [path / video for video in videos.values()]
        check_inside(self._videos, (root, path))
        self._tables: dict[int, FrameTable] = {}

    def video(self, index: int) -> VideoFile:
        index = range(len(self))[index]
        if index not in self._tables:
            self._tables[index] = read_table(self._videos[index])
        return VideoFile(self._videos[index], self._tables[index])

    def files(self) -> list[Path]:
        return self._videos


def read_table(path: Path) -> FrameTable:
    """Locates all frames of a video, decoding only the first; UserError if it is not a video or lacks half of it."""
    av = _av()
    try:
        with _opened(path) as container:
            if not container.streams.video:
                raise UserError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            size, declared = (stream.codec_context.height, stream.codec_context.width), stream.frames
            check_size(*size[::-1], str(path))
            packets = [p for p in container.demux(stream) if p.size and not p.is_corrupt]  # the last packet is empty
            visible = [(p.pts, p.is_keyframe) for p in packets if not p.is_discard]
            rate = float(stream.average_rate or 25)
            expected = max(declared, round(len(packets) + rate * _seconds_missing(stream, packets)))
            turns = _quarter_turns(path) if packets else 0
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{path}: broken video: {_reason(error)}") from None
    if short := expected - len(packets) > _TOLERANCE * rate:
        whole = _decodable(path)
        visible = [(time, key) for time, key in visible if time in whole]
    if not visible or len(visible) < expected / 2:
        raise UserError(f"{path}: broken video: has {len(visible)} of {expected or 'its'} frames")
    if short:
        notice(f"{path}: ends before its header says: has {len(visible)} of {expected} frames, which are read")
    if any(time is None for time, _ in visible) or len({time for time, _ in visible}) < len(visible):
        return FrameTable(size, len(visible), None, np.zeros(1, np.int64), turns)  # decode from the start
    visible.sort()
    keys = np.flatnonzero([key for _, key in visible])
    return FrameTable(size, len(visible), np.array([time for time, _ in visible]), np.union1d(keys, [0]), turns)


def _decodable(path: Path) -> set[int | None]:
    """Presentation times of the frames before the first that is damaged: of a file that is cut, the last packet is."""
    av, times = _av(), set()
    with _opened(path) as container, contextlib.suppress(av.FFmpegError):
        times.update(frame.pts for frame in container.decode(video=0) if not frame.is_corrupt)
    return times


def _quarter_turns(path: Path) -> int:
    """Counterclockwise quarter turns of the display matrix, of the first frame; other angles are told of and left."""
    with _opened(path) as container:
        frame = next(container.decode(container.streams.video[0]), None)
    degrees = getattr(frame, "rotation", 0)
    if degrees % 90:
        notice(f"{path}: is to be turned by {degrees} degrees, which is no quarter, and is read as it lies")
    return 0 if degrees % 90 else degrees // 90 % 4


def _seconds_missing(stream: Any, packets: Sequence[Any]) -> float:
    """Seconds missing from the duration in a stream's tags, since Matroska and WebM declare no number of frames."""
    declared = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    ends = [packet.pts + (packet.duration or 0) for packet in packets if packet.pts is not None]
    if declared is None or not ends:
        return 0.0
    hours, minutes, seconds = map(float, declared.groups())
    return 3600 * hours + 60 * minutes + seconds - float(max(ends) * stream.time_base)


def _opened(path: Path) -> Any:
    """The container in a regular file, of a kind that holds its frames itself; none of more than `MAX_PIXELS`."""
    read_bytes(path, 1)
    name = f"file:{os.path.abspath(path)}"
    limits, most = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}, {"max_pixels": str(MAX_PIXELS)}
    try:
        return _av().open(name, options=limits, stream_options=[most])
    except ValueError:  # MPEG program streams, whose streams are known later
        container = _av().open(name, options=limits)
        for stream in container.streams.video:
            stream.codec_context.options = most
        return container


def _av() -> Any:
    """PyAV; UserError if it is not installed."""
    try:
        import av
    except ImportError:
        raise UserError("video files need PyAV: pip install 'must[video]'") from None
    return av


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _find_videos(path: Path, root: str) -> list[str]:
    """Videos below a folder, relative to it, sorted."""
    result: list[str] = []
    passed: Counter[str] = Counter()
    for directory, names in walk(path, root):
        for name in names:
            extension = os.path.splitext(name)[1].lower()
            if extension in VIDEOS:
                result.append(Path(directory, name).relative_to(path).as_posix())
            else:
                passed[extension] += 1
    tell_passed_over(path, "videos", passed, result)
    return sorted(result)


def _keyed(path: Path, videos: Sequence[str]) -> dict[str, str]:
    """{path without extension: path}; UserError for duplicate keys."""
    keyed: dict[str, str] = {}
    for video in videos:
        stem, extension = os.path.splitext(video)
        key = stem if extension.lower() in VIDEOS else video
        if key in keyed:
            raise UserError(f"{path / video}: same name as {keyed[key]}, so ids would repeat")
        keyed[key] = video
    return keyed


def _class_folders(
    path: Path, videos: dict[str, str], classes: str | Sequence[str] | None, root: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names and {key: class id}, from the first folder of each key."""
    for key, video in videos.items():
        if "/" not in key:
            raise UserError(f"{path / video}: outside the class folders of {path}")
    populated = labels.in_order(class_name(key.split("/")[0]) for key in videos)
    names = populated if classes is None else tuple(read_classes(classes, root).values())
    for extra in sorted(set(populated) - set(names)):
        raise UserError(f"{path / extra}: folder is not one of the {len(names)} classes")
    return names, {key: names.index(class_name(key.split("/")[0])) for key in videos}
