"""Whether our scores of trained networks are those of pycocotools and of plain NumPy on the exported files.

    python -m tests.experiments.official_metrics --workdir=runs/official             # about ten minutes on two cores
    python -m tests.experiments.official_metrics --workdir=runs/official --sets=bccd

Trains a small network for each real set of ../shared/data that is there, through the command line, labels the test
split with it, exports truth and labels, and compares what the run says with what others count: AP on the two COCO
jsons, IoU on the masks, relative errors on the depth maps. All must agree to 1e-6.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import must
from must.experiment import networks
from must.readers.label_files import LabelFiles

DATA = Path(__file__).parents[3] / "shared" / "data"
FRAME = (96, 128)
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "coco_mini": (
        "detection",
        {"kind": "coco", "images": "images/{split}", "annotations": "annotations/detection_{split}.json"},
    ),
    "bccd": ("detection", {"kind": "voc"}),
    "camvid": (
        "segmentation",
        {"kind": "mask_png", "images": "images/{split}", "masks": "masks/{split}", "classes": "classes.json"},
    ),
    "rgbd_kitchen": (
        "depth",
        {"kind": "depth_png", "images": "rgb", "depths": "depth", "ids": "splits/{split}.txt", "unit": "mm"},
    ),
}


def get_config(variant: str):
    """The configuration of a set: one task, one small network."""
    from tests.support.tiny_config import get_config as tiny

    kind, section = SETS[variant]
    config = tiny(kind)
    section = {**section, "root": str(DATA / variant)}
    config.sets[kind] = {
        ours: {**section, "split": theirs}
        for ours, theirs in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    config.image, config.workers, config.title = {"size": FRAME}, 1, variant
    config.model.backbone.update(width=16, stages=3)
    config.model.neck.update(channels=24, strides=(4, 8, 16))
    if kind == "detection":
        config.tasks.detection.update(strides=(8, 16), max_boxes=64)
    config.teacher.update(steps=150, batch_size=16, checkpoint_every=150, log_every=10)
    config.teacher.optimizer = {"name": "adamw", "learning_rate": 2e-3, "warmup": 10}
    return config


def main() -> None:
    """Trains what is missing and prints the comparison; exit status 1 where a pair differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    options, wrong = parser.parse_args(), 0
    for name in options.sets.split(","):
        if not (DATA / name).is_dir():
            print(f"{name}: not here")
            continue
        workdir, (kind, _) = os.path.join(options.workdir, name), SETS[name]
        command = [sys.executable, "-m", "must.main", f"--config={__file__}:{name}", f"--workdir={workdir}"]
        subprocess.run([*command, "--stage=teachers"], check=True)
        at = os.path.join(workdir, "teachers", kind)
        ours = json.loads(Path(at, "done.json").read_text())["test"][kind]
        for metric, theirs, within in _counted(workdir, at, name, kind):
            differs = not abs(ours[metric] - theirs) <= within
            wrong += differs
            print(f"{name:14}{metric:16}{ours[metric]:12.7f}{theirs:12.7f}  {'DIFFERS' if differs else ''}", flush=True)
    sys.exit(wrong > 0)


def _counted(workdir: str, at: str, name: str, kind: str):
    """(metric, its value as others count it, how far ours may be from it)."""
    section = {**SETS[name][1], "root": str(DATA / name), "split": "test"}
    data, teacher = must.source(**section), networks.as_teacher(at, kind)
    task, records = teacher.tasks[kind], os.path.join(workdir, "test", "1.0.0")
    must.label_images(records, "test", data, [teacher], shards=1, batch_size=16)
    for folder, labels in (("true", data), ("found", must.Records(records))):
        must.export_labels(os.path.join(workdir, folder), labels, {kind: task})
    found = LabelFiles(os.path.join(workdir, "found"))
    if kind == "detection":
        yield from _average_precision(*(Path(workdir, part, kind, "coco.json") for part in ("true", "found")))
    elif kind == "segmentation":
        yield from _iou(data, found, len(task.classes))
    else:
        yield from _depth(data, found)


def _average_precision(true: Path, found: Path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(true))
        judge = COCOeval(truth, truth.loadRes(json.loads(found.read_text())["annotations"]), "bbox")
        judge.evaluate(), judge.accumulate(), judge.summarize()
    for metric, place in (("AP", 0), ("AP50", 1), ("AP75", 2), ("AR100", 8)):
        yield metric, judge.stats[place], 1e-6


def _iou(data, found, count: int):
    """From the masks of the set as they lie on the disk, and the exported ones."""
    hits = np.zeros((count, count))
    for index in range(len(data)):
        true = np.asarray(Image.open(data._maps[index]))
        ids = found.labels(index)["segmentation"]["ids"][..., 0]
        known = true < count  # 255 is ignored
        np.add.at(hits, (true[known], ids[known]), 1)
    there, union = hits.sum(1) > 0, hits.sum(0) + hits.sum(1) - np.diag(hits)
    yield "mIoU", (np.diag(hits)[there] / union[there]).mean(), 1e-6
    yield "pixel_accuracy", np.trace(hits) / hits.sum(), 1e-6


def _depth(data, found):
    """Of the exported maps on all pixels of the set's PNGs that hold a depth of 0.1 to 10 m."""
    errors = []
    for index in range(len(data)):
        meters, label = data.labels(index)["depth"]["depth"] / 1000.0, found.labels(index)["depth"]
        depth = label["depth"].astype(np.float64) * label["scale"] + label["offset"]
        valid = (meters >= 0.1) & (meters <= 10)
        errors.append(np.mean(np.abs(depth - meters)[valid] / meters[valid]))
    yield "abs_rel", np.mean(errors), 1e-6


if __name__ == "__main__":
    main()
