"""Whether a value is what an annotation says: the one place in which wrong types of settings and arguments are told."""

import difflib
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

from must.core.types import UserError

_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "True or False"}


def converted(value: Any, hint: Any, path: str) -> Any:
    """The value in the type of its annotation; annotations of other classes take any value.

    Args:
      value: as a configuration holds it.
      hint: an annotation.
      path: of the value, for messages.

    Raises:
      UserError: a value of another type.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _any_of(value, inner, path)
    if origin is Literal:
        if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in inner):
            raise one_of(path, value, inner)
        return value
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{path}: expected a section, got {value!r}")
        if inner[0] is str and (wrong := [key for key in value if not isinstance(key, str)]):
            raise UserError(f"{path}: the key {wrong[0]!r} is no text")
        made = {key: converted(item, inner[1], f"{path}.{key}") for key, item in value.items() if item is not None}
        # A mapping of placeholders, all of them None, says no more than if it were not there.
        return {key: item for key, item in made.items() if not (item == {} and value[key] != {})}
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return _items(value, inner, path, fixed=origin is tuple and inner[-1] is not Ellipsis)
    return scalar(value, hint, path) if hint in _NAMES else value


def check(function: Callable, arguments: Mapping[str, Any], what: str) -> None:
    """Refuses arguments that a function does not have, lacks, or annotates with other types.

    Raises:
      UserError: beginning with `what`.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        names = [name for name, one in signature.parameters.items() if one.kind is not one.VAR_KEYWORD]
        any_name = len(names) < len(signature.parameters)
        if unknown := [name for name in arguments if name not in names and not any_name]:
            close = difflib.get_close_matches(unknown[0], names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"{what}: no argument {unknown[0]!r}; {hint}it has {', '.join(names) or 'none'}") from None
        raise UserError(f"{what}: {error}") from None
    check_types(function, arguments, f"{what}: ")


def check_types(function: Callable, arguments: Mapping[str, Any], prefix: str) -> None:
    """Refuses arguments of other types than a function annotates; the message begins with prefix and name."""
    hints = _hints(function)
    for name, value in arguments.items():
        if value is not None and name in hints:
            converted(value, hints[name], f"{prefix}{name}")


def scalar(value: Any, hint: type, path: str) -> Any:
    """A number, text or truth value in its type; UserError for another one, or for a number that is not finite."""
    accepted = {int: Integral, float: Real, bool: bool | np.bool_}.get(hint, hint)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{path}={value!r}: expected {_NAMES[hint]}")
    try:
        if hint is float and not math.isfinite(value):  # type: ignore[arg-type]
            raise OverflowError
        return hint(value)
    except OverflowError:
        raise UserError(f"{path}={value!r}: expected {_NAMES[hint]}") from None


def path_of(value: Any, what: str) -> str:
    """A path as text; UserError for what is none, and for an empty one."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UserError(f"{what}={value!r}: expected the path of a folder")
    return os.fspath(value)


def one_of(path: str, value: Any, choices: Iterable[Any]) -> UserError:
    """The error for a value that is none of the choices."""
    choices = list(choices)
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"{path}={value!r}: {hint}choices: {', '.join(map(repr, choices))}")


def check_names(path: str, names: Iterable[Any], known: Iterable[Any]) -> None:
    """Refuses the first name that is not known.

    Raises:
      UserError: see `one_of`.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise one_of(path, name, known)


def _items(value: Any, inner: tuple, path: str, fixed: bool) -> Any:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise UserError(f"{path}={value!r}: expected a list of values, such as (1,) or ('a', 'b')")
    if not isinstance(value, list | tuple):  # arrays, sources
        return value
    if fixed and len(value) != len(inner):
        raise UserError(f"{path}={value!r}: expected {len(inner)} values")
    each = inner if fixed else inner[:1] * len(value)
    return tuple(converted(item, of, f"{path}[{i}]") for i, (item, of) in enumerate(zip(value, each, strict=True)))


def _any_of(value: Any, hints: tuple, path: str) -> Any:
    errors = []
    for hint in hints:
        if hint is type(None):
            continue
        try:
            return converted(value, hint, path)
        except UserError as error:
            errors.append(error)
    raise errors[0]


@functools.cache
def _hints(function: Callable) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    except (NameError, TypeError):  # names that exist for the type checker alone
        return {}
