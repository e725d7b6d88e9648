"""Dense labels with one PNG per picture: class masks, 16-bit depth, surface normals."""

import contextlib
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from must.core import labels
from must.core.files import read_bytes
from must.core.types import Label, UserError
from must.readers.files import (
    FileSource,
    find_pictures,
    folder,
    locate,
    read_classes,
    source_name,
)
from must.readers.pictures import DISPLAYED, MAX_PIXELS, open_picture, stored_ids


class _Paired(FileSource):
    """Pairs each picture <key><image_suffix>.* with a map <key><map_suffix>; subclasses decode the map in `_label`.

    Args: as in the subclasses, which call `maps` and `map_suffix` by what the maps show.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str,
        maps: str,
        split: str,
        ids: str,
        image_suffix: str,
        map_suffix: str,
        partial: bool,
        coarse: bool,
        task: str,
        name: str,
        orientation: str,
        classes: Sequence[str] | None = None,
        settings: Any = None,
    ):
        pictures = find_pictures(
            locate(root, images, split), image_suffix, locate(root, ids, split) if ids else None, root
        )
        path = folder(locate(root, maps, split))
        self._maps: list[Path | None] = []
        for key, picture in pictures.items():
            file = path / f"{key}{map_suffix}"
            if not file.is_file():
                if not partial:
                    raise UserError(f"{file}: missing, so {picture} has no {task} (partial=True allows it)")
                file = None
            self._maps.append(file)
        maps_present = [file for file in self._maps if file is not None]
        if not maps_present:
            raise UserError(f"{path}: no <picture>{map_suffix} for any of the {len(pictures)} pictures")
        self._task, self._coarse = task, coarse
        super().__init__(
            source_name(name, root, split),
            pictures,
            classes=None if classes is None else {task: classes},
            settings=(task, coarse, settings, [file is not None for file in self._maps]),
            label_files=maps_present,
            orientation=orientation,
            within=(root, locate(root, images, split), path),
        )

    def labels_for(self, index: int, size: tuple[int, int]) -> dict[str, Label]:
        file = self._maps[index]
        return {} if file is None else {self._task: self._label(file, size)}

    def _label(self, file: Path, size: tuple[int, int]) -> Label:
        raise NotImplementedError

    def _map_size(self, stored: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that the map of a picture of this size must have."""
        if not self._coarse:
            return size
        step = max(-(-side // own) for side, own in zip(size, stored.shape, strict=False))
        return tuple(-(-side // step) for side in size)


class MaskPng(_Paired):
    """Segmentation: PNG masks, gray or palette, with one class id per pixel; SBD masks if mask_suffix is ".mat".

    Args:
      root: data set root.
      images: folder of the pictures below root; "{split}" is replaced here, in `masks` and in `ids`.
      masks: folder of the masks below root.
      classes: names, {stored id: name} or a file of either (`read_classes`). Stored ids need not be contiguous: classes
        are numbered in ascending order of their stored ids, skipping the ignored one.
      ignore: stored id of unlabeled pixels; None or -1 if there is none.
      mask_suffix: end of mask names.
      split: name of the split.
      ids: optional list file below root, one key per line.
      image_suffix: end of picture names that is not part of the key, such as "_leftImg8bit"; with an extension, such as
        ".jpg", where maps lie beside the pictures.
      partial: allow pictures without a map, which then have no label, instead of raising an error.
      coarse: allow maps with one pixel per s x s pixels of the picture, rounded up, for any integer s.
      task: key of the labels.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str,
        masks: str,
        classes: str | Sequence[str] | Mapping[Any, str],
        ignore: int | None = 255,
        split: str = "",
        ids: str = "",
        image_suffix: str = "",
        mask_suffix: str = ".png",
        partial: bool = False,
        coarse: bool = False,
        task: str = "segmentation",
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        names, self._table = labels.class_table(read_classes(classes, root), ignore, f"{root}: classes")
        super().__init__(
            root,
            images=images,
            maps=masks,
            split=split,
            ids=ids,
            image_suffix=image_suffix,
            map_suffix=mask_suffix,
            partial=partial,
            coarse=coarse,
            task=task,
            name=name,
            orientation=orientation,
            classes=names,
            settings=self._table.tolist(),
        )
        labels.check_masks(sampled(self._maps, read_mask), names, self._table, str(locate(root, masks, split)))

    def _label(self, file: Path, size: tuple[int, int]) -> Label:
        stored = read_mask(file)
        return labels.segmentation(labels.checked_mask(stored, self._table, self._map_size(stored, size), str(file)))


class DepthPng(_Paired):
    """Metric depth along the optical axis: gray PNG of 16 bits, or of 8 with a numeric unit.

    Args:
      root: data set root.
      images: folder of the pictures below root; "{split}" is replaced here, in `depths` and in `ids`.
      depths: folder of the depth maps below root.
      unit: "mm", "cm", "m", or the number of meters per stored unit, such as 10 / 255.
      invalid: stored values that mean "no measurement"; 0 always does.
      depth_suffix: end of map names.
      split: name of the split.
      ids: optional list file below root, one key per line.
      image_suffix: end of picture names that is not part of the key, such as "_leftImg8bit"; with an extension, such as
        ".jpg", where maps lie beside the pictures.
      partial: allow pictures without a map, which then have no label, instead of raising an error.
      coarse: allow maps with one pixel per s x s pixels of the picture, rounded up, for any integer s.
      task: key of the labels.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str,
        depths: str,
        unit: str | float,
        invalid: Sequence[int] = (0, 65535),
        split: str = "",
        ids: str = "",
        image_suffix: str = "",
        depth_suffix: str = ".png",
        partial: bool = False,
        coarse: bool = False,
        task: str = "depth",
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        self._bits = 16
        self._meters_per_unit, self._named_unit = labels.meters_per_unit(unit), isinstance(unit, str)
        self._invalid = tuple(int(value) for value in invalid)
        super().__init__(
            root,
            images=images,
            maps=depths,
            split=split,
            ids=ids,
            image_suffix=image_suffix,
            map_suffix=depth_suffix,
            partial=partial,
            coarse=coarse,
            task=task,
            name=name,
            orientation=orientation,
            settings=(self._meters_per_unit, self._invalid),
        )

        first = next((file for file in self._maps if file is not None), None)
        with contextlib.suppress(UserError):  # told by name when it is read
            self._bits = _bits(read_bytes(first)) if first else 16
        if self._named_unit:
            labels.check_unit(sampled(self._maps, self._codes), unit, str(locate(root, depths, split)))

    def _label(self, file: Path, size: tuple[int, int]) -> Label:
        codes = self._codes(file)
        labels.same_size(codes, self._map_size(codes, size), str(file))
        return labels.depth(codes, self._meters_per_unit)

    def _codes(self, file: Path) -> np.ndarray:
        """The stored values, 0 where there is no measurement."""
        data = read_bytes(file)
        picture, bits = open_picture(data, str(file)), _bits(data)
        if picture.mode not in ("I;16", "I;16L", "I;16B", "I", "L") or bits < 8:
            raise UserError(f"{file}: depth needs a gray PNG of 16 or 8 bits, not mode {picture.mode} of {bits} bits")
        if bits == 8 and self._named_unit:
            raise UserError(
                f"{file}: 8-bit depth needs a number of meters per stored unit, such as unit={10 / 255:.4f} where 255 "
                "is 10 m; a map of 1 / depth has to be converted first"
            )
        if bits != self._bits:
            raise UserError(f"{file}: has {bits} bits, and the first map of the set {self._bits}: no unit fits both")
        codes = np.asarray(picture)
        if codes.min() < 0 or codes.max() > 65535:
            raise UserError(f"{file}: depth value {codes.max()} does not fit 16 bits")
        return np.where(np.isin(codes, self._invalid), 0, codes)


class NormalsPng(_Paired):
    """Surface normals: 8-bit RGB PNG, n = rgb / 255 * 2 - 1, or vectors in a NumPy file, as DIODE has them.

    Axes are the camera's, x right, y down, z forward, so visible surfaces have z < 0. Vectors far from unit length,
    such as gray or (0, 0, 0), are invalid; the others are normalized.

    Args:
      root: data set root.
      images: folder of the pictures below root; "{split}" is replaced here, in `normals` and in `ids`.
      normals: folder of the normal maps below root.
      negate: axes with the opposite sign in the files, such as "yz" for y up and z toward the camera.
      normals_suffix: end of map names; ".npy" at its end means NumPy files.
      split: name of the split.
      ids: optional list file below root, one key per line.
      image_suffix: end of picture names that is not part of the key, such as "_leftImg8bit"; with an extension, such as
        ".jpg", where maps lie beside the pictures.
      partial: allow pictures without a map, which then have no label, instead of raising an error.
      coarse: allow maps with one pixel per s x s pixels of the picture, rounded up, for any integer s.
      task: key of the labels.
      name: of the source; by default "<root>-<split>".
      orientation: see `FileSource`.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str,
        normals: str,
        negate: str = "",
        split: str = "",
        ids: str = "",
        image_suffix: str = "",
        normals_suffix: str = ".png",
        partial: bool = False,
        coarse: bool = False,
        task: str = "normals",
        name: str = "",
        orientation: str = DISPLAYED,
    ):
        if set(negate) - set("xyz"):
            raise UserError(f"negate={negate!r}: expected letters among x, y and z")
        self._signs = np.array([-1.0 if axis in negate else 1.0 for axis in "xyz"], np.float32)
        super().__init__(
            root,
            images=images,
            maps=normals,
            split=split,
            ids=ids,
            image_suffix=image_suffix,
            map_suffix=normals_suffix,
            partial=partial,
            coarse=coarse,
            task=task,
            name=name,
            orientation=orientation,
            settings=self._signs.tolist(),
        )

    def _label(self, file: Path, size: tuple[int, int]) -> Label:
        stored = _vectors(file) if file.suffix == ".npy" else _rgb(file)
        labels.same_size(stored, self._map_size(stored, size), str(file))
        vectors = stored * self._signs
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        valid = (length > 0.5) & (length < 1.5)  # (0, 0, 0) decodes to length 1.7
        vectors = np.where(valid, vectors / np.maximum(length, 1e-6), 0)
        if (vectors[..., 2] > 0).sum() > 0.9 * max(valid.sum(), 1):
            raise UserError(f"{file}: nearly all normals point away from the camera (z > 0); does it need negate='z'?")
        return labels.normals(vectors)


def _rgb(file: Path) -> np.ndarray:
    picture = open_picture(read_bytes(file), str(file))
    if picture.mode != "RGB":
        raise UserError(f"{file}: normals need an 8-bit RGB PNG, not mode {picture.mode}")
    return np.asarray(picture).astype(np.float32) / 255 * 2 - 1


def _vectors(file: Path) -> np.ndarray:
    try:
        stored = np.lib.format.read_array(io.BytesIO(read_bytes(file)), allow_pickle=False)
    except (ValueError, EOFError, MemoryError, RecursionError, SyntaxError) as error:
        raise UserError(f"{file}: not a NumPy array: {error}") from None
    if stored.ndim != 3 or stored.shape[-1] != 3 or not np.issubdtype(stored.dtype, np.floating):
        raise UserError(f"{file}: normals need floats [h, w, 3], not {stored.dtype} {list(stored.shape)}")
    return np.nan_to_num(stored.astype(np.float32), posinf=0.0, neginf=0.0)


def _bits(data: bytes) -> int:
    """Bits of a sample of a PNG, as its header says."""
    return data[24] if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 24 else 16


def sampled(files: Sequence[Path | None], read: Callable[[Path], np.ndarray], count: int = 8) -> list[np.ndarray]:
    """A few of the maps, as stored; broken ones are left for the reading of their pictures to name."""
    files = [file for file in files if file is not None]
    maps = []
    for file in files[:: -(-len(files) // count) or 1]:
        with contextlib.suppress(UserError):
            maps.append(read(file))
    return maps


def read_mask(file: Path) -> np.ndarray:
    """Stored ids, uint8 [H, W], of a PNG, gray or palette of any bit depth, or of an SBD .mat file."""
    if file.suffix == ".mat":
        return _read_sbd(file)
    return stored_ids(read_bytes(file), str(file))


def _read_sbd(file: Path) -> np.ndarray:
    """Class map of the Semantic Boundaries Dataset (Hariharan et al. 2011): GTcls.Segmentation."""
    from scipy.io import loadmat  # a dependency of JAX

    data = read_bytes(file)
    try:
        _check_unpacked(data)
        return np.asarray(loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0]).astype(np.uint8)
    except Exception as error:  # scipy documents no exception types for damaged files
        raise UserError(f"{file}: not an SBD mask: {type(error).__name__} {error}") from None


def _check_unpacked(data: bytes) -> None:
    """Refuses a .mat file whose deflated parts become more than the pixels that are decoded."""
    at = 128
    while at + 8 <= len(data):
        kind, size = np.frombuffer(data[at : at + 8], "<u4").tolist()
        if kind == 15:
            unpacked, part = zlib.decompressobj(), data[at + 8 : at + 8 + size]
            unpacked.decompress(part, MAX_PIXELS)
            if unpacked.unconsumed_tail:
                raise ValueError(f"more than {MAX_PIXELS:,} bytes when unpacked")
        at += 8 + size
