"""Sets of boxes with masks and of attributes teach the tasks they are for, and no others."""

import json

import numpy as np
import pytest
from PIL import Image

from must.core.types import UserError
from tests.support.configs import changed, check

SPLITS = {"train": 8, "val": 4, "test": 4}
NAMES = ("red", "blue")


def make_set(root):
    """Pictures with one red and one blue rectangle, their boxes with masks, and whether each is large."""
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        (root / "images" / split).mkdir(parents=True)
        coco = {"images": [], "annotations": [], "categories": [{"id": i, "name": one} for i, one in enumerate(NAMES)]}
        lines = ["file,large red,large blue"]
        for i in range(count):
            image, large = np.full((32, 32, 3), 60, np.uint8), []
            coco["images"].append({"id": i, "file_name": f"{i}.png", "height": 32, "width": 32})
            for kind, x in ((0, 1), (1, 17)):
                height, width = (int(side) for side in rng.integers(6, 15, 2))
                image[4 : 4 + height, x : x + width, 2 * kind] = 250
                outline = [x, 4, x + width, 4, x + width, 4 + height, x, 4 + height]
                about = {"id": len(coco["annotations"]), "image_id": i, "category_id": kind, "iscrowd": 0}
                box = {"bbox": [x, 4, width, height], "segmentation": [outline], "area": height * width}
                coco["annotations"].append({**about, **box})
                large.append(str(int(height * width > 100)))
            Image.fromarray(image).save(root / "images" / split / f"{i}.png")
            lines.append(",".join([f"{i}.png", *large]))
        (root / f"{split}.json").write_text(json.dumps(coco))
        (root / f"{split}.csv").write_text("\n".join(lines))


def config_of(root):
    def each(name, **section):
        uses, section = {"train": "train", "validation": "val", "test": "test"}, {**section, "root": str(root)}
        return {
            use: {**section, "images": "images/{split}", "split": split, "name": f"{name}-{split}"}
            for use, split in uses.items()
        }

    small = {"strides": (8, 16), "width": 8, "hidden": 16, "max_boxes": 8, "proposals": 8, "max_detections": 8}
    small |= {"candidates": 16, "score_floor": 0.0}
    coco = {"kind": "coco", "annotations": "{split}.json"}
    optimizer = {
        "steps": 3,
        "batch_size": 4,
        "checkpoint_every": 2,
        "evaluate_every": 0,
        "optimizer": {"name": "sgd", "learning_rate": 0.01},
    }
    return {
        "recipe": "must",
        "title": "regions",
        "seeds": (0,),
        "workers": 1,
        "image": {"size": (32, 32)},
        "tasks": {
            "boxes": {"kind": "two_stage", **small},
            "masks": {"kind": "instances", **small},
            "attributes": {"kind": "multi_label"},
        },
        "sets": {
            "boxes": each("boxes", **coco, tasks={"detection": "boxes"}),
            "masks": each("masks", **coco, tasks={"instances": "masks"}),
            "attributes": each("attributes", kind="attribute_csv", table="{split}.csv", task="attributes"),
        },
        "train_sets": {"boxes": "boxes", "masks": "masks", "attributes": "attributes"},
        "pool": {"photos": {"kind": "photos", "root": str(root), "images": "images/train"}},
        "model": {
            "backbone": {"kind": "resnet", "depth": 10, "width": 8, "stem": "small", "stages": 3},
            "neck": {"kind": "fpn", "channels": 8, "strides": (4, 8, 16)},
        },
        "teacher": optimizer,
        "student": optimizer,
        "label": {"shards": 1, "batch_size": 4},
    }


def test_sets_of_masks_and_attributes_are_taken_for_their_tasks(tmp_path):
    make_set(tmp_path)
    config = config_of(tmp_path)
    check(config)
    wrong = changed(config, tasks__attributes__kind="two_stage", tasks__attributes__strides=(8, 16))
    with pytest.raises(UserError, match="config.tasks.attributes: attributes-train has labels of another kind of task"):
        check(wrong)
    with pytest.raises(UserError, match="config.tasks.boxes: boxes-train has labels of another kind of task"):
        check({**config, "tasks": {**config["tasks"], "boxes": {"kind": "multi_label"}}})
