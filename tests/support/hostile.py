"""Inputs made to harm whoever reads them, each read in a process of its own with little memory and little time.

    python -m tests.support.hostile     a table: what was said of each, seconds, MiB

A case is a data set in which one file is hostile. It is met if reading everything ends in one line that names the file.
"""

import importlib
import json
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.support import folder_sets as sets

MEMORY, SECONDS = 192 << 20, 5  # above what the process has when it begins
DIGITS, MANY = "9" * 5000, 10**30
DEEP = 200_000


class Said(NamedTuple):
    """How the reading of a case ended: the last line, seconds, MiB at the peak above the start, whether it is met."""

    text: str
    seconds: float
    mib: float
    met: bool


def jpeg(size: tuple[int, int]) -> bytes:
    """A small JPEG whose header says another (height, width)."""
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        data = bytearray(sets.picture(Path(file.name)).read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", *size)
    return bytes(data)


def png(size: tuple[int, int], *, bits: int = 8, color: int = 2, chunks: bytes = b"") -> bytes:
    """A PNG with this header and next to no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], bits, color, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + pixels + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff(size: tuple[int, int]) -> bytes:
    """A TIFF with this header and one strip."""
    tags = [(256, size[1]), (257, size[0]), (258, 8), (259, 1), (262, 1), (273, 200), (278, size[0]), (279, 16)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(120)


def webp(size: tuple[int, int]) -> bytes:
    """An extended WebP whose canvas has this size."""
    canvas = struct.pack("<I", 0) + struct.pack("<I", size[1] - 1)[:3] + struct.pack("<I", size[0] - 1)[:3]
    frame = b"ANMF" + struct.pack("<I", 16) + bytes(16)
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(size: tuple[int, int]) -> bytes:
    """A GIF with this screen."""
    screen = struct.pack("<HHBBB", size[1], size[0], 0xF0, 0, 0) + bytes(6)
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, size[1], size[0], 0) + b"\x02\x02\x4c\x01\x00;"


def bmp(size: tuple[int, int]) -> bytes:
    """A BMP with this header."""
    header = struct.pack("<IiiHHIIiiII", 40, size[1], size[0], 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(header), 0, 0, 54) + header


HUGE = (65000, 65000)
PICTURES = {
    "jpeg": jpeg(HUGE),
    "png": png(HUGE),
    "gray png of 1 bit": png(HUGE, bits=1, color=0),
    "tiff": tiff(HUGE),
    "webp": webp(HUGE),
    "gif": gif(HUGE),
    "bmp": bmp(HUGE),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n",
}


def cases(root: Path) -> Iterator[tuple[str, str, Callable[[], dict]]]:
    """(name, file that has to be named, make() -> section of the data set), each below a folder of its own."""

    def place(name: str) -> Path:
        (path := root / name.replace(" ", "_").replace("/", "_")).mkdir()
        return path

    for make in (_pictures, _special, _outside, _jsons, _others):
        yield from make(place)


def _pictures(place) -> Iterator:
    for name, data in PICTURES.items():

        def photos(name=name, data=data):
            (path := place(f"picture {name}")).joinpath("a.jpg").write_bytes(data)
            return {"kind": "photos", "root": str(path)}

        yield f"picture: {name}", "a.jpg", photos
    wide = png(HUGE, chunks=b"")
    for make, file, data in (
        (sets.mask_png, "masks/a_ids.png", png(HUGE, color=0)),
        (sets.depth_png, "depth/a.png", png(HUGE, bits=16, color=0)),
        (sets.normals_png, "normals/a.png", wide),
        (sets.voc, "SegmentationClass/a.png", png(HUGE, color=3, chunks=chunk(b"PLTE", bytes(768)))),
    ):

        def dense(make=make, file=file, data=data):
            section = make(path := place(f"map {file}"))
            (path / file).write_bytes(data)
            return section | ({"tasks": ["segmentation"]} if make is sets.voc else {})

        yield f"map: {file}", file, dense

    def vectors():
        section = sets.normals_png(path := place("npy"))
        (path / "normals" / "a.npy").write_bytes(_npy("(900000, 900000, 3)"))
        return {**section, "normals_suffix": ".npy"}

    yield "map: npy whose header says 10 TB", "a.npy", vectors

    def panoptic():
        section = _panoptic(path := place("panoptic"))
        (path / "maps" / "a.png").write_bytes(wide)
        return section

    yield "map: panoptic png", "maps/a.png", panoptic

    def frames():
        for k in range(2):
            sets.picture((path := root_of(place, "frames", k)) / "clip" / f"{k}.jpg")
        (path / "clip" / "1.jpg").write_bytes(jpeg(HUGE))
        return {"kind": "frame_folders", "root": str(path), "list": ""}

    yield "frame of a clip", "1.jpg", frames

    def video():
        (path := place("video")).joinpath("cat").mkdir()
        _video(path / "cat" / "a.avi", HUGE)
        return {"kind": "video_files", "root": str(path), "task": ""}

    yield "video", "a.avi", video

    def playlist():
        (path := place("playlist")).joinpath("cat").mkdir()
        _video(path / "secret.avi")
        (path / "cat" / "a.avi").write_text("ffconcat version 1.0\nfile ../secret.avi\n")
        return {"kind": "video_files", "root": str(path), "clips": "cat", "task": ""}

    yield "video that is a list of files", "a.avi", playlist


_made: dict[str, Path] = {}


def root_of(place, name: str, k: int) -> Path:
    """The folder of a case that is made in several steps."""
    if not k:
        _made[name] = place(name)
    return _made[name]


def _special(place) -> Iterator:
    for name, make in (
        ("fifo", os.mkfifo),
        ("link to /dev/zero", lambda file: file.symlink_to("/dev/zero")),
        ("link to itself", lambda file: file.symlink_to(file)),
        ("sparse file of 1 TB", lambda file: (file.touch(), os.truncate(file, 1 << 40))),
    ):
        for role, build, target in (
            ("picture", lambda path: {"kind": "photos", "root": str(path)}, "a.jpg"),
            ("json", sets.coco, "labels.json"),
            ("xml", sets.voc, "Annotations/a.xml"),
            ("depth map", sets.depth_png, "depth/a.png"),
            ("video", _video_set, "cat/a.avi"),
            ("provenance", _records, "provenance.json"),
            ("shard", _records, "toy-train.array_record-00000-of-00001"),
            ("about", _label_files, "about.json"),
            ("class list", _classes, "classes.txt"),
        ):
            if name.startswith("sparse") and role in ("shard", "depth map", "xml"):
                continue  # as the others

            def special(name=name, make=make, role=role, build=build, target=target):
                section = build(path := place(f"{role} {name}"))
                (path / target).unlink(missing_ok=True)
                make(path / target)
                return section

            yield f"{role}: {name}", os.path.basename(target).partition(".")[0], special


def _outside(place) -> Iterator:
    ways = (("..", "../../secret.jpg"), ("absolute", None), ("link", "link.jpg"), ("folder", "far/s.jpg"))
    for name, written in ways:

        def made(build, path, written):
            section = build(path)
            secret = sets.picture(path.parent / "secret.jpg")
            sets.picture(path.parent / "elsewhere" / "s.jpg")
            return section, written or str(secret), secret

        def coco(name=name, written=written):
            (path := place(f"coco {name}") / "set").mkdir()
            section, written, secret = made(sets.coco, path, written)
            (path / "images" / "link.jpg").symlink_to(secret)
            (path / "images" / "far").symlink_to(path.parent / "elsewhere")
            content = json.loads((path / "labels.json").read_text())
            content["images"][0] = {"id": 7, "file_name": written}
            (path / "labels.json").write_text(json.dumps(content))
            return section

        yield f"file_name of COCO leads out: {name}", "leads to", coco

        def panoptic(name=name, written=written):
            (path := place(f"panoptic {name}") / "set").mkdir()
            section, written, secret = made(_panoptic, path, written)
            (path / "maps" / "link.jpg").symlink_to(secret)
            (path / "maps" / "far").symlink_to(path.parent / "elsewhere")
            content = json.loads((path / "labels.json").read_text())
            content["annotations"][0]["file_name"] = written
            (path / "labels.json").write_text(json.dumps(content))
            return section

        yield f"file_name of a panoptic map leads out: {name}", "leads to", panoptic

        def clips(name=name, written=written):
            (path := place(f"clips {name}") / "set").mkdir()
            _, written, _ = made(lambda path: sets.picture(path / "inside" / "a.jpg"), path, written)
            written = os.path.dirname(written) or "clip"
            (path / "clip").symlink_to(path.parent / "elsewhere")
            (path / "far").symlink_to(path.parent / "elsewhere")
            (path / "list.txt").write_text(f"inside\n{written}\n")
            return {"kind": "frame_folders", "root": str(path), "list": "list.txt"}

        yield f"clip of a list leads out: {name}", "leads to", clips

    def photos():
        (path := place("photos link") / "set").mkdir()
        (path / "a.jpg").symlink_to(sets.picture(path.parent / "secret.jpg"))
        return {"kind": "photos", "root": str(path)}

    yield "link of a folder leads out", "a.jpg", photos

    def folders():
        (path := place("photos folder") / "set").mkdir()
        sets.picture(path.parent / "elsewhere" / "s.jpg")
        (path / "far").symlink_to(path.parent / "elsewhere")
        return {"kind": "photos", "root": str(path)}

    yield "link to a folder leads out", "far", folders

    def shard():
        section = _records(path := place("shard name"))
        facts = json.loads((path / "provenance.json").read_text())
        facts["shards"][0]["file"] = f"../{path.name}/{facts['shards'][0]['file']}"
        (path / "provenance.json").write_text(json.dumps(facts))
        return section

    yield "shard of records leads out", "provenance.json", shard

    def labels():
        section = _label_files(path := place("label files"))
        sets.picture(path.parent / "secret.jpg")
        rows = (path / "examples.csv").read_text().splitlines()
        rows[1] = "../../secret.jpg," + rows[1].split(",", 1)[1]
        (path / "examples.csv").write_text("\n".join(rows) + "\n")
        return section

    yield "picture of label files leads out", "leads to", labels


def _jsons(place) -> Iterator:
    deep = "[" * DEEP + "]" * DEEP
    for name, value in (("deep", deep), ("5,000 digits", DIGITS), ("4,000 digits", DIGITS[:4000]), ("1e30", str(MANY))):
        for key in ("id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "area", "score", "width"):

            def coco(name=name, value=value, key=key):
                section = sets.coco(path := place(f"coco {key} {name}"))
                file = path / "labels.json"
                content = json.loads(file.read_text())
                entry = content["images" if key == "width" else "annotations"][0]
                # Most values are wrong themselves; where one is not, the two annotations are the same.
                entry[key] = ["@", 1, 1, 1] if key == "bbox" and name != "deep" else "@"
                text = json.dumps(content).replace('"@"', value)
                file.write_text(text if key not in ("id", "area") else text.replace('"bbox": [', '"bbox": ["x", '))
                return {**section, "tasks": ["detection", "segmentation", "instances"]}

            yield f"COCO: {key}: {name}", "labels.json", coco
    for name, shape in (
        ("counts", {"size": list(sets.SIZE), "counts": [MANY]}),
        ("size", {"size": [MANY, MANY], "counts": [MANY]}),
        ("both of 10^15", {"size": [10**7, 10**8], "counts": [10**15]}),
        ("text", {"size": list(sets.SIZE), "counts": "o" * 100_000}),
        ("text of large numbers", {"size": list(sets.SIZE), "counts": "____________0" * 50}),
        ("polygon", [[0, 0, 10**30, 0, 10**30, 10**30]]),
        ("fractions", {"size": list(sets.SIZE), "counts": [1e-300, 192]}),
    ):

        def rle(name=name, shape=shape):
            def change(content):
                content["annotations"][0]["segmentation"] = shape

            return {**sets.coco(place(f"rle {name}"), change), "tasks": ["segmentation"]}

        yield f"COCO: segmentation: {name}", "labels.json", rle

    def panoptic():
        section = _panoptic(path := place("panoptic digits"))
        text = (path / "labels.json").read_text()
        (path / "labels.json").write_text(text.replace('"segments_info": [', f'"segments_info": [{DIGITS}, '))
        return section

    yield "panoptic: 5,000 digits", "labels.json", panoptic


def _others(place) -> Iterator:
    laughs = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 12))
    box = f"<object><name>a</name><bndbox><xmin>{DIGITS}</xmin></bndbox></object>"
    entity = '<!DOCTYPE x [<!ENTITY f SYSTEM "/etc/passwd">]>'
    for name, text in (
        ("billion laughs", f'<!DOCTYPE x [<!ENTITY a0 "{"ha" * 50}">{laughs}]><annotation>&a11;</annotation>'),
        ("another file", f"{entity}<annotation><object><name>&f;</name></object></annotation>"),
        ("deep", "<a>" * (DEEP // 10)),
        ("5,000 digits", f"<annotation>{box}</annotation>"),
        ("size of 5,000 digits", f"<annotation><size><width>{DIGITS}</width><height>9</height></size></annotation>"),
        ("size of 1e300", "<annotation><size><width>1e300</width><height>9</height></size></annotation>"),
    ):

        def voc(name=name, text=text):
            section = sets.voc(path := place(f"voc {name}"))
            (path / "Annotations" / "a.xml").write_text(text)
            return section

        yield f"VOC: {name}", "a.xml", voc
    laughs = "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12))
    for name, text in (
        ("billion laughs", f"a0: &a0 [ha, ha]\n{laughs}names: *a11\n"),
        ("billion laughs in a name", f"a0: &a0 [ha, ha]\n{laughs}names: [*a11, b]\n"),
        ("billion laughs in kpt_shape", f"a0: &a0 [ha, ha]\n{laughs}names: [cat]\nkpt_shape: *a11\n"),
        ("a list in itself", "names: &a [*a]\n"),
        ("deep", "[" * DEEP),
        ("5,000 digits", f"names: {{{DIGITS}: cat}}\n"),
        ("a date that is none", "names: [2001-99-99]\n"),
        ("an object", "names: !!python/object/apply:os.getcwd []\n"),
    ):

        def yolo(name=name, text=text):
            path = place(f"yolo {name}")
            sets.picture(path / "images" / "a.jpg")
            (path / "labels").mkdir()
            (path / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n")
            (path / "data.yaml").write_text(text)
            return {"kind": "yolo", "root": str(path), "images": "images"}

        yield f"YOLO: {name}", "data.yaml", yolo

    def box():
        path = place("yolo box")
        sets.picture(path / "images" / "a.jpg")
        (path / "labels").mkdir()
        (path / "labels" / "a.txt").write_text(f"0 .5 .5 .2 {DIGITS}\n")
        return {"kind": "yolo", "root": str(path), "images": "images", "classes": ["a"]}

    yield "YOLO: box of 5,000 digits", "a.txt", box

    def clips():
        path = place("clip digits")
        sets.picture(path / "clip" / "a.jpg")
        (path / "list.txt").write_text(f"clip {DIGITS}\n")
        return {"kind": "frame_folders", "root": str(path), "list": "list.txt", "classes": ["a"]}

    yield "list of clips: 5,000 digits", "list.txt", clips

    def table():
        path = place("table")
        sets.picture(path / "a.jpg")
        (path / "t.csv").write_text('a.jpg,"' + "x" * 300_000)
        return {"kind": "image_csv", "root": str(path), "table": "t.csv"}

    yield "table: a cell of 300,000 characters", "t.csv", table
    for name, text in (("deep", "[" * DEEP), ("5,000 digits", f'{{"{DIGITS}": "a"}}'), ("a number", DIGITS)):

        def classes(name=name, text=text):
            section = sets.mask_png(path := place(f"classes {name}"))
            (path / "c.json").write_text(text)
            return {**section, "classes": "c.json"}

        yield f"class names: {name}", "c.json", classes
    for name, change in (
        ("deep", lambda text: "[" * DEEP),
        ("5,000 digits", lambda text: text.replace('"count": ', f'"count": {DIGITS}')),
        ("a shape of 10^30", lambda text: text.replace('"shape": [null', f'"shape": [{MANY}')),
    ):

        def records(name=name, change=change):
            section = _records(path := place(f"records {name}"))
            file = path / "provenance.json"
            file.write_text(change(file.read_text()))
            return section

        yield f"provenance of records: {name}", "", records

    def archive():
        import tarfile

        path = place("archive")
        with tarfile.open(path / "set.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("../../escaped.jpg"))
        (path / "a.jpg").write_bytes((path / "set.tar").read_bytes())
        return {"kind": "photos", "root": str(path)}

    yield "archive: tar in the place of a picture", "a.jpg", archive

    def folder():
        path = place("archive as folder")
        (path / "set.zip").write_bytes(b"PK\5\6" + bytes(18))
        return {"kind": "photos", "root": str(path / "set.zip")}

    yield "archive: zip in the place of a folder", "set.zip", folder


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)


def _panoptic(path: Path) -> dict:
    sets.picture(path / "images" / "a.jpg")
    sets.png(path / "maps" / "a.png", np.zeros((*sets.SIZE, 3), np.uint8))
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "sky"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": []}],
    }
    (path / "labels.json").write_text(json.dumps(content))
    kinds = {"images": "images", "annotations": "labels.json", "masks": "maps"}
    return {"kind": "coco_panoptic", "root": str(path), **kinds}


def _classes(path: Path) -> dict:
    (path / "classes.txt").write_text("void\nroad\n")
    return {**sets.mask_png(path, np.zeros(sets.SIZE, np.uint8)), "classes": "classes.txt"}


def _video(file: Path, size: tuple[int, int] | None = None) -> None:
    """Writes a short video, whose header may say another (height, width)."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if size:
        data = file.read_bytes().replace(struct.pack("<II", 16, 16), struct.pack("<II", *size[::-1]))
        at = 0
        while (at := data.find(b"\xff\xc0", at + 1)) > 0:
            data = data[: at + 5] + struct.pack(">HH", *size) + data[at + 9 :]
        file.write_bytes(data)


def _video_set(path: Path) -> dict:
    (path / "cat").mkdir()
    _video(path / "cat" / "a.avi")
    return {"kind": "video_files", "root": str(path)}


def _records(path: Path) -> dict:
    from tests.support.toy_labels import ToySource, label_toy

    label_toy(path, source=ToySource(4), shards=1)
    return {"kind": "records", "directory": str(path)}


def _label_files(path: Path) -> dict:
    from must.export.labels import export_labels
    from tests.support.random_labels import TASKS, Labeled

    path.rmdir()
    export_labels(path, Labeled(["pool/a", "pool/b"], missing=False), TASKS, images=True)
    return {"kind": "label_files", "directory": str(path)}


def read(section: dict) -> None:
    """Reads all of a data set: fingerprint, sizes, pictures, labels."""
    from must.data.sources import source

    data = source(**section)
    _ = data.fingerprint
    for index in range(len(data)):
        image = data[index].image
        _ = image[np.arange(image.shape[0])] if len(image.shape) == 4 else np.asarray(image)
        if hasattr(data, "labels"):
            data.labels(index)


def attack(name: str, wanted: str, section: dict) -> Said:
    """Reads a case in a fork, under a cap of memory and time."""
    gather, send = os.pipe()
    began = time.perf_counter()
    if (child := os.fork()) == 0:
        os.close(gather)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_AS, (_now() + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(SECONDS)
        before, text = _now("VmRSS"), "was read without a word"
        try:
            read(section)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        peak = max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
        os.write(send, json.dumps([text[:600], peak / 2**20]).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(gather, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    text, mib = json.loads(told) if told else ("killed: no answer in time, or a crash", float("nan"))
    met = text.startswith("UserError: ") and wanted in text and "\n" not in text
    return Said(text, time.perf_counter() - began, mib, met)


def _now(kind: str = "VmSize") -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[kind].split()[0]) * 1024


def attacks() -> dict[str, Said]:
    """All cases."""
    for module in ("coco", "dense", "label_files", "records", "video", "voc"):  # once, before the forks
        importlib.import_module(f"must.readers.{module}")

    found = {}
    with tempfile.TemporaryDirectory() as top:
        for name, wanted, make in cases(Path(top)):
            found[name] = attack(name, wanted, make())
    return found


def main() -> None:
    found = attacks()
    if "--json" in sys.argv:
        print(json.dumps(found))
        return
    for name, said in sorted(found.items(), key=lambda one: one[1].met):
        print(f"{'met' if said.met else 'NOT'} {said.seconds:6.2f} s {said.mib:6.0f} MiB  {name}: {said.text[:150]}")
    print(f"{sum(said.met for said in found.values())} of {len(found)}")


if __name__ == "__main__":
    main()
