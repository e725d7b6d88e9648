"""A folder of an object store and its local copy: what differs is copied, in either direction, and numbered owners.

Shards of records that other machines wrote stay in the store until somebody reads them, see `at_hand`.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from must.core import files, notices, shard_cache
from must.core.types import UserError, first_line

_OWNERS, _STATE, _LAST = ".owners", ".bucket.json", "done.json"
_SHARD, _PROVENANCE, _UNFINISHED = re.compile(r"\.(array_record|tfrecord)-\d"), "provenance.json", "unfinished"
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
_THREADS, _TRIES = 8, 5


@contextlib.contextmanager
def at_hand(path: str, sha256: str) -> Iterator[str]:
    """The path of a shard, or of its copy in the cache of this machine where it lies in a bucket alone; to be opened in
    this block, see `must.core.shard_cache.held`.

    Raises:
      UserError: it cannot be fetched, is damaged, or is larger than the cache.
    """
    if os.path.exists(path) or (away := _away(path)) is None:
        yield path
        return
    url, top, size = away
    fetch = functools.partial(Mirror(url, local=top).download, os.path.relpath(path, top))
    with shard_cache.held(sha256, os.path.basename(path), size, fetch) as here:
        yield here


def in_bucket(directory: str) -> bool:
    """Whether a folder is below the local copy of a bucket's."""
    return _top(directory) is not None


def size_away(path: str) -> int | None:
    """Bytes of a shard that lies in a bucket alone, else None."""
    return None if os.path.exists(path) or (away := _away(path)) is None else away[2]


def _away(path: str) -> tuple[str, str, int] | None:
    """(URL of the bucket's folder, its local copy, bytes) of a shard that has not been copied."""
    if (top := _top(os.path.dirname(path))) is None:
        return None
    state = os.path.join(top, _STATE)
    known = _read_state(state, os.stat(state).st_mtime_ns)
    form = known.get("away", {}).get(os.path.relpath(path, top))
    return None if form is None else (known["url"], top, form[0])


def _top(directory: str) -> str | None:
    """The local copy of a bucket's folder that a folder is below, or is."""
    while not os.path.exists(os.path.join(directory, _STATE)):
        if directory == (directory := os.path.dirname(directory)):
            return None
    return directory


@functools.lru_cache(maxsize=8)
def _read_state(path: str, changed: int) -> dict[str, Any]:
    del changed
    return files.read_json(path)


class Mirror:
    """A folder of a bucket and its local copy.

    Args:
      url: of the folder.
      part: of the local copy's name, for several copies on one machine.
      local: the copy's directory, where it is known.

    Attributes:
      local: the copy's directory.
    """

    def __init__(self, url: str, part: str = "", local: str = ""):
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
        digest = hashlib.sha256(f"{self.url} {part}".encode()).hexdigest()
        name = f"{place.strip('/').replace('/', '-')[-60:]}-{digest[:12]}"
        self.local = local or os.path.join(shard_cache.scratch(), name)
        os.makedirs(self.local, exist_ok=True)
        self._state = os.path.join(self.local, _STATE)
        known = files.read_json(self._state) if os.path.exists(self._state) else {}
        self._token, self._known = known.get("owner", ""), known.get("files", {})  # {path: [local form, remote form]}
        self._away: dict[str, list] = known.get("away", {})  # {path: remote form}
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
                self._away = {path: stale.pop(path) for path in _shards(there) if path in stale}
                for path in self._away:
                    self._forget(path)
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
            self._away.pop(path, None)

    def download(self, path: str, target: str) -> None:
        """Copies a file of the bucket to any path."""
        self._retried(path, lambda at: self._store.get_file(at, target))

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
        files.write_json(self._state, {"url": self.url, "owner": self._token, "files": self._known, "away": self._away})

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
                    # Google's client has the reason in the second line.
                    reason = ": ".join(str(error).strip().splitlines()[:2])[:300] or first_line(error)
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


def _shards(paths: Iterable[str]) -> list[str]:
    """Those of records, finished or not."""
    paths = list(paths)
    records = {os.path.dirname(path) for path in paths if os.path.basename(path) == _PROVENANCE}
    records |= {top for top, last in map(os.path.split, map(os.path.dirname, paths)) if last == _UNFINISHED}
    return [path for path in paths if os.path.dirname(path) in records and _SHARD.search(os.path.basename(path))]


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
