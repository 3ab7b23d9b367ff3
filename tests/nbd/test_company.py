"""Many connections with cached reads at the same time: every byte right, and what else comes between has its turn."""

from __future__ import annotations

import random
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from hexz.protocol.nbd import constants as c
from hexz.servers import crowd
from hexz.servers.connection import Connection
from hexz.servers.crowd import WINDOW
from tests.nbd.conftest import Exports
from tests.nbd.serving import PATIENCE_S, Serving
from tests.nbd.wire import Client
from tests.waiting import until

MODES = ("simple", "structured", "extended")


@pytest.fixture(params=["threads", "crowd"], autouse=True)
def company(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Each connection in its own thread, as few of them are, or with the crowd as soon as there are two."""
    if request.param == "crowd":
        monkeypatch.setattr("hexz.servers.nbd.site.COMPANY", 2)
        monkeypatch.setattr("hexz.servers.nbd.cached.STREAK", 4)
    return bool(request.param == "crowd")


@pytest.fixture
def path(exports: Exports) -> Path:
    return exports.folder / "snap.hxz"


def read_in_turns(exports: Exports, *clients: Client, times: int = 20) -> None:
    """Let each be in the middle of cached reads."""
    for _ in range(times):
        for client in clients:
            assert client.read(1000, 100) == exports.disk[1000:1100]


@pytest.mark.parametrize("mode", MODES)
def test_many_connections_get_what_they_ask_for(path: Path, exports: Exports, mode: str) -> None:
    """Reads small and large, cached and not, other requests in between, in pieces, many at once."""
    disk = exports.disk
    wrong: list[str] = []

    def read(seed: int) -> None:
        source = random.Random(seed)
        with server.client() as client:
            client.negotiate(mode).go()
            for _ in range(200):
                asked = {}
                batch = bytearray()
                for _ in range(source.choice((1, 1, 1, 16))):
                    offset = source.randrange(len(disk) // 4096) * 4096
                    length = 1 + source.randrange(300_000 if source.random() < 0.005 else 4096)
                    length = min(length, len(disk) - offset)
                    command = c.CMD_READ if source.random() > 0.005 else c.CMD_FLUSH
                    batch += client.pack(command, offset, length)
                    asked[client.cookie] = (command, offset, length)
                cut = source.randrange(len(batch)) if source.random() < 0.05 else 0
                client.send(bytes(batch[:cut]))
                client.send(bytes(batch[cut:]))
                if source.random() < 0.001:  # so that some meet blocks that are gone
                    server.catalog.context.blocks.forget(lambda _: True)
                while asked:
                    reply = client.reply(asked)
                    command, offset, length = asked.pop(reply.cookie)
                    data = disk[offset : offset + length] if command == c.CMD_READ else None
                    if reply.data != data or reply.error != (0 if data is not None else c.NBD_EINVAL):
                        wrong.append(f"{seed}: {command} {offset}+{length}")

    with Serving(path) as server:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_those_who_read_at_once_are_served_together_until_one_is_alone(
    path: Path, exports: Exports, company: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Serving(path) as server, server.client() as client, server.client() as other:
        client.go()
        other.go()
        read_in_turns(exports, client, other)
        assert len(server.site.crowd._members) == 2 * company
        with monkeypatch.context() as patch:
            patch.setattr(crowd, "COMPANY_S", 0.0)
            read_in_turns(exports, client, times=2 * WINDOW)
            assert len(server.site.crowd._members) == company
        read_in_turns(exports, client, other)
        assert len(server.site.crowd._members) == 2 * company


def test_anything_unusual_has_its_turn_between_cached_reads(path: Path, exports: Exports) -> None:
    with Serving(path) as server, server.client() as client, server.client() as other:
        client.go()
        other.go()
        for command, offset, length, error in (
            (c.CMD_READ, 1 << 60, 10, c.NBD_EINVAL),
            (c.CMD_READ, 0, 0, 0),
            (c.CMD_READ, 0, 1 << 20, 0),
            (c.CMD_READ, 2 << 20, 100, 0),
            (c.CMD_TRIM, 0, 10, c.NBD_EPERM),
            (c.CMD_CACHE, 0, 10, 0),
        ):
            read_in_turns(exports, client, other)
            reply = client.request(command, offset, length)
            assert reply.error == error
            if reply.data:
                assert reply.data == exports.disk[offset : offset + length]


def test_the_silent_make_room(path: Path, exports: Exports) -> None:
    with Serving(path, max_connections=2) as server, server.client() as first, server.client() as second:
        first.go()
        second.go()
        read_in_turns(exports, first, second)
        until(lambda: newcomer_is_greeted(server))  # as soon as the two have been silent for a moment


def newcomer_is_greeted(server: Serving) -> bool:
    with socket.create_connection(server.address, PATIENCE_S) as sock:
        return sock.recv(8) == b"NBDMAGIC"


@pytest.mark.parametrize("manner", ["farewell", "end", "reset", "no magic", "half a request"])
def test_one_leaves_and_the_other_stays(path: Path, exports: Exports, manner: str) -> None:
    with Serving(path) as server, server.client() as client, server.client() as other:
        client.go()
        other.go()
        read_in_turns(exports, client, other)
        if manner == "farewell":
            client.send(client.pack(c.CMD_READ, 5, 10) + client.pack(c.CMD_DISC))
            assert client.reply({client.cookie - 1: (c.CMD_READ, 5, 10)}).data == exports.disk[5:15]
            assert client.ended()
        elif manner == "no magic":
            client.send(bytes(28))
            assert client.ended()
        elif manner == "half a request":
            client.send(client.pack(c.CMD_READ, 5, 10)[:15])
        elif manner == "reset":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sock.close()
        until(lambda: len(server.listener.live()) == 1)
        assert other.read(7, 7) == exports.disk[7:14]


def test_who_stops_reading_holds_up_nobody(path: Path, exports: Exports) -> None:
    """Its socket is full: its own thread waits for room."""
    with Serving(path) as server, server.client() as client, server.client() as other:
        client.go()
        other.go()
        read_in_turns(exports, client, other)
        asked = {}
        for _ in range(100):
            client.send(client.pack(c.CMD_READ, 0, 60_000))
            asked[client.cookie] = (c.CMD_READ, 0, 60_000)
            assert other.read(3, 30) == exports.disk[3:33]
        for number in range(100):
            assert other.read(number, 300) == exports.disk[number : number + 300]
        while asked:
            reply = client.reply(asked)
            del asked[reply.cookie]
            assert reply.data == exports.disk[:60_000]


def test_all_end_when_the_daemon_stops(path: Path, exports: Exports) -> None:
    with Serving(path) as server, server.client() as client, server.client() as other:
        client.go()
        other.go()
        read_in_turns(exports, client, other)
        assert server.close()
        assert client.ended()
        assert other.ended()


def test_all_go_to_a_successor_like_everybody_else(path: Path, exports: Exports) -> None:
    """At once, though nobody sends anything."""
    given: list[bytes] = []

    def give(connection: Connection, state: dict[str, Any], received: bytes) -> bool:
        given.append(received)
        return True

    with Serving(path) as server, server.client() as client, server.client() as other, server.client() as late:
        for each in (client, other, late):
            each.go()
        read_in_turns(exports, client, other)
        server.listener.give = give
        server.front.summons.call()
        until(lambda: len(given) == 3)
        assert given == [b"", b"", b""]
