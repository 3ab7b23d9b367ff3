"""What every request is answered with: the rows of HTTP's rules, each with its section of RFC 9110."""

from __future__ import annotations

import email.utils
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.protocol.http.dates import format_date, parse_date
from tests.http.serving import Client, Reply, Serving, request, serving
from tests.s3.serving import write_archive

LONG_AGO = "Thu, 01 Jan 1970 00:00:01 GMT"
FUTURE = "Fri, 31 Dec 2999 23:59:59 GMT"


@pytest.fixture(scope="module")
def facts(server: Serving) -> Reply:
    return server.ask("HEAD", "/disk")


def parts_of(reply: Reply) -> list[tuple[str, bytes]]:
    """(Content-Range, data) of each part of a multipart/byteranges body, read as strictly as RFC 2046 is written."""
    found = re.fullmatch(r"multipart/byteranges; boundary=([0-9a-f]{32})", reply.headers["content-type"])
    assert found is not None
    mark = b"--" + found[1].encode()
    assert reply.body.startswith(b"\r\n" + mark) and reply.body.endswith(b"\r\n" + mark + b"--\r\n")
    parts = []
    for part in reply.body[: -len(mark) - 6].split(b"\r\n" + mark + b"\r\n")[1:]:
        head, _, data = part.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        assert fields["Content-Type"] == "application/octet-stream"
        parts.append((fields["Content-Range"], data))
    return parts


def test_get_gives_all_of_it(client: Client, disk: bytes) -> None:
    """15.3.1, 15.3.7: a GET without Range is 200 with the whole representation, whatever its length."""
    reply = client.ask("GET", "/disk")
    assert (reply.status, reply.body == disk) == (200, True)
    assert "content-range" not in reply.headers


def test_head_is_get_without_the_body(client: Client, disk: bytes) -> None:
    """9.3.2: the same header fields."""
    got, headed = client.ask("GET", "/disk"), client.ask("HEAD", "/disk")
    assert headed.status == 200
    assert {**headed.headers, "date": ""} == {**got.headers, "date": ""}
    assert headed.headers["content-length"] == str(len(disk))


def test_head_ignores_range(client: Client, disk: bytes) -> None:
    """14.2: Range is defined for GET only."""
    reply = client.ask("HEAD", "/disk", {"Range": "bytes=0-1"})
    assert (reply.status, reply.headers["content-length"]) == (200, str(len(disk)))


def test_what_a_response_says_of_itself(facts: Reply) -> None:
    """6.6.1 Date, 8.3 Content-Type, 8.8.2 Last-Modified, 8.8.3 a strong ETag, 14.3 Accept-Ranges; each once."""
    headers = facts.headers
    assert not facts.repeated
    assert headers["content-type"] == "application/octet-stream"
    assert headers["accept-ranges"] == "bytes"
    assert re.fullmatch(r'"[0-9a-f]{32}-1"', headers["etag"])
    for name in ("date", "last-modified"):
        seconds = parse_date(headers[name])
        assert seconds is not None and format_date(seconds) == headers[name]
        assert email.utils.parsedate_to_datetime(headers[name]).timestamp() == seconds


def one_range(value: str, size: int) -> tuple[int, int] | None:
    first, _, last = value.partition("=")[2].partition("-")
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


@pytest.mark.parametrize("value", ["bytes=0-0", "bytes=1-4096", "bytes=65000-66000", "bytes=8390143-", "bytes=-1",
                                   "bytes=-99999999", "bytes=8000000-99999999999999999999999", "BYTES=5-9",
                                   "bytes=100-7000000"])  # fmt: skip
def test_a_single_range(client: Client, disk: bytes, facts: Reply, value: str) -> None:
    """14.1.2, 14.4, 15.3.7.1: 206, exactly the bytes, and where they lie."""
    for _ in range(2):  # the second one takes the fast path if there is one for it
        reply = client.ask("GET", "/disk", {"Range": value})
        found = one_range(value, len(disk))
        assert found is not None
        start, stop = found
        assert (reply.status, reply.body == disk[start:stop]) == (206, True)
        assert reply.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(disk)}"
        for name in ("etag", "last-modified", "content-type", "accept-ranges"):
            assert reply.headers[name] == facts.headers[name]
        assert not reply.repeated


@pytest.mark.parametrize("value", ["bytes=5-4", "bytes=", "bytes=a-b", "bytes=0-5-7", "bytes=+0-5", "lines=0-1",
                                   "bytes=" + "x" * 5000, "bytes=0-0," + "x", "bytes=0-,0-,0-,0-,0-",
                                   "bytes=" + ",".join(f"{n * 1000}-{n * 1000}" for n in range(200))])  # fmt: skip
def test_a_range_that_is_none_is_ignored(client: Client, disk: bytes, value: str) -> None:
    """14.2: unknown units and malformed values are ignored; so are sets that only serve to hurt (17.15)."""
    reply = client.ask("GET", "/disk", {"Range": value})
    assert (reply.status, len(reply.body)) == (200, len(disk))


@pytest.mark.parametrize(
    "value", ["bytes={size}-", "bytes={size}-99999999999", "bytes=-0", "bytes=" + "9" * 5000 + "-"]
)
def test_a_range_past_the_end(client: Client, disk: bytes, value: str) -> None:
    """15.5.17, 14.4: 416 says how long the representation is."""
    reply = client.ask("GET", "/disk", {"Range": value.format(size=len(disk))})
    assert (reply.status, reply.headers["content-range"]) == (416, f"bytes */{len(disk)}")
    assert client.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize("spans", [[(0, 9), (5000, 5999)], [(8_000_000, 8_000_999), (0, 0)],
                                   [(n * 70_000, n * 70_000 + 999) for n in range(100)]])  # fmt: skip
def test_several_ranges(client: Client, disk: bytes, spans: list[tuple[int, int]]) -> None:
    """14.6, 15.3.7.2: multipart/byteranges in the order asked for; Content-Range is in the parts only."""
    reply = client.ask("GET", "/disk", {"Range": "bytes=" + ", ".join(f"{a}-{b}" for a, b in spans)})
    assert reply.status == 206 and "content-range" not in reply.headers
    assert parts_of(reply) == [(f"bytes {a}-{b}/{len(disk)}", disk[a : b + 1]) for a, b in spans]


@pytest.mark.parametrize("value", ["bytes=0-9,10-19", "bytes=0-14,5-19", "bytes=0-9,15-19", "bytes=0-19,99999999-"])
def test_ranges_that_touch_become_one(client: Client, disk: bytes, value: str) -> None:
    """15.3.7.2: neighbours may be joined, and what is left of one range is no multipart."""
    reply = client.ask("GET", "/disk", {"Range": value})
    assert (reply.status, reply.body) == (206, disk[:20])
    assert reply.headers["content-range"] == f"bytes 0-19/{len(disk)}"


CONDITIONS = [
    # 13.1.1 If-Match
    ({"If-Match": "{etag}"}, 200),
    ({"If-Match": '"no", {etag}'}, 200),
    ({"If-Match": "*"}, 200),
    ({"If-Match": "W/{etag}"}, 412),
    ({"If-Match": '"no"'}, 412),
    # 13.1.2 If-None-Match
    ({"If-None-Match": "{etag}"}, 304),
    ({"If-None-Match": 'W/{etag}, "no"'}, 304),
    ({"If-None-Match": "*"}, 304),
    ({"If-None-Match": '"no"'}, 200),
    # 13.1.3 If-Modified-Since
    ({"If-Modified-Since": "{date}"}, 304),
    ({"If-Modified-Since": FUTURE}, 304),
    ({"If-Modified-Since": LONG_AGO}, 200),
    ({"If-Modified-Since": "rubbish"}, 200),
    ({"If-Modified-Since": "Sat, 01 Jan 0000 00:00:00 GMT"}, 200),
    # 13.1.4 If-Unmodified-Since
    ({"If-Unmodified-Since": "{date}"}, 200),
    ({"If-Unmodified-Since": LONG_AGO}, 412),
    ({"If-Unmodified-Since": "rubbish"}, 200),
    # 13.2.2 precedence
    ({"If-Match": "{etag}", "If-Unmodified-Since": LONG_AGO}, 200),
    ({"If-None-Match": '"no"', "If-Modified-Since": FUTURE}, 200),
    ({"If-Match": '"no"', "If-None-Match": "{etag}"}, 412),
    # 13.1.5 If-Range
    ({"Range": "bytes=0-1", "If-Range": "{etag}"}, 206),
    ({"Range": "bytes=0-1", "If-Range": "{date}"}, 206),
    ({"Range": "bytes=0-1", "If-Range": '"no"'}, 200),
    ({"Range": "bytes=0-1", "If-Range": "W/{etag}"}, 200),
    ({"Range": "bytes=0-1", "If-Range": LONG_AGO}, 200),
    ({"Range": "bytes=0-1", "If-Range": FUTURE}, 200),
    ({"Range": "bytes=99999999-", "If-Range": '"no"'}, 200),
    ({"If-Range": "{etag}"}, 200),
    # 13.2.1 a condition comes before the range
    ({"Range": "bytes=0-1", "If-None-Match": "{etag}"}, 304),
    ({"Range": "bytes=0-1", "If-Match": '"no"'}, 412),
    ({"Range": "bytes=99999999-", "If-None-Match": "{etag}"}, 304),
]


@pytest.mark.parametrize(("headers", "status"), CONDITIONS)
@pytest.mark.parametrize("path", ["/memory", "/snap.hxz", "/snapshots/snap/disk"])
def test_conditions(client: Client, path: str, headers: dict[str, str], status: int) -> None:
    """Section 13, on every kind of content; 15.4.5: a 304 repeats what identifies it."""
    current = client.ask("HEAD", path).headers
    filled = {
        name: value.format(etag=current["etag"], date=current["last-modified"]) for name, value in headers.items()
    }
    if "99999999" in filled.get("Range", "") and status == 200:
        filled["Range"] = f"bytes={current['content-length']}-"
    reply = client.ask("GET", path, filled)
    assert reply.status == status
    if status != 412:
        assert reply.headers["etag"] == current["etag"]
    if status == 304:
        assert "content-length" not in reply.headers or reply.headers["content-length"] == current["content-length"]
    assert client.ask("HEAD", path, {k: v for k, v in filled.items() if k != "Range"}).status == (
        200 if status == 206 else status
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/disk", "/snap.hxz", "/nothing"])
def test_other_methods(client: Client, method: str, path: str) -> None:
    """15.5.6, 10.2.1: 405 with Allow; 9.3.8: TRACE reflects nothing."""
    reply = client.ask(method, path, {"Content-Length": "4", "X-Secret": "hush"}, b"body")
    assert reply.status == 405
    assert {"GET", "HEAD"} <= set(reply.headers["allow"].split(", "))
    assert b"hush" not in reply.body
    assert client.ask("GET", "/healthz").status == 200  # 9112 6.3: the body was read away


def test_options(client: Client) -> None:
    """9.3.7: also of the server as a whole (9112 3.2.4)."""
    for target in ("/disk", "*"):
        reply = client.ask("OPTIONS", target)
        assert (reply.status, reply.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
        assert "content-length" not in reply.headers


def test_unknown_method(client: Client) -> None:
    """15.6.2."""
    assert client.ask("BREW", "/disk").status == 501


ROUTES = [
    ("/", 200, "application/json"),
    ("/snapshots", 200, "application/json"),
    ("/snapshots/", 200, "application/json"),
    ("/info", 200, "application/json"),
    ("/extents", 200, "application/json"),
    ("/extents?stream=memory&start=5&length=10", 200, "application/json"),
    ("/extents?stream=nothing", 404, "text/plain; charset=utf-8"),
    ("/extents?start=-1", 400, "text/plain; charset=utf-8"),
    ("/extents?start=99999999", 416, "text/plain; charset=utf-8"),
    ("/memory", 200, "application/octet-stream"),
    ("/snap.hxz", 200, "application/octet-stream"),
    ("/sp%20ace.hxz", 200, "application/octet-stream"),
    ("/snapshots/snap", 200, "application/json"),
    ("/snapshots/snap/info", 200, "application/json"),
    ("/snapshots/sp%20ace/info", 200, "application/json"),
    ("/snapshots/snap/extents", 200, "application/json"),
    ("/snapshots/snap/memory", 200, "application/octet-stream"),
    ("/snapshots/dir/memory", 200, "application/octet-stream"),
    ("/snapshots/dir/files", 200, "application/json"),
    ("/snapshots/dir/files/", 200, "application/json"),
    ("/snapshots/dir/files/no/such", 404, "text/plain; charset=utf-8"),
    ("/snapshots/dir/files/no/", 404, "text/plain; charset=utf-8"),
    ("/snapshots/dir/files/../../../etc/passwd", 404, "text/plain; charset=utf-8"),
    ("/snapshots/dir/files/%2e%2e%2fetc/passwd", 404, "text/plain; charset=utf-8"),
    ("/snapshots/snap/files/", 404, "text/plain; charset=utf-8"),
    ("/snapshots/snap/nothing", 404, "text/plain; charset=utf-8"),
    ("/snapshots/snap/disk/", 404, "text/plain; charset=utf-8"),
    ("/snapshots/nothing/disk", 404, "text/plain; charset=utf-8"),
    ("/snapshots/%2e%2e/disk", 404, "text/plain; charset=utf-8"),
    ("/nothing.hxz", 404, "text/plain; charset=utf-8"),
    ("/.hxz", 404, "text/plain; charset=utf-8"),
    ("/../snap.hxz", 404, "text/plain; charset=utf-8"),
    ("//disk", 404, "text/plain; charset=utf-8"),
    ("/nothing", 404, "text/plain; charset=utf-8"),
    ("/%64isk", 200, "application/octet-stream"),
    ("/snapshots/snap/%64is%6b", 200, "application/octet-stream"),
    ("/%73nap%2ehxz", 200, "application/octet-stream"),
    ("/snapshots%2Fsnap/disk", 404, "text/plain; charset=utf-8"),
    ("/snapshots/snap%2Fdisk", 404, "text/plain; charset=utf-8"),
    ("/%2564isk", 404, "text/plain; charset=utf-8"),
    ("/%ff", 400, "text/plain; charset=utf-8"),
    ("/disk%00", 400, "text/plain; charset=utf-8"),
    ("/healthz", 200, "application/json"),
    ("/readyz", 200, "application/json"),
]


@pytest.mark.parametrize(("path", "status", "kind"), ROUTES)
def test_routes(client: Client, path: str, status: int, kind: str) -> None:
    reply = client.ask("GET", path)
    assert (reply.status, reply.headers["content-type"]) == (status, kind)
    if kind == "application/json":
        assert isinstance(json.loads(reply.body), dict)
    headed = client.ask("HEAD", path)
    assert {**headed.headers, "date": ""} == {**reply.headers, "date": ""}
    assert b"/tmp" not in reply.body and b"corpus" not in reply.body  # where files lie is the server's own business


def test_the_index_fits_who_asks(client: Client) -> None:
    """12.5.1, 12.5.5: by Accept, and caches are told."""
    page = client.ask("GET", "/", {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.body.startswith(b"<!doctype html>") and b"sp ace" in page.body
    plain = client.ask("GET", "/", {"Accept": "*/*"})
    listed = json.loads(plain.body)["snapshots"]
    assert [item["name"] for item in listed] == ["snap", "dir", "sp ace"]
    assert page.headers["vary"] == plain.headers["vary"] == "Accept"
    for item in listed:
        for url in (item["file"], item["info"], *(stream["url"] for stream in item["streams"].values())):
            assert client.ask("HEAD", url).status == 200


def test_extents_tile_the_stream(client: Client, disk: bytes) -> None:
    answer = json.loads(client.ask("GET", "/extents?start=1000&length=5000000").body)
    position = 1000
    for extent in answer["extents"]:
        assert extent["start"] == position and extent["length"] > 0
        if extent["kind"] == "zero":
            assert not any(disk[position : position + extent["length"]])
        position += extent["length"]
    assert position == 5_001_000 and answer["next"] is None


def test_files_of_an_archive(server: Serving, client: Client) -> None:
    """Each with ranges, its own ETag and a type by its name; a browser treats it as a stranger's page."""
    with server.catalog.lease("dir") as snapshot:
        files = snapshot.files
        assert files
        tags = set()
        for file in files:
            whole = b"".join(snapshot.streams[file.stream].read(file.offset, file.size)) if file.size else b""
            reply = client.ask("GET", f"/snapshots/dir/files/{quote(file.path)}")
            assert (reply.status, reply.body) == (200, whole)
            assert reply.headers["content-security-policy"] == "sandbox"
            assert reply.headers["x-content-type-options"] == "nosniff"
            tags.add(reply.headers["etag"])
            if file.size > 10:
                part = client.ask("GET", f"/snapshots/dir/files/{quote(file.path)}", {"Range": "bytes=3-8"})
                assert (part.status, part.body) == (206, whole[3:9])
        assert len(tags) == len({(file.stream, file.offset) for file in files})


def test_a_range_of_nothing_is_ignored(tmp_path: Path) -> None:
    """14.2: a server may; clients and caches that fetch in slices begin with a range whatever they will find."""
    with serving({"names": write_archive(tmp_path / "names.hxz", {"empty": b"", "text": b"words"})}) as server:
        for value in ("bytes=0-", "bytes=0-9", "bytes=-5", "bytes=0-0,5-9", "bytes=7-"):
            for method in ("GET", "HEAD"):
                reply = server.ask(method, "/snapshots/names/files/empty", {"Range": value})
                assert (reply.status, reply.headers["content-length"], reply.body) == (200, "0", b""), value
                assert "content-range" not in reply.headers


@pytest.mark.parametrize("coding", ["gzip", "identity;q=0, gzip", "*;q=0", "zstd, br"])
def test_bytes_are_never_coded(client: Client, disk: bytes, coding: str) -> None:
    """8.4, 12.5.3: positions mean the image's own bytes, so there is one coding; who accepts none gets it too."""
    for headers, status, body in (({}, 200, disk), ({"Range": "bytes=5000-5999"}, 206, disk[5000:6000])):
        reply = client.ask("GET", "/disk", {"Accept-Encoding": coding, **headers})
        assert (reply.status, reply.body == body, "content-encoding" in reply.headers) == (status, True, False)


def test_no_digest_that_would_have_to_be_computed(client: Client) -> None:
    """RFC 9530 section 4: Want-Repr-Digest is a wish; no snapshot stores such a digest of its streams."""
    reply = client.ask("GET", "/disk", {"Want-Repr-Digest": "sha-256=10", "Range": "bytes=0-9"})
    assert (reply.status, "repr-digest" in reply.headers, "content-digest" in reply.headers) == (206, False, False)


def test_a_url_with_the_etag_never_changes(client: Client, facts: Reply) -> None:
    """RFC 8246, RFC 9111 5.2.2: immutable only where the URL names the content; elsewhere caches ask each time."""
    etag = facts.headers["etag"].strip('"')
    for headers in ({}, {"Range": "bytes=0-9"}, {"If-None-Match": f'"{etag}"'}):
        assert "immutable" in client.ask("GET", f"/disk?v={etag}", headers).headers["cache-control"]
        for path in ("/disk", "/disk?x=1"):
            assert client.ask("GET", path, headers).headers["cache-control"] == "no-cache"
    others = [(f"/{path}?v=other", 404) for path in ("disk", "snap.hxz", "snapshots/dir/files/disk")]
    for path, status in (*others, (f"/disk?v={etag}&v=other", 404), ("/nothing", 404), ("/info", 200)):
        reply = client.ask("GET", path)
        assert (reply.status, reply.headers["cache-control"]) == (status, "no-store")
    reply = client.ask("GET", f"/disk?v={etag}", {"Range": "bytes=99999999-"})
    assert (reply.status, reply.headers["cache-control"], reply.repeated) == (416, "no-store", ())


def test_clamped_ranges(snapshot_file: object, disk: bytes) -> None:
    """With --max-range a range is cut short, and Content-Range says so (15.3.7); a plain GET never is."""
    with serving({"snap": snapshot_file}, max_range=5000) as clamped, clamped.client() as client:
        for value, start, length in (("bytes=7-", 7, 5000), ("bytes=0-99", 0, 100), ("bytes=-9000", 8381144, 5000)):
            reply = client.ask("GET", "/disk", {"Range": value})
            assert (reply.status, reply.body) == (206, disk[start : start + length])
            assert reply.headers["content-range"] == f"bytes {start}-{start + length - 1}/{len(disk)}"
        assert len(client.ask("GET", "/disk").body) == len(disk)
        reply = client.ask("GET", "/disk", {"Range": "bytes=0-3999,100000-104999"})
        assert [len(data) for _, data in parts_of(reply)] == [4000, 1000]


def test_cross_origin_reads(snapshot_file: object) -> None:
    """Fetch, CORS protocol: a preflight needs no token, and grants reading only."""
    with serving({"snap": snapshot_file}, cors="https://a.example") as server, server.client() as client:
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
        preflight = client.ask("OPTIONS", "/disk", asked)
        assert preflight.status == 204
        assert preflight.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
        for _ in range(2):
            reply = client.ask("GET", "/disk", {"Range": "bytes=0-1"})
            assert reply.headers["access-control-allow-origin"] == "https://a.example"
            assert "Content-Range" in reply.headers["access-control-expose-headers"]


def test_without_cors_no_page_may_read(client: Client) -> None:
    reply = client.ask("GET", "/info", {"Origin": "https://a.example"})
    assert not any(name.startswith("access-control") for name in reply.headers)


@given(st.lists(st.tuples(st.integers(0, 9_000_000), st.integers(0, 300_000)), min_size=1, max_size=6))
def test_random_ranges_in_a_row_and_pipelined(server: Serving, disk: bytes, spans: list[tuple[int, int]]) -> None:
    """9112 9.3.2: answers come in order, each what its request asked for, whichever path answers it."""
    with server.client() as client:
        client.send(b"".join(request("GET", "/disk", {"Range": f"bytes={a}-{a + n}"}) for a, n in spans))
        for start, more in spans:
            reply = client.receive()
            if start >= len(disk):
                assert reply.status == 416
            else:
                assert (reply.status, reply.body == disk[start : start + more + 1]) == (206, True)
