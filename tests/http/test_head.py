"""Request heads: the grammar of RFC 9112, strictly, since what two parsers read differently can be smuggled.

The invariant of the random tests: any bytes either parse or raise RequestError, never anything else.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import MAX_HEADERS, MAX_TARGET, Framing, RequestHead, framing_of, parse_head

HOST = b"\r\nHost: h"


def status_of(head: bytes) -> int | None:
    """What parsing refuses with, None when it does not."""
    try:
        framing_of(parse_head(head))
    except RequestError as error:
        assert 400 <= error.status < 600
        assert str(error).isprintable()
        return error.status
    return None


def parsed(head: bytes) -> RequestHead:
    return parse_head(head)


def test_a_plain_head() -> None:
    head = parsed(b"GET /a%20b/c?x=1&y HTTP/1.1\r\nHost: h:80\r\nRANGE:bytes=0-1\r\nX-A:  1 \t\r\nx-a: 2")
    assert (head.method, head.path, head.query, head.minor) == ("GET", "/a%20b/c", "x=1&y", 1)
    assert list(head.segments) == ["a b", "c"]
    assert head.headers == {"host": "h:80", "range": "bytes=0-1", "x-a": "1,2"}


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"GET / HTTP/1.1", "/"),
        (b"GET http://h/disk?x HTTP/1.1", "/disk"),  # RFC 9112 3.2.2: absolute-form is accepted
        (b"GET HTTP://h HTTP/1.1", "/"),
        (b"GET http://h?x HTTP/1.1", "/"),
        (b"OPTIONS * HTTP/1.1", "*"),  # 3.2.4
        (b"GET //x HTTP/1.1", "//x"),
        (b"GET /../x HTTP/1.1", "/../x"),
        (b"GET /x HTTP/1.9", "/x"),  # 2.3: a later minor version is read as the one known
        # RFC 9110 4.2.3, RFC 3986 6.2.2.2: unreserved characters are the same escaped or not, whatever the digits' case
        (b"GET /%64isk?%64 HTTP/1.1", "/disk"),
        (b"GET /%2d%2E%5f%7E%41%5A%61%7a%30%39 HTTP/1.1", "/-._~AZaz09"),
        (b"GET /a%2Fb%2f%25%34%31%3F%3f HTTP/1.1", "/a%2Fb%2f%2541%3F%3f"),  # once, and nothing that divides a path
        (b"GET /%40%5B%60%7B%2C%3A%C3%A9%ff%00 HTTP/1.1", "/%40%5B%60%7B%2C%3A%C3%A9%ff%00"),
    ],
)
def test_targets(line: bytes, path: str) -> None:
    assert parsed(line + HOST).path == path


@pytest.mark.parametrize(
    ("head", "status"),
    [
        # RFC 9112 section 3: the request line
        (b"", 400),
        (b"GET", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1" + HOST, 400),
        (b"GET /  HTTP/1.1" + HOST, 400),
        (b" GET / HTTP/1.1" + HOST, 400),
        (b"GET\t/\tHTTP/1.1" + HOST, 400),
        (b"GET / HTTP/1.1 " + HOST, 400),
        (b"GET / http/1.1" + HOST, 400),
        (b"GET / HTTP/11" + HOST, 400),
        (b"GET / HTTP/1.10" + HOST, 400),
        (b"GET /\xe9 HTTP/1.1" + HOST, 400),
        (b"GET /\x00 HTTP/1.1" + HOST, 400),
        (b"GET /#a HTTP/1.1" + HOST, 400),
        (b"GET /%zz HTTP/1.1" + HOST, 400),
        (b"GET /% HTTP/1.1" + HOST, 400),
        (b"GET x HTTP/1.1" + HOST, 400),
        (b"GET * HTTP/1.1" + HOST, 400),
        (b"GET ftp://h/ HTTP/1.1" + HOST, 400),
        (b"GET http://u@h/ HTTP/1.1" + HOST, 400),
        (b"G\xc3T / HTTP/1.1" + HOST, 400),
        (b"GET / HTTP/2.0" + HOST, 505),  # RFC 9110 15.6.6
        (b"GET / HTTP/0.9" + HOST, 505),
        (b"PRI * HTTP/2.0", 505),
        (b"BREW / HTTP/1.1" + HOST, 501),  # RFC 9110 15.6.2, 9.1
        (b"get / HTTP/1.1" + HOST, 501),  # 9.1: methods are case-sensitive
        (b"GET /" + b"a" * MAX_TARGET + b" HTTP/1.1" + HOST, 414),  # RFC 9112 section 3
        # RFC 9112 3.2: Host
        (b"GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a", 400),
        (b"GET / HTTP/1.1\r\nHost: a b", 400),
        (b"GET / HTTP/1.1\r\nHost: a@b", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b", 400),
        (b"GET / HTTP/1.1\r\nHost: a:b", 400),
        (b"GET / HTTP/1.1\r\nHost: [::1", 400),
        # RFC 9112 5.1, 5.2, 2.2: header lines
        (b"GET / HTTP/1.1\r\nHost : h", 400),
        (b"GET / HTTP/1.1\r\n Host: h", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nA: b\r\n c", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nno colon", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\n: v", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nA\x00: v", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nA: \x00", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nA: b\rc", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nA: b\nC: d", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\n" + b"A: b\r\n" * MAX_HEADERS + b"A: b", 431),  # RFC 6585
        # RFC 9112 6.1 to 6.3: what delimits the body
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: 1\r\nContent-Length: 1", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: 1, 1", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: +1", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: -1", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: 0x1", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: 1_0", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length:", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: \xb2", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: " + b"9" * 5000, 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: gzip, chunked", 501),
        (b"GET / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: identity", 501),
        (b"GET / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: xchunked", 501),
        (b"GET / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: \x0bchunked", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        (b"GET / HTTP/1.0" + HOST + b"\r\nTransfer-Encoding: chunked", 400),
        # and what is fine
        (b"GET / HTTP/1.1\r\nHost:", None),
        (b"GET / HTTP/1.1\r\nHost: [::1]:80", None),
        (b"GET / HTTP/1.0", None),
        (b"GET / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: Chunked", None),
        (b"GET / HTTP/1.1" + HOST + b"\r\nA: \xe9\t b", None),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: 007", None),
    ],
)
def test_what_is_refused_and_how(head: bytes, status: int | None) -> None:
    assert status_of(head) == status


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/", [""]),
        (b"/a/b", ["a", "b"]),
        (b"/a%2Fb", ["a/b"]),  # RFC 3986 2.2: an escaped slash divides nothing
        (b"/%2e%2e/x", ["..", "x"]),
        (b"/%c3%a9", ["\xe9"]),
        (b"/a+b", ["a+b"]),
        (b"/%ff", 400),
        (b"/%00", 400),
        (b"/a%0d%0aB", 400),
    ],
)
def test_path_segments(path: bytes, expected: object) -> None:
    head = parsed(b"GET " + path + b" HTTP/1.1" + HOST)
    try:
        assert list(head.segments) == expected
    except RequestError as error:
        assert error.status == expected


@pytest.mark.parametrize(
    ("version", "connection", "expected"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"Keep-Alive, CLOSE", False),
        (b"1.1", b"upgrade", True),
        (b"1.0", None, False),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"close, keep-alive", False),
    ],
)
def test_who_wants_to_keep_the_connection(version: bytes, connection: bytes | None, expected: bool) -> None:
    """RFC 9112 section 9.3."""
    line = b"" if connection is None else b"\r\nConnection: " + connection
    assert parsed(b"GET / HTTP/" + version + HOST + line).keep_alive is expected


def test_body_framing() -> None:
    assert framing_of(parsed(b"PUT / HTTP/1.1" + HOST)) == Framing(0, False)
    assert framing_of(parsed(b"PUT / HTTP/1.1" + HOST + b"\r\nContent-Length: 12")) == Framing(12, False)
    assert framing_of(parsed(b"PUT / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: chunked")) == Framing(0, True)


GARBAGE = st.binary(max_size=200)
PIECES = st.lists(
    st.sampled_from([b"GET", b"/", b" ", b"HTTP/1.1", b"\r\n", b"Host: h", b":", b"Transfer-Encoding: chunked", b"%",
                     b"Content-Length: 1", b"\n", b"\r", b"\t", b"\x00", b"\xff", b"?", b"#", b"http://", b"*",
                     b"Range: bytes=0-1", b"Connection: close", b"%41", b"OPTIONS"]),
    max_size=14,
).map(b"".join)  # fmt: skip


@given(st.one_of(GARBAGE, PIECES, PIECES.map(lambda tail: b"GET / HTTP/1.1\r\nHost: h\r\n" + tail)))
@example(b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0bchunked")
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        head = parse_head(data)
        list(head.segments)
        framing_of(head)
    except RequestError:
        return
    assert b"\n" not in head.target.encode() and " " not in head.target
    assert all("\n" not in text and "\r" not in text for item in head.headers.items() for text in item)
    assert isinstance(head.keep_alive, bool)


@pytest.mark.parametrize("head", [b"A" * 16000, b"GET " + b"/" * 8000 + b" HTTP/1.1" + HOST,
                                  b"GET / HTTP/1.1" + HOST + b"\r\nA: " + b" " * 16000 + b"\x01",
                                  b"GET / HTTP/1.1\r\nHost: " + b"a" * 16000 + b"@"])  # fmt: skip
def test_hostile_heads_are_dealt_with_at_once(head: bytes) -> None:
    began = time.process_time()
    status_of(head)
    assert time.process_time() - began < 1.0
