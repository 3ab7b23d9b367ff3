"""Out of threads, what can be read without one is read, and newcomers wait."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from hexz.cache import Workers
from tests.http.serving import serving
from tests.nbd.serving import PATIENCE_S, Serving

CONNECTION = "process_request_thread"
"""What the thread of every connection runs (`socketserver.ThreadingMixIn`)."""


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Threads that are called one of these, or run a function of that name, cannot be started."""
    names: list[str] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        target = getattr(thread._target, "__name__", "")  # type: ignore[attr-defined]
        if thread.name.startswith(tuple(names)) or target in names:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return names


def test_read_ahead_is_declined(no_threads: list[str]) -> None:
    no_threads.append("decode")
    workers = Workers(2)
    assert not workers.offer(lambda: None)
    no_threads.clear()
    done = threading.Event()
    assert workers.offer(done.set) and done.wait(20)
    workers.stop()


def test_cold_reads_are_served_by_the_thread_that_asked(
    no_threads: list[str], snapshot_file: Path, disk_image: Path
) -> None:
    no_threads += ["decode", "nbd-miss"]
    image = disk_image.read_bytes()
    with serving({"snap": snapshot_file}) as server:
        assert server.ask("GET", "/disk").body == image
    with Serving(snapshot_file) as nbd, nbd.client() as client:
        client.go("")
        for offset in range(0, len(image) - (1 << 20), 1 << 20):
            assert client.read(offset, 1 << 20) == image[offset : offset + (1 << 20)]


def test_newcomers_wait_for_a_thread(no_threads: list[str], snapshot_file: Path) -> None:
    with Serving(snapshot_file) as server:
        no_threads.append(CONNECTION)
        clients = [socket.create_connection(server.address, PATIENCE_S) for _ in range(5)]
        while server.listener.put_off is None:
            server.front.wake()
        no_threads.clear()
        no_threads.append("none of them")
        server.front.wake()
        for client in clients:
            assert client.recv(8) == b"NBDMAGIC"
            client.close()


def test_health_is_told_without_a_thread_to_be_had(no_threads: list[str], snapshot_file: Path) -> None:
    """And everything else is 503, rather than a wait without an end."""
    with serving({"snap": snapshot_file}) as server:
        no_threads.append(CONNECTION)
        for _ in range(10):
            assert server.ask("GET", "/healthz").status == 200
            reply = server.ask("GET", "/disk")
            assert (reply.status, reply.headers["retry-after"], reply.headers["connection"]) == (503, "5", "close")


def test_whoever_waits_for_a_thread_does_not_keep_the_server_from_ending(
    no_threads: list[str], snapshot_file: Path
) -> None:
    with Serving(snapshot_file) as server:
        no_threads.append(CONNECTION)
        client = socket.create_connection(server.address, PATIENCE_S)
        while server.listener.put_off is None:
            server.front.wake()
        began = time.monotonic()
        assert server.close()
        assert time.monotonic() - began < PATIENCE_S / 2
        client.close()
