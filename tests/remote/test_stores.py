"""Whether the stores, and the proxy of faults, are what the tests of the reader take them for."""

from __future__ import annotations

import gzip
import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.peers import fetch, need, run
from tests.remote import faults
from tests.remote.faults import FAULTS
from tests.remote.proxy import Proxy
from tests.remote.stores import SPEAK_S3, STORES, Store, nginx
from tests.waiting import until

FIRST, LAST = 1000, 70_000
RANGE = {"Range": f"bytes={FIRST}-{LAST}"}


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes


def ask(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, None, headers or {}, method=method), timeout=30
        ) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def another(data: bytes) -> bytes:
    """Other content of the same size."""
    return bytes(255 - byte for byte in data)


# The stores


def readable(store: Store, name: str) -> str:
    return store.url(name) if store.public else store.presigned(name)


@pytest.mark.parametrize("kind", STORES)
def test_a_store_gives_the_bytes_of_a_range_and_the_size(kind: str, folder: Path) -> None:
    data = (folder / "snap.hxz").read_bytes()
    with STORES[kind](folder) as store:
        answer = ask(readable(store, "snap.hxz"), RANGE)
        assert answer.body == data[FIRST : LAST + 1]
        assert answer.headers["Content-Range"] == f"bytes {FIRST}-{LAST}/{len(data)}"
        assert answer.headers["ETag"].startswith('"') and answer.headers["Last-Modified"]
        # Strange, but so it is: this one says 200.
        assert answer.status == (200 if kind == "rclone" else 206)
        assert ask(readable(store, "snap.hxz"), {"Range": "bytes=-99"}).body == data[-99:]
        assert fetch(readable(store, "nothing.hxz"))[0] == 404
        if not store.public:
            assert fetch(store.url("snap.hxz"))[0] in (400, 403)


@pytest.mark.parametrize("kind", SPEAK_S3)
def test_a_store_speaks_s3_also_through_the_proxy(kind: str, folder: Path, tmp_path: Path) -> None:
    data = (folder / "snap.hxz").read_bytes()
    with STORES[kind](folder) as store, Proxy(store.endpoint) as proxy:
        seen = store.behind(proxy.root)
        bucket, key = seen.s3_uri("snap.hxz")[len("s3://") :].split("/")
        client = seen.boto3()
        facts = client.head_object(Bucket=bucket, Key=key)
        answer = client.get_object(Bucket=bucket, Key=key, Range=RANGE["Range"], IfMatch=facts["ETag"])
        assert answer["Body"].read() == data[FIRST : LAST + 1] and answer["ETag"] == facts["ETag"]
        curl = [need("curl"), "-sS", "--fail-with-body", "--aws-sigv4", f"aws:amz:{seen.region}:s3"]
        curl += ["--user", f"{seen.access_key}:{seen.secret}", "-r", "-99", "-o", str(tmp_path / "tail")]
        run(*curl, f"{seen.endpoint}/{bucket}/{key}")
        assert (tmp_path / "tail").read_bytes() == data[-99:]
        assert proxy.counts.fetched_bytes() == LAST + 1 - FIRST + 99


@pytest.mark.parametrize("kind", ["nginx", "rclone", "moto"])
def test_an_object_is_replaced_and_has_another_etag(kind: str, folder: Path) -> None:
    data = (folder / "snap.hxz").read_bytes()
    with STORES[kind](folder) as store:
        etag = ask(readable(store, "snap.hxz"), RANGE).headers["ETag"]
        store.put("snap.hxz", another(data))
        answer = ask(readable(store, "snap.hxz"), RANGE)
        assert answer.body == another(data)[FIRST : LAST + 1] and answer.headers["ETag"] != etag
        status = ask(readable(store, "snap.hxz"), {**RANGE, "If-Match": etag}).status
        assert status == (200 if kind == "rclone" else 412), "one of them does not care"


def test_slices_mix_two_versions(folder: Path) -> None:
    data = (folder / "snap.hxz").read_bytes()
    with STORES["nginx slice"](folder) as store:
        before = ask(store.url("snap.hxz"), {"Range": "bytes=0-9"})
        store.put("snap.hxz", another(data))
        after = ask(store.url("snap.hxz"), {"Range": "bytes=100000-100009"})
        again = ask(store.url("snap.hxz"), {"Range": "bytes=0-9", "If-Match": before.headers["ETag"]})
    assert (before.body, again.body, after.body) == (data[:10], data[:10], another(data)[100_000:100_010])
    assert before.headers["ETag"] == again.headers["ETag"] != after.headers["ETag"]


def test_varnish_does_not_care_for_if_match(folder: Path) -> None:
    data = (folder / "snap.hxz").read_bytes()
    with STORES["varnish"](folder) as store:
        answers = [ask(store.url("snap.hxz"), {**RANGE, "If-Match": '"another"'}) for _ in range(2)]
        store.put("snap.hxz", another(data))
        answers.append(ask(store.url("snap.hxz"), RANGE))
    assert [(answer.status, answer.body) for answer in answers[1:]] == [(206, data[FIRST : LAST + 1])] * 2


def test_haproxy_gives_the_whole_where_a_range_was_asked(folder: Path) -> None:
    data = (folder / "snap.hxz").read_bytes()
    with STORES["haproxy"](folder) as store:
        assert ask(store.url("snap.hxz"), RANGE).status == 206
        until(lambda: ask(store.url("snap.hxz")).body == data and ask(store.url("snap.hxz"), RANGE).status == 200)
        assert ask(store.url("snap.hxz"), RANGE).body == data


# The proxy


@pytest.fixture(scope="module")
def origin(still_folder: Path) -> Iterator[Store]:
    with nginx(still_folder) as store:
        yield store


@pytest.fixture
def proxy(origin: Store) -> Iterator[Proxy]:
    with Proxy(origin.base) as running:
        yield running


@pytest.fixture(scope="module")
def data(still_folder: Path) -> bytes:
    return (still_folder / "snap.hxz").read_bytes()


class Heard(NamedTuple):
    """What came over a connection for one request that was the last."""

    raw: bytes
    end: str
    """closed, reset or silent."""

    @property
    def head(self) -> str:
        return self.raw.partition(b"\r\n\r\n")[0].decode("latin-1")

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        return int(self.raw[9:12])

    @property
    def headers(self) -> dict[str, str]:
        return {name: value for name, _, value in (line.partition(": ") for line in self.head.split("\r\n")[1:])}

    @property
    def length(self) -> int:
        return int(self.headers["Content-Length"])


def hear(proxy: Proxy, patience: float = 30.0, span: str = RANGE["Range"], most: int = 8 << 20) -> Heard:
    request = f"GET /snap.hxz HTTP/1.1\r\nHost: x\r\nRange: {span}\r\nConnection: close\r\n\r\n"
    raw = bytearray()
    sock = socket.socket()
    sock.settimeout(30)
    try:
        sock.connect(("127.0.0.1", proxy.port))
        sock.sendall(request.encode())
        sock.settimeout(patience)
        while len(raw) < most:
            data = sock.recv(1 << 20)
            if not data:
                return Heard(bytes(raw), "closed")
            raw += data
    except socket.timeout:
        return Heard(bytes(raw), "silent")
    except (ConnectionResetError, BrokenPipeError):
        return Heard(bytes(raw), "reset")
    finally:
        sock.close()
    return Heard(bytes(raw), "more")


RIGHT_LENGTH = LAST + 1 - FIRST
WAITS_FOR = 0.2
SILENT = {"hang at connect", "hang", "hang in the head", "hang in the body", "slow drip"}
Sees = Callable[[Heard, bytes], Any]


def told(code: int, **fields: str) -> Sees:
    wanted = {name.replace("_", "-").title(): value for name, value in fields.items()}
    return lambda heard, _: heard.status == code and wanted.items() <= heard.headers.items()


def right(heard: Heard, data: bytes) -> bool:
    return heard.status == 206 and heard.body == data[FIRST : LAST + 1] and heard.length == RIGHT_LENGTH


def with_header(name: str, value: str | None) -> Sees:
    def sees(heard: Heard, data: bytes) -> bool:
        return heard.status == 206 and heard.body == data[FIRST : LAST + 1] and heard.headers.get(name) == value

    return sees


def cut(heard: Heard, data: bytes) -> bool:
    return heard.length == RIGHT_LENGTH and 0 < len(heard.body) < RIGHT_LENGTH and data[FIRST:].startswith(heard.body)


def ends(how: str, sees: Sees = lambda heard, data: not heard.raw) -> Sees:
    return lambda heard, data: heard.end == how and sees(heard, data)


def in_the_head(heard: Heard, _: bytes) -> bool:
    return heard.raw.startswith(b"HTTP/1.1 206") and b"\r\n\r\n" not in heard.raw


def ranged(first: int, stop: int, of: int | None = None, at: int | None = None) -> Sees:
    """Content-Range as given, and the bytes of there, or from `at` on."""

    def sees(heard: Heard, data: bytes) -> bool:
        begin = first if at is None else at
        total = len(data) if of is None else len(data) + of
        said = f"bytes {first}-{stop - 1}/{total}"
        return heard.headers["Content-Range"] == said and heard.body == data[begin : begin + stop - first]

    return sees


CHANGED_ETAG = with_header("ETag", '"another"')
SEES: dict[str, Sees] = {
    "latency": right,
    "drip": right,
    "slow drip": ends("silent", lambda heard, _: len(heard.raw) < 100),
    "hang at connect": ends("silent"),
    "hang": ends("silent"),
    "hang in the head": ends("silent", in_the_head),
    "hang in the body": ends("silent", cut),
    "reset at connect": ends("reset"),
    "close at connect": lambda heard, _: heard.end in ("closed", "reset") and not heard.raw,
    "reset": ends("reset"),
    "close": ends("closed"),
    "reset in the head": ends("reset", lambda heard, _: b"\r\n\r\n" not in heard.raw),
    "reset in the body": ends("reset", lambda heard, _: len(heard.body) < RIGHT_LENGTH),
    "close in the body": ends("closed", cut),
    "close before the last byte": ends("closed", lambda heard, _: len(heard.body) == RIGHT_LENGTH - 1),
    "close after each answer": ends("closed", right),
    "reset after each answer": ends("reset", lambda heard, data: True),
    "connection: close": with_header("Connection", "close"),
    "close when idle": right,
    "500": told(500),
    "500 after reading": told(500),
    "502": told(502, content_type="text/html"),
    "503": told(503),
    "503 retry-after": told(503, retry_after="1"),
    "503 retry-after date": told(503, retry_after="Sun, 06 Nov 1994 08:49:37 GMT"),
    "503 retry-after for ever": told(503, retry_after="99999999999"),
    "503 retry-after nonsense": told(503, retry_after="soon, \x00-1e9"),
    "504": told(504),
    "429": told(429),
    "429 retry-after": told(429, retry_after="1"),
    "408": told(408),
    "400": told(400),
    "400 expired": lambda heard, _: heard.status == 400 and b"<Code>ExpiredToken</Code>" in heard.body,
    "401": told(401, www_authenticate='Bearer realm="x"'),
    "403": lambda heard, _: heard.status == 403 and b"<Code>AccessDenied</Code>" in heard.body,
    "403 expired": lambda heard, _: heard.status == 403 and b"<Code>ExpiredToken</Code>" in heard.body,
    "403 skew": lambda heard, _: heard.status == 403 and b"RequestTimeTooSkewed" in heard.body,
    "404": lambda heard, _: heard.status == 404 and b"<Code>NoSuchKey</Code>" in heard.body,
    "410": told(410),
    "412": told(412),
    "416": told(416),
    "304": lambda heard, _: heard.status == 304 and not heard.body,
    "204": lambda heard, _: heard.status == 204 and not heard.body,
    "599": told(599),
    "no suffix ranges": right,
    "no HEAD": right,
    "truncated": ends("closed", cut),
    "stretched": lambda heard, data: heard.length == RIGHT_LENGTH and len(heard.body) == RIGHT_LENGTH + 16,
    "flipped bits": lambda heard, data: len(heard.body) == RIGHT_LENGTH and not right(heard, data),
    "zeros": lambda heard, data: heard.body == bytes(RIGHT_LENGTH),
    "bytes of another range": ranged(FIRST, LAST + 1, at=FIRST - 1),
    "range mislabelled": ranged(FIRST + 1, LAST + 2, at=FIRST),
    "another range": ranged(0, RIGHT_LENGTH),
    "less than asked": ranged(FIRST, FIRST + (RIGHT_LENGTH + 1) // 2),
    "more than asked": ranged(FIRST, LAST + 2),
    "larger total": ranged(FIRST, LAST + 1, of=1),
    "smaller total": ranged(FIRST, LAST + 1, of=-1),
    "unknown total": with_header("Content-Range", f"bytes {FIRST}-{LAST}/*"),
    "total of many digits": with_header("Content-Range", f"bytes {FIRST}-{LAST}/{'9' * 5000}"),
    "no content-range": with_header("Content-Range", None),
    "odd content-range": with_header("Content-Range", "bytes 5-1/x"),
    "other unit": with_header("Content-Range", "lines 1-2/3"),
    "another etag": CHANGED_ETAG,
    "no etag": with_header("ETag", None),
    "weak etag": lambda heard, data: right(heard, data) and heard.headers["ETag"].startswith('W/"'),
    "unquoted etag": lambda heard, data: right(heard, data) and '"' not in heard.headers["ETag"],
    "another etag each time": with_header("ETag", '"0"'),
    "another last-modified": with_header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
    "200 whole": lambda heard, data: heard.status == 200 and heard.body == data,
    "200 with content-range": lambda heard, data: heard.status == 200 and ranged(FIRST, LAST + 1)(heard, data),
    "200 HTML": lambda heard, _: heard.status == 200 and heard.body == faults.HTML,
    "200 empty": lambda heard, _: heard.status == 200 and heard.headers["Content-Length"] == "0",
    "206 HTML": lambda heard, _: heard.status == 206 and heard.body == faults.HTML,
    "gzip": lambda heard, data: (
        heard.headers["Content-Encoding"] == "gzip" and gzip.decompress(heard.body) == data[FIRST : LAST + 1]
    ),
    "gzip said": with_header("Content-Encoding", "gzip"),
    "chunked": lambda heard, data: dechunked(heard) == data[FIRST : LAST + 1] and heard.body.endswith(b"0\r\n\r\n"),
    "chunked, no end": lambda heard, data: (
        dechunked(heard) == data[FIRST : LAST + 1] and not heard.body.endswith(b"0\r\n\r\n")
    ),
    "without length": lambda heard, data: (
        "Content-Length" not in heard.headers and heard.body == data[FIRST : LAST + 1]
    ),
    "without length, cut": lambda heard, data: (
        "Content-Length" not in heard.headers and heard.body == data[FIRST : FIRST + RIGHT_LENGTH // 2]
    ),
    "multipart": lambda heard, data: (
        heard.headers["Content-Type"].startswith("multipart/byteranges; boundary=")
        and data[FIRST : LAST + 1] in heard.body
        and b"\r\nContent-Range: bytes 1000-70000/" in heard.body
    ),
    "huge length": lambda heard, data: heard.length == 1 << 60 and heard.end == "more",
    "negative length": lambda heard, _: heard.length == -1,
    "length no number": lambda heard, _: heard.headers["Content-Length"] == "0x10",
    "two lengths": lambda heard, _: heard.head.count("Content-Length: ") == 2,
    "no end": lambda heard, _: "Content-Length" not in heard.headers and heard.end == "more",
    "large head": lambda heard, _: len(heard.head) > 4_000_000,
    "interim 100": lambda heard, data: heard.status == 100 and right(Heard(heard.body, ""), data),
    "interim 103": lambda heard, data: heard.status == 103 and right(Heard(heard.body, ""), data),
    "100,000 interim answers": lambda heard, data: heard.raw.count(b"HTTP/1.1 100 ") == 100_000,
    "not HTTP": lambda heard, _: heard.raw.startswith(b"SSH-2.0"),
    "redirect 301": told(301, location="/snap.hxz?there"),
    "redirect 302": told(302, location="/snap.hxz?there"),
    "redirect 303": told(303, location="/snap.hxz?there"),
    "redirect 307": told(307, location="/snap.hxz?there"),
    "redirect 308": told(308, location="/snap.hxz?there"),
    "redirect to another port": lambda heard, _: (
        heard.status == 307 and urlsplit(heard.headers["Location"]).path == "/snap.hxz"
    ),
    "redirect loop": told(302, location="/snap.hxz"),
    "redirect to metadata": told(302, location="http://169.254.169.254/latest/meta-data/"),
    "redirect to a file": told(302, location="file:///etc/passwd"),
    "redirect to ftp": told(302, location="ftp://127.0.0.1/"),
    "redirect nowhere": lambda heard, _: heard.status == 302 and "Location" not in heard.headers,
    "redirect with a line break": lambda heard, _: "\x0b" in heard.headers["Location"],
}


def dechunked(heard: Heard) -> bytes:
    assert heard.headers["Transfer-Encoding"] == "chunked" and "Content-Length" not in heard.headers
    rest, parts = heard.body, b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        parts, rest = parts + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return parts


def test_every_fault_is_looked_at() -> None:
    assert SEES.keys() == FAULTS.keys()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_what_it_says_and_over_when_cleared(name: str, proxy: Proxy, data: bytes) -> None:
    assert right(hear(proxy), data)
    proxy.forget()
    proxy.use(name)
    heard = hear(proxy, WAITS_FOR if name in SILENT else 30.0)
    assert SEES[name](heard, data), (heard.head, heard.end, len(heard.body))
    proxy.clear()
    assert right(hear(proxy), data)


def test_suffix_ranges_and_head_are_refused(proxy: Proxy) -> None:
    proxy.use("no suffix ranges")
    proxy.use("no HEAD")
    assert hear(proxy, span="bytes=-5").status == 500
    assert ask(proxy.url("snap.hxz"), method="HEAD").status == 403


def test_a_fault_strikes_which_requests_it_is_to(proxy: Proxy) -> None:
    proxy.use("503", every=3, times=2, when=lambda asked: asked.range == (5, 6))
    statuses = []
    for _ in range(10):
        statuses.append(hear(proxy, span="bytes=5-5").status)
        assert hear(proxy, span="bytes=6-6").status == 206
    assert [n for n, status in enumerate(statuses) if status == 503] == [2, 5]
    proxy.clear()
    proxy.use("404", skip=1)
    assert [hear(proxy).status for _ in range(3)] == [206, 404, 404]


def test_it_counts(proxy: Proxy, data: bytes) -> None:
    for span in ("bytes=0-9", "bytes=5-14", f"bytes={len(data) - 3}-", "bytes=-3"):
        hear(proxy, span=span)
    proxy.quiet()
    counts = proxy.forget()
    assert counts.of("/snap.hxz") == [(0, 10), (5, 15), (len(data) - 3, len(data)), (len(data) - 3, len(data))]
    assert (counts.fetched_bytes(), counts.distinct_bytes(), counts.body_bytes) == (26, 18, 26)
    assert (counts.times("/snap.hxz", 7), counts.times("/snap.hxz", 2), counts.times("/snap.hxz", 20)) == (2, 1, 0)
    assert [asked.range for asked in counts.asked] == [(0, 10), (5, 15), (len(data) - 3, None), (None, 3)]
    assert (counts.requests, counts.connections, counts.statuses[206]) == (4, 4, 4)
    assert proxy.counts.requests == 0


def kept(proxy: Proxy) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)


def get(connection: http.client.HTTPConnection) -> bytes:
    connection.request("GET", "/snap.hxz", headers=RANGE)
    return connection.getresponse().read()


def test_a_connection_is_kept_and_counted(proxy: Proxy, data: bytes) -> None:
    first, second = kept(proxy), kept(proxy)
    assert get(first) == get(second) == get(first) == data[FIRST : LAST + 1]
    assert (proxy.counts.connections, proxy.counts.open, proxy.counts.most_open) == (2, 2, 2)
    first.close()
    until(lambda: proxy.counts.open == 1)
    second.close()
    until(lambda: proxy.counts.open == 0)


@pytest.mark.parametrize("name", ["close after each answer", "close when idle", "reset after each answer"])
def test_a_kept_connection_is_ended(name: str, proxy: Proxy) -> None:
    proxy.use(name)
    connection = kept(proxy)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        get(connection)
        until(lambda: proxy.counts.open == 0)
        get(connection)
    connection.close()


def test_it_is_gone_and_comes_again(proxy: Proxy, data: bytes) -> None:
    connection = kept(proxy)
    get(connection)
    for _ in range(2):
        proxy.down()
        with pytest.raises(ConnectionResetError):
            get(connection)
        with pytest.raises(ConnectionRefusedError):
            hear(proxy)
        proxy.up()
        assert right(hear(proxy), data)
        connection.close()
        get(connection)
    connection.close()


def test_it_is_frozen_and_thaws(proxy: Proxy, data: bytes) -> None:
    connection = kept(proxy)
    get(connection)
    proxy.freeze()
    assert hear(proxy, WAITS_FOR) == Heard(b"", "silent")
    proxy.quiet()
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(get(connection)))
    reader.start()
    until(lambda: proxy.counts.in_flight)
    assert not heard
    proxy.thaw()
    reader.join()
    assert heard == [data[FIRST : LAST + 1]]
    connection.close()


def test_all_connections_are_reset_while_they_hang(proxy: Proxy) -> None:
    proxy.use("hang")
    threads = [threading.Thread(target=hear, args=(proxy,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: proxy.counts.in_flight == 4)
    proxy.cut()
    for thread in threads:
        thread.join()
    until(lambda: proxy.counts.open == 0)
    assert proxy.counts.most_in_flight == 4


def test_what_was_asked_for_is_replaced_between_two_requests(folder: Path) -> None:
    data = (folder / "snap.hxz").read_bytes()
    with nginx(folder) as store, Proxy(store.base) as proxy:
        proxy.use(faults.doing(lambda: store.put("snap.hxz", another(data))), skip=1, times=1)
        before, after = hear(proxy), hear(proxy)
    assert before.body == data[FIRST : LAST + 1] and after.body == another(data)[FIRST : LAST + 1]
    assert before.headers["ETag"] != after.headers["ETag"]


def test_nothing_of_it_is_left_behind(origin: Store) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with Proxy(origin.base) as proxy:
        proxy.use("hang", skip=1)
        connections = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(3)]
        connections[0].sendall(b"GET /snap.hxz HTTP/1.1\r\nHost: x\r\n\r\n")
        connections[1].sendall(b"GET /snap.hxz HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: proxy.counts.requests == 2)
    assert {thread.name for thread in threading.enumerate()} == before
    for connection in connections:
        connection.close()
