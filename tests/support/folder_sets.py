"""Small data sets in every layout of users' files, written into a temporary folder."""

import json

import numpy as np
from PIL import Image

SIZE = (12, 16)  # height, width


def picture(path, size=SIZE, *, mode="RGB", seed=0):
    """Writes a noisy picture and returns the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(array).convert(mode).save(path)
    return path


def png(path, array):
    """Writes an array as PNG and returns the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def image_folder(root):
    """Two classes, three pictures."""
    for i, name in enumerate(("cat/a.jpg", "cat/deep/b.png", "dog/a.jpg")):
        picture(root / "train" / name, seed=i)
    return {"kind": "image_folder", "root": str(root), "split": "train"}


def coco(root, change=lambda content: None):
    """Two pictures, one without annotations; `change` edits the json before it is written."""
    picture(root / "images" / "a.jpg")
    picture(root / "images" / "b.jpg", seed=1)
    content = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]},
            {"id": 9, "file_name": "b.jpg", "height": SIZE[0], "width": SIZE[1]},
        ],
        "categories": [{"id": 30, "name": "dog"}, {"id": 10, "name": "cat"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 30,
                "bbox": [1, 2, 8, 6],
                "iscrowd": 0,
                "segmentation": [[1, 2, 9, 2, 9, 8, 1, 8]],
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 10,
                "bbox": [4, 4, 2, 2],
                "iscrowd": 1,
                "segmentation": {"size": list(SIZE), "counts": [12 * 4 + 4, 2, 10, 2, 126]},
            },
        ],
    }
    change(content)
    (root / "labels.json").write_text(json.dumps(content))
    return {"kind": "coco", "root": str(root), "images": "images", "annotations": "labels.json"}


def voc(root, *, box=(2, 3, 9, 8), name="cat", size=SIZE, difficult=1):
    """One picture with one difficult box, its xml, its palette mask and a split."""
    picture(root / "JPEGImages" / "a.jpg")
    (root / "Annotations").mkdir()
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    (root / "Annotations" / "a.xml").write_text(
        f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size><object><name>{name}</name>"
        f"<difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object></annotation>"
    )
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    mask = np.zeros(SIZE, np.uint8)
    mask[2:8, 1:9] = 1
    mask[0] = 255
    paletted = Image.fromarray(mask, "L").convert("P")
    paletted.putdata(mask.ravel().tolist())
    (root / "SegmentationClass").mkdir()
    paletted.save(root / "SegmentationClass" / "a.png")
    return {"kind": "voc", "root": str(root), "split": "train", "classes": ["cat"]}


def mask_png(root, mask=None):
    """One picture with a mask of the stored ids 0, 10 and 20."""
    picture(root / "images" / "a_left.png")
    mask = np.repeat(np.array([0, 10, 20, 10], np.uint8), 48).reshape(SIZE) if mask is None else mask
    png(root / "masks" / "a_ids.png", mask)
    return {
        "kind": "mask_png",
        "root": str(root),
        "images": "images",
        "masks": "masks",
        "image_suffix": "_left",
        "mask_suffix": "_ids.png",
        "classes": {0: "void", 10: "road", 20: "sky"},
        "ignore": 0,
    }


def depth_png(root, depth=None):
    """One picture with depth 0, 1000, 65535 and 2500 mm."""
    picture(root / "rgb" / "a.jpg")
    depth = np.repeat(np.array([0, 1000, 65535, 2500], np.uint16), 48).reshape(SIZE) if depth is None else depth
    png(root / "depth" / "a.png", depth)
    return {"kind": "depth_png", "root": str(root), "images": "rgb", "depths": "depth", "unit": "mm"}


def normals_png(root, vector=(0.6, 0.0, -0.8)):
    """One picture of one plane, its first row invalid."""
    picture(root / "rgb" / "a.jpg")
    stored = np.empty((*SIZE, 3), np.uint8)
    stored[:] = np.round((np.array(vector) + 1) / 2 * 255)
    stored[0] = 0
    png(root / "normals" / "a.png", stored)
    return {"kind": "normals_png", "root": str(root), "images": "rgb", "normals": "normals"}
