"""Known traffic over HTTP, NBD and S3, and then what ``/metrics`` says of it, to the last request and byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from hexz.protocol.nbd import constants as c
from hexz.tools.pack import pack
from tests.http.serving import Client as HttpClient
from tests.nbd.conftest import _damage
from tests.nbd.wire import Client
from tests.peers import Server, write_secret
from tests.waiting import until

BLOCK = 64 << 10
BLOCKS = 48
PATIENCE_S = 30.0
NAME = 'odd "name"\\'
"""A name that has to be escaped."""

Labels = frozenset[tuple[str, str]]


class Figures:
    """The samples of one scrape."""

    def __init__(self, url: str) -> None:
        answer = requests.get(f"{url}/metrics", timeout=PATIENCE_S)
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.samples: dict[tuple[str, Labels], float] = {}
        self.kinds: dict[str, str] = {}
        for family in text_string_to_metric_families(answer.text):
            assert family.documentation
            assert family.name not in self.kinds
            self.kinds[family.name] = family.type
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples
                self.samples[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over the samples that have these labels."""
        wanted = labels.items()
        return sum(value for (one, has), value in self.samples.items() if one == name and wanted <= has)


@pytest.fixture(scope="module")
def raw() -> bytes:
    return random.Random(7).randbytes(BLOCK * BLOCKS)


@pytest.fixture
def server(raw: bytes, tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "disk.raw").write_bytes(raw)
    pack(str(tmp_path / "disk.raw"), str(tmp_path / "good.hxz"), block_size=BLOCK)
    pack(str(tmp_path / "disk.raw"), str(tmp_path / "bad.hxz"), block_size=BLOCK)
    _damage(tmp_path / "bad.hxz", 2 * BLOCK)
    files = [f"{NAME}={tmp_path}/good.hxz", tmp_path / "bad.hxz"]
    with Server(*files, "--http-port", 0, "--nbd-port", 0, "--s3-port", 0) as running:
        yield running


def http_client(server: Server) -> HttpClient:
    host, _, port = server.http.rpartition("/")[2].rpartition(":")
    return HttpClient((host, int(port)))


def spans(start: int, stop: int) -> str:
    return f"bytes={start}-{stop - 1}"


def test_http_reads(server: Server, raw: bytes) -> None:
    sizes = [4096] * 40 + [700, 5000] + [4096] * 10
    with http_client(server) as client:
        for number, size in enumerate(sizes):
            start = number % 8 * 100
            reply = client.ask("GET", "/disk", {"Range": spans(start, start + size)})
            assert reply.body == raw[start : start + size]
        # Live, while the connection is still open; every reply was counted before the next request was taken.
        now = Figures(server.http)
        assert now("hexz_requests_total", protocol="http", op="read") >= len(sizes) - 1
        client.ask("HEAD", "/disk")
        client.ask("GET", "/info")
        assert client.ask("GET", "/disk", {"Range": "bytes=99999999-"}).status == 416
        assert client.ask("GET", "/nothing").status == 404
        assert client.ask("GET", "/disk", {"Range": spans(5 * BLOCK - 96, 5 * BLOCK + 4000)}).status == 206
        assert client.ask("GET", "/disk", {"Range": spans(4 * BLOCK - 96, 4 * BLOCK + 4000)}).status == 206
        etag = client.ask("HEAD", "/disk").headers["etag"]
        assert client.ask("GET", "/disk", {"If-None-Match": etag}).status == 304
    mine = {"snapshot": NAME, "protocol": "http"}
    until(lambda: Figures(server.http)("hexz_requests_total", **mine, op="info", outcome="ok") == 4)
    figures = Figures(server.http)
    assert figures("hexz_requests_total", **mine, op="read", outcome="ok") == len(sizes) + 2
    assert figures("hexz_requests_total", **mine, op="read", outcome="refused") == 1
    assert figures("hexz_requests_total", snapshot="", op="other", outcome="refused") == 1
    assert figures("hexz_read_size_bytes_sum", **mine) == sum(sizes) + 2 * 4096
    assert figures("hexz_read_size_bytes_bucket", **mine, le="1023") == 1
    assert figures("hexz_read_size_bytes_bucket", **mine, le="4095") == 1
    assert figures("hexz_read_size_bytes_bucket", **mine, le="16383") == len(sizes) + 2
    assert figures("hexz_request_duration_seconds_count", **mine, op="read") == len(sizes) + 2
    # Block 0 was new to the first, blocks 4 and 5 to the next, of the last one only block 3.
    assert [figures("hexz_cached_reads_total", **mine, outcome=how) for how in ("hit", "partial", "miss")] == [
        len(sizes) - 1, 1, 2,
    ]  # fmt: skip
    assert figures("hexz_cache_loads_total") == figures("hexz_cache_blocks")
    assert figures("hexz_cache_bytes") == figures("hexz_cache_blocks") * BLOCK
    assert figures("hexz_storage_read_bytes_total", snapshot=NAME) > 4 * BLOCK
    assert figures("hexz_connections", protocol="http") >= 1
    assert figures("process_open_fds") > 3
    assert figures("process_resident_memory_bytes") > 1 << 20
    assert figures.kinds["hexz_request_duration_seconds"] == "histogram"


@pytest.mark.parametrize("mode", ["simple", "extended"])
def test_nbd_reads(server: Server, raw: bytes, mode: str) -> None:
    address = ("127.0.0.1", server.nbd_port)
    mine = {"snapshot": NAME, "protocol": "nbd"}
    sizes = [4096] * 30 + [512, 9000] + [4096] * 300
    with Client(address) as client:
        client.negotiate(mode)
        if mode == "extended":
            client.set_contexts("", "base:allocation")
        client.go("")
        client.read(0, 1)
        for first in range(0, len(sizes), 16):
            batch = sizes[first : first + 16]
            asked: dict[int, tuple[int, int, int]] = {}
            out = b""
            for size in batch:
                out += client.pack(c.CMD_READ, 100, size)
                asked[client.cookie] = (c.CMD_READ, 100, size)
            client.send(out)
            for _ in batch:
                reply = client.reply(asked)
                assert reply.data == raw[100 : 100 + asked[reply.cookie][2]]
        assert client.read(10 * BLOCK, 3 * BLOCK) == raw[10 * BLOCK : 13 * BLOCK]
        assert client.request(c.CMD_READ, len(raw), 10).error
        assert client.request(c.CMD_WRITE, 0, 4, payload=b"abcd").error == c.NBD_EPERM
        extra = 0
        if mode == "extended":
            assert client.request(c.CMD_BLOCK_STATUS, 0, BLOCK).error == 0
            extra = 1
        figures = Figures(server.http)
        assert figures("hexz_connections", protocol="nbd") == 1
        assert figures("hexz_requests_total", **mine, op="open") == 1
        assert figures("hexz_requests_total", **mine, op="close") == 0
        client.send(client.pack(c.CMD_DISC))
        assert client.ended()
    until(lambda: Figures(server.http)("hexz_requests_total", **mine, op="close") == 1)
    figures = Figures(server.http)
    reads = len(sizes) + 2
    assert figures("hexz_requests_total", **mine, op="read", outcome="ok") == reads
    assert figures("hexz_requests_total", **mine, op="read", outcome="refused") == 1
    assert figures("hexz_requests_total", **mine, op="other", outcome="refused") == 1
    assert figures("hexz_requests_total", **mine, op="extents", outcome="ok") == extra
    assert figures("hexz_sent_bytes_total", **mine, op="read") == sum(sizes) + 1 + 3 * BLOCK
    assert figures("hexz_read_size_bytes_bucket", **mine, le="1023") == 2
    assert figures("hexz_read_size_bytes_bucket", **mine, le="16383") == reads - 1
    assert figures("hexz_read_size_bytes_bucket", **mine, le="+Inf") == reads
    assert figures("hexz_request_duration_seconds_count", **mine, op="read") == reads
    assert [figures("hexz_cached_reads_total", **mine, outcome=how) for how in ("hit", "partial", "miss")] == [
        len(sizes), 0, 2,
    ]  # fmt: skip
    assert figures("hexz_connections_accepted_total", protocol="nbd") == 1


def test_failures_are_counted_where_they_happen(server: Server) -> None:
    with http_client(server) as client_of_http:
        wanted = {"Range": spans(2 * BLOCK, 2 * BLOCK + 10)}
        assert client_of_http.ask("GET", "/snapshots/bad/disk", wanted).status == 500
    with Client(("127.0.0.1", server.nbd_port)) as client:
        client.negotiate("structured").go("bad")
        assert client.request(c.CMD_READ, 2 * BLOCK, 10).error == c.NBD_EIO
        assert client.read(0, 10)
    until(lambda: Figures(server.http)("hexz_requests_total", op="close") == 1)
    until(lambda: Figures(server.http)("hexz_requests_total", protocol="http", outcome="failed") == 1)
    figures = Figures(server.http)
    for protocol in ("http", "nbd"):
        assert figures("hexz_requests_total", snapshot="bad", protocol=protocol, op="read", outcome="failed") == 1
    assert figures("hexz_requests_total", snapshot="bad", protocol="nbd", op="read", outcome="ok") == 1
    assert figures("hexz_requests_total", snapshot=NAME, outcome="failed") == 0
    assert figures("hexz_errors_total") == 2
    assert figures("hexz_cache_failures_total") >= 2


def test_a_download_that_is_given_up_is_aborted(server: Server, raw: bytes) -> None:
    with http_client(server) as client:
        client.sock.setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF
        # Far more than the sockets take, so that the server is still sending when the client hangs up.
        client.send(b"GET /disk HTTP/1.1\r\nHost: localhost\r\n\r\n" * 16)
        assert client.sock.recv(100)
        client.sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: the end is a reset
    until(lambda: Figures(server.http)("hexz_requests_total", op="read", outcome="aborted") == 1)
    figures = Figures(server.http)
    whole = figures("hexz_read_size_bytes_count", op="read")
    assert whole < 16
    sent = figures("hexz_sent_bytes_total", op="read", snapshot=NAME)
    assert whole * len(raw) <= sent <= (whole + 1) * len(raw)
    assert figures("hexz_read_size_bytes_sum", op="read") == whole * len(raw)


def test_s3_reads(server: Server, raw: bytes) -> None:
    url = server.urls["s3"].rstrip("/").replace("s3://", "http://")
    with requests.Session() as session:
        for number in range(30):
            answer = session.get(f"{url}/bad/disk", headers={"Range": spans(number, number + 5000)}, timeout=PATIENCE_S)
            assert answer.content == raw[number : number + 5000]
        assert session.get(f"{url}/bad", timeout=PATIENCE_S).status_code == 200
        assert session.get(f"{url}/nosuch/disk", timeout=PATIENCE_S).status_code == 404
    until(lambda: Figures(server.http)("hexz_requests_total", snapshot="", protocol="s3", outcome="refused") == 1)
    figures = Figures(server.http)
    assert figures("hexz_requests_total", snapshot="bad", protocol="s3", op="read", outcome="ok") == 30
    assert figures("hexz_sent_bytes_total", snapshot="bad", protocol="s3", op="read") == 30 * 5000
    assert figures("hexz_requests_total", snapshot="bad", protocol="s3", op="list", outcome="ok") == 1


def test_images_reads(server: Server, raw: bytes) -> None:
    url = f"{server.http}/images/bad"
    with requests.Session() as session:
        for number in range(20):
            answer = session.get(url, headers={"Range": spans(number, number + 5000)}, timeout=PATIENCE_S)
            assert answer.content == raw[number : number + 5000]
        assert session.get(f"{url}/extents", timeout=PATIENCE_S).status_code == 200
        assert session.options(url, timeout=PATIENCE_S).status_code == 200
        assert session.head(url, timeout=PATIENCE_S).status_code == 200
        assert session.put(url, data=b"no", timeout=PATIENCE_S).status_code == 405
        assert session.get(f"{url}sd", timeout=PATIENCE_S).status_code == 404
    mine = {"snapshot": "bad", "protocol": "images"}
    until(lambda: Figures(server.http)("hexz_requests_total", protocol="images", outcome="refused") == 2)
    figures = Figures(server.http)
    assert figures("hexz_requests_total", **mine, op="read", outcome="ok") == 20
    assert figures("hexz_sent_bytes_total", **mine, op="read") == 20 * 5000
    assert figures("hexz_requests_total", **mine, op="extents", outcome="ok") == 1
    assert figures("hexz_requests_total", **mine, op="info", outcome="ok") == 2


def test_the_figures_need_the_token_that_everything_needs(tmp_path: Path, snapshot_file: Path) -> None:
    token = "0123456789abcdef0123"
    write_secret(tmp_path / "tokens", f"ops {token}\n")
    with Server(snapshot_file, "--http-port", 0, "--token-file", tmp_path / "tokens") as server:
        assert requests.get(f"{server.http}/metrics", timeout=PATIENCE_S).status_code == 401
        allowed = {"Authorization": f"Bearer {token}"}
        answer = requests.get(f"{server.http}/metrics", headers=allowed, timeout=PATIENCE_S)
        assert "hexz_build_info" in answer.text
