"""Labels as files that other tools read: what the tasks share when they write theirs, and the form of any other task.

`must.export.labels` writes a folder of them, `must.readers.label_files` reads it back.
"""

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must.core import files
from must.core.labels import run_lengths
from must.core.types import Label, Source, UserError
from must.data.combine import encoded_of, labels_of
from must.readers.edited import MUST_ID, UNKNOWN
from must.readers.label_files import ABOUT, ATTRIBUTES, CLASSES, COCO, MAPS, folder_of, list_cell
from must.readers.names import file_of
from must.readers.pictures import header, is_portable
from must.readers.record_format import encode_png

_EXTENSIONS = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif"}


def labeled(source: Source, name: str, task: Any, fields: Sequence[str]) -> Iterator[tuple[int, Label]]:
    """Index and label of every example that has a label of the task.

    Raises:
      UserError: none has one, the source's classes are not the task's, or a label has a field that is none of `fields`.
    """
    classes = tuple(getattr(task, "classes", ()))
    if name in source.classes and tuple(source.classes[name]) != classes:
        raise UserError(f"{source.name}: classes of {name} are not those of the task")
    none = True
    for index, id in enumerate(source.ids):
        label = labels_of(source, index).get(name)
        if label is None:
            continue
        if extra := set(label) - set(fields):
            raise UserError(f"{id}: {name}.{min(extra)} cannot be written to these files")
        none = False
        yield index, label
    if none:
        raise UserError(f"{source.name}: holds no labels of {name!r}")


def class_names(ids: Any, names: Sequence[str], where: str) -> list[str]:
    """The names of class ids; UserError for an id outside the label space, whose message starts with `where`."""
    numbers = np.asarray(ids).reshape(-1).tolist()
    if wrong := [number for number in numbers if not 0 <= number < len(names)]:
        raise UserError(f"{where}: class id {wrong[0]} is outside the {len(names)} classes")
    return [names[number] for number in numbers]


def picture_file(source: Source, index: int) -> str:
    """The picture's path below the folder of pictures; a source of videos names their files (`file`)."""
    if hasattr(source, "file"):
        return source.file(index)
    data = encoded_of(source, index)
    return file_of(source.ids[index]) + (_extension(data) or ".png")


def picture_bytes(source: Source, index: int) -> bytes:
    """The picture's file: as the source has it, or a PNG of it.

    Raises:
      UserError: it is a video.
    """
    data = encoded_of(source, index)
    if _extension(data):
        return data
    image = source[index].image
    if len(image.shape) != 3:
        raise UserError(f"{source.ids[index]}: is a video, only pictures are written")
    return encode_png(np.ascontiguousarray(image))


def picture_size(source: Source, index: int) -> tuple[int, int]:
    """(height, width) in pixels, from the header where there is one; of a video its frames'."""
    data = encoded_of(source, index)
    if not _extension(data):
        return tuple(int(side) for side in source[index].image.shape[-3:-1])
    return header(data, source.ids[index]).size


def write_new(directory: str, file: str, data: bytes) -> None:
    """A file below the directory, with its folders; UserError when an example before it has taken the place."""
    path = os.path.join(directory, file)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
        raise UserError(f"{path}: two examples would be this file; their ids are equal, or differ in capitals only")
    files.write_bytes(path, data)


def write_about(directory: str, about: Mapping[str, Any]) -> None:
    """<directory>/about.json, one line per key."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in about.items())
    files.write_text(os.path.join(directory, ABOUT), f"{{\n{lines}\n}}\n")


def _extension(data: bytes | None) -> str | None:
    """Of encoded bytes, None when there are none or other readers may not know or understand them."""
    return _EXTENSIONS.get(header(data, "").format) if data is not None and is_portable(data) else None


def write_maps(
    directory: str,
    source: Source,
    name: str,
    task: Any,
    maps: Sequence[str],
    columns: Sequence[str] = (),
    *,
    about: Mapping[str, Any] = {},
    prepare: Callable[[Label, str], Label] = lambda label, where: label,
    encode: Mapping[str, Callable[[np.ndarray], bytes]] = {},
) -> int:
    """Every map of every label as <directory>/<field>/*.png, its other fields as a line of maps.csv.

    Args:
      directory: created when missing.
      source: of labeled examples.
      name: key of the labels.
      task: of the labels.
      maps: fields that are maps, [H, W] or [H, W, 3], or [H, W, K] for K maps.
      columns: fields that are numbers or lists of class ids.
      about: further facts for about.json.
      prepare: (label, place for messages) -> label as it is written.
      encode: {field: map -> PNG}, where the plain form will not do.

    Returns:
      The number of labeled examples.

    Raises:
      UserError: no labels of the task, or a label that cannot be right.
    """
    count, stacked = 0, set()  # stacked: fields with K maps of each label
    os.makedirs(directory, exist_ok=True)
    with files.replacing(os.path.join(directory, MAPS), newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", *columns])
        for index, label in labeled(source, name, task, (*maps, *columns)):
            label = prepare(label, f"{source.ids[index]}: {name}")
            picture = file_of(source.ids[index]) + ".png"
            for field in maps:
                planes = _planes(label.get(field))
                stacked |= {field} if planes and np.ndim(label[field]) > planes[0].ndim else set()
                for rank, plane in enumerate(planes):
                    data = encode.get(field, encoded_map)(plane)
                    write_new(directory, f"{folder_of(field, rank)}/{picture}", data)
            table.writerow([picture, *(_cell(label.get(column)) for column in columns)])
            count += 1
    scores = {"scores": "scores * 255, of any size"} if "scores" in maps else {}
    facts = {
        "maps": list(maps),
        "columns": list(columns),
        "stacked": sorted(stacked),
        "classes": list(getattr(task, "classes", ())),
    }
    write_about(directory, {"kind": "maps", "examples": count, **facts, **about, **scores})
    return count


def _planes(array: Any) -> list[np.ndarray]:
    """What becomes one PNG each: the map itself, or K of them; three signed or unsigned bytes a pixel are one color."""
    if array is None:
        return []
    array = np.asarray(array)
    several = array.ndim == 3 and array.dtype != np.int8
    return list(np.moveaxis(array, -1, 0)) if several else [array]


def encoded_map(array: np.ndarray) -> bytes:
    """PNG of a map: signed bytes as value / 127, unsigned bytes and 16 bits as they are."""
    from PIL import Image

    if array.dtype == np.int8:
        return encode_png(np.round((array / np.float32(127) + 1) / 2 * 255).clip(0, 255).astype(np.uint8))
    if array.dtype == np.uint8:
        return encode_png(array)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array, np.uint16)).save(file, "PNG")
    return file.getvalue()


def paletted_map(ids: np.ndarray, colors: np.ndarray) -> bytes:
    """PNG of class ids with a palette, uint8 [256, 3]."""
    from PIL import Image

    picture, file = Image.fromarray(np.ascontiguousarray(ids)), io.BytesIO()
    picture.putpalette(colors.tobytes())
    picture.save(file, "PNG", bits=8)
    return file.getvalue()


def _cell(value: Any) -> str:
    """A field as a cell: a number as the shortest text that is the same float32 again, or a list of ids."""
    if value is None or np.ndim(value):
        return list_cell(value)
    return str(np.float32(value))


_CLASS_FIELDS = ("ids", "probs", "rest", "unknown")


def write_classes(directory: str, source: Source, name: str, task: Any) -> int:
    """<directory>/classes.csv: the most probable class of every labeled example and its probability, then the others.

    Columns: file (below the folder of pictures), class, score, rest (the probability of all classes that are not
      listed),
    unknown (ids of the classes that the label's source does not know), class_2, score_2, ... A number is the shortest
    text that is the same float16 again.

    Args:
      directory: made when missing.
      source: of labeled examples.
      name: key of the labels.
      task: whose classes they are.

    Returns:
      The number of lines.

    Raises:
      UserError: a class id outside the label space, no labels of the task.
    """
    os.makedirs(directory, exist_ok=True)
    width = max(np.size(label["ids"]) for _, label in labeled(source, name, task, _CLASS_FIELDS))
    more = [f"{column}_{rank}" for rank in range(2, width + 1) for column in ("class", "score")]
    lines = 0
    with files.replacing(os.path.join(directory, CLASSES), newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "class", "score", "rest", "unknown", *more])
        for index, label in labeled(source, name, task, _CLASS_FIELDS):
            names = class_names(label["ids"], task.classes, f"{source.ids[index]}: {name}")
            scores = [str(score) for score in np.asarray(label["probs"], np.float16).reshape(-1)]
            cells = [cell for pair in zip(names, scores, strict=True) for cell in pair]
            cells += [""] * (2 * (width - len(names)))
            rest = str(np.float16(np.asarray(label["rest"]).reshape(())))
            table.writerow([picture_file(source, index), *cells[:2], rest, list_cell(label.get("unknown")), *cells[2:]])
            lines += 1
    write_about(directory, {"kind": "classes", "classes": list(task.classes), "examples": lines})
    return lines


def write_attributes(directory: str, source: Source, name: str, task: Any) -> int:
    """<directory>/attributes.csv: file, and one column of scores per attribute, empty where it is unknown.

    A score is the shortest text that is the same float16 again, of ground truth 1 or 0. `AttributeCsv` reads the table.

    Raises:
      UserError: no labels of the task, or scores of another number of attributes.
    """
    os.makedirs(directory, exist_ok=True)
    lines = 0
    with files.replacing(os.path.join(directory, ATTRIBUTES), newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", *task.classes])
        for index, label in labeled(source, name, task, ("scores", "unknown")):
            scores, unknown = np.asarray(label["scores"], np.float16), set(np.asarray(label["unknown"]).tolist())
            if scores.shape != (len(task.classes),):
                raise UserError(f"{source.ids[index]}: {name}: {scores.size} scores, {len(task.classes)} attributes")
            cells = (f"{score:g}" if score in (0, 1) else str(score) for score in scores)
            cells = ["" if i in unknown else cell for i, cell in enumerate(cells)]
            table.writerow([picture_file(source, index), *cells])
            lines += 1
    write_about(directory, {"kind": "attributes", "classes": list(task.classes), "examples": lines})
    return lines


def coco_head(classes: Sequence[str], description: str) -> str:
    """The beginning of a COCO json up to its categories, with the keys that COCO, CVAT and FiftyOne document."""
    about = dict.fromkeys(("contributor", "date_created", "url", "version", "year"), "")
    head = {
        "info": {"description": description, **about},
        "licenses": [{"id": 0, "name": "", "url": ""}],
        "categories": [{"id": i + 1, "name": name, "supercategory": ""} for i, name in enumerate(classes)],
    }
    return json.dumps(head)[:-1]


def coco_image(id: int, file: str, size: tuple[int, int]) -> dict[str, Any]:
    """An entry of COCO's images; size is (height, width)."""
    blank = {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
    return {"id": id, "file_name": file, "width": size[1], "height": size[0], **blank}


def _outline(box: np.ndarray, crowd: bool, mask: np.ndarray | None, size: tuple[int, int]) -> dict[str, Any]:
    """An annotation's box, area and segmentation: the mask's where there is one, else the box's.

    The box of a crowd is the pixels whose centers lie in it.
    """
    x0, y0, x1, y1 = box
    outline = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
    if mask is not None:
        return outline | {"segmentation": rle(mask), "area": int(mask.sum())}
    if not crowd:
        return outline | {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
    mask = np.zeros(size, bool)
    x0, y0, x1, y1 = (int(np.round(side)) for side in box)
    mask[y0:y1, x0:x1] = True
    return outline | {"segmentation": rle(mask)}


def rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths of a bool [H, W] mask: columns one after the other, beginning with zeros."""
    return {"size": list(mask.shape), "counts": run_lengths(mask).tolist()}


BOX_FIELDS = ("boxes", "classes", "scores", "crowd", "unknown")


def write_coco(
    directory: str,
    source: Source,
    name: str,
    task: Any,
    *,
    min_score: float = 0.0,
    masks: Callable[[Label, tuple[int, int]], np.ndarray] | None = None,
) -> int:
    """<directory>/coco.json: the boxes of every labeled example, in pixels of the original, with their scores.

    bbox is x, y, width, height such that x + width is x1 again in float32; segmentation is the box, as a polygon or, of
    a crowd, as uncompressed RLE; a category's id is the class id + 1. Beside COCO's keys an image has "must_id", its id
    in `source`, and, where the label has such, "unknown_category_ids".
    Memory does not grow with the number of boxes.

    Args:
      directory: made when missing.
      source: of labeled examples.
      name: key of the labels.
      task: whose classes are the categories.
      min_score: score from which boxes are written; ground truth has score 1.
      masks: (label with "counts" and "runs", size of its picture) -> bool [N, H, W]; segmentation and area are theirs.

    Returns:
      The number of images.

    Raises:
      UserError: a class id outside the label space, no labels of the task.
    """
    os.makedirs(directory, exist_ok=True)
    path, images, boxes = os.path.join(directory, COCO), [], 0
    # Annotations come before it is known how many images there are, and stand behind them in the file.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as annotations:
        for index, label in labeled(source, name, task, (*BOX_FIELDS, *(("counts", "runs") if masks else ()))):
            id, (height, width) = source.ids[index], picture_size(source, index)
            class_names([*label["classes"], *label["unknown"]], task.classes, f"{id}: {name}")
            image = coco_image(len(images) + 1, picture_file(source, index), (height, width)) | {MUST_ID: id}
            if len(label["unknown"]):
                image[UNKNOWN] = [int(i) + 1 for i in label["unknown"]]
            images.append(json.dumps(image))
            corners = np.asarray(label["boxes"], np.float64).reshape(-1, 4)
            rows = zip(corners, label["classes"], label["scores"], label["crowd"], strict=True)
            drawn = masks(label, (height, width)) if masks else [None] * len(corners)
            for (box, class_id, score, crowd), mask in zip(rows, drawn, strict=True):
                if score < min_score:
                    continue
                boxes += 1
                annotation = {"id": boxes, "image_id": len(images), "category_id": int(class_id) + 1}
                annotation |= _outline(box, bool(crowd), mask, (height, width))
                annotation |= {"iscrowd": int(crowd), "score": float(score)}
                annotations.write((",\n" if boxes > 1 else "") + json.dumps(annotation))
        annotations.seek(0)
        with files.replacing(path) as file:
            file.write(coco_head(task.classes, source.name) + ',\n"images": [\n' + ",\n".join(images))
            file.write('\n],\n"annotations": [\n')
            shutil.copyfileobj(annotations, file)
            file.write("\n]}\n")
    about = {
        "kind": "coco",
        **({"masks": True} if masks else {}),
        "classes": list(task.classes),
        "images": len(images),
        "boxes": boxes,
        "least_score": min_score,
    }
    write_about(directory, about)
    return len(images)
