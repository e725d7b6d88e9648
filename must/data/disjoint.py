"""Checks that data sets share no examples, by id or by content."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from must.core.types import Source, UserError
from must.data.combine import encoded_of

_UNIFORM = 8  # gray levels; less varied frames, such as fades and black frames, occur in unrelated videos
_AT_ONCE = 32  # frames of a long video in memory at a time


class Overlap(NamedTuple):
    """Two examples of different sets with the same content.

    Attributes:
      use: what the first set is used for.
      id: in it.
      other_use: what the second set is used for.
      other_id: in it.
      shared: number of distinct frames in common; 1 for the same picture.
    """

    use: str
    id: str
    other_use: str
    other_id: str
    shared: int


def check_disjoint(sources: Mapping[str, Source], *, by_content: bool = False) -> None:
    """Raises UserError if two sets share an id or, optionally, a picture or video frame.

    Args:
      sources: {use, as named in error messages: source}.
      by_content: compare pictures and frames, not only ids, see `overlaps`.
    """
    owner: dict[str, tuple[str, str]] = {}
    for use, source in sources.items():
        for i, id in enumerate(source.ids):
            keys = itertools.chain([f"id {id}"], _contents(source, i) if by_content else ())
            for key in keys:
                other, its_id = owner.setdefault(key, (use, id))
                if other != use:
                    same = "frame" if key.startswith("frame") else "picture"
                    what = f"share {id}" if its_id == id else f"contain the same {same}, {its_id} and {id}"
                    raise UserError(f"the {other} and the {use} set {what}: they must be disjoint")


def overlaps(sources: Mapping[str, Source]) -> list[Overlap]:
    """All pairs of examples of different sets with the same content: one picture, or videos with a common frame.

    Pictures are compared by the bytes of their file, generated ones by pixels. Videos are compared by the pixels of
    every frame, so a clip matches a longer video at any position, but not one that was rescaled or recompressed. Frames
    of (almost) one color are skipped; titles that many videos share are not.

    Args:
      sources: {use: source}.

    Returns:
      Every pair once, the earlier set first, in the order of the later set's examples.
    """
    holders: dict[str, list[tuple[str, str]]] = {}
    result: list[Overlap] = []
    for use, source in sources.items():
        for i, id in enumerate(source.ids):
            shared: Counter[tuple[str, str]] = Counter()
            for key in set(_contents(source, i)):
                at = holders.setdefault(key, [])
                shared.update(holder for holder in at if holder[0] != use)
                at.append((use, id))
            result += [Overlap(*holder, use, id, count) for holder, count in sorted(shared.items())]
    return result


def _contents(source: Source, index: int):
    """Hashes of an example's content: one per picture, one per non-uniform frame of a video."""
    file = encoded_of(source, index)
    image = None if file is not None else source[index].image
    if image is None or len(image.shape) == 3:
        yield "picture " + hashlib.sha256(np.ascontiguousarray(image).tobytes() if file is None else file).hexdigest()
        return
    for start in range(0, image.shape[0], _AT_ONCE):
        for frame in image[np.arange(start, min(start + _AT_ONCE, image.shape[0]))]:
            pixels = frame.reshape(-1, frame.shape[-1])
            few = pixels[:: max(1, len(pixels) // 256)]  # nearly always enough to decide
            if any((np.ptp(some, 0) >= _UNIFORM).any() for some in (few, pixels)):
                digest = hashlib.sha256(repr(frame.shape).encode() + np.ascontiguousarray(frame).tobytes())
                yield "frame " + digest.hexdigest()
