"""Replacements of a daemon under readers and a writer of images; run as a program, it prints what they saw.

The writer writes to an overlay without pause, reads back what it wrote, and takes
503 with Retry-After for what it says; readers read the overlay's other bytes and a
snapshot over connections that they keep and over new ones; some clients ask for all
of the overlay and do not read.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from hexz.tools.pack import pack
from tests import samples
from tests.control.clients import WAIT_S, Supervisor
from tests.control.test_upgrade import Chain
from tests.waiting import until

SIZE = 12 << 20
WRITTEN = 4 << 20
"""Bytes at the beginning of the overlay that the writer has for itself."""
SPAN = 65536


class Seen(NamedTuple):
    """What the clients saw: answers of readers, writes, errors of both, and how long the writer waited at most."""

    replacements: int
    read: int
    written: int
    errors: list[str]
    retries: int
    longest_s: float
    longest_503_s: float


class Load:
    """The clients, until `stop`."""

    def __init__(self, base: str, content: bytes) -> None:
        self.where = urlsplit(base).netloc
        self.content = content
        self.over = threading.Event()
        self.errors: list[str] = []
        self.read = self.written = self.retries = 0
        self.longest_s = self.longest_503_s = 0.0
        self.threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def start(self, name: str, action: Callable[[], None]) -> None:
        """Do `action` again and again in a thread."""

        def run() -> None:
            while not self.over.is_set():
                try:
                    action()
                except Exception as error:
                    self.errors.append(f"{name}: {error!r}")
                    time.sleep(0.1)

        self.threads.append(threading.Thread(target=run, name=name, daemon=True))
        self.threads[-1].start()

    def reader(self, path: str, kept: bool) -> Callable[[], None]:
        """Reads parts of what nobody writes."""
        connection = http.client.HTTPConnection(self.where, timeout=WAIT_S)
        source = random.Random(path)

        def read() -> None:
            start = source.randrange(WRITTEN, SIZE - SPAN)
            if not kept:
                connection.close()
            try:
                connection.request("GET", path, headers={"Range": f"bytes={start}-{start + SPAN - 1}"})
                answer = connection.getresponse()
                data = answer.read()
                assert answer.status == 206, (answer.status, data)
                assert data == self.content[start : start + SPAN], "wrong bytes"
            except BaseException:
                connection.close()
                raise
            with self._lock:
                self.read += 1

        return read

    def writer(self) -> Callable[[], None]:
        """Writes, flushes and reads back."""
        connection = http.client.HTTPConnection(self.where, timeout=WAIT_S)
        source = random.Random(4)

        def ask(method: str, body: bytes | None, headers: dict[str, str]) -> bytes:
            began = refused = time.monotonic()
            first = True
            while True:
                connection.request(method, "/images/over", body, headers)
                answer = connection.getresponse()
                data = answer.read()
                if answer.status != 503 or "retry-after" not in answer.headers:
                    break
                self.retries += 1
                if first:
                    refused, first = time.monotonic(), False
                time.sleep(0.02)
            assert answer.status in (200, 206), (answer.status, data)
            now = time.monotonic()
            self.longest_s = max(self.longest_s, now - began)
            self.longest_503_s = max(self.longest_503_s, 0.0 if first else now - refused)
            return data

        def write() -> None:
            length = source.choice((1, 700, 5000, 70_000, 300_000))
            start = source.randrange(WRITTEN - length)
            data = source.randbytes(length)
            span = f"bytes={start}-{start + length - 1}"
            try:
                ask("PATCH", data, {"Range": span})
                if source.random() < 0.3:
                    ask("PATCH", b'{"op":"flush"}', {"Content-Type": "application/json"})
                assert ask("GET", None, {"Range": span}) == data, "not what was written"
            except BaseException:
                connection.close()
                raise
            self.written += 1

        return write

    def stalled(self) -> socket.socket:
        """Asks for everything and does not read."""
        host, _, port = self.where.rpartition(":")
        sock = socket.create_connection((host, int(port)), WAIT_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.sendall(b"GET /images/over HTTP/1.1\r\nHost: " + self.where.encode() + b"\r\n\r\n")
        assert sock.recv(9, socket.MSG_WAITALL) == b"HTTP/1.1 "
        return sock

    def stop(self) -> None:
        """End them."""
        self.over.set()
        for thread in self.threads:
            thread.join(WAIT_S)


def replace_under_load(folder: Path, replacements: int, readers: int, stalled: bool, drain_s: int) -> Seen:
    """Replace a daemon so often, `readers` of each kind beside one writer."""
    images, files = folder / "images", folder / "files"
    images.mkdir(mode=0o755)
    files.mkdir(mode=0o755)
    content = samples.image(SIZE, seed=77)
    (folder / "disk.raw").write_bytes(content)
    pack(str(folder / "disk.raw"), str(folder / "disk.hxz"))
    registration = {"backend": "overlay", "snapshot": "disk", "file": str(files / "over"), "max_readers": 64}
    (images / "over").write_text(json.dumps(registration))
    (images / "over").chmod(0o644)
    supervisor = Supervisor(folder / "supervisor.sock")
    own = ("--images-dir", images, "--images-allow", files)
    chain = Chain(folder, supervisor, "--http-port", 0, folder / "disk.hxz", own=own, drain_timeout=drain_s)
    load = Load(chain.urls["http"], content)
    sleeping: list[socket.socket] = []
    try:
        for path in ("/images/over", "/images/disk", "/disk"):
            for number in range(readers):
                load.start(f"{path} {number}", load.reader(path, kept=bool(number % 2)))
        load.start("writer", load.writer())
        until(lambda: load.written > 1)
        for _ in range(replacements):
            before = load.written
            if stalled:
                sleeping.append(load.stalled())
            chain.replace(wait=not stalled)
            # The successor really serves before it is followed in turn.
            until(lambda seen=before: load.written > seen + 2)
    finally:
        load.stop()
        for sock in sleeping:
            sock.close()
        chain.stop()
        supervisor.close()
    return Seen(
        replacements, load.read, load.written, load.errors, load.retries, load.longest_s, load.longest_503_s
    )  # fmt: skip


def main() -> None:
    """Print what came of it; the status is 1 if anybody saw an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replacements", type=int, default=30)
    parser.add_argument("--readers", type=int, default=4, help="of each of three kinds")
    options = parser.parse_args()
    failed = False
    for stalled in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            seen = replace_under_load(Path(folder), options.replacements, options.readers, stalled, 20)
        failed |= bool(seen.errors) or seen.longest_503_s >= 1
        print(
            f"{seen.replacements} replacements{', each with a client that does not read' if stalled else ''}: "
            f"{seen.read} answers to readers, {seen.written} writes, {len(seen.errors)} errors; the writer was told "
            f"{seen.retries} times to come again, for {seen.longest_503_s:.2f} s at most, and waited "
            f"{seen.longest_s:.2f} s at most",
            *seen.errors[:5],
            sep="\n",
            flush=True,
        )
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
