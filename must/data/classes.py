"""Class maps between label spaces: small text files, checked for gaps, applied to a source.

One line per source class, `#` starts a comment:

    # our class -> theirs
    car    -> vehicle
    truck  -> vehicle
    drawn car -> ignore
    *      -> unknown

The right side is a target class or one of

    ignore   it may be of a target class or not: pixels become 255, boxes become regions without loss, a picture of that
             class loses its label.
    unknown  it is of no target class: boxes are left out, so that they count as background; pixels become 255 and a
             picture loses its label, since these two have no background to give them.

`*` on the left stands for every source class without a line. Target classes on no right side are not annotated by the
source: detection lists them as unknown, neither present nor absent.
"""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.core import labels as forms
from must.core.types import Example, Label, Source, UserError
from must.data.combine import encoded_of, labels_of
from must.readers.files import read_classes, read_lines

IGNORE, UNKNOWN = -1, -2
_WORDS = {"ignore": IGNORE, "unknown": UNKNOWN}


class ClassMap(NamedTuple):
    """Where each source class goes.

    Attributes:
      source: names.
      target: names.
      table: target id of each source class, or IGNORE or UNKNOWN.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    table: tuple[int, ...]

    @property
    def unlisted(self) -> tuple[int, ...]:
        """Ids of the target classes that no source class goes to."""
        return tuple(sorted(set(range(len(self.target))) - set(self.table)))


def load_class_map(path: str | Path, source_classes: Sequence[str], target_classes: Sequence[str]) -> ClassMap:
    """Reads a class map.

    Raises:
      UserError: a line without "->", a name of neither space, a source class with two lines or none.
    """
    goes: dict[str, str] = {}
    for line in read_lines(Path(path)):
        text = f" {line}".split(" #")[0].strip()
        if not text:
            continue
        left, arrow, right = (part.strip() for part in text.partition("->"))
        if not (left and arrow and right):
            raise UserError(f"{path}: {line!r} is not of the form 'source class -> target class'")
        if left in goes:
            raise UserError(f"{path}: {left!r} has two lines")
        goes[left] = right
    return make_class_map(goes, source_classes, target_classes, where=str(path))


def make_class_map(
    goes: Mapping[str, str], source_classes: Sequence[str], target_classes: Sequence[str], *, where: str
) -> ClassMap:
    """A class map from {left side: right side} of its lines.

    Args:
      goes: {source class or "*": target class or one of the words}.
      source_classes: names.
      target_classes: names.
      where: the map in messages.

    Raises:
      UserError: a name of neither space, a source class that goes nowhere.
    """
    number = {name: i for i, name in enumerate(target_classes)} | _WORDS
    if len(number) < len(target_classes) + len(_WORDS):
        raise UserError(f"{where}: a target class is called twice, or like one of the words {', '.join(_WORDS)}")
    for left, right in goes.items():
        if left != "*" and left not in source_classes:
            raise UserError(f"{where}: {left!r} is no class of the source{_nearest(left, source_classes)}")
        if right not in number:
            raise UserError(f"{where}: {right!r} is no target class{_nearest(right, number)}")
    gaps = [name for name in source_classes if name not in goes and "*" not in goes]
    if gaps:
        more = f" and {len(gaps) - 5} more" if len(gaps) > 5 else ""
        raise UserError(f"{where}: no line for source class {', '.join(map(repr, gaps[:5]))}{more}")
    table = tuple(number[goes.get(name, goes.get("*"))] for name in source_classes)
    return ClassMap(tuple(source_classes), tuple(target_classes), table)


def as_table(class_map: ClassMap) -> str:
    """The map as text: one line per target class with what goes there, then what is ignored, unknown, not annotated."""
    words = dict(enumerate(class_map.target)) | {code: f"({word})" for word, code in _WORDS.items()}
    arriving: dict[str, list[str]] = {word: [] for word in words.values()}
    for name, goal in zip(class_map.source, class_map.table, strict=True):
        arriving[words[goal]].append(name)
    unlisted = {class_map.target[i] for i in class_map.unlisted}
    width = max(map(len, arriving))
    lines = []
    for word, names in arriving.items():
        if names or word in unlisted:
            lines.append(f"{word:<{width}}  <-  {', '.join(names) or '(not annotated)'}")
    return "\n".join(lines)


class Remapped:
    """A source with one task's labels in another label space; kinds of labels are told apart by their fields.

    Args:
      source: with classes of the task.
      task: key of the labels.
      class_map: a `ClassMap`; or a file for `load_class_map` or its lines as {source class: target class}, which need
        `classes`.
      classes: target names, or a file of names (`read_classes`).

    Raises:
      UserError: the source has no such classes, or other ones than the map; what `load_class_map` refuses.
    """

    def __init__(
        self,
        source: Source,
        task: str,
        class_map: ClassMap | Mapping[str, str] | str | Path,
        *,
        classes: str | Sequence[str] | Mapping[Any, str] | None = None,
    ):
        if task not in source.classes:
            there = ", ".join(source.classes) or "nothing"
            raise UserError(f"{source.name}: no classes of {task!r} to map, only of {there}")
        if not isinstance(class_map, ClassMap):
            if classes is None:
                where = source.name if isinstance(class_map, Mapping) else class_map
                raise UserError(f"{where}: a class map needs `classes`, the target's names")
            spaces = source.classes[task], tuple(read_classes(classes).values())
            if isinstance(class_map, Mapping):
                class_map = make_class_map(class_map, *spaces, where=f"class map of {source.name}")
            else:
                class_map = load_class_map(class_map, *spaces)
        if class_map.source != tuple(source.classes[task]):
            count = len(source.classes[task])
            raise UserError(f"{source.name}: its {count} classes of {task!r} are not those of the map")
        self.class_map = class_map
        self._source, self._task = source, task
        self.name, self.ids = source.name, source.ids
        self.classes = {**source.classes, task: class_map.target}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self._source.fingerprint, self._task, self.class_map)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return example._replace(labels=self._mapped(example.labels))

    def labels(self, index: int) -> dict[str, Label]:
        return self._mapped(labels_of(self._source, index))

    def encoded(self, index: int) -> bytes | None:
        return encoded_of(self._source, index)

    def _mapped(self, labels: dict[str, Label]) -> dict[str, Label]:
        if self._task not in labels:
            return labels
        mapped = remap(labels[self._task], self.class_map)
        rest = {task: label for task, label in labels.items() if task != self._task}
        return rest if mapped is None else {**rest, self._task: mapped}


def remap(label: Label, class_map: ClassMap) -> Label | None:
    """A label of classes, boxes or class maps in the target's label space; None when nothing is left of a class."""
    if "boxes" in label:
        return _remap_boxes(label, class_map)
    return _remap_pixels(label, class_map) if np.ndim(label["ids"]) == 3 else _remap_class(label, class_map)


def _remap_boxes(label: Label, class_map: ClassMap) -> Label:
    """Unknown boxes go; ignored ones become crowd, under the first annotated class.

    Training gives such a region no class loss at all, whatever its class; COCO's AP excuses finds of that class only.
    """
    table = np.array(class_map.table, np.int64)
    goal = table[np.asarray(label["classes"], np.int64)]
    keep = goal != UNKNOWN
    annotated = [i for i in range(len(class_map.target)) if i not in class_map.unlisted]
    return {
        "boxes": label["boxes"][keep],
        "classes": np.where(goal < 0, annotated[0] if annotated else 0, goal)[keep].astype(np.uint16),
        "scores": label["scores"][keep],
        "crowd": (np.asarray(label["crowd"]) | (goal == IGNORE))[keep],
        "unknown": _unknown(label, class_map),
    }


def _remap_pixels(label: Label, class_map: ClassMap) -> Label:
    """Classes that meet in one target add their probabilities; a pixel whose first class goes nowhere is ignored."""
    table = np.full(256, forms.IGNORE, np.uint8)
    table[: len(class_map.table)] = [goal if goal >= 0 else forms.IGNORE for goal in class_map.table]
    ids = table[label["ids"]]
    probs = np.where(ids == forms.IGNORE, 0, label["probs"]).astype(np.int64)
    lost = ids[..., :1] == forms.IGNORE
    for later in range(1, ids.shape[-1]):
        for earlier in range(later):
            same = (ids[..., later] == ids[..., earlier]) & (ids[..., later] != forms.IGNORE)
            probs[..., earlier] += np.where(same, probs[..., later], 0)
            probs[..., later] = np.where(same, 0, probs[..., later])
            ids[..., later] = np.where(same, forms.IGNORE, ids[..., later])
    order = np.argsort(-probs, -1, kind="stable")
    ids, probs = np.take_along_axis(ids, order, -1), np.take_along_axis(probs, order, -1)
    return {
        "ids": np.where(lost, forms.IGNORE, ids).astype(np.uint8),
        "probs": np.where(lost, 0, np.minimum(probs, 255)).astype(np.uint8),
        "unknown": _unknown(label, class_map),
    }


def _remap_class(label: Label, class_map: ClassMap) -> Label | None:
    """The probabilities given that the class is one of the target's; None when the first class goes nowhere."""
    ids = np.asarray(label["ids"], np.int64)
    probs = np.asarray(label["probs"], np.float64)
    goal = np.array(class_map.table, np.int64)[ids]
    if not len(goal) or goal[np.argmax(probs)] < 0:
        return None
    kept = np.zeros(len(class_map.target))
    np.add.at(kept, goal[goal >= 0], probs[goal >= 0])
    listed = np.unique(goal[goal >= 0])
    listed = listed[np.argsort(-kept[listed], kind="stable")]
    rest = float(label["rest"]) if len(listed) < len(kept) else 0.0
    total = kept.sum() + rest
    return {
        "ids": listed.astype(np.uint16),
        "probs": (kept[listed] / total).astype(np.float16),
        "rest": np.float16(rest / total),
        "unknown": _unknown(label, class_map),
    }


def _unknown(label: Label, class_map: ClassMap) -> np.ndarray:
    """Ids of the target classes that the label's source does not know, or that no class of it goes to."""
    table = np.array(class_map.table, np.int64)
    own = {int(i) for i in table[np.asarray(label.get("unknown", ()), np.int64)] if i >= 0}
    return np.array(sorted(own | set(class_map.unlisted)), np.uint16)


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; nearest is {close[0]!r}" if close else ""
