"""Small sets of clips on disk and in memory, whose pixels say which frame of which clip they are."""

import numpy as np
from PIL import Image

from must.core import labels
from must.core.types import Example


def numbered(clip, count, size=(6, 8)):
    """uint8 [T, H, W, 3]: red is the clip, green the frame, blue the column."""
    frames = np.zeros((count, *size, 3), np.uint8)
    frames[..., 0] = clip
    frames[..., 1] = np.arange(count)[:, None, None]
    frames[..., 2] = 10 * np.arange(size[1])
    return frames


class Clips:
    """Videos in memory; one without a class has no label."""

    def __init__(self, name, videos, class_ids, classes, task="action"):
        self.name, self._videos, self._class_ids, self._task = name, videos, class_ids, task
        self.ids = [f"{name}/{i}" for i in range(len(videos))]
        self.classes, self.fingerprint = {task: tuple(classes)}, name

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        known = self._class_ids[index]
        predicted = {} if known is None else {self._task: labels.classification(known)}
        return Example(self.ids[index], self._videos[index], predicted)


def write_frames(folder, frames, first=8):
    """One PNG for each frame, named so that order by characters is not the order of the numbers."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / f"{number}.png")


def frame_folders(root, lines="train/a/0 0\ntrain/b/0 1\ntrain/b/1 1\n", counts=(5, 5, 5)):
    """Three clips of two classes with their list."""
    for clip, (key, count) in enumerate(zip(("a/0", "b/0", "b/1"), counts, strict=True)):
        write_frames(root / "train" / key, numbered(clip, count))
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text(lines)
    (root / "classes.txt").write_text("left\nright\n")
    return {"kind": "frame_folders", "root": str(root), "split": "train"}


def write_video(path, count, codec="libx264", size=(48, 64), options=None):
    """Frame i is a bright bar over dark ground that moves with i; a key frame every 6."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 6
        for i in range(count):
            picture = np.full((*size, 3), 40, np.uint8)
            picture[:, 2 * i % size[1] :][:, :8] = (220, 60, 20)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def bar(frame):
    """The index of a frame that `write_video` drew, read from its pixels."""
    columns = np.flatnonzero(frame[..., 0].mean(0) > 130)
    return round((columns.mean() - 3.5) / 2)
