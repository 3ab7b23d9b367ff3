"""A link between readers and one server, as long and as wide as it is told to be; it counts what goes over it.

    with Link(port) as link:
        link.lengthen(20)              # ms each way
        read(f"http://127.0.0.1:{link.port}/snap.hxz")
        traffic = link.traffic()

It runs in a process of its own, one thread around one ``select``, so that it takes nothing from who is measured but
processor time.  Every byte arrives so much later, and what is under way overlaps, as on a cable.  A new connection
costs one round trip more, as the handshake would.  The width is shared by all connections, and holds for answers alone.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from typing import NamedTuple

from tests.peers import ROOT

__all__ = ["Link", "Traffic"]

PIECE_BYTES = 256 << 10
WINDOW_BYTES = 1 << 20
"""Bytes of one connection that wait at its end for who receives them, besides what the cable itself holds."""
BYTES_PER_S = 100e6
HEAD_END = b"\r\n\r\n"


class Traffic(NamedTuple):
    """What went over the link: requests, and bytes of answers with their heads."""

    connections: int
    requests: int
    answered: int


class Link:
    """The process, from the side of who measures."""

    def __init__(self, port: int, bytes_per_s: float = BYTES_PER_S) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.link", str(port), str(bytes_per_s)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.port = int(self._heard())

    def _heard(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the link has ended")
        return line

    def _ask(self, word: str) -> Traffic:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return Traffic(*json.loads(self._heard()))

    def lengthen(self, delay_ms: float) -> None:
        """How long every byte takes from now on, each way."""
        self._ask(f"delay {delay_ms}")

    def traffic(self) -> Traffic:
        """What went over it since the last time that this was asked."""
        return self._ask("count")

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class _Way:
    """One direction of a connection: what is on it, and when each piece arrives."""

    __slots__ = ("answers", "ended", "held", "pieces", "shut", "sink", "tail", "usable")

    def __init__(self, sink: socket.socket, answers: bool, usable: float) -> None:
        self.sink = sink
        self.answers = answers
        self.usable = usable
        self.pieces: deque[tuple[float, memoryview]] = deque()
        self.held = 0
        self.ended = self.shut = False
        self.tail = b""


class _Cable:
    """The process itself."""

    def __init__(self, port: int, bytes_per_s: float) -> None:
        self._server = ("127.0.0.1", port)
        self._bytes_per_s = bytes_per_s
        self._delay_s = 0.0
        self._most = WINDOW_BYTES
        self._free_at = 0.0
        self._ways: dict[socket.socket, _Way] = {}  # by where it comes from
        self._counts = [0, 0, 0]
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)

    def run(self) -> None:
        """Until standard input ends."""
        print(self._listener.getsockname()[1], flush=True)
        while True:
            now = time.monotonic()
            reading: list[socket.socket | int] = [self._listener, sys.stdin.fileno()]
            writing, wait = [], None
            for source, way in self._ways.items():
                if not way.ended and way.held < self._most:
                    reading.append(source)
                if way.pieces:
                    left = way.pieces[0][0] - now
                    if left <= 0:
                        writing.append(way.sink)
                    else:
                        wait = left if wait is None else min(wait, left)
            ready, _, _ = select.select(reading, writing, [], wait)
            for source in ready:
                if source is self._listener:
                    self._accept()
                elif isinstance(source, int):
                    line = sys.stdin.readline()
                    if not line:
                        return
                    print(json.dumps(self._obey(line.split())), flush=True)
                else:
                    self._take(source)
            self._deliver()

    def _obey(self, words: list[str]) -> list[int]:
        said = list(self._counts)
        if words[0] == "delay":
            self._delay_s = float(words[1]) / 1000
            self._most = WINDOW_BYTES + int(2 * self._delay_s * self._bytes_per_s)
        else:
            self._counts = [0, 0, 0]
        return said

    def _accept(self) -> None:
        with suppress(OSError):
            client, _ = self._listener.accept()
            server = socket.create_connection(self._server)
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._counts[0] += 1
            self._ways[client] = _Way(server, False, time.monotonic() + 2 * self._delay_s)
            self._ways[server] = _Way(client, True, 0.0)

    def _take(self, source: socket.socket) -> None:
        way = self._ways.get(source)
        if way is None:
            return
        try:
            data = source.recv(PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic()
        at = max(now, way.usable) + self._delay_s
        if not data:
            way.ended = True
        elif way.answers:
            self._counts[2] += len(data)
            self._free_at = max(self._free_at, now) + len(data) / self._bytes_per_s
            at = self._free_at + self._delay_s
        else:
            self._counts[1] += (way.tail + data).count(HEAD_END)
            way.tail = data[-len(HEAD_END) + 1 :]
        way.held += len(data)
        way.pieces.append((at, memoryview(data)))

    def _deliver(self) -> None:
        now = time.monotonic()
        for way in self._ways.values():
            while way.pieces and way.pieces[0][0] <= now:
                at, data = way.pieces[0]
                try:
                    if not data:
                        way.shut = True
                        way.pieces.popleft()
                        way.sink.shutdown(socket.SHUT_WR)
                        break
                    sent = way.sink.send(data)
                except BlockingIOError:
                    break
                except OSError:  # whom it was for has gone
                    way.pieces.clear()
                    way.ended = way.shut = True
                    break
                way.held -= sent
                if sent < len(data):
                    way.pieces[0] = at, data[sent:]
                    break
                way.pieces.popleft()
        for source, way in list(self._ways.items()):
            other = self._ways.get(way.sink)
            if way.shut and (other is None or other.shut):
                for end in (source, way.sink):
                    if self._ways.pop(end, None) is not None:
                        end.close()


if __name__ == "__main__":
    _Cable(int(sys.argv[1]), float(sys.argv[2])).run()
