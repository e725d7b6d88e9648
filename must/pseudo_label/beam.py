"""The label pass as a pipeline of Apache Beam: its runners share out the shards, repeat what fails and add machines."""

import inspect
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from must.core.arguments import path_of
from must.core.types import Source, Teacher, UserError
from must.pseudo_label.infer import Labeller
from must.pseudo_label.write import Job, Summary, begin, label_images

Make = Callable[[], tuple[Source, Sequence[Teacher]]]


class ShardFunction:
    """Labels one shard, wherever it is called: a file with the same bytes every time, checked, hashed and recorded.

    Any process may call it, again and at the same moment as others. It travels without what `make` makes: every process
    makes images and teachers once for itself.

    Args:
      directory, name: as of `must.label_images`.
      make: () -> (images, teachers); picklable.
      options: further arguments of `must.label_images`.
    """

    def __init__(self, directory: str | os.PathLike, name: str, make: Make, **options: Any):
        self.directory, self._name, self._make = os.path.abspath(path_of(directory, "directory")), name, make
        self._options, self._opened = _named(options), None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def __call__(self, shard: int) -> int:
        """Returns the shard when it is done.

        Raises:
          UserError: as `must.label_images`.
        """
        if self._opened is None:
            source, teachers = self._make()
            job = self.claimed(source, teachers)
            if job is None:
                return shard
            size = self._options["batch_size"]
            self._opened = job, Labeller(source, teachers, size, **_looks(self._options))
        job, labeller = self._opened
        job.label_one(labeller, shard)
        return shard

    def claimed(self, source: Source, teachers: Sequence[Teacher]) -> Job | None:
        """The directory as this process sees it, None when it is complete."""
        options = {key: value for key, value in self._options.items() if key not in ("copy_images", "keep_aspect")}
        job, expected = begin(self.directory, self._name, source, teachers, _looks(self._options), **options)
        return job if job.claim(expected) else None


def label_with_beam(
    directory: str | os.PathLike, name: str, make: Make, *, pipeline: Sequence[str] = (), **options: Any
) -> Summary:
    """Labels as `must.label_images` does, the same bytes, by the workers of an Apache Beam pipeline.

    The directory is one that all workers and the caller see. What was done stays done: the same call resumes, and
    `must.label_images` with the same arguments goes on from there, too.

    Args:
      directory, name: as of `must.label_images`.
      make: () -> (images, teachers), called here and in every worker process; picklable, such as a function of a module
        that the workers have.
      pipeline: options of Beam, such as ("--runner=FlinkRunner", "--parallelism=8").
      options: further arguments of `must.label_images`, but `worker` and `progress`.

    Raises:
      UserError: Beam is not installed, the pipeline ends before it is done, or as `must.label_images`.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("Apache Beam is not installed: pip install must[beam]") from None
    shard_function = ShardFunction(directory, name, make, **options)
    source, teachers = make()
    job = shard_function.claimed(source, teachers)
    if job is not None and (missing := job.missing()):
        made = apache_beam.Pipeline(options=PipelineOptions([*pipeline]))
        # Without the shuffle one worker would make the numbers and label all of them.
        shards = made | "shards" >> apache_beam.Create(missing) | apache_beam.Reshuffle()
        _ = shards | "label" >> apache_beam.Map(shard_function).with_output_types(int)
        try:
            state = made.run().wait_until_finish()
        except Exception as error:  # of the runner, with the worker's in its text
            if said := re.search(r"UserError: (.+?)(?: \[while running .*)?$", str(error), re.MULTILINE):
                raise UserError(said[1].strip()) from error
            raise
        if state not in ("DONE", None):
            raise UserError(f"{shard_function.directory}: the pipeline ended as {state}; the same call resumes")
    return label_images(directory, name, source, teachers, **options)


def _named(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a pass, with the defaults of `label_images`."""
    known = {
        key: one.default
        for key, one in inspect.signature(label_images).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    }
    del known["worker"]
    if wrong := set(options) - (set(known) - {"progress"}):
        raise UserError(f"{min(wrong)}: no argument of a label pass on Beam")
    return known | options


def _looks(options: dict[str, Any]) -> dict[str, bool]:
    return {key: options[key] for key in ("copy_images", "keep_aspect")}
