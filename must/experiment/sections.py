"""Sections of a configuration as frozen dataclasses: parsing, completing, changing.

A section is a mapping of plain values. `parse` turns it into a dataclass and refuses whatever does not fit, with the
full path of the key. `complete` does the reverse for a configuration file: it writes out every key with its default, so
that the command line can set it. A key whose value is None is not set: its default, or the value that it changes,
applies.
"""

import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from must.core.arguments import check_types, converted, one_of, scalar
from must.core.types import UserError

T = TypeVar("T")
# Supplied by the program.
_NOT_SETTINGS = {"self", "parent", "name", "axis_name", "dtype", "remat", "reads", "tasks", "random"}


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several kinds of a thing, with arguments of its constructor; hashable.

    Attributes:
      kind: name in the table of kinds.
      arguments: (name, value) pairs; an argument that is missing has the constructor's default.
    """

    kind: str
    arguments: tuple[tuple[str, Any], ...] = ()


def part(kinds: Mapping[str, Callable | None], default: str) -> Any:
    """A dataclass field that holds a `Part`.

    Args:
      kinds: {kind: constructor}; None is the kind that makes nothing.
      default: kind.
    """
    return dataclasses.field(default=Part(default), metadata={"kinds": kinds})


def changes(to: str) -> Any:
    """A dataclass field that holds changes to another section of the configuration, named by its key at the top."""
    return dataclasses.field(default_factory=dict, metadata={"changes": to})


def by_task(kind: type) -> Any:
    """A dataclass field {task: value or section}; a task that is missing has no value, or a section's defaults."""
    return dataclasses.field(default_factory=dict, metadata={"by_task": kind})


def make(kinds: Mapping[str, Callable | None], chosen: Part, path: str, **more: Any) -> Any:
    """The object that a `Part` describes.

    Args:
      kinds: {kind: constructor}.
      chosen: kind and arguments.
      path: of the section, for messages.
      **more: arguments that the program supplies.

    Raises:
      UserError: a value that the constructor refuses.
    """
    constructor = kinds[chosen.kind]
    if constructor is None:
        return None
    try:
        return constructor(**more, **dict(chosen.arguments))
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from None


def parse(cls: type[T], section: Mapping[str, Any], path: str = "config") -> T:
    """The dataclass that a section describes.

    Args:
      cls: a frozen dataclass whose fields are annotated.
      section: keys and values; None is the default.
      path: of the section, for messages.

    Raises:
      UserError: an unknown key, a missing key, a value of another type, or one that the dataclass refuses; the message
        begins with the full path of the key.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"{path}: expected a section, got {section!r}")
    hints, fields = _hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    for key in section:
        if key not in fields:
            raise unknown_key(f"{path}.{key}", key, fields)
    values = {
        name: _converted(section[name], hints[name], field, f"{path}.{name}")
        for name, field in fields.items()
        if section.get(name) is not None
    }
    for name, field in fields.items():
        if name not in values and _default(field) is dataclasses.MISSING:
            raise UserError(f"{path}.{name}: required")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{path}.{error}") from None


def changed(settings: T, section: Mapping[str, Any], path: str) -> T:
    """A copy of a parsed section with changes, nested ones included; an empty mapping replaces one, see `merged`.

    Raises:
      UserError: as `parse`.
    """
    if not section:
        return settings
    cls = type(settings)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    section = converted(section, Mapping[str, Any], path)
    for key, value in section.items():
        if key not in fields:
            raise unknown_key(f"{path}.{key}", key, fields)
        if value is None:
            continue
        current, at = getattr(settings, key), f"{path}.{key}"
        if dataclasses.is_dataclass(current) and not isinstance(current, Part) and isinstance(value, Mapping):
            values[key] = changed(current, value, at)
        elif isinstance(current, Part) and isinstance(value, Mapping):
            kinds = fields[key].metadata["kinds"]
            kind = value.get("kind") or current.kind
            constructor = kinds.get(kind) if isinstance(kind, str) else None
            shared = parameters(constructor) if constructor else {}  # another kind keeps the arguments that it has too
            before = {"kind": current.kind} | {name: v for name, v in current.arguments if name in shared}
            values[key] = _converted(merged(before, value), Part, fields[key], at)
        elif isinstance(current, Mapping) and isinstance(value, Mapping) and value:
            values[key] = _converted(merged(plain(current), value), _hints(cls)[key], fields[key], at)
        else:
            values[key] = _converted(value, _hints(cls)[key], fields[key], at)
    try:
        return dataclasses.replace(settings, **values)
    except ValueError as error:
        raise UserError(f"{path}.{error}") from None


def merged(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with changes, nested ones included; None changes nothing, an empty mapping replaces what it changes."""
    result = dict(section)
    for key, value in changes.items():
        if isinstance(value, Mapping) and value and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        elif value is not None:
            result[key] = without_none(value)
    return result


def without_none(value: Any) -> Any:
    """The value without keys that are None, in every mapping inside it; mappings that had nothing else are left out."""
    if isinstance(value, Mapping):
        kept = {key: without_none(item) for key, item in value.items() if item is not None}
        return {key: item for key, item in kept.items() if not (item == {} and value[key] != {})}
    if isinstance(value, list | tuple):
        return tuple(without_none(item) for item in value)
    return value


def plain(value: Any) -> Any:
    """Settings as mappings, lists and scalars, every key included; what `parse` reads again."""
    if isinstance(value, Part):
        return {"kind": value.kind, **{name: plain(argument) for name, argument in value.arguments}}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def complete(
    cls: type, section: Mapping[str, Any], argument_names: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> ConfigDict:
    """A configuration with every key that `parse` knows, so that the command line can set each of them.

    Args:
      cls: dataclass of the whole configuration.
      section: what a configuration file sets.
      argument_names: (section with a "kind") -> {name: default} of the constructor that the kind selects, for data
        sets and tasks.

    Returns:
      A ConfigDict; a key that nobody has set and that has no default of its own is an empty placeholder.
    """
    section = section.to_dict() if isinstance(section, ConfigDict) else dict(section)
    result = _completed(cls, section, argument_names)
    _complete_changes(cls, result, result)
    return ConfigDict(result, type_safe=True)


def unknown_key(path: str, key: str, known: Iterable[str]) -> UserError:
    """The error for a key that does not exist, with the keys that look like it."""
    known = sorted(known)
    close = difflib.get_close_matches(str(key), known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known keys: {', '.join(known)}"
    return UserError(f"{path}: unknown key; {hint}")


def parameters(constructor: Callable) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor that a configuration may set."""
    known = inspect.signature(constructor).parameters
    return {
        name: parameter
        for name, parameter in known.items()
        if name not in _NOT_SETTINGS and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _converted(value: Any, hint: Any, field: dataclasses.Field | None, path: str) -> Any:
    """The value in the type of its field."""
    if field is not None and "kinds" in field.metadata:
        return _part(value, field, path)
    if dataclasses.is_dataclass(hint):
        return parse(hint, value, path)
    inner = typing.get_args(hint)
    if len(inner) == 2 and dataclasses.is_dataclass(inner[1]):
        sections = converted(value, Mapping[str, Any], path)
        return {key: parse(inner[1], item, f"{path}.{key}") for key, item in sections.items()}
    found = without_none(converted(value, hint, path))
    return _tuples(found) if hint is Any else found


def _part(value: Any, field: dataclasses.Field, path: str) -> Part:
    kinds = field.metadata["kinds"]
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: expected a section with a kind, got {value!r}")
    arguments = without_none(value)
    kind = arguments.pop("kind", field.default.kind)
    if not isinstance(kind, str) or kind not in kinds:
        raise one_of(f"{path}.kind", kind, kinds)
    known = parameters(kinds[kind]) if kinds[kind] is not None else {}
    for name, argument in arguments.items():
        if name not in known:
            others = {n for make in kinds.values() if make is not None for n in parameters(make)}
            if name in others:
                raise UserError(
                    f"{path}.{name}: kind {kind!r} has no such argument; it has {', '.join(known) or 'none'}"
                )
            raise unknown_key(f"{path}.{name}", name, {"kind", *known})
        default = known[name].default
        if isinstance(default, bool | int | float | str) and not isinstance(argument, Mapping | tuple):
            arguments[name] = scalar(argument, type(default), f"{path}.{name}")
    if kinds[kind] is not None:
        check_types(kinds[kind], arguments, f"{path}.")
    return Part(kind, tuple(sorted((name, _tuples(argument)) for name, argument in arguments.items())))


def _tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_tuples, value))
    return value


def _completed(cls: type, section: Mapping[str, Any], argument_names) -> dict[str, Any]:
    result = dict(section)
    for field in dataclasses.fields(cls):
        hint, given = _hints(cls)[field.name], section.get(field.name)
        inner = typing.get_args(hint)
        if "kinds" in field.metadata:
            result[field.name] = _completed_part(field.metadata["kinds"], given or {}, field.default.kind)
        elif dataclasses.is_dataclass(hint):
            result[field.name] = _completed(hint, given or {}, argument_names)
        elif len(inner) == 2 and dataclasses.is_dataclass(inner[1]):
            result[field.name] = {
                key: _completed(inner[1], item or {}, argument_names) for key, item in (given or {}).items()
            }
        elif given is not None:
            result[field.name] = _with_arguments(given, argument_names)
        elif _default(field) is None:  # of a type all the same, so that the command line can set it
            result[field.name] = config_dict.placeholder(next(one for one in inner if one is not type(None)))
        elif _default(field) is not dataclasses.MISSING:
            result[field.name] = _default(field)
    return result


def _completed_part(kinds: Mapping[str, Callable | None], given: Mapping[str, Any], default: str) -> dict[str, Any]:
    result: dict[str, Any] = {"kind": given.get("kind", default)}
    for constructor in kinds.values():
        for name, parameter in parameters(constructor).items() if constructor is not None else ():
            result.setdefault(name, _placeholder(parameter.default))
    return {**result, **given}


def _with_arguments(value: Any, argument_names) -> Any:
    """Sections of data sets and tasks with all arguments of their constructors."""
    if isinstance(value, Mapping):
        filled = {key: _with_arguments(item, argument_names) for key, item in value.items()}
        if isinstance(value.get("kind"), str):
            missing = {
                name: _placeholder(default) for name, default in argument_names(value).items() if name not in filled
            }
            return {**filled, **missing}
        return filled
    return value


def _placeholder(default: Any) -> Any:
    """An unset value that takes the type of the default."""
    if isinstance(default, config_dict.FieldReference):
        return config_dict.placeholder(default.get_type())
    if isinstance(default, bool | int | float | str | tuple):
        return config_dict.placeholder(type(default))
    return config_dict.placeholder(str)


def _unset_value(kind: type) -> Any:
    return _completed(kind, {}, None) if dataclasses.is_dataclass(kind) else config_dict.placeholder(kind)


def _complete_changes(cls: type, section: dict[str, Any], whole: Mapping[str, Any]) -> None:
    for field in dataclasses.fields(cls):  # first, since `changes` may be to one of these
        if kind := field.metadata.get("by_task"):
            unset = {task: _unset_value(kind) for task in whole.get("tasks") or {}}
            section[field.name] = {**unset, **(section.get(field.name) or {})}
    for field in dataclasses.fields(cls):
        hint = _hints(cls)[field.name]
        inner = typing.get_args(hint)
        if "changes" in field.metadata:
            section[field.name] = _unset(whole.get(field.metadata["changes"]) or {}, section.get(field.name) or {})
        elif dataclasses.is_dataclass(hint):
            _complete_changes(hint, section[field.name], whole)
        elif len(inner) == 2 and dataclasses.is_dataclass(inner[1]):
            for item in section[field.name].values():
                _complete_changes(inner[1], item, whole)
    for field in dataclasses.fields(cls):  # changes of changes: arms change a section that is complete by now
        if "each_changes" in field.metadata:
            base = section.get(field.metadata["each_changes"]) or {}
            named = {key: {} for key in whole.get(field.metadata["names"]) or {}} | (section.get(field.name) or {})
            section[field.name] = {name: _unset(base, item) for name, item in named.items()}


def each_changes(to: str, names: str = "") -> Any:
    """A dataclass field {name: changes to another section of the configuration}.

    Args:
      to: key of the section that is changed.
      names: key of a mapping with all the names, each of which the command line can change; "" where the configuration
        chooses the names.
    """
    return dataclasses.field(default_factory=dict, metadata={"each_changes": to, "names": names})


def _unset(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a section in which nothing is set but what is given; an empty section stays empty."""
    result: dict[str, Any] = {}
    for key, value in base.items():
        here = given.get(key)
        if not isinstance(value, Mapping):
            result[key] = _placeholder(value) if here is None else here
        elif here is None:
            result[key] = _unset(value, {})
        else:
            result[key] = _unset(value, here) if isinstance(here, Mapping) and here else here
    return {**given, **result}
