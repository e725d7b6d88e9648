"""Class maps between label spaces: small text files, checked for completeness, applied to a source.

One line per source class; `#` starts a comment:

    # source class -> target class
    car    -> vehicle
    truck  -> vehicle
    drawn car -> ignore
    *      -> unknown

The right side is a target class or one of

    ignore   may or may not belong to a target class: pixels become 255, boxes become regions without loss, pictures
             lose their label, of several attributes of a picture this one is left out.
    unknown  belongs to no target class: boxes are dropped and count as background; pixels become 255 and pictures lose
             their label, since segmentation and classification have no background class to assign.

`*` on the left matches every source class without a line. Target classes that appear on no right side are not annotated
by the source: their presence is unknown.
"""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.core import labels as forms
from must.core.types import Example, Label, Source, UserError
from must.data.combine import encoded_of, labels_of, location_of
from must.readers.files import read_classes, read_lines

IGNORE, UNKNOWN = -1, -2
_WORDS = {"ignore": IGNORE, "unknown": UNKNOWN}


class ClassMap(NamedTuple):
    """A map from source classes to target classes.

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
        """Ids of the target classes that no source class maps to."""
        return tuple(sorted(set(range(len(self.target))) - set(self.table)))


def load_class_map(path: str | Path, source_classes: Sequence[str], target_classes: Sequence[str]) -> ClassMap:
    """Reads a class map.

    Raises:
      UserError: a line without "->", an unknown class name, a source class with two lines or none.
    """
    mapping: dict[str, str] = {}
    for line in read_lines(Path(path)):
        text = f" {line}".split(" #")[0].strip()
        if not text:
            continue
        left, arrow, right = (part.strip() for part in text.partition("->"))
        if not (left and arrow and right):
            raise UserError(f"{path}: {line!r} is not of the form 'source class -> target class'")
        if left in mapping:
            raise UserError(f"{path}: {left!r} has two lines")
        mapping[left] = right
    return make_class_map(mapping, source_classes, target_classes, where=str(path))


def make_class_map(
    mapping: Mapping[str, str], source_classes: Sequence[str], target_classes: Sequence[str], *, where: str
) -> ClassMap:
    """A class map from its lines.

    Args:
      mapping: {source class or "*": target class, "ignore" or "unknown"}.
      source_classes: names.
      target_classes: names.
      where: name of the map in error messages.

    Raises:
      UserError: an unknown class name, a source class without a line.
    """
    number = {name: i for i, name in enumerate(target_classes)} | _WORDS
    if len(number) < len(target_classes) + len(_WORDS):
        raise UserError(f"{where}: a target class is listed twice or is one of the reserved words {', '.join(_WORDS)}")
    for left, right in mapping.items():
        if left != "*" and left not in source_classes:
            raise UserError(f"{where}: {left!r} is not a source class{_nearest(left, source_classes)}")
        if right not in number:
            raise UserError(f"{where}: {right!r} is not a target class{_nearest(right, number)}")
    gaps = [name for name in source_classes if name not in mapping and "*" not in mapping]
    if gaps:
        more = f" and {len(gaps) - 5} more" if len(gaps) > 5 else ""
        raise UserError(f"{where}: no line for source class {', '.join(map(repr, gaps[:5]))}{more}")
    table = tuple(number[mapping.get(name, mapping.get("*"))] for name in source_classes)
    return ClassMap(tuple(source_classes), tuple(target_classes), table)


def as_table(class_map: ClassMap) -> str:
    """The map as text: one line per target class with its source classes, then the ignored and unknown ones."""
    words = dict(enumerate(class_map.target)) | {code: f"({word})" for word, code in _WORDS.items()}
    sources: dict[str, list[str]] = {word: [] for word in words.values()}
    for name, goal in zip(class_map.source, class_map.table, strict=True):
        sources[words[goal]].append(name)
    unlisted = {class_map.target[i] for i in class_map.unlisted}
    width = max(map(len, sources))
    lines = []
    for word, names in sources.items():
        if names or word in unlisted:
            lines.append(f"{word:<{width}}  <-  {', '.join(names) or '(not annotated)'}")
    return "\n".join(lines)


def aligned(source: Source, spaces: Mapping[str, Sequence[str]], *, of: str = "", exhaustive: bool = False) -> Source:
    """The source with its class ids counted as in other label spaces: classes are joined by name.

    Args:
      source: with any classes, in any order.
      spaces: {task: class names}.
      of: what has these classes, for messages.
      exhaustive: as in `Remapped`.

    Raises:
      UserError: a class of the source that is not in the task's space.
    """
    for task, names in spaces.items():
        own, names = tuple(source.classes.get(task, names)), tuple(names)
        if own == names:
            continue
        number = {name: i for i, name in enumerate(names)}
        for name in own:
            if name not in number:
                raise UserError(
                    f"{source.name}: {task}: {name!r} is not one of the {len(names)} classes{of and ' of '}{of}"
                    f"{_nearest(name, names)}; name all of them with classes=[...], or map it with kind 'remapped'"
                )
        source = Remapped(source, task, ClassMap(own, names, tuple(number[one] for one in own)), exhaustive=exhaustive)
    return source


def united(sources: Sequence[Source], first: int = 0) -> tuple[list[Source], dict[str, tuple[str, ...]]]:
    """The sources with one label space per task, and the spaces; what a source has no class for is unknown to it.

    The space of a task is that of the first source that has all its classes, beginning with number `first`.

    Raises:
      UserError: no source has all classes of a task.
    """
    spaces: dict[str, tuple[str, ...]] = {}
    for task in dict.fromkeys(task for source in sources for task in source.classes):
        held = [one for one in [*sources[first:], *sources[:first]] if task in one.classes]
        every = set().union(*(one.classes[task] for one in held))
        owner = next((one for one in held if every <= set(one.classes[task])), held[0])
        spaces[task] = tuple(owner.classes[task])
        sources = [aligned(one, {task: spaces[task]}, of=owner.name) for one in sources]
    return list(sources), spaces


def renumbered(label: Label, class_map: ClassMap) -> Label:
    """Predictions in network form, with a leading axis B, with the ids of another label space.

    Classes are those of `class_map.source`, each with a target; what is unlisted is unknown.
    """
    table, label = np.array(class_map.table), {name: np.asarray(value) for name, value in label.items()}
    out, size = dict(label), len(class_map.target)
    rows = len(next(iter(label.values())))
    out["known"] = np.zeros((rows, size), bool)
    out["known"][:, table] = label.get("known", True)
    if "classes" in label:
        out["classes"] = table[label["classes"]].astype(label["classes"].dtype)
    elif "ids" in label:
        ids = np.full(256, forms.IGNORE, label["ids"].dtype)
        ids[: len(table)] = table
        out["ids"] = ids[label["ids"]]
    else:
        (name,) = {"probs", "scores"} & set(label)
        out[name] = np.zeros((rows, size), label[name].dtype)
        out[name][:, table] = label[name]
    return out


class Remapped:
    """A source with one task's labels mapped to another label space.

    Args:
      source: with classes of the task.
      task: key of the labels.
      class_map: a `ClassMap`; or a file for `load_class_map` or its lines as {source class: target class}, both of
        which need `classes`.
      classes: target names, or a file of names (`read_classes`).
      exhaustive: target classes that no source class maps to are absent from the pictures; by default, unknown.

    Raises:
      UserError: the source's classes are missing or differ from the map's; see also `load_class_map`.
    """

    def __init__(
        self,
        source: Source,
        task: str,
        class_map: ClassMap | Mapping[str, str] | str | Path,
        *,
        classes: str | Sequence[str] | Mapping[Any, str] | None = None,
        exhaustive: bool = False,
    ):
        if task not in source.classes:
            available = ", ".join(source.classes) or "nothing"
            raise UserError(f"{source.name}: no classes of {task!r} to map, only of {available}")
        if not isinstance(class_map, ClassMap):
            if classes is None:
                where = source.name if isinstance(class_map, Mapping) else class_map
                raise UserError(f"{where}: a class map needs `classes`, the target names")
            spaces = source.classes[task], tuple(read_classes(classes).values())
            if isinstance(class_map, Mapping):
                class_map = make_class_map(class_map, *spaces, where=f"class map of {source.name}")
            else:
                class_map = load_class_map(class_map, *spaces)
        if class_map.source != tuple(source.classes[task]):
            count = len(source.classes[task])
            raise UserError(f"{source.name}: its {count} classes of {task!r} are not those of the class map")
        self.class_map = class_map
        self._source, self._task, self._exhaustive = source, task, exhaustive
        self.name, self.ids = source.name, source.ids
        self.classes = {**source.classes, task: class_map.target}

    @property
    def fingerprint(self) -> str:
        content = (self._source.fingerprint, self._task, self.class_map) + ("exhaustive",) * self._exhaustive
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return example._replace(labels=self._mapped(example.labels))

    def labels(self, index: int) -> dict[str, Label]:
        return self._mapped(labels_of(self._source, index))

    def encoded(self, index: int) -> bytes | None:
        return encoded_of(self._source, index)

    def location(self, index: int) -> str | None:
        return location_of(self._source, index)

    def _mapped(self, labels: dict[str, Label]) -> dict[str, Label]:
        if self._task not in labels:
            return labels
        mapped = remap(labels[self._task], self.class_map)
        if mapped is not None and self._exhaustive:
            mapped["unknown"] = np.setdiff1d(mapped["unknown"], self.class_map.unlisted).astype(np.uint16)
        rest = {task: label for task, label in labels.items() if task != self._task}
        return rest if mapped is None else {**rest, self._task: mapped}


def remap(label: Label, class_map: ClassMap) -> Label | None:
    """Maps a label with class ids to the target label space; None if its class is lost."""
    if "boxes" in label:
        return _remap_boxes(label, class_map)
    if "ids" not in label:
        return _remap_attributes(label, class_map)
    return _remap_pixels(label, class_map) if np.ndim(label["ids"]) == 3 else _remap_class(label, class_map)


def _remap_boxes(label: Label, class_map: ClassMap) -> Label:
    """Drops unknown boxes; ignored ones become crowd, under the first annotated class.

    Training applies no class loss in such a region; COCO's AP ignores only detections of that class in it.
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
        **forms.chosen_masks((label, keep)),
    }


def _remap_attributes(label: Label, class_map: ClassMap) -> Label:
    """The largest score of the attributes with the same target; unknown where one of them is, unless one is sure."""
    scores = np.zeros(len(class_map.target))
    absent = set(np.asarray(label.get("unknown", ()), np.int64).tolist())
    for i, goal in enumerate(class_map.table):
        if goal >= 0 and i not in absent:
            scores[goal] = max(scores[goal], float(label["scores"][i]))
    unknown = _unknown(label, class_map)
    return forms.multi_label(scores, unknown[scores[unknown] < 1])


def _remap_pixels(label: Label, class_map: ClassMap) -> Label:
    """Sums the probabilities of classes with the same target; ignores pixels whose first class has no target."""
    table = np.full(256, forms.IGNORE, np.uint8)
    table[: len(class_map.table)] = [goal if goal >= 0 else forms.IGNORE for goal in class_map.table]
    ids = table[label["ids"]]
    probs = np.where(ids == forms.IGNORE, 0, label["probs"]).astype(np.int64)
    lost, certain = ids[..., :1] == forms.IGNORE, label["probs"][..., :1] == 255
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
        "probs": np.where(lost, 0, np.minimum(probs, np.where(certain, 255, forms.LARGEST))).astype(np.uint8),
        "unknown": _unknown(label, class_map),
    }


def _remap_class(label: Label, class_map: ClassMap) -> Label | None:
    """Probabilities conditional on the class being a target class; None if the most probable class has no target."""
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
        "probs": forms.half(np.minimum(kept[listed] / total, 1 if probs.max() >= 1 else forms.SUREST)),
        "rest": np.float16(rest / total),
        "unknown": _unknown(label, class_map),
    }


def _unknown(label: Label, class_map: ClassMap) -> np.ndarray:
    """Ids of the target classes that are unknown in the label or that no source class maps to."""
    table = np.array(class_map.table, np.int64)
    own = {int(i) for i in table[np.asarray(label.get("unknown", ()), np.int64)] if i >= 0}
    return np.array(sorted(own | set(class_map.unlisted)), np.uint16)


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; nearest is {close[0]!r}" if close else ""
