"""Examples with precomputed features of frozen networks in place of their pictures."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from must.core.types import Batch, Example, Source
from must.data.combine import Routed, hash_of, labels_of
from must.data.geometry import whole_image
from must.data.pipeline import labels_and_weights

_IDENTITY = whole_image((1, 1), (1, 1))


class Embedded(Routed):
    """The labels of a source with features of its pictures.

    Args:
      source: of the examples.
      features: {view: float32 [N, d]}, one row per example of the source.
    """

    def __init__(self, source: Source, features: Mapping[str, np.ndarray]):
        self._source, self.features = source, dict(features)
        self.name, self.ids, self.classes = source.name, source.ids, source.classes
        self.fingerprint = hash_of("embedded", source.fingerprint, *sorted(features))

    def __getitem__(self, index: int) -> Example:
        picture = {view: rows[index] for view, rows in self.features.items()}
        return Example(self.ids[index], picture, labels_of(self._source, index))

    def _route(self, index: int) -> tuple[Source, int]:
        return self._source, index


class EmbeddedEncoder(NamedTuple):
    """Encodes an example of `Embedded` as one row of a batch whose inputs are its features.

    Attributes:
      tasks: {name: object with `encode` and `blank`}, the labels of a row.
      widths: {view: d}.
    """

    tasks: Mapping[str, Any]
    widths: Mapping[str, int]

    def blank_inputs(self) -> dict[str, np.ndarray]:
        """{view: zeros [1, d]}."""
        return {view: np.zeros((1, width), np.float32) for view, width in self.widths.items()}

    def __call__(self, example: Example, index: int, rng: np.random.Generator) -> Batch:
        """The row of `example`, arrays without the leading axis B."""
        del rng
        labels, weights = labels_and_weights(self.tasks, example, _IDENTITY)
        return Batch(dict(example.image), labels, weights, np.int64(index), {})


def embed(
    source: Source, features: Callable[[dict[str, np.ndarray]], Mapping[str, Any]], batches: Iterable[Batch]
) -> Embedded:
    """Computes the features of all examples of a source.

    Args:
      source: of the examples.
      features: {view: inputs} -> {view of the features: [B, d]}.
      batches: of that source in order, see `must.data.pipeline.eval_batches`.
    """
    gathered: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for view, rows in features(batch.inputs).items():
            gathered.setdefault(view, []).append(np.asarray(rows)[batch.ids >= 0])
    return Embedded(source, {view: np.concatenate(rows) for view, rows in gathered.items()})
