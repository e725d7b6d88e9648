"""Who may learn from what: parts of a set by id, kept as list files, and annotations that are hidden.

A list file holds one id a line, so that a split can be read, compared and made elsewhere.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from must.core import files
from must.core.types import Example, Label, Source, UserError
from must.data.combine import Routed, as_list, hash_of
from must.readers.files import first_repeated


def part(ids: Sequence[str], share: float | int, seed: int) -> tuple[list[str], list[str]]:
    """A random part of a set and its complement, both in the set's order.

    Every source (the first part of an id) gives the same share, and with one seed a smaller part lies inside every
    larger one.

    Args:
      ids: of the set.
      share: fraction between 0 and 1, rounded down, or an integer number of ids.
      seed: of the draw.

    Raises:
      UserError: nothing or everything is taken.
    """
    total = len(ids)
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise UserError(f"a part of {share!r}: give a fraction between 0 and 1, or a number of examples")
    wanted = share if isinstance(share, int) else int(share * total)
    if not 0 < wanted < total:
        raise UserError(f"a part of {share} out of {total} examples leaves one side empty")
    by_source: dict[str, list[int]] = {}
    for i, id in enumerate(ids):
        by_source.setdefault(id.partition("/")[0], []).append(i)
    # An example's rank within its source, as a fraction: taking the smallest ranks takes every source's share.
    rank = np.empty(total)
    for _name, places in by_source.items():
        order = np.random.default_rng((seed, len(places))).permutation(len(places))
        rank[np.array(places)[order]] = (np.arange(len(places)) + 0.5) / len(places)
    taken = set(np.argsort(rank, kind="stable")[:wanted].tolist())
    return [id for i, id in enumerate(ids) if i in taken], [id for i, id in enumerate(ids) if i not in taken]


def exclusive(annotated: Mapping[str, Iterable[str]], seed: int) -> dict[str, list[str]]:
    """Deals annotated images so that each is annotated for one task only and tasks have as equal numbers as can be.

    Args:
      annotated: {task: ids of the images that it could have}.
      seed: of the draw.

    Returns:
      {task: ids}, disjoint, together all ids.

    Raises:
      UserError: a task is left without images.
    """
    able: dict[str, list[str]] = {}
    for task, ids in annotated.items():
        for id in ids:
            able.setdefault(id, []).append(task)
    dealt: dict[str, list[str]] = {task: [] for task in annotated}
    order = list(able)
    np.random.default_rng(seed).shuffle(order)
    for id in sorted(order, key=lambda id: len(able[id])):  # images with one choice first; the sort keeps the draw
        task = min(able[id], key=lambda task: len(dealt[task]))
        dealt[task].append(id)
    for task, ids in dealt.items():
        if not ids:
            raise UserError(f"exclusive annotations: no image is left for {task}")
    place = {id: i for i, id in enumerate(able)}
    return {task: sorted(ids, key=place.__getitem__) for task, ids in dealt.items()}


def check_no_overlap(lists: Mapping[str, Iterable[str]]) -> None:
    """UserError naming an id that two lists hold."""
    owner: dict[str, str] = {}
    for name, ids in lists.items():
        for id in ids:
            if owner.setdefault(id, name) != name:
                raise UserError(f"lists {owner[id]} and {name} both hold {id}: they must be disjoint")


def write_list(path: str, ids: Sequence[str]) -> None:
    """Writes one id a line, as a whole or not at all."""
    files.write_text(path, "".join(f"{id}\n" for id in ids))


def read_list(path: str) -> list[str]:
    """The ids of a list file.

    Raises:
      UserError: no such file, nothing in it, or an id twice.
    """
    try:
        with open(path) as file:
            ids = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not ids:
        raise UserError(f"{path}: no ids")
    repeated = first_repeated(ids)
    if repeated is not None:
        raise UserError(f"{path}: {repeated} is there twice")
    return ids


class Listed(Routed):
    """The examples of a list, in its order.

    Args:
      source: that has them.
      file: list file; or
      ids: the ids themselves.

    Raises:
      UserError: an id that the source does not have.
    """

    def __init__(self, source: Source, *, file: str = "", ids: Sequence[str] = ()):
        self.ids = read_list(file) if file else list(ids)
        place = {id: i for i, id in enumerate(source.ids)}
        for id in self.ids:
            if id not in place:
                raise UserError(f"{file or 'list'}: {id} is not in {source.name}")
        self._source, self._indices = source, [place[id] for id in self.ids]
        self.name, self.classes = source.name, source.classes
        self.fingerprint = hash_of("listed", source.fingerprint, *self.ids)

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, self._indices[index]


class Without(Routed):
    """The examples of a source that are in none of other sources, told by the last part of their ids.

    Args:
      source: what to take from.
      others: {name: source} or a sequence of sources, for instance the validation split of the same pictures.
    """

    def __init__(self, source: Source, others: Sequence[Source] | Mapping[str, Source]):
        gone = {id.rpartition("/")[2] for other in as_list(others) for id in other.ids}
        self._indices = [i for i, id in enumerate(source.ids) if id.rpartition("/")[2] not in gone]
        self._source, self.name, self.classes = source, source.name, source.classes
        self.ids = [source.ids[i] for i in self._indices]
        self.fingerprint = hash_of("without", source.fingerprint, *self.ids)

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, self._indices[index]


class Annotated(Routed):
    """The same examples with fewer annotations: a label that is hidden never reaches whoever reads this source.

    Args:
      source: of the examples.
      shown: {task: ids whose label is shown}; a task that is not named is hidden everywhere.
    """

    def __init__(self, source: Source, shown: Mapping[str, Iterable[str]]):
        self._source, self._shown = source, {task: frozenset(ids) for task, ids in shown.items()}
        self.name, self.ids = source.name, source.ids
        self.classes = {task: names for task, names in source.classes.items() if task in self._shown}
        told = (f"{task}: {' '.join(sorted(ids))}" for task, ids in sorted(self._shown.items()))
        self.fingerprint = hash_of("annotated", source.fingerprint, *told)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return example._replace(labels=self._seen(example.id, example.labels))

    def labels(self, index: int) -> dict[str, Label]:
        return self._seen(self.ids[index], super().labels(index))

    def _seen(self, id: str, labels: Mapping[str, Label]) -> dict[str, Label]:
        return {task: label for task, label in labels.items() if id in self._shown.get(task, ())}

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, index
