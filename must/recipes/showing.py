"""The jobs that show labels to people and other tools: their quality where the truth is known, a gallery, files."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from must.core.types import Source, UserError
from must.evaluate.quality import quality as measured_quality
from must.export.labels import export_labels
from must.export.tfrecord import write_tfrecord
from must.pseudo_label.policy_file import read_facts
from must.readers.records import Records
from must.recipes.believing import BELIEVED, read, recorded
from must.recipes.built import MEASURED, POOL
from must.recipes.comparison import recipe_of
from must.recipes.jobs import Job
from must.recipes.labeling import policy_job, records_directory, seed_directory
from must.report.gallery import write_gallery
from must.report.pictures import contact_sheet
from must.report.quality import write_quality

Config = Mapping[str, Any]
STAGES = ("quality", "gallery", "files")
# What the sections of these names may say; an empty section leaves the job out.
_OPTIONS = {
    "quality": {"worst": 12},  # pictures of the worst images on the page
    "gallery": {"per_page": 48, "truth": False},  # truth: show it where the hidden truth of the images is known
    "files": {"images": False, "least": 0.0, "millimeters": False, "palette": False, "tfrecord": False},
}


def jobs_of(config: Config, seed: int, at: str, needs: tuple[str, ...], settings: Any = None) -> list[Job]:
    """The jobs of these stages that a configuration asks for.

    Args:
      config: with the sections `quality`, `gallery` and `files`.
      seed: whose labels are shown.
      at: what the names of the seed's jobs begin with.
      needs: names of the jobs that write labels and policies.
      settings: of the jobs, see `Job`; their own section is added.
    """
    runs = {"quality": quality, "gallery": gallery, "files": files}
    asked = [stage for stage in STAGES if config.get(stage)]
    added = (lambda stage: None) if settings is None else (lambda stage: [settings, config[stage]])
    return [Job(f"{at}{stage}", stage, runs[stage], (config, seed), needs, settings=added(stage)) for stage in asked]


def check(config: Config) -> None:
    """Refuses keys of the sections that say nothing."""
    for stage, known in _OPTIONS.items():
        for key in config.get(stage) or {}:
            if key not in known:
                raise UserError(f"{stage}.{key}: not one of {', '.join(known)}")


def quality(config: Config, seed: int, *, directory: str, report) -> dict:
    """How good the labels are on the measured split: quality.json and the page quality.html."""
    built, top, options = _begin(config, seed, "quality", directory)
    believed = read(os.path.join(top, policy_job(), BELIEVED), built)
    found, pictures = {}, {}
    for number, name in enumerate(built.known_truth(MEASURED)):
        records, task = Records(records_directory(top, MEASURED), tasks=[name], verify=False), built.tasks[name]
        truth = built.truth(MEASURED)[name]
        triples = recorded(records, truth, name, built.plain, task)
        found[name] = measured_quality(task, triples, believed[name], worst=options["worst"])
        pictures[name] = _pictures(built, records, truth, name, believed[name], found[name])
        report(number + 1, len(built.names), name)
    with open(os.path.join(directory, "quality.json"), "w") as file:
        json.dump(found, file, indent=1)
    page = os.path.join(directory, "quality.html")
    chosen = read_facts(os.path.join(top, policy_job(), BELIEVED))
    write_quality(page, found, pictures, facts=chosen, title=f"{config['title']}: quality of the labels")
    return {"page": page}


def gallery(config: Config, seed: int, *, directory: str, report) -> dict:
    """All labels to look at: gallery/index.html."""
    built, top, options = _begin(config, seed, "gallery", directory)
    believed = read(os.path.join(top, policy_job(), BELIEVED), built)
    records = labels_to_show(built, top)
    path = write_gallery(
        os.path.join(directory, "pages"),
        records,
        {name: built.tasks[name] for name in records.specs},
        {name: believed[name] for name in records.specs},
        title=config["title"],
        truth=built.hidden() if options["truth"] else None,
        per_page=options["per_page"],
        progress=report,
    )
    return {"page": path}


def files(config: Config, seed: int, *, directory: str, report) -> dict:
    """All labels for other tools: COCO json, PNG, csv; and a TFRecord twin of the records."""
    built, top, options = _begin(config, seed, "files", directory)
    twin, records = options.pop("tfrecord"), labels_to_show(built, top)
    at = os.path.join(directory, "labels")
    if os.path.isdir(at) and os.listdir(at):
        raise UserError(f"{at}: holds files, which may have been edited; move them away to write them anew")
    counts = export_labels(at, records, {name: built.tasks[name] for name in records.specs}, **options)
    if twin:
        counts["tfrecord"] = write_tfrecord(built.records(top), os.path.join(directory, "tfrecord", POOL, "1.0.0"))
    return {"counts": counts}


def labels_to_show(built, top: str) -> Records:
    """What the teachers said of all images, in tasks that the configuration has."""
    records = Records(built.records(top), verify=False)
    return Records(built.records(top), tasks=[name for name in built.names if name in records.specs], verify=False)


def _begin(config: Config, seed: int, stage: str, directory: str) -> tuple[Any, str, dict[str, Any]]:
    return recipe_of(config).Built(config, seed), seed_directory(directory, stage), {**_OPTIONS[stage], **config[stage]}


def _pictures(
    built, records: Source, truth: Source, name: str, policy, found: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The examples that the page names: the photo, the label as it is believed, and the truth, side by side."""
    task, rows = built.tasks[name], built.plain._replace(tasks={name: built.tasks[name]})
    places = [{id: i for i, id in enumerate(source.ids)} for source in (records, truth)]
    pictures = {}
    for id in dict.fromkeys(id for key in ("worst_examples", "uncertain_examples") for id, _ in found[key]):
        said, true = (rows(source[at[id]], 0, np.random.default_rng(0)) for source, at in zip((records, truth), places))
        image = said.inputs["image"]
        drawn = [task.draw(image, said.labels[name], policy), task.draw(image, true.labels[name])]
        pictures[id] = contact_sheet([[image, *drawn]], ("photo", "label", "truth"))
    return pictures
