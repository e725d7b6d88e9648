"""Writes docs/configuration.md from the settings dataclasses: `python docs/configuration.py`."""

import dataclasses
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

Every key of every recipe with its default, generated from the docstrings of the settings classes by
`python docs/configuration.py`. All keys can be set on the command line: `--config.student.weights.kind=ratio_of_means`.
An unknown key or an impossible value is refused in one line with the full path of the key and the nearest names.

A part (backbone, view, balance, ...) has a `kind` and the arguments of that kind. Keys that hold *changes* repeat keys
of another section and override them for one student, arm or network. [Your data](your_data.md) describes data sets.
"""


def page() -> str:
    """The reference as Markdown."""
    from must.experiment.finished import OPTIONS
    from must.recipes.table import RECIPES

    recipes, sections = {}, {}
    for name, recipe in RECIPES.items():
        recipes.setdefault(recipe.settings, []).append(name)
    for settings in recipes:
        _collect(settings, sections)
    lines = [HEAD]
    for settings, names in recipes.items():
        title = "Recipe" + ("s " if len(names) > 1 else " ") + " and ".join(f"`{name}`" for name in names)
        lines += [f"## {title}", *_section(settings, sections)]
    lines += ["## Sections", ""]
    for section in sorted(sections, key=lambda cls: cls.__name__):
        if section not in recipes:
            lines += [f"### {section.__name__}", *_section(section, sections)]
    parts = {id(kinds): (key, kinds) for cls in (*recipes, *sections) for key, kinds in _parts(cls)}
    lines += ["## Options of requests to a finished workdir", ""]
    for stage, options in OPTIONS.items():
        lines += [f"### `--stage={stage}`", *_section(options, sections)]
    lines += ["## Kinds of parts", ""]
    for key, kinds in parts.values():
        lines += [f"### {key}", "", "| kind | arguments |", "|---|---|"]
        lines += [f"| `{kind}` | {_arguments(make)} |" for kind, make in kinds.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _collect(cls: type, sections: dict[type, None]) -> None:
    """All dataclasses below a settings class."""
    if cls in sections:
        return
    sections[cls] = None
    for hint in typing.get_type_hints(cls).values():
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner) and inner.__name__ != "Part":
                _collect(inner, sections)


def _section(cls: type, sections: dict[type, None]) -> list[str]:
    texts, hints, lines = {}, typing.get_type_hints(cls), [""]
    for base in reversed(cls.__mro__):
        texts |= _attributes(base)
    lines += [_summary(cls), "", "| key | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(cls):
        inner = [one for one in (hints[field.name], *typing.get_args(hints[field.name])) if one in sections]
        if inner:
            default = f"see [{inner[0].__name__}](#{inner[0].__name__.lower()})"
        elif "kinds" in field.metadata:
            default = f"kind `{field.default.kind}`, see [below](#{field.name})"
        elif "changes" in field.metadata:
            default = f"changes to `{field.metadata['changes']}`"
        else:
            default = _default(field)
        lines.append(f"| `{field.name}` | {default} | {texts.get(field.name, '').replace('|', chr(92) + '|')} |")
    return [*lines, ""]


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    return "required" if field.default_factory is dataclasses.MISSING else f"`{field.default_factory()!r}`"


def _summary(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _attributes(cls: type) -> dict[str, str]:
    """{attribute: text} from the docstring of the class itself."""
    _, _, text = (inspect.cleandoc(vars(cls).get("__doc__") or "")).partition("Attributes:\n")
    found = {}
    for match in re.finditer(r"^  (\w+): (.*(?:\n {4,}.*)*)", text, re.MULTILINE):
        found[match[1]] = " ".join(match[2].split())
    return found


def _parts(cls: type) -> list[tuple[str, Any]]:
    return [(f.name, f.metadata["kinds"]) for f in dataclasses.fields(cls) if "kinds" in f.metadata]


def _arguments(make: Any) -> str:
    from must.experiment.sections import _NOT_SETTINGS

    if make is None:
        return "–"
    parameters = [p for p in inspect.signature(make).parameters.values() if p.name not in _NOT_SETTINGS]
    texts = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    return ", ".join(f"`{text}`" for text in texts if "<" not in text) or "–"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
