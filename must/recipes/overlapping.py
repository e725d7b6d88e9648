"""Clips that train or select something and show what measures something (trap J9): found by content, then refused or left out.

Video data sets share source videos: a test clip of one set may be an unlabeled clip of the joint stage.
"""

import os
from collections.abc import Mapping
from typing import Any

from must.core.types import UserError
from must.data.disjoint import Overlap, overlaps
from must.recipes import jobs
from must.recipes.joint_built import JointBuilt
from must.recipes.labeling import seed_directory

Config = Mapping[str, Any]
JOB = "overlaps"
WAYS = ("refuse", "drop", "ignore")


def find(config: Config, seed: int, *, directory: str, report) -> dict:
    """The job: every overlap, and the ids that may not train.

    Raises:
      UserError: there are some, and they are to be refused.
    """
    del directory, report
    found = leaks(JointBuilt(config, seed))
    if found and config["overlaps"] == "refuse":
        first, more = found[0], f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError(
            f"{first.other_id} ({first.other_use}) shows what {first.id} ({first.use}) shows, {_frames(first)}{more}: "
            "'drop' or 'ignore' such clips by --config.overlaps"
        )
    for overlap in found:
        print(
            f"overlap: {overlap.other_id} ({overlap.other_use}) shows {overlap.id} ({overlap.use}), {_frames(overlap)}: left out"
        )
    return {
        "dropped": sorted({overlap.other_id for overlap in found}),
        "overlaps": [list(overlap) for overlap in found],
    }


def leaks(built: JointBuilt) -> list[Overlap]:
    """Overlaps of what measures, what selects and what trains, over all sets and the pool; the one to leave out comes second."""
    measures = {
        f"{name} {split}": built.split(name, split) for name in built.names for split in built.config["measured_on"]
    }
    selects = {f"{name} validation": built.split(name, "validation") for name in built.names}
    trains = {f"{name} train": built.split(name, "train") for name in built.names}
    trains |= {f"pool {source.name}": source for source in built.pool()}
    rank = {**dict.fromkeys(measures, 0), **dict.fromkeys(selects, 1), **dict.fromkeys(trains, 2)}
    # Two sets that train may share clips, and so may two that measure.
    return [found for found in overlaps({**measures, **selects, **trains}) if rank[found.use] < rank[found.other_use]]


def built_for(config: Config, seed: int, directory: str, job: str) -> JointBuilt:
    """The seed's objects for a job, without the clips that the seed's search for overlaps found.

    Args:
      config, seed: of the run.
      directory: of the job.
      job: its name below the seed's directory.
    """
    if config["overlaps"] == "ignore":
        return JointBuilt(config, seed)
    return JointBuilt(
        config, seed, jobs.facts(seed_directory(directory, os.path.join(*job.split("/"))), JOB)["dropped"]
    )


def _frames(overlap: Overlap) -> str:
    return f"{overlap.shared} frame{'s' if overlap.shared > 1 else ''}"
