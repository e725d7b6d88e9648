"""Predictions for pictures and videos of any size, each in its own frame; what `must.load` gives."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from must.core.files import read_bytes
from must.core.types import Example, Label, Teacher, UserError
from must.data.clips import ClipEncoder, Window
from must.data.geometry import whole_image
from must.data.pipeline import Encoder
from must.readers.pictures import DISPLAYED, decode_picture
from must.readers.video import VIDEOS, VideoFile, read_table
from must.tasks.base import Task
from must.tasks.tiles import tiled


class Part(NamedTuple):
    """A network of a predictor.

    Attributes:
      teacher: its tasks and predictions for inputs of its frame, uint8 [B, H, W, 3], of clips [B, T, H, W, 3].
      encoder: makes these inputs of one view.
    """

    teacher: Teacher
    encoder: Encoder | ClipEncoder

    def tiled(self, grid: tuple[int, int], overlap: float) -> "Part":
        """The same network for pictures that it sees in parts, see `must.tasks.tiles`."""
        if tuple(grid) == (1, 1):
            return self
        if isinstance(self.encoder, ClipEncoder):
            raise UserError(f"tiles={tuple(grid)}: clips are predicted whole")
        teacher = tiled(self.teacher, grid, overlap)
        return Part(teacher, self.encoder._replace(size=tuple(teacher.size)))


class Predictor(NamedTuple):
    """Networks that together predict some tasks.

    Attributes:
      parts: each task is of one of them.
    """

    parts: tuple[Part, ...]

    @property
    def tasks(self) -> dict[str, Task]:
        """{task name: Task} of all networks; with the meaning of each field of a label in `Task.label_spec`."""
        return {name: task for part in self.parts for name, task in part.teacher.tasks.items()}

    def predict(
        self,
        images: Sequence[Any],
        *,
        tiles: tuple[int, int] = (1, 1),
        overlap: float = 0.25,
        batch_size: int = 16,
    ) -> list[dict[str, Label]]:
        """Predictions of all tasks for each image.

        Args:
          images: of any sizes: uint8 [H, W, 3] arrays, RGB, or paths; for networks of clips videos, uint8 [T, H, W, 3]
            or paths.
          tiles: (rows, columns) of overlapping parts in which each picture is seen, beside once as a whole.
          overlap: of neighboring tiles, as a share of the network's frame.
          batch_size: images of one forward pass.

        Returns:
          Per image {task: Label in record form, in the frame of the original image}.

        Raises:
          UserError: an image that cannot be read, or that is none.
        """
        if isinstance(images, str | os.PathLike) or hasattr(images, "shape"):
            raise UserError("images: expected a list of pictures or of paths; put a single one into [...]")
        parts = [part.tiled(tiles, overlap) for part in self.parts]
        found: list[dict[str, Label]] = []
        for start in range(0, len(images), batch_size):
            examples = [_example(start + i, image) for i, image in enumerate(images[start : start + batch_size])]
            labels = [predicted(part, examples, min(batch_size, len(images))) for part in parts]
            found += [{name: label for one in row for name, label in one.items()} for row in zip(*labels, strict=True)]
        return found


def predicted(part: Part, examples: Sequence[Example], rows: int) -> list[dict[str, Label]]:
    """{task: Label in record form} of each example, by one forward pass of so many rows."""
    inputs = [next(iter(part.encoder(one, 0, np.random.default_rng(0)).inputs.values())) for one in examples]
    stacked = np.stack(inputs + inputs[-1:] * (rows - len(inputs)))
    labels = jax.device_get(part.teacher.predict(stacked))
    size, keep_aspect = tuple(part.encoder.size), part.encoder.keep_aspect
    found = []
    for row, example in enumerate(examples):
        geometry = whole_image(tuple(example.image.shape[-3:-1]), size, keep_aspect=keep_aspect)
        found.append(
            {
                name: task.restore({field: np.asarray(value)[row] for field, value in labels[name].items()}, geometry)
                for name, task in part.teacher.tasks.items()
            }
        )
    return found


def _example(number: int, image: Any) -> Example:
    """A picture or video as an example without labels."""
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if path.suffix.lower() in VIDEOS:
            return Example(str(path), VideoFile(path, read_table(path)), {})
        return Example(str(path), decode_picture(read_bytes(path), str(path), orientation=DISPLAYED), {})
    array, where = np.asarray(image), f"images[{number}]"
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(f"{where}: is {array.dtype} {array.shape}, not a picture uint8 [H, W, 3] or a path")
    return Example(where, array, {})


def part_of(about: Mapping[str, Any], teacher: Teacher) -> Part:
    """A network that was read from files, with the inputs that its description states."""
    found = about["preprocessing"]
    size, keep_aspect = tuple(found["size"]), bool(found["keep_aspect"])
    if "clips" not in found:
        return Part(teacher, Encoder({}, size, keep_aspect=keep_aspect))
    clips = found["clips"]
    window = Window(span=clips["window"]["span"])
    return Part(teacher, ClipEncoder({}, size, dict(clips["frames"]), window, keep_aspect=keep_aspect))
