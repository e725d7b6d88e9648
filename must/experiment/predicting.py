"""`--stage=predict`: every head of the students on pictures and videos that nobody has annotated.

Pictures go through a label pass (`must.pseudo_label.write`), so that a killed run goes on where it was; its records are
what the files are written from.

    labels/            COCO json, PNG, csv: `must.export.labels`
    pictures/          one sheet per picture: the picture and what each head predicts for it
    rejects.json       files that could not be read, with reasons
    about.json         networks, options, counts; written last
"""

import contextlib
import json
import os
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from must.core import files, memory
from must.core.types import Example, Label, Source, Teacher, UserError
from must.data.clips import ClipEncoder
from must.data.combine import hash_of, labels_of
from must.data.geometry import own_frame, transform_image, whole_image
from must.data.merge import Concat
from must.experiment import networks, sections
from must.experiment.progress import Display
from must.export.labels import export_labels
from must.export.predict import Part, Predictor, predicted
from must.pseudo_label.write import label_images
from must.readers.fields import understood
from must.readers.files import FileSource, walk
from must.readers.names import PICTURES, file_of, readable
from must.readers.records import PROVENANCE, Records
from must.readers.video import VIDEOS, VideoFile, VideoFrames, read_table
from must.report.pictures import contact_sheet, stacked, write_picture
from must.tasks.base import Exports, Task

ABOUT, REJECTS, LABELS, SHEETS, WORK = "about.json", "rejects.json", "labels", "pictures", "unfinished"
_LARGEST, _CELL = 640, (240, 480)  # pixels: of a picture that is drawn on; width of a cell of a sheet
_BATCHES = (4, 16, 64)  # that are tried
_GAIN = 1.1  # by which a larger batch has to be faster


@dataclass(frozen=True)
class Options:
    """Options of `--stage=predict`.

    Attributes:
      networks: directories below the workdir; by default the recipe's students.
      tiles: (rows, columns) of overlapping parts in which each picture is seen, beside once as a whole.
      overlap: of neighboring tiles, as a share of the network's frame.
      batch_size: images of one forward pass; 0 takes the fastest that fits.
      fps: frames per second of videos that networks of pictures see; 0 takes all.
      min_score: score from which boxes are written.
      pictures: write the sheets.
    """

    networks: tuple[str, ...] = ()
    tiles: tuple[int, int] = (1, 1)
    overlap: float = 0.25
    batch_size: int = 0
    fps: float = 2.0
    min_score: float = 0.0
    pictures: bool = True

    def __post_init__(self):
        if min(self.tiles) < 1:
            raise ValueError(f"tiles={self.tiles}: rows and columns, at least 1")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap={self.overlap}: must be at least 0 and below 1")
        if self.batch_size < 0 or self.fps < 0:
            raise ValueError("batch_size and fps: must not be negative")


class Found(NamedTuple):
    """What is to be predicted.

    Attributes:
      source: the pictures, or the videos for networks of clips.
      rejects: [[id, reason]] of what could not be opened.
      files: {id: name of the file}.
    """

    source: Source
    rejects: list[list[str]]
    files: Mapping[str, str] = {}


def predict(students: Mapping[str, str], workdir: str, request: Any, options: Options) -> None:
    """Writes what the students predict for a folder, a picture or a video.

    Args:
      students: {name: directory of its network}.
      workdir: below which the files are written by default.
      request: `images` and `output` of the command line.
      options: of the stage.

    Raises:
      UserError: nothing to predict, all of it unreadable, or an output folder that holds something else.
    """
    predictor = networks.predictor(students)
    videos = any(isinstance(part.encoder, ClipEncoder) for part in predictor.parts)
    found = videos_in(request.images) if videos else pictures_in(request.images, options.fps)
    name = Path(os.path.abspath(request.images)).name
    output = os.path.abspath(request.output or os.path.join(workdir, "predictions", name))
    asked = {name: value for name, value in sections.plain(options).items() if name not in ("networks", "batch_size")}
    prints = [part.teacher.fingerprint for part in predictor.parts]
    identity = hash_of("predictions", found.source.fingerprint, *prints, repr(asked))
    if _about(output).get("identity") == identity:
        print(f"predicted already: {output}")
        return
    run = _predict_videos if videos else _predict_pictures
    with Display(1) as display:
        start = time.time()
        report = lambda *progress: display.update(f"predict {name}", *progress)  # noqa: E731
        counts, rejects = run(predictor, found, output, identity, options, report)
        display.finish(f"predict {name}", time.time() - start)
    rejects = [*found.rejects, *rejects]
    files.write_json(os.path.join(output, REJECTS), {"count": len(rejects), "rejects": rejects})
    about = {"images": os.path.abspath(request.images), "identity": identity, "options": asked, "counts": counts}
    about |= {"networks": {part.teacher.name: list(part.teacher.tasks) for part in predictor.parts}}
    files.write_json(os.path.join(output, ABOUT), about)
    left_out = f"; {len(rejects)} files left out, see {os.path.join(output, REJECTS)}" if rejects else ""
    print(f"predicted {counts['predicted']}: {output}{left_out}")


def check_images(path: str) -> None:
    """UserError unless there is something to predict."""
    if not path:
        raise UserError("--stage=predict: --images=DIR is required: a folder, a picture or a video")
    if not os.path.exists(path):
        raise UserError(f"--images={path}: no such file or folder")
    if os.path.isfile(path) and Path(path).suffix.lower() not in (*PICTURES, *VIDEOS):
        raise UserError(f"--images={path}: neither a folder nor a picture or a video")


def _about(output: str) -> dict[str, Any]:
    """Of finished predictions; UserError for a folder that holds anything but predictions."""
    with contextlib.suppress(UserError):
        return files.read_json(os.path.join(output, ABOUT))
    if os.path.isdir(output) and set(os.listdir(output)) - {LABELS, SHEETS, WORK, REJECTS, f"{LABELS}.partial"}:
        raise UserError(f"{output}: holds other files and no predictions; choose another folder with --output=DIR")
    return {}


def pictures_in(path: str, fps: float) -> Found:
    """The pictures of a folder, with those of its videos; or of one file.

    Raises:
      UserError: nothing there.
    """
    root, pictures, videos = _files(path)
    sources: list[Source] = [FileSource(root.name, pictures)] if pictures else []
    rejects: list[list[str]] = []
    for key, file in videos.items():
        try:
            sources.append(VideoFrames(f"{root.name}-frames", {key: file}, fps=fps))
        except UserError as error:
            rejects.append([f"{root.name}/{key}", str(error)])
    if not sources:
        raise UserError(rejects[0][1] if rejects else f"--images={path}: holds no pictures and no videos")
    return Found(Concat(sources) if len(sources) > 1 else sources[0], rejects, _named(root, pictures))


def videos_in(path: str) -> Found:
    """The videos of a folder, or one file, as clips.

    Raises:
      UserError: nothing there that can be read.
    """
    root, pictures, videos = _files(path)
    whole: dict[str, VideoFile] = {}
    rejects: list[list[str]] = []
    for key, file in videos.items():
        try:
            whole[f"{root.name}/{key}"] = VideoFile(file, read_table(file))
        except UserError as error:
            rejects.append([f"{root.name}/{key}", str(error)])
    if not whole:
        what = f"{len(pictures)} pictures but no videos" if pictures else "no videos"
        raise UserError(
            rejects[0][1] if rejects else f"--images={path}: holds {what}, which these networks of clips read"
        )
    return Found(_Videos(root.name, whole), rejects, _named(root, videos))


def _named(root: Path, found: Mapping[str, Path]) -> dict[str, str]:
    """{id: what `must.export.labels` calls the file}, with its own extension."""
    ids = {f"{root.name}/{readable(key)}": file for key, file in found.items()}
    return {id: file_of(id) + file.suffix for id, file in ids.items()}


def _files(path: str) -> tuple[Path, dict[str, Path], dict[str, Path]]:
    """(folder, its pictures, its videos by key): keys are relative paths, without extension if they can."""
    top = Path(os.path.abspath(path))
    root = top.parent if top.is_file() else top
    names = [top] if top.is_file() else sorted(Path(folder, name) for folder, below in walk(top) for name in below)
    found = []
    for kinds in (PICTURES, VIDEOS):
        mine = [file for file in names if file.suffix.lower() in kinds]
        stems = Counter(file.with_suffix("") for file in mine)
        keys = [file.with_suffix("") if stems[file.with_suffix("")] == 1 else file for file in mine]
        found.append({key.relative_to(root).as_posix(): file for key, file in zip(keys, mine, strict=True)})
    return root, found[0], found[1]


def fastest_batch(teachers: Sequence[Teacher], count: int) -> int:
    """The batch size with the highest rate, of those that fit into memory and are no more than needed."""
    best, rate = 1, 0.0
    for size in _BATCHES:
        size, before = min(size, count), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = []
        try:
            for _ in range(2):  # compiled, then timed
                start = time.perf_counter()
                for teacher in teachers:
                    jax.block_until_ready(teacher.predict(np.zeros((size, *teacher.size, 3), np.uint8)))
                seconds.append(time.perf_counter() - start)
        except Exception as error:  # XLA has a type of its own for it
            if (best == 1 and not rate) or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            break
        if size / seconds[-1] < _GAIN * rate:
            break
        best, rate = size, size / seconds[-1]
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if size == count or 4 * grown > memory.available() // 2:
            break
    return best


def _predict_pictures(
    predictor: Predictor, found: Found, output: str, identity: str, options: Options, report: Callable[..., None]
) -> tuple[dict[str, int], list[list[str]]]:
    """(counts, what could not be read), by a label pass that goes on where an earlier one was killed."""
    parts = [part.tiled(options.tiles, options.overlap) for part in predictor.parts]
    teachers = [part.teacher for part in parts]
    work = os.path.join(output, WORK)
    for other in os.listdir(work) if os.path.isdir(work) else ():
        if other != identity:
            shutil.rmtree(os.path.join(work, other))
    directory = os.path.join(work, identity, "predictions", "1.0.0")
    plan = os.path.join(work, identity, "plan.json")
    if not os.path.exists(plan):
        os.makedirs(os.path.dirname(plan), exist_ok=True)
        files.write_json(plan, {"batch_size": options.batch_size or fastest_batch(teachers, len(found.source))})
    batch_size = files.read_json(plan)["batch_size"]
    keep_aspect = parts[0].encoder.keep_aspect
    pass_options = {"batch_size": batch_size, "copy_images": False, "keep_aspect": keep_aspect, "max_rejects": 1.0}
    summary = label_images(directory, "predictions", found.source, teachers, progress=report, **pass_options)
    rejects = _rejects(directory)
    if not summary.records:
        raise UserError(f"{found.source.name}: none of {len(found.source)} pictures can be read; {rejects[0][1]}")
    tasks = predictor.tasks
    records = Records(directory, tasks=list(tasks), images=found.source, verify=False)
    counts = _write(_Named(records, found.files), tasks, output, options, report)
    shutil.rmtree(work)
    return {**counts, "batch_size": batch_size}, rejects


def _rejects(directory: str) -> list[list[str]]:
    """[[id, reason]] of a label pass."""
    listed = files.read_json(os.path.join(directory, PROVENANCE))["rejects"]
    if not listed.get("count"):
        return []
    path = os.path.join(directory, os.path.basename(listed["file"]))
    with understood(path):
        lines = [json.loads(line) for line in files.read_bytes(path).decode().splitlines()]
        return [[line["id"], line["reason"]] for line in lines]


def _predict_videos(
    predictor: Predictor, found: Found, output: str, identity: str, options: Options, report: Callable[..., None]
) -> tuple[dict[str, int], list[list[str]]]:
    """The same for clips, whose labels are small: they are kept in memory and written at once."""
    del identity
    if options.tiles != (1, 1):
        raise UserError(f"--options.tiles={options.tiles}: clips are predicted whole")
    rejects: list[list[str]] = []
    labels: dict[str, dict[str, Label]] = {}
    for index in range(len(found.source)):
        example = found.source[index]
        try:
            rows = [predicted(part, [example], 1)[0] for part in predictor.parts]
            labels[example.id] = {name: label for row in rows for name, label in row.items()}
        except UserError as error:
            rejects.append([example.id, str(error)])
        report(index + 1, len(found.source))
    if not labels:
        raise UserError(f"{found.source.name}: none of {len(found.source)} videos can be read; {rejects[0][1]}")
    source = _Named(found.source, found.files, labels)
    return _write(source, predictor.tasks, output, options, report, predictor.parts), rejects


class _Videos:
    """Opened videos without labels, a `Source`."""

    def __init__(self, name: str, videos: Mapping[str, VideoFile]):
        self.name, self.ids, self.classes, self._videos = name, list(videos), {}, list(videos.values())
        self.fingerprint = hash_of("videos", *(video.fingerprint() for video in self._videos))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        return Example(self.ids[index], self._videos[index], {})


class _Named:
    """A source that knows what its examples' files are called, and may have predictions for some of them alone."""

    def __init__(self, source: Source, named: Mapping[str, str], labels: Mapping[str, dict[str, Label]] | None = None):
        self._source, self._files, self._labels = source, named, labels
        self._indices = [i for i, id in enumerate(source.ids) if labels is None or id in labels]
        self.name, self.classes, self.fingerprint = source.name, source.classes, source.fingerprint
        self.ids = [source.ids[i] for i in self._indices]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        example = self._source[self._indices[index]]
        return example if self._labels is None else example._replace(labels=self._labels[example.id])

    def labels(self, index: int) -> dict[str, Label]:
        return labels_of(self._source, self._indices[index]) if self._labels is None else self._labels[self.ids[index]]

    def file(self, index: int) -> str:
        return self._files.get(self.ids[index], file_of(self.ids[index]) + ".png")


def _write(
    source: Source,
    tasks: Mapping[str, Task],
    output: str,
    options: Options,
    report: Callable[..., None],
    clips: Sequence[Part] = (),
) -> dict[str, int]:
    """The files of all predictions, and the sheets."""
    written = {name: task for name, task in tasks.items() if isinstance(task, Exports)}
    counts = export_labels(os.path.join(output, LABELS), source, written, min_score=options.min_score)
    if options.pictures:
        with files.whole_directory(os.path.join(output, SHEETS), replace=True) as partial:
            for index in range(len(source)):
                sheet = clip_sheet(source[index], clips) if clips else picture_sheet(source[index], tasks)
                write_picture(os.path.join(partial, file_of(source.ids[index]) + ".jpg"), sheet)
                report(index + 1, len(source), "pictures")
    return {"predicted": len(source), **counts}


def picture_sheet(example: Example, tasks: Mapping[str, Task]) -> np.ndarray:
    """A picture beside what each head predicts for it, uint8 [h, w, 3]."""
    size = example.image.shape[:2]
    shrink = min(1.0, _LARGEST / max(size))
    frame = tuple(max(1, round(side * shrink)) for side in size)
    geometry = whole_image(size, frame, keep_aspect=False)
    image = transform_image(example.image, geometry)
    drawn = [task.draw(image, task.transform(example.labels[name], geometry)) for name, task in tasks.items()]
    return _sheet(readable(example.id.partition("/")[2]), image, drawn, list(tasks))


def clip_sheet(example: Example, parts: Sequence[Part]) -> np.ndarray:
    """The frames that the networks see of a video, with what they predict."""
    drawn, names, first = [], [], None
    for part in parts:
        clip = next(iter(part.encoder(example._replace(labels={}), 0, np.random.default_rng(0)).inputs.values()))
        first = clip[len(clip) // 2] if first is None else first
        for name, task in part.teacher.tasks.items():
            drawn.append(task.draw(clip, task.transform(example.labels[name], own_frame(clip.shape[1:3]))))
            names.append(name)
    return _sheet(readable(example.id.partition("/")[2]), first, drawn, names)


def _sheet(title: str, image: np.ndarray, drawn: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """At most four columns, the rows about equally long."""
    count = len(drawn) + 1
    columns = -(-count // -(-count // 4))
    pictures, captions = [image, *drawn], [title, *names]
    rows = [
        contact_sheet([pictures[at : at + columns]], captions[at : at + columns], cell=_CELL)
        for at in range(0, len(pictures), columns)
    ]
    return stacked(rows)


def spread(count: int, most: int) -> list[int]:
    """At most so many indices, over all."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
