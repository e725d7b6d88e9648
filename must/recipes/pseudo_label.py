"""Labeling alone: given teachers label images -> which labels are believed -> quality, gallery, files for other tools.

Nothing is trained. Thresholds, pages and files may be asked for anew in the same workdir: no teacher runs again.
"""

from collections.abc import Mapping
from typing import Any

from must.core.types import Source, Teacher, UserError
from must.data.combine import Concat
from must.readers.records import Records, read_additions, read_provenance
from must.recipes import labeling, showing
from must.recipes.believing import check_policy, choose_policies
from must.recipes.built import HELD_OUT, MEASURED, POOL
from must.recipes.given import build_teacher
from must.recipes.jobs import Job
from must.recipes.labeling import label, label_job, policy_job
from must.recipes.measuring import together
from must.recipes.setup import build_encoder, build_source, build_tasks, fill
from must.tasks.base import Task

STAGES = ("label", *showing.STAGES)
CHANGEABLE = ("policies", "title", *showing.STAGES)  # what decides nothing that is in the records
Config = Mapping[str, Any]
_SPLITS = {HELD_OUT: "validation", MEASURED: "test"}


class Built:
    """The objects of a configuration, see `configs/label.py`.

    Raises:
      UserError: (when made or asked) a section that no object can be made from.
    """

    def __init__(self, config: Config, seed: int):
        self.config = fill(config, seed=seed, root=config["root"])
        self.seed, self.size = seed, tuple(self.config["image"]["size"])
        self.names = tuple(self.config["tasks"])
        for name in self.config["truth"]:
            if name not in self.names:
                raise UserError(f"truth.{name}: no such task")
        known = {name: self.truth(split)[name] for split in (MEASURED, HELD_OUT) for name in self.known_truth(split)}
        self.tasks: dict[str, Task] = build_tasks(self.config["tasks"], known)
        self.plain = build_encoder(self.config["image"], self.tasks)

    def everything(self) -> Source:
        """The images that are labeled."""
        if self.config["onto"]:
            return Records(self.config["onto"], tasks=(), verify=False)
        return Concat([build_source(section) for section in self.config["images"].values()])

    def known_truth(self, which: str) -> tuple[str, ...]:
        """Tasks with held-out truth, which thresholds are chosen on, or with measured truth, which tells their quality."""
        return tuple(name for name, splits in self.config["truth"].items() if splits.get(_SPLITS[which]))

    def truth(self, which: str) -> dict[str, Source]:
        """{task: that truth}."""
        return {name: build_source(self.config["truth"][name][_SPLITS[which]]) for name in self.known_truth(which)}

    def to_label(self, by: str = "") -> dict[str, Source]:
        """{name of the records: images}."""
        wanted = {POOL: self.everything()} if not self.config["onto"] else {}
        splits = (HELD_OUT, MEASURED) if self.config["quality"] else (HELD_OUT,)
        return wanted | {name: together(self.truth(name)) for name in splits if self.known_truth(name)}

    def trained(self) -> tuple[str, ...]:
        """No teacher is trained here."""
        return ()

    def given(self) -> dict[str, Teacher]:
        """The teachers by name, each with its tasks."""
        found, taken = {}, {}
        for name, section in self.config["teachers"].items():
            section = dict(section)
            mine = section.pop("tasks", (name,))
            for task in mine:
                if task not in self.tasks:
                    raise UserError(f"teachers.{name}: no task {task!r}")
                if task in taken:
                    raise UserError(f"teachers.{name}: {task} is labeled by {taken[task]} already")
                taken[task] = name
            found[name] = build_teacher(name, section, {task: self.tasks[task] for task in mine}, self.size)
        if missing := [name for name in self.names if name not in taken]:
            raise UserError(f"tasks.{missing[0]}: no teacher labels it")
        return found

    def policies(self, run: str | None = None) -> dict[str, Mapping[str, Any]]:
        """Which labels are believed, {task: section}; MuST's 0.5 where nothing is said."""
        return {name: {"threshold": 0.5} for name in self.names} | dict(self.config["policies"])

    def students(self) -> tuple[str, ...]:
        """None: nobody learns here."""
        return ()

    def hidden(self) -> dict[str, Source]:
        """The truth of the labeled images themselves, for the gallery."""
        return {name: build_source(section) for name, section in self.config.get("hidden", {}).items()}

    def records(self, directory: str) -> str:
        """Where what was said of all images lies."""
        return self.config["onto"] or labeling.records_directory(directory)


def plan(config: Config, workers: int) -> list[Job]:
    """All jobs of a configuration.

    Args:
      config: plain dict, see `configs/label.py`.
      workers: processes that label side by side.
    """
    seed = config["seeds"][0]
    parts = tuple(f"{label_job()}/{k}" for k in range(workers))
    jobs = [Job(part, "label", label, (config, seed, k, workers)) for k, part in enumerate(parts)]
    jobs.append(Job(policy_job(), "label", choose_policies, (config, seed), parts, settings=config["policies"]))
    return jobs + showing.jobs_of(config, seed, "", (*parts, policy_job()), [config["policies"], config["title"]])


def check(config: Config) -> None:
    """Everything about a configuration that can be wrong and shows without labeling."""
    built = Built(config, config["seeds"][0])
    if len(config["seeds"]) > 1:
        raise UserError("seeds: labeling draws nothing: give one")
    showing.check(config)
    for name, section in built.policies().items():
        if name not in built.names:
            raise UserError(f"policies.{name}: no such task")
        check_policy(name, section)
        if section.get("from_validation") and name not in built.known_truth(HELD_OUT):
            raise UserError(f"policies.{name}: truth.{name}.validation is needed to choose thresholds from")
    if config["images"] and config["onto"]:
        raise UserError("images: a pass over finished records labels their images; leave it empty or 'onto'")
    if not config["images"] and not config["onto"]:
        raise UserError("images: no images to label")
    if onto := built.config["onto"]:
        there, added = read_provenance(onto), read_additions(onto).values()
        if twice := set(built.names) & (set(there["tasks"]) - {task for facts in added for task in facts["tasks"]}):
            raise UserError(f"{onto}: labels {min(twice)!r} already")
    built.given()


def dry_run(config: Config) -> None:
    """Prints what labeling means and costs: teachers, images, and the pass as measured on one batch; writes nothing.

    Raises:
      UserError: as `check`.
    """
    from must.recipes.dry_run import label_plan

    check(config)
    built = Built(config, config["seeds"][0])
    print(f"{config['title']}: labels in a frame of {built.size}")
    print("\nteachers")
    for name, teacher in built.given().items():
        print(
            f"  {name:16} {', '.join(teacher.tasks)}; input {teacher.size[0]} x {teacher.size[1]}, {teacher.fingerprint[:12]}"
        )
    print("\nimages")
    for name, source in built.to_label().items():
        print(f"  {name:16} {len(source):,}")
    print("\n" + label_plan(built, list(built.given().values())))
