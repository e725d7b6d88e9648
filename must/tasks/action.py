"""What happens in a clip: classification whose classes may change when the clip is mirrored or played backwards."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from must.core.types import Array, Geometry, Label, Policy, UserError
from must.tasks import drawing
from must.tasks.classification import Classification

_SHOWN = 4  # frames of a drawn clip
NO_CLASS = ""

Changes = tuple[tuple[str, str], ...]  # pairs instead of a mapping, so that a task can be hashed


@dataclasses.dataclass(frozen=True)
class Action(Classification):
    """One class of `classes` per clip, as a distribution.

    Whether a mirrored "turn left" is a "turn right" only who made the label space can say; nothing is assumed. Each
    change undoes itself, so that one direction of a pair is enough.

    Attributes:
      mirrored: {class: class that the clip shows when mirrored left to right}; a class that is not named stays what it
        is, "" is no class of this label space, and such a clip is never mirrored. None: not declared, none ever is.
      reversed: the same for clips that are played backwards.
    """

    mirrored: Mapping[str, str] | Changes | None = None
    reversed: Mapping[str, str] | Changes | None = None

    def __post_init__(self):
        super().__post_init__()
        for field in ("mirrored", "reversed"):
            declared = getattr(self, field)
            if declared is not None:
                object.__setattr__(self, field, _completed(declared, self.classes, field))

    def admissible(self, label: Label, geometry: Geometry) -> Geometry:
        """`geometry` without `flip` or `reverse` where it is not declared what becomes of the label, or nothing
        does."""
        if not (geometry.flip or geometry.reverse):
            return geometry
        probs = super().transform(label, geometry)["probs"]
        if geometry.flip:
            partners = _partners(self.mirrored, self.classes)
            geometry = geometry._replace(flip=_follows(probs, partners))
            probs = _moved(probs, partners) if geometry.flip else probs
        if geometry.reverse:
            geometry = geometry._replace(reverse=_follows(probs, _partners(self.reversed, self.classes)))
        return geometry

    def transform(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class; a mirrored or reversed clip has the class that is declared for it.

        Raises:
          ValueError: a label that cannot be right, or that cannot follow (`admissible`).
        """
        found = super().transform(label, geometry)
        for field in self._changes(geometry):
            partners = _partners(getattr(self, field), self.classes)
            if not _follows(found["probs"], partners):
                raise ValueError(f"what class a clip has when {field} is not declared for this label")
            found = {name: _moved(value, partners) for name, value in found.items()}
        return found

    def restore(self, label: Label, geometry: Geometry) -> Label:
        """As in the base class; the classes are those of the clip as it was. A class without a partner stays."""
        found = {name: np.asarray(value) for name, value in label.items()}
        for field in reversed(self._changes(geometry)):
            partners = _partners(getattr(self, field), self.classes)
            if partners is None:
                raise ValueError(f"what class a clip has when {field} is not declared")
            found = {name: _moved(value, partners) for name, value in found.items()}
        return super().restore(found, geometry)

    def hflip_outputs(self, outputs: Array) -> Array:
        """Logits of mirrored clips in the order of the classes of the originals.

        Raises:
          UserError: `mirrored` is not declared, or a class has no partner: such clips cannot be tested mirrored.
        """
        partners = _partners(self.mirrored, self.classes)
        if partners is None or (partners < 0).any():
            which = (
                "is not declared" if partners is None else f"leaves {self.classes[int(np.argmin(partners))]!r} no class"
            )
            raise UserError(f"action: averaging over mirrored clips needs 'mirrored', which {which}")
        return outputs[..., partners]

    def draw(self, image: np.ndarray, label: Label, policy: Policy | None = None) -> np.ndarray:
        """Up to four frames of the clip, side by side in their order, over bars of the three most probable classes.

        Args:
          image: uint8 [H, W, 3], or a clip [T, H, W, 3].
          label: in network form.
          policy: see the base class.
        """
        if len(image.shape) == 3:
            return super().draw(image, label, policy)
        shown = np.linspace(0, image.shape[0] - 1, min(_SHOWN, image.shape[0])).round().astype(np.int64)
        strip = drawing.upscale(np.concatenate(list(image[shown]), 1), 96)  # half of a picture's, since there are four
        return drawing.caption(strip, self.bars(label, policy))

    def _changes(self, geometry: Geometry | None) -> list[str]:
        """Which changes the geometry makes, in order; none where the label is read without one, as any
        classification's."""
        if geometry is None:
            return []
        return [field for field, made in (("mirrored", geometry.flip), ("reversed", geometry.reverse)) if made]


def _completed(declared: Mapping[str, str] | Changes, classes: tuple[str, ...], field: str) -> Changes:
    """Both directions of every pair, in the order of the classes; UserError for what cannot be."""
    pairs = [(str(a), str(b)) for a, b in (declared.items() if hasattr(declared, "items") else declared)]
    found: dict[str, str] = {}
    for name, partner in pairs + [(b, a) for a, b in pairs if b != NO_CLASS]:
        for wrong in {name, partner} - {*classes, NO_CLASS} | {name} - {*classes}:
            raise UserError(f"action: {field} names {wrong!r}, which is not one of the {len(classes)} classes")
        if found.setdefault(name, partner) != partner:
            both = f"{found[name]!r} and {partner!r}"
            raise UserError(f"action: {field} makes {name!r} both {both}; done twice it must change nothing")
    return tuple((name, found[name]) for name in classes if name in found)


def _partners(changes: Changes | None, classes: tuple[str, ...]) -> np.ndarray | None:
    """int64 [C]: what each class becomes, -1 where it has no partner; None where nothing is declared."""
    if changes is None:
        return None
    becomes = dict(changes)
    place = {name: i for i, name in enumerate(classes)} | {NO_CLASS: -1}
    return np.array([place[becomes.get(name, name)] for name in classes], np.int64)


def _moved(probs: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """Every class's probability at its partner; a class without one keeps its own."""
    return probs[np.where(partners < 0, np.arange(len(partners)), partners)]


def _follows(probs: np.ndarray, partners: np.ndarray | None) -> bool:
    """Whether every class that a label deems possible has a partner."""
    return partners is not None and not (probs[partners < 0] > 0).any()
