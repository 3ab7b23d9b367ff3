"""A client at another protocol's port: it does not wait in vain, and the log names what it seems to be."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.servers.http import receiving
from tests.http.serving import Serving, serving
from tests.peers import Server


@pytest.fixture
def both(snapshot_file: Path) -> Iterator[Server]:
    with Server("--http-port", 0, "--nbd-port", 0, snapshot_file) as server:
        yield server


def test_other_protocols_at_the_nbd_port_are_named(both: Server) -> None:
    for first, name in (
        (b"GET /disk HTTP/1.1\r\nHost: h\r\n\r\n", "speaks HTTP to the NBD port"),
        (b"OPTIONS * HTTP/1.1\r\n", "speaks HTTP to the NBD port"),
        (b"\x16\x03\x01\x00\x05hello", "speaks TLS without asking for it (NBD_OPT_STARTTLS) to the NBD port"),
    ):
        with socket.create_connection(("127.0.0.1", both.nbd_port), 30) as client:
            client.sendall(first)
            got = b""
            while True:
                try:
                    part = client.recv(1000)
                except ConnectionResetError:
                    break
                if not part:
                    break
                got += part
            assert got in (b"", b"NBDMAGICIHAVEOPT\x00\x03")  # hung up at once
        deadline = time.monotonic() + 30
        while name not in both.stderr():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, snapshot_file: Path) -> Iterator[Serving]:
    """A server that waits half a second for the first request, and as long as ever for the next ones."""
    monkeypatch.setattr(receiving, "FIRST_HEAD_S", 0.5)
    with serving({"snap": snapshot_file}) as server:
        yield server


def test_who_waits_for_the_http_server_to_speak_is_let_go(impatient: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "hexz.http")
    with impatient.client() as known, impatient.client() as silent:
        known.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert known.receive().status == 200
        assert silent.ended()  # as a client of NBD would see
        assert "a client of NBD would wait like that" in caplog.text
        known.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert known.receive().status == 200  # who has asked before may be silent for longer
    assert receiving.FIRST_HEAD_S < receiving.IDLE_S
