"""Object stores on loopback, each a server of its protocol in a process of its own, to be filled up at any moment.

`moto` is the server of S3, `gcp-storage-emulator` that of Google's store. Both get here what the real ones have and
these lack: an object is created only where there is none in one step, and a bucket can be full.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BUCKET = "must-tests"
KINDS = {"s3": ("s3fs", "moto", "flask"), "gs": ("gcsfs", "gcp_storage_emulator")}  # what each needs
_KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
_KEYS |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}  # the emulator has no such buckets
_HOSTS = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}


class Store(NamedTuple):
    """A store that runs.

    Attributes:
      url: of its bucket, empty at first.
      full: as long as this file is there, the store refuses what would take room.
    """

    url: str
    full: Path


def missing(kind: str) -> str:
    """What of a kind of store is not installed, "" when nothing is."""
    return next((name for name in KINDS[kind] if importlib.util.find_spec(name) is None), "")


@contextlib.contextmanager
def serving(kind: str) -> Iterator[Store]:
    """Runs a store, which this process and those that it starts find by their environment."""
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder, "full")
        command = [sys.executable, "-m", "tests.support.stores", kind, str(full)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
        before = dict(os.environ)
        try:
            os.environ |= _KEYS | {_HOSTS[kind]: f"http://127.0.0.1:{server.stdout.readline().strip()}"}
            yield Store(f"{kind}://{BUCKET}", full)
        finally:
            for name in (*_KEYS, _HOSTS[kind]):
                os.environ.pop(name, None)
                os.environ |= {name: before[name]} if name in before else {}
            server.kill()
            server.communicate()


def _serve_s3(full: Path) -> None:
    """Two requests that create are never under way at once, since moto looks and creates in two steps."""
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    whole, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def answer(environment: dict, start: Callable) -> object:
        if environment["REQUEST_METHOD"] in ("PUT", "POST") and full.exists():  # as Ceph's gateway says it
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>QuotaExceeded</Code><Message>quota exceeded</Message></Error>"]
        with one_at_a_time if "HTTP_IF_NONE_MATCH" in environment else contextlib.nullcontext():
            return whole(environment, start)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/{BUCKET}", method="PUT")
    urllib.request.urlopen(request).close()
    _wait(server.port)


def _serve_gs(full: Path) -> None:
    """The emulator serves one request after the other, so that to look and to create are one step."""
    from http import HTTPStatus

    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.storage import Storage

    def insert(request, response, storage) -> None:
        meta = {} if "name" in request.query else request.data["meta"]
        name, bucket = request.query.get("name", [meta.get("name")])[0], request.params["bucket_name"]
        if full.exists():
            response.status = HTTPStatus.FORBIDDEN
            response.json({"error": {"code": 403, "message": "quota exceeded"}})
        elif request.query.get("ifGenerationMatch") == ["0"] and name in storage.objects.get(bucket, {}):
            response.status = HTTPStatus.PRECONDITION_FAILED
            response.json({"error": {"code": 412, "message": "conditionNotMet"}})
        else:
            objects.insert(request, response, storage)

    for _, handlers in server.HANDLERS:
        handlers.update({method: insert for method, one in handlers.items() if one is objects.insert})
    Storage._write_config_to_file = lambda self: None  # all objects' facts again for each, to memory
    running = server.Server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    running._storage.buckets[BUCKET]["softDeletePolicy"] = {"retentionDurationSeconds": "0"}
    running.start()
    while running._api._httpd is None:
        pass
    _wait(running._api._httpd.server_address[1])


def _wait(port: int) -> None:
    """Tells where the server is, and ends with whoever started it."""
    print(port, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    {"s3": _serve_s3, "gs": _serve_gs}[sys.argv[1]](Path(sys.argv[2]))
