"""What a run writes down between its steps: metrics, and the steps that changed nothing."""

import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from must.core import devices, files
from must.core.types import Batch, Source, UserError
from must.experiment import measure
from must.train.loop import Progress


class Log:
    """metrics.jsonl and TensorBoard events; lines after the step that a run resumes from are taken back."""

    def __init__(self, directory: str, step: int):
        self._path = os.path.join(directory, "metrics.jsonl")
        self._board = None
        if not devices.is_writer():
            return
        kept = [json.dumps(line) + "\n" for line in measure.read_log(directory) if line["step"] <= step]
        files.write_text(self._path, "".join(kept))
        # Not SummaryWriter: its thread dies with a traceback on a full disk and unpickles every value.
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._board = EventsWriter(os.path.join(directory, "events"), f".{os.getpid()}")
        if step:  # what an interrupted run wrote after the step that it resumes from is purged
            self._event(step + 1, file_version="brain.Event:2")
            self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line."""
        if self._board is None:
            return
        line = {"step": step, **{name: round(value, 6) for name, value in values.items()}}
        files.append_text(self._path, json.dumps(line) + "\n")
        from tensorboardX.proto.summary_pb2 import Summary

        tags = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._event(step, summary=Summary(value=tags))
        self._board.flush()

    def _event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._board.write_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Closes the file of events."""
        if self._board is not None:
            self._board.close()


@contextlib.contextmanager
def _without_torch():
    """tensorboardX imports torch where it is installed, which takes seconds and hundreds of MB, for tensors that are
    never written here."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it is an ImportError
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


class Skipped:
    """Counts steps that changed nothing since they were not finite, and ends a run of which there are too many.

    Args:
      directory: of the run, where the ids of the last such steps are written.
      source: of the batches.
    """

    IN_A_ROW = 10

    def __init__(self, directory: str, source: Source | Mapping[str, Source]):
        self._directory, self._source = directory, source
        self._unread: deque[tuple[int, jax.Array, Any]] = deque()
        self._seen, self._all = 0, 0
        self._row: list[tuple[int, dict[str, Any]]] = []

    def see(self, progress: Progress, *, wait: bool) -> None:
        """Reads the flags that are there, or waits for all.

        Raises:
          UserError: ten such steps in a row, or more than half of all when the run ends.
        """
        self._unread.append((progress.step, progress.logs["skipped"], _ids(progress.batch)))
        while self._unread and (wait or self._unread[0][1].is_ready()):
            step, skipped, ids = self._unread.popleft()
            self._seen += 1
            self._all += bool(skipped)
            self._row = [*self._row, (step, ids)] if skipped else []
            if len(self._row) == self.IN_A_ROW:
                self._end(f"steps {self._row[0][0]} to {step}")
        if progress.step == progress.steps and self._all > self._seen / 2:
            self._end(f"{self._all} of {self._seen} steps")

    def log(self) -> dict[str, int]:
        """{"skipped": how many so far}, empty without any."""
        return {"skipped": self._all} if self._all else {}

    def _end(self, which: str) -> None:
        where = os.path.join(self._directory, "not_finite.json")
        parts = self._source if isinstance(self._source, Mapping) else {"": self._source}
        names = {group: part.ids for group, part in parts.items()}
        named = {
            str(step): [names[group][int(i)] for group, many in ids.items() for i in np.ravel(many) if i >= 0]
            for step, ids in self._row
        }
        if devices.is_writer():
            files.write_json(where, named)
        raise UserError(
            f"{self._directory}: {which}: loss or gradient not finite; {where} has the ids of the last ones; lower the "
            "learning rate or clip_norm, in another workdir"
        )


def _ids(batch: Batch | Mapping[str, Batch]) -> dict[str, Any]:
    """{group: positions of its rows that this process reads}."""
    parts = batch if isinstance(batch, Mapping) else {"": batch}
    return {
        group: [s.data for s in one.ids.addressable_shards] if isinstance(one.ids, jax.Array) else one.ids
        for group, one in parts.items()
    }
