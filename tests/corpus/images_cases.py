"""The images API: files, overlays and snapshots, read and written."""

from __future__ import annotations

from collections.abc import Iterator

from tests.corpus.daemons import TOKEN
from tests.corpus.http_cases import HOST, PROBE, probed, request
from tests.corpus.talk import END, Case, Step

IMAGES = [
    "file",
    "read-only",
    "tokened",
    "overlay",
    "hexz",
    "ram",
    "gone",
    "no-file",
    "outside",
    "no-nbd",
    "bad",
    "snap",
    "memonly",
    "snap.memory",
    "archive",
    "nothing",
]
READS = [
    "{}",
    "{}/extents",
    "{}/extents?context=dirty",
    "{}/extents?context=x",
    "{}/extents?start=4096&length=4096",
    "{}/checksum",
]
MORE = [
    "{}/extents?start=999999999",
    "{}/extents?x=1",
    "{}/checksum?algorithm=sha256",
    "{}/checksum?algorithm=x",
    "{}/checksum?block_size=65536",
    "{}/checksum?block_size=1",
    "{}/checksum/algorithms",
    "{}/flush",
    "{}/nothing",
    "{}/",
    "{}?x=1",
    "{}/extents/x",
]
ZERO = '{"op": "zero", "offset": 0, "size": 4096%s}'
JSON = "Content-Type: application/json"
# Method, what comes after the image, fields, body
WRITES: list[tuple[str, str, str, bytes]] = [
    ("PUT", "", "Content-Range: bytes 0-15/*", b"a" * 16),
    ("PUT", "", "Content-Range: bytes 4096-4111/*", b"b" * 16),
    ("PUT", "", "Content-Range: bytes 99999999-100000014/*", b"b" * 16),
    ("PUT", "", "Content-Range: bytes 0-15/99", b"b" * 16),
    ("PUT", "", "Content-Range: bytes 5-4/*", b"b" * 16),
    ("PUT", "", "Content-Range: bytes 0-3/*", b"b" * 16),
    ("PUT", "", "Content-Range: x", b"b" * 16),
    ("PUT", "?flush=y", "Content-Range: bytes 0-15/*", b"c" * 16),
    ("PUT", "?flush=n", "Content-Range: bytes 0-15/*", b"d" * 16),
    ("PUT", "?flush=x", "Content-Range: bytes 0-15/*", b"d" * 16),
    ("PUT", "", "X-None: 1", b"e" * 4096),
    ("PUT", "", "Expect: 100-continue", b"f" * 16),
    ("PATCH", "", JSON, (ZERO % "").encode()),
    ("PATCH", "", JSON, (ZERO % ', "flush": true').encode()),
    ("PATCH", "", JSON, b'{"op": "flush"}'),
    ("PATCH", "", JSON, b'{"op": "zero"}'),
    ("PATCH", "", JSON, b'{"op": "dance"}'),
    ("PATCH", "", JSON, b"junk"),
    ("PATCH", "", JSON, b""),
    ("PATCH", "", JSON, b"[]"),
    ("PATCH", "", JSON, b'{"op": "zero", "offset": -1, "size": 1}'),
    ("PATCH", "", JSON, b'{"op": "zero", "offset": 0, "size": 999999999999}'),
    ("PATCH", "", "X-None: 1", (ZERO % "").encode()),
    ("PATCH", "", "Range: bytes=8192-8195", b"wxyz"),
    ("PATCH", "", "Range: bytes=8192-8195\r\nContent-Type: application/octet-stream", b"wxyz"),
    ("PATCH", "", JSON, b'{"op": "zero", "offset": 0, "size": 1, "x": ' + b"1" * 70000 + b"}"),
    ("POST", "/flush", "X-None: 1", b""),
    ("POST", "/flush", "X-None: 1", b"x"),
    ("POST", "", "X-None: 1", b""),
    ("DELETE", "", "X-None: 1", b""),
    ("DELETE", "/extents", "X-None: 1", b""),
    ("POST", "/checksum", "X-None: 1", b""),
    ("PUT", "", "Origin: https://evil.example", b"x"),
    ("PATCH", "", "Sec-Fetch-Site: cross-site\r\n" + JSON, b'{"op": "flush"}'),
    ("BREW", "", "X-None: 1", b""),
]
RANGES = ["bytes=0-9", "bytes=-9", "bytes=999999999-", "bytes=5-4", "bytes=0-1,4-5", "x=1"]


def cases() -> Iterator[Case]:
    """Every conversation."""
    for image in IMAGES:
        for target in READS:
            for method in ("GET", "OPTIONS", "HEAD"):
                where = "/images/" + target.format(image)
                yield probed(f"images {method} {where}", request(method, where, HOST))
    for target in MORE:
        for image in ("hexz", "file"):
            yield probed(f"images more {target.format(image)}", request("GET", "/images/" + target.format(image), HOST))
    for spec in RANGES:
        for image in ("hexz", "file", "overlay"):
            yield probed(f"images {image} {spec}", request("GET", f"/images/{image}", HOST, f"Range: {spec}"))
    for target in (
        "/images/*",
        "/images/x/y/z",
        "/images//",
        "/images/.hidden",
        "/images/%2e%2e/x",
        "/images/file.json",
        "/images/" + "a" * 200,
    ):
        for method in ("GET", "OPTIONS", "PUT"):
            yield probed(f"images {method} {target[:40]}", request(method, target, HOST))
    for image in ("file", "overlay", "hexz", "read-only", "nothing", "tokened"):
        for number, (method, rest, fields, body) in enumerate(WRITES):
            data = request(method, f"/images/{image}{rest}", HOST, fields, f"Content-Length: {len(body)}") + body
            after = (Step(PROBE, END),)
            yield Case(f"images write {number} {method} {image}{rest}", "open.http", (Step(data), *after))
        yield probed(f"images {image} after the writes", request("GET", f"/images/{image}", HOST))
        yield probed(f"images {image} extents after the writes", request("GET", f"/images/{image}/extents", HOST))
    chunked = (
        request("PUT", "/images/file", HOST, "Content-Range: bytes 0-3/*", "Transfer-Encoding: chunked")
        + b"4\r\nABCD\r\n0\r\n\r\n"
    )
    yield Case("images a chunked write", "open.http", (Step(chunked), Step(PROBE, END)))
    for field in (
        "X-Image-Token: token-of-the-image",
        "X-Image-Token: wrong",
        "Authorization: Bearer token-of-the-image",
        "Authorization: Basic token-of-the-image",
    ):
        for method in ("GET", "HEAD", "OPTIONS"):
            yield probed(f"images token {method} {field}", request(method, "/images/tokened", HOST, field))
            allowed = request(method, "/images/tokened", HOST, field, f"Authorization: Bearer {TOKEN}")
            yield probed(f"images both tokens {method} {field}", allowed, "guarded.http")
