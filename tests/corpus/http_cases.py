"""HTTP: routes, methods, ranges, conditions, who may ask, framing, kept connections."""

from __future__ import annotations

from collections.abc import Iterator

from tests.corpus.daemons import TOKEN
from tests.corpus.talk import END, PART, Case, Step

HOST = "Host: localhost"
PROBE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""Asked after each request on the same connection: whether it was kept, and where the request ended."""
ETAG = '"00000000000000000000000000000000"'
DISK_TAG = '"aa61e2731c80ea9070b0505096b90621-1"'
"""That of the default disk: made of its bytes and its time, which are always the same."""
THEN, LATER = "Tue, 14 Nov 2023 22:13:20 GMT", "Fri, 01 Jan 2038 00:00:00 GMT"

ROUTES = [
    "/",
    "/disk",
    "/memory",
    "/info",
    "/extents",
    "/extents?stream=memory",
    "/extents?start=4096&length=8192",
    "/extents?start=999999999",
    "/extents?start=x",
    "/extents?stream=tape",
    "/extents?limit=1",
    "/extents?limit=0",
    "/snapshots",
    "/snapshots/",
    "/snapshots?limit=2",
    "/snapshots?limit=2&after=big",
    "/snapshots/snap",
    "/snapshots/snap/",
    "/snapshots/snap/disk",
    "/snapshots/snap/memory",
    "/snapshots/snap/info",
    "/snapshots/snap/extents",
    "/snapshots/snap/tape",
    "/snapshots/snap/disk/",
    "/snapshots/thin/disk",
    "/snapshots/thin/extents",
    "/snapshots/thin/info",
    "/snapshots/memonly/disk",
    "/snapshots/memonly/memory",
    "/snapshots/memonly/info",
    "/snapshots/damaged/disk",
    "/snapshots/damaged/info",
    "/snapshots/pages/disk",
    "/snapshots/pages/extents?limit=5",
    "/snapshots/nothing",
    "/snapshots/nothing/disk",
    "/snapshots//disk",
    "/snap.hxz",
    "/archive.hxz",
    "/nothing.hxz",
    "/.hxz",
    "/snap.HXZ",
    "/snapshots/archive/files",
    "/snapshots/archive/files/",
    "/snapshots/archive/files/?limit=1",
    "/snapshots/archive/files/nothing",
    "/snapshots/archive/files/nothing/",
    "/snapshots/snap/files/",
    "/snapshots/archive/info",
    "/snapshots/big/extents",
    "/healthz",
    "/readyz",
    "/healthz/",
    "/favicon.ico",
    "/disk/",
    "/disk?v=wrong",
    "/disk?x=1",
    "//disk",
    "/./disk",
    "/../disk",
    "/%64isk",
    "/disk%00",
    "/disk%",
    "/disk%zz",
    "/disk%2F",
    "/snapshots/sn%61p/disk",
    "/snapshots/snap%2Fdisk",
    "/snapshots/%ff/disk",
    "/disk#fragment",
    "/images",
    "/images/",
    "http://localhost/healthz",
    "http://disks.example/healthz",
    "https://localhost/disk",
    "ftp://localhost/disk",
    "*",
    "healthz",
]
METHODS = ["HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "get", "G~T"]
OF_METHODS = [
    "/",
    "/disk",
    "/info",
    "/extents",
    "/snapshots",
    "/snap.hxz",
    "/snapshots/archive/files/",
    "/healthz",
    "/metrics",
    "/nothing",
]
RANGES = [
    "bytes=0-0",
    "bytes=0-15",
    "bytes=5-",
    "bytes=89990-90000",
    "bytes=89990-999999",
    "bytes=90000-",
    "bytes=90001-",
    "bytes=90001-90005",
    "bytes=-1",
    "bytes=-16",
    "bytes=-0",
    "bytes=-90001",
    "bytes=-99999999",
    "bytes=-",
    "bytes=",
    "bytes=5-4",
    "bytes=a-b",
    "bytes=0-1,5-6",
    "bytes=0-1,,5-6",
    "bytes=0-1,|5-6",
    "bytes=5-6,0-1",
    "bytes=0-9,5-14",
    "bytes=0-0,0-0,0-0",
    "bytes=0-1,-1",
    "bytes=0-1,999999-",
    "bytes=999999-,888888-",
    "bytes=0-1,x",
    "bytes=0-1;5-6",
    "bytes|=|0-1",
    "Bytes=0-1",
    "BYTES=0-1",
    "pages=0-1",
    "0-1",
    "bytes=0-1-2",
    "bytes=00-01",
    "bytes=+0-1",
    "bytes=0x0-1",
    "bytes=99999999999999999999999-",
    "bytes=0-99999999999999999999999",
    "bytes=-99999999999999999999999",
    "bytes=4095-4096",
    "bytes=16383-16384",
    "bytes=0-65535",
    "bytes=1-2,3-4,5-6,7-8,9-10",
    "bytes=0-,0-,0-",
]
CONDITIONS = [
    f"If-None-Match: {ETAG}",
    "If-None-Match: *",
    "If-None-Match: ETAG",
    "If-None-Match: W/ETAG",
    f"If-None-Match: {ETAG}, ETAG",
    "If-None-Match: junk",
    "If-None-Match:",
    f"If-Match: {ETAG}",
    "If-Match: *",
    "If-Match: ETAG",
    "If-Match: W/ETAG",
    f"If-Modified-Since: {THEN}",
    f"If-Modified-Since: {LATER}",
    "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
    "If-Modified-Since: yesterday",
    f"If-Unmodified-Since: {THEN}",
    "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
    "If-Unmodified-Since: never",
    "If-Modified-Since: Tuesday, 14-Nov-23 22:13:20 GMT",
    "If-Modified-Since: Tue Nov 14 22:13:20 2023",
    f"If-None-Match: {ETAG}\r\nIf-Modified-Since: {THEN}",
    "If-Match: ETAG\r\nIf-Unmodified-Since: yesterday",
    "Range: bytes=0-3\r\nIf-Range: ETAG",
    "Range: bytes=0-3\r\nIf-Range: W/ETAG",
    f"Range: bytes=0-3\r\nIf-Range: {ETAG}",
    f"Range: bytes=0-3\r\nIf-Range: {THEN}",
    f"Range: bytes=0-3\r\nIf-Range: {LATER}",
    "If-Range: ETAG",
    "Range: bytes=0-3\r\nIf-Range: junk",
    "Range: bytes=0-3\r\nIf-None-Match: ETAG",
    "Range: bytes=0-3\r\nIf-Match: *",
    f"Range: bytes=0-3\r\nIf-Match: {ETAG}",
    "Range: bytes=999999-\r\nIf-None-Match: ETAG",
    "Range: bytes=999999-\r\nIf-Range: ETAG",
    "Range: bytes=0-1\r\nRange: bytes=2-3",
]
ACCESS = [
    "Host: evil.example",
    "Host: 192.0.2.1",
    "Host: disks.example:99",
    "Host: LOCALHOST.",
    "Host: [::1]:80",
    "Host: a b",
    "Host: 127.0.0.2",
    "Host:",
    "Host: localhost:x",
    "Host: localhost\r\nHost: localhost",
    "Host: [::1",
    "Host: a@localhost",
    f"{HOST}\r\nOrigin: https://app.example",
    f"{HOST}\r\nOrigin: https://evil.example",
    f"{HOST}\r\nOrigin: null",
    f"{HOST}\r\nSec-Fetch-Site: cross-site",
    f"{HOST}\r\nOrigin: http://localhost",
    f"{HOST}\r\nAccept: text/html",
    f"{HOST}\r\nAccept: */*",
    f"{HOST}\r\nAccept-Encoding: gzip",
    f"{HOST}\r\nConnection: close",
    f"{HOST}\r\nConnection: keep-alive",
    f"{HOST}\r\nConnection: Close, x",
    f"{HOST}\r\nUpgrade: websocket\r\nConnection: upgrade",
    f"{HOST}\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA",
    f"{HOST}\r\nTE: trailers",
    f"{HOST}\r\nExpect: 100-continue",
    f"{HOST}\r\nExpect: fish",
    f"{HOST}\r\nMax-Forwards: 0",
    f"{HOST}\r\nCookie: a=b",
]
PREFLIGHT = "Origin: https://app.example\r\nAccess-Control-Request-Method: "
PREFLIGHTS = [
    PREFLIGHT + "GET",
    PREFLIGHT + "GET\r\nAccess-Control-Request-Headers: range, if-range",
    PREFLIGHT + "PUT",
    PREFLIGHT + "GET\r\nAccess-Control-Request-Private-Network: true",
    PREFLIGHT,
    PREFLIGHT + "GET\r\nExpect: 100-continue",
    "Origin: https://evil.example\r\nAccess-Control-Request-Method: GET",
    "Origin: https://app.example",
]
TOKENS = [
    "X-None: 1",
    f"Authorization: Bearer {TOKEN}",
    "Authorization: Bearer wrong-token-of-length",
    "Authorization: Bearer",
    f"Authorization: bearer {TOKEN}",
    f"Authorization: Basic {TOKEN}",
    f"Authorization: Bearer  {TOKEN}",
    "Authorization:",
    f"Authorization: Bearer {TOKEN} x",
    f"Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer x",
    f"Authorization: {TOKEN}",
    f"Authorization: Bearer {TOKEN}\r\nHost: evil.example",
    f"Authorization: Bearer {TOKEN}\r\nRange: bytes=0-40000",
    f"Authorization: Bearer {TOKEN}\r\nOrigin: https://evil.example",
    "Authorization: Bearer tök",
]
CHUNKED = "Transfer-Encoding: chunked"
# Heads after the request line and Host, and what follows them: as RFC 9112's testers send them.
BODIES: list[tuple[str, bytes]] = [
    ("Content-Length: 3", b"abc"),
    ("Content-Length: 0", b""),
    ("Content-Length: -1", b"a"),
    ("Content-Length: +3", b"abc"),
    ("Content-Length: 3, 3", b"abc"),
    ("Content-Length: 3, 4", b"abcd"),
    ("Content-Length: 3\r\nContent-Length: 3", b"abc"),
    ("Content-Length: 3\r\nContent-Length: 4", b"abcd"),
    ("Content-Length: 0x3", b"abc"),
    ("Content-Length: ", b""),
    ("Content-Length: 3 ", b"abc"),
    ("Content-Length : 3", b"abc"),
    ("Content-Length: 99999999999999999999", b"abc"),
    ("Content-Length: 1_0", b"abcdefghij"),
    ("Content-Length: 003", b"abc"),
    ("Content-Length: 3;x", b"abc"),
    (CHUNKED, b"3\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b"0\r\n\r\n"),
    (CHUNKED, b"3;ext=1\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b'3;ext="a;b"\r\nabc\r\n0\r\n\r\n'),
    (CHUNKED, b"0\r\nTrailer: x\r\n\r\n"),
    (CHUNKED, b"0\r\nbad trailer\r\n\r\n"),
    (CHUNKED, b"x\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b"3\nabc\n0\n\n"),
    (CHUNKED, b"3 \r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b"+3\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b"0x3\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b"-3\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b"3\r\nabcd\r\n0\r\n\r\n"),
    (CHUNKED, b"3\r\nab\r\n0\r\n\r\n"),
    (CHUNKED, b"\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b"ffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b"3;" + b"x" * 5000 + b"\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b"00000000000000000003\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED, b"1\r\na\r\n" * 50 + b"0\r\n\r\n"),
    (CHUNKED, b"3\r\nabc"),
    (CHUNKED, b"3\r\nabc\r\n0\r\n"),
    (f"{CHUNKED}\r\nContent-Length: 3", b"0\r\n\r\n"),
    (f"Content-Length: 6\r\n{CHUNKED}", b"0\r\n\r\nX"),
    (f"{CHUNKED}\r\n{CHUNKED}", b"0\r\n\r\n"),
    ("Transfer-Encoding: chunked, chunked", b"0\r\n\r\n"),
    ("Transfer-Encoding: gzip, chunked", b"0\r\n\r\n"),
    ("Transfer-Encoding: gzip", b""),
    ("Transfer-Encoding: identity", b""),
    ("Transfer-Encoding: Chunked", b"0\r\n\r\n"),
    ("Transfer-Encoding: xchunked", b"0\r\n\r\n"),
    ("Transfer-Encoding:", b""),
    ("Transfer-Encoding : chunked", b"0\r\n\r\n"),
    ("Transfer-Encoding: chunked;q=1", b"0\r\n\r\n"),
    ("Transfer-Encoding: \x0bchunked", b"0\r\n\r\n"),
    ("Expect: 100-continue\r\nContent-Length: 3", b"abc"),
    (f"Expect: 100-continue\r\n{CHUNKED}", b"0\r\n\r\n"),
    ("Connection: close\r\nContent-Length: 3", b"abc"),
    ("Content-Length: 100000", b"z" * 100000),
    ("Content-Length: 10", b"abc"),
]
RAW = [
    b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\n\r\n",
    b"\r\n" + PROBE,
    b"\r\n\r\n\r\n" + PROBE,
    b"\n" + PROBE,
    b" " + PROBE,
    b"GET /healthz\r\n",
    b"GET /healthz HTTP/0.9\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/1.2\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /healthz HTTP/1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz http/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/1.10\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/11.1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/3.0\r\nHost: x\r\n\r\n",
    b"GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET\t/healthz\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/1.1 \r\nHost: localhost\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n folded: x\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n\tb\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nNo colon\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n: empty\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX Y: z\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    b"GET /heal\0thz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
    b"GET /healthz HTTP/1.1\rHost: localhost\r\r",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: \x80\xff\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX\x80: y\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 99 + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    b"G" * 100 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"G" * 20000 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\0" * 64,
    b"\xff" * 64,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 50,
    b"NBDMAGIC" + b"IHAVEOPT",
    b"",
    b"G",
    b"GET /healthz HTTP/1.1\r\nHost: local",
    PROBE * 5,
    PROBE + b"junk\r\n\r\n" + PROBE,
    b"GET /disk HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-3\r\n\r\n" * 20,
    b"HEAD /disk HTTP/1.1\r\nHost: localhost\r\n\r\n" + PROBE,
    b"GET /disk HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /snapshots/big/disk HTTP/1.1\r\nHost: localhost\r\n\r\n" + PROBE,
    b"GET http:// HTTP/1.1\r\nHost: localhost\r\n\r\n",
]


def request(method: str, target: str, *fields: str) -> bytes:
    """A request with these fields in this order, without a body."""
    return "\r\n".join((f"{method} {target} HTTP/1.1", *fields, "", "")).encode()


def probed(name: str, data: bytes, server: str = "open.http", figures: bool = False) -> Case:
    """A request, and another on the same connection."""
    return Case(name, server, (Step(data), Step(PROBE), Step(b"", END)), figures)


def of_disk(fields: str) -> bytes:
    """A ranged request for the default disk."""
    return request("GET", "/disk", HOST, fields)


def cases() -> Iterator[Case]:
    """Every conversation."""
    for target in ROUTES:
        yield probed(f"http GET {target}", request("GET", target, HOST))
    yield probed("http GET /metrics", request("GET", "/metrics", HOST), figures=True)
    for method in METHODS:
        for target in OF_METHODS:
            figures = target == "/metrics"
            yield probed(f"http {method} {target}", request(method, target, HOST), figures=figures)
    for spec in RANGES:
        field = "Range: " + spec.replace("|", " ")
        yield probed(f"http range {spec}", of_disk(field))
        yield probed(f"http range {spec} of a file", request("HEAD", "/snap.hxz", HOST, field))
    for field in CONDITIONS:
        for method in ("GET", "HEAD"):
            yield probed(
                f"http condition {method} {field!r}", request(method, "/snapshots/archive/files/plain", HOST, field)
            )
            own = request(method, "/disk", HOST, field.replace("ETAG", DISK_TAG))
            yield probed(f"http condition on a disk {method} {field!r}", own)
    for fields in ACCESS:
        for method, target in (("GET", "/info"), ("GET", "/"), ("PUT", "/info")):
            yield probed(f"http access {method} {target} {fields!r}", request(method, target, fields))
    for fields in PREFLIGHTS:
        yield probed(f"http preflight {fields!r}", request("OPTIONS", "/disk", HOST, fields))
        yield probed(
            f"http preflight with tokens {fields!r}", request("OPTIONS", "/disk", HOST, fields), "guarded.http"
        )
    for fields in TOKENS:
        for target in ("/disk", "/healthz", "/images/tokened", "/nothing"):
            yield probed(f"http token {target} {fields!r}", request("GET", target, HOST, fields), "guarded.http")
    for number, (fields, body) in enumerate(BODIES):
        for method, target in (("GET", "/info"), ("POST", "/info"), ("PUT", "/images/hexz")):
            data = request(method, target, HOST, fields) + body
            yield Case(f"http body {number} {method} {target} {fields!r}", "open.http", (Step(data + PROBE, END),))
    for number, data in enumerate(RAW):
        yield Case(f"http raw {number} {data[:40]!r}", "open.http", (Step(data, END),))
    yield from kept()
    for target in ("/disk", "/info", "/nothing", "/healthz"):
        yield probed(f"https GET {target}", request("GET", target, HOST, "Range: bytes=0-99"), "secret.http")
    yield Case("https range again", "secret.http", [Step(of_disk(f"Range: bytes={at}-{at + 9}")) for at in range(9)])


def kept() -> Iterator[Case]:
    """Sequences on one connection: the same again and again, then something else; parts of requests; halves closed."""
    again = [Step(of_disk(f"Range: bytes={at * 8}-{at * 8 + 99}")) for at in range(40)]
    others = {
        "another path": request("GET", "/memory", HOST, "Range: bytes=0-9"),
        "a HEAD": request("HEAD", "/disk", HOST),
        "no range": request("GET", "/info", HOST),
        "an unsatisfiable range": of_disk("Range: bytes=999999-"),
        "two ranges": of_disk("Range: bytes=0-1,5-6"),
        "a malformed range": of_disk("Range: bytes=x"),
        "a suffix": of_disk("Range: bytes=-5"),
        "an open range": of_disk("Range: bytes=89000-"),
        "another host": request("GET", "/disk", "Host: evil.example", "Range: bytes=0-9"),
        "a body": of_disk("Range: bytes=0-9\r\nContent-Length: 3") + b"abc",
        "a range beyond the end": of_disk("Range: bytes=90000-99999"),
        "bad framing": of_disk("Range: bytes=0-9\r\nContent-Length: x"),
        "closing": of_disk("Range: bytes=0-9\r\nConnection: close"),
        "a backward range": of_disk("Range: bytes=9-1"),
        "a long number": of_disk("Range: bytes=00000000000000000000000000-9"),
    }
    for name, data in others.items():
        for times in (2, 40):
            steps = (*again[:times], Step(data), Step(PROBE), again[0], Step(b"", END))
            yield Case(f"http {times} times, then {name}", "open.http", steps)
    large = [
        Step(request("GET", "/snapshots/big/disk", HOST, f"Range: bytes={at}-{at + 2_000_000}")) for at in (0, 1, 99)
    ]
    yield Case("http large ranges again", "open.http", (*large, Step(PROBE)))
    bad = [
        Step(request("GET", "/snapshots/damaged/disk", HOST, f"Range: bytes={at}-{at + 9}"))
        for at in (0, 2_000_000, 2_000_000, 2_000_050, 0)
    ]
    yield Case("http ranges of a damaged disk", "open.http", bad)
    clamped = [
        Step(request("GET", "/disk", HOST, f"Authorization: Bearer {TOKEN}", f"Range: bytes={at}-")) for at in range(5)
    ]
    yield Case("http clamped ranges again", "guarded.http", clamped)
    cut = of_disk("Range: bytes=0-9")
    yield Case(
        "http a head in pieces",
        "open.http",
        [Step(cut[:9], PART), Step(cut[9:-1], PART), Step(cut[-1:], "http"), Step(PROBE)],
    )
    yield Case(
        "http 100 continue",
        "open.http",
        (Step(request("POST", "/info", HOST, "Content-Length: 3", "Expect: 100-continue"), "http"), Step(b"abc", END)),
    )
    yield Case("http pipelined ranges again", "open.http", (Step(cut), Step(cut * 30, END)))
    mixed = (
        request("GET", "/info", HOST)
        + request("HEAD", "/disk", HOST)
        + request("OPTIONS", "/disk", HOST)
        + cut
        + request("POST", "/", HOST, "Content-Length: 2")
        + b"ab"
        + PROBE
    )
    yield Case("http pipelined mixture", "open.http", (Step(mixed, END),))
