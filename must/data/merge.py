"""Sources that bring together what several sources know of the same examples: the picture once, the labels of all.

What each may have beyond the protocol is passed on, as in `must.data.combine`.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

from must.core.types import Example, Label, Source, UserError
from must.data.combine import as_list, common_classes, encoded_of, hash_of, labels_of
from must.readers.files import FileSource, first_repeated

BY_TEACHER = "@teacher"  # behind a task's name: what a teacher says where the truth is known too


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
    """Records of pseudo labels under ground truth: per task the annotation where the id has one, else the pseudo label.

    Labeled examples that the records do not hold come after the records, with their annotations alone.

    Args:
      records: examples with pseudo labels.
      labeled: {name: source} or a sequence of sources with ground truth, under the same ids.
      name: of the result; by default the records'.

    Raises:
      UserError: class names that differ.
    """

    def __init__(self, records: Source, labeled: Sequence[Source] | Mapping[str, Source], *, name: str = ""):
        sources = [records, *as_list(labeled)]
        super().__init__(sources, [source.ids for source in sources])
        self.name = name or records.name
        self.fingerprint = hash_of("overlay", *(source.fingerprint for source in sources))

    def _merge(self, index: int, labels: dict[str, Label], size: tuple[int, int] | None) -> dict[str, Label]:
        for number, inner in self._places[index][1:]:
            labels = {**labels, **labels_of(self._sources[number], inner)}
        return labels


class Paired(_Merged):
    """Labeled examples with what a teacher says of them beside the truth, as "<task>@teacher".

    Args:
      truth: the labeled examples.
      records: pseudo labels under the same ids, of these and maybe of others.

    Raises:
      UserError: a labeled example that the records do not hold.
    """

    def __init__(self, truth: Source, records: Source):
        known = set(records.ids)
        for id in truth.ids:
            if id not in known:
                raise UserError(f"{records.name}: holds no pseudo labels of {id}; run the label stage again")
        mine = set(truth.ids)
        self._row = {id: i for i, id in enumerate(records.ids) if id in mine}
        self._records = records
        super().__init__([truth], [truth.ids])
        self.name = truth.name
        self.fingerprint = hash_of("paired", truth.fingerprint, records.fingerprint)

    def _merge(self, index: int, labels: dict[str, Label], size: tuple[int, int] | None) -> dict[str, Label]:
        said = labels_of(self._records, self._row[self.ids[index]])
        return {**labels, **{f"{task}{BY_TEACHER}": label for task, label in said.items()}}
