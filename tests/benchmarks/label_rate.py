"""Speed of a label pass relative to its teachers alone, its memory over time, and the size of records.

    python tests/benchmarks/label_rate.py [--quick] [--json FILE]             # ResNet-18 on 256 px, JPEGs of 512 px
    python tests/benchmarks/label_rate.py --parts=one --size=64 --photo=64 --depth=10 --width=16 --channels=32 \
        --images=1024 --batch=64                                              # small pictures
    python tests/benchmarks/label_rate.py --parts=host,memory,bytes

Parts:
  one     a teacher of five tasks: its forward pass alone and all of `label_images` (decode, resize, fetch, check,
          restore, encode, hash, commit), alternating; medians over rounds
  five    five teachers of one task each on one decode, over the sum of their forward passes
  host    processor time of everything but the teachers, independent of other load: teachers that take a processor
          time of T per image leave a ratio of T / (T + host) on a CPU, and more on an accelerator
  memory  resident memory of a pass after 1,000 images and after 10,000
  bytes   of a record at 512 px by field: class, 100 boxes, 150 classes of pixels, depth and normals, at stride 4 and 1

The forward pass alone reads pictures of the right size from memory and fetches nothing. Weights are random; for `bytes`
the labels are those of scenes, blurred and with noise of two scales, similar to a network's.
"""

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import simplejpeg
from scipy.ndimage import gaussian_filter, zoom

sys.path.insert(0, str(Path(__file__).parents[2]))

import measure

from must.core.types import Example, Teacher
from must.data.geometry import transform_image, whole_image
from must.models import fpn, multi_head, resnet
from must.pseudo_label import teacher as teachers
from must.pseudo_label.plan import describe, estimate, make_plan
from must.pseudo_label.write import label_images
from must.readers.pictures import decode_picture
from must.scenes.still import Scenes
from must.tasks import base

DENSE = ("segmentation", "depth", "normals")


class Jpegs:
    """Encoded scenes in memory, over and over."""

    classes, fingerprint = {}, "0"

    def __init__(self, count: int, size: int, name: str = "jpegs"):
        self.name, self.ids = name, [f"{name}/{i:06d}" for i in range(count)]
        scenes = Scenes(min(count, 8), size=size)
        self.files = [simplejpeg.encode_jpeg(scenes[i].image, quality=90) for i in range(len(scenes))]

    def __len__(self) -> int:
        return len(self.ids)

    def encoded(self, index: int) -> bytes:
        return self.files[index % len(self.files)]

    def __getitem__(self, index: int) -> Example:
        return Example(self.ids[index], decode_picture(self.encoded(index), self.ids[index]), {})


def build_tasks(channels: int, stride: int = 4) -> dict[str, base.Task]:
    """Five tasks; heads of `channels` channels, stored maps at `stride`."""
    head = {"width": channels, "depth": 2}
    dense = {**head, "stride": stride}
    return {
        "classification": base.build("classification", classes=tuple(f"c{i}" for i in range(1000))),
        "detection": base.build("detection", classes=tuple(f"c{i}" for i in range(80)), strides=(4, 8, 16), **head),
        "segmentation": base.build("segmentation", classes=tuple(f"c{i}" for i in range(150)), **dense),
        "depth": base.build("depth", **dense),
        "normals": base.build("normals", **dense),
    }


def build_teacher(name: str, tasks: dict[str, base.Task], options: argparse.Namespace) -> Teacher:
    """One network with random weights."""
    stem = "small" if options.size < 128 else "imagenet"
    backbone = resnet.ResNet(depth=options.depth, width=options.width, stem=stem)
    heads = {key: task.head() for key, task in tasks.items()}
    model = multi_head.multi_head(backbone, fpn.FPN(options.channels, (4, 8, 16)), heads)
    size = (options.size, options.size)
    variables = model.init(jax.random.key(0), np.zeros((1, *size, 3), np.uint8))
    return teachers.from_model(name, model, variables, tasks, size=size, fingerprint="0")


def forward(built: list[Teacher], images: np.ndarray, batch: int) -> None:
    """Every teacher on every batch; nothing is fetched."""
    predicted = None
    for start in range(0, len(images), batch):
        before, predicted = predicted, [teacher.predict(images[start : start + batch]) for teacher in built]
        jax.block_until_ready(before)
    jax.block_until_ready(predicted)


def compare(
    results: measure.Results, title: str, source: Jpegs, built: list[Teacher], options: argparse.Namespace
) -> None:
    """Bare forward passes and the label pass in turn."""
    size = (options.size, options.size)
    pictures = (source[i].image for i in range(len(source)))
    images = np.stack([transform_image(picture, whole_image(picture.shape[:2], size)) for picture in pictures])
    spent = {"forward": [], "label pass": []}
    for round in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as directory:
            label = functools.partial(label_images, f"{directory}/1.0.0", "rate", source, built)
            for name, work in (
                ("forward", lambda: forward(built, images, options.batch)),
                ("label pass", functools.partial(label, shards=options.shards, batch_size=options.batch)),
            ):
                wall, processor = time.perf_counter(), time.process_time()
                work()
                if round:  # the first one imports and compiles
                    spent[name].append((time.perf_counter() - wall, time.process_time() - processor))
    for unit, which in (("wall", 0), ("processor", 1)):
        bare, full = ([1000 * pair[which] / len(source) for pair in pairs] for pairs in spent.values())
        ratio = statistics.median(a / b for a, b in zip(bare, full, strict=True))
        values = {"forward_ms": statistics.median(bare), "label_pass_ms": statistics.median(full), "ratio": ratio}
        results.add(f"{title}, {unit} time an image", **values)


def painted(size: int, stride: int, count: int = 8, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Labels in network form as a network gives them: scenes at 1/4 of the size, blurred, with noise, enlarged."""
    rng, small = np.random.default_rng(seed), size // 4
    scenes = Scenes(count, size=size, labels=("depth", "normals", "segmentation"))

    def noise() -> np.ndarray:
        waves = [gaussian_filter(rng.standard_normal((small, small)), sigma) for sigma in (4, 1.5)]
        return waves[0] / waves[0].std() + 0.3 * waves[1] / waves[1].std()

    def enlarged(array: np.ndarray) -> np.ndarray:
        if stride == 4:  # what lies between is not stored
            return array.repeat(4, 0).repeat(4, 1)
        return zoom(array, (4, 4), order=1, mode="nearest", grid_mode=True)

    rows = {"segmentation": [], "depth": [], "normals": []}
    for i in range(count):
        labels = scenes[i].labels
        depth, normals = labels["depth"], labels["normals"]["normals"][2::4, 2::4] / 127.0
        meters = (depth["depth"] * depth["scale"] + depth["offset"])[2::4, 2::4]
        meters = enlarged(gaussian_filter(meters, 1.0) * (1 + 0.01 * noise()))
        channels = [enlarged(gaussian_filter(normals[..., c], 1.0) + 0.03 * noise()) for c in range(3)]
        normals = np.stack(channels, -1)
        ids = labels["segmentation"]["ids"][2::4, 2::4, 0]
        edges = np.hypot(*np.gradient(ids.astype(float))) > 0
        edges = gaussian_filter(edges, 1.5, output=float)
        sure = enlarged(np.clip(0.97 - edges / edges.max() * 0.6 + 0.03 * noise(), 0, 1))
        rows["depth"].append({"depth": meters.astype(np.float32)})
        rows["normals"].append(
            {"normals": (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32)}
        )
        ids = (ids.astype(int) * 17 % 150).repeat(4, 0).repeat(4, 1)
        pixels = {"ids": ids, "probs": np.round(255 * sure)}
        rows["segmentation"].append({name: field[..., None].astype(np.uint8) for name, field in pixels.items()})
    found = {task: {name: np.stack([row[name] for row in its]) for name in its[0]} for task, its in rows.items()}
    corners = np.sort(rng.uniform(0, size, (count, 100, 2, 2)), 2)
    found["detection"] = {
        "boxes": corners.reshape(count, 100, 4).astype(np.float32),
        "classes": rng.integers(0, 80, (count, 100), np.int32),
        "scores": np.sort(rng.uniform(0.05, 1, (count, 100)).astype(np.float32))[:, ::-1],
        "valid": np.ones((count, 100), bool),
        "crowd": np.zeros((count, 100), bool),
        "known": np.ones((count, 80), bool),
    }
    found["classification"] = {"probs": rng.dirichlet(np.full(1000, 0.01), count).astype(np.float32)}
    return found


def measure_bytes(results: measure.Results, stride: int) -> None:
    """The table of `describe` for 512 px."""
    predicted = painted(512, stride)
    teacher = Teacher("painted", build_tasks(32, stride), lambda images: predicted, (512, 512), "0")
    source = Jpegs(50_000, 512)
    source.files = source.files[:8]
    plan = make_plan("pool", "train", source, shards=16, batch_size=8)
    cost = estimate(plan, source, [teacher])
    results.add(f"stride {stride}", bytes_without_the_picture=sum(cost.fields.values()) - cost.fields["image"])
    print(describe(cost, plan), flush=True)


def painting_teacher(size: int, batch: int, names: tuple[str, ...] = ()) -> Teacher:
    """Says the same of every batch, at no cost."""
    tasks = {name: task for name, task in build_tasks(32).items() if name in names or not names}
    repeat = lambda field: np.resize(field, (batch, *field.shape[1:]))  # noqa: E731
    labels = painted(size, 4)
    predicted = {name: {key: repeat(field) for key, field in labels[name].items()} for name in tasks}
    return Teacher("painted", tasks, lambda images: predicted, (size, size), "0")


def measure_host(results: measure.Results, source: Jpegs, options: argparse.Namespace) -> None:
    """A label pass whose teacher costs nothing."""
    teacher, spent = painting_teacher(options.size, options.batch), []
    for _ in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as directory:
            start = time.process_time()
            label_images(
                f"{directory}/1.0.0", "rate", source, [teacher], shards=options.shards, batch_size=options.batch
            )
            spent.append(1000 * (time.process_time() - start) / len(source))
    results.add("host", processor_ms_an_image=statistics.median(spent[1:]))


def measure_memory(results: measure.Results, count: int = 10_000, size: int = 64) -> None:
    """Resident memory while small pictures are labeled by a teacher that costs nothing."""
    teacher, resident, page = painting_teacher(size, 64, DENSE), {}, os.sysconf("SC_PAGESIZE") / 2**20

    def look(done: int, total: int) -> None:
        for mark in (count // 10, count // 2, count - 64):
            if done >= mark and mark not in resident:
                with open("/proc/self/statm") as file:
                    resident[mark] = int(file.read().split()[1]) * page

    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        label_images(f"{directory}/1.0.0", "rate", Jpegs(count, size), [teacher], batch_size=64, progress=look)
    seconds = time.perf_counter() - start
    for at, mib in resident.items():
        results.add(f"memory after {at:,} images", mib=mib)
    results.add(f"{count:,} images of {size} px", images_per_second=count / seconds)


QUICK = {"images": 8, "size": 64, "photo": 64, "depth": 10, "width": 8, "channels": 8, "batch": 4, "rounds": 1}


def main() -> None:
    options = measure.options(
        __doc__, parts="", images=32, size=256, photo=512, depth=18, width=64, channels=128, batch=8, shards=2, rounds=5
    )
    results = measure.Results(options.json)
    if options.quick:
        vars(options).update(QUICK)
    parts = (options.parts or ("one,host" if options.quick else "one,five,host,memory,bytes")).split(",")
    tasks = build_tasks(options.channels)
    source = Jpegs(options.images, options.photo)
    if "one" in parts:
        compare(results, "one teacher of five tasks", source, [build_teacher("all", tasks, options)], options)
    if "five" in parts:
        five = [build_teacher(name, {name: task}, options) for name, task in tasks.items()]
        compare(results, "five teachers", source, five, options)
    if "host" in parts:
        measure_host(results, source, options)
    if "memory" in parts:
        measure_memory(results)
    if "bytes" in parts:
        measure_bytes(results, 4)
        measure_bytes(results, 1)


if __name__ == "__main__":
    main()
