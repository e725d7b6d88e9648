"""Speed of records: what writing and checking them adds to a label pass, and reading against the bare file and TFDS.

    python tests/benchmarks/records.py [--quick] [--json FILE]

A record holds the labels of five tasks and the picture, a JPEG of 512 px, dense labels at stride 4.

  write   a pass whose teacher costs nothing; of its time, that of hashes (SHA-256 of every shard, at the end and
          before the commit) and of manifests (done records, provenance, metadata, flushed to the disk). The share of a
          pass with real teachers is smaller by as much as these take: --teacher milliseconds an image, by default those
          of ResNet-18 with five heads at 256 px on a core (`label_rate.py`)
  open    with and without comparing hashes
  read    labels alone, and with the picture, in random order; the bytes of the file alone; TFDS on the same records
"""

import bisect
import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import label_rate
import measure

from must.core import files
from must.pseudo_label import shards, write
from must.pseudo_label.write import label_images
from must.readers.records import Records

HASHES, MANIFESTS = "hashes", "manifests"
PER_SHARD = 512  # records; of larger shards, manifests take less


class Clocked:
    """Functions of modules that count their seconds meanwhile, what they call of each other once."""

    def __init__(self, named: dict[str, list[tuple[Any, str]]]):
        self.seconds = dict.fromkeys(named, 0.0)
        self._places = [(kind, module, name) for kind, places in named.items() for module, name in places]
        self._inside = False

    def __enter__(self) -> dict[str, float]:
        self._real = [(module, name, getattr(module, name)) for _, module, name in self._places]
        for kind, module, name in self._places:
            setattr(module, name, functools.partial(self._timed, kind, getattr(module, name)))
        return self.seconds

    def __exit__(self, *error: Any) -> None:
        for module, name, function in self._real:
            setattr(module, name, function)

    def _timed(self, kind: str, function: Any, *arguments: Any, **options: Any) -> Any:
        if self._inside:
            return function(*arguments, **options)
        self._inside, start = True, time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            self.seconds[kind] += time.perf_counter() - start
            self._inside = False


WATCHED = {
    HASHES: [(files, "file_hash")],
    MANIFESTS: [(module, name) for module in (shards, write) for name in ("write_json", "write_text", "move")]
    + [(write, "write_metadata"), (shards, "_sync")],
}


def written(results: measure.Results, top: str, images: int, rounds: int, teacher_ms: float) -> str:
    """Writes the records a few times; the directory of the last ones."""
    source, teacher = label_rate.Jpegs(images, 512), label_rate.painting_teacher(512, 8)
    spent, directory = [], ""
    for turn in range(rounds + 1):
        directory = f"{top}/{turn}/1.0.0"
        with Clocked(WATCHED) as seconds:
            start = time.perf_counter()
            label_images(directory, "rate", source, [teacher], batch_size=8, shards=max(1, images // PER_SHARD))
            whole = time.perf_counter() - start
        if turn:
            spent.append((whole, seconds[HASHES], seconds[MANIFESTS]))
    whole, hashes, manifests = (1e3 * float(np.median(column)) / images for column in zip(*spent, strict=True))
    size = sum(shard["bytes"] for shard in Records(directory).provenance["shards"]) / images
    results.add("a pass whose teacher costs nothing", records_per_second=1e3 / whole, bytes_a_record=size)
    for name, ms in ((HASHES, hashes), (MANIFESTS, manifests)):
        results.add(name, ms_a_record=ms, share=ms / whole, share_with_teachers=ms / (whole + teacher_ms))
    return directory


def read(results: measure.Results, directory: str, rounds: int) -> None:
    """Opening, and rows a second in random order."""
    bytes_ = sum(shard["bytes"] for shard in Records(directory).provenance["shards"])
    spent = measure.alternating(
        {
            "hashes compared": lambda: Records(directory) and None,
            "not": lambda: Records(directory, verify=False) and None,
        },
        rounds,
    )
    for name, seconds in spent.items():
        results.add(f"open, {name}", seconds=seconds, mb_per_second=bytes_ / seconds / 1e6)
    records = Records(directory)
    order = np.random.default_rng(0).permutation(len(records)).tolist()
    arms = {
        "labels": lambda: [records.labels(i) for i in order] and None,
        "labels and picture": lambda: [np.asarray(records[i].image) for i in order] and None,
        "bytes alone": lambda: [raw(records, i) for i in order] and None,
    }
    try:
        import tensorflow_datasets as tfds

        rows = tfds.builder_from_directory(directory).as_data_source(split="train")
        arms["TFDS, labels and picture"] = lambda: [rows[i] for i in order] and None
    except Exception as error:
        results.add("read, TFDS", skipped=str(error).splitlines()[0][:80])
    for name, seconds in measure.alternating(arms, rounds).items():
        results.add(f"read, {name}", records_per_second=len(order) / seconds)


def raw(records: Records, index: int) -> bytes:
    """A record as it lies in its shard."""
    shard = bisect.bisect_right(records._starts, index) - 1
    return records._reader(shard).read([index - records._starts[shard]])[0]


def main() -> None:
    chosen = measure.options(__doc__, teacher=110.0)
    results = measure.Results(chosen.json)
    images, rounds = (64, 1) if chosen.quick else (1024, 3)
    with tempfile.TemporaryDirectory() as top:
        read(results, written(results, top, images, rounds, chosen.teacher), rounds)


if __name__ == "__main__":
    main()
