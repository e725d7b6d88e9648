"""A workdir in a bucket of an object store: a local copy that is kept equal to it.

Programs read and write local files, each of which appears whole; what is new goes to the bucket in the background, and
what other machines wrote comes down first. `done.json` files, which say that others are complete, travel last in both
directions. One run at a time owns a workdir: owners are numbered, and the object of the next number is created only if
there is none, which the store grants to exactly one.
"""

import contextlib
import functools
import hashlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from must.core import files, notices
from must.core.types import UserError, first_line

_OWNERS, _STATE, _LOCK, _LAST = ".owners", ".bucket.json", "bucket.lock", "done.json"
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
_THREADS, _TRIES = 8, 5
_current: "list[Mirror]" = []


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
def _owned(mirror: "Mirror", period: float) -> Iterator[None]:
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


def current() -> "Mirror | None":
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


class Mirror:
    """A folder of a bucket and its local copy.

    Args:
      url: of the folder.
      part: of the local copy's name, for several copies on one machine.

    Attributes:
      local: the copy's directory.
    """

    def __init__(self, url: str, part: str = ""):
        self.url = url.rstrip("/")
        scheme, _, place = self.url.partition("://")
        if not place.strip("/"):
            raise UserError(f"{url}: expected SCHEME://BUCKET/FOLDER")
        try:
            import fsspec

            self._store, self._top = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            extra = f"pip install 'must[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else str(error)
            raise UserError(f"{url}: {extra}") from None
        except ValueError as error:
            raise UserError(f"{url}: {error}") from None
        scratch = os.environ.get("MUST_SCRATCH") or os.path.expanduser("~/.cache/must/buckets")
        digest = hashlib.sha256(f"{self.url} {part}".encode()).hexdigest()
        self.local = os.path.join(scratch, f"{place.strip('/').replace('/', '-')[-60:]}-{digest[:12]}")
        os.makedirs(self.local, exist_ok=True)
        self._state = os.path.join(self.local, _STATE)
        known = files.read_json(self._state) if os.path.exists(self._state) else {}
        self._token, self._known = known.get("owner", ""), known.get("files", {})  # {path: [local form, remote form]}
        self._moving = threading.Lock()

    # --- Copies ---

    def pull(self, *, ahead: bool = False) -> int:
        """Brings the local copy up to date and returns the number of files in the bucket.

        Args:
          ahead: the local copy is that of the last owner, so that what differs here is newer.

        Raises:
          UserError: the store does not answer, or its files change all the time.
        """
        with self._moving:
            for _ in range(_TRIES):
                there = self._listed()
                if not ahead:
                    for path in (set(self._known) | set(_kept(self.local))) - set(there):
                        self._forget(path)
                stale = {path: form for path, form in there.items() if self._differs(path, form, ahead)}
                if all(_in_order(stale, functools.partial(self._get, forms=stale))):
                    self._save()
                    return len(there)
            raise UserError(f"{self.url}: its files change while they are copied; run again")

    def push(self) -> None:
        """Copies what is new to the bucket, and removes what is gone."""
        with self._moving:
            # What says that others are complete is listed before them.
            here = _kept(self.local, last=True)
            here |= {path: form for path, form in _kept(self.local).items() if not path.endswith(_LAST)}
            new = [path for path, form in here.items() if self._known.get(path, [None])[0] != form]
            gone = [path for path in self._known if path not in here]
            _in_order(new, lambda path: self._put(path, here[path]))
            for path in gone:
                self._retried(path, lambda at: self._store.rm_file(at), missing=True)
                del self._known[path]
            if new or gone:
                there = self._listed()
                for path in new:
                    if path in there and path in self._known:
                        self._known[path][1] = there[path]
                self._save()

    def _differs(self, path: str, form: list, ahead: bool) -> bool:
        known, local = self._known.get(path), _form(os.path.join(self.local, path))
        if known is None:
            return not (ahead and local)
        changed = known[0] != local
        return local is None or (known[1] != form and not (ahead and changed)) or (changed and not ahead)

    def _get(self, path: str, forms: dict[str, list]) -> bool:
        """Brings a file here; False if it is not what was listed any more."""
        form = forms[path]
        local = os.path.join(self.local, path)
        os.makedirs(os.path.dirname(local), exist_ok=True)
        partial = f"{local}.partial"
        self._retried(path, lambda at: self._store.get_file(at, partial), missing=True)
        if (_form(partial) or [None])[0] != form[0]:
            return False
        os.replace(partial, local)
        self._known[path] = [_form(local), form]
        return True

    def _put(self, path: str, form: list) -> None:
        local = os.path.join(self.local, path)
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile: an old checkpoint
            self._retried(path, lambda at: self._store.put_file(local, at), local=local)
            self._known[path] = [form, None]

    def _forget(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self.local, path))
        self._known.pop(path, None)

    def _listed(self) -> dict[str, list]:
        """{path: form} of what is in the bucket, but for its owners."""
        found = self._retried("", lambda at: self._store.find(at, detail=True), missing=True) or {}
        paths = {name[len(self._top) :].lstrip("/"): info for name, info in found.items()}
        return {
            path: [info["size"], str(info.get("ETag") or info.get("etag") or info.get("created") or "")]
            for path, info in paths.items()
            if path and not path.startswith(f"{_OWNERS}/")
        }

    def _save(self) -> None:
        files.write_json(self._state, {"url": self.url, "owner": self._token, "files": self._known})

    def _retried(self, path: str, call: Callable[[str], Any], *, local: str = "", missing: bool = False) -> Any:
        """The call with the object's name; a store that does not answer is asked again for about half a minute."""
        at = f"{self._top}/{path}".rstrip("/")
        for attempt in range(_TRIES):
            try:
                return call(at)
            except FileExistsError:
                raise
            except FileNotFoundError as error:
                if missing:
                    return None
                if local and not os.path.exists(local):
                    raise
                raise UserError(f"{self.url}: no such bucket or object: {path or error}") from None
            except PermissionError as error:
                raise UserError(f"{self.url}: no access: {first_line(error)}") from None
            except Exception as error:  # each store has errors of its own
                if files.out_of_space(error):
                    raise
                if attempt == _TRIES - 1:
                    reason = ": ".join(str(error).split("\n")) or first_line(error)  # gcsfs has it in the second line
                    raise UserError(
                        f"{self.url}/{path}: {reason}; {self.local} is whole, and the same command resumes"
                    ) from None
                time.sleep(2**attempt)
        return None

    # --- Owners ---

    def own(self, patience: float) -> tuple[int, bool]:
        """Becomes the owner: its number, and whether the last one was this local copy's.

        Args:
          patience: seconds without a sign of life after which another owner is taken to be gone.

        Raises:
          UserError: another run owns the workdir, or has just become its owner.
        """
        owners = self._owners()
        number = max((int(name) for name, _, kind in (n.partition(".") for n in owners) if kind == "json"), default=0)
        before = self._read(f"{number:06d}.json") if number else {}
        mine = bool(self._token) and before.get("token") == self._token
        if number and not mine and f"{number:06d}.ended" not in owners:
            self._watch(number, before, patience)
        self._token = os.urandom(8).hex()
        about = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        try:
            self._create(f"{number + 1:06d}.json", about)
        except FileExistsError:  # of our own request, perhaps, whose answer was lost
            if self._read(f"{number + 1:06d}.json").get("token") != self._token:
                raise UserError(f"{self.url}: another run is using this workdir; it has just started") from None
        return number + 1, mine

    def beat(self, number: int) -> None:
        """A sign of life of an owner; UserError when it is not the owner any more."""
        if f"{number + 1:06d}.json" in self._owners():
            other = self._read(f"{number + 1:06d}.json").get("host", "another machine")
            raise UserError(f"{self.url}: {other} has taken this workdir over, since this run was silent for too long")
        self._write(f"{number:06d}.alive", {"at": time.time()})

    def release(self, number: int) -> None:
        """Lets go of the workdir, for others to own at once."""
        self._write(f"{number:06d}.ended", {"at": time.time()})

    def _watch(self, number: int, about: dict[str, Any], patience: float) -> None:
        """Returns when the owner of a number shows no sign of life."""
        alive = f"{number:06d}.alive"
        seen, start = self._read(alive), time.monotonic()
        who = f"{about.get('host')} (process {about.get('pid')})"
        notices.notice(f"{self.url}: the last run, {who}, has not ended; waiting {patience:.0f} s for a sign of life")
        while time.monotonic() - start < patience:
            time.sleep(patience / 20)
            if f"{number:06d}.ended" in (owners := self._owners()):
                return
            if self._read(alive) != seen or f"{number + 1:06d}.json" in owners:
                raise UserError(f"{self.url}: another run is using this workdir, {who}")

    def _owners(self) -> set[str]:
        found = self._retried(_OWNERS, lambda at: self._store.find(at), missing=True) or []
        return {os.path.basename(name) for name in found}

    def _read(self, name: str) -> dict[str, Any]:
        content = self._retried(f"{_OWNERS}/{name}", lambda at: self._store.cat_file(at), missing=True)
        return json.loads(content) if content else {}

    def _write(self, name: str, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self._retried(f"{_OWNERS}/{name}", lambda at: self._store.pipe_file(at, data))

    def _create(self, name: str, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self._retried(f"{_OWNERS}/{name}", lambda at: self._store.pipe_file(at, data, mode="create"))


def _in_order(paths: Iterable[str], move: Callable[[str], Any]) -> list[Any]:
    """Moves files side by side, and the ones that say that others are complete after them; what the moves returned."""
    paths = list(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        return [
            result
            for last in (False, True)
            for result in list(pool.map(move, [path for path in paths if path.endswith(_LAST) == last]))
        ]


def _kept(top: str, *, last: bool = False) -> dict[str, list]:
    """{path: form} of the finished files below a directory; `last`: only of those that say that others are complete."""
    found = {}
    for directory, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not _passing(name)]
        for name in names:
            if not _passing(name) and (not last or name.endswith(_LAST)):
                path = os.path.join(directory, name)
                if form := _form(path):
                    found[os.path.relpath(path, top)] = form
    return found


def _passing(name: str) -> bool:
    """Whether a file or folder is under way, or of this machine alone."""
    return (
        name in (_OWNERS, _STATE, "lock")
        or name.endswith((".partial", ".replaced", ".tmp", ".lock"))
        or ".orbax-checkpoint-tmp" in name
    )


def _form(path: str) -> list | None:
    """[bytes, time of change] of a file; None where there is none."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return [facts.st_size, facts.st_mtime_ns]
