"""Splits of a data set by id, stored as list files with one id per line, and hidden annotations."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from must.core import files
from must.core.types import Example, Label, Source, UserError
from must.data.combine import Routed, as_list, hash_of
from must.readers.files import first_repeated, read_lines


def part(ids: Sequence[str], share: float | int, seed: int) -> tuple[list[str], list[str]]:
    """A random part of a set and its complement, both in the set's order.

    The part is stratified by source (the first part of an id). For a given seed, larger parts contain all smaller ones.

    Args:
      ids: of the set.
      share: fraction between 0 and 1, rounded down, or an integer number of ids.
      seed: of the draw.

    Raises:
      UserError: the part or its complement is empty.
    """
    total = len(ids)
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise UserError(f"share {share!r}: expected a fraction between 0 and 1, or a number of examples")
    size = share if isinstance(share, int) else int(share * total)
    if not 0 < size < total:
        raise UserError(f"a share of {share} out of {total} examples leaves one side empty")
    by_source: dict[str, list[int]] = {}
    for i, id in enumerate(ids):
        by_source.setdefault(id.partition("/")[0], []).append(i)
    # Ranks within a source, as fractions: the smallest ranks contain the same fraction of every source.
    rank = np.empty(total)
    for places in by_source.values():
        order = np.random.default_rng((seed, len(places))).permutation(len(places))
        rank[np.array(places)[order]] = (np.arange(len(places)) + 0.5) / len(places)
    taken = set(np.argsort(rank, kind="stable")[:size].tolist())
    return [id for i, id in enumerate(ids) if i in taken], [id for i, id in enumerate(ids) if i not in taken]


def exclusive(annotated: Mapping[str, Iterable[str]], seed: int) -> dict[str, list[str]]:
    """Assigns each annotated image to one task only, with counts per task as equal as possible.

    Args:
      annotated: {task: ids of its annotated images}.
      seed: of the draw.

    Returns:
      {task: ids}, a partition of all ids.

    Raises:
      UserError: a task is left without images.
    """
    choices: dict[str, list[str]] = {}
    for task, ids in annotated.items():
        for id in ids:
            choices.setdefault(id, []).append(task)
    assigned: dict[str, list[str]] = {task: [] for task in annotated}
    order = list(choices)
    np.random.default_rng(seed).shuffle(order)
    for id in sorted(
        order, key=lambda id: len(choices[id])
    ):  # fewest choices first; the sort is stable, so it keeps the draw
        task = min(choices[id], key=lambda task: len(assigned[task]))
        assigned[task].append(id)
    for task, ids in assigned.items():
        if not ids:
            raise UserError(f"exclusive annotations: no image is left for {task}")
    place = {id: i for i, id in enumerate(choices)}
    return {task: sorted(ids, key=place.__getitem__) for task, ids in assigned.items()}


def check_no_overlap(lists: Mapping[str, Iterable[str]]) -> None:
    """Raises UserError if two lists share an id."""
    owner: dict[str, str] = {}
    for name, ids in lists.items():
        for id in ids:
            if owner.setdefault(id, name) != name:
                raise UserError(f"lists {owner[id]} and {name} both contain {id}: they must be disjoint")


def write_list(path: str, ids: Sequence[str]) -> None:
    """Writes one id per line, atomically."""
    files.write_text(path, "".join(f"{id}\n" for id in ids))


def read_list(path: str) -> list[str]:
    """The ids of a list file; UserError for a missing or empty file or a repeated id."""
    ids = read_lines(Path(path))
    repeated = first_repeated(ids)
    if repeated is not None:
        raise UserError(f"{path}: {repeated} is listed twice")
    return ids


class Listed(Routed):
    """The examples of a list, in its order.

    Args:
      source: of the examples.
      file: list file; or
      ids: the ids themselves.

    Raises:
      UserError: an id that is not in the source.
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
    """The examples of a source that are not in any of the other sources.

    Examples are the same if the last parts of their ids are, as long as no source has two with the same last part;
    otherwise ("cat/1", "dog/1") if their ids without the source's name are, or the shorter one ends the longer one.

    Args:
      source: to filter.
      others: {name: source} or a sequence of sources, for example the validation split of the same pictures.
      ids: of further examples to leave out.
    """

    def __init__(
        self, source: Source, others: Sequence[Source] | Mapping[str, Source] = (), *, ids: Sequence[str] = ()
    ):
        known, listed = set(source.ids), set(ids)
        if foreign := next((id for id in ids if id not in known), None):
            raise UserError(f"without: {foreign} is not in {source.name}")
        keys = [_parts(source)] + [_parts(other) for other in (as_list(others) if others or not ids else ())]
        if all(len({parts[-1] for parts in its}) == len(its) for its in keys):
            keys = [[parts[-1:] for parts in its] for its in keys]
        others_keys = {parts for its in keys[1:] for parts in its}
        their_ends = {parts[at:] for parts in others_keys for at in range(len(parts))}
        self._indices = [
            i
            for i, mine in enumerate(keys[0])
            if mine not in their_ends
            and not any(mine[at:] in others_keys for at in range(1, len(mine)))
            and source.ids[i] not in listed
        ]
        self._source, self.name, self.classes = source, source.name, source.classes
        self.ids = [source.ids[i] for i in self._indices]
        self.fingerprint = hash_of("without", source.fingerprint, *self.ids)

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, self._indices[index]


def _parts(source: Source) -> list[tuple[str, ...]]:
    """The parts of every id after the source's name."""
    return [tuple(id.split("/")[1:] or [id]) for id in source.ids]


class Annotated(Routed):
    """The same examples with some of their labels hidden.

    Args:
      source: of the examples.
      shown: {task: ids with a visible label}; tasks that are not listed are hidden.
    """

    def __init__(self, source: Source, shown: Mapping[str, Iterable[str]]):
        self._source, self._shown = source, {task: frozenset(ids) for task, ids in shown.items()}
        self.name, self.ids = source.name, source.ids
        self.classes = {task: names for task, names in source.classes.items() if task in self._shown}
        parts = (f"{task}: {' '.join(sorted(ids))}" for task, ids in sorted(self._shown.items()))
        self.fingerprint = hash_of("annotated", source.fingerprint, *parts)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return example._replace(labels=self._visible(example.id, example.labels))

    def labels(self, index: int) -> dict[str, Label]:
        return self._visible(self.ids[index], super().labels(index))

    def _visible(self, id: str, labels: Mapping[str, Label]) -> dict[str, Label]:
        return {task: label for task, label in labels.items() if id in self._shown.get(task, ())}

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, index
