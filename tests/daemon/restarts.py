"""``python -m tests.daemon.restarts [TIMES]``: a daemon that is stopped and started again under its clients.

They keep their connections.  The listening sockets are held meanwhile, as a service manager does, so that whoever
connects waits for the next process.  So every single request has to be answered: either the connection goes on, or
the last answer on it said ``Connection: close``.  Clients ask for cached ranges together, for ranges that are not
cached, for facts, over S3, now and then, and several requests at once.  Prints what came of all requests; status 1 if
one had no answer or a wrong one.
"""

from __future__ import annotations

import collections
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hexz.tools.pack import pack
from tests import samples
from tests.peers import ROOT

TIMES = 100
IMAGE_BYTES = 24 << 20
CACHE = "8M"
PATIENCE_S = 60.0
RUN_S = 0.4
"""How long each process serves before it is stopped, about."""
FIRST_FD = 3


class Kind(NamedTuple):
    """What one sort of client does: its listener, the requests that it sends at once, and how long it thinks then."""

    name: str
    listener: str
    ask: str
    at_once: int
    think_s: float


KINDS = (
    Kind("cached range", "http", "/disk near", 1, 0.0),
    Kind("cached range", "http", "/disk near", 1, 0.0),
    Kind("cached range", "http", "/disk near", 1, 0.0),
    Kind("cold range", "http", "/disk far", 1, 0.0),
    Kind("facts", "http", "/info", 1, 0.0),
    Kind("S3 range", "s3", "/snap/disk near", 1, 0.0),
    Kind("now and then", "http", "/disk near", 1, 0.6),
    Kind("several at once", "http", "/disk near", 4, 0.0),
)


class Held:
    """The listening sockets, which outlive the processes."""

    def __init__(self, *names: str) -> None:
        self.sockets = {name: socket.create_server(("127.0.0.1", 0), backlog=128) for name in names}

    def address(self, name: str) -> tuple[str, int]:
        """Where clients connect."""
        where: tuple[str, int] = self.sockets[name].getsockname()
        return where

    def start(self, snapshot: Path, errors: int) -> subprocess.Popen[bytes]:
        """A daemon that accepts on them."""
        fds = [sock.fileno() for sock in self.sockets.values()]
        # Only a shell knows its own number beforehand; descriptors move to where they are looked for.
        moves = " ".join(f"{FIRST_FD + 100 + at}<&{fd}" for at, fd in enumerate(fds))
        back = " ".join(f"{FIRST_FD + at}<&{FIRST_FD + 100 + at}" for at in range(len(fds)))
        script = f'exec {moves}; exec {back}; LISTEN_PID=$$ exec "$@"'
        names = ":".join(self.sockets)
        environment = {**os.environ, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names}
        options = [f"--{name}" for name in self.sockets]
        daemon = [sys.executable, str(ROOT / "hexz_serve.py"), *options, "--cache-size", CACHE, str(snapshot)]
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *daemon],
            pass_fds=fds,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline().startswith(b"listening ")
        return process

    def close(self) -> None:
        """Stop listening."""
        for sock in self.sockets.values():
            sock.close()


class Client:
    """One client, on a connection that it keeps as long as it may."""

    def __init__(self, kind: Kind, address: tuple[str, int], image: bytes, seed: int) -> None:
        self.kind = kind
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._address = address
        self._image = image
        self._random = random.Random(seed)
        self._sock: socket.socket | None = None
        self._rest = b""

    def run(self, over: threading.Event) -> None:
        """Ask until it is `over`."""
        while not over.is_set():
            self._round()
            if self.kind.think_s:
                over.wait(self.kind.think_s * self._random.random())
        self._hang_up()

    def _round(self) -> None:
        if self._sock is None:
            self._sock = socket.create_connection(self._address, PATIENCE_S)
            self._rest = b""
        asked = [self._request() for _ in range(self.kind.at_once)]
        try:
            self._sock.sendall(b"".join(data for data, _ in asked))
            for number, (_, expected) in enumerate(asked):
                if self._answer(expected):
                    # Those behind it are not lost: the answer says that they were not looked at (RFC 9112 section 9.6).
                    self.outcomes["told to ask again"] += len(asked) - number - 1
                    self._hang_up()
                    return
        except OSError as error:
            self.outcomes[f"LOST: {type(error).__name__}"] += 1
            self._hang_up()

    def _request(self) -> tuple[bytes, bytes | None]:
        """A request and the body of its answer, None for any."""
        path, _, place = self.kind.ask.partition(" ")
        if not place:
            return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), None
        length = self._random.choice((100, 4096, 30_000))
        start = self._random.randrange(1 << 20 if place == "near" else len(self._image) - length)
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nRange: bytes={start}-{start + length - 1}\r\n\r\n"
        return head.encode(), self._image[start : start + length]

    def _answer(self, expected: bytes | None) -> bool:
        """Read one answer; whether it says that it is the last."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        good = body == expected if expected is not None else head.startswith(b"HTTP/1.1 200 ")
        self.outcomes["answered" if good else f"WRONG: {head[:30]!r}"] += 1
        return b"connection: close" in head.lower()

    def _more(self) -> None:
        assert self._sock is not None
        data = self._sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError("no answer")
        self._rest += data

    def _hang_up(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock = None


def restarts(times: int, folder: Path) -> dict[str, collections.Counter[str]]:
    """Stop and start a daemon so many times; what came of the requests, by the kind of client."""
    image = samples.image(IMAGE_BYTES, seed=31)
    (folder / "raw").write_bytes(image)
    pack(str(folder / "raw"), str(folder / "snap.hxz"))
    held = Held("http", "s3")
    over = threading.Event()
    clients = [Client(kind, held.address(kind.listener), image, seed) for seed, kind in enumerate(KINDS)]
    threads = [threading.Thread(target=client.run, args=(over,)) for client in clients]
    with (folder / "errors").open("w+b") as errors:
        process = held.start(folder / "snap.hxz", errors.fileno())
        for thread in threads:
            thread.start()
        try:
            for seconds in pauses(times):
                time.sleep(seconds)
                process.terminate()
                assert process.wait(PATIENCE_S) == 0
                process = held.start(folder / "snap.hxz", errors.fileno())
        finally:
            over.set()
            for thread in threads:
                thread.join(PATIENCE_S)
            process.terminate()
            process.wait(PATIENCE_S)
            held.close()
        errors.seek(0)
        assert b"Traceback" not in errors.read()
    found: dict[str, collections.Counter[str]] = {}
    for client in clients:
        found.setdefault(client.kind.name, collections.Counter()).update(client.outcomes)
    return found


def pauses(times: int) -> Iterator[float]:
    """How long each process serves, seconds: never the same."""
    source = random.Random(7)
    for _ in range(times):
        yield RUN_S * (0.5 + source.random())


def bad(found: dict[str, collections.Counter[str]]) -> int:
    """How many requests had no answer or a wrong one."""
    return sum(count for seen in found.values() for outcome, count in seen.items() if ":" in outcome)


def main() -> int:
    """Restart, and tell."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else TIMES
    with tempfile.TemporaryDirectory() as folder:
        found = restarts(times, Path(folder))
    for name, seen in found.items():
        print(f"{name:16} {dict(seen)}")
    print(f"{times} restarts, {len(KINDS)} clients: {bad(found)} requests without their answer")
    return 1 if bad(found) else 0


if __name__ == "__main__":
    sys.exit(main())
