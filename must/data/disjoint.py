"""Whether sets that must have nothing in common have nothing in common."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from must.core.types import Source, UserError
from must.data.combine import encoded_of

_UNIFORM = 8  # gray levels; a frame that varies less says nothing: fades and black frames are in videos of any origin
_AT_ONCE = 32  # frames of a long video that are in memory together


class Overlap(NamedTuple):
    """Two examples of different sets with the same content.

    Attributes:
      use: what the first set is used for.
      id: in it.
      other_use: what the second set is used for.
      other_id: in it.
      shared: number of different frames that both hold; 1 for the same picture.
    """

    use: str
    id: str
    other_use: str
    other_id: str
    shared: int


def check_disjoint(sources: Mapping[str, Source], *, by_content: bool = False) -> None:
    """Refuses sets that share an example.

    Args:
      sources: {what it is used for: source}, as messages name it.
      by_content: compare what they show too, not only the ids, see `overlaps`.

    Raises:
      UserError: an id, a picture or a video's frame that two of them hold.
    """
    owner: dict[str, tuple[str, str]] = {}
    for use, source in sources.items():
        for i, id in enumerate(source.ids):
            keys = itertools.chain([f"id {id}"], _contents(source, i) if by_content else ())
            for key in keys:
                other, its_id = owner.setdefault(key, (use, id))
                if other != use:
                    same = "frame" if key.startswith("frame") else "picture"
                    what = f"share {id}" if its_id == id else f"hold the same {same}, {its_id} and {id}"
                    raise UserError(f"the {other} and the {use} set {what}: they must be disjoint")


def overlaps(sources: Mapping[str, Source]) -> list[Overlap]:
    """All pairs of examples of different sets that show the same: one picture, or videos with a frame in common.

    Pictures are compared by their file's bytes, made ones by their pixels. Videos are compared by the pixels of every
    frame, so that a clip is found in a longer one whatever its place and container. Only equal pixels count: a video
    that was scaled or compressed again is not found. A frame of (almost) one color is no evidence; a title that many
    videos share is. What to do about it is the caller's: refuse (`check_disjoint`) or drop, for instance
    Listed(source, ids=[id for id in source.ids if id not in {o.id for o in found}]).

    Args:
      sources: {what it is used for: source}.

    Returns:
      Every pair once, the earlier set first, in the order of the later set's examples.
    """
    holders: dict[str, list[tuple[str, str]]] = {}
    found: list[Overlap] = []
    for use, source in sources.items():
        for i, id in enumerate(source.ids):
            shared: Counter[tuple[str, str]] = Counter()
            for key in set(_contents(source, i)):
                at = holders.setdefault(key, [])
                shared.update(holder for holder in at if holder[0] != use)
                at.append((use, id))
            found += [Overlap(*holder, use, id, count) for holder, count in sorted(shared.items())]
    return found


def _contents(source: Source, index: int):
    """Hashes of what an example shows: one of a picture, one for each telling frame of a video."""
    file = encoded_of(source, index)
    image = None if file is not None else source[index].image
    if image is None or len(image.shape) == 3:
        yield "picture " + hashlib.sha256(np.ascontiguousarray(image).tobytes() if file is None else file).hexdigest()
        return
    for start in range(0, image.shape[0], _AT_ONCE):
        for frame in image[np.arange(start, min(start + _AT_ONCE, image.shape[0]))]:
            pixels = frame.reshape(-1, frame.shape[-1])
            few = pixels[:: max(1, len(pixels) // 256)]  # nearly always enough to tell
            if any((np.ptp(some, 0) >= _UNIFORM).any() for some in (few, pixels)):
                digest = hashlib.sha256(repr(frame.shape).encode() + np.ascontiguousarray(frame).tobytes())
                yield "frame " + digest.hexdigest()
