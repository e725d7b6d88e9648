"""Pascal VOC: one xml of boxes per picture, optional palette masks."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from must.core import labels
from must.core.files import read_bytes
from must.core.types import Label, UserError
from must.readers import fields
from must.readers.coco import DETECTION, SEGMENTATION, task_keys
from must.readers.coco_head import SIDES
from must.readers.dense import read_mask, sampled
from must.readers.files import FileSource, find_pictures, folder, locate, read_classes, read_text, select, source_name
from must.readers.pictures import DISPLAYED


class _Annotation(NamedTuple):
    """One xml: size (height, width) or None; per object its name, box [4] as stored and difficult flag."""

    size: tuple[int, int] | None
    names: list[str]
    boxes: list[list[float]]
    difficult: list[bool]


class Voc(FileSource):
    """Detection from VOC xml and/or segmentation from the palette PNGs beside them.

    Args:
      root: dataset root.
      split: name of the split; "{split}" is replaced in the folders and in `ids`.
      images: folder of the pictures below root.
      annotations: folder of the xml files.
      ids: list file of keys; "" takes every picture that has an xml. By default VOC's own list if `split` is set.
      tasks: "detection", "segmentation" or both; or a dict that maps either to the key of its labels.
      classes: label space, names or a file of names (`read_classes`); by default the sorted names in this split's xml
        ("2" before "10").
      annotated: names of the exhaustively annotated classes; all others are unknown. By default, all classes.
      ignore_difficult: difficult objects become crowd, so detections of them are neither true nor false positives.
      one_based: pixels count from 1 and the last is inclusive, as in VOC; False: from 0 with an exclusive end. By
        default the former, and an error if a box begins at 0.
      relative: boxes are in fractions of the picture; False: in pixels. By default the latter, and an error if all
        numbers lie in 0..1.
      masks: folder of the masks: 0 is `background`, 1.. are the classes, 255 is ignored. A picture without a mask has
        no segmentation.
      background: name of the masks' class 0.
      bounds: what becomes of boxes that reach beyond their pictures, "clip" or "refuse".
      drop_empty: drop boxes without area in their picture instead of raising an error.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.

    Raises:
      UserError: missing or invalid xml, unknown class, box reversed or wholly outside its image, ...
    """

    def __init__(
        self,
        root: str,
        *,
        split: str = "",
        images: str = "JPEGImages",
        annotations: str = "Annotations",
        ids: str | None = None,
        tasks: Sequence[str] | Mapping[str, str] = (DETECTION,),
        classes: str | Sequence[str] | None = None,
        annotated: Sequence[str] | None = None,
        ignore_difficult: bool = True,
        one_based: bool | None = None,
        relative: bool | None = None,
        masks: str = "SegmentationClass",
        background: str = "background",
        bounds: str = "clip",
        drop_empty: bool = False,
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        self._tasks = task_keys(tasks)
        self._ignore_difficult, self._relative = ignore_difficult, bool(relative)
        self._first = 0 if relative or one_based is False else 1
        self._rules = {"bounds": bounds, "empty": "drop" if drop_empty else "refuse"}
        if ids is None:
            ids = "ImageSets/Main/{split}.txt" if split else ""
        path = locate(root, images, split)
        pictures, xml_folder = find_pictures(path, root=root), folder(locate(root, annotations, split))
        if ids:
            pictures = select(pictures, locate(root, ids, split), path)
        elif DETECTION in self._tasks:
            pictures = {key: file for key, file in pictures.items() if (xml_folder / f"{key}.xml").is_file()}
        if not pictures:
            raise UserError(f"{xml_folder}: no xml for any picture of {path}")
        self._xml = [xml_folder / f"{key}.xml" for key in pictures] if DETECTION in self._tasks else []
        self._annotations = [_read_xml(file) for file in self._xml]
        if classes is None:
            if not self._xml:
                raise UserError(f"{root}: segmentation without detection needs `classes`")
            names = labels.in_order(name for annotation in self._annotations for name in annotation.names)
        else:
            names = tuple(read_classes(classes, root).values())
        self._number = {name: i for i, name in enumerate(names)}
        self._check(annotated)
        self._check_boxes(one_based, relative)
        self._masks = self._find_masks(locate(root, masks, split), pictures)
        if SEGMENTATION in self._tasks:
            space = (background, *names)
            self._table = labels.class_table(dict(enumerate(space)), labels.IGNORE, root)[1]
            labels.check_masks(sampled(self._masks, read_mask), space, self._table, str(locate(root, masks, split)))
        spaces = {DETECTION: names, SEGMENTATION: (background, *names)}
        super().__init__(
            source_name(name, root, split),
            pictures,
            classes={key: spaces[kind] for kind, key in self._tasks.items()},
            settings=(
                (self._tasks, self._unknown, ignore_difficult, one_based, relative, drop_empty, bounds),
                [file is not None for file in self._masks],
            ),
            label_files=[*self._xml, *(file for file in self._masks if file is not None)],
            orientation=orientation,
            within=(root, path, xml_folder, locate(root, masks, split)),
        )

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        out = {}
        if DETECTION in self._tasks:
            out[self._tasks[DETECTION]] = self._detection(index, size)
        if SEGMENTATION in self._tasks and self._masks[index] is not None:
            file = self._masks[index]
            ids = labels.checked_mask(read_mask(file), self._table, size, str(file))
            out[self._tasks[SEGMENTATION]] = labels.segmentation(ids)
        return out

    def _detection(self, index: int, size: tuple[int, int]) -> Label:
        annotation, file = self._annotations[index], self._xml[index]
        if annotation.size is not None and annotation.size != tuple(size):
            height, width = annotation.size
            raise UserError(f"{file}: gives {width}x{height} px, but its picture is {size[1]}x{size[0]}")
        checked = self._placed(index, size)
        if annotation.size is None:
            checked.tell(str(file.parent), counted=False)
        classes = np.array([self._number[name] for name in annotation.names], np.int64)[checked.kept]
        crowd = np.array(annotation.difficult, bool)[checked.kept] & self._ignore_difficult
        return labels.detection(checked.boxes, classes, crowd, self._unknown)

    def _placed(self, index: int, size: tuple[int, int]) -> labels.CheckedBoxes:
        """The boxes of a picture of this size, from 0 with an exclusive end."""
        boxes = np.array(self._annotations[index].boxes, np.float64).reshape(-1, 4)
        boxes[:, :2] -= self._first
        if self._relative:
            boxes *= size[::-1] * 2
        return labels.checked_boxes(boxes, size, lambda i: f"{self._xml[index]}: object {i + 1}", **self._rules)

    def _check_boxes(self, one_based: bool | None, relative: bool | None) -> None:
        """Refuses boxes that are not in VOC's form, and mentions what is clipped."""
        stored = [np.array(one.boxes, np.float64).reshape(-1, 4) for one in self._annotations]
        if stored and relative is None and fields.is_fraction(np.concatenate(stored)):
            raise UserError(
                f"{self._xml[0].parent}: all coordinates lie in 0..1, as fractions of the picture would; relative=True "
                "reads them as such, relative=False as pixels"
            )
        for file, boxes in zip(self._xml, stored, strict=True):
            if one_based is None and not relative and (boxes[:, :2] == 0).any():
                first = int(np.argmax((boxes[:, :2] == 0).any(-1))) + 1
                raise UserError(
                    f"{file}: object {first} begins at pixel 0, but VOC counts from 1; one_based=False reads the set "
                    "as counting from 0, one_based=True as counting from 1"
                )
        sized = [i for i, annotation in enumerate(self._annotations) if annotation.size is not None]
        checked = [self._placed(i, self._annotations[i].size) for i in sized]
        if checked:
            labels.CheckedBoxes.together(checked).tell(str(self._xml[0].parent))

    def _check(self, annotated: Sequence[str] | None) -> None:
        """Sets the ids of the unannotated classes; UserError for a name outside the label space."""
        for file, annotation in zip(self._xml, self._annotations, strict=True):
            for name in annotation.names:
                if name not in self._number:
                    raise UserError(f"{file}: {name!r} is not one of the {len(self._number)} classes")
        for name in annotated or ():
            if name not in self._number:
                raise UserError(f"annotated: {name!r} is not one of the {len(self._number)} classes")
        annotated_names = set(self._number if annotated is None else annotated)
        self._unknown = tuple(i for name, i in self._number.items() if name not in annotated_names)

    def _find_masks(self, path: Path, pictures: Mapping[str, Any]) -> list[Path | None]:
        """The mask file of each picture, None if missing."""
        if SEGMENTATION not in self._tasks:
            return [None] * len(pictures)
        folder(path)
        files = [path / f"{key}.png" for key in pictures]
        masks = [file if file.is_file() else None for file in files]
        if not any(masks):
            raise UserError(f"{path}: no masks for any of the {len(files)} pictures, for example {files[0].name}")
        return masks


def _parse_xml(file: Path) -> ElementTree.Element:
    """The root of an xml in the encoding that it declares, also those that expat does not know, or in `read_text`'s."""
    data = read_bytes(file).lstrip()
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as problem:
        declared = re.match(rb"<\?xml[^>]*encoding\s*=\s*[\"']([\w.:-]+)", data)
        try:
            text = data.decode(declared[1].decode()) if declared else read_text(file)
        except (LookupError, UnicodeDecodeError):
            text = read_text(file)
        try:
            return ElementTree.fromstring(re.sub(r"\A\s*<\?xml.*?\?>", "", text, flags=re.DOTALL).lstrip())
        except (ElementTree.ParseError, ValueError):
            raise UserError(f"{file}: invalid xml: {problem}") from None


def _read_xml(file: Path) -> _Annotation:
    """Reads one VOC xml."""
    tree = _parse_xml(file)
    names, boxes, difficult = [], [], []
    for number, item in enumerate(tree.iter("object"), 1):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{file}: object {number} has no name")
        try:
            sides = ("xmin", "ymin", "xmax", "ymax")
            boxes.append([fields.number(item.findtext(f"bndbox/{side}"), side) for side in sides])
        except UserError:
            raise UserError(f"{file}: object {number} ({name}) has no box of four numbers") from None
        names.append(name)
        difficult.append(fields.flag(item.findtext("difficult"), f"{file}: object {number} ({name}): difficult"))
    size = tuple(int(fields.number(tree.findtext(f"size/{side}") or 0, f"{file}: size: {side}")) for side in SIDES)
    return _Annotation(size if all(size) else None, names, boxes, difficult)
