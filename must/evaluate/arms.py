"""The settings of the arms of a grid: which arms differ in one of them only, what they are called, where they stand.

An arm is a dict of settings by axis; the value of an axis is text or a list of text whose order does not matter. Axes and
values that are not known here are taken as they are, in the order of their first arm. No score comes by here.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

Arm = Mapping[str, Any]

GROUP, COLUMN = (
    "split",
    "images",
)  # the axes that a table has as ruled-off parts and as columns; the others make its rows
_ORDER = ("control", "tasks", "annotation", "where", "labels")  # rows are sorted by these, the first one first
_SHOWN = ("split", "labels", "annotation", "where", "tasks", "images")  # and described by these, then by the others
_WORDS = {
    "split": {
        "half": "half of the labels",
        "quarter": "a quarter of the labels",
        "eighth": "an eighth of the labels",
        "exclusive": "exclusive images",
    },
    "images": {"seen": "seen", "unseen": "unseen", "unseen_cut": "unseen, cut", "all": "all images"},
    "annotation": {"none": "no truth", "own": "own truth", "full": "all truth"},
    "where": {"all": "everywhere", "missing": "where missing"},
    "control": {"": "none"},
}
_PLAIN = {"where": "all", "control": ""}  # not worth a word beside the other settings of an arm
NOTES = {
    ("split", "exclusive"): "exclusive: every image is annotated for one task only",
    ("images", "unseen_cut"): "unseen, cut: as many images that the teachers have not seen as they have seen",
    ("images", "all"): "all images: those that the teachers have seen and others",
    ("annotation", "own"): "own truth: that of the teachers' own images",
    ("where", "missing"): "where missing: the teachers answer only where there is no truth",
    ("annotation", "full"): "all truth: that of every image, which no recipe would have",
}


def setting(value: Any) -> Hashable:
    """What two arms must share to be the same on an axis."""
    return value if isinstance(value, str) else frozenset(value)


def ordered(arms: Mapping[str, Arm]) -> dict[str, dict[str, Any]]:
    """The same arms, what they list in the order in which it came first, so that equal settings read the same."""
    came = [member for arm in arms.values() for value in arm.values() if not isinstance(value, str) for member in value]
    place = {member: i for i, member in enumerate(dict.fromkeys(came))}
    return {
        name: {axis: v if isinstance(v, str) else sorted(v, key=place.get) for axis, v in arm.items()}
        for name, arm in arms.items()
    }


def word(axis: str, value: Any) -> str:
    """A setting in words."""
    if isinstance(value, str):
        return _WORDS.get(axis, {}).get(value, value)
    return " + ".join(value) or "nothing"


def words_of(axis: str, allowed: Any) -> list[str]:
    """The values that a filter lets pass, in words."""
    lists = axis in ("tasks", "labels") and all(isinstance(v, str) for v in allowed)
    values = [allowed] if lists or isinstance(allowed, str) else allowed
    return [f"no {axis}" if value == "" else word(axis, value) for value in values]


def check(arms: Mapping[str, Arm]) -> None:
    """Every arm is one of its kind.

    Raises:
      ValueError: an arm with other axes than the first, or without those of `GROUP` and `COLUMN`; two equal arms.
    """
    axes, found = {GROUP, COLUMN, *next(iter(arms.values()), ())}, {}
    for name, arm in arms.items():
        if set(arm) != axes:
            raise ValueError(f"arm {name!r} has the settings {sorted(arm)}, not {sorted(axes)}")
        twin = found.setdefault(frozenset((axis, setting(value)) for axis, value in arm.items()), name)
        if twin != name:
            raise ValueError(f"arms {twin!r} and {name!r} have the same settings")


def pairs(arms: Mapping[str, Arm], axis: str, subject: Any, reference: Any, within: Arm) -> Iterator[tuple[str, str]]:
    """Names of all (subject, reference) that differ in one axis only.

    Args:
      arms: {name: settings}.
      axis: in which they differ.
      subject: value there of the first of every pair.
      reference: value there of the second.
      within: {other axis: the value, or a list of the values, that both have}.

    Raises:
      ValueError: an axis that the arms do not have.
    """
    for name in (axis, *within):
        if arms and name not in next(iter(arms.values())):
            raise ValueError(f"no arm has a setting {name!r}")
    for a, first in arms.items():
        if setting(first[axis]) == setting(subject) and all(_matches(first[k], v) for k, v in within.items()):
            rest = {k: setting(v) for k, v in first.items() if k != axis}
            for b, second in arms.items():
                others = {k: setting(v) for k, v in second.items() if k != axis}
                if setting(second[axis]) == setting(reference) and others == rest:
                    yield a, b


def _matches(value: Any, allowed: Any) -> bool:
    """A list of text is a value of an axis of lists, and several values of an axis of text."""
    several = not isinstance(allowed, str) and (isinstance(value, str) or any(not isinstance(v, str) for v in allowed))
    return setting(value) in [setting(v) for v in (allowed if several else [allowed])]


def common(first: Arm, second: Arm) -> dict[str, Any]:
    """The settings that two arms share."""
    return {axis: value for axis, value in first.items() if axis in second and setting(second[axis]) == setting(value)}


def varying(settings: Sequence[Arm]) -> list[str]:
    """Axes of the first in which not all of them are the same."""
    axes = settings[0] if settings else ()
    return [axis for axis in axes if len({setting(s[axis]) for s in settings}) > 1]


def described(arms: Mapping[str, Arm]) -> dict[str, dict[str, str]]:
    """{name: {axis: words}} of what is not the same in all of the arms; what needs no word beside the others has none."""
    different = varying(list(arms.values()))
    sets = {setting(arm["tasks"]) for arm in arms.values() if "tasks" in arm}
    clear = len({len(tasks) for tasks in sets if len(tasks) > 1}) == sum(len(tasks) > 1 for tasks in sets)
    order = [axis for axis in dict.fromkeys((*_SHOWN, *different)) if axis in different]
    return {name: {axis: phrase(axis, arm[axis], clear) for axis in order} for name, arm in arms.items()}


def phrase(axis: str, value: Any, counted: bool = False) -> str:
    """A setting in words beside others; several tasks by their number alone if `counted`."""
    if _PLAIN.get(axis) == value:
        return ""
    if axis == "tasks" and (counted or len(value) == 1):
        return f"{len(value)} tasks" if len(value) > 1 else "alone"
    return f"control: {value}" if axis == "control" else word(axis, value)


def layout(arms: Mapping[str, Arm], teachers: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Where every arm stands in a table of the grid.

    Args:
      arms: {name: settings} as `check` accepts them.
      teachers: {arm: {task: column of its teacher}}.

    Returns:
      {"columns": {value: words}, "constant": words for what is the same in all arms, "notes": explanations of words,
      "groups": [{"words", "teachers": {task: [columns]}, "rows": [{"words": [one per part], "control": its name or "",
      "arms": {column value: arm}}]}]}; all rows have as many parts, some of them empty.
    """
    order = {axis: _sorter(axis, [arm[axis] for arm in arms.values()]) for axis in next(iter(arms.values()), ())}
    inner = [axis for axis in order if axis not in (GROUP, COLUMN)]
    words = described(arms)
    shown = [axis for axis in next(iter(words.values()), ()) if axis in inner]
    by_group: dict[Hashable, list[str]] = {}
    for name in sorted(arms, key=lambda name: order[GROUP](arms[name][GROUP])):
        by_group.setdefault(setting(arms[name][GROUP]), []).append(name)
    first = [axis for axis in _ORDER if axis in inner]
    first += [axis for axis in inner if axis not in first]
    groups = []
    for names in by_group.values():
        rows: dict[Hashable, dict[str, Any]] = {}
        for name in sorted(names, key=lambda name: tuple(order[axis](arms[name][axis]) for axis in first)):
            arm = arms[name]
            row = rows.setdefault(
                tuple(setting(arm[axis]) for axis in inner),
                {"words": [words[name][axis] for axis in shown], "control": arm.get("control", ""), "arms": {}},
            )
            row["arms"][arm[COLUMN]] = name
        own = [(task, column) for name in names for task, column in teachers.get(name, {}).items()]
        groups.append(
            {
                "words": f"teachers of {word(GROUP, arms[names[0]][GROUP])}",
                "teachers": {task: list(dict.fromkeys(c for t, c in own if t == task)) for task, _ in own},
                "rows": list(rows.values()),
            }
        )
    columns = sorted(dict.fromkeys(arm[COLUMN] for arm in arms.values()), key=order.get(COLUMN))
    example = next(iter(arms.values()), {})
    constant = [phrase(axis, example[axis]) for axis in inner if axis not in shown]
    has = {(axis, value) for arm in arms.values() for axis, value in arm.items() if isinstance(value, str)}
    return {
        "columns": {value: word(COLUMN, value) for value in columns},
        "constant": " · ".join(filter(None, constant)),
        "notes": [note for key, note in NOTES.items() if key in has],
        "groups": groups,
    }


def _sorter(axis: str, values: Sequence[Any]):
    """Known values in the order in which they are known, then few before many, then as they came."""
    known, came = list(_WORDS.get(axis, {})), [setting(value) for value in values]
    many = lambda value: len(value) if axis == "tasks" else 0  # noqa: E731
    return lambda value: (known.index(value) if value in known else len(known), many(value), came.index(setting(value)))
