"""The daemon before stores that are slow, gone, or come back; each block asked for once; no secret told."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.control.clients import Controlled
from tests.nbd.wire import Client
from tests.peers import ROOT, Server, fetch, write_secret
from tests.remote import faults
from tests.remote.proxy import Proxy
from tests.remote.stores import Store, file_putter, nginx
from tests.waiting import until

LISTEN = ("--http-port", 0, "--nbd-port", 0)
PIECE = 48 << 10
FAR = 5 << 20


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with nginx(folder) as made:
        yield made


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.base) as made:
        yield made


@pytest.fixture(scope="module")
def image(disk_image: Path) -> bytes:
    return disk_image.read_bytes()


def ready(server: Server) -> Any:
    return json.loads(fetch(f"{server.http}/readyz")[1])


def disk(server: Server, offset: int, length: int = PIECE, name: str = "snap") -> tuple[int, bytes]:
    span = {"Range": f"bytes={offset}-{offset + length - 1}"}
    return fetch(f"{server.http}/snapshots/{name}/disk", headers=span)


def gives(server: Server, image: bytes, offset: int, name: str = "snap") -> bool:
    """Whether these bytes come; wrong ones never do."""
    status, body = disk(server, offset, PIECE, name)
    assert status != 206 or body == image[offset : offset + PIECE]
    return status == 206


@contextlib.contextmanager
def attached(server: Server, export: str) -> Iterator[Client]:
    with Client(("127.0.0.1", server.nbd_port)) as client:
        client.negotiate("structured").go(export)
        yield client


def body(server: Server, offset: int, name: str) -> bytes:
    return disk(server, offset, 4096, name)[1]


def at_once(reads: list[Callable[[], bytes]]) -> list[bytes]:
    """What all of them give, in threads that begin together."""
    gate = threading.Barrier(len(reads))

    def act(read: Callable[[], bytes]) -> bytes:
        gate.wait()
        return read()

    with ThreadPoolExecutor(len(reads)) as pool:
        return list(pool.map(act, reads))


def refused(*arguments: object) -> tuple[int, str]:
    """Status and words of a daemon that does not start."""
    command = [sys.executable, str(ROOT / "hexz_serve.py"), *LISTEN, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


# One fetch for all


@pytest.fixture(scope="module")
def long_index(tmp_path_factory: pytest.TempPathFactory, disk_image: Path) -> Path:
    """A snapshot whose index is too long to come whole when it is opened."""
    from hexz.tools.pack import pack

    path = tmp_path_factory.mktemp("long") / "long.hxz"
    pack(str(disk_image), str(path), block_size=512)
    return path


def test_what_many_read_at_once_is_asked_for_once(store: Store, folder: Path, long_index: Path, image: bytes) -> None:
    (folder / "long.hxz").write_bytes(long_index.read_bytes())
    with Proxy(store.base) as proxy, Server(*LISTEN, proxy.url("snap.hxz"), proxy.url("long.hxz")) as server:
        with contextlib.ExitStack() as clients:
            exports = ["snap", "long"] * 4
            nbd = [clients.enter_context(attached(server, export)) for export in exports]
            proxy.use(faults.latency(0.05))
            for offset in (100_000, FAR):
                before = proxy.forget().requests
                reads = [partial(client.read, offset, 4096) for client in nbd]
                reads += [partial(body, server, offset, name) for name in exports * 2]
                assert at_once(reads) == [image[offset : offset + 4096]] * len(reads) and before
                proxy.quiet()
                for name in ("/snap.hxz", "/long.hxz"):
                    assert proxy.counts.fetched_bytes(name) == proxy.counts.distinct_bytes(name) > 0
                # A block of the one; of the other an index page and some blocks.
                assert len(proxy.counts.of("/snap.hxz")) == 1 and len(proxy.counts.of("/long.hxz")) <= 4


# Stores that are down or frozen


def test_it_starts_while_the_store_is_down_and_recovers(proxy: Proxy, image: bytes, snapshot_file: Path) -> None:
    proxy.down()
    near = f"near={snapshot_file}"
    addresses = [proxy.url("snap.hxz"), f"again={proxy.url('snap.hxz')}", f"gone={proxy.url('gone.hxz')}"]
    with Server(*LISTEN, "--remote-timeout", 0.5, near, *addresses) as server:
        assert ready(server) == {"status": "ready", "snapshots": 1, "skipped": 2, "unreachable": 3}
        assert gives(server, image, FAR, "near") and disk(server, 0)[0] == 503
        assert f"skipped: {proxy.url('snap.hxz')}: " in server.stderr() and "Connection refused" in server.stderr()
        proxy.up()
        until(lambda: "unreachable" not in ready(server))
        assert gives(server, image, FAR) and gives(server, image, FAR, "again")
        assert "snap is served now" in server.stderr()
        # What turns out not to be there is no trouble that passes.
        assert ready(server) == {"status": "ready", "snapshots": 3, "skipped": 1}
        assert "its server does not have it" in server.stderr()


def test_a_silent_server_is_waited_for_once(proxy: Proxy, snapshot_file: Path) -> None:
    proxy.freeze()
    names = [f"s{number}={proxy.url('snap.hxz')}?n={number}" for number in range(40)]
    with Server(*LISTEN, "--remote-timeout", 1, f"near={snapshot_file}", *names) as server:  # 40 s one after the other
        assert ready(server)["unreachable"] == 40
        proxy.thaw()
        until(lambda: ready(server)["snapshots"] == 41)


def test_require_origin(proxy: Proxy, snapshot_file: Path) -> None:
    proxy.down()
    status, said = refused("--require-origin", "--remote-timeout", 0.3, f"near={snapshot_file}", proxy.url("snap.hxz"))
    assert status == 69 and proxy.url("snap.hxz") in said and "refused" in said


@pytest.mark.parametrize(("path", "status", "words"), [("gone.hxz", 66, "does not have it"), ("page", 65, "")])
def test_what_is_no_snapshot_is_told_at_once(path: str, status: int, words: str, store: Store, folder: Path) -> None:
    (folder / "page").write_bytes(b"<html>" * 1000)
    found, said = refused(store.url(path))
    assert found == status and store.url(path) in said and words in said


def test_a_reload_with_the_store_down_keeps_what_is_served(proxy: Proxy, image: bytes, folder: Path) -> None:
    with Server(*LISTEN, "--remote-timeout", 0.3, proxy.url("snap.hxz")) as server:
        assert gives(server, image, FAR)
        for stop, go_on, cold in ((proxy.down, proxy.up, 1 << 20), (proxy.freeze, proxy.thaw, 3 << 20)):
            stop()
            seen = server.stderr().count("reloaded:")
            server.process.send_signal(signal.SIGHUP)
            until(lambda count=seen: server.stderr().count("reloaded:") > count)
            assert gives(server, image, FAR), "what is in memory"
            assert disk(server, cold)[0] in (502, 504)
            go_on()
            proxy.cut()
            until(lambda offset=cold: gives(server, image, offset))
        assert ready(server)["snapshots"] == 1 and "unreachable" not in ready(server)


def test_a_replaced_object_is_an_error_until_it_is_opened_again(proxy: Proxy, image: bytes, folder: Path) -> None:
    from hexz.tools.pack import pack

    with Server(*LISTEN, proxy.url("snap.hxz")) as server:
        assert gives(server, image, 0)
        (folder / "new.raw").write_bytes(bytes(255 - byte for byte in image))
        pack(str(folder / "new.raw"), str(folder / "new.hxz"))
        file_putter(folder)("snap.hxz", (folder / "new.hxz").read_bytes())
        for _ in range(2):
            assert disk(server, FAR)[0] == 500 and ready(server)["changed"] == 1
        assert "replaced on its server" in server.stderr()
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "changed" not in ready(server))
        assert disk(server, FAR) == (206, bytes(255 - byte for byte in image[FAR : FAR + PIECE]))


def test_a_frozen_store_costs_its_readers_alone(
    proxy: Proxy, image: bytes, snapshot_file: Path, folder: Path, tmp_path: Path
) -> None:
    options = ("--remote-timeout", 60, f"near={snapshot_file}", proxy.url("snap.hxz"))
    with (
        nginx(folder) as other,
        Controlled(tmp_path / "c", *LISTEN, *options, f"other={other.url('snap.hxz')}") as server,
    ):
        with attached(server, "near") as near, contextlib.ExitStack() as hanging:
            proxy.freeze()
            for number in range(32):
                if number % 2:
                    client = hanging.enter_context(attached(server, "snap"))
                    client.send(client.pack(0, number * 200_000, 4096))
                else:
                    sock = hanging.enter_context(
                        socket.create_connection(("127.0.0.1", urlsplit(server.http).port or 0))
                    )
                    span = f"bytes={number * 200_000}-{number * 200_000 + 4095}"
                    sock.sendall(f"GET /snapshots/snap/disk HTTP/1.1\r\nHost: h\r\nRange: {span}\r\n\r\n".encode())
            until(lambda: proxy.counts.in_flight >= 6)  # many wait for one answer
            for offset in range(0, 8 << 20, 1 << 20):
                assert near.read(offset, 4096) == image[offset : offset + 4096]
                assert gives(server, image, offset, "other")
                assert fetch(f"{server.http}/healthz")[0] == 200 and server.state == "RUNNING"
            assert fetch(f"{server.http}/metrics")[0] == 200 and fetch(f"{server.http}/")[0] == 200
            proxy.thaw()
        until(lambda: gives(server, image, FAR))


def test_it_ends_while_reads_hang(proxy: Proxy) -> None:
    with Server(*LISTEN, "--remote-timeout", 600, "--drain-timeout", 0.2, proxy.url("snap.hxz")) as server:
        with attached(server, "snap") as client:
            proxy.freeze()
            client.send(client.pack(0, FAR, 4096))
            server.process.send_signal(signal.SIGHUP)
            assert server.stop() == 0


# Secrets and what is said of mistakes

SECRET = "sig-that-nobody-may-see"


def everything_told(server: Controlled, names: list[str]) -> str:
    """What can be had from a daemon without its files."""
    told = [server.stderr()]
    for path in ("/", "/info", "/metrics", "/readyz", "/snapshots", "/nothing"):
        told += [
            str(fetch(f"{server.http}{path}")),
            str(fetch(f"{server.http}{path}", headers={"Accept": "text/html"})),
        ]
    for name in names:
        told += [str(fetch(f"{server.http}/snapshots/{name}{path}")) for path in ("", "/info", "/disk", "/files")]
    for path in ("daemon", "snapshots", "daemon/events", "daemon/backend", "metrics", "metrics/files"):
        told.append(str(server.ask("GET", f"/api/v1/{path}").body))
    told.append(str(server.ask("GET", "/api/v2/daemon").body))
    return "\n".join(told)


def test_no_secret_is_told(proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    tokens = write_secret(tmp_path / "tokens", f"127.0.0.1 {SECRET}-token\n")
    keys = write_secret(tmp_path / "keys", f"[default]\naws_access_key_id = AK\naws_secret_access_key = {SECRET}-key\n")
    url = f"{proxy.url('snap.hxz')}?X-Amz-Signature={SECRET}&sv=1"
    gone = f"gone={proxy.url('gone.hxz')}?sas={SECRET}"
    (folder / "bucket").mkdir()
    (folder / "bucket" / "o.hxz").write_bytes((folder / "snap.hxz").read_bytes())
    options: list[object] = ["--remote-token-file", tokens, "--s3-credentials-file", keys, "--s3-endpoint", proxy.root]
    options += ["--remote-timeout", 0.3, "--log-level", "debug"]
    status, said = refused(*options, gone)
    assert status == 66 and SECRET not in said and "gone.hxz" in said
    checked = subprocess.run(
        [sys.executable, str(ROOT / "hexz_serve.py"), "--check", *map(str, LISTEN), *map(str, options), url],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert SECRET not in checked.stdout + checked.stderr
    proxy.use(faults.status(503, "SlowDown"), when=lambda asked: "late" in asked.target)
    late = f"late={proxy.url('snap.hxz')}?late={SECRET}"
    with Controlled(tmp_path / "c", *LISTEN, *options, url, late, "s3://bucket/o.hxz") as server:
        assert (
            server.ask(
                "POST",
                "/api/v1/mount?mountpoint=/m",
                {"source": f"{proxy.url('no.hxz')}?x={SECRET}", "fs_type": "rafs", "config": ""},
            ).status
            >= 400
        )
        assert disk(server, FAR)[0] == 206 and disk(server, FAR, name="o")[0] == 206
        proxy.use("403")
        disk(server, 2 << 20), disk(server, 2 << 20, name="o")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "reloaded:" in server.stderr())
        told = everything_told(server, ["snap", "late", "o", "nothing"])
        assert SECRET not in told and "snap.hxz" in told
    assert SECRET not in server.stderr()


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["http://"], "names no host"),
        (["http://user:hunter2@h/a.hxz"], "--remote-token-file"),
        (["http://h/a.hxz#b"], "%23"),
        (["http://h/a b.hxz"], "%20"),
        (["http://h:port/a.hxz"], "no address"),
        (["s3://bucket"], "s3://BUCKET/KEY"),
        (["http://h/"], "NAME="),
        (["--s3-endpoint", "store", "s3://bucket/k"], "http://"),
        (["--s3-endpoint", "s3://store", "s3://bucket/k"], "http://"),
        (["--s3-endpoint", "http://h/?x", "s3://bucket/k"], "no query"),
        (["--parent-url", "/folder", "http://h/a.hxz"], "no address"),
        (["--parent-url", "http://h/a?b=c", "http://h/a.hxz"], "query"),
        (["--remote-timeout", "0", "http://h/a.hxz"], "0.1 to 3600"),
        (["--remote-token-file", "/nowhere/t", "http://h/a.hxz"], "/nowhere/t"),
        (["--ca-file", "/nowhere/ca", "http://h/a.hxz"], "/nowhere/ca"),
        (["--s3-credentials-file", "/nowhere/k", "s3://bucket/k"], "/nowhere/k"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], remedy: str) -> None:
    status, said = refused(*arguments)
    assert status in (2, 78) and remedy in said and "hunter2" not in said, said
    assert not re.search(r"\n.+\n.+\n", said.strip() + "\n"), said
