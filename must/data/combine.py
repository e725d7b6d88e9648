"""Sources made of sources: union, subset, several folders of labels, labels before pseudo labels, memory.

All of them keep the ids (a join names them anew) and pass on what a source may have beyond the protocol:
`labels(index)`, the labels without decoding the picture, and `encoded(index)`, the picture's file or None.
"""

import bisect
import hashlib
import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import Example, Label, Source, UserError
from must.data.files import FileSource, first_repeated


class _Routed:
    """A source whose every example is one of another source; a subclass says which in `_route`."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        source, inner = self._route(index)
        return source[inner]

    def labels(self, index: int) -> dict[str, Label]:
        return labels_of(*self._route(index))

    def encoded(self, index: int) -> bytes | None:
        return encoded_of(*self._route(index))

    def _route(self, index: int) -> tuple[Source, int]:
        raise NotImplementedError


class Concat(_Routed):
    """The union: all examples of all sources, one after the other, so that a uniform draw weighs every example alike.

    Args:
      sources: {name: source} or a sequence of sources.
      name: of the union.

    Raises:
      UserError: no sources, an id that two sources hold, class names that differ.
    """

    def __init__(self, sources: Sequence[Source] | Mapping[str, Source], *, name: str = "union"):
        self.name = name
        self._sources = as_list(sources)
        self.ids = list(itertools.chain.from_iterable(source.ids for source in self._sources))
        repeated = first_repeated(self.ids)
        if repeated is not None:
            raise UserError(f"{name}: id {repeated!r} occurs twice; give the sources different names")
        self.classes = common_classes(self._sources)
        self.fingerprint = _hash("concat", *(source.fingerprint for source in self._sources))
        self._starts = list(itertools.accumulate((len(source) for source in self._sources), initial=0))

    def _route(self, index: int) -> tuple[Source, int]:
        index = _checked_index(index, len(self))
        part = bisect.bisect_right(self._starts, index) - 1
        return self._sources[part], index - self._starts[part]


class Subset(_Routed):
    """A random part, in the original order; with one seed a smaller part lies inside every larger one.

    Args:
      source: what to draw from.
      count: number of examples; or
      fraction: share of them, rounded, at least one.
      seed: of the draw.

    Raises:
      UserError: not exactly one of count and fraction, or more than there are.
    """

    def __init__(self, source: Source, *, count: int | None = None, fraction: float | None = None, seed: int = 0):
        if (count is None) == (fraction is None):
            raise UserError(f"subset of {source.name}: give either count or fraction")
        wanted = count if count is not None else max(1, round(fraction * len(source)))
        if not 0 < wanted <= len(source):
            raise UserError(f"subset of {source.name}: {wanted} examples wanted, it has {len(source)}")
        self._source = source
        self._indices = np.sort(np.random.default_rng(seed).permutation(len(source))[:wanted])
        self.name, self.classes = source.name, source.classes
        self.ids = [source.ids[i] for i in self._indices]
        self.fingerprint = _hash("subset", source.fingerprint, self._indices.tobytes().hex())

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, int(self._indices[index])


class _Merged:
    """A source whose examples may each be in several sources: the picture of the first, labels of all of them.

    Args:
      sources: that the examples come from.
      keys: per source and example, what tells which examples are the same.
      prefix: put before the keys to make ids.
    """

    def __init__(self, sources: Sequence[Source], keys: Iterable[Iterable[str]], prefix: str = ""):
        self._sources = sources
        places: dict[str, list[tuple[int, int]]] = {}
        for number, its_keys in enumerate(keys):
            for i, key in enumerate(its_keys):
                places.setdefault(key, []).append((number, i))
        self.ids = [prefix + key for key in places]
        self.classes = common_classes(sources)
        self._places = list(places.values())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        number, inner = self._places[index][0]
        example = self._sources[number][inner]
        labels = self._merge(index, example.labels, example.image.shape[:2])
        return Example(self.ids[index], example.image, labels)

    def labels(self, index: int) -> dict[str, Label]:
        number, inner = self._places[index][0]
        return self._merge(index, labels_of(self._sources[number], inner), None)

    def encoded(self, index: int) -> bytes | None:
        number, inner = self._places[index][0]
        return encoded_of(self._sources[number], inner)

    def _merge(self, index: int, labels: dict[str, Label], size: tuple[int, int] | None) -> dict[str, Label]:
        """The first source's labels with those of the others; `size` of the picture where it is known."""
        raise NotImplementedError


class Join(_Merged):
    """Several annotated folders of the same pictures as one source: the picture is decoded once.

    Two examples are the same when their ids agree but for the source's name. The examples of the first source come
    first, then those that only later ones have; each carries the labels of every source that has it.

    Args:
      sources: {name: source} or a sequence of sources, no task in two of them.
      name: of the result; by default the first source's.

    Raises:
      UserError: a source that does not come from files, a task in two of them.
    """

    def __init__(self, sources: Sequence[FileSource] | Mapping[str, FileSource], *, name: str = ""):
        sources = as_list(sources)
        for source in sources:
            if not isinstance(source, FileSource):
                raise UserError(f"{source.name}: only sources that read users' files can be joined")
        repeated = first_repeated(itertools.chain.from_iterable(source.classes for source in sources))
        if repeated is not None:
            raise UserError(f"join: task {repeated!r} is in two sources; rename one with task=")
        self.name = name or sources[0].name
        keys = ([id.removeprefix(f"{source.name}/") for id in source.ids] for source in sources)
        super().__init__(sources, keys, f"{self.name}/")
        self.fingerprint = _hash("join", self.name, *(source.fingerprint for source in sources))

    def _merge(self, index: int, labels: dict[str, Label], size: tuple[int, int] | None) -> dict[str, Label]:
        (number, inner), *others = self._places[index]
        labels = dict(labels)
        for other, place in others:
            size = size or self._sources[number].size(inner)
            more = self._sources[other].labels_for(place, size)
            twice = set(labels) & set(more)
            if twice:
                raise UserError(f"{self.ids[index]}: task {min(twice)!r} comes from two of the joined sources")
            labels.update(more)
        return labels


class Overlay(_Merged):
    """Records of pseudo labels under ground truth: per task the annotation where the id has one, else the pseudo label.

    Labelled examples that the records do not hold come after the records, with their annotations alone.

    Args:
      records: examples with pseudo labels.
      labelled: {name: source} or a sequence of sources with ground truth, under the same ids.
      name: of the result; by default the records'.

    Raises:
      UserError: class names that differ.
    """

    def __init__(self, records: Source, labelled: Sequence[Source] | Mapping[str, Source], *, name: str = ""):
        sources = [records, *as_list(labelled)]
        super().__init__(sources, [source.ids for source in sources])
        self.name = name or records.name
        self.fingerprint = _hash("overlay", *(source.fingerprint for source in sources))

    def _merge(self, index: int, labels: dict[str, Label], size: tuple[int, int] | None) -> dict[str, Label]:
        for number, inner in self._places[index][1:]:
            labels = {**labels, **labels_of(self._sources[number], inner)}
        return labels


class Repeated(_Routed):
    """Every example as many times as said, so that a uniform draw meets some more often and some never.

    Args:
      source: what to draw from.
      times: {id: how often it occurs}; once by default.
    """

    def __init__(self, source: Source, times: Mapping[str, int]):
        if min(times.values(), default=1) < 0:
            raise UserError(f"repeated {source.name}: {min(times.values())} times")
        self._source, self.name, self.classes = source, source.name, source.classes
        self._indices = [i for i, id in enumerate(source.ids) for _ in range(times.get(id, 1))]
        self.ids = [source.ids[i] for i in self._indices]
        self.fingerprint = _hash("repeated", source.fingerprint, *map(str, self._indices))

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, self._indices[index]


class Weighted(_Routed):
    """The same examples, some of whose labels count more or less than 1.

    Args:
      source: of the examples.
      weights: {task: {id: weight}}; 1 where nothing is said.

    Raises:
      UserError: a weight that is negative or not finite.
    """

    def __init__(self, source: Source, weights: Mapping[str, Mapping[str, float]]):
        for task, by_id in weights.items():
            for id, weight in by_id.items():
                if not 0 <= weight < float("inf"):
                    raise UserError(f"{source.name}: weight {weight} of {id} for {task}")
        self._source, self._weights = source, weights
        self.name, self.ids, self.classes = source.name, source.ids, source.classes
        self.fingerprint = _hash("weighted", source.fingerprint, repr(sorted((t, sorted(w.items())) for t, w in weights.items())))

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        mine = {task: by_id[example.id] for task, by_id in self._weights.items() if example.id in by_id}
        return example._replace(weights={**example.weights, **mine})

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, index


class Cached(_Routed):
    """Examples are decoded once and kept in memory, read-only, until the limit is reached; the others stay as they are.

    Args:
      source: what to keep.
      limit_mib: memory for images and labels, MiB.
    """

    def __init__(self, source: Source, *, limit_mib: float = 1024):
        self._source = source
        self._room = int(limit_mib * 2**20)
        self._kept: dict[int, Example] = {}
        self._lock = threading.Lock()
        self.name, self.ids, self.classes = source.name, source.ids, source.classes

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint

    def __getitem__(self, index: int) -> Example:
        index = _checked_index(index, len(self))
        example = self._kept.get(index)
        if example is None:
            example = self._source[index]
            arrays = _arrays(example)
            size = sum(array.nbytes for array in arrays)
            with self._lock:
                if index not in self._kept and size <= self._room:
                    for array in arrays:
                        array.setflags(write=False)
                    self._kept[index] = example
                    self._room -= size
        return example

    def __getstate__(self) -> dict[str, Any]:
        kept = sum(array.nbytes for example in self._kept.values() for array in _arrays(example))
        return {**self.__dict__, "_kept": {}, "_room": self._room + kept, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, index


def labels_of(source: Source, index: int) -> dict[str, Label]:
    """The labels of one example, without decoding its picture where the source can."""
    method = getattr(source, "labels", None)
    return source[index].labels if method is None else method(index)


def encoded_of(source: Source, index: int) -> bytes | None:
    """The bytes of the picture's file, None where there is none."""
    method = getattr(source, "encoded", None)
    return None if method is None else method(index)


def as_list(sources: Sequence[Source] | Mapping[str, Source]) -> list[Source]:
    """Sources from a sequence or from the values of a mapping; UserError when there are none."""
    found = list(sources.values()) if isinstance(sources, Mapping) else list(sources)
    if not found:
        raise UserError("a combination of sources needs at least one source")
    return found


def common_classes(sources: Sequence[Source]) -> dict[str, tuple[str, ...]]:
    """Class names per task; UserError where two sources differ about them."""
    classes: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for source in sources:
        for task, names in source.classes.items():
            if task in classes and tuple(names) != classes[task]:
                differing = sorted(set(names) ^ set(classes[task]))
                what = f"{differing[0]!r} is in one only" if differing else "their order differs"
                both = f"{owner[task]} and {source.name}"
                raise UserError(f"{task}: classes of {both} differ ({what}); a class map can bring them together")
            classes.setdefault(task, tuple(names))
            owner.setdefault(task, source.name)
    return classes


def _arrays(example: Example) -> list[np.ndarray]:
    return [example.image, *(np.asarray(a) for label in example.labels.values() for a in label.values())]


def _checked_index(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"index {index} of {length} examples")
    return int(index) % length


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
