"""Examples that cannot be read: found before they are needed, listed with reasons, left out up to a bound."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from must.core.types import Source, UserError
from must.data.combine import Routed, encoded_of
from must.data.geometry import whole_image
from must.readers.frames import ClipSource

_FRAME = (64, 64)  # to which labels are transformed; small, since only whether it works matters


class Reject(NamedTuple):
    """An example that is left out.

    Attributes:
      id: of the example.
      reason: one line.
    """

    id: str
    reason: str


def check_source(
    source: Source,
    tasks: Mapping[str, Any] = {},
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Reject]:
    """Reads every example with its labels, at the speed of decoding; of videos the header and the last frame.

    Args:
      source: to read.
      tasks: {name: Task} whose labels must have a network form.
      threads: one per core by default, 16 at most.
      progress: called with (done, total).

    Returns:
      What cannot be read, in order.
    """
    rejects: list[Reject] = []
    with ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1)) as pool:
        for done, reason in enumerate(pool.map(lambda index: _problem(source, index, tasks), range(len(source))), 1):
            if reason:
                rejects.append(Reject(source.ids[done - 1], reason))
            if progress:
                progress(done, len(source))
    return rejects


def reads_files(source: Source) -> bool:
    """Whether the examples of a source come from files, which may be broken; generated ones need no check."""
    parts: dict[int, tuple[Source, int]] = {}  # such as pictures beside generated ones, with an example of each
    for index in range(len(source)):
        part, place = source.route(index) if isinstance(source, Routed) else (source, index)
        parts.setdefault(id(part), (part, place))
        if part is source:
            break
    return any(reads_files(part) if isinstance(part, Routed) else _in_file(part, at) for part, at in parts.values())


def _in_file(source: Source, index: int) -> bool:
    try:
        return isinstance(source, ClipSource) or encoded_of(source, index) is not None
    except UserError:
        return True


def bound(count: int, max_rejects: float) -> int:
    """How many of `count` examples may be left out."""
    if not 0 <= max_rejects <= 1:
        raise UserError(f"max_rejects={max_rejects}: must be between 0 and 1")
    return int(max_rejects * count + 1e-9)  # 0.29 * 100 is a little less than 29


def refuse_beyond(where: str, rejects: Sequence[Reject], count: int, allowed: int, *, option: str) -> None:
    """UserError if there are more rejects than allowed; names the list, the last of them, and what would allow them."""
    if len(rejects) > allowed:
        raise UserError(
            f"{where}: {len(rejects)} of {count} images cannot be used, {option} allows {allowed}; {rejects[-1].id}: "
            f"{rejects[-1].reason}; {option}={math.ceil(1000 * len(rejects) / count) / 1000} would allow {len(rejects)}"
        )


def _problem(source: Source, index: int, tasks: Mapping[str, Any]) -> str:
    """Why an example cannot be used, "" if it can."""
    from must.data.pipeline import labels_and_weights  # Grain takes a second, and label passes come without it

    try:
        example = source[index]
        if len(example.image.shape) == 4:
            example.image[np.array([example.image.shape[0] - 1])]
        else:
            labels_and_weights(tasks, example, whole_image(example.image.shape[:2], _FRAME))
    except UserError as error:
        return str(error)
    return ""
