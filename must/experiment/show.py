"""Jobs that show pseudo labels: their quality where the truth is known, a gallery, files for other tools."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from must.core import files
from must.core.types import Policy, Source
from must.data.pipeline import Encoder
from must.evaluate.quality import quality as measure_quality
from must.experiment import labeling
from must.experiment.jobs import Job
from must.export.labels import export_labels
from must.export.tfrecord import write_tfrecord
from must.pseudo_label.policy import read_facts
from must.readers.records import COMMITTED, Records
from must.report.gallery import write_gallery
from must.report.pictures import contact_sheet
from must.report.quality import write_quality
from must.tasks.base import Task

STAGES = ("quality", "gallery", "files")


class Labels(NamedTuple):
    """Pseudo labels of a seed, to be shown.

    Attributes:
      title: of the pages.
      tasks: {task: Task}.
      encoder: of the frame in which labels are drawn and compared.
      truth: {task: the truth of the evaluation images}.
      oracle_truth: {task: the truth of the labeled images}.
      label_evaluation: (directory of the seed, report) -> None, has the evaluation images labeled.
      records: directory of the records; by default the seed's own.
      images: {name of records that hold no pictures: the labeled images}.
    """

    title: str
    tasks: Mapping[str, Task]
    encoder: Encoder
    truth: Mapping[str, Source]
    oracle_truth: Mapping[str, Source]
    label_evaluation: Callable[[str, Any], None]
    records: str = ""
    images: Mapping[str, Source] = {}


def show_jobs(
    settings: Any, seed: int, prefix: str, needs: tuple[str, ...], labels, changeable: Any = None
) -> list[Job]:
    """The jobs of these stages that the settings enable.

    Args:
      settings: with the sections quality, gallery and files.
      seed: whose labels are shown.
      prefix: of the names of the seed's jobs.
      needs: names of the jobs that write labels and policies.
      labels: (settings) -> Labels.
      changeable: what else the pages depend on and may change in a workdir.
    """
    runs = {"quality": quality, "gallery": gallery, "files": export_files}
    made = []
    for stage, run in runs.items():
        section = getattr(settings, stage)
        if section.enabled:
            own = [vars(section), settings.title, changeable]
            # Process 0 of several makes the pages; otherwise they are made beside other jobs.
            alone = jax.distributed.is_initialized()
            made.append(Job(f"{prefix}{stage}", stage, run, (settings, labels), needs, alone=alone, settings=own))
    return made


def quality(settings: Any, labels, *, directory: str, report) -> dict:
    """The job: how good the labels are on the evaluation images; quality.json and the page quality.html."""
    shown, top, section = labels(settings), labeling.seed_directory(directory, "quality"), settings.quality
    path = os.path.join(top, labeling.policy_job(), labeling.POLICIES)
    policies = labeling.read(path, shown.tasks)
    if not os.path.exists(os.path.join(labeling.records_directory(top, labeling.EVALUATION), COMMITTED)):
        shown.label_evaluation(top, report)
    found, pictures = {}, {}
    for number, (name, truth) in enumerate(shown.truth.items()):
        at = labeling.records_directory(top, labeling.EVALUATION)
        images, task = shown.images.get(labeling.EVALUATION), shown.tasks[name]
        records = Records(at, tasks=[name], images=images, verify=False)
        triples = labeling.recorded(records, truth, name, shown.encoder, task)
        found[name] = measure_quality(task, triples, policies[name], worst=section.worst)
        pictures[name] = _pictures(shown, records, truth, name, policies[name], found[name])
        report(number + 1, len(shown.truth), name)
    files.write_json(os.path.join(directory, "quality.json"), found)
    page = os.path.join(directory, "quality.html")
    averaged = records.provenance.get("settings", {}).get("mirror")
    title = f"{shown.title}: quality of the labels" + ", averaged with those of the mirrored images" * bool(averaged)
    write_quality(page, found, pictures, facts=read_facts(path), title=title)
    return {"page": page}


def gallery(settings: Any, labels, *, directory: str, report) -> dict:
    """The job: all labels to look at, pages/index.html."""
    shown, top, section = labels(settings), labeling.seed_directory(directory, "gallery"), settings.gallery
    policies = labeling.read(os.path.join(top, labeling.policy_job(), labeling.POLICIES), shown.tasks)
    records = _records(shown, top)
    path = write_gallery(
        os.path.join(directory, "pages"),
        records,
        {name: shown.tasks[name] for name in records.specs},
        {name: policies[name] for name in records.specs},
        title=shown.title,
        truth=shown.oracle_truth if section.truth else None,
        per_page=section.per_page,
        progress=report,
    )
    return {"page": path}


def export_files(settings: Any, labels, *, directory: str, report) -> dict:
    """The job: all labels for other tools, COCO json, PNG and csv; and a TFRecord twin of the records."""
    shown, top, section = labels(settings), labeling.seed_directory(directory, "files"), settings.files
    records = _records(shown, top)
    options = {"images": section.images, "min_score": section.min_score}
    options |= {"millimeters": section.millimeters, "palette": section.palette}
    options |= {"boxes": section.boxes, "masks": section.masks}
    tasks = {name: shown.tasks[name] for name in records.specs}
    at = os.path.join(directory, "labels")
    counts = export_labels(at, records, tasks, **options)
    if section.tfrecord:
        source, name = shown.records or labeling.records_directory(top), labeling.POOL
        counts["tfrecord"] = write_tfrecord(source, os.path.join(directory, "tfrecord", name, "1.0.0"))
    return {"counts": counts}


def _records(shown: Labels, top: str) -> Records:
    """The records of all images, with the tasks that the settings have."""
    directory = shown.records or labeling.records_directory(top)
    specs = Records(directory, verify=False).specs
    tasks = [name for name in shown.tasks if name in specs]
    return Records(directory, tasks=tasks, images=shown.images.get(labeling.POOL), verify=False)


def _pictures(
    shown: Labels, records: Source, truth: Source, name: str, policy: Policy, found: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The examples that the page names: photo, label under the policy, and truth, side by side."""
    task, rows = shown.tasks[name], shown.encoder._replace(tasks={name: shown.tasks[name]})
    places = [{id: i for i, id in enumerate(source.ids)} for source in (records, truth)]
    pictures = {}
    for id in dict.fromkeys(id for key in ("worst_examples", "uncertain_examples") for id, _ in found[key]):
        pair = zip((records, truth), places, strict=True)
        predicted, true = (rows(source[at[id]], 0, np.random.default_rng(0)) for source, at in pair)
        image = predicted.inputs["image"]
        drawn = [task.draw(image, predicted.labels[name], policy), task.draw(image, true.labels[name])]
        pictures[id] = contact_sheet([[image, *drawn]], ("photo", "label", "truth"))
    return pictures
