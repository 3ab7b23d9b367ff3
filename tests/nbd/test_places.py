"""Places are for those who use them: silent clients make room, and who does not read its replies is given up."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

import pytest

from hexz.protocol.nbd import constants as c
from hexz.servers import connection, sending
from hexz.servers.connection import client_of
from tests.nbd.serving import PATIENCE_S, Serving
from tests.nbd.wire import Client
from tests.waiting import until


def greeted(address: tuple[str, int]) -> bool:
    with socket.create_connection(address, PATIENCE_S) as sock:
        return sock.recv(8) == b"NBDMAGIC"


def test_the_longest_idle_makes_room(snapshot_file: Path) -> None:
    with Serving(snapshot_file, max_connections=4) as server:
        held = []
        for _ in range(4):
            client = server.client()
            client.go("")
            held.append(client)
        until(lambda: all(one.idle_since is not None for one in server.listener.live()))
        assert greeted(server.address)
        assert sum(one.leaving for one in server.listener.live()) <= 1
        for client in held:
            client.sock.close()


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("10.1.2.3:99", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6:99", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9:99", "2001:db8:1:2::/64"),
        ("::ffff:10.1.2.3:99", "10.1.2.3"),
        ("127.0.0.1:99", None),
        ("::1:99", None),
        ("::ffff:127.0.0.1:99", None),
        ("unix", None),
    ],
)
def test_what_counts_as_one_client(peer: str, client: str | None) -> None:
    assert client_of(peer) == client


def test_one_address_has_a_quarter(snapshot_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "client_of", lambda peer: "10.1.2.3")
    with Serving(snapshot_file, max_connections=8) as server:
        first, second = (socket.create_connection(server.address, PATIENCE_S) for _ in range(2))
        assert first.recv(8) == second.recv(8) == b"NBDMAGIC"
        assert not greeted(server.address)
        first.close()
        second.close()


@pytest.mark.parametrize("ended", [False, True])
def test_who_does_not_read_is_given_up(snapshot_file: Path, monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    """After `STALL_S`, and soon when the export was taken away."""
    monkeypatch.setattr(sending, "LOOK_S", 0.05)
    monkeypatch.setattr(sending, "HURRIED_S", 0.2)
    monkeypatch.setattr(sending, "STALL_S", 1000.0 if ended else 0.2)
    with Serving(snapshot_file) as server:
        client = Client(server.address)
        client.go("")
        size = server.disk.size
        ask = b"".join(struct.pack(">IHHQQI", c.REQUEST_MAGIC, 0, c.CMD_READ, n, 0, size & ~511) for n in range(8))
        client.sock.sendall(ask)
        if ended:
            time.sleep(0.2)
            server.catalog.remove("snap", end_leases=True)
        until(lambda: not server.listener.live())
        client.sock.close()
