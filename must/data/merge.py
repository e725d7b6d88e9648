"""Sources made of several sources: their union, or their labels of the same pictures, with classes joined by name.

Optional methods of sources are forwarded as in `must.data.combine`.
"""

import bisect
import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from must.core import labels as forms
from must.core.types import Example, Label, Source, UserError
from must.data.classes import aligned, united
from must.data.combine import Routed, as_list, checked_index, encoded_of, hash_of, labels_of, location_of, shard_of
from must.readers.files import FileSource, first_repeated

SAME_OBJECT = 0.5  # IoU above which a pseudo label's box shows the object of a true one
_BACKGROUND = ("background", "_background_", "bg")
_OF_BOXES = ("boxes", "classes", "scores", "crowd")
BY_TEACHER = "@teacher"  # suffix of a task's name: a teacher's prediction beside the ground truth


class Concat(Routed):
    """The concatenation of all sources; uniform sampling gives every example the same probability.

    Args:
      sources: {name: source} or a sequence of sources.
      name: of the union.

    Raises:
      UserError: no sources, an id in two sources, a class that the other sources lack.
    """

    def __init__(self, sources: Sequence[Source] | Mapping[str, Source], *, name: str = "union"):
        self.name = name
        self._sources, self.classes = united(as_list(sources))
        self.ids = list(itertools.chain.from_iterable(source.ids for source in self._sources))
        repeated = first_repeated(self.ids)
        if repeated is not None:
            raise UserError(
                f"{name}: id {repeated!r} occurs twice; give sources of different pictures different names (name=...), "
                "and combine labels of the same pictures with a source of kind 'join'"
            )
        self.fingerprint = hash_of("concat", *(source.fingerprint for source in self._sources))
        self._starts = list(itertools.accumulate((len(source) for source in self._sources), initial=0))

    def _route(self, index: int) -> tuple[Source, int]:
        index = checked_index(index, len(self))
        part = bisect.bisect_right(self._starts, index) - 1
        return self._sources[part], index - self._starts[part]


class _Merged:
    """Merges examples that several sources share: the picture of the first source, the labels of all.

    Args:
      sources: of the examples.
      keys: per source and example; examples with equal keys are merged.
      prefix: turns keys into ids.
      first: the source whose order of classes the others take.
    """

    def __init__(self, sources: Sequence[Source], keys: Iterable[Iterable[str]], prefix: str = "", first: int = 0):
        self._sources, self.classes = united(sources, first)
        places: dict[str, list[tuple[int, int]]] = {}
        for number, its_keys in enumerate(keys):
            for i, key in enumerate(its_keys):
                places.setdefault(key, []).append((number, i))
        self.ids = [prefix + key for key in places]
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

    def location(self, index: int) -> str | None:
        number, inner = self._places[index][0]
        return location_of(self._sources[number], inner)

    def shard(self, index: int) -> Hashable:
        number, inner = self._places[index][0]
        return shard_of(self._sources[number], inner)

    def _merge(self, index: int, labels: dict[str, Label], size: tuple[int, int] | None) -> dict[str, Label]:
        """Merges the other sources' labels into those of the first; `size` is that of the picture, if known."""
        raise NotImplementedError


class Join(_Merged):
    """Joins several annotated folders of the same pictures; each picture is decoded once.

    Examples are joined if their ids are equal except for the source's name. The examples of the first source come
    first, then those that only later sources have.

    Args:
      sources: {name: source} or a sequence of sources, with disjoint tasks.
      name: of the result; by default the first source's.

    Raises:
      UserError: a source that does not read files, a task in two sources.
    """

    def __init__(self, sources: Sequence[FileSource] | Mapping[str, FileSource], *, name: str = ""):
        sources = as_list(sources)
        for source in sources:
            if not isinstance(source, FileSource):
                raise UserError(f"{source.name}: only sources that read image files can be joined")
        repeated = first_repeated(itertools.chain.from_iterable(source.classes for source in sources))
        if repeated is not None:
            raise UserError(f"join: task {repeated!r} is in two sources; rename one with task=")
        self.name = name or sources[0].name
        keys = ([id.removeprefix(f"{source.name}/") for id in source.ids] for source in sources)
        super().__init__(sources, keys, f"{self.name}/")
        self.fingerprint = hash_of("join", self.name, *(source.fingerprint for source in sources))

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
    """Pseudo labels overlaid with ground truth: per task, the annotation if the example has one, else the pseudo label.

    An annotation to which classes are unknown keeps what the pseudo label says of them, see `completed`. Labeled
    examples that are not in the records come last.

    Args:
      records: examples with pseudo labels.
      labeled: {name: source} or a sequence of sources with ground truth, under the same ids.
      name: of the result; by default the records'.

    Raises:
      UserError: a class that the other sources lack.
    """

    def __init__(self, records: Source, labeled: Sequence[Source] | Mapping[str, Source], *, name: str = ""):
        sources = [records, *as_list(labeled)]
        super().__init__(sources, [source.ids for source in sources], first=1)
        self.name = name or records.name
        self.fingerprint = hash_of("overlay", *(source.fingerprint for source in sources))

    def _merge(self, index: int, labels: dict[str, Label], size: tuple[int, int] | None) -> dict[str, Label]:
        for number, inner in self._places[index][1:]:
            for task, label in labels_of(self._sources[number], inner).items():
                if task in labels:
                    label = completed(label, labels[task], self.classes.get(task, ()))
                labels = {**labels, task: label}
        return labels


class Paired(_Merged):
    """Labeled examples with a teacher's predictions beside the ground truth, as "<task>@teacher".

    Args:
      truth: the labeled examples.
      records: pseudo labels under the same ids; may contain other examples.

    Raises:
      UserError: a labeled example that is not in the records.
    """

    def __init__(self, truth: Source, records: Source):
        labeled = set(records.ids)
        for id in truth.ids:
            if id not in labeled:
                raise UserError(f"{records.name}: no pseudo labels of {id}; run the label stage again")
        mine = set(truth.ids)
        self._row = {id: i for i, id in enumerate(records.ids) if id in mine}
        self._records = aligned(records, truth.classes)
        super().__init__([truth], [truth.ids])
        self.name = truth.name
        self.fingerprint = hash_of("paired", truth.fingerprint, records.fingerprint)

    def _merge(self, index: int, labels: dict[str, Label], size: tuple[int, int] | None) -> dict[str, Label]:
        predictions = labels_of(self._records, self._row[self.ids[index]])
        return {**labels, **{f"{task}{BY_TEACHER}": label for task, label in predictions.items()}}


def completed(truth: Label, other: Label, classes: Sequence[str] = ()) -> Label:
    """An annotation with another label's part on the classes that are unknown to it, in record form.

    Of boxes, those of such classes that overlap no true box by an IoU above `SAME_OBJECT`: what is there is known. Of
    pixels, those of such classes where the annotation has no class, or the one called "background", which there means
    none of the annotated classes. A picture has one class: the annotation's. Of attributes, the unknown ones. What
    remains unknown is unknown to both.

    Args:
      truth: the annotation.
      other: the other label.
      classes: names of the classes of both.
    """
    unknown = np.asarray(truth.get("unknown", ()), np.int64)
    if not len(unknown) or ("boxes" not in truth and "ids" in truth and np.ndim(truth["ids"]) != 3):
        return truth
    remaining = np.intersect1d(unknown, other.get("unknown", ())).astype(np.uint16)
    if not {"boxes", "ids"} & set(truth):
        of_other = np.isin(np.arange(len(truth["scores"])), unknown)
        return {"scores": np.where(of_other, other["scores"], truth["scores"]), "unknown": remaining}
    if "boxes" in truth:
        keep = np.isin(other["classes"], unknown) & (_overlap(other["boxes"], truth["boxes"]) <= SAME_OBJECT)
        both = {name: np.concatenate([truth[name], np.asarray(other[name])[keep]]) for name in _OF_BOXES}
        masks = forms.chosen_masks((truth, np.ones(len(truth["boxes"]), bool)), (other, keep))
        return {**both, "unknown": remaining, **masks}
    ids, probs = (_resized(np.asarray(other[name]), truth["ids"].shape[:2]) for name in ("ids", "probs"))
    open_ids = [forms.IGNORE, *(i for i, name in enumerate(classes) if name.lower() in _BACKGROUND)]
    take = np.isin(truth["ids"][..., :1], open_ids) & np.isin(ids[..., :1], unknown)
    depth = max(ids.shape[-1], truth["ids"].shape[-1])
    maps = {}
    for name, own, theirs, fill in (("ids", truth["ids"], ids, forms.IGNORE), ("probs", truth["probs"], probs, 0)):
        own, theirs = (
            np.pad(one, ((0, 0), (0, 0), (0, depth - one.shape[-1])), constant_values=fill) for one in (own, theirs)
        )
        maps[name] = np.where(take, theirs, own)
    return {**maps, "unknown": remaining}


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The largest IoU of each box [N, 4] with any of the others [M, 4]: [N]."""
    a, b = np.asarray(boxes, np.float64)[:, None], np.asarray(others, np.float64)[None]
    common = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    return (common / np.maximum(union, 1e-9)).max(-1, initial=0.0)


def _resized(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The nearest values of a map [H, W, K] at another height and width."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(shape, values.shape, strict=False)
    )
    return values[rows][:, columns]
