"""From videos to clips: windows, frame sampling, and encoding to rows of a batch; sources decode the frames."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from must.core.types import Batch, Example, Geometry, UserError
from must.data import geometry as geometries
from must.data.pipeline import View, labels_and_weights


@dataclasses.dataclass(frozen=True)
class Window:
    """The part of a video that a clip covers, and how its frames are sampled.

    A clip of T frames has one frame from each of T equal segments of the window (TSN, Wang et al. 2016); a window of
    fewer than T frames repeats some.

    Attributes:
      span: frames of a dense window; shorter videos are used whole. 0: the whole video (uniform sampling).
      random: random position of a dense window, for training; otherwise the middle of the video.
      jitter: random frame positions within segments if `random`; otherwise the middle, as for testing.
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
        """Positions of the clips of a video.

        Args:
          length: frames of the video.
          clips: K, spread evenly: dense windows over the video, whole-video clips over positions within segments.
          rng: used for random windows.

        Returns:
          K times (first frame, end (exclusive), relative position of frames in their segments, 0..1).
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
      stop: end, exclusive.
      count: T; frames are repeated if there are fewer.
      place: relative position of the frame in its segment, 0 <= place < 1; scalar or [T].
    """
    edges = np.arange(count + 1, dtype=np.int64) * (stop - start) // count
    return start + edges[:-1] + (place * np.diff(edges)).astype(np.int64)


class ClipEncoder(NamedTuple):
    """Encodes a video example as one row of a batch; interchangeable with `must.data.pipeline.Encoder`.

    All frames share one geometry and one photometric change. Flips and reversal are skipped if the example's label is
    not invariant to them (`Task.admissible`).

    Attributes:
      tasks: {name: object with `encode`, `blank` and `admissible`}, the labels of a row.
      size: (height, width) of the network's frame.
      frames: {view: T}; all views of an example sample the same window with their own number of frames.
      window: part of the video that a clip covers.
      draw: (rng, source_size, size) -> Geometry; None for the whole picture.
      photometric: (uint8 [N, H, W, 3], rng) -> the same shape, or None.
      keep_aspect: of the whole picture, if `draw` is None.
      clips: K; above 1, views are uint8 [K, T, H, W, 3] instead of [T, H, W, 3].
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
        """Zero inputs for initializing a network, {view: [1, T, H, W, 3]}."""
        return {name: np.zeros((1, count, *self.size, 3), np.uint8) for name, count in self.frames.items()}

    def __call__(self, example: Example, index: int, rng: np.random.Generator) -> Batch:
        """The row of `example`, arrays without the leading axis B.

        Raises:
          UserError: an invalid label, a picture instead of a video, a video without frames.
        """
        video = example.image
        if len(video.shape) != 4 or not video.shape[0]:
            what = "a picture" if len(video.shape) == 3 else "not a video"
            raise UserError(f"record {example.id}: is {what} {tuple(video.shape)}, ClipEncoder expects [T, H, W, 3]")
        geometry = self._geometry(example, rng)
        requested = self._frames(video.shape[0], geometry.reverse, rng)
        # Each frame is decoded and transformed once, however many clips and views contain it.
        needed, places = np.unique(np.concatenate([w.ravel() for w in requested.values()]), return_inverse=True)
        pictures = geometries.transform_image(video[needed], geometry)
        if self.photometric is not None:
            pictures = self.photometric(pictures, rng)
        inputs, at = {}, 0
        for name, chosen in requested.items():
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
        """{view: int64 [T] or [K, T]}, indices of video frames in playback order."""
        window, frames = self.window, {}
        places = window.places(length, self.clips, rng)
        for name, count in self.frames.items():
            jitter = [rng.random(count) if window.random and window.jitter else place for _, _, place in places]
            clips = [segment_frames(*place[:2], count, at) for place, at in zip(places, jitter, strict=True)]
            chosen = np.stack(clips)[:, ::-1] if reverse else np.stack(clips)
            frames[name] = chosen if self.clips > 1 else chosen[0]
        return frames
