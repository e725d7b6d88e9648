"""A workdir in a bucket of an object store: a local copy that is kept equal to it.

Programs read and write local files, each of which appears whole; what is new goes to the bucket in the background, and
what other machines wrote comes down first. `done.json` files, which say that others are complete, travel last in both
directions. One run at a time owns a workdir: owners are numbered, and the object of the next number is created only if
there is none, which the store grants to exactly one.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from must.core import files
from must.core.mirror import Mirror
from must.core.types import UserError

_LOCK = "bucket.lock"
_current: list[Mirror] = []


def is_url(path: str) -> bool:
    """Whether a path is that of an object store, such as gs://bucket/folder or s3://bucket/folder."""
    return "://" in path


@contextlib.contextmanager
def workdir(url: str, *, period: float = 20.0) -> Iterator[str]:
    """Owns a workdir in a bucket and yields its local copy, which is copied back all the while and at the end.

    Args:
      url: gs://bucket/folder, s3://bucket/folder, or another that fsspec knows.
      period: seconds between copies; an owner that has not been heard of for three of them is taken to be gone.

    Raises:
      UserError: no such bucket or no access to it, another run that owns the workdir, or a copy that failed for good.
    """
    import jax

    from must.core import devices  # here, since labeling needs no JAX

    mirror = Mirror(url, part=str(jax.process_index()) if not devices.is_writer() else "")
    with files.lock(os.path.join(mirror.local, _LOCK)) as held:
        if not held:
            raise UserError(f"{url}: another run is using this workdir, on this machine")
        with contextlib.ExitStack() as owned:
            if devices.is_writer():
                owned.enter_context(_owned(mirror, period))
            devices.wait_for_all("the owner of the bucket")
            if not devices.is_writer():
                mirror.pull()
            devices.wait_for_all("copies of the bucket")
            _current.append(mirror)
            try:
                yield mirror.local
            finally:
                _current.remove(mirror)


@contextlib.contextmanager
def _owned(mirror: Mirror, period: float) -> Iterator[None]:
    """Owns the bucket's folder, copies it here, copies what is new back every so often and at the end, and lets go.

    Signs of life have a thread of their own, since a copy may take longer than the patience of others.
    """
    number, mine = mirror.own(3 * period)
    failed: list[Exception] = []
    try:
        with _every(period, lambda: mirror.beat(number), failed):
            mirror.pull(ahead=mine)
            try:
                with _every(period, mirror.push, failed):
                    yield
            finally:
                if not failed:
                    mirror.push()
    finally:
        if not failed:
            mirror.release(number)


@contextlib.contextmanager
def _every(period: float, act: Callable[[], None], failed: list[Exception]) -> Iterator[None]:
    """Meanwhile acts every `period` seconds, in a thread; an error, of several threads the first, ends the run."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(period):
            try:
                act()
            except Exception as error:  # whatever it is, a run that is not copied must not go on
                failed.append(error)
                os.kill(os.getpid(), signal.SIGTERM)  # jobs save and end
                return

    thread = threading.Thread(target=run, name="bucket", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        if failed:
            raise failed[0]


def wait_for_all(what: str) -> None:
    """Waits until every process of a distributed run has called this with the same words; then each has what the others
    wrote to the workdir, in a bucket too."""
    import jax

    from must.core import devices

    if not jax.distributed.is_initialized():
        return
    mirror = current()
    if mirror is not None:
        mirror.push()
    devices.wait_for_all(what)
    if mirror is not None:
        mirror.pull(ahead=True)


def current() -> Mirror | None:
    """The bucket whose local copy is the workdir."""
    return _current[-1] if _current else None


def fetched(path: str) -> str:
    """A folder itself, or a local copy of one in a bucket, made anew where the bucket has changed.

    Raises:
      UserError: no such bucket, no access to it, or nothing there.
    """
    if not is_url(path):
        return path
    mirror = Mirror(path, part="read")  # not the copy of a run, which may be newer than the bucket
    with files.lock(os.path.join(mirror.local, _LOCK), wait=True):
        if not mirror.pull():
            raise UserError(f"{path}: nothing is there")
    return mirror.local
