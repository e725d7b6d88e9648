"""Whether the other processes of a run are there: when one is lost, every other ends with a line that names it.

Every process is connected to process 0, and both ends send a word every few seconds. A connection that closes without
a goodbye, or one that stays silent, is a lost process: killed, stopped, cut off, or ended by an error of its own.
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SILENCE = 45.0  # seconds after which a process counts as lost
_EVERY = 2.0  # seconds between words
LOST = 75  # exit code of the others: the same command may work
_state: dict[str, str] = {"at": "the start"}
_watched: list["Peers"] = []
_BYE = "bye"


def at(what: str) -> None:
    """Tells where this process is, such as "student, step 120"."""
    _state["at"] = what.replace("\n", " ")


def watch(coordinator: str | None) -> None:
    """Connects the processes of a run, all of which call this, and watches them until `leave`.

    Args:
      coordinator: "host:port" or "auto", as in `must.core.devices.initialize_distributed`; None for one process.
    """
    if coordinator is None or jax.process_count() == 1:
        return
    index, count = jax.process_index(), jax.process_count()
    host = "" if coordinator == "auto" else coordinator.rpartition(":")[0]
    server = socket.create_server(("", 0), backlog=count) if index == 0 else None
    mine = f"{host or _own_address()}:{server.getsockname()[1]}" if server else ""
    sent = np.frombuffer(mine.encode().ljust(256), np.uint8)
    there = bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)).astype(np.uint8)).decode().strip()
    links: dict[socket.socket, str] = {}
    if server is None:
        name, _, port = there.rpartition(":")
        link = socket.create_connection((name, int(port)), timeout=SILENCE)
        link.sendall(f"process {index} on {socket.gethostname()}\n".encode())
        links[link] = f"process 0 on {name}"
    else:
        server.settimeout(SILENCE)
        for _ in range(count - 1):
            link, _ = server.accept()
            links[link] = _line(link)
        server.close()
    _watched.append(Peers(links))


def leave() -> None:
    """Says goodbye to the other processes, if any: from now on nobody misses this one."""
    while _watched:
        _watched.pop().leave()


def gathered(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process of a run gives, in the order of the processes, all of which call this; JSON types alone."""
    if not jax.distributed.is_initialized():
        return [content]
    mine = np.frombuffer(json.dumps(content).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(mine)))).ravel()
    rows = np.asarray(multihost_utils.process_allgather(np.pad(mine, (0, lengths.max() - len(mine)))))
    texts = (row[:length].astype(np.uint8).tobytes() for row, length in zip(rows, lengths, strict=True))
    return [json.loads(text) for text in texts]


class Peers:
    """Watches connections {socket: who is there} from a thread; see `watch`."""

    def __init__(self, links: dict[socket.socket, str]):
        self._links, self._lock, self._left = links, threading.Lock(), False
        self._last = {link: (time.monotonic(), "the start", "") for link in links}  # heard, where it is, half a word
        threading.Thread(target=self._run, daemon=True).start()

    def leave(self) -> None:
        """Says goodbye: from now on nobody misses this process."""
        with self._lock:
            self._left = True
        self._send(_BYE)

    def _send(self, word: str) -> None:
        for link in list(self._links):
            try:
                link.sendall(f"{word}\n".encode())
            except OSError:
                continue  # what became of it shows when it is read

    def _run(self) -> None:
        told = 0.0
        with selectors.DefaultSelector() as ready:
            for link in self._links:
                ready.register(link, selectors.EVENT_READ)
            while self._links and not self._left:
                if time.monotonic() - told > _EVERY:
                    self._send(f"at {_state['at']}")
                    told = time.monotonic()
                for key, _ in ready.select(_EVERY / 4):
                    if not self._heard(key.fileobj):
                        ready.unregister(key.fileobj)
                for link, (heard, where, _) in list(self._last.items()):
                    if time.monotonic() - heard > SILENCE:
                        self._end(f"{self._links[link]} has been silent for {SILENCE:.0f} s, last at {where}")

    def _heard(self, link) -> bool:
        """Reads what is there; False after a goodbye."""
        _, where, half = self._last[link]
        try:
            text = link.recv(1 << 16).decode()
        except OSError:
            text = ""
        if not text:
            self._end(f"{self._links[link]} is lost, last at {where}")
            return False
        *words, half = (half + text).split("\n")
        for word in words:
            kind, _, rest = word.partition(" ")
            if kind == _BYE:
                del self._links[link], self._last[link]
                return False
            if kind == "lost":
                self._end(rest)
            where = rest
        self._last[link] = (time.monotonic(), where, half)
        return True

    def _end(self, why: str) -> None:
        with self._lock:
            if self._left:
                return
            self._send(f"lost {why}")
            here = f"this one is at {_state['at']}"
            os.write(2, f"must: {why}; {here}; the same command resumes\n".encode())
            sys.stdout.flush()
            os._exit(LOST)


def _line(link: socket.socket) -> str:
    link.settimeout(SILENCE)
    with link.makefile("r") as file:
        return file.readline().strip()


def _own_address() -> str:
    """The address of the interface that leads out of this machine; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
