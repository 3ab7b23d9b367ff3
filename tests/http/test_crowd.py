"""Connections on a streak of cached ranges are served together: every byte right, and each can leave at any time."""

from __future__ import annotations

import errno
import random
import select
import socket
import threading
import time
from pathlib import Path

import pytest

from hexz.servers import crowd
from hexz.servers.http.handler import STREAK
from tests.http.serving import PATIENCE_S, Client, Serving, request, serving

RANGED = {"Range": "bytes=10-19"}


def join_crowd(client: Client, server: Serving) -> None:
    """Ask until the crowd has the connection, in company: a connection alone does not join."""
    deadline = time.monotonic() + 30
    with server.client() as company:
        while not is_member(client, server):
            assert time.monotonic() < deadline
            for asking in (company, client):
                for _ in range(STREAK + 2):
                    assert asking.ask("GET", "/disk", RANGED).status == 206


def is_member(client: Client, server: Serving) -> bool:
    host, port = client.sock.getsockname()
    members = server.listener.site.crowd._members  # type: ignore[attr-defined]
    return any(c.peer == f"{host}:{port}" and c.sock.fileno() in members for c in server.listener.live())


def test_many_connections_get_what_they_ask_for(snapshot_file: Path, disk: bytes) -> None:
    """Ranges small and large, cached and not, other requests in between, requests in pieces, several at once."""
    failures: list[str] = []

    def read(seed: int) -> None:
        source = random.Random(seed)
        with server.client() as client:
            for _ in range(300):
                kind = source.random()
                if kind < 0.02:
                    assert client.ask("GET", "/healthz").status == 200
                    continue
                start = source.randrange(len(disk))
                length = source.choice((1, 4096, 65536, 300_000))
                data = request("GET", "/disk", {"Range": f"bytes={start}-{start + length - 1}"})
                if kind < 0.04:
                    client.send(data[:20])
                    data = data[20:]
                copies = 3 if kind > 0.98 else 1
                client.send(data * copies)
                for _ in range(copies):
                    if client.receive().body != disk[start : start + length]:
                        failures.append(f"{seed}: {start}+{length}")

    # A cache that does not hold all of the image, so that members meet blocks that are gone.
    with serving({"snap": snapshot_file}, cache_size=4 << 20) as server:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_a_member_goes_home_for_anything_unusual(snapshot_file: Path) -> None:
    with serving({"snap": snapshot_file}) as server, server.client() as client, server.client() as other:
        join_crowd(client, server)
        join_crowd(other, server)
        for target, headers, status in (
            ("/disk", {"Range": "bytes=99999999-"}, 416),
            ("/disk", {"Range": "bytes=5-4"}, 200),
            ("/disk", {"Range": "bytes=0-1,900-901"}, 206),
            ("/disk", {"Range": "bytes=\u00b2-9"}, 200),
            ("/memory", RANGED, 206),
            ("/nothing", RANGED, 404),
        ):
            join_crowd(client, server)
            assert client.ask("GET", target, headers).status == status
        join_crowd(client, server)
        client.send(b"GET / HTTP/1.1\r\nHost : h\r\n\r\n")
        assert client.receive().status == 400
        assert client.ended()
        assert other.ask("GET", "/disk", RANGED).status == 206


def test_silent_members_make_room(snapshot_file: Path) -> None:
    with serving({"snap": snapshot_file}) as server, server.client() as client, server.client() as other:
        join_crowd(client, server)
        join_crowd(other, server)
        server.listener.max_connections = 2
        deadline = time.monotonic() + 30
        while not newcomer_is_answered(server):  # until they have been silent for a moment
            assert time.monotonic() < deadline


def newcomer_is_answered(server: Serving) -> bool:
    with server.client() as newcomer:
        return newcomer.ask("GET", "/info").status == 200


def test_members_that_hang_up_or_never_read_harm_nobody(snapshot_file: Path, disk: bytes) -> None:
    with serving({"snap": snapshot_file}) as server, server.client() as good, server.client() as deaf:
        join_crowd(good, server)
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        join_crowd(deaf, server)
        asked = request("GET", "/disk", {"Range": "bytes=0-99999"})
        for _ in range(100):
            deaf.send(asked)
        for _ in range(5):
            with server.client() as rude:
                join_crowd(rude, server)
                rude.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                rude.send(asked)
        for _ in range(50):
            assert good.ask("GET", "/disk", RANGED).body == disk[10:20]
        for _ in range(100):
            assert deaf.receive().body == disk[:100_000]
        deadline = time.monotonic() + PATIENCE_S
        while len(server.listener.live()) > 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(server.listener.live()) == 2


def test_idle_members_end(snapshot_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "SWEEP_S", 0.05)
    with serving({"snap": snapshot_file}) as server, server.client() as client:
        join_crowd(client, server)
        # Only now: on a busy machine it might otherwise be idle for too long while it still joins.
        server.listener.site.crowd._idle_s = 0.2  # type: ignore[attr-defined]
        assert client.ended()


def test_a_connection_alone_stays_in_its_thread(snapshot_file: Path) -> None:
    with serving({"snap": snapshot_file}) as server, server.client() as client:
        for _ in range(5 * STREAK):
            assert client.ask("GET", "/disk", RANGED).status == 206
            assert not is_member(client, server)


@pytest.mark.parametrize("spared", [0, 1])
def test_a_kernel_that_watches_no_more(snapshot_file: Path, monkeypatch: pytest.MonkeyPatch, spared: int) -> None:
    """epoll_ctl(2), ENOSPC, for the crowd's own descriptor or a member's: connections go on in their own threads."""
    refused: list[int] = []
    seen: list[int] = []
    real = select.epoll

    class Full:
        def __init__(self) -> None:
            self._never = real()
            self.poll, self.close = self._never.poll, self._never.close

        def register(self, fd: int, _: int) -> None:
            seen.append(fd)
            if len(seen) > spared:
                refused.append(fd)
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(crowd.select, "epoll", Full)
    with serving({"snap": snapshot_file}) as server, server.client() as one, server.client() as other:
        for _ in range(5 * STREAK):
            assert one.ask("GET", "/disk", RANGED).status == other.ask("GET", "/disk", RANGED).status == 206
        assert refused and not is_member(one, server)


def test_stopping_ends_the_crowd(snapshot_file: Path) -> None:
    server = Serving({"snap": snapshot_file})
    with server.client() as client:
        join_crowd(client, server)
        assert server.close()
        assert client.ended()


def test_members_see_a_change_of_the_catalog(snapshot_file: Path) -> None:
    with serving({"snap": snapshot_file}) as server, server.client() as client:
        join_crowd(client, server)
        server.catalog.remove("snap")
        assert client.ask("GET", "/disk", RANGED).status == 404
