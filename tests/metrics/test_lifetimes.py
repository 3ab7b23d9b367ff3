"""What is under way is seen while it is, and nothing is kept of what is over."""

from __future__ import annotations

import gc
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.catalog import Catalog
from hexz.control import figures as nydus
from hexz.metrics import Cell, Meter, SnapshotMetrics
from hexz.metrics.figures import OperationFigures
from hexz.metrics.files import FileCounts
from hexz.protocol.nbd import constants as c
from hexz.servers.accept_loop import AcceptLoop
from hexz.servers.addresses import TcpAddress
from hexz.servers.http.server import HttpServer
from hexz.servers.http.site import HttpSite
from hexz.servers.http.snapshots import CatalogApplication
from hexz.servers.nbd.server import NbdServer
from hexz.servers.nbd.site import NbdSite
from hexz.snapshot import new_context
from hexz.storage import LocalFile
from hexz.tools.pack import pack
from tests.http.serving import Client as HttpClient
from tests.nbd.wire import Client
from tests.waiting import until

BLOCK = 64 << 10
PATIENCE_S = 30.0
ROUNDS = 300


class Both:
    """HTTP and NBD over one catalog, in this process."""

    def __init__(self, path: Path) -> None:
        self.catalog = Catalog(new_context(16 << 20))
        self.catalog.add("snap", str(path))
        self.metrics = self.catalog.context.metrics
        self.front = AcceptLoop()
        site = HttpSite(CatalogApplication(self.catalog), metrics=self.metrics)
        address = TcpAddress("127.0.0.1", 0)
        listeners = [HttpServer.open(address, site), NbdServer.open(address, NbdSite(self.catalog))]
        for listener in listeners:
            self.front.add(listener)
        self.http, self.nbd = (listener.socket.getsockname() for listener in listeners)
        self._thread = threading.Thread(target=self.front.run)
        self._thread.start()

    def operation(self, protocol: str, op: str, name: str = "snap") -> OperationFigures:
        found = self.metrics.collect().snapshots[name].operations
        wanted = (one for one in found if (one.protocol, one.op) == (protocol, op))
        return next(wanted, OperationFigures(protocol, op, "", {}, 0, 0.0))

    def close(self) -> None:
        self.front.stop()
        self._thread.join()
        self.front.drain(5.0)
        self.front.close()
        self.catalog.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "disk.raw").write_bytes(b"".join(bytes([number]) * BLOCK for number in range(1, 33)))
    pack(str(tmp_path / "disk.raw"), str(tmp_path / "snap.hxz"), block_size=BLOCK)
    return tmp_path / "snap.hxz"


@pytest.fixture
def both(path: Path) -> Iterator[Both]:
    served = Both(path)
    try:
        yield served
    finally:
        served.close()


def test_requests_that_hang_on_their_storage_are_under_way(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    open_again = threading.Event()
    real = LocalFile.read

    def read(self: LocalFile, offset: int, length: int) -> bytes:
        assert open_again.wait(PATIENCE_S)
        return real(self, offset, length)

    with Client(both.nbd) as alone, Client(both.nbd) as queued, HttpClient(both.http) as http:
        for client in (alone, queued):
            client.go("")
            client.read(0, 512)
        monkeypatch.setattr(LocalFile, "read", read)
        alone.send(alone.pack(c.CMD_READ, 10 * BLOCK, 4096))
        queued.send(queued.pack(c.CMD_READ, 20 * BLOCK, 4096) + queued.pack(c.CMD_READ, 25 * BLOCK, 512))
        http.send(b"GET /disk HTTP/1.1\r\nHost: localhost\r\nRange: bytes=1000000-1000099\r\n\r\n")
        until(lambda: len([flight for flight in both.metrics.collect().flights if flight.length]) == 4)
        found = nydus.inflight(both.metrics.collect())
        assert sorted((one["protocol"], one["offset"], one["length"]) for one in found) == [
            ("http", 1000000, 100), ("nbd", 10 * BLOCK, 4096), ("nbd", 20 * BLOCK, 4096), ("nbd", 25 * BLOCK, 512),
        ]  # fmt: skip
        assert {(one["snapshot"], one["inode"], one["opcode"]) for one in found} == {("snap", 1, 15)}
        assert {one["peer"] for one in found} == {
            f"127.0.0.1:{one.sock.getsockname()[1]}" for one in (alone, queued, http)
        }
        open_again.set()
        asked = {2: (c.CMD_READ, 0, 4096), 3: (c.CMD_READ, 0, 512)}
        assert alone.reply(asked).data
        assert queued.reply(asked).data
        assert queued.reply(asked).data
        assert http.receive().status == 206
        until(lambda: both.metrics.collect().flights == [])
        until(lambda: both.operation("nbd", "read").ok == 5)
        assert both.operation("nbd", "read").missed == 4


def test_a_client_that_leaves_in_the_middle_leaves_nothing_under_way(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_again = threading.Event()
    real = LocalFile.read

    def read(self: LocalFile, offset: int, length: int) -> bytes:
        assert open_again.wait(PATIENCE_S)
        return real(self, offset, length)

    with Client(both.nbd) as client:
        client.go("")
        monkeypatch.setattr(LocalFile, "read", read)
        client.send(client.pack(c.CMD_READ, 0, 512) + client.pack(c.CMD_READ, 9 * BLOCK, 512))
        until(lambda: len(both.metrics.collect().flights) == 2)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    open_again.set()
    until(lambda: both.operation("nbd", "close").ok == 1)
    assert both.metrics.collect().flights == []


def test_replies_that_a_client_does_not_wait_for_are_aborted(both: Both) -> None:
    count = 250
    with Client(both.nbd) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.go("")
        client.read(0, BLOCK)
        # Far more than the sockets take: once the first byte is here, the server waits for room.
        client.send(b"".join(client.pack(c.CMD_READ, 0, BLOCK) for _ in range(count)))
        client.sock.recv(1)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: both.operation("nbd", "close").ok == 1)
    found = both.operation("nbd", "read")
    assert found.outcomes["aborted"] > 0
    assert found.ok + found.outcomes["aborted"] <= count + 1
    assert found.ok == sum(found.sizes) == sum(found.latencies)


def test_prefetching_counts_what_it_brought(both: Both) -> None:
    with Client(both.nbd) as client:
        client.go("")
        assert client.request(c.CMD_CACHE, 4 * BLOCK, 8 * BLOCK).error == 0
        until(lambda: both.metrics.collect().snapshots["snap"].ahead.size == 8 * BLOCK)
        found = both.metrics.collect().snapshots["snap"]
        assert found.ahead.blocks == found.blocks == 8
        assert found.held == 8 * BLOCK
        assert client.read(5 * BLOCK, 100)
        assert client.request(c.CMD_READ, 6 * BLOCK, 100, 0).error == 0
    until(lambda: both.operation("nbd", "close").ok == 1)
    assert both.operation("nbd", "prefetch").ok == 1
    assert (both.operation("nbd", "read").ok, both.operation("nbd", "read").missed) == (2, 0)


def counted() -> Counter[str]:
    gc.collect()
    kinds = (Cell, Meter, SnapshotMetrics, FileCounts)
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))


def test_names_that_come_and_go_leave_no_counters(both: Both, path: Path) -> None:
    """Snapshots and connections in hundreds, of which in the end as many counters are left as of the first few."""

    def round_(number: int) -> None:
        both.catalog.add(f"name{number}", str(path))
        with Client(both.nbd) as client, HttpClient(both.http) as http:
            client.go(f"name{number}")
            client.read(0, 100)
            for start in range(3):
                span = {"Range": f"bytes={start}-{start + 9}"}
                assert http.ask("GET", f"/snapshots/name{number}/disk", span).status == 206
            if number % 2:  # taken away under its clients
                both.catalog.remove(f"name{number}")
                client.read(200, 100)
        until(lambda: not any(listener.live() for listener in both.front.listeners))
        if not number % 2:
            assert both.operation("nbd", "read", f"name{number}").ok == 1
            assert both.operation("http", "read", f"name{number}").ok == 3
            both.catalog.remove(f"name{number}")

    for number in range(4):
        round_(number)
    before = counted()
    for number in range(4, ROUNDS):
        round_(number)
    assert counted() == before
    assert list(both.metrics.collect().snapshots) == ["snap"]


def test_another_file_under_the_same_name_goes_on_with_its_figures(both: Both, path: Path) -> None:
    with Client(both.nbd) as client:
        client.go("snap")
        client.read(0, 100)
        other = path.with_name("other.hxz")
        other.write_bytes(path.read_bytes())
        both.catalog.replace("snap", str(other))
        client.read(0, 100)
        with Client(both.nbd) as second:
            second.go("snap")
            second.read(0, 100)
    until(lambda: both.operation("nbd", "close").ok == 2)
    assert both.operation("nbd", "read").ok == 3
    assert both.metrics.collect().snapshots["snap"].files == (str(other),)
