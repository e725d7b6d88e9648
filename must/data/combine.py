"""Sources made of a source: subset, repetition, weights, cache; `must.data.merge` makes one of several.

All of them keep the ids and forward a source's optional methods: `labels(index)`, the labels without decoding the
picture, `encoded(index)`, the bytes of the picture's file or None, and `shard(index)`, see `shard_of`.
"""

import hashlib
import math
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from must.core import memory
from must.core.arguments import converted
from must.core.types import Example, Label, Source, UserError
from must.readers.pictures import Encoded, is_undecoded, undecoded


class Routed:
    """A source whose examples come from other sources; subclasses map indices in `_route`."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        source, inner = self._route(index)
        return source[inner]

    def labels(self, index: int) -> dict[str, Label]:
        return labels_of(*self._route(index))

    def encoded(self, index: int) -> bytes | None:
        return encoded_of(*self._route(index))

    def location(self, index: int) -> str | None:
        return location_of(*self._route(index))

    def shard(self, index: int) -> Hashable:
        return shard_of(*self._route(index))

    def route(self, index: int) -> tuple[Source, int]:
        """The source that an example comes from, and its index there."""
        return self._route(index)

    def _route(self, index: int) -> tuple[Source, int]:
        raise NotImplementedError


class Subset(Routed):
    """A random subset, in the original order; for a given seed, larger subsets contain all smaller ones.

    Args:
      source: to draw from.
      count: number of examples; or
      fraction: of the examples, rounded, at least one.
      seed: of the draw.

    Raises:
      UserError: not exactly one of count and fraction, or out of range.
    """

    def __init__(self, source: Source, *, count: int | None = None, fraction: float | None = None, seed: int = 0):
        if (count is None) == (fraction is None):
            raise UserError(f"subset of {source.name}: set either count or fraction")
        key, value, kind = ("fraction", fraction, float) if count is None else ("count", count, int)
        converted(value, kind, f"subset of {source.name}: {key}")
        size = count if count is not None else max(1, round(fraction * len(source)))
        if not 0 < size <= len(source):
            raise UserError(f"subset of {source.name}: {size} examples requested, but it has {len(source)}")
        self._source = source
        self._indices = np.sort(np.random.default_rng(seed).permutation(len(source))[:size])
        self.name, self.classes = source.name, source.classes
        self.ids = [source.ids[i] for i in self._indices]
        self.fingerprint = hash_of("subset", source.fingerprint, self._indices.tobytes().hex())

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, int(self._indices[index])


class Repeated(Routed):
    """Each example repeated a number of times, which sets its probability under uniform sampling.

    Args:
      source: to draw from.
      times: {id: number of repetitions}; 1 by default.
    """

    def __init__(self, source: Source, times: Mapping[str, int]):
        converted(times, Mapping[str, int], f"repeated {source.name}: times")
        if min(times.values(), default=1) < 0:
            raise UserError(f"repeated {source.name}: {min(times.values())} times, expected >= 0")
        self._source, self.name, self.classes = source, source.name, source.classes
        self._indices = [i for i, id in enumerate(source.ids) for _ in range(times.get(id, 1))]
        self.ids = [source.ids[i] for i in self._indices]
        self.fingerprint = hash_of("repeated", source.fingerprint, *map(str, self._indices))

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, self._indices[index]


class Weighted(Routed):
    """The same examples with weights on their labels.

    Args:
      source: of the examples.
      weights: {task: {id: weight}}; 1 by default.

    Raises:
      UserError: a negative or infinite weight, or an id that is not in the source.
    """

    def __init__(self, source: Source, weights: Mapping[str, Mapping[str, float]]):
        known = set(source.ids)
        for task, by_id in converted(weights, Mapping[str, Mapping[str, Any]], f"weights of {source.name}").items():
            if foreign := next((id for id in by_id if id not in known), None):
                raise UserError(f"{source.name}: has no example {foreign!r}, which has a weight for {task}")
            for id, weight in by_id.items():
                if not 0 <= weight < float("inf"):
                    raise UserError(f"{source.name}: weight {weight} of {id} for {task} is not a finite number >= 0")
        self._source, self._weights = source, weights
        self.name, self.ids, self.classes = source.name, source.ids, source.classes
        self.fingerprint = hash_of(
            "weighted", source.fingerprint, repr(sorted((t, sorted(w.items())) for t, w in weights.items()))
        )

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        mine = {task: by_id[example.id] for task, by_id in self._weights.items() if example.id in by_id}
        return example._replace(weights={**example.weights, **mine})

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, index


class Aliased(Routed):
    """The same examples with labels under other names.

    Args:
      source: of the examples.
      names: {other name: task}.
      keep: keep them under their own names too.
    """

    def __init__(self, source: Source, names: Mapping[str, str], *, keep: bool = True):
        self._source, self._names, self._keep = source, dict(names), keep
        self.name, self.ids = source.name, source.ids
        self.classes = self._named(source.classes)
        self.fingerprint = hash_of(
            "aliased", source.fingerprint, repr(sorted(names.items())), *([] if keep else ["moved"])
        )

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return example._replace(labels=self._named(example.labels), weights=self._named(example.weights))

    def labels(self, index: int) -> dict[str, Label]:
        return self._named(labels_of(self._source, index))

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, index

    def _named(self, labels: Mapping[str, Any]) -> dict[str, Any]:
        moved = () if self._keep else self._names.values()
        kept = {name: label for name, label in labels.items() if name not in moved}
        return {**kept, **{new: labels[old] for new, old in self._names.items() if old in labels}}


class Cached(Routed):
    """Caches decoded examples in memory, read-only, until the limit is reached; videos are cached as a whole or not.

    Args:
      source: to cache.
      limit_mib: memory for images and labels, MiB; in any case, all caches together keep to `memory.budget`.
    """

    def __init__(self, source: Source, *, limit_mib: float = math.inf):
        self._source = source
        self._limit = limit_mib * 2**20
        self.name, self.ids, self.classes = source.name, source.ids, source.classes
        self._empty()

    def _empty(self) -> None:
        self._cache: dict[Any, Example] = {}  # by index, JPEGs by (index, whether it stays encoded)
        self._lock = threading.Lock()
        self._share = memory.Share(self._limit)

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        example = self._cached(index, is_undecoded())
        if example is None:
            # Whether a picture is decoded as a whole must not depend on what fits in memory, which changes its pixels.
            with undecoded():
                example = self._source[index]
            key, image = index, example.image
            if isinstance(image, Encoded):
                key = (index, is_undecoded())
                image = image if is_undecoded() else np.asarray(image)
            elif not isinstance(image, np.ndarray):
                if math.prod(image.shape) > self._share.free():
                    return example
                image = image[np.arange(image.shape[0])]
            example = example._replace(image=image)
            arrays = _arrays(example)
            with self._lock:
                if key not in self._cache and self._share.take(sum(array.nbytes for array in arrays)):
                    for array in arrays:
                        if isinstance(array, np.ndarray):
                            array.setflags(write=False)
                    self._cache[key] = example
        return example

    def _cached(self, index: int, encoded: bool) -> Example | None:
        return self._cache.get(index) or self._cache.get((index, encoded))

    def labels(self, index: int) -> dict[str, Label]:
        index = checked_index(index, len(self))
        cached = self._cached(index, True) or self._cached(index, False)
        return super().labels(index) if cached is None else dict(cached.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_cache", "_lock", "_share")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._empty()

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, index


def labels_of(source: Source, index: int) -> dict[str, Label]:
    """The labels of one example, without decoding its picture if the source supports that."""
    method = getattr(source, "labels", None)
    return source[index].labels if method is None else method(index)


def encoded_of(source: Source, index: int) -> bytes | None:
    """The bytes of the picture's file, None if the source has no file."""
    method = getattr(source, "encoded", None)
    return None if method is None else method(index)


def location_of(source: Source, index: int) -> str | None:
    """The path of the picture's own file, None if the source has none."""
    method = getattr(source, "location", None)
    return None if method is None else method(index)


def shard_of(source: Source, index: int) -> Hashable:
    """What has to be fetched to read an example and takes the place of others, such as a shard in a bucket; or None."""
    shard = getattr(source, "shard", None)
    return None if shard is None else shard(index)


def as_list(sources: Sequence[Source] | Mapping[str, Source]) -> list[Source]:
    """Sources from a sequence or the values of a mapping; UserError if there are none."""
    result = list(sources.values()) if isinstance(sources, Mapping) else list(sources)
    if not result:
        raise UserError("a combination of sources needs at least one source")
    return result


def _arrays(example: Example) -> list[np.ndarray]:
    return [example.image, *(np.asarray(a) for label in example.labels.values() for a in label.values())]


def checked_index(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"index {index} of {length} examples")
    return int(index) % length


def hash_of(*parts: str) -> str:
    """A fingerprint of several strings."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
