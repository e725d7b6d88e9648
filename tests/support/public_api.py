"""The public API as text, and the type stub that names it; `python -m tests.support.public_api` rewrites both files."""

import inspect
import re
from pathlib import Path
from typing import Any

import must

ROOT = Path(__file__).parents[2]
SNAPSHOT = ROOT / "tests" / "public_api.txt"
STUB = ROOT / "must" / "__init__.pyi"


def snapshot() -> str:
    """One line per public name: signatures of functions, methods of classes, names in modules."""
    lines = []
    for name in must.__all__:
        lines += _lines(name, getattr(must, name))
    return "\n".join(lines) + "\n"


def stub() -> str:
    """`must/__init__.pyi`: what type checkers read in place of the names that are loaded on first use."""
    lines = [
        '"""Public names for type checkers; made by `python -m tests.support.public_api` from `must/__init__.py`."""',
        "",
        *(
            f"from {module} import {name} as {name}"
            for module, names in sorted(must._HOMES.items())
            for name in sorted(names.split())
        ),
        *(
            f"from {module.rpartition('.')[0]} import {module.rpartition('.')[2]} as {name}"
            for name, module in sorted(must._MODULES.items())
        ),
        "",
        "__version__: str",
        "__all__: list[str]",
    ]
    return "\n".join(lines) + "\n"


def unannotated() -> list[str]:
    """Public functions and methods with a parameter or result without annotation."""
    found = []
    for name, function in _functions():
        signature = inspect.signature(function)
        bare = [
            p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")
        ]
        if signature.return_annotation is signature.empty and not name.endswith("__init__"):
            bare.append("return")
        if bare:
            found.append(f"{name}: {', '.join(bare)}")
    return found


def _functions():
    for name in must.__all__:
        value = getattr(must, name)
        if inspect.ismodule(value):
            yield from ((f"{name}.{key}", member) for key, member in _members(value) if inspect.isfunction(member))
        elif inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for key, member in vars(value).items():
                member = getattr(member, "__func__", member)
                written = inspect.isfunction(member) and member.__module__.startswith("must.")
                # Methods that dataclasses and NamedTuples generate have no source file.
                if written and _public(key) and member.__code__.co_filename.endswith(".py"):
                    yield f"{name}.{key}", member


def _public(key: str) -> bool:
    return key == "__init__" or not key.startswith("_")


def _members(module) -> list[tuple[str, Any]]:
    return [
        (key, value)
        for key, value in sorted(vars(module).items())
        if not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _lines(name: str, value: Any) -> list[str]:
    if inspect.ismodule(value):
        return [f"module {name}", *(f"  {line}" for key, member in _members(value) for line in _lines(key, member))]
    if inspect.isclass(value):
        methods = [
            f"  {key}{_signature(getattr(member, '__func__', member))}"
            for key, member in sorted(vars(value).items())
            if not key.startswith("_") and inspect.isfunction(getattr(member, "__func__", member))
        ]
        return [f"class {name}{_signature(value)}", *methods]
    if callable(value):
        return [f"{name}{_signature(value)}"]
    return [f"{name}: {type(value).__name__}"]


def _signature(value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return "(...)"
    return re.sub(r" at 0x[0-9a-f]+", "", text)


if __name__ == "__main__":
    # A tool that edits the checkout; the package itself writes through must.core.files.
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
    STUB.write_text(stub(), encoding="utf-8")
    print(f"wrote {SNAPSHOT.relative_to(ROOT)} and {STUB.relative_to(ROOT)}")
