"""From a video to clips: which part of it a clip shows, which frames stand for that part, and a row of a batch.

Decoding frames is the source's (`must.readers.frames`, `must.readers.video`), geometry that of `must.data.geometry`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from must.core.types import Batch, Example, Geometry, UserError
from must.data import geometry as geometries
from must.data.pipeline import View, labels_and_weights


@dataclasses.dataclass(frozen=True)
class Window:
    """Which part of a video a clip shows, and where in each segment of that part its frames lie.

    A clip of T frames has one frame from each of T equal segments of the window (TSN, Wang et al. 2016); in a window of
    fewer than T frames some are repeated.

    Attributes:
      span: frames of a dense window; a shorter video is taken whole. 0: the whole video (uniform sampling).
      random: for training. A dense window lies anywhere; else in the middle of the video.
      jitter: a random window has its frames anywhere in their segments; else in the middle, as in test.
    """

    span: int = 0
    random: bool = False
    jitter: bool = True

    def __post_init__(self):
        if self.span < 0:
            raise UserError(f"window: span {self.span} must be positive, or 0 for the whole video")

    def places(
        self, length: int, clips: int = 1, rng: np.random.Generator | None = None
    ) -> list[tuple[int, int, float]]:
        """Where the clips of a video lie.

        Args:
          length: frames of the video.
          clips: K; several are spread evenly: dense windows over the video, clips of the whole video as different
            places within their segments.
          rng: of a random window.

        Returns:
          K times (first frame, frame behind the last, place of the frames in their segments from 0 to 1).
        """
        slack = length - self.span
        if not self.span or slack <= 0:
            return [(0, length, (clip + 0.5) / clips) for clip in range(clips)]
        if self.random:
            starts = rng.integers(slack + 1, size=clips).tolist()
        else:
            starts = [round(slack * clip / (clips - 1)) for clip in range(clips)] if clips > 1 else [slack // 2]
        return [(start, start + self.span, 0.5) for start in starts]


def segment_frames(start: int, stop: int, count: int, place: float | np.ndarray = 0.5) -> np.ndarray:
    """One frame from each of `count` equal segments of the frames [start, stop), ascending; int64 [count].

    Args:
      start: first frame.
      stop: frame behind the last.
      count: T; more than there are frames repeats some.
      place: of the frame in its segment, 0 <= place < 1; one or [T].
    """
    edges = np.arange(count + 1, dtype=np.int64) * (stop - start) // count
    return start + edges[:-1] + (place * np.diff(edges)).astype(np.int64)


class ClipEncoder(NamedTuple):
    """One example that is a video -> one row of a batch; stands wherever `must.data.pipeline.Encoder` does.

    All frames have one geometry and one photometric change. Mirroring and reversal are left out where the example's
    label cannot follow (`Task.admissible`).

    Attributes:
      tasks: {name: object with `transform`, `blank` and `admissible`}, the labels that a row carries.
      size: (height, width) of the network's frame.
      frames: {view: T}; all views of an example show one window, each in its own number of frames.
      window: part of the video that a clip shows.
      draw: (rng, source_size, size) -> Geometry; None shows the whole picture.
      photometric: (uint8 [N, H, W, 3], rng) -> the same shape; None leaves the frames as they are.
      keep_aspect: of the whole picture, when `draw` is None.
      clips: K; above 1 every view of a row is K clips, uint8 [K, T, H, W, 3] instead of [T, H, W, 3].
    """

    tasks: Mapping[str, Any]
    size: tuple[int, int]
    frames: Mapping[str, int] = {"image": 8}
    window: Window = Window()
    draw: Callable[..., Geometry] | None = None
    photometric: View | None = None
    keep_aspect: bool = True
    clips: int = 1

    def blank_inputs(self) -> dict[str, np.ndarray]:
        """The inputs of one row of one clip without pictures, {view: zeros [1, T, H, W, 3]}: what a network starts on."""
        return {name: np.zeros((1, count, *self.size, 3), np.uint8) for name, count in self.frames.items()}

    def __call__(self, example: Example, index: int, rng: np.random.Generator) -> Batch:
        """The row of `example`, arrays without the leading axis B.

        Raises:
          UserError: a label that cannot be right, a picture that is no video, a video without frames; names the record.
        """
        video = example.image
        if len(video.shape) != 4 or not video.shape[0]:
            what = "a picture" if len(video.shape) == 3 else "no video"
            raise UserError(
                f"record {example.id}: is {what} {tuple(video.shape)}, ClipEncoder wants frames [T, H, W, 3]"
            )
        geometry = self._geometry(example, rng)
        wanted = self._frames(video.shape[0], geometry.reverse, rng)
        # A frame is decoded, moved and changed once, however many clips and views show it.
        needed, places = np.unique(np.concatenate([w.ravel() for w in wanted.values()]), return_inverse=True)
        pictures = geometries.transform_image(video[needed], geometry)
        if self.photometric is not None:
            pictures = self.photometric(pictures, rng)
        inputs, at = {}, 0
        for name, chosen in wanted.items():
            inputs[name] = pictures[places[at : at + chosen.size].reshape(chosen.shape)]
            at += chosen.size
        return Batch(inputs, *labels_and_weights(self.tasks, example, geometry), np.int64(index), {})

    def _geometry(self, example: Example, rng: np.random.Generator) -> Geometry:
        source_size = tuple(example.image.shape[1:3])
        if self.draw is None:
            return geometries.whole_image(source_size, self.size, keep_aspect=self.keep_aspect)
        geometry = self.draw(rng, source_size, self.size)
        for name, task in self.tasks.items():
            if name in example.labels:
                geometry = task.admissible(example.labels[name], geometry)
        return geometry

    def _frames(self, length: int, reverse: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """{view: int64 [T] or [K, T]}, frames of the video in the order in which they are shown."""
        window, found = self.window, {}
        places = window.places(length, self.clips, rng)
        for name, count in self.frames.items():
            jitter = [rng.random(count) if window.random and window.jitter else place for _, _, place in places]
            chosen = np.stack(
                [
                    segment_frames(start, stop, count, where)
                    for (start, stop, _), where in zip(places, jitter, strict=True)
                ]
            )
            chosen = chosen[:, ::-1] if reverse else chosen
            found[name] = chosen if self.clips > 1 else chosen[0]
        return found
