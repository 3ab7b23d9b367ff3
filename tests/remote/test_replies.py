"""Answers to our requests: any bytes are a head or an error, and a span is the one that was asked for or an error."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.protocol.http.errors import NoSpan, OtherVersion, ReplyError
from hexz.protocol.http.reply import (
    MAX_REPLY_HEADERS,
    ReplyHead,
    ReplySpan,
    Version,
    check_span,
    parse_reply_head,
    total_of,
    version_of,
)

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
PINNED = Version('"v1"', DATE, 1000)
GOOD = ("HTTP/1.1 206 Partial Content", "Content-Range: bytes 100-199/1000", "Content-Length: 100", 'ETag: "v1"')


def head_of(*lines: str) -> ReplyHead:
    return parse_reply_head("\r\n".join(lines).encode("latin-1"))


TOKENS = st.sampled_from(
    [b"HTTP/1.1 206 x", b"HTTP/1.0 200", b"HTTP/2 200", b"\r\n", b"\n", b"\r", b":", b" ", b"\t", b"\0", b"\xff", b"x",
     b"Content-Length: ", b"Content-Range: bytes ", b"0", b"-", b"/", b"*", b"99999999999999999999", b"ETag: ", b'"',
     b"W/", b"Transfer-Encoding: chunked", b"Connection: close", b"1-2/3"]
)  # fmt: skip
HEADS = st.one_of(st.binary(max_size=200), st.lists(TOKENS, max_size=25).map(b"".join))


@given(HEADS, st.one_of(st.none(), st.integers(0, 1 << 70)), st.integers(1, 1 << 20), st.sampled_from([None, PINNED]))
def test_any_bytes_are_a_head_or_an_error(head: bytes, start: int | None, length: int, pinned: Version | None) -> None:
    for raw in (head, b"HTTP/1.1 206\r\n" + head):
        try:
            parsed = parse_reply_head(raw)
        except ReplyError:
            continue
        assert 100 <= parsed.status <= 599 and (parsed.length is None or parsed.length >= 0)
        assert all(name == name.lower() and "\n" not in name + value for name, value in parsed.headers.items())
        try:
            span = check_span(parsed, start, length, pinned)
        except (NoSpan, OtherVersion):
            continue
        assert 0 < span.length <= length


@pytest.mark.parametrize(
    "lines",
    [
        ("HTTP/1.1 20 x",),
        ("HTTP/1.1 600 x",),
        ("HTTP/2 206",),
        ("SSH-2.0-OpenSSH",),
        ("HTTP/1.1 206 x\n",),
        (GOOD[0], "no colon"),
        (GOOD[0], "Name : x"),
        (GOOD[0], ": x"),
        (GOOD[0], " folded: x"),
        (GOOD[0], "A: x\0"),
        (GOOD[0], "A: x\n"),
        (GOOD[0], "A: x\rB: y"),
        (GOOD[0], "Content-Length: -1"),
        (GOOD[0], "Content-Length: +1"),
        (GOOD[0], "Content-Length: 0x10"),
        (GOOD[0], "Content-Length: 1, 1"),
        (GOOD[0], "Content-Length: " + "9" * 19),
        (GOOD[0], "Content-Length: ٣".encode().decode("latin-1")),
        (GOOD[0], "Content-Length: 1", "Content-Length: 2"),
        (GOOD[0], 'ETag: "a"', 'ETag: "b"'),
        (GOOD[0], "Location: /a", "Location: /b"),
        (GOOD[0], *(f"A{n}: x" for n in range(MAX_REPLY_HEADERS + 1))),
    ],
)
def test_what_is_no_head(lines: tuple[str, ...]) -> None:
    with pytest.raises(ReplyError):
        head_of(*lines)


def test_what_a_head_says() -> None:
    head = head_of(GOOD[0], "CONTENT-LENGTH:  5 ", "Content-Length: 5", "Vary: a", "vary: b", "Empty:")
    assert head == (206, {"content-length": "5", "vary": "a, b", "empty": ""}, 1, 5)
    assert head_of(GOOD[0], "Content-Length: 5", "Transfer-Encoding: chunked").length is None
    assert head_of(GOOD[0], *(f"A{n}: x" for n in range(MAX_REPLY_HEADERS))).status == 206


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (("HTTP/1.1 206",), True),
        (("HTTP/1.1 206", "Connection: Close"), False),
        (("HTTP/1.1 206", "Connection: x, close"), False),
        (("HTTP/1.0 206",), False),
        (("HTTP/1.0 206", "Connection: Keep-Alive"), True),
    ],
)
def test_whether_the_connection_is_kept(lines: tuple[str, ...], kept: bool) -> None:
    assert head_of(*lines).keeps_connection == kept


# Spans

VERSIONS = st.sampled_from(['"v1"', '"v2"', 'W/"v1"', "v1", "", '"v 1"'])
SIZES = st.sampled_from([1000, 999, 1001, 0, 1, 10**18 - 1])
PLACES = st.integers(0, 1100)


@given(
    st.sampled_from([200, 204, 206, 304, 416]), PLACES, PLACES, SIZES, st.one_of(st.none(), PLACES), VERSIONS,
    st.one_of(st.none(), PLACES), st.integers(1, 1100),
)  # fmt: skip
def test_only_the_very_span_counts(
    status: int, first: int, last: int, size: int, said: int | None, etag: str, start: int | None, length: int
) -> None:
    fields = [f"Content-Range: bytes {first}-{last}/{size}", f"ETag: {etag}"]
    if said is not None:
        fields.append(f"Content-Length: {said}")
    head = head_of(f"HTTP/1.1 {status} x", *fields)
    wanted = (max(1000 - length, 0), 1000) if start is None else (start, min(start + length, 1000))
    right = (
        status in (200, 206)
        and size == 1000
        and etag in ('"v1"', "v1")
        and (first, last + 1) == wanted
        and said in (None, last + 1 - first)
    )
    try:
        span = check_span(head, start, length, PINNED)
    except (NoSpan, OtherVersion) as error:
        assert not right
        other = size != 1000 or etag == '"v2"'
        assert isinstance(error, OtherVersion) == (other and status in (200, 206)), error
        return
    assert right and span == ReplySpan(wanted[0], wanted[1] - wanted[0], Version(etag, "", 1000))


@pytest.mark.parametrize(
    "change",
    [
        {"Content-Range": None},
        {"Content-Range": "bytes 100-199/*"},
        {"Content-Range": "bytes */1000"},
        {"Content-Range": "lines 100-199/1000"},
        {"Content-Range": "bytes 100-199/" + "9" * 5000},
        {"Content-Range": "bytes=100-199/1000"},
        {"Content-Range": "bytes 100-199/1000, bytes 300-399/1000"},
        {"Content-Encoding": "gzip"},
        {"Content-Length": "99"},
        {"ETag": None},
        {"ETag": 'W/"v1"'},
    ],
)
def test_what_is_not_the_span(change: dict[str, str | None]) -> None:
    fields = dict(line.split(": ", 1) for line in GOOD[1:])
    assert check_span(head_of(*GOOD), 100, 100, PINNED).length == 100
    changed = {name: value for name, value in {**fields, **change}.items() if value is not None}
    with pytest.raises(NoSpan):
        check_span(head_of(GOOD[0], *(f"{name}: {value}" for name, value in changed.items())), 100, 100, PINNED)


def test_another_version_is_for_good() -> None:
    by_time = PINNED._replace(etag="")
    same = head_of(*GOOD[:3], f"Last-Modified: {DATE}")
    assert check_span(same, 100, 100, by_time).version == by_time
    for lines, pinned in (
        ((*GOOD[:3], 'ETag: "v2"'), PINNED),
        ((GOOD[0], "Content-Range: bytes 100-199/1001", GOOD[3]), PINNED),
        ((*GOOD[:3], "Last-Modified: Sun, 06 Nov 1994 08:49:38 GMT"), by_time),
        (GOOD[:3], by_time),
    ):
        with pytest.raises(OtherVersion):
            check_span(head_of(*lines), 100, 100, pinned)


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=1100))
def test_an_etag_that_is_sent_back_can_stand_in_a_header(text: str) -> None:
    etag = version_of(ReplyHead(206, {"etag": text}, 1, None), 1).etag
    assert etag in ("", text) and re.fullmatch(r'[!-~\x80-\xff "]*', etag) and not etag.startswith("W/")
    assert len(etag) <= 1024


@pytest.mark.parametrize(
    ("text", "total"), [("bytes */5", 5), ("bytes 1-2/5", 5), ("bytes 1-2/*", None), ("", None), ("x", None)]
)
def test_the_total(text: str, total: int | None) -> None:
    assert total_of(ReplyHead(416, {"content-range": text}, 1, None)) == total
