"""Reading remote snapshots in tests: contexts that are short of patience, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

from hexz.errors import HexzError
from hexz.snapshot import OpenContext, Snapshot, new_context, open_snapshot
from hexz.storage.remote import RemoteSettings
from tests.waiting import until

HASTY = RemoteSettings(deadline_s=0.15)
PATIENT = RemoteSettings(deadline_s=30.0)
PIECE = 48 << 10


@contextlib.contextmanager
def context_of(settings: RemoteSettings, cache_size: int = 16 << 20) -> Iterator[OpenContext]:
    """A context whose connections and threads end with it."""
    context = new_context(cache_size, workers=1, remote=settings)
    try:
        yield context
    finally:
        context.lanes.stop()
        context.remote.close()


@contextlib.contextmanager
def opened(url: str, settings: RemoteSettings = PATIENT) -> Iterator[Snapshot]:
    """A snapshot with a context of its own."""
    with context_of(settings) as context, open_snapshot(url, context) as snapshot:
        yield snapshot


def read(snapshot: Snapshot, offset: int, length: int) -> bytes:
    """Bytes of the disk."""
    disk = snapshot.disk
    assert disk is not None
    return b"".join(disk.read(offset, min(length, disk.size - offset)))


def right_or_told(snapshot: Snapshot, image: bytes, offset: int, length: int = PIECE) -> HexzError | None:
    """Read: the bytes are right, or there is an error, which is given back.  Raises: AssertionError."""
    try:
        got = read(snapshot, offset, length)
    except HexzError as error:
        assert "\n" not in str(error) and snapshot.path in str(error)
        return error
    assert got == image[offset : offset + length]
    return None


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """What runs within leaves no thread and no descriptor behind."""
    threads, files = set(threading.enumerate()), descriptors()
    yield
    until(lambda: not set(threading.enumerate()) - threads)
    until(lambda: descriptors() <= files)


class Recorder:
    """A server of another host that says 404 to everything and keeps the requests."""

    def __init__(self, address: str = "127.0.0.2") -> None:
        self.heads: list[bytes] = []
        self._listener = socket.create_server((address, 0))
        self.url = f"http://{address}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name="recorder")

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(5)
                with contextlib.suppress(OSError):
                    self.heads.append(sock.recv(1 << 16))
                    sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
