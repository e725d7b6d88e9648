"""Tasks that come later: new teachers label the images of finished records, and what they say lies beside the old labels.

The old files are not touched. What is added is a directory of records of its own, without pictures, below the first one;
`must.readers.records.Records` shows the labels of both together, by record id, as soon as the addition is complete.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from must.core.types import Source, Teacher, UserError
from must.pseudo_label.write import Summary, label_images, read_claim
from must.readers.records import Records, addition_directory, addition_names, read_additions, read_provenance


def add_labels(
    directory: str | os.PathLike,
    teachers: Sequence[Teacher],
    *,
    batch_size: int = 64,
    shards: int = 16,
    name: str | None = None,
    images: Source | None = None,
    keep_aspect: bool = True,
    provenance: dict[str, Any] | None = None,
    worker: tuple[int, int] = (0, 1),
    max_rejects: float = 0.001,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Labels the images of finished records with further teachers; the new labels appear in `Records` when all are there.

    It is resumed, shared by workers and killed as `label_images` is; a call on a finished addition returns at once.

    Args:
      directory: of the records, complete.
      teachers: of tasks that the records do not have.
      name: of the addition; by default made of the names of its tasks.
      images: where the pictures are, by id, when the records hold none.
      batch_size, shards, keep_aspect, provenance, worker, max_rejects, progress: see `label_images`.

    Returns:
      Summary of the addition, which lies in "<directory>/added/<name>/1.0.0".

    Raises:
      UserError: a task that the records have already or that an unfinished addition is about; else as `label_images`.
    """
    directory = os.path.abspath(os.fspath(directory))
    tasks = [task for teacher in teachers for task in teacher.tasks]
    name = name or re.sub(r"\W", "_", "_".join(tasks)).lower()
    for where, there in _labeled(directory, name):
        if twice := set(tasks) & set(there):
            raise UserError(f"{where}: labels {min(twice)!r} already")
    split = read_provenance(directory)["split"]
    source = Records(directory, split=split, tasks=(), images=images, verify=False)  # readers find damage themselves
    return label_images(
        addition_directory(directory, name),
        name,
        source,
        teachers,
        split=split,
        shards=shards,
        batch_size=batch_size,
        copy_images=False,
        keep_aspect=keep_aspect,
        provenance=provenance,
        worker=worker,
        max_rejects=max_rejects,
        progress=progress,
    )


def _labeled(directory: str, name: str) -> Iterator[tuple[str, Iterable[str]]]:
    """(directory, tasks) of the records and of all their additions, complete or not, but the one called `name`."""
    yield directory, read_provenance(directory)["tasks"]
    for other in addition_names(directory):
        path = addition_directory(directory, other)
        if other != name and (there := read_claim(path) or read_additions(directory).get(other)):
            yield path, there["tasks"]
