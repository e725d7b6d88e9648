"""Clips as folders of pictures, one picture per frame; and the base class of all clip sources."""

import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from must.core import labels
from must.core.files import read_bytes
from must.core.types import Example, Label, UserError
from must.readers import fields
from must.readers.files import check_inside, fingerprint_of, folder, locate, read_classes, read_lines, source_name, walk
from must.readers.names import PICTURES, existing, readable
from must.readers.pictures import (
    DISPLAYED,
    decode_picture,
    is_deep,
    orientation_of,
    picture_size,
    significant_bits,
)
from must.readers.record_format import encode_png


class FrameVideo:
    """A video whose frames are encoded pictures, decoded on access and turned as their orientation tags say.

    Args:
      frames: files or bytes of the pictures.
      where: name of the video in error messages.
      bits: () -> significant bits of 16-bit frames; by default those of this video.

    Attributes:
      shape: (T, H, W, 3), with the size of the first frame.
    """

    def __init__(self, frames: Sequence[Path | bytes], where: str, *, bits: Callable[[], int] | None = None):
        self._frames, self._where = frames, where
        self._bits = bits or functools.cache(lambda: significant_bits(where, len(frames), self._stored))

    @functools.cached_property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self._frames), *picture_size(self._stored(0), self._name(0), DISPLAYED), 3)

    def encoded(self, index: int) -> bytes:
        """One frame as it is stored, or a PNG of it if it is to be turned or has 16 bits."""
        data = self._stored(index)
        return encode_png(self._decoded(index)) if orientation_of(data) != 1 or is_deep(data) else data

    def _stored(self, index: int) -> bytes:
        frame = self._frames[index]
        return frame if isinstance(frame, bytes) else read_bytes(frame)

    def _decoded(self, index: int) -> np.ndarray:
        data = self._stored(index)
        bits = self._bits() if is_deep(data) else 16
        return decode_picture(data, self._name(index), orientation=DISPLAYED, bits=bits)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Decodes frames by index, int [N] -> uint8 [N, H, W, 3].

        Raises:
          UserError: a frame is broken or differs in size from the first.
        """
        unique, places = np.unique(indices, return_inverse=True)
        frames = np.empty((len(unique), *self.shape[1:]), np.uint8)
        for index, into in zip(unique.tolist(), frames, strict=True):
            picture = self._decoded(index)
            if picture.shape != into.shape:
                own, first = (f"{width}x{height}" for height, width, _ in (picture.shape, into.shape))
                raise UserError(
                    f"{self._name(index)}: is {own} (width x height), but the clip's first frame is {first}"
                )
            into[:] = picture
        return frames if len(unique) == len(places) and (np.diff(places) > 0).all() else frames[places]

    def _name(self, index: int) -> str:
        frame = self._frames[index]
        return f"{self._where}: frame {index}" if isinstance(frame, bytes) else str(frame)


class ClipSource:
    """Clips in files, in a fixed order, each with at most one class; subclasses open a clip in `video`.

    Args:
      name: first part of every id.
      class_ids: {key: class id or None}, in order; the key is the second part of the id.
      classes: names of the classes.
      task: key of the labels.
    """

    def __init__(self, name: str, class_ids: dict[str, int | None], classes: Sequence[str], task: str):
        if not name or "/" in name:
            raise UserError(f"source name {name!r}: must not be empty or contain '/'")
        self.name, self._task = name, task
        self.ids = [f"{name}/{readable(key)}" for key in class_ids]
        self.classes = {task: tuple(classes)} if classes else {}
        self._class_ids = list(class_ids.values())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        return Example(self.ids[index], self.video(index), self.labels(index))

    def labels(self, index: int) -> dict[str, Label]:
        """The labels alone; no frame is decoded."""
        class_id = self._class_ids[index]
        return {} if class_id is None else {self._task: labels.classification(class_id)}

    def video(self, index: int) -> FrameVideo:
        """A video with a shape (T, H, W, 3) and access to frames by index."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """All files that the fingerprint depends on."""
        raise NotImplementedError

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of ids, classes and files, see `fingerprint_of`."""
        return fingerprint_of(repr((self.ids, self.classes, self._class_ids, self._task)), self.files())


class FrameFolders(ClipSource):
    """Clips as folders of pictures in natural order of their names ("9.jpg" before "10.jpg").

    Args:
      root: dataset root.
      split: name of the split.
      list: file below root with one line "<clip folder> <class index>" or, without a label, "<clip folder>" per clip;
        "{split}" is replaced. If empty, every folder below `clips` that contains pictures, without labels.
      classes: names or a file of names below root (`read_classes`); used only if the list has labels.
      clips: folder below root that clip paths are relative to; "{split}" is replaced.
      first_class: index of the first class in the list; by default 0, and an error if the smallest index is 1.
      frames: required number of frames per clip; 0 for any.
      task: key of the labels.
      name: of the source; by default "<root>-<split>".

    Raises:
      UserError: a folder that is missing, repeated or without pictures, an invalid class index, a clip with a different
        number of frames.
    """

    def __init__(
        self,
        root: str,
        *,
        split: str = "",
        list: str = "splits/{split}.txt",
        classes: str | Sequence[str] = "classes.txt",
        clips: str = "",
        first_class: int | None = None,
        frames: int = 0,
        task: str = "action",
        name: str = "",
    ):
        path = folder(locate(root, clips, split))
        class_ids = read_clips(locate(root, list, split), path) if list else dict.fromkeys(_picture_folders(path, root))
        names = checked_classes(class_ids, classes, root, locate(root, list, split), first_class)
        super().__init__(source_name(name, root, split), class_ids, names, task)
        self._folders = [path / key for key in class_ids]
        check_inside(self._folders, (root, path))
        self._files = [_pictures(clip) for clip in self._folders]
        for clip, pictures in zip(self._folders, self._files, strict=True):
            check_inside((clip / file for file in pictures), (root, path))
            if frames and len(pictures) != frames:
                raise UserError(f"{clip}: has {len(pictures)} frames, expected {frames}")

    def video(self, index: int) -> FrameVideo:
        frames = [self._folders[index] / file for file in self._files[index]]
        return FrameVideo(frames, str(self._folders[index]), bits=lambda: self._significant_bits)

    @functools.cached_property
    def _significant_bits(self) -> int:
        files = self.files()
        return significant_bits(self.name, len(files), lambda index: read_bytes(files[index]))

    def files(self) -> list[Path]:
        return [clip / file for clip, pictures in zip(self._folders, self._files, strict=True) for file in pictures]


def read_clips(file: Path, path: Path) -> dict[str, int | None]:
    """{clip below `path`: class index or None} of a list file with lines "<clip> <class index>" or "<clip>".

    Raises:
      UserError: missing or empty file, or a clip listed twice.
    """
    class_ids: dict[str, int | None] = {}
    for number, line in enumerate(read_lines(file), 1):
        labeled = re.fullmatch(r"(.*?\S)\s*[\s,;]\s*(-?\d+)", line)
        clip = (labeled[1] if labeled else line).rstrip("/\\")
        if labeled and len(labeled[2]) > 9:
            raise UserError(f"{file}: line {number}: class index {fields.shown(labeled[2])} is too large")
        clip = existing(path, clip) or clip
        if clip in class_ids:
            raise UserError(f"{file}: line {number}: lists {clip!r} twice")
        class_ids[clip] = int(labeled[2]) if labeled else None
    return class_ids


def checked_classes(
    class_ids: dict[str, int | None], classes: str | Sequence[str], root: str, file: Path, first: int | None = None
) -> tuple[str, ...]:
    """Names of the classes, () if no clip has one; makes the class indices of `class_ids` count from 0.

    Raises:
      UserError: a class index that is out of range, or indices that seem to count from 1 where `first` is None.
    """
    labeled = {clip: class_id for clip, class_id in class_ids.items() if class_id is not None}
    if not labeled:
        return ()
    names = tuple(read_classes(classes, root).values())
    if first is None and min(labeled.values()) == 1:
        raise UserError(
            f"{file}: no class index is 0 and the smallest is 1; set first_class=1 if they count from 1, "
            "first_class=0 if they count from 0"
        )
    for clip, class_id in labeled.items():
        class_ids[clip] = class_id - (first or 0)
        if not 0 <= class_ids[clip] < len(names):
            raise UserError(
                f"{file}: {clip}: class index {class_id} is not in {first or 0}..{len(names) - 1 + (first or 0)}"
            )
    return names


def _picture_folders(path: Path, root: str) -> list[str]:
    """Folders with pictures below a path, relative to it, in natural order."""
    clips = []
    for directory, names in walk(path, root):
        if directory != str(path) and any(_is_picture(name) for name in names):
            clips.append(Path(directory).relative_to(path).as_posix())
    if not clips:
        raise UserError(f"{path}: no folders of pictures")
    return sorted(clips, key=_natural)


def _pictures(path: Path) -> list[str]:
    """The names of a folder's pictures in natural order; UserError if there are none."""
    try:
        names = [name for name in os.listdir(path) if _is_picture(name)]
    except OSError as error:
        reason = "no such folder" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{path}: {reason}") from None
    if not names:
        raise UserError(f"{path}: clip without pictures")
    return sorted(names, key=_natural)


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURES


def _natural(name: str) -> tuple:
    """A sort key that compares numbers in names by value."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)), name
