"""What a label pass amounts to: which labels count, on which sets, and what looks wrong about them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import Example, Policy, Source
from must.data.combine import encoded_of, labels_of
from must.data.geometry import whole_image
from must.data.pipeline import Encoder, labels_and_weights
from must.evaluate.evaluate import Everything
from must.experiment.jobs import facts, is_done
from must.pseudo_label.policy import EVERY
from must.readers.fields import understood
from must.readers.pictures import picture_size
from must.tasks.base import Task
from must.tasks.label_states import Claims

_SAMPLE = 512  # images of a set that are looked at
_SURER = 0.02  # of confidence, that a teacher has to be surer on strange images by before it is worth a line
_PIXELS = 256  # claims from which they are pixels
OWN = "own validation"


def measure(
    tasks: Mapping[str, Task],
    policies: Mapping[str, Policy],
    encoder: Encoder,
    pool: Source,
    truth: Mapping[str, Source],
    held_out: Source | None,
) -> dict[str, Any]:
    """Shares of accepted labels by task, set and class, from at most 512 images of a set.

    Args:
      tasks: {task: Task}.
      policies: {task: Policy}.
      encoder: of whole pictures.
      pool: records of the images to learn from.
      truth: {task: validation split}; may lack tasks.
      held_out: records of the validation splits; None when there are none.

    Returns:
      {"sets": {task: {set: {"images", "accepted", "confidence"}}}, "classes": {task: {class: [positive, ignored,
      negative]}}, "warnings": [lines]}. "accepted" counts images with an accepted label, "confidence" is the mean over
      images of the largest score, of maps of the mean score. Tasks without scores are left out.
    """
    by_set: dict[str, list[int]] = {}
    for index, id in enumerate(pool.ids):
        by_set.setdefault(id.partition("/")[0], []).append(index)
    sets: dict[str, dict[str, dict[str, float]]] = {name: {} for name in tasks}
    tally = {name: np.zeros((max(1, len(getattr(task, "classes", ()))), 3), int) for name, task in tasks.items()}
    for set_name, indices in by_set.items():
        for name, line in _look(tasks, policies, encoder, pool, indices, tally).items():
            sets[name][set_name] = line
    warnings = []
    for name in tasks:
        if held_out is not None and name in truth:
            known = set(truth[name].ids)
            own = [index for index, id in enumerate(held_out.ids) if id in known]
            if line := _look({name: tasks[name]}, policies, encoder, held_out, own).get(name):
                sets[name][OWN] = line
        if sets[name]:
            classes = tuple(getattr(tasks[name], "classes", ())) or (EVERY,)
            warnings += _warnings(name, classes, sets[name], tally[name])
            if tasks[name].can_be_empty and OWN in sets[name] and not _any_empty(truth[name], name, tasks, encoder):
                warnings.append(
                    f"{name}: no validation image is empty, so nothing tells how often it sees what is not there"
                )
    counts = {
        name: {c: row.tolist() for c, row in zip(getattr(tasks[name], "classes", ()) or (EVERY,), rows, strict=True)}
        for name, rows in tally.items()
        if sets[name]
    }
    return {"sets": {name: lines for name, lines in sets.items() if lines}, "classes": counts, "warnings": warnings}


def text(workdir: str, jobs: Sequence[str]) -> str:
    """The table and the warnings of finished policy jobs, and the paths of the pages about their labels."""
    lines: list[str] = []
    for job in jobs:
        found = facts(workdir, job) if is_done(workdir, job) else {}
        with understood(os.path.join(workdir, job, "done.json")):
            lines += _lines(workdir, job, found)
    return "\n".join(["labels", *lines]) if lines else ""


def _lines(workdir: str, job: str, found: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, sets in found.get("sets", {}).items():
        width = max(map(len, sets))
        for set_name, line in sets.items():
            share = 100 * line["accepted"] / line["images"]
            accepted = f"{share:5.1f}% of {line['images']:,} images have an accepted label"
            lines.append(f"  {name:16} {set_name:{width}}  {accepted}, confidence {line['confidence']:.2f}")
    lines += [f"  note: {line}" for line in found.get("warnings", [])]
    for page in (job.replace("policy", stage) for stage in ("quality", "gallery")):
        if is_done(workdir, page):
            lines.append(f"  page: {facts(workdir, page)['page']}")
    return lines


def _look(
    tasks: Mapping[str, Task],
    policies: Mapping[str, Policy],
    encoder: Encoder,
    records: Source,
    indices: Sequence[int],
    tally: Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict[str, float]]:
    """{task: its line of a set}, of a sample of some records; adds to `tally` {task: int [classes, 3]}."""
    every = np.linspace(0, len(indices) - 1, min(_SAMPLE, len(indices))).astype(int)
    seen = {name: [] for name in tasks}
    for place in every:
        labels, weights = _labels(tasks, encoder, records, indices[place])
        for name, task in tasks.items():
            claims = task.claims(labels[name], policies[name]) if weights[name] else None
            if claims is not None:
                score = claims.scores.max(initial=0.0) if claims.scores.size <= _PIXELS else claims.scores.mean()
                seen[name].append((bool(claims.positive.any()), float(score)))
                if tally is not None:
                    _count(tally[name], claims)
    return {
        name: {
            "images": len(pairs),
            "accepted": sum(accepted for accepted, _ in pairs),
            "confidence": float(np.mean([score for _, score in pairs])),
        }
        for name, pairs in seen.items()
        if pairs
    }


def _count(tally: np.ndarray, claims: Claims) -> None:
    state = np.where(claims.positive, 0, np.where(claims.negative, 2, 1))
    places = 3 * claims.ids.astype(np.int64) + state
    tally += np.bincount(places.reshape(-1), minlength=tally.size).reshape(tally.shape)


def _warnings(
    name: str, classes: Sequence[str], sets: Mapping[str, Mapping[str, float]], tally: np.ndarray
) -> list[str]:
    lines = []
    if not tally[:, 0].sum():
        lines.append(f"{name}: no label is accepted; no claim reaches the thresholds of its policy")
    elif never := [c for c, row in zip(classes, tally, strict=True) if row.sum() >= 10 and not row[0]]:
        claimed = tally[[classes.index(c) for c in never]].sum()
        lines.append(f"{name}: never accepted: {', '.join(never)} (0 of {claimed:,} claims)")
    if (own := sets.get(OWN)) is None:
        return lines
    for set_name, line in sets.items():
        if set_name != OWN and line["images"] >= 8 and line["confidence"] > own["confidence"] + _SURER:
            lines.append(
                f"{name}: surer on {set_name} ({line['confidence']:.2f}) than on its own validation images "
                f"({own['confidence']:.2f}), which its thresholds come from"
            )
    return lines


def _any_empty(truth: Source, name: str, tasks: Mapping[str, Task], encoder: Encoder) -> bool:
    """Whether the truth of an image holds nothing at all."""
    for index in np.linspace(0, len(truth) - 1, min(_SAMPLE, len(truth))).astype(int):
        labels, weights = _labels({name: tasks[name]}, encoder, truth, int(index))
        if weights[name] and not tasks[name].items(labels[name]).any():
            return True
    return False


def _labels(tasks: Mapping[str, Task], encoder: Encoder, source: Source, index: int) -> tuple[dict, dict]:
    """Labels in network form and weights of one example, whose picture is not decoded if its header tells its size."""
    data = encoded_of(source, index)
    example = source[index] if data is None else Example(source.ids[index], None, labels_of(source, index))
    size = example.image.shape[-3:-1] if data is None else picture_size(data, example.id)
    tasks = {name: Everything(task) for name, task in tasks.items()}
    return labels_and_weights(tasks, example, whole_image(size, encoder.size, keep_aspect=encoder.keep_aspect))
