"""A stop loses no request: who has a kept connection and asks once more is answered, and told that it is the last."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hexz.servers.base import Summons
from hexz.servers.http import receiving
from tests.http.serving import Client, Serving, request
from tests.http.test_crowd import RANGED, join_crowd

CACHED = request("GET", "/disk", RANGED)
KINDS = {
    "cached range": CACHED,
    "cold range": request("GET", "/memory", {"Range": "bytes=700000-700099"}),
    "facts": request("GET", "/info"),
    "body": request("GET", "/info", {"Content-Length": "4"}) + b"body",
}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a busy machine may need; the real time is for a real network."""
    monkeypatch.setattr(receiving, "LAST_REQUEST_S", 30.0)


class Stopping:
    """A server with a kept connection on which the fast path is ready; its stop waits for that connection."""

    def __init__(self, path: Path) -> None:
        self.server = Serving({"snap": path})
        self.client = self.server.client()
        for _ in range(3):
            assert self.client.ask("GET", "/disk", RANGED).status == 206
        self._ended: list[bool] = []
        self._stopper = threading.Thread(target=lambda: self._ended.append(self.server.close(60.0)))

    def begin(self) -> Client:
        """Stop; the connection, once the server is draining."""
        self._stopper.start()
        while not self.server.listener.draining:
            self._stopper.join(0.001)
        return self.client

    def over(self) -> bool:
        """The connection ends, and whether the server had to cut none."""
        assert self.client.ended()
        self.client.sock.close()
        self._stopper.join()
        return self._ended == [True]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("kind", KINDS)
def test_one_more_request_is_answered(snapshot_file: Path, kind: str) -> None:
    """RFC 9112 section 9.6: with ``Connection: close``, after which nothing is lost, for nothing more is sent."""
    stopping = Stopping(snapshot_file)
    client = stopping.begin()
    client.send(KINDS[kind])
    reply = client.receive()
    assert reply.status in (200, 206) and reply.headers["connection"] == "close"
    assert stopping.over()


@pytest.mark.usefixtures("patient")
def test_what_was_pipelined_is_answered_to_the_last(snapshot_file: Path) -> None:
    stopping = Stopping(snapshot_file)
    client = stopping.begin()
    client.send(CACHED * 3 + KINDS["facts"] + CACHED)
    replies = [client.receive() for _ in range(5)]
    assert [reply.status for reply in replies] == [206, 206, 206, 200, 206]
    assert [reply.headers.get("connection") for reply in replies] == [None] * 4 + ["close"]
    assert stopping.over()


@pytest.mark.usefixtures("patient")
def test_a_request_that_comes_in_pieces_is_waited_for(snapshot_file: Path) -> None:
    stopping = Stopping(snapshot_file)
    client = stopping.begin()
    for piece in (CACHED[:10], CACHED[10:50], CACHED[50:]):
        client.send(piece)
        stopping.server.front.wake()
    assert client.receive().headers["connection"] == "close"
    assert stopping.over()


@pytest.mark.usefixtures("patient")
def test_members_of_the_crowd_are_answered(snapshot_file: Path) -> None:
    stopping = Stopping(snapshot_file)
    join_crowd(stopping.client, stopping.server)
    client = stopping.begin()
    client.send(CACHED)
    reply = client.receive()
    assert (reply.status, reply.headers["connection"]) == (206, "close")
    assert stopping.over()


@pytest.mark.usefixtures("patient")
def test_members_of_the_crowd_do_not_depend_on_the_summons(
    snapshot_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rings when all listeners are closed, which takes a while on a busy machine: until then the rule holds too."""
    answered = threading.Event()
    ring = Summons.ring

    def ring_late(summons: Summons) -> None:
        answered.wait(30.0)
        ring(summons)

    stopping = Stopping(snapshot_file)
    join_crowd(stopping.client, stopping.server)
    monkeypatch.setattr(Summons, "ring", ring_late)
    client = stopping.begin()
    client.send(CACHED)
    reply = client.receive()
    answered.set()
    assert (reply.status, reply.headers.get("connection")) == (206, "close")
    assert stopping.over()


def test_who_asks_for_nothing_holds_nothing_up(snapshot_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "LAST_REQUEST_S", 0.05)
    stopping = Stopping(snapshot_file)
    stopping.begin()
    assert stopping.over()
