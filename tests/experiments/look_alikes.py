"""Which copies of real pictures `must.look_alikes` finds, and which different pictures it takes for copies.

    python -m tests.experiments.look_alikes --root=DATA

DATA holds sets of pictures in folders below it, such as coco_mini and unlabeled_photos; up to 800 of each are read.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from must.data.disjoint import _BITS, appearance

SETS = ("coco_mini", "clothing", "unlabeled_photos", "camvid", "rgbd_kitchen", "bccd")


def _recompressed(picture, quality=30):
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=quality)
    return Image.open(file)


def _half(picture):
    return picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)), Image.Resampling.LANCZOS)


def _cropped(share):
    def crop(picture):
        x, y = round(picture.width * share), round(picture.height * share)
        return picture.crop((x, y, picture.width - x, picture.height - y))

    return crop


COPIES = {
    "half the size": _half,
    "JPEG of quality 30": _recompressed,
    "both": lambda picture: _recompressed(_half(picture)),
    "a fifth brighter": lambda picture: picture.point(lambda value: min(255, round(value * 1.2))),
    "2 % cropped from each side": _cropped(0.02),
    "5 % cropped from each side": _cropped(0.05),
    "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def main() -> None:
    """Prints the shares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    pictures, codes = [], {}
    for name in SETS:
        files = sorted((parser.parse_args().root / name).rglob("*.jpg"))[:800]
        own = [Image.open(file).convert("RGB") for file in files]
        pictures += own
        codes[name] = np.array([appearance(np.asarray(picture)) for picture in own], np.uint64)
    every = np.concatenate([*codes.values()])
    chosen = np.random.default_rng(0).choice(len(pictures), min(400, len(pictures)), replace=False)
    print(f"{len(pictures)} pictures; copies of {len(chosen)} that are found:")
    for name, copy in COPIES.items():
        made = np.array([appearance(np.asarray(copy(pictures[i]).convert("RGB"))) for i in chosen], np.uint64)
        print(f"  {name:28}{np.mean(np.bitwise_count(made ^ every[chosen]) <= _BITS):8.1%}")
    print("pairs of different files that look alike (frames of one video do):")
    for name, own in codes.items():
        near = np.bitwise_count(own[:, None] ^ own[None]) <= _BITS
        print(f"  {name:28}{(near.sum() - len(own)) // 2:8} of {len(own)} pictures")


if __name__ == "__main__":
    main()
