"""``python -m tests.http.load``: good clients among many bad ones, and what it costs them.

1,000 connections read ranges at a steady pace, in turns alone and while 1,000 sit idle, 200
send their heads byte by byte and come again when they are cut, and 50 ask for the whole image
and never read it.  Every byte that the readers get is compared.  Prints how long the readers
waited for their answers in both phases, and what the daemon's memory did; status 1 if a goal is missed.

A wait is taken for each second of a phase, and the middle one counts: what else the machine
does in some of them is not the daemon's.  Memory may grow by the cache and 100 KiB for each connection.
"""

from __future__ import annotations

import random
import resource
import select
import socket
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from hexz.tools.pack import pack
from tests import samples
from tests.benchmarks.report import Row, table
from tests.peers import Server

READERS, IDLE, SLOW, DEAF = 1000, 1000, 200, 50
PACE_S = 1.0
"""Each reader asks so often."""
LENGTH = 16 << 10
IMAGE_BYTES = 96 << 20
CACHE_BYTES = 128 << 20
CONNECTION_BYTES = 100 << 10
"""What a connection may cost."""
WARM_S, ALONE_S = 5, 6
TURNS_S = 8, 8, 26
"""How long all are there together, each time; once for so long that the slow are cut (a head may take 20 s)."""
PATIENCE_S = 60.0
LATENCY_GOAL = 0.5
"""Alone to together: a wait among the bad ones is at most twice as long."""


class Reader:
    """A connection that asks for a range now and then, and checks what it gets."""

    def __init__(self, address: tuple[str, int], image: bytes, due: float) -> None:
        self.sock = socket.create_connection(address)
        self.sock.setblocking(False)
        self.due = due
        self.start = 0
        self.asked = 0.0
        self.got = bytearray()
        self._image = image

    def ask(self, source: random.Random) -> None:
        self.start = source.randrange(len(self._image) - LENGTH)
        self.got.clear()
        span = f"bytes={self.start}-{self.start + LENGTH - 1}"
        self.asked = time.perf_counter()
        self.sock.send(f"GET /disk HTTP/1.1\r\nHost: localhost\r\nRange: {span}\r\n\r\n".encode())

    def receive(self) -> float | None:
        """Seconds that the answer took once it is whole."""
        data = self.sock.recv(1 << 17)
        if not data:
            raise RuntimeError("a good client was cut off")
        self.got += data
        end = self.got.find(b"\r\n\r\n")
        if end < 0 or len(self.got) < end + 4 + LENGTH:
            return None
        took = time.perf_counter() - self.asked
        if (
            not self.got.startswith(b"HTTP/1.1 206")
            or self.got[end + 4 :] != self._image[self.start : self.start + LENGTH]
        ):
            raise RuntimeError("a good client got something wrong")
        return took


class Slow:
    """Connections whose requests never end; one that was cut is replaced."""

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self._address = address
        self._socks = deque(self._new() for _ in range(count))
        self.cut = 0

    def _new(self) -> socket.socket:
        sock = socket.create_connection(self._address)
        sock.send(b"GET /disk HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        return sock

    def drip(self) -> None:
        """One byte from the connection whose turn it is."""
        sock = self._socks.popleft()
        try:
            sock.send(b"a")
        except ConnectionError:
            self.cut += 1
            sock.close()
            sock = self._new()
        self._socks.append(sock)

    def leave(self) -> None:
        for sock in self._socks:
            sock.close()


def read(readers: list[Reader], seconds: int, meanwhile: Callable[[], None] = lambda: None) -> list[list[float]]:
    """Let the readers read; for each second how long its answers took.  `meanwhile` runs 200 times a second."""
    source = random.Random(1)
    poll = select.epoll()
    by_fd = {reader.sock.fileno(): reader for reader in readers}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    now = time.perf_counter()
    began, end = now, now + seconds
    queue = deque(readers)
    for number, reader in enumerate(queue):
        reader.due = now + number * PACE_S / len(readers)
    busy: set[int] = set()
    took: list[list[float]] = [[] for _ in range(seconds)]
    next_turn = now
    while now < end or busy:
        while now < end and queue and queue[0].due <= now:
            reader = queue.popleft()
            reader.due = max(reader.due + PACE_S, now)
            busy.add(reader.sock.fileno())
            reader.ask(source)
        for fd, _ in poll.poll(0.001):
            done = by_fd[fd].receive()
            if done is not None:
                took[int(by_fd[fd].asked - began)].append(done)
                busy.discard(fd)
                queue.append(by_fd[fd])
        if now >= next_turn:
            meanwhile()
            next_turn = now + 0.005
        now = time.perf_counter()
        if now > end + PATIENCE_S:
            raise RuntimeError(f"{len(busy)} good clients were never answered")
    poll.close()
    return took


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) << 10


def middle(seconds: list[list[float]], share: float) -> float:
    """The wait in ms that `share` of the answers stayed below, in the middle one of the seconds."""
    waits = [sorted(second)[min(int(len(second) * share), len(second) - 1)] for second in seconds if second]
    return statistics.median(waits) * 1e3


class Crowd:
    """All who are not good: idle, slow, deaf."""

    def __init__(self, address: tuple[str, int], image: bytes) -> None:
        self.idle = [Reader(address, image, 0.0) for _ in range(IDLE)]
        self._ask_all(random.Random(1))  # whoever has never asked is not kept so long
        self.deaf = [socket.socket() for _ in range(DEAF)]
        for sock in self.deaf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(address)
            sock.send(b"GET /disk HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.slow = Slow(address, SLOW)

    def _ask_all(self, source: random.Random) -> None:
        for reader in self.idle:
            reader.sock.settimeout(PATIENCE_S)
            reader.ask(source)
            while reader.receive() is None:
                continue

    def leave(self) -> None:
        """The idle ones ask something after all, and are answered; then all hang up."""
        self._ask_all(random.Random(2))
        for reader in self.idle:
            reader.sock.close()
        for sock in self.deaf:
            sock.close()
        self.slow.leave()


def measure() -> list[Row]:
    """Both phases, in turns."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    alone: list[list[float]] = []
    together: list[list[float]] = []
    memory = cut = 0
    with tempfile.TemporaryDirectory() as name:
        raw, packed = Path(name) / "raw", Path(name) / "image.hxz"
        image = samples.image(IMAGE_BYTES)
        raw.write_bytes(image)
        pack(str(raw), str(packed), compression="lz4")
        with Server(packed, "--http-port", 0, "--cache-size", CACHE_BYTES, "--log-level", "error") as server:
            parts = urlsplit(server.http)
            address = (parts.hostname or "", parts.port or 0)
            pid = server.process.pid
            most = resident(pid) + CACHE_BYTES + (READERS + IDLE + SLOW + DEAF) * CONNECTION_BYTES
            readers = [Reader(address, image, 0.0) for _ in range(READERS)]
            read(readers, WARM_S)
            for turn in TURNS_S:
                alone += read(readers, ALONE_S)
                crowd = Crowd(address, image)
                together += read(readers, turn, crowd.slow.drip)
                memory = max(memory, resident(pid))
                cut += crowd.slow.cut
                crowd.leave()
    if not cut:
        raise RuntimeError("no slow client was cut")
    rows = []
    for name, share in (("median", 0.5), ("99 of 100", 0.99)):
        figures = {"alone": [middle(alone, share)], "together": [middle(together, share)]}
        rows.append(Row(f"wait of good clients, {name}", "ms", figures, "together", ("alone",), LATENCY_GOAL))
    figures = {"memory": [memory / 1e6], "the bound": [most / 1e6]}
    rows.append(Row("memory with 2,250 connections", "MB", figures, "memory", ("the bound",), 1))
    return rows


def main() -> int:
    """Measure, print; 1 when a goal is missed."""
    rows = measure()
    print(table(rows))
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
