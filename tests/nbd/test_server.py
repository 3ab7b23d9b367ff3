"""What the server promises whatever a client does: deadlines, limits, turns, and a proper end."""

from __future__ import annotations

import re
import select
import threading
import time
from pathlib import Path

import pytest

from hexz.protocol.nbd import constants as c
from hexz.servers.nbd import handler as nbd
from hexz.servers.nbd import stopping as nbd_stopping
from hexz.servers.nbd import transmission as nbd_transmission
from hexz.snapshot import Stream
from tests.nbd.conftest import BLOCK, Exports
from tests.nbd.serving import PATIENCE_S, Serving
from tests.nbd.wire import Client, extents, info
from tests.peers import Server

SHORT_S = 0.3
READERS = 32


@pytest.fixture
def path(exports: Exports) -> Path:
    return exports.folder / "snap.hxz"


def silent(client: Client, seconds: float) -> bool:
    """Whether the server neither says anything nor hangs up for so long."""
    return not select.select([client.sock], [], [], seconds)[0]


# Deadlines


@pytest.mark.parametrize("drip", [False, True])
def test_a_handshake_has_a_deadline_however_it_is_dragged_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, drip: bool
) -> None:
    monkeypatch.setattr(nbd, "HANDSHAKE_S", SHORT_S)
    with Serving(path) as server, server.client() as client:
        if drip:
            deadline = time.monotonic() + PATIENCE_S
            while silent(client, 0.02):
                client.send(b"I")
                assert time.monotonic() < deadline
        assert client.ended()


@pytest.mark.parametrize("what", ["half a request", "half a payload"])
def test_the_rest_of_a_request_has_a_deadline_and_idle_clients_have_none(
    path: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(nbd_transmission, "MID_REQUEST_S", SHORT_S)
    with Serving(path) as server, server.client() as idle, server.client() as client:
        idle.go()
        client.go()
        if what == "half a request":
            client.send(client.pack(c.CMD_READ, 0, 512)[:20])
        else:
            client.send(client.pack(c.CMD_WRITE, 0, 5000) + bytes(1000))
        assert client.ended()
        assert silent(idle, 2 * SHORT_S)
        assert idle.read(0, 10) == exports.disk[:10]


# Limits


def test_a_connection_over_the_limit_is_hung_up_on_and_its_place_comes_back(path: Path) -> None:
    with Serving(path, max_connections=2) as server:
        with server.client() as first, server.client() as second:
            first.go()
            second.go()
            with pytest.raises((EOFError, ConnectionError)):
                server.client()
            assert server.listener.refused == 1
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with server.client() as third:
                    third.go()
                break
            except (EOFError, ConnectionError):
                assert time.monotonic() < deadline


def test_padding_reads_as_zeros_and_is_a_hole(exports: Exports, path: Path) -> None:
    size = len(exports.disk)
    padded = -(-size // 4096) * 4096
    assert padded > size
    with Serving(path, pad=4096) as server:
        for mode in ("simple", "structured", "extended"):
            with server.client() as client:
                client.negotiate(mode)
                if mode != "simple":
                    client.set_contexts("", "base:allocation")
                assert client.go()[0] == padded
                for offset in (size - 700, size, padded - 1):
                    assert client.read(offset, padded - offset) == exports.disk[offset:].ljust(padded - offset, b"\0")
                if mode != "simple":
                    (found,) = extents(client.request(c.CMD_BLOCK_STATUS, size, padded - size)).values()
                    assert found == [(padded - size, c.STATE_HOLE | c.STATE_ZERO)]


def resident(server: Server) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def test_readers_that_stop_reading_cost_little_and_get_everything_later(exports: Exports, path: Path) -> None:
    """They ask for 256 MiB in all, in small and large pieces; the cache is too small to hold what they want.

    Besides 100 KiB a connection there is what the allocator keeps for each of a few threads.
    """
    with Server(path, "--nbd-port", 0, "--cache-size", "2M") as server:
        address = ("127.0.0.1", server.nbd_port)
        with Client(address) as first:
            first.go()
            first.read(0, 4 << 20)
            before = resident(server)
            readers = [Client(address) for _ in range(READERS)]
            asked: list[dict[int, tuple[int, int, int]]] = [{} for _ in readers]
            for number, reader in enumerate(readers):
                reader.go()
                length = (4096, 70_000, 1 << 20, 4 << 20)[number % 4]
                count = (8 << 20) // length
                batch = bytearray()
                for at in range(count):
                    batch += reader.pack(c.CMD_READ, at * length, length)
                    asked[number][reader.cookie] = (c.CMD_READ, at * length, length)
                reader.send(bytes(batch))
            for _ in range(20):
                assert first.read(1 << 20, 100_000) == exports.disk[1 << 20 :][:100_000]
            grown = resident(server) - before
            assert grown < READERS * (100 << 10) + (12 << 20), f"{grown >> 10} KiB"
            for reader, waiting in zip(readers, asked):
                while waiting:
                    reply = reader.reply(waiting)
                    _, offset, length = waiting.pop(reply.cookie)
                    assert reply.data == exports.disk[offset : offset + length]
                reader.sock.close()


# Turns


class Held:
    """Lets the storage of a snapshot be read only when told so, and writes down what was read."""

    def __init__(self, server: Serving) -> None:
        self.permits = threading.Semaphore(0)
        self.reads: list[int] = []
        storage = server.disk.file.storage
        read = storage.read

        def wait_and_read(offset: int, length: int) -> bytes:
            self.reads.append(offset)
            assert self.permits.acquire(timeout=PATIENCE_S)
            return read(offset, length)

        storage.read = wait_and_read  # type: ignore[method-assign]

    def release(self) -> None:
        """Hold nothing back any more."""
        self.permits.release(100_000)


def data_blocks(disk: bytes) -> list[int]:
    """Positions of blocks with data of their own: reading one of them reads the file."""
    seen: set[bytes] = set()
    found = []
    for at in range(0, len(disk) - BLOCK, BLOCK):
        block = disk[at : at + BLOCK]
        if any(block) and block not in seen:
            seen.add(block)
            found.append(at)
    return found


@pytest.mark.parametrize("mode", ["simple", "extended"])
def test_a_cached_read_overtakes_a_cold_one(path: Path, exports: Exports, mode: str) -> None:
    """«The server MAY reply in a different order»."""
    warm, *cold = data_blocks(exports.disk)
    with Serving(path) as server, server.client() as client:
        client.negotiate(mode).go()
        client.read(warm, 100)
        held = Held(server)
        asked = {}
        batch = bytearray()
        for offset in (*cold[:5], warm):
            batch += client.pack(c.CMD_READ, offset, 200)
            asked[client.cookie] = (c.CMD_READ, offset, 200)
        last = client.cookie
        client.send(bytes(batch))
        try:
            assert client.reply(asked).cookie == last
        finally:
            held.release()
        del asked[last]
        while asked:
            reply = client.reply(asked)
            _, offset, length = asked.pop(reply.cookie)
            assert reply.data == exports.disk[offset : offset + length]


def test_a_cold_read_is_put_together_once(path: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that waits for its blocks only sees that they come; the connection's own reads them."""
    cold = data_blocks(exports.disk)[:5]
    reads: list[int] = []
    read = Stream.read

    def counted(self: Stream, offset: int, length: int) -> list[memoryview]:
        reads.append(offset)
        return read(self, offset, length)

    monkeypatch.setattr(Stream, "read", counted)
    with Serving(path) as server, server.client() as client:
        client.go()
        asked = {}
        batch = bytearray()
        for offset in cold:
            batch += client.pack(c.CMD_READ, offset, 200)
            asked[client.cookie] = (c.CMD_READ, offset, 200)
        client.send(bytes(batch))
        while asked:
            reply = client.reply(asked)
            _, offset, length = asked.pop(reply.cookie)
            assert reply.data == exports.disk[offset : offset + length]
    assert sorted(reads) == cold


def test_a_deep_queue_of_cold_reads_starves_nobody(path: Path, exports: Exports) -> None:
    """Another's cached reads go on, and its cold read comes in its turn, not behind the whole queue."""
    warm, mine, *cold = data_blocks(exports.disk)
    with Serving(path) as server, server.client() as greedy, server.client() as other:
        greedy.go()
        other.go()
        other.read(warm, 100)
        held = Held(server)
        asked = {}
        batch = bytearray()
        for number in range(len(cold)):
            batch += greedy.pack(c.CMD_READ, cold[number], 100)
            asked[greedy.cookie] = (c.CMD_READ, cold[number], 100)
        greedy.send(bytes(batch))
        try:
            for number in range(200):
                assert other.read(warm + number, 50) == exports.disk[warm + number :][:50]
            both = other.pack(c.CMD_READ, mine, 100) + other.pack(c.CMD_READ, warm, 1)
            other.send(both)
            waiting = {other.cookie - 1: (c.CMD_READ, mine, 100), other.cookie: (c.CMD_READ, warm, 1)}
            assert other.reply(waiting).data == exports.disk[warm : warm + 1]
            permits = 0
            while silent(other, 0.05):
                held.permits.release()
                permits += 1
            assert other.reply(waiting).data == exports.disk[mine : mine + 100]
            assert permits < len(cold) // 2
        finally:
            held.release()
        while asked:
            reply = greedy.reply(asked)
            _, offset, length = asked.pop(reply.cookie)
            assert reply.data == exports.disk[offset : offset + length]


# The end


def test_a_stopping_server_finishes_and_refuses(path: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """«NBD_ESHUTDOWN ... SHOULD»: what is under way is answered, what comes is told that the server stops."""
    monkeypatch.setattr(nbd_stopping, "LAST_REQUESTS_S", 1.5)
    warm, *cold = data_blocks(exports.disk)
    server = Serving(path)
    with server.client() as busy, server.client() as shaking:
        shaking.option(c.OPT_LIST)
        busy.go()
        busy.read(warm, 100)
        held = Held(server)
        pending = {}
        for offset in (*cold[:3], warm):
            busy.send(busy.pack(c.CMD_READ, offset, 100))
            pending[busy.cookie] = (c.CMD_READ, offset, 100)
        deadline = time.monotonic() + PATIENCE_S
        while not held.reads:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        ending = threading.Thread(target=server.close)
        ending.start()
        while not server.listener.draining:
            time.sleep(0.001)
        late = busy.pack(c.CMD_READ, warm, 100)
        busy.send(late)
        pending[busy.cookie] = (c.CMD_READ, warm, 100)
        late_cookie = busy.cookie
        held.release()
        answers = {}
        while pending:
            reply = busy.reply(pending)
            answers[reply.cookie] = reply.error
            _, offset, length = pending.pop(reply.cookie)
            if not reply.error:
                assert reply.data == exports.disk[offset : offset + length]
        assert answers.pop(late_cookie) == c.NBD_ESHUTDOWN
        assert set(answers.values()) <= {0, c.NBD_ESHUTDOWN}
        assert 0 in answers.values()
        assert shaking.option(c.OPT_GO, info("snap"))[-1].kind == c.REP_ERR_SHUTDOWN
        assert shaking.option(c.OPT_ABORT)[-1].kind == c.REP_ACK
        assert busy.ended()
        assert shaking.ended()
    ending.join()
