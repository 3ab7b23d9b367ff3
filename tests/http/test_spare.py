"""Health checks and the control socket answer also when all places, or all descriptors, are taken by others."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hexz.servers import spare
from tests.http.serving import PATIENCE_S, Client, Serving, serving
from tests.peers import ROOT, Server

BUSY = b"GET /disk HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
def full(snapshot_file: Path) -> Iterator[Serving]:
    """A server all of whose places are taken by clients that do not read their answers."""
    with serving({"snap": snapshot_file}, max_connections=3) as server, ExitStack() as held:
        for _ in range(3):
            client = held.enter_context(server.client())
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.send(BUSY)
        deadline = time.monotonic() + PATIENCE_S
        while not all(one.spoken for one in server.listener.live()) or len(server.listener.live()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield server


@pytest.mark.parametrize("target", ["/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_told_when_all_places_are_taken(full: Serving, method: str, target: str) -> None:
    for _ in range(2 * spare.SPARE_PLACES):
        with full.client() as client:
            reply = client.ask(method, target)
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert client.ended()


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/disk"), ("GET", "/"), ("POST", "/healthz"), ("GET", "/healthz/")]
)
def test_everything_else_is_told_to_come_again(full: Serving, method: str, target: str) -> None:
    with full.client() as client:
        reply = client.ask(method, target)
        assert (reply.status, reply.headers["retry-after"], reply.headers["connection"]) == (503, "5", "close")
        assert client.ended()


def test_the_silent_do_not_keep_health_checks_out(full: Serving) -> None:
    """Neither those that say nothing, nor those that begin a request and do not end it."""
    with ExitStack() as held:
        for number in range(spare.SPARE_THREADS * 2):
            silent = held.enter_context(full.client())
            if number % 2:
                silent.send(b"GET /healthz HTT")
        assert full.ask("GET", "/healthz").status == 200
    assert full.ask("GET", "/healthz").status == 200


def test_there_are_so_many_and_no_more(full: Serving) -> None:
    with ExitStack() as held:
        for _ in range(spare.SPARE_PLACES * 4):
            held.enter_context(full.client())
            assert len(full.listener.without_place) <= spare.SPARE_PLACES
            assert len(full.listener.connections) == 3


@contextmanager
def limited(descriptors: int, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A daemon that may have so many descriptors, and its addresses by scheme."""
    words = " ".join(map(str, arguments))
    script = f"ulimit -n {descriptors} && exec {sys.executable} {ROOT}/hexz_serve.py {words}"
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as one:
        assert one.stdout is not None
        lines = os.read(one.stdout.fileno(), 65536).decode().splitlines()
        try:
            yield one, {url.split(":", 1)[0]: url for url in (line.split()[1] for line in lines)}
        finally:
            one.terminate()
            assert one.wait(PATIENCE_S * 2) == 0


def healthy(port: int) -> int:
    with Client(("127.0.0.1", port)) as client:
        return client.ask("GET", "/healthz").status


def status_of(control: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "hexz_serve.py"), "--status", "--control", str(control)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_crowd_of_idle_clients_locks_nobody_out(tmp_path: Path, snapshot_file: Path) -> None:
    control = tmp_path / "control"
    options = ("--http-port", 0, "--nbd-port", 0, "--control", control, snapshot_file)
    with limited(160, *options) as (daemon, urls), ExitStack() as held:
        http, nbd = (int(urls[scheme].rstrip("/").rpartition(":")[2]) for scheme in ("http", "nbd"))
        for _ in range(200):
            held.enter_context(socket.create_connection(("127.0.0.1", nbd)))
        assert healthy(http) == 200
        done = status_of(control)
        assert done.returncode == 0 and f"running, pid {daemon.pid}" in done.stdout, done.stderr


def lowest_free(pid: int) -> int:
    """The descriptor that the process gets next, once it neither opens nor closes any."""
    deadline = time.monotonic() + PATIENCE_S
    before: set[int] = set()
    while True:
        now = set(map(int, os.listdir(f"/proc/{pid}/fd")))
        if now == before:
            return next(number for number in range(len(now) + 1) if number not in now)
        assert time.monotonic() < deadline
        before = now
        time.sleep(0.3)


def test_at_the_last_descriptor_health_and_status_are_told(tmp_path: Path, snapshot_file: Path) -> None:
    """As when something else than connections has taken them all."""
    control = tmp_path / "control"
    with Server("--http-port", 0, "--control", control, snapshot_file) as server:
        port = int(server.http.rpartition(":")[2])
        assert healthy(port) == 200
        pid = server.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        with ExitStack() as held:
            kept = [held.enter_context(Client(("127.0.0.1", port))) for _ in range(5)]
            for client in kept:
                assert client.ask("GET", "/healthz").status == 200
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free(pid), hard))
            for _ in range(5):
                assert healthy(port) == 200
                with Client(("127.0.0.1", port)) as client:
                    assert client.ask("GET", "/disk").status in (200, 503)  # 200 with the one just become free
                assert status_of(control).returncode == 0
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert "cannot accept" in server.stderr()
        with Client(("127.0.0.1", port)) as client:
            assert client.ask("GET", "/info").status == 200
            assert json.loads(client.ask("GET", "/healthz").body)["status"] == "ok"
