"""Checks that data sets share no examples, by id, by content or by how they look."""

import filecmp
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from must.core.notices import notice
from must.core.types import Source, UserError
from must.data.combine import encoded_of, location_of

_UNIFORM = 8  # gray levels; less varied frames, such as fades and black frames, occur in unrelated videos
_FILES = 200_000  # of larger sets nobody waits for the sizes at every start
_AT_ONCE = 32  # frames of a long video in memory at a time
_SIDE, _KEPT = 32, 8  # pixels of the thumbnail and frequencies per direction that an appearance is made of
_BITS = 6  # of 63, in which the appearances of one picture may differ


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


def check_files(learned: Source, held_out: Mapping[str, Source], *, most: float = 0.01) -> None:
    """Compares the picture files of sets by size, and those of equal size byte by byte; sets without files pass.

    Real sets have a few doubles, which a notice counts; more are the same pictures under other names.

    Args:
      learned: everything that some network learns from.
      held_out: {use, as named in messages: source}.
      most: share of a held-out set's pictures that may be learned.

    Raises:
      UserError: more are.
    """
    if len(learned) > _FILES:
        return
    by_size: dict[int, dict[str, str]] = {}
    for i, id in enumerate(learned.ids):
        if (file := location_of(learned, i)) and os.path.isfile(file):
            by_size.setdefault(os.path.getsize(file), {})[file] = id
    for use, source in held_out.items():
        pairs = []
        for i, id in enumerate(source.ids):
            file = location_of(source, i) if by_size else None
            alike = by_size.get(os.path.getsize(file), {}) if file and os.path.isfile(file) else {}
            if other := next((its for path, its in alike.items() if filecmp.cmp(path, file, shallow=False)), None):
                pairs.append((other, id))
        if not pairs:
            continue
        what = f"{len(pairs):,} of {len(source):,} pictures of the {use} set {source.name} are learned from too"
        what += f", such as {pairs[0][1]}, the same file as {pairs[0][0]}"
        if len(pairs) > most * len(source):
            raise UserError(f"{what}; leave them out of the pool or of the training set")
        notice(what)


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


def look_alikes(sources: Mapping[str, Source], *, share: float = 0.5) -> list[Overlap]:
    """All pairs of examples of different sets that look alike: rescaled, recompressed, brightened or noisy copies.

    Pictures and frames are compared by `appearance`, of which copies differ in `_BITS` bits at most. Two videos look
    alike where at least `share` of the distinct frames of the one that has fewer are found in the other. Mirrored
    copies, and crops of more than a few percent of a side, are different pictures here.

    Args:
      sources: {use: source}.
      share: 0 to 1.

    Returns:
      As `overlaps` does.
    """
    owners, codes, uses = [], [], []
    for number, (use, source) in enumerate(sources.items()):
        for i, id in enumerate(source.ids):
            owners.append((use, id))
            codes.append(np.unique(np.array([appearance(frame) for frame in _varied(source[i].image)], np.uint64)))
            uses.append(number)
    if not owners:
        return []
    counts = np.array([len(own) for own in codes])
    flat, owner = np.concatenate(codes), np.repeat(np.arange(len(owners)), counts)
    first, second = _alike(flat, np.array(uses)[owner])
    a, b = owner[first], owner[second]
    of_shorter = np.where(counts[a] <= counts[b], first, second)
    # One row for every frame of the shorter one that is found in the other; pairs in the order of the later set.
    pairs, shared = np.unique(np.unique(np.stack([b, a, of_shorter], -1), axis=0)[:, :2], axis=0, return_counts=True)
    enough = shared >= share * counts[pairs].min(1)
    return [Overlap(*owners[a], *owners[b], int(n)) for (b, a), n in zip(pairs[enough], shared[enough], strict=True)]


def appearance(frame: np.ndarray) -> int:
    """63 bits that copies nearly share: which low frequencies of the gray thumbnail are above their median.

    The perceptual hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, 3.2.1.

    Args:
      frame: uint8 [h, w, 3].
    """
    from scipy.fft import dctn

    low = dctn(_thumbnail(frame), norm="ortho")[:_KEPT, :_KEPT].ravel()[1:]
    return sum(1 << i for i in np.flatnonzero(low > np.median(low)).tolist())


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), np.float32)


def _alike(codes: np.ndarray, uses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs of codes of different uses, the earlier use first, that differ in at most `_BITS` bits."""
    # Codes that differ in that many bits are equal in at least one of as many bands and one more.
    band, found = 63 // (_BITS + 1), [np.zeros((0, 2), np.int64)]
    for shift in range(0, 63, band):
        key = (codes >> np.uint64(shift)) & np.uint64((1 << band) - 1)
        order = np.argsort(key, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            for start in range(0, len(same), 1024):
                rows = same[start : start + 1024]
                near = np.bitwise_count(codes[rows, None] ^ codes[None, same]) <= _BITS
                i, j = np.nonzero(near & (uses[rows, None] < uses[None, same]))
                found.append(np.stack([rows[i], same[j]], -1))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _varied(image):
    """The picture, or the frames of a video, that are not (almost) of one color."""
    frames = [image] if len(image.shape) == 3 else _frames(image)
    return (frame for frame in frames if np.ptp(_thumbnail(frame)) >= _UNIFORM)


def _frames(video):
    for start in range(0, video.shape[0], _AT_ONCE):
        yield from video[np.arange(start, min(start + _AT_ONCE, video.shape[0]))]


def _contents(source: Source, index: int):
    """Hashes of an example's content: one per picture, one per non-uniform frame of a video."""
    file = encoded_of(source, index)
    image = None if file is not None else source[index].image
    if image is None or len(image.shape) == 3:
        yield "picture " + hashlib.sha256(np.ascontiguousarray(image).tobytes() if file is None else file).hexdigest()
        return
    for frame in _frames(image):
        pixels = frame.reshape(-1, frame.shape[-1])
        few = pixels[:: max(1, len(pixels) // 256)]  # nearly always enough to decide
        if any((np.ptp(some, 0) >= _UNIFORM).any() for some in (few, pixels)):
            digest = hashlib.sha256(repr(frame.shape).encode() + np.ascontiguousarray(frame).tobytes())
            yield "frame " + digest.hexdigest()
