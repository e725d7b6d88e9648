"""Changes of training rows: CutMix and cutout with matching labels, and labels of other pictures as a control.

A change is (row, rng, another) -> row, see `must.data.pipeline.train_batches`; rows have no leading axis.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from must.core.types import Batch, UserError
from must.data.geometry import FILL

PASTED = "@pasted"  # suffix of a whole-picture task: the label of the pasted picture
CLEAN = "clean"  # the teacher's view, which cutout leaves intact

Another = Callable[[np.random.Generator], Batch]


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Fills a rectangle with the mean color; dense labels in it are ignored (DeVries and Taylor 2017).

    Attributes:
      tasks: {name: object with `whole` and `paste`}.
      probability: of a cutout, per row.
      largest: maximum side, as a fraction of the picture's.
    """

    tasks: Mapping[str, Any]
    probability: float = 0.5
    largest: float = 0.5

    def __post_init__(self):
        _check_shares("cutout", probability=self.probability, largest=self.largest)

    def __call__(self, row: Batch, rng: np.random.Generator, another: Another) -> Batch:
        if rng.random() >= self.probability:
            return row
        size = _size(row)
        sides = [rng.integers(1, max(1, int(self.largest * side)) + 1) for side in size]
        corner = [rng.integers(0, side - length + 1) for side, length in zip(size, sides, strict=True)]
        window = (*corner, corner[0] + sides[0], corner[1] + sides[1])
        labels = dict(row.labels)
        for name in labels:
            if name in self.tasks and not self.tasks[name].whole and row.weights[name]:
                labels[name] = self.tasks[name].paste(labels[name], None, window)
        fill = np.array(FILL, np.uint8)
        inputs = {view: x if view == CLEAN else _with(x, fill, window) for view, x in row.inputs.items()}
        return row._replace(inputs=inputs, labels=labels)


@dataclasses.dataclass(frozen=True)
class CutMix:
    """Pastes a rectangle of another picture of the batch with its labels (CutMix, Yun et al. 2019).

    Dense labels are pasted (`Task.paste`); their weight is the mean of both pictures' weights by area. Whole-picture
    labels are kept side by side, the second as "<task>@pasted", and weighted by area, which equals the loss on their
    mixture; if one is missing, neither counts. `Batch.extras` of a mixed label are the minimum of both.

    Attributes:
      tasks: {name: object with `whole` and `paste`}.
      probability: of mixing, per row.
      alpha: the area fraction of the row's own picture is drawn from Beta(alpha, alpha).
    """

    tasks: Mapping[str, Any]
    probability: float = 0.5
    alpha: float = 1.0

    def __post_init__(self):
        _check_shares("cutmix", probability=self.probability)
        if not self.alpha > 0:
            raise UserError(f"cutmix.alpha {self.alpha}: must be > 0")

    def __call__(self, row: Batch, rng: np.random.Generator, another: Another) -> Batch:
        mixed = rng.random() < self.probability
        other = another(rng) if mixed else row
        height, width = _size(row)
        window = self._window(rng, height, width)
        share = (window[2] - window[0]) * (window[3] - window[1]) / (height * width) if mixed else 0.0
        labels, weights, extras = dict(row.labels), dict(row.weights), dict(row.extras)
        for name, task in self.tasks.items():
            own, its = float(row.weights[name]), float(other.weights[name])
            if task.whole:
                both = mixed and own and its
                labels[name + PASTED] = other.labels[name]
                # Factor 2, since both count in the denominator of the mean.
                weights[name] = np.float32(2 * (1 - share) * own if both else 0 if mixed else own)
                weights[name + PASTED] = np.float32(2 * share * its if both else 0)
                if name in other.extras:
                    extras[name + PASTED] = other.extras[name]
            elif mixed and (own or its):
                labels[name] = task.paste(
                    row.labels[name] if own else None, other.labels[name] if its else None, window
                )
                weights[name] = np.float32((1 - share) * own + share * its if own and its else own or its)
                if name in extras:
                    extras[name] = {
                        key: np.minimum(value, other.extras[name][key]) for key, value in extras[name].items()
                    }
        inputs = row.inputs
        if mixed:
            y0, x0, y1, x1 = window
            inputs = {view: _with(x, other.inputs[view][..., y0:y1, x0:x1, :], window) for view, x in inputs.items()}
        return row._replace(inputs=inputs, labels=labels, weights=weights, extras=extras)

    def _window(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        """A rectangle with the picture's aspect ratio around a uniform center, clipped; never the whole picture."""
        side = np.sqrt(1.0 - rng.beta(self.alpha, self.alpha))
        bounds = []
        for length in (height, width):
            cut = int(np.clip(round(side * length), 1, length - 1))
            low = int(rng.integers(length)) - cut // 2
            bounds.append((max(0, low), min(length, low + cut)))
        (y0, y1), (x0, x1) = bounds
        return y0, x0, y1, x1


def shuffled_labels(row: Batch, rng: np.random.Generator, another: Another) -> Batch:
    """The row's picture with all labels of another row of its batch: what its network learns has nothing to do with
    what it sees."""
    other = another(rng)
    return row._replace(labels=other.labels, weights=other.weights, extras=other.extras)


def _check_shares(key: str, **shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise UserError(f"{key}.{name} {share}: must be in (0, 1]")


def _size(row: Batch) -> tuple[int, int]:
    return next(iter(row.inputs.values())).shape[-3:-1]


def _with(pictures: np.ndarray, patch: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """A copy of uint8 [..., H, W, 3] with a new rectangle; a copy since rows may be views of cached pictures."""
    y0, x0, y1, x1 = window
    out = pictures.copy()
    out[..., y0:y1, x0:x1, :] = patch
    return out
