"""What is asked for and never read costs little memory, whatever it is and however long."""

from __future__ import annotations

import json
import re
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from hexz.catalog import Catalog
from hexz.servers.http.snapshots import CatalogApplication
from hexz.servers.s3.application import S3Application
from hexz.snapshot import new_context
from tests.control.clients import UnixConnection
from tests.crafted import Craft
from tests.http.serving import PATIENCE_S, request, serving
from tests.peers import Server

CONNECTIONS = 30
CONNECTION_BYTES = 200 << 10
"""What one may cost, half of it what the allocator makes of threads that come and go; the answers are far longer."""
CACHE_BYTES = 1 << 20
FOLDER = "some/folder/with/a/name/"
FILES, EXTENTS, SNAPSHOTS = 12_000, 30_000, 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream in very many pieces, an archive of very many files, and many snapshots beside them."""
    folder = tmp_path_factory.mktemp("many")
    craft = Craft()
    stored = craft.encode(b"x" * 512)
    place, crc = craft.store(stored), zlib.crc32(stored)
    for _ in range(EXTENTS // 2):
        craft.entry(place, len(stored), 512, crc)
        craft.zero(512)
        if len(craft.entries) >= 4096:
            craft.page()
    craft.page()
    craft.write(folder / "0-fragments.hxz")
    craft = Craft()
    craft.data(b"y" * 4096)
    craft.page()
    files = [{"path": f"{FOLDER}file-number-{n:07}.txt", "offset": 0, "size": 1, "mode": 33188} for n in range(FILES)]
    files += [{"path": f"{FOLDER}folder-{n:07}/x", "offset": 0, "size": 1} for n in range(3000)]
    craft.metadata = json.dumps({"files": files}).encode()
    craft.write(folder / "archive.hxz")
    small = Craft()
    small.data(b"z" * 100)
    small.page()
    data = small.finish()
    for number in range(SNAPSHOTS):
        (folder / f"small-{number:04}.hxz").write_bytes(data)
    return folder


HTML = {"Accept": "text/html"}
HTTP_ROUTES: list[tuple[str, dict[str, str]]] = [
    ("/", {}),
    ("/", HTML),
    *((path, {}) for path in ("/disk", "/memory", "/info", "/extents", "/snapshots", "/snapshots/")),
    *((path, {}) for path in ("/healthz", "/readyz", "/metrics")),
    ("/extents?limit=99999999", {}),
    ("/disk", {"Range": ",".join(f"bytes={n * 999}-{n * 999 + 99}"[6 * (n > 0) :] for n in range(40))}),
    (f"/snapshots/archive/files/{FOLDER}", {}),
    (f"/snapshots/archive/files/{FOLDER}?limit=99999999", {}),
    ("/archive.hxz", {}),
    ("/images/0-fragments", {}),
    ("/images/0-fragments/extents", {}),
]
S3_ROUTES = [
    "/",
    "/archive",
    "/archive?list-type=2&max-keys=1000000",
    f"/archive?list-type=2&delimiter=/&prefix=files/{FOLDER}folder",
    "/archive?list-type=2&delimiter=r",
    "/archive/info.json",
    "/0-fragments/disk",
]
CONTROL_ROUTES = ["/api/v1/daemon", "/api/v2/daemon", "/api/v1/metrics/files", "/api/v1/daemon/events", "/metrics"]


@pytest.fixture
def daemon(folder: Path, tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    """A new one for each test: what an earlier one had taken and freed would be there for a later one to use."""
    control = tmp_path / "api"
    arguments = (
        "--http-port",
        0,
        "--s3-port",
        0,
        "--control",
        control,
        "--cache-size",
        CACHE_BYTES,
        "--drain-timeout",
        0,
    )
    with Server(*arguments, folder) as server:
        yield server, control


def resident(server: Server) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def processor_time(server: Server) -> int:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def settled(server: Server) -> int:
    """Resident bytes once the daemon has nothing more to do."""
    deadline = time.monotonic() + PATIENCE_S
    before = -1
    while before != (now := processor_time(server)) and time.monotonic() < deadline:
        before = now
        time.sleep(0.2)
    return resident(server)


def connect(server: Server, control: Path, listener: str) -> socket.socket:
    if listener == "control":
        connection = UnixConnection(control)
        connection.connect()
        return connection.sock
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", int(re.findall(r":(\d+)/$", server.urls[listener])[0])))
    return sock


CASES = [
    *(("http", target, headers) for target, headers in HTTP_ROUTES),
    *(("s3", target, {}) for target in S3_ROUTES),
    *(("control", target, {}) for target in CONTROL_ROUTES),
]


@pytest.mark.parametrize(("listener", "target", "headers"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES])
def test_nobody_reads(daemon: tuple[Server, Path], listener: str, target: str, headers: dict[str, str]) -> None:
    server, control = daemon
    asked = request("GET", target, headers)
    for _ in range(2):  # what is only made once, and what the interpreter keeps
        with connect(server, control, listener) as first:
            first.sendall(request("GET", target, {**headers, "Connection": "close"}))
            assert first.recv(100).startswith((b"HTTP/1.1 20", b"HTTP/1.1 404"))
            while first.recv(1 << 20):
                continue
    before = settled(server)
    held = [connect(server, control, listener) for _ in range(CONNECTIONS)]
    for sock in held:
        sock.sendall(asked)
    after = settled(server)
    for sock in held:
        sock.close()
    assert after - before < CONNECTIONS * CONNECTION_BYTES + 2 * CACHE_BYTES  # the cache, and what is read beside it


def test_every_route_is_among_them() -> None:
    catalog = Catalog(new_context(1 << 20))
    assert set(CatalogApplication(catalog)._plain) <= {target for target, _ in HTTP_ROUTES}
    assert S3Application(catalog)  # whose lists are in pages by their protocol


def test_lists_come_in_pages(folder: Path) -> None:
    """`limit` entries at most, and ``next`` says where to go on; all pages together are the whole."""
    snapshots = {path.stem: path for path in sorted(folder.iterdir())[:25]}
    with serving(snapshots) as server, server.client() as client:

        def pages(target: str, key: str, more: str, limit: int) -> list[list[dict[str, object]]]:
            found: list[list[dict[str, object]]] = []
            following: object = ""
            while following is not None:
                sign = "&" if "?" in target else "?"
                place = f"&{more}={quote(str(following))}" if following != "" else ""
                answer = json.loads(client.ask("GET", f"{target}{sign}limit={limit}{place}").body)
                found.append(answer[key])
                following = answer["next"]
                assert 0 < len(answer[key]) <= min(limit, 1000)
            return found

        def every(target: str, key: str, more: str, limit: int) -> list[dict[str, object]]:
            return [entry for page in pages(target, key, more, limit) for entry in page]

        whole = pages("/snapshots", "snapshots", "after", 1000)
        assert len(whole) == 1 and [item["name"] for item in whole[0]] == list(snapshots)
        for target in ("/snapshots", "/"):
            assert every(target, "snapshots", "after", 7) == whole[0]
        extents = every("/extents", "extents", "start", 99999)
        assert len(extents) == EXTENTS
        assert [item["start"] for item in extents] == list(range(0, EXTENTS * 512, 512))
        files = f"/snapshots/archive/files/{FOLDER}"
        listed = every(files, "entries", "after", 99999)
        names = [f"file-number-{n:07}.txt" for n in range(FILES)] + [f"folder-{n:07}/" for n in range(3000)]
        assert [item["name"] for item in listed] == names
        assert every("/snapshots/archive/files/", "entries", "after", 1) == [{"name": "some/", "type": "folder"}]
        assert b"?after=" in client.ask("GET", "/?limit=3", HTML).body
        for wrong in ("limit=0", "limit=-1", "limit=x", "after=gone"):
            assert client.ask("GET", f"/snapshots?{wrong}").status == 400
