"""From what the command line asks to what is run: a recipe's stages, a dry run, or a request to a finished workdir."""

import os
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from ml_collections import ConfigDict

from must.core import buckets
from must.core.types import UserError
from must.experiment.finished import Request, answer
from must.experiment.run import FINISHED, check_stage, read_config, run
from must.recipes.table import dry_run as plan
from must.recipes.table import recipe_of

__all__ = ["Request", "start"]

NOTHING = Request()


def start(
    config: Any,
    file: str | None,
    workdir: str,
    *,
    stage: str = "all",
    workdirs: Sequence[str] = (),
    request: Request = NOTHING,
    dry_run: bool = False,
    part: str = "",
    beam: str | None = None,
) -> None:
    """Runs a command.

    Args:
      config: what a configuration file's get_config() returned; None, without one, for a finished workdir.
      file: the configuration file, for messages.
      workdir: where everything is written, a folder or that of a bucket.
      stage: "all" or one stage.
      workdirs: finished workdirs to compare.
      request: of a finished workdir.
      dry_run: tell what running means, write nothing.
      part: "K/N": part K, from 0, of N of the stage "label".
      beam: options of the Apache Beam pipeline by which the stage "label" labels; None without.

    Raises:
      UserError: anything about the command that cannot be right.
    """
    finished = stage in FINISHED
    if file is None and not finished:
        raise UserError("--config=configs/X.py is required")
    if not workdir and (finished or not dry_run):
        raise UserError("--workdir=DIR is required")
    if file is not None and not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() returns {config!r}; it must return a ConfigDict")
    given = None if config is None else config.to_dict()
    shared = f"--part={part}" if part else "" if beam is None else f"--beam={beam}"
    if shared and buckets.is_url(workdir):
        raise UserError(f"{shared}: several machines at once need a folder that they share, not {workdir}")
    if shared and (stage != "label" or dry_run or (part and beam is not None)):
        raise UserError(f"{shared}: only for --stage=label, which one of --part and --beam shares out")
    options: dict[str, Any] = {"stage": stage, "request": request, "dry_run": dry_run, "part": part, "beam": beam}
    options["workdirs"] = [buckets.fetched(one) for one in workdirs]
    with buckets.workdir(workdir) if buckets.is_url(workdir) and not dry_run else nullcontext(workdir) as local:
        _start(given, local, **options)


def _start(
    given: dict[str, Any] | None,
    workdir: str,
    *,
    stage: str,
    workdirs: Sequence[str],
    request: Request,
    dry_run: bool,
    part: str,
    beam: str | None,
) -> None:
    finished = stage in FINISHED
    recipe = recipe_of(read_config(workdir) if given is None else given)
    check_stage(recipe, stage)
    if finished:
        if dry_run:
            raise UserError(f"--dry_run: not with --stage={stage}, which only reads the workdir")
        answer(recipe, os.path.abspath(workdir), stage, request, given)
    elif any(request):
        raise UserError(f"--images, --output, --options: not for --stage={stage}, only for {', '.join(FINISHED)}")
    elif dry_run:
        assert given is not None
        plan(recipe, given)
    else:
        assert given is not None
        several = [os.path.abspath(one) for one in workdirs]
        options = {"part": _part(part), "beam": None if beam is None else shlex.split(beam)}
        run(recipe, given, os.path.abspath(workdir), stage=stage, workdirs=several, **options)


def _part(text: str) -> tuple[int, int] | None:
    """(index, count) of "K/N"."""
    if not text:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--part={text}: expected K/N, K from 0 and below N, such as 0/16")
    return int(index), int(count)
