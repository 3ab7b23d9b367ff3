"""What an idle daemon costs: its start, and many connections that agreed on an export, read once, and wait."""

from __future__ import annotations

import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.files import Files
from tests.benchmarks.race import Pair, Race
from tests.benchmarks.servers import free_port, running
from tests.peers import ROOT, Server

IDLE_CONNECTIONS = 1000
IDLE_KIB = 100.0
"""What a connection may cost."""
ROUNDS = 3


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def raise_limit(connections: int) -> None:
    """Have descriptors for as many connections, here and in what is started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * connections + 200), hard), hard))


def connected(port: int) -> socket.socket:
    """A connection that agreed on the default export and read 4 KiB."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(b"\0\0\0\3" + b"IHAVEOPT\0\0\0\1\0\0\0\0")
    sock.sendall(b"\x25\x60\x95\x13" + bytes(20) + b"\0\0\x10\0")
    left = 18 + 10 + 16 + 4096
    while left:
        got = len(sock.recv(left))
        if not got:
            raise RuntimeError("a connection was cut off")
        left -= got
    return sock


def grown(pid: int, port: int, connections: int) -> int:
    """Bytes that so many idle connections cost a server."""
    with ExitStack() as stack:
        stack.enter_context(connected(port))
        before = resident(pid)
        for _ in range(connections):
            stack.enter_context(connected(port))
        return resident(pid) - before


def idle(snapshot: Path, checkout: Path = ROOT) -> float:
    """KiB of each connection of ours."""
    raise_limit(IDLE_CONNECTIONS)
    options = ["--nbd-port", 0, "--max-connections", 2 * IDLE_CONNECTIONS, "--log-level", "error"]
    with Server(*options, snapshot, program=checkout / "hexz_serve.py") as server:
        return grown(server.process.pid, server.nbd_port, IDLE_CONNECTIONS) / IDLE_CONNECTIONS / 1024


def idle_qemu(raw: Path) -> float:
    """The same of qemu-nbd."""
    raise_limit(IDLE_CONNECTIONS)
    port = free_port()
    command: list[object] = ["qemu-nbd", "-r", "-t", "-e", 2 * IDLE_CONNECTIONS, "-b", "127.0.0.1", "-p", port]
    with running([*command, "-f", "raw", raw], port) as pid:
        return grown(pid, port, IDLE_CONNECTIONS) / IDLE_CONNECTIONS / 1024


def started(snapshot: Path, checkout: Path = ROOT) -> float:
    """Seconds until the daemon is ready."""
    began = time.perf_counter()
    with Server("--http-port", 0, "--nbd-port", 0, snapshot, program=checkout / "hexz_serve.py"):
        return time.perf_counter() - began


def races(files: Files) -> Iterator[Race]:
    """Memory of idle connections."""
    contenders = {
        "ours": lambda: idle(files.lz4),
        "the bound": lambda: IDLE_KIB,
        "qemu-nbd raw": lambda: idle_qemu(files.raw),
    }
    name = f"{IDLE_CONNECTIONS} idle NBD connections, each"
    pairs = (Pair(name, "ours", ("the bound",), 1), Pair(name, "ours", ("qemu-nbd raw",)))
    yield Race("KiB", contenders, pairs, ROUNDS)
