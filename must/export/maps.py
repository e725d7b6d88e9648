"""Labels per pixel as PNG, at the resolution at which they are stored: class ids, depth, normals, confidences."""

import csv
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from must.core.types import Label, Source, UserError
from must.export.examples import class_names, labeled, write_about, write_new
from must.readers.file_names import file_of
from must.readers.label_files import FIELDS, MAPS, folder_of, list_cell
from must.readers.record_format import encode_png
from must.tasks import drawing
from must.tasks.base import Task
from must.tasks.depth import Depth
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation

_MOST_MM = 65534  # 65535 is "no measurement" in many sets


def write_masks(directory: str, source: Source, name: str, task: Segmentation, *, palette: bool = False) -> int:
    """<directory>/ids/*.png: class ids, 8 bits; probs/*.png: confidences, code / 255. Nothing is rounded.

    Labels with several classes per pixel have the most probable one there, the others in ids-2, probs-2 and so on.

    Args:
      directory: made when missing.
      source: of labeled examples.
      name: key of the labels.
      task: whose classes they are.
      palette: give the ids colors to be looked at; some readers then return the colors instead of the ids.

    Returns:
      The number of labeled examples.

    Raises:
      UserError: an id outside the label space, no labels of the task.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(task.classes)] = drawing.palette(len(task.classes))

    def checked(label: Label, where: str) -> Label:
        ids = np.unique(label["ids"])
        class_names([*ids[ids != task.ignore], *label.get("unknown", ())], task.classes, where)
        return label

    about = {"ignore": task.ignore, "ids": f"class ids, {task.ignore} = no label", "probs": "probabilities * 255"}
    encode = {"ids": lambda array: _paletted(array, colors)} if palette else {}
    return _write(directory, source, name, task, "masks", about, checked, encode)


def write_depth(directory: str, source: Source, name: str, task: Depth, *, millimeters: bool = False) -> int:
    """<directory>/depth/*.png: 16 bits, and in maps.csv what a code means; 0 is no depth.

    By default the stored codes: meters = code * scale + offset, two numbers per image, nothing is rounded. As most tools
    read one unit for all files, `millimeters` writes these, rounded by up to 0.5 mm (below 1 mm: to 1 mm).

    Args:
      directory: made when missing.
      source: of labeled examples.
      name: key of the labels.
      task: metric for `millimeters`.
      millimeters: see above.

    Returns:
      The number of labeled examples.

    Raises:
      UserError: no labels of the task; with `millimeters` a relative task or a depth of more than 65.534 m.
    """
    if millimeters and task.depth_kind != "metric":
        raise UserError(f"task {name!r}: {task.depth_kind} depth has no millimeters")
    about = {"unit": "meters = code * scale + offset of maps.csv; code 0 = no depth", "depth_kind": task.depth_kind}
    if millimeters:
        about["unit"] = "millimeters, rounded by up to 0.5 mm; 0 = no depth"
    return _write(directory, source, name, task, "depth", about, _in_millimeters if millimeters else _unchanged, {})


def write_normals(directory: str, source: Source, name: str, task: Normals) -> int:
    """<directory>/normals/*.png: RGB, n = value / 255 * 2 - 1 in camera axes, x right, y down, z forward.

    Each stored code c = 127 n has a value of its own, round((c / 127 + 1) / 2 * 255), within 1/255 of n; (128, 128, 128)
    is no normal.

    Args:
      directory: made when missing.
      source: of labeled examples.
      name: key of the labels.
      task: of the labels.

    Returns:
      The number of labeled examples.

    Raises:
      UserError: no labels of the task.
    """
    about = {"axes": "x right, y down, z forward", "values": "n = value / 255 * 2 - 1; 128, 128, 128 = no normal"}
    return _write(directory, source, name, task, "normals", about, _unchanged, {})


def _write(
    directory: str,
    source: Source,
    name: str,
    task: Task,
    kind: str,
    about: dict[str, Any],
    prepare: Callable[[Label, str], Label],
    encode: dict[str, Callable[[np.ndarray], bytes]],
) -> int:
    """Every map of every label as PNG, the other fields as a line of the table."""
    maps, columns = FIELDS[kind]
    os.makedirs(directory, exist_ok=True)
    count = 0
    with open(os.path.join(directory, MAPS), "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", *columns])
        for index, label in labeled(source, name, task, (*maps, *columns)):
            label = prepare(label, f"{source.ids[index]}: {name}")
            picture = file_of(source.ids[index]) + ".png"
            for field in maps:
                for rank, plane in enumerate(_planes(label.get(field), kind)):
                    data = encode.get(field, _encoded)(plane)
                    write_new(directory, f"{folder_of(field, rank)}/{picture}", data)
            table.writerow([picture, *(_cell(label.get(column)) for column in columns)])
            count += 1
    scores = {"scores": "scores * 255, of any size"} if "scores" in maps else {}
    classes = list(getattr(task, "classes", ()))
    write_about(directory, {"kind": kind, "classes": classes, "examples": count, **about, **scores})
    return count


def _planes(array: Any, kind: str) -> list[np.ndarray]:
    """What becomes one PNG each."""
    if array is None:
        return []
    array = np.asarray(array)
    return list(np.moveaxis(array, -1, 0)) if kind == "masks" else [array]


def _encoded(array: np.ndarray) -> bytes:
    from PIL import Image

    if array.dtype == np.int8:
        return encode_png(np.round((array / np.float32(127) + 1) / 2 * 255).clip(0, 255).astype(np.uint8))
    if array.dtype == np.uint8:
        return encode_png(array)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array, np.uint16)).save(file, "PNG")
    return file.getvalue()


def _paletted(ids: np.ndarray, colors: np.ndarray) -> bytes:
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


def _unchanged(label: Label, where: str) -> Label:
    return label


def _in_millimeters(label: Label, where: str) -> Label:
    codes, scale, offset = (np.asarray(label[field], np.float64) for field in ("depth", "scale", "offset"))
    depth = np.where(codes > 0, np.maximum(np.round(1000 * (codes * scale + offset)), 1), 0)
    if depth.max(initial=0) > _MOST_MM:
        raise UserError(
            f"{where}: a depth of {depth.max() / 1000:.6g} m, 16 bits hold {_MOST_MM / 1000} m in millimeters"
        )
    return {**label, "depth": depth.astype(np.uint16), "scale": np.float32(1e-3), "offset": np.float32(0)}
