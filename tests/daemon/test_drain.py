"""What clients see of a daemon that stops: it lets them finish."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import Server

DEADLINE_S = 30.0
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Place:
    """A daemon with a drain timeout longer than any test waits, and the address where its HTTP listens."""

    def __init__(self, server: Server, address: tuple[str, int] | str) -> None:
        self.server = server
        self.address = address

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(DEADLINE_S)
        sock.connect(self.address)
        return sock

    def begin_to_stop(self) -> None:
        """SIGTERM, and wait until new connections are refused."""
        self.server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + DEADLINE_S
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            while time.monotonic() < deadline:
                self.connect().close()
                time.sleep(0.01)
            pytest.fail("it still accepts")


@pytest.fixture(params=["tcp", "unix"])
def place(request: pytest.FixtureRequest, tmp_path: Path, snapshot_file: Path) -> Iterator[Place]:
    path = str(tmp_path / "http")
    where = ("--http-port", 0) if request.param == "tcp" else ("--http-socket", path)
    with Server(*where, "--drain-timeout", 1000, snapshot_file) as server:
        address = ("127.0.0.1", int(server.http.rpartition(":")[2])) if request.param == "tcp" else path
        yield Place(server, address)
        assert server.process.wait(DEADLINE_S) == 0


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_who_has_just_connected_is_answered(place: Place) -> None:
    with place.connect() as late:
        place.begin_to_stop()
        late.sendall(HEALTH)
        reply = read_all(late)
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in reply


def test_who_stays_silent_does_not_hold_it_up(place: Place) -> None:
    with place.connect() as silent, place.connect() as idle:
        idle.sendall(HEALTH)
        assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
        place.server.process.send_signal(signal.SIGTERM)
        assert read_all(idle) == b""
        assert read_all(silent) == b""


def test_a_slow_download_ends_whole(place: Place, disk_image: Path) -> None:
    image = disk_image.read_bytes()
    with place.connect(receive_buffer=64 << 10) as slow:
        slow.sendall(b"GET /disk HTTP/1.1\r\nHost: localhost\r\n\r\n")
        begin = slow.recv(1024)
        place.begin_to_stop()
        assert place.server.process.poll() is None
        reply = begin + read_all(slow)
    assert reply.partition(b"\r\n\r\n")[2] == image


def test_a_second_signal_ends_the_patience(place: Place) -> None:
    with place.connect(receive_buffer=64 << 10) as stuck:
        stuck.sendall(b"GET /disk HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stuck.recv(1024)
        place.begin_to_stop()
        place.server.process.send_signal(signal.SIGTERM)
        place.server.process.wait(DEADLINE_S)
