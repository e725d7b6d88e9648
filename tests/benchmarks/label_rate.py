"""How much of the bare teachers' speed a label pass keeps, and what one record costs on the host.

    python tests/benchmarks/label_rate.py --images=1024 --rounds=5

Five teachers, one per task, with random weights, label the same pictures from memory: alternately their forward passes
alone, and the whole of `label_images` (resize, fetch, restore, encode, hash, commit). Medians over rounds.
"""

import argparse
import statistics
import tempfile
import time

import jax
import numpy as np

from must.core.types import Example, Teacher
from must.data.record_format import decode_record, encode_png, encode_record
from must.models import fpn, multi_head, resnet
from must.pseudo_label import teacher as teachers
from must.pseudo_label.write import label_images
from must.tasks import base

DENSE = {"shuffle": 2, "width": 32, "depth": 2}
SECTIONS = {
    "classification": {"classes": tuple("abcdefghijkl")},
    "detection": {"classes": tuple("abcd"), "strides": (4, 8, 16), "width": 32, "depth": 2, "max_detections": 12},
    "segmentation": {"classes": tuple("abcdefg"), **DENSE},
    "depth": DENSE,
    "normals": DENSE,
}


class Pictures:
    """Smooth noisy pictures in memory."""

    name, classes, fingerprint = "pictures", {}, "0"

    def __init__(self, count: int, size: int):
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 255, (count, size // 8, size // 8, 3)).repeat(8, 1).repeat(8, 2)
        self.images = np.clip(coarse + rng.integers(-4, 5, coarse.shape), 0, 255).astype(np.uint8)
        self.ids = [f"pictures/{i:06d}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        return Example(self.ids[index], self.images[index], {})


def build_teachers(size: int, width: int, stride: int, mirror: bool) -> list[Teacher]:
    """One network per task; stored maps at `stride`."""
    found = []
    for name, section in SECTIONS.items():
        section = {**section, "stride": stride} if name in ("segmentation", "depth", "normals") else section
        task = base.build(name, **section)
        backbone = resnet.ResNet(depth=10, width=width, stem="small")
        model = multi_head.multi_head(backbone, fpn.FPN(32, (4, 8, 16)), {name: task.head()})
        variables = model.init(jax.random.key(0), np.zeros((1, size, size, 3), np.uint8))
        found.append(
            teachers.from_model(
                name, model, variables, {name: task}, size=(size, size), fingerprint="0", mirror=mirror
            )  # fmt: skip
        )
    return found


def forward(built: list[Teacher], images: np.ndarray, batch_size: int) -> None:
    """Every teacher on every batch; nothing is fetched."""
    said = None
    for start in range(0, len(images), batch_size):
        before, said = said, [teacher.predict(images[start : start + batch_size]) for teacher in built]
        jax.block_until_ready(before)
    jax.block_until_ready(said)


def host_rates(source: Pictures, built: list[Teacher], batch_size: int) -> dict[str, float]:
    """Records per second of processor time of each step of the host's work."""
    from must.data.geometry import whole_image

    specs = {key: task.label_spec() for teacher in built for key, task in teacher.tasks.items()}
    said = [jax.device_get(teacher.predict(source.images[:batch_size])) for teacher in built]
    restored, rates = [], {}

    def timed(name, work):
        start = time.process_time()
        for _ in range(4):
            results = [work(row) for row in range(batch_size)]
        rates[name] = 4 * batch_size / (time.process_time() - start)
        return results

    def restore(row):
        geometry = whole_image(source.images[row].shape[:2], tuple(built[0].size))
        return {
            key: task.restore({name: field[row] for name, field in fetched[key].items()}, geometry)
            for teacher, fetched in zip(built, said)
            for key, task in teacher.tasks.items()
        }

    restored = timed("restore", restore)
    pictures = timed("encode picture", lambda row: encode_png(source.images[row]))
    records = timed("encode labels", lambda row: encode_record("id", pictures[row], restored[row], specs))
    timed("decode labels", lambda row: decode_record(records[row], specs))
    sizes = [round(np.mean([len(item) for item in items])) for items in (records, pictures)]
    print(f"one record: {sizes[0]} bytes, {sizes[1]} of them the picture")
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "images": 1024, "size": 64, "width": 16, "batch": 64, "shards": 8, "stride": 4, "rounds": 5, "mirror": 0,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    source = Pictures(options.images, options.size)
    built = build_teachers(options.size, options.width, options.stride, bool(options.mirror))
    forward(built, source.images[: options.batch], options.batch)
    for name, rate in host_rates(source, built, options.batch).items():
        print(f"{name:16}{rate:10.0f} records/s on one core")
    rates = {"forward": [], "label pass": []}
    for round in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as directory:
            target = f"{directory}/rate/1.0.0"
            arms = {
                "forward": lambda: forward(built, source.images, options.batch),
                "label pass": lambda: label_images(
                    target, "rate", source, built, shards=options.shards, batch_size=options.batch
                ),
            }  # fmt: skip
            for name, work in arms.items():
                wall, processor = time.perf_counter(), time.process_time()
                work()
                if round:  # the first one imports and compiles
                    rates[name].append((time.perf_counter() - wall, time.process_time() - processor))
    for unit, which in (("wall time", 0), ("processor time", 1)):
        bare, full = ([options.images / pair[which] for pair in pairs] for pairs in rates.values())
        ratio = statistics.median(b / a for a, b in zip(bare, full))
        print(
            f"images/s of {unit}: forward {statistics.median(bare):.0f}, "
            f"label pass {statistics.median(full):.0f}, ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
