"""Annotated sets are read once, at the speed of decoding, before anything is learned from them."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from must.core import buckets, devices, files
from must.core.notices import notice
from must.core.types import Source
from must.data import rejects
from must.data.rejects import Reject
from must.experiment import build
from must.experiment.progress import Display

FILE = "check.json"  # in the workdir: {fingerprint of a source: {"name", "count", "rejects": [[id, reason]]}}


def without_broken(settings: Any, workdir: str) -> Any:
    """The settings with sets that lack their unreadable examples.

    What was read in an earlier run of the workdir is not read again unless its files have changed.

    Args:
      settings: of a recipe; the sets of their `sets`, `truth` and `oracle_truth`.
      workdir: holds the list.

    Raises:
      UserError: a set has more of them than `settings.max_rejects` allows.
    """
    if settings.max_rejects < 0:
        return settings
    changed: dict[str, Any] = {
        group: {
            name: {split: _readable(section, settings, workdir) for split, section in splits.items()}
            for name, splits in getattr(settings, group).items()
        }
        for group in ("sets", "truth")
        if getattr(settings, group, None)
    }
    if oracle := getattr(settings, "oracle_truth", None):
        changed["oracle_truth"] = {name: _readable(section, settings, workdir) for name, section in oracle.items()}
    return dataclasses.replace(settings, **changed) if changed else settings


def _readable(section: Mapping[str, Any], settings: Any, workdir: str) -> Mapping[str, Any]:
    """The section, or one of the same set without its unreadable examples."""
    source = build.source(section)
    if not rejects.reads_files(source):
        return section
    found, path = _found(source, workdir), os.path.join(workdir, FILE)
    allowed = rejects.bound(len(source), settings.max_rejects)
    rejects.refuse_beyond(f"{source.name} ({path})", found, len(source), allowed, option="config.max_rejects")
    if not found:
        return section
    notice(f"{source.name}: {len(found)} of {len(source)} examples cannot be read and are left out, see {path}")
    return {"kind": "without", "source": section, "ids": [reject.id for reject in found]}


def _found(source: Source, workdir: str) -> list[Reject]:
    """What cannot be read, from the list or by reading."""
    path = os.path.join(workdir, FILE)
    if devices.is_writer() and source.fingerprint not in _known(path):
        with Display(0, quiet=not sys.stderr.isatty()) as display:
            found = rejects.check_source(
                source, progress=lambda done, total: display.update(f"check {source.name}", done, total)
            )
        entry = {"name": source.name, "count": len(source), "rejects": found}
        files.write_json(path, {**_known(path), source.fingerprint: entry})
    buckets.wait_for_all("check")
    return [Reject(*one) for one in _known(path)[source.fingerprint]["rejects"]]


def _known(path: str) -> dict[str, Any]:
    """The content of the list without what somebody has damaged, which is read again."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {key: entry for key, entry in entries if isinstance(entry, dict) and _is_list(entry.get("rejects"))}


def _is_list(rejects: Any) -> bool:
    return isinstance(rejects, list) and all(isinstance(one, list) and len(one) == 2 for one in rejects)
