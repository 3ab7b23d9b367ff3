"""The daemon's memory stays within its bounds whatever a store answers, and however many read."""

from __future__ import annotations

import contextlib
import http.client
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hexz.tools.pack import pack
from tests.peers import Server, fetch
from tests.remote.proxy import Proxy
from tests.remote.stores import nginx

SIZE = 96 << 20
CACHE = 32 << 20
PART = 2 << 20
READERS = 12
MARGIN = 96 << 20
"""The interpreter with TLS, threads and their heaps, what is fetched, decompressed and sent."""
HOSTILE = (
    "no end", "huge length", "large head", "100,000 interim answers", "stretched", "more than asked", "200 HTML",
    "total of many digits", "multipart", "chunked",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("www")
    with (path.parent / "raw").open("wb") as file:
        for _ in range(SIZE // PART):
            file.write(os.urandom(PART // 2) + bytes(PART // 2))
    pack(str(path.parent / "raw"), str(path / "snap.hxz"))
    (path.parent / "raw").unlink()
    return path


def resident(server: Server) -> int:
    """The most that the daemon had in memory so far, bytes."""
    families = text_string_to_metric_families(fetch(f"{server.http}/metrics")[1].decode())
    assert any(family.name == "hexz_remote_fetched_bytes" for family in families)
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


def read(server: Server, start: int) -> int:
    where = urlsplit(server.http)
    with contextlib.closing(http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)) as connection:
        connection.request("GET", "/disk", headers={"Range": f"bytes={start}-{start + PART - 1}"})
        answer = connection.getresponse()
        with contextlib.suppress(http.client.IncompleteRead):
            return len(answer.read()) if answer.status == 206 else 0
    return 0


def test_whatever_the_store_answers(folder: Path) -> None:
    starts = range(0, SIZE, PART)
    with nginx(folder) as store, Proxy(store.base) as proxy:
        options = ["--http-port", 0, "--cache-size", CACHE, "--remote-timeout", 0.5]
        with Server(*options, proxy.url("snap.hxz")) as server, ThreadPoolExecutor(READERS) as pool:

            def read_all() -> int:
                return sum(pool.map(lambda start: read(server, start), starts))

            assert read_all() == SIZE
            for fault in HOSTILE:
                proxy.use(fault)
                read(server, 0)
                sum(pool.map(lambda start: read(server, start), starts[:READERS]))
                proxy.clear()
            assert read_all() == SIZE
            assert resident(server) < CACHE + MARGIN
